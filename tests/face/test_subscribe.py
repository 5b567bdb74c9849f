"""Subscriptions: the events of one run, in both worlds, wherever it is executed, once each, until its end (S8)."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import databases
from holdfast import Event, NotFoundError, Run, Step, Subscription, SyncStep, WouldDeadlock, job
from holdfast.basis.errors import StoreClosed
from holdfast.engine import subscription as module
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, until

LAST = {"run:complete", "run:fail", "run:cancel", "run:delete"}


class Gate:
    """A step's function that tells that it was called, and returns when it may."""

    def __init__(self) -> None:
        self.is_there = threading.Event()
        self.may_go = threading.Event()

    def __call__(self) -> str:
        self.is_there.set()
        assert self.may_go.wait(PATIENCE)
        return "through"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.may_go.set()


def job_of(gate: Gate) -> Callable[..., Any]:
    async def story(step: Step, n: int) -> int:
        step.log.info("first", n=n)
        await step.run("a", int, n)
        step.progress(1, 2)
        await step.run("gate", gate)
        step.progress(2, 2, "done")
        if n < 0:
            await step.run("bad", int, "no number")
        return n

    return story


class Both:
    """Reads a subscription to its end on a thread of its own, in one of the two worlds."""

    def __init__(self, world: str, subscription: Subscription) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.began = threading.Event()
        """The first event is there."""
        self._subscription = subscription
        self._thread = threading.Thread(target=self._sync if world == "sync" else self._async, daemon=True)
        self._thread.start()

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self.began.set()

    def _sync(self) -> None:
        try:
            for event in self._subscription:
                self._add(event)
        except Exception as error:
            self.error = error
        self.began.set()

    def _async(self) -> None:
        async def main() -> None:
            async for event in self._subscription:
                self._add(event)

        try:
            asyncio.run(main())
        except Exception as error:
            self.error = error
        self.began.set()

    def end(self) -> list[Event]:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), self.events
        return self.events

    def has(self, type: str, many: int = 1) -> None:
        wait(lambda: [event.type for event in self.events].count(type) >= many)


def wait(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(round(PATIENCE / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it never came to be")


def in_loop(test: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **more: Any) -> None:
        asyncio.run(test(*args, **more))

    return run


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


worlds = pytest.mark.parametrize("world", ["async", "sync"])
places = pytest.mark.parametrize("place", ["here", "elsewhere"])

STORY = ["log:write", "step:start", "step:complete", "run:progress", "step:start", "step:complete", "run:progress"]
SAVED = ["log:write", "step:complete", "run:progress", "step:complete", "run:progress"]


class Scene:
    """An app that executes, and one that watches: the same one, or another that shares nothing but the file."""

    def __init__(self, house: House, place: str, gate: Gate, **options: Any) -> None:
        self.app = house.app(**options)
        self.story = self.app.job(job_of(gate))
        self.gate = gate
        self.app.init().wait(PATIENCE)
        self.watcher = self.app if place == "here" else house.app(worker=False)

    def trigger(self, n: int = 1) -> str:
        run: Run[Any] = self.story.trigger(n).wait(PATIENCE)
        return run.id

    def leave(self) -> None:
        self.gate.may_go.set()
        self.watcher.stop().wait(PATIENCE)
        self.app.stop().wait(PATIENCE)


@pytest.fixture
def scene(house: House, gate: Gate, request: pytest.FixtureRequest) -> Iterator[Scene]:
    place = request.node.callspec.params.get("place", "here") if hasattr(request.node, "callspec") else "here"
    scene = Scene(house, place, gate)
    yield scene
    scene.leave()


# -- what one sees -----------------------------------------------------------------------------------------------------


@worlds
@places
def test_a_subscription_that_begins_while_the_run_executes_begins_with_how_it_stands(
    scene: Scene, gate: Gate, world: str, place: str
) -> None:
    run_id = scene.trigger()
    assert gate.is_there.wait(PATIENCE)
    # Progress is saved beside the step; where another process looks, it must be there.
    wait(lambda: scene.watcher.get_run(run_id).wait(PATIENCE).progress)  # type: ignore[union-attr]
    reader = Both(world, scene.watcher.subscribe(run_id))
    reader.has("run:progress")
    gate.may_go.set()
    events = reader.end()
    assert reader.error is None
    told = [event for event in events[2:] if event.type != "run:progress"]
    assert types(events[:2]) == ["run:leased", "run:progress"]
    assert types(told) == ["step:complete", "run:complete"]
    assert [event.sequence for event in events[:2]] == [0, 0]
    assert events[0].input == {"n": 1}
    assert events[0].lease_owner == scene.app._engine.identity
    assert events[1].progress == {"current": 1, "total": 2}
    (last,) = [event for event in events[2:] if event.type == "run:progress"]
    assert last.progress == {"current": 2, "total": 2, "message": "done"}
    assert (told[0].step_name, told[0].output) == ("gate", "through")
    assert events[-1].output == 1
    assert events[-1].duration > 0


@worlds
@places
def test_a_subscription_from_the_beginning_sees_the_whole_story_once(
    scene: Scene, gate: Gate, house: House, world: str, place: str
) -> None:
    call = scene.story.options(delay=3600, labels={"tenant": "a"}).trigger(1).wait(PATIENCE)
    reader = Both(world, scene.watcher.subscribe(call.id))
    wait(lambda: call.id in scene.watcher._engine.subscriptions.by_run)
    (one,) = scene.watcher._engine.subscriptions.of(call.id)
    wait(lambda: one._trail.begun)
    gate.may_go.set()
    house.sql("update holdfast_runs set run_at = created_at, due = 1")
    events = reader.end()
    told = [event for event in events if event.type != "run:progress"]
    wanted = STORY if place == "here" else SAVED
    assert types(told) == ["run:leased", *(one for one in wanted if one != "run:progress"), "run:complete"]
    # Of progress the last one counts; what nobody could see in between may be missing.
    progress = [event.progress for event in events if event.type == "run:progress"]
    assert progress[-1] == {"current": 2, "total": 2, "message": "done"}
    assert all(event.run_id == call.id and event.job_name == "story" for event in events)
    assert all(event.labels == {"tenant": "a"} for event in events)
    (line,) = [event for event in events if event.type == "log:write"]
    assert (line.level, line.message, line.data["data"], line.step_name) == ("info", "first", {"n": 1}, None)


@worlds
@places
def test_a_failure_ends_it_after_the_step_that_failed(scene: Scene, gate: Gate, world: str, place: str) -> None:
    run_id = scene.trigger(-1)
    assert gate.is_there.wait(PATIENCE)
    reader = Both(world, scene.watcher.subscribe(run_id))
    reader.has("run:leased")
    gate.may_go.set()
    events = reader.end()
    assert types(events)[-2:] == ["step:fail", "run:fail"]
    assert "invalid literal" in events[-2].error
    assert events[-1].error_type == "ValueError"


@worlds
@places
@pytest.mark.parametrize("canceller", ["executing", "watching"])
def test_a_cancel_ends_it(scene: Scene, gate: Gate, world: str, place: str, canceller: str) -> None:
    run_id = scene.trigger()
    assert gate.is_there.wait(PATIENCE)
    reader = Both(world, scene.watcher.subscribe(run_id))
    reader.has("run:leased")
    (scene.app if canceller == "executing" else scene.watcher).cancel(run_id).wait(PATIENCE)
    events = reader.end()
    assert types(events)[-1] == "run:cancel"
    assert types(events).count("run:cancel") == 1


@worlds
@places
def test_a_cancel_before_it_begins_ends_it(house: House, gate: Gate, world: str, place: str) -> None:
    app = house.app()
    story = app.job(job_of(gate))
    app.migrate().wait(PATIENCE)
    run = story.trigger(1).wait(PATIENCE)
    watcher = app if place == "here" else house.app(worker=False)
    reader = Both(world, watcher.subscribe(run.id))
    wait(lambda: any(one._trail.begun for one in watcher._engine.subscriptions.of(run.id)))
    run.cancel().wait(PATIENCE)
    assert types(reader.end()) == ["run:cancel"]
    watcher.stop().wait(PATIENCE)
    app.stop().wait(PATIENCE)


@worlds
@places
@pytest.mark.parametrize(
    ("status", "type"),
    [("completed", "run:complete"), ("failed", "run:fail"), ("timed_out", "run:fail"), ("cancelled", "run:cancel")],
)
def test_of_a_run_that_has_ended_there_is_exactly_its_end(
    scene: Scene, gate: Gate, house: House, world: str, place: str, status: str, type: str
) -> None:
    gate.may_go.set()
    run_id = scene.trigger()
    scene.app.wait_for_run(run_id).wait(PATIENCE)
    if status != "completed":
        house.sql("update holdfast_runs set status = ?, error = 'no', error_type = 'Bad', output = null", status)
    (event,) = Both(world, scene.watcher.subscribe(run_id)).end()
    assert (event.type, event.sequence, event.run_id, event.job_name) == (type, 0, run_id, "story")
    if type == "run:fail":
        assert (event.error, event.error_type) == ("no", "Bad")


@worlds
def test_a_run_that_does_not_exist_is_not_found_when_it_is_first_asked_for(scene: Scene, world: str) -> None:
    reader = Both(world, scene.app.subscribe("nobody"))
    assert reader.end() == []
    assert isinstance(reader.error, NotFoundError)
    assert scene.app._engine.subscriptions.by_run == {}


@worlds
def test_a_row_that_goes_away_ends_it_with_a_delete(house: House, gate: Gate, world: str) -> None:
    app = house.app(worker=False)
    story = app.job(job_of(gate))
    app.init().wait(PATIENCE)
    run = story.trigger(1).wait(PATIENCE)
    reader = Both(world, run.subscribe())
    wait(lambda: any(one._trail.begun for one in app._engine.subscriptions.of(run.id)))
    house.sql("delete from holdfast_runs")
    (event,) = reader.end()
    assert (event.type, event.job_name) == ("run:delete", "story")
    app.stop().wait(PATIENCE)


@worlds
def test_several_subscriptions_of_one_run_see_the_same(scene: Scene, gate: Gate, world: str) -> None:
    run_id = scene.trigger()
    assert gate.is_there.wait(PATIENCE)
    readers = [Both(world, scene.app.subscribe(run_id)) for _ in range(5)]
    for reader in readers:
        reader.has("run:leased")
    gate.may_go.set()
    (first, *others) = [[(event.type, event.sequence) for event in reader.end()] for reader in readers]
    assert first[-1][0] == "run:complete"
    assert others == [first] * 4


@worlds
def test_a_run_that_moves_is_told_by_each_of_its_processes_once(house: House, gate: Gate, world: str) -> None:
    """The first execution is here, the second elsewhere, the third here again: one story, in order."""
    second, third = Gate(), Gate()
    gates = iter([gate, second, third])

    async def story(step: Step) -> str:
        mine = next(gates)
        await step.run(f"at {('one', 'two', 'three')[step._execution.row.generation // 2]}", str, "here")
        return await step.run("gate", mine)

    here = house.app(job(story), polling_interval=60)
    here.init().wait(PATIENCE)
    run = here.get_job("story").trigger().wait(PATIENCE)  # type: ignore[union-attr]
    assert gate.is_there.wait(PATIENCE)
    reader = Both(world, run.subscribe())
    reader.has("run:leased")
    elsewhere = house.app(job(story), polling_interval=60)
    here._engine.worker._slots = 0  # type: ignore[union-attr]
    house.take_away()
    elsewhere.init().wait(PATIENCE)
    assert second.is_there.wait(PATIENCE)
    reader.has("step:complete")
    gate.may_go.set()  # what the first one still does counts for nothing, and is not told
    elsewhere._engine.worker._slots = 0  # type: ignore[union-attr]
    here._engine.worker._slots = 1  # type: ignore[union-attr]
    house.take_away()
    assert third.is_there.wait(PATIENCE)
    second.may_go.set()
    third.may_go.set()
    events = reader.end()
    named = [(event.type, event.data.get("step_name")) for event in events]
    assert [one for one in named if one[0] != "step:start"] == [
        ("run:leased", None),
        ("run:leased", None),
        ("step:complete", "at two"),
        ("run:leased", None),
        ("step:complete", "at three"),
        ("step:complete", "gate"),
        ("run:complete", None),
    ]
    elsewhere.stop().wait(PATIENCE)
    here.stop().wait(PATIENCE)


@worlds
@places
def test_of_a_long_run_nothing_is_lost_and_nothing_comes_twice(
    scene: Scene, gate: Gate, monkeypatch: pytest.MonkeyPatch, world: str, place: str
) -> None:
    monkeypatch.setattr(module, "MOST_UNREAD", 100_000)

    @scene.app.job
    async def long(step: Step) -> None:
        await step.run("gate", gate)
        for n in range(0, 600, 5):
            for m in range(15):
                step.log.info(f"line {n}.{m}")
            await asyncio.gather(*[step.run(f"step {k}", int) for k in range(n, n + 5)])

    run_id = long.trigger().wait(PATIENCE).id
    assert gate.is_there.wait(PATIENCE)
    reader = Both(world, scene.watcher.subscribe(run_id))
    reader.has("run:leased")
    gate.may_go.set()
    events = reader.end()
    lines = [event.message for event in events if event.type == "log:write"]
    steps = [event.step_name for event in events if event.type == "step:complete"]
    assert lines == [f"line {n}.{m}" for n in range(0, 600, 5) for m in range(15)]
    assert sorted(steps) == sorted(["gate", *(f"step {n}" for n in range(600))])
    assert types(events)[-1] == "run:complete"
    assert len(lines) == 1800


# -- how it ends, and what it leaves -------------------------------------------------------------------------------


def test_nothing_begins_before_the_first_event_is_asked_for(scene: Scene) -> None:
    run_id = scene.trigger()
    subscription = scene.app.subscribe(run_id)
    assert scene.app._engine.subscriptions.by_run == {}
    assert next(subscription).run_id == run_id
    assert list(scene.app._engine.subscriptions.by_run) == [run_id]
    subscription.close()
    subscription.close()
    assert scene.app._engine.subscriptions.by_run == {}
    assert list(subscription) == []


@worlds
def test_a_close_ends_who_is_waiting(scene: Scene, gate: Gate, world: str) -> None:
    run_id = scene.trigger()
    assert gate.is_there.wait(PATIENCE)
    subscription = scene.app.subscribe(run_id)
    reader = Both(world, subscription)
    reader.has("run:leased")
    subscription.close()
    assert reader.end()[-1].type not in LAST
    assert reader.error is None


@worlds
def test_the_stop_of_the_app_ends_it_with_an_error(scene: Scene, gate: Gate, world: str) -> None:
    run_id = scene.trigger()
    assert gate.is_there.wait(PATIENCE)
    reader = Both(world, scene.app.subscribe(run_id))
    reader.has("run:leased")
    scene.app.stop(timeout=0).wait(PATIENCE)
    reader.end()
    assert isinstance(reader.error, StoreClosed)
    late = Both(world, scene.app.subscribe(run_id))
    late.end()
    assert isinstance(late.error, StoreClosed)


@in_loop
async def test_what_is_abandoned_leaves_nothing_behind(scene: Scene, gate: Gate) -> None:
    run_id = await asyncio.to_thread(scene.trigger)
    listed = scene.app._engine.subscriptions.by_run
    await asyncio.to_thread(gate.is_there.wait, PATIENCE)
    async for _ in scene.app.subscribe(run_id):
        break
    gc.collect()
    assert listed == {}
    async with scene.app.subscribe(run_id) as events:
        await anext(events)
        assert list(listed) == [run_id]
    assert listed == {}

    async def read() -> None:
        async for _ in scene.app.subscribe(run_id):
            pass

    task = asyncio.create_task(read())
    await until(lambda: listed)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    del task
    gc.collect()
    assert listed == {}


def test_a_loop_that_was_closed_harms_nobody(scene: Scene, gate: Gate) -> None:
    run_id = scene.trigger()
    assert gate.is_there.wait(PATIENCE)
    subscription = scene.app.subscribe(run_id)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(anext(subscription))
    task = loop.create_task(anext(subscription))  # type: ignore[arg-type]
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    gate.may_go.set()
    assert types(list(subscription))[-1] == "run:complete"


@in_loop
async def test_a_loops_own_thread_is_told_to_use_async_for(scene: Scene) -> None:
    with pytest.raises(WouldDeadlock, match="async for"):
        next(scene.app.subscribe("x"))


@worlds
def test_a_slow_reader_loses_the_oldest_and_never_the_end(
    scene: Scene, gate: Gate, monkeypatch: pytest.MonkeyPatch, world: str
) -> None:
    monkeypatch.setattr(module, "MOST_UNREAD", 20)

    @scene.app.job
    async def chatty(step: Step) -> None:
        await step.run("gate", gate)
        for n in range(100):
            step.log.info(f"line {n}")

    run = chatty.trigger().wait(PATIENCE)
    assert gate.is_there.wait(PATIENCE)
    subscription = run.subscribe()
    assert next(subscription).type == "run:leased"
    gate.may_go.set()
    run.wait(PATIENCE).wait(PATIENCE)
    (one,) = scene.app._engine.subscriptions.of(run.id) or [subscription]
    wait(lambda: one._is_over)
    assert len(subscription._unread) == 20
    events = Both(world, subscription).end()
    assert [event.message for event in events[:-1]] == [f"line {n}" for n in range(80, 100)]
    assert events[-1].type == "run:complete"
    assert subscription.dropped == 81  # and the end of the step


def test_progress_that_nobody_has_read_is_replaced_by_the_next(scene: Scene, gate: Gate) -> None:
    @scene.app.job
    async def busy(step: Step) -> None:
        await step.run("gate", gate)
        for n in range(100):
            step.progress(n)

    run = busy.trigger().wait(PATIENCE)
    assert gate.is_there.wait(PATIENCE)
    subscription = run.subscribe()
    next(subscription)
    gate.may_go.set()
    run.wait(PATIENCE).wait(PATIENCE)
    wait(lambda: subscription._is_over)
    events = list(subscription)
    assert types(events) == ["step:complete", "run:progress", "run:complete"]
    assert events[1].progress == {"current": 99}


# -- where nobody works --------------------------------------------------------------------------------------------


def test_inline_whoever_reads_turns_the_loop(house: House) -> None:
    app = house.app(inline=True)

    @app.job
    async def one(step: Step) -> int:
        return await step.run("a", int, "7")

    app.init().wait()
    run = one.trigger().wait()
    assert types(list(run.subscribe())) == ["run:leased", "step:start", "step:complete", "run:complete"]
    app.stop().wait()


@in_loop
async def test_inline_a_task_reads_beside_the_worker(house: House) -> None:
    app = house.app(inline=True)

    @app.job
    async def one(step: Step) -> int:
        return await step.run("a", int, "7")

    async with app:
        run = await one.trigger()
        told = [event.type async for event in run.subscribe()]
    assert told == ["run:leased", "step:start", "step:complete", "run:complete"]


@in_loop
async def test_inline_another_process_is_seen_too(house: House, gate: Gate) -> None:
    app, other = house.app(inline=True), house.app()
    story = other.job(job_of(gate))
    async with other:
        run = await story.trigger(1)
        await asyncio.to_thread(gate.is_there.wait, PATIENCE)
        told = []
        async for event in app.subscribe(run.id):
            told.append(event.type)
            gate.may_go.set()
    assert told[0] == "run:leased"
    assert told[-2:] in (["run:progress", "run:complete"], ["step:complete", "run:complete"])
    await app.stop()


def test_inline_a_thread_that_nobody_would_wake_is_refused(house: House) -> None:
    app = house.app(inline=True, clock=HandClock())

    @app.job
    async def one() -> None: ...

    app.migrate().wait()
    run = one.trigger().wait()
    if threading.active_count() > 1:
        pytest.skip(f"other threads are there: {threading.enumerate()}")
    with pytest.raises(WouldDeadlock, match="process_until_idle"):
        next(run.subscribe())
    app.stop().wait()


def test_a_sync_job_may_be_watched_by_another_job(scene: Scene, gate: Gate) -> None:
    gate.may_go.set()

    @scene.app.job
    def watching(step: SyncStep, run_id: str) -> list[str]:
        return [event.type for event in scene.app.subscribe(run_id)]

    run_id = scene.trigger()
    assert watching.run(run_id).wait(PATIENCE)[-1] == "run:complete"


def test_in_the_child_of_a_fork_a_subscription_is_the_parents(scene: Scene, gate: Gate) -> None:
    run_id = scene.trigger()
    assert gate.is_there.wait(PATIENCE)
    subscription = scene.app.subscribe(run_id)
    next(subscription)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            list(subscription)
        except StoreClosed:
            os.write(write, b"closed")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"closed"
    os.waitpid(child, 0)
    gate.may_go.set()
    assert types(list(subscription))[-1] == "run:complete"


def test_many_subscriptions_cost_a_look_a_handful_of_statements(house: House, gate: Gate, tmp_path: Path) -> None:
    app = house.app(worker=False)
    story = app.job(job_of(gate))
    app.init().wait(PATIENCE)
    runs = [story.trigger(n).wait(PATIENCE) for n in range(30)]
    house.sql(
        "update holdfast_runs set status = 'leased', generation = 1, lease_owner = 'x', lease_expires_at = created_at, "
        "started_at = 1"
    )
    subscriptions = [run.subscribe() for run in runs for _ in range(3)]
    for one in subscriptions:
        assert next(one).type == "run:leased"
    app._engine.watcher.stop()
    connection = app._engine.store.connect(read_only=True)
    asked = databases.statements_of(connection)
    app._engine.subscriptions.look(connection)
    assert len(asked) <= 4  # of one moment: how they stand, and whether there are new steps
    house.sql(
        "insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, output, "
        "started_at, completed_at) select id, 'a', 0, 0, 'completed', 0, 1, '1', 1, 2 from holdfast_runs"
    )
    house.sql(
        "insert into holdfast_logs (run_id, generation, level, message, created_at) "
        "select id, 1, 'info', 'x', 1 from holdfast_runs"
    )
    asked.clear()
    app._engine.subscriptions.look(connection)
    assert len(asked) <= 6
    app._engine.store.disconnect(connection)
    for one in subscriptions:
        assert [next(one).type for _ in range(2)] == ["log:write", "step:complete"]
        one.close()
    app.stop().wait(PATIENCE)
