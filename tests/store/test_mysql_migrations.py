"""The tables of MariaDB come about by either way the same, however many make them at once, and wherever one dies."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest

import servers
from holdfast.basis.errors import SchemaError
from holdfast.model.run import NewRun, RunFilter
from holdfast.store.mysql import MysqlStore
from holdfast.store.mysql_place import Link
from holdfast.store.schema import Migration, Schema, statements

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

NOW = Schema.load("mysql")

_SECOND = """
-- Runs get a colour; why, nobody remembers.
alter table holdfast_runs add column if not exists colour varchar(16) not null default 'grey';
create index if not exists holdfast_runs_colour on holdfast_runs (colour);
"""
NEXT = Schema(
    NOW.fresh + _SECOND, (*NOW.migrations, Migration(NOW.newest + 1, f"{NOW.newest + 1:04d}_colour", _SECOND))
)


def shape_of(url: str) -> dict[str, str]:
    """What MariaDB itself makes of the tables."""
    tables = [name for (name,) in servers.execute(url, "show tables")]
    return {
        name: servers.execute(url, f"show create table {name}")[0][1].split(" AUTO_INCREMENT")[0] for name in tables
    }


@pytest.mark.parametrize("schema", [NOW, NEXT], ids=["now", "next"])
def test_a_migrated_mariadb_has_the_tables_of_a_fresh_one(mariadb_url: str, schema: Schema) -> None:
    MysqlStore(mariadb_url, schema=schema).migrate()
    fresh = shape_of(mariadb_url)
    servers.execute(mariadb_url, f"drop table {', '.join(fresh)}")
    first = Schema(schema.migrations[0].text, schema.migrations[:1])
    MysqlStore(mariadb_url, schema=first).migrate()
    MysqlStore(mariadb_url, schema=schema).migrate()
    assert shape_of(mariadb_url) == fresh
    assert len(fresh) == 12


def test_mariadbs_migrations_have_the_numbers_and_names_of_sqlite() -> None:
    names = [(migration.number, migration.name) for migration in NOW.migrations]
    assert names == [(migration.number, migration.name) for migration in Schema.load("sqlite").migrations]


def test_mariadbs_tables_begin_with_the_columns_of_sqlite(mariadb_url: str) -> None:
    MysqlStore(mariadb_url).migrate()
    with closing(sqlite3.connect(":memory:")) as here:
        here.executescript(Schema.load("sqlite").fresh)
        for (table,) in here.execute("select name from sqlite_schema where type = 'table'").fetchall():
            wanted = [row[1] for row in here.execute(f"pragma table_info({table})")]
            found = servers.execute(
                mariadb_url,
                "select column_name, is_generated from information_schema.columns "
                "where table_schema = database() and table_name = %s order by ordinal_position",
                (table,),
            )
            assert [name for name, _ in found][: len(wanted)] == wanted, table
            assert {generated for _, generated in found[len(wanted) :]} <= {"ALWAYS"}, table


def test_mariadbs_tables_do_not_depend_on_how_the_database_is_set_up(mariadb_url: str) -> None:
    MysqlStore(mariadb_url).migrate()
    usual = shape_of(mariadb_url)
    servers.execute(mariadb_url, f"drop table {', '.join(usual)}")
    name = mariadb_url.rpartition("/")[2]
    servers.execute(mariadb_url, f"alter database {name} character set latin1 collate latin1_swedish_ci")
    MysqlStore(mariadb_url).migrate()
    assert shape_of(mariadb_url) == usual


_MIGRATE = """
import sys
from holdfast.store.mysql import MysqlStore
store = MysqlStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(len(store.migrate()))
connection = store.open()
print(store.database_id(connection))
"""


def test_eight_processes_may_make_the_tables_of_mariadb_at_once(mariadb_url: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _MIGRATE, mariadb_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(8)
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    told = [child.communicate(timeout=120) for child in children]
    assert [error for _, error in told if error] == []
    answers = [out.split() for out, _ in told]
    assert sorted(made for made, _ in answers) == ["0"] * 7 + [str(len(NOW.migrations))]
    assert len({identity for _, identity in answers}) == 1


class Dying(MysqlStore):
    """Is killed before the statement of this number."""

    left = 0

    def connect(self, *, read_only: bool = False) -> Link:
        link = super().connect(read_only=read_only)
        say = link._say

        def until_then(sql: str) -> Any:
            if self.left == 0:
                link.raw._force_close()  # type: ignore[attr-defined]
                raise KeyboardInterrupt
            self.left -= 1
            return say(sql)

        link._say = until_then  # type: ignore[method-assign]
        return link


def test_wherever_a_migration_dies_the_next_one_completes_it(mariadb_url: str) -> None:
    MysqlStore(mariadb_url).migrate()
    whole = shape_of(mariadb_url)
    store = Dying(mariadb_url)
    for number in range(5, 5 + len(list(statements(NOW.fresh))), 3):
        servers.execute(mariadb_url, f"drop table {', '.join(whole)}")
        store.left = number
        with pytest.raises(KeyboardInterrupt):
            store.migrate()
        if shape_of(mariadb_url) != whole:
            with pytest.raises(SchemaError, match="no Holdfast tables yet"):
                MysqlStore(mariadb_url).open()
        assert MysqlStore(mariadb_url).migrate() == [migration.name for migration in NOW.migrations]
        assert shape_of(mariadb_url) == whole
        assert MysqlStore(mariadb_url).migrate() == []


def test_an_upgrade_of_mariadb_that_dies_in_the_middle_keeps_the_rows_and_is_completed(mariadb_url: str) -> None:
    store = MysqlStore(mariadb_url)
    store.migrate()
    link = store.open()
    tx = store.begin(link)
    store.trigger(tx, [NewRun("run", "job", "1")])
    store.commit(tx)
    first = next(statements(_SECOND))
    servers.execute(mariadb_url, first.replace("%", "%%"))  # died after it
    with pytest.raises(SchemaError, match="holdfast migrate"):
        MysqlStore(mariadb_url, schema=NEXT).open()
    upgraded = MysqlStore(mariadb_url, schema=NEXT)
    assert upgraded.migrate() == [NEXT.migrations[-1].name]
    assert [run.id for run in upgraded.find_runs(link, RunFilter())] == ["run"]
    store.disconnect(link)


def test_a_newer_mariadb_is_refused_when_opened_and_by_the_next_transaction(mariadb_url: str) -> None:
    store = MysqlStore(mariadb_url)
    store.migrate()
    link = store.open()
    store.commit(store.begin(link))
    MysqlStore(mariadb_url, schema=NEXT).migrate()
    for refused in (store.migrate, store.open, lambda: store.begin(link)):
        with pytest.raises(SchemaError, match="upgrade the package"):
            refused()
    store.disconnect(link)
