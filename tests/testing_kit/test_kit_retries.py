"""Steps with retries in the testing kit: their rests pass by themselves, and crashes leave them countable."""

from __future__ import annotations

import asyncio
import os

import pytest

from holdfast import Retry, Step, SyncStep, job
from holdfast.testing import app_for_tests, crash_at_every_step, drain, effects, run

CALLS: list[str] = []


def flaky(name: str, failures: int) -> str:
    """Fails as often within one process."""
    CALLS.append(name)
    if CALLS.count(name) <= failures:
        raise ConnectionError(f"{name} is down")
    return f"{name} is up"


@job
async def patient(step: Step, failures: int) -> str:
    CALLS.clear()
    careful = step.options(retry=Retry(5, delay="1h", max_delay="1d", factor=10))
    await step.run("before", lambda: 1)
    return await careful.run("flaky", flaky, "service", failures)


@job
def patient_sync(step: SyncStep, failures: int) -> str:
    CALLS.clear()
    careful = step.options(retry=Retry(5, delay="1h", max_delay="1d", factor=10))
    step.run("before", lambda: 1)
    return careful.run("flaky", flaky, "service", failures)


@job
async def paying(step: Step, number: int) -> str:
    def pay() -> str:
        effects.record(f"pay {number}", idempotency_key=step.idempotency_key("pay"))
        return "paid"

    def decline() -> None:
        raise ConnectionError("nobody is there")

    paid = await step.options(retry=Retry(2)).run("pay", pay)
    try:
        await step.options(retry=Retry(2, delay=60)).run("notify", decline)
    except ConnectionError:
        paid += ", not notified"
    return await step.options(timeout="1m").run("send", lambda: paid)


@pytest.mark.parametrize("one", [patient, patient_sync], ids=lambda one: one.name)
def test_the_rests_of_a_run_pass_by_themselves(one: object) -> None:
    assert isinstance(one, type(patient))
    assert run(one, 4).wait(20) == "service is up"
    assert len(CALLS) == 5


def test_the_rests_pass_in_a_drain_and_in_the_record_they_are_there() -> None:
    async def main() -> None:
        app = app_for_tests(patient)
        triggered = await app.jobs.patient.trigger(2)
        await drain(app)
        record = (await app.get_steps(triggered.id))[1]
        seconds = [(one.started_at - record.started_at).total_seconds() for one in record.attempts]
        assert seconds == [0, 3600, 39600]
        await app.stop()

    asyncio.run(main())


@pytest.mark.crash
@pytest.mark.skipif(not hasattr(os, "fork"), reason="crash_at_every_step forks: it needs POSIX")
def test_a_job_with_retried_and_timed_steps_survives_every_crash() -> None:
    report = crash_at_every_step(paying, 7)
    assert report.problems == []
    assert report.steps == ["pay", "notify", "send"]
    assert report.kills == 7
