"""Routes of our own client: runs with everything that is known of them, and triggers that answer with the run."""

from __future__ import annotations

import contextlib
from typing import Any

from ..basis.errors import ConflictError, NotFoundError, ValidationError
from ..run import Run
from .acting import call_of, check_shown, triggered
from .asked import Asked
from .messages import Response, json_response
from .schemas import MOST_CALLS
from .wire import full_run


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
    """Write a run of each call, all or none; the runs, in the order of the calls."""
    calls = (await asked.body()).get("calls")
    if not isinstance(calls, list) or not all(isinstance(one, dict) for one in calls):
        raise ValidationError("calls: give a list of objects, each as for /trigger.")
    if len(calls) > MOST_CALLS:
        raise ValidationError(f"calls: {len(calls)} are more than {MOST_CALLS}.")
    if len(calls) == 1:
        return _told([await triggered(asked, await call_of(asked, calls[0], is_strict=True))])
    checked = []
    for index, body in enumerate(calls):
        try:
            checked.append(await call_of(asked, body, is_strict=True))
        except (ValidationError, NotFoundError, ConflictError) as error:
            raise type(error)(f"calls[{index}]: {error.message}") from error
    runs = await asked.app.trigger_many(checked)
    try:
        for run in runs:
            await check_shown(asked, run)
    except BaseException:
        await _take_back(asked, runs)
        raise
    return _told(runs)


async def _take_back(asked: Asked, runs: list[Run[Any]]) -> None:
    """All or none: what was written beside a run that is not to be shown goes again, whether it has begun or not."""
    for run in runs:
        if run.disposition == "created":
            with contextlib.suppress(ConflictError, NotFoundError):
                await asked.app.cancel(run.id)
            with contextlib.suppress(ConflictError, NotFoundError):
                await asked.app.delete_run(run.id)


def _told(runs: list[Run[Any]]) -> Response:
    return json_response({"runs": [{"run": full_run(run), "disposition": run.disposition} for run in runs]})
