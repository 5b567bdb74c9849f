"""Few progress events a second for each run: the first at once, then the last one of each window, and none is lost.

A run's end sends what was held back first. Other events pass at once, so a progress that was held may come after them.
No clock and no timers: whoever sends says what time it is, and asks when to come again.
"""

from __future__ import annotations

from ..model.event import Event

_ENDS = frozenset({"run:complete", "run:fail", "run:cancel", "run:delete"})
#: Runs whose last progress is remembered, before those whose window is over are forgotten.
_MOST_REMEMBERED = 1000


class Throttle:
    """For one stream. `seconds` of 0 or less: everything passes."""

    def __init__(self, seconds: float) -> None:
        self._window = seconds
        self._sent_at: dict[str, float] = {}
        self._held: dict[str, Event] = {}

    def pass_on(self, event: Event, now: float) -> list[Event]:
        """What is to be sent now that this event has come."""
        run_id = event.run_id or ""
        if self._window <= 0:
            return [event]
        if event.type == "run:progress":
            before = self._sent_at.get(run_id)
            if before is not None and now < before + self._window:
                self._held[run_id] = event
                return []
            self._held.pop(run_id, None)
            self._remember(run_id, now)
            return [event]
        if event.type in _ENDS:
            self._sent_at.pop(run_id, None)
            held = self._held.pop(run_id, None)
            return [event] if held is None else [held, event]
        return [event]

    def _remember(self, run_id: str, now: float) -> None:
        if len(self._sent_at) >= _MOST_REMEMBERED:
            over = [one for one, at in self._sent_at.items() if at + self._window <= now and one not in self._held]
            for one in over:
                del self._sent_at[one]
        self._sent_at[run_id] = now

    def due_at(self) -> float | None:
        """When something that is held is to be sent; None: nothing is held."""
        if not self._held:
            return None
        return min(self._sent_at[run_id] for run_id in self._held) + self._window

    def due(self, now: float) -> list[Event]:
        """What was held for long enough."""
        if not self._held:
            return []
        over = [run_id for run_id in self._held if self._sent_at[run_id] + self._window <= now]
        for run_id in over:
            self._sent_at[run_id] = now
        return [self._held.pop(run_id) for run_id in over]

    def rest(self) -> list[Event]:
        """Everything that is held: the stream ends."""
        held, self._held = list(self._held.values()), {}
        return held
