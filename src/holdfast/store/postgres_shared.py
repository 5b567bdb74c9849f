"""A write transaction that a user's function shares with us, on PostgreSQL: with a connection of psycopg.

It is opened for one transaction, as the user's own would be: nothing that makes our statements faster or bounds them is
set for those of the function. What it sets, and what it registers for types, does not reach our statements: they have
a cursor of their own, made before, and settings of their own, made after.

No row of ours is locked before the function has returned. It may take as long as it likes: its run's lease is renewed
meanwhile, with all the others, and if it is lost nevertheless, the checkpoint is refused and all of it undone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Never, Self

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row
from psycopg.types.numeric import Int8BinaryDumper, IntLoader
from psycopg.types.string import TextLoader

from ..basis.errors import DefinitionError, StoreUnavailable
from .base import SharedTransaction, Tx
from .postgres_place import _SETTINGS, Link, _Connection
from .sharing import IDLE, OURS, OVER, Wire, ends_it

if TYPE_CHECKING:
    from .postgres import PostgresStore

_ENDED = (
    "the transaction was ended inside of step.transaction, by a statement of the function: what it wrote before that "
    "may have been committed without the checkpoint, so that the step is not saved"
)
_FAILED = (
    "step.transaction: a statement of the function's has failed, and with it PostgreSQL gives up the whole "
    "transaction, though the function went on. Put what may fail into a savepoint: `with connection.transaction():`"
)
_OPEN = "step.transaction: the function has returned in the middle of a COPY or of a pipeline; end it before"

#: Undone for somebody else's sake: serialization_failure, deadlock_detected.
_ANEW = frozenset({"40001", "40P01"})
_IDLE_TOO_LONG = "25P03"

#: Seconds until a server that can't be told to stop is left to itself.
_PATIENCE = 5.0

_Status = pq.TransactionStatus


class SharedCursor(psycopg.Cursor[Any]):
    """Refuses to end the transaction."""

    def execute(self, query: Any, params: Any = None, **more: Any) -> Self:
        self._judge(query, params is None)
        return super().execute(query, params, **more)

    def executemany(self, query: Any, params_seq: Iterable[Any], **more: Any) -> None:
        self._judge(query, False)
        super().executemany(query, params_seq, **more)

    def _judge(self, query: Any, several: bool) -> None:
        if isinstance(query, sql.Composable):
            query = query.as_string(self)
        text = query.decode(errors="replace") if isinstance(query, bytes) else query
        if isinstance(text, str) and (words := ends_it(text, several=several)) is not None:
            raise DefinitionError(f"{words}: {OURS}.")


class SharedConnection(_Connection):
    """What the function gets: a `psycopg.Connection` whose transaction is not its own."""

    _lent = False
    _owner: int | None = None
    """The thread that alone may use it; None: whoever has it."""

    def lend(self) -> None:
        """From now on it is the function's, within limits."""
        self._lent = True

    def own(self) -> None:
        """From now on only this thread may use it."""
        self._owner = threading.get_ident()

    def take_home(self) -> None:
        """Nobody else has it any more."""
        self.own()
        self._lent = False

    def wait(self, gen: Any, *args: Any, **more: Any) -> Any:
        if self._owner is not None and self._owner != threading.get_ident():
            raise psycopg.OperationalError(OVER)
        if not self._lent:
            return super().wait(gen)
        if self.pgconn.transaction_status == _Status.IDLE:
            raise DefinitionError(f"{_ENDED}.")
        # However long a statement takes: whether anybody is still there, TCP knows.
        try:
            found = psycopg.Connection.wait(self, gen, *args, **more)
        except psycopg.Error as error:
            if self._owner is not None and self._owner != threading.get_ident():
                raise psycopg.OperationalError(OVER) from error
            raise
        if self.pgconn.transaction_status == _Status.IDLE:
            raise DefinitionError(f"{_ENDED}.")
        return found

    # -- what would end the transaction ------------------------------------------------------------------------

    def commit(self) -> None:
        raise DefinitionError(f"commit(): {OURS}.")

    def rollback(self) -> None:
        raise DefinitionError(f"rollback(): {OURS}.")

    def __enter__(self) -> Never:
        raise DefinitionError(f"`with connection:` ends with a commit, and {OURS}. Leave it out.")

    def set_autocommit(self, value: bool) -> None:  # noqa: ARG002 - neither
        raise DefinitionError(f"autocommit: {OURS}.")

    def close(self) -> None:
        if self._lent:
            raise DefinitionError("close(): step.transaction closes its connection when the function has returned.")
        super().close()


class SharedLink(Link):
    """A connection for one transaction of a function's and ours."""

    @property
    def shared(self) -> SharedConnection:
        """The connection that the function gets."""
        assert isinstance(self.pg, SharedConnection)
        return self.pg

    def _connect(self, pooled: bool) -> SharedConnection:
        given = conninfo_to_dict(self._to.conninfo)
        values = self._limits.asked(given)
        if not pooled:
            # Only to see whether it arrives: a pooler refuses it, or drops it.
            values["options"] = f"-c jit=off {given.get('options', '')}".strip()
        elif "client_encoding" not in given:
            del values["client_encoding"]
        pg = SharedConnection.connect(**values, autocommit=False, prepare_threshold=None, cursor_factory=SharedCursor)
        pg.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        pg.patience = self._limits.patience
        pg.add_notice_handler(self._noticed)
        return pg

    def _prepare(self) -> None:
        cursor = psycopg.RawCursor(self.pg, row_factory=tuple_row)
        for name in ("text", "varchar"):
            cursor.adapters.register_loader(name, TextLoader)
        for name in ("int2", "int4", "int8"):
            cursor.adapters.register_loader(name, IntLoader)
        cursor.adapters.register_dumper(int, Int8BinaryDumper)
        self.cursor: psycopg.Cursor[Any] = cursor
        self._execute = cursor.execute
        if not self.pooled and self._to.pooled is None:
            self.pooled: bool = self.execute("select current_setting('jit')").fetchone() != ("off",)
        if not self.pooled:
            self.pg.prepare_threshold = 5  # as psycopg has it; what is prepared stays in a session that others get

    @property
    def begin(self) -> str:
        """The words that open a transaction: the driver begins it by itself."""
        return _set({"statement_timeout": "0", "idle_in_transaction_session_timeout": f"{IDLE}s"})

    def take_over(self) -> tuple[str, str]:
        """From now on as a connection of ours; which transaction it is, and whether it only reads."""
        settings = {key: f"{value}ms" for key, value in self._timeouts().items()}
        found: tuple[str, str] = self.say(
            f"reset session authorization; reset role; {_set({**settings, **_SETTINGS})}; "
            "select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off'; "
            "select pg_current_xact_id()::text, current_setting('transaction_read_only')"
        )
        return found


def _set(settings: dict[str, str]) -> str:
    return "; ".join(f"set local {key} = '{value}'" for key, value in settings.items())


class PostgresShared(SharedTransaction):
    """A transaction on a connection of its own."""

    connection: SharedConnection

    def __init__(self, store: PostgresStore, link: SharedLink, tx: Tx) -> None:
        self._store = store
        self._link = link
        self.tx = tx
        self.connection = link.shared
        self._number: str = link.execute("select pg_current_xact_id()::text").fetchone()[0]
        self._wire = Wire(self.connection.pgconn.socket)
        self.connection.lend()

    def take_back(self) -> None:
        pg = self.connection
        pg.take_home()
        if pg.broken:
            raise psycopg.OperationalError("the connection to the database was lost")
        status = pg.info.transaction_status
        if status in (_Status.IDLE, _Status.UNKNOWN):
            raise DefinitionError(f"{_ENDED}.")
        if status == _Status.ACTIVE or pg.pgconn.pipeline_status != pq.PipelineStatus.OFF:
            raise DefinitionError(f"{_OPEN}.")
        if status == _Status.INERROR:
            raise DefinitionError(f"{_FAILED}.")
        # What the function has put off is its own failure, and not one of the commit.
        self._link.say("set constraints all immediate")
        number, reads_only = self._link.take_over()
        if number != self._number:
            raise DefinitionError(f"{_ENDED}.")
        if reads_only == "on":
            raise DefinitionError("step.transaction: the function has made the transaction read-only.")

    def excuse(self, error: Exception) -> StoreUnavailable | None:
        if not isinstance(error, psycopg.Error) or error.sqlstate == _IDLE_TOO_LONG:
            return None
        if error.sqlstate in _ANEW or self.connection.broken:
            meant = self._store.translate(error)
            return meant if isinstance(meant, StoreUnavailable) else StoreUnavailable(str(meant))
        return None

    def stop(self) -> None:
        self.connection.own()
        # A server that is busy with a statement does not look whether anybody is still there.
        with contextlib.suppress(Exception):  # the line is cut in any case
            self.connection.cancel_safe(timeout=_PATIENCE)
        self._wire.cut()

    def commit(self) -> None:
        self._store.commit(self.tx)

    def close(self) -> None:
        self.connection.take_home()
        self._store.rollback(self.tx)
        self._store.disconnect(self._link)
        self._wire.close()


def share(store: PostgresStore) -> PostgresShared:
    """Begin one on a connection of its own."""
    link = SharedLink(store.address, store.limits, read_only=False)
    try:
        store.check_schema(link)
        return PostgresShared(store, link, store.begin(link))
    except BaseException:
        store.disconnect(link)
        raise
