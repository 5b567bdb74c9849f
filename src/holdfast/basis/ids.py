"""Identifiers of runs: 26 characters, ordered by time, unique across machines.

The form is ULID (github.com/ulid/spec): 48 bits of milliseconds and 80 random bits in Crockford's base 32.
Within one factory ids always grow, also when the clock stands still or steps back, so that runs triggered
in the same millisecond keep their order.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]


def _text(value: int) -> str:
    pairs = _PAIRS
    return "".join([pairs[(value >> shift) & 1023] for shift in range(120, -1, -10)])


class Ids:
    """Makes ids. `now` gives microseconds; `random` gives an integer of that many random bits."""

    def __init__(self, now: Callable[[], int], random: Callable[[int], int] = secrets.randbits) -> None:
        self._now = now
        self._random = random
        self._last = 0
        self._lock = threading.Lock()

    def new(self) -> str:
        """The next id, greater than every one before it."""
        stamp = (self._now() // 1000) << 80
        with self._lock:
            # A fresh random part for each millisecond; within one, a random step keeps both order and unguessability.
            if stamp >> 80 > self._last >> 80:
                self._last = stamp | self._random(79)
            else:
                self._last += 1 + self._random(40)
            return _text(self._last)


def first_id(micros: int) -> str:
    """What is no greater than any id of that millisecond or later, and greater than all before it."""
    return _text(max(micros, 0) // 1000 << 80)
