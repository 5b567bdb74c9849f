"""Sync jobs: steps that block, in a thread or, inline, in the caller's own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from holdfast import Run, Step, SyncStep, job
from holdfast.engine.signals import AbortSignal
from house import PATIENCE, House


async def double(number: int) -> int:
    return number * 2


def test_a_sync_job_calls_sync_and_async_steps(house: House) -> None:
    threads: set[str] = set()

    def where() -> str:
        return threading.current_thread().name

    @job
    def work(step: SyncStep, number: int) -> list[Any]:
        threads.update({where(), step.run("where", where)})
        return [step.run("abs", abs, -number), step.run("double", double, number), step.run("abs", abs, 0)]

    with house.app(work) as app:
        assert app.jobs.work.run(3).wait(PATIENCE) == [3, 6, 0]
    assert len(threads) == 1  # the job's own
    assert house.steps("name, occurrence") == [("where", 0), ("abs", 0), ("double", 0), ("abs", 1)]


def test_threads_of_a_sync_job_use_steps_of_their_own_names(house: House) -> None:
    @job
    def work(step: SyncStep) -> list[int]:
        found: dict[int, int] = {}

        def branch(number: int) -> None:
            found[number] = step.run(f"n{number}", abs, -number)

        threads = [threading.Thread(target=branch, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        return [found[number] for number in range(8)]

    with house.app(work) as app:
        run = app.jobs.work.trigger_and_wait().wait(PATIENCE)
        assert (run.output, run.completed_step_count) == (list(range(8)), 8)
        assert sorted(record.index for record in app.get_steps(run.id).wait()) == list(range(8))


def test_a_step_that_asks_for_the_signal_gets_the_one_of_its_run(house: House) -> None:
    seen: list[Any] = []

    def asks(signal: AbortSignal | None = None) -> None:
        seen.append(signal)

    @job
    def work(step: SyncStep) -> None:
        step.run("asks", asks)
        seen.append(step.signal)

    with house.app(work) as app:
        app.jobs.work.run().wait(PATIENCE)
    assert seen[0] is seen[1]


def test_what_a_thread_of_an_ended_run_still_does_is_refused(house: House) -> None:
    ends: list[str] = []
    may_go = threading.Event()

    @job
    def work(step: SyncStep) -> str:
        def late() -> None:
            may_go.wait(PATIENCE)
            step.progress(1)
            step.log.info("late")
            try:
                step.run("late", abs, 1)
            except BaseException as error:
                ends.append(type(error).__name__)

        thread = threading.Thread(target=late)
        threads.append(thread)
        thread.start()
        return "done"

    threads: list[threading.Thread] = []
    with house.app(work) as app:
        assert app.jobs.work.run().wait(PATIENCE) == "done"
        may_go.set()
        threads[0].join(PATIENCE)
    assert ends == ["Unwind"]
    assert house.steps() == []
    assert house.sql("select count(*) from holdfast_logs") == [(0,)]
    assert house.errors == []


def test_what_a_thread_does_between_the_return_of_its_run_and_the_written_end_is_refused(house: House) -> None:
    ends: list[str] = []
    may_go, gate = threading.Event(), threading.Event()

    @job
    def work(step: SyncStep) -> str:
        def late() -> None:
            may_go.wait(PATIENCE)
            try:
                step.run("late", abs, 1)
            except BaseException as error:
                ends.append(type(error).__name__)
            gate.set()

        app._engine.committer.gate = gate  # its end is not written before somebody says so
        thread = threading.Thread(target=late)
        threads.append(thread)
        thread.start()
        return "done"

    threads: list[threading.Thread] = []
    app = house.app(work)
    with app:
        run = app.jobs.work.trigger().wait(PATIENCE)
        looks = threading.Event()
        while not any(ticket.verb == "finish" for ticket in [*app._engine.committer._line]):
            looks.wait(0.002)
        may_go.set()
        threads[0].join(PATIENCE / 3)
        gate.set()
        threads[0].join(PATIENCE)
        assert run.result().wait(PATIENCE) == "done"
    assert ends == ["Unwind"]
    assert house.steps() == []


def test_inline_sync_and_async_jobs_run_in_the_callers_thread_alone(house: House) -> None:
    before = threading.active_count()
    seen: set[int] = set()

    def where(number: int) -> int:
        seen.add(threading.get_ident())
        return number

    @job
    def work(step: SyncStep, number: int) -> int:
        step.log.info("a line")
        step.progress(1, 2)
        return step.run("a", where, number) + step.run("a", where, number)

    @job
    async def other(step: Step, number: int) -> int:
        return sum(await asyncio.gather(*[step.run(f"a{i}", where, number) for i in range(3)]))

    app = house.app(work, other, inline=True)
    app.migrate().wait()
    for name, expected in (("work", 10), ("other", 15)):
        run = app.get_job(name).trigger(5).wait()  # type: ignore[union-attr]
        assert app.process_until_idle().wait() == 1
        again: Run[Any] = run.refresh().wait()
        assert (again.status, again.output) == ("completed", expected)
    assert threading.active_count() == before
    assert seen == {threading.get_ident()}
    app.stop().wait()


def test_inline_an_async_step_of_a_sync_job_is_refused_with_advice(house: House) -> None:
    @job
    def work(step: SyncStep) -> int:
        return step.run("double", double, 1)

    app = house.app(work, inline=True)
    app.migrate().wait()
    run = app.jobs.work.trigger().wait()
    app.process_until_idle().wait()
    assert "make the job async" in (run.refresh().wait().error or "")
    app.stop().wait()


def test_inline_a_sync_job_may_trigger_and_a_replay_finds_the_same_run(house: House) -> None:
    crash = [True]

    @job
    def child() -> None:
        pass

    @job
    def work(step: SyncStep) -> str:
        handle = app.jobs.child.trigger()
        step.run("a", abs, 1)
        if crash.pop():
            house.take_away()
            step.run("b", abs, 1)
        return str(handle.wait().disposition)

    app = house.app(work, child, inline=True)
    app.migrate().wait()
    crash.insert(0, False)
    run = app.jobs.work.trigger().wait()
    app.process_until_idle().wait()
    again = run.refresh().wait()
    assert (again.output, again.error) == ("idempotent", None)
    assert house.sql("select count(*) from holdfast_runs") == [(2,)]
    app.stop().wait()


@pytest.mark.parametrize("way", ["direct", "decorated"])
def test_inline_a_sync_step_function_may_be_called_in_an_async_job(house: House, way: str) -> None:
    app = house.app(inline=True)

    @app.step
    def triple(number: int) -> int:
        return number * 3

    @app.job
    async def work(step: Step, number: int) -> int:
        return triple(number) if way == "decorated" else await step.run("t", triple, number)

    app.migrate().wait()
    run = work.trigger(2).wait()
    app.process_until_idle().wait()
    assert run.refresh().wait().output == 6
    app.stop().wait()
