"""The same work on Holdfast: default settings but for `concurrency=100`, everything durable before it is answered."""

from __future__ import annotations

import asyncio
import time

from holdfast import Holdfast, Job, Step

TOGETHER = 100


def _app(url: str, *, worker: bool) -> tuple[Holdfast, Job[[int], int], Job[[int], int]]:
    app = Holdfast(url, concurrency=100, worker=worker)

    @app.job
    async def noop(number: int) -> int:
        return number

    @app.job
    async def stepping(step: Step, steps: int) -> int:
        for position in range(steps):
            await step.run(f"s{position}", _noop, position)
        return steps

    return app, noop, stepping


async def _noop(number: int) -> int:
    return number


async def _fill(url: str, runs: int, steps: int | None) -> list[str]:
    app, noop, stepping = _app(url, worker=False)
    ids = []
    async with app:
        for first in range(0, runs, 1000):
            many = range(first, min(first + 1000, runs))
            replies = [noop.trigger(n) if steps is None else stepping.trigger(steps) for n in many]
            ids += [(await reply).id for reply in replies]
    return ids


async def _drain(url: str, ids: list[str]) -> float:
    app, _, _ = _app(url, worker=True)
    await app.migrate()
    began = time.perf_counter()
    async with app:
        # Runs end in the order of claiming: when the last has ended, at most a round is left.
        for run_id in (ids[-1], *ids[-TOGETHER:]):
            run = await app.wait_for_run(run_id)
            assert run.output is not None
        took = time.perf_counter() - began
        left = await app.get_runs(status=["pending", "leased"], limit=1)
        assert not left, left
    return took


async def drain(url: str, runs: int) -> float:
    """Seconds from starting the worker until that many pending runs have ended."""
    return await _drain(url, await _fill(url, runs, None))


async def checkpoints(url: str, runs: int, steps: int) -> float:
    """Seconds for that many runs of that many steps."""
    return await _drain(url, await _fill(url, runs, steps))


async def triggers(url: str, runs: int) -> float:
    """Seconds for one caller that awaits each trigger."""
    app, noop, _ = _app(url, worker=False)
    async with app:
        began = time.perf_counter()
        for n in range(runs):
            await noop.trigger(n)
        return time.perf_counter() - began


async def triggers_together(url: str, runs: int) -> float:
    """Seconds for a hundred tasks that await each of their triggers."""
    app, noop, _ = _app(url, worker=False)

    async def caller(count: int) -> None:
        for n in range(count):
            await noop.trigger(n)

    async with app:
        began = time.perf_counter()
        await asyncio.gather(*[caller(runs // TOGETHER) for _ in range(TOGETHER)])
        return time.perf_counter() - began


async def latency(url: str, runs: int) -> list[float]:
    """Seconds from trigger to output on an idle worker, one run after the other."""
    app, noop, _ = _app(url, worker=True)
    times = []
    async with app:
        for n in range(runs):
            began = time.perf_counter()
            await noop.run(n)
            times.append(time.perf_counter() - began)
    return times
