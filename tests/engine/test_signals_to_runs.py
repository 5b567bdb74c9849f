"""S6: signals are rows, taken once, whoever is first: the sender or the run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from holdfast import ConflictError, NotFoundError, NotKept, RunFailed, Step, ValidationError, job
from holdfast.testing import app_for_tests, drain
from house import PATIENCE, House, until


@dataclass
class Decision:
    by: str
    at: datetime
    yes: bool = True


@job
async def approval(step: Step) -> str:
    decision = await step.wait_for_signal("decision", type=Decision)
    return f"{decision.by} {decision.yes}"


@job
async def patient(step: Step, timeout: float) -> str:
    try:
        return str(await step.wait_for_signal("go", timeout=timeout))
    except TimeoutError as error:
        return f"late: {error}"


def test_s6_a_signal_wakes_the_run_that_waits_for_it(house: House) -> None:
    async def main() -> None:
        async with house.app(approval) as app:
            run = await app.jobs.approval.trigger()
            await until(lambda: house.status() == ["waiting"])
            assert (await run.refresh()).waiting_for == "signal"
            await app.send_signal(run.id, "decision", Decision("ann", datetime(2026, 1, 2, tzinfo=UTC)))
            assert await run.result(timeout=PATIENCE) == "ann True"

    asyncio.run(main())


def test_s6_a_signal_that_was_sent_before_is_there() -> None:
    with app_for_tests(approval) as app:
        run = app.jobs.approval.trigger().wait()
        app.send_signal(run.id, "decision", {"by": "bob", "at": "2026-01-02T03:04:05Z", "yes": False}).wait()
        drain(app).wait()
        assert run.refresh().wait().output == "bob False"


def test_s6_signals_come_in_the_order_in_which_they_were_sent() -> None:
    @job
    async def three(step: Step) -> list[Any]:
        return [await step.wait_for_signal("n") for _ in range(3)]

    with app_for_tests(three) as app:
        run = app.jobs.three.trigger().wait()
        for n in range(2):
            app.send_signal(run.id, "n", n).wait()
        drain(app).wait()
        assert str(run.refresh().wait().status) == "waiting"
        app.send_signal(run.id, "n", datetime(2026, 1, 1, tzinfo=UTC)).wait()
        drain(app).wait()
        assert run.refresh().wait().output == [0, 1, datetime(2026, 1, 1, tzinfo=UTC)]


def test_s6_a_key_makes_sending_twice_safe() -> None:
    @job
    async def two(step: Step) -> list[Any]:
        first = await step.wait_for_signal("n")
        try:
            return [first, await step.wait_for_signal("n", timeout=10)]
        except TimeoutError:
            return [first]

    with app_for_tests(two) as app:
        run = app.jobs.two.trigger().wait()
        for _ in range(3):
            app.send_signal(run.id, "n", "paid", key="payment-1").wait()
            drain(app).wait()
        drain(app, until=60).wait()
        assert run.refresh().wait().output == ["paid"]


def test_s6_a_wait_for_a_signal_that_is_too_short_for_a_suspension_has_an_end_too(house: House) -> None:
    async def main() -> None:
        async with house.app(patient) as app:
            assert (await app.jobs.patient.run(0.05)).startswith("late: ")

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("timeout", [3, 3600])
def test_s6_a_wait_for_a_signal_may_have_an_end(timeout: int) -> None:
    with app_for_tests(patient) as app:
        run = app.jobs.patient.trigger(timeout).wait()
        drain(app, until=2 * timeout).wait()
        assert run.refresh().wait().output == "late: no signal 'go' came in time"
        with pytest.raises(ConflictError, match="Cannot signal completed run"):
            app.send_signal(run.id, "go").wait()


def test_a_signal_that_is_no_such_thing_fails_the_run() -> None:
    with app_for_tests(approval) as app:
        run = app.jobs.approval.trigger().wait()
        app.send_signal(run.id, "decision", {"by": 1}).wait()
        drain(app).wait()
        ended = run.refresh().wait()
        assert (str(ended.status), ended.error_type) == ("failed", "Outdated")
        assert "signal 'decision'" in (ended.error or "")


def test_signals_to_nobody_and_bad_ones_are_refused() -> None:
    with app_for_tests(approval) as app:
        run = app.jobs.approval.trigger().wait()
        with pytest.raises(NotFoundError):
            app.send_signal("nobody", "go").wait()
        with pytest.raises(NotKept):
            app.send_signal(run.id, "go", object())
        with pytest.raises(ValidationError):
            app.send_signal(run.id, 7)  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="key"):
            app.send_signal(run.id, "go", key=7)  # type: ignore[arg-type]


def test_s6_a_signal_is_taken_once_although_the_run_is_executed_again(house: House) -> None:
    tops: list[int] = []

    @job
    async def job_of_two(step: Step) -> list[Any]:
        tops.append(1)
        first = await step.wait_for_signal("go")
        await step.sleep("nap", 0.4)
        return [first, await step.wait_for_signal("go", timeout=0.05)]

    async def main() -> None:
        async with house.app(job_of_two, warm_for=0) as app:
            run = await app.jobs.job_of_two.trigger()
            await app.send_signal(run.id, "go", "one")
            with pytest.raises(RunFailed, match="no signal 'go' came in time"):
                await run.result(timeout=PATIENCE)
            assert len(tops) > 1
            assert house.sql("select count(*) from holdfast_signals where consumed_by is not null") == [(1,)]

    asyncio.run(main())
