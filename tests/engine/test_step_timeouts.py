"""S4: a step that takes too long: who is told, who is cancelled, who is left, and what its result is worth."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from holdfast import AbortSignal, Holdfast, Retry, Run, Step, SyncStep, job
from holdfast.basis.errors import StepFailed
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, until


class Bodies:
    """Bodies of a step that are under way until somebody lets them go."""

    def __init__(self) -> None:
        self.begun = 0
        self.reasons: list[str | None] = []
        self.may_go = threading.Event()
        self.heard = threading.Event()
        self.returned = threading.Event()

    async def polite(self) -> str:
        """Awaits, and lets a cancellation go by."""
        self.begun += 1
        await asyncio.Event().wait()
        return "never"

    async def deaf(self) -> str:
        """Swallows its cancellation."""
        self.begun += 1
        while not self.may_go.is_set():
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                self.heard.set()
        self.returned.set()
        return "late"

    def blocking(self, signal: AbortSignal | None = None) -> str:
        """Does not look at its signal."""
        assert signal is not None
        self.begun += 1
        signal.on_abort(lambda _: self.heard.set())
        assert self.may_go.wait(PATIENCE)
        self.reasons.append(signal.reason)
        self.returned.set()
        return "late"

    def listening(self, signal: AbortSignal | None = None) -> str:
        """Returns early when it is told."""
        assert signal is not None
        self.begun += 1
        assert signal.wait(PATIENCE)
        self.reasons.append(signal.reason)
        self.returned.set()
        return "half a result"


@pytest.fixture
def bodies() -> Any:
    bodies = Bodies()
    yield bodies
    bodies.may_go.set()


Choice = Callable[[Bodies], Callable[[], Any]]
LISTENERS: dict[str, Choice] = {"polite": lambda b: b.polite, "listening": lambda b: b.listening}
STUBBORN: dict[str, Choice] = {"deaf": lambda b: b.deaf, "blocking": lambda b: b.blocking}
COLOURS = ["async", "sync"]


def work_of(colour: str, body: Callable[[], Any], **options: Any) -> Any:
    """A job of one step, which gives how that ended."""

    @job(name="work")
    async def work(step: Step) -> str:
        try:
            return str(await step.options(**options).run("slow", body))
        except Exception as error:
            return f"{type(error).__module__}.{type(error).__name__}: {error}"

    @job(name="work")
    def work_sync(step: SyncStep) -> str:
        try:
            return str(step.options(**options).run("slow", body))
        except Exception as error:
            return f"{type(error).__module__}.{type(error).__name__}: {error}"

    return work if colour == "async" else work_sync


async def trigger(app: Holdfast) -> Run[Any]:
    handle = app.get_job("work")
    assert handle is not None
    return await handle.trigger()


def timer(clock: HandClock, seconds: float) -> Callable[[], bool]:
    """Whether a timer stands that far ahead: the body is being timed."""
    return lambda: any(
        not one.cancelled and one.due - clock._steady == round(seconds * 1_000_000) for one in list(clock._timers)
    )


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", LISTENERS)
def test_s4_a_step_that_takes_too_long_fails_with_a_timeout_error(
    house: House, clock: HandClock, bodies: Bodies, kind: str, colour: str
) -> None:
    work = work_of(colour, LISTENERS[kind](bodies), timeout="2s")

    async def main() -> None:
        async with house.app(work, clock=clock) as app:
            run = await trigger(app)
            await until(lambda: bodies.begun == 1 and timer(clock, 2)())
            clock.advance(1.9)
            await until(timer(clock, 0.1))
            clock.advance(0.1)
            ended = await run.wait(PATIENCE)
            assert ended.output == "builtins.TimeoutError: step 'slow' took longer than 2 s"

    asyncio.run(main())
    assert house.steps("status") == [("failed",)]
    assert bodies.reasons == ([] if kind == "polite" else ["timeout"])
    assert house.errors == []


def test_s3_the_timeout_error_is_the_same_on_replay(house: House, clock: HandClock, bodies: Bodies, stuck: Any) -> None:
    @job
    async def work(step: Step) -> str:
        try:
            await step.options(timeout=2).run("slow", bodies.polite)
        except TimeoutError as error:
            await step.run("hang", stuck.hang)
            return str(error)
        return "never"

    async def main() -> None:
        app = house.app(work, clock=clock)
        await app.init()
        run = await app.jobs.work.trigger()
        await until(lambda: bodies.begun == 1 and timer(clock, 2)())
        clock.advance(2)
        await stuck.came()
        house.take_away(for_seconds=1000)
        await app.stop(timeout=0)
        house.sql("update holdfast_runs set run_at = created_at, due = 1")
        stuck.let_go()
        assert (await house.resume(work, run.id)).output == "step 'slow' took longer than 2 s"

    asyncio.run(main())
    assert bodies.begun == 1


@pytest.mark.parametrize("colour", COLOURS)
def test_s4_a_step_that_took_too_long_is_tried_again_if_retries_are_left(
    house: House, clock: HandClock, bodies: Bodies, colour: str
) -> None:
    work = work_of(colour, bodies.listening, timeout=2, retry=Retry(1))

    async def main() -> None:
        async with house.app(work, clock=clock) as app:
            run = await trigger(app)
            for number in (1, 2):
                await until(lambda number=number: bodies.begun == number and timer(clock, 2)())
                clock.advance(2)
            ended = await run.wait(PATIENCE)
            assert "took longer" in ended.output
            (record,) = await app.get_steps(run.id)
        assert [one.error for one in record.attempts] == ["TimeoutError: step 'slow' took longer than 2 s"] * 2

    asyncio.run(main())
    assert bodies.begun == 2


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", STUBBORN)
def test_s4_a_body_that_does_not_come_back_is_left_after_the_grace_and_not_tried_again(
    house: House, clock: HandClock, bodies: Bodies, kind: str, colour: str
) -> None:
    work = work_of(colour, STUBBORN[kind](bodies), timeout=2, retry=Retry(5))

    async def main() -> None:
        async with house.app(work, clock=clock, cancel_grace=3) as app:
            worker = app._engine.worker
            assert worker is not None
            run = await trigger(app)
            await until(lambda: bodies.begun == 1 and timer(clock, 2)())
            clock.advance(2)
            await until(lambda: bodies.heard.is_set() and timer(clock, 3)())
            assert house.steps() == []
            clock.advance(3)
            assert (await run.wait(PATIENCE)).output == "builtins.TimeoutError: step 'slow' took longer than 2 s"
            assert worker._abandoned == 1
            bodies.may_go.set()
            await until(lambda: bodies.returned.is_set() and worker._abandoned == 0)

    asyncio.run(main())
    assert bodies.begun == 1
    ((context, text),) = house.errors
    assert context == "abandoned"
    assert "Step 'slow'" in text
    assert "was told to stop (timeout) and did not" in text


@pytest.mark.parametrize("kind", STUBBORN)
def test_s4_what_a_body_returns_after_it_was_told_is_dropped(
    house: House, clock: HandClock, bodies: Bodies, kind: str
) -> None:
    work = work_of("async", STUBBORN[kind](bodies), timeout=2)

    async def main() -> None:
        async with house.app(work, clock=clock, cancel_grace=3) as app:
            run = await trigger(app)
            await until(lambda: bodies.begun == 1 and timer(clock, 2)())
            clock.advance(2)
            await until(bodies.heard.is_set)
            bodies.may_go.set()
            assert "took longer" in (await run.wait(PATIENCE)).output

    asyncio.run(main())
    assert house.errors == []


def test_s4_too_many_bodies_that_were_left_stop_the_claims(house: House, clock: HandClock, bodies: Bodies) -> None:
    work = work_of("async", bodies.blocking, timeout=2)

    async def main() -> None:
        async with house.app(work, clock=clock, concurrency=1, cancel_grace=1) as app:
            worker = app._engine.worker
            assert worker is not None
            for number in (1, 2):
                run = await trigger(app)
                await until(lambda number=number: bodies.begun == number and timer(clock, 2)())
                clock.advance(2)
                await until(timer(clock, 1))
                clock.advance(1)
                await run.wait(PATIENCE)
            assert worker.free_slots() == 0
            bodies.may_go.set()
            await until(lambda: worker.free_slots() == 1)

    asyncio.run(main())
    assert "takes no more runs" in house.errors[-1][1]


def test_s3_a_run_that_is_claimed_when_a_left_body_comes_back_has_no_part_of_that_steps_name(
    house: House, clock: HandClock, bodies: Bodies
) -> None:
    work = work_of("async", bodies.deaf, timeout=2)

    @job
    async def after(step: Step) -> str:
        return await step.run("clean", lambda: "done")

    async def main() -> None:
        async with house.app(work, after, clock=clock, concurrency=1, cancel_grace=1) as app:
            for number in (1, 2):  # with two of them left behind nothing is claimed any more
                run = await trigger(app)
                await until(lambda number=number: bodies.begun == number and timer(clock, 2)())
                clock.advance(2)
                await until(timer(clock, 1))
                clock.advance(1)
                await run.wait(PATIENCE)
            waiting = await app.jobs.after.trigger()
            bodies.may_go.set()
            await waiting.wait(PATIENCE)

    asyncio.run(main())
    assert house.sql("select name from holdfast_steps where status = 'completed'") == [("clean",)]


# -- at the same moment --------------------------------------------------------------------------------------------


def test_s4_a_body_that_is_done_when_its_time_is_over_has_made_it(house: House, clock: HandClock) -> None:
    async def in_time() -> str:
        clock.advance(2)  # the timer is due, and its call is on its way to the loop
        return "made it"

    work = work_of("async", in_time, timeout=2)

    async def main() -> None:
        async with house.app(work, clock=clock) as app:
            assert (await (await trigger(app)).wait(PATIENCE)).output == "made it"

    asyncio.run(main())


def test_s4_a_thread_that_has_returned_when_its_time_is_over_has_made_it(house: House, clock: HandClock) -> None:
    """Its answer is in the loop's queue, before or behind the timer."""

    def in_time() -> str:
        clock.advance(2)
        return "made it"

    work = work_of("async", in_time, timeout=2)

    async def main() -> None:
        async with house.app(work, clock=clock) as app:
            outputs = [(await (await trigger(app)).wait(PATIENCE)).output for _ in range(5)]
        told = "builtins.TimeoutError: step 'slow' took longer than 2 s"
        # The thread may be between the two when the loop looks: then it is late.
        assert set(outputs) <= {"made it", told}

    asyncio.run(main())


def test_s4_a_checkpoint_is_not_part_of_the_time(house: House, clock: HandClock) -> None:
    async def quick() -> str:
        return "saved"

    work = work_of("async", quick, timeout=2)

    async def main() -> None:
        async with house.app(work, clock=clock) as app:
            gate, looked, save = threading.Event(), threading.Event(), app._engine.store.save_steps

            def slow_save(tx: Any, saves: Any) -> Any:
                looked.set()
                assert gate.wait(PATIENCE)
                return save(tx, saves)

            app._engine.store.save_steps = slow_save  # type: ignore[method-assign]
            run = await trigger(app)
            await until(looked.is_set)
            clock.advance(4)
            gate.set()
            assert (await run.wait(PATIENCE)).output == "saved"

    asyncio.run(main())


@pytest.mark.parametrize("colour", COLOURS)
def test_s4_a_cancel_before_the_timeout_is_what_the_body_is_told(
    house: House, clock: HandClock, bodies: Bodies, colour: str
) -> None:
    work = work_of(colour, bodies.blocking, timeout=2)

    async def main() -> None:
        async with house.app(work, clock=clock, cancel_grace=3) as app:
            run = await trigger(app)
            await until(lambda: bodies.begun == 1 and timer(clock, 2)())
            await run.cancel()
            await until(bodies.heard.is_set)
            clock.advance(2)
            bodies.may_go.set()
            await until(lambda: app._engine.worker is not None and not app._engine.worker.executing)

    asyncio.run(main())
    assert bodies.reasons == ["cancelled"]
    assert (house.steps(), house.status(), house.errors) == ([], ["cancelled"], [])


@pytest.mark.parametrize("colour", COLOURS)
def test_s4_a_cancel_after_the_timeout_drops_the_failure_too(
    house: House, clock: HandClock, bodies: Bodies, colour: str
) -> None:
    work = work_of(colour, bodies.blocking, timeout=2, retry=Retry(3))

    async def main() -> None:
        async with house.app(work, clock=clock, cancel_grace=3) as app:
            run = await trigger(app)
            await until(lambda: bodies.begun == 1 and timer(clock, 2)())
            clock.advance(2)
            await until(bodies.heard.is_set)
            await run.cancel()
            bodies.may_go.set()
            await until(lambda: app._engine.worker is not None and not app._engine.worker.executing)

    asyncio.run(main())
    assert bodies.reasons == ["timeout"], "the first reason stays"
    assert (house.steps(), house.status()) == ([], ["cancelled"])


def test_a_job_that_cancels_its_step_cancels_the_timed_body(house: House, clock: HandClock, bodies: Bodies) -> None:
    @job
    async def work(step: Step) -> str:
        task = asyncio.create_task(step.options(timeout=60).run("slow", bodies.polite))
        await until(lambda: bodies.begun == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return "went on"

    async def main() -> None:
        async with house.app(work, clock=clock) as app:
            assert await app.jobs.work.run() == "went on"

    asyncio.run(main())
    assert house.steps() == []


def test_a_timed_body_that_ends_the_interpreter_fails_its_step_only(house: House) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    @job
    async def work(step: Step) -> None:
        await step.options(timeout=60).run("leave", leave)

    with house.app(work) as app:
        run = app.jobs.work.trigger_and_wait().wait(PATIENCE)
        assert (run.status, run.error_type) == ("failed", "SystemExit")


@pytest.mark.parametrize("colour", COLOURS)
def test_a_step_in_time_is_as_if_it_had_no_limit(house: House, colour: str) -> None:
    async def fetch(name: str, *, times: int) -> str:
        return name * times

    def load(name: str, *, times: int) -> str:
        return name * times

    @job(name="work")
    async def work(step: Step) -> list[str]:
        timed = step.options(timeout="1m")
        return [await timed.run("fetch", fetch, "a", times=2), await timed.run("load", load, "b", times=3)]

    @job(name="work")
    def work_sync(step: SyncStep) -> list[str]:
        timed = step.options(timeout="1m")
        return [timed.run("fetch", fetch, "a", times=2), timed.run("load", load, "b", times=3)]

    with house.app(work if colour == "async" else work_sync) as app:
        handle = app.get_job("work")
        assert handle is not None
        assert handle.run().wait(PATIENCE) == ["aa", "bbb"]


def test_a_timed_body_may_have_steps_inside(house: House) -> None:
    @job
    async def work(step: Step) -> str:
        async def outer() -> str:
            return str(await step.run("inner", str, "x"))

        return str(await step.options(timeout=60).run("outer", outer))

    with house.app(work) as app:
        assert app.jobs.work.run().wait(PATIENCE) == "x"
    assert sorted(name for name, *_ in house.steps()) == ["outer", "outer > inner"]


def test_s4_a_body_that_was_told_begins_no_further_steps(house: House, clock: HandClock, bodies: Bodies) -> None:
    unwound = threading.Event()

    @job
    def work(step: SyncStep) -> str:
        def outer() -> None:
            bodies.begun += 1
            assert bodies.may_go.wait(PATIENCE)
            try:
                step.run("inner", str, "x")
            except BaseException:
                unwound.set()
                raise

        try:
            step.options(timeout=2).run("outer", outer)
        except TimeoutError:
            return str(step.run("after", str, "went on"))
        return "never"

    async def main() -> None:
        async with house.app(work, clock=clock, cancel_grace=3) as app:
            run = await trigger(app)
            await until(lambda: bodies.begun == 1 and timer(clock, 2)())
            clock.advance(2)
            await until(timer(clock, 3))
            clock.advance(3)
            assert (await run.wait(PATIENCE)).output == "went on"
            bodies.may_go.set()
            await until(unwound.is_set)

    asyncio.run(main())
    assert [name for name, *_ in house.steps()] == ["outer", "after"]


def test_an_error_of_a_timed_body_is_raised_as_it_is(house: House) -> None:
    class Mine(Exception):
        pass

    def body() -> None:
        raise Mine("no")

    work = work_of("async", body, timeout=60)
    with house.app(work) as app:
        handle = app.get_job("work")
        assert handle is not None
        output = handle.run().wait(PATIENCE)
    assert output == f"{StepFailed.__module__}.StepFailed: {Mine.__qualname__}: no"


def test_a_signal_that_was_given_is_not_replaced(house: House) -> None:
    mine = AbortSignal()
    seen: list[Any] = []

    def body(signal: AbortSignal | None = None) -> None:
        seen.append(signal)

    @job
    async def work(step: Step) -> None:
        await step.options(timeout=60).run("body", body, signal=mine)

    with house.app(work) as app:
        app.jobs.work.run().wait(PATIENCE)
    assert seen == [mine]
