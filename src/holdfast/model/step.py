"""What is saved inside a run: steps, log lines, progress."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

StepStatus: TypeAlias = Literal["completed", "failed"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]


class StepKey(NamedTuple):
    """A step within its run: the name, and the how-manieth use of it."""

    name: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.name}#{self.occurrence}" if self.occurrence else self.name


class StepRow(NamedTuple):
    """One checkpoint. The order of the fields is the order of every select."""

    run_id: str
    name: str
    occurrence: int
    position: int
    status: str
    attempt: int
    generation: int
    fingerprint: str | None
    output: str | None
    error: str | None
    started_at: int
    completed_at: int


class AttemptRow(NamedTuple):
    """One try of a step. The order of the fields is the order of every select."""

    run_id: str
    name: str
    occurrence: int
    run_attempt: int
    number: int
    """How many tries had failed before, within the run's attempt."""
    position: int
    generation: int
    started_at: int
    ended_at: int | None = None
    error: str | None = None
    live: bool = False
    """Only when read: the execution that wrote it still has the run."""


class Tries(NamedTuple):
    """What became of a step's tries before: how many have failed, and when the last one did."""

    failed: int
    last_at: int


#: The level of a line that is no line for people: a value that a run has streamed.
EMITTED = "emit"


class LogRow(NamedTuple):
    """One line that a run wrote. `id` is 0 until it is stored; ids grow in the order of writing."""

    id: int
    run_id: str
    generation: int
    step_name: str | None
    level: str
    message: str
    data: str | None
    created_at: int


class ProgressRow(NamedTuple):
    """How far a run says it is; `progress` is JSON: current, and total and message where given."""

    run_id: str
    generation: int
    progress: str
