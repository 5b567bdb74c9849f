"""Watching what another process executes: its steps, its words, its death, and who takes over (S10, design §3)."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from child import LONG, child

import databases
from holdfast import Event, Holdfast, Run

WORKER = """
app = Holdfast(URL, polling_interval=0.05, lease=1.0, lease_renew_interval=0.3)
may_go = threading.Event()

def gate() -> str:
    say("at the gate")
    may_go.wait(30)
    return "through"

@app.job
async def story(step: Step, n: int) -> str:
    step.log.info("execution", pid=os.getpid())
    step.progress(1, 3)
    await step.run("a", int, n)
    await step.run("gate", gate)
    step.progress(3, 3, "done")
    return "the end"

with app:
    say("ready")
    heard()
    may_go.set()
    heard()
"""


def watching(path: Path) -> tuple[Holdfast, Any]:
    app = Holdfast(databases.url(path), worker=False)

    @app.job
    async def story(n: int) -> str:
        return ""

    app.init().wait(LONG)
    return app, story


class Reader:
    """Reads the events of a run on a thread, in one of the two worlds."""

    def __init__(self, world: str, run: Run[Any]) -> None:
        self.events: list[Event] = []
        self._run = run
        self._thread = threading.Thread(target=self._sync if world == "sync" else self._async, daemon=True)
        self._thread.start()

    def _sync(self) -> None:
        for event in self._run.subscribe():
            self.events.append(event)

    def _async(self) -> None:
        async def main() -> None:
            async for event in self._run.subscribe():
                self.events.append(event)

        asyncio.run(main())

    def has(self, type: str, many: int = 1) -> None:
        pause = threading.Event()
        for _ in range(round(LONG / 0.01)):
            if self.types.count(type) >= many:
                return
            pause.wait(0.01)
        raise AssertionError(f"no {type}: {self.types}")

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def end(self) -> list[Event]:
        self._thread.join(LONG)
        assert not self._thread.is_alive(), self.types
        return self.events


worlds = pytest.mark.parametrize("world", ["async", "sync"])


@worlds
def test_a_subscription_sees_what_another_process_does(tmp_path: Path, world: str) -> None:
    app, story = watching(tmp_path / "app.db")
    with child(tmp_path / "app.db", WORKER) as worker:
        assert worker.hear() == "ready"
        run = story.options(delay=0).trigger(7).wait(LONG)
        reader = Reader(world, run)
        assert worker.hear() == "at the gate"
        reader.has("run:leased")
        worker.tell("through")
        events = reader.end()
        worker.tell()
        worker.end()
    app.stop().wait(LONG)
    assert reader.types[0] == "run:leased"
    assert reader.types[-1] == "run:complete"
    assert reader.types.count("run:leased") == reader.types.count("run:complete") == 1
    assert [event.output for event in events if event.data.get("step_name") == "gate"] == ["through"]
    assert events[-1].output == "the end"
    assert len({(event.type, event.timestamp, str(event.data)) for event in events}) == len(events)


@worlds
def test_a_subscription_goes_on_with_who_takes_over_from_a_killed_process(tmp_path: Path, world: str) -> None:
    app, story = watching(tmp_path / "app.db")
    with child(tmp_path / "app.db", WORKER) as first:
        assert first.hear() == "ready"
        run = story.trigger(7).wait(LONG)
        reader = Reader(world, run)
        assert first.hear() == "at the gate"
        reader.has("run:leased")
        first.kill()
        with child(tmp_path / "app.db", WORKER) as second:
            assert second.hear() == "ready"
            assert second.hear() == "at the gate"
            reader.has("run:leased", 2)
            assert "run:complete" not in reader.types
            second.tell("through")
            events = reader.end()
            second.tell()
            second.end()
    app.stop().wait(LONG)
    assert [one for one in reader.types if one.startswith("run:") and one != "run:progress"] == [
        "run:leased",
        "run:leased",
        "run:complete",
    ]
    owners = [event.lease_owner for event in events if event.type == "run:leased"]
    assert len(set(owners)) == 2
    saved = [event.step_name for event in events if event.type == "step:complete"]
    assert saved.count("gate") == 1
    assert saved.count("a") <= 1  # saved by the first; whether the subscription was there already nobody knows
    pids = [event.data["data"]["pid"] for event in events if event.type == "log:write"]
    assert len(set(pids)) == len(pids)
    # The first one said it with the step that it has saved, so the second one doesn't say it again.
    assert pids or "a" not in saved


@worlds
def test_callbacks_of_a_wait_hear_what_another_process_says(tmp_path: Path, world: str) -> None:
    app, story = watching(tmp_path / "app.db")
    progress: list[dict[str, Any]] = []
    with child(tmp_path / "app.db", WORKER) as worker:
        assert worker.hear() == "ready"
        run = story.trigger(7).wait(LONG)
        assert worker.hear() == "at the gate"
        reply = run.result(LONG, on_progress=progress.append)

        def let_go() -> None:
            pause = threading.Event()
            while not any(one._trail.begun for one in app._engine.subscriptions.of(run.id)):
                pause.wait(0.005)
            worker.tell("through")

        thread = threading.Thread(target=let_go)
        thread.start()
        if world == "sync":
            assert reply.wait() == "the end"
        else:

            async def main() -> Any:
                return await reply

            assert asyncio.run(main()) == "the end"
        thread.join(LONG)
        worker.tell()
        worker.end()
    app.stop().wait(LONG)
    assert progress[-1] == {"current": 3, "total": 3, "message": "done"}


INTERRUPTED = """
app = Holdfast(URL, worker=False)

@app.job
async def story(n: int) -> None: ...

app.init().wait()
run = story.trigger(1).wait()
try:
    say("waiting")
    for event in run.subscribe():
        say(event.type)
except KeyboardInterrupt:
    say("interrupted")
say(len(app._engine.subscriptions.by_run), "left")
app.stop().wait()
"""


def test_a_keyboard_interrupt_ends_a_loop_over_events(tmp_path: Path) -> None:
    with child(tmp_path / "app.db", INTERRUPTED) as one:
        assert one.hear() == "waiting"
        pause = threading.Event()
        pause.wait(0.3)  # wherever it is by then: in the call, or in the wait
        one._process.send_signal(signal.SIGINT)
        assert [one.hear(), one.hear()] == ["interrupted", "0 left"]
        one.end()
