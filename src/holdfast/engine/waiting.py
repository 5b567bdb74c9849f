"""Waiting for runs: as long as somebody does, and never where it would be for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..basis.errors import WouldDeadlock
from ..commit.reply import LazyReply, Reply, _running_loop, answer
from .context import current

if TYPE_CHECKING:
    from .engine import Engine
    from .execution import Execution

T = TypeVar("T")


class RunReply(LazyReply[T]):
    """Waits for a run to end, for at most `timeout` seconds; nothing happens to the run when the time is over."""

    __slots__ = ("_begin", "_door", "_engine", "_expected", "_present", "_timeout")

    def __init__(
        self,
        engine: Engine,
        what: str,
        start: Callable[[RunReply[T]], None],
        convert: Callable[[Any], T],
        timeout: float | None,
    ) -> None:
        self._begin: Callable[[Reply[T]], None] = lambda _: start(self)
        super().__init__(what, self._begin, convert)
        self._engine = engine
        self._timeout = timeout
        self._door = threading.RLock()
        self._present = 0
        self._expected: str | None = None

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
            with self.engine._door:
                waiting = self.engine.waiting_inside
                waiting[execution] -= 1
                if not waiting[execution]:
                    del waiting[execution]
