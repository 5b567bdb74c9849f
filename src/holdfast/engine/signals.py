"""Signals: how a run is told that it should stop. They tell; they never kill."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any, Literal, TypeAlias

from ..commit.reply import Reply, answer

AbortReason: TypeAlias = Literal["cancelled", "timeout", "lease-lost", "shutdown"]


class AbortSignal:
    """Set once, with a reason. Look at `aborted`, block in `wait(timeout)`, or `await` it.

    The same object serves async and sync code, from any thread.
    """

    __slots__ = ("_callbacks", "_event", "_reply", "reason")

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why it was set: `cancelled`, `timeout`, `lease-lost` or `shutdown`; None as long as it is not."""
        self._event = threading.Event()
        self._reply: Reply[str] = Reply("signal")
        self._callbacks: list[Callable[[str], object]] = []

    @property
    def aborted(self) -> bool:
        """Whether it is set."""
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until it is set; False after `timeout` seconds."""
        return self._event.wait(timeout)

    def __await__(self) -> Generator[Any, None, str]:
        """Wait until it is set; gives the reason."""
        return self._reply.__await__()

    def on_abort(self, call: Callable[[str], object]) -> None:
        """Call `call(reason)` when it is set, in the thread that sets it; at once if it is set already."""
        self._callbacks.append(call)
        if self.reason is not None and call in self._callbacks:
            self._callbacks.remove(call)
            call(self.reason)

    def set(self, reason: str) -> bool:
        """Set it; False if it was set before, which keeps the first reason."""
        if self.reason is not None:
            return False
        self.reason = reason
        self._event.set()
        answer([(self._reply, reason, None)])
        while self._callbacks:
            self._callbacks.pop(0)(reason)
        return True

    def __repr__(self) -> str:
        return f"<AbortSignal {self.reason or 'not set'}>"
