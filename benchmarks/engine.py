"""The same work on Holdfast: default settings but for `concurrency=100`, everything durable before it is answered.

`fill` writes what is there before a measurement, in a process of its own. Each work gives its figures by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator

import delay
import places
import shared
import verbs
from trees import chain as chain
from trees import fan_out as fan_out
from trees import sleepers as sleepers
from trees import tree as tree

from holdfast import Holdfast, Step

CONCURRENCY = 100
#: Milliseconds, there and back.
FAR = 1.0
TOGETHER = 100
SETTINGS = {"concurrency": CONCURRENCY}


def _app(url: str, *, worker: bool) -> Holdfast:
    app = Holdfast(url, concurrency=CONCURRENCY, worker=worker)

    @app.job
    async def noop(number: int) -> int:
        return number

    @app.job
    async def stepping(step: Step, steps: int) -> int:
        for position in range(steps):
            await step.run(f"s{position}", _noop, position)
        return steps

    @app.job
    async def family(children: int) -> int:
        runs = await app.trigger_many([noop.bind(number) for number in range(children)])
        return sum([await run.result() for run in runs])

    return app


async def _noop(number: int) -> int:
    return number


# -- what is there before a measurement ------------------------------------------------------------------------------


def fill(url: str, work: str, *sizes: int) -> None:
    """Write the pending runs of a work through the library, and finished ones by SQL."""
    asyncio.run(_fill(url, work, sizes))


async def _fill(url: str, work: str, sizes: tuple[int, ...]) -> None:
    pending, finished = shared.filled(work, sizes)
    async with _app(url, worker=False) as app:
        if work == "claims":
            verbs.fill_claims(url, *sizes[:2])
            return
        if "checkpoints" in work:
            calls = [app.jobs.stepping.bind(sizes[1]) for _ in range(pending)]
        else:
            calls = [app.jobs.noop.bind(n) for n in range(pending)]
        for part in places.in_parts(calls, 1000):
            await app.trigger_many(part)
    if finished:
        places.add_finished(url, finished)
    places.settle(url)


# -- the works -------------------------------------------------------------------------------------------------------


async def drain(
    url: str, runs: int, pending: int = 0, finished: int = 0, *, busy: float = 0, silent: bool = False
) -> dict[str, float]:
    """From starting the worker until that many of the pending runs have ended."""
    app = _app(url, worker=True)
    await app.migrate()
    if silent:
        _hush(app)
    ids = places.pending(url, runs)[-TOGETHER:]
    used = time.process_time()
    async with _burning(busy), app:
        began = time.perf_counter()
        # Runs end about in the order of claiming, a hundred at a time.
        last = await asyncio.gather(*[app.wait_for_run(run_id) for run_id in ids])
        took = time.perf_counter() - began
        used = time.process_time() - used
        peak = shared.peak()
    assert all(run.output is not None for run in last)
    if runs >= pending:
        places.check(url, runs + finished)
    return {"rate": runs / took, "memory": peak, "cpu": used / runs * 1e6}


async def checkpoints(url: str, runs: int, steps: int, *, busy: float = 0) -> dict[str, float]:
    """The same for runs of that many steps, in steps a second."""
    figures = await drain(url, runs, busy=busy)
    assert places.rows(url, "select count(*) from holdfast_steps") == [(runs * steps,)]
    return {"rate": figures["rate"] * steps, "cpu": figures["cpu"] / steps}


async def busy_drain(url: str, runs: int, microseconds: int) -> dict[str, float]:
    """A drain beside a coroutine that burns the CPU of the worker's loop in slices."""
    return await drain(url, runs, busy=microseconds / 1e6)


async def busy_checkpoints(url: str, runs: int, steps: int, microseconds: int) -> dict[str, float]:
    """Steps beside such a coroutine."""
    return await checkpoints(url, runs, steps, busy=microseconds / 1e6)


async def far_drain(url: str, runs: int) -> dict[str, float]:
    """A drain with the database a millisecond away."""
    with delay.far(url, FAR) as away:
        return {**await drain(away, runs), "round_trip": delay.round_trip(away)}


async def far_checkpoints(url: str, runs: int, steps: int) -> dict[str, float]:
    """Steps with the database a millisecond away."""
    with delay.far(url, FAR) as away:
        return await checkpoints(away, runs, steps)


async def far_latency(url: str, runs: int) -> dict[str, float]:
    """From trigger to output with the database a millisecond away."""
    with delay.far(url, FAR) as away:
        return await latency(away, runs)


async def triggers(url: str, runs: int) -> dict[str, float]:
    """One caller that awaits each trigger."""
    return await triggers_together(url, runs, 1)


async def triggers_together(url: str, runs: int, callers: int = TOGETHER) -> dict[str, float]:
    """A hundred tasks that await each of their triggers."""
    app = _app(url, worker=False)
    noop = app.jobs.noop

    async def caller(count: int) -> None:
        for n in range(count):
            await noop.trigger(n)

    async with app:
        began = time.perf_counter()
        await asyncio.gather(*[caller(runs // callers) for _ in range(callers)])
        took = time.perf_counter() - began
    return {"rate": runs // callers * callers / took}


async def latency(url: str, runs: int, finished: int = 0) -> dict[str, float]:
    """From trigger to output on an idle worker, one run after the other, with pauses: milliseconds."""
    async with _app(url, worker=True) as app:
        took = await _one_by_one(app, runs)
    places.check(url, runs + 1 + finished)
    return took


async def apart(url: str, runs: int) -> dict[str, float]:
    """The same with the worker in another process."""
    with shared.workers([[sys.executable, __file__, url]]):
        async with _app(url, worker=False) as app:
            return await _one_by_one(app, runs)


async def _one_by_one(app: Holdfast, runs: int) -> dict[str, float]:
    pauses = random.Random(1)
    took = []
    for n in range(runs + 1):
        await asyncio.sleep(pauses.uniform(0, shared.PAUSE))
        began = time.perf_counter()
        assert await app.jobs.noop.run(n) == n
        took.append(time.perf_counter() - began)
    figures = shared.percentiles(took)
    return {**figures, "direct_p50": figures["p50"]}


async def family(url: str, children: int) -> dict[str, float]:
    """One parent that triggers its children at once and waits for each: children a second."""
    async with _app(url, worker=True) as app:
        began = time.perf_counter()
        assert await app.jobs.family.run(children) == children * (children - 1) // 2
        took = time.perf_counter() - began
    places.check(url, children + 1)
    return {"rate": children / took}


async def idle(url: str, seconds: int) -> dict[str, float]:
    """The part of one core that a worker uses while there is nothing to do, in percent; and how often it looks."""
    async with _app(url, worker=True) as app:
        await app.jobs.noop.run(1)
        await asyncio.sleep(1)  # until the watcher has slowed down
        looks, used = app._engine.watcher.checks, time.process_time()
        await asyncio.sleep(seconds)
        used, looks = time.process_time() - used, app._engine.watcher.checks - looks
    return {"percent": 100 * used / seconds, "looks": looks / seconds}


async def claims(url: str, pending: int, finished: int, times: int) -> dict[str, float]:  # noqa: ARG001 - as filled
    """What a claim of ten takes among so many, in milliseconds."""
    return verbs.measure_claims(url, times)


async def fence(url: str, runs: int, times: int) -> dict[str, float]:
    """What the lock of a checkpoint's run costs, as the ratio of with to without."""
    return verbs.measure_fence(url, runs, times)


async def silent_drain(url: str, runs: int) -> dict[str, float]:
    """A drain that tells other processes nothing."""
    return await drain(url, runs, silent=True)


async def silent_workers(url: str, runs: int, processes: int) -> dict[str, float]:
    """Worker processes that tell each other nothing."""
    return await workers(url, runs, processes, silent=True)


async def workers(url: str, runs: int, processes: int, *, silent: bool = False) -> dict[str, float]:
    """Several worker processes on one database, from the word to go until the last end."""
    command = [sys.executable, __file__, url, *(["silent"] if silent else [])]
    with shared.workers([command] * processes):
        began = time.time_ns() // 1000
        last = _last_end(url)
    places.check(url, runs)
    return {"rate": runs / (last - began) * 1e6}


def _last_end(url: str) -> int:
    left = " or ".join(
        f"exists (select 1 from holdfast_runs where status = '{status}')" for status in ("pending", "leased")
    )
    with contextlib.closing(places.connect(url)) as database:
        cursor = database.cursor()
        while True:
            cursor.execute(f"select {left}")
            if not cursor.fetchone()[0]:
                break
            time.sleep(0.05)
        cursor.execute("select max(completed_at) from holdfast_runs")
        return int(cursor.fetchone()[0])


async def _worker(url: str, *, silent: bool) -> None:
    """A worker process: works until it is killed."""
    app = _app(url, worker=True)
    if silent:
        _hush(app)
    await app.migrate()
    shared.wait_for_the_word()
    async with app:
        await asyncio.Event().wait()


def _hush(app: Holdfast) -> None:
    """It tells other processes nothing, as if their server had refused to pass it on."""
    app._engine.store._silent_until = float("inf")  # type: ignore[attr-defined]  # of PostgreSQL alone


@contextlib.asynccontextmanager
async def _burning(seconds: float) -> AsyncIterator[None]:
    async def burn() -> None:
        while True:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    task = asyncio.create_task(burn()) if seconds else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(_worker(sys.argv[1], silent="silent" in sys.argv[2:]))
