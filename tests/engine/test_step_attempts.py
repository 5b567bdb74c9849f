"""What is seen of the tries of a step while it is tried, and afterwards."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from holdfast import Retry, Step, StepAttempt, SyncStep, job
from holdfast.testing.clock import HandClock
from holdfast.testing.kit import skip_rests
from house import PATIENCE, House, Stuck, until


def rows(house: House) -> list[Any]:
    return house.sql("select name, number, ended_at is null from holdfast_step_attempts order by name, number")


def at(clock: HandClock) -> datetime:
    return datetime.fromtimestamp(clock.now() / 1e6, UTC)


def test_a_long_step_shows_since_when_it_runs_within_a_renewal_interval(
    house: House, clock: HandClock, stuck: Stuck
) -> None:
    @job
    async def work(step: Step) -> None:
        await step.run("quick", str)
        await step.run("long", stuck.hang)

    async def main() -> None:
        async with house.app(work, clock=clock) as app:
            began = at(clock)
            run = await app.jobs.work.trigger()
            await stuck.came()
            assert [step.name for step in await app.get_steps(run.id)] == ["quick"]
            clock.advance(10)
            await until(lambda: rows(house) == [("long", 0, 1)])
            quick, long = await app.get_steps(run.id)
            assert (quick.status, quick.index) == ("completed", 0)
            assert (long.status, long.index, long.started_at, long.completed_at) == ("running", 1, began, None)
            assert long.attempts == (StepAttempt(0, 0, began, None, None),)
            assert (long.output, long.error) == (None, None)
            stuck.let_go()
            await run.wait(PATIENCE)
            _, long = await app.get_steps(run.id)
            assert long.status == "completed"
            assert long.attempts == (StepAttempt(0, 0, began, began + timedelta(seconds=10), None),)

    asyncio.run(main())


def test_a_step_costs_no_round_and_no_row_for_its_beginning(house: House) -> None:
    @job
    async def work(step: Step) -> None:
        for number in range(20):
            await step.run(f"s{number}", str)

    with house.app(work) as app:
        app.jobs.work.run().wait(PATIENCE)
        committer = app._engine.committer
        assert committer.riders == {}
        # Trigger, claim, steps, end; the sweeps of the worker have one each.
        assert committer.rounds <= 26
    assert rows(house) == []


def test_a_step_whose_process_died_is_interrupted_until_it_is_called_again(
    house: House, clock: HandClock, stuck: Stuck
) -> None:
    @job
    async def work(step: Step) -> None:
        await step.run("long", stuck.hang)

    async def main() -> None:
        app = house.app(work, clock=clock)
        await app.init()
        run = await app.jobs.work.trigger()
        await stuck.came()
        clock.advance(10)
        await until(lambda: rows(house) == [("long", 0, 1)])
        house.take_away(for_seconds=1000)
        (long,) = await app.get_steps(run.id)
        assert long.status == "interrupted"
        await app.stop(timeout=0)
        house.sql("update holdfast_runs set run_at = created_at, due = 1")
        began = at(clock)
        stuck.let_go()
        async with house.app(work, clock=clock) as again:
            await again.wait_for_run(run.id, timeout=PATIENCE)
            (long,) = await again.get_steps(run.id)
        assert (long.status, long.attempts) == ("completed", (StepAttempt(0, 0, began, began, None),))

    asyncio.run(main())


def test_a_step_that_rests_between_two_tries_is_running(house: House, clock: HandClock) -> None:
    def fail() -> None:
        raise ValueError("no")

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(1, delay=20)).run("flaky", fail)

    async def main() -> None:
        async with house.app(work, clock=clock) as app:
            now = at(clock)
            run = await app.jobs.work.trigger()
            await until(lambda: rows(house) == [("flaky", 0, 0)])
            (record,) = await app.get_steps(run.id)
            assert record.status == "running"
            assert record.attempts == (StepAttempt(0, 0, now, now, "ValueError: no"),)
            await run.cancel()
            (record,) = await app.get_steps(run.id)
            assert record.status == "interrupted"

    asyncio.run(main())


def test_every_saved_step_has_its_tries_the_last_of_which_is_how_it_ended(house: House, clock: HandClock) -> None:
    calls = 0

    def flaky() -> str:
        nonlocal calls
        calls += 1
        clock.advance(1)
        if calls < 3:
            raise ValueError(f"no {calls}")
        return "ok"

    def bad() -> None:
        raise KeyError("x")

    @job
    def work(step: SyncStep) -> None:
        step.run("plain", str)
        step.options(retry=Retry(5, delay=2)).run("flaky", flaky)
        step.run("bad", bad)

    app = house.app(work, clock=clock)
    skip_rests(app._engine)
    with app:
        began = at(clock)
        run = app.jobs.work.trigger_and_wait().wait(PATIENCE)
        plain, tried, failed = app.get_steps(run.id).wait()

    def after(seconds: float) -> datetime:
        return began + timedelta(seconds=seconds)

    assert plain.attempts == (StepAttempt(0, 0, after(0), after(0), None),)
    assert tried.attempts == (
        StepAttempt(0, 0, after(0), after(1), "ValueError: no 1"),
        StepAttempt(1, 0, after(3), after(4), "ValueError: no 2"),
        StepAttempt(2, 0, after(6), after(7), None),
    )
    assert (tried.started_at, tried.completed_at) == (after(0), after(7))
    assert [one.error for one in failed.attempts] == ["KeyError: 'x'"]


def test_tries_of_many_steps_are_read_with_one_statement(house: House) -> None:
    def fail_once(seen: set[str], name: str) -> None:
        if name not in seen:
            seen.add(name)
            raise ValueError("once")

    seen: set[str] = set()

    @job
    async def work(step: Step) -> None:
        for number in range(10):
            await step.options(retry=Retry(1)).run(f"s{number}", lambda n=number: fail_once(seen, f"s{n}"))

    with house.app(work) as app:
        run = app.jobs.work.trigger_and_wait().wait(PATIENCE)
        store, asked = app._engine.store, []
        for verb in ("find_steps", "find_attempts"):
            real = getattr(store, verb)
            setattr(
                store, verb, lambda *args, real=real, verb=verb, **more: (asked.append(verb), real(*args, **more))[1]
            )
        records = app.get_steps(run.id).wait()
    assert asked == ["find_attempts", "find_steps"]
    assert [len(record.attempts) for record in records] == [2] * 10
