"""What goes wrong in a story, by its seed: which kinds, how often, and when.

Every seed draws which kinds of faults it has at all, and how often each strikes. A few kinds at a time find more than
all of them at once: what always happens together hides what happens only alone.
"""

from __future__ import annotations

import random
from collections import Counter

from sim_loop import SECOND

#: At a scheduling point, to a whole process.
AT_POINTS = ("crash", "pause", "hang", "jump", "locked", "restart")
#: At a point of the database, by chance.
AT_STORE = ("refused", "error", "lost", "ambiguous", "unreadable", "unwatched", "stalled", "slow")
KINDS = AT_POINTS + AT_STORE

#: Of those seeds that have a kind, so often it strikes at each chance.
_RATES = {
    "refused": (0.02, 0.2), "error": (0.01, 0.06), "lost": (0.02, 0.15), "ambiguous": (0.03, 0.3),
    "unreadable": (0.02, 0.2), "unwatched": (0.3, 1.0), "stalled": (0.03, 0.2), "slow": (0.03, 0.3),
}  # fmt: skip
#: Where a round may stand still.
_PLACES = ("holding", "between", "before commit", "after commit", "unanswered")


class Faults:
    """Draws them until they are healed."""

    def __init__(self, seed: int, lease: int, without: frozenset[str] = frozenset()) -> None:
        self._rng = rng = random.Random(seed * 3 + 1)
        self._lease = lease
        self.healed = False
        self.counts: Counter[str] = Counter()
        calm = rng.random() < 0.03
        chosen = [kind for kind in KINDS if rng.random() < 0.4]
        rates = {kind: rng.uniform(*_RATES[kind]) for kind in AT_STORE}
        self.every = rng.choice((40, 80, 160, 320))
        if calm:
            chosen = []
        self.kinds = frozenset(chosen) - without
        self._points = [kind for kind in chosen if kind in AT_POINTS]
        self._rates = {kind: rate if kind in self.kinds else 0.0 for kind, rate in rates.items()}

    def strikes(self, kind: str) -> bool:
        """Whether this one strikes now."""
        rate = self._rates[kind]
        if rate and not self.healed and self._rng.random() < rate:
            self.counts[kind] += 1
            return True
        return False

    def points_to_next(self) -> int:
        """After how many scheduling points something happens to a process."""
        return 1 + int(self._rng.expovariate(1 / self.every)) if self._points else 1 << 60

    def next_at_point(self) -> str | None:
        """What that is; None if it was left out."""
        kind = self._rng.choice(self._points)
        return kind if kind in self.kinds else None

    def seconds(self, least: float, most: float) -> int:
        """Microseconds."""
        return int(self._rng.uniform(least, most) * SECOND)

    def pick(self, count: int) -> int:
        return self._rng.randrange(count)

    def delay(self) -> int:
        """Microseconds that pass before a round or after its COMMIT, or on one way of a read."""
        draw = self._rng.random()
        if self._rates["slow"] and not self.healed and self._rng.random() < self._rates["slow"]:
            self.counts["slow"] += 1
            return int(draw * 1.5 * self._lease)
        return 500 + int(draw * 20_000)

    def stalls(self) -> dict[str, int]:
        """Where the round that begins now will stand still, and for how long."""
        if not self.strikes("stalled"):
            return {}
        place = self._rng.choice(_PLACES)
        return {place: int(self._rng.uniform(0.1, 1.6) * self._lease)}
