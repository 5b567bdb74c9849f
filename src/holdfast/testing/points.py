"""Where a process may be killed: at each commit that moves a run of the tree on. And how runs are called there.

Ids are new in every run, so a run below another goes by where it is: `gather(resize)[2]` is the third run of that step,
`gather(resize)[2] / fetch` a step of it. The run at the top has no name, and its steps go by their own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

from ..model.run import NewRun
from ..model.wait import WaitRow, step_of

Moment: TypeAlias = Literal["before", "after"]
PointKind: TypeAlias = Literal["checkpoint", "wait", "suspension", "retry", "end"]

END = "(end of the run)"
SUSPENDED = "(suspended)"
RETRIED = "(tried again)"


def at(run: str, step: str) -> str:
    """How a step of a run is called."""
    return f"{run} / {step}" if run else step


class Point(NamedTuple):
    """One commit of a run: the how-manieth of its kind and step."""

    kind: PointKind
    run: str
    step: str
    number: int = 0

    @property
    def name(self) -> str:
        """In the table: a step's wait and its checkpoint are one line."""
        return at(self.run, self.step)

    def killed(self, moment: Moment) -> str:
        """What a kill there is called."""
        if self.kind == "checkpoint":
            return f"killed {moment} the checkpoint of {self.name!r} was committed"
        if self.kind == "wait":
            return f"killed {moment} the wait of {self.name!r} was committed"
        of = f" of {self.run!r}" if self.run else ""
        if self.kind == "suspension":
            return f"killed {moment} the suspension{of} was committed"
        if self.kind == "retry":
            return f"killed {moment} the retry{of} was committed"
        return f"killed {moment} the end {of.strip() or 'of the run'} was saved"


class Points:
    """Numbers the commits of one process."""

    def __init__(self) -> None:
        self._numbers: Counter[tuple[str, str, str]] = Counter()
        self._count = 0

    def next(self, kind: PointKind, run: str, step: str) -> tuple[Point, int]:
        """The point, and the how-manieth of all it is."""
        number, ordinal = self._numbers[kind, run, step], self._count
        self._numbers[kind, run, step] += 1
        self._count += 1
        return Point(kind, run, step, number), ordinal


class Strike(NamedTuple):
    """Where the process is killed."""

    point: Point
    ordinal: int
    moment: Moment
    known: frozenset[Point]
    """Where steps have other names each time, the point is the one that comes in the same place."""

    def means(self, point: Point, ordinal: int) -> bool:
        """Whether this is it."""
        return point == self.point or (ordinal == self.ordinal and point not in self.known)


class Tree:
    """The names of the runs of a tree, by their ids."""

    def __init__(self, root: str = "") -> None:
        self.names: dict[str, str] = {root: ""} if root else {}

    def __contains__(self, run_id: str) -> bool:
        return run_id in self.names

    def add(self, wait: WaitRow, children: Iterable[NewRun]) -> dict[str, str]:
        """Name the runs that are written with this wait; these names by their ids."""
        listed = list(children)
        step, taken = at(self.names[wait.run_id], str(step_of(wait.key))), set(self.names.values())
        several, again = wait.kind == "children", ""
        # An attempt of the run above puts all of them below itself again.
        while listed and _name(step, again, 0, several=several) in taken:
            again = f" ({int(again[2:-1] or 1) + 1})" if again else " (2)"
        named = {new.id: _name(step, again, index, several=several) for index, new in enumerate(listed)}
        self.names.update(named)
        return named

    def without_ids(self, text: str | None) -> str | None:
        """The text, with runs by their names: ids are new each time."""
        if text is None or not self.names:
            return text
        return re.sub("|".join(self.names), lambda found: self.names[found[0]] or "(the run)", text)


def _name(step: str, again: str, index: int, *, several: bool) -> str:
    return f"{step}{again}[{index}]" if several else f"{step}{again}"
