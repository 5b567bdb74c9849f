"""What a job asks for and can't have: the run fails at once, and its error says what to write instead."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from holdfast import Children, ConflictError, Step, SyncStep, ValidationError, job
from holdfast.testing import app_for_tests, drain


@job
async def leaf(n: int) -> int:
    return n


@job
async def parent() -> Children[int]:
    return Children(1, [leaf.bind(1)])


ASKED: dict[str, tuple[str, str]] = {
    "a sleep back in time": ("sleep", "duration: -1 must be between 0 seconds and 1000 years."),
    "a moment that is none": ("until", "when: str is not a datetime."),
    "a moment that can't be kept": ("far", "when: "),
    "a job instead of a call": ("job", "call: calls[0]: <Job leaf> is no call. Write job.bind(…)."),
    "a list of calls": ("list", "gather: calls[0]: [<Call of leaf>] is no call. Give the calls one by one: "),
    "a function instead of a job": ("map", "map: <built-in function len> is no job. Write step.map(job, inputs)."),
    "too many": ("many", "gather: 9 calls are more than max_children, which is 5."),
    "one call as the children of a parent": ("alone", "Children: calls: <Call of leaf> is no list."),
}  # fmt: skip


@job
def asks(step: SyncStep, what: str) -> None:
    anything: Any = step
    if what == "sleep":
        step.sleep("nap", -1)
    elif what == "until":
        anything.sleep_until("nap", "tomorrow")
    elif what == "far":
        step.sleep_until("nap", datetime(1, 1, 1))
    elif what == "job":
        anything.call(leaf)
    elif what == "list":
        anything.gather([leaf.bind(1)])
    elif what == "map":
        anything.map(len, ["a"])
    elif what == "many":
        step.gather(*[leaf.bind(n) for n in range(9)])
    else:
        wrong: Any = leaf.bind(1)
        Children(1, wrong)


@pytest.mark.parametrize("what", ASKED)
def test_what_can_not_be_had_is_told_with_what_to_write(what: str) -> None:
    asked, error = ASKED[what]
    with app_for_tests(asks, leaf, max_children=5) as app:
        run = app.jobs.asks.trigger(asked).wait()
        drain(app).wait()
        run = run.refresh().wait()
        assert (str(run.status), run.error_type) == ("failed", "ValidationError")
        assert (run.error or "").startswith(error)
        assert app.get_runs(job="leaf").wait() == []


def test_a_signal_that_is_not_what_the_run_wants_fails_it_in_one_line() -> None:
    @job
    async def hears(step: Step) -> int:
        return await step.wait_for_signal("count", type=int)

    with app_for_tests(hears) as app:
        run = app.jobs.hears.trigger().wait()
        app.send_signal(run.id, "count", "many").wait()
        drain(app).wait()
        run = run.refresh().wait()
        assert run.error_type == "Outdated"
        start = f"signal 'count' of run {run.id}: $: Input should be a valid integer"
        assert (run.error or "").startswith(start)
        assert "\n" not in (run.error or "")


def test_a_job_that_returns_children_and_does_not_say_so_is_told_what_to_write() -> None:
    @job
    async def quiet() -> Any:
        return Children(1, [leaf.bind(1)])

    with app_for_tests(quiet, leaf) as app:
        run = app.jobs.quiet.trigger().wait()
        drain(app).wait()
        assert "it is Children, and the job does not say so: write -> Children[…]" in (run.refresh().wait().error or "")


def test_why_a_run_of_a_tree_can_not_be_deleted_is_told() -> None:
    with app_for_tests(parent, leaf) as app:
        run = app.jobs.parent.trigger().wait()
        drain(app).wait()
        (child,) = app.get_runs(parent=run.id).wait()
        with pytest.raises(ConflictError, match="It goes with the root of its tree"):
            app.delete_run(child.id).wait()
        run.delete().wait()


def test_a_call_is_shown_by_the_name_of_its_job() -> None:
    assert repr(leaf.bind(1)) == "<Call of leaf>"
    with pytest.raises(ValidationError, match="<Call of leaf> is not a job"):
        app_for_tests().sequence("calls", leaf.bind(1))  # type: ignore[call-overload]  # a checker refuses it, too
