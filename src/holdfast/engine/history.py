"""The saved steps of a run that is executed again, a page at a time.

Replay asks for them in the order in which they were started, so a page is dropped as it is used up, and a run of ten
thousand steps resumes in linear time and in the memory of one page.
"""

from __future__ import annotations

import threading

from ..model.step import StepKey, StepRow
from ..store.base import STEP_PAGE


class History:
    """What earlier executions have saved and this one has not asked for yet. Any thread."""

    __slots__ = ("_last", "_lock", "_rows", "next_position")

    def __init__(self, first_page: list[StepRow]) -> None:
        self._lock = threading.Lock()
        self._rows: dict[StepKey, StepRow] = {}
        self._last = -1
        self.next_position: int = STEP_PAGE
        self._put(first_page)

    def _put(self, rows: list[StepRow]) -> None:
        for row in rows:
            self._rows[StepKey(row.name, row.occurrence)] = row
            self._last = max(self._last, row.position)

    @property
    def more(self) -> bool:
        """Whether there are pages that were not loaded. The first page comes with the last step, which tells."""
        return self.next_position <= self._last

    def add(self, first: int, rows: list[StepRow]) -> None:
        """The page that begins at `first`. Several branches may have waited for the same one: it counts once."""
        with self._lock:
            if first == self.next_position:
                self._put(rows)
                self.next_position += STEP_PAGE

    def take(self, key: StepKey) -> StepRow | None:
        """The saved step, once."""
        return self._rows.pop(key, None)
