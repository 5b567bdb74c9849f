"""The trail of one run for one subscription: what comes next, wherever the run is executed, and nothing twice.

A run may move between processes, and each lease of it has a generation. The events of a generation come from *one*
source: from the hub if it is executed here, else from the database, where a look finds the steps and lines that it has
saved. Numbers make the order: whatever belongs to a lower generation comes first, so what the hub tells too early
(another process had the run in between, and nobody has looked yet) is *held* until the next look.

At the beginning everything is held, until the state was read: the snapshot comes first, and what it says already is not
told again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from pydantic_core import from_json

from ..basis.errors import NotFoundError
from ..model.event import Event
from ..model.run import RunRow, RunStatus
from ..model.step import LogRow, StepRow
from ..store.base import Followed, StepMark
from .retold import Making, Retold

#: What a subscription gives.
TYPES = frozenset(
    {
        "run:leased",
        "run:progress",
        "run:emit",
        "run:complete",
        "run:fail",
        "run:cancel",
        "run:delete",
        "step:start",
        "step:complete",
        "step:fail",
        "log:write",
    }
)
#: After one of these there is no other.
LAST = frozenset({"run:complete", "run:fail", "run:cancel", "run:delete"})

#: Steps end in another order than that in which they began. A look at a run that goes on reads from the lowest position
#: of which something may still come; but a step that takes long, or one that was broken off and never comes, may stand
#: far below all others. Beyond so many positions most looks read a few of the last ones, and every so many looks one
#: reads all: on average about as many positions as this, and whatever was passed over is read soon.
_WIDE = 500
_LAST_FEW = 100

_TERMINAL = frozenset(str(status) for status in RunStatus.terminal())


class Wanted(NamedTuple):
    """What a look has to read for a trail: steps from a position, lines after an id, the whole row."""

    steps_from: int | None
    logs_after: int | None
    row: bool


class Found(NamedTuple):
    """What it has read. `more`: there are steps or lines that it has not."""

    steps: Sequence[StepRow]
    logs: Sequence[LogRow]
    row: RunRow | None
    more: bool


class Trail:
    """Not thread-safe: the subscription holds its lock around each call."""

    def __init__(
        self,
        identity: Callable[[], str],
        retold: Retold,
        give: Callable[[str, Making], None],
        *,
        with_snapshot: bool,
        most_held: int,
    ) -> None:
        self.over: bool = False
        """The last event was given."""
        self.begun: bool = False
        """The state was read."""
        self.held: deque[tuple[Event, int]] | None = deque()
        self.dropped: int = 0
        self._identity = identity
        self._retold = retold
        self._give = give
        self._with_snapshot = with_snapshot
        self._most_held = most_held
        self._generation = -1
        self._here: set[int] = set()
        self._leased: set[int] = set()
        self._away = False
        self._seen: set[int] = set()
        self._top = 0
        self._low = 0
        """Of what is below, everything was given, and nothing more comes."""
        self._failed: set[int] = set()
        self._read: list[StepMark] = []
        """What the look that goes on has found."""
        self._read_from: int | None = None
        self._passed_over = 0
        """Looks since the last one that read from the lowest position."""
        self._last_log = 0
        self._progress: Any = None
        self._asked_again = False

    @property
    def is_here(self) -> bool:
        """Whether this process executes the run, or was the last to: then the hub tells what it does."""
        return self._generation in self._here

    # -- from the hub ------------------------------------------------------------------------------------------

    def hear(self, event: Event, generation: int) -> bool:
        """An event of this process; True if a look is needed before it can be given."""
        if self.over or event.type not in TYPES:
            return False
        if self.held is None:
            if generation < self._generation:
                return False  # of an execution that has lost its lease
            if self._follows(event, generation):
                self._tell(event, generation)
                return False
        return self._hold(event, generation)

    def _follows(self, event: Event, generation: int) -> bool:
        """Whether nothing can have happened elsewhere between what was given last and this."""
        if event.type == "run:delete":
            return True
        known = self._generation
        return not self._away and ((generation == known and generation in self._here) or generation == known + 1)

    def _hold(self, event: Event, generation: int) -> bool:
        begins = self.held is None
        self._here.add(generation)
        held = self.held = self.held if self.held is not None else deque()
        if held and held[-1][0].type in LAST:
            return False
        held.append((event, generation))
        if len(held) > self._most_held:
            held.popleft()
            self.dropped += 1
        return begins

    def _tell(self, event: Event, generation: int) -> None:
        if self.over:
            return
        self._here.add(generation)
        self._generation = max(self._generation, generation)
        if event.type == "run:leased":
            if generation in self._leased:
                return
            self._leased.add(generation)
        elif event.type == "run:progress":
            self._progress = event.data["progress"]
        self._add(event.type, event)

    def _add(self, type: str, making: Making) -> None:
        self.over = self.over or type in LAST
        self._give(type, making)

    # -- the beginning -----------------------------------------------------------------------------------------

    def begin(self, row: RunRow | None, marks: Iterable[StepMark], last_log: int) -> bool:
        """How the run stands; True if a look is needed. The marks and the id were read before the row."""
        self.begun = True
        held, self.held = self.held or deque(), None
        if row is None:
            if held and held[-1][0].type in LAST:
                self._tell(*held[-1])
                return False
            self.over = True
            raise NotFoundError(f"Run not found: {self._retold.run_id}")
        self._retold.row = row
        self._generation = row.generation
        self._last_log = last_log
        self._notice(marks)
        self._progress = None if row.progress is None else from_json(row.progress)
        if row.completed_at is not None:
            for event, generation in held:
                if event.type not in LAST and generation >= row.generation:
                    self._tell(event, generation)
            self._end(row)
            return False
        if row.status == RunStatus.LEASED:
            self._away = row.lease_owner != self._identity()
            if not self._away:
                self._here.add(row.generation)
            self._leased.add(row.generation)
            if self._with_snapshot:
                self._give_snapshot(row, held)
        return self._let_go(held)

    def _give_snapshot(self, row: RunRow, held: Iterable[tuple[Event, int]]) -> None:
        self._add("run:leased", self._retold.lease(row.lease_owner, row.lease_expires_at))
        # What was told meanwhile is at least as new.
        if self._progress is not None and not any(event.type == "run:progress" for event, _ in held):
            self._add("run:progress", self._retold.event("run:progress", {"progress": self._progress}))

    def _let_go(self, held: Iterable[tuple[Event, int]]) -> bool:
        """Give what was held; True if some of it has to wait for a look."""
        looks = False
        for event, generation in held:
            looks = self.hear(event, generation) or looks
        return looks

    # -- from the database -------------------------------------------------------------------------------------

    def wants(self, state: Followed | None) -> Wanted | None:
        """What a look must read, given how the run stands; None if there is nothing to do."""
        self._read_from = None
        if self.over or not self.begun:
            return None
        if state is None:
            return Wanted(None, None, False)
        ended = state.status in _TERMINAL
        changed = state.generation != self._generation
        here = state.generation in self._here or state.lease_owner == self._identity()
        quiet = self.held is None and not self._away and not ended
        if quiet and (here or not changed) and not self._is_elsewhere(state):
            return None
        if ended and self._waits_for_the_hub(state):
            return Wanted(None, None, False)
        self._read_from = first = self._first(whole=ended or changed or self._asked_again)
        return Wanted(first, self._last_log if state.last_log > self._last_log else None, ended)

    def _first(self, *, whole: bool) -> int:
        if whole or self._top - self._low <= _WIDE * (self._passed_over + 1):
            self._passed_over = 0
            # Of a step that had failed before anybody looked, nobody knows that it is tried again.
            return 0 if whole else max(0, min(self._low, self._top - _LAST_FEW))
        self._passed_over += 1
        return max(0, self._top - _LAST_FEW)

    def _waits_for_the_hub(self, state: Followed) -> bool:
        """The run has ended here: the hub is about to tell. For one look; its loop may have been closed."""
        return not self.held and state.generation in self._here and not self._asked_again

    def _is_elsewhere(self, state: Followed) -> bool:
        return state.lease_owner is not None and state.lease_owner != self._identity()

    def unseen(self, marks: Iterable[StepMark]) -> list[StepMark]:
        """Those of steps that were saved elsewhere and not given yet."""
        self._read = list(marks)
        return [mark for mark in self._read if not self._was_given(mark)]

    def _was_given(self, mark: StepMark) -> bool:
        return mark.generation in self._here or _key(mark) in self._seen

    def _notice(self, marks: Iterable[StepMark | StepRow]) -> None:
        for mark in marks:
            self._seen.add(_key(mark))
            self._top = max(self._top, mark.position)
            if isinstance(mark, StepRow) and mark.status == "failed":
                self._failed.add(mark.position)

    def _raise_low(self, generation: int) -> None:
        """After what was read was given, while the run has this generation."""
        read, self._read = self._read, []
        if self._read_from is None or self._read_from > self._low:
            return
        low = self._read_from
        for mark in sorted(read, key=lambda mark: mark.position):
            if mark.position > low or not self._was_given(mark):
                break
            if mark.generation < generation and mark.position in self._failed:
                break  # which this attempt tries again, at the same place
            low = max(low, mark.position + 1)
        self._low = low

    def advance(self, state: Followed | None, found: Found) -> bool:
        """Give what a look has found; True if another one is needed soon."""
        if self.over:
            return False
        items = self._saved(found)
        if state is not None:
            self._raise_low(state.generation)
        if found.more:
            # Nothing that comes later in the story until all of this was read.
            self._give_items(items, state)
            return self._again()
        held, self.held = self.held or (), None
        if state is None:
            self._give_items([], None)
            self._let_go(held)
            self._add("run:delete", self._retold.event("run:delete", {}))
            return False
        elsewhere = self._is_elsewhere(state)
        ended = state.status in _TERMINAL
        if ended and not held and self._waits_for_the_hub(state):
            return self._again()
        self._asked_again = False
        # What belongs to a later lease than was seen waits: steps of the one before may not have been read.
        later = [one for one in held if one[1] > state.generation]
        has_lease = elsewhere or any(item[0] == state.generation for item in items)
        # Nobody knows when in between it was said; so before what was saved, and after the lease.
        items = [*self._progress_of(state, elsewhere or self._away or bool(items)), *items]
        if has_lease:
            items.insert(0, (state.generation, "", None))
        items += [(generation, event.type, event) for event, generation in held if generation <= state.generation]
        if not elsewhere and state.lease_owner is not None:
            self._here.add(state.generation)
        self._give_items(sorted(items, key=_generation), state)
        self._generation = max(self._generation, state.generation)
        self._away = elsewhere
        if ended and found.row is not None and not self.over:
            self._end(found.row)
        return self._let_go(later) or (self._passed_over > 0 and not self.over)

    def _again(self) -> bool:
        self._asked_again = True
        return True

    def _saved(self, found: Found) -> list[_Item]:
        """Steps and lines in the order of their times, each kind in its own order: a clock may jump."""
        steps = sorted(
            [step for step in found.steps if step.generation not in self._here and _key(step) not in self._seen],
            key=lambda step: step.completed_at,
        )
        self._notice(steps)
        lines = [line for line in found.logs if line.id > self._last_log]
        self._last_log = max([self._last_log, *(line.id for line in lines)])
        steps_of: dict[int, list[_Timed]] = {}
        lines_of: dict[int, list[_Timed]] = {}
        for step in steps:
            steps_of.setdefault(step.generation, []).append((step.completed_at, 1, *self._retold.step(step)))
        for line in lines:
            if line.generation not in self._here:
                lines_of.setdefault(line.generation, []).append((line.created_at, 0, *self._retold.line(line)))
        return [
            (generation, type, making)
            for generation in sorted(steps_of.keys() | lines_of.keys())
            for _, _, type, making in heapq.merge(
                lines_of.get(generation, ()), steps_of.get(generation, ()), key=lambda one: one[:2]
            )
        ]

    def _progress_of(self, state: Followed, asked: bool) -> list[_Item]:
        if not asked or state.progress is None or state.generation in self._here:
            return []
        progress = from_json(state.progress)
        if progress == self._progress:
            return []
        self._progress = progress
        return [(state.generation, "run:progress", self._retold.event("run:progress", {"progress": progress}))]

    def _give_items(self, items: Iterable[_Item], state: Followed | None) -> None:
        for generation, type, making in items:
            if self.over:
                return
            if isinstance(making, Event) and making.sequence:
                self._tell(making, generation)
                continue
            if type != "run:progress":
                self._give_lease(generation, state)
            self._generation = max(self._generation, generation)
            if making is not None:
                self._add(type, making)

    def _give_lease(self, generation: int, state: Followed | None) -> None:
        """What was saved under a lease comes after it, although the lease itself may be over before anybody looked."""
        if generation not in self._leased:
            self._leased.add(generation)
            now = state if state is not None and state.generation == generation else None
            self._add("run:leased", self._retold.lease(now and now.lease_owner, now and now.lease_expires_at))

    def _end(self, row: RunRow) -> None:
        if self._retold.row is not row and not self._leased and row.started_at and row.status != RunStatus.CANCELLED:
            self._give_lease(row.generation, None)
        self._retold.row = row
        self._add("run:complete", self._retold.end(row))  # or another one: all are the last


_Item: TypeAlias = "tuple[int, str, Making | None]"
"""Of a generation: a type of event and the event; none: nothing but that there was a lease."""
_Timed: TypeAlias = "tuple[int, int, str, Making]"


def _generation(item: _Item) -> int:
    return item[0]


def _key(step: StepMark | StepRow) -> int:
    """Within one generation a position is used once."""
    return step.generation << 32 | step.position
