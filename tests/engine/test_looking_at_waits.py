"""What `get_steps` and `get_runs(parent=)` tell of a run that waits, and of those below it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from holdfast import Children, Retry, Run, Step, StepRecord, ValidationError, job
from holdfast.testing import app_for_tests, drain

DAY = 86_400


@job
async def double(n: int) -> int:
    return 2 * n


@job
async def long(n: int) -> str:
    return "x" * n


@job
async def patient(step: Step, nap: float = 3 * DAY) -> str:
    await step.run("before", str)
    await step.sleep("rest", nap)
    return await step.wait_for_signal("answer", type=str, timeout="7d")


def last(app: Any, run: Run[Any]) -> StepRecord:
    found: StepRecord = app.get_steps(run.id).wait()[-1]
    return found


def test_a_wait_that_goes_on_is_the_last_step_with_what_it_waits_for_and_until_when() -> None:
    with app_for_tests(patient) as app:
        run = app.jobs.patient.trigger().wait()
        drain(app).wait()
        now = run.refresh().wait().updated_at
        step = last(app, run)
        assert (step.name, step.occurrence, step.index, step.status, step.wait) == ("rest", 0, 1, "waiting", "timer")
        assert (step.started_at, step.until, step.completed_at) == (now, now + timedelta(days=3), None)
        assert (step.attempts, step.output, step.error) == ((), None, None)
        drain(app, until=4 * DAY).wait()
        step = last(app, run)
        assert (step.name, step.status, step.wait, step.until) == (
            "answer",
            "waiting",
            "signal",
            now + timedelta(days=10),
        )


def test_a_wait_that_is_over_lasted_from_when_it_was_first_asked_for() -> None:
    with app_for_tests(patient) as app:
        run = app.jobs.patient.trigger().wait()
        drain(app, until=4 * DAY).wait()
        app.send_signal(run.id, "answer", "yes").wait()
        drain(app).wait()
        _, rest, answer = app.get_steps(run.id).wait()
        assert (rest.wait, rest.status, rest.until) == ("timer", "completed", None)
        assert rest.completed_at - rest.started_at == timedelta(days=3)
        assert (answer.wait, answer.output) == ("signal", "yes")
        assert answer.started_at == rest.completed_at
        assert answer.completed_at > answer.started_at


def test_a_short_sleep_and_a_step_are_told_apart() -> None:
    with app_for_tests(patient) as app:
        run = app.jobs.patient.trigger(0.5).wait()
        drain(app, until=60).wait()
        before, rest, _ = app.get_steps(run.id).wait()
        assert (before.wait, rest.wait) == (None, "timer")
        assert rest.completed_at - rest.started_at == timedelta(seconds=0.5)


def test_a_wait_whose_time_is_over_is_over_for_the_attempts_after_it() -> None:
    @job(retry=Retry(max_retries=1, delay=1))
    async def twice(step: Step) -> str:
        return await step.wait_for_signal("answer", type=str, timeout="1h")

    with app_for_tests(twice) as app:
        run = app.jobs.twice.trigger().wait()
        drain(app, until=3600 + 60).wait()
        run = run.refresh().wait()
        assert (run.status, run.error_type, run.attempt) == ("failed", "TimeoutError", 1)
        (step,) = app.get_steps(run.id).wait()
        assert (step.status, step.wait, step.error_type, step.attempt) == ("failed", "signal", "TimeoutError", 0)


def test_what_runs_below_came_to_is_theirs_and_no_output_of_the_wait_unless_it_is_small() -> None:
    @job
    async def above(step: Step) -> int:
        await step.call(double.bind(2))
        await step.call(long.bind(5000))
        await step.gather(double.bind(3), double.bind(4))
        await step.map(double, [5])
        await step.spawn(double.bind(6))
        return 0

    with app_for_tests(above, double, long) as app:
        run = app.jobs.above.trigger().wait()
        drain(app).wait()
        told = [(step.name, step.wait, step.output) for step in app.get_steps(run.id).wait()]
    spawned = told[-1][2]
    assert told == [
        ("double()", "child", 4),
        ("long()", "child", None),
        ("gather(double)", "children", None),
        ("map(double)", "children", None),
        ("spawn(double)", None, spawned),
    ]
    assert isinstance(spawned, str)


def test_several_waits_at_once_are_all_there() -> None:
    @job
    async def both(step: Step) -> None:
        await asyncio.gather(step.sleep("a", "1d"), step.wait_for_signal("b"))

    with app_for_tests(both) as app:
        run = app.jobs.both.trigger().wait()
        drain(app).wait()
        waiting = app.get_steps(run.id).wait()
        assert {(step.name, step.wait, step.status) for step in waiting} == {
            ("a", "timer", "waiting"),
            ("b", "signal", "waiting"),
        }
        assert [step.index for step in waiting] == [0, 1]


def test_the_runs_directly_below_one_are_found_by_its_id() -> None:
    @job
    async def inner(n: int) -> Children[int]:
        return Children(n, [double.bind(n), double.bind(n + 1)])

    @job
    async def outer() -> Children[int]:
        return Children(0, [inner.bind(1), inner.bind(5)])

    with app_for_tests(outer, inner, double) as app:
        run = app.jobs.outer.trigger().wait()
        drain(app).wait()
        below = app.get_runs(parent=run.id).wait()
        assert [(one.job_name, one.input, one.parent_id) for one in below] == [
            ("inner", {"n": 5}, run.id),
            ("inner", {"n": 1}, run.id),
        ]
        assert [one.output for one in app.get_runs(parent=below[0].id, job=app.jobs.double).wait()] == [12, 10]
        assert app.get_runs(parent=below[0].id, status="failed").wait() == []
        assert len(app.get_runs(parent=run.id, limit=1).wait()) == 1
        assert app.get_runs(parent="none").wait() == []
        with pytest.raises(ValidationError, match="parent"):
            app.get_runs(parent=7)


def test_a_finalize_knows_that_it_is_one() -> None:
    @job
    async def outer() -> Children[int]:
        return Children(0, [double.bind(1)])

    @outer.finalize
    async def ended(output: int, children: list[Any]) -> int:
        return output

    with app_for_tests(ended, double) as app:
        run = app.jobs.outer.trigger().wait()
        drain(app).wait()
        below = {one.job_name: one.is_finalize for one in app.get_runs(parent=run.id).wait()}
        assert below == {"double": False, "outer.finalize": True}
        assert run.refresh().wait().is_finalize is False


def test_a_sleeping_job_is_one_by_whatever_way_it_is_found() -> None:
    with app_for_tests() as app:
        app.sleeping("approval", output=bool)
        first, again = app.jobs.approval.trigger("k").wait(), app.get_job("approval").trigger("k").wait()
        assert (again.id, again.disposition) == (first.id, "idempotent")
