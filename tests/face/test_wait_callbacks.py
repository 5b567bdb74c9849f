"""Waits that tell what the run says meanwhile, in both worlds, wherever it is executed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast import Event, LogLine, NotFoundError, RunFailed, Step, SyncStep, ValidationError
from holdfast.basis.errors import StoreClosed
from house import PATIENCE, House

worlds = pytest.mark.parametrize("world", ["async", "sync"])
places = pytest.mark.parametrize("place", ["here", "elsewhere"])


class Scene:
    """An app that executes one job, which says something as soon as somebody listens; and one that waits for it."""

    def __init__(self, house: House, place: str) -> None:
        self.may_go = threading.Event()
        self.app = house.app()

        @self.app.job
        async def talking(step: Step, n: int) -> int:
            await step.run("listener", self._wait)
            step.progress(1, 3)
            await step.run("a", int)
            step.progress(2, 3, "nearly")
            step.log.info("one", n=n)
            await step.run("b", int)
            step.log.warning("two")
            step.progress(3, 3)
            if n < 0:
                raise ValueError("negative")
            return n

        self.job = talking
        self.app.init().wait(PATIENCE)
        self.waiter = self.app if place == "here" else house.app(worker=False)

    def _wait(self) -> None:
        assert self.may_go.wait(PATIENCE)

    def wait(self, world: str, run_id: str, **more: Any) -> Any:
        """The ended run; the job goes on once the callbacks would be called."""
        threading.Thread(target=self._let_go, args=(run_id,), daemon=True).start()
        if world == "sync":
            return self.waiter.wait_for_run(run_id, timeout=PATIENCE, **more).wait()

        async def main() -> Any:
            return await self.waiter.wait_for_run(run_id, timeout=PATIENCE, **more)

        return asyncio.run(main())

    def _let_go(self, run_id: str) -> None:
        pause = threading.Event()
        while not any(one._trail.begun for one in self.waiter._engine.subscriptions.of(run_id)):
            pause.wait(0.002)
        self.may_go.set()

    def leave(self) -> None:
        self.may_go.set()
        self.waiter.stop().wait(PATIENCE)
        self.app.stop().wait(PATIENCE)


@pytest.fixture
def scene(house: House, request: pytest.FixtureRequest) -> Iterator[Scene]:
    callspec = getattr(request.node, "callspec", None)
    scene = Scene(house, callspec.params.get("place", "here") if callspec else "here")
    yield scene
    scene.leave()


@worlds
@places
@pytest.mark.parametrize("colour", ["def", "async def"])
def test_callbacks_get_what_the_run_says(scene: Scene, world: str, place: str, colour: str) -> None:
    progress: list[dict[str, Any]] = []
    lines: list[LogLine] = []

    async def add_progress(told: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        progress.append(told)

    async def add_line(line: LogLine) -> None:
        await asyncio.sleep(0)
        lines.append(line)

    run_id = scene.job.trigger(7).wait(PATIENCE).id
    calls: dict[str, Any] = {"on_progress": progress.append, "on_log": lines.append}
    if colour == "async def":
        calls = {"on_progress": add_progress, "on_log": add_line}
    run = scene.wait(world, run_id, **calls)
    assert run.output == 7
    said = [{"current": 1, "total": 3}, {"current": 2, "total": 3, "message": "nearly"}, {"current": 3, "total": 3}]
    # Of progress elsewhere what stood there when somebody looked.
    assert progress == (said if place == "here" else [one for one in said if one in progress])
    assert progress[-1] == said[-1]
    assert [(line.level, line.message, line.data) for line in lines] == [
        ("info", "one", {"n": 7}),
        ("warning", "two", None),
    ]
    assert lines[0].step_name is None
    assert scene.waiter._engine.subscriptions.by_run == {}


@worlds
@places
def test_of_an_ended_run_nothing_is_told_again(scene: Scene, world: str, place: str) -> None:
    scene.may_go.set()
    run_id = scene.job.trigger(7).wait(PATIENCE).id
    scene.app.wait_for_run(run_id).wait(PATIENCE)
    told: list[Any] = []
    assert scene.wait(world, run_id, on_progress=told.append, on_log=told.append).output == 7
    assert told == []


@worlds
def test_a_faulty_callback_harms_nothing_and_is_reported(scene: Scene, world: str) -> None:
    faults: list[tuple[str, str]] = []
    scene.app.on_error(lambda error, event: faults.append((str(error), event.type)))

    def faulty(told: Any) -> None:
        raise ValueError("callback")

    async def faulty_too(told: Any) -> None:
        raise ValueError("async callback")

    run_id = scene.job.trigger(7).wait(PATIENCE).id
    assert scene.wait(world, run_id, on_progress=faulty, on_log=faulty_too).output == 7
    assert faults == [
        ("callback", "run:progress"),
        ("callback", "run:progress"),
        ("async callback", "log:write"),
        ("async callback", "log:write"),
        ("callback", "run:progress"),
    ]


def test_a_wait_with_callbacks_ends_as_one_without(scene: Scene) -> None:
    told: list[Any] = []
    with pytest.raises(NotFoundError):
        scene.app.wait_for_run("nobody", on_log=told.append).wait(PATIENCE)
    run = scene.job.trigger(-1).wait(PATIENCE)
    for wait in (run.wait(0, on_log=told.append), run.result(0.01, on_progress=told.append)):
        with pytest.raises(TimeoutError, match="The run goes on"):
            wait.wait()

    async def in_a_loop() -> None:
        with pytest.raises(TimeoutError, match="The run goes on"):
            await run.wait(0.01, on_log=told.append)

    asyncio.run(in_a_loop())
    scene.may_go.set()
    with pytest.raises(RunFailed, match="negative"):
        run.result(PATIENCE, on_log=told.append).wait()
    with pytest.raises(ValidationError, match="on_log"):
        run.wait(on_log="print")  # type: ignore[arg-type]
    assert scene.app._engine.subscriptions.by_run == {}
    assert scene.app._engine.hub.awaited == []


@worlds
def test_the_stop_of_the_app_ends_a_wait_with_callbacks(scene: Scene, world: str) -> None:
    run_id = scene.job.trigger(1).wait(PATIENCE).id
    failed: list[BaseException] = []

    def wait() -> None:
        scene.may_go.clear()
        try:
            if world == "sync":
                scene.app.wait_for_run(run_id, on_log=print).wait()
            else:

                async def main() -> None:
                    await scene.app.wait_for_run(run_id, on_log=print)

                asyncio.run(main())
        except StoreClosed as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    pause = threading.Event()
    while not any(one._trail.begun for one in scene.app._engine.subscriptions.of(run_id)):
        pause.wait(0.002)
    scene.app.stop(timeout=0).wait(PATIENCE)
    thread.join(PATIENCE)
    assert len(failed) == 1


@worlds
def test_of_several_who_await_one_reply_the_first_is_told(scene: Scene, world: str) -> None:
    told: list[str] = []
    run = scene.job.trigger(1).wait(PATIENCE)
    reply = run.result(PATIENCE, on_log=lambda line: told.append(line.message))
    if world == "sync":
        threads = [threading.Thread(target=reply.wait) for _ in range(3)]
        threads[0].start()
        pause = threading.Event()
        while not reply._is_listening:  # type: ignore[attr-defined]
            pause.wait(0.002)
        for thread in threads[1:]:
            thread.start()
        scene._let_go(run.id)
        for thread in threads:
            thread.join(PATIENCE)
    else:

        async def one() -> int:
            return await reply

        async def main() -> list[int]:
            threading.Thread(target=scene._let_go, args=(run.id,), daemon=True).start()
            return await asyncio.gather(one(), one(), one())

        assert asyncio.run(main()) == [1, 1, 1]
    assert told == ["one", "two"]
    assert reply.wait() == 1


def test_inline_callbacks_are_called_while_the_loop_is_turned(house: House) -> None:
    app = house.app(inline=True)
    told: list[Any] = []

    @app.job
    def talking(step: SyncStep) -> int:
        step.progress(1)
        step.log.info("x")
        return step.run("a", int)

    app.init().wait()
    run = talking.trigger().wait()
    assert run.result(on_progress=told.append, on_log=lambda line: told.append(line.message)).wait() == 0
    assert told == [{"current": 1}, "x"]

    async def slow(line: LogLine) -> None:
        await asyncio.sleep(0)
        told.append("async")

    assert talking.trigger().wait().result(on_log=slow).wait() == 0
    assert told[2:] == ["async"]
    app.stop().wait()


def test_a_callback_that_is_slow_delays_nobody_else(scene: Scene) -> None:
    go = threading.Event()
    heard: list[Event] = []
    scene.app.on("run:complete", heard.append)
    run = scene.job.trigger(1).wait(PATIENCE)
    done: list[Any] = []

    def wait() -> None:
        done.append(run.wait(PATIENCE, on_log=lambda line: go.wait(PATIENCE)).wait())

    thread = threading.Thread(target=wait)
    thread.start()
    scene._let_go(run.id)
    assert run.result(PATIENCE).wait() == 1
    pause = threading.Event()
    while not heard:
        pause.wait(0.002)
    assert done == []
    go.set()
    thread.join(PATIENCE)
    assert done[0].output == 1
