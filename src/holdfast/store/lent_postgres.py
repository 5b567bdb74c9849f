"""Writing into a transaction that is the caller's own, on PostgreSQL: with psycopg or asyncpg.

What the connection is set up for (row factory, cursor class, adapters, codecs, search path) must not matter: statements
get a raw cursor of their own, name the schema of their tables, and bind nothing but texts and numbers.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row
from psycopg.types.numeric import Int8BinaryDumper, IntLoader
from psycopg.types.string import TextLoader

from ..basis.errors import ValidationError
from .base import Dialect, LentTransaction
from .lending import AUTOCOMMIT, NOT_OPEN, AwaitedLender, Fetched, Lender, Lent, unusable
from .lent_played import Gave, Played

T = TypeVar("T")

#: Whoever has begun the transaction must begin it anew: serialization_failure, deadlock_detected.
_ANEW = frozenset({"40001", "40P01"})

_Status = pq.TransactionStatus


class _Psycopg(LentTransaction):
    """What both colours of psycopg have in common."""

    dialect: ClassVar[Dialect] = "postgres"

    def _of(self, connection: Any) -> None:
        self._connection = weakref.ref(connection)

    def is_over(self) -> bool:
        connection = self._connection()
        return connection is None or connection.info.transaction_status in (_Status.IDLE, _Status.UNKNOWN)

    def is_same(self, other: LentTransaction) -> bool:
        return isinstance(other, _Psycopg) and other._connection() is self._connection()


class _Lent(_Psycopg, Lent):
    def __init__(self, connection: Any) -> None:
        self._of(connection)

    def execute(self, sql: str, parameters: Any = (), /) -> Fetched:
        connection = self._connection()
        assert connection is not None, "the lender has it"
        with _settled(psycopg.RawCursor(connection, row_factory=tuple_row)) as cursor:
            cursor.execute(sql, parameters or None)
            rows = cursor.fetchall() if cursor.description else []
            return Fetched(rows, cursor.rowcount, cursor.description)


class _Awaited(_Psycopg, Played):
    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._of(connection)


class PsycopgLender(Lender):
    """A `psycopg.Connection`."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def lend(self, *, begun: bool = False) -> Lent:
        _check(self._given, begun)
        return _Lent(self._given)

    def theirs(self, error: BaseException) -> BaseException | None:
        return error if getattr(error, "sqlstate", None) in _ANEW else None


class AsyncPsycopgLender(AwaitedLender):
    """A `psycopg.AsyncConnection`."""

    def __init__(self, given: Any) -> None:
        self._given = given

    async def run(self, verb: Callable[[Lent], T], *, begun: bool = False) -> T:
        given = self._given
        _check(given, begun)

        async def execute(sql: str, parameters: Any) -> Gave:
            async with _settled(psycopg.AsyncRawCursor(given, row_factory=tuple_row)) as cursor:
                await cursor.execute(sql, parameters or None)
                rows = await cursor.fetchall() if cursor.description else []
                return Gave(rows, cursor.rowcount, cursor.description is not None)

        return await _Awaited(given).play(given, verb, execute)

    def theirs(self, error: BaseException) -> BaseException | None:
        return error if getattr(error, "sqlstate", None) in _ANEW else None


def _settled(cursor: Any) -> Any:
    """The cursor, which adapts as ours do, whatever is registered for the connection."""
    for name in ("text", "varchar"):
        cursor.adapters.register_loader(name, TextLoader)
    for name in ("int2", "int4", "int8"):
        cursor.adapters.register_loader(name, IntLoader)
    cursor.adapters.register_dumper(int, Int8BinaryDumper)
    return cursor


def _check(given: Any, begun: bool) -> None:
    status = given.info.transaction_status
    if status == _Status.UNKNOWN:
        raise ValidationError("connection: it can't be used here: it is closed, or was lost.")
    if status == _Status.INERROR:
        raise ValidationError("connection: its transaction has failed already. Roll it back.")
    if status == _Status.IDLE and given.autocommit:
        raise ValidationError(AUTOCOMMIT)
    if status == _Status.IDLE and not begun:
        raise ValidationError(f"{NOT_OPEN}: with connection.transaction().")


class _AsyncpgLent(Played):
    dialect: ClassVar[Dialect] = "postgres"

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._connection: Callable[[], Any]
        try:
            self._connection = weakref.ref(connection)
        except TypeError:  # what a pool gives, and takes back
            self._connection = lambda: connection

    def is_over(self) -> bool:
        connection = self._connection()
        try:
            return connection is None or not connection.is_in_transaction()
        except Exception:  # back in its pool
            return True

    def is_same(self, other: LentTransaction) -> bool:
        return isinstance(other, _AsyncpgLent) and other._connection() is self._connection()


class AsyncpgLender(AwaitedLender):
    """A `Connection` of asyncpg, or what its pool has given."""

    def __init__(self, given: Any) -> None:
        self._given = given

    async def run(self, verb: Callable[[Lent], T], *, begun: bool = False) -> T:  # noqa: ARG002 - it was told to begin
        asyncpg: Any = sys.modules["asyncpg"]
        given = self._given
        try:
            if given.is_closed():
                raise ValidationError("connection: it can't be used here: it is closed.")
            if not given.is_in_transaction():
                raise ValidationError(f"{NOT_OPEN}: async with connection.transaction().")
        except asyncpg.InterfaceError as error:  # back in its pool
            raise unusable(error) from error

        async def execute(sql: str, parameters: Any) -> Gave:
            # Its own types are strict, and may have been changed: a JSON parameter goes as the text that it is.
            statement = sql.replace("$1::jsonb", "$1::text::jsonb")
            try:
                rows = [tuple(record) for record in await given.fetch(statement, *parameters)]
            except asyncpg.PostgresError as error:
                raise _in_our_words(error) from error
            except asyncpg.InterfaceError as error:
                raise psycopg.InterfaceError(str(error)) from error
            return Gave(rows, len(rows), True)

        return await _AsyncpgLent(given).play(given, verb, execute)

    def theirs(self, error: BaseException) -> BaseException | None:
        return error.__cause__ if getattr(error, "sqlstate", None) in _ANEW else None


def _in_our_words(error: Any) -> psycopg.Error:
    try:
        kind = psycopg.errors.lookup(error.sqlstate)
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(str(error))
