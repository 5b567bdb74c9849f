"""What the log says of runs that fail: where the function broke."""

from __future__ import annotations

import asyncio
import logging

import pytest

from holdfast import CancelRun, Retry, Step, job
from holdfast.testing import app_for_tests, drain
from house import House


def divide(n: int) -> int:
    return 1 // n


@job(retry=Retry(max_retries=1, delay=2))
async def outside(n: int) -> int:
    return divide(n)


@job
async def inside(step: Step, n: int) -> int:
    return await step.run("divide", divide, n)


@job
async def leaving() -> None:
    raise CancelRun("not needed")


class Odd(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@job
async def odd() -> None:
    raise Odd


def test_a_retry_and_a_failure_are_told_with_the_line_that_broke(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "holdfast.runs")
    with app_for_tests(outside, inside) as app:
        first, second = app.jobs.outside.trigger(0).wait(), app.jobs.inside.trigger(0).wait()
        drain(app, until=10).wait()
    told = {(record.levelname, record.getMessage().partition("\n")[0]) for record in caplog.records}
    assert told == {
        ("INFO", f"run {first.id} of outside, attempt 1: retried in 2 s"),
        ("WARNING", f"run {first.id} of outside, attempt 2: it has failed"),
        ("WARNING", f"run {second.id} of inside, attempt 1: it has failed"),
    }
    for record in caplog.records:
        assert "return 1 // n" in record.getMessage()
        assert record.getMessage().endswith("\nZeroDivisionError: integer division or modulo by zero")


def test_a_run_that_succeeds_or_cancels_itself_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "holdfast.runs")
    with app_for_tests(inside, leaving) as app:
        app.jobs.inside.trigger(1).wait()
        app.jobs.leaving.trigger().wait()
        drain(app).wait()
    assert caplog.records == []


def test_a_failure_that_did_not_count_is_not_told(house: House, caplog: pytest.LogCaptureFixture) -> None:
    bodies: list[int] = []

    @job
    async def overtaken() -> str:
        bodies.append(1)
        if len(bodies) == 1:
            house.take_away()  # by somebody else: the end of this execution is refused
            raise ValueError("too late to say so")
        return "done"

    async def main() -> None:
        async with house.app(overtaken) as app:
            assert await app.jobs.overtaken.run() == "done"

    asyncio.run(main())
    assert len(bodies) == 2
    assert [record.getMessage() for record in caplog.records if record.name == "holdfast.runs"] == []


def test_an_error_that_can_not_be_shown_is_told_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with app_for_tests(odd) as app:
        run = app.jobs.odd.trigger().wait()
        drain(app).wait()
        assert run.refresh().wait().status == "failed"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"run {run.id} of odd, attempt 1: it has failed\n")
    assert "Odd" in record.getMessage()
