"""V1, V7: whatever a function raises, its run can be ended, and the worker goes on with the next one."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from bed import Bed
from hostile import BASE_ERRORS, ENDS, ERRORS, Case, named

from holdfast import Job, Step, StepFailed, SyncStep

pytestmark = pytest.mark.elsewhere("what is text to a database", every=8)

CASES = {case.name: case for case in (*ERRORS, *BASE_ERRORS)}

every = pytest.mark.parametrize("case", CASES.values(), ids=named)
ordinary = pytest.mark.parametrize("case", ERRORS, ids=named)


def fails(name: str) -> None:
    raise CASES[name].make()


async def fails_async(name: str) -> None:
    raise CASES[name].make()


class Jobs(NamedTuple):
    job: Job[[str], None]
    sync_job: Job[[str], None]
    step: Job[[str], None]
    async_step: Job[[str], None]
    sync_step: Job[[str], None]
    caught: Job[[str], str]


FORMS = ["job", "sync_job", "step", "async_step", "sync_step"]


@pytest.fixture(scope="module")
def jobs(bed: Bed) -> Jobs:
    app = bed.app

    @app.job
    async def job(name: str) -> None:
        raise CASES[name].make()

    @app.job
    def sync_job(name: str) -> None:
        raise CASES[name].make()

    @app.job
    async def step(step: Step, name: str) -> None:
        await step.run("fail", fails, name)

    @app.job
    async def async_step(step: Step, name: str) -> None:
        await step.run("fail", fails_async, name)

    @app.job
    def sync_step(step: SyncStep, name: str) -> None:
        step.run("fail", fails, name)

    @app.job
    async def caught(step: Step, name: str) -> str:
        try:
            await step.run("fail", fails_async, name)
        except Exception as error:
            return type(error).__name__
        return "nothing"

    return Jobs(job, sync_job, step, async_step, sync_step, caught)


def storable(text: str | None) -> bool:
    return text is None or ("\0" not in text and text.encode().decode() == text)


@every
@pytest.mark.parametrize("form", FORMS)
def test_a_run_ends_whatever_its_function_raises(bed: Bed, jobs: Jobs, case: Case, form: str) -> None:
    run = bed.ended(getattr(jobs, form), case.name)
    # Out of a step these two come as `StepFailed`: their texts can't be kept, so they can't be rebuilt.
    assert run.status == (ENDS.get(case.name, "failed") if form.endswith("job") else "failed")
    assert run.error is not None or case.name == "cancel-run"
    for text, longest in ((run.error, 34_000), (run.error_type, 300)):
        assert storable(text)
        assert len(text or "") < longest


@ordinary
def test_a_step_that_failed_is_kept_with_a_text_that_fits(bed: Bed, jobs: Jobs, case: Case) -> None:
    run = bed.ended(jobs.async_step, case.name)
    [step] = bed.app.get_steps(run.id).wait()
    assert step.status == "failed"
    assert step.error_type
    assert storable(step.error)
    assert storable(step.traceback)
    assert bed.ask("select length(error) from holdfast_steps where run_id = ?", run.id)[0][0] < 200_000


@ordinary
def test_a_job_may_catch_what_its_step_raises(bed: Bed, jobs: Jobs, case: Case) -> None:
    run = bed.ended(jobs.caught, case.name)
    expected = CASES[case.name].make()
    assert run.status == "completed"
    assert run.output in (type(expected).__name__, "StepFailed", "RuntimeError")
    assert run.output == "StepFailed" or case.name not in ("unpicklable", "needs-keywords")


def test_the_text_of_an_error_is_cleaned_and_cut(bed: Bed, jobs: Jobs) -> None:
    assert bed.ended(jobs.job, "text-nul").error == "a\ufffdb"
    assert bed.ended(jobs.job, "text-high-surrogate").error == "a\ufffdb"
    assert bed.ended(jobs.job, "text-emoji").error == CASES["text-emoji"].make().args[0]
    assert (bed.ended(jobs.job, "huge-text").error or "").endswith("more characters)")
    assert bed.ended(jobs.job, "saying-raises").error == "<unprintable SayingRaises>"


def test_an_error_without_a_text_is_told_by_its_class(bed: Bed, jobs: Jobs) -> None:
    run = bed.ended(jobs.job, "memory")
    assert (run.error, run.error_type) == ("MemoryError", "MemoryError")


@pytest.mark.parametrize("form", ["job", "sync_job"])
def test_the_words_of_a_job_decide_how_its_run_ends(bed: Bed, jobs: Jobs, form: str) -> None:
    assert bed.ended(getattr(jobs, form), "timed-out").status == "timed_out"
    assert bed.ended(getattr(jobs, form), "cancel-run").status == "cancelled"
    assert bed.ended(getattr(jobs, form), "non-retryable").error_type is not None


def test_the_traceback_of_a_sync_step_shows_where_the_function_broke(bed: Bed, jobs: Jobs) -> None:
    run = bed.ended(jobs.step, "text-rtl")
    [step] = bed.app.get_steps(run.id).wait()
    assert step.traceback is not None
    assert "raise CASES[name].make()" in step.traceback


def test_an_error_that_cannot_be_rebuilt_is_the_same_one_at_once_and_on_replay(bed: Bed) -> None:
    seen: list[Any] = []

    @bed.app.job
    async def catches(step: Step) -> None:
        try:
            await step.run("fail", fails_async, "needs-keywords")
        except StepFailed as error:
            seen.append((error.type, str(error)))

    bed.ended(catches)
    assert seen == [("NeedsKeywords", "NeedsKeywords")]
