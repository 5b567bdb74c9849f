"""Connections of users, of every kind that can be lent: each with a table of orders, driven in one way.

A shop is on the database of an app. Everything is `async def`, also where the library is not: `play` plays it, with a
loop or, for synchronous libraries, without any.
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

TABLE = "create table if not exists orders (id integer, who varchar(50))"


class Shop(ABC):
    """One connection, `given` to the app. Nothing is open on it at first."""

    given: Any
    is_async: ClassVar[bool] = False
    library: ClassVar[str] = ""
    """The package whose errors its users know."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    async def open(self, *, autocommit: bool = False) -> None: ...
    @abstractmethod
    async def close(self) -> None: ...
    @abstractmethod
    async def begin(self) -> None: ...
    @abstractmethod
    async def commit(self) -> None: ...
    @abstractmethod
    async def rollback(self) -> None: ...
    @abstractmethod
    async def say(self, sql: str) -> list[Any]: ...

    async def get(self, reply: Any) -> Any:
        """What a reply of the app comes to, as the user of such a library asks for it."""
        return await reply if self.is_async else reply.wait()

    async def order(self, who: str) -> None:
        await self.say(f"insert into orders (id, who) values (1, '{who}')")

    async def orders(self) -> list[str]:
        return [who for (who,) in await self.say("select who from orders order by who")]

    async def be_repeatable(self) -> None:
        """From now on its transactions are REPEATABLE READ."""
        await self.begin()
        characteristics = "" if self.url.startswith("mysql") else "characteristics as "
        await self.say(f"set session {characteristics}transaction isolation level repeatable read")
        await self.commit()

    async def until_undone(self) -> Callable[[], Any]:
        """A savepoint; what is given undoes it."""
        await self.say("savepoint mine")

        async def undo() -> None:
            await self.say("rollback to savepoint mine")
            await self.say("release savepoint mine")

        return undo


def play(kind: type[Shop], scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Plays it to its end, as code of a user of such a library would run."""
    if kind.is_async:
        asyncio.run(scenario())
        return
    with pytest.raises(StopIteration):
        scenario().send(None)


@asynccontextmanager
async def opened(kind: type[Shop], url: str, *, autocommit: bool = False) -> AsyncIterator[Any]:
    """The shop, open."""
    shop = kind(url)
    await shop.open(autocommit=autocommit)
    try:
        yield shop
    finally:
        await shop.close()


def _path(url: str) -> str:
    return url.removeprefix("sqlite:///")


def _parts(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "host": parts.hostname, "port": parts.port, "user": parts.username, "password": parts.password or "",
        "database": parts.path.strip("/"),
    }  # fmt: skip


# ── Drivers, synchronous ────────────────────────────────────────────────────────────────────────────────────────────


class _Driver(Shop):
    async def close(self) -> None:
        self.given.close()

    async def begin(self) -> None:
        await self.say("begin")

    async def commit(self) -> None:
        self.given.commit()

    async def rollback(self) -> None:
        self.given.rollback()

    async def say(self, sql: str) -> list[Any]:
        cursor = self.given.cursor()
        try:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []
        finally:
            cursor.close()


class Sqlite3(_Driver):
    async def open(self, *, autocommit: bool = False) -> None:
        self.given = sqlite3.connect(_path(self.url), isolation_level=None if autocommit else "")


class Psycopg(_Driver):
    library = "psycopg"

    async def open(self, *, autocommit: bool = False) -> None:
        import psycopg

        self.given = psycopg.connect(self.url, autocommit=autocommit, row_factory=psycopg.rows.tuple_row)

    async def begin(self) -> None:
        await self.say("select 1")


class PyMySQL(_Driver):
    async def open(self, *, autocommit: bool = False) -> None:
        import pymysql

        level = "set session transaction isolation level read committed"
        self.given = pymysql.connect(**_parts(self.url), init_command=level, autocommit=autocommit)


# ── Drivers, asynchronous ───────────────────────────────────────────────────────────────────────────────────────────


class Aiosqlite(Shop):
    is_async = True

    async def open(self, *, autocommit: bool = False) -> None:
        import aiosqlite

        self.given = await aiosqlite.connect(_path(self.url), isolation_level=None if autocommit else "")

    async def close(self) -> None:
        await self.given.close()

    async def begin(self) -> None:
        await self.say("begin")

    async def commit(self) -> None:
        await self.given.commit()

    async def rollback(self) -> None:
        await self.given.rollback()

    async def say(self, sql: str) -> list[Any]:
        return list(await self.given.execute_fetchall(sql))


class AsyncPsycopg(Shop):
    library = "psycopg"
    is_async = True

    async def open(self, *, autocommit: bool = False) -> None:
        import psycopg

        self.given = await psycopg.AsyncConnection.connect(self.url, autocommit=autocommit)

    async def close(self) -> None:
        await self.given.close()

    async def begin(self) -> None:
        await self.say("select 1")

    async def commit(self) -> None:
        await self.given.commit()

    async def rollback(self) -> None:
        await self.given.rollback()

    async def say(self, sql: str) -> list[Any]:
        cursor = await self.given.execute(sql)
        return await cursor.fetchall() if cursor.description else []


class Asyncpg(Shop):
    library = "asyncpg"
    is_async = True

    async def open(self, *, autocommit: bool = False) -> None:  # it has no other way than autocommit
        import asyncpg

        self.given = await asyncpg.connect(self.url)
        await self._strange(self.given)

    async def _strange(self, connection: Any) -> None:
        """As users set it up."""
        import json

        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    async def close(self) -> None:
        await self.given.close()

    async def begin(self) -> None:
        self._transaction = self.given.transaction()
        await self._transaction.start()

    async def commit(self) -> None:
        await self._transaction.commit()

    async def rollback(self) -> None:
        await self._transaction.rollback()

    async def say(self, sql: str) -> list[Any]:
        return [tuple(record) for record in await self.given.fetch(sql)]


class AsyncpgPool(Asyncpg):
    async def open(self, *, autocommit: bool = False) -> None:
        import asyncpg

        self._pool = await asyncpg.create_pool(self.url, min_size=1, max_size=1, init=self._strange)
        self.given = await self._pool.acquire()

    async def close(self) -> None:
        await self._pool.release(self.given)
        await self._pool.close()


# ── SQLAlchemy ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _with_driver(url: str, driver: str) -> str:
    scheme, rest = url.split("://", 1)
    return f"{scheme}{driver}://{rest}"


class _SqlAlchemy(Shop):
    library = "sqlalchemy"
    driver: ClassVar[str] = ""

    async def open(self, *, autocommit: bool = False) -> None:
        import sqlalchemy

        options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        if self.url.startswith("mysql") and not autocommit:
            options = {"isolation_level": "READ COMMITTED"}
        self._engine = sqlalchemy.create_engine(_with_driver(self.url, self.driver), **options)
        self.given = self._connect()

    async def close(self) -> None:
        self.given.close()
        self._engine.dispose()

    async def begin(self) -> None:
        self.given.begin()

    async def commit(self) -> None:
        self.given.commit()

    async def rollback(self) -> None:
        self.given.rollback()

    async def say(self, sql: str) -> list[Any]:
        import sqlalchemy

        found = self.given.execute(sqlalchemy.text(sql))
        return [tuple(row) for row in found] if found.returns_rows else []

    async def be_repeatable(self) -> None:
        self.given.close()
        self._engine = self._engine.execution_options(isolation_level="REPEATABLE READ")
        self.given = self._connect()

    async def until_undone(self) -> Callable[[], Any]:
        nested = self.given.begin_nested()

        async def undo() -> None:
            nested.rollback()

        return undo

    @abstractmethod
    def _connect(self) -> Any: ...


class SqlAlchemyConnection(_SqlAlchemy):
    def _connect(self) -> Any:
        return self._engine.connect()


class SqlAlchemySession(_SqlAlchemy):
    def _connect(self) -> Any:
        from sqlalchemy.orm import Session

        return Session(self._engine)


class SqlAlchemyScoped(_SqlAlchemy):
    def _connect(self) -> Any:
        from sqlalchemy.orm import scoped_session, sessionmaker

        return scoped_session(sessionmaker(self._engine))


class _AsyncSqlAlchemy(Shop):
    library = "sqlalchemy"
    driver: ClassVar[str] = ""
    is_async = True

    async def open(self, *, autocommit: bool = False) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        self._engine = create_async_engine(_with_driver(self.url, self.driver), **options)
        self.given = await self._connect()

    async def close(self) -> None:
        await self.given.close()
        await self._engine.dispose()

    async def begin(self) -> None:
        begun = self.given.begin()
        await begun.start()

    async def commit(self) -> None:
        await self.given.commit()

    async def rollback(self) -> None:
        await self.given.rollback()

    async def say(self, sql: str) -> list[Any]:
        import sqlalchemy

        found = await self.given.execute(sqlalchemy.text(sql))
        return [tuple(row) for row in found] if found.returns_rows else []

    async def be_repeatable(self) -> None:
        await self.given.close()
        self._engine = self._engine.execution_options(isolation_level="REPEATABLE READ")
        self.given = await self._connect()

    async def until_undone(self) -> Callable[[], Any]:
        nested = await self.given.begin_nested()
        return nested.rollback  # type: ignore[no-any-return]

    @abstractmethod
    async def _connect(self) -> Any: ...


class AsyncSqlAlchemyConnection(_AsyncSqlAlchemy):
    async def _connect(self) -> Any:
        return await self._engine.connect()


class AsyncSqlAlchemySession(_AsyncSqlAlchemy):
    async def _connect(self) -> Any:
        from sqlalchemy.ext.asyncio import AsyncSession

        return AsyncSession(self._engine)


def on(kind: type[Any], driver: str) -> type[Shop]:
    """The kind over another driver."""
    made: type[Shop] = type(f"{kind.__name__}{driver.title()}", (kind,), {"driver": driver})
    return made


# ── Django ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Django(_Driver):
    """`connections["default"]`."""

    library = "django"

    async def open(self, *, autocommit: bool = False) -> None:  # outside of atomic() it has no other way
        import django
        from django.conf import settings
        from django.db import connections

        if not settings.configured:
            settings.configure(DATABASES={}, USE_TZ=True)
        django.setup()  # an example may have made the settings, and nothing else; the second time it is nothing
        one = {"ENGINE": "django.db.backends.sqlite3", "NAME": _path(self.url)}
        if not self.url.startswith("sqlite"):
            parts = _parts(self.url)
            one = {"ENGINE": "django.db.backends.postgresql", "NAME": parts.pop("database")}
            one |= {name.upper(): value for name, value in parts.items()}
        connections.settings = connections.configure_settings({"default": one})
        self.given = self._connection()

    def _connection(self) -> Any:
        from django.db import connections

        return connections["default"]

    async def close(self) -> None:
        from django.db import connections

        self.given.close()
        del connections["default"]

    async def begin(self) -> None:
        from django.db import transaction

        self._atomic = transaction.atomic()
        self._atomic.__enter__()

    async def commit(self) -> None:
        self._atomic.__exit__(None, None, None)

    async def rollback(self) -> None:
        self.given.set_rollback(True)
        self._atomic.__exit__(None, None, None)

    async def until_undone(self) -> Callable[[], Any]:
        inner = self.given.savepoint()

        async def undo() -> None:
            self.given.savepoint_rollback(inner)

        return undo


class DjangoProxy(Django):
    """`django.db.connection`."""

    def _connection(self) -> Any:
        from django.db import connection

        return connection


ON_SQLITE: dict[str, type[Shop]] = {
    "sqlite3": Sqlite3,
    "aiosqlite": Aiosqlite,
    "sqlalchemy connection": SqlAlchemyConnection,
    "sqlalchemy session": SqlAlchemySession,
    "sqlalchemy scoped session": SqlAlchemyScoped,
    "sqlalchemy async connection": on(AsyncSqlAlchemyConnection, "+aiosqlite"),
    "sqlalchemy async session": on(AsyncSqlAlchemySession, "+aiosqlite"),
    "django": Django,
    "django proxy": DjangoProxy,
}
ON_POSTGRES: dict[str, type[Shop]] = {
    "psycopg": Psycopg,
    "psycopg async": AsyncPsycopg,
    "asyncpg": Asyncpg,
    "asyncpg pool": AsyncpgPool,
    "sqlalchemy connection": on(SqlAlchemyConnection, "+psycopg"),
    "sqlalchemy session": on(SqlAlchemySession, "+psycopg"),
    "sqlalchemy async connection psycopg": on(AsyncSqlAlchemyConnection, "+psycopg"),
    "sqlalchemy async session psycopg": on(AsyncSqlAlchemySession, "+psycopg"),
    "sqlalchemy async connection asyncpg": on(AsyncSqlAlchemyConnection, "+asyncpg"),
    "sqlalchemy async session asyncpg": on(AsyncSqlAlchemySession, "+asyncpg"),
    "django": Django,
}
ON_MARIADB: dict[str, type[Shop]] = {
    "pymysql": PyMySQL,
    "sqlalchemy connection": on(SqlAlchemyConnection, "+pymysql"),
    "sqlalchemy session": on(SqlAlchemySession, "+pymysql"),
}
