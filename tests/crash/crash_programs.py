"""What the child processes do. Each program is one operation of the reference scenario, on a database of its own.

Every process has a clock that stands still, `when` days after the first: who comes later finds the leases of those
before it run out, and nobody waits for that in real time.

Long because each operation of the scenario is one program, and they share the scenario's jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import crash_below
from crash_lines import Line, MariadbLine, PostgresLine
from crash_wire import Wire
from crash_world import ADDRESS, World, read

from holdfast import AbortSignal, Holdfast, LoopResult, Retry, SleepingJob, Step, SyncStep
from holdfast.basis.clock import SystemClock, give_way
from holdfast.basis.errors import ConflictError, NotFoundError, RunCancelled, RunFailed
from holdfast.commit.ticket import Ticket
from holdfast.run import Run
from holdfast.testing.clock import HandClock

DAY = 86_400.0
DELAY = 3_600


class Declined(Exception):
    """What the failing step raises."""


class Child:
    """One process: an app with the jobs of the scenario, and what its client says and hears."""

    def __init__(
        self,
        folder: Path,
        program: str,
        *,
        when: int = 0,
        operation: str = "",
        fault: tuple[str, str] | None = None,
        mutant: str | None = None,
        inline: bool = False,
        seed: int | None = None,
        count: int = 0,
        max_crashes: int = 5,
    ) -> None:
        self.folder = folder
        self.world = World(folder / "world.log")
        self.inline = inline
        self.clock = HandClock()
        self.clock.advance(when * DAY)
        self.seed = seed
        """In the storm time is real."""
        self.count = count
        """How many runs are to be triggered."""
        address = folder / ADDRESS
        self.url = address.read_text() if address.exists() else f"sqlite:///{folder / 'holdfast.db'}"
        self.wire = self._wire(operation, fault, mutant)
        self.wire.attach()
        self.app = Holdfast(
            self.url,
            clock=self.clock if seed is None else SystemClock(),
            lease=60.0 if seed is None else 0.6,
            polling_interval=0.2,
            inline=inline,
            cancel_grace=1.0,
            max_crashes=max_crashes,
            # Dropping outputs is an operation of its own here, not something that comes between the others.
            preserve_steps=program != "drop_outputs",
        )
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.told = threading.Semaphore(0)
        """Released when the lease was renewed, or lost."""
        self.at_begin: Callable[[], None] | None = self.settle
        """What happens while the body of `hold` is under way; None: it waits to be told to stop."""
        self.asleep: SleepingJob[int]
        """The job whose runs wait for one word."""
        self._define_jobs()

    def _wire(self, operation: str, fault: tuple[str, str] | None, mutant: str | None) -> Wire:
        if self.url.startswith("sqlite"):
            return Wire(self.world, operation, fault, mutant)
        assert mutant is None
        kind = PostgresLine if self.url.startswith("postgres") else MariadbLine
        return kind(self.world, operation, fault, self.url)

    # -- jobs --------------------------------------------------------------------------------------------------

    def _define_jobs(self) -> None:
        app, wire = self.app, self.wire

        @app.job
        async def order(step: Step, n: int) -> int:
            wire.at("job")
            wire.reach("step")
            a = await step.run("reserve", self.reserve, step, n)
            step.progress(1, 3, "reserved")
            step.log.info("reserved", n=n)
            b = await step.run("charge", self.effect, step, "charge", n * 10)
            try:
                await step.run("notify", self.decline, step)
            except Declined:
                c = 1
            step.log.info("charged")
            wire.reach("finish")
            return a + b + c

        @app.job
        def batch(step: SyncStep, n: int) -> int:
            wire.at("job")
            wire.reach("step")
            a = step.run("first", self.effect, step, "first", n)
            step.progress(1)
            self.settle()
            step.log.info("half-way")
            b = step.run("second", self.effect, step, "second", n + 1)
            wire.reach("finish")
            return a * b

        @app.job
        def doomed(step: SyncStep, n: int) -> int:
            wire.at("job")
            value = step.run("try", self.effect, step, "try", n)
            wire.reach("fail")
            raise Declined(f"no more than {value}")

        @app.job
        async def flaky(step: Step, n: int) -> int:
            wire.at("job")
            wire.reach("retry")
            try:
                await step.options(retry=Retry(2)).run("wobble", self.wobble, step)
            except Declined:
                n += 1
            wire.reach("finish")
            return n

        @app.job(retry=Retry(1))
        async def again(step: Step, n: int) -> int:
            wire.at("job")
            value = await step.run("try", self.effect, step, "try", n)
            wire.reach("run retry")
            if step.attempt == 0:
                raise Declined("not at first")
            return value + await step.run("then", self.effect, step, "then", n)

        @app.job
        async def pay(step: Step, n: int) -> int:
            wire.at("job")
            wire.reach("transaction")
            step.log.info("about to pay")
            value = await step.transaction("pay", self.pay, step, n)
            wire.reach("finish")
            return value

        @app.job
        def pay_blocking(step: SyncStep, n: int) -> int:
            wire.at("job")
            wire.reach("transaction")
            value = step.transaction("pay", self.pay, step, n)
            wire.reach("finish")
            return value

        @app.job
        def long(step: SyncStep, n: int) -> int:
            wire.at("job")
            wire.reach("long")
            a = step.run("begin", self.effect, step, "begin", n)
            step.run("hold", self.hold, step)
            return a + step.run("last", self.effect, step, "last", n)

        crash_below.define(self)

    def effect(self, step: SyncStep | Step, name: str, value: int) -> int:
        """The body of a step: it does something to the world that can't be undone."""
        if self.seed is None:
            self.settle()
        self._tell(step, "begin", name)
        self._tell(step, "effect", name)
        self.wire.at(f"after the effect of {name}")
        return value

    def pay(self, connection: Any, step: SyncStep | Step, value: int) -> int:
        """Rows of the user's, which can be undone, and nothing else."""
        self._tell(step, "begin", "pay")
        step.log.info("paying")
        if isinstance(self.wire, Line):
            execute, mark = connection.cursor().execute, "%s"
            table = f"{self.wire.schema}.charges".removeprefix(".")
        else:
            execute, mark, table = connection.execute, "?", "charges"
        if not isinstance(self.wire, MariadbLine):  # there it is made before: making it would commit
            execute(f"create table if not exists {table} (run text, part integer, value integer)")
        for part in range(2):
            execute(f"insert into {table} values ({mark}, {mark}, {mark})", (step.run_id, part, value))
        self.wire.at("after the effect of pay")
        return value

    async def reserve(self, step: Step, value: int) -> int:
        self._tell(step, "begin", "reserve")
        self._tell(step, "effect", "reserve")
        self.wire.at("after the effect of reserve")
        return value

    def decline(self, step: Step) -> None:
        self.effect(step, "notify", 0)
        raise Declined("nobody is there")

    def wobble(self, step: Step) -> None:
        """A body that fails each time it is tried."""
        self.settle()
        self._tell(step, "tried", "wobble")
        self.wire.at("after the effect of wobble")
        raise Declined("not yet")

    def hold(self, step: SyncStep, signal: AbortSignal | None = None) -> None:
        """A body that is under way while something happens to its run."""
        assert signal is not None
        self.effect(step, "hold", 0)
        signal.on_abort(lambda reason: self.told.release())
        self.begun.set()
        if self.at_begin is None:
            signal.on_abort(lambda reason: self.let_go.set())
            assert self.let_go.wait(20)
        else:
            self.at_begin()

    def _tell(self, step: SyncStep | Step, what: str, name: str) -> None:
        row = step._execution.row
        key = step.idempotency_key(name)
        self.world.tell(what, run=row.id, step=name, gen=row.generation, attempt=row.attempt, key=key)

    def settle(self) -> None:
        """Wait until nothing is in the line, so that every round has the same tickets each time."""
        committer = self.app._engine.committer
        while not self.inline and (committer.backlog or committer._waiting_desks):
            give_way()

    # -- the client --------------------------------------------------------------------------------------------

    async def ask(self, op: str, tag: str, reply: Any, **more: Any) -> Run[Any] | None:
        """Say what is asked before, and what was answered after: an acknowledgement is what the client has heard."""
        self.world.tell("asked", op=op, tag=tag, **more)
        try:
            run: Run[Any] = await reply
        except (ConflictError, NotFoundError) as error:
            self.world.tell("refused", op=op, tag=tag, error=str(error))
            return None
        self.world.tell("ok", op=op, tag=tag, run=run.id, was=run.disposition)
        return run

    async def trigger(self, job: str, n: int, **options: Any) -> Run[Any]:
        key = options.get("idempotency_key")
        handle = self.app.get_job(job)
        assert handle is not None
        run = await self.ask("trigger", f"{job} {n}", handle.options(**options).trigger(n), job=job, n=n, key=key)
        assert run is not None
        return run

    async def trigger_many(self, job: str, *ns: int, **options: Any) -> None:
        """All or none; each with a key of its own, so that a client without an answer can ask again."""
        handle, tags = self.app.get_job(job), {n: f"{job} {n}" for n in ns}
        assert handle is not None
        calls = []
        for n, tag in tags.items():
            key = None if options else f"many {n}"
            self.world.tell("asked", op="trigger", tag=tag, job=job, n=n, key=key)
            calls.append(handle.options(**(options or {"idempotency_key": key})).bind(n))
        try:
            runs = await self.app.trigger_many(calls)
        except ConflictError as error:
            for tag in tags.values():
                self.world.tell("refused", op="trigger", tag=tag, error=str(error))
        else:
            for run, tag in zip(runs, tags.values(), strict=True):
                self.world.tell("ok", op="trigger", tag=tag, run=run.id, was=run.disposition)

    async def cancel(self, run_id: str) -> None:
        await self.ask("cancel", run_id, self.app.cancel(run_id))

    async def delete(self, run_id: str) -> None:
        self.world.tell("asked", op="delete", tag=run_id)
        try:
            await self.app.delete_run(run_id)
        except ConflictError as error:
            self.world.tell("refused", op="delete", tag=run_id, error=str(error))
        else:
            self.world.tell("ok", op="delete", tag=run_id, run=run_id)

    async def work(self) -> None:
        await self.app.process_until_idle(max_runs=1000)


Program = Callable[[Child], Coroutine[Any, Any, None]]


async def migrate(child: Child) -> None:
    await child.app.migrate()


async def open_file(child: Child) -> None:
    child.wire.reach("open")
    run = await child.trigger("order", 1)
    await child.app.get_run(run.id)


async def trigger(child: Child) -> None:
    child.wire.reach("trigger")
    await child.trigger("order", 1)
    await child.trigger("order", 2, idempotency_key="two", labels={"kind": "test", "part": "2"})
    await child.trigger("order", 2, idempotency_key="two")
    await child.trigger("batch", 3, delay=DELAY, labels={"kind": "late"})
    await asyncio.gather(*[child.trigger("doomed", n, idempotency_key=f"many-{n // 2}") for n in range(4, 8)])


def triggering(job: str, **options: Any) -> Program:
    async def one(child: Child) -> None:
        await child.trigger(job, 7, **options)

    return one


async def claim(child: Child) -> None:
    """One of the runs was executed before and comes with its saved steps; one was delayed until now."""
    child.wire.reach("claim")
    await child.app.process_one()


async def work(child: Child) -> None:
    await child.app.process_one()


async def trigger_pays(child: Child) -> None:
    await child.trigger_many("pay", *range(child.count))


async def work_on(child: Child) -> None:
    await child.work()


async def takeover(child: Child) -> None:
    """Everything that a recovery does counts as one operation, to its end: to crash again in any of it."""
    child.wire.reach("takeover")
    child.wire.reach = lambda phase: None  # type: ignore[method-assign]
    await child.work()


async def trigger_many(child: Child) -> None:
    """A batch that is written, and one that is refused because of its last run."""
    await child.trigger("order", 50, idempotency_key="k50", concurrency_key="busy")
    child.wire.reach("trigger many")
    await child.trigger_many("order", 51, 52, 53)
    await child.trigger_many("order", 54, concurrency_key="busy")


async def cancel(child: Child) -> None:
    """One run that waits, one that is being executed here."""
    (waiting,) = await child.app.get_runs(job="order")
    (running,) = await child.app.get_runs(job="long")
    child.at_begin = None
    child.wire.reach("cancel")
    await child.cancel(waiting.id)
    child.wire.reach("")
    done = asyncio.ensure_future(_awaited(child.app.process_one()))
    begun = asyncio.ensure_future(_awaited(child.app._engine.threads.call(child.begun.wait, 20)))
    # If somebody else has it by now, there is nothing to process.
    await asyncio.wait({done, begun}, return_when=asyncio.FIRST_COMPLETED)
    child.wire.reach("cancel")
    await child.cancel(running.id)
    child.let_go.set()
    child.begun.set()
    await done


async def retrigger(child: Child) -> None:
    (ended,) = await child.app.get_runs()
    child.wire.reach("retrigger")
    await child.ask("retrigger", ended.id, child.app.retrigger(ended.id))


async def renew(child: Child) -> None:
    """The lease is renewed while a body is under way: in the line, as always."""
    _turn_the_hands(child)
    await child.app.process_one()


async def renew_alone(child: Child) -> None:
    """The same while the line doesn't move: the renewing thread commits by itself."""
    _turn_the_hands(child, stuck=True)
    await child.app.process_one()


def _turn_the_hands(child: Child, *, stuck: bool = False) -> None:
    child.app.on("run:lease-renewed", lambda event: child.told.release())

    def renewed() -> None:
        committer = child.app._engine.committer
        child.settle()
        child.wire.reach("renew")
        if stuck:
            committer.gate = threading.Event()
        child.clock.advance(21)
        while stuck and not committer.backlog:
            give_way()
        # A sixth of the lease after it began to wait for the line, which is at once but not known: step by step.
        for _ in range(7 if stuck else 0):
            if child.told.acquire(timeout=0.1):
                break
            child.clock.advance(5)
        else:
            assert child.told.acquire(timeout=20)
        if stuck:
            gate, committer.gate = committer.gate, None
            assert gate is not None
            gate.set()
        child.settle()
        child.wire.reach("")

    child.at_begin = renewed


async def line(child: Child) -> None:
    """Runs of two concurrency keys come, go and wait: one is held by a worker that has died, one is free."""
    child.wire.reach("keys")
    child.wire.reach = lambda phase: None  # type: ignore[method-assign]
    held, free = {"concurrency_key": "held"}, {"concurrency_key": "free"}
    await child.trigger("doomed", 1, idempotency_key="k1", **held)
    await child.trigger("doomed", 2, **held, coalesce="skip")
    await child.trigger("doomed", 3, **held, coalesce="active")
    await child.trigger("doomed", 4, idempotency_key="k4", **free)
    await child.trigger("batch", 5, idempotency_key="k5", priority=1, **free)
    last = await child.trigger("order", 6, idempotency_key="k6", priority=2, **free)
    await child.cancel(last.id)
    await child.app.process_one()
    await child.app.process_one()
    for run in await child.app.get_runs(status="leased"):
        await child.cancel(run.id)


async def release(child: Child) -> None:
    """The worker stops and hands back what it is executing."""
    child.at_begin = None
    done = asyncio.ensure_future(_awaited(child.app.process_one()))
    await child.app._engine.threads.call(child.begun.wait, 20)
    child.wire.reach("release")
    await child.app.stop(timeout=0)
    await done


async def delete(child: Child) -> None:
    """One run that has ended, and one that has not."""
    (ended,) = await child.app.get_runs(job="doomed")
    (half,) = await child.app.get_runs(job="long")
    child.wire.reach("delete")
    await child.delete(ended.id)
    await child.delete(half.id)


def purging(age: str) -> Program:
    async def purge(child: Child) -> None:
        child.wire.reach("purge")
        child.world.tell("asked", op="purge", tag="")
        count = await child.app.purge_runs(older_than=age, limit=None)
        child.world.tell("purged", count=count)

    return purge


async def drop_outputs(child: Child) -> None:
    """As an idle worker does it; and asked for it for a run that goes on, which nobody would."""
    (half,) = await child.app.get_runs(job="long")
    child.wire.reach("drop")
    await child.app._engine.call("idle", lambda worker: worker._maintenance.idle())
    ticket: Ticket[bool] = Ticket("drop_outputs", half.id)
    child.app._engine.committer.join(ticket)
    child.world.tell("dropped", of=half.id, accepted=await ticket)


async def _awaited(reply: Any) -> Any:
    return await reply


async def die_holding(child: Child) -> None:
    """Take over what is there, and be killed at the first line of the job: the run stays leased."""
    child.wire.reach("takeover")
    await child.work()
    raise AssertionError("there was nothing to die of")


async def cancel_all(child: Child) -> None:
    for run in await child.app.get_runs(status=["pending", "leased", "waiting"]):
        await child.cancel(run.id)


async def recover(child: Child) -> None:
    """A healthy process: the client asks again for what it got no answer to, and the work is done to its end."""
    events = read(child.world.path)
    answered = {(event["op"], event["tag"]) for event in events if event["ev"] in ("ok", "refused")}
    for event in events:
        keyed = event["ev"] == "asked" and event["op"] == "trigger" and event["key"]
        if keyed and ("trigger", event["tag"]) not in answered:
            await child.trigger(event["job"], event["n"], idempotency_key=event["key"])
    if child.seed is None:
        await crash_below.go_on(child)
    else:
        await child.app.init()
        for run in await child.app.get_runs(limit=None):
            await run.wait(timeout=30)
    await read_back(child)


async def storm_worker(child: Child) -> None:
    """Works until it is killed."""
    await child.app.init()
    await asyncio.Event().wait()


async def storm_client(child: Child) -> None:
    """Triggers, and cancels now and then, until it is killed."""
    chance = random.Random(child.seed)
    made: list[str] = []
    for number in range(25):
        job = chance.choice(["order", "order", "batch", "doomed"])
        key = f"{child.seed}-{number}"
        run = await child.trigger(job, 1000 * (child.seed or 0) + number, idempotency_key=key)
        made.append(run.id)
        if number % 5 == 4:
            await child.cancel(chance.choice(made))
    await asyncio.Event().wait()


async def read_back(child: Child) -> None:
    """What every reader sees of every run."""
    for run in await child.app.get_runs(limit=None):
        seen: list[Any] = [run.output]
        again = await child.app.get_run(run.id)
        assert again is not None
        seen.append(again.output)
        if run.is_terminal:
            seen.append((await run.wait(timeout=20)).output)
            with contextlib.suppress(RunFailed, RunCancelled):
                seen.append(await run.result(timeout=20))
        outputs = [asdict(one) if isinstance(one, LoopResult) else one for one in seen]
        child.world.tell("seen", run=run.id, status=str(run.status), outputs=outputs, error_type=run.error_type)


PROGRAMS: dict[str, Program] = {
    "migrate": migrate,
    "open": open_file,
    "trigger": trigger,
    "claim": claim,
    "work": work,
    "work_on": work_on,
    "takeover": takeover,
    "cancel": cancel,
    "retrigger": retrigger,
    "renew": renew,
    "renew_alone": renew_alone,
    "line": line,
    "release": release,
    "delete": delete,
    "purge": purging("12h"),
    "purge_all": purging("0s"),
    "drop_outputs": drop_outputs,
    "die_holding": die_holding,
    "cancel_all": cancel_all,
    "recover": recover,
    "storm_worker": storm_worker,
    "storm_client": storm_client,
    "trigger_many": trigger_many,
    "trigger_order": triggering("order"),
    "trigger_urgent_long": triggering("long", priority=5),
    "trigger_batch": triggering("batch"),
    "trigger_doomed": triggering("doomed"),
    "trigger_keyed": triggering("doomed", concurrency_key="held"),
    "trigger_flaky": triggering("flaky"),
    "trigger_again": triggering("again"),
    "trigger_pays": trigger_pays,
    "trigger_pay": triggering("pay"),
    "trigger_pay_blocking": triggering("pay_blocking"),
    "trigger_late": triggering("order", delay=DELAY),
    **{f"trigger_{job}": triggering(job) for job in crash_below.MODEL if job != "asleep"},
    **crash_below.PROGRAMS,
}


def run(folder: Path, program: str, *, dry: bool = False, **options: Any) -> None:
    """Run a program to its end, in this process. `dry`: write down which points it had."""
    os.chdir(folder)
    child = Child(folder, program, **options)

    async def main() -> None:
        await PROGRAMS[program](child)

    asyncio.run(main())
    if dry:
        (folder / "points.json").write_text(json.dumps(child.wire.points))
