"""S1, S3: a step's own retries: how often, how long after, what is counted, and what a crash leaves of them."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from holdfast import (
    Holdfast,
    NonRetryable,
    Retry,
    RunFailed,
    RunStatus,
    Step,
    StepFailed,
    SyncStep,
    ValidationError,
    job,
)
from holdfast.testing.clock import HandClock
from holdfast.testing.kit import skip_rests
from house import PATIENCE, House, until


class Flaky:
    """Raises as often as it was told to, then gives what it was given."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def call(self, value: Any = "ok") -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error or ValueError(f"no {self.calls}")
        return value

    async def call_async(self, value: Any = "ok") -> Any:
        return self.call(value)


def attempts(house: House, columns: str = "number, error") -> list[Any]:
    return house.sql(f"select {columns} from holdfast_step_attempts order by name, occurrence, run_attempt, number")


def _rests(app: Holdfast) -> bool:
    """Whether the one run there is waits for its step's next try."""
    worker = app._engine.worker
    return worker is not None and any(execution.signal._callbacks for execution in worker.executing)


@pytest.mark.parametrize("form", ["async job, async step", "async job, sync step", "sync job", "inline"])
def test_s3_a_step_is_tried_again_until_it_succeeds(house: House, form: str) -> None:
    flaky = Flaky(2)

    @job
    async def work(step: Step) -> str:
        call = flaky.call_async if form == "async job, async step" else flaky.call
        return str(await step.options(retry=Retry(2)).run("flaky", call, "done"))

    @job(name="work")
    def work_sync(step: SyncStep) -> str:
        return str(step.options(retry=Retry(2)).run("flaky", flaky.call, "done"))

    app = house.app(work_sync if form == "sync job" else work, inline=form == "inline")
    with app:
        run = app.jobs.work_sync if form == "sync job" else app.jobs.work
        assert run.run().wait(PATIENCE) == "done"
    assert flaky.calls == 3
    assert attempts(house) == [(0, "ValueError: no 1"), (1, "ValueError: no 2"), (2, None)]
    assert house.steps("status, attempt") == [("completed", 0)]


def test_s3_the_last_failure_is_the_steps_and_the_only_one_that_is_told(house: House) -> None:
    flaky = Flaky(9)
    told: list[str] = []

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(max_retries=2)).run("flaky", flaky.call)

    with house.app(work) as app:
        app.on("step:fail", lambda event: told.append(event.error))
        app.on("step:start", lambda event: told.append("start"))
        with pytest.raises(RunFailed, match="no 3"):
            app.jobs.work.run().wait(PATIENCE)
    assert flaky.calls == 3
    assert told == ["start", "ValueError: no 3"]
    assert house.steps("status") == [("failed",)]


@pytest.mark.parametrize("error", [NonRetryable("never"), ValidationError("wrong")], ids=lambda e: type(e).__name__)
def test_s1_what_another_try_can_not_change_is_not_tried_again(house: House, error: Exception) -> None:
    flaky = Flaky(9, error)

    @job
    def work(step: SyncStep) -> None:
        step.options(retry=Retry(5)).run("flaky", flaky.call)

    with house.app(work) as app, pytest.raises(RunFailed):
        app.jobs.work.run().wait(PATIENCE)
    assert flaky.calls == 1
    assert attempts(house) == []


def test_s3_a_value_that_can_not_be_kept_is_not_tried_again(house: House) -> None:
    flaky = Flaky(0)

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(5)).run("flaky", flaky.call, object())

    with house.app(work) as app, pytest.raises(RunFailed):
        app.jobs.work.run().wait(PATIENCE)
    assert flaky.calls == 1


def test_an_error_is_judged_by_its_own_class_and_not_by_the_one_that_is_kept(house: House) -> None:
    class Final(NonRetryable):
        """Local: nobody can rebuild it."""

    flaky = Flaky(9, Final("never"))
    seen: list[Exception] = []

    @job
    async def work(step: Step) -> None:
        try:
            await step.options(retry=Retry(5)).run("flaky", flaky.call)
        except Exception as error:
            seen.append(error)

    with house.app(work) as app:
        app.jobs.work.run().wait(PATIENCE)
    assert flaky.calls == 1
    assert type(seen[0]) is StepFailed


@pytest.mark.parametrize("form", ["async", "sync"])
def test_s1_the_delay_is_the_formulas_by_the_engines_clock(house: House, clock: HandClock, form: str) -> None:
    flaky, at = Flaky(3), []
    retry = Retry(3, delay=2, factor=3, max_delay=10)

    def body() -> Any:
        at.append(clock.steady())
        return flaky.call()

    @job
    async def work(step: Step) -> None:
        await step.options(retry=retry).run("flaky", body)

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        step.options(retry=retry).run("flaky", body)

    async def main() -> None:
        async with house.app(work if form == "async" else work_sync, clock=clock, worker="thread") as app:
            handle = app.get_job("work")
            assert handle is not None
            run = await handle.trigger()
            for number, seconds in enumerate((2, 6, 10), 1):
                await until(lambda number=number: len(at) == number and _rests(app))
                clock.advance(seconds - 0.5)
                await until(lambda: app._engine.committer.backlog == 0)
                assert len(at) == number
                clock.advance(0.5)
            assert (await run.wait(PATIENCE)).status == "completed"

    asyncio.run(main())
    assert at == [0, 2, 8, 18]


def test_s1_jitter_is_drawn_for_each_delay(house: House, clock: HandClock) -> None:
    flaky, passed = Flaky(3), []

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(3, delay=10, jitter=0.5)).run("flaky", flaky.call)

    app = house.app(work, clock=clock)
    draws = iter([0.0, 0.5, 1.0])
    app._engine.chance = lambda: next(draws)
    app._engine.pass_time = passed.append
    with app:
        app.jobs.work.run().wait(PATIENCE)
    assert passed == [10, 7.5, 5]


def test_each_failed_try_is_a_line_in_the_log_under_its_step(house: House) -> None:
    flaky = Flaky(1)

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(3)).run("flaky", flaky.call)

    with house.app(work) as app:
        run = app.jobs.work.trigger_and_wait().wait(PATIENCE)
        (line,) = app.get_logs(run.id).wait()
    assert (line.level, line.step_name) == ("warning", "flaky")
    assert line.message == "try 1 of 4 failed, again in 0 s: ValueError: no 1"


# -- what a crash leaves ------------------------------------------------------------------------------------------


async def _crash_while_resting(house: House, clock: HandClock, work: Any, tries: int = 1) -> str:
    """A run whose worker has died after so many failed tries."""
    app = house.app(work, clock=clock)
    await app.init()
    run = await app.jobs.work.trigger()
    await until(lambda: len(attempts(house)) == tries)
    house.take_away(for_seconds=100_000)
    await app.stop(timeout=0)
    house.sql("update holdfast_runs set run_at = created_at, due = 1")
    return str(run.id)


def test_s3_failed_tries_are_counted_across_a_crash(house: House, clock: HandClock) -> None:
    flaky = Flaky(9)

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(2, delay=5)).run("flaky", flaky.call)

    async def main() -> None:
        run_id = await _crash_while_resting(house, clock, work)
        assert flaky.calls == 1
        app = house.app(work, clock=clock)
        skip_rests(app._engine)
        async with app:
            run = await app.wait_for_run(run_id, timeout=PATIENCE)
        assert (run.status, run.error) == ("failed", "no 3")

    asyncio.run(main())
    assert flaky.calls == 3
    assert [number for number, _ in attempts(house)] == [0, 1, 2]


def test_s3_the_rest_of_the_delay_is_left_to_the_next_execution(house: House, clock: HandClock) -> None:
    flaky, passed = Flaky(1), []

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(2, delay=60)).run("flaky", flaky.call)

    async def main() -> None:
        run_id = await _crash_while_resting(house, clock, work)
        clock.advance(20)
        app = house.app(work, clock=clock)
        app._engine.pass_time = passed.append
        async with app:
            await app.wait_for_run(run_id, timeout=PATIENCE)

    asyncio.run(main())
    assert passed == [40]


def test_s3_a_call_that_is_lost_in_a_crash_is_no_failed_try(house: House, stuck: Any) -> None:
    flaky = Flaky(1)

    @job
    async def work(step: Step) -> Any:
        async def body() -> Any:
            await stuck.hang()
            return flaky.call()

        return await step.options(retry=Retry(1)).run("flaky", body)

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        flaky.calls, flaky.failures = 0, 1  # what the lost call has done does not count
        run = await house.resume(work, run_id)
        assert run.output == "ok"

    asyncio.run(main())
    assert attempts(house, "number") == [(0,), (1,)]


def test_s3_the_final_failure_is_raised_again_without_a_call(house: House, stuck: Any) -> None:
    flaky = Flaky(9)

    @job
    async def work(step: Step) -> str:
        try:
            await step.options(retry=Retry(1)).run("flaky", flaky.call)
        except ValueError as error:
            await step.run("hang", stuck.hang)
            return str(error)
        return "never"

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        assert (await house.resume(work, run_id)).output == "no 2"

    asyncio.run(main())
    assert flaky.calls == 2


def test_s3_a_new_attempt_of_the_run_has_the_retries_anew(house: House) -> None:
    flaky = Flaky(9)

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(1)).run("flaky", flaky.call)

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger_and_wait()
            # As a retry of the run does it.
            house.sql(
                "update holdfast_runs set status = 'pending', attempt = 1, completed_at = null, error = null, "
                "error_type = null"
            )
        async with house.app(work) as app:
            await app.wait_for_run(run.id, timeout=PATIENCE)
            (record,) = await app.get_steps(run.id)
        tried = [(one.run_attempt, one.number, one.error) for one in record.attempts]
        assert tried == [(0, 0, "ValueError: no 1"), (0, 1, "ValueError: no 2"),
                         (1, 0, "ValueError: no 3"), (1, 1, "ValueError: no 4")]  # fmt: skip

    asyncio.run(main())
    assert flaky.calls == 4


def test_only_a_step_with_retries_of_a_run_that_was_executed_before_asks_for_tries(house: House, stuck: Any) -> None:
    asked: list[str] = []

    @job
    async def work(step: Step) -> None:
        await step.run("plain", stuck.hang)
        if asked_for:
            await asyncio.gather(*[step.options(retry=Retry(1)).run(f"s{n}", int) for n in range(5)])

    def watched(app: Holdfast) -> Holdfast:
        find = app._engine.store.failed_tries
        app._engine.store.failed_tries = lambda *args: (asked.append("tries"), find(*args))[1]  # type: ignore[method-assign]
        return app

    async def main() -> None:
        nonlocal asked_for
        run_id = await house.crash(work, stuck)
        async with watched(house.app(work)) as app:
            await app.wait_for_run(run_id, timeout=PATIENCE)
            assert asked == []
        stuck.calls = 0
        stuck.may_go.clear()
        stuck.is_there.clear()
        asked_for = True
        run_id = await house.crash(work, stuck)
        async with watched(house.app(work)) as app:
            await app.wait_for_run(run_id, timeout=PATIENCE)
        assert asked == ["tries"]

    asked_for = False
    asyncio.run(main())


# -- what ends a rest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["async", "sync"])
def test_s4_a_cancel_ends_the_rest_and_there_is_no_further_try(house: House, clock: HandClock, form: str) -> None:
    flaky, ended = Flaky(9), threading.Event()

    @job
    async def work(step: Step) -> None:
        try:
            await step.options(retry=Retry(9, delay=60)).run("flaky", flaky.call)
        finally:
            ended.set()

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        try:
            step.options(retry=Retry(9, delay=60)).run("flaky", flaky.call)
        finally:
            ended.set()

    async def main() -> None:
        async with house.app(work if form == "async" else work_sync, clock=clock) as app:
            handle = app.get_job("work")
            assert handle is not None
            run = await handle.trigger()
            await until(lambda: len(attempts(house)) == 1)
            await run.cancel()
            await until(ended.is_set)

    asyncio.run(main())
    assert flaky.calls == 1
    assert house.status() == ["cancelled"]


@pytest.mark.parametrize("form", ["async", "sync"])
def test_s4_no_try_begins_after_a_cancel_that_came_while_the_tries_before_were_read(
    house: House, stuck: Any, form: str
) -> None:
    flaky, asked, told, ended = Flaky(0), threading.Event(), threading.Event(), threading.Event()

    @job
    async def work(step: Step) -> None:
        await step.run("first", stuck.hang)
        try:
            await step.options(retry=Retry(1)).run("flaky", flaky.call)
        finally:
            ended.set()

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        step.run("first", stuck.hang_sync)
        try:
            step.options(retry=Retry(1)).run("flaky", flaky.call)
        finally:
            ended.set()

    async def main() -> None:
        chosen = work if form == "async" else work_sync
        run_id = await house.crash(chosen, stuck)
        flaky.calls = 0  # the lost execution may have come so far
        ended.clear()
        app = house.app(chosen)
        find = app._engine.store.failed_tries

        def slowly(*args: Any) -> Any:
            asked.set()
            told.wait(PATIENCE)
            return find(*args)

        app._engine.store.failed_tries = slowly  # type: ignore[method-assign]
        async with app:
            await until(asked.is_set)
            await app.cancel(run_id)
            told.set()
            await until(ended.is_set)

    asyncio.run(main())
    assert flaky.calls == 0
    assert house.status() == ["cancelled"]


@pytest.mark.parametrize("form", ["async", "sync"])
def test_s4_a_worker_that_stops_hands_a_resting_run_back_at_once(house: House, clock: HandClock, form: str) -> None:
    flaky = Flaky(1)

    @job
    async def work(step: Step) -> Any:
        return await step.options(retry=Retry(9, delay=20)).run("flaky", flaky.call)

    @job(name="work")
    def work_sync(step: SyncStep) -> Any:
        return step.options(retry=Retry(9, delay=20)).run("flaky", flaky.call)

    chosen = work if form == "async" else work_sync

    async def main() -> None:
        app = house.app(chosen, clock=clock)
        await app.init()
        handle = app.get_job("work")
        assert handle is not None
        run = await handle.trigger()
        await until(lambda: len(attempts(house)) == 1)
        await app.stop(timeout=None)  # as long as it takes, which is no time
        assert house.sql("select status, attempt, crashes from holdfast_runs") == [("pending", 0, 0)]
        again = house.app(chosen, clock=clock)
        skip_rests(again._engine)
        async with again:
            assert (await again.wait_for_run(run.id, timeout=PATIENCE)).output == "ok"

    asyncio.run(main())
    assert flaky.calls == 2
    assert attempts(house, "number, generation") == [(0, 1), (1, 2)]


def test_s4_a_worker_that_stops_lets_the_steps_beside_a_resting_one_come_to_their_end(
    house: House, clock: HandClock, stuck: Any
) -> None:
    flaky = Flaky(9)

    @job
    async def work(step: Step) -> None:
        await asyncio.gather(
            step.options(retry=Retry(9, delay=60)).run("flaky", flaky.call), step.run("beside", stuck.hang)
        )

    async def main() -> None:
        app = house.app(work, clock=clock)
        await app.init()
        await app.jobs.work.trigger()
        await stuck.came()
        await until(lambda: len(attempts(house)) == 1)
        stopped = asyncio.ensure_future(asyncio.wrap_future(_waited(app)))
        await until(lambda: app._engine.worker is not None and app._engine.worker.shutdown.aborted)
        stuck.let_go()
        await until(lambda: house.steps() != [])
        clock.advance(31)  # the time to drain is over
        await stopped

    asyncio.run(main())
    assert house.steps() == [("beside", 0, "completed")]
    assert house.status() == ["pending"]


def _waited(app: Holdfast) -> Any:
    import concurrent.futures

    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    reply = app.stop(timeout=30)
    reply.when_done(lambda: future.set_result(None))
    return future


def test_s2_a_failed_try_of_a_zombie_is_refused_and_ends_it(house: House, clock: HandClock, stuck: Any) -> None:
    @job
    async def work(step: Step) -> None:
        async def body() -> None:
            await stuck.hang()
            raise ValueError("late")

        await step.options(retry=Retry(9)).run("flaky", body)

    async def main() -> None:
        app = house.app(work, clock=clock)
        await app.init()
        await app.jobs.work.trigger()
        await stuck.came()
        house.take_away(for_seconds=100_000)
        stuck.let_go()
        await until(lambda: not app._engine.worker.executing)  # type: ignore[union-attr]
        await app.stop(timeout=0)

    asyncio.run(main())
    assert attempts(house) == []
    assert stuck.calls == 1


# -- a step inside a step ------------------------------------------------------------------------------------------


def test_s3_each_try_of_a_step_has_steps_of_its_own_inside(house: House, stuck: Any) -> None:
    calls: list[str] = []

    def inner(word: str) -> str:
        calls.append(word)
        return word

    @job
    async def work(step: Step) -> Any:
        tries = 0

        async def outer() -> str:
            nonlocal tries
            tries += 1
            number = await step.run("inner", inner, "inner")
            if len(calls) < 2:
                raise ValueError("once")
            await stuck.hang()
            return number

        return await step.options(retry=Retry(3)).run("outer", outer)

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        assert (await house.resume(work, run_id)).output == "inner"

    asyncio.run(main())
    assert calls == ["inner", "inner"], "the second try's own was saved"
    assert sorted(name for name, *_ in house.steps()) == ["outer", "outer (try 2) > inner", "outer > inner"]


# -- options -------------------------------------------------------------------------------------------------------


def test_a_step_function_carries_its_retries(house: House) -> None:
    flaky = Flaky(2)
    app = house.app()

    @app.step(retry=Retry(2))
    async def fetch() -> Any:
        return flaky.call()

    @app.step(retry=Retry(2))
    def load() -> Any:
        return flaky.call()

    @app.job
    async def work() -> Any:
        return await fetch()

    @app.job
    def work_sync() -> Any:
        flaky.calls = 0
        return load()

    with app:
        assert work.run().wait(PATIENCE) == "ok"
        assert work_sync.run().wait(PATIENCE) == "ok"
    assert flaky.calls == 3


def test_options_add_to_those_before_and_leave_the_step_as_it_was(house: House) -> None:
    seen: list[Any] = []

    @job
    async def work(step: Step) -> None:
        both = step.options(retry=Retry(1)).options(timeout="2s")
        seen.extend([both._how.retry, both._how.timeout, step._how.retry, both.run_id == step.run_id])

    with house.app(work) as app:
        app.jobs.work.run().wait(PATIENCE)
    assert seen == [Retry(1), 2.0, None, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"retry": 3}, "retry: 3 is none"), ({"timeout": 0}, "timeout: 0 must be longer than 0 seconds"),
     ({"timeout": "soon"}, "timeout: 'soon' is not a duration")],
    ids=str,
)  # fmt: skip
def test_wrong_options_are_refused_where_they_are_given(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Holdfast().step(**options)
    assert words in str(raised.value)


def test_a_database_in_trouble_delays_the_next_try(house: House, caplog: pytest.LogCaptureFixture) -> None:
    from databases import StoreHere
    from holdfast.basis.errors import StoreUnavailable

    class Refusing(StoreHere):
        refusals = 2

        def save_attempts(self, tx: Any, saves: Any) -> Any:
            if self.refusals:
                self.refusals -= 1
                raise StoreUnavailable("not now")
            return super().save_attempts(tx, saves)

    flaky = Flaky(1)

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(1)).run("flaky", flaky.call)

    store = Refusing(house.url)
    with caplog.at_level(logging.CRITICAL), house.app(work, store=store) as app:
        assert app.jobs.work.trigger_and_wait().wait(PATIENCE).status == RunStatus.COMPLETED
    assert flaky.calls == 2
    assert [number for number, _ in attempts(house)] == [0, 1]


# -- inline --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["async", "sync"])
def test_inline_a_long_rest_renews_the_lease_by_itself(house: House, clock: HandClock, form: str) -> None:
    flaky, done = Flaky(1), threading.Event()

    @job
    async def work(step: Step) -> Any:
        return await step.options(retry=Retry(1, delay=100)).run("flaky", flaky.call)

    @job(name="work")
    def work_sync(step: SyncStep) -> Any:
        return step.options(retry=Retry(1, delay=100)).run("flaky", flaky.call)

    def turn() -> None:
        while not done.is_set():
            if _rests(app):
                clock.advance(5)
            done.wait(0.005)

    app = house.app(work if form == "async" else work_sync, clock=clock, inline=True, worker=False)
    hands = threading.Thread(target=turn)
    hands.start()
    try:
        with app:
            handle = app.get_job("work")
            assert handle is not None
            # By its id, and not `.run()`: whose timeout the hands would bring about.
            run = handle.trigger().wait()
            app.process_until_idle().wait()
            assert run.refresh().wait().output == "ok"
            assert run.refresh().wait().generation == 1
    finally:
        done.set()
        hands.join()
    assert flaky.calls == 2
    assert house.errors == []
