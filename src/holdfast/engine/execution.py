"""One execution of one leased run: the user's function, its steps, and how it ends.

An execution trusts its own state, never the exception that comes out of the user's code. Once it is *closed* (the run
was cancelled, the lease is lost, the worker gives it back) nothing that it still does counts: every later `step.*`
raises `Unwind`, and whatever the function returns, raises or swallows is ignored.

Long because a step is one story: what replays, what runs, what is saved, and what a lost race means.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import to_json

from ..basis.errors import (
    AmbiguousStep,
    CancelRun,
    DefinitionError,
    NonRetryable,
    NotKept,
    Outdated,
    StepChanged,
    StoreUnavailable,
    TimedOut,
    ValidationError,
)
from ..basis.failures import Failure, keep_failure, load_failure
from ..basis.text import LONGEST, clean, error_text
from ..basis.values import shape_of
from ..commit.reply import Reply
from ..commit.ticket import Ticket
from ..model.run import RunRow, RunStatus
from ..model.step import LogRow, ProgressRow, StepKey, StepRow
from ..rules.lifecycle import TABLE, Cause
from ..store.base import STEP_PAGE, Ended, Ending, Lease, LogSave, ProgressSave, StepSave
from .calls import Callee, callee, fingerprint
from .context import Step, SyncStep, current, current_step
from .history import History
from .registry import JobDefinition, checked_name
from .signals import AbortSignal

if TYPE_CHECKING:
    from .worker import Worker

#: After a write that the database refused for now: seconds until the next try, doubled up to the last.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Unwind(asyncio.CancelledError):
    """This execution is over; leave.

    A BaseException, so that `except Exception` can't swallow it, and a CancelledError, so that a task which ends by it
    counts as cancelled and not as one whose exception nobody looked at.
    """


class Outcome(NamedTuple):
    """How the user's function ended, in the words of the lifecycle."""

    cause: Cause
    output: str | None = None
    error: str | None = None
    error_type: str | None = None


class _Opened(NamedTuple):
    """A step that is about to be called."""

    key: StepKey
    position: int
    fn: Callable[..., Any]
    known: Callee
    fingerprint: str
    started_at: int


class Execution:
    """The holder of one lease."""

    def __init__(self, worker: Worker, job: JobDefinition, row: RunRow, steps: list[StepRow], asked: float) -> None:
        self.worker = worker
        self.engine = worker.engine
        self.job = job
        self.row = row
        self.lease = Lease(row.id, row.generation, row.lease_owner or "")
        self.deadline = asked + self.engine.options.lease
        self.signal = AbortSignal()
        self.shutdown = worker.shutdown
        self.closed = False
        self.in_flight = 0
        self.task: asyncio.Task[None] | None = None
        self.slot_free = False
        self.abandoned = False
        self._history = History(steps)
        self._page: Reply[list[StepRow]] | None = None
        self._position = 0
        self._completed = 0
        self._last_saved = -1
        self._occurrences: dict[str, int] = {}
        self._branches: dict[str, Any] = {}
        self._names_in_flight: set[str] = set()
        self._triggered: dict[str, int] = {}
        self._moved_on = row.crashes == 0
        self._ending_now = False
        self._reported_change = False
        self._progress: ProgressRow | None = None
        self._progress_sent: ProgressRow | None = None
        self._progress_ticket: Ticket[None] | None = None

    # -- the run -----------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Execute the run and write how it ended. Never raises, but for what ends the whole process."""
        current.set(self)
        hub = self.engine.hub
        if hub.hears("run:leased"):
            hub.tell("run:leased", self.row, lease_owner=self.lease.owner, lease_expires_at=self.row.lease_expires_at)
        try:
            outcome = await self._outcome()
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
        finally:
            self._close()
            self.worker.finished(self)

    async def _outcome(self) -> Outcome | None:
        """What the run comes to; None if that is no longer ours to say."""
        try:
            try:
                value = await self._call_job()
            finally:
                self._cancel_branches()
            if self.closed:
                return None
            kept = self.job.signature.output.keep(value, "Invalid output")
            return Outcome(Cause.COMPLETE, self._within_limit(kept.text, "Invalid output"))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self.closed:
                return None
            # Not isinstance: it asks the error for its `__class__`, which may be a property that raises.
            cancelled = issubclass(type(error), asyncio.CancelledError)
            if cancelled and self.task is not None and self.task.cancelling():
                # Somebody outside cancels this process's work: that is no failure of the run.
                return Outcome(Cause.RELEASE)
            return _failure(error)

    async def _call_job(self) -> Any:
        args, kwargs = self.job.signature.decode(self.row.input)
        fn, signature = self.job.fn, self.job.signature
        if signature.is_async:
            return await (fn(Step(self), *args, **kwargs) if signature.takes_step else fn(*args, **kwargs))
        if signature.takes_step:
            args = (SyncStep(self), *args)
        if self.engine.options.inline:
            return fn(*args, **kwargs)
        return await self.engine.threads.call(fn, *args, **kwargs)

    async def _end(self, outcome: Outcome) -> None:
        self.flush_progress()
        self._ending_now = True
        try:
            ended = await self._write(lambda: self._ending(outcome))
        except Unwind:
            return
        except Exception as error:
            # The database refuses this very ending. A run must always be able to end.
            self.engine.hub.report(error, "run-completion", self.row.id)
            text = clean(f"The end of the run could not be saved: {error_text(error)}")
            ended = await self._write(lambda: self._ending(Outcome(Cause.FAIL, error=text, error_type="NotKept")))
        self.engine.keeper.release(self)
        if ended.accepted:
            self.worker.ended(self._ended_row(outcome, ended))
        elif ended.status != RunStatus.CANCELLED and not self.closed:
            word = "completing" if outcome.cause is Cause.COMPLETE else "recording the end of"
            context = "run-completion" if outcome.cause is Cause.COMPLETE else "run-failure"
            self.engine.hub.report(f"Lease lost before {word} run {self.row.id}", context, self.row.id)

    def _ending(self, outcome: Outcome) -> Ticket[Ended]:
        ending = Ending(self.lease, TABLE[outcome.cause], outcome.output, outcome.error, outcome.error_type)
        return Ticket("finish", ending, what=f"the end of run {self.row.id}", weight=len(outcome.output or ""))

    def _ended_row(self, outcome: Outcome, ended: Ended) -> RunRow:
        """The row as it stands now: nobody but us could change it."""
        transition = TABLE[outcome.cause]
        return self.row._replace(
            status=str(transition.target),
            lease_owner=None,
            lease_expires_at=None,
            completed_at=ended.at if transition.ends else None,
            updated_at=ended.at,
            output=outcome.output,
            error=outcome.error,
            error_type=outcome.error_type,
            crashes=0 if self._moved_on else self.row.crashes,
            progress=self._progress.progress if self._progress else self.row.progress,
            completed_step_count=self._completed,
            current_step_index=self._last_saved + 1,
        )

    def _within_limit(self, text: str, what: str) -> str:
        limit = self.engine.options.max_output_bytes
        if len(text) > limit or (len(text) * 4 > limit and len(text.encode()) > limit):
            raise NotKept(f"larger than the limit of {limit} bytes (max_output_bytes)", what)
        return text

    # -- stopping ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Unwind if this execution is over."""
        if not self.closed and self.engine.clock.steady() >= self.deadline:
            self.lease_lost(None)
            self._close()
        if self.closed:
            raise Unwind

    def lease_renewed(self) -> None:
        hub = self.engine.hub
        if hub.hears("run:lease-renewed"):
            hub.tell("run:lease-renewed", self.row, lease_owner=self.lease.owner)

    def lease_lost(self, status: str | None) -> None:
        """Another owner, an end written by somebody else, or no time left. Any thread."""
        if self._ending_now:
            return  # what is lost is the lease that our own end has given up; the answer to that will tell
        if status is None and not self.closed and self.engine.clock.steady() < self.deadline:
            # Refused, and nobody said why: look. Until then nothing new may begin.
            self._close()
            self.worker.in_loop(self._find_out)
        else:
            self.abort("cancelled" if status == RunStatus.CANCELLED else "lease-lost")

    def _find_out(self) -> None:
        async def look() -> None:
            reply: Reply[dict[Lease, str]] = Reply("lost_leases")
            self.engine.reader.ask(lambda c: self.engine.store.lost_leases(c, [self.lease]), reply)
            try:
                status = (await reply).get(self.lease)
            except Exception:
                status = None
            self.abort("cancelled" if status == RunStatus.CANCELLED else "lease-lost")

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

    def _close(self) -> None:
        self.closed = True
        self.engine.keeper.release(self)

    def _after_grace(self) -> None:
        grace = self.engine.options.cancel_grace
        self.engine.clock.call_later(self.worker.loop, grace, self._interrupt)

    def _interrupt(self) -> None:
        """The grace is over. What waits outside a step is interrupted; a body in flight is left, without its slot."""
        if self.task is None or self.task.done() or self.slot_free:
            return
        if self.job.signature.is_async and not self.in_flight:
            self.task.cancel()
        else:
            self.worker.abandon(self)

    def _cancel_branches(self) -> None:
        """Tasks that used this run's steps and were left behind."""
        for branch in self._branches.values():
            if isinstance(branch, asyncio.Task) and branch is not self.task and not branch.done():
                branch.cancel()

    # -- steps: what both colours share ------------------------------------------------------------------------

    def caller(self) -> Any:
        """The branch that is calling: a task of the event loop, or a thread."""
        try:
            return asyncio.current_task() or threading.current_thread()
        except RuntimeError:
            return threading.current_thread()

    def _key(self, name: str, caller: Any) -> StepKey:
        """Name and occurrence. Occurrences are counted within one branch: across branches their order is chance, and
        a replay would give one branch the values of another."""
        checked_name_of_step(name)
        owner = self._branches.setdefault(name, caller)
        if owner is not caller or name in self._names_in_flight:
            raise AmbiguousStep(
                f"Step {name!r} of run {self.row.id} is used by two branches at once, so a replay could not tell their "
                'values apart. Give each its own name, e.g. f"fetch-{id}" or @app.step(key=…).'
            )
        occurrence = self._occurrences.get(name, 0)
        self._occurrences[name] = occurrence + 1
        return StepKey(name, occurrence)

    def _replay(self, saved: StepRow, opened: _Opened) -> Any:
        if saved.fingerprint is not None and saved.fingerprint != opened.fingerprint:
            self._changed(opened.key, saved.fingerprint, opened.fingerprint)
        if saved.status == "failed":
            raise load_failure(Failure.from_json(saved.error or ""))
        return opened.known.shape.load(saved.output or "", f"step {str(opened.key)!r} of run {self.row.id}")

    def _changed(self, key: StepKey, before: str, after: str) -> None:
        text = (
            f"Step {str(key)!r} of run {self.row.id} was saved by {before} and is now called as {after}. Its saved "
            "value is used; rename the step if it should run again."
        )
        if self.engine.options.strict:
            raise StepChanged(text)
        if not self._reported_change:
            self._reported_change = True
            self.engine.hub.report(text, "step-changed", self.row.id)

    def _counts(self, saved: StepRow | None) -> bool:
        """A success counts for ever, a failure within its attempt: a retry of the run is there to try it again."""
        return saved is not None and (saved.status == "completed" or saved.attempt == self.row.attempt)

    def _open(self, key: StepKey, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Opened:
        known = callee(fn)
        position, self._position = self._position, self._position + 1
        mark = fingerprint(known.name, args, kwargs)
        return _Opened(key, position, fn, known, mark, self.engine.clock.now())

    def _begin(self, opened: _Opened, kwargs: dict[str, Any]) -> dict[str, Any]:
        self.check()
        hub = self.engine.hub
        if hub.hears("step:start"):
            hub.tell("step:start", self.row, step_name=opened.key.name, step_index=opened.position)
        self.in_flight += 1
        self._names_in_flight.add(opened.key.name)
        if opened.known.wants_signal and "signal" not in kwargs:
            return {**kwargs, "signal": self.signal}
        return kwargs

    def _leave(self, opened: _Opened) -> None:
        self.in_flight -= 1
        self._names_in_flight.discard(opened.key.name)

    def _succeeded(self, opened: _Opened, value: Any) -> tuple[StepRow, Any, BaseException | None]:
        what = f"step {str(opened.key)!r}"
        try:
            kept = opened.known.shape.keep(value, what)
            return self._checkpoint(opened, "completed", self._within_limit(kept.text, what), None), kept.value, None
        except NotKept as error:
            # Found after the effect: the failure is saved, so that no replay repeats the effect.
            return self._failed(opened, error)

    def _failed(self, opened: _Opened, error: Exception) -> tuple[StepRow, Any, BaseException | None]:
        failure, seen = keep_failure(error)
        if seen is not error:
            seen.with_traceback(error.__traceback__)
        return self._checkpoint(opened, "failed", None, failure.to_json()), None, seen

    def _checkpoint(self, opened: _Opened, status: str, output: str | None, error: str | None) -> StepRow:
        return StepRow(
            self.row.id, opened.key.name, opened.key.occurrence, opened.position, status, self.row.attempt,
            self.row.generation, opened.fingerprint, output, error, opened.started_at, self.engine.clock.now(),
        )  # fmt: skip

    def _saving(self, row: StepRow) -> Ticket[bool]:
        self.flush_progress()
        save = StepSave(self.lease.owner, row, not self._moved_on)
        return Ticket("save_steps", save, what=f"step {row.name!r} of run {row.run_id}", weight=len(row.output or ""))

    def _saved(self, row: StepRow, accepted: bool, error: BaseException | None) -> None:
        if not accepted:
            self.lease_lost(None)
            raise Unwind
        self._moved_on = True
        self._completed += error is None
        self._last_saved = max(self._last_saved, row.position)
        hub = self.engine.hub
        if error is None and hub.hears("step:complete"):
            hub.tell(
                "step:complete",
                self.row,
                step_name=row.name,
                step_index=row.position,
                output=row.output,
                duration=(row.completed_at - row.started_at) / 1e6,
            )
        elif error is not None and hub.hears("step:fail"):
            hub.tell("step:fail", self.row, step_name=row.name, step_index=row.position, error=error_text(error))

    # -- steps: async ------------------------------------------------------------------------------------------

    async def run_step(
        self, name: str, caller: Any, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A step of an async job."""
        self.check()
        key = self._key(name, caller)
        while (saved := self._history.take(key)) is None and self._history.more:
            self._turn_page(await self._next_page())
        opened = self._open(key, fn, args, kwargs)
        if saved is not None and self._counts(saved):
            return self._replay(saved, opened)
        kwargs = self._begin(opened, kwargs)
        token = current_step.set(str(key))
        try:
            value = await self._call(opened.known, fn, args, kwargs)
        except Exception as error:
            self.check()
            row, value, raised = self._failed(opened, error)
        else:
            self.check()
            row, value, raised = self._succeeded(opened, value)
        finally:
            current_step.reset(token)
            self._leave(opened)
        self._names_in_flight.add(name)
        try:
            accepted = await self._write(lambda: self._saving(row))
        finally:
            self._names_in_flight.discard(name)
        self._saved(row, accepted, raised)
        if raised is not None:
            raise raised
        return value

    async def _call(self, known: Callee, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if known.is_async:
            return await fn(*args, **kwargs)
        if self.engine.options.inline:
            value = fn(*args, **kwargs)
        else:
            value = await self.engine.threads.call(fn, *args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    async def _write(self, make: Callable[[], Ticket[Any]]) -> Any:
        """Write for as long as it takes, or until the lease is over: what is done must not be lost to a locked file."""
        pause = _FIRST_PAUSE
        while True:
            ticket = make()
            self.engine.committer.join(ticket, pass_always=True)
            try:
                return await ticket
            except StoreUnavailable as error:
                self._refused_for_now(error)
            await self.worker.pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _refused_for_now(self, error: StoreUnavailable) -> None:
        self.engine.hub.report(error, "checkpoint", self.row.id)
        self.check()

    async def _next_page(self) -> list[StepRow]:
        if self._page is None:
            self._page = self._ask_page()
        return await self._page

    def _ask_page(self) -> Reply[list[StepRow]]:
        first = self._history.next_position
        reply: Reply[list[StepRow]] = Reply("find_steps")
        self.engine.reader.ask(
            lambda c: self.engine.store.find_steps(c, self.row.id, first=first, until=first + STEP_PAGE), reply
        )
        return reply

    def _turn_page(self, rows: list[StepRow]) -> None:
        # Two branches may have waited for the same page.
        if self._page is not None:
            self._page = None
            self._history.add(rows)

    # -- steps: sync -------------------------------------------------------------------------------------------

    def run_step_sync(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step of a sync job, in its thread."""
        if asyncio._get_running_loop() is not None and not self.engine.options.inline:
            raise DefinitionError(
                f"Step {name!r}: a sync step called in an event loop would block it. Use `await step.run(name, fn)`."
            )
        self.check()
        key = self._key(name, self.caller())
        while (saved := self._history.take(key)) is None and self._history.more:
            self._turn_page(self._ask_page_once().wait())
        opened = self._open(key, fn, args, kwargs)
        if saved is not None and self._counts(saved):
            return self._replay(saved, opened)
        kwargs = self._begin(opened, kwargs)
        token = current_step.set(str(key))
        try:
            value = self._call_sync(fn, args, kwargs)
        except Exception as error:
            self.check()
            row, value, raised = self._failed(opened, error)
        else:
            self.check()
            row, value, raised = self._succeeded(opened, value)
        finally:
            current_step.reset(token)
            self._leave(opened)
        self._saved(row, self._write_sync(lambda: self._saving(row)), raised)
        if raised is not None:
            raise raised
        return value

    def _ask_page_once(self) -> Reply[list[StepRow]]:
        if self._page is None:
            self._page = self._ask_page()
        return self._page

    def _call_sync(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = fn(*args, **kwargs)
        if not inspect.isawaitable(value):
            return value
        if self.engine.options.inline:
            if inspect.iscoroutine(value):
                value.close()
            raise DefinitionError("An async step in a sync job needs threads; make the job async.")
        return asyncio.run_coroutine_threadsafe(_awaited(value), self.worker.loop).result()

    def _write_sync(self, make: Callable[[], Ticket[Any]]) -> Any:
        pause = _FIRST_PAUSE
        while True:
            ticket = make()
            self.engine.committer.join(ticket, pass_always=True, at_once=True)
            try:
                return ticket.wait()
            except StoreUnavailable as error:
                self._refused_for_now(error)
            self.signal.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    # -- progress, logs, triggers ------------------------------------------------------------------------------

    def progress(self, current: float, total: float | None, message: str | None) -> None:
        """Keep the last one; at most one is on its way at a time."""
        if self.closed:
            return
        told = _progress_text(current, total, message)
        self._progress = ProgressRow(self.row.id, self.row.generation, told)
        hub = self.engine.hub
        if hub.hears("run:progress"):
            hub.tell("run:progress", self.row, progress={"current": current} | _given(total=total, message=message))
        if self._progress_ticket is None or self._progress_ticket.done():
            self.flush_progress()

    def flush_progress(self) -> None:
        """Send the last progress before what follows: after the end of the run it would be refused."""
        if self._progress is self._progress_sent or self._progress is None:
            return
        self._progress_sent = self._progress
        ticket: Ticket[None] = Ticket(
            "save_progress", ProgressSave(self.lease.owner, self._progress), then=self._progress_saved
        )
        ticket._asked = True  # progress may be lost; nobody needs to hear of it
        self._progress_ticket = ticket
        self.engine.committer.join(ticket, pass_always=True)

    def _progress_saved(self, _: None) -> None:
        if not self.closed and not self.slot_free:
            self.flush_progress()

    def log(self, level: str, message: str, data: dict[str, Any]) -> None:
        """Append a line. Cleaned, never refused: a log line must not fail a run."""
        if self.closed:
            return
        text = clean(message)
        row = LogRow(
            0,
            self.row.id,
            self.row.generation,
            current_step.get(),
            level,
            text,
            _log_data(data),
            self.engine.clock.now(),
        )
        ticket: Ticket[None] = Ticket("save_logs", LogSave(self.lease.owner, row), weight=len(text))
        self.engine.committer.join(ticket, pass_always=True)
        hub = self.engine.hub
        if hub.hears("log:write"):
            hub.tell("log:write", self.row, level=level, message=text, data=data, step_name=row.step_name)

    def trigger_key(self, job_name: str, input_text: str) -> str | None:
        """The idempotency key of a trigger in the run's own code, so that a replay doesn't trigger twice.

        None inside a step: there the step's checkpoint is what keeps it from happening again. In the run's main branch
        triggers are numbered; in another one, whose place among its siblings is chance, they go by what is triggered.
        """
        if current_step.get() is not None:
            return None
        caller = self.caller()
        main = caller is self.task if self.job.signature.is_async else True
        branch = "" if main else f"{job_name}-{fingerprint(job_name, (input_text,), {})}"
        number = self._triggered.get(branch, 0)
        self._triggered[branch] = number + 1
        return f"{self.row.id}:{branch}:{number}"


def checked_name_of_step(name: object) -> None:
    """`ValidationError` unless it may be the name of a step."""
    if type(name) is str and name.isascii() and name.isprintable() and 0 < len(name) <= 255:
        return
    if isinstance(name, str) and 0 < len(name) <= 255 and name.isprintable():
        return
    checked_name(name, "step name")


def _failure(error: BaseException) -> Outcome:
    """What an exception out of the user's function means."""
    try:
        return _meant(error)
    except Exception:  # its every attribute may be a hook that raises; its run must end all the same
        name = clean(type(error).__name__, 255)
        return Outcome(Cause.FAIL, error=_message(error) or name, error_type=name)


def _meant(error: BaseException) -> Outcome:
    if isinstance(error, CancelRun):
        return Outcome(Cause.CANCEL_ITSELF, error=_message(error) or None)
    if isinstance(error, TimedOut):
        return Outcome(Cause.TIME_OUT, error=_message(error) or "The run timed out", error_type="TimedOut")
    kind = error.kind if isinstance(error, NonRetryable) and error.kind else type(error).__qualname__
    if isinstance(error, NotKept | Outdated | ValidationError):
        return Outcome(Cause.FAIL, error=_message(error), error_type=clean(kind, 255))
    return Outcome(Cause.FAIL, error=_message(error) or kind, error_type=clean(kind, 255))


def _message(error: BaseException) -> str:
    return clean(error)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _progress_text(current: Any, total: Any, message: Any) -> str:
    if type(current) not in (int, float) or (total is not None and type(total) not in (int, float)):
        raise ValidationError("progress: current and total must be numbers.")
    for number in (current, total or 0):
        # Beyond 2**53 JavaScript reads another number, and far beyond nobody writes it any more.
        if not -(2.0**53) <= number <= 2.0**53:
            raise ValidationError("progress: current and total must be finite, and at most 2**53.")
    told = {"current": current} | _given(total=total, message=None if message is None else clean(message, 1024))
    return to_json(told).decode()


def _log_data(data: dict[str, Any]) -> str | None:
    if not data:
        return None
    try:
        text = shape_of().keep(data, "log").text
        if len(text) <= LONGEST:
            return text
    except Exception:
        pass
    return to_json({clean(key, 200): clean(_shown(value), 4096) for key, value in [*data.items()][:100]}).decode()


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


async def _awaited(value: Any) -> Any:
    return await value
