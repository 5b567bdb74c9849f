"""Writing into a transaction that is the caller's own, on MariaDB: with PyMySQL."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

import pymysql
from pymysql.constants import ER, SERVER_STATUS
from pymysql.cursors import Cursor

from ..basis.errors import PayloadTooLarge, ValidationError
from .base import Dialect, LentTransaction
from .lending import AUTOCOMMIT, NOT_OPEN, Fetched, Lender, Lent

#: The whole transaction is undone, or what it waited for may go on being locked, or it can't see what it met.
_ANEW = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.CHECKREAD})

#: A backslash in a text is a backslash.
_NO_BACKSLASH_ESCAPES = SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES


class MysqlLent(Lent):
    """A `pymysql.Connection`. Statements have their values in them, as those of ours."""

    dialect: ClassVar[Dialect] = "mysql"

    def __init__(self, connection: Any) -> None:
        self._connection = weakref.ref(connection)
        self.largest: int = 0
        """Bytes of a statement that the server takes; 0: not known."""

    def execute(self, sql: str, parameters: Any = (), /) -> Fetched:
        if len(sql) * 4 > self.largest > 0 and len(sql.encode()) >= self.largest:
            # The server would close the connection, with all that the caller has written.
            raise PayloadTooLarge(
                f"a statement would be longer than max_allowed_packet of the server, which is {self.largest} bytes; "
                "nothing was written."
            )
        connection = self._connection()
        assert connection is not None, "the lender has it"
        # A plain cursor, whatever class the connection has for them.
        with Cursor(connection) as cursor:
            cursor.execute(sql, parameters or None)
            return Fetched(list(cursor.fetchall()), cursor.rowcount, cursor.description)

    def ask(self, sql: str) -> list[Any]:
        """As that of a connection of ours."""
        return self.execute(sql).fetchall()

    def do(self, sql: str) -> int:
        """As that of a connection of ours."""
        return self.execute(sql).rowcount

    def is_over(self) -> bool:
        connection = self._connection()
        return connection is None or not connection.open or not _is_open(connection)

    def is_same(self, other: LentTransaction) -> bool:
        return isinstance(other, MysqlLent) and other._connection() is self._connection()


class PyMysqlLender(Lender):
    """A `pymysql.Connection`."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def lend(self, *, begun: bool = False) -> MysqlLent:
        given = self._given
        if not given.open:
            raise ValidationError("connection: it can't be used here: it is closed.")
        if not _is_open(given):
            if given.get_autocommit():
                raise ValidationError(AUTOCOMMIT)
            if not begun:
                raise ValidationError(f"{NOT_OPEN}: connection.begin().")
        if given.charset != "utf8mb4" or given.server_status & _NO_BACKSLASH_ESCAPES:
            raise ValidationError(
                "connection: it needs charset='utf8mb4', and no NO_BACKSLASH_ESCAPES in its sql_mode."
            )
        return MysqlLent(given)

    def theirs(self, error: BaseException) -> BaseException | None:
        return error if isinstance(error, pymysql.Error) and error.args and error.args[0] in _ANEW else None


def _is_open(connection: Any) -> bool:
    return bool(connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)
