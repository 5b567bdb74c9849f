"""A clock that moves only when it is told to, so that a test about an hour takes no time and never races."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable

#: 14 November 2023, 22:13:20 UTC: a round number that nobody takes for today.
_START = 1_700_000_000_000_000
#: How soon a thread in `wait` notices that its event was set or that the hands have moved. An Event can't be
#: watched together with anything else, so this is real time, and the only real time here.
_LOOK = 0.002


class HandTimer:
    """A call that is due when the hands get there. `cancel` works until it has really run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, due: int, call: Callable[[], object]) -> None:
        self.due = due
        self._loop = loop
        self._call: Callable[[], object] | None = call
        self._context = contextvars.copy_context()

    def cancel(self) -> None:
        """Never run it."""
        self._call = None

    def fire(self) -> None:
        """Hand the call to its loop. A loop that was closed in the meantime has no use for it."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._run, context=self._context)

    def _run(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled, or has run."""
        return self._call is None


class HandClock:
    """A `Clock` whose hands a test turns.

        clock = HandClock()
        app = Holdfast("sqlite://", clock=clock)
        ...
        clock.advance(60)    # a minute later, at once

    Time stands still between two calls of `advance`. All methods may be called from any thread.
    """

    def __init__(self, start: int = _START) -> None:
        self._lock = threading.Lock()
        self._wall = start
        self._steady = 0
        self._timers: list[HandTimer] = []

    def now(self) -> int:
        """Wall-clock time in microseconds since 1970."""
        with self._lock:
            return self._wall

    def steady(self) -> float:
        """Seconds since this clock was made, as far as the hands were turned."""
        with self._lock:
            return self._steady / 1_000_000

    def call_later(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], object]) -> HandTimer:
        """Call `call` in the loop once the hands have moved that far; at its next turn, if that is no distance."""
        with self._lock:
            timer = HandTimer(loop, self._steady + _micros(seconds), call)
            if timer.due > self._steady:
                self._timers.append(timer)
                return timer
        timer.fire()
        return timer

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Block until the event is set (True) or the hands have moved that far (False)."""
        with self._lock:
            due = self._steady + _micros(seconds)
        while not event.is_set():
            with self._lock:
                if self._steady >= due:
                    return event.is_set()
            event.wait(_LOOK)
        return True

    def advance(self, seconds: float) -> None:
        """Let that much time pass: timers that come due are handed to their loops, waiting threads go on.

        Returns at once; what was woken runs when its loop or thread gets to it.
        """
        if seconds < 0:
            raise ValueError("Time goes forward; use jump() for a wall clock that is set back.")
        with self._lock:
            self._wall += _micros(seconds)
            self._steady += _micros(seconds)
            standing = [timer for timer in self._timers if not timer.cancelled]
            due = sorted((timer for timer in standing if timer.due <= self._steady), key=lambda timer: timer.due)
            self._timers = [timer for timer in standing if timer.due > self._steady]
        for timer in due:
            timer.fire()

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator does. No time passes."""
        with self._lock:
            self._wall += _micros(seconds)

    def next_timer(self) -> float | None:
        """Seconds until the first timer that was not cancelled; None without one."""
        with self._lock:
            due = [timer.due for timer in self._timers if not timer.cancelled]
            return (min(due) - self._steady) / 1_000_000 if due else None


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
