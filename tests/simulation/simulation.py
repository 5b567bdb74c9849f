"""The deterministic simulation: the real engine of several processes, in one thread, by a seed and in virtual time.

    story = simulate(4711)            # on the model store
    story = simulate(4711, store="sqlite")
    assert not story.broken, story.text()

The same seed tells the same story, in every process, and on both stores. See docs/explanation/reliability.md for what
is promised, `sim_faults` for what goes wrong, `sim_audit` for what is looked for, and `simulate.py` for the command.

Long because one loop turns everything: processes, their threads, their timers and the faults between them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from sim_audit import Audit, Record
from sim_clients import Client, Wish
from sim_faults import Faults
from sim_loop import SECOND, Lane, Scheduler
from sim_process import Process, SimClock, SimCommitter, SimReader, held_back
from sim_store import WriteLock, database
from sim_work import Author, Program, _Place

from holdfast.commit import round as round_module
from holdfast.engine import engine as engine_module
from holdfast.model.retry import Retry
from holdfast.model.run import RunRow

StoreKind: TypeAlias = Literal["model", "sqlite"]

#: Of a story that is broken so many lines are printed.
_PRINTED = 400


@dataclass
class Story:
    """What happened under a seed."""

    seed: int
    store: str
    broken: list[str] = field(default_factory=list)
    """Violated promises; empty: all is well."""
    trace: list[tuple[Any, ...]] = field(default_factory=list)
    """What happened: microseconds, what, and details."""
    points: int = 0
    """Scheduling points."""
    rounds: int = 0
    crashes: int = 0
    pauses: int = 0
    ambiguous: int = 0
    """COMMITs that were done and answered with an error."""
    takeovers: int = 0
    """Leases that ran out, and whose runs went to somebody else."""
    stale: Counter[str] = field(default_factory=Counter)
    """By verb: writes that were attempted under a lease that was lost. Accepted ones are in `broken`."""
    runs: int = 0
    seconds: float = 0.0
    """Virtual ones."""
    faults: Counter[str] = field(default_factory=Counter)
    kinds: frozenset[str] = frozenset()
    """The kinds of faults that this seed has."""
    command: str = ""
    """What repeats it, after the name of the program."""
    rows: Any = None
    """All runs, steps, tries and log lines, at the end."""

    def digest(self) -> str:
        """The same for the same story, in any process."""
        return hashlib.blake2b(repr((self.trace, self.rows)).encode(), digest_size=8).hexdigest()

    def text(self) -> str:
        """The seed, what is broken, and how it came to that."""
        lines = [f"seed {self.seed} on {self.store}: {len(self.broken)} broken", *self.broken[:10]]
        command = self.command or f"--seed {self.seed} --store {self.store}"
        lines.append(f"repeat with: python tests/simulation/simulate.py {command} --trace")
        return "\n".join(lines)

    def lines(self) -> Iterator[str]:
        """The trace, in words: runs and owners have short names."""
        names: dict[str, str] = {}

        def short(value: Any) -> str:
            if isinstance(value, str) and len(value) == 26:
                return names.setdefault(value, f"r{len(names) + 1}")
            return str(value)

        for at, what, *more in self.trace[-_PRINTED:]:
            yield f"{at / 1e6:10.6f}  {what:<8} {' '.join(map(short, more))}"


class Settings(NamedTuple):
    """How the processes of a story are set up. Times in microseconds."""

    processes: int
    lease: int
    polling: int
    lock_timeout: int
    concurrency: int
    max_crashes: int
    heal_at: int
    keeper: bool
    """Leases are renewed by a thread, as outside of browsers; otherwise with the worker's look for work."""


class World:
    """One story while it is told."""

    def __init__(self, seed: int, store: StoreKind, without: frozenset[str], processes: int | None) -> None:
        rng = random.Random(seed)
        self.story = Story(seed, store)
        self.scheduler = Scheduler(random.Random(seed * 3 + 2))
        self.ids = random.Random(seed * 3 + 3)
        lease = rng.choice((6, 12, 12, 30)) * SECOND
        self.options = Settings(
            processes=rng.choice((2, 2, 2, 3)) if processes is None else processes,
            lease=lease,
            polling=lease // rng.choice((2, 3, 3)),
            lock_timeout=lease // 3,
            concurrency=rng.choice((1, 2, 4)),
            max_crashes=rng.choice((3, 3, 5)),
            heal_at=int(lease * rng.uniform(1, 2.4)),
            keeper=rng.random() < 0.25,
        )
        self.faults = Faults(seed, lease, without)
        self.story.kinds = self.faults.kinds
        self.jumped = 0
        # A process may have a wrong clock: the database has its own.
        skewed = rng.random() < 0.3
        self.skews = [rng.randint(-15, 15) * SECOND if skewed else 0 for _ in range(self.options.processes)]
        self.control = Lane(None)
        self.scheduler.lanes.append(self.control)
        self.lock = WriteLock(self.scheduler)
        self.database = database(store, SimClock(self))
        self.audit = Audit(self)
        self.record = Record(self)
        self.owners: dict[str, Process] = {}
        self.acknowledged: dict[str, Wish] = {}
        self.cancelled: set[str] = set()
        self.forgotten: set[str] = set()
        self.may_be_forgotten: set[str] = set()
        self.by_key: dict[tuple[str, str], str] = {}
        self.seen: list[tuple[str, str, Any]] = []
        self.dead: list[Process] = []
        self.numbers = [0] * self.options.processes
        self.places: list[Process | None] = [None] * self.options.processes
        author = Author(rng, poison=rng.random() < 0.12 and "crash" not in without)
        self.programs: list[Program] = author.programs
        self.parents = author.parents
        self.killers: set[str] = set()
        """Runs whose steps kill their processes, and those that were there then."""
        self.unknown = 0
        """COMMITs that gave no answer twice."""
        wishes = self._wishes(rng, author)
        if rng.random() < 0.05:
            self.database.insert_bad_row("0000000000BADBADBADBADBADB")
            self.audit.tables = self.database.look()
            self.audit.ends["0000000000BADBADBADBADBADB"] = 0
        for place in range(self.options.processes):
            self._start(place)
        self.clients = [Client(self, wish) for wish in wishes]
        self.undone = len(wishes)
        """Clients whose wish has not been fulfilled."""
        self.scheduler.on_fault = self._strike
        self.scheduler.on_exception = self._unhandled
        self.scheduler.next_fault = self.faults.points_to_next()

    def _wishes(self, rng: random.Random, author: Author) -> list[Wish]:
        wishes: list[Wish] = []
        keyed = rng.random() < 0.5
        heal_at = self.options.heal_at
        for number in range(rng.choice((1, 2, 2, 3, 3)) + keyed):
            program = author.write()
            then: list[tuple[str, int]] = []
            if rng.random() < 0.2:
                then.append(("cancel", int(rng.uniform(0, 0.5) * heal_at)))
            if rng.random() < 0.4:
                then.append(("wait", int(rng.uniform(0, 1) * SECOND)))
                if rng.random() < 0.3:
                    then.append(("retrigger", SECOND // 10))
                    then.append(("wait", SECOND // 10))
                if rng.random() < 0.2:
                    then.append(("delete", SECOND // 10))
            wish = Wish(
                at=int(rng.uniform(0, 0.4 if rng.random() < 0.6 else 1.0) * heal_at),
                place=rng.randrange(self.options.processes),
                job=rng.choice(("work", "work", "other")),
                program=program,
                idempotency_key=f"i{number}" if rng.random() < 0.4 else None,
                concurrency_key=rng.choice(("k", "k", "l")) if keyed and rng.random() < 0.8 else None,
                coalesce=None,
                delay=rng.uniform(0, 5) if rng.random() < 0.15 else 0,
                retry=Retry(rng.choice((1, 2)), delay=rng.choice((0, 1, 4))) if rng.random() < 0.4 else None,
                priority=rng.choice((0, 0, 0, 1)),
                timeout=rng.uniform(1, 15) if rng.random() < 0.1 else None,
                deadline=rng.uniform(1, 60) if rng.random() < 0.1 else None,
                then=tuple(then),
            )
            if wish.concurrency_key is not None and rng.random() < 0.3:
                wish = wish._replace(coalesce=rng.choice(("skip", "active")))
            wishes.append(wish)
            if wish.idempotency_key is not None and rng.random() < 0.6:
                # The same from elsewhere, at the same time or later.
                at = wish.at + (0 if rng.random() < 0.5 else int(rng.uniform(0, 0.3) * heal_at))
                wishes.append(wish._replace(at=at, place=wish.place + 1, then=()))
        return wishes

    # -- processes ---------------------------------------------------------------------------------------------

    def _start(self, place: int) -> None:
        self.numbers[place] += 1
        process = self.places[place] = Process(self, place, self.numbers[place])
        self.tell("starts", process.name, process.owner)

    def some_process(self, place: int) -> Process | None:
        """The process of this place, or the next one that is there."""
        count = len(self.places)
        for turn in range(count):
            process = self.places[(place + turn) % count]
            if process is not None and process.starting.done():
                return process
        return None

    def app_of(self, execution: Any) -> Any:
        return self.owners[execution.lease.owner].app

    def committed(self, process: Process) -> None:
        """Others will see that somebody has committed."""
        for other in self.places:
            if other is not None and other is not process:
                other.somebody_committed()

    def crash(self, process: Process) -> None:
        if process.is_dead:
            return
        self.story.crashes += 1
        self.tell("crash", process.name)
        process.crash()
        self.dead.append(process)
        self.places[process.place] = None
        self.later(self.faults.seconds(0.05, 1.2 * self.options.lease / SECOND), self._start, process.place)

    def crash_by_itself(self, execution: Any) -> None:
        """The body of a step kills its process."""
        process = self.owners[execution.lease.owner]
        self.killers.update(row.id for row in self.audit.tables.runs.values() if row.lease_owner == process.owner)
        self.crash(process)

    # -- faults ------------------------------------------------------------------------------------------------

    def _strike(self) -> None:
        faults, scheduler = self.faults, self.scheduler
        if faults.healed:
            scheduler.next_fault = 1 << 60
            return
        scheduler.next_fault = scheduler.points + faults.points_to_next()
        kind = faults.next_at_point()
        lease = self.options.lease / SECOND
        process = self.places[faults.pick(len(self.places))]
        micros = faults.seconds(0.05, 1.8 * lease if kind != "locked" else 1.2 * lease)
        sign = faults.pick(2) * 2 - 1
        if kind is None:
            return
        if kind == "locked":
            if self.lock.holder is None:
                self.lock.holder = stranger = object()
                self.tell("locked", micros)

                self.later(micros, self.lock.free, stranger)
        elif kind == "jump":
            self.jumped += sign * micros
            self.tell("jump", sign * micros)
        elif process is None:
            return
        elif kind == "crash":
            self.crash(process)
        elif kind == "restart":
            self._restart(process, micros)
        elif not process.paused:
            self.story.pauses += 1
            self.tell(kind, process.name, micros)
            process.pause(micros, only_the_loop=kind == "hang")
        faults.counts[kind] += 1

    def _restart(self, process: Process, micros: int) -> None:
        """A graceful stop, as at a deployment, and a new process a little later."""
        if process.is_stopping or not process.starting.done():
            return
        process.is_stopping = True
        self.tell("stops", process.name)

        async def stop() -> None:
            await process.app.stop(timeout=micros / 10 / SECOND)

        def stopped(_: Any) -> None:
            if not process.is_dead:
                self.tell("stopped", process.name)
                process.crash()
                self.dead.append(process)
                self.places[process.place] = None
                self.later(SECOND // 10, self._start, process.place)

        process.loop.create_task(stop()).add_done_callback(lambda task: self.later(0, stopped, task))

    def _heal(self) -> None:
        self.faults.healed = True
        self.tell("healed")

    def _unhandled(self, context: dict[str, Any]) -> None:
        self.broken(f"unhandled in a loop: {context.get('message')} {context.get('exception')!r}")

    # -- the story ---------------------------------------------------------------------------------------------

    def later(self, micros: int, call: Callable[..., object], *args: Any) -> None:
        self.scheduler.after(micros, self.control, call, *args)

    def tell(self, *what: Any) -> None:
        self.story.trace.append((self.scheduler.now, *what))

    def told(self, process: Process, *what: Any) -> None:
        self.story.trace.append((self.scheduler.now, what[0], process.name, *what[1:]))

    def broken(self, what: str) -> None:
        self.tell("BROKEN", what)
        self.story.broken.append(what)

    def program_of(self, row: RunRow) -> Program | None:
        """What the run performs; None if its input can't be read."""
        text = row.input
        return self.programs[int(text[5:-1])] if text.startswith('{"n":') else None

    def is_over(self) -> bool:
        """Whether all has been done, and nobody is left who still could do anything."""
        if self.undone:
            return False
        for row in self.audit.tables.runs.values():
            if row.completed_at is None:
                return False
        return all(process is None or process.is_quiet for process in self.places)

    def play(self) -> Story:
        """From the beginning to the end."""
        options, scheduler, story = self.options, self.scheduler, self.story
        self.later(options.heal_at, self._heal)
        # After the last fault: all that was wrong may take so long, and no longer.
        limit = options.heal_at + 40 * options.lease + 200 * SECOND
        over = scheduler.run(self.is_over, limit)
        self.faults.healed = True
        if not over:
            waiting = [client.wish for client in self.clients if not client.is_done]
            self.broken(f"I2: not at its end after {scheduler.now / 1e6:g} s; clients that wait: {waiting}")
        self.audit.conclude()
        self._final_answers()
        story.points, story.seconds, story.runs = scheduler.points, scheduler.now / 1e6, len(self.audit.tables.runs)
        story.faults = self.faults.counts
        tables = self.audit.tables
        story.rows = (
            sorted(row[:33] for row in tables.runs.values()), sorted(tables.steps.values()),
            sorted(row[:10] for row in tables.attempts.values()), [tables.logs[key] for key in sorted(tables.logs)],
        )  # fmt: skip
        return story

    def _final_answers(self) -> None:
        runs = self.audit.tables.runs
        for run_id, wish in self.acknowledged.items():
            if run_id not in runs and run_id not in self.may_be_forgotten:
                self.broken(f"I1: lost: {run_id} {wish}")
        for run_id in self.forgotten:
            if run_id in runs:
                self.broken(f"deleted, and there: {run_id}")
        for run_id in self.cancelled:
            if run_id in runs and runs[run_id].status != "cancelled":
                self.broken(f"I12: cancelled, and now {runs[run_id].status}: {run_id}")
        for run_id, status, output in self.seen:
            row = runs.get(run_id)
            shown = None if output is None else str(output).replace(" ", "")
            if row is not None and (row.status, row.output) != (status, shown):
                self.broken(f"I8: who waited saw {status} {output}, and it is {row}")

    def close(self) -> None:
        """Nothing of it is left behind."""
        for process in self.places:
            if process is not None:
                process.crash()
                self.dead.append(process)
        self.faults.healed = True
        for process in self.dead:
            process.loop.forget()


@contextlib.contextmanager
def _on_stage() -> Iterator[None]:
    """The commit line and the reader of every app that is made now are the scheduler's."""
    log = logging.getLogger("holdfast")
    before = engine_module.Committer, engine_module.Reader, round_module.answer, log.disabled
    engine_module.Committer, engine_module.Reader = SimCommitter, SimReader  # type: ignore[misc]
    round_module.answer = held_back  # type: ignore[attr-defined]
    log.disabled = True
    try:
        yield
    finally:
        engine_module.Committer, engine_module.Reader = before[:2]  # type: ignore[misc]
        round_module.answer = before[2]  # type: ignore[attr-defined]
        log.disabled = before[3]


def simulate(
    seed: int,
    *,
    store: StoreKind = "model",
    without: frozenset[str] = frozenset(),
    processes: int | None = None,
) -> Story:
    """Tell the story of this seed. `without` leaves out kinds of faults, `processes` has another number of them."""
    with _on_stage():
        world = World(seed, store, without, processes)
        _Place.world = world
        try:
            return world.play()
        finally:
            world.close()
