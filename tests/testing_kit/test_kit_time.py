"""Days pass in the testing kit without waiting: sleeps, retries, timeouts and deadlines, in both colours."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from holdfast import Children, ChildResult, Done, Holdfast, Retry, RunFailed, RunTimedOut, Step, SyncStep, job
from holdfast.testing import HandClock, answering, app_for_tests, drain, run, takes

DAY = 86_400
TOPS: list[str] = []


@job(retry=Retry(max_retries=3, delay="30m", factor=2))
async def month(step: Step) -> list[Any]:
    """Thirty days of all that there is."""
    slow = step.options(timeout="1m", retry=Retry(max_retries=1, delay="1h"))
    if step.attempt < 2:
        raise ConnectionError("not yet")  # half an hour, then one
    found: list[Any] = [step.attempt]
    await step.sleep("a week", "7d")
    try:
        await step.wait_for_signal("answer", timeout="10d")
    except TimeoutError:
        found.append("nobody")
    try:
        await slow.run("slow", slow_bank)  # a try, an hour, and another
    except TimeoutError:
        found.append("too slow")
    await step.sleep("the rest", "13d")
    return found


async def slow_bank() -> None:
    TOPS.append("called")
    await takes("10m")


@job(retry=Retry(max_retries=3, delay="30m", factor=2))
def month_sync(step: SyncStep) -> list[Any]:
    slow = step.options(timeout="1m", retry=Retry(max_retries=1, delay="1h"))
    if step.attempt < 2:
        raise ConnectionError("not yet")
    found: list[Any] = [step.attempt]
    step.sleep("a week", "7d")
    try:
        step.wait_for_signal("answer", timeout="10d")
    except TimeoutError:
        found.append("nobody")
    try:
        slow.run("slow", slow_bank_sync)
    except TimeoutError:
        found.append("too slow")
    step.sleep("the rest", "13d")
    return found


def slow_bank_sync() -> None:
    TOPS.append("called")
    takes("10m").wait()


@pytest.mark.parametrize("one", [month, month_sync], ids=lambda one: one.name)
def test_thirty_days_of_sleeps_retries_and_timeouts_pass_without_waiting(one: Any) -> None:
    TOPS.clear()
    clock = HandClock()
    with app_for_tests(one, clock=clock) as app:
        started = getattr(app.jobs, one.name).trigger().wait()
        begin = clock.now()
        drain(app, until="30d").wait(30)
        assert started.refresh().wait().waiting_for == "timer"
        drain(app, until="1d").wait(30)
        ended = started.refresh().wait()
        assert ended.output == [2, "nobody", "too slow"]
        assert ended.completed_at - ended.created_at > timedelta(days=30, hours=2.5)
        assert clock.now() - begin == 31 * DAY * 1_000_000
        assert TOPS == ["called"] * 2


def test_async_tests_let_days_pass_in_the_same_way() -> None:
    async def main() -> None:
        async with app_for_tests(month, month_sync) as app:
            runs = [await app.jobs.month.trigger(), await app.jobs.month_sync.trigger()]
            await drain(app, until="31d")
            assert [await one.result() for one in runs] == [[2, "nobody", "too slow"]] * 2

    asyncio.run(main())


@pytest.mark.parametrize("one", [month, month_sync], ids=lambda one: one.name)
def test_running_a_job_passes_all_the_time_that_it_needs(one: Any) -> None:
    assert run(one).wait(30) == [2, "nobody", "too slow"]


def test_a_month_may_have_an_answer_in_it() -> None:
    @job
    async def ask(step: Step) -> list[int]:
        return [await step.wait_for_signal("answer", type=int) for _ in range(2)]

    with answering("answer", 1, 2):
        assert run(ask).wait(30) == [1, 2]
        with answering("answer", 3, 4):
            assert run(ask).wait(30) == [3, 4]
        assert run(ask).wait(30) == [1, 2]
    with pytest.raises(AssertionError, match=r"waits for nothing that time brings\. Have the signal ready"):
        run(ask).wait(30)


def test_an_answer_is_there_before_time_passes_and_each_run_gets_its_own() -> None:
    @job
    async def ask(step: Step) -> str:
        try:
            return await step.wait_for_signal("answer", type=str, timeout="1d")
        except TimeoutError:
            return "nobody"

    with app_for_tests(ask) as app:
        runs = [app.jobs.ask.trigger().wait() for _ in range(2)]
        with answering("answer", "yes"):
            assert drain(app).wait() == 4
        assert [one.refresh().wait().output for one in runs] == ["yes", "yes"]
        late = app.jobs.ask.trigger().wait()
        drain(app, until="2d").wait()
        assert late.refresh().wait().output == "nobody"


def test_the_time_of_an_attempt_and_of_a_run_come_true_where_somebody_takes_longer() -> None:
    @job(timeout="1h", retry=Retry(max_retries=1, delay="1h"))
    async def slow(step: Step) -> str:
        if step.attempt == 0:
            await takes("2h")
        return "in time"

    @job(deadline="5d")
    def late(step: SyncStep) -> str:
        step.sleep("too long", "6d")
        return "never"

    assert run(slow).wait(30) == "in time"
    with pytest.raises(RunTimedOut, match="deadline"):
        run(late).wait(30)


def test_a_step_that_is_not_too_slow_takes_its_time() -> None:
    @job
    async def careful(step: Step) -> float:
        return await step.options(timeout="1m").run("work", work)

    clock = HandClock()

    async def work() -> float:
        began = clock.steady()
        await takes("59s")
        return clock.steady() - began

    with app_for_tests(careful, clock=clock) as app:
        started = app.jobs.careful.trigger().wait()
        drain(app).wait(30)
        assert started.refresh().wait().output == 59


def test_without_a_run_or_a_clock_to_turn_nothing_takes_time() -> None:
    takes("1d").wait(5)

    @job
    async def quick() -> int:
        await takes("1d")
        return 1

    app = Holdfast("sqlite://", jobs=[quick])
    with app:
        assert app.jobs.quick.run().wait(30) == 1


def test_trees_and_loops_take_no_time_either() -> None:
    app = Holdfast("sqlite://", worker=False)
    looks: list[int] = []

    @app.job(retry=Retry(max_retries=2, delay="1h"))
    async def flaky(step: Step, n: int) -> int:
        await step.sleep("rest", "1d")
        if step.attempt < n:
            raise ValueError("not yet")
        return n

    @app.job
    async def fan() -> Children[int]:
        return Children(0, [flaky.bind(n) for n in range(3)])

    @app.job
    async def ended(output: int, children: list[ChildResult]) -> int:
        return sum(child.unwrap(flaky) for child in children)

    async def look() -> Done[int] | None:
        looks.append(1)
        return Done(len(looks)) if len(looks) == 10 else None

    poll = app.loop("poll", look, max_iterations=20, delay=lambda number: f"{number}d")
    parent = fan.finalize_with(ended)

    @app.job
    async def both(step: Step) -> list[Any]:
        total, polled = await step.gather(parent.bind(), poll.bind())
        return [total, polled.output]

    assert run(both).wait(30) == [3, 10]


def test_a_run_whose_child_fails_says_so() -> None:
    app = Holdfast("sqlite://", worker=False)

    @app.job
    async def bad() -> None:
        raise ValueError("no good")

    @app.job
    async def above(step: Step) -> None:
        await step.call(bad.bind())

    with pytest.raises(RunFailed, match="no good"):
        run(above).wait(30)
