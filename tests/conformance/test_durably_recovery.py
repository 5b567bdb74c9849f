"""Durably 11.9, 11.10: leases, what a lost one leaves, cancelling, retriggering, deleting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from conformance_jobs import FORMS, LONG, Gate, Heard, steps, work

from databases import StoreHere
from holdfast import ConflictError, NotFoundError, RunCancelled, Step, StoreUnavailable, SyncStep, job
from holdfast.store.base import Renewal, Tx
from holdfast.testing.clock import HandClock
from house import House

LEASE = 30.0


def until(condition: Any, what: str = "it") -> None:
    """For what nobody announces."""
    pause = threading.Event()
    for _ in range(round(LONG / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError(f"{what} never came to be")


# -- leases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("interval", [5, 15])
def test_a_lease_is_renewed_at_the_interval_of_the_app_and_each_time_lasts_from_then(
    house: House, clock: HandClock, form: str, interval: int
) -> None:
    gate = Gate()
    app = house.app(
        steps(form, hold=gate), clock=clock, lease=LEASE, lease_renew_interval=interval, polling_interval=3600
    )
    with app:
        heard = Heard(app, "run:lease-renewed")
        run = work(app).trigger().wait(LONG)
        gate.wait()

        def left() -> set[float]:
            """Seconds, by the database and as the worker believes."""
            [(until,)] = house.sql("select lease_expires_at from holdfast_runs")
            believed = [holder.deadline - clock.steady() for holder in app._engine.keeper.held]
            return {float(until - clock.now()) / 1e6, *believed}

        assert left() == {LEASE}
        for _ in range(3):
            clock.advance(interval)
            until(lambda: left() == {LEASE}, "a renewal")
        gate.open()
        ended = run.wait().wait(LONG)
    assert (ended.status, ended.generation, ended.lease_owner, ended.lease_expires_at) == ("completed", 1, None, None)
    assert [event.run_id for event in heard.events] == [run.id] * 3


class Renewals(StoreHere):
    """Refuses renewals while it is told to."""

    broken = False

    def renew_leases(self, tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        if self.broken:
            raise StoreUnavailable("the disk is on fire")
        return super().renew_leases(tx, renewals)


@pytest.mark.parametrize("form", FORMS)
def test_a_renewal_that_breaks_is_reported_and_the_run_goes_on_as_long_as_its_lease(
    house: House, clock: HandClock, form: str
) -> None:
    gate, store = Gate("kept"), Renewals(house.url, clock=clock)
    with house.app(steps(form, hold=gate), store=store, clock=clock, lease=LEASE, polling_interval=3600) as app:
        run = work(app).trigger().wait(LONG)
        gate.wait()
        store.broken = True
        clock.advance(LEASE / 3)
        until(lambda: "lease-renewal" in dict(house.errors), "the report")
        store.broken = False
        gate.open()
        assert run.result().wait(LONG) == ["kept"]
    assert ("lease-renewal", "StoreUnavailable: the disk is on fire") in house.errors


# -- a lease that was lost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", ["zombie", ValueError("zombie")], ids=["completes", "fails"])
def test_a_stale_owner_can_neither_complete_nor_fail_the_run_of_its_successor(
    house: House, form: str, value: Any
) -> None:
    gate, ends = Gate(value), []

    @job(name="work")
    async def one(step: Step) -> Any:
        return await step.run("first", lambda: len(ends)) if ends else await step.run("zombie", gate)

    @job(name="work")
    def one_sync(step: SyncStep) -> Any:
        return step.run("first", lambda: len(ends)) if ends else step.run("zombie", gate)

    definition = one if form == "async" else one_sync
    first = house.app(definition, polling_interval=3600)
    first.init().wait(LONG)
    first._engine.watcher.stop()  # it shall not see what the others do
    run = work(first).trigger().wait(LONG)
    gate.wait()
    house.take_away()
    ends.append("heir")
    with house.app(definition) as second:
        assert second.wait_for_run(run.id).wait(LONG).output == 1
    gate.open()
    first.stop().wait(LONG)
    [row] = house.sql("select status, output, error, crashes from holdfast_runs")
    assert row == ("completed", "1", None, 0)
    assert house.steps() == [("first", 0, "completed")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("value", "context"), [("zombie", "run-completion"), (ValueError("zombie"), "run-failure")], ids=["end", "failure"]
)
def test_an_end_that_is_refused_because_the_lease_was_lost_is_reported_with_its_run(
    house: House, form: str, value: Any, context: str
) -> None:
    gate = Gate(value)

    @job(name="work")
    async def one() -> Any:
        return await asyncio.to_thread(gate)

    @job(name="work")
    def one_sync() -> Any:
        return gate()

    app = house.app(one if form == "async" else one_sync, polling_interval=3600)
    heard = Heard(app, "worker:error", "run:complete", "run:fail")
    app.init().wait(LONG)
    app._engine.watcher.stop()  # it shall not see what the others do
    run = work(app).trigger().wait(LONG)
    gate.wait()
    house.take_away(for_seconds=1000)
    gate.open()
    error = heard.until("worker:error")
    app.stop().wait(LONG)
    assert (error.context, error.run_id) == (context, run.id)
    assert heard.types == ["worker:error"]
    assert house.status() == ["pending"]


@pytest.mark.parametrize("form", FORMS)
def test_what_was_saved_before_a_lease_was_lost_stays_and_no_later_step_begins(house: House, form: str) -> None:
    gate, calls = Gate(), []
    one = steps(form, a=lambda: calls.append("a"), b=gate, c=lambda: calls.append("c"))
    app = house.app(one)
    app.init().wait(LONG)
    work(app).trigger().wait(LONG)
    gate.wait()
    house.take_away(for_seconds=1000)
    gate.open()
    app.stop().wait(LONG)
    assert calls == ["a"]
    assert house.steps("name, status") == [("a", "completed")]
    assert house.status() == ["pending"]


@pytest.mark.parametrize("form", FORMS)
def test_code_that_looks_at_its_signal_stops_when_the_lease_is_lost(house: House, clock: HandClock, form: str) -> None:
    seen: list[Any] = []
    came, over = threading.Event(), threading.Event()

    def look(step: Any) -> None:
        came.set()
        try:
            assert step.signal.wait(LONG)
            seen.append(step.signal.reason)
            step.raise_if_aborted()
            seen.append("went on")
        finally:
            over.set()

    @job(name="work")
    async def looks(step: Step) -> None:
        await step.run("look", look, step)

    @job(name="work")
    def looks_sync(step: SyncStep) -> None:
        look(step)

    app = house.app(looks if form == "async" else looks_sync, clock=clock, lease=LEASE)
    app.init().wait(LONG)
    work(app).trigger().wait(LONG)
    assert came.wait(LONG)
    house.take_away(for_seconds=1000)
    clock.advance(LEASE / 3)
    assert over.wait(LONG)
    app.stop().wait(LONG)
    assert seen == ["lease-lost"]


@pytest.mark.parametrize("form", FORMS)
def test_a_run_whose_lease_ran_out_is_taken_over_and_has_no_owner_when_it_has_ended(
    house: House, clock: HandClock, form: str
) -> None:
    app = house.app(steps(form, one=lambda: 1), clock=clock, lease="1s")
    app.migrate().wait(LONG)
    run = work(app).trigger().wait(LONG)
    house.sql(
        "update holdfast_runs set status = 'leased', generation = 1, lease_owner = 'dead', started_at = ?, "
        "lease_expires_at = ?", clock.now(), clock.now() + 5000,
    )  # fmt: skip
    assert app.process_one().wait(LONG) is False
    clock.advance(0.005)
    assert app.process_one().wait(LONG) is True
    after = run.refresh().wait(LONG)
    assert (after.status, after.lease_owner, after.lease_expires_at) == ("completed", None, None)
    assert after.started_at == after.created_at
    app.stop().wait(LONG)


# -- retriggering ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["failed", "completed", "cancelled"])
def test_an_ended_run_can_be_triggered_again_as_a_fresh_one(house: House, form: str, how: str) -> None:
    gate = Gate()

    @job(name="work")
    async def acts(step: Step, n: int) -> int:
        return await step.run("act", _act, how, gate, n)

    @job(name="work")
    def acts_sync(step: SyncStep, n: int) -> int:
        return step.run("act", _act, how, gate, n)

    app = house.app(acts if form == "async" else acts_sync)
    with app:
        heard = Heard(app, "run:trigger")
        old = work(app).options(labels={"env": "test"}, idempotency_key="once", priority=3).trigger(7).wait(LONG)
        if how == "cancelled":
            gate.wait()
            old.cancel().wait(LONG)
            gate.open()
        assert old.wait().wait(LONG).status == how
    web = house.app(acts if form == "async" else acts_sync, worker=False)
    web.init().wait(LONG)
    fresh = web.retrigger(old.id).wait(LONG)
    assert fresh.id != old.id
    assert (fresh.status, fresh.input, fresh.labels, fresh.priority) == ("pending", {"n": 7}, {"env": "test"}, 3)
    assert (fresh.idempotency_key, fresh.attempt, fresh.generation) == (None, 0, 0)
    assert web.get_steps(fresh.id).wait(LONG) == []
    web.stop().wait(LONG)
    assert [event.run_id for event in heard.events] == [old.id]


def _act(how: str, gate: Gate, n: int) -> int:
    if how == "failed":
        raise LookupError("no such airport")
    if how == "cancelled":
        gate()
    return n


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_has_not_ended_is_neither_triggered_again_nor_deleted(house: House, form: str) -> None:
    gate = Gate()
    with house.app(steps(form, hold=gate)) as app:
        leased = work(app).trigger().wait(LONG)
        pending = work(app).options(delay="1h").trigger().wait(LONG)
        gate.wait()
        for run, status in ((leased, "leased"), (pending, "pending")):
            with pytest.raises(ConflictError, match=f"Cannot retrigger {status} run: {run.id}"):
                app.retrigger(run.id).wait(LONG)
            with pytest.raises(ConflictError, match=f"Cannot delete {status} run: {run.id}"):
                app.delete_run(run.id).wait(LONG)
        gate.open()


def test_a_run_that_is_not_there_is_not_found_by_any_verb(house: House) -> None:
    with house.app() as app:
        for verb in (app.retrigger, app.delete_run, app.cancel, app.wait_for_run):
            with pytest.raises(NotFoundError, match="Run not found: nobody"):
                verb("nobody").wait(LONG)  # type: ignore[operator]


def test_a_run_of_a_job_that_is_not_registered_is_not_triggered_again(house: House) -> None:
    with house.app(steps("sync")) as app:
        run = work(app).trigger_and_wait().wait(LONG)
    other = house.app(worker=False)
    other.init().wait(LONG)
    with pytest.raises(NotFoundError, match="Unknown job: work"):
        other.retrigger(run.id).wait(LONG)
    other.stop().wait(LONG)


# -- cancelling and deleting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["failed", "completed", "cancelled"])
def test_an_ended_run_can_not_be_cancelled_and_says_what_it_is(house: House, form: str, how: str) -> None:
    with house.app(steps(form, act=lambda: _act(how, Gate(), 1)) if how != "cancelled" else steps(form)) as app:
        run = work(app).options(delay="1h" if how == "cancelled" else 0).trigger().wait(LONG)
        if how == "cancelled":
            run.cancel().wait(LONG)
        assert run.wait().wait(LONG).status == how
        said = "already cancelled" if how == "cancelled" else how
        with pytest.raises(ConflictError, match=f"Cannot cancel {said} run: {run.id}"):
            run.cancel().wait(LONG)
        assert run.refresh().wait(LONG).status == how


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["failed", "completed", "cancelled"])
def test_an_ended_run_is_deleted_with_its_steps_however_it_ended(house: House, form: str, how: str) -> None:
    gate = Gate()
    with house.app(steps(form, one=lambda: 1, act=lambda: _act(how, gate, 1))) as app:
        run = work(app).options(labels={"env": "test"}).trigger().wait(LONG)
        if how == "cancelled":
            gate.wait()
            run.cancel().wait(LONG)
            gate.open()
        assert run.wait().wait(LONG).status == how
        app.delete_run(run.id).wait(LONG)
        assert app.get_run(run.id).wait(LONG) is None
    assert house.steps() == []
    assert house.sql("select count(*) from holdfast_labels") == [(0,)]


@pytest.mark.parametrize("form", FORMS)
def test_who_waits_for_a_run_that_is_cancelled_before_its_start_is_told(house: House, form: str) -> None:
    with house.app(steps(form)) as app:
        run = work(app).options(delay="1h").trigger().wait(LONG)
        waiting = run.result()
        failed: list[BaseException] = []

        def wait() -> None:
            try:
                waiting.wait(LONG)
            except RunCancelled as error:
                failed.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: app._engine.hub.awaited)
        run.cancel().wait(LONG)
        thread.join(LONG)
    assert [type(error) for error in failed] == [RunCancelled]
