"""Jobs as users hold them: `Job` (trigger it), `Call` (a job with its input, not yet triggered).

Long because of overloads, and of what triggers can be told.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from .basis.durations import Duration, micros
from .basis.errors import DefinitionError, PayloadTooLarge, ValidationError, WouldDeadlock
from .basis.text import shown
from .commit.reply import Reply
from .engine.arguments import (
    checked_coalesce,
    checked_flag,
    checked_limit,
    checked_limit_of_time,
    checked_moment,
    checked_priority,
    checked_retry,
)
from .engine.call import Call, TriggerOptions, checked_tenant
from .engine.compose import Asleep
from .engine.context import STEP_TYPES, Step, SyncStep
from .engine.family import Children, ChildResult
from .engine.registry import JobDefinition, check_if_known, checked_key, checked_labels, checked_name
from .engine.schema import Signature
from .engine.validation import checked_validate, encode_input
from .model.retry import Retry
from .model.run import Coalesce, RunStatus
from .run import Keeper, Run

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
F = TypeVar("F")


class JobOptions(TypedDict, total=False):
    """What can be said of a job where it is defined."""

    name: str
    queue: str
    priority: int
    labels: Mapping[str, str]
    limit: int
    delay: Duration
    retry: Retry
    timeout: Duration
    deadline: Duration
    validate: Callable[..., Any]
    hold_key_while_waiting: bool


class JobDecorator(Protocol):
    """`@app.job(...)`: the four forms of a job's function. Async before sync, with a step before without."""

    @overload
    def __call__(self, fn: Callable[Concatenate[Step, P], Awaitable[R]], /) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[SyncStep, P], R], /) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Job[P, R]: ...


class Triggering(Keeper, Protocol):
    """Who runs a job: an app, or a client of one elsewhere."""

    def _add(self, job: JobDefinition) -> JobDefinition: ...
    def _check_size(self, text: str) -> None: ...
    @overload
    def _trigger(self, call: Call[R]) -> Reply[Run[R]]: ...
    @overload
    def _trigger(self, call: Call[R], connection: Any) -> Reply[Run[R]]: ...
    def _run(self, call: Call[R]) -> Reply[R]: ...
    def _trigger_and_wait(self, call: Call[R]) -> Reply[Run[R]]: ...
    def _get_run(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any] | None]: ...
    def _get_runs(
        self,
        *,
        jobs: tuple[str, ...],
        status: RunStatus | str | Iterable[RunStatus] | Iterable[str] | None,
        labels: Mapping[str, str] | None,
        limit: int | None,
        offset: int,
        before: str | None,
    ) -> Reply[list[Run[Any]]]: ...


class Job(Generic[P, R_co]):
    """A function that runs durably. Made by `@app.job`, or by `@job` and `app.register`.

    `fn` is the plain function: call that to run it as what it is.
    """

    def __init__(
        self,
        definition: JobDefinition,
        app: Triggering | None,
        options: TriggerOptions | None = None,
        connection: Any = None,
    ) -> None:
        self._definition = definition
        self._app = app
        self._options = options or TriggerOptions()
        self._connection = connection

    @property
    def name(self) -> str:
        """Its name in the database."""
        return self._definition.name

    @property
    def fn(self) -> Callable[..., Any]:
        """The plain function."""
        return self._definition.fn

    @property
    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the input: an object by parameter name."""
        return self._definition.signature.input_json_schema()

    @property
    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the output; empty if the function does not say what it returns."""
        return self._definition.output.json_schema()

    # -- runs below --------------------------------------------------------------------------------------------

    @overload
    def finalize(
        self: Job[P, Children[T]], fn: Callable[[Step, T, list[ChildResult]], Awaitable[F]], /
    ) -> Job[P, F]: ...
    @overload
    def finalize(self: Job[P, Children[T]], fn: Callable[[SyncStep, T, list[ChildResult]], F], /) -> Job[P, F]: ...
    @overload
    def finalize(self: Job[P, Children[T]], fn: Callable[[T, list[ChildResult]], Awaitable[F]], /) -> Job[P, F]: ...
    @overload
    def finalize(self: Job[P, Children[T]], fn: Callable[[T, list[ChildResult]], F], /) -> Job[P, F]: ...
    @overload
    def finalize(
        self: Job[P, Children[T]], /, **options: Unpack[JobOptions]
    ) -> Callable[[Callable[..., Any]], Job[P, Any]]: ...
    def finalize(self: Any, fn: Any = None, /, **options: Any) -> Any:
        """Say what this parent does once all runs below it have ended: `@upload.finalize`, or with options of a job.

        The function gets the parent's output and a `ChildResult` of each, ended well or badly, after the step if it
        takes one. It is a run of its own, with its own retries and timeout, and its output is the parent's; if it has
        none, the parent ends as `finalize_failed`. It may return `Children` itself. What is given back is the parent
        with its final output type.
        """
        localns = sys._getframe(1).f_locals

        def decorate(fn: Callable[..., Any]) -> Job[Any, Any]:
            given: dict[str, Any] = {"name": f"{self.name}.finalize", **options}
            finalized: Job[Any, Any] = self._finalized(define(fn, checked_options(given), localns))
            return finalized

        return decorate if fn is None else decorate(fn)

    def finalize_with(self: Job[P, Children[Any]], job: Job[Any, F], /) -> Job[P, F]:
        """The same, by a job that is defined already and takes an output and a list of `ChildResult`."""
        finalized: Job[P, F] = self._finalized(job._definition)
        return finalized

    def _finalized(self, finalize: JobDefinition) -> Job[Any, Any]:
        if finalize.name == self.name:
            raise DefinitionError(f"{self.name}: a job can't be its own finalize.")
        if len(finalize.signature.names) != 2:
            raise DefinitionError(
                f"{finalize.name}: a finalize takes the output of the parent and list[ChildResult], "
                f"not {len(finalize.signature.names)} parameters."
            )
        definition = replace(self._definition, finalize=finalize)
        check_if_known((self._definition, finalize), definition.resolve)
        if self._app is not None:
            definition = self._app._add(definition)
        # Runs that are triggered by the handle that was there before have the new output, too.
        self._definition = definition
        return Job(definition, self._app, self._options, self._connection)

    # -- triggering --------------------------------------------------------------------------------------------

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """The job with this input. `ValidationError` naming the wrong parameters; nothing is written."""
        if self._connection is not None:
            raise ValidationError("bind: a call carries no connection. Write app.trigger(call, connection=…).")
        return self._bound(*args, **kwargs)

    def _bound(self, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        text = encode_input(self._definition, args, kwargs)
        if self._app is not None:
            self._app._check_size(text)
        return Call(self._definition, text, self._options.as_kept())

    def trigger(self, *args: P.args, **kwargs: P.kwargs) -> Reply[Run[R_co]]:
        """Write a run of this job; the reply is there when the run is durable.

        `ValidationError` in the call itself, before anything is written. `run.disposition` says whether the run is
        new. Inside a run, outside of its steps, the trigger is numbered, so that a replay doesn't trigger again.
        """
        return self._need_app()._trigger(self._bound(*args, **kwargs), self._connection)

    def run(self, *args: P.args, **kwargs: P.kwargs) -> Reply[R_co]:
        """Trigger and wait for the output. Raises `RunFailed`, `RunTimedOut` or `RunCancelled` if there is none."""
        self._refuse_connection("run")
        return self._need_app()._run(self.bind(*args, **kwargs))

    def trigger_and_wait(self, *args: P.args, **kwargs: P.kwargs) -> Reply[Run[R_co]]:
        """Trigger and wait for the end; the ended run, however it ended."""
        self._refuse_connection("trigger_and_wait")
        return self._need_app()._trigger_and_wait(self.bind(*args, **kwargs))

    def _refuse_connection(self, verb: str) -> None:
        if self._connection is not None:
            raise WouldDeadlock(f"{verb}: the run begins only after your transaction. Use trigger, commit, then wait.")

    def options(
        self,
        *,
        idempotency_key: str | None = None,
        concurrency_key: str | None = None,
        coalesce: Coalesce | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        deadline: Duration | None = None,
        tenant: Mapping[str, str] | None = None,
        connection: Any = None,
    ) -> Self:
        """The same job, whose triggers have these options.

        `idempotency_key`: at most one run of this job per key, for ever (while that run exists).
        `concurrency_key`: at most one run per key is executed at a time, over all jobs, and at most one per job and key
        waits for its first start: a second one is a `ConflictError`. With `coalesce="skip"` the answer is the one that
        waits; with "active" also one that has started and has not ended. An empty key is none.
        `labels` add to the job's own; a `labels_schema` of the app checks both together, at the trigger. Higher
        `priority` first, -2147483648 to 2147483647. `delay` or `run_at`: not before; a naive datetime is local time.
        `queue`: only workers of that queue take it. `retry` and `timeout` (of one attempt) go before the job's own.
        `deadline`: so long after the trigger the run has ended, or is ended as timed out, with no retry.
        `tenant`: whose the run is, as `Auth.tenant` of a server gives it: labels that it has, whatever else was said,
        and so have those that are triggered inside of it. Keys of a tenant are apart from all others.

        `connection`: one of yours to the app's database, with a transaction open on it: of sqlite3, aiosqlite, psycopg,
        asyncpg or PyMySQL, a Connection or Session of SQLAlchemy, or a connection of Django. The run is written by it
        and is there if and only if you commit: on a synchronous one here and now, on an asynchronous one when the reply
        is awaited. Until then nobody else sees it, and who has the transaction open can't wait for it. No `run:trigger`
        is told of it.
        """
        given = gathered(
            self._options, self._definition.labels, idempotency_key=idempotency_key, concurrency_key=concurrency_key,
            coalesce=coalesce, labels=labels, priority=priority, delay=delay, run_at=run_at, queue=queue, retry=retry,
            timeout=timeout, deadline=deadline, tenant=tenant,
        )  # fmt: skip
        return type(self)(self._definition, self._app, given, self._connection if connection is None else connection)

    # -- reading -----------------------------------------------------------------------------------------------

    def get_run(self, run_id: str) -> Reply[Run[R_co] | None]:
        """The run; None if there is none of this job with that id."""
        return self._need_app()._get_run(run_id, self._definition)

    def get_runs(
        self,
        *,
        status: RunStatus | str | Iterable[RunStatus] | Iterable[str] | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = 100,
        offset: int = 0,
        before: str | None = None,
    ) -> Reply[list[Run[R_co]]]:
        """Runs of this job, newest first; see `Holdfast.get_runs`."""
        return self._need_app()._get_runs(
            jobs=(self.name,), status=status, labels=labels, limit=limit, offset=offset, before=before
        )

    if not TYPE_CHECKING:  # type checkers know that a job can't be called

        def __call__(self, *_: Any, **__: Any) -> Any:
            raise DefinitionError(
                f"Job {self.name!r} is not called: use .run(…) for its output, .trigger(…) for a run of it, "
                "or .fn(…) for the plain function."
            )

    def _need_app(self) -> Triggering:
        if self._app is None:
            raise DefinitionError(
                f"Job {self.name!r} belongs to no app yet. Use what app.register({self.fn.__name__}) gives."
            )
        return self._app

    def __repr__(self) -> str:
        return f"<Job {self.name}>"


def gathered(
    given: TriggerOptions,
    of_job: Mapping[str, str] = MappingProxyType({}),
    *,
    idempotency_key: str | None,
    concurrency_key: str | None,
    coalesce: Coalesce | None,
    labels: Mapping[str, str] | None,
    priority: int | None,
    delay: Duration | None,
    run_at: datetime | None,
    queue: str | None,
    retry: Retry | None,
    timeout: Duration | None,
    deadline: Duration | None,
    tenant: Mapping[str, str] | None = None,
) -> TriggerOptions:
    """The options, checked, over those that were given before. `of_job`: its own labels."""
    if delay is not None and run_at is not None:
        raise ValidationError("options: give delay or run_at, not both.")
    if delay is not None:
        given = replace(given, delay=micros(delay, "delay"), run_at=None)
    if run_at is not None:
        given = replace(given, run_at=checked_moment(run_at), delay=None)
    if labels is not None:
        all_labels = {**(given.labels or {}), **checked_labels(labels)}
        checked_labels({**of_job, **all_labels})  # together they may be too many
        given = replace(given, labels=all_labels)
    if priority is not None:
        given = replace(given, priority=checked_priority(priority))
    if idempotency_key is not None:
        given = replace(given, idempotency_key=checked_key(idempotency_key, "idempotency_key"))
    if concurrency_key is not None:
        given = replace(given, concurrency_key=checked_key(concurrency_key, "concurrency_key"))
    if coalesce is not None:
        given = replace(given, coalesce=checked_coalesce(coalesce))
    if given.coalesce is not None and given.concurrency_key is None:
        raise ValidationError("options: coalesce requires a concurrency_key.")
    if queue is not None:
        given = replace(given, queue=checked_name(queue, "queue"))
    if retry is not None:
        given = replace(given, retry=checked_retry(retry).to_json())
    if timeout is not None:
        given = replace(given, timeout=checked_limit_of_time(timeout, "timeout"))
    if deadline is not None:
        given = replace(given, deadline=checked_limit_of_time(deadline, "deadline"))
    if tenant is not None:
        given = replace(given, tenant=checked_tenant(tenant))
    return given


class SleepingJob(Job[[str], R_co]):
    """A job whose runs wait until `app.wake` says what they came to. Made by `app.sleeping`.

    It is triggered with a key, of which there is one run: `approval.trigger("order-7")`.
    """

    def _bound(self, key: str) -> Call[R_co]:
        call = super()._bound(key)
        known = checked_key(key, "key")
        if known is None:
            raise ValidationError("key: a sleeping run needs one that is not empty.")
        return replace(call, options=replace(call.options, idempotency_key=known))

    def __repr__(self) -> str:
        return f"<SleepingJob {self.name}>"


def handle(definition: JobDefinition, app: Triggering | None) -> Job[..., Any]:
    """The handle of a job, of the class that was made for it."""
    kind = SleepingJob if isinstance(definition.fn, Asleep) else Job
    return kind(definition, app)


def define(fn: Callable[..., Any], options: JobOptions, localns: Mapping[str, Any] | None) -> JobDefinition:
    """The definition of a job; `DefinitionError` or `ValidationError` where it can't be one."""
    if isinstance(fn, Job):
        raise DefinitionError(f"{fn.name!r} is a job already; register it with app.register(...).")
    if not callable(fn):
        raise DefinitionError(f"{shown(fn)} is not a function.")
    key = getattr(fn, "__name__", type(fn).__name__)
    return JobDefinition(
        name=checked_name(options.get("name", key), "job name"),
        key=key,
        fn=fn,
        signature=Signature(fn, STEP_TYPES, localns),
        queue=checked_name(options.get("queue", "default"), "queue"),
        priority=checked_priority(options.get("priority", 0)),
        labels=checked_labels(options.get("labels", {})),
        limit=checked_limit(options["limit"]) if "limit" in options else None,
        delay=micros(options["delay"], "delay") if "delay" in options else 0,
        retry=checked_retry(options["retry"]) if "retry" in options else None,
        timeout=checked_limit_of_time(options["timeout"], "timeout") if "timeout" in options else None,
        deadline=checked_limit_of_time(options["deadline"], "deadline") if "deadline" in options else None,
        validate=checked_validate(options["validate"]) if "validate" in options else None,
        hold_key_while_waiting=checked_flag(options.get("hold_key_while_waiting", False), "hold_key_while_waiting"),
    )


def check_size(text: str, limit: int, what: str) -> None:
    """`PayloadTooLarge` if the text is longer than `limit` bytes."""
    if len(text) * 4 > limit and (size := len(text.encode())) > limit:
        raise PayloadTooLarge(f"{what}: {size} bytes are more than the limit of {limit} bytes.")


@overload
def job(fn: Callable[Concatenate[Step, P], Awaitable[R]], /) -> Job[P, R]: ...
@overload
def job(fn: Callable[Concatenate[SyncStep, P], R], /) -> Job[P, R]: ...
@overload
def job(fn: Callable[P, Awaitable[R]], /) -> Job[P, R]: ...
@overload
def job(fn: Callable[P, R], /) -> Job[P, R]: ...
@overload
def job(**options: Unpack[JobOptions]) -> JobDecorator: ...
def job(fn: Any = None, /, **options: Any) -> Any:
    """Define a job without an app: `@job` or `@job(name=…)`. `app.register(it)` gives the handle that can trigger."""
    localns = sys._getframe(1).f_locals

    def decorate(fn: Callable[..., Any]) -> Job[Any, Any]:
        return Job(define(fn, checked_options(options), localns), None)

    return decorate if fn is None else decorate(fn)


def checked_options(options: dict[str, Any]) -> JobOptions:
    """The options, if all of them exist."""
    unknown = sorted(set(options) - set(JobOptions.__annotations__))
    if unknown:
        raise DefinitionError(
            f"job: there is no option {', '.join(map(repr, unknown))}. "
            f"There are: {', '.join(JobOptions.__annotations__)}."
        )
    return cast("JobOptions", options)
