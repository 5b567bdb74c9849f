"""An event loop that burns the processor in short slices, beside everything that other threads do for the app.

Such a loop gives Python's lock away and takes it back before a thread that waits for it wakes up. Without a guard those
threads may stand still for ever; it is a matter of chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import databases
from holdfast import Holdfast, Step

PATIENCE = 30.0


@contextlib.asynccontextmanager
async def burning(seconds: float) -> AsyncIterator[None]:
    async def burn() -> None:
        while True:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    task = asyncio.create_task(burn())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.parametrize("seconds", [0.0002, 0.001])
def test_tables_are_made_and_runs_executed_read_and_left_beside_a_busy_loop(tmp_path: Path, seconds: float) -> None:
    async def main() -> list[int | None]:
        app = Holdfast(databases.url(tmp_path / "app.db"))

        @app.job
        async def work(step: Step, number: int) -> int:
            return await step.run("double", lambda: 2 * number)

        async with burning(seconds), app:
            runs = await app.trigger_many([work.bind(number) for number in range(20)])
            for run in runs:
                await run.wait()
            return [run.output for run in await work.get_runs()][::-1]

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == [2 * number for number in range(20)]


def test_leases_are_renewed_beside_a_busy_loop(tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        app = Holdfast(databases.url(tmp_path / "app.db"), lease=1.5, polling_interval=0.2)

        @app.job
        async def patient() -> None:
            await asyncio.sleep(4)  # real seconds: leases are judged by them, and the loop is really busy

        async with app:
            run = await patient.trigger()
            async with burning(0.001):
                ended = await run.wait()
            return ended.generation, ended.crashes

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == (1, 0)
