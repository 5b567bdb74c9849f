"""One thread, several event loops, one clock: who goes next is drawn by the seed, and time passes only in numbers.

Each simulated process has two *lanes*: its event loop, and its threads (the commit line, the reader, the watcher). The
scheduler draws a lane that has something ready, runs one handle of it, and draws again. When nothing is ready, the
clock jumps to the next timer. So the same seed gives the same story, in any process and on any machine.

What blocks in the middle of real code (a transaction that waits for the write lock, or stands still while it holds it)
runs *aside*: on a thread of its own, which has the baton while the scheduler stands still, and gives it back when it
blocks. Still only one of them runs at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

#: 14 November 2023, 22:13:20 UTC.
EPOCH = 1_700_000_000_000_000
SECOND = 1_000_000
#: Scheduling points of one story: beyond, somebody runs in circles.
MOST_POINTS = 100_000

set_running_loop: Callable[[asyncio.AbstractEventLoop | None], None] = asyncio._set_running_loop


class Crashed(BaseException):
    """The process that executed this is no more."""


class Handle:
    """A call that waits for its turn."""

    __slots__ = ("args", "call", "context")

    def __init__(self, call: Callable[..., object] | None, args: tuple[Any, ...], context: Any) -> None:
        self.call = call
        self.args = args
        self.context = context

    def cancel(self) -> None:
        """Never call it."""
        self.call = None

    def cancelled(self) -> bool:
        return self.call is None


class Lane:
    """What is ready to run, first come, first served."""

    __slots__ = ("closed", "loop", "ready", "stopped")

    def __init__(self, loop: SimLoop | None) -> None:
        self.ready: deque[Handle] = deque()
        self.loop = loop
        """What `asyncio.get_running_loop` gives in it: None on the lane of the threads."""
        self.stopped = False
        self.closed = False


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where it lies in memory."""

    def __init__(self, *args: Any, number: int, **more: Any) -> None:
        self._number = number
        super().__init__(*args, **more)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as tasks, futures and timers need."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.lane = Lane(self)
        self._numbers = itertools.count()
        self._begun: list[tuple[asyncio.Task[Any], Coroutine[Any, Any, Any], contextvars.Context]] = []

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context)
        if not self.lane.closed:
            self.lane.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context)
        # A microsecond more: a timer must not come before its time by any rounding.
        self.scheduler.push(self.scheduler.now + max(0, round(delay * SECOND)) + 1, self.lane, handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def time(self) -> float:
        return self.scheduler.now / SECOND

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, context: contextvars.Context | None = None, **more: Any
    ) -> Any:
        context = contextvars.copy_context() if context is None else context
        task = SimTask(coro, loop=self, number=next(self._numbers), context=context, **more)
        self._begun.append((task, coro, context))
        return task

    def forget(self) -> None:
        """End what is left here, so that no garbage collection does it later, in the midst of another story."""
        for task, coro, context in self._begun:
            if not task.done():
                with contextlib.suppress(BaseException):
                    context.run(coro.close)
        self._begun.clear()

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.lane.closed

    def is_closed(self) -> bool:
        return self.lane.closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.lane.closed:
            self.scheduler.on_exception(context)


class Aside:
    """A thread that has the baton, or waits for it. Used again and again."""

    def __init__(self) -> None:
        self._mine, self._theirs = threading.Lock(), threading.Lock()
        self._mine.acquire()
        self._theirs.acquire()
        self._call: Callable[[], object] = lambda: None
        self.over = True
        self.crashed = False
        self.error: BaseException | None = None
        self.wakes = 0
        threading.Thread(target=self._serve, daemon=True, name="simulation").start()

    def begin(self, call: Callable[[], object]) -> None:
        """Run it until it blocks or ends. In the scheduler's thread."""
        self._call, self.over, self.crashed, self.error = call, False, False, None
        self.go_on()

    def go_on(self) -> None:
        """The same, after it has blocked."""
        running = asyncio._get_running_loop()
        self.wakes += 1
        self._mine.release()
        self._theirs.acquire()
        set_running_loop(running)
        if self.over and self.error is not None:
            raise self.error

    def block(self) -> None:
        """Give the baton back, until somebody lets this go on. In this thread."""
        self._theirs.release()
        self._mine.acquire()
        if self.crashed:
            raise Crashed

    def _serve(self) -> None:
        while True:
            self._mine.acquire()
            try:
                self._call()
            except Crashed:
                pass
            except BaseException as error:
                self.error = error
            self._call = lambda: None
            self.over = True
            self._theirs.release()


_idle: list[Aside] = []


class Scheduler:
    """The seed's will."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now: int = 0
        """Microseconds since the beginning: what really passes, whatever clocks say."""
        self.points: int = 0
        """How many handles were run."""
        self.next_fault: int = 1 << 60
        self.on_fault: Callable[[], None] = lambda: None
        self.on_exception: Callable[[dict[str, Any]], None] = lambda _: None
        self.lanes: list[Lane] = []
        self._heap: list[tuple[int, int, Lane, Handle]] = []
        self._numbers = itertools.count()
        self._asides: dict[int, Aside] = {}

    def push(self, when: int, lane: Lane, handle: Handle) -> None:
        heapq.heappush(self._heap, (when, next(self._numbers), lane, handle))

    def after(self, micros: int, lane: Lane, call: Callable[..., object], *args: Any) -> Handle:
        """Call on this lane, so much later."""
        handle = Handle(call, args, None)
        heapq.heappush(self._heap, (self.now + micros, next(self._numbers), lane, handle))
        return handle

    def run(self, is_over: Callable[[], bool], until: int) -> bool:
        """Turn until it is over; False if the time comes first, or nobody has anything left to do."""
        heap, lanes, random = self._heap, self.lanes, self.rng.random
        running: asyncio.AbstractEventLoop | None = None
        try:
            while True:
                able = [lane for lane in lanes if lane.ready and not lane.stopped]
                if not able:
                    if is_over():
                        return True
                    if not heap or heap[0][0] > until:
                        return False
                    now = heap[0][0]
                    if now > self.now:
                        self.now = now
                    while heap and heap[0][0] <= now:
                        _, _, lane, handle = heapq.heappop(heap)
                        if not lane.closed and handle.call is not None:
                            lane.ready.append(handle)
                    continue
                lane = able[0] if len(able) == 1 else able[int(random() * len(able))]
                handle = lane.ready.popleft()
                call = handle.call
                if call is None:
                    continue
                self.points += 1
                if self.points > MOST_POINTS:
                    return False
                if self.points >= self.next_fault:
                    lane.ready.appendleft(handle)
                    self.points -= 1
                    self.on_fault()
                    continue
                if lane.loop is not running:
                    running = lane.loop
                    set_running_loop(running)
                if handle.context is None:
                    call(*handle.args)
                else:
                    handle.context.run(call, *handle.args)
        finally:
            set_running_loop(None)

    # -- aside -------------------------------------------------------------------------------------------------

    def aside(self, call: Callable[[], object]) -> Aside:
        """Run it on a thread of its own until it blocks; it goes on as `stall` says."""
        thread = _idle.pop() if _idle else Aside()
        thread.wakes = 0

        def called() -> None:
            me = threading.get_ident()
            self._asides[me] = thread
            try:
                call()
            finally:
                del self._asides[me]

        self._turn(thread, lambda: thread.begin(called))
        return thread

    def _turn(self, thread: Aside, turn: Callable[[], None]) -> None:
        try:
            turn()
        finally:
            if thread.over:
                _idle.append(thread)

    @property
    def is_aside(self) -> bool:
        """Whether the caller may stall."""
        return threading.get_ident() in self._asides

    def stall(self, micros: int, lane: Lane, called: Callable[[Callable[[], None]], None] | None = None) -> None:
        """Let so much time pass for everybody else; `called` gets what ends that sooner. Only aside."""
        thread = self._asides[threading.get_ident()]
        wakes = thread.wakes

        def wake() -> None:
            if thread.wakes == wakes and not thread.over:
                self._turn(thread, thread.go_on)

        self.after(micros, lane, wake)
        if called is not None:
            called(wake)
        thread.block()

    def go_on(self, thread: Aside) -> None:
        """Whatever it waits for."""
        self._turn(thread, thread.go_on)

    def end(self, thread: Aside) -> None:
        """Its process is no more: what it does unwinds."""
        if not thread.over:
            thread.crashed = True
            self._turn(thread, thread.go_on)
