"""What forgetting costs in SQLite, that it leaves no orphans, and that trees go as a whole (S7)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from holdfast.store.base import Old, Tx
from holdfast.store.sqlite import SqliteStore
from holdfast.testing.clock import HandClock

CLOCK = HandClock()
NOW = CLOCK.now()
OLD, YOUNG = NOW - 10, NOW + 10

#: A row about the run in every table that has such rows.
OF_A_RUN = {
    "holdfast_labels": "insert into holdfast_labels (key, value, run_id) values ('env', 'test', ?)",
    "holdfast_progress": "insert into holdfast_progress (run_id, progress, updated_at) values (?, '{}', 0)",
    "holdfast_steps": "insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, "
    "output, started_at, completed_at) values (?, 's', 0, 0, 'completed', 0, 1, '1', 0, 0)",
    "holdfast_step_attempts": "insert into holdfast_step_attempts select ?, 's', 0, 0, 0, 0, 1, 0, null, null",
    "holdfast_logs": "insert into holdfast_logs (run_id, generation, level, message, created_at) "
    "values (?, 1, 'info', 'text', 0)",
    "holdfast_waits": "insert into holdfast_waits (run_id, key, kind, created_at) values (?, 'k', 'timer', 0)",
    "holdfast_signals": "insert into holdfast_signals (id, run_id, name, created_at) values (?1 || 's', ?1, 'n', 0)",
}


@pytest.fixture
def store() -> Iterator[SqliteStore]:
    store = SqliteStore("sqlite://", clock=CLOCK)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def connection(store: SqliteStore) -> Iterator[sqlite3.Connection]:
    connection = store.connect()
    yield connection
    store.disconnect(connection)


def put(connection: sqlite3.Connection, run_id: str, ended: int | None, root: str | None = None) -> None:
    """A run, below a root if one is given, with something in every table."""
    connection.execute(
        "insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, completed_at, input, "
        "labels, parent_id, root_id) values (?1, 'job', iif(?2 is null, 'pending', 'completed'), 0, 1, 0, 0, ?2, '1', "
        '\'{"env":"test"}\', ?3, ?3)',
        (run_id, ended, root),
    )
    for text in OF_A_RUN.values():
        connection.execute(text, (run_id,))


def rows(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """The runs of which each table knows."""
    found = {
        table: {row[0] for row in connection.execute(f"select run_id from {table}").fetchall()} for table in OF_A_RUN
    }
    return {**found, "holdfast_runs": {row[0] for row in connection.execute("select id from holdfast_runs").fetchall()}}


def write(store: SqliteStore, connection: sqlite3.Connection, act: Callable[[Tx], Any]) -> Any:
    tx = store.begin(connection)
    answer = act(tx)
    store.commit(tx)
    return answer


def tables_with_runs(connection: sqlite3.Connection) -> set[str]:
    tables = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'").fetchall()]
    return {
        table
        for table in tables
        if "run_id" in [column[1] for column in connection.execute(f"pragma table_info({table})").fetchall()]
    }


def test_a_deletion_reaches_every_table_that_knows_of_runs(store: SqliteStore, connection: sqlite3.Connection) -> None:
    assert set(OF_A_RUN) == tables_with_runs(connection), "a new table with rows of runs: delete them too"
    put(connection, "gone", OLD)
    put(connection, "stays", OLD)
    assert rows(connection) == {key: {"gone", "stays"} for key in [*OF_A_RUN, "holdfast_runs"]}
    (deleted,) = write(store, connection, lambda tx: store.delete(tx, ["gone"]))
    assert deleted.accepted
    assert rows(connection) == {key: {"stays"} for key in [*OF_A_RUN, "holdfast_runs"]}


def test_a_run_whose_labels_were_spoiled_by_hand_can_be_deleted(
    store: SqliteStore, connection: sqlite3.Connection
) -> None:
    put(connection, "spoiled", OLD)
    connection.execute("update holdfast_runs set labels = 'no json'")
    (deleted,) = write(store, connection, lambda tx: store.delete(tx, ["spoiled"]))
    assert (deleted.accepted, deleted.label_map) == (True, {})
    assert rows(connection)["holdfast_runs"] == set()


# -- trees -----------------------------------------------------------------------------------------------------------


def test_a_tree_goes_as_a_whole_once_every_member_has_ended(store: SqliteStore, connection: sqlite3.Connection) -> None:
    put(connection, "root", OLD)
    put(connection, "child1", OLD, "root")
    put(connection, "child2", None, "root")
    put(connection, "other", OLD)
    (refused,) = write(store, connection, lambda tx: store.delete(tx, ["root"]))
    assert (refused.accepted, refused.standing) == (False, "parent")
    assert len(rows(connection)["holdfast_runs"]) == 4
    connection.execute("update holdfast_runs set status = 'failed', completed_at = 1 where id = 'child2'")
    (deleted,) = write(store, connection, lambda tx: store.delete(tx, ["root"]))
    assert deleted.accepted
    assert rows(connection) == {key: {"other"} for key in [*OF_A_RUN, "holdfast_runs"]}


def test_a_child_is_not_deleted_alone(store: SqliteStore, connection: sqlite3.Connection) -> None:
    put(connection, "root", OLD)
    put(connection, "child", OLD, "root")
    (refused,) = write(store, connection, lambda tx: store.delete(tx, ["child"]))
    assert (refused.accepted, refused.standing) == (False, "child")
    assert write(store, connection, lambda tx: store.drop_outputs(tx, ["child"])) == [False]
    assert len(rows(connection)["holdfast_runs"]) == 2


@pytest.mark.parametrize("last", [None, YOUNG, NOW], ids=["still runs", "ended just now", "ended at that moment"])
def test_a_tree_is_as_old_as_the_last_of_its_ends(
    store: SqliteStore, connection: sqlite3.Connection, last: int | None
) -> None:
    put(connection, "root", OLD)
    put(connection, "child1", OLD, "root")
    put(connection, "child2", last, "root")
    put(connection, "old root", OLD)
    put(connection, "old child", OLD, "old root")
    for outputs in (False, True):
        assert store.find_old(connection, Old(NOW, outputs=outputs)) == ["old root"]
        assert store.find_old(connection, Old(NOW, outputs=outputs, labels=(("env", "test"),))) == ["old root"]


def test_outputs_of_a_tree_are_dropped_together(store: SqliteStore, connection: sqlite3.Connection) -> None:
    put(connection, "root", OLD)
    put(connection, "child", OLD, "root")
    put(connection, "live", None)
    assert write(store, connection, lambda tx: store.drop_outputs(tx, ["root", "live"])) == [True, False]
    kept = "select run_id from holdfast_steps where output is not null"
    assert connection.execute(kept).fetchall() == [("live",)]
    assert store.find_old(connection, Old(NOW, outputs=True)) == []


def test_a_root_may_name_itself_as_the_root(store: SqliteStore, connection: sqlite3.Connection) -> None:
    put(connection, "root", OLD)
    connection.execute("update holdfast_runs set root_id = id")
    assert store.find_old(connection, Old(NOW)) == ["root"]
    (deleted,) = write(store, connection, lambda tx: store.delete(tx, ["root"]))
    assert deleted.accepted


# -- what it costs ---------------------------------------------------------------------------------------------------


def instructions(connection: sqlite3.Connection, call: Callable[[], object]) -> int:
    """Instructions of SQLite's virtual machine that the call takes, to the next ten."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    connection.set_progress_handler(tick, 10)
    try:
        call()
    finally:
        connection.set_progress_handler(None, 10)
    return count * 10


def many(connection: sqlite3.Connection, count: int, ended: int, *, kept: int) -> None:
    connection.execute(
        "with recursive n(i) as (select 0 union all select i + 1 from n where i < ?1 - 1) "
        "insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, completed_at, input, "
        "outputs_kept) select printf('%s%026d', ?2 || ?3, i), 'job', 'completed', 0, 1, 0, 0, ?2 + i, '1', ?3 from n",
        (count, ended, kept),
    )


def test_finding_the_old_reads_a_batch_and_nothing_of_the_rest(
    store: SqliteStore, connection: sqlite3.Connection
) -> None:
    for old in (Old(NOW), Old(NOW, outputs=True)):
        assert instructions(connection, lambda old=old: store.find_old(connection, old)) < 2_000  # type: ignore[misc]
    many(connection, 20_000, YOUNG, kept=1)
    many(connection, 20_000, OLD - 30_000, kept=0)
    # Nothing that still has its outputs is old: looked for every minute, it must cost nothing.
    assert store.find_old(connection, Old(NOW, outputs=True)) == []
    assert instructions(connection, lambda: store.find_old(connection, Old(NOW, outputs=True))) < 2_000
    assert len(store.find_old(connection, Old(NOW))) == 100
    assert instructions(connection, lambda: store.find_old(connection, Old(NOW))) < 20_000


def test_a_deletion_is_as_many_statements_for_hundred_runs_as_for_one(
    store: SqliteStore, connection: sqlite3.Connection
) -> None:
    for number in range(101):
        put(connection, f"r{number}", OLD)
    counts = []
    for ids in (["r100"], [f"r{number}" for number in range(100)]):
        seen: list[str] = []
        tx = store.begin(connection)
        connection.set_trace_callback(seen.append)
        assert all(deleted.accepted for deleted in store.delete(tx, ids))
        connection.set_trace_callback(None)
        store.commit(tx)
        counts.append(len(seen))
    assert counts == [10, 10]


def test_a_refused_deletion_is_one_statement(store: SqliteStore, connection: sqlite3.Connection) -> None:
    put(connection, "live", None)
    seen: list[str] = []
    tx = store.begin(connection)
    connection.set_trace_callback(seen.append)
    store.delete(tx, ["live", "none"])
    connection.set_trace_callback(None)
    store.rollback(tx)
    assert len(seen) == 1
