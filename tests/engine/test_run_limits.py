"""S1, S4: retries of a run, the time that an attempt may take, and the deadline of all of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest

import databases
from holdfast import (
    AbortSignal,
    CancelRun,
    Event,
    Holdfast,
    Job,
    NonRetryable,
    Retry,
    RunTimedOut,
    Step,
    SyncStep,
    TimedOut,
    ValidationError,
    job,
)
from holdfast.testing import HandClock, app_for_tests, drain
from house import PATIENCE, House

BOTH = pytest.mark.parametrize("kind", ["async", "sync"])


def app_here(*jobs: Any, **options: Any) -> Holdfast:
    return app_for_tests(*jobs, url=databases.fresh(), **options)


def failing(kind: str, errors: list[Any], **options: Any) -> Job[..., Any]:
    """A job that raises these, attempt by attempt, and then says in which one it was and what had happened before."""

    def what(step: Any) -> list[Any]:
        if step.attempt < len(errors):
            raise errors[step.attempt]
        return [step.attempt, step.previous_error]

    if kind == "async":

        @job(name="work", **options)
        async def work(step: Step) -> list[Any]:
            return what(step)

        return work

    @job(name="work", **options)
    def work_sync(step: SyncStep) -> list[Any]:
        return what(step)

    return work_sync


def trigger(app: Holdfast, *args: Any, **options: Any) -> Any:
    (name,) = app._engine.registry.names()
    found = app.get_job(name)
    assert found is not None
    return found.options(**options).trigger(*args).wait()


# -- retries -------------------------------------------------------------------------------------------------------


@BOTH
def test_s1_a_run_is_retried_after_its_delays_and_knows_what_happened_before(kind: str) -> None:
    errors = [ValueError("first"), OSError("second")]
    with app_here(failing(kind, errors, retry=Retry(2, delay=10, factor=3))) as app:
        run = trigger(app)
        assert drain(app, until=9.9).wait() == 1
        waiting = run.refresh().wait()
        assert (waiting.status, waiting.attempt, waiting.error, waiting.error_type) == (
            "pending",
            1,
            "first",
            "ValueError",
        )
        assert drain(app, until=0.1).wait() == 1
        assert drain(app, until=29.9).wait() == 0
        assert drain(app, until=0.1).wait() == 1
        ended = run.refresh().wait()
        assert (ended.status, ended.attempt, ended.error, ended.crashes) == ("completed", 2, None, 0)
        assert ended.output == [2, "second"]


@BOTH
def test_s1_when_no_retry_is_left_the_last_error_is_that_of_the_run(kind: str) -> None:
    with app_here(failing(kind, [ValueError("first"), OSError("second")], retry=Retry(1))) as app:
        run = trigger(app)
        assert drain(app).wait() == 2
        ended = run.refresh().wait()
        assert (ended.status, ended.attempt, ended.error, ended.error_type) == ("failed", 1, "second", "OSError")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NonRetryable("no", kind="Declined"), "failed"),
        (CancelRun("enough"), "cancelled"),
        (ExceptionGroup("of one", [NonRetryable("no")]), "failed"),
    ],
    ids=["NonRetryable", "CancelRun", "in a group"],
)
def test_s1_some_errors_are_never_retried(error: Any, status: str) -> None:
    with app_here(failing("async", [error], retry=Retry(5))) as app:
        run = trigger(app)
        assert drain(app).wait() == 1
        assert run.refresh().wait().status == status


def test_s1_an_attempt_that_says_it_timed_out_is_retried_and_ends_as_timed_out() -> None:
    with app_here(failing("async", [TimedOut("slow"), TimedOut("slower")], retry=Retry(1))) as app:
        run = trigger(app)
        assert drain(app).wait() == 2
        ended = run.refresh().wait()
        assert (ended.status, ended.error, ended.attempt) == ("timed_out", "slower", 1)


def test_s1_the_retry_of_a_trigger_goes_before_that_of_the_job() -> None:
    with app_here(failing("async", [ValueError("x")] * 3, retry=Retry(1))) as app:
        more, none = trigger(app, retry=Retry(3)), trigger(app, retry=Retry(0))
        drain(app).wait()
        assert [run.refresh().wait().attempt for run in (more, none)] == [3, 0]
        assert [run.refresh().wait().status for run in (more, none)] == ["completed", "failed"]


def test_s1_a_retriggered_run_keeps_the_retry_and_the_timeout_of_its_trigger() -> None:
    with app_here(failing("async", [ValueError("x")] * 3)) as app:
        run = trigger(app, retry=Retry(2), timeout=9)
        drain(app).wait()
        again = app.retrigger(run.id).wait()
        drain(app).wait()
        assert again.refresh().wait().attempt == 2
        assert again._row.timeout == 9_000_000


def test_s3_saved_steps_are_not_called_again_by_a_retry_and_failed_ones_are() -> None:
    calls: list[str] = []

    def note(what: str) -> str:
        calls.append(what)
        if what == "bad" and calls.count("bad") < 3:
            raise ValueError(what)
        return what

    @job(retry=Retry(2))
    async def work(step: Step) -> None:
        await step.run("good", note, "good")
        await step.run("bad", note, "bad")

    with app_here(work) as app:
        trigger(app)
        assert drain(app).wait() == 3
    assert calls == ["good", "bad", "bad", "bad"]


def test_s1_a_crash_is_no_retry_and_keeps_the_attempt(house: House) -> None:
    @job(retry=Retry(1, delay=1000))
    async def work(step: Step) -> list[Any]:
        if step.attempt == 0:
            raise ValueError("first")
        return [step.attempt, step.previous_error]

    clock = HandClock()
    with app_for_tests(work, url=house.url, clock=clock) as app:
        run = trigger(app)
        drain(app).wait()
        house.sql(
            "update holdfast_runs set status = 'leased', lease_owner = 'dead', lease_expires_at = 1, "
            "generation = generation + 1, due = 1"
        )
        clock.advance(1000)
        assert drain(app).wait() == 1
        ended = run.refresh().wait()
        assert (ended.output, ended.attempt, ended.crashes) == ([1, "first"], 1, 1)


def test_every_retry_is_told_of(house: House) -> None:
    told: list[Event] = []
    seen = threading.Event()

    def hear(event: Event) -> None:
        told.append(event)
        if event.type == "run:fail":
            seen.set()

    with app_here(failing("async", [ValueError("a"), ValueError("b")], retry=Retry(1, delay=5))) as app:
        for type in ("run:retry", "run:fail"):
            app.on(type, hear)
        run = trigger(app)
        drain(app, until=5).wait()
        assert seen.wait(PATIENCE)
    assert [(event.type, event.run_id, event.error) for event in told] == [
        ("run:retry", run.id, "a"),
        ("run:fail", run.id, "b"),
    ]
    assert told[0].attempt == 1


def test_a_retry_that_is_none_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValidationError, match="retry: 3 is no Retry"):
        job(retry=3, name="x")(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(ValidationError, match="timeout"):
        failing("async", []).options(timeout=0)
    with pytest.raises(ValidationError, match="deadline"):
        failing("async", []).options(deadline=-1)


# -- the time of an attempt ----------------------------------------------------------------------------------------


def in_loop(app: Holdfast, main: Any) -> Any:
    async def with_app() -> Any:
        async with app:
            return await main()

    async def in_time() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await with_app()

    return asyncio.run(in_time())


def test_s4_code_that_waits_outside_of_steps_is_interrupted_when_its_time_is_over(house: House) -> None:
    arrived, ended_by = asyncio.Event(), []

    @job(timeout=60)
    async def work(step: Step) -> None:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended_by.append(step.signal.reason)

    clock = HandClock()
    app = house.app(work, lease="2h", clock=clock)

    async def main() -> Any:
        run = await app.get_job("work").trigger()  # type: ignore[union-attr]
        await arrived.wait()
        clock.advance(59)
        assert (await run.refresh()).status == "leased"
        clock.advance(1)
        return await run.wait()

    ended = in_loop(app, main)
    assert (ended.status, ended.error, ended.error_type) == (
        "timed_out",
        "The attempt took longer than 60 s",
        "TimedOut",
    )
    assert ended_by == ["timeout"]


def test_s4_the_result_of_a_run_that_timed_out_is_an_error(house: House) -> None:
    @job
    async def work() -> None:
        raise TimedOut("too slow")

    with house.app(work) as app:
        run = trigger(app)
        with pytest.raises(RunTimedOut, match="too slow"):
            run.result().wait()


def test_s4_what_a_function_returns_after_its_time_does_not_count(house: House) -> None:
    arrived = asyncio.Event()

    @job(timeout=60)
    async def work() -> str:
        arrived.set()
        try:
            await asyncio.Event().wait()
        except BaseException:
            return "swallowed"
        return "never"

    clock = HandClock()
    app = house.app(work, lease="2h", clock=clock)

    async def main() -> Any:
        run = await app.get_job("work").trigger()  # type: ignore[union-attr]
        await arrived.wait()
        clock.advance(60)
        return await run.wait()

    assert in_loop(app, main).status == "timed_out"


def test_s4_a_timed_out_attempt_is_retried(house: House) -> None:
    arrived = asyncio.Event()

    @job(timeout=60, retry=Retry(1))
    async def work(step: Step) -> list[Any]:
        if step.attempt == 0:
            arrived.set()
            await asyncio.Event().wait()
        return [step.attempt, step.previous_error]

    clock = HandClock()
    app = house.app(work, lease="2h", clock=clock)

    async def main() -> Any:
        run = await app.get_job("work").trigger()  # type: ignore[union-attr]
        await arrived.wait()
        clock.advance(60)
        return await run.wait()

    ended = in_loop(app, main)
    assert (ended.status, ended.output) == ("completed", [1, "The attempt took longer than 60 s"])


def test_s4_no_new_step_begins_after_the_time_and_a_body_that_comes_back_in_its_grace_is_dropped(house: House) -> None:
    arrived, calls = threading.Event(), []

    def slow(signal: AbortSignal | None = None) -> str:
        assert signal is not None
        arrived.set()
        signal.wait(PATIENCE)
        return "late"

    @job(timeout=60)
    def work(step: SyncStep) -> None:
        try:
            calls.append(step.run("slow", slow))
        finally:
            calls.append(step.signal.reason)
        step.run("next", calls.append, "next")

    clock = HandClock()
    with house.app(work, lease="2h", clock=clock) as app:
        run = trigger(app)
        assert arrived.wait(PATIENCE)
        clock.advance(60)
        assert run.wait().wait().status == "timed_out"
        assert [step for step in app.get_steps(run.id).wait() if step.status == "completed"] == []
    assert calls == ["timeout"]


def test_s4_a_thread_that_does_not_come_back_is_left_after_the_grace_and_its_slot_is_free(house: House) -> None:
    arrived, go = threading.Event(), threading.Event()

    @job(timeout=60, name="work")
    def work(n: int) -> int:
        if n == 0:
            arrived.set()
            go.wait(PATIENCE)
        return n

    clock = HandClock()
    with house.app(work, lease="2h", clock=clock, concurrency=1) as app:
        stuck = trigger(app, 0)
        assert arrived.wait(PATIENCE)
        clock.advance(60)
        assert stuck.refresh().wait().status == "leased"
        ended = stuck.wait()
        for _ in range(100):  # the grace begins when the loop has heard that the time is over
            clock.advance(5)
            with contextlib.suppress(TimeoutError):
                ended.wait(timeout=0.1)
                break
        assert ended.wait(timeout=0).status == "timed_out"
        assert trigger(app, 1).result().wait() == 1
        go.set()
    assert any(context == "abandoned" for context, _ in house.errors)


def test_s4_a_run_without_a_timeout_takes_as_long_as_it_takes(house: House) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    @job
    async def work() -> str:
        arrived.set()
        await go.wait()
        return "done"

    clock = HandClock()
    app = house.app(work, lease="2h", clock=clock)

    async def main() -> Any:
        run = await app.get_job("work").trigger()  # type: ignore[union-attr]
        await arrived.wait()
        for _ in range(100):
            clock.advance(9)
            await run.refresh()
        go.set()
        return await run.result()

    assert in_loop(app, main) == "done"


# -- the deadline of all attempts ----------------------------------------------------------------------------------


def test_s4_a_run_that_nobody_took_before_its_deadline_has_timed_out(house: House) -> None:
    clock = HandClock()
    with app_here(failing("async", []), clock=clock) as app:
        run = trigger(app, deadline="1h", delay="2h")
        clock.advance(3599)
        drain(app).wait()
        assert run.refresh().wait().status == "pending"
        clock.advance(1)
        drain(app).wait()
        ended = run.refresh().wait()
        assert (ended.status, ended.error) == ("timed_out", "The run did not end before its deadline")


def test_s4_a_run_is_ended_at_its_deadline_by_who_executes_it(house: House) -> None:
    arrived = asyncio.Event()

    @job(deadline=60, retry=Retry(9))
    async def work() -> None:
        arrived.set()
        await asyncio.Event().wait()

    clock = HandClock()
    app = house.app(work, lease="2h", clock=clock, polling_interval=3600)

    async def main() -> Any:
        run = await app.get_job("work").trigger()  # type: ignore[union-attr]
        await arrived.wait()
        clock.advance(60)
        return await run.wait()

    ended = in_loop(app, main)
    assert (ended.status, ended.error) == ("timed_out", "The run did not end before its deadline")


def test_s4_there_is_no_retry_that_would_come_after_the_deadline() -> None:
    with app_here(failing("async", [ValueError("x")] * 9, retry=Retry(9, delay=40), deadline=60)) as app:
        run = trigger(app)
        assert drain(app, until="1h").wait() == 2
        ended = run.refresh().wait()
        assert (ended.status, ended.error, ended.attempt) == ("failed", "x", 1)


def test_s4_listeners_and_waiters_hear_of_a_passed_deadline(house: House) -> None:
    told: list[Event] = []
    seen = threading.Event()
    clock = HandClock()
    with app_here(failing("async", []), clock=clock) as app:
        app.on("run:fail", lambda event: (told.append(event), seen.set()))
        run = trigger(app, deadline=10, delay=20)
        waiting = run.wait()
        clock.advance(10)
        drain(app).wait()
        assert waiting.wait(PATIENCE).status == "timed_out"
        assert seen.wait(PATIENCE)
    assert [(event.run_id, event.error_type) for event in told] == [(run.id, "TimedOut")]
