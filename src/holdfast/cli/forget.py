"""`holdfast runs delete` and `runs purge`: what is gone afterwards, is gone for good."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from ..app import Holdfast
from ..basis.errors import ValidationError
from . import exits
from .choice import (
    AsJson,
    ByJob,
    ByLabel,
    ByStatus,
    RunIds,
    Url,
    Yes,
    database,
    labels_of,
    moment_of,
    opened,
    statuses_of,
    these,
)
from .far import needs_database
from .progress import Bar
from .runs import each
from .terminal import print_json, say
from .terminal import show as show_table
from .view import many, moment, runs_table

#: Runs that are deleted between two looks at the progress bar.
_PORTION = 500
_INSTEAD = "delete runs by their ids"
#: As many are shown before it is asked whether to delete them.
_SHOWN = 10


def delete(run_ids: RunIds, url: Url = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete ended runs with their steps and logs. Asks first; in a script say --yes."""
    _may_ask("delete", yes, as_json)
    run_ids = list(dict.fromkeys(run_ids))
    with opened(url) as app:
        known = these(app, run_ids)
        if not yes and known:
            show_table(runs_table(list(known.values())[:_SHOWN]))
            if len(known) > _SHOWN:
                say(f"… and {len(known) - _SHOWN} more")
            _ask(f"Delete {many(len(known), 'run')} with steps and logs, for good?")

        def told(_: None, run_id: str) -> str:
            return f"Deleted {known[run_id].job_name} {run_id}" if run_id in known else f"Deleted {run_id}"

        each(run_ids, app.delete_run, told, as_json, lambda _, run_id: {"id": run_id})


def purge(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="WHEN", help="Ended so long ago (30d, 12h), or before this date.")
    ],
    url: Url = None,
    job: ByJob = None,
    status: ByStatus = None,
    label: ByLabel = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most this many, the oldest.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many there are.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete runs that ended before a given time, the oldest first. Asks first; in a script say --yes.

    A run goes with all runs below it, and stays while one of them has not ended. Only those at the top are counted,
    also by --limit. May be stopped at any time: what is gone is gone.
    """
    needs_database(url, "purge", _INSTEAD)
    if not dry_run:
        _may_ask("purge", yes, as_json)
    before = moment_of(older_than, "--older-than")
    wanted: dict[str, Any] = {"job": job, "status": statuses_of(status), "labels": labels_of(label)}
    with database(url, "purge", _INSTEAD) as app:
        count = _count(app, before, wanted, limit)
        what = f"{many(count, 'run')} that ended before {moment(before)}"
        below = f"whatever is below {'it' if count == 1 else 'them'}"
        if dry_run or not count:
            if as_json:
                print_json({"purged": 0, "found": count})
            else:
                none = f"No {what.removeprefix('0 ')}{_that_fit(wanted)}."
                say(f"{what}, and {below}. Nothing was deleted." if count else none)
            return
        if not yes:
            _ask(f"Delete {what}, and {below}, with steps and logs, for good?")
        purged = _purge(app, before, wanted, count, quiet=as_json)
    if as_json:
        print_json({"purged": purged, "found": count})
    else:
        say(f"Deleted {many(purged, 'run')} and whatever was below {'it' if purged == 1 else 'them'}.")


def _count(app: Holdfast, before: datetime, wanted: dict[str, Any], limit: int | None) -> int:
    endless = 1 << 60
    old = app._old(before, **wanted)._replace(limit=limit or endless, weight=endless)
    store = app._engine.store
    return len(app._engine.reader.read("find_old", lambda connection: store.find_old(connection, old), list).wait())


def _purge(app: Holdfast, before: datetime, wanted: dict[str, Any], count: int, *, quiet: bool) -> int:
    """In portions, to show how far it is; how many."""
    purged = 0
    try:
        with Bar(quiet=quiet or count <= _PORTION) as bar:
            while purged < count:
                bar.show("Deleting", purged, count, f"{purged:,} / {count:,} runs")
                gone = app.purge_runs(older_than=before, limit=min(_PORTION, count - purged), **wanted).wait()
                if not gone:
                    break  # somebody else deletes them too
                purged += gone
    except KeyboardInterrupt:
        if not quiet:
            say("Stopped. What was deleted until now is gone; the other runs are untouched.")
        raise typer.Exit(exits.INTERRUPTED) from None
    return purged


def _that_fit(wanted: dict[str, Any]) -> str:
    return " and fit" if any(wanted.values()) else ""


def _may_ask(command: str, yes: bool, as_json: bool) -> None:
    """Whether there is somebody to ask, or it need not be asked."""
    if not yes and (as_json or not (sys.stdin.isatty() and sys.stdout.isatty())):
        raise ValidationError(f"{command} asks before it deletes, and there is nobody to ask here: say --yes")


def _ask(question: str) -> None:
    if not typer.confirm(question):
        say("Nothing was deleted.")
        raise typer.Exit(exits.OK)
