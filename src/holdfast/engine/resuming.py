"""Subscriptions that can be resumed: the events of a run from its beginning, or from where somebody has been.

Everything they tell is read from the database, wherever the run is executed, and each event has a place: what had been
told with it. Whoever comes back with a place gets what comes after it: steps, lines and ends neither twice nor never.
Progress is how it stands: the last one is told again.

A place stays below 4 KB, or a proxy would not let it pass. So of a lease that goes on, a step that would make it longer
is told later: when those beside it have ended, too, or when the lease is over and everything is told in its order.

A reader that is slow is waited for: with a thousand events, or a megabyte, no more is read until it has taken them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

from ..basis.errors import NotFoundError, ValidationError
from ..commit.reply import Reply
from ..model.event import Event
from ..model.run import RunFilter, RunRow, RunStatus
from ..model.step import LogRow, StepRow
from ..store.base import Followed, StepMark
from .retold import Making, Retold, size_of
from .subscription import MOST_UNREAD, Subscription
from .trail import LAST, Found, Trail, Wanted

if TYPE_CHECKING:
    from .engine import Engine
    from .subscriptions import Subscriptions

#: Bytes that wait for a slow reader: with as many, no more is read.
_MOST_BYTES = 1 << 20
#: Of what somebody comes with: servers before this one gave places as long as the steps made them.
_LONGEST = 32 << 10
#: Characters that the steps of a lease that goes on may have, and one look's come on top, each with a few.
_LONG = 2400
#: As many ranges are written as numbers, which servers before this one can read.
_FEW = 50
#: No run has as many: what a place says of its steps is never counted out.
_MOST_STEPS = 1_000_000
#: 64 characters that neither a header nor an address changes.
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!*"
_PACKED = re.compile(r"~(\d{1,9})-(\d{1,9})~|([0-9a-zA-Z!*])", re.ASCII)
_ONE = r"\d{1,9}(?::[\d~-]+|=[0-9a-zA-Z!*~-]+)"
_STEPS = rf"{_ONE}(?:_{_ONE})*"
_PLACE = re.compile(
    rf"(\d{{1,18}})\.(\d{{1,9}})\.(?:-(\d{{1,9}})(?:_(?={_STEPS}))?)?(?:(?<!\d)({_STEPS}))?(\.end)?", re.ASCII
)
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


class Place:
    """What somebody has been told of a run: lines up to an id, leases up to a generation, and which steps.

    As text `12.5.-3_4:0-4~6`: lines to 12, the lease 4, all steps of the generations to 3, and of generation 4 the
    steps 0 to 4 and 6. So it stays short, however often a run has waited. Many ranges are packed, `4=…`: one character
    for a gap of up to 7 steps that were not told and up to 8 that were, `~100-20~` for a larger one.
    """

    def __init__(self) -> None:
        self.line: int = 0
        self.leased: int = -1
        self.is_end: bool = False
        self._whole: int = -1
        """Of the generations to this one, all steps; the others:"""
        self._steps: dict[int, list[list[int]]] = {}
        """By generation: first and last position of each range, in order."""

    @classmethod
    def of(cls, text: str) -> Place:
        """The place that a text says. `ValidationError` if it says none."""
        found = _PLACE.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None:
            raise ValidationError("The place (Last-Event-ID) can't be read.")
        place = cls()
        place.line, place.leased, place.is_end = int(found[1]), int(found[2]) - 1, found[5] is not None
        place._whole = -1 if found[3] is None else int(found[3])
        for part in found[4].split("_") if found[4] else ():
            generation, _, ranges = part.partition(":" if ":" in part else "=")
            read = _unpacked(ranges) if "=" in part else _in_numbers(ranges)
            place._steps.setdefault(int(generation), []).extend(read)
        for known in place._steps.values():
            known.sort()
            if any(one[1] >= after[0] for one, after in pairwise(known)):
                raise ValidationError("The place (Last-Event-ID) can't be read.")
        return place

    def all_before(self, generation: int) -> None:
        """All steps of the generations below this one were told, and there will be no more of them."""
        over = [one for one in self._steps if one < generation]
        if over:
            self._whole = max(self._whole, generation - 1)
        for one in over:
            del self._steps[one]

    def all_to(self, generation: int, position: int) -> None:
        """All steps of the generation to this one were told, and there will be no more of them."""
        known = self._steps.get(generation, [])
        if generation > self._whole:
            last = max([position, *(one[1] for one in known if one[0] <= position + 1)])
            self._steps[generation] = [[0, last], *(one for one in known if one[0] > position + 1)]

    def add(self, generation: int, position: int) -> None:
        """This step was told."""
        if generation > self._whole:
            _insert(self._steps.setdefault(generation, []), position)

    def has(self, generation: int, position: int) -> bool:
        """Whether this step was told."""
        if generation <= self._whole:
            return True
        known = self._steps.get(generation, ())
        at = bisect_right(known, [position, _MOST_STEPS]) - 1
        return at >= 0 and position <= known[at][1]

    def room(self, generation: int) -> _Room:
        """What else of this generation may be told so that the place stays short."""
        return _Room([] if generation <= self._whole else self._steps.get(generation, ()))

    def shorten(self) -> None:
        """Of what was told last, forget so much that it is short: that is told again."""
        for known in self._steps.values():
            while len(known) > _FEW and len(_packed(known, -1)) > _LONG:
                del known[-(len(known) // 10) :]

    def __str__(self) -> str:
        parts = [] if self._whole < 0 else [f"-{self._whole}"]
        parts += [
            f"{generation}:" + "~".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
            if len(ranges) <= _FEW
            else f"{generation}={_packed(ranges, -1)}"
            for generation, ranges in sorted(self._steps.items())
        ]
        return f"{self.line}.{self.leased + 1}.{'_'.join(parts)}{'.end' if self.is_end else ''}"


class _Room:
    """Ranges of one generation that grow for as long as they can be written shortly."""

    def __init__(self, known: Iterable[list[int]]) -> None:
        self._known = [list(one) for one in known]
        self._length = len(_packed(self._known, -1))

    def takes(self, position: int) -> bool:
        """Whether this step has room; then it is there."""
        known = self._known
        at = max(bisect_right(known, [position, _MOST_STEPS]) - 1, 0)
        # Those that it may touch, and the one whose gap it may change.
        near, before = [list(one) for one in known[at : at + 2]], known[at - 1][1] if at else -1
        shorter = len(_packed(near, before))
        _insert(near, position)
        length = self._length - shorter + len(_packed(near, before))
        if length > _LONG and length > self._length:
            return False
        known[at : at + 2] = near
        self._length = length
        return True


def _insert(known: list[list[int]], position: int) -> None:
    at = bisect_right(known, [position, _MOST_STEPS]) - 1
    if at >= 0 and position <= known[at][1] + 1:
        known[at][1] = max(known[at][1], position)
    else:
        at += 1
        known.insert(at, [position, position])
    if at + 1 < len(known) and known[at][1] + 1 >= known[at + 1][0]:
        known[at][1] = max(known[at][1], known.pop(at + 1)[1])


def _packed(ranges: Iterable[list[int]], before: int) -> str:
    """Each range as the gap in front of it, and how many steps it has. `before`: the last position in front."""
    parts = []
    for first, last in ranges:
        gap, many = first - before - 1, last - first + 1
        parts.append(_DIGITS[gap * 8 + many - 1] if gap < 8 and many <= 8 else f"~{gap}-{many}~")
        before = last
    return "".join(parts)


def _unpacked(text: str) -> list[list[int]]:
    ranges, before, at = [], -1, 0
    while at < len(text):
        found = _PACKED.match(text, at)
        if found is None:
            raise ValidationError("The place (Last-Event-ID) can't be read.")
        at = found.end()
        if found[3]:
            gap, many = divmod(_DIGITS.index(found[3]), 8)
            many += 1
        else:
            gap, many = int(found[1]), int(found[2])
        first, before = before + 1 + gap, before + gap + many
        if many == 0 or before > _MOST_STEPS:
            raise ValidationError("The place (Last-Event-ID) can't be read.")
        ranges.append([first, before])
    return ranges


def _in_numbers(text: str) -> list[list[int]]:
    ranges = []
    for one in text.split("~"):
        ends = _RANGE.fullmatch(one)
        if ends is None:
            raise ValidationError("The place (Last-Event-ID) can't be read.")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first or last > _MOST_STEPS:
            raise ValidationError("The place (Last-Event-ID) can't be read.")
        ranges.append([first, last])
    return ranges


def place_now(engine: Engine, run_id: str) -> Reply[Place]:
    """Where the run stands now: from there on, its lease and progress are told, and what is new."""
    store = engine.store

    def read(connection: Any) -> Place:
        place = Place()
        states = store.follow(connection, [run_id])
        if states:
            place.line = states[run_id].last_log
            for mark in store.step_marks(connection, [(run_id, 0)]):
                place.add(mark.generation, mark.position)
            # Read before the marks: what has lost its lease by then saves nothing more.
            place.all_before(states[run_id].generation)
            place.shorten()
        for row in store.find_runs(connection, RunFilter(ids=(run_id,))):
            place.leased = row.generation - (row.status == RunStatus.LEASED)
        return place

    return engine.reader.read(f"place in run {run_id}", read, lambda place: place)


class _Placed:
    """An event, or how to make it, and what it is about."""

    __slots__ = ("line", "making", "size", "step")

    def __init__(self, making: Making, *, step: StepRow | None = None, line: LogRow | None = None) -> None:
        self.making = making
        self.step = None if step is None else (step.generation, step.position)
        self.line = None if line is None else line.id
        self.size = sum(size_of(row) for row in (step, line) if row is not None)

    def __call__(self) -> Event:
        return self.making if isinstance(self.making, Event) else self.making()


class _RetoldInPlace(Retold):
    """The same events, each with what it is about."""

    def step(self, step: StepRow) -> tuple[str, Making]:
        type, making = super().step(step)
        return type, _Placed(making, step=step)

    def line(self, line: LogRow) -> tuple[str, Making]:
        type, making = super().line(line)
        return type, _Placed(making, line=line)


class _WholeTrail(Trail):
    """The trail of a run of which nothing is heard and everything is read."""

    def __init__(self, place: Place, is_full: Callable[[], bool], *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._is_full = is_full
        self._from = place
        self._next: list[StepMark] = []
        self._over = -1
        """Generations to this one save nothing more."""

    def hear(self, event: Event, generation: int) -> bool:  # noqa: ARG002 - what happens here is read, too
        return self.begun and not self.over

    def begin(self, row: RunRow | None, marks: Iterable[StepMark], last_log: int) -> bool:  # noqa: ARG002
        self.begun, self.held = True, None
        if row is None:
            self.over = True
            raise NotFoundError(f"Run not found: {self._retold.run_id}")
        self._retold.row = row
        # What there is, not what somebody says that there is: that may be a lot.
        self._notice(mark for mark in marks if self._from.has(mark.generation, mark.position))
        self._last_log = self._from.line
        self._leased = set(range(min(self._from.leased, row.generation) + 1))
        # As if it were elsewhere, and nobody had looked yet: the first look reads everything.
        self._away = self._asked_again = True
        return True

    def unseen(self, marks: Iterable[StepMark]) -> list[StepMark]:
        """In the order of their generations: once a step of one is told, those before are told whole.

        A generation saves nothing more once there is the next one, and the first look that sees the next one reads all.
        Of the one that goes on, only what has room in the place.
        """
        self._next, room = [], None
        for mark in sorted(super().unseen(marks), key=lambda mark: (mark.generation, mark.position)):
            if mark.generation > self._over:
                room = room or self._from.room(mark.generation)
                if not room.takes(mark.position):
                    continue
            self._next.append(mark)
        return self._next

    def advance(self, state: Followed | None, found: Found) -> bool:
        """As every trail; but nothing that was read for somebody else is told before its turn."""
        read = {(step.generation, step.position): step for step in found.steps}
        turn = list(takewhile(lambda mark: (mark.generation, mark.position) in read, self._next))
        found = found._replace(steps=[read[mark.generation, mark.position] for mark in turn])
        again = super().advance(state, found)
        if turn and turn[-1].generation <= self._over and self._read_from == 0:
            # They came in the order of their positions, and nothing is missing among them but what never comes.
            self._from.all_to(turn[-1].generation, turn[-1].position)
        return again

    def wants(self, state: Followed | None) -> Wanted | None:
        if state is not None:
            self._over = state.generation - (state.status == RunStatus.LEASED)
        return None if self._is_full() else super().wants(state)


class ResumableSubscription(Subscription):
    """The events of one run from a place on, each with its own. As every subscription, for one reader."""

    __slots__ = ("_bytes", "_place", "_sizes", "_was_full", "at_end", "place")

    def __init__(self, desk: Subscriptions, run_id: str, place: Place) -> None:
        super().__init__(desk, run_id)
        self.place: str = str(place)
        """Where the event that was given last stands."""
        self.at_end: bool = place.is_end
        """Whether that is the end of the run."""
        self._place = place
        self._sizes: deque[int] = deque()
        """Of what was not asked for yet."""
        self._bytes = 0
        self._was_full = False
        engine = desk.engine
        retold = _RetoldInPlace(run_id, engine.clock, engine.payloads, engine.ended_as)
        give = self._trail._give  # knows of this object weakly
        self._trail = _WholeTrail(
            place, self._is_full, _nobody, retold, give, with_snapshot=True, most_held=MOST_UNREAD
        )

    def _give(self, type: str, making: Making) -> None:
        if self._is_over:
            return
        place = self._place
        if isinstance(making, _Placed):
            if making.step is not None:
                # They come generation by generation, see `_WholeTrail.unseen`.
                place.all_before(making.step[0])
                place.add(*making.step)
            if making.line is not None:
                place.line = max(place.line, making.line)
        elif type == "run:leased":
            place.leased = max(place.leased, *self._trail._leased)
        place.is_end = type in LAST
        at, at_end = str(place), place.is_end

        def made() -> Event:
            event = making if isinstance(making, Event) else making()
            self.place, self.at_end = at, at_end
            return event

        if type in LAST:
            self._last = made
            self._finish(None)
            return
        self._unread.append((type, made))
        self._sizes.append(making.size if isinstance(making, _Placed) else 0)
        self._bytes += self._sizes[-1]
        self._wake_up()

    def _take(self) -> Any:
        got = super()._take()
        with self._lock:
            while len(self._sizes) > len(self._unread):
                self._bytes -= self._sizes.popleft()
            looks = self._was_full and len(self._unread) <= MOST_UNREAD // 4 and self._bytes <= _MOST_BYTES // 4
            self._was_full = self._was_full and not looks
        if looks:
            self._desk.look_soon()  # nothing was read while there was so much
        return got

    def _is_full(self) -> bool:
        self._was_full = len(self._unread) >= MOST_UNREAD or self._bytes >= _MOST_BYTES
        return self._was_full


def _nobody() -> str:
    return ""
