"""`holdfast runs …`: look at the runs of a database, and act on them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from ..basis.clock import from_datetime
from ..basis.errors import HoldfastError, ValidationError
from ..basis.ids import first_id
from ..commit.reply import Reply
from ..model.run import RunStatus
from ..model.worker import why_nobody_takes
from ..run import Run
from . import exits
from .choice import (
    AsJson,
    ByJob,
    ByLabel,
    ByStatus,
    RunId,
    RunIds,
    Url,
    labels_of,
    moment_of,
    need,
    of_module,
    opened,
    statuses_of,
    whole,
)
from .far import App, is_server
from .terminal import print_json, say
from .terminal import show as show_table
from .timeline import timeline
from .tree import below, tree_of
from .view import log_document, log_text, run_document, run_table, runs_table, step_document

runs: typer.Typer = typer.Typer(
    help="List, show, watch, cancel, retrigger, delete and purge runs.", no_args_is_help=True, epilog=exits.EPILOG
)

_LOGS_SHOWN = 10
_STEPS_SHOWN = 50


@runs.command("list", epilog=exits.EPILOG)
def list_runs(
    url: Url = None,
    job: ByJob = None,
    status: ByStatus = None,
    label: ByLabel = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many.")] = 20,
    before: Annotated[str | None, typer.Option(metavar="RUN_ID", help="Only older runs: the next page.")] = None,
    since: Annotated[str | None, typer.Option(metavar="WHEN", help="Only made since then: a date, or 2h ago.")] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Only made until then.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    # Ids are in the order of time, and so is the list: an end of the period is an id to begin or to stop at.
    ends = [before] if before else []
    if until is not None:
        ends.append(first_id(from_datetime(moment_of(until, "--until"))))
    first = "" if since is None else first_id(from_datetime(moment_of(since, "--since")))
    with opened(url) as app:
        wanted: dict[str, Any] = {"job": job, "status": statuses_of(status), "labels": labels_of(label)}
        found = app.get_runs(**wanted, limit=limit + 1, before=min(ends, default=None)).wait()
    found = [run for run in found if run.id >= first]
    found, more = found[:limit], len(found) > limit
    if as_json:
        print_json({"runs": [run_document(run) for run in found], "next_before": found[-1].id if more else None})
    elif found:
        show_table(runs_table(found))
        if more:
            say(Text(f"There are older ones: --before {found[-1].id}", style="dim"))
    else:
        say("No runs that fit." if job or status or label or ends or first else "No runs yet.")


@runs.command(epilog=exits.EPILOG)
def show(
    run_id: RunId,
    url: Url = None,
    logs: Annotated[int, typer.Option("--logs", min=0, help="How many of the last log lines.")] = _LOGS_SHOWN,
    all_steps: Annotated[bool, typer.Option("--all", help="Every step, run below and log line.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run: what it is, the tree of runs below it, its steps and their attempts over time, its last log lines.

    As JSON: all of them.
    """
    with opened(url) as app:
        run = need(app, run_id)
        members = below(app, run)
        steps = app.get_steps(run_id).wait()
        lines = app.get_logs(run_id).wait()
        hint = "" if as_json else _hint(app, run)
    if as_json:
        print_json(
            {
                "run": run_document(run),
                "steps": [step_document(step) for step in steps],
                "logs": [log_document(line) for line in lines],
                "below": [run_document(one) for one in members.runs],
                "below_is_whole": members.is_whole,
            }
        )
        return
    show_table(run_table(run, steps, hint))
    if members.runs:
        say("")
        show_table(tree_of(run, members, everything=all_steps))
    if steps:
        # The end of a run is what one looks for: the last step, the one that failed.
        left_out = 0 if all_steps else max(0, len(steps) - _STEPS_SHOWN)
        say("")
        if left_out:
            say(Text(f"… {left_out} earlier steps (--all shows them)", style="dim"))
        show_table(timeline(run, steps[left_out:], steps))
    shown = lines if all_steps else lines[len(lines) - min(logs, len(lines)) :]
    if shown:
        say("")
        if len(shown) < len(lines):
            say(Text(f"… {len(lines) - len(shown)} earlier log lines (--all shows them)", style="dim"))
        for line in shown:
            say(log_text(line))


def _hint(app: App, run: Run[Any]) -> str:
    """Why nobody executes it, if that can be known."""
    if run.status is not RunStatus.PENDING or run.run_at > datetime.now(UTC):
        return ""
    try:
        found = app.workers().wait()
    except HoldfastError:  # a server that lets us see runs need not let us see workers
        return ""
    return why_nobody_takes(run.job_name, run.queue, [(one.jobs, one.queues) for one in found if one.is_alive])


@runs.command(epilog=exits.EPILOG)
def cancel(run_ids: RunIds, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel runs. A step that is under way may finish; no new one begins."""
    with opened(url) as app:
        each(run_ids, app.cancel, lambda run, _: f"Cancelled {run.job_name} {run.id}", as_json)


@runs.command(epilog=exits.EPILOG)
def retrigger(
    context: typer.Context,
    run_ids: RunIds,
    place: Annotated[str | None, typer.Option("--app", "-a", metavar="MODULE:APP", help="Where the job is.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make fresh runs with the input of ended ones. A worker has to execute them.

    The stored input is checked against today's code, so this needs the app: --app module:app. Its database is used.
    A server (--url http://…) has the app.
    """
    if place is None and is_server(url):
        with opened(url) as server:
            _retrigger(server, run_ids, as_json)
        return
    if place is None:
        raise ValidationError(
            "retrigger checks the stored input against the job as it is today, so it needs the app: "
            f"holdfast runs retrigger {run_ids[0]} --app yourmodule:app"
        )
    app = of_module(place, context, url)
    try:
        _retrigger(app, run_ids, as_json)
    finally:
        app.stop().wait()


def _retrigger(app: App, run_ids: list[str], as_json: bool) -> None:
    each(
        run_ids,
        app.retrigger,
        lambda run, _: f"Triggered {run.job_name} again: {run.id}",
        as_json,
        lambda run, run_id: {**run_document(run), "retriggered_from": run_id},
    )


def each(
    run_ids: list[str],
    act: Callable[[str], Reply[Any]],
    tell: Callable[[Any, str], str],
    as_json: bool,
    document: Callable[[Any, str], Any] = lambda run, _: run_document(run),
) -> None:
    """Do it to each of the runs; what one refuses is told and doesn't keep it from the others.

    The exit code is that of the first refusal.
    """
    run_ids = list(dict.fromkeys(run_ids))
    done: list[Any] = []
    errors: list[dict[str, Any]] = []
    # All are asked before one is waited for: they share a commit.
    for run_id, reply in [(run_id, act(run_id)) for run_id in run_ids]:
        try:
            with whole(run_id):
                answer = reply.wait()
        except HoldfastError as error:
            errors.append({"id": run_id, "error": error.message, "exit_code": exits.of_error(error)})
            exits.complain(error)
        else:
            done.append(document(answer, run_id))
            if not as_json:
                say(tell(answer, run_id))
    if as_json:
        print_json({"runs": done, "errors": errors})
    if errors:
        raise typer.Exit(errors[0]["exit_code"])
