"""Leases: kept while we live, believed from the moment they were asked for, taken over when we die (S1, S2, S9)."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from around import LONG, rows, until

import databases
from databases import StoreHere
from holdfast import Holdfast, Step, StoreUnavailable, SyncStep
from holdfast.commit.ticket import Ticket
from holdfast.engine.leases import Judge
from holdfast.store.base import ClaimOrder, Renewal, Sweep, Tx
from holdfast.testing.clock import HandClock

LEASE = 30.0


class Rounds(StoreHere):
    """Writes down which verbs came in which round."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.rounds: list[list[str]] = []

    def begin_round(self, connection: Any, *args: Any, **more: Any) -> Tx:
        tx = super().begin_round(connection, *args, **more)
        self.rounds.append([])
        return tx

    def renew_leases(self, tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        self.rounds[-1].append("renew_leases")
        return super().renew_leases(tx, renewals)

    def expire(self, tx: Tx, sweeps: Sequence[Sweep]) -> list[Any]:
        self.rounds[-1].append("expire")
        return super().expire(tx, sweeps)


class Asking:
    """The clock of a store; tells when the beginning of a transaction was noted."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.now = clock.now
        self.asked = threading.Event()

    def steady(self) -> float:
        then = self.clock.steady()
        self.asked.set()
        return then


class House:
    """An app whose time is turned by hand, and one run that holds on until it may go."""

    def __init__(self, path: Path) -> None:
        self.path = path / "app.db"
        self.clock = HandClock()
        self.store = Rounds(databases.url(self.path), clock=self.clock)
        self.app = Holdfast(self.store, clock=self.clock, lease=LEASE, cancel_grace=0)
        self.errors: list[Any] = []
        self.app.on("worker:error", self.errors.append)
        self.began, self.go = threading.Event(), threading.Event()
        self.reasons: list[str | None] = []
        self.calls: list[str] = []

        @self.app.job
        def hold(step: SyncStep, n: int = 0) -> int:
            self.began.set()
            step.signal.on_abort(lambda reason: self.go.set())
            assert self.go.wait(LONG)
            self.reasons.append(step.signal.reason)
            step.run("after", self.calls.append, "after")
            return n

        @self.app.job
        async def block(step: Step) -> None:
            self.began.set()
            assert self.go.wait(LONG)  # rude: the whole event loop stands still
            await step.run("after", self.calls.append, "after")

        @self.app.job
        def crash() -> None: ...

        self.hold, self.block, self.crash = hold, block, crash

    def begin(self, job: Any) -> str:
        run = job.trigger().wait(LONG)
        assert self.began.wait(LONG)
        return str(run.id)

    def column(self, run_id: str, name: str) -> Any:
        return rows(self.path, f"select {name} from holdfast_runs where id = ?", run_id)[0][0]

    def expires_in(self, run_id: str) -> float:
        """Seconds of the lease that are left, by the database."""
        return float((self.column(run_id, "lease_expires_at") - self.clock.now()) / 1e6)

    def believed(self) -> float:
        """Seconds of the lease that are left, by the worker's own clock; of the database's word it may not know yet."""
        (holder,) = self.app._engine.keeper.held
        return holder.deadline - self.clock.steady()

    def pass_time(self, seconds: float) -> None:
        """Let time pass in small steps, giving the keeper its turn after each."""
        for _ in range(round(seconds / 5)):
            self.clock.advance(5)
            until(lambda: self.believed() >= LEASE / 2, "a renewal")

    def die_with(self, job: Any) -> str:
        """A run that a worker has claimed which will never be heard of again."""
        run_id = str(job.trigger().wait(LONG).id)
        self.claim_and_die(run_id, job)
        return run_id

    def claim_and_die(self, run_id: str, job: Any) -> None:
        def claim(tx: Tx) -> None:
            (claimed,) = self.store.claim(tx, [ClaimOrder("dead", 1, round(LEASE * 1e6), (job.name,))])
            assert [row.id for row in claimed.runs] == [run_id]

        self.write(claim)

    def write(self, work: Callable[[Tx], Any]) -> None:
        connection = self.store.connect()
        tx = self.store.begin(connection)
        work(tx)
        self.store.commit(tx)
        self.store.disconnect(connection)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.app.migrate().wait(LONG)
    yield house
    if house.app._engine.committer.gate is not None:
        house.app._engine.committer.gate.set()
    house.go.set()
    house.app.stop().wait(LONG)


# -- keeping -----------------------------------------------------------------------------------------------------


def test_a_lease_is_extended_every_third_of_its_length(house: House) -> None:
    house.app.init().wait(LONG)
    renewed: list[Any] = []
    house.app.on("run:lease-renewed", renewed.append)
    run_id = house.begin(house.hold)
    assert house.expires_in(run_id) == LEASE
    house.clock.advance(LEASE / 3)
    until(lambda: house.expires_in(run_id) == LEASE)
    until(lambda: {event.run_id for event in renewed} == {run_id})  # the keeper, and the sweep


def test_s2_a_blocked_event_loop_loses_no_leases(house: House) -> None:
    house.app.init().wait(LONG)
    run_id = house.begin(house.block)
    house.pass_time(4 * LEASE)
    house.go.set()
    run = house.app.wait_for_run(run_id).wait(LONG)
    assert (run.status, run.generation, run.crashes) == ("completed", 1, 0)
    assert house.calls == ["after"]


def test_s9_the_keeper_commits_by_itself_when_the_line_stands_still(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.app.init().wait(LONG)
    run_id = house.begin(house.hold)
    committer, worker = house.app._engine.committer, house.app._engine.worker
    assert worker is not None
    until(lambda: worker._asleep and not committer.backlog)
    committer.gate = threading.Event()
    rounds = committer.rounds
    house.clock.advance(LEASE / 3)  # the renewal joins the line, where nothing moves
    until(lambda: committer.backlog > 0, "a renewal in the line")
    before, steps = house.column(run_id, "lease_expires_at"), iter(range(15))
    opened, store = list[Any](), house.app._engine.store
    connect, disconnect = store.connect, store.disconnect
    monkeypatch.setattr(store, "connect", lambda **options: [opened.append(made := connect(**options)), made][1])
    monkeypatch.setattr(
        store, "disconnect", lambda one: (opened.remove(one) if one in opened else None, disconnect(one))
    )

    def renewed() -> bool:
        if next(steps, None) is not None:  # in steps, for nobody sees when the keeper has begun to wait
            house.clock.advance(1)
        return bool(house.column(run_id, "lease_expires_at") > before)

    until(renewed, "a renewal beside the line")
    assert committer.rounds == rounds
    until(lambda: not opened, "no connection left, for the line may need it")


def test_s2_a_refused_renewal_aborts_the_run_as_lease_lost(house: House) -> None:
    house.app.init().wait(LONG)
    run_id = house.begin(house.hold)
    house.app._engine.watcher.stop()  # else it would see the thief before the renewal does
    rows(house.path, "update holdfast_runs set generation = 2, lease_owner = 'thief' where id = ?", run_id)
    house.clock.advance(LEASE / 3)
    until(lambda: house.reasons, "the abort")
    assert house.reasons == ["lease-lost"]
    until(lambda: house.errors)
    assert (house.errors[0].context, house.errors[0].run_id) == ("lease-renewal", run_id)
    assert house.calls == []
    assert house.column(run_id, "lease_owner") == "thief"


def test_s2_a_lease_counts_from_when_it_was_asked_for_not_from_when_the_answer_came(house: House) -> None:
    house.app.init().wait(LONG)
    worker = house.app._engine.worker
    assert worker is not None
    until(lambda: worker._asleep)
    house.app._engine.committer.gate = gate = threading.Event()
    reply = house.hold.trigger()
    worker.wake()
    until(lambda: worker._claiming, "a claim in the line")
    house.clock.advance(LEASE + 1)
    house.go.set()
    gate.set()
    run_id = reply.wait(LONG).id
    until(lambda: house.reasons, "the job")
    # By the database the lease has just begun, yet the worker may not trust it.
    assert house.column(run_id, "status") == "leased"
    assert house.calls == []


def test_s2_a_renewal_counts_from_when_it_was_asked_for_not_from_when_the_answer_came(house: House) -> None:
    house.app.init().wait(LONG)
    house.begin(house.hold)
    keeper, worker = house.app._engine.keeper, house.app._engine.worker
    assert worker is not None
    assert worker._tick is not None
    worker._tick.cancel()
    keeper.stop()  # nobody else renews
    house.clock.advance(LEASE / 3)
    (renewal,) = keeper.renewals()
    house.clock.advance(3)
    house.app._engine.committer.join(renewal)
    assert renewal.wait(LONG) is True
    assert house.believed() == LEASE - 3


@pytest.mark.parametrize("form", ["async", "sync"])
def test_s2_who_can_not_write_gives_up_when_the_lease_is_over(house: House, form: str) -> None:
    def refuse(tx: Tx, saves: Sequence[Any]) -> list[bool]:
        raise StoreUnavailable("the disk is on fire")

    over = threading.Event()

    @house.app.job
    async def stubborn(step: Step) -> None:
        try:
            await step.run("first", house.began.set)
        finally:
            over.set()

    @house.app.job
    def stubborn_sync(step: SyncStep) -> None:
        try:
            step.run("first", house.began.set)
        finally:
            over.set()

    house.store.save_steps = refuse  # type: ignore[method-assign]
    house.app.init().wait(LONG)
    house.begin(stubborn if form == "async" else stubborn_sync)
    until(lambda: "checkpoint" in [error.context for error in house.errors], "a refusal")
    house.store.renew_leases = refuse  # type: ignore[method-assign]
    house.store.expire = lambda tx, sweeps: [[] for _ in sweeps]  # type: ignore[method-assign]  # nor takes it over
    assert not over.is_set()
    house.clock.advance(LEASE)
    assert over.wait(LONG)


def test_s2_a_renewal_that_is_refused_because_of_the_runs_own_end_is_no_lost_lease(house: House) -> None:
    commit = house.store.commit

    def refused_in_between(tx: Tx) -> None:
        commit(tx)
        if house.column(run_id, "completed_at") is not None:
            # As a round does that comes before the worker hears of the end.
            for holder in house.app._engine.keeper.held:
                holder.lease_lost(None)

    house.app.init().wait(LONG)
    run_id = house.begin(house.hold)
    house.store.commit = refused_in_between  # type: ignore[method-assign]
    house.go.set()
    assert house.app.wait_for_run(run_id).wait(LONG).status == "completed"
    house.app.stop().wait(LONG)
    assert house.errors == []


def test_s2_a_lease_that_is_over_by_our_own_clock_is_renewed_no_more(house: House) -> None:
    house.app.init().wait(LONG)
    house.begin(house.hold)
    keeper, worker = house.app._engine.keeper, house.app._engine.worker
    assert worker is not None
    assert worker._tick is not None
    worker._tick.cancel()
    keeper.stop()  # nobody drops it
    house.clock.advance(LEASE - 1)
    assert len(keeper.renewals()) == 1
    house.clock.advance(1)
    assert keeper.renewals() == []


def test_s2_a_renewal_that_failed_is_none(house: House) -> None:
    def refuse(tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        raise StoreUnavailable("the disk is on fire")

    house.app.init().wait(LONG)
    house.begin(house.hold)
    house.store.renew_leases = refuse  # type: ignore[method-assign]
    house.clock.advance(LEASE / 3)
    until(lambda: "lease-renewal" in [error.context for error in house.errors], "the failure")
    assert house.believed() == LEASE * 2 / 3
    house.clock.advance(LEASE * 2 / 3)
    until(lambda: house.reasons, "the abort")
    assert house.reasons[0] == "lease-lost"  # and then somebody takes it over: we ourselves


def test_a_lease_that_is_over_by_our_own_clock_stops_the_run_whatever_the_database_says(house: House) -> None:
    house.app.init().wait(LONG)
    run_id = house.begin(house.hold)
    house.app._engine.watcher.stop()
    house.app._engine.committer.gate = threading.Event()
    with databases.locked(house.path):  # neither the line nor the keeper can renew
        house.store.lock_timeout = 0.05
        house.clock.advance(LEASE)
        until(lambda: house.reasons)
        assert house.reasons == ["lease-lost"]
    assert house.column(run_id, "status") == "leased"


def test_who_renews_may_wait_for_a_server_that_says_nothing_and_the_run_is_stopped_in_time(house: House) -> None:
    house.app.init().wait(LONG)
    house.begin(house.hold)
    house.app._engine.watcher.stop()
    house.app._engine.committer.gate = threading.Event()
    connect, waits, answer = house.store.connect, threading.Event(), threading.Event()

    def say_nothing(**how: Any) -> Any:
        if threading.current_thread().name == "holdfast-leases":
            waits.set()
            assert answer.wait(LONG)
        return connect(**how)

    house.store.connect = say_nothing  # type: ignore[method-assign]
    house.clock.advance(LEASE / 3)
    steps = iter(range(15))

    def asks() -> bool:
        if next(steps, None) is not None:
            house.clock.advance(1)
        return waits.is_set()

    until(asks, "a renewal beside the line")
    house.clock.advance(LEASE)
    until(lambda: house.reasons, "the abort")
    assert house.reasons == ["lease-lost"]
    answer.set()


def test_after_an_outage_work_is_claimed_at_the_next_look_however_long_it_was(house: House) -> None:
    begin, out = house.store.begin_round, threading.Event()

    def refuse(connection: Any, *args: Any, **more: Any) -> Tx:
        if out.is_set():
            raise StoreUnavailable("the server is being moved")
        return begin(connection, *args, **more)

    house.store.begin_round = refuse  # type: ignore[method-assign]
    polling = house.app._engine.options.polling_interval
    house.app.init().wait(LONG)
    worker = house.app._engine.worker
    assert worker is not None
    out.set()

    def is_long() -> bool:
        house.clock.advance(polling / 2)
        return worker._not_before - house.clock.steady() > 3 * polling

    until(is_long, "long pauses between two claims")
    out.clear()
    house.hold.trigger().wait(LONG)
    until(lambda: not house.app._engine.committer.backlog)

    # Less than three intervals, in small pieces, so that every timer has its turn; the loop may be slow to follow.
    for which in ("the next look", "the one after it"):
        looked, steps = worker._tick, iter(range(29))

        def looks(looked: Any = looked, steps: Iterator[int] = steps) -> bool:
            if worker._tick is looked and next(steps, None) is not None:
                house.clock.advance(polling / 20)
            return worker._tick is not looked

        until(looks, which)
    assert house.began.wait(LONG)
    house.go.set()


# -- taking over -------------------------------------------------------------------------------------------------


def test_s1_a_run_whose_worker_died_is_taken_over_when_the_lease_is_over(house: House) -> None:
    run_id = house.die_with(house.hold)
    house.go.set()
    assert house.app.process_one().wait(LONG) is False
    house.clock.advance(LEASE)
    assert house.app.process_one().wait(LONG) is True
    run = house.app.wait_for_run(run_id).wait(LONG)
    assert (run.status, run.generation, run.attempt) == ("completed", 3, 0)


def test_s1_a_checkpoint_ends_the_crashes_in_a_row(house: House) -> None:
    run_id = house.die_with(house.hold)
    house.clock.advance(LEASE)
    house.app.process_until_idle(max_runs=0).wait(LONG)
    house.write(lambda tx: house.store.expire(tx, [Sweep(5)]))
    assert house.column(run_id, "crashes") == 1
    house.go.set()
    house.app.process_one().wait(LONG)
    run = house.app.wait_for_run(run_id).wait(LONG)
    assert (run.status, run.crashes) == ("completed", 0)


def test_s1_a_run_that_kills_its_workers_is_given_up_and_who_waits_is_told(house: House) -> None:
    failed: list[Any] = []
    house.app.on("run:fail", failed.append)
    run_id = str(house.crash.trigger().wait(LONG).id)
    house.app.init().wait(LONG)
    house.app.wait_for_run(run_id).wait(LONG)  # it is not this job that kills
    house.app.stop().wait(LONG)
    app = Holdfast(house.store, clock=house.clock, lease=LEASE, max_crashes=3)
    app.on("run:fail", failed.append)

    @app.job
    def other() -> None: ...

    app.init().wait(LONG)
    house.app._engine.open()
    run_id = str(house.crash.trigger().wait(LONG).id)
    waiting = app.wait_for_run(run_id)
    threading.Thread(target=waiting.when_done, args=(lambda: None,)).start()
    for crashes in range(1, 4):
        house.claim_and_die(run_id, house.crash)
        house.clock.advance(LEASE)
        # Time goes on: a round that was beginning when it jumped has waited for a lease, and judges nobody for a while.
        until(lambda crashes=crashes: house.column(run_id, "crashes") == crashes or house.clock.advance(0.1))
    run = waiting.wait(LONG)
    assert (run.status, run.error_type, run.crashes) == ("failed", "WorkerCrashed", 3)
    until(lambda: [event.run_id for event in failed] == [run_id])
    app.stop().wait(LONG)


def test_s1_a_lease_that_runs_out_long_after_the_start_is_taken_over_without_anybody_asking(house: House) -> None:
    app = Holdfast(house.store, clock=house.clock, lease=LEASE)

    @app.job
    def other() -> None: ...

    with app:
        until(lambda: any("expire" in verbs for verbs in house.store.rounds), "the look at the start")
        run_id = house.die_with(house.crash)
        for _ in range(4):
            house.clock.advance(LEASE / 4)
            house.store.rounds.clear()
            house.clock.advance(1)
            until(lambda: any("expire" in verbs for verbs in house.store.rounds), "another look")
        until(lambda: house.column(run_id, "crashes") == 1, "the takeover", clock=house.clock)


def test_s9_a_sweep_renews_what_is_held_here_first_and_in_the_same_round(house: House) -> None:
    house.app.init().wait(LONG)
    house.begin(house.hold)
    house.store.rounds.clear()
    house.clock.advance(1)
    until(lambda: any("expire" in verbs for verbs in house.store.rounds))
    assert next(verbs for verbs in house.store.rounds if "expire" in verbs) == ["renew_leases", "expire"]


def test_s9_a_sweep_renews_in_the_same_round_also_while_something_large_goes_in_parts(house: House) -> None:
    house.app.init().wait(LONG)
    house.begin(house.hold)
    committer, worker = house.app._engine.committer, house.app._engine.worker
    assert worker is not None
    until(lambda: worker._asleep and not committer.backlog)
    house.store.rounds.clear()
    committer.gate = gate = threading.Event()
    committer.join(*[Ticket("cancel_below", 1, bulk=True) for _ in range(2)])
    worker.in_loop(worker._sweep)
    until(lambda: committer.backlog >= 5, "the parts, and the sweep")
    gate.set()
    until(lambda: any("expire" in verbs for verbs in house.store.rounds))
    assert next(verbs for verbs in house.store.rounds if "expire" in verbs) == ["renew_leases", "expire"]


@pytest.mark.only("sqlite", "one lock for all who write")
def test_s9_nobody_is_judged_after_somebody_held_the_write_lock_for_more_than_half_a_lease(house: House) -> None:
    run_id = house.die_with(house.hold)
    house.go.set()
    house.clock.advance(LEASE)
    house.app._engine.keeper.on_look = lambda: None  # it would have a round of its own
    blocker = sqlite3.connect(house.path, isolation_level=None)
    blocker.execute("begin immediate")
    rounds = house.app._engine.committer.rounds
    processed: list[bool] = []
    asking = Asking(house.clock)
    house.store.clock = asking  # type: ignore[assignment]
    thread = threading.Thread(target=lambda: processed.append(house.app.process_one().wait(LONG)))
    thread.start()
    assert asking.asked.wait(LONG)
    house.clock.advance(LEASE / 2 + 1)
    blocker.execute("rollback")
    blocker.close()
    thread.join()
    assert house.app._engine.committer.rounds == rounds + 1
    assert processed == [False]
    assert house.column(run_id, "lease_owner") == "dead"
    assert house.app.process_one().wait(LONG) is False  # for as long as they could not, others may now renew
    house.clock.advance(LEASE / 2 + 1)
    assert house.app.process_one().wait(LONG) is True


@pytest.mark.only("sqlite", "one lock for all who write")
def test_s9_the_time_that_the_write_lock_was_held_counts_over_all_that_were_refused_for_it(house: House) -> None:
    house.store.lock_timeout = 1.5  # of the connections that are opened from now on
    run_id = house.die_with(house.hold)
    house.go.set()
    house.clock.advance(LEASE)
    blocker = sqlite3.connect(house.path, isolation_level=None)
    blocker.execute("begin immediate")
    outcomes: list[Any] = []

    def process() -> None:
        try:
            outcomes.append(house.app.process_one().wait(LONG))
        except StoreUnavailable:
            outcomes.append("locked")

    for rest in (False, True):
        house.store.clock = asking = Asking(house.clock)  # type: ignore[assignment]
        thread = threading.Thread(target=process)
        thread.start()
        assert asking.asked.wait(LONG)
        house.clock.advance(LEASE / 3)
        if rest:
            blocker.close()
        thread.join()
    assert outcomes == ["locked", False]
    assert house.column(run_id, "lease_owner") == "dead"


def test_s9_a_jump_of_the_wall_clock_suspends_judging_for_one_lease(house: House) -> None:
    house.app.process_one().wait(LONG)
    run_id = house.die_with(house.hold)
    house.go.set()
    house.clock.jump(LEASE + 1)
    assert house.app.process_one().wait(LONG) is False
    house.clock.advance(LEASE - 1)
    assert house.app.process_one().wait(LONG) is False
    assert house.column(run_id, "lease_owner") == "dead"
    house.clock.advance(1)
    assert house.app.process_one().wait(LONG) is True


def test_s2_the_lease_of_a_run_whose_event_loop_was_closed_under_it_is_renewed_no_more(house: House) -> None:
    async def begin() -> str:
        await house.app.init()
        run = await house.hold.trigger()
        await asyncio.to_thread(house.began.wait, LONG)
        return str(run.id)

    loop = asyncio.new_event_loop()
    run_id = loop.run_until_complete(begin())
    loop.close()
    house.clock.advance(LEASE / 3)
    until(lambda: house.reasons == ["lease-lost"], "the end of the function")
    assert house.calls == []
    assert house.expires_in(run_id) <= LEASE * 2 / 3


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_s9_a_jump_of_the_wall_clock_costs_no_living_worker_its_lease(house: House, jump: float) -> None:
    house.app.init().wait(LONG)
    run_id = house.begin(house.hold)
    house.clock.jump(jump)
    house.pass_time(2 * LEASE)
    assert (house.column(run_id, "generation"), house.column(run_id, "crashes")) == (1, 0)
    house.go.set()
    assert house.app.wait_for_run(run_id).wait(LONG).status == "completed"
    assert house.reasons == [None]


def test_s9_inline_leases_are_renewed_also_while_a_jump_of_the_wall_clock_suspends_judging(tmp_path: Path) -> None:
    clock = HandClock()

    async def main() -> None:
        app = Holdfast(databases.url(tmp_path / "app.db"), inline=True, clock=clock, lease=LEASE)
        began, may_go = asyncio.Event(), asyncio.Event()

        @app.job
        async def work(step: Step) -> None:
            began.set()
            await may_go.wait()

        async with app:
            run = await work.trigger()
            worker = app._engine.worker
            assert worker is not None
            await began.wait()
            (execution,) = worker.executing
            clock.jump(LEASE + 1)
            for _ in range(round(2 * LEASE)):  # one look for work after the other: there is no thread that renews
                clock.advance(1.0)
                for _ in range(20):
                    await asyncio.sleep(0)
            left.append(execution.deadline - clock.steady())
            may_go.set()
            await run.wait()

    left: list[float] = []
    asyncio.run(asyncio.wait_for(main(), LONG))
    assert left[0] > LEASE / 2


@pytest.mark.parametrize(("jump", "judges"), [(9.0, True), (-9.0, True), (11.0, False), (-11.0, False)])
def test_s9_only_a_jump_of_more_than_a_third_of_the_lease_counts(jump: float, judges: bool) -> None:
    clock = HandClock()
    judge = Judge(clock, LEASE)
    assert judge.may_judge()
    clock.advance(1000)
    assert judge.may_judge()
    clock.jump(jump)
    assert judge.may_judge() is judges
    clock.advance(LEASE)
    assert judge.may_judge()


def test_s9_a_process_never_takes_over_what_it_executes_itself(house: House) -> None:
    house.app.init().wait(LONG)
    run_id = house.begin(house.hold)
    for _ in range(8):
        house.clock.advance(LEASE * 0.9)  # nearly over each time
        until(lambda: house.believed() > LEASE * 0.8, "a renewal")
    assert (house.column(run_id, "generation"), house.column(run_id, "crashes")) == (1, 0)
    house.go.set()
    assert house.app.wait_for_run(run_id).wait(LONG).status == "completed"


class StoppedBetween(HandClock):
    """A clock whose process is stopped for a whole lease between reading one hand and the other."""

    stops = 0

    def now(self) -> int:
        wall = super().now()
        if self.stops:
            self.stops -= 1
            self.advance(LEASE)
        return wall


def test_s9_a_process_stopped_between_two_readings_takes_that_for_no_jump() -> None:
    clock = StoppedBetween()
    judge = Judge(clock, LEASE)
    clock.stops = 1
    assert judge.may_judge()
    assert judge.may_judge()
