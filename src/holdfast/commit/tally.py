"""What the line has served, in figures: counted once per round and verb, so that it costs nothing that anybody notices.

Memory is bounded: quantiles are those of the last samples.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ticket import Ticket

#: Of each figure so many samples are kept.
_SAMPLES = 1000
#: Of one verb in one round so many tickets are asked how long they waited: they waited for the same commit.
_PER_ROUND = 8


@dataclass(frozen=True, slots=True)
class Spread:
    """How a figure was spread: `count` since the app was made, the others of the last 1,000 samples (or 0)."""

    count: int
    min: float
    max: float
    p50: float
    p90: float
    p95: float

    @classmethod
    def of(cls, count: int, samples: Iterable[float]) -> Spread:
        """The spread of these samples."""
        ordered = sorted(samples)
        if not ordered:
            return cls(count, 0.0, 0.0, 0.0, 0.0, 0.0)

        def quantile(share: float) -> float:
            return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

        return cls(count, ordered[0], ordered[-1], quantile(0.5), quantile(0.9), quantile(0.95))


class _Verb:
    __slots__ = ("count", "seconds", "waits")

    def __init__(self) -> None:
        self.count = 0
        self.seconds: deque[float] = deque(maxlen=_SAMPLES)
        self.waits: deque[float] = deque(maxlen=_SAMPLES)


class Tally:
    """Written by whoever serves rounds, one at a time; read by anybody."""

    def __init__(self) -> None:
        self.rounds: int = 0
        self.again: int = 0
        """How often a round was undone by the database for somebody else's sake, and played again."""
        self._sizes: deque[float] = deque(maxlen=_SAMPLES)
        self._verbs: dict[str, _Verb] = {}

    def round(self, served: Sequence[tuple[str, Sequence[Ticket[Any]], float]], size: int, now: float) -> None:
        """A round was committed: verb by verb its tickets and how long the verb took."""
        self.rounds += 1
        self._sizes.append(size)
        for name, tickets, seconds in served:
            verb = self._verbs.get(name)
            if verb is None:
                verb = self._verbs.setdefault(name, _Verb())
            verb.count += len(tickets)
            verb.seconds.append(seconds)
            for ticket in tickets[:: 1 + len(tickets) // _PER_ROUND]:
                if ticket.joined_at:
                    verb.waits.append(now - ticket.joined_at)

    @property
    def sizes(self) -> Spread:
        """Tickets per round."""
        return Spread.of(self.rounds, tuple(self._sizes))

    def verbs(self) -> dict[str, tuple[Spread, Spread]]:
        """By verb: seconds that it took in its round, and seconds from joining the line to the answer.

        What went along with the commit took nothing before it.
        """
        return {
            name: (Spread.of(verb.count, tuple(verb.seconds)), Spread.of(verb.count, tuple(verb.waits)))
            for name, verb in sorted(self._verbs.copy().items())
        }
