"""A write transaction that a user's function shares with us, on MariaDB: with a connection of PyMySQL.

It is opened for one transaction. While the function has it, its session is as the server sets sessions up, but for the
isolation (READ COMMITTED); for our statements it is set up as ours are. Nothing is committed by itself (autocommit is
off): what follows after the transaction was ended by somebody is undone as well.

MariaDB commits by itself before a statement that changes a table's definition, and in procedures that say so. The first
is refused before it is sent. Whatever does it, our savepoint at the beginning is gone then: the checkpoint is refused.

No row of ours is locked before the function has returned. It may take as long as it likes: its run's lease is renewed
meanwhile, with all the others, and if it is lost nevertheless, the checkpoint is refused and all of it undone.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Never

import pymysql
from pymysql.constants import CLIENT, COMMAND, CR, ER, SERVER_STATUS
from pymysql.cursors import Cursor

from ..basis.errors import DefinitionError, StoreUnavailable
from .base import SharedTransaction, Tx
from .mysql_place import Link, _Connection, _context, code_of
from .mysql_words import NOW
from .sharing import IDLE, OURS, OVER, Wire, beginning, ends_it

if TYPE_CHECKING:
    from .mysql_server import MysqlServer

_ENDED = (
    "the transaction was ended inside of step.transaction, by a statement of the function: MariaDB commits what was "
    "written before it changes a definition (create, alter, drop, truncate), and some errors (a deadlock) undo all of "
    "it. What the function wrote before that may have been committed without the checkpoint, so that the step is not "
    "saved; what it wrote after that is undone"
)
_COMMITS = (
    "MariaDB commits before a statement that changes a definition, and step.transaction commits only together with the "
    "checkpoint. Do that before the job, or use a temporary table"
)
_HIDES = "a temporary table of this name would hide the table of Holdfast"

#: What commits by itself. Temporary tables don't.
_DEFINES = re.compile(
    r"(?:(?:create(?:\s+or\s+replace)?|drop)(?!(?:\s+or\s+replace)?\s+temporary\b)|alter|truncate|rename|grant|revoke"
    r"|lock\s+tables?|unlock\s+tables|optimize|analyze\s+table|repair|install|uninstall|xa)\b",
    re.IGNORECASE,
)
_HIDING = re.compile(
    r"create\s+(?:or\s+replace\s+)?temporary\s+table\s+(?:if\s+not\s+exists\s+)?`?holdfast_", re.IGNORECASE
)

#: Undone for somebody else's sake: a deadlock, a row that has changed meanwhile.
_ANEW = frozenset({ER.LOCK_DEADLOCK, ER.CHECKREAD})
_LOST = frozenset({CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, 1053, 1927})
_NO_SAVEPOINT = 1305
_IN_TRANSACTION = SERVER_STATUS.SERVER_STATUS_IN_TRANS
_FOREVER = 31_536_000


class SharedConnection(_Connection):
    """What the function gets: a `pymysql.Connection` whose transaction is not its own."""

    _lent = False
    _owner: int | None = None
    """The thread that alone may use it; None: whoever has it."""
    _has_ended = False

    def lend(self) -> None:
        """From now on it is the function's, within limits."""
        some: Any = self
        self._adapters = dict(some.decoders), dict(some.encoders)
        self._several_statements(False)
        self._set_patience(float("inf"))
        self._lent = True

    def own(self) -> None:
        """From now on only this thread may use it."""
        self._owner = threading.get_ident()

    def take_home(self, patience: float) -> None:
        """Nobody else has it any more."""
        self.own()
        self._lent = False
        self._set_patience(patience)

    def _set_patience(self, patience: float) -> None:
        some: Any = self
        self.patience = patience
        self.be_patient()
        some._write_timeout = None if patience == float("inf") else patience

    def settle(self) -> None:
        """As it was when it was opened, whatever the function has set on this side of the line."""
        some: Any = self
        some.cursorclass, some.decoders, some.encoders = Cursor, *self._adapters
        some.charset, some.encoding = "utf8mb4", "utf8"
        result = some._result
        if result is not None and result.unbuffered_active:
            result._finish_unbuffered_query()
        self._several_statements(True)

    def _several_statements(self, may_be: bool) -> None:
        """Whether one text may be several: what is injected into a statement of the function's must not be one."""
        some: Any = self
        some._execute_command(COMMAND.COM_SET_OPTION, struct.pack("<H", 0 if may_be else 1))
        some._read_packet()

    @property
    def has_ended(self) -> bool:
        """Whether the transaction has, as far as the server has said."""
        some: Any = self
        return self._has_ended or not some.server_status & _IN_TRANSACTION

    def _execute_command(self, command: Any, sql: Any) -> None:
        if self._owner is not None and self._owner != threading.get_ident():
            raise pymysql.OperationalError(CR.CR_SERVER_LOST, OVER)
        some: Any = super()
        some._execute_command(command, sql)

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        if not self._lent:
            return super().query(sql, unbuffered)
        if self.has_ended:
            raise DefinitionError(f"{_ENDED}.")
        head = sql[:400].decode(errors="replace") if isinstance(sql, bytes | bytearray) else sql[:400]
        first = beginning(head)
        if (words := ends_it(first)) is not None:
            raise DefinitionError(f"{words}: {OURS}.")
        if (defines := _DEFINES.match(first)) is not None:
            raise DefinitionError(f"{defines[0]}: {_COMMITS}.")
        if _HIDING.match(first):
            raise DefinitionError(f"step.transaction: {_HIDES}.")
        try:
            found = super().query(sql, unbuffered)
        except pymysql.Error as error:
            if self._owner is not None and self._owner != threading.get_ident():
                raise pymysql.OperationalError(CR.CR_SERVER_LOST, OVER) from error
            # The server doesn't say with an error whether it has undone everything.
            self._has_ended = code_of(error) in _ANEW
            raise
        if self.has_ended:
            raise DefinitionError(f"{_ENDED}.")
        return found

    # -- what would end the transaction ------------------------------------------------------------------------

    def begin(self) -> None:
        raise DefinitionError(f"begin(): {OURS}.")

    def commit(self) -> None:
        raise DefinitionError(f"commit(): {OURS}.")

    def rollback(self) -> None:
        raise DefinitionError(f"rollback(): {OURS}.")

    def __enter__(self) -> Never:
        raise DefinitionError("`with connection:`: step.transaction closes its connection by itself. Leave it out.")

    def autocommit(self, value: Any) -> None:
        if self._lent:
            raise DefinitionError(f"autocommit(): {OURS}.")
        super().autocommit(value)

    def connect(self, sock: Any = None) -> None:
        if self._lent:
            raise DefinitionError("connect(): the transaction of step.transaction has this connection, and no other.")
        super().connect(sock)

    def close(self) -> None:
        if self._lent:
            raise DefinitionError("close(): step.transaction closes its connection when the function has returned.")
        super().close()


class SharedLink(Link):
    """A connection for one transaction of a function's and ours."""

    @property
    def shared(self) -> SharedConnection:
        """The connection that the function gets."""
        assert isinstance(self.raw, SharedConnection)
        return self.raw

    def _connect(self, host: str, port: int) -> SharedConnection:
        to, options = self._to, self._to.options
        raw = SharedConnection(
            host=host,
            port=port,
            user=to.user,
            password=to.password,
            database=to.database,
            unix_socket=options.get("unix_socket"),
            ssl=_context(options),
            charset="utf8mb4",
            autocommit=False,
            # Matched rows are counted, not changed ones.
            client_flag=CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS,
            connect_timeout=float(options.get("connect_timeout", 10)),
            defer_connect=True,
        )
        raw._set_patience(self.patience)
        raw.connect()
        some: Any = raw
        if options.get("unix_socket") is None:
            # However long a statement takes: whether anybody is still there, TCP knows.
            for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
                if (option := getattr(socket, name, None)) is not None:
                    some._sock.setsockopt(socket.IPPROTO_TCP, option, value)
        return raw

    @property
    def patience(self) -> float:
        """Seconds that one of our statements may take, with its answer."""
        return self._limits.patience

    def _prepare(self) -> None:
        self._look()
        self.do("set session transaction isolation level read committed")
        self.do(f"set session max_statement_time = 0, wait_timeout = {_FOREVER}, idle_transaction_timeout = {IDLE}")

    def take_over(self) -> None:
        """From now on as a connection of ours."""
        self.shared.settle()
        ((database,),) = self.ask("select database()")
        if database != self._to.database:
            self.raw.select_db(self._to.database)
        self.do(
            f"set session {self._settings()}, character_set_client = utf8mb4, character_set_results = utf8mb4, "
            "character_set_connection = utf8mb4"
        )


_POINT = "holdfast_shared"


class MysqlShared(SharedTransaction):
    """A transaction on a connection of its own."""

    connection: SharedConnection

    def __init__(self, store: MysqlServer, link: SharedLink, tx: Tx) -> None:
        self._store = store
        self._link = link
        self.tx = tx
        self.connection = link.shared
        some: Any = link.shared
        self._number = int(some.thread_id())
        self._wire = Wire(some._sock.fileno())
        self.connection.lend()

    def take_back(self) -> None:
        raw, lost = self.connection, not self.connection.open
        raw.take_home(self._link.patience)
        some: Any = raw
        if lost and some._closed:
            raise DefinitionError(f"{_ENDED}.")
        if lost:
            raise pymysql.OperationalError(CR.CR_SERVER_LOST, "the connection to the database was lost")
        self._link.take_over()
        try:
            self._link.do(f"release savepoint {_POINT}")
        except pymysql.Error as error:
            if code_of(error) == _NO_SAVEPOINT:
                raise DefinitionError(f"{_ENDED}.") from error
            raise

    def excuse(self, error: Exception) -> StoreUnavailable | None:
        if not isinstance(error, pymysql.Error):
            return None
        some: Any = self.connection
        was_lost = code_of(error) in _LOST and not some._closed
        if code_of(error) in _ANEW or was_lost:
            meant = self._store.translate(error)
            return meant if isinstance(meant, StoreUnavailable) else StoreUnavailable(str(meant))
        return None

    def stop(self) -> None:
        self.connection.own()
        # A server that is busy with a statement does not look whether anybody is still there.
        with contextlib.suppress(Exception):  # the line is cut in any case
            other = self._store.connect()
            try:
                other.do(f"kill connection {self._number}")
            finally:
                self._store.disconnect(other)
        self._wire.cut()

    def commit(self) -> None:
        self._store.commit(self.tx)

    def close(self) -> None:
        self.connection.take_home(self._link.patience)
        self._store.rollback(self.tx)
        self._store.disconnect(self._link)
        self._wire.close()


def share(store: MysqlServer) -> MysqlShared:
    """Begin one on a connection of its own."""
    link = SharedLink(store.address, store.limits)
    try:
        store.check_schema(link)
        asked = store.clock.steady()
        link.do("start transaction")
        link.do(f"savepoint {_POINT}")
        ((now,),) = link.ask(f"select {NOW}")
        tx = Tx(link, store.clock.now() if store._turned else now, store.clock.steady() - asked)
        return MysqlShared(store, link, tx)
    except BaseException:
        store.disconnect(link)
        raise
