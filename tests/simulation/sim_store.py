"""The two databases that a story can be told on, and what goes between them and the simulated processes.

* `ModelDatabase`: dictionaries, over the verbs of `OneByOne`. Fast: explores the engine.
* `SqliteDatabase`: a real file with the real SQL, in WAL mode and without syncing. Each process has connections of its
  own, so that readers see what is committed and nothing else, and BEGIN IMMEDIATE is really refused.

`SimStore` is what one incarnation of a process holds. It asks the faults at each point, refuses everything once its
process is dead, lets one transaction begin after the other, and tells the audit of every verb and every COMMIT.

Long because it is one boundary: what a process sees of a database, what can go wrong there, and who is told of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim_loop import Crashed, Lane, Scheduler

from holdfast.basis.errors import StoreUnavailable
from holdfast.model.run import NewRun, RunRow
from holdfast.model.step import AttemptRow, LogRow, StepRow
from holdfast.store.base import Claimed, ClaimOrder, Ended, Ending, Store, Triggered, Tx
from holdfast.store.one_by_one import OneByOne, Tables
from holdfast.store.sqlite import SqliteStore
from holdfast.store.sqlite_place import FileConnection

if TYPE_CHECKING:
    from sim_process import Process

    from simulation import World

WRITES = (
    "renew_leases", "delete", "drop_outputs", "save_progress", "save_logs", "save_attempts", "save_steps", "finish",
    "recall", "cancel", "trigger", "trigger_many", "expire", "pass_deadlines", "claim",
    "check_in", "check_out", "forget_workers",
)  # fmt: skip
READS = (
    "find_runs", "find_standing", "find_steps", "find_attempts", "failed_tries", "find_logs", "has_claimable",
    "lost_leases", "ended", "find_old", "follow", "step_marks", "marked_steps", "logs_after", "find_workers",
)  # fmt: skip


class _Seat:
    """A connection to the model."""

    __slots__ = ("writing",)

    def __init__(self) -> None:
        self.writing: ModelTables | None = None


@dataclass(slots=True)
class ModelTables(Tables):
    """Also which runs were seen to be due: they stay so if the wall clock is set back."""

    due: dict[str, bool] = field(default_factory=dict)

    def copy(self) -> ModelTables:
        return ModelTables(
            dict(self.runs), dict(self.steps), dict(self.attempts), dict(self.logs), dict(self.progress),
            dict(self.holders), dict(self.dropped), dict(self.workers),
            dict(self.waits), dict(self.signals), dict(self.due),
        )  # fmt: skip


class ModelDatabase(OneByOne):
    """Rows in dictionaries. A transaction works on a copy; committing it makes the copy the tables."""

    name = "model"

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.committed = ModelTables()
        self.commits = 0

    def now(self) -> int:
        return int(self.clock.now())

    def tables(self, connection: _Seat) -> ModelTables:
        return connection.writing or self.committed

    def connect(self, *, read_only: bool = False) -> _Seat:
        return _Seat()

    def disconnect(self, connection: _Seat) -> None:
        connection.writing = None

    def begin(self, connection: _Seat) -> Tx:
        connection.writing = self.committed.copy()
        return Tx(connection, self.now())

    def commit(self, tx: Tx) -> None:
        assert tx.connection.writing is not None
        self.committed, tx.connection.writing = tx.connection.writing, None
        self.commits += 1

    def rollback(self, tx: Tx) -> None:
        tx.connection.writing = None

    def close(self) -> None:
        self.committed = ModelTables()

    def migrate(self) -> list[str]:
        return []

    def check_schema(self, connection: Any) -> None:
        return

    def database_id(self, connection: Any) -> str:
        return "model"

    def change_mark(self, connection: Any) -> int:
        return self.commits

    def look(self) -> Tables:
        """All that is committed."""
        return self.committed

    # -- what the tables of SQLite do with time ----------------------------------------------------------------

    def _trigger(self, tx: Tx, new: NewRun) -> Triggered:
        made = super()._trigger(tx, new)
        if made.run.id == new.id:
            self.tables(tx.connection).due.setdefault(new.id, made.run.run_at <= tx.now)
        return made

    def _finish(self, tx: Tx, ending: Ending) -> Ended:
        if ending.delay > 0 and self._held(tx, ending.lease) is not None:
            self.tables(tx.connection).due[ending.lease.run_id] = False
        return super()._finish(tx, ending)

    def _claim(self, tx: Tx, order: ClaimOrder) -> Claimed:
        if tx.replay and order.known is not None:
            self._recall(tx, order.owner, order.known)
        tables = self.tables(tx.connection)
        due = tables.due
        later = []
        for run in tables.runs.values():
            if run.status == "pending" and not due[run.id]:
                if run.run_at <= tx.now:
                    due[run.id] = True
                else:
                    later.append(run.run_at)
        return super()._claim(tx, order._replace(known=None))._replace(next_due_at=min(later, default=None))

    def _claimable(self, tables: Tables, order: ClaimOrder, now: int) -> Iterator[RunRow]:
        assert isinstance(tables, ModelTables)
        due, holders = tables.due, tables.holders
        found = [
            run
            for run in tables.runs.values()
            if run.status == "pending"
            and due[run.id]
            and run.job_name in order.jobs
            and (run.concurrency_key is None or holders.get(run.concurrency_key, run.id) == run.id)
        ]
        return iter(sorted(found, key=lambda run: (-run.priority, run.run_at, run.id)))

    def has_claimable(self, connection: Any, order: ClaimOrder) -> bool:
        tables, now = self.tables(connection), self.now()
        if any(
            run.status == "pending" and not tables.due[run.id] and run.run_at <= now for run in tables.runs.values()
        ):
            return True
        return next(self._claimable(tables, order, now), None) is not None

    def insert_bad_row(self, run_id: str) -> None:
        """A run whose input nobody can read, as if somebody had written it by hand."""
        now = self.now()
        self.committed.due[run_id] = True
        self.committed.runs[run_id] = RunRow(
            run_id, "work", "pending", "default", 0, now, 0, 0, 0, None, None, now, now, None, None, None, None, None,
            None, None, None, 0, None, 0, None, 0, None, None, "", "{}", None, None, "no JSON", None, None, None,
        )  # fmt: skip


_COLUMNS = ", ".join(RunRow._fields[:-3])


class SqliteDatabase(SqliteStore):
    """One file for all stories of this process; a story begins with empty tables."""

    #: So that nothing asks where the file is: it stays where it was made.
    in_memory = True

    def __init__(self, clock: Any) -> None:
        super().__init__("sqlite:///:memory:", clock=clock)
        self._directory = tempfile.mkdtemp(prefix="holdfast-simulation-", dir=_quick_place())
        weakref.finalize(self, shutil.rmtree, self._directory, True)
        self._file = os.path.join(self._directory, "simulation.db")
        self._free: list[FileConnection] = []
        self._looking = self._make()
        self._looking.execute("begin immediate")
        self._apply(Tx(self._looking, 0))
        self._looking.execute("commit")
        self._seen = Tables()
        self._seen_mark: Any = None
        _ = [self._looking.execute(f"select * from holdfast_{table}") for table in _TABLES]

    def _make(self) -> FileConnection:
        connection = sqlite3.connect(
            self._file, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256,
            factory=FileConnection,
        )  # fmt: skip
        for pragma in ("synchronous = off", "journal_mode = wal", "wal_autocheckpoint = 0", "temp_store = memory"):
            connection.execute(f"pragma {pragma}")
        return connection

    def connect(self, *, read_only: bool = False) -> FileConnection:
        return self._free.pop() if self._free else self._make()

    def disconnect(self, connection: sqlite3.Connection) -> None:
        assert isinstance(connection, FileConnection)
        if connection.in_transaction:
            connection.execute("rollback")
        self._free.append(connection)

    def forget_all(self, clock: Any) -> None:
        """Empty tables, for the next story."""
        self.clock = clock
        execute = self._looking.execute
        execute("begin immediate")
        for table in _TABLES:
            execute(f"delete from holdfast_{table}")
        execute("commit")
        execute("pragma wal_checkpoint(truncate)")
        self._seen, self._seen_mark = Tables(), None

    def look(self) -> Tables:
        """All that is committed. Rows that have not changed are the same objects as before."""
        execute, seen = self._looking.execute, self._seen
        mark = execute("pragma data_version").fetchone()[0]
        if mark == self._seen_mark:
            return seen
        self._seen_mark = mark
        now = Tables()
        for row in execute(f"select {_COLUMNS} from holdfast_runs order by id"):
            now.runs[row[0]] = _same(seen.runs.get(row[0]), RunRow(*row))
        for row in execute(
            "select run_id, name, occurrence, position, status, attempt, generation, fingerprint, output, error, "
            "started_at, completed_at from holdfast_steps"
        ):
            now.steps[row[:3]] = _same(seen.steps.get(row[:3]), StepRow(*row))
        for row in execute(
            "select run_id, name, occurrence, run_attempt, number, position, generation, started_at, ended_at, error "
            "from holdfast_step_attempts"
        ):
            now.attempts[row[:5]] = _same(seen.attempts.get(row[:5]), AttemptRow(*row))
        for row in execute(
            "select id, run_id, generation, step_name, level, message, data, created_at from holdfast_logs"
        ):
            now.logs[row[0]] = _same(seen.logs.get(row[0]), LogRow(*row))
        now.progress.update(execute("select run_id, progress from holdfast_progress").fetchall())
        self._seen = now
        return now

    def insert_bad_row(self, run_id: str) -> None:
        """A run whose input nobody can read, as if somebody had written it by hand."""
        now = self.clock.now()
        self._looking.execute(
            "insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, input) "
            "values (?, 'work', 'pending', ?, 1, ?, ?, 'no JSON')",
            (run_id, now, now, now),
        )
        self._seen_mark = None


_TABLES = ("runs", "labels", "progress", "steps", "step_attempts", "logs", "waits", "signals", "keys", "workers")


def _same(before: Any, now: Any) -> Any:
    return before if before == now else now


def _quick_place() -> str | None:
    # In memory where there is such a place: nothing here is about the disk.
    return "/dev/shm" if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK) else None


_sqlite: list[SqliteDatabase] = []


def database(kind: str, clock: Any) -> ModelDatabase | SqliteDatabase:
    """An empty database of this kind. There is one of SQLite per process: opening files is dear."""
    if kind == "model":
        return ModelDatabase(clock)
    if not _sqlite:
        _sqlite.append(SqliteDatabase(clock))
    _sqlite[0].forget_all(clock)
    return _sqlite[0]


class WriteLock:
    """The right to write. Who waits is woken a little after it is free, all at once, and the first one has it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.holder: object | None = None
        self._scheduler = scheduler
        self._waiting: list[tuple[Lane, Callable[[], None]]] = []

    def free(self, holder: object) -> None:
        """Give it back, if it is this one's."""
        if self.holder is holder:
            self.holder = None
            waiting, self._waiting = self._waiting, []
            for lane, wake in waiting:
                self._scheduler.after(int(self._scheduler.rng.random() * 20_000), lane, wake)

    def wait(self, micros: int, lane: Lane) -> None:
        """Until it is free, or for so long."""
        self._scheduler.stall(micros, lane, lambda wake: self._waiting.append((lane, wake)))


class SimStore(Store):
    """The database as one incarnation of one process sees it."""

    needs_upkeep = False

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.inner: Any = world.database
        self.name = "simulated"  # on both stores: errors are kept with runs
        self._connections: list[Any] = []
        self._open: dict[int, tuple[int, list[tuple[str, Any, Any]]]] = {}
        """By connection: when its transaction began, and what was said in it."""

    # -- connections -------------------------------------------------------------------------------------------

    def connect(self, *, read_only: bool = False) -> Any:
        self._alive()
        connection = self.inner.connect(read_only=read_only)
        self._connections.append(connection)
        return connection

    def open(self, *, read_only: bool = False) -> Any:
        return self.connect(read_only=read_only)

    def disconnect(self, connection: Any) -> None:
        if any(connection is known for known in self._connections):
            self._connections = [known for known in self._connections if known is not connection]
            self.inner.disconnect(connection)
            self.world.lock.free(connection)

    def crash(self) -> None:
        """The process is no more: what it has not committed never was."""
        for connection in self._connections:
            self.inner.disconnect(connection)
            self.world.lock.free(connection)
        self._connections = []

    def _alive(self) -> None:
        if self.process.is_dead:
            raise Crashed

    # -- transactions ------------------------------------------------------------------------------------------

    def begin(self, connection: Any) -> Tx:
        self._alive()
        world, faults = self.world, self.world.faults
        if faults.strikes("refused"):
            world.told(self.process, "refused")
            raise StoreUnavailable(f"{self.name}: the database is locked by another process (simulated).")
        asked = world.scheduler.now
        self._wait_for_the_lock(asked)
        tx: Tx = self.inner.begin(connection)
        tx.waited = (world.scheduler.now - asked) / 1e6
        self._open[id(connection)] = (world.scheduler.now, [])
        world.lock.holder = connection
        self._stall("holding", tx)
        return tx

    def _wait_for_the_lock(self, asked: int) -> None:
        world, lock = self.world, self.world.lock
        while lock.holder is not None:
            left = world.options.lock_timeout - (world.scheduler.now - asked)
            if self.process.in_a_hurry or not world.scheduler.is_aside or left <= 0:
                raise StoreUnavailable(f"{self.name}: the database is locked by another process.")
            lock.wait(left, self.process.threads)
            self._alive()

    def _stall(self, where: str, tx: Tx) -> None:
        """Let time pass here, in the middle of the transaction, if this round was chosen for that."""
        process = self.process
        if not process.stalls or tx.connection is not process.app._engine.committer._rounds.connection:
            return
        if self.world.scheduler.is_aside and (micros := process.stalls.pop(where, 0)):
            self.world.told(process, "stalls", where, micros)
            self._rest(micros)

    def _rest(self, micros: int) -> None:
        self.world.scheduler.stall(micros, self.process.threads)
        self._alive()

    def commit(self, tx: Tx) -> None:
        self._alive()
        world, process = self.world, self.process
        self._stall("before commit", tx)
        if world.faults.strikes("lost"):
            world.unknown += tx.replay
            world.told(process, "commit lost")
            raise sqlite3.OperationalError("the commit gave no answer, and did nothing (simulated)")
        self.inner.commit(tx)
        world.lock.free(tx.connection)
        began, said = self._open.pop(id(tx.connection))
        world.audit.committed(process, tx, began, said)
        world.committed(process)
        self._stall("after commit", tx)
        if world.faults.strikes("ambiguous"):
            world.unknown += tx.replay
            world.story.ambiguous += 1
            world.told(process, "commit unanswered")
            self._stall("unanswered", tx)
            raise sqlite3.OperationalError("the commit gave no answer (simulated)")

    def rollback(self, tx: Tx) -> None:
        if self.world.lock.holder is tx.connection:
            with contextlib.suppress(sqlite3.Error):
                self.inner.rollback(tx)
            self.world.lock.free(tx.connection)

    def close(self) -> None:
        return

    def translate(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.OperationalError) and "(simulated)" in str(error):
            return StoreUnavailable(f"{self.name}: {error}.")
        return self.inner.translate(error)  # type: ignore[no-any-return]

    def migrate(self) -> list[str]:
        return []

    def check_schema(self, connection: Any) -> None:
        return

    def database_id(self, connection: Any) -> str:
        return "simulated"

    def change_mark(self, connection: Any) -> int | None:
        return self.inner.change_mark(connection)  # type: ignore[no-any-return]


def _write(verb: str) -> Callable[..., Any]:
    def write(self: SimStore, tx: Tx, rows: Any) -> Any:
        self._alive()
        if self.world.faults.strikes("error"):
            self.world.told(self.process, "error in", verb)
            raise StoreUnavailable(f"{self.name}: the database can't be read or written (simulated).")
        answers = getattr(self.inner, verb)(tx, rows)
        self._open[id(tx.connection)][1].append((verb, rows, answers))
        self._stall("between", tx)
        return answers

    return write


def _read(verb: str) -> Callable[..., Any]:
    def read(self: SimStore, connection: Any, *args: Any, **more: Any) -> Any:
        if not isinstance(connection, Tx):
            self._alive()
            if self.world.faults.strikes("unreadable"):
                self.world.told(self.process, "unreadable")
                raise StoreUnavailable(f"{self.name}: the database can't be read (simulated).")
        return getattr(self.inner, verb)(connection, *args, **more)

    return read


for _verb in WRITES:
    setattr(SimStore, _verb, _write(_verb))
for _verb in READS:
    setattr(SimStore, _verb, _read(_verb))
SimStore.__abstractmethods__ = frozenset()
