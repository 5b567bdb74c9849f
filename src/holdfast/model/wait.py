"""What a run waits for while nobody executes it, and the signals that are sent to it: exactly as stored."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

WaitKind: TypeAlias = Literal["timer", "signal", "child", "children", "finalize"]


class WaitRow(NamedTuple):
    """One thing that a run waits for. The order of the fields is the order of every select."""

    run_id: str
    key: str
    """Of the step that waits: its name and its occurrence, see `wait_key`."""
    kind: str
    until: int | None
    """Not longer than this, in microseconds since 1970."""
    signal: str | None
    created_at: int


class NewSignal(NamedTuple):
    """A signal to be written."""

    id: str
    run_id: str
    name: str
    value: str
    key: str | None = None
    """Of several with one key the first counts, per run and name."""


def wait_key(name: str, occurrence: int) -> str:
    """How a wait is called in the database. Unambiguous: the last `#` is ours."""
    return f"{name}#{occurrence}"
