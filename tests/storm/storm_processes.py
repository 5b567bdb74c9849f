"""What the processes of the storm do: workers, clients, and the reader at the end. All are forked from the field.

Signals: SIGHUP ends the faults (a client then does its last operations and ends), SIGUSR1 asks for what the process
holds, SIGTERM stops a worker in order, SIGUSR2 writes what all threads are doing to its `stderr`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import random
import signal
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import storm_places
from crash_world import read
from storm_forest import HEARERS, TREE_JOBS, define_trees, plain
from storm_jobs import Bodies, define
from storm_tree_checker import is_body
from storm_trees import KINDS, node_of, root_place, tree_of
from storm_wire import Fault, Storming, StormWire, watch_stale_writes
from storm_world import Line

from holdfast import Call, Holdfast, Run
from holdfast.basis.errors import (
    ConflictError,
    HoldfastError,
    NotFoundError,
    RunCancelled,
    RunFailed,
    StoreUnavailable,
)

LEASE = 1.2
CONCURRENCY = 16
POLLING = 0.2
#: Operations that a client does beside each other, and runs that it lets come before it waits for some.
LOOPS = 4
MOST_OPEN = 48
#: Before which of its operations a client triggers a run that kills its workers.
POISON = 20
#: Seconds until somebody asks again to whom the database was away.
_LATER = 0.05
#: For as many seconds a run that waits stays in memory.
WARM = 0.1
#: Seconds between two looks for runs that may want a signal, and how likely each gets its signal at a look.
_POST, _SENT = 0.15, 0.15
#: Of what a client does: trees of runs, and cancels of them while they go on.
TREES, TREE_CANCELS = 0.06, 0.02
_ACTIVE = ("pending", "leased", "waiting")
#: Each client raises the same idempotency keys in the same order.
RACED = "raced"


def _app(folder: Path, *, works: bool) -> Holdfast:
    return Holdfast(
        storm_places.of(folder).url,
        worker=works,
        lease=LEASE,
        concurrency=CONCURRENCY,
        polling_interval=POLLING,
        cancel_grace=1.0,
        preserve_steps=True,
        warm_for=WARM,
    )


def _define(app: Holdfast, bodies: Bodies) -> None:
    define(app, bodies)
    define_trees(app, bodies)


def _wire(folder: Path, world: Line, faults: Collection[Fault]) -> Storming:
    place = storm_places.of(folder)
    if place.kind == "sqlite":
        return StormWire(world, faults)
    import storm_lines  # which needs the driver

    return storm_lines.wire(world, faults, place.url)


async def _begun(app: Holdfast) -> None:
    """Once the database is there: a server may just be restarted, as whoever starts such a process would have it."""
    while True:
        try:
            return await app.init()
        except StoreUnavailable:
            await asyncio.sleep(_LATER)


def holdings() -> dict[str, Any]:
    """What a process has of what the system gives."""
    gc.collect()
    fds = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else len(os.listdir("/dev/fd"))
    rss = 0
    with contextlib.suppress(OSError):
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10
    return {"fds": fds, "threads": sorted(one.name for one in threading.enumerate()), "rss": rss}


class Worker:
    """Executes until it is killed, or told to stop."""

    def __init__(self, folder: Path, number: int, faults: Collection[Fault]) -> None:
        self.number = number
        self.world = Line(folder / "world")
        self.wire = _wire(folder, self.world, faults)
        self.world.tell("up", role="worker", number=number)
        self.before: dict[str, Any] = {}
        self.wire.attach()
        self.app = _app(folder, works=True)
        _define(self.app, Bodies(self.world, storm_places.of(folder).looker(), LEASE))
        watch_stale_writes(self.app, self.world, self.wire.look)
        self.wire.serving = lambda: self.app._engine.committer._serving

    async def main(self) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self.before = holdings()
        loop.add_signal_handler(signal.SIGHUP, self.wire.faults.clear)
        loop.add_signal_handler(signal.SIGUSR1, lambda: self.tell_holdings("quiet"))
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        await _begun(self.app)
        self.world.tell("working", owner=self.app._engine.identity)
        self.tell_holdings("fresh")
        await stop.wait()
        await self.app.stop(timeout=LEASE)
        self.tell_holdings("stopped")

    def tell_holdings(self, when: str) -> None:
        engine = self.app._engine
        worker = engine.worker
        self.world.tell(
            "holdings", when=when, role="worker", number=self.number, before=self.before, **holdings(),
            tasks=len(asyncio.all_tasks()),
            held=len(engine.keeper.held),
            executing=len(worker.executing) if worker is not None else 0,
            backlog=engine.committer.backlog,
        )  # fmt: skip


class Client:
    """Asks for all that can be asked for, says before what it asks, and after what it was answered."""

    def __init__(self, folder: Path, number: int, life: int, seed: int, faults: Collection[Fault], heal: bool) -> None:
        self.folder = folder
        self.number = number
        self.life = life
        self.seed = seed
        self.world = Line(folder / "world")
        self.wire = _wire(folder, self.world, faults)
        self.world.tell("up", role="client", number=number)
        self.wire.attach()
        self.app = _app(folder, works=False)
        _define(self.app, Bodies(self.world, lambda run, step: True, LEASE))
        self.mine: list[Run[Any]] = []
        self.last = False
        self._healing = threading.Event()
        self._numbers = itertools.count()
        self._tags = itertools.count()
        self._raced = 0
        self._posted: set[tuple[str, str]] = set()
        if heal:
            self.heal()

    async def main(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.heal)
        await _begun(self.app)
        await asyncio.gather(*[self.operations(number) for number in range(LOOPS)], self.carry_signals())
        self.last = True
        await self.last_operations()
        await self.app.stop()

    def heal(self) -> None:
        self.wire.faults.clear()
        self._healing.set()

    # -- asking ------------------------------------------------------------------------------------------------

    async def ask(self, op: str, tag: str, reply: Any, **more: Any) -> Any:
        if self.last:
            more["last"] = True
        self.world.tell("asked", op=op, tag=tag, client=self.number, **more)
        return await self.answered(op, tag, reply)

    async def answered(self, op: str, tag: str, reply: Any) -> Any:
        try:
            answer = await reply
        except (ConflictError, NotFoundError) as error:
            self.world.tell("refused", op=op, tag=tag, error=str(error))
            return None
        except (HoldfastError, TimeoutError) as error:
            self.world.tell("unknown", op=op, tag=tag, error=repr(error))
            await asyncio.sleep(_LATER)
            return None
        if isinstance(answer, Run):
            self.world.tell("ok", op=op, tag=tag, run=answer.id, was=answer.disposition)
            if answer.is_terminal:
                self.saw(answer)
        else:
            self.world.tell("ok", op=op, tag=tag, run=tag)
        return answer

    def saw(self, run: Run[Any]) -> None:
        self.world.tell("seen", run=run.id, status=str(run.status), outputs=[plain(run.output)])

    def number_of_run(self) -> int:
        """Nobody else triggers with this one."""
        return (self.number * 1000 + self.life) * 100_000 + next(self._numbers)

    async def trigger(self, job: str, n: int | str, **options: Any) -> Run[Any] | None:
        handle = self.app.get_job(job)
        assert handle is not None
        key = options.get("idempotency_key")
        reply = handle.options(**options).trigger(n)
        run: Run[Any] | None = await self.ask(
            "trigger", f"{self.number}.{self.life}.{next(self._tags)}", reply,
            job=job, n=n, key=key, line=options.get("concurrency_key"), coalesce=options.get("coalesce"),
        )  # fmt: skip
        if run is not None:
            self.mine.append(run)
        return run

    async def trigger_many(self, chance: random.Random) -> None:
        """All or none; some batches are refused because of one of them."""
        batch, calls, tags = f"{self.number}.{self.life}.{next(self._tags)}", list[Call[Any]](), list[str]()
        busy = chance.random() < 0.3
        for place in range(chance.randint(2, 8)):
            handle, n = self.app.get_job(chance.choice(("order", "batch", "fan"))), self.number_of_run()
            assert handle is not None
            key = f"{batch}-{place}" if chance.random() < 0.5 else None
            line = "first" if busy and place == 1 else None
            tags.append(f"{batch}-{place}")
            calls.append(handle.options(idempotency_key=key, concurrency_key=line).bind(n))
            self.world.tell(
                "asked", op="trigger", tag=tags[-1], client=self.number, job=handle.name, n=n, key=key, line=line,
                batch=batch,
            )  # fmt: skip
        try:
            runs = await self.app.trigger_many(calls)
        except HoldfastError as error:
            what = "refused" if isinstance(error, ConflictError) else "unknown"
            for tag in tags:
                self.world.tell(what, op="trigger", tag=tag, error=str(error))
        else:
            for tag, run in zip(tags, runs, strict=True):
                self.world.tell("ok", op="trigger", tag=tag, run=run.id, was=run.disposition)
            self.mine += runs

    # -- the storm ---------------------------------------------------------------------------------------------

    async def operations(self, loop: int) -> None:
        chance = random.Random(f"{self.seed} {self.number} {self.life} {loop}")
        for number in itertools.count():
            if self._healing.is_set():
                return
            if (loop, self.life, number) == (0, 0, POISON):
                await self.trigger("poison", self.number_of_run())
            await self.operation(chance)
            if sum(not run.is_terminal for run in self.mine) >= MOST_OPEN:
                await self.wait_for_some()
            self.mine = self.mine[-4 * MOST_OPEN :]

    async def operation(self, chance: random.Random) -> None:
        some = chance.choice(self.mine) if self.mine else None
        what = chance.random()
        if what < TREES + TREE_CANCELS:
            trees = [run for run in self.mine if run.job_name in KINDS and not run.is_terminal]
            if what < TREES or not trees:
                place = root_place(self.seed, self.number_of_run())
                await self.trigger(tree_of(place).kind, place)
            else:
                cancelled = chance.choice(trees)
                await self.ask("cancel", cancelled.id, self.app.cancel(cancelled.id))
            return
        what = chance.random()
        if what < 0.22 or some is None:
            job = chance.choice(("order", "order", "batch", "fan", "flaky", "again", "doomed", "narrow", "narrow"))
            priority = chance.choice((None, None, 0, 5))
            await self.trigger(job, self.number_of_run(), priority=priority, labels={"storm": str(chance.randrange(4))})
        elif what < 0.24:
            await self.trigger("long", self.number_of_run())
        elif what < 0.34:
            self._raced += 1
            await self.trigger("order", self.number_of_run(), idempotency_key=f"{RACED} {self._raced}")
        elif what < 0.46:
            line, coalesce = chance.choice(("first", "second", "third")), chance.choice((None, None, "skip", "active"))
            job = chance.choice(("order", "batch", "again"))
            await self.trigger(job, self.number_of_run(), concurrency_key=line, coalesce=coalesce)
        elif what < 0.52:
            await self.trigger_many(chance)
        elif what < 0.62:
            await self.ask("cancel", some.id, self.app.cancel(some.id))
        elif some.job_name in KINDS and what < 0.74:
            await self.look_at(some)  # the place of a tree is one root's, and it is looked at as a whole
        elif what < 0.70 and some.job_name != "poison":
            await self.ask("retrigger", some.id, self.app.retrigger(some.id))
        elif what < 0.74 and some.idempotency_key is None:
            await self.ask("delete", some.id, self.app.delete_run(some.id))
        elif what < 0.88:
            await self.look_at(some)
        else:
            await self.wait_for(some, timeout=0.5)

    async def look_at(self, run: Run[Any]) -> None:
        with contextlib.suppress(HoldfastError):
            found = await self.app.get_run(run.id)
            if found is not None:
                self.keep(found)
                if found.is_terminal:
                    self.saw(found)

    async def wait_for(self, run: Run[Any], timeout: float) -> None:
        with contextlib.suppress(HoldfastError, TimeoutError):
            ended = await self.app.wait_for_run(run.id, timeout=timeout)
            self.keep(ended)
            self.saw(ended)

    def keep(self, run: Run[Any]) -> None:
        self.mine = [run if one.id == run.id else one for one in self.mine]

    async def wait_for_some(self) -> None:
        """Until half of them have ended, or the faults have."""
        while not self._healing.is_set():
            under_way = [run for run in self.mine if not run.is_terminal]
            if len(under_way) < MOST_OPEN // 2:
                return
            await self.wait_for(under_way[0], timeout=0.5)
            with contextlib.suppress(HoldfastError):
                there = {run.id: run for run in await self.app.get_runs(limit=500)}
                # Who is not there was deleted, or is older than all of these.
                self.mine = [there.get(run.id, run) for run in self.mine if run.id in there]

    # -- signals -----------------------------------------------------------------------------------------------

    async def carry_signals(self) -> None:
        """To runs of trees, of whichever client, now and then: some do not wait for theirs yet, others do."""
        chance = random.Random(f"{self.seed} {self.number} {self.life} signals")
        while not self._healing.is_set():
            await self.post(chance, _SENT)
            await asyncio.sleep(_POST)

    async def post(self, chance: random.Random, likely: float) -> bool:
        """Send signals that runs will wait for, or do; False if no run of a tree goes on."""
        try:
            there = await self.app.get_runs(job=TREE_JOBS, status=_ACTIVE, limit=1000)
        except HoldfastError:
            return True
        wanted = [
            (run, act)
            for run in there if run.job_name in HEARERS
            for act in node_of(run.input["n"]).acts
            if act.what == "hear" and (run.id, act.name) not in self._posted
        ]  # fmt: skip
        await asyncio.gather(
            *[self.send(run.id, act.name, act.value) for run, act in wanted if chance.random() < likely]
        )
        return bool(there)

    async def send(self, run: str, name: str, value: int) -> None:
        tag = f"{run} {name}"
        self.world.tell("asked", op="signal", tag=tag, client=self.number)
        try:
            await self.app.send_signal(run, name, value, key="once")
        except (ConflictError, NotFoundError) as error:
            self.world.tell("refused", op="signal", tag=tag, run=run, error=str(error))
        except HoldfastError as error:
            self.world.tell("unknown", op="signal", tag=tag, error=repr(error))
            await asyncio.sleep(_LATER)
            return
        else:
            self.world.tell("ok", op="signal", tag=tag, run=run)
        self._posted.add((run, name))

    # -- after it ----------------------------------------------------------------------------------------------

    async def last_operations(self) -> None:
        """Once nothing is struck any more everything must be answered: first what earlier lives got no answer to."""
        while await self.post(random.Random(0), 1.0):  # noqa: ASYNC110 - what runs do in other processes
            await asyncio.sleep(_POST)
        events = [event for event in read(self.folder / "world.log") if event.get("op") == "trigger"]
        answered = {event["tag"] for event in events if event["ev"] in ("ok", "refused")}
        for event in events:
            mine = event["ev"] == "asked" and event["client"] == self.number and event["tag"] not in answered
            if mine and event["key"] is not None and event.get("line") is None:
                handle = self.app.get_job(event["job"])
                assert handle is not None
                self.world.tell("asked again", tag=event["tag"])
                reply = handle.options(idempotency_key=event["key"]).trigger(event["n"])
                await self.answered("trigger", event["tag"], reply)
        run = await self.trigger("order", self.number_of_run())
        assert run is not None
        await self.ask("wait", run.id, run.wait(timeout=60))
        again = await self.ask("retrigger", run.id, self.app.retrigger(run.id))
        other = await self.trigger("again", self.number_of_run(), idempotency_key=f"last {self.number} {self.life}")
        assert other is not None
        await self.ask("wait", other.id, other.wait(timeout=60))
        await self.ask("get", run.id, self.app.get_run(run.id))
        await self.ask("wait", again.id, again.wait(timeout=60))
        await self.ask("delete", again.id, self.app.delete_run(again.id))


async def read_all(folder: Path, closely: list[str]) -> None:
    """What every reader sees of every run; `closely`, over all ways there are."""
    world = Line(folder / "world")
    app = _app(folder, works=False)
    _define(app, Bodies(world, lambda run, step: True, LEASE))
    for run in await app.get_runs(limit=None):
        world.tell("seen", run=run.id, status=str(run.status), outputs=[plain(run.output)], last=True)
    for id in closely:
        one = await app.get_run(id)
        assert one is not None
        outputs = [plain(one.output), plain((await one.wait(timeout=20)).output)]
        with contextlib.suppress(RunFailed, RunCancelled):
            outputs.append(plain(await one.result(timeout=20)))
        steps = {
            step.name: step.output
            for step in await app.get_steps(id)
            if str(step.status) == "completed" and (one.job_name not in TREE_JOBS or is_body(step.name))
        }
        lines = [line.message for line in await app.get_logs(id)]
        world.tell("seen", run=id, status=str(one.status), outputs=outputs, steps=steps, lines=lines, last=True)
    await app.stop()
    for finding in storm_places.of(folder).findings():
        world.tell("doctor", **finding._asdict())


def run_worker(folder: Path, number: int, life: int, seed: int, faults: Collection[Fault], heal: bool) -> None:
    asyncio.run(Worker(folder, number, faults).main())


def run_client(folder: Path, number: int, life: int, seed: int, faults: Collection[Fault], heal: bool) -> None:
    asyncio.run(Client(folder, number, life, seed, faults, heal).main())


def run_reader(folder: Path, closely: list[str]) -> None:
    asyncio.run(read_all(folder, closely))


def run_migration(folder: Path, sql: str) -> None:
    """Make the tables, and then what keeps the audit of them."""
    _app(folder, works=False).migrate().wait()
    storm_places.of(folder).watch_over(sql)


def told(folder: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """What the world's log has more than `offset` bytes, in whole lines; and where that ends."""
    with (folder / "world.log").open("rb") as file:
        file.seek(offset)
        text = file.read()
    whole = text.rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole) + bool(whole)
