"""A job whose body is a run elsewhere: `remote_job(url, job)`.

Its run triggers one at the server, by a key made of its own id and a number, and follows that to its end. Both are
steps: who executes it again after a crash asks with the same key, and gets the run that is there. A fresh run is
triggered only by a retry, and only once the one before is known to have ended badly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from typing_extensions import TypedDict

from ..basis.errors import ConflictError, DefinitionError, NonRetryable, NotFoundError, RunFailed, RunTimedOut
from ..basis.text import shown
from ..basis.values import shape_of
from ..commit.reply import Reply
from ..engine.call import Call, TriggerOptions
from ..engine.compose import Composed
from ..engine.context import STEP_TYPES, Step
from ..engine.outcome import Outcome
from ..engine.schema import Signature
from ..engine.signals import AbortSignal
from ..job import Job, JobOptions, checked_options, define
from ..model.run import RunStatus
from ..rules.lifecycle import Cause
from ..run import Run
from .client import AnyCall, Client
from .documents import success
from .errors import Refused, ServerError
from .line import Headers
from .named import NamedCall

P = ParamSpec("P")
R = TypeVar("R")

#: Answers that another try of the run may change. (502, 503, 504, 408 and 429 are `ServerUnavailable`.)
_MAY_PASS = frozenset({500})


class Seen(TypedDict):
    """What a run elsewhere has come to, and in which attempt of the run here that was seen."""

    state: str
    output: str | None
    error: str | None
    error_type: str | None
    attempt: int


@dataclass(frozen=True)
class Elsewhere:
    """What the run of a remote job does."""

    client: Client
    target: Job[..., Any] | str
    options: TriggerOptions = field(repr=False)

    async def __call__(self, step: Step, *args: Any, **kwargs: Any) -> Outcome:
        known: list[str] = []

        def told(reason: str) -> None:
            # No later attempt will follow it, so it shall not go on for nobody.
            if reason == "cancelled" or (reason == "timeout" and step._execution.is_last):
                for run_id in known:
                    self._cancel(run_id)

        async def start(key: str, signal: AbortSignal | None = None) -> str:
            assert signal is not None
            with _Mapped():
                triggering = self._trigger(self._call(args, kwargs, key))
                run = await _unless(signal, triggering)
            if run is None:
                # It may be there for all that, or come to be: who is told of it then ends it, if nobody will follow.
                triggering.when_done(lambda: self._late(triggering, step, told, known))
                step.raise_if_aborted()
                raise AssertionError("not reached")
            known.append(run.id)
            if step.signal.reason is not None:
                told(step.signal.reason)
            return run.id

        async def follow(run_id: str, signal: AbortSignal | None = None) -> Seen:
            assert signal is not None
            with _Mapped():
                run = await _unless(signal, self.client.wait_for_run(run_id, on_progress=lambda at: _pass_on(step, at)))
            if run is None:
                step.raise_if_aborted()
                raise AssertionError("not reached")
            row = run._row
            return Seen(
                state=row.status, output=row.output, error=run.error, error_type=row.error_type, attempt=step.attempt
            )

        off = step.signal.on_abort(told)
        try:
            for number in count():
                run_id = await step.run("start", start, f"{step.run_id}:{number}")
                known[:] = [run_id]
                seen = await step.run("follow", follow, run_id)
                if seen["state"] == RunStatus.COMPLETED:
                    return Outcome(Cause.COMPLETE, output=seen["output"] or "null")
                # What was seen in an attempt before is why there is this one.
                if seen["state"] == RunStatus.CANCELLED or seen["attempt"] == step.attempt:
                    raise _failure(run_id, seen)
        finally:
            off()
        raise AssertionError("not reached")

    def _trigger(self, call: AnyCall) -> Reply[Run[Any]]:
        client = self.client
        return client._trigger_all([call], f"trigger of {call.job_name}", lambda runs: runs[0], client._engine.patience)

    def _late(self, triggering: Reply[Run[Any]], step: Step, told: Callable[[str], None], known: list[str]) -> None:
        if triggering._error is None and step.signal.reason is not None:
            known.append(triggering._take().id)
            told(step.signal.reason)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: str) -> AnyCall:
        options = replace(self.options, idempotency_key=key)
        if isinstance(self.target, str):
            (given,) = (*args, *kwargs.values())
            return NamedCall(self.target, (), given, options)
        definition = self.target._definition
        # Not `Call[Any](…)`: before Python 3.12 that can't make a frozen dataclass with slots.
        call: Call[Any] = Call(definition, definition.signature.encode(args, kwargs), options)
        return call

    def _cancel(self, run_id: str) -> None:
        line = self.client._engine

        async def work() -> None:
            try:
                asked = [("runId", run_id)]
                await line.ask("POST", "/cancel", asked, read=success, is_safe=True, retry=line.patience)
            except (ConflictError, NotFoundError):
                pass  # it has ended, perhaps by an answer that was lost

        line.asked(f"cancel of {run_id}", work)


def _pass_on(step: Step, at: dict[str, Any]) -> None:
    step.progress(at["current"], at.get("total"), at.get("message"))


async def _unless(signal: AbortSignal, waiting: Awaitable[R]) -> R | None:
    """What is awaited; None if the signal is set first."""

    async def wait() -> R:
        return await waiting

    async def abort() -> None:
        await signal

    tasks = asyncio.ensure_future(wait()), asyncio.ensure_future(abort())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # Also if both: the run has ended, whatever becomes of this one.
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()


class _Mapped:
    """What can't be mended by another try is raised as that, with its own name as the kind."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        final = isinstance(error, Refused | ConflictError)
        if isinstance(error, ServerError):
            final = error.answered not in _MAY_PASS
        if final:
            raise NonRetryable(str(error), kind=type(error).__name__) from error


def _failure(run_id: str, seen: Seen) -> Exception:
    message = seen["error"] or f"Run ended as {seen['state']}: {run_id}"
    if seen["state"] == RunStatus.CANCELLED:
        return NonRetryable(f"Run was cancelled: {run_id}", kind="RunCancelled")
    if seen["state"] == RunStatus.TIMED_OUT:
        return RunTimedOut(message, run_id=run_id, error_type=seen["error_type"])
    return RunFailed(message, run_id=run_id, error_type=seen["error_type"])


def _by_name(input: dict[str, Any]) -> Any: ...


@overload
def remote_job(
    at: str | Client, job: Job[P, R], /, *, headers: Headers | None = None, **options: Unpack[JobOptions]
) -> Job[P, R]: ...
@overload
def remote_job(
    at: str | Client, job: str, /, *, headers: Headers | None = None, **options: Unpack[JobOptions]
) -> Job[[dict[str, Any]], Any]: ...
def remote_job(at: Any, job: Any, /, *, headers: Headers | None = None, **options: Any) -> Any:
    """A job whose body is a run at a server: give its URL or a `Client`, and the job there or its name.

    It takes and gives what that job does; known by name only, it takes one object with the input. Register it with
    your app. The run there is triggered once, also through crashes of the worker here; it is followed to its end, its
    progress is passed on, and it is cancelled when the run here is. `options` are those of `@app.job`: `name` is that
    of the job there unless given; with `retry`, what may pass (no answer, 408, 429, 500, 502, 503, 504) and a run that
    failed or timed out there are tried again, the latter with a fresh run.
    """
    if not isinstance(job, str | Job):
        raise DefinitionError(f"remote_job: {shown(job)} is neither a job nor the name of one.")
    given = checked_options({"name": job if isinstance(job, str) else job.name, **options})
    client = at if isinstance(at, Client) else Client(at, headers=headers)
    if isinstance(at, Client) and headers is not None:
        raise DefinitionError("remote_job: the client has headers of its own.")
    target: Job[..., Any] | str = job if isinstance(job, str) else client.job(job)
    body = Elsewhere(client, target, TriggerOptions() if isinstance(job, str) else job._options)
    if isinstance(job, str):
        signature = Composed(Signature(_by_name, STEP_TYPES), shape_of)
        key = "".join(one if one.isalnum() else "_" for one in job)
    else:
        definition = job._definition
        signature = Composed(definition.signature, lambda: definition.output)
        key = definition.key
    made = replace(define(_by_name, given, None), key=key, fn=body, signature=signature)
    return Job(made, None)
