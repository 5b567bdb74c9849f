"""`holdfast signal` and `holdfast wake`: say something to a run that waits for it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pydantic
import typer
from pydantic_core import from_json

from ..app import Holdfast
from ..basis.errors import NotFoundError, ValidationError
from ..basis.text import error_text
from ..basis.values import problems
from ..engine.arguments import checked_text
from ..job import SleepingJob
from ..run import Run
from .choice import AsJson, RunId, Url, need, of_module, opened, whole
from .far import App, is_server
from .terminal import plain_line, print_json, say
from .view import run_document

Place = Annotated[
    str | None,
    typer.Option("--app", "-a", metavar="MODULE:APP", help="The app, if it has a codec. Its database is used."),
]


def signal(
    context: typer.Context,
    run_id: RunId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the run waits for: step.wait_for_signal(NAME).")],
    value: Annotated[
        str, typer.Argument(metavar="[VALUE-JSON]", help="The value, as JSON. Without one: null.", show_default=False)
    ] = "null",
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="Of several with one key the first counts.")
    ] = None,
    place: Place = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Send a value to a run, which it may wait for now or later. Done when it is durable.

    A text is JSON only in quotes: holdfast signal RUN_ID approval '"yes"'.
    """
    sent = _json(value, "VALUE-JSON")
    if place is None:
        with opened(url) as app:
            _send(app, run_id, name, sent, key)
    else:
        app = of_module(place, context, url)
        try:
            _send(app, run_id, name, sent, key)
        finally:
            app.stop().wait()
    if as_json:
        print_json({"run_id": run_id, "name": name, "value": sent, "key": key})
    else:
        say(f"Sent {plain_line(name, 80)} to {run_id}")


def _send(app: App, run_id: str, name: str, value: Any, key: str | None) -> None:
    if not name:
        raise ValidationError("NAME: give the name of the signal, as in step.wait_for_signal(NAME).")
    with whole(run_id):
        app.send_signal(run_id, checked_text(name, "NAME"), value, key=key).wait()


def wake(
    context: typer.Context,
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="The name of the sleeping job; or the id of a run, without a KEY.")
    ],
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="Which of its runs: what it was triggered with.", show_default=False),
    ] = None,
    place: Annotated[str | None, typer.Option("--app", "-a", metavar="MODULE:APP", help="Where the job is.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="JSON", help="What it came to, as JSON.")
    ] = None,
    error: Annotated[str | None, typer.Option("--error", "-e", metavar="TEXT", help="Why it fails.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Say what the sleeping run of a key has come to: its output, or its error. The first word counts.

    If there is no such run yet, there is from now on. A worker has to end it. The output is checked against the type
    that the job was made with, so this needs the app: --app module:app. Its database is used. A server (--url http://…)
    has the app.
    """
    if (output is None) == (error is None):
        raise ValidationError("give --output or --error, one of them")
    if place is None and is_server(url):
        with opened(url) as server:
            run = _wake_there(server, job, key, output, error)
        _told(run, as_json, "has ended")  # before, or by this
        return
    if place is None:
        raise ValidationError(
            "wake checks the output against the job's type, so it needs the app: "
            f"holdfast wake {job}{'' if key is None else ' ' + key} --app yourmodule:app …"
        )
    app = of_module(place, context, url)
    try:
        sleeper, known_by = _sleeper(app, place, job, key)
        if output is None:
            run = app.wake(sleeper, known_by, error=error).wait()
        else:
            run = app.wake(sleeper, known_by, output=_typed(sleeper, output)).wait()
        run = run.refresh().wait()
    finally:
        app.stop().wait()
    _told(run, as_json)


def _wake_there(server: App, job: str, key: str | None, output: str | None, error: str | None) -> Run[Any]:
    """The same by a server, which checks it."""
    meant = None
    if key is None:
        run = need(server, meant := job)
        if run.idempotency_key is None:
            raise ValidationError(f"JOB: run {job} is one of {run.job_name!r}, which is no sleeping job.")
        job, key = run.job_name, run.idempotency_key
    ours: Any = server
    said: dict[str, Any] = {"error": error} if output is None else {"output": _json(output, "--output")}
    woken: Run[Any] = ours.wake(job, key, **said).wait()
    if meant not in (None, woken.id):
        raise ValidationError(
            f"JOB: run {meant} is a tenant's, whose keys are apart from yours: {woken.id}, of the same key, was woken "
            "instead. Wake it as that tenant, or with --app."
        )
    return woken


def _told(run: Run[Any], as_json: bool, ended: str = "has ended before") -> None:
    if as_json:
        print_json({"run": run_document(run)})
    elif run.is_terminal:
        say(f"{run.job_name} {run.id} {ended}: {run.status}")
    else:
        say(f"Woke {run.job_name} {run.id}")


def _sleeper(app: Holdfast, place: str, job: str, key: str | None) -> tuple[SleepingJob[Any], str]:
    """The sleeping job, and the key of the run that is meant."""
    if key is None:
        run = need(app, job)
        known = app.get_job(run.job_name)
        if run.idempotency_key is None or not isinstance(known, SleepingJob):
            raise ValidationError(f"JOB: run {job} is one of {run.job_name!r}, which is no sleeping job.{_hint(app)}")
        return (known.options(tenant=from_json(run._row.tenant)) if run._row.tenant else known), run.idempotency_key
    found = app.get_job(job)
    if found is None:
        raise NotFoundError(f"JOB: {place} has no job {job!r}.{_hint(app)}")
    if not isinstance(found, SleepingJob):
        raise ValidationError(f"JOB: {job!r} is no sleeping job (app.sleeping(…)).{_hint(app)}")
    return found, key


def _json(text: str, field: str) -> Any:
    def refuse(word: str) -> Any:
        raise ValueError(f"JSON has no {word}")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        hint = " A text needs quotes of its own: '\"like this\"'." if text[:1] not in ("{", "[", '"') else ""
        raise ValidationError(
            f"{field}: {plain_line(text, 60)!r} is no JSON: {error_text(error, 200)}.{hint}"
        ) from None


def _typed(job: SleepingJob[Any], text: str) -> Any:
    _json(text, "--output")
    try:
        return job._definition.signature.output.validate_json(text)
    except pydantic.ValidationError as error:
        raise ValidationError(f"--output: {problems(error)}") from None


def _hint(app: Holdfast) -> str:
    names = [name for name in app._engine.registry.names() if isinstance(app.get_job(name), SleepingJob)]
    return f" Its sleeping jobs: {', '.join(sorted(names))}." if names else " It has no sleeping jobs."
