"""A write transaction that a user's function shares with us: what it may do there, and what SQLite is told to refuse.

The connection is opened for one transaction and closed after it, so that nothing that the function sets up reaches
anybody else. Its *authorizer* is asked by SQLite about every statement that is prepared, by whatever way it came; no
statement is kept prepared. It refuses

* what would end the transaction: `commit`, `rollback`, `begin` (savepoints are fine);
* everything, once a statement has ended it nevertheless (`insert or rollback`): what came then would be committed at
  once and by itself;
* everything by anybody but us, once the function has returned or its time is over.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Never, Self, cast

from ..basis.errors import DefinitionError, ValidationError
from .base import SharedTransaction, Tx
from .sqlite_place import FileConnection, all_numbered, numbered

if TYPE_CHECKING:
    from .sqlite_file import SqliteFile

_OURS = (
    "step.transaction commits by itself, together with the checkpoint, when the function has returned; raise an error "
    "to undo what it has written"
)
_ENDED = (
    "the transaction was ended inside of step.transaction, by a statement that rolls back by itself (`or rollback`) or "
    "by an error of the database: nothing that the function has written is kept"
)
_OVER = "the transaction of this connection is over: the function has returned, or has taken too long"

#: Steps of SQLite's machine between two looks whether a running statement should stop: about a millisecond.
_LOOK = 20_000


class SharedCursor(sqlite3.Cursor):
    """Says what was refused, and why: SQLite itself says no more than `not authorized`."""

    def __init__(self, connection: SharedConnection) -> None:
        super().__init__(connection)
        self._turn = connection.turn

    def __next__(self) -> Any:
        with self._turn:
            return super().__next__()

    def fetchone(self) -> Any:
        with self._turn:
            return super().fetchone()

    def fetchmany(self, size: int | None = None) -> list[Any]:
        with self._turn:
            return super().fetchmany(self.arraysize if size is None else size)

    def fetchall(self) -> list[Any]:
        with self._turn:
            return super().fetchall()

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        with self._turn:
            return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        with self._turn:
            return super().executemany(sql, parameters)

    def executescript(self, *_: object) -> Never:
        raise DefinitionError(f"executescript() begins with a commit, and {_OURS}. Execute the statements one by one.")


class SharedConnection(FileConnection):
    """What the function gets: a `sqlite3.Connection` whose transaction is not its own."""

    _lent = False
    _owner: int | None = None
    """The thread that alone may use it; None: whoever has it."""
    _refusal: Exception | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turn: _Turn = _Turn(weakref.ref(self))

    def lend(self) -> None:
        """From now on it is the function's, within limits."""
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()
        self._lent = True
        mine = weakref.ref(self)

        def judge(action: int, *_: object) -> int:
            one = mine()
            return sqlite3.SQLITE_OK if one is None else one._judge(action)

        def look() -> bool:
            one = mine()
            return one is not None and one.refuses_all()

        super().set_authorizer(judge)
        super().set_progress_handler(look, _LOOK)

    def own(self) -> None:
        """From now on only this thread may use it."""
        self._owner = threading.get_ident()

    def close_cursors(self) -> None:
        """A statement that was not read to its end would stand in the way of the commit."""
        for cursor in list(self._cursors):
            with contextlib.suppress(sqlite3.Error):
                cursor.close()

    def take_home(self) -> None:
        """Nobody else has it any more: no guard is needed to end and to close it."""
        self.own()
        self._lent = False
        with contextlib.suppress(sqlite3.Error):  # closed behind our back
            super().set_authorizer(None)
            super().set_progress_handler(None, 0)

    def _judge(self, action: int) -> int:
        if self._owner == threading.get_ident():
            return sqlite3.SQLITE_OK
        if self._owner is not None:
            self._refusal = sqlite3.OperationalError(_OVER)
        elif not self.in_transaction:
            self._refusal = DefinitionError(f"{_ENDED}.")
        elif action == sqlite3.SQLITE_TRANSACTION:
            self._refusal = DefinitionError(f"{_OURS}.")
        else:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    def refuses_all(self) -> bool:
        """Whether this thread has nothing to do here any more."""
        return self._owner is not None and self._owner != threading.get_ident()

    def why(self, error: BaseException | None) -> Exception | None:
        """Why we have refused a statement; None if it was not us."""
        refusal, self._refusal = self._refusal, None
        if not isinstance(error, sqlite3.DatabaseError):
            return None
        if self.refuses_all():
            return sqlite3.OperationalError(_OVER)
        return refusal if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH else None

    # -- what would end the transaction, or take the guard away ------------------------------------------------

    def cursor(self, factory: Callable[..., Any] | None = None) -> Any:
        made: Callable[..., Any] = factory or SharedCursor
        return self._noted(super().cursor(made))

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return cast("sqlite3.Cursor", self.cursor().execute(sql, numbered(sql, parameters)))

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        return cast("sqlite3.Cursor", self.cursor().executemany(sql, all_numbered(sql, parameters)))

    def _noted(self, cursor: sqlite3.Cursor) -> sqlite3.Cursor:
        if self._lent:
            self._cursors.add(cursor)
        return cursor

    def commit(self) -> None:
        raise DefinitionError(f"commit(): {_OURS}.")

    def rollback(self) -> None:
        raise DefinitionError(f"rollback(): {_OURS}.")

    def __enter__(self) -> Never:
        raise DefinitionError(f"`with connection:` ends with a commit, and {_OURS}. Leave it out.")

    def executescript(self, *_: object) -> Never:
        raise DefinitionError(f"executescript() begins with a commit, and {_OURS}. Execute the statements one by one.")

    def set_authorizer(self, *_: object, **__: object) -> Never:
        raise DefinitionError("set_authorizer(): inside of step.transaction it is what guards the transaction.")

    def set_progress_handler(self, *_: object, **__: object) -> Never:
        raise DefinitionError("set_progress_handler(): inside of step.transaction it is what ends it in time.")

    def close(self) -> None:
        if self._lent:
            raise DefinitionError("close(): step.transaction closes its connection when the function has returned.")
        super().close()


class _Turn:
    """One thread at a time is inside of SQLite with this connection, and hears in our words what we have refused there.

    SQLite would let several in, one behind the other. But Python's `sqlite3` asks for an error's text, with the
    interpreter held, after it has left SQLite: it then finds the text of the other thread's statement, takes an error
    for a success, or waits for a lock of SQLite's whose owner waits in a callback for the interpreter, for ever.
    """

    __slots__ = ("_connection", "_lock")

    def __init__(self, connection: weakref.ref[SharedConnection]) -> None:
        self._connection = connection
        self._lock = threading.RLock()  # a function of the user's that SQL calls may itself ask

    def __enter__(self) -> None:
        self._lock.acquire()
        connection = self._connection()
        if connection is not None and connection.refuses_all():
            self._lock.release()
            raise sqlite3.OperationalError(_OVER)

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        connection = self._connection()
        meant = None if connection is None else connection.why(error)
        self._lock.release()
        if meant is not None:
            raise meant from None


class SqliteShared(SharedTransaction):
    """A transaction of a file."""

    connection: SharedConnection

    def __init__(self, store: SqliteFile, tx: Tx) -> None:
        self._store = store
        self.tx = tx
        self.connection = tx.connection
        self.connection.lend()

    def take_back(self) -> None:
        self.connection.own()
        try:
            with self.connection.turn:
                _settle(self.connection)
                self.connection.close_cursors()
                is_open = self.connection.in_transaction
        except sqlite3.ProgrammingError as error:  # closed, by way of the base class
            raise DefinitionError(f"{_ENDED}.") from error
        if not is_open:
            raise DefinitionError(f"{_ENDED}.")
        if shadow := self.connection.execute(_SHADOWS).fetchone():
            raise DefinitionError(f"step.transaction: the temporary table {shadow[0]!r} hides the table of Holdfast.")

    def stop(self) -> None:
        connection = self.connection
        connection.own()
        # A running statement stops at its next look; then it is our turn. Not interrupt(): as long as the function has
        # a half-read cursor, it would interrupt these two as well. Read-only before it is rolled back: what a thread of
        # the function's has prepared by way of the base class would be a transaction by itself.
        with contextlib.suppress(sqlite3.Error), connection.turn:
            connection.execute("pragma query_only = on")
            connection.execute("rollback")

    def commit(self) -> None:
        try:
            self._store.commit(self.tx)
        except sqlite3.OperationalError as error:
            if "statements in progress" in str(error):
                raise DefinitionError(
                    "step.transaction: a cursor of the function's is still writing; read or close it before you return."
                ) from error
            raise

    def close(self) -> None:
        self.connection.take_home()
        self._store.rollback(self.tx)
        self._store.disconnect(self.connection)


def _settle(connection: sqlite3.Connection) -> None:
    """As it was when it was opened, whatever the function has set."""
    connection.row_factory, connection.text_factory = None, str
    connection.set_trace_callback(None)


_SHADOWS = "select name from temp.sqlite_master where name like 'holdfast$_%' escape '$' limit 1"


def share(store: SqliteFile) -> SqliteShared:
    """Begin one on a connection of its own; `ValidationError` where there is only one connection."""
    if store.in_memory:
        raise ValidationError(
            "step.transaction: a database in memory has one connection, which is the app's own. Use a file, or "
            "'sqlite://' for one that is gone afterwards."
        )
    connection = store._open(read_only=False, kind=SharedConnection)
    try:
        store.check_schema(connection)
        tx = store.begin(connection)
        # Its own statements may wait for databases of the function's.
        connection.execute(f"pragma busy_timeout = {round(store.lock_timeout * 1000)}")
        return SqliteShared(store, tx)
    except BaseException:
        store.disconnect(connection)
        raise
