"""Signals: how a run is told that it should stop. They tell; they never kill."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from typing import Any, Literal, TypeAlias

from ..commit.reply import Reply, answer

AbortReason: TypeAlias = Literal["cancelled", "timeout", "lease-lost", "shutdown"]

_log = logging.getLogger("holdfast")


class AbortSignal:
    """Set once, with a reason. Look at `aborted`, block in `wait(timeout)`, or `await` it.

    The same object serves async and sync code, from any thread.
    """

    __slots__ = ("_callbacks", "_event", "_lock", "_reply", "reason")

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why it was set: `cancelled`, `timeout`, `lease-lost` or `shutdown`; None as long as it is not."""
        self._event = threading.Event()
        self._reply: Reply[str] = Reply("signal")
        self._callbacks: list[Callable[[str], object]] = []
        self._lock = threading.RLock()  # re-entrant: a garbage collection in between may run anything

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
        with self._lock:
            reason = self.reason
            if reason is None:
                self._callbacks.append(call)
        if reason is not None:
            call(reason)

    def set(self, reason: str) -> bool:
        """Set it; False if it was set before, which keeps the first reason."""
        with self._lock:
            if self.reason is not None:
                return False
            self.reason = reason
            callbacks, self._callbacks = self._callbacks, []
        self._event.set()
        answer([(self._reply, reason, None)])
        for call in callbacks:
            try:
                call(reason)
            except Exception:  # of a user's; whoever sets the signal has other runs to look after
                _log.exception("a callback of on_abort failed")
        return True

    def __repr__(self) -> str:
        return f"<AbortSignal {self.reason or 'not set'}>"
