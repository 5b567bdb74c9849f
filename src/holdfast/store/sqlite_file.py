"""The file behind the SQLite store: opening it, transactions, what its errors mean, its tables.

Write transactions begin IMMEDIATE. A deferred one that reads first fails at once, without waiting, when somebody
else commits in between. WAL lets readers work beside the writer; `synchronous=FULL` syncs at every commit, which is
affordable because one commit serves a whole round.

Long because opening, transactions, errors and tables are all about what one connection may believe of its file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
import urllib.parse
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..basis.clock import Clock, SystemClock
from ..basis.errors import SchemaError, StoreError, StoreUnavailable, ValidationError
from .base import LentTransaction, Store, Tx
from .schema import AWAY, Schema, away, statements
from .sqlite_borrowed import Borrowed, refuse_other
from .sqlite_place import FileConnection, Place
from .sqlite_upkeep import LIMIT, Upkeep

#: Strict tables came with 3.37, the JSON arrows with 3.38.
OLDEST = (3, 38, 0)

#: Milliseconds in which SQLite asks four times whether it may write.
_ASKING = 8

#: Seconds between two looks at where the file is, before a transaction. After each commit there is one anyway; and
#: whatever leaves Python, as those do, lets another thread in.
_LOOK_SECONDS = 0.05

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
        self.needs_upkeep: bool = False
        self.in_memory: bool = path == ":memory:"
        self._temporary = path is None
        self._path: str | None = path if path is None or self.in_memory else os.path.abspath(path)
        self._only: FileConnection | None = None
        self._opening = threading.Lock()
        self._at: Place | None = None
        self._upkeep = Upkeep(self)
        self._looked_at = float("-inf")
        self._lenient = False

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

    @property
    def _place(self) -> Place:
        if self._at is None:
            self._at = Place(self.name, self.path)
        return self._at

    # -- connections -------------------------------------------------------------------------------------------

    def connect(self, *, read_only: bool = False) -> FileConnection:
        """A new connection. It makes no file, but a temporary one: `migrate` does."""
        if self.in_memory:
            # A second connection would be another, empty database.
            self._only = self._only or self._open(read_only=False)
            return self._only
        return self._open(read_only=read_only)

    def _open(self, *, read_only: bool, kind: type[FileConnection] = FileConnection) -> FileConnection:
        if sqlite3.sqlite_version_info < OLDEST:
            needed = ".".join(map(str, OLDEST))
            raise StoreError(
                f"{self.name}: SQLite {needed} or newer is needed, this Python has {sqlite3.sqlite_version}."
            )
        _keep_memory()
        path = self.path
        directory = os.path.dirname(path)
        if not self.in_memory and not os.path.isdir(directory):
            raise StoreUnavailable(f"{self.name}: the directory {directory} does not exist.")
        before = None if self.in_memory else self._place.before_opening()
        make = self.in_memory or self._temporary
        if before is None and not make:
            raise self._no_tables(f": there is no file {path}")
        connection: FileConnection | None = None
        try:
            # By itself SQLite would make a new, empty database where a file has just gone.
            connection = sqlite3.connect(
                path if self.in_memory else f"{Path(path).as_uri()}?mode={'rwc' if before is None else 'rw'}",
                uri=not self.in_memory,
                timeout=self.lock_timeout,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256 if kind is FileConnection else 0,
                factory=kind,
            )
            connection.execute("pragma synchronous = full")
            connection.execute("pragma cache_size = -16384")
            if not self.in_memory:
                if self._place.known is not None:
                    self._trust(connection)  # before anything is written into what may be another database
                self._use_wal(connection, read_only)
                connection.execute("pragma wal_autocheckpoint = 0")
                connection.execute(f"pragma journal_size_limit = {LIMIT}")
                # From the first read on the log is ours, too: the last one to close removes it, and we are not closed.
                connection.execute("select 1 from sqlite_master limit 1").fetchone()
                self._place.opened(connection, before)
            if self._lenient:
                connection.text_factory = lenient
            if read_only:
                connection.execute("pragma query_only = on")
            else:
                connection.execute(f"pragma busy_timeout = {_ASKING}")
            return connection
        except (sqlite3.Error, StoreError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, StoreError):
                raise
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

    def confirm_file(self, connection: FileConnection) -> None:
        """`StoreUnavailable` if it is another file."""
        if self._lenient:
            connection.text_factory = lenient
        if not self.in_memory:
            self._place.confirm(connection)

    def confirm(self, connection: FileConnection) -> None:
        self.confirm_file(connection)
        # Who only reads hears of a move here.
        if connection.execute("select 1 from holdfast_migrations where number = ?", (AWAY,)).fetchone():
            self._refuse_newer(connection)

    def begin(self, connection: FileConnection) -> Tx:
        tx = self._begin(connection)
        try:
            if not self.in_memory and self.clock.steady() - self._looked_at > _LOOK_SECONDS:
                self._place.confirm(connection, writing=True)
                self._looked_at = self.clock.steady()
            # Somebody may have migrated it since it was opened.
            self._refuse_newer(connection)
        except BaseException:
            self.rollback(tx)
            raise
        return tx

    def _begin(self, connection: sqlite3.Connection) -> Tx:
        asked = self.clock.steady()
        self.wait_to_write(connection)
        return Tx(connection, self.clock.now(), self.clock.steady() - asked)

    def wait_to_write(self, connection: sqlite3.Connection) -> None:
        """Open a write transaction as soon as nobody else has one.

        SQLite by itself asks less and less often, at last every 100 ms. Among processes that write all the time whoever
        has waited for long then comes last, again and again.
        """
        tries = round(self.lock_timeout * 1000 / _ASKING)
        while True:
            try:
                connection.execute("begin immediate")
                return
            except sqlite3.OperationalError as error:
                tries -= 1
                if _code(error) != sqlite3.SQLITE_BUSY or tries <= 0:
                    raise

    def commit(self, tx: Tx) -> None:
        tx.connection.execute("commit")
        if not self.in_memory:
            # What was written into a file that is no longer there must not count.
            wal_size = self._place.confirm(tx.connection, writing=True)
            self.needs_upkeep = self._upkeep.is_due(wal_size)

    def upkeep(self, connection: FileConnection, *, idle: bool = False) -> bool:
        if self.in_memory:
            return True
        if idle:
            return self._upkeep.when_idle(connection)
        self.needs_upkeep = False
        return self._upkeep.run(connection)

    def rollback(self, tx: Tx) -> None:
        with contextlib.suppress(sqlite3.Error):
            if tx.connection.in_transaction:
                tx.connection.execute("rollback")

    @contextmanager
    def moment(self, connection: FileConnection) -> Iterator[None]:
        if connection.in_transaction:  # the only connection to a database in memory
            yield
            return
        connection.execute("begin")
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("rollback")

    def close(self) -> None:
        if self._only is not None:
            self._only.close()
            self._only = None
        self._at = None
        if self._temporary and self._path is not None:
            shutil.rmtree(os.path.dirname(self._path), ignore_errors=True)
            self._path = None

    def translate(self, error: BaseException) -> BaseException:
        if not isinstance(error, sqlite3.Error):
            return error
        code = _code(error)
        if "decode to UTF-8" in str(error):
            # One row that somebody has written by hand must not stop all the others: from now on it is read, slower.
            self._lenient = True
            translated: StoreError = StoreUnavailable(f"{self.name}: {error}. Texts are read leniently from now on.")
        elif code in _IN_TROUBLE:
            if code == sqlite3.SQLITE_READONLY and not self.in_memory:
                self._place.was_read_only()
            translated = StoreUnavailable(f"{self.name}: the database {_IN_TROUBLE[code]} ({error}).")
        elif isinstance(error, sqlite3.ProgrammingError):
            translated = StoreUnavailable(f"{self.name}: {error}.")
        else:
            translated = StoreError(f"{self.name}: {error}.")
        translated.__cause__ = error
        return translated

    # -- schema ------------------------------------------------------------------------------------------------

    def migrate(self) -> list[str]:
        self._make_file()
        connection = self.connect()
        try:
            # Whoever gets the write lock first does it; the others find it done.
            tx = self._begin(connection)
            try:
                applied = self._apply(tx)
                identity = self.database_id(connection)
                self.commit(tx)
                if not self.in_memory:
                    # Not before: other threads would not find the tables of the database that is known here.
                    self._place.trust(connection, identity)
                return applied
            except BaseException:
                self.rollback(tx)
                raise
        except sqlite3.Error as error:
            raise self.translate(error) from error
        finally:
            self.disconnect(connection)

    def _make_file(self) -> None:
        """An empty file, where there is none and there was none."""
        if self.in_memory or self._temporary or not os.path.isdir(os.path.dirname(self.path)):
            return
        if self._place.before_opening() is None:
            try:
                # Fails if it exists by now: to close a file that is in use would take SQLite's locks away.
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
            except FileExistsError:
                pass
            except OSError as error:
                raise StoreUnavailable(f"{self.name}: the database can't be opened ({error.strerror}).") from error

    def _apply(self, tx: Tx) -> list[str]:
        version = self.version(tx.connection)
        if version:
            self._refuse_newer(tx.connection)
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
        version, newest = self.version(connection), self.schema.newest
        if version == 0:
            raise self._no_tables()
        self._refuse_newer(connection)
        if version < newest:
            raise SchemaError(
                f"{self.name}: the tables have version {version}, this code needs {newest}. "
                f"Call app.migrate(){self._command}."
            )
        self._trust(connection)

    def _trust(self, connection: sqlite3.Connection) -> None:
        if not self.in_memory:
            self._place.trust(connection, self.database_id(connection) if self.version(connection) else "none")

    def _no_tables(self, why: str = "") -> SchemaError:
        return SchemaError(
            f"{self.name}: there are no Holdfast tables yet{why}. "
            f"Use the app inside of `with app:` or `async with app:`, or call app.init() first{self._command}."
        )

    @property
    def _command(self) -> str:
        # Nobody else can reach what is private to this process.
        return "" if self._temporary or self.in_memory else f", or run `holdfast migrate {self.name}`"

    def _refuse_newer(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("select max(number) from holdfast_migrations").fetchone()[0] or 0
        newest = self.schema.newest
        if version == AWAY:
            raise away(self.name, dict(connection.execute("select key, value from holdfast_meta").fetchall()))
        if version > newest:
            raise SchemaError(
                f"{self.name}: the tables have version {version}, this code knows {newest} at most. "
                "A newer Holdfast has used this database: upgrade the package."
            )

    def version(self, connection: sqlite3.Connection) -> int:
        """The number of the last migration; 0 if there are no tables."""
        if not connection.execute("select 1 from sqlite_master where name = 'holdfast_migrations'").fetchone():
            return 0
        found: int = connection.execute("select coalesce(max(number), 0) from holdfast_migrations").fetchone()[0]
        return found

    def adopt(self, connection: LentTransaction, identity: str) -> Tx:
        if self.in_memory:
            raise ValidationError("connection: nobody but this app can have a connection to its database in memory.")
        if not isinstance(connection, Borrowed):
            raise ValidationError(f"connection: it is not of SQLite, and this app ({self.name}) is.")
        connection.ours = lambda: self._open(read_only=True)
        refuse_other(connection, self._path, identity, self.name)
        return Tx(connection, self.clock.now(), lent=True)

    def database_id(self, connection: sqlite3.Connection) -> str:
        found: str = connection.execute("select value from holdfast_meta where key = 'database_id'").fetchone()[0]
        return found


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # in the child of a fork it is the parent's
        shutil.rmtree(directory, ignore_errors=True)


def lenient(text: bytes) -> str:
    """A text that may not be UTF-8. What is wrong in it comes as lone surrogates, which nobody reads as a value."""
    return text.decode("utf-8", "surrogateescape")


def _keep_memory() -> None:
    # Each temporary table of a statement is 90 KB. What is above 128 KB glibc hands back to the kernel, to be cleared
    # anew for the next one: 130 of a claim's 180 us. It keeps more once it has freed a larger block: mallopt(3).
    _ = bytearray(1 << 20)


def _path_of(url: str) -> str | None:
    """The file that a URL names; None for a temporary one."""
    scheme, separator, rest = url.partition("://")
    if scheme.lower() == "libsql":
        # Without the URL: there may be a token in it. The trial is docs/decisions/0012-libsql.md.
        raise ValidationError(
            "libsql:// URLs are not supported: libSQL's Python driver stops every thread of the process while it waits "
            "for the database. Use an SQLite file: 'sqlite:///path/to/file.db'."
        )
    if scheme != "sqlite" or not separator:
        raise ValidationError(
            f"{url!r} is no URL of a database. Write 'sqlite:///path/to/file.db', 'sqlite://' (a temporary file), "
            "'postgresql://…' or 'mysql://…'."
        )
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
