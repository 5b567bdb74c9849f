"""How things look on the wire: names, times, runs, steps and events, as the browser's client expects them.

Names are those of Python turned by one function, `camel`. What is absent is left out of events and null in documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from ..basis.errors import Outdated, StoreUnavailable
from ..model.event import Event
from ..model.run import RunStatus
from ..model.worker import HeldRun, WorkerRecord
from ..run import LogLine, Run, StepRecord

#: Ours -> theirs. The real one is sent beside it, as `state`.
STATUS: dict[str, str] = {
    RunStatus.WAITING: "leased",
    RunStatus.TIMED_OUT: "failed",
    RunStatus.FINALIZE_FAILED: "failed",
}
#: The statuses that the compatible routes know, in the order of their error message.
STATUSES = ("pending", "leased", "completed", "failed", "cancelled")

_CLIENT_RUN = (
    "id", "job_name", "input", "status", "current_step_index", "completed_step_count", "progress", "output", "error",
    "labels", "started_at", "completed_at", "created_at", "is_terminal", "is_active",
)  # fmt: skip
#: What our own routes say beside it.
_MORE_OF_A_RUN = (
    "error_type", "attempt", "crashes", "queue", "priority", "run_at", "parent_id", "root_id", "waiting_for",
    "generation", "lease_owner", "lease_expires_at", "idempotency_key", "is_finalize", "created_at", "updated_at",
    "started_at", "completed_at",
)  # fmt: skip
_STEP = ("name", "status", "output", "error", "started_at", "completed_at")

#: What each event carries beside type, run, job and labels. Others are not sent on the compatible streams.
FULL: dict[str, tuple[str, ...]] = {
    "run:leased": ("input", "lease_owner", "lease_expires_at"),
    "run:progress": ("progress",),
    "run:complete": ("output", "duration"),
    "run:fail": ("error",),
    "run:cancel": (),
    "run:delete": (),
    "step:start": ("step_name", "step_index"),
    "step:complete": ("step_name", "step_index", "output", "duration"),
    "step:fail": ("step_name", "step_index", "error"),
    "log:write": ("step_name", "level", "message", "data"),
}
#: The same on the stream of all runs.
SLIM: dict[str, tuple[str, ...]] = {
    "run:trigger": (),
    "run:coalesced": ("skipped_input", "skipped_labels"),
    "run:leased": (),
    "run:progress": ("progress",),
    "run:complete": (),
    "run:fail": (),
    "run:cancel": (),
    "run:delete": (),
    "step:start": ("step_name", "step_index"),
    "step:complete": ("step_name", "step_index"),
    "step:cancel": ("step_name", "step_index"),
    "step:fail": ("step_name", "step_index", "error"),
    "log:write": ("step_name", "level", "message", "data"),
}


def camel(name: str) -> str:
    """The name on the wire: `job_name` is `jobName`."""
    first, *rest = name.split("_")
    return first + "".join([part[:1].upper() + part[1:] for part in rest])


def written(value: Any) -> bytes:
    """The JSON of a document, in one line. What JSON can't say is written as text, NaN as null."""
    return to_json(value, fallback=str, bytes_mode="base64", inf_nan_mode="null")


def moment(when: datetime | None) -> str | None:
    """A time in UTC, to the millisecond: `2026-11-21T12:34:56.789Z`."""
    if when is None:
        return None
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _document(thing: object, names: Iterable[str]) -> dict[str, Any]:
    return {camel(name): _value(getattr(thing, name)) for name in names}


def _own(thing: object, names: Iterable[str]) -> dict[str, Any]:
    """The same for our own routes: times to the microsecond."""
    found = [(camel(name), getattr(thing, name)) for name in names]
    return {name: _exactly(value) if isinstance(value, datetime) else value for name, value in found}


def _value(value: Any) -> Any:
    return moment(value) if isinstance(value, datetime) else value


def statuses_of(status: str) -> tuple[str, ...]:
    """The statuses of ours that one of theirs stands for."""
    return (status, *(str(ours) for ours, theirs in STATUS.items() if theirs == status))


def client_run(run: Run[Any]) -> dict[str, Any]:
    """A run as the browser's client knows it, and `state`: its real status."""
    row, payloads = run._row, run._app._engine.payloads
    found = {name: getattr(run, name) for name in _CLIENT_RUN if name != "output"}
    # As it is stored: made into an object of Python, it would have to be made into JSON again.
    found["output"] = None if row.output is None else payloads.shown(row.output)
    document = {camel(name): _value(found[name]) for name in _CLIENT_RUN}
    document["status"] = STATUS.get(row.status, row.status)
    document["state"] = row.status
    return document


def full_run(run: Run[Any]) -> dict[str, Any]:
    """The same, and what only our own client asks for. Times are to the microsecond here.

    `inputText` and `outputText` are those as they are stored, where JSON alone could not tell them.
    """
    row, key = run._row, run.concurrency_key
    document = client_run(run)
    document |= _own(run, _MORE_OF_A_RUN)
    document["concurrencyKey"] = key.removeprefix(f"{row.tenant}:") if key and row.tenant else key
    document["hasTree"] = bool(row.tree)
    document["inputText"] = _told_apart(run, row.input)
    document["outputText"] = _told_apart(run, row.output)
    return document


def _exactly(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _told_apart(run: Run[Any], stored: str | None) -> str | None:
    if stored is None:
        return None
    try:
        text = run._app._engine.payloads.open(stored)
    except (Outdated, StoreUnavailable):
        return None  # what is shown says why
    return text if text.startswith("~") else None


def client_step(run_id: str, step: StepRecord) -> dict[str, Any]:
    """A saved step, with all that the ancestor stores of it."""
    document = {"id": f"{run_id}/{step.name}/{step.occurrence}", "runId": run_id, "index": step.index}
    return document | _document(step, _STEP)


def full_step(step: StepRecord) -> dict[str, Any]:
    """A step with its tries, or a wait, at whatever stage it is."""
    names = [name for name in StepRecord.__dataclass_fields__ if name not in ("attempts", "traceback")]
    tries = [_own(one, type(one).__dataclass_fields__) for one in step.attempts]
    return _own(step, names) | {"attempts": tries}


def log_line(line: LogLine) -> dict[str, Any]:
    """A line of the log."""
    return _own(line, LogLine.__dataclass_fields__) | {"level": _level(line.level)}


def worker(record: WorkerRecord) -> dict[str, Any]:
    """Who executes, and what."""
    document = _own(record, [name for name in WorkerRecord.__dataclass_fields__ if name != "runs"])
    return document | {"runs": [_own(held, HeldRun.__dataclass_fields__) for held in record.runs]}


def _level(level: str) -> str:
    return "warn" if level == "warning" else level


def _said(event: Event, names: Iterable[str]) -> dict[str, Any]:
    data: Mapping[str, Any] = event.data
    said = {camel(name): _value(data[name]) for name in names if name in data}
    if "duration" in said:
        said["duration"] = round(said["duration"] * 1000)  # milliseconds there
    if "level" in said:
        said["level"] = _level(said["level"])
    return said


def is_sent(event: Event, kind: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a compatible stream tells of it."""
    return event.type in kind and event.data.get("level") != "debug"


def full_event(event: Event, failed_step: str = "") -> dict[str, Any]:
    """An event of one run, whole. `failed_step`: the last step that was told to have failed."""
    document = {"type": event.type, "runId": event.run_id, "jobName": event.job_name}
    document |= _said(event, FULL[event.type])
    if event.sequence and document.get("output", 0) is None:
        del document["output"]  # live events leave out what there is not
    if event.type == "run:fail":
        document["error"] = document.get("error") or "Unknown error"
        document["failedStepName"] = failed_step
    return document | {
        "labels": event.labels, "timestamp": moment(event.timestamp), "sequence": event.sequence,
    }  # fmt: skip


def slim_event(event: Event) -> dict[str, Any]:
    """An event on the stream of all runs."""
    document = {"type": event.type, "runId": event.run_id, "jobName": event.job_name}
    return document | _said(event, SLIM[event.type]) | {"labels": event.labels}


def own_event(event: Event) -> dict[str, Any]:
    """An event of ours, whole, under names of the wire."""
    document = {"type": event.type, "runId": event.run_id, "jobName": event.job_name}
    document |= _said(event, event.data)
    return document | {
        "labels": event.labels, "timestamp": moment(event.timestamp), "sequence": event.sequence,
    }  # fmt: skip
