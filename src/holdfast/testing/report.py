"""What crashing a job has shown: the problems, and the table that names their steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["started-again", "effect-twice", "differs"]


@dataclass(frozen=True, slots=True)
class CrashProblem:
    """Something that a crash did to the run and must not do: to which step, what, and after which kill."""

    step: str
    kind: Kind
    text: str
    killed: str


@dataclass(frozen=True)
class CrashReport:
    """What came of crashing a job at every step. True if there is no problem; `str()` is a table."""

    job: str
    steps: list[str]
    """In the order in which they were saved without a crash."""
    kills: int = 0
    reruns: int = 0
    """Bodies that ran again because they were killed before their checkpoint: allowed, and counted only."""
    problems: list[CrashProblem] = field(default_factory=list)
    """Each once, for the first kill that showed it."""
    notes: list[str] = field(default_factory=list)
    """What could not be compared, because it is different in every run, with or without a crash."""
    kills_of: dict[str, int] = field(default_factory=dict, repr=False)
    reruns_of: dict[str, int] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return not self.problems

    def raise_if_bad(self) -> None:
        """`AssertionError` with the table, if there is a problem."""
        if self.problems:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        bad = Counter(problem.step for problem in self.problems)
        names = list(dict.fromkeys([*self.steps, *self.kills_of, *self.reruns_of, *bad]))
        width = max(len(name) for name in [*names, "step"])
        counts = (len(self.steps), "step"), (self.kills, "kill"), (len(self.problems), "problem")
        lines = [f"{self.job}: " + ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in counts), ""]
        lines.append(f"{'step':<{width}}  kills  ran again  problems")
        for name in names:
            kills, reruns = self.kills_of.get(name, 0), self.reruns_of.get(name, 0)
            lines.append(f"{name:<{width}}  {kills:>5}  {reruns:>9}  {bad[name] or '-':>8}")
        lines += ["", *(f"{one.step}: {one.text} ({one.killed})" for one in self.problems)] if self.problems else []
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)
