"""Where the coroutines of an app run: in the caller's event loop, or in one on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..commit.reply import LazyReply, Reply, answer, answer_with

T = TypeVar("T")

_CLOSED = "The app was stopped, or its event loop closed, before this was done."


class Home:
    """One event loop, and how to call coroutines in it from anywhere."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, thread: threading.Thread | None = None, *, ours: bool = False
    ) -> None:
        self.loop = loop
        self.thread = thread
        self._ours = ours
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    def here(cls) -> Home:
        """The loop that is running in this thread."""
        return cls(asyncio.get_running_loop())

    @classmethod
    def on_thread(cls) -> Home:
        """A loop on a thread of its own, which no blocking code of the caller can stall."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_serve, args=(loop,), name="holdfast-loop", daemon=True)
        thread.start()
        return cls(loop, thread, ours=True)

    @classmethod
    def stepwise(cls) -> Home:
        """A loop that runs only while somebody waits for it: for sync code where there are no threads."""
        return cls(asyncio.new_event_loop(), ours=True)

    def is_usable(self) -> bool:
        return not self.loop.is_closed()

    def call(self, what: str, coroutine: Callable[[], Coroutine[Any, Any, T]]) -> Reply[T]:
        """What the coroutine returns. It starts when the reply is asked."""
        return LazyReply(what, lambda reply: self.begin(coroutine, reply))

    def begin(self, coroutine: Callable[[], Coroutine[Any, Any, T]], reply: Reply[T]) -> None:
        """Answer the reply with what the coroutine returns, which starts now."""
        running = asyncio._get_running_loop()
        if running is self.loop:
            self._spawn(coroutine, reply)
        elif self.thread is None and running is None and not self.loop.is_running():
            try:
                value = self.loop.run_until_complete(coroutine())
            except BaseException as error:
                if not isinstance(error, Exception):
                    raise
                answer([(reply, None, error)])
            else:
                answer([(reply, value, None)])
        else:
            self.loop.call_soon_threadsafe(self._spawn, coroutine, reply)

    def _spawn(self, coroutine: Callable[[], Coroutine[Any, Any, T]], reply: Reply[T]) -> None:
        task = self.loop.create_task(answer_with(coroutine, reply, _CLOSED))
        # The loop keeps weak references only.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stands_still(self) -> bool:
        """Whether it is a loop of ours that nobody turns: who waits may do it."""
        return self._ours and self.thread is None and not self.loop.is_running() and self.is_usable()

    def turn_until(self, reply: Reply[Any], seconds: float | None) -> None:
        """Let the loop run until the reply is answered, or the time is over."""

        async def answered() -> None:
            done = asyncio.Event()

            def wake() -> None:
                self.loop.call_soon_threadsafe(done.set)

            if reply._subscribe(wake):
                try:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await done.wait()
                finally:
                    reply._unsubscribe(wake)

        self.loop.run_until_complete(answered())

    def close(self) -> None:
        """Stop the loop, if it is ours."""
        if not self._ours or self.loop.is_closed():
            return
        if self.thread is not None:
            self.loop.call_soon_threadsafe(self.loop.stop)
            if self.thread is not threading.current_thread():
                self.thread.join()
        elif not self.loop.is_running() and asyncio._get_running_loop() is None:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
