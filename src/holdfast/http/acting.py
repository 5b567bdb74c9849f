"""The routes that write: they trigger runs, end them, and say something to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

import pydantic
from pydantic_core import to_json

from ..basis.durations import micros
from ..basis.errors import ConflictError, NotFoundError, ValidationError
from ..basis.text import shown
from ..basis.values import problems
from ..engine.arguments import (
    checked_coalesce,
    checked_limit_of_time,
    checked_moment,
    checked_priority,
    checked_text,
)
from ..engine.call import Call, TriggerOptions, key_of_tenant
from ..engine.registry import checked_key, checked_labels, checked_name
from ..engine.validation import asked_at_triggers, encode_object
from ..job import Job, SleepingJob
from ..managing import _NOTHING
from ..model.retry import Retry
from ..run import Run
from .aside import aside
from .asked import Asked
from .auth import called
from .messages import Reject, Response, json_response
from .naming import check_names
from .need import Need
from .schemas import SIGNAL, TRIGGER, WAKE
from .wire import camel, statuses_of

#: Of a run that is not to be shown: that there is one can't be hidden from who may not make another.
HIDDEN = "There is a run of this key already."


async def trigger(asked: Asked) -> Response:
    """Write a run."""
    # What may be wrong is looked at in the order of the ancestor.
    call = await call_of(asked, await asked.body())
    run = await triggered(asked, call)
    return json_response({"runId": run.id, "disposition": run.disposition})


async def call_of(asked: Asked, body: dict[str, Any], *, is_strict: bool = False) -> Call[Any]:
    """The call that a body asks for, as whoever asks may have it. Strict: it has no names that nobody knows."""
    job = _job(asked, body.get("jobName"))
    hook = None if asked.auth is None else asked.auth.on_trigger
    if is_strict or hook is None:
        check_names(body, TRIGGER["properties"], is_strict=is_strict)
    if hook is not None:
        given = await called("on_trigger", hook, asked.who, body)
        if given is not None and given is not True and given is not body:  # of another one nothing would count
            raise TypeError(f"on_trigger gave {type(given).__name__}, not None or a bool: it changes the body in place")
        # Only now: the hook may have taken out names of its own.
        check_names(body, TRIGGER["properties"], is_strict=False)
        job = _job(asked, body.get("jobName"))  # that, too, it may have changed
    options = _options(body)
    if is_strict:
        _check_input_names(job, body.get("input"))
    text = await _input(job, body)
    labels = checked_labels({} if body.get("labels") is None else body["labels"])
    if isinstance(job, SleepingJob):
        key = checked_key(body["input"].get("key"), "key")
        if key is None:
            raise ValidationError("Invalid input: key: a sleeping run needs one that is not empty.")
        options = replace(options, idempotency_key=key)
    options = replace(
        options,
        labels={**labels, **asked.tenant},
        tenant=asked.tenant_text,
        concurrency_key=_key_of_tenant(asked, options.concurrency_key),
    )
    asked.app._check_size(text)
    return Call(job._definition, text, options)


async def triggered(asked: Asked, call: Call[Any]) -> Run[Any]:
    """The run of the call. `ConflictError` in the words of the ancestor."""
    try:
        run = await asked.app._trigger(call)
    except ConflictError as error:
        raise taken(asked, call.options.concurrency_key, call.job_name) from error
    await check_shown(asked, run)
    return run


async def check_shown(asked: Asked, run: Run[Any]) -> None:
    """A key may have led to a run that whoever asks may not see."""
    if run.disposition != "created" and not await asked.may(run, Need.READ):
        raise ConflictError(HIDDEN)


def _job(asked: Asked, name: object) -> Job[..., Any]:
    if not name:
        raise ValidationError("jobName is required")
    job = asked.app.get_job(name) if isinstance(name, str) else None
    if job is None:
        raise NotFoundError(f"Job not found: {name if isinstance(name, str) else shown(name)}"[:300])
    return job


def _check_input_names(job: Job[..., Any], given: object) -> None:
    signature = job._definition.signature
    if isinstance(given, dict) and not signature.takes_model:  # a model says itself what it does with others
        for name in given:
            if name not in signature.names:
                known = ", ".join(signature.names) or "none"
                raise ValidationError(f"Invalid input: {shown(name)}: there is no such parameter. There are: {known}.")


def _options(body: Mapping[str, Any]) -> TriggerOptions:
    options = TriggerOptions(
        idempotency_key=checked_key(body.get("idempotencyKey"), "idempotencyKey"),
        concurrency_key=checked_key(body.get("concurrencyKey"), "concurrencyKey"),
        coalesce=None if body.get("coalesce") is None else checked_coalesce(body["coalesce"]),
        priority=None if body.get("priority") is None else checked_priority(body["priority"]),
        queue=None if body.get("queue") is None else checked_name(body["queue"], "queue"),
        delay=None if body.get("delay") is None else micros(body["delay"], "delay"),
        run_at=None if body.get("runAt") is None else _moment(body["runAt"]),
        retry=None if body.get("retry") is None else _retry(body["retry"]),
        timeout=None if body.get("timeout") is None else checked_limit_of_time(body["timeout"], "timeout"),
        deadline=None if body.get("deadline") is None else checked_limit_of_time(body["deadline"], "deadline"),
    )
    if options.delay is not None and options.run_at is not None:
        raise ValidationError("Give delay or runAt, not both.")
    if options.coalesce is not None and options.concurrency_key is None:
        raise ValidationError("coalesce requires concurrencyKey")
    return options


def _moment(given: object) -> int:
    try:
        when = datetime.fromisoformat(given) if isinstance(given, str) else None
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise ValidationError(f"runAt: {shown(given)} is no moment with a time zone, such as 2026-01-31T08:30:00Z.")
    return checked_moment(when, "runAt")


_RETRY = {camel(field.name): field.name for field in fields(Retry)}


def _retry(given: object) -> str:
    if not isinstance(given, dict) or "maxRetries" not in given or not _RETRY.keys() >= given.keys():
        raise ValidationError(
            "retry: give an object with maxRetries, and of delay, factor, maxDelay, jitter what you want."
        )
    return Retry(**{_RETRY[key]: value for key, value in given.items()}).to_json()


async def _input(job: Job[..., Any], body: Mapping[str, Any]) -> str:
    definition = job._definition
    given = body.get("input")
    if given is None and not definition.signature.names:
        given = {}
    if not isinstance(given, dict):
        what = "missing" if "input" not in body else "no object"
        raise ValidationError(f"Invalid input: it is {what}; give an object by parameter name.")
    if asked_at_triggers(definition):
        # The user's own code: it may take its time, and the loop serves all streams.
        return await aside(encode_object, definition, given)
    return encode_object(definition, given)


def _key_of_tenant(asked: Asked, key: str | None) -> str | None:
    return checked_key(key_of_tenant(key, asked.tenant_text), "concurrencyKey")


def taken(asked: Asked, key: str | None, job_name: str) -> ConflictError:
    """That a run of the key waits, in the words of the ancestor; the key as it was sent."""
    sent = (key or "").removeprefix(f"{asked.tenant_text}:") if asked.tenant else key
    return ConflictError(
        f'A pending run already exists for concurrency key "{sent}" in job "{job_name}". '
        "Use coalesce: 'skip' to return the existing run instead."
    )


async def retrigger(asked: Asked) -> Response:
    """A fresh run with the input of one that has ended. With `idempotencyKey` asking twice makes one."""
    again = await _again(asked, asked.run, checked_key(asked.param("idempotencyKey"), "idempotencyKey"))
    return json_response({"success": True, "runId": again.id})


async def _again(asked: Asked, run: Run[Any], key: str | None) -> Run[Any]:
    if run.is_terminal and asked.app.get_job(run.job_name) is None:
        raise NotFoundError(f"Unknown job: {run.job_name}")
    try:
        # Of whoever asks, if the run was written without a tenant: its key, too, is theirs alone.
        again = await asked.app._retrigger(run.id, key, asked.tenant_text)
    except ConflictError as error:
        if not run.is_terminal or run.concurrency_key is None:
            raise
        raise taken(asked, run.concurrency_key, run.job_name) from error
    await check_shown(asked, again)
    return again


async def cancel(asked: Asked) -> Response:
    """End it as cancelled."""
    await asked.app.cancel(asked.run.id)
    return json_response({"success": True})


async def delete(asked: Asked) -> Response:
    """Delete it with its steps and logs."""
    await asked.app.delete_run(asked.run.id)
    return json_response({"success": True})


async def signal(asked: Asked) -> Response:
    """Send a value to it."""
    body = await asked.body()
    check_names(body, SIGNAL["properties"], is_strict=True)
    name = body.get("name")
    if not isinstance(name, str) or not name:
        raise ValidationError("name is required")
    key = checked_key(body.get("key"), "key")
    await asked.app.send_signal(asked.run.id, checked_text(name, "name"), body.get("value"), key=key)
    return json_response({"success": True})


async def wake(asked: Asked) -> Response:
    """Say what a sleeping run has come to."""
    body = await asked.body()
    check_names(body, WAKE["properties"], is_strict=True)
    job = _job(asked, body.get("jobName"))
    if not isinstance(job, SleepingJob):
        raise ValidationError(f"{job.name} is no sleeping job.")
    key = checked_key(body.get("key"), "key")
    if key is None:
        raise ValidationError("key is required")
    if ("output" in body) == (body.get("error") is not None):
        raise ValidationError("Give output or error, one of them.")
    error = body.get("error")
    if error is not None and not isinstance(error, str):
        raise ValidationError("error: give a text.")
    output = _typed(job, body["output"]) if error is None else _NOTHING
    text = asked.app._last_word(job, output, error)
    # There may be no run of this key yet: then it is made, as by a trigger.
    call = await call_of(asked, {"jobName": job.name, "input": {"key": key}})
    if call.job_name != job.name:  # what was said was checked for this one
        raise TypeError(f"on_trigger made a wake of {job.name} one of {call.job_name}: it can't be that of another job")
    run = await asked.app._trigger(call)
    if run.disposition != "created" and not await asked.may(run, Need.WAKE):
        raise Reject(404, "Run not found")
    run = await asked.app._wake(call, text)
    return json_response({"success": True, "runId": run.id})


def _typed(job: SleepingJob[Any], given: Any) -> Any:
    try:
        return job._definition.signature.output.validate_json(to_json(given))
    except pydantic.ValidationError as error:
        raise ValidationError(f"output: {problems(error)}") from None


async def cancel_many(asked: Asked) -> Response:
    """Cancel the newest runs of a filter, as many as a page has; those that may not be, or have ended, are left."""
    return await _each(asked, Need.CANCEL, ("pending", "leased"), _cancel_one)


async def retrigger_many(asked: Asked) -> Response:
    """Trigger the newest runs of a filter again, as many as a page has. With `idempotencyKey` each of them once."""
    key = asked.param("idempotencyKey")

    def made_by_it(run: Run[Any]) -> bool:
        """Whether an earlier request with this key made it: it may have failed as well since."""
        start, _, of = (run.idempotency_key or "").rpartition(":")
        return key is not None and start == key and len(of) == len(run.id)

    def again(asked: Asked, run: Run[Any]) -> Awaitable[Run[Any]]:
        return _again(asked, run, None if key is None else checked_key(f"{key}:{run.id}", "idempotencyKey"))

    return await _each(asked, Need.RETRIGGER, ("failed", "cancelled"), again, made_by_it)


async def _check_no_body(asked: Asked) -> None:
    """A filter that nobody reads would mean all runs."""
    if (await asked.request.read(asked.handler.max_body)).strip() not in (b"", b"{}"):
        raise ValidationError("Filters go in the query, as in ?jobName=…&status=…; there is no body here.")


async def _cancel_one(asked: Asked, run: Run[Any]) -> Run[Any]:
    return await asked.app.cancel(run.id)


async def _each(
    asked: Asked,
    need: Need,
    unless_said: tuple[str, ...],
    act: Any,
    left_out: Callable[[Run[Any]], bool] = lambda _: False,
) -> Response:
    """Each by itself: what one of them does not allow is told, and does not keep the others."""
    await _check_no_body(asked)
    scope, states = asked.scope, asked.states() or tuple(ours for one in unless_said for ours in statuses_of(one))
    limit = min(scope.get("limit", asked.handler.max_page), asked.at_most())
    found: list[Run[Any]] = []
    if not asked.sees_nothing:
        found = await asked.app._get_runs(
            jobs=asked.job_names(),
            status=states,
            labels=scope.get("labels"),
            limit=limit,
            offset=0,
            before=asked.param("before"),
        )
    done: list[dict[str, str]] = []
    refused: list[dict[str, str]] = []
    for run in found:
        if left_out(run) or not await asked.may(run, need):
            continue
        try:
            result = await act(asked, run)
        except (ConflictError, NotFoundError, ValidationError) as error:
            refused.append({"runId": run.id, "error": error.message})
        else:
            done.append({"runId": run.id} if result.id == run.id else {"runId": run.id, "newRunId": result.id})
    more = found[-1].id if found and len(found) == limit else None
    return json_response({"done": done, "refused": refused, "nextBefore": more})
