"""Signals: how a run is told that it should stop. They tell; they never kill."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator
from typing import Any, Literal, TypeAlias

from ..commit.reply import Reply, answer

AbortReason: TypeAlias = Literal["cancelled", "timeout", "lease-lost", "shutdown"]

_log = logging.getLogger("holdfast")

# One lock for all signals: it is held for a few bytecodes and never while calling anything. Re-entrant: a garbage
# collection in between may run anything. Every run has a signal, and few are ever waited for: they are made small.
_lock = threading.RLock()


def _in_child() -> None:
    # Another thread may have held it at the moment of the fork, and that thread does not exist here.
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class AbortSignal:
    """Set once, with a reason. Look at `aborted`, block in `wait(timeout)`, or `await` it.

    The same object serves async and sync code, from any thread.
    """

    __slots__ = ("_callbacks", "_event", "_reply", "reason")

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why it was set: `cancelled`, `timeout`, `lease-lost` or `shutdown`; None as long as it is not."""
        self._event: threading.Event | None = None
        self._reply: Reply[str] | None = None
        self._callbacks: list[Callable[[str], object]] = []

    @property
    def aborted(self) -> bool:
        """Whether it is set."""
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until it is set; False after `timeout` seconds."""
        with _lock:
            if self.reason is not None:
                return True
            event = self._event = self._event or threading.Event()
        return event.wait(timeout)

    def __await__(self) -> Generator[Any, None, str]:
        """Wait until it is set; gives the reason."""
        with _lock:
            reply = self._reply = self._reply or Reply("signal")
            reason = self.reason
        if reason is not None and not reply.done():
            answer([(reply, reason, None)])
        return reply.__await__()

    def on_abort(self, call: Callable[[str], object]) -> Callable[[], None]:
        """Call `call(reason)` when it is set, in the thread that sets it; at once if it is set already.

        Gives a function that ends it.
        """
        with _lock:
            reason = self.reason
            if reason is None:
                self._callbacks.append(call)
        if reason is not None:
            call(reason)

        def off() -> None:
            with _lock:
                if call in self._callbacks:
                    self._callbacks.remove(call)

        return off

    def set(self, reason: str) -> bool:
        """Set it; False if it was set before, which keeps the first reason."""
        with _lock:
            if self.reason is not None:
                return False
            self.reason = reason
            callbacks, self._callbacks = self._callbacks, []
            event, reply = self._event, self._reply
        if event is not None:
            event.set()
        if reply is not None:
            answer([(reply, reason, None)])
        for call in callbacks:
            try:
                call(reason)
            except Exception:  # of a user's; whoever sets the signal has other runs to look after
                _log.exception("a callback of on_abort failed")
        return True

    def __repr__(self) -> str:
        return f"<AbortSignal {self.reason or 'not set'}>"
