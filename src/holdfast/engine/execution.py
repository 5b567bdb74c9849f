"""One execution of one leased run: the user's function, its steps, and how it ends.

An execution trusts its own state, never the exception that comes out of the user's code. Once it is *closed* (the run
was cancelled, the lease is lost, the worker gives it back) nothing that it still does counts: every later `step.*`
raises `Unwind`, and whatever the function returns, raises or swallows is ignored.

Long because it is one life: how a run begins, who may stop it at any of its lines, and how its end is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from ..basis.clock import Timer, to_datetime
from ..basis.codec import marked
from ..basis.errors import NotKept, StoreUnavailable
from ..basis.text import clean, error_text
from ..basis.values import COMPARED_BYTES
from ..commit.reply import Reply
from ..commit.ticket import Ticket
from ..model.run import RunRow, RunStatus
from ..model.step import StepKey, StepRow
from ..rules.lifecycle import TABLE, Cause
from ..store.base import Ended, Ending, Lease
from .branches import Branches, here
from .context import Step, SyncStep, Unwind, current
from .family import Children
from .limits import NO_LIMITS, Limits
from .notes import Notes
from .outcome import Outcome, alone, log_failure, outcome_of, where_it_broke
from .parents import Parent, finalize_arguments
from .registry import JobDefinition
from .signals import AbortSignal
from .steps import FIRST_PAUSE, TROUBLE, Steps, longer
from .validation import validated
from .waits import Waits

if TYPE_CHECKING:
    from .engine import Engine
    from .worker import Worker


#: Microseconds that a run rests which can't be executed here and now: somebody outside has cancelled its task (most
#: likely this loop is going down), or its input can't be opened. It would be claimed again in the same round.
_REST = 1_000_000


#: A run whose workers died so often in a row is executed apart from others like it: one of them may be the cause.
SUSPECT = 2

#: What the user's code is told by its signal when somebody else has ended the run.
_WHY: dict[str | None, str] = {RunStatus.CANCELLED: "cancelled", RunStatus.TIMED_OUT: "timeout"}


#: What is made when it is first needed, is made once: a sync job may use several threads at once.
_making = threading.RLock()


class _NotNow(Exception):
    """Nothing has begun, and it can't now."""


class Execution:
    """The holder of one lease."""

    def __init__(self, worker: Worker, job: JobDefinition, row: RunRow, steps: list[StepRow], asked: float) -> None:
        self.worker = worker
        self.engine: Engine = worker.engine
        self.job = job
        self.row = row
        self.lease: Lease = Lease(row.id, row.generation, row.lease_owner or "")
        self.deadline: float = asked + self.engine.options.lease
        self.signal: AbortSignal = AbortSignal()
        self.shutdown: AbortSignal = worker.shutdown
        self.closed: bool = False
        self.returned: bool = False
        """The user's function has come to its end: what it left behind may do nothing more in its name."""
        self.task: asyncio.Task[None] | None = None
        self.slot_free = False
        self.abandoned = False
        self.branches: Branches = Branches(row.id)
        self._saved = steps
        self._steps: Steps | None = None
        self._notes: Notes | None = None
        self.limits: Limits = NO_LIMITS
        self.timed_out: bool = False
        """The time of this attempt is over: all that is left is to write that."""
        self._late: Outcome | None = None
        self._timers: list[Timer] = []
        self._began_at = 0.0
        self._rests_since: float | None = None
        self._rested = 0.0
        self._ending_now = False
        self._left: asyncio.Task[None] | None = None
        """Writes the end of a function that did not come back."""
        self._ender: Any = None
        """The task that writes the end."""
        self._interrupted = False
        self.retells: bool = row.generation > 1
        """Its function was begun before, and has asked for nothing yet that is new: it says again what it said then."""
        self.waits_begun: Waits | None = None
        """Its durable waits, if it has any."""
        self.leaving: bool = False
        """It is being suspended: nothing may begin."""

    @property
    def waits(self) -> Waits:
        """Its durable waits; made for the first one."""
        if (waits := self.waits_begun) is None:
            with _making:
                waits = self.waits_begun = self.waits_begun or Waits(self)
        return waits

    @property
    def steps(self) -> Steps:
        """Its steps; made for the first one, so that runs without any don't pay for them."""
        if (steps := self._steps) is None:
            with _making:
                steps = self._steps = self._steps or Steps(self, self._saved)
                self._saved = []  # the history drops them one by one, as they are used up
        return steps

    @property
    def notes(self) -> Notes:
        """What it says of itself; made for the first word."""
        if (notes := self._notes) is None:
            with _making:
                notes = self._notes = self._notes or Notes(self)
        return notes

    @property
    def is_suspect(self) -> bool:
        """Whether its workers died several times in a row, and it has saved no step since."""
        return self.row.crashes >= SUSPECT and not (self._steps is not None and self._steps.moved_on)

    @property
    def told_progress(self) -> str | None:
        """What it has said last of how far it is, saved or not."""
        return None if self._notes is None else self._notes.last_progress

    def said_before(self) -> None:
        """A step or a wait was asked for that is there already: what was said since the last one is, too."""
        if self.retells and self._notes is not None:
            self._notes.said_before()

    def goes_on(self) -> None:
        """A new step or wait was asked for: from here on the function does what it has not done before."""
        if self.retells:
            self.retells = False
            if self._notes is not None:
                self._notes.let_go()

    def pending_notes(self) -> list[Ticket[Any]]:
        """What it has said and must go before what it writes now."""
        return [] if self._notes is None else self._notes.pending()

    @property
    def has_lost_lines(self) -> bool:
        return self._notes is not None and self._notes.has_lost

    @property
    def bodies(self) -> Collection[StepKey]:
        """The steps whose functions are being called."""
        return () if self._steps is None else self._steps.bodies

    # -- the run -----------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Execute the run and write how it ended. Never raises, but for what ends the whole process."""
        token = current.set(self)
        hub = self.engine.hub
        if hub.hears("run:leased", self.row.id):
            hub.tell(
                "run:leased",
                self.row,
                input=self.engine.payloads.shown(self.row.input),
                lease_owner=self.lease.owner,
                lease_expires_at=to_datetime(self.row.lease_expires_at),
            )
        try:
            outcome = await self._outcome()
        except GeneratorExit:  # the loop was closed under us: nothing can be awaited or scheduled any more
            self._close()
            raise
        except BaseException:
            self._close()
            self.worker.freed(self)
            self.worker.finished(self)
            raise
        # The slot is free before the end is written, so that both this end and the next claim share a round.
        self.worker.freed(self)
        try:
            if outcome is not None:
                await self._end(outcome)
            elif self._left is not None:
                await asyncio.wait([self._left])  # it did come back: the end is being written without it
        finally:
            self._close()
            self.worker.finished(self)
            # This task's context holds the execution, which holds the task: a circle. A coroutine that is thrown away
            # runs in the context of whoever does that, where nothing is ours.
            with contextlib.suppress(ValueError):
                current.reset(token)

    async def _outcome(self) -> Outcome | None:
        """What the run comes to; None if that is no longer ours to say."""
        try:
            try:
                value = await self._call_job()
            finally:
                self.returned = True
                for timer in self._timers:
                    timer.cancel()
                if self._steps is not None:
                    self._steps.cancel_leftovers(but=self.task)
            if self.closed or self._ending_now:
                return None
            if self.timed_out:
                return self._too_late()
            if self._steps is not None and self._steps.fatal is not None:
                return outcome_of(self._steps.fatal)
            if type(value) is Outcome:
                return value
            if type(value) is Children:
                raise NotKept("it is Children, and the job does not say so: write -> Children[…]", "Invalid output")
            kept = self.job.signature.output.keep(value, "Invalid output", compare_bytes=self.compare_bytes)
            return Outcome(Cause.COMPLETE, self.within_limit(kept.text, "Invalid output"))
        except _NotNow:
            return Outcome(Cause.RELEASE)
        except BaseException as error:
            if self._ends_us(error):
                raise
            if self.closed or self._ending_now:
                return None
            if self.timed_out:
                return self._too_late()
            # Not isinstance: it asks the error for its `__class__`, which may be a property that raises.
            cancelled = issubclass(type(error), asyncio.CancelledError)
            if cancelled and self.task is not None and self.task.cancelling():
                # Somebody outside cancels this process's work: that is no failure of the run.
                return Outcome(Cause.RELEASE)
            error = (self._steps and self._steps.fatal) or error
            outcome = self.limits.after(outcome_of(error), alone(error), self.engine.now(), self.engine.chance)
            return outcome._replace(broke=where_it_broke(outcome, error))

    def _ends_us(self, error: BaseException) -> bool:
        """Whether this is about the process, or the loop, and not about the run."""
        if issubclass(type(error), KeyboardInterrupt):
            return threading.current_thread() is threading.main_thread()
        # A coroutine that is closed from outside runs in nobody's task.
        return issubclass(type(error), GeneratorExit) and here() is not self.task

    def _watch_the_time(self) -> None:
        self.limits = Limits.of(self.row, self.job)
        if self.limits is NO_LIMITS:
            return
        self._began_at = self.engine.clock.steady()
        if self._is_time_over():
            # It was due too late: nothing of it may begin.
            self.timed_out = True
            raise Unwind

    def _is_time_over(self) -> bool:
        """Whether it is; otherwise look again then. The wall clock may have been set back since the last look."""
        clock, rests = self.engine.clock, self._rests_since is not None
        left = self.limits.micros_left(self.engine.now(), self._used, rests=rests)
        if left:
            # A timer of a year would overflow some loops.
            seconds = min(left / 1_000_000, 86400.0)
            self._timers[:] = [clock.call_later(self.worker.loop, seconds, self._look_at_the_time)]
        return left == 0

    @property
    def _used(self) -> int:
        """Microseconds that this attempt has run, without its waits."""
        now = self.engine.clock.steady()
        rested = self._rested + (0.0 if self._rests_since is None else now - self._rests_since)
        return self.row.used + round((now - self._began_at - rested) * 1_000_000)

    def rest(self) -> None:
        """All that goes on in it is waiting: that is no time of the attempt's."""
        if self.limits.timeout is not None and self._rests_since is None:
            self._rests_since = self.engine.clock.steady()
            self._look_again()

    def rise(self) -> None:
        """Something goes on again."""
        if self._rests_since is not None:
            self._rested += self.engine.clock.steady() - self._rests_since
            self._rests_since = None
            self._look_again()

    def _look_again(self) -> None:
        if not self.timed_out:
            for timer in self._timers:
                timer.cancel()
            self._timers.clear()
            self._look_at_the_time()

    def _look_at_the_time(self) -> None:
        if not self.is_over and not self.timed_out and self._is_time_over():
            self._time_over()

    def _time_over(self) -> None:
        """Tell the user's code. What waits outside of a step is interrupted; a body in flight has the grace."""
        self.timed_out = True
        self.signal.set("timeout")
        if self.job.signature.is_async and not self.bodies and self.task is not None:
            self.task.cancel()
        grace = self.engine.options.cancel_grace
        self._timers.append(self.engine.clock.call_later(self.worker.loop, grace, self._leave))

    def _leave(self) -> None:
        """What did not come back is left: the end is written without it."""
        if self.returned or self._ending_now:
            return
        if self.closed:  # somebody else has ended it, or has it now: nothing is left to be written
            self._interrupt()
            return
        self._ending_now = True
        self.worker.abandon(self)
        if self.job.signature.is_async and self.task is not None:
            self.task.cancel()

        async def end() -> None:
            try:
                await self._end(self._too_late())
            finally:
                self._close()

        self._left = self.worker.spawn(end())

    @property
    def is_last(self) -> bool:
        """To be asked when its signal is set to `timeout`: whether no attempt will follow."""
        if self.closed and self._late is None:
            return True  # somebody else saw that its deadline is over, and has ended it
        return self._too_late().cause is not Cause.RETRY

    def _too_late(self) -> Outcome:
        """What the run comes to, decided once: what was told of it stays true, whatever the jitter would say later."""
        if self._late is None:
            now = self.engine.now()
            self._late = self.limits.after(self.limits.timed_out(now), None, now, self.engine.chance)
        return self._late

    async def _call_job(self) -> Any:
        self._watch_the_time()
        try:
            text = self.engine.payloads.open(self.row.input)
        except StoreUnavailable as error:
            # Nothing has begun: somebody will be able to open it, here or elsewhere.
            self.refused_for_now(error)
            raise _NotNow from error
        self.branches.main = here()
        if self.row.is_finalize:
            args, kwargs = await finalize_arguments(self, text), dict[str, Any]()
        else:
            args, kwargs = self.job.signature.decode(text)
        if self.job.validate is not None:
            args, kwargs = await validated(self, args, kwargs)
        if self.job.signature.is_parent:
            return await Parent(self, lambda: self._call_function(args, kwargs)).outcome()
        return await self._call_function(args, kwargs)

    async def _call_function(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fn, signature = self.job.fn, self.job.signature
        if signature.is_async:
            return await (fn(Step(self), *args, **kwargs) if signature.takes_step else fn(*args, **kwargs))
        if signature.takes_step:
            args = (SyncStep(self), *args)
        if self.engine.options.inline:
            return fn(*args, **kwargs)

        def in_thread() -> Any:
            self.branches.main = here()
            return fn(*args, **kwargs)

        return await self.engine.threads.call(in_thread)

    async def _end(self, outcome: Outcome) -> None:
        self._ending_now, self._ender = True, here()
        try:
            ended = await self._write_end(outcome)
        except Unwind:
            return
        except TROUBLE as error:  # whoever executes the run next will write its end
            self.engine.hub.report(error, "run-completion", self.row.id)
            return
        self.engine.keeper.release(self)
        if ended.accepted:
            log_failure(self.row, outcome)
            self.worker.ended(self, outcome, ended)
        elif ended.status not in _WHY and not self.closed:
            word = "completing" if outcome.cause is Cause.COMPLETE else "recording the end of"
            context = "run-completion" if outcome.cause is Cause.COMPLETE else "run-failure"
            self.engine.hub.report(f"Lease lost before {word} run {self.row.id}", context, self.row.id)

    async def _write_end(self, outcome: Outcome) -> Ended:
        try:
            ended: Ended = await self.write(self._ending, outcome)
        except TROUBLE:
            raise
        except Exception as error:
            # The database refuses this very ending. A run must always be able to end.
            self.engine.hub.report(error, "run-completion", self.row.id)
            text = clean(f"The end of the run could not be saved: {error_text(error)}")
            ended = await self.write(self._ending, Outcome(Cause.FAIL, error=text, error_type="NotKept"))
        return ended

    def _ending(self, outcome: Outcome) -> list[Ticket[Any]]:
        transition = TABLE[outcome.cause]
        delay = _REST if outcome.cause is Cause.RELEASE else outcome.delay
        output, error = map(self.engine.payloads.seal_some, (outcome.output, outcome.error))
        # Whether its end is anything to others: to those of its key, to the run above it.
        keyed = self.row.concurrency_key is not None or self.row.parent_id is not None
        goes_on = outcome.cause in (Cause.SUSPEND, Cause.RELEASE) and self.limits.timeout is not None
        ending = Ending(
            self.lease, transition, output, error, outcome.error_type, delay, keyed, outcome.waiting_for,
            self._used if goes_on else 0, self.job.hold_key_while_waiting,
        )  # fmt: skip
        what = f"the end of run {self.row.id}"
        # Lines that are refused while it is on its way have to come with it: after the end nobody takes them.
        unless = None if self._notes is None else self._notes.refused
        return [
            *self.pending_notes(),
            Ticket("finish", ending, what=what, weight=len(outcome.output or ""), unless=unless),
        ]

    def ended_row(self, outcome: Outcome, ended: Ended) -> RunRow:
        """The row as it stands now: nobody but us could change it."""
        transition, steps, notes = TABLE[outcome.cause], self._steps, self._notes
        return self.row._replace(
            status=str(transition.target),
            lease_owner=None,
            lease_expires_at=None,
            completed_at=ended.at if transition.ends else None,
            updated_at=ended.at,
            attempt=self.row.attempt + transition.attempt,
            run_at=ended.at + outcome.delay if outcome.delay else self.row.run_at,
            output=outcome.output,
            error=None if outcome.error is None else marked(outcome.error),
            error_type=outcome.error_type,
            crashes=0 if steps and steps.moved_on else self.row.crashes,
            progress=(notes and notes.last_progress) or self.row.progress,
            completed_step_count=steps.completed if steps else 0,
            current_step_index=steps.last_position + 1 if steps else 0,
        )

    @property
    def compare_bytes(self) -> int | None:
        """Up to which length of text a value is compared with what comes back; None: always."""
        return None if self.engine.options.strict else COMPARED_BYTES

    def within_limit(self, text: str, what: str) -> str:
        """The text of a value, if it may be so long; otherwise `NotKept`."""
        limit = self.engine.options.max_output_bytes
        if len(text) > limit or (len(text) * 4 > limit and len(text.encode()) > limit):
            raise NotKept(f"larger than the limit of {limit} bytes (max_output_bytes)", what)
        return text

    # -- suspending --------------------------------------------------------------------------------------------

    def suspend(self, waiting_for: str) -> None:
        """Give the lease back until one of its waits is over. In the worker's loop."""
        self.leaving = True
        self._left = self.worker.spawn(self._suspended(waiting_for))

    async def _suspended(self, waiting_for: str) -> None:
        self._ending_now, self._ender = True, here()
        try:
            ended = await self._write_end(Outcome(Cause.SUSPEND, waiting_for=waiting_for))
            self.engine.keeper.release(self)
            self.worker.suspended(self, ended, waiting_for)
        except Unwind:
            pass
        except TROUBLE as error:  # its lease will run out, and its waits are saved
            self.engine.hub.report(error, "suspension", self.row.id)
        finally:
            self._close()
            if self.waits_begun is not None:
                self.waits_begun.let_go()
            if self._steps is not None:
                self._steps.cancel_leftovers(but=None)
            if self.job.signature.is_async and self.task is not None:
                self.task.cancel()
            self._after_grace()

    # -- stopping ----------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing that is done in the run's name counts any more."""
        return self.closed or self.returned

    def check(self) -> None:
        """Unwind if this execution is over."""
        if not self.closed and self.engine.clock.steady() >= self.deadline:
            self.lease_lost(None)
            self._close()
        # After the return, or when the time is over, there is only our own end.
        if self.closed or ((self.returned or self.timed_out or self.leaving) and here() is not self._ender):
            raise Unwind

    def lease_renewed(self) -> None:
        hub = self.engine.hub
        if hub.hears("run:lease-renewed"):
            until = self.engine.now() + round((self.deadline - self.engine.clock.steady()) * 1_000_000)
            hub.tell("run:lease-renewed", self.row, lease_owner=self.lease.owner, lease_expires_at=to_datetime(until))

    def is_left(self) -> bool:
        return self.worker.loop.is_closed()

    def lease_lost(self, status: str | None) -> None:
        """Another owner, an end written by somebody else, or no time left. Any thread."""
        if self._ending_now:
            return  # what is lost is the lease that our own end has given up; the answer to that will tell
        if status is None and not self.closed and not self.is_left() and self.engine.clock.steady() < self.deadline:
            # Refused, and nobody said why: look. Until then nothing new may begin.
            self._close()
            self.worker.in_loop(self._find_out)
        else:
            self.abort(_WHY.get(status, "lease-lost"))

    def _find_out(self) -> None:
        async def look() -> None:
            reply: Reply[dict[Lease, str]] = Reply("lost_leases")
            self.engine.reader.ask(lambda c: self.engine.store.lost_leases(c, [self.lease]), reply)
            try:
                status = (await reply).get(self.lease)
            except Exception:
                status = None
            self.abort(_WHY.get(status, "lease-lost"))

        self.worker.spawn(look())

    def abort(self, reason: str) -> None:
        """Close, tell the user's code why, and free the slot after the grace if it is still at it. Any thread."""
        self._close()
        if self.signal.set(reason):
            if reason == "lease-lost":
                self.engine.hub.report(
                    f"Lease renewal lost ownership for run {self.row.id}", "lease-renewal", self.row.id
                )
            self.worker.in_loop(self._after_grace)

    def hand_back(self) -> None:
        """The worker stops, and this run only waits: it is pending again, with what is saved. Any thread."""
        self.abort("shutdown")
        self.worker.in_loop(lambda: self.worker.hand_back(self.lease))

    def _close(self) -> None:
        self.closed = True
        if self.waits_begun is not None:
            self.worker.in_loop(self.waits_begun.let_go)
        self.engine.keeper.release(self)

    def _after_grace(self) -> None:
        grace = self.engine.options.cancel_grace
        self.engine.clock.call_later(self.worker.loop, grace, self._interrupt)

    def _interrupt(self) -> None:
        """The grace is over. What waits outside a step is interrupted; a body in flight is left, without its slot.

        Again after each further grace, for code that swallows the interruption or waits again after its step.
        """
        if self.returned or self.task is None or self.task.done() or self.engine.worker is not self.worker:
            return
        waits = self.job.signature.is_async and not self.bodies
        if self._interrupted or not waits:
            self.worker.abandon(self)
        if waits:
            self._interrupted = True
            self.task.cancel()
        if self.job.signature.is_async:
            self._after_grace()

    # -- writing -----------------------------------------------------------------------------------------------

    async def write(self, make: Callable[..., Sequence[Ticket[Any]]], *what: Any) -> Any:
        """The answer to the last of the tickets that `make(*what)` gives.

        Tried for as long as it takes, or until the lease is over: what is done must not be lost to a locked file.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                if not (tickets := make(*what)):
                    return None
                self.engine.committer.join(*tickets, pass_always=True)
                return await tickets[-1]
            except StoreUnavailable as error:
                self.refused_for_now(error)
            await self.worker.pause(pause)
            pause = longer(pause)

    def write_sync(self, make: Callable[..., Sequence[Ticket[Any]]], *what: Any) -> Any:
        """The same, blocking."""
        pause = FIRST_PAUSE
        while True:
            try:
                if not (tickets := make(*what)):
                    return None
                self.engine.committer.join(*tickets, pass_always=True, at_once=True)
                return tickets[-1].wait()
            except StoreUnavailable as error:
                self.refused_for_now(error)
            self.signal.wait(pause)
            pause = longer(pause)

    def refused_for_now(self, error: StoreUnavailable) -> None:
        """The database is in trouble: say so, and go on trying, unless this execution is over."""
        self.engine.hub.report(error, "checkpoint", self.row.id)
        self.check()

    def trigger_key(self, job_name: str, input_text: str) -> str | None:
        """The idempotency key of a trigger inside this run. See `Branches`."""
        return self.branches.trigger_key(job_name, input_text)
