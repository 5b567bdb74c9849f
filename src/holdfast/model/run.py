"""A run and what surrounds it, exactly as stored: payloads still encoded, times in microseconds.

These are named tuples rather than dataclasses because thousands are made per second, straight from database rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias

from pydantic_core import from_json

Disposition: TypeAlias = Literal["created", "idempotent", "coalesced"]
Coalesce: TypeAlias = Literal["skip", "active"]

#: What a run has of a tree: see `RunRow.tree`, and the column.
KEEPS, LEAVES, LEFT_GOING = 1, 2, 3


class RunStatus(StrEnum):
    """Where a run is in its life. The terminal ones never change again."""

    PENDING = "pending"
    LEASED = "leased"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    FINALIZE_FAILED = "finalize_failed"
    CANCELLED = "cancelled"

    @property
    def is_active(self) -> bool:
        return self in _ACTIVE

    @property
    def is_terminal(self) -> bool:
        return self not in _ACTIVE

    @classmethod
    def active(cls) -> frozenset[RunStatus]:
        """The statuses of runs that may still do something."""
        return _ACTIVE

    @classmethod
    def terminal(cls) -> frozenset[RunStatus]:
        """The statuses of runs that have ended."""
        return _ALL - _ACTIVE

    @classmethod
    def errored(cls) -> frozenset[RunStatus]:
        """The statuses of runs that ended without their output."""
        return _ALL - _ACTIVE - {cls.COMPLETED}

    @classmethod
    def all(cls) -> frozenset[RunStatus]:
        return _ALL


_ACTIVE = frozenset({RunStatus.PENDING, RunStatus.LEASED, RunStatus.WAITING})
_ALL = frozenset(RunStatus)


class RunRow(NamedTuple):
    """One row of `holdfast_runs`, with its progress. The order of the fields is the order of every select."""

    id: str
    job_name: str
    status: str
    queue: str
    priority: int
    run_at: int
    generation: int
    attempt: int
    crashes: int
    lease_owner: str | None
    lease_expires_at: int | None
    created_at: int
    updated_at: int
    started_at: int | None
    completed_at: int | None
    timeout: int | None
    retry: str | None
    deadline_at: int | None
    parent_id: str | None
    root_id: str | None
    child_index: int | None
    is_finalize: int
    awaited_as: str | None
    """The key of the wait of the run above it that it belongs to; None: nobody waits for it there."""
    tree: int
    """1: it has waits, or runs below it (`KEEPS`). When it ended: without its output, and what is below is to be
    cancelled (`LEAVES`), or with it while something below went on (`LEFT_GOING`)."""
    waiting_for: str | None
    used: int
    """Microseconds that this attempt had run when it began to wait."""
    idempotency_key: str | None
    concurrency_key: str | None
    tenant: str
    labels: str
    codec: str | None
    trace: str | None
    input: str
    output: str | None
    error: str | None
    error_type: str | None
    progress: str | None = None
    completed_step_count: int = 0
    current_step_index: int = 0

    @property
    def label_map(self) -> dict[str, str]:
        """The labels, decoded."""
        return {} if self.labels == "{}" else dict(from_json(self.labels))


class NewRun(NamedTuple):
    """A run to be written. `run_at` is a fixed time; otherwise it is the database's now plus `delay`."""

    id: str
    job_name: str
    input: str
    queue: str = "default"
    priority: int = 0
    delay: int = 0
    run_at: int | None = None
    idempotency_key: str | None = None
    concurrency_key: str | None = None
    labels: str = "{}"
    tenant: str = ""
    codec: str | None = None
    trace: str | None = None
    timeout: int | None = None
    """Microseconds of one attempt, where they differ from the job's."""
    retry: str | None = None
    """As JSON, where it differs from the job's."""
    deadline: int | None = None
    """Microseconds from the database's now until it must have ended."""
    coalesce: Coalesce | None = None
    """Which run of its concurrency key may be the answer instead of a new one. None: a refusal."""
    parent_id: str | None = None
    """The run above it. Below others, runs of one concurrency key queue."""
    root_id: str | None = None
    child_index: int | None = None
    is_finalize: int = 0
    awaited_as: str | None = None
    """The key of the parent's wait that it belongs to."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list, newest first. An empty tuple means: any."""

    ids: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    limit: int | None = None
    offset: int = 0
    parent: str | None = None
    """Only runs directly below this one."""
    awaited_as: str | None = None
    """Of those, only the ones of this wait."""
    root: str | None = None
    """Only runs below this one, however deep; it is itself below none."""
    before: str | None = None
    """Only runs with a smaller id: the last one of the previous page."""
