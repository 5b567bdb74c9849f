"""Routes of our own client: runs with everything that is known of them, and triggers that answer with the run."""

from __future__ import annotations

import re
from typing import Any

from ..basis.errors import ConflictError, NotFoundError, ValidationError
from ..engine.call import Call
from ..run import Run
from .acting import HIDDEN, call_of, taken, triggered
from .asked import Asked
from .messages import Response, json_response
from .naming import check_names
from .need import Need
from .schemas import MANY, MOST_CALLS
from .wire import full_run

_INDEX = re.compile(r"calls\[(\d+)\]: ")


async def record(asked: Asked) -> Response:
    """The run as it is now, with everything that is known of it."""
    return json_response(full_run(asked.run))


async def list_records(asked: Asked) -> Response:
    """A page of runs, newest first; with `nextBefore` as `before` the next one is asked for, until it is null."""
    scope, limit, states = asked.scope, asked.at_most(), asked.states()
    limit = min(scope.get("limit", limit), limit)
    found: list[Run[Any]] = []
    if not asked.sees_nothing:
        found = await asked.app._get_runs(
            jobs=asked.job_names(),
            status=states,
            labels=scope.get("labels"),
            limit=limit + 1,
            offset=scope.get("offset", 0),
            before=asked.param("before"),
        )
    page = found[:limit]
    more = page[-1].id if page and len(found) > limit else None  # of a page of none nothing is known
    return json_response({"runs": [full_run(run) for run in page], "nextBefore": more})


async def trigger_many(asked: Asked) -> Response:
    """Write a run of each call, all or none; the runs, in the order of the calls.

    What has been written may have begun at once, and is not taken back: who asks may see what the keys lead to, or
    nothing is written.
    """
    body = await asked.body()
    check_names(body, MANY["properties"], is_strict=True)
    calls = body.get("calls")
    if not isinstance(calls, list) or not all(isinstance(one, dict) for one in calls):
        raise ValidationError("calls: give a list of objects, each as for /trigger.")
    if len(calls) > MOST_CALLS:
        raise ValidationError(f"calls: {len(calls)} are more than {MOST_CALLS}.")
    if len(calls) == 1:
        return _told([await triggered(asked, await call_of(asked, calls[0], is_strict=True))])
    checked = []
    for index, one in enumerate(calls):
        try:
            checked.append(await call_of(asked, one, is_strict=True))
        except (ValidationError, NotFoundError, ConflictError) as error:
            raise type(error)(f"calls[{index}]: {error.message}") from error
    seen = await _check_standing(asked, checked)
    try:
        runs = await asked.app.trigger_many(checked)
    except ConflictError as error:
        raise _as_sent(asked, checked, error) from error
    await _check_met(asked, runs, seen)
    return _told(runs)


def _as_sent(asked: Asked, calls: list[Call[Any]], error: ConflictError) -> ConflictError:
    """The same as for one: of a tenant the key that stands in rows is another than the one that was sent."""
    named = _INDEX.match(error.message)
    if named is None:
        return error
    call = calls[int(named[1])]
    said = taken(asked, call.options.concurrency_key, call.job_name)
    return ConflictError(f"{named[0]}{said.message}")


async def _check_standing(asked: Asked, calls: list[Call[Any]]) -> set[str]:
    """Nothing is written if a key leads to a run that whoever asks may not see. The ids of those that they may."""
    seen: set[str] = set()
    keyed = [index for index, call in enumerate(calls) if _has_key(call)]
    if not keyed or asked.auth is None:
        return seen  # without hooks everybody may see everything
    standing = await asked.app._standing([calls[index] for index in keyed])
    for index, run in zip(keyed, standing, strict=True):
        if run is None or run.id in seen:
            continue
        if not await asked.may(run, Need.READ):
            raise ConflictError(f"calls[{index}]: {HIDDEN}")
        seen.add(run.id)
    return seen


def _has_key(call: Call[Any]) -> bool:
    return call.options.idempotency_key is not None or call.options.concurrency_key is not None


async def _check_met(asked: Asked, runs: list[Run[Any]], seen: set[str]) -> None:
    """The same of runs that have come only since: then the others are written, and may have begun. They stay."""
    made = [run.id for run in runs if run.disposition == "created"]
    seen |= {*made}
    for index, run in enumerate(runs):
        if run.id in seen:
            continue
        if not await asked.may(run, Need.READ):
            told = f" It has come only now: these runs of the other calls are written: {', '.join(made)}."
            raise ConflictError(f"calls[{index}]: {HIDDEN}{told if made else ''}")
        seen.add(run.id)


def _told(runs: list[Run[Any]]) -> Response:
    return json_response({"runs": [{"run": full_run(run), "disposition": run.disposition} for run in runs]})
