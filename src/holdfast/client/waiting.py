"""Waiting for a run at a server: its stream is followed for as long as somebody waits here."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from ..basis.errors import HoldfastError, NotFoundError, WouldDeadlock
from ..basis.text import error_text
from ..commit.reply import LazyReply, Reply, answer
from ..engine.subscription import Subscription
from ..model.event import Event
from ..model.retry import Retry
from ..model.run import RunRow, RunStatus
from .documents import run_row
from .errors import ServerUnavailable
from .following import follow
from .line import Line

T = TypeVar("T")

_log = logging.getLogger("holdfast")
#: `limit`: seconds that whoever waits in this thread has given.
_given = threading.local()
_TERMINAL = frozenset(str(status) for status in RunStatus.terminal())


async def record(line: Line, run_id: str, retry: Retry | None = None) -> RunRow:
    """The row of the run. `NotFoundError` if there is none."""
    try:
        return await line.get("/run/record", [("runId", run_id)], read=run_row, retry=retry)
    except NotFoundError as error:
        if error.message == "Run not found":
            raise NotFoundError(f"Run not found: {run_id}") from None
        raise


async def ended(line: Line, run_id: str) -> RunRow:
    """The row of the run once it has ended."""
    failures = 0
    while True:
        row = await record(line, run_id, line.patience)
        if row.status in _TERMINAL:
            return row

        async def give(event: Event) -> None:
            if event.type == "run:delete":
                raise NotFoundError(f"Run not found: {run_id}")

        try:
            await follow(line, run_id, give, 0)
            failures = 0
        except ServerUnavailable:
            # No stream to be had, or it was cut: the run is looked at, now and then if need be, for as long as the
            # server answers to that.
            failures = min(failures + 1, line.retry.max_retries or 1)
            await line.rest(failures)


class FarReply(LazyReply[T]):
    """Waits for a run to end, for at most `timeout` seconds; nothing happens to the run when the time is over.

    What the run says meanwhile is told to `told`, by whoever waits first, in its own task or thread.
    """

    __slots__ = ("_begin", "_door", "_end", "_inner", "_is_listening", "_line", "_listened", "_present", "_timeout")

    def __init__(
        self,
        line: Line,
        what: str,
        work: Callable[[], Coroutine[Any, Any, Any]],
        convert: Callable[[Any], T],
        timeout: float | None,
        listened: Callable[[], tuple[Subscription, Callable[[Event], Any]]] | None = None,
    ) -> None:
        def begin(reply: Any) -> None:
            inner: Reply[Any] = Reply(what)
            inner._asked = True

            def over() -> None:
                if reply._inner is inner:  # else whoever waited has left, and this is of no meaning
                    answer([(reply, inner._value, inner._error)])

            reply._inner = inner
            inner._subscribe(over)
            reply._end = line.begin(work, inner)

        super().__init__(what, begin, convert)
        self._begin = begin
        self._line = line
        self._timeout = timeout
        self._listened = listened
        self._is_listening = False
        self._door = threading.RLock()
        self._present = 0
        self._inner: Reply[Any] | None = None
        self._end: Callable[[], None] | None = None

    def _come(self) -> None:
        with self._door:
            self._present += 1

    def _go(self) -> None:
        with self._door:
            self._present -= 1
            if self._present or self.done() or self._end is None:
                return
            # The last one gave up: nothing is followed for nobody. Who comes back begins anew.
            end, self._end, self._inner = self._end, None, None
            self._start = self._begin
        end()

    def when_done(self, call: Callable[[], None]) -> None:
        self._come()  # and stays
        super().when_done(call)

    def _left(self, limit: float | None) -> Callable[[], float | None]:
        clock = self._line.clock
        until = None if limit is None else clock.steady() + limit
        return lambda: None if until is None else max(0.0, until - clock.steady())

    def _give_up(self) -> None:
        answer([(self, None, TimeoutError(f"{self._what}: timeout after {self._timeout:g} s. The run goes on."))])

    def __await__(self) -> Any:
        left = self._left(self._timeout)
        if self._listened is not None and not self.done() and not self._is_listening:
            yield from self._listen(left).__await__()
        self._come()
        timer = None
        try:
            if (seconds := left()) is not None and not self.done():
                timer = self._line.clock.call_later(asyncio.get_running_loop(), seconds, self._give_up)
            return (yield from super().__await__())
        finally:
            if timer is not None:
                timer.cancel()
            self._go()

    def _said(self, timeout: float | None) -> str:
        # What is left of it is nothing that anybody has given.
        return super()._said(getattr(_given, "limit", timeout))

    def wait(self, timeout: float | None = None) -> T:
        limit = min([one for one in (timeout, self._timeout) if one is not None], default=None)
        left = self._left(limit)
        if not self.done():
            self._refuse_to_block()
            if self._listened is not None and not self._is_listening:
                self._listen_here(left)
        self._come()
        outer, _given.limit = getattr(_given, "limit", None), limit
        try:
            return super().wait(left())
        finally:
            _given.limit = outer
            self._go()

    # -- callbacks ---------------------------------------------------------------------------------------------

    async def _listen(self, left: Callable[[], float | None]) -> None:
        assert self._listened is not None
        subscription, told = self._listened()
        self._is_listening = True
        try:
            while (event := await subscription.anext_within(left())) is not None:
                try:
                    called = told(event)
                    if inspect.isawaitable(called):
                        await called
                except Exception as error:
                    _failed(error, event)
        except (TimeoutError, HoldfastError):
            pass  # the reply says it, too
        finally:
            self._is_listening = False  # who gave up may come again
            subscription.close()

    def _listen_here(self, left: Callable[[], float | None]) -> None:
        assert self._listened is not None
        subscription, told = self._listened()
        self._is_listening = True
        try:
            while (event := subscription.next_within(left())) is not None:
                try:
                    called = told(event)
                    if inspect.isawaitable(called):
                        self._line.asked("callback", partial(_awaited, called)).wait()
                except Exception as error:
                    _failed(error, event)
        except TimeoutError:
            pass
        except HoldfastError as error:
            if isinstance(error, WouldDeadlock):
                raise
        finally:
            self._is_listening = False
            subscription.close()


async def _awaited(called: Awaitable[Any]) -> Any:
    return await called


def _failed(error: Exception, event: Event) -> None:
    _log.error("A callback failed at %s of run %s: %s", event.type, event.run_id, error_text(error), exc_info=error)
