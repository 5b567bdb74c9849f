"""From the documents of the wire to what the library shows: the inverse of `http.wire`.

Called by `Line.read`: what is missing in a document, or of another type, may raise whatever comes of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from pydantic_core import to_json

from ..basis.clock import from_datetime
from ..basis.codec import marked
from ..commit.tally import Spread
from ..engine.stats import Stats, VerbStats
from ..model.event import Event
from ..model.run import Disposition, RunRow
from ..model.worker import HeldRun, WorkerRecord
from ..run import LogLine, StepAttempt, StepRecord

T = TypeVar("T")

_LARGE = re.compile("[A-Z]")


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job of a server."""

    name: str
    key: str
    """The name of its function."""
    is_sleeping: bool
    parameters: tuple[str, ...]
    takes_model: bool
    """Its only parameter is a model, dataclass or TypedDict: the input is that object's own fields."""
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Acted:
    """What became of many runs."""

    done: dict[str, str]
    """By id those that it was done to; of each the id of the run that it is now: its own, or that of the fresh one."""
    refused: dict[str, str]
    """By id those that did not allow it, and why."""


def listed(read: Callable[[Any], T]) -> Callable[[Any], list[T]]:
    """Reads a list of such documents."""

    def read_all(document: Any) -> list[T]:
        if not isinstance(document, list):  # an object has keys to go through, too
            raise TypeError
        return [read(one) for one in document]

    return read_all


def text(value: Any) -> str:
    """A text, and nothing else."""
    if not isinstance(value, str):
        raise TypeError
    return value


def text_if(value: Any) -> str | None:
    """The same; None stays None."""
    return None if value is None else text(value)


def success(document: Any) -> None:
    """What was asked has been done, and there is nothing more to say."""
    if document["success"] is not True:
        raise ValueError


def run_id(document: Any) -> str:
    """The id of the run that was made, or woken."""
    success(document)
    return text(document["runId"])


def page(document: Any) -> tuple[list[RunRow], str | None]:
    """Runs, and what to give as `before` for the next ones."""
    return listed(run_row)(document["runs"]), text_if(document["nextBefore"])


def triggered(many: int) -> Callable[[Any], list[tuple[RunRow, Disposition]]]:
    """Reads the runs of so many calls, and what each call did."""

    def read(document: Any) -> list[tuple[RunRow, Disposition]]:
        made: list[tuple[RunRow, Disposition]] = [
            (run_row(one["run"]), cast("Disposition", text(one["disposition"]))) for one in document["runs"]
        ]
        if len(made) != many:
            raise ValueError
        return made

    return read


def acted(document: Any) -> tuple[Acted, str | None]:
    """What became of a page of runs, and what to give as `before` for the next ones."""
    done = {text(one["runId"]): text(one.get("newRunId", one["runId"])) for one in document["done"]}
    refused = {text(one["runId"]): text(one["error"]) for one in document["refused"]}
    return Acted(done, refused), text_if(document["nextBefore"])


def snake(name: str) -> str:
    """The name in Python: `jobName` is `job_name`."""
    return _LARGE.sub(lambda found: f"_{found[0].lower()}", name)


def when(text: str) -> datetime:
    """A moment."""
    return datetime.fromisoformat(text).astimezone(UTC)


def when_if(text: str | None) -> datetime | None:
    """The same; None stays None."""
    return None if text is None else when(text)


def _micros(text: str | None) -> int | None:
    return None if text is None else from_datetime(datetime.fromisoformat(text))


def _labels(value: Any) -> dict[str, str]:
    return {text(key): text(one) for key, one in value.items()}


def _json(value: Any) -> str:
    return to_json(value).decode()


def run_row(document: Mapping[str, Any]) -> RunRow:
    """The row that a run is shown by. What the wire does not tell is empty in it."""
    output, output_text = document["output"], document["outputText"]
    completed = document["state"] == "completed"
    error = document["error"]
    created, run_at, updated = (_micros(document[key]) for key in ("createdAt", "runAt", "updatedAt"))
    assert created is not None
    assert run_at is not None
    assert updated is not None
    return RunRow(
        id=text(document["id"]),
        job_name=text(document["jobName"]),
        status=text(document["state"]),
        queue=document["queue"],
        priority=document["priority"],
        run_at=run_at,
        generation=document["generation"],
        attempt=document["attempt"],
        crashes=document["crashes"],
        lease_owner=document["leaseOwner"],
        lease_expires_at=_micros(document["leaseExpiresAt"]),
        created_at=created,
        updated_at=updated,
        started_at=_micros(document["startedAt"]),
        completed_at=_micros(document["completedAt"]),
        timeout=None,
        retry=None,
        deadline_at=None,
        parent_id=document["parentId"],
        root_id=document["rootId"],
        child_index=None,
        is_finalize=int(document["isFinalize"]),
        awaited_as=None,
        tree=int(document["hasTree"]),
        waiting_for=document["waitingFor"],
        used=0,
        idempotency_key=document["idempotencyKey"],
        concurrency_key=document["concurrencyKey"],
        tenant="",
        labels=_json(_labels(document["labels"])),
        codec=None,
        trace=None,
        input=document["inputText"] or _json(document["input"]),
        # None is an output, too; a run that has not completed has none.
        output=output_text if output_text is not None else _json(output) if completed or output is not None else None,
        error=None if error is None else marked(error),
        error_type=document["errorType"],
        progress=None if document["progress"] is None else _json(document["progress"]),
        completed_step_count=document["completedStepCount"],
        current_step_index=document["currentStepIndex"],
    )


def step_record(document: Mapping[str, Any]) -> StepRecord:
    """A step; its traceback stays with the server."""
    return StepRecord(
        name=document["name"],
        occurrence=document["occurrence"],
        index=document["index"],
        status=document["status"],
        attempt=document["attempt"],
        output=document["output"],
        error=document["error"],
        error_type=document["errorType"],
        traceback=None,
        started_at=when(document["startedAt"]),
        completed_at=when_if(document["completedAt"]),
        attempts=tuple(
            StepAttempt(one["number"], one["runAttempt"], when(one["startedAt"]), when_if(one["endedAt"]), one["error"])
            for one in document["attempts"]
        ),
        output_dropped=document["outputDropped"],
        wait=document["wait"],
        until=when_if(document["until"]),
    )


def _level(level: str) -> str:
    return "warning" if level == "warn" else level


def log_line(document: Mapping[str, Any]) -> LogLine:
    """A line of the log."""
    return LogLine(
        document["id"],
        document["stepName"],
        _level(document["level"]),
        document["message"],
        document["data"],
        when(document["createdAt"]),
    )


def worker_record(document: Mapping[str, Any]) -> WorkerRecord:
    """Who executes, and what."""
    return WorkerRecord(
        id=document["id"],
        host=document["host"],
        pid=document["pid"],
        started_at=when(document["startedAt"]),
        seen_at=when(document["seenAt"]),
        is_alive=document["isAlive"],
        jobs=tuple(document["jobs"]),
        queues=tuple(document["queues"]),
        version=document["version"],
        runs=tuple(HeldRun(one["id"], one["jobName"], when(one["since"])) for one in document["runs"]),
    )


def job_info(document: Mapping[str, Any]) -> JobInfo:
    """A job."""
    return JobInfo(
        name=text(document["name"]),
        key=text(document["key"]),
        is_sleeping=document["isSleeping"],
        parameters=tuple(document["parameters"]),
        takes_model=document["takesModel"],
        input_schema=dict(document["inputSchema"]),
        output_schema=dict(document["outputSchema"]),
    )


def stats(document: Mapping[str, Any]) -> Stats:
    """How the process that answers is doing."""
    verbs = {
        verb: VerbStats(one["count"], Spread(**one["inRound"]), Spread(**one["toAnswer"]))
        for verb, one in document["verbs"].items()
    }
    return Stats(
        uptime=document["uptime"],
        running=tuple(document["running"]),
        verbs=verbs,
        rounds=document["rounds"],
        round_sizes=Spread(**document["roundSizes"]),
        line=document["line"],
        longest_line=document["longestLine"],
        dropped_events=document["droppedEvents"],
    )


_OF_ALL = frozenset({"type", "runId", "jobName", "labels", "timestamp", "sequence"})


def event(document: Mapping[str, Any]) -> Event:
    """An event, as a subscription of the library gives it."""
    data = {snake(key): value for key, value in document.items() if key not in _OF_ALL}
    if "duration" in data:
        data["duration"] = data["duration"] / 1000  # milliseconds there
    if "level" in data:
        data["level"] = _level(data["level"])
    if data.get("lease_expires_at") is not None:
        data["lease_expires_at"] = when(data["lease_expires_at"])
    return Event(
        text(document["type"]),
        when(document["timestamp"]),
        document["sequence"],
        document["runId"],
        document["jobName"],
        _labels(document["labels"]),
        data,
    )
