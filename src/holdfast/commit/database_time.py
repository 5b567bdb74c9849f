"""What time it is for the database, where that has a clock of its own: what it says counts for everybody.

Rounds tell what they were told. Between two of them our own steady clock goes on. Our wall clock is not asked: that of
one machine among many may be wrong by a minute or a day, and a sleep would be over at once, or never.
"""

from __future__ import annotations

from typing import NamedTuple

from ..basis.clock import Clock

#: Microseconds by which two clocks that go may part in a second, and more.
_DRIFT = 1000.0


class _Told(NamedTuple):
    ahead: float
    """Of our steady clock, at least: it was said some time between question and answer."""
    at_most: float
    at: float


class DatabaseTime:
    """Microseconds since 1970, by the database, as far as it has been heard of; before that, and where it has no clock
    of its own, by ours."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: _Told | None = None

    def told(self, now: int, asked: float) -> None:
        """It was `now`, at some moment since then by the steady clock."""
        at, known = self._clock.steady(), self._known
        new = _Told(now - at * 1_000_000, now - asked * 1_000_000, at)
        if known is not None:
            drift = (at - known.at) * _DRIFT
            least, most = known.ahead - drift, known.at_most + drift
            # If both can't be right it is another server, or its clock was set. Otherwise who says less is no help.
            if new.ahead <= most and least <= new.at_most and new.at_most - new.ahead > most - least:
                return
        self._known = new

    def now(self) -> int:
        """Never ahead of it by more than clocks part in a moment: what waits for a time doesn't go on before it."""
        known = self._known
        if known is None:
            return self._clock.now()
        return round(known.ahead + self._clock.steady() * 1_000_000)
