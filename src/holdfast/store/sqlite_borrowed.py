"""Writing into a transaction that is the caller's own, on an SQLite connection of the caller's.

The verbs need something with `execute`. What the connection is set up for (row and text factories, isolation level,
autocommit, a class of its own with other methods) is the caller's business and must not matter: each statement gets a
plain cursor of its own, is read to its end at once, and leaves nothing open behind it.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

from pydantic_core import to_json

from ..basis.errors import ValidationError
from .base import Dialect, LentTransaction
from .lending import AUTOCOMMIT, NOT_OPEN, AwaitedLender, Fetched, Lender, Lent, unusable

T = TypeVar("T")

#: Any other name for the same file means the same; a copy of it has the same database id, and is another.
_FILE = "select file from pragma_database_list where name = 'main'"
_ID = "select value from main.holdfast_meta where key = 'database_id'"
_TABLES = "select count(*) from main.sqlite_master where name in ('holdfast_meta', 'holdfast_migrations')"
_THERE = "select id from holdfast_runs where id in (select value from json_each(?1))"
_SHADOWS = "select name from temp.sqlite_master where name like 'holdfast$_%' escape '$' limit 1"

#: `autocommit` of a connection that is told by its isolation level when to begin.
_LEGACY = -1


class Borrowed(Lent):
    """A connection of the caller's, as the verbs see it. `ours` opens one of our own, which sees what is committed."""

    dialect: ClassVar[Dialect] = "sqlite"
    alone: ClassVar[bool] = True

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.ours: Callable[[], sqlite3.Connection] | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> Fetched:
        if parameters and "?1" in sql:
            # Python 3.12.0 to 3.12.3 take numbers for names, and warn.
            parameters = {str(number): value for number, value in enumerate(parameters, 1)}
        connection = self.connection
        factory = connection.text_factory
        if factory is not str:
            connection.text_factory = str
        try:
            # Not `connection.cursor()`: that is what a class of the caller's may have changed.
            cursor = sqlite3.Cursor(connection).execute(sql, parameters)
            return Fetched(cursor.fetchall(), cursor.rowcount, cursor.description)
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
        if self.ours is None:
            return set(run_ids)
        asked = (to_json(list(run_ids)).decode(),)
        ours = self.ours()
        try:
            committed = {row[0] for row in ours.execute(_THERE, asked).fetchall()}
        finally:
            ours.close()
        if committed.issuperset(run_ids):
            return set()
        return {row[0] for row in self.execute(_THERE, asked).fetchall()} - committed

    def is_same(self, other: LentTransaction) -> bool:
        return isinstance(other, Borrowed) and other.connection is self.connection

    def check(self, begun: bool) -> None:
        """`ValidationError` unless it can be used in this thread and has a transaction open.

        With `begun` a layer above it has begun one and leaves it to sqlite3, which would wait for the first write.
        """
        connection = self.connection
        try:
            self.execute("select 1")
            if connection.in_transaction:
                return
        except sqlite3.Error as error:  # closed, of another thread, or never opened
            raise unusable(error) from error
        legacy = getattr(connection, "autocommit", _LEGACY) == _LEGACY
        if not begun:
            raise ValidationError(f'{NOT_OPEN}: connection.execute("begin immediate").')
        if not legacy or connection.isolation_level is None:
            raise ValidationError(AUTOCOMMIT)
        self.execute("begin immediate")


class SqliteLender(Lender):
    """One of the standard library."""

    def __init__(self, given: sqlite3.Connection) -> None:
        self._given = given

    def lend(self, *, begun: bool = False) -> Borrowed:
        borrowed = Borrowed(self._given)
        borrowed.check(begun)
        return borrowed


class _Elsewhere(Borrowed):
    """One that only another thread may use."""

    def uncommitted(self, run_ids: Iterable[str]) -> set[str]:
        return set(run_ids)


class AiosqliteLender(AwaitedLender):
    """One of aiosqlite, a thread with a connection of the standard library: there the whole verb is one call."""

    def __init__(self, given: Any) -> None:
        self._given = given

    async def run(self, verb: Callable[[Lent], T], *, begun: bool = False) -> T:
        given = self._given
        try:
            connection = given._conn
        except ValueError as error:  # closed, or not yet awaited
            raise unusable(error) from error

        def run() -> T:
            borrowed = _Elsewhere(connection)
            borrowed.check(begun)
            return verb(borrowed)

        # It has no public name for this, and its own statements take no other way. Cancelled meanwhile, it comes to its
        # end there, before any other of the caller's.
        done: T = await given._execute(run)
        return done


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
