"""Whose connection it is: the libraries that are known, and what is taken off before a driver is spoken to.

A class of a library is found where that library has it once it is loaded. Nothing is imported that the caller has not.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ..basis.errors import ValidationError
from .lending import NOT_OPEN, AwaitedLender, Lender, Lending, Lent, unusable
from .lent_played import turn
from .sqlite_borrowed import AiosqliteLender, SqliteLender

T = TypeVar("T")


def recognise(given: object) -> Lender | AwaitedLender:
    """How this connection is used. `ValidationError` if it is none that can be; nothing is asked of it yet."""
    if (lender := _of_driver(given)) is not None:
        return lender
    if _is(given, "sqlalchemy.orm", "scoped_session") or _is(given, "sqlalchemy.ext.asyncio", "async_scoped_session"):
        given = given()  # type: ignore[operator]  # the one of this thread, or task
    if _is(given, "sqlalchemy.orm", "Session") or _is(given, "sqlalchemy", "Connection"):
        return SqlAlchemyLender(given)
    if _is(given, "sqlalchemy.ext.asyncio", "AsyncSession") or _is(given, "sqlalchemy.ext.asyncio", "AsyncConnection"):
        return AwaitedSqlAlchemyLender(given)
    if _is(given, "django.db.backends.base.base", "BaseDatabaseWrapper") or (
        _is(given, "django.utils.connection", "ConnectionProxy") and hasattr(given, "in_atomic_block")
    ):
        return DjangoLender(given)
    raise _refused(given)


def _of_driver(given: object) -> Lender | AwaitedLender | None:
    if isinstance(given, sqlite3.Connection):
        return SqliteLender(given)
    if _is(given, "aiosqlite", "Connection"):
        return AiosqliteLender(given)
    if (
        _is(given, "psycopg", "Connection")
        or _is(given, "psycopg", "AsyncConnection")
        or _is(given, "asyncpg", "Connection")
        or _is(given, "asyncpg.pool", "PoolConnectionProxy")
    ):
        return _of_postgres(given)
    if _is(given, "pymysql", "Connection"):
        from .lent_mysql import PyMysqlLender  # its driver is loaded already

        return PyMysqlLender(given)
    return None


def _of_postgres(given: object) -> Lender | AwaitedLender:
    try:
        from .lent_postgres import AsyncpgLender, AsyncPsycopgLender, PsycopgLender
    except ImportError as error:  # only asyncpg is here
        raise ValidationError("connection: it is of PostgreSQL, and this app can't be: psycopg is missing.") from error
    if _is(given, "psycopg", "Connection"):
        return PsycopgLender(given)
    return AsyncPsycopgLender(given) if _is(given, "psycopg", "AsyncConnection") else AsyncpgLender(given)


def _is(given: object, module: str, name: str) -> bool:
    known: Any = getattr(sys.modules.get(module), name, None)
    return known is not None and isinstance(given, known)


def _refused(given: object) -> ValidationError:
    return ValidationError(
        f"connection: {type(given).__name__} is none that can be used here. Give the one on which your transaction is "
        "open: of sqlite3, aiosqlite, psycopg, asyncpg or PyMySQL, a Connection or Session of SQLAlchemy, or a "
        "connection of Django."
    )


class SqlAlchemyLender(Lender):
    """A Connection or Session of SQLAlchemy."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._driver: Lending | None = None

    def lend(self, *, begun: bool = False) -> Lent:  # noqa: ARG002 - it is the one who knows
        given = self._given
        try:
            if not given.in_transaction():
                raise ValidationError(f"{NOT_OPEN}: .begin().")
            connection = given if _is(given, "sqlalchemy", "Connection") else given.connection()
            raw = connection.connection.driver_connection
        except _errors("sqlalchemy.exc", "SQLAlchemyError") as error:
            raise unusable(error) from error
        driver = self._driver = _of_driver(raw)
        if not isinstance(driver, Lender):
            raise _refused(raw)
        return driver.lend(begun=True)

    def theirs(self, error: BaseException) -> BaseException | None:
        return _of_sqlalchemy(self._driver, error)


class AwaitedSqlAlchemyLender(AwaitedLender):
    """An AsyncConnection or AsyncSession of SQLAlchemy."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._driver: Lending | None = None

    async def run(self, verb: Callable[[Lent], T], *, begun: bool = False) -> T:  # noqa: ARG002 - it is the one who knows
        async with turn(self._given):
            driver = self._driver = await self._taken_off()
            return await driver.run(verb, begun=True)

    async def _taken_off(self) -> AwaitedLender:
        given = self._given
        try:
            if not given.in_transaction():
                raise ValidationError(f"{NOT_OPEN}: .begin().")
            is_connection = _is(given, "sqlalchemy.ext.asyncio", "AsyncConnection")
            connection = given if is_connection else await given.connection()
            raw = (await connection.get_raw_connection()).driver_connection
            if _is(raw, "asyncpg", "Connection") and not raw.is_in_transaction():
                # Its own first statement is what begins it.
                await connection.exec_driver_sql("select 1")
        except _errors("sqlalchemy.exc", "SQLAlchemyError") as error:
            raise unusable(error) from error
        driver = _of_driver(raw)
        if not isinstance(driver, AwaitedLender):
            raise _refused(raw)
        return driver

    def theirs(self, error: BaseException) -> BaseException | None:
        return _of_sqlalchemy(self._driver, error)


def _of_sqlalchemy(driver: Lending | None, error: BaseException) -> BaseException | None:
    """What is the caller's as SQLAlchemy would have said it."""
    told = None if driver is None else driver.theirs(error)
    if told is None:
        return None
    kind: Any = sys.modules["sqlalchemy.exc"].OperationalError
    return kind("trigger", None, told)  # type: ignore[no-any-return]


class DjangoLender(Lender):
    """A connection of Django, inside of atomic()."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._driver: Lending | None = None

    def lend(self, *, begun: bool = False) -> Lent:  # noqa: ARG002 - it is the one who knows
        given = self._given
        try:
            given.validate_thread_sharing()
            given.validate_no_broken_transaction()
            if not given.in_atomic_block and given.get_autocommit():
                raise ValidationError(f"{NOT_OPEN}: with transaction.atomic().")
            given.ensure_connection()
        except _errors("django.db.utils", "Error") as error:
            raise unusable(error) from error
        driver = self._driver = _of_driver(given.connection)
        if not isinstance(driver, Lender):
            raise _refused(given.connection)
        return driver.lend(begun=True)

    def theirs(self, error: BaseException) -> BaseException | None:
        """As Django would have said it."""
        told = None if self._driver is None else self._driver.theirs(error)
        if told is None:
            return None
        try:
            with self._given.wrap_database_errors:
                raise told
        except Exception as wrapped:
            return wrapped


def _errors(module: str, name: str) -> type[Exception]:
    known: type[Exception] = getattr(sys.modules[module], name)
    return known
