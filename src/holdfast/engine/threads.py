"""Threads for the user's sync functions.

Not a `ThreadPoolExecutor`: its threads are joined when the interpreter exits, so one function that never returns would
keep the process alive for ever. These are daemons; the lease and the checkpoints look after what they leave behind.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..commit.reply import Reply, answer

#: A thread that had nothing to do for so long goes away.
_IDLE_SECONDS = 10.0


class _Called(Reply[Any]):
    """What a call came to. Asked once, so the error may keep its traceback: it tells where the function broke."""

    __slots__ = ()

    def _take(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


class Threads:
    """As many threads as there are calls under way; idle ones are used again."""

    def __init__(self, name: str = "holdfast-call") -> None:
        self._name = name
        self.reset()

    def reset(self) -> None:
        """Start with none (also in the child of a fork)."""
        self._door = threading.Condition(threading.Lock())
        self._calls: deque[tuple[contextvars.Context, Callable[..., Any], tuple[Any, ...], dict[str, Any], Reply[Any]]]
        self._calls = deque()
        self._idle = 0
        self._count = 0
        self._threads: set[threading.Thread] = set()
        self._busy: set[threading.Thread] = set()
        self._closing = False

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Reply[Any]:
        """What `fn(*args, **kwargs)` returns or raises, called on a thread with the caller's context variables."""
        reply: Reply[Any] = _Called("call")
        call = (contextvars.copy_context(), fn, args, kwargs, reply)
        with self._door:
            self._calls.append(call)
            if self._idle >= len(self._calls):
                self._door.notify()
            else:
                self._count += 1
                thread = threading.Thread(target=self._serve, name=f"{self._name}-{self._count}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads: the caller is told, so nobody may call it later
                    self._calls.pop()
                    raise
                self._threads.add(thread)
        return reply

    @property
    def under_way(self) -> int:
        """Calls that have not returned."""
        return len(self._busy) + len(self._calls)

    def _serve(self) -> None:
        try:
            self._serve_calls()
        finally:
            with self._door:
                self._threads.discard(threading.current_thread())

    def _serve_calls(self) -> None:
        me = threading.current_thread()
        while True:
            with self._door:
                while not self._calls:
                    self._idle += 1
                    woken = self._door.wait(_IDLE_SECONDS) if not self._closing else False
                    self._idle -= 1
                    if not woken and not self._calls:
                        return
                context, fn, args, kwargs, reply = self._calls.popleft()
                self._busy.add(me)
            try:
                value = context.run(fn, *args, **kwargs)
            except BaseException as error:
                # StopIteration can't be raised into a coroutine; everything else goes to who called.
                # Not isinstance: it asks the error for its `__class__`, which may be a property that raises.
                if issubclass(type(error), StopIteration):
                    error = RuntimeError(f"the function raised {error!r}")
                self._busy.discard(me)
                answer([(reply, None, error)])
                del error
            else:
                self._busy.discard(me)
                answer([(reply, value, None)])
                del value
            # Not kept while idle: they may hold much.
            del context, fn, args, kwargs, reply

    def close(self) -> None:
        """Let idle threads go, and wait for them; those that are still called go when they return."""
        with self._door:
            self._closing = True
            self._door.notify_all()
            free = self._threads - self._busy - {threading.current_thread()}
        for thread in free:
            thread.join(1.0)

    def open(self) -> None:
        """Serve again after a close."""
        self._closing = False
