"""The same work on Holdfast: default settings but for `concurrency=100`, everything durable before it is answered.

`fill` writes what is there before a measurement, in a process of its own. Each work gives its figures by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import shared

from holdfast import Holdfast, Step

CONCURRENCY = 100
TOGETHER = 100
SETTINGS = {"concurrency": CONCURRENCY}

_FINISHED = """
with recursive n (i) as (select 0 union all select i + 1 from n where i < :count - 1)
insert into holdfast_runs (id, job_name, status, run_at, due, generation, created_at, updated_at, started_at,
  completed_at, input, output)
select printf('0%025d', i), 'noop', 'completed', :at + i, 1, 1, :at + i, :at + i, :at + i, :at + i, '{"number":1}', '1'
from n"""


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
        if "checkpoints" in work:
            calls = [app.jobs.stepping.bind(sizes[1]) for _ in range(pending)]
        else:
            calls = [app.jobs.noop.bind(n) for n in range(pending)]
        ids: list[str] = []
        for first in range(0, len(calls), 1000):
            ids += [run.id for run in await app.trigger_many(calls[first : first + 1000])]
    _ids(url).write_text(json.dumps(ids))
    if finished:
        with contextlib.closing(_read(url)) as database, database:
            add_finished(database, finished)


def add_finished(database: sqlite3.Connection, count: int) -> None:
    """Runs that ended an hour ago and before."""
    database.execute(_FINISHED, {"count": count, "at": time.time_ns() // 1000 - 3_600_000_000})


def _ids(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///") + ".ids")


def _read(url: str) -> sqlite3.Connection:
    return sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)


# -- the works -------------------------------------------------------------------------------------------------------


async def drain(url: str, runs: int, pending: int = 0, finished: int = 0, *, busy: float = 0) -> dict[str, float]:
    """From starting the worker until that many of the pending runs have ended."""
    app = _app(url, worker=True)
    await app.migrate()
    ids: list[str] = json.loads(_ids(url).read_text())[:runs]
    used = time.process_time()
    async with _burning(busy), app:
        began = time.perf_counter()
        # Runs end about in the order of claiming, a hundred at a time.
        last = await asyncio.gather(*[app.wait_for_run(run_id) for run_id in ids[-TOGETHER:]])
        took = time.perf_counter() - began
        used = time.process_time() - used
        peak = shared.peak()
    assert all(run.output is not None for run in last)
    if runs >= pending:
        _check(url, runs + finished)
    return {"rate": runs / took, "memory": peak, "cpu": used / runs * 1e6}


async def checkpoints(url: str, runs: int, steps: int, *, busy: float = 0) -> dict[str, float]:
    """The same for runs of that many steps, in steps a second."""
    figures = await drain(url, runs, busy=busy)
    with contextlib.closing(_read(url)) as database:
        assert database.execute("select count(*) from holdfast_steps").fetchone() == (runs * steps,)
    return {"rate": figures["rate"] * steps, "cpu": figures["cpu"] / steps}


async def busy_drain(url: str, runs: int, microseconds: int) -> dict[str, float]:
    """A drain beside a coroutine that burns the CPU of the worker's loop in slices."""
    return await drain(url, runs, busy=microseconds / 1e6)


async def busy_checkpoints(url: str, runs: int, steps: int, microseconds: int) -> dict[str, float]:
    """Steps beside such a coroutine."""
    return await checkpoints(url, runs, steps, busy=microseconds / 1e6)


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
    _check(url, runs + 1 + finished)
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
    _check(url, children + 1)
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


async def workers(url: str, runs: int, processes: int) -> dict[str, float]:
    """Several worker processes on one file, from the word to go until the last end."""
    with shared.workers([[sys.executable, __file__, url]] * processes):
        began = time.time_ns() // 1000
        last = _last_end(url)
    _check(url, runs)
    return {"rate": runs / (last - began) * 1e6}


def _last_end(url: str) -> int:
    with contextlib.closing(_read(url)) as database:
        while database.execute("select 1 from holdfast_runs where status in ('pending', 'leased')").fetchone():
            time.sleep(0.05)
        return int(database.execute("select max(completed_at) from holdfast_runs").fetchone()[0])


async def _worker(url: str) -> None:
    """A worker process: works until it is killed."""
    app = _app(url, worker=True)
    await app.migrate()
    shared.wait_for_the_word()
    async with app:
        await asyncio.Event().wait()


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


def _check(url: str, runs: int) -> None:
    with contextlib.closing(_read(url)) as database:
        found = dict(database.execute("select status, count(*) from holdfast_runs group by 1").fetchall())
    assert found == {"completed": runs}, found


if __name__ == "__main__":
    asyncio.run(_worker(sys.argv[1]))
