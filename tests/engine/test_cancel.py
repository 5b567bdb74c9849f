"""S4: cancelling; S2: a lease that is over. What happens to the code that is running."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from holdfast import ConflictError, NotFoundError, RunCancelled, Step, SyncStep, job
from holdfast.engine.signals import AbortSignal
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, Stuck, until

GRACE = 5.0


def test_s4_a_body_in_flight_comes_to_its_end_and_its_result_is_dropped(house: House) -> None:
    seen: list[Any] = []
    told = asyncio.Event()

    @job
    async def work(step: Step) -> str:
        async def body(signal: AbortSignal | None = None) -> int:
            began.set()
            assert signal is not None
            seen.append(await signal)
            seen.append("finished")
            return 1

        began.set()
        try:
            await step.run("first", body)
            seen.append("went on")
        except Exception:
            seen.append("swallowed")
        finally:
            told.set()
        return "output"

    began = asyncio.Event()

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger()
            await began.wait()
            cancelled = await run.cancel()
            assert (cancelled.status, cancelled.is_terminal) == ("cancelled", True)
            await told.wait()
            with pytest.raises(RunCancelled, match=run.id):
                await run.result()
        assert seen == ["cancelled", "finished"]

    asyncio.run(main())
    assert house.steps() == []
    assert house.status() == ["cancelled"]
    assert house.errors == []


@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_s4_no_except_and_no_finally_brings_a_cancelled_run_back(house: House, kind: Any) -> None:
    calls: list[str] = []
    over = asyncio.Event()

    @job
    async def work(step: Step) -> str:
        async def body() -> None:
            began.set()
            await step.signal

        try:
            await step.run("first", body)
        except kind:
            calls.append("caught")
        finally:
            try:
                await step.run("clean up", calls.append, "cleaned")
            except kind:
                calls.append("refused")
            finally:
                over.set()
        return "output"

    began = asyncio.Event()

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger()
            await began.wait()
            await run.cancel()
            await over.wait()
        assert calls == ([] if kind is Exception else ["caught", "refused"])

    asyncio.run(main())
    assert house.status() == ["cancelled"]
    assert house.steps() == []


@pytest.mark.parametrize("uses_step", [True, False])
def test_s4_waiting_outside_of_steps_is_interrupted_after_the_grace(
    house: House, clock: HandClock, uses_step: bool
) -> None:
    ends: list[str] = []

    @job
    async def work(step: Step) -> None:
        if uses_step:
            await step.run("first", lambda: 1)
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("interrupted")
            raise
        finally:
            over.set()

    began, over = asyncio.Event(), asyncio.Event()

    async def main() -> None:
        async with house.app(work, clock=clock, cancel_grace=GRACE, lease=1000) as app:
            run = await app.jobs.work.trigger()
            await began.wait()
            await run.cancel()
            await until(lambda: any(timer.due == GRACE * 1e6 for timer in clock._timers))
            clock.advance(GRACE - 0.1)
            assert not over.is_set()
            clock.advance(0.2)
            await over.wait()
            assert app._engine.worker is not None
            await until(lambda: app._engine.worker.free_slots() == 10)  # type: ignore[union-attr]

    asyncio.run(main())
    assert ends == ["interrupted"]
    assert house.errors == []


def test_s4_a_job_that_swallows_its_interruption_is_interrupted_again_and_loses_its_slot(
    house: House, clock: HandClock
) -> None:
    interrupted: list[int] = []

    @job
    async def work(step: Step) -> None:
        while len(interrupted) < 3:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                interrupted.append(1)

    began = asyncio.Event()

    async def main() -> None:
        async with house.app(work, clock=clock, cancel_grace=GRACE, lease=1000, concurrency=1) as app:
            run = await app.jobs.work.trigger()
            await began.wait()
            await run.cancel()
            for times in range(1, 4):
                due = len(interrupted)
                while len(interrupted) == due:
                    clock.advance(1)
                    await asyncio.sleep(0.001)
                assert len(interrupted) == times
            worker = app._engine.worker
            assert worker is not None
            await until(lambda: not worker.executing)
            assert worker.free_slots() == 1

    asyncio.run(main())
    assert [context for context, _ in house.errors] == ["abandoned"]


def test_s4_a_thread_is_told_and_after_the_grace_its_slot_is_used_by_another(house: House, clock: HandClock) -> None:
    began, may_end = threading.Event(), threading.Event()
    reasons: list[Any] = []

    @job
    def stubborn(step: SyncStep) -> str:
        began.set()
        step.signal.wait(PATIENCE)
        reasons.append(step.signal.reason)
        may_end.wait(PATIENCE)
        try:
            step.run("later", reasons.append, "ran")
        finally:
            reasons.append("left")
        return "output"

    @job
    async def other() -> str:
        return "other"

    async def main() -> None:
        async with house.app(stubborn, other, clock=clock, cancel_grace=GRACE, lease=1000, concurrency=1) as app:
            run = await app.jobs.stubborn.trigger()
            assert await asyncio.to_thread(began.wait, PATIENCE)
            waiting = await app.jobs.other.trigger()
            await run.cancel()
            await until(lambda: reasons == ["cancelled"])
            while not house.errors:
                clock.advance(1)
                await asyncio.sleep(0.001)
            assert await waiting.result(timeout=None) == "other"
            may_end.set()
            worker = app._engine.worker
            assert worker is not None
            await until(lambda: not worker.executing)

    asyncio.run(main())
    assert reasons == ["cancelled", "left"]
    [(context, text)] = house.errors
    assert context == "abandoned"
    assert "was told to stop (cancelled) and did not" in text
    assert house.status() == ["cancelled", "completed"]


def test_s4_too_many_stuck_functions_stop_the_worker_which_says_why(house: House, clock: HandClock) -> None:
    may_end = threading.Event()
    begun: list[str] = []

    @job
    def stubborn(step: SyncStep) -> None:
        begun.append(step.run_id)
        may_end.wait(PATIENCE)

    async def main() -> None:
        async with house.app(stubborn, clock=clock, cancel_grace=GRACE, lease=1000, concurrency=1) as app:
            worker = app._engine.worker
            assert worker is not None
            for number in range(2):
                run = await app.jobs.stubborn.trigger()
                await until(lambda: len(begun) == number + 1)  # noqa: B023
                await run.cancel()
                while len(house.errors) == number:
                    clock.advance(1)
                    await asyncio.sleep(0.001)
            assert worker.free_slots() == 0
            last = await app.jobs.stubborn.trigger()
            assert worker.order() is None
            assert (await last.refresh()).status == "pending"
            assert "this worker takes no more runs until some of them return" in house.errors[-1][1]
            may_end.set()
            await last.wait()

    asyncio.run(main())
    assert house.status() == ["cancelled", "cancelled", "completed"]


def test_s4_a_pending_run_is_cancelled_and_never_executed(house: House) -> None:
    calls: list[int] = []

    @job
    async def work() -> None:
        calls.append(1)

    async def main() -> None:
        async with house.app(work, worker=False) as app:
            run = await app.jobs.work.trigger()
            assert (await run.cancel()).status == "cancelled"
        async with house.app(work) as app:
            assert await app.process_until_idle() == 0

    asyncio.run(main())
    assert calls == []


def test_s4_a_cancel_in_another_process_reaches_the_run(house: House) -> None:
    reasons: list[str] = []

    @job
    async def work(step: Step) -> None:
        async def body() -> None:
            began.set()
            reasons.append(await step.signal)
            over.set()

        await step.run("first", body)

    began, over = asyncio.Event(), asyncio.Event()

    async def main() -> None:
        async with house.app(work) as app, house.app(work, worker=False) as other:
            run = await app.jobs.work.trigger()
            await began.wait()
            await other.cancel(run.id)
            async with asyncio.timeout(PATIENCE):
                await over.wait()
            with pytest.raises(RunCancelled):
                await run.result()

    asyncio.run(main())
    assert reasons == ["cancelled"]
    assert house.steps() == []
    assert house.errors == []


def test_s4_what_can_not_be_cancelled_says_why(house: House) -> None:
    @job
    async def work() -> None:
        pass

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger()
            await run.wait()
            with pytest.raises(ConflictError, match=f"Cannot cancel completed run: {run.id}"):
                await app.cancel(run.id)
            with pytest.raises(NotFoundError, match="Run not found: nobody"):
                await app.cancel("nobody")
            pending = await app.jobs.work.options(delay=1000).trigger()
            await pending.cancel()
            with pytest.raises(ConflictError, match=f"Cannot cancel already cancelled run: {pending.id}"):
                await pending.cancel()

    asyncio.run(main())


def test_s4_a_faulty_callback_of_the_signal_harms_nobody(house: House, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    @job
    async def work(step: Step) -> None:
        def faulty(reason: str) -> None:
            raise RuntimeError("broken")

        step.signal.on_abort(faulty)
        step.signal.on_abort(heard.append)
        began.set()
        await step.signal
        step.signal.on_abort(heard.append)
        over.set()
        step.raise_if_aborted()

    began, over = asyncio.Event(), asyncio.Event()

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger()
            await began.wait()
            await run.cancel()
            await over.wait()

    asyncio.run(main())
    assert heard == ["cancelled", "cancelled"]
    assert "a callback of on_abort failed" in caplog.text


def test_s2_no_step_begins_after_the_lease_is_over_by_our_own_clock(house: House, clock: HandClock) -> None:
    calls: list[str] = []
    ends: list[str] = []

    @job
    async def work(step: Step) -> str:
        began.set()
        await may_go.wait()
        step.log.info("before")
        step.progress(1)
        try:
            await step.run("late", calls.append, "late")
        except BaseException as error:
            ends.append(type(error).__name__)
            over.set()
        return "output"

    began, may_go, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def main() -> None:
        app = house.app(work, clock=clock, lease=30)
        await app.init()
        await app.jobs.work.trigger()
        await began.wait()
        app._engine.keeper.stop()  # nobody renews, as in a process that was frozen
        clock.advance(31)
        may_go.set()
        await over.wait()
        await until(lambda: not app._engine.worker.executing)  # type: ignore[union-attr]
        await app.stop()

    asyncio.run(main())
    assert calls == []
    assert ends == ["Unwind"]
    assert house.status() in (["leased"], ["pending"])
    assert any(context == "lease-renewal" for context, _ in house.errors)


@pytest.mark.parametrize("form", ["async", "sync"])
def test_s2_what_a_zombie_writes_is_refused(house: House, stuck: Stuck, form: str) -> None:
    ends: list[str] = []
    over = threading.Event()

    @job(name="work")
    async def work(step: Step) -> str:
        try:
            step.log.info("a line")
            step.progress(1)
            await step.run("wait", stuck.hang)
        finally:
            over.set()
        return "output"

    @job(name="work")
    def work_sync(step: SyncStep) -> str:
        try:
            step.run("wait", stuck.hang_sync)
        finally:
            over.set()
        return "output"

    one: Any = work if form == "async" else work_sync

    async def main() -> None:
        app = house.app(one)
        app._engine.watcher.look = lambda *_: None  # type: ignore[method-assign]  # as if it were slow
        await app.init()
        await app.get_job("work").trigger()  # type: ignore[union-attr]
        await stuck.came()
        house.take_away(for_seconds=1000)
        stuck.let_go()
        assert await asyncio.to_thread(over.wait, PATIENCE)
        await app.stop()

    asyncio.run(main())
    assert ends == []
    assert house.steps() == []
    assert house.status() == ["pending"]
    assert [context for context, _ in house.errors] == ["lease-renewal"]


def test_s4_an_async_body_that_does_not_end_loses_its_slot_and_its_result(house: House, clock: HandClock) -> None:
    ends: list[str] = []

    @job
    async def stubborn(step: Step) -> str:
        async def body() -> int:
            began.set()
            await may_end.wait()
            ends.append("body")
            return 1

        try:
            await step.run("first", body)
        except asyncio.CancelledError:
            ends.append("unwound")
            await asyncio.Event().wait()  # swallows it, and waits for ever
        return "output"

    @job
    async def other() -> int:
        return 1

    began, may_end = asyncio.Event(), asyncio.Event()

    async def main() -> None:
        async with house.app(stubborn, other, clock=clock, cancel_grace=GRACE, lease=1000, concurrency=1) as app:
            run = await app.jobs.stubborn.trigger()
            await began.wait()
            await run.cancel()
            while not house.errors:
                clock.advance(1)
                await asyncio.sleep(0.001)
            assert await app.jobs.other.run() == 1
            assert ends == []
            may_end.set()
            worker = app._engine.worker
            assert worker is not None
            while worker.executing:
                clock.advance(1)
                await asyncio.sleep(0.001)
            assert worker.free_slots() == 1

    asyncio.run(main())
    assert ends == ["body", "unwound"]
    assert house.steps() == []
    assert [context for context, _ in house.errors] == ["abandoned"]
