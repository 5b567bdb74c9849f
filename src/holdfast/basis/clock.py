"""Time as an argument. Nothing above this module reads a clock, waits or sets a timer by itself.

`SystemClock` is the real one. Tests use `holdfast.testing.HandClock`, which only moves when told to.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


class Timer(Protocol):
    """Something that will happen, unless cancelled first."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the engine knows of time."""

    def now(self) -> int:
        """Wall-clock time in microseconds since 1970, UTC. May jump."""
        ...

    def steady(self) -> float:
        """Seconds that never go back and that also count while the machine is suspended."""
        ...

    def call_later(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], object]) -> Timer:
        """Call `call` in the loop after that time. To be called in the loop's thread."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Block this thread until the event is set (True) or the time has passed (False)."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> int:
        return time.time_ns() // 1000

    def steady(self) -> float:
        # CLOCK_MONOTONIC stands still while Linux is suspended: a laptop that slept through its lease would
        # believe that it still holds it.
        if _BOOTTIME is not None:
            return time.clock_gettime(_BOOTTIME)
        return time.monotonic()

    def call_later(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], object]) -> Timer:
        return loop.call_later(seconds, call)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds)


def to_datetime(micros: int | None) -> datetime | None:
    """The stored time as an aware datetime in UTC."""
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)


def from_datetime(when: datetime) -> int:
    """Microseconds since 1970 of an aware datetime; a naive one is taken as local time, as Python does."""
    return (when.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def give_way() -> None:
    """Let another thread have the interpreter for a moment: a sleep of 50 µs really releases it, `sleep(0)` may not."""
    time.sleep(50e-6)
