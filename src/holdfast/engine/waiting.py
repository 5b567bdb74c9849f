"""Waiting for runs: as long as somebody does, and never where it would be for ever."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..basis.errors import HoldfastError, NotFoundError, WouldDeadlock
from ..basis.text import shown
from ..commit.lent import lent
from ..commit.reply import LazyReply, Reply, _running_loop, answer
from ..model.event import Event
from .context import current

if TYPE_CHECKING:
    from ..model.run import RunRow
    from .engine import Engine
    from .execution import Execution
    from .subscription import Subscription
    from .worker import Worker

T = TypeVar("T")


class RunReply(LazyReply[T]):
    """Waits for a run to end, for at most `timeout` seconds; nothing happens to the run when the time is over."""

    __slots__ = ("_begin", "_door", "_engine", "_expected", "_insiders", "_present", "_timeout", "hidden")

    def __init__(
        self,
        engine: Engine,
        what: str,
        start: Callable[[RunReply[T]], None],
        convert: Callable[[Any], T],
        timeout: float | None,
    ) -> None:
        # Called with this very reply, as every lazy one's. A closure over it would be a circle.
        self._begin = cast("Callable[[Reply[T]], None]", start)
        super().__init__(what, self._begin, convert)
        self._engine = engine
        self._timeout = timeout
        self._door = threading.RLock()
        self._present = 0
        self._expected: str | None = None
        self._insiders: list[RunRow] = []
        """The runs of this app that wait here."""
        self.hidden: bool = False
        """Whoever asks may itself have a transaction open that the run is part of."""

    def would_never_end(self, row: RunRow) -> bool:
        """Refuse to wait for this run, which goes on, if it waits for one that waits here. Any thread."""
        for insider in self._insiders:
            if row.id == insider.id:
                answer([(self, None, WouldDeadlock(f"Run {row.id} would wait for its own end."))])
                return True
            if row.concurrency_key is not None and row.concurrency_key == insider.concurrency_key:
                answer([(self, None, key_deadlock(insider))])
                return True
        return False

    def _settle(self, value: Any, error: BaseException | None) -> list[Any]:
        if self.hidden and isinstance(error, NotFoundError):
            error = WouldDeadlock(
                f"{self._what}: it is part of a transaction that is open here, and nobody else sees it. Commit first."
            )
        return super()._settle(value, error)

    def expect(self, run_id: str) -> None:
        """Be told when the run has ended, as long as somebody waits for that here."""
        with self._door:
            if self._present and not self.done():
                self._expected = run_id
                self._engine.hub.expect(run_id, self)

    def _come(self) -> None:
        with self._door:
            self._present += 1

    def _go(self) -> None:
        with self._door:
            self._present -= 1
            if self._present:
                return
            # The last one gave up: nobody is on the hub's list for nothing. Who comes back begins anew.
            if self._expected is not None:
                self._engine.hub.forget(self._expected, self)
                self._expected = None
            if not self.done():
                self._start = self._begin

    def when_done(self, call: Callable[[], None]) -> None:
        self._come()  # and stays
        super().when_done(call)

    def __await__(self) -> Any:
        with _Inside(self):
            if self._timeout is None or self.done():
                return (yield from super().__await__())
            self._ask()
            loop = _running_loop()
            assert loop is not None
            timer = self._engine.clock.call_later(loop, self._timeout, self._give_up)
            try:
                return (yield from super().__await__())
            finally:
                timer.cancel()

    def _give_up(self) -> None:
        answer([(self, None, TimeoutError(f"{self._what}: timeout after {self._timeout} s. The run goes on."))])

    def wait(self, timeout: float | None = None) -> T:
        limits = [limit for limit in (timeout, self._timeout) if limit is not None]
        limit = min(limits, default=None)
        if not self.done():
            self._refuse_to_block()
        with _Inside(self):
            if self._engine.options.inline:
                self._ask()
                if not self.done() and self._turn_the_loop(limit):
                    limit = 0
            return super().wait(limit)

    def _refuse_to_block(self) -> None:
        super()._refuse_to_block()
        lent.refuse_to_block(self._what)

    def _turn_the_loop(self, limit: float | None) -> bool:
        """Inline nothing runs while this thread blocks, so let the started worker have it; there may be none."""
        home, worker = self._engine.home, self._engine.worker
        if home is not None and worker is not None and worker.running and home.stands_still():
            home.turn_until(self, limit)
            return True
        if limit is None and threading.active_count() == 1:
            raise WouldDeadlock(
                f"{self._what}: nothing runs while the only thread blocks. Call process_until_idle().wait() first."
            )
        return False


def key_deadlock(holder: RunRow) -> WouldDeadlock:
    """Why this run may not wait for another one of its concurrency key."""
    return WouldDeadlock(
        f"Run {holder.id} holds the concurrency key {shown(holder.concurrency_key)}: another run of that key begins "
        "only after its end. Trigger without waiting, or with another key."
    )


class _Inside:
    """A run waits for another. If all slots are taken by such runs, none of them would ever end."""

    def __init__(self, reply: RunReply[Any]) -> None:
        self.reply = reply
        self.engine = reply._engine
        self.execution = current.get() if not reply.done() else None

    def __enter__(self) -> None:
        execution, engine = self.execution, self.engine
        if execution is None or execution.engine is not engine:
            self.execution = None
        else:
            with engine._door:
                self._check(execution)
                # Counted: several branches of one run may wait at once.
                engine.waiting_inside[execution] = engine.waiting_inside.get(execution, 0) + 1
            self.reply._insiders.append(execution.row)
        self.reply._come()

    def _check(self, execution: Execution) -> None:
        worker, waiting = execution.worker, self.engine.waiting_inside
        if execution in waiting or worker.free_slots() > 0:
            return
        taken = [other for other in worker.executing if not other.slot_free]
        if len(waiting) + 1 >= len(taken):
            raise WouldDeadlock(
                f"Run {execution.row.id} would wait for another run while all {len(taken)} slots of this worker are "
                "taken by runs that wait as it does. Raise `concurrency`, or trigger without waiting."
            )

    def __exit__(self, *_: object) -> None:
        self.reply._go()
        if (execution := self.execution) is not None:
            self.reply._insiders.remove(execution.row)
            with self.engine._door:
                waiting = self.engine.waiting_inside
                waiting[execution] -= 1
                if not waiting[execution]:
                    del waiting[execution]


class WatchedReply(RunReply[T]):
    """The same; what the run says meanwhile is told to `told`, by whoever waits first, in its own task or thread.

    So a slow callback delays nobody else, and all of them were called when the wait is over. What they raise goes to
    `on_error`.
    """

    __slots__ = ("_is_listening", "_run_id", "_told")

    def __init__(
        self,
        engine: Engine,
        what: str,
        start: Callable[[RunReply[T]], None],
        convert: Callable[[Any], T],
        timeout: float | None,
        run_id: str,
        told: Callable[[Event], Any],
    ) -> None:
        super().__init__(engine, what, start, convert, timeout)
        self._run_id = run_id
        self._told = told
        self._is_listening = False

    def __await__(self) -> Any:
        if not self.done() and not self._is_listening:
            yield from self._listen().__await__()
        return (yield from super().__await__())

    async def _listen(self) -> None:
        engine, timer = self._engine, None
        with _Inside(self), self._listening() as subscription:
            if self._timeout is not None:
                timer = engine.clock.call_later(asyncio.get_running_loop(), self._timeout, self._give_up)
            try:
                async for event in subscription:
                    try:
                        called = self._told(event)
                        if inspect.isawaitable(called):
                            await called
                    except Exception as error:
                        engine.hub.failed(error, event)
            except HoldfastError:
                pass  # the reply says it, too
            finally:
                if timer is not None:
                    timer.cancel()

    def wait(self, timeout: float | None = None) -> T:
        if self.done() or self._is_listening:
            return super().wait(timeout)
        self._refuse_to_block()
        limit = min([one for one in (timeout, self._timeout) if one is not None], default=None)
        clock = self._engine.clock
        until = None if limit is None else clock.steady() + limit
        with _Inside(self), self._listening() as subscription:
            try:
                while event := subscription.next_within(None if until is None else until - clock.steady()):
                    self._call_sync(event)
            except TimeoutError:
                if not self.done():
                    raise TimeoutError(f"{self._what}: timeout after {limit} s. The run goes on.") from None
            except HoldfastError as error:
                if isinstance(error, WouldDeadlock):
                    raise
        return super().wait(None if until is None else max(0.0, until - clock.steady()))

    def _call_sync(self, event: Event) -> None:
        try:
            called = self._told(event)
            if inspect.isawaitable(called):

                async def finish(_: Worker) -> None:
                    await called

                self._engine.call("callback", finish).wait()
        except Exception as error:
            self._engine.hub.failed(error, event)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[Subscription]:
        """A subscription for as long as the reply is not refused; of a run that has ended it tells nothing but that."""
        self._is_listening = True
        self._ask()

        def done() -> None:
            if self._error is not None:
                subscription.close()

        with self._engine.subscriptions.subscribe(self._run_id, with_snapshot=False) as subscription:
            if not self._subscribe(done):
                subscription.close()  # answered already
            try:
                yield subscription
            finally:
                self._is_listening = False  # who gave up may come again
                self._unsubscribe(done)
