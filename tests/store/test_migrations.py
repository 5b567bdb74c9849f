"""The tables come about in one piece, whatever happens meanwhile, and by either way the same."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.basis.errors import SchemaError
from holdfast.model.run import NewRun, RunFilter
from holdfast.model.step import StepRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease, StepSave
from holdfast.store.schema import Migration, Schema, statements
from holdfast.store.sqlite import SqliteStore
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("migrations: what they write is the same on every Python", every=3)

NOW = Schema.load("sqlite")

_SECOND = """
-- Runs get a colour; why, nobody remembers.
alter table holdfast_runs add column colour text not null default 'grey';
create index holdfast_runs_colour on holdfast_runs (colour) where colour <> 'grey';
"""
NEXT = Schema(
    NOW.fresh + _SECOND, (*NOW.migrations, Migration(NOW.newest + 1, f"{NOW.newest + 1:04d}_colour", _SECOND))
)


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def shape_of(path: Path) -> list[tuple[str, str, str]]:
    """The tables and indexes of a file, without comments and spaces."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("select type, name, coalesce(sql, '') from sqlite_master").fetchall()
    return sorted((kind, name, re.sub(r"\s+", " ", re.sub(r"--[^\n]*", "", sql))) for kind, name, sql in rows)


def columns_of(path: Path) -> dict[str, list[Any]]:
    """What SQLite itself makes of the tables; `alter table` and `create table` leave different texts."""
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return {name: connection.execute(f"pragma table_xinfo({name})").fetchall() for name in sorted(names)}


def through_the_chain(path: Path, schema: Schema = NOW) -> None:
    """A database that was made by the first version and went through every number since."""
    first = Schema(schema.migrations[0].text, schema.migrations[:1])
    SqliteStore(url_of(path), schema=first).migrate()
    SqliteStore(url_of(path), schema=schema).migrate()


def forked(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that may fork: this one may have threads."""
    return subprocess.run(
        [sys.executable, "-c", _FORKS + script, *arguments], capture_output=True, text=True, timeout=120
    )


_FORKS = """
import os, sys, signal, traceback
from holdfast.store.sqlite import SqliteStore

def child(call):
    pid = os.fork()
    if pid == 0:
        try:
            call()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return pid
"""


@pytest.mark.parametrize("schema", [NOW, NEXT], ids=["today", "with a next number"])
def test_a_migrated_database_is_the_same_as_a_fresh_one(tmp_path: Path, schema: Schema) -> None:
    fresh, migrated = tmp_path / "fresh.db", tmp_path / "migrated.db"
    SqliteStore(url_of(fresh), schema=schema).migrate()
    through_the_chain(migrated, schema)
    if schema is NOW:
        assert shape_of(fresh) == shape_of(migrated)
    assert columns_of(fresh) == columns_of(migrated)
    assert [row[:2] for row in shape_of(fresh)] == [row[:2] for row in shape_of(migrated)]


def test_a_fresh_database_is_marked_as_having_been_through_all_numbers(tmp_path: Path) -> None:
    store = SqliteStore(url_of(tmp_path / "a.db"), schema=NEXT)
    assert store.migrate() == [migration.name for migration in NEXT.migrations]
    connection = store.connect()
    numbers = connection.execute("select number, name from holdfast_migrations order by number").fetchall()
    store.disconnect(connection)
    assert numbers == [migration[:2] for migration in NEXT.migrations]


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = SqliteStore(url_of(path))
    store.migrate()
    before = path.read_bytes()
    assert store.migrate() == []
    assert path.read_bytes() == before


def test_the_numbers_of_the_chain_are_gapless_and_named_after_their_files() -> None:
    assert [migration.number for migration in NOW.migrations] == list(range(1, len(NOW.migrations) + 1))
    assert all(re.fullmatch(rf"{migration.number:04d}_\w+", migration.name) for migration in NOW.migrations)


def test_the_tables_refuse_a_run_that_contradicts_itself(tmp_path: Path) -> None:
    store = SqliteStore(url_of(tmp_path / "a.db"))
    store.migrate()
    connection = store.connect()
    insert = "insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, input, {}) values "
    for column, values in (
        ("lease_owner", "('a', 'j', 'pending', 0, 1, 0, 0, '', 'me')"),
        ("lease_expires_at", "('a', 'j', 'pending', 0, 1, 0, 0, '', 5)"),
        ("lease_owner", "('a', 'j', 'leased', 0, 1, 0, 0, '', 'me')"),
        ("completed_at", "('a', 'j', 'pending', 0, 1, 0, 0, '', 1)"),
        ("completed_at", "('a', 'j', 'failed', 0, 1, 0, 0, '', null)"),
        ("completed_at", "('a', 'j', 'paused', 0, 1, 0, 0, '', null)"),
        ("attempt", "('a', 'j', 'pending', 0, 1, 0, 0, '', -1)"),
        ("attempt", "('a', 'j', 'pending', 'soon', 1, 0, 0, '', 0)"),
    ):
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(insert.format(column) + values)
    store.disconnect(connection)


def test_a_half_statement_is_an_error_and_not_left_out() -> None:
    assert len(list(statements("create table a (b);\n-- the end\n"))) == 1
    with pytest.raises(SchemaError, match="middle of a statement"):
        list(statements("create table a (b);\ncreate table c (d)\n"))


def test_a_semicolon_inside_a_text_or_comment_divides_nothing() -> None:
    text = "create table a (b text default ';\n');  -- one; two\ncreate table c (d); -- end;\n"
    assert len([part for part in statements(text) if "create" in part]) == 2


# -- upgrades ------------------------------------------------------------------------------------------------------


def test_an_upgrade_keeps_live_rows_and_they_go_on_working(tmp_path: Path) -> None:
    url, clock = url_of(tmp_path / "a.db"), HandClock()
    old = SqliteStore(url, clock=clock)
    old.migrate()
    connection = old.connect()
    tx = old.begin(connection)
    old.trigger(tx, [NewRun(name, name, "1", labels='{"k":"v"}') for name in ("pending", "leased", "completed")])
    old.claim(tx, [ClaimOrder("me", 9, 30_000_000, ("leased", "completed"))])
    step = StepRow("leased", "fetch", 0, 0, "completed", 0, 1, None, "1", None, 5, 6)
    old.save_steps(tx, [StepSave("me", step)])
    old.finish(tx, [Ending(Lease("completed", 1, "me"), TABLE[Cause.COMPLETE], output="2")])
    old.commit(tx)
    before = old.find_runs(connection, RunFilter())
    name = old.database_id(connection)
    old.disconnect(connection)

    new = SqliteStore(url, clock=clock, schema=NEXT)
    assert new.migrate() == [NEXT.migrations[-1].name]
    connection = new.connect()
    new.check_schema(connection)
    assert new.database_id(connection) == name
    assert new.find_runs(connection, RunFilter()) == before
    tx = new.begin(connection)
    assert new.save_steps(tx, [StepSave("me", step._replace(name="next", position=1))]) == [True]
    assert [row.id for row in new.claim(tx, [ClaimOrder("me", 9, 1, ("pending",))])[0].runs] == ["pending"]
    endings = [Ending(Lease(run, 1, "me"), TABLE[Cause.COMPLETE]) for run in ("pending", "leased")]
    assert [ended.accepted for ended in new.finish(tx, endings)] == [True, True]
    new.commit(tx)
    assert [row.name for row in new.find_steps(connection, "leased")] == ["fetch", "next"]
    assert {row.status for row in new.find_runs(connection, RunFilter(labels=(("k", "v"),)))} == {"completed"}
    new.disconnect(connection)


def test_older_tables_are_refused_until_they_are_migrated(tmp_path: Path) -> None:
    SqliteStore(url_of(tmp_path / "a.db")).migrate()
    store = SqliteStore(url_of(tmp_path / "a.db"), schema=NEXT)
    connection = store.connect()
    with pytest.raises(
        SchemaError, match=f"have version {NOW.newest}, this code needs {NEXT.newest}.*holdfast migrate"
    ):
        store.check_schema(connection)
    store.migrate()
    store.check_schema(connection)
    store.disconnect(connection)


def test_missing_tables_are_refused_with_advice(tmp_path: Path) -> None:
    store = SqliteStore(url_of(tmp_path / "a.db"))
    advice = r"no Holdfast tables.*app\.init\(\).*`holdfast migrate sqlite:///.*a\.db`"
    with pytest.raises(SchemaError, match=advice):
        store.open()
    assert list(tmp_path.iterdir()) == [], "asking for a database does not make one"
    (tmp_path / "a.db").touch()
    with pytest.raises(SchemaError, match=advice):
        store.open()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_nobody_is_told_to_migrate_from_outside_what_is_private_to_this_process(url: str) -> None:
    store = SqliteStore(url)
    connection = store.connect()
    with pytest.raises(SchemaError, match=r"no Holdfast tables.*app\.init\(\) first\.$"):
        store.check_schema(connection)
    store.disconnect(connection)
    store.close()


def test_newer_tables_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    SqliteStore(url_of(path), schema=NEXT).migrate()
    before = path.read_bytes()
    store = SqliteStore(url_of(path))
    with pytest.raises(SchemaError, match="upgrade the package"):
        store.migrate()
    connection = store.connect()
    with pytest.raises(SchemaError, match=f"version {NEXT.newest}, this code knows {NOW.newest}"):
        store.check_schema(connection)
    store.disconnect(connection)
    assert path.read_bytes() == before


def test_a_migration_that_fails_leaves_the_tables_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    SqliteStore(url_of(path)).migrate()
    before = shape_of(path)
    broken = replace(NEXT, migrations=(*NOW.migrations, Migration(NEXT.newest, "x", _SECOND + "create nonsense;\n")))
    with pytest.raises(Exception, match="nonsense"):
        SqliteStore(url_of(path), schema=broken).migrate()
    assert shape_of(path) == before
    SqliteStore(url_of(path), schema=NEXT).migrate()


# -- several processes, and killed ones -----------------------------------------------------------------------------


def test_eight_processes_that_migrate_at_once_make_one_set_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    script = """
import select
read, write = os.pipe()
def migrate():
    os.close(write)
    os.read(read, 1)  # returns for all at once, when the parent closes its end
    store = SqliteStore(sys.argv[1])
    applied = store.migrate()
    connection = store.connect()
    store.check_schema(connection)
    os.write(1, f"{len(applied)} {store.database_id(connection)}\\n".encode())
    store.disconnect(connection)
pids = [child(migrate) for _ in range(8)]
os.close(write)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in pids))
"""
    done = forked(script, url_of(path))
    assert done.returncode == 0, done.stderr
    lines = sorted(line.split() for line in done.stdout.splitlines())
    assert [count for count, _ in lines] == ["0"] * 7 + [str(len(NOW.migrations))]
    assert len({name for _, name in lines}) == 1
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("select count(*) from holdfast_meta").fetchone() == (1,)
        assert connection.execute("select count(*) from holdfast_migrations").fetchone() == (len(NOW.migrations),)


@pytest.mark.crash
@pytest.mark.parametrize("way", ["fresh", "upgrade"])
def test_a_kill_at_any_statement_of_a_migration_leaves_all_or_nothing(tmp_path: Path, way: str) -> None:
    script = """
import json, sqlite3
from holdfast.store.schema import Migration, Schema
folder, way, second = sys.argv[1:]
now = Schema.load("sqlite")
number = now.newest + 1
schema = now if way == "fresh" else Schema(now.fresh + second, (*now.migrations, Migration(number, "x", second)))

class Killed(SqliteStore):
    def __init__(self, url, at):
        super().__init__(url, schema=schema)
        self.at, self.count = at, 0
    def _open(self, **how):
        connection = super()._open(**how)
        connection.set_trace_callback(self.trace)
        return connection
    def trace(self, text):
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

def version(path):
    connection = sqlite3.connect(path)
    try:
        tables = {name for (name,) in connection.execute("select name from sqlite_master")}
        if not tables:
            return 0
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        return connection.execute("select max(number) from holdfast_migrations").fetchone()[0]
    finally:
        connection.close()

at, killed, seen = 0, 0, []
while True:
    path = f"{folder}/{at}.db"
    url = f"sqlite:///{path}"
    if way == "upgrade":
        SqliteStore(url, schema=now).migrate()
    code = os.waitstatus_to_exitcode(os.waitpid(child(lambda: Killed(url, at).migrate()), 0)[1])
    found = version(path)
    SqliteStore(url, schema=schema).migrate()
    seen.append([code, found, version(path)])
    if code != -signal.SIGKILL:
        break
    at += 1
print(json.dumps(seen))
"""
    done = forked(script, str(tmp_path), way, _SECOND)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    before, after = (0, NOW.newest) if way == "fresh" else (NOW.newest, NEXT.newest)
    *killed, whole = seen
    assert whole == [0, after, after], done.stderr
    schema = NOW.fresh if way == "fresh" else _SECOND
    assert len(killed) > len(list(statements(schema))), "killed at every statement, at begin and at commit"
    assert {tuple(line) for line in killed} == {(-signal.SIGKILL, before, after)}
    print(f"{way}: killed at {len(killed)} statements")
