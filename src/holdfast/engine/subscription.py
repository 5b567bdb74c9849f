"""Subscriptions: the events of one run as they come, for `for` and `async for` alike.

A subscription keeps what was not asked for yet, at most `MOST_UNREAD` events: a slow reader loses the oldest ones (and
is told how many), never the last event. It costs nothing until it is first asked, and is forgotten with the object: the
engine holds weak references only, so a loop that was broken off leaves nothing behind.

What the events are is decided in `trail`, and `subscriptions` looks for them; here is who waits, and when it is over.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import weakref
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..basis.errors import StoreClosed, WouldDeadlock
from ..commit.reply import Reply, _running_loop, _wake, answer
from ..model.event import Event
from .retold import Making, Retold
from .trail import LAST, Trail

if TYPE_CHECKING:
    from .subscriptions import Subscriptions

#: Events that wait for a slow reader.
MOST_UNREAD = 1000


class Subscription:
    """The events of one run, from now until its end: `async for event in …` or `for event in …`.

    First how the run stands (`run:leased`, `run:progress`), then what happens, in whatever process; the last event is
    `run:complete`, `run:fail`, `run:cancel` or `run:delete`. `NotFoundError` if there is no such run, `StoreClosed` if
    the app is stopped. Begins when it is first asked; `close()`, the end of a `with`, or letting go of it ends it.
    """

    __slots__ = (
        "__weakref__", "_begun", "_desk", "_error", "_is_over", "_last", "_lock", "_trail", "_unread", "_wake",
        "dropped", "run_id",
    )  # fmt: skip

    def __init__(self, desk: Subscriptions, run_id: str, *, with_snapshot: bool = True) -> None:
        self.run_id: str = run_id
        self.dropped: int = 0
        """Operational events that were dropped, the oldest first, because nobody asked for them."""
        self._desk = desk
        self._lock = threading.RLock()  # re-entrant: a garbage collection in between may run anything
        self._unread: deque[tuple[str, Making]] = deque()
        self._last: Making | None = None
        self._error: BaseException | None = None
        self._is_over = False
        self._begun = False
        self._wake: Reply[None] | None = None
        engine, me = desk.engine, weakref.ref(self)

        def give(type: str, making: Making) -> None:
            if (subscription := me()) is not None:
                subscription._give(type, making)

        retold = Retold(run_id, engine.clock, engine.payloads, engine.ended_as)
        self._trail: Trail = Trail(
            lambda: engine.identity, retold, give, with_snapshot=with_snapshot, most_held=MOST_UNREAD
        )

    # -- asking ------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        self._begin()
        while True:
            got = self._take()
            if got is None:
                raise StopAsyncIteration
            if isinstance(got, Event):
                return got
            await woken_within(self._desk, got, None)

    async def anext_within(self, seconds: float | None) -> Event | None:
        """Await the next event; None after the last one. `TimeoutError` when the time is over."""
        self._begin()
        clock = self._desk.engine.clock
        until = None if seconds is None else clock.steady() + seconds
        while True:
            got = self._take()
            if not isinstance(got, Reply):
                return got
            await woken_within(self._desk, got, None if until is None else until - clock.steady())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.next_within(None)
        if event is None:
            raise StopIteration
        return event

    def next_within(self, seconds: float | None) -> Event | None:
        """Block until the next event; None after the last one. `TimeoutError` when the time is over."""
        if _running_loop() is not None:
            raise WouldDeadlock(
                f"subscription to run {self.run_id}: `for` would block the event loop of this thread. Use `async for`."
            )
        self._begin()
        clock = self._desk.engine.clock
        until = None if seconds is None else clock.steady() + seconds
        while True:
            got = self._take()
            if not isinstance(got, Reply):
                return got
            left = None if until is None else max(0.0, until - clock.steady())
            if self._desk.engine.options.inline:
                self._desk.pause_sync(got, left)
                if left == 0.0:
                    raise TimeoutError
            else:
                got.wait(left)

    def close(self) -> None:
        """End it: whoever is waiting for the next event gets no more. Any thread, any number of times."""
        with self._lock:
            self._finish(None)
            self._unread.clear()
            self._last = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Subscription {self.run_id}>"

    # -- being told --------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        with self._lock:
            if self._begun or self._is_over:
                return
            self._begun = True
        self._desk.begin(self)

    def _take(self) -> Event | Reply[None] | None:
        """The next event, None after the last, or what is answered when there may be more."""
        making: Making | None = None
        with self._lock:
            if self._unread:
                _, making = self._unread.popleft()
            elif self._last is not None:
                making, self._last = self._last, None
            elif self._error is not None:
                raise copy.copy(self._error).with_traceback(None)
            elif self._is_over:
                return None
            else:
                if self._wake is None or self._wake.done():
                    self._wake = Reply(f"event of run {self.run_id}")
                return self._wake
        # Not under the lock: opening a payload may call a user's codec.
        return making if isinstance(making, Event) else making()

    def _give(self, type: str, making: Making) -> None:
        if self._is_over:
            return
        unread = self._unread
        if type in LAST:
            self._last = making
            self._finish(None)
            return
        if type == "run:progress" and unread and unread[-1][0] == type:
            unread[-1] = (type, making)
        else:
            unread.append((type, making))
            if len(unread) > MOST_UNREAD:
                unread.popleft()
                self.dropped += 1
        self._wake_up()

    def _finish(self, error: BaseException | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._trail.over = True
            self._error = error
            self._desk.remove(self)
        self._wake_up()

    def fail(self, error: BaseException) -> None:
        """End it with an error, after what was told before."""
        with self._lock:
            self._finish(error)

    def _wake_up(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            answer([(wake, None, None)])

    def hear(self, event: Event, generation: int) -> bool:
        """From the hub; True if a look is needed."""
        with self._lock:
            before = self._trail.dropped
            looks = self._trail.hear(event, generation)
            self.dropped += self._trail.dropped - before
            return looks

    def leave_to_parent(self) -> None:
        """In the child of a fork: a thread that does not exist here may hold the lock, and nobody here is waiting."""
        self._lock = threading.RLock()
        self._wake = None
        self.fail(StoreClosed("This subscription was made before the fork: its events are the parent's."))


async def woken_within(desk: Subscriptions, wake: Reply[None], seconds: float | None) -> None:
    """Until it is answered, or, inline, for a moment. `TimeoutError` when the time is over."""
    engine = desk.engine
    if seconds is not None and seconds <= 0:
        raise TimeoutError
    if engine.options.inline:
        await desk.pause(wake)
    elif seconds is None:
        await wake
    else:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        if not wake._subscribe(woken):
            return
        timer = engine.clock.call_later(loop, seconds, lambda: _wake([woken]))
        try:
            await woken
        finally:
            timer.cancel()
            wake._unsubscribe(woken)
