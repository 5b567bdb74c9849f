"""`holdfast runs …`: look at the runs of a database, and act on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.text import Text

from ..app import Holdfast
from ..basis.errors import NotFoundError, ValidationError
from ..run import Run
from . import exits
from .load import app_at, app_for
from .progress import Bar
from .terminal import plain_line, print_json, say
from .terminal import show as show_table
from .view import (
    log_document,
    log_text,
    progress_line,
    run_document,
    run_table,
    runs_table,
    step_document,
    steps_table,
)

runs: typer.Typer = typer.Typer(
    help="List, show, watch, cancel and retrigger runs.", no_args_is_help=True, epilog=exits.EPILOG
)

Url = Annotated[
    str | None,
    typer.Option("--url", "-u", envvar="HOLDFAST_URL", help="The database: sqlite:///path/to/file.db"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")]
RunId = Annotated[str, typer.Argument(help="The id of the run.", metavar="RUN_ID")]

#: How often `watch` looks. Ends are noticed sooner, by the library.
_LOOK_SECONDS = 0.15
_LOGS_SHOWN = 10
_STEPS_SHOWN = 50


#: Every id is this long. Shorter ones are what is left of one that was cut.
_ID_LENGTH = 26


@contextmanager
def whole(run_id: str) -> Iterator[None]:
    """Tells those who gave only the beginning of an id that it takes all of it."""
    try:
        yield
    except NotFoundError as error:
        if len(run_id) < _ID_LENGTH and run_id in error.message:
            raise NotFoundError(f"{error.message} (Give the whole id: it has {_ID_LENGTH} characters.)") from error
        raise


@contextmanager
def opened(url: str | None) -> Iterator[Holdfast]:
    """The app of this database, closed afterwards."""
    app = app_for(url)
    try:
        yield app
    finally:
        app.stop().wait()


@runs.command("list", epilog=exits.EPILOG)
def list_runs(
    url: Url = None,
    job: Annotated[list[str] | None, typer.Option("--job", "-j", help="Only of this job (repeatable).")] = None,
    status: Annotated[
        list[str] | None, typer.Option("--status", "-s", help="Only in this status (repeatable).")
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="Only with this key=value.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    with opened(url) as app:
        found = app.get_runs(job=job, status=status, labels=_labels(label), limit=limit).wait()
    if as_json:
        print_json({"runs": [run_document(run) for run in found]})
    elif found:
        show_table(runs_table(found))
    else:
        say("No runs that fit." if job or status or label else "No runs yet.")


@runs.command(epilog=exits.EPILOG)
def show(
    run_id: RunId,
    url: Url = None,
    logs: Annotated[int, typer.Option("--logs", min=0, help="How many of the last log lines.")] = _LOGS_SHOWN,
    all_steps: Annotated[bool, typer.Option("--all", help="Every step and every log line.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run: what it is, its steps, its last log lines. As JSON: all of them."""
    with opened(url) as app:
        run = _need(app, run_id)
        steps = app.get_steps(run_id).wait()
        lines = app.get_logs(run_id).wait()
    if as_json:
        print_json(
            {
                "run": run_document(run),
                "steps": [step_document(step) for step in steps],
                "logs": [log_document(line) for line in lines],
            }
        )
        return
    show_table(run_table(run))
    if steps:
        # The end of a run is what one looks for: the last step, the one that failed.
        left_out = 0 if all_steps else max(0, len(steps) - _STEPS_SHOWN)
        say("")
        if left_out:
            say(Text(f"… {left_out} earlier steps (--all shows them)", style="dim"))
        show_table(steps_table(steps[left_out:]))
    shown = lines if all_steps else lines[len(lines) - min(logs, len(lines)) :]
    if shown:
        say("")
        if len(shown) < len(lines):
            say(Text(f"… {len(lines) - len(shown)} earlier log lines (--all shows them)", style="dim"))
        for line in shown:
            say(log_text(line))


@runs.command(epilog=exits.EPILOG)
def watch(run_id: RunId, url: Url = None, as_json: AsJson = False) -> None:
    """Follow a run to its end: status, progress and log lines. The exit code tells how it ended."""
    with opened(url) as app:
        run = _need(app, run_id)
        try:
            run = _follow(app, run, quiet=as_json)
        except KeyboardInterrupt:
            if not as_json:
                say(f"Stopped watching; the run goes on: {run.id}")
            raise typer.Exit(exits.INTERRUPTED) from None
    if as_json:
        print_json({"run": run_document(run)})
    else:
        show_table(run_table(run))
    raise typer.Exit(exits.of_run(run.status))


def _follow(app: Holdfast, run: Run[Any], *, quiet: bool) -> Run[Any]:
    end = run.wait()
    if quiet:
        return end.wait()
    last_line = 0
    with Bar() as bar:
        while True:
            told = run.progress or {}
            name = f"{plain_line(run.job_name, 30)} {run.status}"
            bar.show(name, told.get("current"), told.get("total"), progress_line(run))
            for line in app.get_logs(run.id, after=last_line).wait():
                bar.say(log_text(line))
                last_line = line.id
            if run.is_terminal:
                return run
            try:
                run = end.wait(_LOOK_SECONDS)
            except TimeoutError:
                if end.done():
                    raise
                run = run.refresh().wait()


@runs.command(epilog=exits.EPILOG)
def cancel(run_id: RunId, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel a run. A step that is under way may finish; no new one begins."""
    with opened(url) as app, whole(run_id):
        run = app.cancel(run_id).wait()
    if as_json:
        print_json({"run": run_document(run)})
    else:
        say(f"Cancelled {run.job_name} {run.id}")


@runs.command(epilog=exits.EPILOG)
def retrigger(
    context: typer.Context,
    run_id: RunId,
    place: Annotated[str | None, typer.Option("--app", "-a", metavar="MODULE:APP", help="Where the job is.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a fresh run with the input of an ended one. A worker has to execute it.

    The stored input is checked against today's code, so this needs the app: --app module:app. Its database is used.
    """
    if place is None:
        raise ValidationError(
            "retrigger checks the stored input against the job as it is today, so it needs the app: "
            f"holdfast runs retrigger {run_id} --app yourmodule:app"
        )
    app = app_at(place)
    source = context.get_parameter_source("url")
    if url and source is not None and source.name == "COMMANDLINE" and url != app._engine.store.name:
        raise ValidationError(
            f"{place} uses {app._engine.store.name}, not {url}. Leave --url out, or set the app's own database."
        )
    try:
        with whole(run_id):
            run = app.retrigger(run_id).wait()
    finally:
        app.stop().wait()
    if as_json:
        print_json({"run": run_document(run), "retriggered_from": run_id})
    else:
        say(f"Triggered {run.job_name} again: {run.id}")


def _need(app: Holdfast, run_id: str) -> Run[Any]:
    with whole(run_id):
        run = app.get_run(run_id).wait()
        if run is None:
            raise NotFoundError(f"Run not found: {run_id}")
    return run


def _labels(given: list[str] | None) -> dict[str, str]:
    labels = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise ValidationError(f"--label {one!r}: write key=value")
        labels[key] = value
    return labels
