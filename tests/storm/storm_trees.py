"""Trees of runs as plain data, drawn from a seed, and a plain reading of what each of their runs comes to.

Nothing here knows Holdfast. A *place* names one run of a tree: `7:12` is the root of tree 12 of seed 7, `7:12.3` its
child 3, `7:12.3@1.0` the child 0 of that, asked for in its second attempt; `…/finalize`, `…/stage_two` and
`…/iteration#1` are the runs that a parent, a sequence and a loop have below them by themselves.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

#: Levels of runs, one below the other, that a tree has at most, without the stages, iterations and finalizes.
DEPTH = 4
#: Attempts of a run that does steps and waits; parents have one.
ATTEMPTS = 2
#: Iterations of a loop, at most.
TURNS = 3
#: Kinds of runs that do steps and waits, of which the last three have others below them once their function is over.
WALKERS = ("grow", "grow_sync", "family", "closed", "signed")
KINDS = (*WALKERS, "line", "around")
_PARENTS = ("family", "closed", "signed")


@dataclass(frozen=True)
class Act:
    """One thing that a run does. Whatever fails and is `caught` counts as -1."""

    what: str
    """step, wobble (fails, whatever its retries), nap, beside (a slow step while another branch sleeps), hear, silence
    (a signal that nobody sends), call, gather, map, spawn."""
    name: str
    value: int = 0
    below: tuple[int, ...] = ()
    """The numbers of the children that it asks for."""
    caught: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Node:
    """One run, and what is below it."""

    kind: str
    value: int
    acts: tuple[Act, ...] = ()
    children: tuple[Node, ...] = ()
    below: tuple[int, ...] = ()
    """The children that a parent returns."""
    strict: bool = False
    """A parent fails if one of its children does."""
    fails: str = ""
    """`once` or `always`, in the end; or in which part: `finalize`, `stage_one`, `stage_two`, `turn`."""
    turns: int = 0
    """Of a loop: in which iteration it finds something; 0: in none."""

    @property
    def size(self) -> int:
        return 1 + sum(child.size for child in self.children)


# -- drawing ---------------------------------------------------------------------------------------------------------


def root_place(seed: int, number: int) -> str:
    return f"{seed}:{number}"


def root_of(place: str) -> str:
    return re.split(r"[/@.]", place, maxsplit=1)[0]


@functools.lru_cache(maxsize=4096)
def tree_of(root: str) -> Node:
    """The tree of this root: always the same, in every process."""
    return _Draw(random.Random(f"tree {root}")).node(1, root=True)


def node_of(place: str) -> Node:
    """What the run at this place has to do. Of what a kind has below itself: that kind's node."""
    root, *path = re.sub(r"@\d+", "", place.partition("/")[0]).split(".")
    node = tree_of(root)
    for number in path:
        node = node.children[int(number)]
    return node


class _Draw:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.left = chance.choice((4, 6, 8, 12, 16))
        """Runs that may still be drawn."""

    def node(self, level: int, *, root: bool = False, kind: str | None = None) -> Node:
        chance = self.chance
        self.left -= 1
        if kind is None:
            leaf = level == DEPTH or self.left <= 0 or (not root and chance.random() < 0.35)
            weights = (55, 45, 0, 0, 0, 0, 0) if leaf else (28, 12, 13, 15, 12, 10, 10)
            (kind,) = chance.choices(KINDS, weights)
        value = chance.randint(1, 50)
        if kind == "line":
            return Node(kind, value, fails=self._part("stage_one", "stage_two"))
        if kind == "around":
            return Node(kind, value, fails=self._part("turn"), turns=chance.randint(0, TURNS))
        children: list[Node] = []
        acts = self._acts(kind, level, children)
        if kind not in _PARENTS:
            (fails,) = chance.choices(("", "once", "always"), (80, 12, 8))
            return Node(kind, value, acts, tuple(children), fails=fails)
        below = self._below(children, level, chance.randint(0 if level > 1 else 2, 3))
        fails = self._part("finalize") if kind != "family" else ""
        return Node(kind, value, acts, tuple(children), below, chance.random() < 0.4, fails)

    def _part(self, *parts: str) -> str:
        return self.chance.choice(parts) if self.chance.random() < 0.15 else ""

    def _below(self, children: list[Node], level: int, many: int, kind: str | None = None) -> tuple[int, ...]:
        if level >= DEPTH:
            return ()
        begin = len(children)
        children += [self.node(level + 1, kind=kind) for _ in range(many)]
        return tuple(range(begin, len(children)))

    def _acts(self, kind: str, level: int, children: list[Node]) -> tuple[Act, ...]:
        chance = self.chance
        acts = [Act("step", "step0", chance.randint(1, 50))]
        for number in range(1, chance.randint(2, 5)):
            whats = ["step", "nap", "hear", "silence", "step"]
            whats += ["wobble"] * all(act.what != "wobble" for act in acts)
            whats += ["beside"] * (kind != "grow_sync")
            if level < DEPTH and self.left > 0:
                whats += ["call", "gather", "map", "spawn", "call", "gather", "map"]
            acts.append(self._act(chance.choice(whats), number, level, children))
        return tuple(acts)

    def _act(self, what: str, number: int, level: int, children: list[Node]) -> Act:
        chance = self.chance
        name = "wobble" if what == "wobble" else f"{what}{number}"
        value, caught = chance.randint(1, 50), what == "silence" or chance.random() < 0.7
        # Of a nap one in three is over before it is worth a suspension.
        seconds = chance.choice((0.02, 0.3, 0.8))
        below: tuple[int, ...] = ()
        if what in ("call", "spawn"):
            below = self._below(children, level, 1)
        elif what == "gather":
            below = self._below(children, level, chance.randint(2, 3))
        elif what == "map":
            wide = level == 1 and chance.random() < 0.1
            if wide:
                self.left = 0  # so all of them are small
            below = self._below(children, level, 16 if wide else chance.randint(2, 3), "grow")
        return Act(what, name, value, below, caught, seconds)


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a run must come to."""

    status: str
    value: int = 0
    error: str | None = None


class _Failed(Exception):
    """A run fails with this error."""


@dataclass
class Reading:
    """What a tree comes to, by place."""

    given_up: Collection[str] = ()
    """Places whose run has lost its lease too often: it failed, however far it had come."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    steps: dict[str, list[str]] = field(default_factory=dict)
    """The steps that must have been executed, at least once each."""

    def run(self, node: Node, place: str) -> Outcome:
        self.steps[place] = []
        outcome = self._own(node, place)
        return self._ended(place, outcome)

    def _ended(self, place: str, outcome: Outcome) -> Outcome:
        if place in self.given_up:
            outcome = Outcome("failed", error="WorkerCrashed")
        self.outcomes[place] = outcome
        return outcome

    def _own(self, node: Node, place: str) -> Outcome:
        if node.kind == "line":
            return self._line(node, place)
        if node.kind == "around":
            return self._around(node, place)
        if node.kind in _PARENTS:
            return self._parent(node, place)
        done: dict[int, int] = {}
        error = ""
        for attempt in range(ATTEMPTS):
            try:
                value = self._walk(node, place, attempt, done)
                if node.fails == "always" or (node.fails == "once" and attempt == 0):
                    raise _Failed("Declined")
            except _Failed as failed:
                error = str(failed)
            else:
                return Outcome("completed", value)
        return Outcome("failed", error=error)

    def _walk(self, node: Node, place: str, attempt: int, done: dict[int, int]) -> int:
        """`done`: what has come well in an attempt before is not done again."""
        value, at = node.value, place if attempt == 0 else f"{place}@{attempt}"
        for number, act in enumerate(node.acts):
            if number not in done:
                try:
                    done[number] = self._act(node, act, place, at)
                except _Failed:
                    if not act.caught:
                        raise
                    value -= 1
                    continue
            value += done[number]
        return value

    def _act(self, node: Node, act: Act, place: str, at: str) -> int:
        if act.what in ("step", "beside"):
            if act.name not in self.steps[place]:
                self.steps[place].append(act.name)
            return act.value
        if act.what == "hear":
            return act.value
        if act.what == "nap":
            return 0
        if act.what == "wobble":
            raise _Failed("Declined")
        if act.what == "silence":
            raise _Failed("TimeoutError")
        ends = [self.run(node.children[child], f"{at}.{child}") for child in act.below]
        if act.what == "spawn":
            return 0
        failed = sum(end.status != "completed" for end in ends)
        if failed and not (act.what == "map" and act.caught):
            raise _Failed("RunFailed" if act.what == "call" else "ChildrenFailed")
        return sum(end.value for end in ends) - failed

    def _parent(self, node: Node, place: str) -> Outcome:
        try:
            value = self._walk(node, place, 0, {})
        except _Failed as failed:
            return Outcome("failed", error=str(failed))
        ends = [self.run(node.children[child], f"{place}.{child}") for child in node.below]
        failed = sum(end.status != "completed" for end in ends)
        value += sum(end.value for end in ends)
        if node.kind == "family":
            if failed and node.strict:
                return Outcome("failed", error="ChildrenFailed")
            return Outcome("completed", value)
        self.steps[f"{place}/finalize"] = ["close"]
        bad = node.fails == "finalize" or (failed and node.strict)
        end = Outcome("failed", error="Declined") if bad else Outcome("completed", value - failed)
        end = self._ended(f"{place}/finalize", end)
        return end if end.status == "completed" else Outcome("finalize_failed", error=end.error)

    def _line(self, node: Node, place: str) -> Outcome:
        value = node.value
        for stage, more in (("stage_one", 1), ("stage_two", 2)):
            value += more
            end = self._one_of(f"{place}/{stage}", stage, node.fails == stage, value)
            if end.status != "completed":
                return Outcome("finalize_failed", error=end.error)
        return Outcome("completed", value)

    def _around(self, node: Node, place: str) -> Outcome:
        for number in range(TURNS):
            last = number == TURNS - 1 or number + 1 == node.turns
            found = node.value if number + 1 == node.turns else 0
            end = self._one_of(f"{place}/iteration#{number}", "turn", last and node.fails == "turn", found)
            if end.status != "completed":
                return Outcome("finalize_failed", error=end.error)
            if found:
                break
        return Outcome("completed", node.value if node.turns else 0)

    def _one_of(self, place: str, step: str, fails: bool, value: int) -> Outcome:
        self.steps[place] = [step]
        return self._ended(place, Outcome("failed", error="Declined") if fails else Outcome("completed", value))


@functools.lru_cache(maxsize=4096)
def _whole(root: str) -> Reading:
    return read(root, ("",))


def read(root: str, given_up: Collection[str] = ()) -> Reading:
    """What all runs of this tree come to. Below one that was given up: what they come to if they are there at all."""
    if not given_up:
        return _whole(root)
    reading = Reading(given_up)
    reading.run(tree_of(root), root)
    return reading


def worth(value: Any) -> int:
    """The number in an output, as it is stored: itself, the last word of a text, or the sum of what is in it."""
    if value is None:
        return 0
    if isinstance(value, str):
        return int(value.split()[-1])
    if isinstance(value, dict) and "value" in value:
        return worth(value["value"])
    if isinstance(value, dict):
        children = [worth(child.get("output")) for child in value.get("children", ()) if child["status"] == "completed"]
        return worth(value["output"]) + sum(children)
    return int(value)
