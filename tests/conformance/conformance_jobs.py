"""What the tests of conformance share: one job in both forms, and bodies that hold on until they may go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from holdfast import Holdfast, Job, Step, SyncStep, job

#: Seconds after which a test has failed. Nothing ever waits that long.
LONG = 20.0

FORMS = ["async", "sync"]
"""Of a job: `async def` or `def`. Bodies of steps are plain functions in both."""

Body = Callable[..., Any]


def steps(form: str, /, *, returns: Any = None, **bodies: Body) -> Job[[], Any]:
    """A job named `work` with these steps, in this order; its output is `returns`, or the list of their values."""

    @job(name="work")
    async def work(step: Step) -> Any:
        values = [await step.run(name, body) for name, body in bodies.items()]
        return values if returns is None else returns

    @job(name="work")
    def work_sync(step: SyncStep) -> Any:
        values = [step.run(name, body) for name, body in bodies.items()]
        return values if returns is None else returns

    return work if form == "async" else work_sync


def body(form: str, fn: Callable[[Any], Any], /) -> Job[[], Any]:
    """A job named `work` that is this function of its step, and opens no step by itself. It must not block."""

    @job(name="work")
    async def work(step: Step) -> Any:
        return fn(step)

    @job(name="work")
    def work_sync(step: SyncStep) -> Any:
        return fn(step)

    return work if form == "async" else work_sync


def work(app: Holdfast) -> Job[..., Any]:
    """The handle of the job."""
    found = app.get_job("work")
    assert found is not None
    return found


class Gate:
    """A body that says when it was called, and returns when it may."""

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.calls = 0
        self._came, self._open = threading.Event(), threading.Event()

    def __call__(self) -> Any:
        self.calls += 1
        self._came.set()
        assert self._open.wait(LONG)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def wait(self) -> None:
        """Until it was called."""
        assert self._came.wait(LONG)

    def open(self) -> None:
        self._open.set()


class Heard:
    """The events of an app, as they came."""

    def __init__(self, app: Holdfast, *types: str) -> None:
        self.events: list[Any] = []
        self._more = threading.Condition()
        for type in types:
            app.on(type, self._hear)

    def _hear(self, event: Any) -> None:
        with self._more:
            self.events.append(event)
            self._more.notify_all()

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def until(self, type: str) -> Any:
        """The first event of this type, once it was told."""
        with self._more:
            assert self._more.wait_for(lambda: type in self.types, LONG), f"{type} never came"
            return next(event for event in self.events if event.type == type)
