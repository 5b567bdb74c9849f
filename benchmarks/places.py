"""Where is measured: databases that are filled once, copied for each measurement, and looked into.

Everything is named by its URL. Servers are made for a bench and gone after it (`tests/servers.py`), with fsync: what
they acknowledge is on disk, as with SQLite. `HOLDFAST_TEST_POSTGRES` and `HOLDFAST_TEST_MYSQL` name servers of yours.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

KINDS = ("sqlite", "postgres", "mariadb")
TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "mariadb": "MariaDB"}
VARIABLES = {"postgres": "HOLDFAST_TEST_POSTGRES", "mariadb": "HOLDFAST_TEST_MYSQL"}

#: What differs from a server as it comes: memory, and no checkpoint of its own in the middle of a measurement.
SETTINGS = {
    "postgres": {"shared_buffers": "512MB", "max_wal_size": "4GB"},
    "mariadb": {"innodb-buffer-pool-size": "512M", "innodb-log-file-size": "512M"},
}
#: What is said of a server in the results.
_TOLD = {
    "postgres": ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers",
                 "max_wal_size"),
    "mariadb": ("innodb_flush_log_at_trx_commit", "innodb_doublewrite", "log_bin", "innodb_buffer_pool_size",
                "innodb_log_file_size", "innodb_flush_method"),
}  # fmt: skip


class Place(Protocol):
    """A kind of database."""

    def empty(self) -> str:
        """The URL of a new database."""

    def copied(self, url: str) -> contextlib.AbstractContextManager[str]:
        """The URL of a copy, for a while."""

    def told(self) -> dict[str, Any]:
        """Its version and settings."""


class Files:
    """SQLite: files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def empty(self) -> str:
        return f"sqlite:///{Path(tempfile.mkdtemp(dir=self.folder), 'bench.db')}"

    @contextlib.contextmanager
    def copied(self, url: str) -> Iterator[str]:
        filled = Path(url.removeprefix("sqlite:///"))
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            for part in filled.parent.iterdir():
                if not part.name.endswith("-shm"):
                    _copy(part, Path(place, part.name))
            yield f"sqlite:///{Path(place, filled.name)}"

    def told(self) -> dict[str, Any]:
        return {"SQLite": sqlite3.sqlite_version, "settings": {"journal": "WAL, synchronous=FULL"}}


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as copied:
        os.fsync(copied.fileno())  # not in the background of the measurement


class Server:
    """A PostgreSQL or MariaDB server: databases on it."""

    def __init__(self, kind: str, databases: Any) -> None:
        self.kind = kind
        self._databases = databases

    def empty(self) -> str:
        url: str = self._databases.url(self._databases.create_database())
        return url

    @contextlib.contextmanager
    def copied(self, url: str) -> Iterator[str]:
        name = f"bench_{time.monotonic_ns()}"
        original = url.rsplit("/", 1)[1]
        if self.kind == "postgres":
            self._databases.execute(f"create database {name} template {original} strategy file_copy")
        else:
            self._databases.create_database(name)
            self._copy_tables(original, name)
        try:
            yield self._databases.url(name)
        finally:
            self._databases.drop_database(name)

    def _copy_tables(self, original: str, name: str) -> None:
        with contextlib.closing(connect(self._databases.url(name))) as connection, connection.cursor() as cursor:
            cursor.execute(
                "select table_name, group_concat(concat('`', column_name, '`')) from information_schema.columns "
                f"where table_schema = '{original}' and generation_expression is null group by 1"
            )
            for table, columns in cursor.fetchall():
                cursor.execute(f"create table {table} like {original}.{table}")
                cursor.execute(f"insert into {table} ({columns}) select {columns} from {original}.{table}")
                cursor.execute(f"analyze table {table}")

    def told(self) -> dict[str, Any]:
        names = _TOLD[self.kind]
        if self.kind == "postgres":
            settings = {name: self._databases.execute(f"show {name}")[0][0] for name in names}
        else:
            settings = {name: self._databases.execute(f"select @@{name}")[0][0] for name in names}
        return {TITLES[self.kind]: str(self._databases.execute("select version()")[0][0]), "settings": settings}


@contextlib.contextmanager
def place(kind: str, folder: Path) -> Iterator[Place]:
    """A place of this kind, gone afterwards."""
    if kind == "sqlite":
        yield Files(folder)
        return
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    servers: Any = importlib.import_module("servers")
    if address := os.environ.get(VARIABLES[kind]):
        yield Server(kind, servers.Databases(kind, address))
        return
    with getattr(servers, kind)(fsync=True, **SETTINGS[kind]) as server:
        yield Server(kind, server)


# -- looking into one ------------------------------------------------------------------------------------------------


def kind_of(url: str) -> str:
    """Which kind a URL names."""
    scheme = url.partition(":")[0]
    return "sqlite" if scheme == "sqlite" else "postgres" if scheme.startswith("postgres") else "mariadb"


def connect(url: str) -> Any:
    """A connection of the driver, in autocommit."""
    if kind_of(url) == "sqlite":
        return sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)
    if kind_of(url) == "postgres":
        import psycopg

        return psycopg.connect(url, autocommit=True)
    from holdfast.store.mysql_place import address

    found = address(url)
    import pymysql

    host, port = found.hosts[0]
    return pymysql.connect(
        host=host, port=port, user=found.user, password=found.password, database=found.database, charset="utf8mb4",
        autocommit=True,
    )  # fmt: skip


def rows(url: str, *statements: str) -> list[Any]:
    """What the last of these statements gives."""
    with contextlib.closing(connect(url)) as connection:
        cursor = connection.cursor()
        for sql in statements:
            cursor.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []


def pending(url: str, many: int) -> list[str]:
    """The ids of the runs that are claimed first, in that order."""
    order = f"order by priority desc, run_at, id limit {many}"
    return [run_id for (run_id,) in rows(url, f"select id from holdfast_runs where status = 'pending' {order}")]


def check(url: str, runs: int) -> None:
    """Fails unless there are that many runs, all completed."""
    found = dict(rows(url, "select status, count(*) from holdfast_runs group by 1"))
    assert found == {"completed": runs}, found


_SERIES = {
    "sqlite": "with recursive n (i) as (select 0 union all select i + 1 from n where i < {count} - 1)",
    "postgres": "with n (i) as (select * from generate_series(0, {count} - 1))",
    "mariadb": "with n (i) as (select seq from seq_0_to_{last})",
}
_ID = {
    "sqlite": "'{prefix}' || printf('%025d', i)",
    "postgres": "'{prefix}' || lpad(i::text, 25, '0')",
    "mariadb": "concat('{prefix}', lpad(i, 25, '0'))",
}


def id_of(url: str, prefix: str) -> str:
    """What is the id of a run that `add` inserts, as an expression of `i`."""
    return _ID[kind_of(url)].format(prefix=prefix)


def add(url: str, count: int, prefix: str, **columns: str) -> None:
    """Insert that many runs by SQL: what each column gets, as an expression of `i`. Ids begin with `prefix`."""
    if count <= 0:
        return
    kind = kind_of(url)
    series = _SERIES[kind].format(count=count, last=count - 1)
    named = {"id": id_of(url, prefix), **columns}
    insert = f"insert into holdfast_runs ({', '.join(named)})"
    select = f"select {', '.join(named.values())} from n"
    rows(url, f"{insert} {series} {select}" if kind == "mariadb" else f"{series} {insert} {select}")


def add_finished(url: str, count: int) -> None:
    """Runs that ended an hour ago and before."""
    at = f"{time.time_ns() // 1000 - 3_600_000_000} + i"
    add(
        url, count, "0", job_name="'noop'", status="'completed'", run_at=at, due="1", generation="1", created_at=at,
        updated_at=at, started_at=at, completed_at=at, input="'{\"number\":1}'", output="'1'",
    )  # fmt: skip


def settle(url: str) -> None:
    """What a server does by itself in the background after much was written."""
    if kind_of(url) == "postgres":
        rows(url, "vacuum analyze")
    elif kind_of(url) == "mariadb":
        rows(url, "analyze table holdfast_runs, holdfast_steps")


def in_parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """One part after the other."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
