"""On which database the tests run, and how a test asks for one.

`HOLDFAST_TEST_ON=sqlite|postgres|mariadb` chooses (unset: sqlite); the ids of the tests are the same on each. A test
names its database by a path below its `tmp_path`, as if it were a file: `url(tmp_path / "app.db")`. On SQLite it is
that file; elsewhere it is an empty schema or database that is made when it is first asked for, and dropped after the
test. `rows` and `shell` look into it behind everybody's back.

A test about one database (or two: `"sqlite postgres"`) says so, `@pytest.mark.only("sqlite", "why")`, and is left
out on the others: that is counted and printed with its reason. What comes out the same on every database,
`@pytest.mark.elsewhere("why", every=8)`, is left out on others than SQLite but for every eighth, with
`HOLDFAST_TESTS=sample`.

Tests of PostgreSQL or MariaDB themselves take the fixtures `postgres_url` and `mariadb_url`, whatever is chosen. Where
there is no such server they are skipped, loudly; with `HOLDFAST_TEST_REQUIRE=all` they fail.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import servers
from servers import KINDS, NAMES, VARIABLES, Databases, Kind, ServerTrouble

ON = os.environ.get("HOLDFAST_TEST_ON", "") or "sqlite"
SAMPLE = os.environ.get("HOLDFAST_TESTS") in ("sample", "few")
REPORT_VARIABLE = "HOLDFAST_TESTS_ELSEWHERE"

OF_APPS = ("bad_input", "commit", "conformance", "crash", "engine", "face", "processes", "wire")
"""The folders of tests of whole apps, which run on every database. The others have no database, or choose their own."""

#: Seconds until somebody who waits for a lock gives up. Never reached by a test that passes.
PATIENCE = 30.0

UNHURRIED: float = 0.2 if ON == "mariadb" else 60
"""A polling interval that plays no part where processes learn of each other's commits without it: not on MariaDB."""


def __getattr__(name: str) -> Any:
    """`StoreHere`, the class of stores, and `driver`, the module with `OperationalError` and the like.

    Imported when they are asked for: who needs neither needs no driver.
    """
    if name == "StoreHere":
        if ON == "postgres":
            from holdfast.store.postgres import PostgresStore

            return PostgresStore
        if ON == "mariadb":
            from holdfast.store.mysql import MysqlStore

            return MysqlStore
        from holdfast.store.sqlite import SqliteStore

        return SqliteStore
    if name == "driver":
        return importlib.import_module({"postgres": "psycopg", "mariadb": "pymysql"}.get(ON, "sqlite3"))
    raise AttributeError(name)


# ── The database of a test ──────────────────────────────────────────────────────────────────────────────────────────

_made: dict[str, str] = {}
"""Path to URL, of what is still there."""


def url(path: Path | str) -> str:
    """The URL of the database that this path names."""
    if ON == "sqlite":
        return f"sqlite:///{path}"
    key = os.path.abspath(path)
    if key not in _made:
        _made[key] = _make(ON)  # type: ignore[arg-type]
    return _made[key]


def fresh() -> str:
    """The URL of a database of the test's own that needs no name."""
    return "sqlite://" if ON == "sqlite" else url(f"/{secrets.token_hex(6)}")


def _server(kind: Kind) -> Databases:
    if kind not in _servers:
        _servers[kind] = servers.shared(kind)
    return _servers[kind]


_servers: dict[Kind, Databases] = {}


_databases: dict[Kind, str] = {}
"""The database of this process, where its schemas are."""


def _make(kind: Kind) -> str:
    """An empty place: in PostgreSQL a schema, because making a database takes as long as a whole test."""
    server = _server(kind)
    if kind == "mariadb":
        return server.url(server.create_database())
    if kind not in _databases:
        _databases[kind] = server.create_database()
    return f"{server.url(_databases[kind])}?schema=of_{secrets.token_hex(6)}"


def _drop(kind: Kind, address: str) -> None:
    server = _server(kind)
    parts = urlsplit(address)
    if kind == "mariadb":
        server.drop_database(parts.path.strip("/"))
        return
    import psycopg

    with closing(servers.connect(address)) as connection:
        connection.execute("set lock_timeout = '2s'")
        # Whoever still holds it, such as a thread that nobody could end: it goes with its database, in the end.
        with suppress(psycopg.errors.LockNotAvailable):
            connection.execute(f"drop schema if exists {parts.query.partition('=')[2]} cascade")


def child_environment() -> dict[str, str]:
    """Our environment, for a Python that shall be able to import this module."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


class Shell:
    """A connection of a test's own. Values are `?`, whatever the driver says; yes and no are 1 and 0."""

    def __init__(self, path: Path | str, *, autocommit: bool = True) -> None:
        self._raw = _connect(path, autocommit)

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """A cursor with `fetchall` and `fetchone`. Rows are tuples."""
        if ON == "sqlite":
            return self._raw.execute(sql, tuple(values))
        numbers = tuple(int(value) if isinstance(value, bool) else value for value in values)
        cursor = self._raw.cursor()
        cursor.execute(sql.replace("%", "%%").replace("?", "%s") if numbers else sql, numbers or None)
        return cursor

    def commit(self) -> None:
        self._raw.commit()

    def rollback(self) -> None:
        self._raw.rollback()

    def close(self) -> None:
        self._raw.close()


def _connect(path: Path | str, autocommit: bool) -> Any:
    if ON == "sqlite":
        return sqlite3.connect(path, timeout=PATIENCE, isolation_level=None if autocommit else "")
    address = url(path)
    if ON == "postgres":  # who looks in before anybody has made tables
        schema = urlsplit(address).query.partition("=")[2]
        servers.execute(address, f"create schema if not exists {schema}")
    return servers.connect(address, autocommit=autocommit)


@contextmanager
def shell(path: Path | str, *, autocommit: bool = True) -> Iterator[Shell]:
    """A connection of one's own, closed at the end. Without `autocommit` a transaction begins by itself."""
    with closing(Shell(path, autocommit=autocommit)) as one:
        yield one


def rows(path: Path | str, sql: str, *values: Any) -> list[Any]:
    """Look at the database, or prepare it, behind everybody's back: the rows of one statement, committed."""
    with shell(path) as one:
        cursor = one.execute(sql, values)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []


def tables(path: Path | str) -> list[str]:
    """The names of all tables of the database."""
    if ON == "sqlite":
        return [name for (name,) in rows(path, "select name from sqlite_schema where type = 'table'")]
    here = {"postgres": "current_schema()", "mariadb": "database()"}[ON]
    return [
        name for (name,) in rows(path, f"select table_name from information_schema.tables where table_schema = {here}")
    ]


def table(path: Path | str, name: str) -> str:
    """How a connection of a store has to name this table."""
    return f"{urlsplit(url(path)).query.partition('=')[2]}.{name}" if ON == "postgres" else name


def columns(path: Path | str, table: str) -> list[str]:
    """The names of a table's columns, in order."""
    with shell(path) as one:
        return [column[0] for column in one.execute(f"select * from {table} where 1 = 0").description]


def across(seconds: float) -> float:
    """The polling interval of a test in which another process does something: MariaDB tells nobody of it."""
    return min(seconds, 0.2) if ON == "mariadb" else seconds


def say(connection: Any, sql: str) -> list[Any]:
    """The rows of a statement over the connection of a store."""
    return list(connection.ask(sql) if ON == "mariadb" else connection.execute(sql).fetchall())


def statements_of(connection: Any) -> list[str]:
    """All that is asked over this connection of a store, from now on."""
    said: list[str] = []
    if ON == "sqlite":
        connection.set_trace_callback(said.append)
        return said
    name = {"postgres": "_execute", "mariadb": "_say"}[ON]
    execute = getattr(connection, name)

    def written_down(sql: str, *args: Any, **more: Any) -> Any:
        said.append(sql)
        return execute(sql, *args, **more)

    setattr(connection, name, written_down)
    return said


def lost() -> Exception:
    """What the driver raises when the connection is no more."""
    driver = __getattr__("driver")
    if ON == "sqlite":
        return driver.ProgrammingError("gone")
    return driver.OperationalError("gone") if ON == "postgres" else driver.OperationalError(2006, "gone")


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Nobody else can write to runs until this ends; reading goes on."""
    with shell(path) as one:
        for order in {
            "sqlite": ["begin immediate"],
            "postgres": ["begin", "lock table holdfast_runs in exclusive mode"],
            "mariadb": ["lock tables holdfast_runs read"],
        }[ON]:
            one.execute(order)
        yield
        one.execute("unlock tables" if ON == "mariadb" else "rollback")


# ── Fixtures ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def _away_with_databases() -> Iterator[None]:
    """Drops what the test has made. What was there before it belongs to its module."""
    before = set(_made)
    yield
    for key in set(_made) - before:
        _drop(ON, _made.pop(key))  # type: ignore[arg-type]


def _fresh(kind: Kind) -> Iterator[str]:
    try:
        server = _server(kind)
    except ServerTrouble as trouble:
        if os.environ.get("HOLDFAST_TEST_REQUIRE") == "all":
            raise
        pytest.skip(f"NO {NAMES[kind]}: {str(trouble).splitlines()[0]}")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """The URL of an empty PostgreSQL database, dropped afterwards."""
    yield from _fresh("postgres")


@pytest.fixture
def mariadb_url() -> Iterator[str]:
    """The URL of an empty MariaDB database, dropped afterwards."""
    yield from _fresh("mariadb")


# ── Hooks of pytest ─────────────────────────────────────────────────────────────────────────────────────────────────

_LEFT_OUT = pytest.StashKey[Counter[str]]()
_HOME = pytest.StashKey[servers.Home]()


def pytest_configure(config: pytest.Config) -> None:
    if ON not in ("sqlite", *KINDS):
        raise pytest.UsageError(f"HOLDFAST_TEST_ON={ON}: give sqlite, postgres or mariadb")
    if os.environ.get("HOLDFAST_TEST_REQUIRE", "all") != "all":
        raise pytest.UsageError("HOLDFAST_TEST_REQUIRE: give all, or nothing")
    config.stash[_LEFT_OUT] = Counter()
    # Servers of this run hang on the first process of it, so that the workers of xdist can share them.
    if servers.HOME_VARIABLE not in os.environ and not all(os.environ.get(name) for name in VARIABLES.values()):
        config.stash[_HOME] = servers.Home()
        os.environ[servers.HOME_VARIABLE] = str(config.stash[_HOME].path)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if ON == "sqlite" or collection_path.parent != Path(__file__).parent or collection_path.name in OF_APPS:
        return None
    return True


def pytest_report_header() -> str | None:
    return None if ON == "sqlite" else f"on {ON}: only tests/{', tests/'.join(OF_APPS)}"


def pytest_unconfigure(config: pytest.Config) -> None:
    if _HOME in config.stash:
        del os.environ[servers.HOME_VARIABLE]
        config.stash[_HOME].close()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out: list[pytest.Item] = []
    seen: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("elsewhere")
        if marker is not None and SAMPLE and ON != "sqlite":
            place = item.nodeid.split("::")[0]
            seen[place] += 1
            if seen[place] % marker.kwargs["every"]:
                left_out.append(item)
                config.stash[_LEFT_OUT][marker.args[0]] += 1
                continue
        for marker in item.iter_markers("only"):
            database, why = marker.args
            if not set(database.split()) <= {"sqlite", *KINDS}:
                raise pytest.UsageError(f"{item.nodeid}: only({database!r}): give sqlite, postgres or mariadb")
            if ON not in database.split():
                left_out.append(item)
                config.stash[_LEFT_OUT][f"only {database}: {why}"] += 1
                break
    if left_out:
        away = set(left_out)
        items[:] = [item for item in items if item not in away]
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # A worker of xdist hands its count to the process that prints; each worker has collected the same tests.
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        left_out = session.config.stash[_LEFT_OUT]
        output["left_out_here"] = dict(left_out)
    for key in list(_made):
        with suppress(Exception):  # the tests have said what there is to say; the server may be gone
            _drop(ON, _made.pop(key))  # type: ignore[arg-type]
    for kind, name in _databases.items():
        with suppress(Exception):
            _server(kind).drop_database(name)
    _databases.clear()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    told: dict[str, int] = getattr(node, "workeroutput", {}).get("left_out_here", {})
    node.config.stash[_LEFT_OUT].update(Counter(told) - node.config.stash[_LEFT_OUT])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash[_LEFT_OUT]
    if left_out:
        terminalreporter.section(f"{left_out.total()} left out on {ON}: about another database, or the same on each")
        for why, count in left_out.most_common():
            terminalreporter.write_line(f"{count:>6}  {why}")
    without = Counter(
        name
        for report in terminalreporter.getreports("skipped")
        for name in NAMES.values()
        if f"NO {name}: " in str(report.longrepr)
    )
    for name, count in without.items():
        terminalreporter.section(f"{count} TESTS NOT RUN: there is no {name}")
        terminalreporter.write_line("make servers installs it, where it may; CONTRIBUTING.md says what else helps")
    if report := os.environ.get(REPORT_VARIABLE):
        Path(report).write_text(json.dumps({"left_out": left_out, "without": without}), encoding="utf-8")
