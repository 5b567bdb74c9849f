"""What an idle worker forgets by itself, what is deleted on request, and who notices (S7, but for trees)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from around import LONG, rows, until, url

import databases
from databases import StoreHere
from holdfast import ConflictError, Holdfast, NotFoundError, RunStatus, SyncStep, ValidationError
from holdfast.basis.errors import StoreClosed, StoreUnavailable
from holdfast.engine.maintenance import Maintenance
from holdfast.model.event import Event
from holdfast.store.base import Deleted, Old, Tx
from holdfast.testing.clock import HandClock

DAY = 86_400.0
HOUR = 3_600.0


class Looked(StoreHere):
    """Counts how often the old is looked for, fails where it is told to, and can be held up."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.looks: list[Old] = []
        self.fails = False
        self.looking = threading.Event()
        self.may_go: threading.Event | None = None
        self.lost_answers = 0
        self.polls = 0

    def expire(self, tx: Tx, sweeps: Any) -> Any:
        self.polls += 1
        return super().expire(tx, sweeps)

    def find_old(self, connection: Any, old: Old) -> list[str]:
        self.looks.append(old)
        if self.may_go is not None:
            self.looking.set()
            assert self.may_go.wait(LONG)
        if self.fails:
            raise StoreUnavailable("the disk is on fire")
        return super().find_old(connection, old)

    def delete(self, tx: Tx, run_ids: Any) -> list[Deleted]:
        tx.seen["deletes"] = True
        return super().delete(tx, run_ids)

    def commit(self, tx: Tx) -> None:
        super().commit(tx)
        if "deletes" in tx.seen and self.lost_answers:
            self.lost_answers -= 1
            raise databases.driver.OperationalError("no answer")


class World:
    """An app on a clock turned by hand, with a job that has steps."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.path = tmp_path / "app.db"
        self.clock = HandClock()
        self.store = Looked(url(tmp_path), clock=self.clock)
        self.app = Holdfast(self.store, clock=self.clock, **options)
        self.errors: list[Event] = []
        self.app.on("worker:error", self.errors.append)
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

        @self.app.job
        def work(step: SyncStep, n: int) -> int:
            def body() -> int:
                self.begun.set()
                assert self.go.wait(LONG)
                return n * 2

            step.log.info("before")
            value = step.run("double", body)
            step.run("nothing", lambda: None)
            return value

        self.work = work
        self.app.migrate().wait(LONG)

    def ended(self, count: int = 1, **options: Any) -> list[str]:
        """So many runs that have ended now."""
        ids = [self.work.options(**options).trigger(n).wait(LONG).id for n in range(count)]
        for _ in ids:
            assert self.app.process_one().wait(LONG)
        return ids

    def left(self) -> set[str]:
        return {run.id for run in self.app.get_runs(limit=None).wait(LONG)}

    def idle(self) -> None:
        self.app.process_until_idle().wait(LONG)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    made: list[World] = []

    def make(**options: Any) -> World:
        made.append(World(tmp_path, **options))
        return made[-1]

    yield make
    for world in made:
        world.go.set()
        world.app.stop().wait(LONG)


Make = Callable[..., World]


# -- retention -------------------------------------------------------------------------------------------------------


def test_runs_older_than_the_retention_go_when_a_worker_first_becomes_idle(make: Make) -> None:
    world = make(retain_runs="30d")
    old = world.ended(3)
    world.clock.advance(29 * DAY)
    young = world.ended(2)
    world.clock.advance(DAY + 1)
    world.idle()
    assert world.left() == set(young)
    assert rows(world.path, "select count(*) from holdfast_steps where run_id = ?", old[0]) == [(0,)]


def test_without_retention_nothing_is_ever_deleted(make: Make) -> None:
    world = make()
    ids = world.ended(2)
    world.clock.advance(999 * DAY)
    world.idle()
    assert world.left() == set(ids)


def test_who_has_reached_the_most_runs_is_not_idle_and_deletes_nothing(make: Make) -> None:
    world = make(retain_runs=60)
    old = world.ended()
    world.clock.advance(DAY)
    last = world.work.trigger(1).wait(LONG)
    assert world.app.process_until_idle(max_runs=1).wait(LONG) == 1
    assert world.app.process_until_idle(max_runs=0).wait(LONG) == 0
    assert world.app.process_one().wait(LONG) is False
    assert world.left() == {*old, last.id}
    assert world.app.process_until_idle(max_runs=1).wait(LONG) == 0
    assert world.left() == {last.id}


def test_it_is_looked_for_once_a_minute_at_most(make: Make) -> None:
    world = make(retain_runs=10, preserve_steps=True)
    world.idle()
    old = world.ended()
    world.clock.advance(59)
    world.idle()
    assert world.left() == set(old)
    world.clock.advance(1)
    world.idle()
    assert world.left() == set()


def test_however_many_are_old_they_go_in_batches_at_one_idle_moment(make: Make) -> None:
    world = make(retain_runs=60, preserve_steps=True)
    world.ended(230)
    world.clock.advance(61)
    world.idle()
    assert world.left() == set()
    assert [old.limit for old in world.store.looks] == [100] * 4


def test_a_started_worker_looks_at_once_and_then_every_minute(make: Make) -> None:
    world = make(retain_runs=10, preserve_steps=True)
    world.ended()
    world.clock.advance(11)
    world.app.start().wait(LONG)
    until(lambda: not world.left(), "the old run was deleted")
    run = world.work.trigger(1).wait(LONG)
    run.wait().wait(LONG)
    until(lambda: world.app._engine.worker is not None and world.app._engine.worker._asleep)
    world.clock.advance(60)
    until(lambda: not world.left(), "the next one was deleted a minute later")


def test_a_worker_that_executes_something_forgets_nothing(make: Make) -> None:
    world = make(retain_runs=10)
    old = world.ended()
    world.clock.advance(11)
    world.go.clear()
    world.begun.clear()
    run = world.work.trigger(1).wait(LONG)
    world.app.start().wait(LONG)
    assert world.begun.wait(LONG)
    looks = len(world.store.looks)
    for _ in range(3):
        polls = world.store.polls
        world.clock.advance(21)
        until(lambda: world.store.polls > polls, "the next poll")  # noqa: B023
    assert len(world.store.looks) == looks
    assert world.left() == {*old, run.id}
    world.go.set()
    until(lambda: old[0] not in world.left(), "idle at last")


def test_who_gets_work_in_between_goes_on_when_it_is_done(make: Make) -> None:
    world = make(retain_runs=10, preserve_steps=True)
    world.ended(250)
    world.clock.advance(60)
    batches = 2

    def left() -> int:
        return len(rows(world.path, "select id from holdfast_runs"))

    async def look() -> None:
        nonlocal batches
        world.store.looks.clear()
        maintenance = Maintenance(world.app._engine, lambda: len(world.store.looks) < batches)
        await maintenance.idle()
        assert left() == 50
        assert maintenance.is_due()
        batches = 99
        await maintenance.idle()
        assert left() == 0
        assert not maintenance.is_due()

    asyncio.run(look())


def test_trouble_is_reported_and_tried_again_a_minute_later(make: Make) -> None:
    world = make(retain_runs=10)
    world.ended()
    world.clock.advance(11)
    world.store.fails = True
    world.idle()
    world.idle()
    until(lambda: len(world.errors) == 2, "the reports: the runs' and the outputs'")
    assert [(event.context, "on fire" in event.error) for event in world.errors] == [("idle-maintenance", True)] * 2
    assert len(world.store.looks) == 2, "once for the runs, once for the outputs, and no more for a minute"
    world.store.fails = False
    world.clock.advance(60)
    world.idle()
    assert world.left() == set()


def test_inline_it_is_the_same(make: Make) -> None:
    world = make(retain_runs=10, inline=True)
    world.ended(230)
    world.clock.advance(11)
    world.idle()
    assert world.left() == set()
    world.ended(230)
    world.clock.advance(1)
    assert world.app.purge_runs(older_than=0, limit=None).wait(LONG) == 230


def test_a_stop_waits_for_the_batch_under_way_and_no_more_are_begun(make: Make) -> None:
    world = make(retain_runs=10, preserve_steps=True)
    world.ended(150)
    world.clock.advance(11)
    world.store.may_go = threading.Event()
    world.app.start().wait(LONG)
    assert world.store.looking.wait(LONG)
    stop = world.app.stop()
    stopped = threading.Event()
    stop.when_done(stopped.set)
    assert not stopped.wait(0.05)
    world.store.may_go.set()
    stop.wait(LONG)
    assert rows(world.path, "select count(*) from holdfast_runs") == [(50,)]
    assert len(world.store.looks) == 1
    assert world.errors == []


@pytest.mark.parametrize(
    "value", ["30x", "", -1, "soon", object()], ids=["unit", "empty", "negative", "word", "object"]
)
def test_a_retention_that_is_no_duration_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="retain_runs"):
        Holdfast("sqlite://", retain_runs=value)


# -- outputs of steps ------------------------------------------------------------------------------------------------


def test_outputs_of_steps_are_dropped_an_hour_after_the_end(make: Make) -> None:
    world = make()
    (run_id,) = world.ended()
    world.clock.advance(HOUR)
    world.idle()
    before = world.app.get_steps(run_id).wait(LONG)
    assert [(step.name, step.output, step.output_dropped) for step in before] == [
        ("double", 0, False),
        ("nothing", None, False),
    ]
    world.clock.advance(60)
    world.idle()
    after = world.app.get_steps(run_id).wait(LONG)
    assert [(step.name, step.output, step.output_dropped) for step in after] == [
        ("double", None, True),
        ("nothing", None, True),
    ]
    assert [(s.index, s.status, s.started_at, s.completed_at) for s in after] == [
        (s.index, s.status, s.started_at, s.completed_at) for s in before
    ]
    assert [line.message for line in world.app.get_logs(run_id).wait(LONG)] == ["before"]
    run = world.app.get_run(run_id).wait(LONG)
    assert run is not None
    assert (run.status, run.output, run.completed_step_count) == (RunStatus.COMPLETED, 0, 2)


def test_outputs_are_kept_if_the_app_says_so(make: Make) -> None:
    world = make(preserve_steps=True)
    (run_id,) = world.ended()
    world.clock.advance(99 * DAY)
    world.idle()
    assert world.store.looks == []
    assert not any(step.output_dropped for step in world.app.get_steps(run_id).wait(LONG))


def test_a_run_that_goes_on_after_days_still_has_its_outputs(make: Make) -> None:
    world = make()
    world.go.clear()
    run = world.work.trigger(4).wait(LONG)
    other = Holdfast(StoreHere(databases.url(world.path), clock=world.clock), clock=world.clock, preserve_steps=True)

    @other.job(name="work")
    def half(step: SyncStep, n: int) -> int:
        step.run("double", lambda: n * 2)
        world.begun.set()
        world.go.wait(LONG)
        return -1

    other.start().wait(LONG)
    assert world.begun.wait(LONG)
    rows(
        world.path,
        "update holdfast_runs set status = 'pending', generation = 2, lease_owner = null, lease_expires_at = null",
    )
    world.go.set()
    other.stop().wait(LONG)
    world.clock.advance(99 * DAY)
    world.app.process_until_idle().wait(LONG)
    assert run.result().wait(LONG) == 8


# -- deleting on request ---------------------------------------------------------------------------------------------


def test_an_ended_run_is_deleted_and_told_of_once(make: Make) -> None:
    world = make()
    told: list[Event] = []
    world.app.on("run:delete", told.append)
    (run_id,) = world.ended(labels={"env": "test"})
    run = world.app.get_run(run_id).wait(LONG)
    assert run is not None
    assert run.delete().wait(LONG) is None
    assert world.app.get_run(run_id).wait(LONG) is None
    until(lambda: told, "the event")
    assert [(event.run_id, event.job_name, event.labels, event.data) for event in told] == [
        (run_id, "work", {"env": "test"}, {})
    ]
    for act in (run.delete, run.refresh, run.wait, lambda: world.app.retrigger(run_id)):
        with pytest.raises(NotFoundError, match=f"Run not found: {run_id}"):
            act().wait(LONG)
    assert len(told) == 1


def test_a_run_that_has_not_ended_is_not_deleted(make: Make) -> None:
    world = make()
    run = world.work.trigger(1).wait(LONG)
    with pytest.raises(ConflictError, match=f"Cannot delete pending run: {run.id}"):
        run.delete().wait(LONG)
    world.go.clear()
    world.app.start().wait(LONG)
    assert world.begun.wait(LONG)
    with pytest.raises(ConflictError, match=f"Cannot delete leased run: {run.id}"):
        world.app.delete_run(run.id).wait(LONG)
    world.go.set()
    assert run.result().wait(LONG) == 2


@pytest.mark.parametrize("value", [None, 1, "a\0b", "\ud800"], ids=["none", "number", "nul", "surrogate"])
def test_an_id_that_is_no_text_is_refused_in_the_call(make: Make, value: Any) -> None:
    with pytest.raises(ValidationError):
        make().app.delete_run(value)


def test_a_deletion_is_under_way_before_anybody_waits_for_it(make: Make) -> None:
    world = make()
    (run_id,) = world.ended()
    world.app.delete_run(run_id)
    until(lambda: run_id not in world.left())


def test_who_waits_for_a_run_that_is_deleted_is_told_that_it_is_gone(make: Make) -> None:
    world = make()
    run = world.work.trigger(1).wait(LONG)
    waiting = run.wait()
    answered = threading.Event()
    waiting.when_done(answered.set)
    until(lambda: world.app._engine.hub.is_awaited(run.id))
    world.app.get_run(run.id).wait(LONG)  # the reader answers in order: the first look is over
    world.app._engine.watcher.stop()  # as if it had not looked yet
    rows(world.path, "update holdfast_runs set status = 'cancelled', completed_at = 1 where id = ?", run.id)
    assert not answered.is_set()
    world.app.delete_run(run.id).wait(LONG)
    assert answered.wait(LONG)
    with pytest.raises(NotFoundError):
        waiting.wait(LONG)


def test_who_waits_in_another_process_is_told_too(make: Make, tmp_path: Path) -> None:
    world = make()
    other = Holdfast(url(tmp_path), worker=False)
    run = world.work.trigger(1).wait(LONG)
    waiting = other.wait_for_run(run.id)
    answered = threading.Event()
    waiting.when_done(answered.set)
    until(lambda: other._engine.hub.is_awaited(run.id))
    rows(world.path, "delete from holdfast_runs")
    assert answered.wait(LONG)
    with pytest.raises(NotFoundError):
        waiting.wait(LONG)
    other.stop().wait(LONG)


def test_a_step_in_flight_of_a_deleted_run_leaves_no_rows(make: Make) -> None:
    world = make()
    world.go.clear()
    run = world.work.trigger(1).wait(LONG)
    world.app.start().wait(LONG)
    assert world.begun.wait(LONG)
    run.cancel().wait(LONG)
    run.delete().wait(LONG)
    world.go.set()
    worker = world.app._engine.worker
    assert worker is not None
    until(lambda: not worker.executing, "the body came back")
    world.app.stop().wait(LONG)
    for table in ("runs", "steps", "step_attempts", "logs", "progress", "labels"):
        assert rows(world.path, f"select count(*) from holdfast_{table}") == [(0,)], table
    assert world.errors == []


def test_a_deletion_whose_answer_was_lost_is_answered_as_done(make: Make) -> None:
    world = make()
    told: list[Event] = []
    world.app.on("run:delete", told.append)
    (run_id,) = world.ended()
    world.store.lost_answers = 1
    assert world.app.delete_run(run_id).wait(LONG) is None
    until(lambda: told)
    assert told[0].run_id == run_id
    assert world.left() == set()


def test_deleting_while_others_retrigger_wait_and_list_gives_nobody_a_surprise(make: Make) -> None:
    world = make(concurrency=4)
    ids = world.ended(40)
    surprises: list[BaseException] = []

    def each(act: Callable[[str], Any]) -> threading.Thread:
        def body() -> None:
            for run_id in ids:
                try:
                    act(run_id).wait(LONG)
                except NotFoundError:
                    pass
                except BaseException as error:
                    surprises.append(error)

        return threading.Thread(target=body)

    app = world.app
    acts: list[Callable[[str], Any]] = [
        app.delete_run, app.retrigger, app.wait_for_run, app.get_steps, app.get_logs, lambda _: app.get_runs(limit=50),
    ]  # fmt: skip
    threads = [each(act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert surprises == []
    assert not world.left() & set(ids)
    assert {run.status for run in app.get_runs(limit=None).wait(LONG)} <= {RunStatus.PENDING}


# -- purging on request ----------------------------------------------------------------------------------------------


def test_a_purge_deletes_what_is_older_and_says_how_many(make: Make) -> None:
    world = make()
    told: list[Event] = []
    world.app.on("run:delete", told.append)
    world.ended(3)
    world.clock.advance(DAY)
    young = world.ended(2)
    waits = world.work.trigger(1).wait(LONG)
    world.clock.advance(60)
    assert world.app.purge_runs(older_than="1h").wait(LONG) == 3
    assert world.left() == {*young, waits.id}
    assert world.app.purge_runs(older_than="1h").wait(LONG) == 0
    assert told == []


def test_a_purge_takes_at_most_so_many_the_oldest_first(make: Make) -> None:
    world = make()
    ids = []
    for _ in range(5):
        ids += world.ended()
        world.clock.advance(1)
    assert world.app.purge_runs(older_than=0, limit=2).wait(LONG) == 2
    assert world.left() == set(ids[2:])
    assert world.app.purge_runs(older_than=0, limit=0).wait(LONG) == 0
    assert world.app.purge_runs(older_than=0, limit=None).wait(LONG) == 3


def test_a_purge_goes_by_moment_job_status_and_labels(make: Make) -> None:
    world = make()
    ids = world.ended() + world.ended(labels={"env": "test"}) + world.ended()
    world.clock.advance(1)
    now = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert world.app.purge_runs(older_than=now).wait(LONG) == 0
    later = now + timedelta(days=1)
    assert world.app.purge_runs(older_than=later, job="other").wait(LONG) == 0
    assert world.app.purge_runs(older_than=later, status="failed").wait(LONG) == 0
    assert world.app.purge_runs(older_than=later, labels={"env": "test"}).wait(LONG) == 1
    assert world.left() == {ids[0], ids[2]}
    both = world.app.purge_runs(older_than=later, job=[world.work, "x"], status=RunStatus.terminal())
    assert both.wait(LONG) == 2


def test_a_purge_works_in_async_code_and_begins_when_it_is_called(make: Make) -> None:
    world = make()
    world.ended(3)
    world.clock.advance(1)

    async def main() -> int:
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        reply = world.app.purge_runs(older_than=0)
        # Nobody has asked the reply.
        assert reply._subscribe(lambda: loop.call_soon_threadsafe(gone.set))
        await asyncio.wait_for(gone.wait(), LONG)
        return await reply

    assert asyncio.run(main()) == 3


def test_two_purges_at_once_count_each_run_once(make: Make, tmp_path: Path) -> None:
    world = make()
    world.ended(150)
    world.clock.advance(1)
    other = Holdfast(url(tmp_path), clock=world.clock, worker=False)
    replies = [app.purge_runs(older_than=0, limit=None) for app in (world.app, other)]
    assert sum(reply.wait(LONG) for reply in replies) == 150
    assert world.left() == set()
    other.stop().wait(LONG)


@pytest.mark.parametrize(
    "wrong",
    [{"older_than": "x"}, {"older_than": None}, {"older_than": 1, "limit": -1}, {"older_than": 1, "status": "running"},
     {"older_than": 1, "job": 3}, {"older_than": 1, "labels": {"": "x"}}],
    ids=["duration", "none", "limit", "status", "job", "labels"],
)  # fmt: skip
def test_a_purge_that_makes_no_sense_is_refused_in_the_call(make: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make().app.purge_runs(**wrong)


def test_a_stopped_app_purges_nothing_and_says_so(make: Make) -> None:
    world = make()
    world.app.stop().wait(LONG)
    with pytest.raises(StoreClosed):
        world.app.purge_runs(older_than=1).wait(LONG)
