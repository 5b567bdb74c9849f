"""S9: the write-ahead log stays short, nobody checkpoints beside a writer, and a reader in the way costs nothing."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from holdfast import Holdfast
from holdfast.model.run import NewRun, RunFilter
from holdfast.store.sqlite import SqliteStore
from holdfast.store.sqlite_borrowed import SqliteLender, refuse_other
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("the log of SQLite: it grows and shrinks alike on every Python", every=4)

LONG = 60.0
PAGE = 4096


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(tmp_path: Path, clock: HandClock) -> Iterator[SqliteStore]:
    store = SqliteStore(f"sqlite:///{tmp_path}/app.db", lock_timeout=0.05, clock=clock)
    store._upkeep.limit = 64 * PAGE
    store.migrate()
    yield store
    store.close()


def wal(store: SqliteStore) -> int:
    path = Path(store.path + "-wal")
    return path.stat().st_size if path.exists() else 0


def write(store: SqliteStore, connection: Any, *names: str, size: int = 40 * PAGE) -> None:
    """A round of runs with large inputs."""
    tx = store.begin(connection)
    store.trigger(tx, [NewRun(name, "job", '"' + "x" * size + '"') for name in names])
    store.commit(tx)


def tend(store: SqliteStore, connection: Any) -> bool:
    """What happens after every round."""
    return store.upkeep(connection) if store.needs_upkeep else True


def alone_in_file(path: Path, folder: Path) -> list[str]:
    """The runs that the file holds without its log."""
    copy = folder / "copy.db"
    copy.write_bytes(path.read_bytes())
    with closing(sqlite3.connect(copy)) as connection:
        return sorted(name for (name,) in connection.execute("select id from holdfast_runs"))


def test_no_connection_checkpoints_by_itself(store: SqliteStore) -> None:
    for read_only in (False, True):
        with closing(store.connect(read_only=read_only)) as connection:
            assert connection.execute("pragma wal_autocheckpoint").fetchone() == (0,)


def test_a_short_log_is_left_alone(store: SqliteStore, tmp_path: Path) -> None:
    with closing(store.connect()) as connection:
        write(store, connection, "a", size=10)
        assert tend(store, connection)
        assert alone_in_file(Path(store.path), tmp_path) == []


def test_a_long_log_is_brought_into_the_file_between_two_rounds(store: SqliteStore, tmp_path: Path) -> None:
    with closing(store.connect()) as connection:
        write(store, connection, "a", "b")
        assert tend(store, connection)
        assert not connection.in_transaction
        assert alone_in_file(Path(store.path), tmp_path) == ["a", "b"]


def test_the_log_begins_anew_and_does_not_grow_under_steady_load(store: SqliteStore) -> None:
    with closing(store.connect()) as connection:
        longest = 0
        for n in range(30):
            write(store, connection, f"run {n}")
            tend(store, connection)
            longest = max(longest, wal(store))
    assert 64 * PAGE < longest < 64 * PAGE + 200 * PAGE, "30 rounds of some 45 pages each would be 1,350 pages"


def test_a_log_that_grew_far_is_cut_by_the_next_writer(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.store.sqlite_file.LIMIT", 64 * PAGE)
    with closing(store.connect()) as connection:
        for n in range(10):
            write(store, connection, f"run {n}")
        assert wal(store) > 400 * PAGE
        tend(store, connection)
        write(store, connection, "next", size=10)
        assert wal(store) <= 64 * PAGE


def test_a_reader_in_the_way_loses_nothing_and_is_tried_again_later(
    store: SqliteStore, clock: HandClock, tmp_path: Path
) -> None:
    with closing(store.connect()) as connection, closing(store.connect(read_only=True)) as reader:
        write(store, connection, "a")
        reader.execute("begin")
        assert len(store.find_runs(reader, RunFilter())) == 1
        write(store, connection, "b")
        tend(store, connection)
        assert "b" not in alone_in_file(Path(store.path), tmp_path)
        assert len(store.find_runs(reader, RunFilter())) == 1, "the reader sees what it saw"
        reader.execute("rollback")
        tend(store, connection)
        assert "b" not in alone_in_file(Path(store.path), tmp_path), "not at every round"
        clock.advance(2)
        write(store, connection, "c", size=1)
        tend(store, connection)
        assert alone_in_file(Path(store.path), tmp_path) == ["a", "b", "c"]


def test_when_idle_a_reader_in_the_way_is_said(store: SqliteStore) -> None:
    with closing(store.connect()) as connection, closing(store.connect(read_only=True)) as reader:
        reader.execute("begin")
        store.find_runs(reader, RunFilter())
        write(store, connection, "a", size=1)
        assert store.upkeep(connection, idle=True) is False
        reader.execute("rollback")
        assert store.upkeep(connection, idle=True) is True


def test_when_idle_a_short_log_is_brought_into_the_file_too(store: SqliteStore, tmp_path: Path) -> None:
    with closing(store.connect()) as connection:
        write(store, connection, "a", size=1)
        assert store.upkeep(connection, idle=True)
        assert alone_in_file(Path(store.path), tmp_path) == ["a"]


def test_when_idle_and_nothing_was_committed_the_write_lock_is_not_taken(store: SqliteStore) -> None:
    with closing(store.connect()) as connection, closing(store.connect()) as other:
        write(store, connection, "a", size=1)
        assert store.upkeep(connection, idle=True)
        other.execute("begin immediate")
        assert store.upkeep(connection, idle=True), "would have failed on the lock"
        other.execute("rollback")
        write(store, other, "b", size=1)
        other.execute("begin immediate")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store.upkeep(connection, idle=True)
        other.execute("rollback")


def test_nobody_checkpoints_while_another_process_writes(store: SqliteStore, tmp_path: Path) -> None:
    with closing(store.connect()) as connection, closing(store.connect()) as other:
        write(store, connection, "a", "b")
        other.execute("begin immediate")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            tend(store, connection)
        assert alone_in_file(Path(store.path), tmp_path) == []
        other.execute("rollback")
        assert not connection.in_transaction


def test_while_it_checkpoints_nobody_else_writes(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one thing that the WAL-reset bug needs: a commit during a checkpoint."""
    real = store.connect
    tried: list[str] = []

    class Watched:
        def __init__(self) -> None:
            self.real = real()

        def execute(self, sql: str) -> Any:
            other = sqlite3.connect(store.path, timeout=0, isolation_level=None)
            with closing(other), pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("begin immediate")
            tried.append(sql)
            return self.real.execute(sql)

        def close(self) -> None:
            self.real.close()

    with closing(store.connect()) as connection:
        write(store, connection, "a", "b")
        monkeypatch.setattr(store, "connect", Watched)
        tend(store, connection)
    assert tried == ["pragma wal_checkpoint(passive)"]


def test_the_log_of_a_killed_process_is_read_and_brought_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    script = """
import os, signal, sys
from holdfast import Holdfast
app = Holdfast(sys.argv[1], worker=False)
@app.job
def job(text: str) -> None: ...
app.init().wait()
for n in range(20):
    job.trigger("x" * 100_000).wait()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, f"sqlite:///{path}"], timeout=LONG, check=False)
    assert Path(f"{path}-wal").stat().st_size > 1_000_000
    store = SqliteStore(f"sqlite:///{path}")
    with closing(store.open()) as connection:
        assert len(store.find_runs(connection, RunFilter())) == 20
        assert store.upkeep(connection, idle=True)
        assert len(alone_in_file(path, tmp_path)) == 20


def test_a_database_in_memory_has_no_log() -> None:
    store = SqliteStore("sqlite:///:memory:")
    store.migrate()
    assert store.upkeep(store.connect())
    assert store.upkeep(store.connect(), idle=True)
    store.close()


# -- in whole apps -------------------------------------------------------------------------------------------------


def test_a_process_that_only_triggers_keeps_the_log_short_too(tmp_path: Path) -> None:
    app = Holdfast(f"sqlite:///{tmp_path}/app.db", worker=False)

    @app.job
    def job(text: str) -> None: ...

    app.init().wait(LONG)
    assert isinstance(app._engine.store, SqliteStore)
    app._engine.store._upkeep.limit = 1 << 20
    longest = 0
    for _ in range(60):
        job.trigger("x" * 100_000).wait(LONG)
        longest = max(longest, wal(app._engine.store))
    app.stop().wait(LONG)
    assert 1 << 20 < longest < 3 << 20


@pytest.mark.parametrize("inline", [False, True])
def test_tidying_brings_everything_into_the_file(tmp_path: Path, inline: bool) -> None:
    path = tmp_path / "app.db"
    app = Holdfast(f"sqlite:///{path}", worker=False, inline=inline)

    @app.job
    def job(number: int) -> None: ...

    app.init().wait(LONG)
    assert app._engine.committer.tidy().wait(LONG), "nothing was written yet"
    run = job.trigger(1).wait(LONG)
    assert alone_in_file(path, tmp_path) == []
    assert app._engine.committer.tidy().wait(LONG)
    assert alone_in_file(path, tmp_path) == [run.id]
    app.stop().wait(LONG)
    assert app._engine.committer.tidy().wait(LONG), "after the end there is nothing to do"


def test_an_idle_worker_tidies_once_a_minute(tmp_path: Path) -> None:
    clock = HandClock()
    path = tmp_path / "app.db"
    app = Holdfast(f"sqlite:///{path}", clock=clock, polling_interval=10.0, lease=1000.0)

    @app.job
    def job(number: int) -> int:
        return number

    tidied = threading.Event()
    with app:
        real = app._engine.store.upkeep

        def watched(connection: Any, *, idle: bool = False) -> bool:
            done = real(connection, idle=idle)
            if idle:
                tidied.set()
            return done

        app._engine.store.upkeep = watched  # type: ignore[method-assign]
        job.run(1).wait(LONG)
        assert alone_in_file(path, tmp_path) == []
        for _ in range(5):
            clock.advance(10)
        assert not tidied.is_set(), "not before a minute is over"
        for _ in range(6000):
            clock.advance(10)
            if tidied.wait(0.01):  # the loop needs its time to notice
                break
        assert tidied.is_set()
        app._engine.committer.tidy().wait(LONG)
        assert len(alone_in_file(path, tmp_path)) == 1


def test_a_callers_own_connection_does_not_checkpoint_either(store: SqliteStore) -> None:
    """From the moment a run is triggered on it."""
    with closing(store.connect()) as ours, closing(sqlite3.connect(store.path, isolation_level=None)) as theirs:
        theirs.execute("begin immediate")
        assert theirs.execute("pragma wal_autocheckpoint").fetchone() == (1000,)
        refuse_other(SqliteLender(theirs).lend(), store.path, store.database_id(ours), store.name)
        assert theirs.execute("pragma wal_autocheckpoint").fetchone() == (0,)


def test_a_failing_upkeep_is_reported_and_harms_nobody(tmp_path: Path) -> None:
    app = Holdfast(f"sqlite:///{tmp_path}/app.db")
    told: list[tuple[str, str]] = []
    heard = threading.Event()

    @app.job
    def job(number: int) -> int:
        return number

    def listen(event: Any) -> None:
        told.append((event.context, event.error))
        heard.set()

    app.on("worker:error", listen)
    with app:

        def failing(connection: Any, *, idle: bool = False) -> bool:
            raise sqlite3.OperationalError("disk I/O error")

        assert isinstance(app._engine.store, SqliteStore)
        app._engine.store._upkeep.limit = 1  # every round is one too many
        app._engine.store.upkeep = failing  # type: ignore[method-assign]
        assert job.run(1).wait(LONG) == 1
        assert job.run(2).wait(LONG) == 2
        assert heard.wait(LONG)
    assert {context for context, _ in told} == {"wal-checkpoint"}
    assert "disk I/O error" in told[0][1]


# -- under stress ---------------------------------------------------------------------------------------------------

_STRESS = """
import sys
from holdfast.store.sqlite import SqliteStore
from holdfast.model.run import NewRun
url, name, rounds, seed = sys.argv[1:]
import random
dice = random.Random(seed)
store = SqliteStore(url, lock_timeout=60)
store._upkeep.limit = 32 * 4096
connection = store.open()
checkpoints = 0
real = store._upkeep.run
def counted(connection):
    global checkpoints
    checkpoints += 1
    return real(connection)
store._upkeep.run = counted
for n in range(int(rounds)):
    tx = store.begin(connection)
    store.trigger(tx, [NewRun(f"{name}-{n}", "job", '"' + "x" * dice.randrange(30_000) + '"')])
    store.commit(tx)
    if store.needs_upkeep or dice.random() < 0.1:
        store.upkeep(connection, idle=not store.needs_upkeep)
print(checkpoints)
"""


@pytest.mark.crash
def test_s9_four_writing_processes_that_checkpoint_all_the_time_leave_a_sound_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/app.db"
    SqliteStore(url).migrate()
    rounds = 150
    seed = random.Random(7)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _STRESS, url, f"w{n}", str(rounds), str(seed.random())],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    checkpoints = [int(writer.communicate(timeout=LONG)[0]) for writer in writers]
    assert all(count > 10 for count in checkpoints), checkpoints
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        assert connection.execute("select count(*) from holdfast_runs").fetchone() == (4 * rounds,)
    print(f"checkpoints of each process: {checkpoints}")
