"""The steps of one execution: what is replayed, what runs, what is saved, and what a lost race means.

Long because that is one story; async and sync jobs tell it in the same order, one awaiting and one blocking.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

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
from ..basis.failures import Failure, keep_failure, load_failure
from ..basis.text import clean, error_text
from ..basis.values import plain
from ..commit.reply import Reply
from ..commit.ticket import Ticket
from ..model.step import StepKey, StepRow
from ..store.base import STEP_PAGE, StepSave
from .branches import Place, here
from .calls import Callee, callee, fingerprint
from .context import Unwind, current_step
from .history import History

if TYPE_CHECKING:
    from .execution import Execution


#: The database itself: it says nothing about what was to be saved.
TROUBLE = (StoreUnavailable, StoreClosed, SchemaError)

#: After something that the database refused for now: seconds until the next try, doubled up to the last.
FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


def longer(pause: float) -> float:
    """How long to wait after a pause that was too short."""
    return min(pause * 2, _LONGEST_PAUSE)


class _Opened(NamedTuple):
    """A step that is about to be called."""

    key: StepKey
    position: int
    fn: Callable[..., Any]
    known: Callee
    fingerprint: str
    started_at: int


class _Result(NamedTuple):
    """What a step came to: the row to save, and what the job gets, as it will get it on replay."""

    row: StepRow
    value: Any
    error: Exception | None

    def give(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


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

    # -- steps: what both colours share ------------------------------------------------------------------------

    def _enter(self, place: Place) -> None:
        self._execution.check()
        try:
            self._execution.branches.enter(place)
        except AmbiguousStep as error:
            raise self._must_fail(error) from None
        branch = here()
        if isinstance(branch, asyncio.Task):
            self._tasks.add(branch)

    def _must_fail(self, error: Exception) -> Exception:
        """The error, which ends the run as failed also if the job's code swallows it: its history is not reliable."""
        self.fatal = self.fatal or error
        return error

    def _replay(self, saved: StepRow, opened: _Opened) -> Any:
        """What the saved step came to: the value, or the error raised."""
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

    def _open(self, key: StepKey, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Opened:
        known = callee(fn)
        mark = fingerprint(known.name, args, kwargs)
        return _Opened(key, next(self._positions), fn, known, mark, self._engine.clock.now())

    def _begin(self, opened: _Opened, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._execution.check()
        hub = self._engine.hub
        if hub.hears("step:start"):
            hub.tell("step:start", self._run, step_name=opened.key.name, step_index=opened.position)
        self.bodies[opened.key] = here()
        if opened.known.wants_signal and "signal" not in kwargs:
            return {**kwargs, "signal": self._execution.signal}
        return kwargs

    def _still_counts(self, opened: _Opened) -> None:
        """Unwind if what the body came to is of no use any more."""
        try:
            self._execution.check()
        except Unwind:
            hub = self._engine.hub
            if self._execution.signal.reason == "cancelled" and hub.hears("step:cancel"):
                hub.tell("step:cancel", self._run, step_name=opened.key.name, step_index=opened.position)
            raise

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
        return _Result(self._checkpoint(opened, "failed", None, failure.to_json()), None, seen)

    def _refused(self, opened: _Opened, error: Exception) -> _Result:
        """The database can't hold this very row, whenever it is asked."""
        return self._failed(opened, NotKept(f"the database refused it: {error_text(error, 500)}", str(opened.key)))

    def _checkpoint(self, opened: _Opened, status: str, output: str | None, error: str | None) -> StepRow:
        return StepRow(
            self._run.id, opened.key.name, opened.key.occurrence, opened.position, status, self._run.attempt,
            self._run.generation, opened.fingerprint, output, error, opened.started_at, self._engine.clock.now(),
        )  # fmt: skip

    def _saving(self, result: _Result) -> list[Ticket[Any]]:
        row, execution = result.row, self._execution
        ticket: Ticket[bool] = Ticket(
            "save_steps",
            StepSave(execution.lease.owner, row, not self.moved_on),
            what=f"step {row.name!r} of run {row.run_id}",
            then=lambda accepted: self._saved(result, accepted),
            weight=len(row.output or ""),
        )
        return [*execution.notes.pending(), ticket]

    def _saved(self, result: _Result, accepted: bool) -> None:
        """In the committing thread: also if whoever waited for the step was cancelled meanwhile."""
        row, hub = result.row, self._engine.hub
        if not accepted:
            self._execution.lease_lost(None)
            return
        self.moved_on = True
        self.completed += result.error is None
        self.last_position = max(self.last_position, row.position)
        if result.error is None and hub.hears("step:complete"):
            hub.tell(
                "step:complete",
                self._run,
                step_name=row.name,
                step_index=row.position,
                output=plain(row.output or "null"),
                duration=(row.completed_at - row.started_at) / 1e6,
            )
        elif result.error is not None and hub.hears("step:fail"):
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

    async def run(self, place: Place, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step of an async job."""
        self._enter(place)
        try:
            saved = await self._find(place.key)
            opened = self._open(place.key, fn, args, kwargs)
            if saved is not None and self._counts(saved):
                return self._replay(saved, opened)
            result = await self._call_body(opened, args, self._begin(opened, kwargs))
            try:
                accepted = await self._execution.write(lambda: self._saving(result))
            except TROUBLE:
                raise
            except Exception as error:
                result = self._refused(opened, error)
                accepted = await self._execution.write(lambda: self._saving(result))
            if not accepted:
                raise Unwind
            if self._execution.notes.has_lost:
                await self._execution.write(self._execution.notes.resent)
            return result.give()
        finally:
            self._execution.branches.leave(place)

    async def _find(self, key: StepKey) -> StepRow | None:
        pause = FIRST_PAUSE
        while (saved := self._history.take(key)) is None and self._history.more:
            first, page = self._next_page()
            try:
                self._history.add(first, await page)
            except StoreUnavailable as error:
                self._execution.refused_for_now(error)
                await self._execution.worker.pause(pause)
                pause = longer(pause)
        return saved

    async def _call_body(self, opened: _Opened, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Result:
        token = current_step.set(str(opened.key))
        try:
            value = await self._call(opened.known, opened.fn, args, kwargs)
        except Exception as error:
            return self._failed(opened, error)
        else:
            return self._succeeded(opened, value)
        finally:
            current_step.reset(token)
            del self.bodies[opened.key]

    async def _call(self, known: Callee, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if known.is_async:
            return await fn(*args, **kwargs)
        if self._engine.options.inline:
            value = fn(*args, **kwargs)
        else:
            value = await self._engine.threads.call(fn, *args, **kwargs)
        return await value if _is_awaitable(value) else value

    # -- steps: sync -------------------------------------------------------------------------------------------

    def run_sync(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step of a sync job, in its thread. The same story as `run`, blocking."""
        if asyncio._get_running_loop() is not None and not self._engine.options.inline:
            raise DefinitionError(
                f"Step {clean(name, 100)!r}: a sync step called in an event loop would block it. "
                "Use `await step.run(name, fn)`."
            )
        place = self._execution.branches.place(name)
        self._enter(place)
        try:
            saved = self._find_sync(place.key)
            opened = self._open(place.key, fn, args, kwargs)
            if saved is not None and self._counts(saved):
                return self._replay(saved, opened)
            result = self._call_body_sync(opened, args, self._begin(opened, kwargs))
            try:
                accepted = self._execution.write_sync(lambda: self._saving(result))
            except TROUBLE:
                raise
            except Exception as error:
                result = self._refused(opened, error)
                accepted = self._execution.write_sync(lambda: self._saving(result))
            if not accepted:
                raise Unwind
            if self._execution.notes.has_lost:
                self._execution.write_sync(self._execution.notes.resent)
            return result.give()
        finally:
            self._execution.branches.leave(place)

    def _find_sync(self, key: StepKey) -> StepRow | None:
        pause = FIRST_PAUSE
        while (saved := self._history.take(key)) is None and self._history.more:
            first, page = self._next_page()
            try:
                self._history.add(first, page.wait())
            except StoreUnavailable as error:
                self._execution.refused_for_now(error)
                self._execution.signal.wait(pause)
                pause = longer(pause)
        return saved

    def _call_body_sync(self, opened: _Opened, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Result:
        token = current_step.set(str(opened.key))
        try:
            value = self._call_sync(opened.fn, args, kwargs)
        except Exception as error:
            return self._failed(opened, error)
        else:
            return self._succeeded(opened, value)
        finally:
            current_step.reset(token)
            del self.bodies[opened.key]

    def _call_sync(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = fn(*args, **kwargs)
        if not _is_awaitable(value):
            return value
        if self._engine.options.inline:
            if inspect.iscoroutine(value):
                value.close()
            raise DefinitionError("An async step in a sync job needs threads; make the job async.")
        try:
            return asyncio.run_coroutine_threadsafe(_awaited(value), self._execution.worker.loop).result()
        except concurrent.futures.CancelledError:
            # An Exception, other than asyncio's: it would be saved as the failure of the step.
            raise asyncio.CancelledError from None


async def _awaited(value: Any) -> Any:
    return await value


def _is_awaitable(value: Any) -> bool:
    # By its type: `inspect.isawaitable` asks the value for its `__class__`, which may be a property that raises.
    return hasattr(type(value), "__await__")
