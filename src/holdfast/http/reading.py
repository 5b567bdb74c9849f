"""The routes that read: they change nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from ..job import SleepingJob
from ..model.run import RunStatus
from ..run import Run
from ..store.base import Store
from .asked import Asked
from .messages import Response, error_response, json_response
from .openapi import document
from .wire import camel, client_run, client_step, full_run, full_step, log_line, worker

#: After these ends the ancestor has no steps any more, unless they are to be preserved.
_STEPS_GO = frozenset(RunStatus.terminal() - {RunStatus.CANCELLED})
_SAVED = ("completed", "failed")


async def list_runs(asked: Asked) -> Response:
    """Runs, newest first."""
    scope = asked.scope
    limit = min(scope.get("limit", asked.handler.max_page), asked.handler.max_page)
    if asked.sees_nothing:
        return json_response([])
    runs = await asked.app._get_runs(
        jobs=asked.job_names(),
        status=asked.statuses(),
        labels=scope.get("labels"),
        limit=limit,
        offset=scope.get("offset", 0),
        before=asked.param("before"),
    )
    return json_response([client_run(asked.as_told(run)) for run in runs])


async def one_run(asked: Asked) -> Response:
    """The run as it is now."""
    return json_response(client_run(asked.run))


async def steps(asked: Asked) -> Response:
    """Saved steps, by their index; none once the run has ended by itself. `/run/steps` has them then, too."""
    run = asked.run
    if run.status in _STEPS_GO and not asked.app._engine.options.preserve_steps:
        return json_response([])
    found = await asked.app.get_steps(run.id)
    return json_response([client_step(run.id, step) for step in found if step.status in _SAVED])


async def all_steps(asked: Asked) -> Response:
    """Every step: saved, tried now, waiting, with its tries."""
    return json_response([full_step(step) for step in await asked.app.get_steps(asked.run.id)])


async def logs(asked: Asked) -> Response:
    """Lines of the log, in the order of writing."""
    found = await asked.app.get_logs(asked.run.id, after=asked.count("after") or 0, limit=asked.page())
    return json_response([log_line(line) for line in found])


async def children(asked: Asked) -> Response:
    """A page of the runs directly below it, newest first; with `nextBefore` as `before` the next one, until it is null.

    Those that may not be seen are left out, so a page may have fewer, or none, and others follow all the same.
    """
    asked.scope.update(asked.given_scope())
    labels = asked.scope.get("labels") or {}
    found: list[Run[Any]] = []
    states, limit = asked.states(), min(asked.page(), asked.at_most())
    if not asked.sees_nothing and asked.is_theirs({**asked.tenant, **labels}):
        found = await asked.app._get_runs(
            parent=asked.run.id, jobs=asked.job_names(), status=states, labels={**labels, **asked.tenant},
            limit=limit + 1, offset=asked.scope.get("offset", 0), before=asked.param("before"),
        )  # fmt: skip
    page = found[:limit]
    more = page[-1].id if page and len(found) > limit else None
    shown = [full_run(run) for run in page if await asked.may(run, asked.need)]
    return json_response({"runs": shown, "nextBefore": more})


async def jobs(asked: Asked) -> Response:
    """The jobs of the app, with the schemas of what they take and give."""
    app = asked.app
    found: list[dict[str, Any]] = []
    for definition in sorted(app._engine.registry.all(), key=lambda one: one.name):
        job = app.get_job(definition.name)
        assert job is not None
        found.append(
            {
                "name": job.name,
                "key": definition.key,
                "isSleeping": isinstance(job, SleepingJob),
                "parameters": list(definition.signature.names),
                "takesModel": definition.signature.takes_model,
                "inputSchema": job.input_schema,
                "outputSchema": job.output_schema,
            }
        )
    return json_response(found)


async def stats(asked: Asked) -> Response:
    """How the process that answers is doing."""
    found = asdict(asked.app.stats())
    verbs = {verb: _named(figures) for verb, figures in found.pop("verbs").items()}
    return json_response(_named(found) | {"verbs": verbs})


async def workers(asked: Asked) -> Response:
    """Who executes runs of this database."""
    return json_response([worker(record) for record in await asked.app.workers()])


async def health(asked: Asked) -> Response:  # noqa: ARG001 - the process answers: that is all
    """The process lives."""
    return json_response({"status": "ok"})


async def ready(asked: Asked) -> Response:
    """The database answers, and has the tables."""
    engine = asked.app._engine
    store: Store = engine.store
    try:
        await engine.reader.read("check_schema", store.check_schema, lambda _: None)
    except Exception:
        return error_response(503, "The database can't serve us now.", {"Retry-After": "1"})
    return json_response({"status": "ok"})


async def openapi(asked: Asked) -> Response:
    """What there is to ask."""
    from .routes import ROUTES

    return json_response(document(ROUTES, quote(asked.request.root.rstrip("/") + asked.handler.base_path)))


def _named(value: Any) -> Any:
    """The same, under names of the wire."""
    if isinstance(value, dict):
        return {camel(key) if isinstance(key, str) else key: _named(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_named(inner) for inner in value]
    return value
