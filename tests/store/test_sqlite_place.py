"""S9: the file is deleted, moved, replaced or cut under a connection. Nothing counts that nobody will ever read."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from holdfast.basis.errors import SchemaError, StoreUnavailable
from holdfast.model.run import NewRun, RunFilter
from holdfast.store.base import Tx
from holdfast.store.sqlite import SqliteStore
from holdfast.testing.clock import HandClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "app.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(f"sqlite:///{path}", lock_timeout=0.05, clock=HandClock())
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def connection(store: SqliteStore) -> Iterator[Any]:
    connection = store.open()
    write(store, connection, "before")
    yield connection
    store.disconnect(connection)


def begin(store: SqliteStore, connection: Any) -> Tx:
    """A transaction, some time after the last one: it looks at the file when a moment has passed."""
    clock = store.clock
    assert isinstance(clock, HandClock)
    clock.advance(1)
    return store.begin(connection)


def write(store: SqliteStore, connection: Any, name: str) -> None:
    tx = begin(store, connection)
    try:
        store.trigger(tx, [NewRun(name, "job", "1")])
    except BaseException:
        store.rollback(tx)
        raise
    store.commit(tx)


def names(store: SqliteStore) -> list[str]:
    connection = store.open(read_only=True)
    try:
        return sorted(run.id for run in store.find_runs(connection, RunFilter()))
    finally:
        store.disconnect(connection)


def files(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def wal(path: Path) -> Path:
    return Path(f"{path}-wal")


def remove_all(path: Path) -> None:
    for each in path.parent.iterdir():
        each.unlink()


def another(path: Path) -> SqliteStore:
    """Another database in that place, closed, so that it is one file."""
    other = SqliteStore(f"sqlite:///{path}")
    other.migrate()
    return other


def backup_of(path: Path, to: Path) -> None:
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


# -- gone ----------------------------------------------------------------------------------------------------------


def test_a_transaction_does_not_begin_in_a_file_that_is_gone(store: SqliteStore, connection: Any, path: Path) -> None:
    path.unlink()
    with pytest.raises(StoreUnavailable, match=rf"the file {path} is gone.*Put it back"):
        begin(store, connection)
    assert not connection.in_transaction


def test_a_transaction_right_after_another_finds_out_at_its_end(
    store: SqliteStore, connection: Any, path: Path
) -> None:
    path.unlink()
    tx = store.begin(connection)  # the last look was a moment ago
    with pytest.raises(StoreUnavailable, match="is gone"):
        store.commit(tx)


def test_what_was_written_into_a_deleted_file_does_not_count(store: SqliteStore, connection: Any, path: Path) -> None:
    tx = begin(store, connection)
    store.trigger(tx, [NewRun("lost", "job", "1")])
    path.unlink()
    with pytest.raises(StoreUnavailable, match="is gone"):
        store.commit(tx)


@pytest.mark.parametrize("read_only", [False, True])
def test_no_empty_database_takes_the_place_of_a_deleted_one(
    store: SqliteStore, connection: Any, path: Path, read_only: bool
) -> None:
    remove_all(path)
    with pytest.raises(StoreUnavailable, match="is gone"):
        store.connect(read_only=read_only)
    with pytest.raises(StoreUnavailable, match="is gone"):
        store.migrate()
    assert files(path) == []


def test_looking_makes_no_database_either(path: Path) -> None:
    store = SqliteStore(f"sqlite:///{path}")
    for read_only in (False, True):
        with pytest.raises(SchemaError, match=r"no Holdfast tables yet: there is no file .*app\.db\. Use the app"):
            store.connect(read_only=read_only)
    assert files(path) == []


def test_a_reader_notices_that_the_file_is_gone(store: SqliteStore, connection: Any, path: Path) -> None:
    reader = store.open(read_only=True)
    store.confirm(reader)
    path.unlink()
    with pytest.raises(StoreUnavailable, match="is gone"):
        store.confirm(reader)
    store.disconnect(reader)


def test_the_directory_may_go_with_it(store: SqliteStore, connection: Any, path: Path) -> None:
    shutil.rmtree(path.parent)
    with pytest.raises(StoreUnavailable, match="is gone"):
        begin(store, connection)
    with pytest.raises(StoreUnavailable, match=r"the directory .* does not exist"):
        store.open()


def test_a_file_that_was_moved_away_and_back_goes_on_as_if_nothing_had_been(
    store: SqliteStore, connection: Any, path: Path
) -> None:
    elsewhere = path.with_name("elsewhere.db")
    path.rename(elsewhere)
    with pytest.raises(StoreUnavailable, match="is gone"):
        write(store, connection, "while away")
    elsewhere.rename(path)
    write(store, connection, "back")
    assert names(store) == ["back", "before"]


def test_after_a_close_the_store_may_begin_anew(store: SqliteStore, path: Path) -> None:
    store.close()
    remove_all(path)
    store.migrate()
    assert names(store) == []


# -- replaced ------------------------------------------------------------------------------------------------------


def test_another_database_in_its_place_is_refused_and_not_touched(
    store: SqliteStore, connection: Any, path: Path
) -> None:
    store.disconnect(connection)
    remove_all(path)
    another(path)
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match=r"is another database than the one .*\(its id is [0-9a-f]{32}, not"):
        store.open()
    with pytest.raises(StoreUnavailable, match="is another database"):
        store.migrate()
    assert path.read_bytes() == before


def test_a_database_of_somebody_else_is_refused_and_stays_as_it_is(
    store: SqliteStore, connection: Any, path: Path
) -> None:
    store.disconnect(connection)
    remove_all(path)
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute("create table letters (text)")
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(StoreUnavailable, match="is another database"):
            store.connect(read_only=read_only)
    assert path.read_bytes() == before, "not even switched to the WAL"


def test_a_replaced_file_is_noticed_by_an_open_connection(store: SqliteStore, connection: Any, path: Path) -> None:
    other = path.with_name("other.db")
    another(other)
    tx = begin(store, connection)
    store.trigger(tx, [NewRun("lost", "job", "1")])
    os.replace(other, path)
    with pytest.raises(StoreUnavailable, match="was replaced under this app"):
        store.commit(tx)
    with pytest.raises(StoreUnavailable, match="was replaced under this app"):
        begin(store, connection)


def test_a_file_beside_the_log_of_another_is_not_opened(store: SqliteStore, connection: Any, path: Path) -> None:
    backup = path.with_name("backup.db")
    backup_of(path, backup)
    write(store, connection, "after the backup")
    os.replace(backup, path)
    with pytest.raises(StoreUnavailable, match="was replaced"):
        begin(store, connection)
    store.disconnect(connection)
    before = path.read_bytes(), wal(path).read_bytes()
    with pytest.raises(StoreUnavailable, match="still belongs to the one that was there"):
        store.open()
    assert (path.read_bytes(), wal(path).read_bytes()) == before
    for left in (wal(path), Path(f"{path}-shm")):
        left.unlink()
    assert names(store) == ["before"], "the backup is good as it is"


def test_a_backup_of_the_same_database_is_taken_after_a_look_through_it(
    store: SqliteStore, connection: Any, path: Path
) -> None:
    backup = path.parent.with_name("backup.db")
    backup_of(path, backup)
    path.unlink()
    with pytest.raises(StoreUnavailable, match="is gone"):
        begin(store, connection)
    store.disconnect(connection)
    remove_all(path)
    shutil.copy(backup, path)
    again = store.open()
    write(store, again, "goes on")
    store.disconnect(again)
    assert names(store) == ["before", "goes on"]


def test_a_damaged_backup_is_refused(store: SqliteStore, connection: Any, path: Path) -> None:
    backup = path.parent.with_name("backup.db")
    backup_of(path, backup)
    path.unlink()
    with pytest.raises(StoreUnavailable, match="is gone"):
        begin(store, connection)
    store.disconnect(connection)
    remove_all(path)
    text = bytearray(backup.read_bytes())
    page = len(text) // 4096 - 2
    text[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(text)
    with pytest.raises(StoreUnavailable, match="is damaged"):
        store.open()


# -- cut -----------------------------------------------------------------------------------------------------------


def test_an_emptied_file_does_not_become_a_new_database(store: SqliteStore, connection: Any, path: Path) -> None:
    os.truncate(path, 0)
    with pytest.raises(StoreUnavailable, match="has become shorter"):
        begin(store, connection)
    store.disconnect(connection)
    with pytest.raises(StoreUnavailable, match=r"is empty now\. Put it back"):
        store.open()
    assert path.stat().st_size == 0


def test_a_cut_file_is_looked_through_and_refused(store: SqliteStore, connection: Any, path: Path) -> None:
    assert store.upkeep(connection, idle=True)
    write(store, connection, "in the log")
    os.truncate(path, path.stat().st_size - 3 * 4096)
    with pytest.raises(StoreUnavailable, match="has become shorter"):
        write(store, connection, "after")
    store.disconnect(connection)
    with pytest.raises(StoreUnavailable, match=r"damaged|malformed"):
        store.open()


def test_a_vacuum_makes_a_file_shorter_and_is_only_looked_through(
    store: SqliteStore, connection: Any, path: Path
) -> None:
    for n in range(50):
        tx = begin(store, connection)
        store.trigger(tx, [NewRun(f"large {n}", "job", '"' + "x" * 50_000 + '"')])
        store.commit(tx)
    store.upkeep(connection, idle=True)
    write(store, connection, "small")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("delete from holdfast_runs where id like 'large%'")
        other.execute("vacuum")
        other.execute("pragma wal_checkpoint(truncate)")
    with pytest.raises(StoreUnavailable, match=r"has become shorter\. It is checked before it is used again"):
        write(store, connection, "refused once")
    store.disconnect(connection)
    again = store.open()
    write(store, again, "goes on")
    store.disconnect(again)
    assert names(store) == ["before", "goes on", "small"]


# -- the log -------------------------------------------------------------------------------------------------------


def test_a_deleted_log_is_noticed_and_what_was_in_it_saved(store: SqliteStore, connection: Any, path: Path) -> None:
    wal(path).unlink()
    with pytest.raises(StoreUnavailable, match=r"app\.db-wal was deleted under this app.*never remove it"):
        write(store, connection, "refused")
    store.disconnect(connection)
    again = store.open()
    write(store, again, "goes on")
    store.disconnect(again)
    assert names(store) == ["before", "goes on"]
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("pragma integrity_check").fetchone() == ("ok",)


def test_a_log_deleted_within_a_round_is_noticed_before_it_counts(
    store: SqliteStore, connection: Any, path: Path
) -> None:
    tx = begin(store, connection)
    store.trigger(tx, [NewRun("within", "job", "1")])
    wal(path).unlink()
    with pytest.raises(StoreUnavailable, match="was deleted"):
        store.commit(tx)
    store.disconnect(connection)
    assert "before" in names(store)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("pragma integrity_check").fetchone() == ("ok",)


def test_a_reader_notices_that_the_log_is_gone(store: SqliteStore, connection: Any, path: Path) -> None:
    reader = store.open(read_only=True)
    store.confirm(reader)
    wal(path).unlink()
    with pytest.raises(StoreUnavailable, match="was deleted"):
        store.confirm(reader)
    store.disconnect(reader)


# -- newer tables --------------------------------------------------------------------------------------------------


def test_tables_that_became_newer_stop_an_open_connection(store: SqliteStore, connection: Any, path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("insert into holdfast_migrations values (9999, '9999_future', 0)")
        other.commit()
    with pytest.raises(SchemaError, match=r"have version 9999.*upgrade the package"):
        write(store, connection, "refused")
    assert not connection.in_transaction
