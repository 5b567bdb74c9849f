"""What a run waits for while nobody executes it, and the signals that are sent to it: exactly as stored."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from .step import StepKey

WaitKind: TypeAlias = Literal["timer", "signal", "child", "children", "finalize"]

BELOW: frozenset[WaitKind] = frozenset({"child", "children", "finalize"})
"""Waits for runs below."""
WHICH = "@"
"""What the saved text of such a wait begins with if it says only which runs they were. No other text does."""

#: By the first word of what is saved in place of a function. A spawned run is not waited for.
_KINDS: dict[str, WaitKind] = {
    "sleep": "timer",
    "sleep_until": "timer",
    "signal": "signal",
    "call": "child",
    "gather": "children",
    "map": "children",
    "(children)": "children",
    "(finalize)": "finalize",
}


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


def step_of(key: str) -> StepKey:
    """The step that waits."""
    name, _, occurrence = key.rpartition("#")
    return StepKey(name, int(occurrence))


def kind_of(mark: str | None) -> WaitKind | None:
    """What was waited for, by what is saved in place of a function and its arguments; None: there was a function."""
    return None if mark is None else _KINDS.get(mark.partition(" ")[0])
