"""Workers say that they are there: who is in the list, who is alive, what each one holds, and when a row goes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import platform
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from around import LONG, rows, until, url

import databases
from databases import StoreHere
from holdfast import Holdfast, WorkerRecord
from holdfast.basis.clock import to_datetime
from holdfast.engine.presence import _version
from holdfast.model.event import Event
from holdfast.model.worker import CheckIn
from holdfast.store.base import Tx
from holdfast.testing.clock import HandClock


class Watched(StoreHere):
    """Counts check-ins and rounds with one, and fails where it is told to."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.check_ins = 0
        self.together: list[bool] = []
        self.fails = False

    def claim(self, tx: Tx, orders: Any) -> Any:
        tx.seen["claims"] = True
        return super().claim(tx, orders)

    def check_in(self, tx: Tx, workers: Any) -> list[None]:
        self.check_ins += 1
        self.together.append("claims" in tx.seen)
        if self.fails:
            raise databases.driver.IntegrityError("somebody has changed the table")
        return super().check_in(tx, workers)


class World:
    def __init__(self, tmp_path: Path, *, inline: bool = False, **options: Any) -> None:
        self.clock = HandClock()
        self.path = tmp_path / "app.db"
        self.store = Watched(url(tmp_path), clock=self.clock)
        self.app = Holdfast(self.store, clock=self.clock, inline=inline, **options)
        self.begun, self.go = threading.Event(), threading.Event()

        @self.app.job
        def work(n: int) -> int:
            self.begun.set()
            assert self.go.wait(LONG)
            return n

        self.work = work

    def workers(self) -> list[WorkerRecord]:
        return self.app.workers().wait(LONG)

    def only(self) -> WorkerRecord:
        (worker,) = self.workers()
        return worker


Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[World] = []

    def make(**options: Any) -> World:
        made.append(World(tmp_path, **options))
        return made[-1]

    yield make
    for world in made:
        world.go.set()
        world.app.stop().wait(LONG)


def test_a_started_worker_is_in_the_list_with_where_it_is_and_what_it_executes(make: Make) -> None:
    world = make(queues=("fast", "default"))
    world.app.init().wait(LONG)
    until(world.workers, "the worker's row")
    now = to_datetime(world.clock.now())
    assert now is not None
    assert world.only() == WorkerRecord(
        id=world.app._engine.identity, host=platform.node(), pid=os.getpid(), started_at=now, seen_at=now,
        is_alive=True, jobs=("work",), queues=("fast", "default"), version=version("holdfast"), runs=(),
    )  # fmt: skip


def test_a_record_can_not_be_changed(make: Make) -> None:
    world = make()
    world.app.init().wait(LONG)
    until(world.workers, "the worker's row")
    with pytest.raises(dataclasses.FrozenInstanceError):
        world.only().pid = 1  # type: ignore[misc]


def test_it_says_which_runs_it_holds_and_since_when(make: Make) -> None:
    world = make()
    world.app.init().wait(LONG)
    world.clock.advance(5)
    run = world.work.trigger(1).wait(LONG)
    assert world.begun.wait(LONG)
    (held,) = world.only().runs
    assert (held.id, held.job_name, held.since) == (run.id, "work", to_datetime(world.clock.now()))
    world.go.set()
    run.wait(timeout=LONG).wait(LONG)
    assert world.only().runs == ()


def test_the_list_is_there_for_async_code_too(make: Make) -> None:
    world = make()

    async def main() -> list[WorkerRecord]:
        async with world.app:
            while not (found := await world.app.workers()):
                pass
            return found

    assert [worker.is_alive for worker in asyncio.run(main())] == [True]


def test_who_only_triggers_is_no_worker(make: Make) -> None:
    world = make(worker=False)
    world.app.init().wait(LONG)
    world.work.trigger(1).wait(LONG)
    assert world.workers() == []


def test_a_clean_stop_takes_the_row_away(make: Make, tmp_path: Path) -> None:
    world = make()
    world.app.init().wait(LONG)
    until(world.workers, "the worker's row")
    world.app.stop().wait(LONG)
    assert rows(world.path, "select count(*) from holdfast_workers") == [(0,)]


def test_a_worker_that_starts_again_is_another_one(make: Make) -> None:
    world = make()
    world.app.init().wait(LONG)
    until(world.workers, "the worker's row")
    first = world.only().id
    world.app.stop().wait(LONG)
    world.app.start().wait(LONG)
    until(world.workers, "the second worker's row")
    assert world.only().id != first


def test_it_is_seen_again_at_each_half_of_its_lease_and_not_more_often(make: Make) -> None:
    world = make(lease="30s", polling_interval="1s")
    world.app.init().wait(LONG)
    until(world.workers, "the worker's row")
    began = world.only().started_at
    world.clock.advance(14.9)
    world.app.process_one().wait(LONG)
    assert world.store.check_ins == 1
    world.clock.advance(0.1)
    world.app.process_one().wait(LONG)
    assert world.store.check_ins == 2
    assert world.only().seen_at == to_datetime(world.clock.now())
    assert world.only().started_at == began


def test_an_idle_worker_that_polls_seldom_is_seen_all_the_same(make: Make) -> None:
    world = make(lease="30s", polling_interval="1h")
    world.app.init().wait(LONG)
    until(world.workers, "the worker's row")
    for _ in range(4):
        before = world.store.check_ins
        world.clock.advance(20)
        until(lambda before=before: world.store.check_ins > before, "a check-in")  # type: ignore[misc]
    until(lambda: world.only().is_alive, "being seen")


def test_a_worker_whose_loop_is_blocked_is_seen_all_the_same(make: Make) -> None:
    world = make(lease="30s")

    @world.app.job
    async def blocks() -> None:
        world.begun.set()
        world.go.wait(LONG)  # async code that blocks its loop

    world.app.__enter__()
    blocks.trigger().wait(LONG)
    assert world.begun.wait(LONG)
    before = world.store.check_ins
    world.clock.advance(20)
    until(lambda: world.store.check_ins > before, "a check-in")
    world.go.set()


def test_the_row_is_written_in_the_round_of_a_claim(make: Make) -> None:
    world = make()
    world.app.init().wait(LONG)
    until(lambda: world.store.together, "the first check-in")
    assert world.store.together == [True]


def test_a_worker_that_nobody_sees_any_more_is_not_alive_and_later_forgotten(make: Make) -> None:
    world = make(worker=False)
    world.app.migrate().wait(LONG)
    tx = world.store.begin(connection := world.store.connect())
    world.store.check_in(tx, [CheckIn("dead", "far", 7, '["work"]', "[]", "1", 30_000_000)])
    world.store.commit(tx)
    world.store.disconnect(connection)
    assert world.only().is_alive
    world.clock.advance(30)
    assert not world.only().is_alive
    world.app.process_until_idle().wait(LONG)
    assert "dead" in {worker.id for worker in world.workers()}
    world.clock.advance(300)
    world.app.process_until_idle().wait(LONG)
    assert [worker.id for worker in world.workers()] == [world.app._engine.identity]


@pytest.mark.parametrize("inline", [False, True])
def test_who_executes_one_by_one_is_there_from_its_first_claim_to_its_stop(make: Make, inline: bool) -> None:
    world = make(worker=False, inline=inline)
    world.app.migrate().wait(LONG)
    assert world.workers() == []
    world.app.process_one().wait(LONG)
    until(world.workers, "the worker's row")
    world.app.stop().wait(LONG)
    assert rows(world.path, "select count(*) from holdfast_workers") == [(0,)]


def test_a_failing_check_in_keeps_nobody_from_working_and_is_made_up_for(make: Make) -> None:
    world = make()
    told: list[Event] = []
    world.app.on("worker:error", told.append)
    world.store.fails = True
    world.app.init().wait(LONG)
    world.go.set()
    assert world.work.run(3).wait(LONG) == 3
    assert world.store.check_ins
    assert world.workers() == []
    world.store.fails = False
    world.clock.advance(15)
    until(world.workers, "being seen")
    assert told == []


def test_rows_that_somebody_spoiled_by_hand_are_shown_without_names(make: Make) -> None:
    world = make()
    world.app.init().wait(LONG)
    until(world.workers, "the worker's row")
    rows(world.path, "update holdfast_workers set jobs = 'no JSON', queues = '{}'")
    assert (world.only().jobs, world.only().queues) == ((), ())


def test_a_worker_of_a_package_without_its_metadata_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", none)
    _version.cache_clear()
    try:
        with Holdfast(url(tmp_path)) as app:

            @app.job
            def double(n: int) -> int:
                return n * 2

            assert double.run(2).wait(LONG) == 4
            assert [worker.version for worker in app.workers().wait(LONG)] == ["unknown"]
    finally:
        _version.cache_clear()
