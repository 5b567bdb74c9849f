"""Durably 11.4, 11.6, 11.11, 11.16: the worker, who gets a run, slices, and many writers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conformance_jobs import FORMS, LONG, Gate, Heard, steps, work

from databases import StoreHere
from holdfast import Holdfast, Job, Step, SyncStep, job
from holdfast.store.base import ClaimOrder
from holdfast.testing.clock import HandClock
from house import House


def _numbered(form: str, diary: list[str], meet: Callable[[], Any] | None = None) -> Job[..., Any]:
    """A job that writes down when it begins and ends; `meet` blocks in between, in a thread."""

    @job(name="work")
    async def numbered(step: Step, n: int) -> int:
        diary.append(f"start{n}")
        if meet is not None:
            await step.run("meet", meet)
        diary.append(f"end{n}")
        return n

    @job(name="work")
    def numbered_sync(n: int) -> int:
        diary.append(f"start{n}")
        if meet is not None:
            meet()
        diary.append(f"end{n}")
        return n

    return numbered if form == "async" else numbered_sync


# -- 11.4 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_started_worker_finds_what_was_there_and_completes_it(house: House, form: str) -> None:
    first = house.app(_numbered(form, []), worker=False)
    first.init().wait(LONG)
    run = work(first).trigger(3).wait(LONG)
    first.stop().wait(LONG)
    with house.app(_numbered(form, [])) as app:
        ended = app.wait_for_run(run.id).wait(LONG)
    assert (ended.status, ended.output) == ("completed", 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("runs", [1, 3])
def test_a_stop_waits_for_the_runs_that_are_under_way(house: House, form: str, runs: int) -> None:
    barrier, go, diary = threading.Barrier(runs + 1), threading.Event(), []

    def meet() -> None:
        barrier.wait(LONG)
        assert go.wait(LONG)

    app = house.app(_numbered(form, diary, meet), concurrency=3)
    app.init().wait(LONG)
    for n in range(runs):
        work(app).trigger(n).wait(LONG)
    barrier.wait(LONG)
    stopping = app.stop(timeout=None)
    thread = threading.Thread(target=stopping.wait, args=(LONG,))
    thread.start()
    assert not stopping.done()
    go.set()
    thread.join(LONG)
    assert stopping.done()
    assert house.status() == ["completed"] * runs


def test_an_idle_app_stops_without_waiting_for_any_time_to_pass(house: House, clock: HandClock) -> None:
    app = house.app(clock=clock, polling_interval=60)
    app.init().wait(LONG)
    app.stop().wait(LONG)  # the clock stands still
    assert clock.steady() == 0


@pytest.mark.parametrize("form", FORMS)
def test_with_one_slot_runs_go_one_after_the_other_in_their_order(house: House, form: str) -> None:
    diary: list[str] = []
    app = house.app(_numbered(form, diary), concurrency=1)
    app.migrate().wait(LONG)
    for n in range(3):
        work(app).trigger(n).wait(LONG)
    with app:
        for run in app.get_runs().wait(LONG):
            run.wait().wait(LONG)
    assert diary == ["start0", "end0", "start1", "end1", "start2", "end2"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"concurrency": 3}], ids=["default", "three"])
def test_as_many_runs_as_there_are_slots_execute_at_the_same_time(
    house: House, form: str, options: dict[str, Any]
) -> None:
    slots = options.get("concurrency", 10)
    together = threading.Barrier(slots)
    with house.app(_numbered(form, [], lambda: together.wait(LONG)), **options) as app:
        runs = [work(app).trigger(n).wait(LONG) for n in range(slots)]
        assert [run.result().wait(LONG) for run in runs] == list(range(slots))


def test_an_idle_worker_has_one_timer_however_many_slots_and_however_often_it_looked(
    house: House, clock: HandClock
) -> None:
    with house.app(steps("sync"), clock=clock, concurrency=2, polling_interval=1) as app:
        worker = app._engine.worker
        assert worker is not None
        pause = threading.Event()
        for _ in range(20):
            clock.advance(1)
            for _ in range(10_000):
                standing = [timer for timer in clock._timers if not timer.cancelled]
                if worker._asleep and len(standing) == 1 and clock.next_timer() == 1.0:
                    break
                pause.wait(0.002)
            else:
                raise AssertionError(f"{len(standing)} timers")


# -- 11.6 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_trigger_with_a_used_idempotency_key_gives_the_first_run_with_its_input(house: House, form: str) -> None:
    app = house.app(_numbered(form, []), worker=False)
    app.init().wait(LONG)
    keyed = work(app).options(idempotency_key="order-1")
    first, second = keyed.trigger(1).wait(LONG), keyed.trigger(2).wait(LONG)
    assert (second.id, second.input, second.disposition) == (first.id, {"n": 1}, "idempotent")
    app.stop().wait(LONG)


def test_of_four_workers_that_claim_at_once_one_gets_the_run_twenty_five_times(house: House) -> None:
    app = house.app(steps("sync"), worker=False)
    app.init().wait(LONG)
    stores = [StoreHere(house.url) for _ in range(4)]
    together = threading.Barrier(4)

    def claim(number: int) -> list[str]:
        store = stores[number]
        connection = store.open()
        won: list[str] = []
        for _ in range(25):
            together.wait(LONG)  # the run is there
            tx = store.begin(connection)
            (claimed,) = store.claim(tx, [ClaimOrder(f"worker-{number}", 1, 30_000_000, ("work",))])
            store.commit(tx)
            won += [run.id for run in claimed.runs]
            together.wait(LONG)  # everybody has claimed
            if number == 0:
                work(app).trigger().wait(LONG)
        store.disconnect(connection)
        return won

    work(app).trigger().wait(LONG)
    with ThreadPoolExecutor(4) as pool:
        won = [run_id for wins in pool.map(claim, range(4)) for run_id in wins]
    assert len(won) == len(set(won)) == 25
    app.stop().wait(LONG)


# -- 11.11 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_slice_of_two_leaves_the_third_run_to_the_next_slice(house: House, form: str) -> None:
    diary: list[str] = []
    app = house.app(_numbered(form, diary))
    app.migrate().wait(LONG)
    for n in range(3):
        work(app).trigger(n).wait(LONG)
    assert app.process_until_idle(max_runs=2).wait(LONG) == 2
    assert house.status() == ["completed", "completed", "pending"]
    assert app.process_until_idle(max_runs=2).wait(LONG) == 1
    assert diary == ["start0", "end0", "start1", "end1", "start2", "end2"]
    app.stop().wait(LONG)


def test_a_slice_without_work_returns_at_once(house: House, clock: HandClock) -> None:
    app = house.app(steps("sync"), clock=clock, polling_interval=60)
    app.migrate().wait(LONG)
    assert app.process_until_idle(max_runs=5).wait(LONG) == 0  # the clock stands still
    app.stop().wait(LONG)


# -- 11.16 -----------------------------------------------------------------------------------------------------------


class Busy:
    """A worker that executes runs with steps all the time, and another app on the same file."""

    def __init__(self, house: House, form: str) -> None:
        @job(name="load")
        async def load(step: Step, n: int) -> int:
            return sum([await step.run(f"s{i}", abs, i) for i in range(5)])

        @job(name="load")
        def load_sync(step: SyncStep, n: int) -> int:
            return sum([step.run(f"s{i}", abs, i) for i in range(5)])

        loaded = load if form == "async" else load_sync
        self.errors = house.errors
        self.worker, self.other = house.app(loaded), house.app(loaded, worker=False)
        self.worker.init().wait(LONG)
        self.other.init().wait(LONG)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._keep_busy)
        self.thread.start()

    def job(self, app: Holdfast) -> Job[..., Any]:
        found = app.get_job("load")
        assert found is not None
        return found

    def _keep_busy(self) -> None:
        n = 0
        while not self.stopping.is_set():
            self.job(self.worker).run(n).wait(LONG)
            n += 1

    def end(self) -> None:
        self.stopping.set()
        self.thread.join()
        self.worker.stop().wait(LONG)
        self.other.stop().wait(LONG)
        assert self.errors == []


@pytest.mark.parametrize("form", FORMS)
def test_while_a_worker_writes_another_process_triggers_deletes_and_waits_and_nobody_is_refused(
    house: House, form: str
) -> None:
    busy = Busy(house, form)
    load = busy.job(busy.other)
    try:
        singles = [load.trigger(n) for n in range(5)]
        many = busy.other.trigger_many([load.bind(n) for n in range(5)])
        keyed = [load.options(idempotency_key="once").trigger_and_wait(1) for _ in range(3)]
        runs = [reply.wait(LONG) for reply in singles] + many.wait(LONG)
        assert [run.result().wait(LONG) for run in runs] == [10] * 10
        assert len({reply.wait(LONG).id for reply in keyed}) == 1
        for run in runs:
            busy.other.delete_run(run.id).wait(LONG)
        assert all(busy.other.get_run(run.id).wait(LONG) is None for run in runs)
    finally:
        busy.end()


# -- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_event_of_a_claim_names_the_owner_that_stands_in_the_row(house: House, form: str) -> None:
    gate = Gate()
    with house.app(steps(form, one=gate)) as app:
        heard = Heard(app, "run:leased", "run:complete")
        run = work(app).trigger().wait(LONG)
        gate.wait()
        row = run.refresh().wait(LONG)
        leased = heard.until("run:leased")
        assert (leased.run_id, leased.lease_owner) == (run.id, row.lease_owner)
        assert leased.lease_expires_at == row.lease_expires_at
        gate.open()
        heard.until("run:complete")
    assert heard.types == ["run:leased", "run:complete"]
