"""What the user's code holds while it runs: `Step` in an `async def` job, `SyncStep` in a `def` job.

Two classes, because `step.run(...)` can't be both a value and something to await; the same verbs, and one
implementation of them below (`execution`).

Long because both classes say what each verb gives, in all its forms.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Literal, NamedTuple, ParamSpec, Self, TypeVar, cast, overload

from ..basis.durations import Duration, seconds
from ..basis.errors import DefinitionError, ValidationError, WouldDeadlock
from ..basis.text import clean, shown
from ..commit.ticket import Ticket
from ..model.retry import Retry
from .calls import GIVES_COROUTINE
from .signals import AbortSignal

if TYPE_CHECKING:
    from .call import Call
    from .children import Bindable
    from .execution import Execution
    from .family import ChildResult
    from .waits import Waits

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


#: The execution whose code is running here: set for a job's task or thread, and inherited by what they start.
current: contextvars.ContextVar[Execution | None] = contextvars.ContextVar("holdfast_run", default=None)
#: The step whose body is running here.
current_step: contextvars.ContextVar[str | None] = contextvars.ContextVar("holdfast_step", default=None)


#: The same and its number, where it is not the first try.
current_try: contextvars.ContextVar[tuple[str, int] | None] = contextvars.ContextVar("holdfast_try", default=None)


class Beside:
    """What is written while a transaction of a step is open, to be kept with it: nobody else can write meanwhile."""

    def __init__(self, step: str) -> None:
        self.step = step
        self._lines: list[Ticket[Any]] | None = []
        self._door = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the transaction still is."""
        return self._lines is not None

    def keep(self, line: Ticket[Any]) -> bool:
        """Keep it for the transaction; False if that is over."""
        with self._door:
            if self._lines is not None:
                self._lines.append(line)
            return self._lines is not None

    def end(self) -> list[Ticket[Any]]:
        """What was kept. Nothing is from now on."""
        with self._door:
            lines, self._lines = self._lines, None
        return lines or []


#: The transaction of a step whose function is running here.
beside: contextvars.ContextVar[Beside | None] = contextvars.ContextVar("holdfast_transaction", default=None)


class StepOptions(NamedTuple):
    """How a step is called."""

    retry: Retry | None = None
    timeout: float | None = None
    """Seconds that one try may take."""
    transaction: bool = False
    """The function writes rows of the user's into the transaction that saves the step."""


PLAIN = StepOptions()


def refuse_inside(name: object) -> None:
    """`WouldDeadlock` for a step inside of a transaction of a step: its own checkpoint could not be written."""
    if (open_one := beside.get()) is not None and open_one.is_open:
        raise WouldDeadlock(
            f"Step {shown(name)} inside of step.transaction({clean(open_one.step, 100)!r}): nothing else can be saved "
            "before that transaction ends. Run the step before it, and give the function its value."
        )


def step_options(retry: object, timeout: object, before: StepOptions = PLAIN) -> StepOptions:
    """What was given, checked, over what was said before."""
    if retry is not None and not isinstance(retry, Retry):
        raise ValidationError(f"retry: {shown(retry)} is none. Write retry=Retry(max_retries=3, delay=1).")
    limit = None if timeout is None else seconds(cast("Duration", timeout), "timeout")
    if limit is not None and limit <= 0:
        raise ValidationError(f"timeout: {shown(timeout)} must be longer than 0 seconds.")
    return before._replace(
        retry=before.retry if retry is None else retry, timeout=before.timeout if limit is None else limit
    )


class Unwind(asyncio.CancelledError):
    """This execution is over; leave.

    A BaseException, so that `except Exception` can't swallow it, and a CancelledError, so that a task which ends by it
    counts as cancelled and not as one whose exception nobody looked at.
    """


class StepLog:
    """Lines that are kept with the run, each under the step that wrote it."""

    __slots__ = ("_execution",)

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def debug(self, message: str, /, **data: Any) -> None:
        self._execution.notes.log("debug", message, data)

    def info(self, message: str, /, **data: Any) -> None:
        self._execution.notes.log("info", message, data)

    def warning(self, message: str, /, **data: Any) -> None:
        self._execution.notes.log("warning", message, data)

    warn = warning

    def error(self, message: str, /, **data: Any) -> None:
        self._execution.notes.log("error", message, data)


class _StepBase:
    __slots__ = ("_execution", "_how", "log")

    def __init__(self, execution: Execution, how: StepOptions = PLAIN) -> None:
        self._execution = execution
        self._how = how
        self.log: StepLog = StepLog(execution)
        """Lines for people: `step.log.info("imported", count=7)`. Never lost once the step that wrote them is saved."""

    @property
    def _waits(self) -> Waits:
        return self._execution.waits

    @property
    def run_id(self) -> str:
        """The id of this run."""
        return self._execution.row.id

    @property
    def job_name(self) -> str:
        return self._execution.row.job_name

    @property
    def attempt(self) -> int:
        """How many retries of the run came before; 0 in the first attempt."""
        return self._execution.row.attempt

    @property
    def previous_error(self) -> str | None:
        """The message of what ended the attempt before; None in the first one."""
        row = self._execution.row
        return self._execution.engine.payloads.shown_text(row.error) if row.attempt and row.error is not None else None

    @property
    def labels(self) -> dict[str, str]:
        return self._execution.row.label_map

    @property
    def parent_id(self) -> str | None:
        return self._execution.row.parent_id

    @property
    def root_id(self) -> str | None:
        return self._execution.row.root_id

    @property
    def signal(self) -> AbortSignal:
        """Set when this execution should stop: `cancelled`, `timeout`, `lease-lost`, or `shutdown` after the drain."""
        return self._execution.signal

    @property
    def shutdown(self) -> AbortSignal:
        """Set as soon as the worker begins to stop. Nothing is aborted by it; a long step may finish early."""
        return self._execution.shutdown

    def raise_if_aborted(self) -> None:
        """Unwind this execution if it should stop. What unwinds is no `Exception`: `except Exception` lets it pass."""
        self._execution.check()

    def options(self, *, retry: Retry | None = None, timeout: Duration | None = None) -> Self:
        """The same step object, whose `run` calls with these options: `step.options(timeout="30s").run("name", fn)`.

        `retry`: try again when `fn` raises; each failed try is durable before the next one begins. `timeout` of one
        try: then `fn` is told by its `signal`, and cancelled if it is async; the try fails with `TimeoutError`.
        """
        return type(self)(self._execution, step_options(retry, timeout, self._how))

    def progress(self, current: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the run is. Returns at once; of many in a row the last one is kept."""
        self._execution.notes.progress(current, total, message)

    def emit(self, name: str, value: Any) -> None:
        """Stream a value to whoever follows the run, in any process: tokens of a model, rows as they come.

        Subscribers get the event `run:emit` with `name`, `value` (plain JSON) and `step_name`. Returns at once; it
        is durable at the latest with the step that emits it, and goes with the run. It is no line of `get_logs`.
        `NotKept` for what has no JSON form, `ValidationError` for more of it than `max_log_bytes`.
        """
        self._execution.notes.emit(name, value)

    def idempotency_key(self, name: str) -> str:
        """A key that stays the same in every execution of this run: give it to whatever must not happen twice."""
        return f"{self.run_id}:{name}"


class Step(_StepBase):
    """What an `async def` job gets as its first parameter."""

    __slots__ = ()

    @overload
    def run(
        self, name: str, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[None, None, R]: ...
    @overload
    def run(self, name: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, R]: ...
    def run(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What `fn(*args, **kwargs)` returns; once that is saved it is never called again for this run.

        When it returns, the value survives a power cut. The value comes back as it was saved: equal and of the same
        type, or `NotKept` is raised. A sync `fn` is called in a thread. What `fn` raises is raised here, live and on
        replay alike. A parameter `signal: AbortSignal | None = None` of `fn` gets the run's signal (with a `timeout`
        its own, which is set by either). Retries and a time limit: see `options`.
        """
        execution = self._execution
        refuse_inside(name)
        return execution.steps.run(execution.branches.place(name), fn, args, kwargs, self._how)

    def transaction(
        self, name: str, fn: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[None, None, R]:
        """What `fn(connection, *args, **kwargs)` returns; the rows it writes there and the step are one commit.

        `connection` is one of the database's driver (of `sqlite3`, psycopg or PyMySQL), to the app's own database, with
        a transaction open: whatever kills the process, either both are there or neither, and `fn` is never called again
        once they are. It may be called again before that, after a deadlock or a lost connection. Committing is not
        `fn`'s: what it raises undoes its rows. `fn` is a plain function, called in a thread; on SQLite it may take a
        third of the lease, for nobody else can write meanwhile. Inside of it no other step may run and no reply be
        waited for. The rest is as in `run`.
        """
        execution = self._execution
        refuse_inside(name)
        return execution.steps.run(
            execution.branches.place(name), fn, args, kwargs, self._how._replace(transaction=True)
        )

    # -- durable waits -----------------------------------------------------------------------------------------

    def sleep(self, name: str, duration: Duration, /) -> Coroutine[None, None, None]:
        """Return when so much time has passed since it was first asked for, whatever happens in between.

        Meanwhile the run has no slot, and no place in any process's memory if it is for longer than `warm_for`: then
        all of the job's code between its steps runs again when it wakes, from the top.
        """
        return self._waits.begin(*self._waits.asking.sleep(name, duration))

    def sleep_until(self, name: str, when: datetime, /) -> Coroutine[None, None, None]:
        """The same, until a moment; a naive datetime is local time."""
        return self._waits.begin(*self._waits.asking.sleep_until(name, when))

    @overload
    def wait_for_signal(self, name: str, /, *, timeout: Duration | None = None) -> Coroutine[None, None, Any]: ...
    @overload
    def wait_for_signal(
        self, name: str, /, *, type: type[R], timeout: Duration | None = None
    ) -> Coroutine[None, None, R]: ...
    def wait_for_signal(self, name: str, /, *, type: Any = None, timeout: Duration | None = None) -> Any:
        """The value of the oldest signal of this name that was sent to this run and not taken yet.

        Sent by `app.send_signal(run_id, name, value)`, before or after it is waited for. `type` says what it is to be;
        what can't be read as that fails the run. `TimeoutError` if none has come in time, and so in every retry of the
        run. Taking it and saving it are one commit: each signal is taken once.
        """
        return self._waits.begin(*self._waits.asking.signal(name, type, timeout))

    def call(self, call: Call[R], /, *, name: str | None = None) -> Coroutine[None, None, R]:
        """The output of a run of this call, which is a child of this run: executed by any worker, with its own retries.

        `RunFailed`, `RunTimedOut` or `RunCancelled` if it ended otherwise. While it goes on this run has no slot. The
        step is called `name`, or like the job with `()`. If this run ends without its output, the child is cancelled.
        """
        return self._waits.call(call, name)

    def spawn(self, call: Call[Any], /, *, name: str | None = None) -> Coroutine[None, None, str]:
        """Write a run of this call below this one, which nobody waits for; its id.

        It is cancelled if this run ends without its output, and goes on if this one completes.
        """
        return self._waits.begin(*self._waits.asking.spawn(call, name))

    @overload
    def gather(self, a: Call[A], /, *, name: str | None = None) -> Coroutine[None, None, tuple[A]]: ...
    @overload
    def gather(self, a: Call[A], b: Call[B], /, *, name: str | None = None) -> Coroutine[None, None, tuple[A, B]]: ...
    @overload
    def gather(
        self, a: Call[A], b: Call[B], c: Call[C], /, *, name: str | None = None
    ) -> Coroutine[None, None, tuple[A, B, C]]: ...
    @overload
    def gather(
        self, a: Call[A], b: Call[B], c: Call[C], d: Call[D], /, *, name: str | None = None
    ) -> Coroutine[None, None, tuple[A, B, C, D]]: ...
    @overload
    def gather(self, *calls: Call[R], name: str | None = None) -> Coroutine[None, None, tuple[R, ...]]: ...
    def gather(self, *calls: Call[Any], name: str | None = None) -> Any:
        """The outputs of runs of all these calls, children of this run that are executed at the same time.

        In the order of the calls, once all of them have ended. `ChildrenFailed`, naming those without an output, if
        there are any. At most `max_children`; `map` takes more.
        """
        return self._waits.begin(*self._waits.asking.gather(calls, name))

    @overload
    def map(
        self,
        job: Bindable[A, R],
        inputs: Iterable[A],
        /,
        *,
        on_failure: Literal["raise"] = "raise",
        name: str | None = None,
    ) -> Coroutine[None, None, list[R]]: ...
    @overload
    def map(
        self,
        job: Bindable[A, R],
        inputs: Iterable[A],
        /,
        *,
        on_failure: Literal["collect"],
        name: str | None = None,
    ) -> Coroutine[None, None, list[ChildResult]]: ...
    def map(
        self, job: Any, inputs: Iterable[Any], /, *, on_failure: str = "raise", name: str | None = None
    ) -> Coroutine[None, None, Any]:
        """The outputs of a run of the job for each input, in the order of the inputs.

        As `gather`, in batches of `max_children`: one after the other. With `on_failure="collect"` a list of
        `ChildResult`, ended well or badly.
        """
        return self._waits.begin_all(self._waits.asking.batches(job, inputs, on_failure, name))


class SyncStep(_StepBase):
    """What a `def` job gets as its first parameter: the verbs of `Step`, blocking."""

    __slots__ = ()

    @overload
    def run(self, name: str, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def run(self, name: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def run(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What `fn(*args, **kwargs)` returns; once that is saved it is never called again for this run.

        See `Step.run`. An async `fn` runs in the app's event loop.
        """
        return self._execution.steps.run_sync(name, fn, args, kwargs, self._how)

    def transaction(self, name: str, fn: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """What `fn(connection, *args, **kwargs)` returns; the rows it writes there and the step are one commit.

        See `Step.transaction`.
        """
        value: R = self._execution.steps.run_sync(name, fn, args, kwargs, self._how._replace(transaction=True))
        return value

    # -- durable waits: those of `Step`, blocking --------------------------------------------------------------

    def sleep(self, name: str, duration: Duration, /) -> None:
        """Return when so much time has passed since it was first asked for. See `Step.sleep`."""
        self._waits.begin_sync(*self._waits.asking.sleep(name, duration))

    def sleep_until(self, name: str, when: datetime, /) -> None:
        """The same, until a moment."""
        self._waits.begin_sync(*self._waits.asking.sleep_until(name, when))

    @overload
    def wait_for_signal(self, name: str, /, *, timeout: Duration | None = None) -> Any: ...
    @overload
    def wait_for_signal(self, name: str, /, *, type: type[R], timeout: Duration | None = None) -> R: ...
    def wait_for_signal(self, name: str, /, *, type: Any = None, timeout: Duration | None = None) -> Any:
        """The value of the oldest signal of this name. See `Step.wait_for_signal`."""
        return self._waits.begin_sync(*self._waits.asking.signal(name, type, timeout))

    def call(self, call: Call[R], /, *, name: str | None = None) -> R:
        """The output of a run of this call, a child of this run. See `Step.call`."""
        value: R = self._waits.call_sync(call, name)
        return value

    def spawn(self, call: Call[Any], /, *, name: str | None = None) -> str:
        """Write a run of this call below this one, which nobody waits for; its id. See `Step.spawn`."""
        run_id: str = self._waits.begin_sync(*self._waits.asking.spawn(call, name))
        return run_id

    @overload
    def gather(self, a: Call[A], /, *, name: str | None = None) -> tuple[A]: ...
    @overload
    def gather(self, a: Call[A], b: Call[B], /, *, name: str | None = None) -> tuple[A, B]: ...
    @overload
    def gather(self, a: Call[A], b: Call[B], c: Call[C], /, *, name: str | None = None) -> tuple[A, B, C]: ...
    @overload
    def gather(
        self, a: Call[A], b: Call[B], c: Call[C], d: Call[D], /, *, name: str | None = None
    ) -> tuple[A, B, C, D]: ...
    @overload
    def gather(self, *calls: Call[R], name: str | None = None) -> tuple[R, ...]: ...
    def gather(self, *calls: Call[Any], name: str | None = None) -> Any:
        """The outputs of runs of all these calls. See `Step.gather`."""
        return self._waits.begin_sync(*self._waits.asking.gather(calls, name))

    @overload
    def map(
        self,
        job: Bindable[A, R],
        inputs: Iterable[A],
        /,
        *,
        on_failure: Literal["raise"] = "raise",
        name: str | None = None,
    ) -> list[R]: ...
    @overload
    def map(
        self,
        job: Bindable[A, R],
        inputs: Iterable[A],
        /,
        *,
        on_failure: Literal["collect"],
        name: str | None = None,
    ) -> list[ChildResult]: ...
    def map(self, job: Any, inputs: Iterable[Any], /, *, on_failure: str = "raise", name: str | None = None) -> Any:
        """The outputs of a run of the job for each input. See `Step.map`."""
        return self._waits.begin_all_sync(self._waits.asking.batches(job, inputs, on_failure, name))


STEP_TYPES = (Step, SyncStep)


def step_function(fn: F, name: str | None, key: Callable[..., str] | None, how: StepOptions = PLAIN) -> F:
    """The function, as a step wherever a run calls it; elsewhere it is what it was."""
    base = name if name is not None else str(getattr(fn, "__name__", "step"))

    def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return f"{base}-{key(*args, **kwargs)}" if key is not None else base

    if inspect.iscoroutinefunction(fn):
        # No `async def`: a step has its place from the moment when it is asked for, whichever task then awaits it.
        @functools.wraps(fn)
        def step_async(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            execution = current.get()
            if execution is None:
                called: Coroutine[Any, Any, Any] = fn(*args, **kwargs)
                return called
            step = named(args, kwargs)
            refuse_inside(step)
            return execution.steps.run(execution.branches.place(step), fn, args, kwargs, how)

        setattr(step_async, GIVES_COROUTINE, True)
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(step_async)
        return cast("F", step_async)

    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise DefinitionError(f"{base}: a generator function can't be a step; return a list.")

    @functools.wraps(fn)
    def step_sync(*args: Any, **kwargs: Any) -> Any:
        execution = current.get()
        if execution is None:
            return fn(*args, **kwargs)
        return execution.steps.run_sync(named(args, kwargs), fn, args, kwargs, how)

    return cast("F", step_sync)
