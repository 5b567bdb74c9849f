"""What a run comes to, by what its code returns, raises and swallows (S3, S4, reliability A16)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from holdfast import CancelRun, NonRetryable, Retryable, Run, Step, SyncStep, TimedOut, job
from house import House


async def run_of(house: House, work: Any, *args: Any) -> Run[Any]:
    async with house.app(work) as app:
        run: Run[Any] = await app.get_job(work.name).trigger_and_wait(*args)  # type: ignore[union-attr]
        return run


class Hostile(Exception):
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("nobody may look")

    def __str__(self) -> str:
        raise RuntimeError("nobody may read")


RAISED: list[tuple[Any, tuple[str, str | None, str | None]]] = [
    (CancelRun("enough"), ("cancelled", "enough", None)),
    (CancelRun(), ("cancelled", None, None)),
    (TimedOut("too slow"), ("timed_out", "too slow", "TimedOut")),
    (TimedOut(), ("timed_out", "The run timed out", "TimedOut")),
    (NonRetryable("no", kind="Declined"), ("failed", "no", "Declined")),
    (NonRetryable("no"), ("failed", "no", "NonRetryable")),
    (Retryable("later"), ("failed", "later", "Retryable")),
    (ValueError("a\0b"), ("failed", "a\ufffdb", "ValueError")),
    (ValueError(), ("failed", "ValueError", "ValueError")),
    (SystemExit(0), ("failed", "0", "SystemExit")),
    (GeneratorExit(), ("failed", "GeneratorExit", "GeneratorExit")),
    (asyncio.CancelledError(), ("failed", "CancelledError", "CancelledError")),
    (ExceptionGroup("all", [CancelRun("one of one")]), ("cancelled", "one of one", None)),
    (ExceptionGroup("all", [ValueError("a"), ValueError("b")]), ("failed", "all (2 sub-exceptions)", "ExceptionGroup")),
]


@pytest.mark.parametrize("where", ["job", "step", "sync job", "sync step"])
@pytest.mark.parametrize(("raised", "expected"), RAISED, ids=[repr(raised)[:30] for raised, _ in RAISED])
def test_a_run_ends_by_what_is_raised_in_it(house: House, where: str, raised: Any, expected: Any) -> None:
    def fail() -> None:
        raise raised

    async def fail_async() -> None:
        raise raised

    @job(name="work")
    async def work(step: Step) -> None:
        await (step.run("fail", fail_async) if where == "step" else fail_async())

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        step.run("fail", fail) if where == "sync step" else fail()

    run = asyncio.run(run_of(house, work_sync if "sync" in where else work))
    if isinstance(raised, ExceptionGroup) and "step" in where:
        assert run.error_type == "StepFailed"  # a group can't be rebuilt
    else:
        assert (run.status, run.error, run.error_type) == expected
    assert run.output is None
    stored = house.steps("status")
    assert stored == ([("failed",)] if "step" in where and isinstance(raised, Exception) else [])


@pytest.mark.parametrize("form", ["async", "sync"])
def test_a16_a_keyboard_interrupt_in_a_thread_is_no_success_and_does_not_end_the_loop(house: House, form: str) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    @job(name="work")
    def work(step: SyncStep) -> None:
        if form == "sync":
            step.run("fail", fail)
        fail()

    @job
    async def after() -> int:
        return 1

    with house.app(work, after) as app:
        run = app.jobs.work.trigger_and_wait().wait(30)
        assert (run.status, run.error_type) == ("failed", "KeyboardInterrupt")
        assert app.jobs.after.run().wait(30) == 1
    assert house.steps() == []


def test_a16_an_async_step_of_a_sync_job_that_is_cancelled_is_not_saved(house: House) -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    @job
    def work(step: SyncStep) -> None:
        step.run("cancelled", cancelled)

    run = asyncio.run(run_of(house, work))
    assert (run.status, run.error_type) == ("failed", "CancelledError")
    assert house.steps() == []


@pytest.mark.parametrize("where", ["job", "step"])
def test_an_error_that_may_not_be_looked_at_ends_its_run(house: House, where: str) -> None:
    @job
    async def work(step: Step) -> None:
        async def fail() -> None:
            raise Hostile

        await (step.run("fail", fail) if where == "step" else fail())

    run = asyncio.run(run_of(house, work))
    assert run.status == "failed"
    assert "Hostile" in (run.error or "")


def test_an_output_that_can_not_be_kept_fails_the_run(house: House) -> None:
    @job
    async def work() -> Any:
        return {"x": object()}

    run = asyncio.run(run_of(house, work))
    assert (run.status, run.error_type) == ("failed", "NotKept")
    assert (run.error or "").startswith("Invalid output: $.x: ")


def test_a_step_value_above_the_limit_is_refused_and_not_made_again(house: House) -> None:
    @job
    async def work(step: Step) -> str:
        try:
            await step.run("big", lambda: "x" * 2000)
        except Exception as error:
            return str(error)
        return "kept"

    async def main() -> Run[Any]:
        async with house.app(work, max_output_bytes=1000) as app:
            return await app.jobs.work.trigger_and_wait()

    run = asyncio.run(main())
    assert run.output == "step 'big': $: larger than the limit of 1000 bytes (max_output_bytes)"
    assert house.steps("status") == [("failed",)]


def test_the_ended_run_tells_its_steps_progress_and_crashes(house: House) -> None:
    @job
    async def work(step: Step) -> None:
        await step.run("a", abs, 1)
        step.progress(3, 4, "x")
        try:
            await step.run("b", int, "x")
        except ValueError:
            pass

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger_and_wait()
            again = await run.refresh()
            assert run._row == again._row
            assert (run.completed_step_count, run.current_step_index) == (1, 2)
            assert run.progress == {"current": 3, "total": 4, "message": "x"}

    asyncio.run(main())
