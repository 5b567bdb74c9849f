"""The file behind the SQLite store: opening it, transactions, what its errors mean, its tables.

Write transactions begin IMMEDIATE. A deferred one that reads first fails at once, without waiting, when somebody
else commits in between. WAL lets readers work beside the writer; `synchronous=FULL` syncs at every commit, which is
affordable because one commit serves a whole round.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import urllib.parse
import weakref
from pathlib import Path
from typing import Any

from ..basis.clock import Clock, SystemClock
from ..basis.errors import SchemaError, StoreError, StoreUnavailable, ValidationError
from .base import Store, Tx
from .schema import Schema, statements

#: Strict tables came with 3.37, the JSON arrows with 3.38.
OLDEST = (3, 38, 0)

_IN_TROUBLE = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_LOCKED: "is locked",
    sqlite3.SQLITE_FULL: "can't grow: the disk is full",
    sqlite3.SQLITE_IOERR: "can't be read or written",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_CANTOPEN: "can't be opened",
    sqlite3.SQLITE_PERM: "may not be accessed",
    sqlite3.SQLITE_AUTH: "may not be accessed",
    sqlite3.SQLITE_CORRUPT: "is damaged; run `pragma integrity_check` on a copy of it",
    sqlite3.SQLITE_NOTADB: "is not an SQLite database",
    sqlite3.SQLITE_NOMEM: "ran out of memory",
    sqlite3.SQLITE_PROTOCOL: "is locked by another process",
}


class NumberedConnection(sqlite3.Connection):
    """Takes `?1` for the number that it is.

    Python 3.12.0 to 3.12.3 take it for a name, and warn of every statement that has one (python/cpython#117995).
    """

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if parameters and "?1" in sql:
            parameters = {str(number): value for number, value in enumerate(parameters, 1)}
        return super().execute(sql, parameters)


_CONNECTION: type[sqlite3.Connection] = (
    NumberedConnection if (3, 12) <= sys.version_info < (3, 12, 4) else sqlite3.Connection
)


class SqliteFile(Store):
    """Everything about an SQLite database but the verbs."""

    def __init__(
        self, url: str, *, clock: Clock | None = None, lock_timeout: float = 10.0, schema: Schema | None = None
    ) -> None:
        self.name = url
        self.clock: Clock = clock or SystemClock()
        self.lock_timeout = lock_timeout
        """Seconds to wait for another process's write transaction before answering `StoreUnavailable`."""
        self.schema: Schema = schema or Schema.load("sqlite")
        path = _path_of(url)
        self.in_memory: bool = path == ":memory:"
        self._temporary = path is None
        self._path: str | None = path if path is None or self.in_memory else os.path.abspath(path)
        self._only: sqlite3.Connection | None = None
        self._opening = threading.Lock()

    def reset_after_fork(self) -> None:
        self._opening = threading.Lock()

    @property
    def path(self) -> str:
        """The file; that of a temporary database is made on first use."""
        with self._opening:
            if self._path is None:
                directory = tempfile.mkdtemp(prefix="holdfast-")
                # Also if nobody ever closes.
                weakref.finalize(self, _remove, directory, os.getpid())
                self._path = str(Path(directory) / "holdfast.db")
            return self._path

    # -- connections -------------------------------------------------------------------------------------------

    def connect(self, *, read_only: bool = False) -> sqlite3.Connection:
        if self.in_memory:
            # A second connection would be another, empty database.
            self._only = self._only or self._open(read_only=False)
            return self._only
        return self._open(read_only=read_only)

    def _open(self, *, read_only: bool) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < OLDEST:
            needed = ".".join(map(str, OLDEST))
            raise StoreError(
                f"{self.name}: SQLite {needed} or newer is needed, this Python has {sqlite3.sqlite_version}."
            )
        path = self.path
        directory = os.path.dirname(path)
        if not self.in_memory and not os.path.isdir(directory):
            raise StoreUnavailable(f"{self.name}: the directory {directory} does not exist.")
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(
                path,
                timeout=self.lock_timeout,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
                factory=_CONNECTION,
            )
            connection.execute("pragma synchronous = full")
            connection.execute("pragma cache_size = -16384")
            if not self.in_memory:
                self._use_wal(connection, read_only)
            if read_only:
                connection.execute("pragma query_only = on")
            return connection
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise self.translate(error) from error

    def _use_wal(self, connection: sqlite3.Connection, read_only: bool) -> None:
        if connection.execute("pragma journal_mode").fetchone()[0] == "wal" or read_only:
            return
        # The switch needs the file for itself for a moment and does not wait for it by itself. Real pauses, counted:
        # the clock may be one that only moves by hand.
        pause = threading.Event()
        for attempt in range(round(self.lock_timeout / 0.01), -1, -1):
            try:
                connection.execute("pragma journal_mode = wal")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or attempt == 0:
                    raise
                pause.wait(0.01)

    def disconnect(self, connection: sqlite3.Connection) -> None:
        if connection is not self._only:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def begin(self, connection: sqlite3.Connection) -> Tx:
        asked = self.clock.steady()
        connection.execute("begin immediate")
        return Tx(connection, self.clock.now(), self.clock.steady() - asked)

    def commit(self, tx: Tx) -> None:
        tx.connection.execute("commit")

    def rollback(self, tx: Tx) -> None:
        with contextlib.suppress(sqlite3.Error):
            if tx.connection.in_transaction:
                tx.connection.execute("rollback")

    def close(self) -> None:
        if self._only is not None:
            self._only.close()
            self._only = None
        if self._temporary and self._path is not None:
            shutil.rmtree(os.path.dirname(self._path), ignore_errors=True)
            self._path = None

    def translate(self, error: BaseException) -> BaseException:
        if not isinstance(error, sqlite3.Error):
            return error
        code = _code(error)
        if code in _IN_TROUBLE:
            translated: StoreError = StoreUnavailable(f"{self.name}: the database {_IN_TROUBLE[code]} ({error}).")
        elif isinstance(error, sqlite3.ProgrammingError):
            translated = StoreUnavailable(f"{self.name}: {error}.")
        else:
            translated = StoreError(f"{self.name}: {error}.")
        translated.__cause__ = error
        return translated

    # -- schema ------------------------------------------------------------------------------------------------

    def migrate(self) -> list[str]:
        connection = self.connect()
        try:
            # Whoever gets the write lock first does it; the others find it done.
            tx = self.begin(connection)
            try:
                applied = self._apply(tx)
                self.commit(tx)
                return applied
            except BaseException:
                self.rollback(tx)
                raise
        except sqlite3.Error as error:
            raise self.translate(error) from error
        finally:
            self.disconnect(connection)

    def _apply(self, tx: Tx) -> list[str]:
        version = self._version(tx.connection)
        self._refuse_newer(version)
        lacking = self.schema.since(version)
        for text in [self.schema.fresh] if version == 0 else [migration.text for migration in lacking]:
            for statement in statements(text):
                tx.connection.execute(statement)
        tx.connection.executemany(
            "insert into holdfast_migrations values (?, ?, ?)",
            [(migration.number, migration.name, tx.now) for migration in lacking],
        )
        tx.connection.execute(
            "insert into holdfast_meta values ('database_id', lower(hex(randomblob(16)))) on conflict do nothing"
        )
        return [migration.name for migration in lacking]

    def check_schema(self, connection: sqlite3.Connection) -> None:
        version, newest = self._version(connection), self.schema.newest
        self._refuse_newer(version)
        if version == 0:
            raise SchemaError(
                f"{self.name}: there are no Holdfast tables yet. "
                f"Use the app inside of `with app:` or `async with app:`, or call app.init() first{self._command}."
            )
        if version < newest:
            raise SchemaError(
                f"{self.name}: the tables have version {version}, this code needs {newest}. "
                f"Call app.migrate(){self._command}."
            )

    @property
    def _command(self) -> str:
        # Nobody else can reach what is private to this process.
        return "" if self._temporary or self.in_memory else f", or run `holdfast migrate {self.name}`"

    def _refuse_newer(self, version: int) -> None:
        newest = self.schema.newest
        if version > newest:
            raise SchemaError(
                f"{self.name}: the tables have version {version}, this code knows {newest} at most. "
                "A newer Holdfast has used this database: upgrade the package."
            )

    def _version(self, connection: sqlite3.Connection) -> int:
        if not connection.execute("select 1 from sqlite_master where name = 'holdfast_migrations'").fetchone():
            return 0
        found: int = connection.execute("select coalesce(max(number), 0) from holdfast_migrations").fetchone()[0]
        return found

    def database_id(self, connection: sqlite3.Connection) -> str:
        found: str = connection.execute("select value from holdfast_meta where key = 'database_id'").fetchone()[0]
        return found


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # in the child of a fork it is the parent's
        shutil.rmtree(directory, ignore_errors=True)


def _path_of(url: str) -> str | None:
    """The file that a URL names; None for a temporary one."""
    scheme, separator, rest = url.partition("://")
    if scheme != "sqlite" or not separator:
        raise ValidationError(f"{url!r} is not an SQLite URL. Write 'sqlite:///path/to/file.db' or 'sqlite://'.")
    if not rest:
        return None
    if not rest.startswith("/") or rest == "/":
        raise ValidationError(
            f"{url!r}: a file is named after three slashes ('sqlite:///app.db'), an absolute one after four."
        )
    path = urllib.parse.unquote(rest[1:])
    if "?" in path or "\0" in path:
        raise ValidationError(f"{url!r}: options in the URL are not supported.")
    return path


def _code(error: sqlite3.Error) -> int:
    # Extended codes carry the primary one in the low byte.
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
