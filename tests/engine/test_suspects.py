"""Runs whose workers died, and what one run may know of another that was executed before it."""

from __future__ import annotations

import asyncio
import contextvars
from pathlib import Path
from typing import Any

import pytest

from holdfast import Step, job
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, until

LEASE = 30


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "holdfast.db")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


class Gate:
    """Says who came, and lets them go."""

    def __init__(self) -> None:
        self.here: list[int] = []
        self.open = asyncio.Event()

    async def __call__(self, number: int) -> int:
        self.here.append(number)
        await self.open.wait()
        return number


async def _blamed(house: House, clock: HandClock, work: Any, crashes: int) -> None:
    async with house.app(work, clock=clock, worker=False) as app:
        for number in range(3):
            await app.get_job("work").trigger(number)
    house.sql("update holdfast_runs set crashes = ?", crashes)


def test_s1_of_runs_whose_workers_died_twice_in_a_row_a_worker_executes_one_at_a_time(
    house: House, clock: HandClock
) -> None:
    async def main() -> None:
        gate = Gate()

        @job
        async def work(number: int) -> int:
            return await gate(number)

        await _blamed(house, clock, work, 2)
        async with house.app(work, clock=clock, lease=LEASE):
            await until(lambda: sorted(house.status()) == ["leased", "pending", "pending"])
            assert gate.here == [0]
            gate.open.set()
            await until(lambda: house.status().count("completed") == 1)
            for done in (2, 3):
                clock.advance(LEASE / 2)
                await until(lambda done=done: house.status().count("completed") >= done)
        assert house.sql("select max(crashes) from holdfast_runs") == [(2,)]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_s1_runs_whose_worker_died_once_are_executed_together(house: House, clock: HandClock) -> None:
    async def main() -> None:
        gate = Gate()

        @job
        async def work(number: int) -> int:
            return await gate(number)

        await _blamed(house, clock, work, 1)
        async with house.app(work, clock=clock, lease=LEASE):
            await until(lambda: len(gate.here) == 3)
            gate.open.set()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_s1_a_saved_step_clears_a_run_of_suspicion(house: House, clock: HandClock) -> None:
    async def main() -> None:
        gate = Gate()

        @job
        async def work(step: Step, number: int) -> int:
            await step.run("begin", lambda: None)
            return await gate(number)

        await _blamed(house, clock, work, 2)
        async with house.app(work, clock=clock, lease=LEASE):
            for come in (1, 2, 3):
                await until(lambda come=come: len(gate.here) >= come)
                clock.advance(LEASE / 2 - 1)
                clock.advance(1)
            gate.open.set()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="nobody's")


def test_a_run_sees_no_context_variable_of_the_one_before_it(house: House) -> None:
    @job
    async def leaves(step: Step, number: int) -> str:
        seen = request.get()
        request.set(f"that of {number}")
        await step.run("think", lambda: None)
        return seen

    async def main() -> list[Any]:
        async with house.app(leaves, worker=False) as app:
            ids = [(await app.get_job("leaves").trigger(number)).id for number in range(3)]
        async with house.app(leaves, concurrency=1) as app:
            return [(await app.wait_for_run(run_id, timeout=PATIENCE)).output for run_id in ids]

    assert asyncio.run(main()) == ["nobody's"] * 3
