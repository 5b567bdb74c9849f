"""What a test has ready for its runs: answers to those that wait for a signal, and fakes that take their time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from ..app import Holdfast
from ..basis.durations import Duration, micros
from ..commit.reply import LazyReply, Reply, answer, answered
from ..engine.arguments import checked_text
from ..engine.context import current
from ..engine.execution import Execution
from ..model.run import RunRow
from ..model.step import StepRow
from ..model.wait import WaitRow

_door = threading.Lock()
_ready: dict[str, tuple[Any, ...]] = {}


@contextlib.contextmanager
def answering(name: str, /, *values: Any) -> Iterator[None]:
    """While entered, runs that wait for a signal of this name are sent the next of these values.

    Each run gets the first for its first wait, and so on; after the last one none. They are sent by `run`, `drain` and
    `crash_at_every_step`, when nothing else can be done without letting time pass: so in apps for tests only.
    """
    checked_text(name, "signal")
    with _door:
        before = _ready.get(name)
        _ready[name] = values
    try:
        yield
    finally:
        with _door:
            if before is None:
                del _ready[name]
            else:
                _ready[name] = before


async def answer_all(app: Holdfast) -> int:
    """Send what is ready to all that wait for it; to how many waits."""
    sent, engine, store = 0, app._engine, app._engine.store
    if not _ready:
        return sent
    for run in await app.get_runs(status="waiting", limit=None):
        row: RunRow = run._row

        def look(connection: Any, run_id: str = row.id) -> tuple[list[WaitRow], list[StepRow]]:
            return store.find_waits(connection, run_id), store.find_steps(connection, run_id)

        waits, steps = await engine.reader.read("find_waits", look, lambda found: found)
        for name in sorted({wait.signal for wait in waits if wait.signal in _ready}):
            values = _ready[name]
            taken = sum((step.fingerprint, step.status) == (f"signal {name}", "completed") for step in steps)
            if taken < len(values):
                # By its key it counts once, also where a process that is killed has sent it before.
                await app.send_signal(row.id, name, values[taken], key=f"answering {taken}")
                sent += 1
    return sent


class _Taking(LazyReply[None]):
    """Answered when whoever is told by the time has been told."""

    def __init__(self, execution: Execution, seconds: float) -> None:
        super().__init__("takes", self._pass)
        self._execution, self._seconds = execution, seconds

    def _pass(self, _: Reply[None]) -> None:
        pass_time = self._execution.engine.pass_time
        assert pass_time is not None
        pass_time(self._seconds)
        # Behind the timers that are due now, in the same line.
        self._execution.worker.in_loop(lambda: answer([(self, None, None)]))

    def wait(self, timeout: float | None = None) -> None:
        if self._execution.engine.options.inline:
            self._ask()  # this is the loop's own thread: nobody is told before it returns
        else:
            super().wait(timeout)


def takes(duration: Duration, /) -> Reply[None]:
    """Say that what calls this takes so long: the clock of the app is turned, and time limits come true, at once.

    For the fakes of a slow world, in a step or outside: `await takes("2m")`, or `takes("2m").wait()` in sync code.
    Without a run, or with an app whose clock is the real one, nothing happens.
    """
    seconds = micros(duration) / 1_000_000
    execution = current.get()
    if execution is None or execution.engine.pass_time is None:
        return answered(None, "takes")
    return _Taking(execution, seconds)
