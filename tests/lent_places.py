"""Databases that an app and a user share, for tests of a user's own transaction. The libraries are in `shops`."""

from __future__ import annotations

import inspect
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import servers
from holdfast import Holdfast, job
from shops import ON_MARIADB, ON_POSTGRES, ON_SQLITE, TABLE, Shop, opened, play


@job
def mail(to: str) -> str:
    return f"mailed {to}"


@job
def call(to: str) -> str:
    return f"called {to}"


class Place(NamedTuple):
    """A database with the tables of an app and of a user, and how the user comes there."""

    app: Holdfast
    url: str
    """Where the user goes."""
    tables: str
    """Where the app has its tables: in a schema that the user's search path doesn't have, where there are schemas."""
    kind: type[Shop]
    database: str
    """"sqlite", "postgres" or "mariadb"."""


def app_on(url: str, **options: Any) -> Holdfast:
    if url.startswith("sqlite"):
        return Holdfast(url, jobs=[mail, call], **options)
    if url.startswith("postgres"):
        from holdfast.store.postgres import PostgresStore

        return Holdfast(PostgresStore(url), jobs=[mail, call], **options)
    from holdfast.store.mysql import MysqlStore

    return Holdfast(MysqlStore(url), jobs=[mail, call], **options)


_numbers = itertools.count(1)


def _tables(url: str) -> str:
    return f"{url}?schema=app_{next(_numbers)}" if url.startswith("postgres") else url


@pytest.fixture(scope="module")
def databases_of_users() -> Iterator[Callable[[str, int], str]]:
    """Databases that live as long as this module, by kind and number."""
    made: dict[tuple[str, int], str] = {}

    def get(kind: Any, number: int = 0) -> str:
        if (kind, number) not in made:
            server = servers.shared(kind)
            made[kind, number] = server.url(server.create_database())
        return made[kind, number]

    yield get
    for (kind, _), url in made.items():
        servers.shared(kind).drop_database(url.rpartition("/")[2])


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    database, kind = request.param
    url = _user(request, tmp_path, database)
    tables = _tables(url)
    with app_on(tables, worker=False) as app:
        yield Place(app, url, tables, kind, database)


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path, place: Place) -> str:
    """Another database of the same kind."""
    return _user(request, tmp_path, place.database, 1)


def _user(request: pytest.FixtureRequest, tmp_path: Path, database: str, number: int = 0) -> str:
    """The URL of a database with an empty table of a user's."""
    if database == "sqlite":
        url = f"sqlite:///{tmp_path / f'shop{number}.db'}"
    else:
        try:
            if database == "mariadb":
                number = next(_numbers)  # it has no schemas
            url = request.getfixturevalue("databases_of_users")(database, number)
        except servers.ServerTrouble:
            url = request.getfixturevalue(f"{database}_url")  # which says what there is to say of that
    say(url, "drop table if exists orders")
    say(url, TABLE)
    return url


def say(url: str, sql: str) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.execute(sql)
            connection.commit()
    else:
        servers.execute(url, sql)


def kinds(*databases: str, only: Callable[[type[Shop]], bool] = bool) -> Any:
    """A test of all kinds of these databases."""
    known = {"sqlite": ON_SQLITE, "postgres": ON_POSTGRES, "mariadb": ON_MARIADB}
    params = [
        pytest.param((database, kind), id=f"{database}-{name}".replace(" ", "-"))
        for database in databases
        for name, kind in known[database].items()
        if only(kind)
    ]
    return pytest.mark.parametrize("place", params, indirect=True)


every_kind = kinds("sqlite", "postgres", "mariadb")


async def ids(shop: Shop, app: Holdfast) -> set[str]:
    return {run.id for run in await shop.get(app.get_runs(limit=None))}


def scene_of(*databases: str, only: Callable[[type[Shop]], bool] = bool) -> Any:
    """A test that is played as a user of each library would run it, with an open shop."""

    def decorate(body: Any) -> Any:
        more = {name: one for name, one in inspect.signature(body).parameters.items() if name not in ("place", "shop")}

        def test(place: Place, **given: Any) -> None:
            async def scenario() -> None:
                async with opened(place.kind, place.url) as shop:
                    await body(place, shop, **given)

            play(place.kind, scenario)

        place = inspect.Parameter("place", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__signature__ = inspect.Signature([place, *more.values()])  # type: ignore[attr-defined]
        test.__name__, test.__doc__ = body.__name__, body.__doc__
        return kinds(*databases, only=only)(test)

    return decorate


scene = scene_of("sqlite", "postgres", "mariadb")
