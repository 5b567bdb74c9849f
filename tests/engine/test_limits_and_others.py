"""The limits of a run while something else happens to it: a cancel, a commit, a clock that is set back, a busy line."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from around import until

import databases
from databases import StoreHere
from holdfast import Event, Holdfast, Retry, Step, SyncStep, job
from holdfast.basis.errors import StoreUnavailable
from holdfast.store.base import Claimed, ClaimOrder, Ended, Ending, Tx
from holdfast.testing import HandClock, app_for_tests, drain
from house import PATIENCE, House, Stuck


def trigger(app: Holdfast, name: str, *args: Any) -> Any:
    found = app.get_job(name)
    assert found is not None
    return found.trigger(*args).wait()


# -- somebody else ends the run while it has its grace -------------------------------------------------------------


@pytest.mark.parametrize("ender", ["a cancel", "its deadline"])
def test_s4_a_body_that_hangs_gives_its_slot_back_also_if_somebody_else_ends_the_run_meanwhile(
    house: House, stuck: Stuck, ender: str
) -> None:
    times: Any = {"timeout": 60} if ender == "a cancel" else {"deadline": 60}

    @job(name="hang", **times)
    def hang(step: SyncStep) -> None:
        step.run("hang", stuck.hang_sync)

    @job(name="next")
    def following() -> str:
        return "done"

    clock = HandClock()
    with house.app(hang, following, lease="2h", clock=clock, concurrency=1) as app:
        run = trigger(app, "hang")
        assert stuck.is_there.wait(PATIENCE)
        held = app._engine.worker.executing[0]  # type: ignore[union-attr]
        if ender == "a cancel":
            clock.advance(60)
            until(lambda: held.timed_out)
            run.cancel().wait()
        else:
            clock.advance(60)  # the worker's own look for what is late comes in the same moment
            until(lambda: held.closed)
        done = threading.Event()
        waiting = trigger(app, "next").result()
        waiting.when_done(done.set)
        until(done.is_set, clock=clock)
        assert waiting.wait(PATIENCE) == "done"
        stuck.let_go()
    assert [context for context, _ in house.errors] == ["abandoned"]


# -- a commit that is under way ------------------------------------------------------------------------------------


class Slow(StoreHere):
    """Holds the committing thread in a verb, while somebody says so."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.holds: type | None = None
        """The kind of rows to be held."""
        self.is_held = threading.Event()
        self.go = threading.Event()
        self.refused_ends = 0

    def _hold(self, kind: type, rows: Sequence[Any]) -> None:
        if self.holds is kind and rows:
            self.holds = None
            self.is_held.set()
            assert self.go.wait(PATIENCE)

    def save_steps(self, tx: Tx, saves: Sequence[Any]) -> list[bool]:
        self._hold(Step, saves)
        return super().save_steps(tx, saves)

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        got = super().claim(tx, orders)
        self._hold(Claimed, orders)
        return got

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        if self.refused_ends:
            self.refused_ends -= 1
            raise StoreUnavailable("the disk is full")
        return super().finish(tx, endings)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_s4_a_checkpoint_that_is_being_committed_when_the_time_is_over_counts(house: House, kind: str) -> None:
    calls: list[str] = []
    options: Any = {"name": "work", "timeout": 60, "retry": Retry(1)}

    if kind == "async":

        @job(**options)
        async def work(step: Step) -> int:
            await step.run("charge", calls.append, "charge")
            return step.attempt
    else:

        @job(**options)
        def work(step: SyncStep) -> int:
            step.run("charge", calls.append, "charge")
            return step.attempt

    clock = HandClock()
    store = Slow(house.url, clock=clock)
    store.holds = Step
    with house.app(work, store=store, lease="2h", clock=clock) as app:
        run = trigger(app, "work")
        assert store.is_held.wait(PATIENCE)
        held = app._engine.worker.executing[0]  # type: ignore[union-attr]
        clock.advance(60)
        until(lambda: held.timed_out)
        store.go.set()
        assert run.result().wait(PATIENCE) == 1
    assert calls == ["charge"]
    assert house.steps() == [("charge", 0, "completed")]


@pytest.mark.parametrize("delay", [0, 10])
def test_s1_a_retry_is_taken_when_it_is_due_also_if_a_claim_was_under_way_when_the_attempt_ended(
    house: House, delay: int
) -> None:
    arrived, go = threading.Event(), threading.Event()

    @job(name="work", retry=Retry(1, delay=delay))
    def work(step: SyncStep) -> int:
        if step.attempt == 0:
            arrived.set()
            go.wait(PATIENCE)
            raise ValueError("first")
        return step.attempt

    clock = HandClock()
    store = Slow(house.url, clock=clock)
    with house.app(work, store=store, clock=clock, lease="2h", polling_interval=3600) as app:
        run = trigger(app, "work")
        assert arrived.wait(PATIENCE)
        engine = app._engine
        worker = engine.worker
        assert worker is not None
        until(lambda: worker._asleep)
        store.holds = Claimed
        worker.wake()
        assert store.is_held.wait(PATIENCE)
        go.set()
        until(lambda: engine.committer.backlog > 1)
        store.go.set()
        until(lambda: run.refresh().wait().attempt == 1)
        done = threading.Event()
        run.result().when_done(done.set)
        until(done.is_set, clock=clock)
        assert run.result().wait(PATIENCE) == 1
    assert clock.steady() < 600


def test_s1_the_worker_wakes_up_for_a_retry_without_polling(house: House) -> None:
    failed = threading.Event()

    @job(name="work", retry=Retry(2, delay=10, factor=0.1))
    def work(step: SyncStep) -> int:
        if step.attempt < 2:
            raise ValueError(step.attempt)
        return step.attempt

    clock = HandClock()
    with house.app(work, clock=clock, lease="2h", polling_interval=3600) as app:
        app.on("run:retry", lambda _: failed.set())
        run = trigger(app, "work")
        assert failed.wait(PATIENCE)
        worker = app._engine.worker
        assert worker is not None
        done = threading.Event()
        waiting = run.result()
        waiting.when_done(done.set)
        until(done.is_set, clock=clock)
        assert waiting.wait(PATIENCE) == 2
    assert clock.steady() < 600


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_s1_a_retry_without_a_delay_is_executed_by_process_until_idle(kind: str) -> None:
    if kind == "async":

        @job(name="work", retry=Retry(2))
        async def work(step: Step) -> int:
            if step.attempt < 2:
                raise ValueError
            return step.attempt
    else:

        @job(name="work", retry=Retry(2))
        def work(step: SyncStep) -> int:
            if step.attempt < 2:
                raise ValueError
            return step.attempt

    with app_for_tests(work, url=databases.fresh()) as app:
        run = trigger(app, "work")
        assert app.process_until_idle().wait(PATIENCE) == 3
        assert run.refresh().wait().output == 2


# -- an attempt that was left ---------------------------------------------------------------------------------------


def test_s4_an_attempt_that_was_left_in_its_thread_can_write_nothing_while_the_next_one_runs(house: House) -> None:
    arrived, again, go, gone = threading.Event(), threading.Event(), threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def late(step: SyncStep) -> None:
        step.log.info("late")
        step.progress(99)
        try:
            step.run("late", str)
        except BaseException as error:
            raised.append(error)
            raise

    @job(name="work", timeout=60, retry=Retry(1))
    def work(step: SyncStep) -> int:
        if step.attempt == 0:
            arrived.set()
            go.wait(PATIENCE)
            try:
                late(step)
            finally:
                gone.set()
        else:
            again.set()  # from now on the clock stands still: this attempt has its time limit, too
            step.log.info("in time")
            step.run("in time", str)
            go.set()
            assert gone.wait(PATIENCE)
            step.run("after", str)
        return step.attempt

    clock = HandClock()
    with house.app(work, lease="2h", clock=clock) as app:
        run = trigger(app, "work")
        assert arrived.wait(PATIENCE)
        done = threading.Event()
        waiting = run.result()
        waiting.when_done(done.set)
        until(again.is_set, clock=clock)
        assert waiting.wait(PATIENCE) == 1
        assert [step.name for step in app.get_steps(run.id).wait()] == ["in time", "after"]
        assert [line.message for line in app.get_logs(run.id).wait()] == ["in time"]
        ended = run.refresh().wait()
        assert (ended.progress, ended.attempt, ended.generation) == (None, 1, 2)
        worker = app._engine.worker
        assert worker is not None
        until(lambda: not worker.executing)
        assert (worker._abandoned, worker._slots) == (0, 10)
    assert [isinstance(error, Exception) for error in raised] == [False]
    assert [context for context, _ in house.errors] == ["abandoned"]


def test_s4_the_end_of_an_attempt_that_was_left_is_written_also_if_its_function_returns_meanwhile(
    house: House, stuck: Stuck
) -> None:
    @job(name="work", timeout=60, retry=Retry(1))
    def work(step: SyncStep) -> int:
        if step.attempt == 0:
            stuck.hang_sync()
        return step.attempt

    clock = HandClock()
    store = Slow(house.url, clock=clock)
    with house.app(work, store=store, lease="2h", clock=clock) as app:
        run = trigger(app, "work")
        assert stuck.is_there.wait(PATIENCE)
        held = app._engine.worker.executing[0]  # type: ignore[union-attr]
        store.refused_ends = 3
        until(lambda: store.refused_ends < 3, clock=clock)
        assert held.abandoned
        stuck.let_go()
        until(lambda: held.returned)
        done = threading.Event()
        waiting = run.result()
        waiting.when_done(done.set)
        until(done.is_set, clock=clock)
        assert waiting.wait(PATIENCE) == 1
        ended = run.refresh().wait()
        assert (ended.attempt, ended.crashes) == (1, 0)


# -- a wall clock that is not to be trusted -------------------------------------------------------------------------


def test_s4_a_deadline_is_one_of_the_wall_clock_also_if_that_is_set_back(house: House) -> None:
    arrived = asyncio.Event()

    @job(name="work", deadline=60, retry=Retry(9))
    async def work() -> None:
        arrived.set()
        await asyncio.Event().wait()

    clock = HandClock()
    app = house.app(work, lease="2h", clock=clock, polling_interval=3600)

    async def main() -> Any:
        async with asyncio.timeout(PATIENCE), app:
            run = await app.get_job("work").trigger()  # type: ignore[union-attr]
            await arrived.wait()
            clock.jump(-10)
            clock.advance(60)
            await run.refresh()
            assert (await run.refresh()).status == "leased"
            clock.advance(10)
            return await run.wait()

    ended = asyncio.run(main())
    assert (ended.status, ended.error, ended.attempt) == ("timed_out", "The run did not end before its deadline", 0)


# -- what is said of it ---------------------------------------------------------------------------------------------


def test_an_error_that_looks_like_something_sealed_is_told_as_it_is(house: House) -> None:
    told: list[Event] = []

    @job(name="work", retry=Retry(1))
    def work() -> None:
        raise ValueError("^[a-z]+^ does not match")

    with house.app(work) as app:
        for type in ("run:retry", "run:fail"):
            app.on(type, told.append)
        ended = trigger(app, "work").wait().wait(PATIENCE)
        assert ended.error == "^[a-z]+^ does not match"
        assert ended.refresh().wait().error == "^[a-z]+^ does not match"
    assert [event.error for event in told] == ["^[a-z]+^ does not match"] * 2


def test_s4_inline_a_sync_job_that_has_returned_has_made_it_whatever_time_it_took(house: House) -> None:
    clock = HandClock()

    @job(name="work", timeout=60)
    def work() -> str:
        clock.advance(61)  # nobody else has this thread: no time is seen to pass
        return "done"

    with house.app(work, clock=clock, inline=True) as app:
        run = trigger(app, "work")
        drain(app).wait()
        assert run.refresh().wait().output == "done"


def test_s4_a_run_whose_time_is_over_when_the_worker_stops_is_handed_back_uncounted(house: House, stuck: Stuck) -> None:
    @job(name="work", timeout=60, retry=Retry(1))
    def work(step: SyncStep) -> str:
        step.run("hang", stuck.hang_sync)
        return "done"

    clock = HandClock()
    app = house.app(work, lease="2h", clock=clock)
    app.init().wait()
    run = trigger(app, "work")
    assert stuck.is_there.wait(PATIENCE)
    held = app._engine.worker.executing[0]  # type: ignore[union-attr]
    clock.advance(60)
    until(lambda: held.timed_out)
    stopped, stop = threading.Event(), app.stop(timeout=0)
    stop.when_done(stopped.set)
    until(stopped.is_set, clock=clock)
    stop.wait()
    assert house.sql("select status, attempt, crashes, error from holdfast_runs") == [("pending", 0, 0, None)]
    stuck.let_go()
    with house.app(work, clock=clock) as other:
        assert other.wait_for_run(run.id).wait(PATIENCE).output == "done"
