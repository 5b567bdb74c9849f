"""`holdfast workers`: who executes the runs of a database, and which."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..model.worker import WorkerRecord
from .choice import AsJson, Url, opened
from .terminal import ago, console, iso, plain_line, print_json, say, show

#: So many runs of one worker are shown; the others are counted.
_RUNS_SHOWN = 5
_NARROW = 90


def workers(
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="The database: sqlite:///path/to/file.db, postgresql://…, mysql://…; or a server: http://…",
            show_default=False,
        ),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List workers: whether each is alive, where it is, and which runs it holds, since when.

    Alive means: seen within the length of its lease. One that died stays in the list for ten leases.
    """
    with opened(place or url) as app:
        found = app.workers().wait()
    if as_json:
        print_json({"workers": [worker_document(worker) for worker in found]})
    elif found:
        show(_table(found))
    else:
        say("No workers.")


def worker_document(worker: WorkerRecord) -> dict[str, Any]:
    """A worker as an object. Keys are only ever added."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "is_alive": worker.is_alive,
        "started_at": iso(worker.started_at),
        "seen_at": iso(worker.seen_at),
        "jobs": list(worker.jobs),
        "queues": list(worker.queues),
        "version": worker.version,
        "runs": [{"id": run.id, "job_name": run.job_name, "since": iso(run.since)} for run in worker.runs],
    }


def _table(found: list[WorkerRecord]) -> Table:
    roomy = console().width >= _NARROW
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("WORKER", overflow="fold", min_width=12)
    table.add_column("STATE", no_wrap=True)
    table.add_column("SEEN", no_wrap=True, justify="right")
    if roomy:
        table.add_column("UP", no_wrap=True, justify="right")
        table.add_column("QUEUES", overflow="fold")
        table.add_column("JOBS", overflow="fold")
    table.add_column("HOLDS", overflow="fold", min_width=12)
    now = datetime.now(UTC)
    for worker in found:
        state = Text("alive", style="green") if worker.is_alive else Text("gone", style="bold red")
        seen = f"{ago((now - worker.seen_at).total_seconds())} ago"
        cells = [Text(plain_line(f"{worker.host}:{worker.pid}", 80)), state, Text(seen)]
        if roomy:
            cells += [Text(ago((now - worker.started_at).total_seconds())), _names(worker.queues), _names(worker.jobs)]
        table.add_row(*cells, _runs(worker, now))
    return table


def _names(names: tuple[str, ...]) -> Text:
    return Text(plain_line(", ".join(names), 120))


def _runs(worker: WorkerRecord, now: datetime) -> Text:
    lines = [
        f"{plain_line(run.job_name, 60)} {run.id}  {ago((now - run.since).total_seconds())}"
        for run in worker.runs[:_RUNS_SHOWN]
    ]
    if (left := len(worker.runs) - len(lines)) > 0:
        lines.append(f"… and {left:,} more")
    return Text("\n".join(lines) or "–")
