"""Events made of rows: what another process did, as the hub of that process has told it there.

Payloads are opened by whoever asks for the event, in his own thread: a codec is a user's code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ..basis.clock import Clock, to_datetime
from ..basis.codec import Payloads
from ..basis.errors import Outdated, StoreUnavailable
from ..basis.failures import Failure, failed_text
from ..model.event import Event
from ..model.run import RunRow
from ..model.step import EMITTED, LogRow, StepRow

Making: TypeAlias = "Event | Callable[[], Event]"
"""An event, or how to make it."""


class Retold:
    """Makes the events of one run. Their sequence is 0; their time is that of what happened, or now."""

    def __init__(
        self,
        run_id: str,
        clock: Clock,
        payloads: Payloads,
        ended_as: Callable[[RunRow], tuple[str, dict[str, Any]]],
    ) -> None:
        self.run_id = run_id
        self.row: RunRow | None = None
        """The run as it was when it was last read."""
        self._clock = clock
        self._payloads = payloads
        self._ended_as = ended_as

    def event(self, type: str, data: dict[str, Any], at: int | None = None) -> Event:
        """An event that needs no payload."""
        when = to_datetime(self._clock.now() if at is None else at)
        assert when is not None
        row = self.row
        if row is None:
            return Event(type, when, 0, self.run_id, None, {}, data)
        return Event(type, when, 0, self.run_id, row.job_name, row.label_map, data)

    def end(self, row: RunRow) -> Making:
        """How the run has ended."""

        def make() -> Event:
            type, data = self._ended_as(row)
            return self.event(type, data, row.completed_at)

        return make

    def lease(self, owner: str | None, until: int | None) -> Making:
        """That somebody began to execute it; who, if that is known."""

        def make() -> Event:
            data: dict[str, Any] = {}
            if self.row is not None:
                data["input"] = self._payloads.shown(self.row.input)
            if owner is not None:
                data |= {"lease_owner": owner, "lease_expires_at": to_datetime(until)}
            return self.event("run:leased", data)

        return make

    def step(self, step: StepRow) -> tuple[str, Making]:
        """That a step was saved."""
        data: dict[str, Any] = {"step_name": step.name, "step_index": step.position}
        if step.status == "failed":
            return "step:fail", lambda: self.event(
                "step:fail", {**data, "error": self._error_of(step)}, step.completed_at
            )

        def make() -> Event:
            output = None if step.output is None else self._payloads.shown(step.output)
            more = {"output": output, "duration": (step.completed_at - step.started_at) / 1e6}
            return self.event("step:complete", {**data, **more}, step.completed_at)

        return "step:complete", make

    def _error_of(self, step: StepRow) -> str:
        try:
            failure = Failure.from_json(self._payloads.open(step.error or ""))
        except (Outdated, StoreUnavailable) as error:
            return error.message
        return failed_text(failure)

    def line(self, line: LogRow) -> tuple[str, Making]:
        """That a line was written, or a value streamed."""
        if line.level == EMITTED:
            return "run:emit", lambda: self.event("run:emit", self._emitted(line), line.created_at)

        def make() -> Event:
            data: dict[str, Any] = {
                "level": line.level,
                "message": self._payloads.shown_text(line.message),
                "step_name": line.step_name,
            }
            if line.data is not None:
                data["data"] = self._payloads.shown(line.data)
            return self.event("log:write", data, line.created_at)

        return "log:write", make

    def _emitted(self, line: LogRow) -> dict[str, Any]:
        name, value = self._payloads.shown_text(line.message), self._payloads.shown(line.data or "null")
        return {"name": name, "value": value, "step_name": line.step_name}


def size_of(row: StepRow | LogRow) -> int:
    """About how many bytes it holds."""
    if isinstance(row, StepRow):
        return len(row.output or "") + len(row.error or "")
    return len(row.message) + len(row.data or "")
