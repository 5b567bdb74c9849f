"""Runs, steps and log lines as they are shown: tables for people, objects for programs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from ..model.run import RunStatus
from ..run import LogLine, Run, StepRecord
from .terminal import ago, clean, console, iso, json_line, jsonable, plain_line

STYLES = {
    RunStatus.PENDING: "yellow",
    RunStatus.LEASED: "cyan",
    RunStatus.WAITING: "blue",
    RunStatus.COMPLETED: "green",
    RunStatus.FAILED: "red",
    RunStatus.TIMED_OUT: "red",
    RunStatus.FINALIZE_FAILED: "red",
    RunStatus.CANCELLED: "magenta",
}
#: What one looks for comes first, where there is no room for all.
FIRST = [RunStatus.LEASED, RunStatus.WAITING, *RunStatus.errored(), RunStatus.PENDING, RunStatus.COMPLETED]
_LEVELS = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}

#: Below this many columns a table of runs keeps only what tells one run from another.
_NARROW = 90
#: Waits of one run that get a line.
_WAITS_SHOWN = 5


# -- for programs ----------------------------------------------------------------------------------------------


def run_document(run: Run[Any]) -> dict[str, Any]:
    """A run as an object. Keys are only ever added."""
    return {
        "id": run.id,
        "job_name": run.job_name,
        "status": str(run.status),
        "input": jsonable(run.input),
        "output": jsonable(run.output),
        "error": run.error,
        "error_type": run.error_type,
        "progress": run.progress,
        "labels": run.labels,
        "queue": run.queue,
        "priority": run.priority,
        "idempotency_key": run.idempotency_key,
        "concurrency_key": run.concurrency_key,
        "generation": run.generation,
        "attempt": run.attempt,
        "crashes": run.crashes,
        "lease_owner": run.lease_owner,
        "lease_expires_at": iso(run.lease_expires_at),
        "run_at": iso(run.run_at),
        "created_at": iso(run.created_at),
        "updated_at": iso(run.updated_at),
        "started_at": iso(run.started_at),
        "completed_at": iso(run.completed_at),
        "parent_id": run.parent_id,
        "root_id": run.root_id,
        "is_finalize": run.is_finalize,
        "waiting_for": run.waiting_for,
        "completed_step_count": run.completed_step_count,
        "current_step_index": run.current_step_index,
    }


def step_document(step: StepRecord) -> dict[str, Any]:
    """A step as an object."""
    return {
        "name": step.name,
        "occurrence": step.occurrence,
        "index": step.index,
        "status": step.status,
        "attempt": step.attempt,
        "output": jsonable(step.output),
        "output_dropped": step.output_dropped,
        "error": step.error,
        "error_type": step.error_type,
        "started_at": iso(step.started_at),
        "completed_at": iso(step.completed_at),
        "wait": step.wait,
        "until": iso(step.until),
        "attempts": [
            {
                "number": one.number,
                "run_attempt": one.run_attempt,
                "started_at": iso(one.started_at),
                "ended_at": iso(one.ended_at),
                "error": one.error,
            }
            for one in step.attempts
        ],
    }


def log_document(line: LogLine) -> dict[str, Any]:
    """A log line as an object."""
    return {
        "id": line.id,
        "step_name": line.step_name,
        "level": line.level,
        "message": line.message,
        "data": jsonable(line.data),
        "created_at": iso(line.created_at),
    }


# -- for people ------------------------------------------------------------------------------------------------


def status_text(status: RunStatus) -> Text:
    return Text(str(status), style=STYLES[status])


def progress_line(run: Run[Any], limit: int = 40) -> str:
    """`1,700 / 3,376 airports`; empty if the run has said nothing."""
    told = run.progress
    if told is None:
        return ""
    line = f"{told['current']:,}" + (f" / {told['total']:,}" if told.get("total") is not None else "")
    return plain_line(f"{line} {told.get('message') or ''}", limit)


def lasted(run: Run[Any]) -> str:
    """How long it ran, or has been running; empty before its start."""
    if run.started_at is None:
        return ""
    return ago(((run.completed_at or datetime.now(UTC)) - run.started_at).total_seconds())


def runs_table(runs: list[Run[Any]]) -> Table:
    """One line per run; fewer columns where there is little room."""
    roomy = console().width >= _NARROW
    table = Table(box=None, pad_edge=False, header_style="bold")
    # An id that is cut can't be copied: it folds instead.
    table.add_column("ID", no_wrap=roomy, overflow="fold", min_width=26 if roomy else 13)
    table.add_column("JOB", overflow="ellipsis", no_wrap=True)
    table.add_column("STATUS", no_wrap=True, min_width=len("completed"))
    if roomy:
        table.add_column("PROGRESS", overflow="ellipsis", no_wrap=True)
        table.add_column("AGE", no_wrap=True, justify="right")
        table.add_column("TOOK", no_wrap=True, justify="right")
    now = datetime.now(UTC)
    for run in runs:
        cells = [Text(run.id), Text(plain_line(run.job_name, 60)), status_text(run.status)]
        if roomy:
            cells.append(Text(progress_line(run)))
            cells.append(Text(ago((now - run.created_at).total_seconds())))
            cells.append(Text(lasted(run)))
        table.add_row(*cells)
    return table


def run_table(run: Run[Any], steps: Iterable[StepRecord] = (), hint: str = "") -> Table:
    """What there is to say of one run, one fact per line; `steps` tell what it waits for, `hint` what it lacks."""
    room = max(20, console().width - 12)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def fact(name: str, value: str | Text | None) -> None:
        if value:
            table.add_row(name, Text(clean(value)) if isinstance(value, str) else value)

    status = status_text(run.status)
    if took := lasted(run):
        status.append(f"  {'after' if run.is_terminal else 'for'} {took}", style="dim")
    fact("run", run.id)
    fact("job", plain_line(run.job_name))
    fact("status", status)
    fact("", Text(plain_line(f"→ {hint}", 3 * room), style="yellow") if hint else None)
    fact("queue", plain_line(run.queue) if run.queue != "default" else None)
    fact("priority", str(run.priority) if run.priority else None)
    waits = [] if run.is_terminal else [open_wait(step) for step in steps if step.status == "waiting"]
    for said in waits[:_WAITS_SHOWN] or [run.waiting_for or ""]:
        fact("waits for", plain_line(said, 3 * room))
    if len(waits) > _WAITS_SHOWN:
        fact("", f"… and {len(waits) - _WAITS_SHOWN} more")
    above = run.parent_id and run.parent_id + (
        f", in the tree of {run.root_id}" if run.root_id != run.parent_id else ""
    )
    fact("finalize of" if run.is_finalize else "below", above)
    fact("progress", progress_line(run, room))
    fact("labels", plain_line(", ".join(f"{key}={value}" for key, value in sorted(run.labels.items())), 4 * room))
    fact("created", moment(run.created_at))
    fact("started", moment(run.started_at))
    fact("ended", moment(run.completed_at))
    if not run.is_terminal and run.run_at > run.created_at:
        fact("not before", moment(run.run_at))
    fact("claims", f"generation {run.generation}" + (f", {run.crashes} crashes in a row" if run.crashes else ""))
    fact("input", json_line(run.input, 3 * room))
    if run.status is RunStatus.COMPLETED:
        fact("output", json_line(run.output, 6 * room))
    if run.error:
        kind = f"{plain_line(run.error_type)}: " if run.error_type else ""
        fact("error", Text(kind + plain_line(run.error, 12 * room), style="red"))
    return table


def open_wait(step: StepRecord) -> str:
    """`signal decision, until 2026-11-28 17:00:00 UTC`."""
    name = step.name + (f" #{step.occurrence + 1}" if step.occurrence else "")
    return f"{step.wait} {name}" + ("" if step.until is None else f", until {moment(step.until)}")


def many(count: int, what: str) -> str:
    """`1 run`, `1,234 runs`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def moment(when: datetime | None) -> str | None:
    """A time in UTC, to the second."""
    return None if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def log_text(line: LogLine) -> Text:
    """One log line: time, level, what it says."""
    text = Text(f"{line.created_at.astimezone(UTC):%H:%M:%S} ", style="dim")
    text.append(f"{line.level:<8}", style=_LEVELS.get(line.level, ""))
    text.append(plain_line(line.message, 500))
    if line.data:
        text.append(f"  {json_line(line.data, 200)}", style="dim")
    return text
