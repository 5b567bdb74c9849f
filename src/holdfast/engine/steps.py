"""The steps of one execution: what is replayed, what runs, what is saved, and what a lost race means.

Long because that is one story; async and sync jobs tell it in the same order, one awaiting and one blocking.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..basis.errors import (
    AmbiguousStep,
    DefinitionError,
    NotKept,
    Outdated,
    SchemaError,
    StepChanged,
    StoreClosed,
    StoreUnavailable,
)
from ..basis.failures import Failure, failed_text, keep_failure, load_failure
from ..basis.text import clean, error_text
from ..basis.values import plain
from ..commit.reply import Reply
from ..commit.ticket import Ticket
from ..model.step import StepKey, StepRow
from ..store.base import STEP_PAGE, StepSave
from .attempts import Attempt, Attempts, current_attempt
from .branches import Place, here
from .calls import Callee, callee, fingerprint
from .context import PLAIN, StepOptions, Unwind, current_step, current_try, refuse_inside
from .history import History
from .timed import Timed
from .transactions import Transaction, refuse_async

if TYPE_CHECKING:
    from .execution import Execution


#: The database itself: it says nothing about what was to be saved.
TROUBLE = (StoreUnavailable, StoreClosed, SchemaError)

#: After something that the database refused for now: seconds until the next try, doubled up to the last.
FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


def longer(pause: float) -> float:
    """How long to wait after a pause that was too short."""
    return min(pause * 2, _LONGEST_PAUSE)


_Tokens: TypeAlias = "tuple[contextvars.Token[str | None], contextvars.Token[tuple[str, int] | None] | None]"


class _Opened(NamedTuple):
    """A step that is about to be called."""

    key: StepKey
    position: int
    fn: Callable[..., Any]
    known: Callee
    fingerprint: str
    started_at: int
    how: StepOptions


class _Result(NamedTuple):
    """What a step came to: the row to save, and what the job gets, as it will get it on replay."""

    row: StepRow
    value: Any
    error: Exception | None
    raised: Exception | None = None
    """The error itself, which says whether another try may help."""
    is_saved: bool = False
    """The row is written: it was committed together with rows of the user's."""

    def give(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


def no_function() -> None:
    """What a step calls that only waits."""


class Steps:
    """Calls the steps of one execution, or gives what earlier ones have saved."""

    def __init__(self, execution: Execution, saved: list[StepRow]) -> None:
        self._execution = execution
        self._engine = execution.engine
        self._run = execution.row
        self.completed: int = 0
        self.last_position: int = -1
        self.moved_on: bool = self._run.crashes == 0
        self.fatal: Exception | None = None
        """Why the run must fail, whatever its code makes of it: its history is not reliable."""
        self.bodies: dict[StepKey, Any] = {}
        """Steps whose functions are being called, each with the branch that calls."""
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._history = History(saved)
        self._page: tuple[int, Reply[list[StepRow]]] | None = None
        self._positions = itertools.count()
        self._reported_change = False
        self._attempts = Attempts(execution)
        self._riders = execution.engine.committer.riders
        self._counting = threading.Lock()

    # -- steps: what both colours share ------------------------------------------------------------------------

    def _enter(self, place: Place) -> Any:
        """The step begins, in this branch."""
        self._execution.check()
        if (attempt := current_attempt.get()) is not None and attempt.told:
            raise Unwind  # the step around this one has failed: it took too long
        try:
            self._execution.branches.enter(place)
        except AmbiguousStep as error:
            raise self._must_fail(error) from None
        branch = here()
        if branch is not self._execution.task and isinstance(branch, asyncio.Task):
            self._tasks.add(branch)
        return branch

    def _must_fail(self, error: Exception) -> Exception:
        """The error, which ends the run as failed also if the job's code swallows it: its history is not reliable."""
        self.fatal = self.fatal or error
        return error

    def _replay(self, saved: StepRow, opened: _Opened) -> Any:
        """What the saved step came to: the value, or the error raised."""
        self._execution.said_before()
        what = f"step {str(opened.key)!r} of run {self._run.id}"
        if saved.fingerprint is not None and saved.fingerprint != opened.fingerprint:
            self._changed(what, saved.fingerprint, opened.fingerprint)
        try:
            if saved.status != "failed":
                return opened.known.shape.load(saved.output or "", what)
            failure = load_failure(Failure.from_json(saved.error or ""))
        except Outdated as error:
            raise self._must_fail(error) from None
        raise failure

    def _unsealed(self, saved: StepRow | None) -> StepRow | None:
        if saved is None:
            return None
        opens = self._engine.payloads.open_some
        try:
            return saved._replace(output=opens(saved.output), error=opens(saved.error))
        except Outdated as error:
            raise self._must_fail(error) from None

    def _changed(self, what: str, before: str, after: str) -> None:
        text = (
            f"{what[0].upper()}{what[1:]} was saved by {before} and is now called as {after}. Its saved value is used; "
            "rename the step if it should run again."
        )
        if self._engine.options.strict:
            raise self._must_fail(StepChanged(text))
        if not self._reported_change:
            self._reported_change = True
            self._engine.hub.report(text, "step-changed", self._run.id)

    def _counts(self, saved: StepRow) -> bool:
        """A success counts for ever, a failure within its attempt: a retry of the run is there to try it again."""
        return saved.status == "completed" or saved.attempt == self._run.attempt

    def _open(
        self, key: StepKey, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], how: StepOptions
    ) -> _Opened:
        known = callee(fn)
        if how.transaction:
            refuse_async(key, known)
        mark = fingerprint(known.name, args, kwargs)
        return _Opened(key, next(self._positions), fn, known, mark, self._engine.clock.now(), how)

    def go_behind(self, saved: StepRow) -> None:
        """Steps that are opened from now on come after this one."""
        self._positions = itertools.count(saved.position + 1)

    def _begin(self, opened: _Opened, *, is_new: bool = True) -> Attempt:
        """Its first try here. Of a wait only its row tells whether it is new."""
        if is_new:
            self._execution.goes_on()
        hub = self._engine.hub
        if hub.hears("step:start", self._run.id):
            hub.tell("step:start", self._run, step_name=opened.key.name, step_index=opened.position)
        return Attempt(self._execution, opened.key, opened.position, 0, opened.started_at)

    def _next(self, opened: _Opened, attempt: Attempt) -> Attempt:
        self._execution.check()
        since = self._engine.clock.now()
        return Attempt(self._execution, opened.key, opened.position, attempt.number + 1, since)

    def _enter_body(self, attempt: Attempt, branch: Any) -> _Tokens:
        self.bodies[attempt.key] = branch
        self._riders[attempt] = None
        name = str(attempt.key)
        return current_step.set(name), current_try.set((name, attempt.number)) if attempt.number else None

    def _leave(self, place: Place) -> None:
        """The step is over: perhaps all that is left is waiting."""
        execution = self._execution
        execution.branches.leave(place)
        if (waits := execution.waits_begun) is not None:
            execution.worker.in_loop(waits.consider)

    @property
    def has_tasks(self) -> bool:
        """Whether other branches than the main one have used steps and are not over."""
        return any(not task.done() for task in self._tasks)

    def _leave_body(self, attempt: Attempt, tokens: _Tokens) -> None:
        current_step.reset(tokens[0])
        if tokens[1] is not None:
            current_try.reset(tokens[1])
        self._riders.pop(attempt, None)
        del self.bodies[attempt.key]

    def _with_signal(self, opened: _Opened, kwargs: dict[str, Any]) -> dict[str, Any]:
        if opened.known.wants_signal and "signal" not in kwargs:
            return {**kwargs, "signal": self._execution.signal}
        return kwargs

    def _timed(self, opened: _Opened, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Timed:
        assert opened.how.timeout is not None
        return Timed(self._execution, attempt, opened.how.timeout, opened.known, opened.fn, args, kwargs)

    def _another(self, opened: _Opened, attempt: Attempt, result: _Result) -> int | None:
        """Microseconds from the failure to the next try; None if this one counts. Says so in the log."""
        error = result.raised
        if error is None or (delay := self._attempts.delay(opened.how, attempt, error)) is None:
            return None
        most = 0 if opened.how.retry is None else opened.how.retry.max_retries + 1
        token = current_step.set(str(opened.key))
        text = f"try {attempt.number + 1} of {most} failed, again in {delay / 1e6:g} s: {failed_text(error)}"
        self._execution.notes.log("warning", text, {})
        current_step.reset(token)
        return delay

    def _saving_try(self, attempt: Attempt, result: _Result) -> list[Ticket[Any]]:
        ended = attempt.ended(result.row.completed_at, result.raised)
        return [*self._execution.pending_notes(), ended]

    def _still_counts(self, opened: _Opened) -> None:
        """Unwind if what the body came to is of no use any more."""
        try:
            self._execution.check()
        except Unwind:
            self._dropped(opened.key.name, opened.position)
            raise

    def _dropped(self, name: str, position: int) -> None:
        """What the body came to is of no use; if that is because the run was cancelled, say so once it is known."""

        def tell(reason: str) -> None:
            hub = self._engine.hub
            if reason == "cancelled" and hub.hears("step:cancel", self._run.id):
                hub.tell("step:cancel", self._run, step_name=name, step_index=position)

        self._execution.signal.on_abort(tell)

    def _succeeded(self, opened: _Opened, value: Any) -> _Result:
        self._still_counts(opened)
        what = f"step {str(opened.key)!r}"
        try:
            kept = opened.known.shape.keep(value, what, compare_bytes=self._execution.compare_bytes)
            text = self._execution.within_limit(kept.text, what)
        except Exception as error:
            # Found after the effect: the failure is saved, so that no replay repeats the effect.
            return self._failed(opened, error)
        return _Result(self._checkpoint(opened, "completed", text, None), kept.value, None)

    def _failed(self, opened: _Opened, error: Exception) -> _Result:
        self._still_counts(opened)
        failure, seen = keep_failure(error)
        if seen is not error:
            # By way of the base class: the user's own may have hooks on its attributes that raise.
            BaseException.with_traceback(seen, BaseException.__dict__["__traceback__"].__get__(error))
        return _Result(self._checkpoint(opened, "failed", None, failure.to_json()), None, seen, error)

    def _refused(self, opened: _Opened, error: Exception) -> _Result:
        """The database can't hold this very row, whenever it is asked."""
        return self._failed(opened, NotKept(f"the database refused it: {error_text(error, 500)}", str(opened.key)))

    def _checkpoint(self, opened: _Opened, status: str, output: str | None, error: str | None) -> StepRow:
        return StepRow(
            self._run.id, opened.key.name, opened.key.occurrence, opened.position, status, self._run.attempt,
            self._run.generation, opened.fingerprint, output, error, opened.started_at, self._engine.clock.now(),
        )  # fmt: skip

    def _came_to(self, opened: _Opened, text: str, value: Any) -> _Result:
        """A wait is over."""
        return _Result(self._checkpoint(opened, "completed", text, None), value, None)

    def _stood(self, opened: _Opened, text: str | None, value: Any, error: Exception | None) -> _Result:
        """The same, and it is written already."""
        row = self._checkpoint(opened, "completed" if error is None else "failed", text, None)
        result = _Result(row, value, error, is_saved=True)
        self._saved(result, accepted=True)
        return result

    plain: StepOptions = PLAIN

    async def keep(self, result: _Result, opened: _Opened) -> None:
        """Save what no function of the user's has made."""
        attempt = Attempt(self._execution, opened.key, opened.position, 0, opened.started_at)
        if not await self._execution.write(self._saving, result, attempt):
            raise Unwind

    def _text_of(self, sealed: str) -> str:
        try:
            return self._engine.payloads.open(sealed)
        except Outdated as error:
            raise self._must_fail(error) from None

    def _saving(self, result: _Result, attempt: Attempt, ends_wait: bool = False) -> list[Ticket[Any]]:
        row, execution = result.row, self._execution
        seal = self._engine.payloads.seal_some
        output, error = seal(row.output), seal(row.error)
        # Without a codec they are what they were, and every step pays for a copy.
        sealed = row if output is row.output and error is row.error else row._replace(output=output, error=error)
        ticket: Ticket[bool] = Ticket(
            "save_steps",
            StepSave(execution.lease.owner, sealed, not self.moved_on, ends_wait),
            what=f"step {row.name!r} of run {row.run_id}",
            then=lambda accepted: self._saved(result, accepted),
            weight=len(row.output or ""),
        )
        # A first try is told by the step itself.
        tries = [attempt.ended(row.completed_at, result.raised)] if attempt.number else []
        return [*execution.pending_notes(), *tries, ticket]

    def _saved(self, result: _Result, accepted: bool) -> None:
        """In the committing thread, or in that of a transaction: also if whoever waited was cancelled meanwhile."""
        row, hub = result.row, self._engine.hub
        if not accepted:
            self._execution.lease_lost(None)
            self._dropped(row.name, row.position)
            return
        with self._counting:
            self.moved_on = True
            self.completed += result.error is None
            self.last_position = max(self.last_position, row.position)
        if result.error is None and hub.hears("step:complete", row.run_id):
            hub.tell(
                "step:complete",
                self._run,
                step_name=row.name,
                step_index=row.position,
                output=plain(row.output or "null"),
                duration=(row.completed_at - row.started_at) / 1e6,
            )
        elif result.error is not None and hub.hears("step:fail", row.run_id):
            error = error_text(result.error)
            hub.tell("step:fail", self._run, step_name=row.name, step_index=row.position, error=error)

    def cancel_leftovers(self, but: Any) -> None:
        """Cancel tasks that used steps and were left behind; of a closed run no body that is in flight."""
        left_alone = set(self.bodies.values()) if self._execution.closed else set()
        for task in list(self._tasks):
            if task is not but and task not in left_alone and not task.done():
                task.cancel()

    def _next_page(self) -> tuple[int, Reply[list[StepRow]]]:
        """The next page of the history, asked for once by however many branches want it."""
        first, page = self._history.next_position, self._page
        if page is None or page[0] != first or page[1]._error is not None:
            reply: Reply[list[StepRow]] = Reply("find_steps")
            self._engine.reader.ask(
                lambda c: self._engine.store.find_steps(c, self._run.id, first=first, until=first + STEP_PAGE), reply
            )
            page = self._page = (first, reply)
        return page

    # -- steps: async ------------------------------------------------------------------------------------------

    async def run(
        self,
        place: Place,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        how: StepOptions = PLAIN,
    ) -> Any:
        """A step of an async job."""
        branch = self._enter(place)
        try:
            saved = self._history.take(place.key)
            if saved is not None or self._history.more:
                saved = await self._find(place.key, saved)
            opened = self._open(place.key, fn, args, kwargs, how)
            if saved is not None and self._counts(saved):
                return self._replay(saved, opened)
            attempt = self._begin(opened)
            if how.retry is None:
                result = await self._call_body(opened, attempt, branch, args, kwargs)
            else:
                attempt, result = await self._try(opened, attempt, branch, args, kwargs)
            if result.is_saved:
                return result.give()
            try:
                accepted = await self._execution.write(self._saving, result, attempt)
            except TROUBLE:
                raise
            except Exception as error:
                result = self._refused(opened, error)
                accepted = await self._execution.write(self._saving, result, attempt)
            if not accepted:
                raise Unwind
            if self._execution.has_lost_lines:
                await self._execution.write(self._execution.notes.resent)
            return result.give()
        finally:
            self._leave(place)

    async def _find(self, key: StepKey, saved: StepRow | None) -> StepRow | None:
        pause = FIRST_PAUSE
        while True:
            try:
                while saved is None and (saved := self._history.take(key)) is None and self._history.more:
                    first, page = self._next_page()
                    self._history.add(first, await page)
                    self._execution.check()
                return self._unsealed(saved)
            except StoreUnavailable as error:
                self._execution.refused_for_now(error)
            await self._execution.worker.pause(pause)
            pause = longer(pause)

    async def _try(
        self, opened: _Opened, attempt: Attempt, branch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Attempt, _Result]:
        """Call the body until it comes to something that counts: the last try, and that."""
        before = await self._attempts.before(opened.key)
        if before.failed:
            await self._attempts.rest(self._attempts.rest_of(opened.how, before))
            attempt = self._next(opened, attempt.after(before))
        else:
            self._execution.check()  # the read may have taken longer than the lease
        while True:
            result = await self._call_body(opened, attempt, branch, args, kwargs)
            if (delay := self._another(opened, attempt, result)) is None:
                return attempt, result
            if not await self._execution.write(self._saving_try, attempt, result):
                raise Unwind
            await self._attempts.rest(self._attempts.left_of(delay, result.row.completed_at))
            attempt = self._next(opened, attempt)

    async def _call_body(
        self, opened: _Opened, attempt: Attempt, branch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Result:
        tokens = self._enter_body(attempt, branch)
        try:
            if opened.how.transaction:
                return await Transaction(self, opened, attempt, args, kwargs).result()
            if opened.how.timeout is None:
                kwargs = self._with_signal(opened, kwargs)
                if opened.known.is_async:
                    value = await opened.fn(*args, **kwargs)
                else:
                    value = await self._call_in_thread(opened.fn, args, kwargs)
            else:
                value = await self._timed(opened, attempt, args, kwargs).result()
        except Exception as error:
            if opened.how.transaction:
                raise  # of the database: what its function raises is in the result
            return self._failed(opened, error)
        else:
            return self._succeeded(opened, value)
        finally:
            self._leave_body(attempt, tokens)

    async def _call_in_thread(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._engine.options.inline:
            value = fn(*args, **kwargs)
        else:
            self._execution.notes.before_a_thread()
            value = await self._engine.threads.call(fn, *args, **kwargs)
        return await value if _is_awaitable(value) else value

    # -- steps: sync -------------------------------------------------------------------------------------------

    def run_sync(
        self,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        how: StepOptions = PLAIN,
    ) -> Any:
        """A step of a sync job, in its thread. The same story as `run`, blocking."""
        if asyncio._get_running_loop() is not None and not self._engine.options.inline:
            raise DefinitionError(
                f"Step {clean(name, 100)!r}: a sync step called in an event loop would block it. "
                "Use `await step.run(name, fn)`."
            )
        refuse_inside(name)
        place = self._execution.branches.place(name)
        branch = self._enter(place)
        try:
            saved = self._history.take(place.key)
            if saved is not None or self._history.more:
                saved = self._find_sync(place.key, saved)
            opened = self._open(place.key, fn, args, kwargs, how)
            if saved is not None and self._counts(saved):
                return self._replay(saved, opened)
            attempt = self._begin(opened)
            if how.retry is None:
                result = self._call_body_sync(opened, attempt, branch, args, kwargs)
            else:
                attempt, result = self._try_sync(opened, attempt, branch, args, kwargs)
            if result.is_saved:
                return result.give()
            try:
                accepted = self._execution.write_sync(self._saving, result, attempt)
            except TROUBLE:
                raise
            except Exception as error:
                result = self._refused(opened, error)
                accepted = self._execution.write_sync(self._saving, result, attempt)
            if not accepted:
                raise Unwind
            if self._execution.has_lost_lines:
                self._execution.write_sync(self._execution.notes.resent)
            return result.give()
        finally:
            self._leave(place)

    def _find_sync(self, key: StepKey, saved: StepRow | None) -> StepRow | None:
        pause = FIRST_PAUSE
        while True:
            try:
                while saved is None and (saved := self._history.take(key)) is None and self._history.more:
                    first, page = self._next_page()
                    self._history.add(first, page.wait())
                    self._execution.check()
                return self._unsealed(saved)
            except StoreUnavailable as error:
                self._execution.refused_for_now(error)
            self._execution.signal.wait(pause)
            pause = longer(pause)

    def _try_sync(
        self, opened: _Opened, attempt: Attempt, branch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Attempt, _Result]:
        before = self._attempts.before_sync(opened.key)
        if before.failed:
            self._attempts.rest_sync(self._attempts.rest_of(opened.how, before))
            attempt = self._next(opened, attempt.after(before))
        else:
            self._execution.check()
        while True:
            result = self._call_body_sync(opened, attempt, branch, args, kwargs)
            if (delay := self._another(opened, attempt, result)) is None:
                return attempt, result
            if not self._execution.write_sync(self._saving_try, attempt, result):
                raise Unwind
            self._attempts.rest_sync(self._attempts.left_of(delay, result.row.completed_at))
            attempt = self._next(opened, attempt)

    def _call_body_sync(
        self, opened: _Opened, attempt: Attempt, branch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Result:
        tokens = self._enter_body(attempt, branch)
        try:
            if opened.how.transaction:
                return Transaction(self, opened, attempt, args, kwargs).result_sync()
            if opened.how.timeout is None or self._engine.options.inline:
                value = self._call_sync(opened.fn, args, self._with_signal(opened, kwargs))
            else:
                value = self._in_loop(self._timed(opened, attempt, args, kwargs).result())
        except Exception as error:
            if opened.how.transaction:
                raise  # of the database: what its function raises is in the result
            return self._failed(opened, error)
        else:
            return self._succeeded(opened, value)
        finally:
            self._leave_body(attempt, tokens)

    def _call_sync(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = fn(*args, **kwargs)
        if not _is_awaitable(value):
            return value
        if self._engine.options.inline:
            if inspect.iscoroutine(value):
                value.close()
            raise DefinitionError("An async step in a sync job needs threads; make the job async.")
        return self._in_loop(_awaited(value))

    def _in_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._execution.worker.loop).result()
        except concurrent.futures.CancelledError:
            # An Exception, other than asyncio's: it would be saved as the failure of the step.
            raise asyncio.CancelledError from None


async def _awaited(value: Any) -> Any:
    return await value


def _is_awaitable(value: Any) -> bool:
    # By its type: `inspect.isawaitable` asks the value for its `__class__`, which may be a property that raises.
    return hasattr(type(value), "__await__")
