"""The tables of PostgreSQL come about in one piece, by either way the same, however many make them at once."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import servers
from holdfast.basis.errors import SchemaError, StoreUnavailable
from holdfast.store import postgres
from holdfast.store.postgres import PostgresStore
from holdfast.store.schema import Migration, Schema

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

NOW = Schema.load("postgres")

_SECOND = """
-- Runs get a colour; why, nobody remembers.
alter table holdfast_runs add column colour text not null default 'grey';
create index holdfast_runs_colour on holdfast_runs (colour) where colour <> 'grey';
"""
NEXT = Schema(
    NOW.fresh + _SECOND, (*NOW.migrations, Migration(NOW.newest + 1, f"{NOW.newest + 1:04d}_colour", _SECOND))
)

#: What PostgreSQL itself makes of the tables, as far as one can say it without the name of their schema.
_SHAPE = """
select 'column', table_name || '.' || column_name,
  concat_ws(' ', ordinal_position, data_type, collation_name, is_nullable, column_default, is_identity)
from information_schema.columns where table_schema = %(schema)s
union all
select 'index', indexname, replace(indexdef, schemaname || '.', '') from pg_indexes where schemaname = %(schema)s
union all
select 'constraint', conrelid::regclass::text || '.' || conname, pg_get_constraintdef(oid)
from pg_constraint where connamespace = %(schema)s::regnamespace
union all
select 'options', relname, array_to_string(reloptions, ' ')
from pg_class where relnamespace = %(schema)s::regnamespace and relkind = 'r'
order by 1, 2
"""


def shape_of(url: str, schema: str) -> list[tuple[Any, ...]]:
    rows = servers.execute(url, _SHAPE, {"schema": schema})
    return [tuple(str(value).replace(f"{schema}.", "") for value in row) for row in rows]


def with_schema(url: str, schema: str) -> str:
    return f"{url}?schema={schema}"


def test_a_migrated_database_has_the_tables_of_a_fresh_one(postgres_url: str) -> None:
    for name, schema in (("now", NOW), ("then", NEXT)):
        fresh, chain = f"fresh_{name}", f"chain_{name}"
        PostgresStore(with_schema(postgres_url, fresh), schema=schema).migrate()
        first = Schema(schema.migrations[0].text, schema.migrations[:1])
        PostgresStore(with_schema(postgres_url, chain), schema=first).migrate()
        PostgresStore(with_schema(postgres_url, chain), schema=schema).migrate()
        assert shape_of(postgres_url, fresh) == shape_of(postgres_url, chain)
        assert len(shape_of(postgres_url, fresh)) > 100


def test_its_migrations_have_the_numbers_and_names_of_sqlite() -> None:
    names = [(migration.number, migration.name) for migration in NOW.migrations]
    assert names == [(migration.number, migration.name) for migration in Schema.load("sqlite").migrations]


def test_its_tables_have_the_columns_of_sqlite(postgres_url: str) -> None:
    import sqlite3

    PostgresStore(postgres_url).migrate()
    here = sqlite3.connect(":memory:")
    here.executescript(Schema.load("sqlite").fresh)
    for (table,) in here.execute("select name from sqlite_schema where type = 'table'").fetchall():
        wanted = [row[1] for row in here.execute(f"pragma table_info({table})")]
        found = servers.execute(
            postgres_url,
            "select column_name from information_schema.columns "
            "where table_schema = 'public' and table_name = %s order by ordinal_position",
            (table,),
        )
        assert [name for (name,) in found] == wanted, table
    here.close()


_MIGRATE = """
import sys
from holdfast.store.postgres import PostgresStore
store = PostgresStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(len(store.migrate()))
connection = store.open()
print(store.database_id(connection))
"""


@pytest.mark.parametrize("schema", ["public", "billing"])
def test_eight_processes_may_make_the_tables_at_once(postgres_url: str, schema: str) -> None:
    url = with_schema(postgres_url, schema)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _MIGRATE, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
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


def test_a_migration_that_fails_leaves_nothing(postgres_url: str) -> None:
    broken = Schema(
        "", (*NOW.migrations, Migration(NOW.newest + 1, "9999_broken", "create table holdfast_x (a int);x;"))
    )
    PostgresStore(postgres_url).migrate()
    before = shape_of(postgres_url, "public")
    with pytest.raises(Exception, match="syntax error"):
        PostgresStore(postgres_url, schema=broken).migrate()
    assert shape_of(postgres_url, "public") == before


def test_tables_of_a_newer_version_are_refused(postgres_url: str) -> None:
    PostgresStore(postgres_url, schema=NEXT).migrate()
    store = PostgresStore(postgres_url)
    with pytest.raises(SchemaError, match="upgrade the package"):
        store.migrate()
    with pytest.raises(SchemaError, match="upgrade the package"):
        store.open()


def test_whoever_goes_on_while_another_one_migrates_is_refused_by_the_next_transaction(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    store.migrate()
    connection = store.open()
    store.commit(store.begin(connection))
    PostgresStore(postgres_url, schema=NEXT).migrate()
    with pytest.raises(SchemaError, match="upgrade the package"):
        store.begin(connection)
    store.disconnect(connection)


def test_missing_and_older_tables_are_named_with_what_to_do(postgres_url: str) -> None:
    with pytest.raises(SchemaError, match="no Holdfast tables yet in the schema public"):
        PostgresStore(postgres_url).open()
    with pytest.raises(SchemaError, match="no Holdfast tables yet in the schema nowhere"):
        PostgresStore(with_schema(postgres_url, "nowhere")).open()
    PostgresStore(postgres_url).migrate()
    with pytest.raises(SchemaError, match="holdfast migrate"):
        PostgresStore(postgres_url, schema=NEXT).open()


def test_nothing_depends_on_the_search_path(postgres_url: str) -> None:
    url = f"{postgres_url}?schema=Billing&options=-c%20search_path%3Dnowhere"
    store = PostgresStore(url)
    assert store.migrate() != []
    store.disconnect(store.open())
    tables = servers.execute(postgres_url, "select schemaname from pg_tables where tablename = 'holdfast_runs'")
    assert tables == [("Billing",)]


@contextmanager
def in_use(url: str, table: str) -> Iterator[None]:
    """A transaction that reads a table, as pg_dump does for as long as it takes."""
    with psycopg.connect(url) as other:
        other.execute(f"lock table {table} in access share mode")
        yield


@pytest.mark.parametrize("table", ["holdfast_migrations", "holdfast_meta", "holdfast_runs"])
def test_who_starts_where_nothing_is_to_be_migrated_waits_for_nobody_and_keeps_nobody(
    postgres_url: str, table: str
) -> None:
    PostgresStore(postgres_url).migrate()
    with in_use(postgres_url, table):
        store = PostgresStore(postgres_url, lock_timeout=0.5)
        assert store.migrate() == []
        link = store.open()
        store.commit(store.begin(link))
        store.disconnect(link)


def test_others_go_on_while_a_migration_waits_for_a_backup_to_end(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_OTHERS_GO", 0.2)
    old, new = PostgresStore(postgres_url), PostgresStore(postgres_url, schema=NEXT)
    old.migrate()
    link, made, told = old.open(), list[str](), queue.SimpleQueue[str]()
    monkeypatch.setattr(new, "say_once", told.put)
    migrating = threading.Thread(target=lambda: made.extend(new.migrate()))
    with in_use(postgres_url, "holdfast_migrations"):
        migrating.start()
        for _ in range(3):
            assert told.get(timeout=20).startswith("waiting to migrate: ")
            old.commit(old.begin(link))
        assert not made
    migrating.join(20)
    assert made == ["0002_colour"]
    with pytest.raises(SchemaError, match="upgrade the package"):
        old.begin(link)
    old.disconnect(link)


def test_a_lock_on_our_tables_is_told_when_a_process_starts(postgres_url: str) -> None:
    PostgresStore(postgres_url).migrate()
    with psycopg.connect(postgres_url) as other:
        other.execute("lock table holdfast_meta in access exclusive mode")
        with pytest.raises(StoreUnavailable, match="locked for too long"):
            PostgresStore(postgres_url, lock_timeout=0.2).migrate()
