"""Every line of the table "What is safe" on the page about versions: old code begins a run, new code ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from holdfast import Job, Outdated, Run, RunStatus, SyncStep, ValidationError, job
from house import PATIENCE, House

pytestmark = pytest.mark.sampled("the documentation: its programs do the same on every Python", every=6)


class Report:
    """The job as it was before the deploy, and who was called since."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.called: list[str] = []
        self.letters_in_every_city = 0
        self.half_way = threading.Event()

        @job(name="report")
        def report(step: SyncStep, city: str) -> str:
            step.run("count", self.count, city)
            step.run("draw", self.draw)
            self.half_way.set()
            assert step.signal.wait(PATIENCE)
            step.raise_if_aborted()
            return "never"

        self.before: Job[..., Any] = report

    def count(self, city: str) -> int:
        self.called.append("count")
        return self.letters_in_every_city or len(city)

    def draw(self) -> str:
        self.called.append("draw")
        return "a chart"

    def make(self, name: str, value: Any = None) -> Callable[[], Any]:
        """The function of a new step."""

        def made() -> Any:
            self.called.append(name)
            return value

        return made

    def deploy(self, after: Job[..., Any], **options: Any) -> Run[Any]:
        """The run, begun by the old code and ended by the new one."""
        with self.house.app(self.before) as old:
            run = old.jobs.report.trigger("Berlin").wait(PATIENCE)
            assert self.half_way.wait(PATIENCE)
            old.stop(timeout=0).wait(PATIENCE)
        assert self.called == ["count", "draw"]
        self.called.clear()
        with self.house.app(after, **options) as new:
            ended: Run[Any] = new.wait_for_run(run.id, timeout=PATIENCE).wait()
            return ended


@pytest.fixture
def report(house: House) -> Report:
    return Report(house)


def test_steps_may_be_added_removed_and_put_in_another_order(report: Report) -> None:
    @job(name="report")
    def after(step: SyncStep, city: str) -> str:
        step.run("announce", report.make("announce"))
        chart = step.run("draw", report.draw)
        step.run("mail", report.make("mail"))
        return chart

    assert report.deploy(after).output == "a chart"
    assert report.called == ["announce", "mail"]


def test_a_saved_value_counts_though_its_function_says_something_else_today(report: Report) -> None:
    @job(name="report")
    def after(step: SyncStep, city: str) -> int:
        report.letters_in_every_city = 1000
        return step.run("count", report.count, city)

    assert report.deploy(after).output == 6
    assert (report.called, report.house.errors) == ([], [])


def test_a_step_with_other_arguments_keeps_its_value_and_is_told_once(report: Report) -> None:
    @job(name="report")
    def after(step: SyncStep, city: str) -> int:
        step.run("draw", report.make("draw"))
        return step.run("count", report.count, "Bonn")

    assert report.deploy(after).output == 6
    assert report.called == []
    assert [context for context, _ in report.house.errors] == ["step-changed"]


def test_a_strict_app_refuses_a_step_with_other_arguments(report: Report) -> None:
    @job(name="report")
    def after(step: SyncStep, city: str) -> int:
        return step.run("count", report.count, "Bonn")

    ended = report.deploy(after, strict=True)
    assert (ended.status, ended.error_type, report.called) == ("failed", "StepChanged", [])


def test_a_renamed_step_is_called_again(report: Report) -> None:
    @job(name="report")
    def after(step: SyncStep, city: str) -> int:
        return step.run("count-letters", report.count, city)

    assert report.deploy(after).output == 6
    assert report.called == ["count"]


def test_one_more_call_under_a_name_before_it_takes_the_value_of_a_saved_step(report: Report) -> None:
    @job(name="report")
    def after(step: SyncStep, city: str) -> list[int]:
        return [step.run("count", report.make("first", 1)), step.run("count", report.make("second", 2))]

    assert report.deploy(after).output == [6, 2]


def test_a_saved_value_that_the_new_type_cannot_hold_is_outdated(report: Report) -> None:
    def draw() -> int:
        return 7

    @job(name="report")
    def after(step: SyncStep, city: str) -> int:
        return step.run("draw", draw)

    ended = report.deploy(after)
    assert (ended.status, ended.error_type) == ("failed", "Outdated")


def test_a_run_goes_on_with_a_parameter_more_that_has_a_default(report: Report) -> None:
    @job(name="report")
    def after(step: SyncStep, city: str, paper: str = "A4") -> str:
        return f"{city} on {paper}"

    assert report.deploy(after).output == "Berlin on A4"


def test_a_run_goes_on_with_a_parameter_less(report: Report) -> None:
    @job(name="report")
    def after(step: SyncStep) -> str:
        return "no city"

    assert report.deploy(after).output == "no city"


def test_an_input_without_what_is_required_today_is_outdated_and_cannot_be_retriggered(
    report: Report, house: House
) -> None:
    @job(name="report")
    def after(step: SyncStep, town: str) -> None:
        report.called.append("the job")

    ended = report.deploy(after)
    assert (ended.status, ended.error_type, report.called) == ("failed", "Outdated", [])
    with house.app(after) as app, pytest.raises(ValidationError, match="town"):
        app.retrigger(ended.id).wait(PATIENCE)


def test_an_output_that_todays_type_cannot_read_is_told_where_it_is_asked_for(house: House) -> None:
    @job(name="report")
    def before() -> str:
        return "a chart"

    @job(name="report")
    def after() -> int:
        return 7

    with house.app(before) as old:
        run = old.jobs.report.trigger_and_wait().wait(PATIENCE)
    with house.app(after) as new:
        seen = new.get_run(run.id).wait(PATIENCE)
        assert seen is not None
        assert seen.status == "completed"
        with pytest.raises(Outdated):
            _ = seen.output


def test_two_versions_on_one_file_take_only_the_jobs_that_they_know(house: House) -> None:
    @job(name="report")
    def old_job() -> str:
        return "by the old code"

    @job(name="report-2")
    def new_job() -> str:
        return "by the new code"

    with house.app(old_job) as old, house.app(new_job) as new:
        foreign = house.app(old_job, new_job, worker=False)
        runs = [foreign.get_job(name).trigger().wait(PATIENCE) for name in ("report", "report-2") for _ in range(5)]
        outputs = [run.result(timeout=PATIENCE).wait() for run in runs]
        assert outputs == ["by the old code"] * 5 + ["by the new code"] * 5
        assert (old.get_job("report-2"), new.get_job("report")) == (None, None)
        foreign.stop().wait(PATIENCE)


def test_a_run_whose_job_was_renamed_stays_pending_until_somebody_knows_it(house: House) -> None:
    def compute() -> str:
        return "done"

    with house.app(job(name="report")(compute), worker=False) as old:
        run = old.jobs.report.trigger().wait(PATIENCE)
    with house.app(job(name="chart")(compute)) as new:
        assert new.get_job("chart").run().wait(PATIENCE) == "done"  # the older one was passed over
        left = new.get_runs(job="report", status=RunStatus.active()).wait(PATIENCE)
        assert [one.id for one in left] == [run.id]
    with house.app(job(name="chart")(compute), job(name="report")(compute)) as both:
        assert both.wait_for_run(run.id, timeout=PATIENCE).wait().output == "done"
