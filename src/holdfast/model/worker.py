"""Workers: who executes runs of a database, as it is stored and as it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Self

from pydantic_core import from_json

from ..basis.clock import to_datetime


class CheckIn(NamedTuple):
    """A worker says that it is there. The database says when that was."""

    id: str
    host: str
    pid: int
    jobs: str
    """JSON: their names."""
    queues: str
    """JSON: their names."""
    version: str
    lease: int
    """Microseconds: not seen for as long, it counts as gone."""


class HeldRow(NamedTuple):
    """A run that is leased to a worker, since that moment."""

    id: str
    job_name: str
    since: int


class WorkerRow(NamedTuple):
    """A worker. The order of the fields up to `lease` is the order of every select."""

    id: str
    host: str
    pid: int
    started_at: int
    seen_at: int
    jobs: str
    queues: str
    version: str
    lease: int
    alive: bool = False
    """Whether it was seen within its lease, by the database's clock."""
    held: tuple[HeldRow, ...] = ()
    """The first leased, first."""


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run that a worker holds."""

    id: str
    job_name: str
    since: datetime
    """When the worker claimed it."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker of a database, in whatever process: what `app.workers()` gives."""

    id: str
    """Random, made at each start of a process."""
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    """When it last said that it is there: it does at each half of its lease."""
    is_alive: bool
    """Whether that was within the length of its lease, by the database's clock."""
    jobs: tuple[str, ...]
    """The names of the jobs that it executes."""
    queues: tuple[str, ...]
    version: str
    """Of the package."""
    runs: tuple[HeldRun, ...]
    """What it holds: the first claimed, first."""

    @classmethod
    def of(cls, row: WorkerRow) -> Self:
        """The row as it is shown."""
        return cls(
            id=row.id,
            host=row.host,
            pid=row.pid,
            started_at=_time(row.started_at),
            seen_at=_time(row.seen_at),
            is_alive=row.alive,
            jobs=names_of(row.jobs),
            queues=names_of(row.queues),
            version=row.version,
            runs=tuple(HeldRun(held.id, held.job_name, _time(held.since)) for held in row.held),
        )


def why_nobody_takes(job_name: str, queue: str, alive: Sequence[tuple[Sequence[str], Sequence[str]]]) -> str:
    """What keeps a run that is due from being executed; empty if nothing does. Of each worker: its jobs, its queues."""
    takes = [jobs for jobs, queues in alive if queue in queues]
    if not alive:
        return "no worker is alive"
    if not takes:
        return f"no worker that is alive takes the queue {queue}"
    if not any(job_name in jobs for jobs in takes):
        where = "" if queue == "default" else f" in the queue {queue}"
        return f"no worker that is alive has the job {job_name}{where}"
    return ""


def _time(micros: int) -> datetime:
    when = to_datetime(micros)
    assert when is not None
    return when


def names_of(text: str) -> tuple[str, ...]:
    """A list of names; none if somebody has spoiled it by hand."""
    try:
        names = from_json(text)
    except ValueError:
        return ()
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
