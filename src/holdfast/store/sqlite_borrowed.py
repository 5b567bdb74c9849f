"""Writing into a transaction that is the caller's own, on a connection of the caller's.

The verbs need something with `execute`. What the connection is set up for (row and text factories, isolation level,
autocommit, a class of its own with other methods) is the caller's business and must not matter: each statement gets a
plain cursor of its own, is read to its end at once, and leaves nothing open behind it.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterable
from typing import Any

from pydantic_core import to_json

from ..basis.errors import ValidationError
from ..basis.text import error_text
from .base import LentTransaction

#: Any other name for the same file means the same; a copy of it has the same database id, and is another.
_FILE = "select file from pragma_database_list where name = 'main'"
_ID = "select value from main.holdfast_meta where key = 'database_id'"
_TABLES = "select count(*) from main.sqlite_master where name in ('holdfast_meta', 'holdfast_migrations')"
_THERE = "select id from holdfast_runs where id in (select value from json_each(?1))"
_SHADOWS = "select name from temp.sqlite_master where name like 'holdfast$_%' escape '$' limit 1"


class Fetched:
    """What a statement gave, all of it."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._rows: list[Any] = cursor.fetchall()
        self._next = iter(self._rows)
        self.rowcount: int = cursor.rowcount

    def fetchall(self) -> list[Any]:
        return list(self._next)

    def fetchone(self) -> Any:
        return next(self._next, None)


class Borrowed(LentTransaction):
    """A connection of the caller's, as the verbs see it. `ours` opens one of our own, which sees what is committed."""

    def __init__(self, connection: sqlite3.Connection, ours: Callable[[], sqlite3.Connection]) -> None:
        self.connection = connection
        self._ours = ours

    def execute(self, sql: str, parameters: Any = (), /) -> Fetched:
        """As that of a connection of ours."""
        if parameters and "?1" in sql:
            # Python 3.12.0 to 3.12.3 take numbers for names, and warn.
            parameters = {str(number): value for number, value in enumerate(parameters, 1)}
        connection = self.connection
        factory = connection.text_factory
        if factory is not str:
            connection.text_factory = str
        try:
            # Not `connection.cursor()`: that is what a class of the caller's may have changed.
            cursor = sqlite3.Cursor(connection)
            return Fetched(cursor.execute(sql, parameters))
        finally:
            if factory is not str:
                connection.text_factory = factory

    def is_over(self) -> bool:
        # The one reference is ours, the other is the question itself. Kept any longer, what its owner has forgotten
        # would stay open, and nobody could write.
        if sys.getrefcount(self.connection) <= 2:
            return True
        try:
            return not self.connection.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return True

    def uncommitted(self, run_ids: Iterable[str]) -> set[str]:
        # A connection with `autocommit=False` has a transaction open at any time: what is in it tells.
        asked = (to_json(list(run_ids)).decode(),)
        ours = self._ours()
        try:
            committed = {row[0] for row in ours.execute(_THERE, asked).fetchall()}
        finally:
            ours.close()
        if committed.issuperset(run_ids):
            return set()
        return {row[0] for row in self.execute(_THERE, asked).fetchall()} - committed

    def is_same(self, other: LentTransaction) -> bool:
        return isinstance(other, Borrowed) and other.connection is self.connection


def borrowed(given: object, ours: Callable[[], sqlite3.Connection]) -> Borrowed:
    """The connection, if it can be used in this thread and has a transaction open; otherwise `ValidationError`."""
    if not isinstance(given, sqlite3.Connection):
        raise ValidationError(
            f"connection: {type(given).__name__} is none that can be used here. Give the sqlite3.Connection on which "
            "your transaction is open."
        )
    connection = Borrowed(given, ours)
    try:
        connection.execute("select 1")
        is_open = given.in_transaction
    except sqlite3.Error as error:  # closed, of another thread, or never opened
        raise ValidationError(f"connection: it can't be used here: {error_text(error, 300)}") from error
    if not is_open:
        raise ValidationError(
            "connection: no transaction is open on it, so there is nothing that the run could be part of. Write "
            'first, or begin one: connection.execute("begin immediate").'
        )
    return connection


def refuse_other(connection: Borrowed, path: str | None, database_id: str, name: str) -> None:
    """`ValidationError` unless this is the database with that id, in that file (None: in memory)."""
    file = connection.execute(_FILE).fetchone()[0]
    if not _is_file(file, path) or not _is(connection, database_id):
        raise ValidationError(
            f"connection: it is open on another database ({file or 'in memory'}) than this app ({name}). "
            "A transaction can't reach into two of them, also if one is attached to the other."
        )
    if shadow := connection.execute(_SHADOWS).fetchone():
        raise ValidationError(f"connection: its temporary table {shadow[0]!r} hides the table of Holdfast.")
    # Its commits would checkpoint beside other writers (decision 0011); this app's own upkeep does it.
    connection.execute("pragma wal_autocheckpoint = 0")


def _is_file(file: str, path: str | None) -> bool:
    try:
        return path is None or (bool(file) and os.path.samefile(file, path))
    except OSError:  # one of them is gone
        return False


def _is(connection: Borrowed, database_id: str) -> bool:
    there: bool = connection.execute(_TABLES).fetchone()[0] == 2
    return there and bool(connection.execute(_ID).fetchone() == (database_id,))
