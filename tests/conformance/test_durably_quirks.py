"""Durably 12 and 13: what was odd there and is not here, and what Python brings."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from conformance_jobs import FORMS, LONG, Gate, Heard, body, steps, work
from pydantic import BaseModel

from databases import StoreHere
from holdfast import Holdfast, RunCancelled, RunStatus, Step, SyncStep, ValidationError, job
from holdfast.model.event import EVENTS
from holdfast.model.run import Disposition
from holdfast.store.base import Renewal, Tx
from holdfast.testing.clock import HandClock
from house import House

LEASE = 30.0


# -- quirks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_q11_a_parameter_named_input_is_a_parameter_like_any_other(house: House, form: str) -> None:
    @job(name="work")
    async def takes(input: dict[str, int], options: int = 1) -> list[Any]:
        return [input, options]

    @job(name="work")
    def takes_sync(input: dict[str, int], options: int = 1) -> list[Any]:
        return [input, options]

    with house.app(takes if form == "async" else takes_sync) as app:
        run = work(app).trigger_and_wait(input={"input": 1}, options=2).wait(LONG)
    assert (run.input, run.output) == ({"input": {"input": 1}, "options": 2}, [{"input": 1}, 2])


@pytest.mark.parametrize(("limit", "offset"), [(-1, 0), (1, -1), (1.5, 0), (True, 0)])
def test_q13_a_page_of_less_than_nothing_is_refused(limit: Any, offset: Any) -> None:
    with pytest.raises(ValidationError, match="limit" if limit != 1 or limit is True else "offset"):
        Holdfast().get_runs(limit=limit, offset=offset)


class Person(BaseModel):
    name: str
    age: int = 18


@pytest.mark.parametrize("form", FORMS)
def test_q20_input_and_output_are_both_stored_as_their_annotations_say(house: House, form: str) -> None:
    @job(name="work")
    async def takes(person: Person) -> Person:
        return Person(name=person.name.upper(), age=person.age)

    @job(name="work")
    def takes_sync(person: Person) -> Person:
        return Person(name=person.name.upper(), age=person.age)

    with house.app(takes if form == "async" else takes_sync) as app:
        run = work(app).trigger_and_wait(Person(name="ann")).wait(LONG)
        assert run.output == Person(name="ANN", age=18)
    [(stored_input, stored_output)] = house.sql("select input, output from holdfast_runs")
    assert json.loads(stored_input) == {"name": "ann", "age": 18}
    assert json.loads(stored_output) == {"name": "ANN", "age": 18}


class Slow(StoreHere):
    """Its renewals take as long as they are told to, and are counted."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.counting = threading.Lock()
        self.at_once = self.most = self.calls = 0
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def renew_leases(self, tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        with self.counting:
            self.calls += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.entered.set()
        try:
            assert self.go.wait(LONG)
            return super().renew_leases(tx, renewals)
        finally:
            with self.counting:
                self.at_once -= 1


def test_q23_renewals_never_overlap_however_slow_the_database_is(house: House, clock: HandClock) -> None:
    gate, store = Gate(), Slow(house.url, clock=clock)
    with house.app(steps("sync", hold=gate), store=store, clock=clock, lease=LEASE, polling_interval=3600) as app:
        run = work(app).trigger().wait(LONG)
        gate.wait()
        store.go.clear()
        clock.advance(LEASE / 3)
        assert store.entered.wait(LONG)
        for _ in range(3):
            clock.advance(1)  # not so long that the lease were over
        store.go.set()
        gate.open()
        run.wait().wait(LONG)
    assert store.most == 1


# -- hazards ---------------------------------------------------------------------------------------------------------


def test_h1_times_are_stored_as_numbers_that_compare_as_they_are(house: House, clock: HandClock) -> None:
    app = house.app(steps("sync"), worker=False, clock=clock)
    app.init().wait(LONG)
    run = work(app).trigger().wait(LONG)
    [(created,)] = house.sql("select created_at from holdfast_runs")
    assert (created, type(created)) == (clock.now(), int)
    assert run.created_at.utcoffset() is not None
    assert round(run.created_at.timestamp() * 1e6) == clock.now()
    app.stop().wait(LONG)


@pytest.mark.parametrize("form", FORMS)
def test_h2_what_is_absent_is_left_out_and_nothing_is_null(house: House, form: str) -> None:
    def says(step: Any) -> None:
        step.progress(1)
        step.log.info("bare")

    with house.app(body(form, says)) as app:
        heard = Heard(app, "run:progress", "log:write", "run:complete")
        run = work(app).trigger_and_wait().wait(LONG)
    assert heard.until("run:progress").progress == {"current": 1}
    assert heard.until("log:write").data.get("data") is None
    assert heard.until("run:complete").output is None
    assert run.output is None
    assert house.sql("select output from holdfast_runs") == [("null",)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**70, "zwölf\u2028"], ids=["nan", "inf", "int", "text"])
def test_h2_what_is_stored_is_json_that_every_reader_understands(house: House, form: str, value: Any) -> None:
    with house.app(steps(form, one=lambda: 0, returns=value)) as app:
        run = work(app).trigger_and_wait().wait(LONG)
        assert run.output == value or (value != value and run.output != run.output)
    [(stored,)] = house.sql("select output from holdfast_runs")

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(stored.removeprefix("~"), parse_constant=refuse)  # what JSON can't say is tagged
    assert "\n" not in stored


@pytest.mark.parametrize("form", FORMS)
def test_h3_a_tuple_and_a_number_as_key_are_the_same_at_first_and_on_replay(house: House, form: str) -> None:
    seen: list[Any] = []
    gate = Gate()
    value = {1: (2, 3)}

    @job(name="work")
    async def looks(step: Step) -> None:
        seen.append(await step.run("value", lambda: value))
        await step.run("gate", gate)

    @job(name="work")
    def looks_sync(step: SyncStep) -> None:
        seen.append(step.run("value", lambda: value))
        step.run("gate", gate)

    one = looks if form == "async" else looks_sync
    app = house.app(one)
    app.init().wait(LONG)
    run = work(app).trigger().wait(LONG)
    gate.wait()
    house.take_away(for_seconds=1000)
    gate.open()
    app.stop().wait(LONG)
    house.sql("update holdfast_runs set run_at = created_at, due = 1")
    with house.app(one) as second:
        assert second.wait_for_run(run.id).wait(LONG).status == "completed"
    assert seen == [value, value]
    assert [type(one[1]) for one in seen] == [tuple, tuple]


def test_h5_a_run_that_was_cancelled_is_no_task_that_was_cancelled() -> None:
    assert not issubclass(RunCancelled, asyncio.CancelledError)
    assert issubclass(RunCancelled, Exception)


@pytest.mark.parametrize("form", FORMS)
def test_h6_a_step_that_blocks_its_thread_keeps_its_lease_and_stalls_no_neighbour(
    house: House, clock: HandClock, form: str
) -> None:
    gate = Gate()

    @job(name="quick")
    async def quick(step: Step) -> int:
        return await step.run("one", lambda: 1)

    with house.app(steps(form, hold=gate), quick, clock=clock, lease=LEASE, polling_interval=3600) as app:
        run = work(app).trigger().wait(LONG)
        gate.wait()
        found = app.get_job("quick")
        assert found is not None
        assert found.run().wait(LONG) == 1
        pause = threading.Event()
        for _ in range(12):  # four leases long
            clock.advance(LEASE / 3)
            for _ in range(10_000):
                [(until,)] = house.sql("select lease_expires_at from holdfast_runs where id = ?", run.id)
                (holder,) = [one for one in app._engine.keeper.held if one.lease.run_id == run.id]
                if until - clock.now() == LEASE * 1e6 and holder.deadline - clock.steady() == LEASE:
                    break
                pause.wait(0.002)
            else:
                raise AssertionError("no renewal")
        gate.open()
        ended = run.wait().wait(LONG)
    assert (ended.status, ended.generation, ended.crashes) == ("completed", 1, 0)


def test_h13_the_words_of_the_ancestor_are_ours() -> None:
    assert {"pending", "leased", "completed", "failed", "cancelled"} <= {str(status) for status in RunStatus}
    assert {"created", "idempotent", "coalesced"} <= set(get_args(Disposition))
    fifteen = {
        "run:trigger", "run:coalesced", "run:leased", "run:lease-renewed", "run:progress", "run:complete", "run:fail",
        "run:cancel", "run:delete", "step:start", "step:complete", "step:fail", "step:cancel", "log:write",
        "worker:error",
    }  # fmt: skip
    assert fifteen <= EVENTS
