"""The tries of a step: how each is written down, how many there were before, and the rest between two of them.

A try that *failed*, with others left, is written and awaited before anything else happens: it is counted, whatever dies
next. A try that *begins* is worth a row but no round: it rides along with the next one that goes anyway, if it takes
long enough to be of interest (see `Committer.riders`). A call that is lost in a crash is no failed try: the next
execution begins it anew, under the same number.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..basis.errors import StoreUnavailable
from ..basis.failures import failed_text
from ..commit.reply import Reply
from ..commit.ticket import Ticket
from ..model.step import AttemptRow, StepKey, Tries
from ..rules.retry import delay_before, may_help
from ..store.base import AttemptSave
from .context import StepOptions, Unwind

if TYPE_CHECKING:
    from .execution import Execution

#: The try whose body is running here, if it has a time limit.
current_attempt: contextvars.ContextVar[Attempt | None] = contextvars.ContextVar("holdfast_attempt", default=None)

_NONE = Tries(0, 0)
#: Seconds until a read that the database refused is tried again.
_PAUSE = 0.1


class Attempt:
    """One try of a step, about to be called or under way."""

    __slots__ = ("_execution", "key", "left", "number", "position", "since", "told")

    def __init__(self, execution: Execution, key: StepKey, position: int, number: int, since: int) -> None:
        self._execution = execution
        self.key: StepKey = key
        self.position: int = position
        self.number: int = number
        self.since: int = since
        self.told: bool = False
        """Its body was told to stop: it has failed, and may begin nothing more."""
        self.left: bool = False
        """Its body was told to stop and did not: nobody waits for it any more, but it is still there."""

    def after(self, before: Tries) -> Attempt:
        """The same, as the last try that failed before."""
        self.number = before.failed - 1
        return self

    def row(self, ended_at: int | None = None, error: Exception | None = None) -> AttemptRow:
        """How it is written: begun, ended well, or failed."""
        run = self._execution.row
        text = None
        if error is not None:
            text = self._execution.engine.payloads.seal(failed_text(error))
        return AttemptRow(
            run.id, *self.key, run.attempt, self.number, self.position, run.generation, self.since, ended_at, text
        )

    def ticket(self) -> Ticket[Any]:
        """It rides along: nobody waits for it, and it may be lost."""
        return self._saving(self.row())

    def ended(self, at: int, error: Exception | None) -> Ticket[bool]:
        """It is over. `StoreUnavailable` if the codec can't seal the error now."""
        ticket = self._saving(self.row(at, error))
        ticket.then = self._accepted
        return ticket

    def _saving(self, row: AttemptRow) -> Ticket[bool]:
        what = f"try {row.number + 1} of step {row.name!r} of run {row.run_id}"
        ticket: Ticket[bool] = Ticket("save_attempts", AttemptSave(self._execution.lease.owner, row), what=what)
        ticket._asked = True
        return ticket

    def _accepted(self, accepted: bool) -> None:
        if not accepted:
            self._execution.lease_lost(None)


class Attempts:
    """The retries of one execution's steps."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._engine = execution.engine
        self._before: Reply[dict[StepKey, Tries]] | None = None

    # -- what is decided ---------------------------------------------------------------------------------------

    def delay(self, how: StepOptions, attempt: Attempt, error: Exception) -> int | None:
        """Microseconds until the next try; None if this one was the last."""
        retry = how.retry
        # Two bodies of one step at once would be worse than a failure.
        if retry is None or attempt.left or attempt.number >= retry.max_retries or not may_help(error):
            return None
        return delay_before(retry, attempt.number + 1, self._engine.chance)

    def rest_of(self, how: StepOptions, tries: Tries) -> float:
        """Seconds that are left of the delay that an earlier execution had begun to wait."""
        if how.retry is None or not tries.failed:
            return 0.0
        return self.left_of(delay_before(how.retry, tries.failed, self._engine.chance), tries.last_at)

    def left_of(self, delay: int, since: int) -> float:
        """Seconds that are left of so many microseconds since then. Never more, if the wall clock was set back."""
        return min(max(since + delay - self._engine.clock.now(), 0), delay) / 1_000_000

    # -- what earlier executions have tried --------------------------------------------------------------------

    def _ask(self) -> Reply[dict[StepKey, Tries]]:
        """Once for all steps of this execution, and only if one of them has retries."""
        if self._before is None or self._before._error is not None:
            run, store = self._execution.row, self._engine.store
            self._before = Reply("failed_tries")
            self._engine.reader.ask(lambda c: store.failed_tries(c, run.id, run.attempt), self._before)
        return self._before

    async def before(self, key: StepKey) -> Tries:
        """The failed tries of this step under earlier leases of this attempt of the run."""
        while self._execution.row.generation > 1:
            try:
                return (await self._ask()).get(key, _NONE)
            except StoreUnavailable as error:
                self._execution.refused_for_now(error)
            await self._execution.worker.pause(_PAUSE)
        return _NONE

    def before_sync(self, key: StepKey) -> Tries:
        """The same, blocking."""
        while self._execution.row.generation > 1:
            try:
                return self._ask().wait().get(key, _NONE)
            except StoreUnavailable as error:
                self._execution.refused_for_now(error)
            self._execution.signal.wait(_PAUSE)
        return _NONE

    # -- resting -----------------------------------------------------------------------------------------------

    async def rest(self, seconds: float) -> None:
        """Wait for the next try; `Unwind` as soon as there is to be none in this execution."""
        if not self._passes(seconds):
            for part in self._parts(seconds):
                await self._rest_part(part)

    async def _rest_part(self, seconds: float) -> None:
        worker, woken, over = self._execution.worker, asyncio.Event(), False

        def ring() -> None:
            nonlocal over
            over = True
            woken.set()

        timer = self._engine.clock.call_later(worker.loop, seconds, ring)
        off = self._when_told(lambda _: worker.in_loop(woken.set))
        try:
            while not over:
                await woken.wait()
                woken.clear()
                self._go_on(over=over)
        finally:
            timer.cancel()
            off()

    def rest_sync(self, seconds: float) -> None:
        """The same, blocking the job's thread."""
        if not self._passes(seconds):
            for part in self._parts(seconds):
                self._rest_part_sync(part)

    def _rest_part_sync(self, seconds: float) -> None:
        clock, woken, over = self._engine.clock, threading.Event(), False
        due = clock.steady() + seconds
        off = self._when_told(lambda _: woken.set())
        try:
            while not over:
                over = not clock.wait(woken, max(due - clock.steady(), 0))
                woken.clear()
                self._go_on(over=over)
        finally:
            off()

    def _when_told(self, call: Callable[[str], object]) -> Callable[[], None]:
        """Call when this execution or its worker is to stop; gives what ends that."""
        told, stops = self._execution.signal.on_abort(call), self._execution.shutdown.on_abort(call)

        def off() -> None:
            told()
            stops()

        return off

    def _go_on(self, *, over: bool) -> None:
        """The rest is over, or somebody has been told to stop; `Unwind` if it is this execution."""
        execution = self._execution
        execution.check()
        # While other steps of this run are under way they may come to an end, and this one to its next try.
        if not over and execution.shutdown.aborted and not execution.bodies:
            # Whoever takes the run next has the rest of the delay before it.
            execution.hand_back()
            raise Unwind

    def _passes(self, seconds: float) -> bool:
        self._execution.check()
        if seconds > 0 and (pass_time := self._engine.pass_time) is not None:
            pass_time(seconds)
            return True
        return seconds <= 0

    def _parts(self, seconds: float) -> Iterator[float]:
        """In one piece. Inline, where there is no thread that renews, in pieces, with a renewal after each."""
        most = self._engine.options.lease_renew_interval
        while self._engine.options.inline and seconds > most:
            yield most
            seconds -= most
            self._engine.committer.join(*self._engine.keeper.renewals(), pass_always=True, at_once=True)
        yield seconds
