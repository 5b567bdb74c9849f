"""S6: a run that waits has no slot and no lease, and goes on where it was, whatever happens in between."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from holdfast import Holdfast, Retry, RunFailed, Step, SyncStep, ValidationError, job
from holdfast.testing import app_for_tests, drain
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, until

DAY = 86_400


@job
async def sleeper(step: Step, name: str = "nap", length: float = 30 * DAY) -> str:
    before = await step.run("before", str.upper, name)
    await step.sleep("rest", length)
    return before + await step.run("after", str.lower, name)


@job
async def double(n: int) -> int:
    if n < 0:
        raise ValueError(f"{n} is negative")
    return 2 * n


def test_s6_a_month_of_sleep_passes_without_waiting() -> None:
    with app_for_tests(sleeper) as app:
        run = app.jobs.sleeper.trigger().wait()
        drain(app).wait()
        waiting = run.refresh().wait()
        assert (str(waiting.status), waiting.waiting_for, waiting.lease_owner) == ("waiting", "timer", None)
        assert drain(app, until=31 * DAY).wait() == 1
        ended = run.refresh().wait()
        assert (ended.output, ended.attempt, ended.crashes, ended.generation) == ("NAPnap", 0, 0, 2)


def test_s6_a_sleep_is_from_when_it_was_first_asked_for() -> None:
    clock = HandClock()
    with app_for_tests(sleeper, clock=clock) as app:
        run = app.jobs.sleeper.trigger("x", 10 * DAY).wait()
        drain(app).wait()
        clock.advance(9 * DAY)
        drain(app).wait()
        assert run.refresh().wait().waiting_for == "timer"
        clock.advance(1 * DAY)
        drain(app).wait()
        assert run.refresh().wait().output == "Xx"


def test_s6_sleep_until_a_moment() -> None:
    @job
    async def until_noon(step: Step, at: datetime) -> int:
        await step.sleep_until("noon", at)
        return 1

    clock = HandClock()
    with app_for_tests(until_noon, clock=clock) as app:
        past = app.jobs.until_noon.trigger(datetime(2000, 1, 1, tzinfo=UTC)).wait()
        later = app.jobs.until_noon.trigger(datetime.fromtimestamp(clock.now() / 1e6 + 60, UTC)).wait()
        drain(app).wait()
        assert past.refresh().wait().output == 1
        assert later.refresh().wait().output is None
        drain(app, until=60).wait()
        assert later.refresh().wait().output == 1


def test_s6_a_short_sleep_keeps_the_execution_and_not_the_slot(house: House) -> None:
    tops: list[str] = []

    @job
    async def nap(step: Step) -> str:
        tops.append("top")
        await step.sleep("nap", 0.2)
        return "rested"

    async def main() -> None:
        async with house.app(nap, concurrency=1) as app:
            runs = [await app.jobs.nap.trigger() for _ in range(5)]
            await until(lambda: len(tops) == 5)  # one slot, and all of them are under way
            assert [await run.result(timeout=PATIENCE) for run in runs] == ["rested"] * 5
            assert len(tops) == 5

    asyncio.run(main())


@pytest.mark.parametrize("warm_for", [0.0, 60.0], ids=["suspended", "warm"])
def test_s6_code_before_a_wait_runs_again_only_if_the_run_was_suspended(house: House, warm_for: float) -> None:
    tops: list[str] = []

    @job
    async def nap(step: Step) -> int:
        tops.append("top")
        await step.sleep("nap", 0.4)
        return len(tops)

    async def main() -> None:
        async with house.app(nap, warm_for=warm_for) as app:
            assert await app.jobs.nap.run() == (1 if warm_for else 2)

    asyncio.run(main())


def test_s6_a_sync_job_sleeps_and_is_suspended_too(house: House) -> None:
    tops: list[str] = []

    @job
    def nap(step: SyncStep) -> list[Any]:
        tops.append("top")
        first = step.run("first", lambda: threading.current_thread() is not threading.main_thread())
        step.sleep("nap", 0.4)
        return [first, step.call(double.bind(4)), *step.map(double, [1, 2])]

    async def main() -> None:
        async with house.app(nap, double, warm_for=0) as app:
            assert await app.jobs.nap.run() == [True, 8, 2, 4]
            assert len(tops) == 4

    asyncio.run(main())


def test_s6_finally_runs_at_a_suspension_and_can_write_nothing(house: House) -> None:
    seen: list[str] = []

    @job
    async def tidy(step: Step) -> str:
        try:
            await step.sleep("nap", 0.4)
            return "done"
        finally:
            seen.append("finally")
            await step.run("tidy", seen.append, "body")

    async def main() -> None:
        async with house.app(tidy, warm_for=0) as app:
            assert await app.jobs.tidy.run() == "done"
            assert seen == ["finally", "finally", "body"]

    asyncio.run(main())


def test_s6_what_swallows_everything_does_not_stop_a_suspension(house: House) -> None:
    seen: list[str] = []

    @job
    async def stubborn(step: Step) -> str:
        try:
            await step.sleep("nap", 0.4)
        except BaseException as error:
            seen.append(type(error).__name__)
            return "swallowed"
        return "woken"

    async def main() -> None:
        async with house.app(stubborn, warm_for=0) as app:
            assert await app.jobs.stubborn.run() == "woken"
            assert len(seen) == 1

    asyncio.run(main())


@pytest.mark.parametrize("return_exceptions", [False, True])
def test_s6_waits_in_a_gather(house: House, return_exceptions: bool) -> None:
    bodies: list[int] = []

    @job
    async def both(step: Step) -> list[Any]:
        async def branch(n: int) -> int:
            await step.run(f"step-{n}", bodies.append, n)
            await step.sleep(f"nap-{n}", 0.4)
            return await step.call(double.bind(n), name=f"call-{n}")

        return list(await asyncio.gather(*(branch(n) for n in range(3)), return_exceptions=return_exceptions))

    async def main() -> None:
        async with house.app(both, double, warm_for=0) as app:
            assert await app.jobs.both.run() == [0, 2, 4]
            assert sorted(bodies) == [0, 1, 2]

    asyncio.run(main())


def test_s6_waits_in_a_task_group_under_shield_and_under_a_timeout(house: House) -> None:
    @job
    async def grouped(step: Step) -> list[int]:
        async with asyncio.TaskGroup() as group:
            one = group.create_task(step.call(double.bind(1), name="one"))
            two = group.create_task(step.call(double.bind(2), name="two"))
        async with asyncio.timeout(1000):
            await asyncio.shield(step.sleep("nap", 0.4))
        return [one.result(), two.result()]

    async def main() -> None:
        async with house.app(grouped, double, warm_for=0) as app:
            assert await app.jobs.grouped.run() == [2, 4]

    asyncio.run(main())


def test_s6_a_run_is_not_suspended_while_a_step_runs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.engine.waits._SETTLE", 0.0)
    gate, calls = threading.Event(), list[str]()

    def body() -> None:
        calls.append("body")
        gate.wait(PATIENCE)

    @job
    async def busy(step: Step) -> str:
        nap = asyncio.ensure_future(step.sleep("nap", 0.4))
        await step.run("body", body)
        await nap
        return "done"

    async def main() -> None:
        async with house.app(busy, double, warm_for=0) as app:
            run = await app.jobs.busy.trigger()
            await until(lambda: house.sql("select 1 from holdfast_waits"))
            assert await app.jobs.double.run(1) == 2  # meanwhile it could have been suspended
            assert (await run.refresh()).status == "leased"
            gate.set()
            assert await run.result(timeout=PATIENCE) == "done"
            assert calls == ["body"]

    asyncio.run(main())


def test_s6_a_branch_that_awaits_something_else_runs_again(house: House) -> None:
    begun: list[str] = []

    @job
    async def mixed(step: Step) -> str:
        async def slow() -> str:
            begun.append("slow")
            if len(begun) == 1:
                await asyncio.sleep(PATIENCE)
            return await step.run("slow", str.upper, "done")

        other = asyncio.create_task(slow())
        await step.sleep("nap", 1)
        return await other

    async def main() -> None:
        async with house.app(mixed, warm_for=0) as app:
            assert await app.jobs.mixed.run() == "DONE"
            assert begun == ["slow", "slow"]

    asyncio.run(main())


def test_s6_waits_inside_of_a_step_are_refused(house: House) -> None:
    @job
    async def inside(step: Step) -> None:
        async def body() -> None:
            await step.sleep("nap", 1)

        await step.run("body", body)

    async def main() -> None:
        async with house.app(inside) as app:
            run = await app.jobs.inside.trigger_and_wait()
            assert "can't wait inside of a step ('body')" in (run.error or "")

    asyncio.run(main())


def test_s6_a_wait_that_is_over_is_over_in_the_next_attempt(house: House) -> None:
    tops: list[int] = []

    @job(retry=Retry(max_retries=1))
    async def twice(step: Step) -> int:
        tops.append(step.attempt)
        await step.sleep("nap", 0.4)
        if step.attempt == 0:
            raise ValueError("again")
        return step.attempt

    async def main() -> None:
        async with house.app(twice, warm_for=0) as app:
            assert await app.jobs.twice.run() == 1
            assert tops == [0, 0, 1]

    asyncio.run(main())


@pytest.mark.parametrize("warm_for", [0, 5])
def test_s6_a_signal_that_came_too_late_stays_too_late_in_the_next_attempt(house: House, warm_for: float) -> None:
    done: list[str] = []
    sent = asyncio.Event()

    @job(retry=Retry(max_retries=1))
    async def approval(step: Step) -> str:
        if step.attempt == 1:
            await sent.wait()
        try:
            await step.wait_for_signal("approval", timeout=0.2)
        except TimeoutError as error:
            await step.run("reject", done.append, "rejected")
            if step.attempt == 0:
                raise ConnectionError("no mail") from None
            return str(error)
        await step.run("ship", done.append, "shipped")
        return "shipped"

    async def main() -> None:
        async with house.app(approval, warm_for=warm_for) as app:
            run = await app.jobs.approval.trigger()
            await until(lambda: done)
            await app.send_signal(run.id, "approval", True)
            sent.set()
            assert await run.result(timeout=PATIENCE) == "no signal 'approval' came in time"
            assert done == ["rejected"]

    asyncio.run(main())


@pytest.mark.parametrize("nap", [30 * DAY, 3], ids=["suspended", "in memory"])
@pytest.mark.parametrize("takes", [4, 6])
def test_s4_the_timeout_counts_what_an_attempt_runs_and_not_what_it_waits(
    house: House, takes: float, nap: float
) -> None:
    clock = HandClock()

    @job(timeout=10)
    async def work(step: Step) -> str:
        await step.run("before", clock.advance, takes)
        await step.sleep("nap", nap)
        await step.run("after", clock.advance, takes)
        await step.sleep("a moment", 1)
        return "in time"

    def rests(app: Holdfast, after: str, seconds: float) -> bool:
        """It waits after this step: suspended, or here with its slot given back."""
        worker = app._engine.worker
        assert worker is not None
        if seconds > DAY:
            # And the claim that sees when to wake it is over: a lease that was asked for before such a leap has passed.
            there = house.status() == ["waiting"] and worker._due is not None and not worker._claiming
        else:
            there = [execution.slot_free for execution in worker.executing] == [True]
        return there and house.steps("name")[-1] == (after,)

    ended: list[str] = []

    async def main() -> None:
        async with house.app(work, clock=clock, lease=3600, lease_renew_interval=1000) as app:
            for type in ("run:complete", "run:fail"):
                app.on(type, lambda event: ended.append(event.type))
            await app.jobs.work.trigger()
            await until(lambda: rests(app, "before", nap))
            clock.advance(nap)
            if takes == 4:
                await until(lambda: rests(app, "after", 1))
                clock.advance(1)
            await until(lambda: ended)

    asyncio.run(main())
    assert ended == ["run:complete" if takes == 4 else "run:fail"]
    assert house.status() == ["completed" if takes == 4 else "timed_out"]


@pytest.mark.parametrize("holds", [False, True])
def test_s5_a_run_gives_its_key_up_while_it_waits_unless_its_job_holds_it(holds: bool) -> None:
    @job(hold_key_while_waiting=holds)
    async def work(step: Step, name: str) -> None:
        said.append(f"{name} begins")
        await step.sleep("nap", DAY)
        said.append(f"{name} ends")

    said: list[str] = []
    with app_for_tests(work) as app:
        for name in ("a", "b"):
            app.jobs.work.options(concurrency_key="k").trigger(name).wait()
            drain(app).wait()
        drain(app, until=10 * DAY).wait()
    assert said == (
        ["a begins", "a begins", "a ends", "b begins", "b begins", "b ends"]
        if holds
        else ["a begins", "b begins", "a begins", "a ends", "b begins", "b ends"]
    )


def test_s5_a_call_with_the_key_that_the_run_above_holds_is_refused() -> None:
    @job
    async def below() -> None: ...

    @job(hold_key_while_waiting=True)
    async def above(step: Step, key: str) -> None:
        await step.call(app.jobs.below.options(concurrency_key=key).bind())

    with app_for_tests(above, below) as app:
        circle = app.jobs.above.options(concurrency_key="k").trigger("k").wait()
        other = app.jobs.above.options(concurrency_key="k2").trigger("other").wait()
        drain(app).wait()
        ended = circle.refresh().wait()
        assert (ended.status, "each would wait for the other" in str(ended.error)) == ("failed", True)
        assert other.refresh().wait().status == "completed"


def test_a_flag_that_is_none_is_refused() -> None:
    wrong: Any = "yes"
    with pytest.raises(ValidationError, match="hold_key_while_waiting: 'yes' must be True or False"):
        job(hold_key_while_waiting=wrong)(double.fn)


def test_s6_a_cancelled_sleeper_is_cancelled_at_once() -> None:
    with app_for_tests(sleeper) as app:
        run = app.jobs.sleeper.trigger().wait()
        drain(app).wait()
        assert str(run.cancel().wait().status) == "cancelled"
        assert drain(app, until=31 * DAY).wait() == 0


def test_s6_many_sleepers_are_rows_and_nothing_else(house: House) -> None:
    async def main() -> None:
        async with house.app(sleeper) as app:
            await app.trigger_many([app.jobs.sleeper.bind() for _ in range(200)])
            await until(lambda: house.sql("select count(*) from holdfast_runs where status = 'waiting'") == [(200,)])
            worker = app._engine.worker
            assert worker is not None
            await until(lambda: not worker.executing)
            assert worker.free_slots() == 10

    asyncio.run(main())


def test_a_worker_that_stops_hands_back_what_only_waits(house: House) -> None:
    async def main() -> None:
        async with house.app(sleeper, warm_for=60) as app:
            await app.jobs.sleeper.trigger("x", 30)
            await until(lambda: house.sql("select 1 from holdfast_steps"))
            worker = app._engine.worker
            assert worker is not None
            await until(lambda: worker.free_slots() == 10)
        assert house.status() == ["pending"]

    asyncio.run(main())


def test_bad_waits_are_refused_where_they_are_written(house: House) -> None:
    seen: list[str] = []

    @job
    async def bad(step: Step) -> None:
        asked: list[Any] = [
            lambda: step.sleep("a", -1),
            lambda: step.sleep("a", "soon"),
            lambda: step.sleep_until("a", "noon"),  # type: ignore[arg-type]
            lambda: step.wait_for_signal(7),  # type: ignore[call-overload]
            lambda: step.call(double),  # type: ignore[arg-type]
            lambda: step.call(double.options(idempotency_key="k").bind(1)),
            lambda: step.gather(*[double.bind(1)] * 11),
            lambda: step.map(double, [1], on_failure="ignore"),  # type: ignore[call-overload]
        ]
        for ask in asked:
            try:
                await ask()
            except ValidationError as error:
                seen.append(error.message)

    async def main() -> None:
        async with house.app(bad, double, max_children=10) as app:
            await app.jobs.bad.run()
            assert len(seen) == 8
            assert house.sql("select count(*) from holdfast_runs") == [(1,)]
            assert "11 calls are more than max_children, which is 10" in seen[6]

    asyncio.run(main())


def test_what_nobody_registered_is_refused_before_anything_is_written(house: House) -> None:
    @job
    async def parent(step: Step) -> int:
        return await step.call(double.bind(1))

    async def main() -> None:
        async with house.app(parent) as app:
            with pytest.raises(RunFailed, match="Unknown job: double"):
                await app.jobs.parent.run()
            assert house.sql("select count(*) from holdfast_runs") == [(1,)]

    asyncio.run(main())


def test_inline_a_sync_job_can_not_wait() -> None:
    @job
    def nap(step: SyncStep) -> None:
        step.sleep("nap", 1)

    with app_for_tests(nap, inline=True) as app:
        run = app.jobs.nap.trigger().wait()
        drain(app).wait()
        assert "without threads a sync job can't wait" in (run.refresh().wait().error or "")


def test_inline_an_async_job_sleeps() -> None:
    with app_for_tests(sleeper, inline=True) as app:
        run = app.jobs.sleeper.trigger().wait()
        assert drain(app, until=31 * DAY).wait() == 2
        assert run.refresh().wait().output == "NAPnap"
