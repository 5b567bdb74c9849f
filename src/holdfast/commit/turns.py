"""Turns at a database that has one writer, within this process: one after the other, in the order of asking.

SQLite itself lets whoever happens to look first. A line with a round after the other would keep a transaction beside it
waiting for seconds, and a long transaction would let every round run into the lock timeout.
"""

from __future__ import annotations

import threading
from collections import deque


class Turn:
    """The place of one writer. It is given back once, by whoever is first to do so."""


class Turns:
    """Who may write now. Any thread; a thread that waits has none."""

    def __init__(self) -> None:
        # Re-entrant as all our locks: a garbage collection in between may run anything.
        self._door = threading.Condition(threading.RLock())
        self._queue: deque[Turn] = deque()

    def take(self) -> Turn:
        """Wait until everybody who came before has given theirs back."""
        turn = Turn()
        with self._door:
            self._queue.append(turn)
            try:
                while self._queue[0] is not turn:
                    self._door.wait()
            except BaseException:  # whoever waited was interrupted
                self.give(turn)
                raise
        return turn

    def give(self, turn: Turn) -> None:
        """The next one may. Once is enough; again is nothing."""
        with self._door:
            if turn in self._queue:
                self._queue.remove(turn)
                self._door.notify_all()
