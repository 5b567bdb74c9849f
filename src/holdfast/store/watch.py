"""How it becomes known that somebody has committed: by a number that is read, by looking, or by being told.

Whatever it is, it only says when to look. What has changed is read from the tables; so a word that is lost, doubled or
made up costs time at most.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from .base import Store

Pace: TypeAlias = Literal["marks", "looks", "told"]


class News(NamedTuple):
    """What may have changed; made without arguments: anything."""

    claimable: bool = True
    """There may be something to claim."""
    runs: frozenset[str] | None = None
    """Runs that have ended, are gone, or are no longer held as they were. None: it may be any."""

    def concerns(self, run_id: str) -> bool:
        """Whether something may have happened to this run."""
        return self.runs is None or run_id in self.runs

    def concern_some(self, run_ids: Iterable[str]) -> bool:
        """Whether something may have happened to one of these."""
        return self.runs is None or not self.runs.isdisjoint(run_ids)


EVERYTHING = News()


class Watch:
    """One connection to read by, and a sense of what others commit. For one thread, but for `rouse`.

    This one reads the store's `change_mark`. Other stores may know better.
    """

    pace: Pace = "looks"
    """How `changed` knows. "marks": from a number that costs next to nothing, so ask it often. "told": it is told at
    once, and `rest` ends then. "looks": it knows nothing, so look at the tables as often as somebody needs it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wake = threading.Event()
        self._mark: int | None = None
        self.connection: Any = None
        """What to read by, after `changed`."""

    def changed(self) -> News | None:
        """What may have changed since it was asked last, or since it was connected; None: nothing that it knows of.

        Connects where that is needed, and raises what the store or its driver raises. Then call `close`.
        """
        fresh = self.connection is None
        if fresh:
            self.connection = self._store.connect(read_only=True)
            self._mark = None
        self._store.confirm(self.connection)
        seen = self._store.change_mark(self.connection)
        before, self._mark = self._mark, seen
        self.pace = "looks" if seen is None else "marks"
        return EVERYTHING if fresh or seen != before else None

    def rest(self, seconds: float) -> None:
        """Block until something may have changed, the time is over, or `rouse` is called. Never raises."""
        if self._wake.wait(seconds):
            self._wake.clear()

    def rouse(self) -> None:
        """End the rest, or the next one, early. Any thread."""
        self._wake.set()

    def close(self) -> None:
        """Let go of the connection; `changed` opens another. Never raises."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self._store.disconnect(connection)
