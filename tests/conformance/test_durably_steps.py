"""Durably 11.8 and its quirks about steps: values, rows, events, signals, cancelling."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conformance_jobs import FORMS, LONG, Gate, Heard, body, steps, work

from holdfast import AbortSignal, Job, RunCancelled, Step, SyncStep, job
from holdfast.testing.clock import HandClock
from house import House, Stuck

STEP_EVENTS = ("step:start", "step:complete", "step:fail", "step:cancel")


def _fails() -> None:
    raise LookupError("no such airport")


# -- values and rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_step_gives_what_its_function_returned(house: House, form: str) -> None:
    with house.app(steps(form, one=lambda: 1, two=lambda: {"rows": [1, 2]})) as app:
        assert work(app).run().wait(LONG) == [1, {"rows": [1, 2]}]


@pytest.mark.parametrize("form", FORMS)
def test_steps_are_recorded_in_their_order_with_their_outputs(house: House, form: str) -> None:
    with house.app(steps(form, c=lambda: 3, a=lambda: 1, b=lambda: 2)) as app:
        run = work(app).trigger_and_wait().wait(LONG)
        found = app.get_steps(run.id).wait(LONG)
    assert [(step.index, step.name, step.status, step.output) for step in found] == [
        (0, "c", "completed", 3), (1, "a", "completed", 1), (2, "b", "completed", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"preserve_steps": False}], ids=["default", "false"])
def test_steps_and_logs_are_still_there_after_the_end(house: House, form: str, options: dict[str, Any]) -> None:
    @job(name="work")
    async def logs(step: Step) -> None:
        step.log.info("a line")
        await step.run("one", abs, -1)

    @job(name="work")
    def logs_sync(step: SyncStep) -> None:
        step.log.info("a line")
        step.run("one", abs, -1)

    with house.app(logs if form == "async" else logs_sync, **options) as app:
        run = work(app).trigger_and_wait().wait(LONG)
        assert [step.name for step in app.get_steps(run.id).wait(LONG)] == ["one"]
        assert [line.message for line in app.get_logs(run.id).wait(LONG)] == ["a line"]


@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_raises_fails_the_run_and_is_recorded_with_its_error(house: House, form: str) -> None:
    with house.app(steps(form, one=lambda: 1, bad=_fails, never=lambda: 2)) as app:
        run = work(app).trigger_and_wait().wait(LONG)
        found = app.get_steps(run.id).wait(LONG)
    assert (run.status, run.error, run.error_type) == ("failed", "no such airport", "LookupError")
    assert [(step.name, step.status, step.error) for step in found] == [
        ("one", "completed", None), ("bad", "failed", "no such airport"),
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_failed_run_that_gets_a_new_attempt_keeps_its_steps_and_runs_the_failed_one_again(
    house: House, form: str
) -> None:
    calls: list[str] = []

    def bad() -> str:
        calls.append("bad")
        if len(calls) == 2:
            raise LookupError("not yet")
        return "found"

    one = steps(form, good=lambda: calls.append("good"), bad=bad)
    with house.app(one) as app:
        run = work(app).trigger_and_wait().wait(LONG)
    assert run.status == "failed"
    # What a retry of the run writes; by hand, for this one had none.
    house.sql("update holdfast_runs set status = 'pending', completed_at = null, attempt = attempt + 1, due = 1")
    with house.app(one) as app:
        again = app.wait_for_run(run.id).wait(LONG)
    assert (again.status, again.output) == ("completed", [None, "found"])
    assert calls == ["good", "bad", "bad"]


@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_recorded_with_the_times_between_which_it_was_called(
    house: House, clock: HandClock, form: str
) -> None:
    with house.app(steps(form, one=lambda: clock.advance(0.1), two=lambda: clock.advance(2)), clock=clock) as app:
        run = work(app).trigger_and_wait().wait(LONG)
        one, two = app.get_steps(run.id).wait(LONG)
    assert one.completed_at is not None
    assert two.completed_at is not None
    assert (one.completed_at - one.started_at).total_seconds() == 0.1
    assert (two.completed_at - two.started_at).total_seconds() == 2


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_run_goes_on_counting_its_steps_where_it_was(house: House, form: str) -> None:
    stuck = Stuck()
    one = steps(form, a=lambda: 1, b=lambda: 2, c=stuck.hang_sync, d=lambda: 4)
    app = house.app(one)
    app.init().wait(LONG)
    run = work(app).trigger().wait(LONG)
    assert stuck.is_there.wait(LONG)
    house.take_away(for_seconds=1000)
    app.stop(timeout=0).wait(LONG)
    house.sql("update holdfast_runs set run_at = created_at, due = 1")
    stuck.let_go()
    with house.app(one) as second:
        heard = Heard(second, *STEP_EVENTS)
        ended = second.wait_for_run(run.id).wait(LONG)
    assert [(event.type, event.step_index) for event in heard.events] == [
        ("step:start", 2), ("step:complete", 2), ("step:start", 3), ("step:complete", 3),
    ]  # fmt: skip
    assert (ended.completed_step_count, ended.current_step_index) == (4, 4)


@pytest.mark.parametrize("form", FORMS)
def test_the_count_of_completed_steps_is_right_in_reads_and_in_lists(house: House, form: str) -> None:
    with house.app(steps(form, a=lambda: 1, b=lambda: 2, c=lambda: 3)) as app:
        delayed = work(app).options(delay=1000).trigger().wait(LONG)
        run = work(app).trigger_and_wait().wait(LONG)
        assert (delayed.completed_step_count, run.completed_step_count) == (0, 3)
        counts = {run.id: run.completed_step_count for run in app.get_runs().wait(LONG)}
    assert counts == {delayed.id: 0, run.id: 3}


# -- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_step_is_told_with_its_output(house: House, form: str) -> None:
    with house.app(steps(form, one=lambda: {"rows": 3})) as app:
        heard = Heard(app, *STEP_EVENTS)
        run = work(app).options(labels={"env": "test"}).trigger_and_wait().wait(LONG)
    started, completed = heard.events
    assert (started.type, started.step_name, started.step_index) == ("step:start", "one", 0)
    assert (completed.type, completed.step_name, completed.step_index) == ("step:complete", "one", 0)
    assert completed.output == {"rows": 3}
    assert completed.duration >= 0
    assert (completed.run_id, completed.job_name, completed.labels) == (run.id, "work", {"env": "test"})


@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_raises_is_told_as_failed_with_its_message_and_not_as_cancelled(house: House, form: str) -> None:
    with house.app(steps(form, bad=_fails)) as app:
        heard = Heard(app, *STEP_EVENTS)
        work(app).trigger_and_wait().wait(LONG)
    assert heard.types == ["step:start", "step:fail"]
    assert heard.events[1].step_name == "bad"
    assert "no such airport" in heard.events[1].error


@pytest.mark.parametrize("form", FORMS)
def test_each_progress_is_told_as_it_was_given_without_what_was_left_out(house: House, form: str) -> None:
    def report(step: Any) -> None:
        step.progress(1)
        step.progress(2, 3)
        step.progress(3, 3, "done")

    with house.app(body(form, report)) as app:
        heard = Heard(app, "run:progress")
        run = work(app).trigger_and_wait().wait(LONG)
        assert run.refresh().wait(LONG).progress == {"current": 3, "total": 3, "message": "done"}
    assert [event.progress for event in heard.events] == [
        {"current": 1}, {"current": 2, "total": 3}, {"current": 3, "total": 3, "message": "done"},
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_lone_current_is_stored_alone_and_seen_while_the_run_goes_on(house: House, form: str) -> None:
    gate = Gate()

    @job(name="work")
    async def reports(step: Step) -> None:
        step.progress(50)
        await step.run("first", abs, 1)
        await step.run("gate", gate)

    @job(name="work")
    def reports_sync(step: SyncStep) -> None:
        step.progress(50)
        step.run("first", abs, 1)
        step.run("gate", gate)

    with house.app(reports if form == "async" else reports_sync) as app:
        run = work(app).trigger().wait(LONG)
        gate.wait()
        seen = app.get_run(run.id).wait(LONG)
        assert seen is not None
        assert (seen.status, seen.progress) == ("leased", {"current": 50})
        gate.open()


# -- signals and cancelling ------------------------------------------------------------------------------------------


def _listens(form: str, seen: list[Any]) -> Job[..., Any]:
    """A job whose first step waits for its signal, and whose second one never comes."""

    def first(signal: AbortSignal | None = None) -> None:
        assert signal is not None
        seen.append(signal.aborted)
        assert signal.wait(LONG)
        seen.append(signal.reason)
        raise RuntimeError("stopped early")  # as code does that was told to stop

    return steps(form, first=first, second=lambda: seen.append("second"))


@pytest.mark.parametrize("form", FORMS)
def test_a_step_gets_a_signal_that_is_not_set_and_is_told_of_a_cancel(house: House, form: str) -> None:
    seen: list[Any] = []
    with house.app(_listens(form, seen)) as app:
        heard = Heard(app, "step:start", "run:cancel")
        run = work(app).trigger().wait(LONG)
        heard.until("step:start")
        run.cancel().wait(LONG)
        with pytest.raises(RunCancelled):
            run.result().wait(LONG)
    assert seen == [False, "cancelled"]


@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_raises_because_it_was_told_to_stop_is_told_as_cancelled_once_and_not_as_failed(
    house: House, form: str
) -> None:
    seen: list[Any] = []
    with house.app(_listens(form, seen)) as app:
        heard = Heard(app, *STEP_EVENTS, "run:cancel", "run:fail")
        run = work(app).trigger().wait(LONG)
        heard.until("step:start")
        run.cancel().wait(LONG)
        heard.until("step:cancel")
    assert heard.types == ["step:start", "run:cancel", "step:cancel"]
    assert house.steps() == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", ["done", ValueError("no")], ids=["returns", "raises"])
def test_a_cancel_from_outside_the_process_drops_the_step_and_is_told_once(house: House, form: str, value: Any) -> None:
    gate, later = Gate(value), []
    with house.app(steps(form, first=gate, second=lambda: later.append("called"))) as app:
        heard = Heard(app, *STEP_EVENTS)
        run = work(app).trigger().wait(LONG)
        gate.wait()
        # By hand, as another process would: nobody in this one is told.
        house.sql(
            "update holdfast_runs set status = 'cancelled', generation = generation + 1, completed_at = updated_at, "
            "lease_owner = null, lease_expires_at = null"
        )
        gate.open()
        heard.until("step:cancel")
        with pytest.raises(RunCancelled):
            run.result().wait(LONG)
    assert heard.types == ["step:start", "step:cancel"]
    assert house.steps() == []
    assert later == []
    assert house.status() == ["cancelled"]


@pytest.mark.parametrize("form", FORMS)
def test_after_a_cancel_between_two_steps_no_later_step_begins(house: House, form: str) -> None:
    gate, calls = Gate(), []
    app = house.app(steps(form, a=lambda: calls.append("a"), b=gate, c=lambda: calls.append("c"), returns="output"))
    with app:
        run = work(app).trigger().wait(LONG)
        gate.wait()
        assert run.cancel().wait(LONG).status == "cancelled"
        gate.open()
    assert calls == ["a"]
    assert house.steps("name, status") == [("a", "completed")]
    assert house.status() == ["cancelled"]


@pytest.mark.parametrize("form", FORMS)
def test_a_job_without_steps_that_was_cancelled_stays_cancelled_whatever_it_returns_and_is_no_error(
    house: House, form: str
) -> None:
    gate = Gate("output")

    @job(name="work")
    async def waits() -> str:
        return str(await asyncio.to_thread(gate))

    @job(name="work")
    def waits_sync() -> str:
        return str(gate())

    with house.app(waits if form == "async" else waits_sync) as app:
        heard = Heard(app, "run:cancel", "run:complete", "run:fail")
        run = work(app).trigger().wait(LONG)
        gate.wait()
        run.cancel().wait(LONG)
        gate.open()
        with pytest.raises(RunCancelled):
            run.result().wait(LONG)
    assert house.status() == ["cancelled"]
    assert heard.types == ["run:cancel"]
    assert house.errors == []


@pytest.mark.parametrize("form", FORMS)
def test_what_was_saved_before_a_cancel_is_still_there_after_it(house: House, form: str) -> None:
    gate = Gate()
    with house.app(steps(form, a=lambda: 1, b=gate)) as app:
        run = work(app).trigger().wait(LONG)
        gate.wait()
        run.cancel().wait(LONG)
        gate.open()
        assert [(step.name, step.output) for step in app.get_steps(run.id).wait(LONG) if step.name == "a"] == [("a", 1)]
