"""What a run says of itself beside its steps: progress and log lines, on their way to the database."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from ..basis.errors import StoreUnavailable, ValidationError
from ..basis.text import LONGEST, clean
from ..basis.values import shape_of
from ..commit.ticket import Ticket
from ..model.step import LogRow, ProgressRow
from ..store.base import LogSave, ProgressSave
from .context import current_step

if TYPE_CHECKING:
    from .execution import Execution

_LONGEST_MESSAGE = 1024
_LONGEST_VALUE = 4096
_MOST_VALUES = 100


class Notes:
    """The progress and the log of one execution. Any thread."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._hub = execution.engine.hub
        self._progress: ProgressRow | None = None
        self._sent: ProgressRow | None = None
        self._sending: Ticket[None] | None = None
        self._lines: deque[Ticket[None]] = deque()

    # -- progress ----------------------------------------------------------------------------------------------

    @property
    def last_progress(self) -> str | None:
        """What this execution has said last."""
        return self._progress.progress if self._progress else None

    def progress(self, current: float, total: float | None, message: str | None) -> None:
        """Keep the last one; at most one is on its way at a time."""
        told = _told(current, total, message)
        execution = self._execution
        if execution.is_over:
            return
        row = execution.row
        self._progress = ProgressRow(row.id, row.generation, to_json(told).decode())
        if self._hub.hears("run:progress"):
            self._hub.tell("run:progress", row, progress=told)
        if self._sending is None or self._sending.done():
            self._join(self._unsent_progress())

    def _unsent_progress(self) -> list[Ticket[Any]]:
        sending, progress = self._sending, self._progress
        lost = sending is not None and sending.done() and sending._error is not None
        if progress is None or (progress is self._sent and not lost):
            return []
        self._sent = progress
        save = ProgressSave(self._execution.lease.owner, progress)
        ticket: Ticket[None] = Ticket("save_progress", save, then=self._progress_saved)
        ticket._asked = True  # progress may be lost; nobody needs to hear of it
        self._sending = ticket
        return [ticket]

    def _progress_saved(self, _: None) -> None:
        """In the committing thread: what was said meanwhile goes next."""
        if not self._execution.is_over:
            self._join(self._unsent_progress())

    # -- log ---------------------------------------------------------------------------------------------------

    def log(self, level: str, message: str, data: dict[str, Any]) -> None:
        """Append a line. Cleaned, never refused: a log line must not fail a run."""
        execution = self._execution
        if execution.is_over:
            return
        run, now = execution.row, execution.engine.clock.now()
        step_name, text = current_step.get(), clean(message)
        row = LogRow(0, run.id, run.generation, step_name, level, text, _kept(data), now)
        self._join([self._line(LogSave(execution.lease.owner, row))])
        self._forget_saved()
        if self._hub.hears("log:write"):
            self._hub.tell("log:write", run, level=level, message=text, data=data, step_name=step_name)

    def _line(self, save: LogSave) -> Ticket[None]:
        ticket: Ticket[None] = Ticket("save_logs", save, weight=len(save.line.message) + len(save.line.data or ""))
        ticket._asked = True  # `resent` looks after those that fail
        self._lines.append(ticket)
        return ticket

    def _forget_saved(self) -> None:
        with contextlib.suppress(IndexError):  # another thread was faster
            while self._lines[0].done() and self._lines[0]._error is None:
                self._lines.popleft()

    @property
    def has_lost(self) -> bool:
        """Whether lines were refused by a database in trouble."""
        self._forget_saved()
        return any(ticket._error is not None for ticket in list(self._lines))

    def resent(self) -> list[Ticket[Any]]:
        """The lines that a database in trouble has refused, to be sent again."""
        if not self.has_lost:
            return []
        lines, self._lines = self._lines, deque()
        again = []
        for ticket in lines:
            if isinstance(ticket._error, StoreUnavailable):
                again.append(self._line(ticket.row))
            elif ticket._error is not None:
                self._hub.report(ticket._error, "log", self._execution.row.id)
            elif not ticket.done():
                self._lines.append(ticket)
        return again

    def pending(self) -> list[Ticket[Any]]:
        """What must go before a checkpoint or the end of the run: after that it would be lost, or refused."""
        return [*self.resent(), *self._unsent_progress()]

    def _join(self, tickets: list[Ticket[Any]]) -> None:
        if tickets:
            self._execution.engine.committer.join(*tickets, pass_always=True)


def _told(current: Any, total: Any, message: Any) -> dict[str, Any]:
    for number in (current, 0 if total is None else total):
        # Beyond 2**53 JavaScript reads another number, and far beyond nobody writes it any more.
        if type(number) not in (int, float) or not -(2.0**53) <= number <= 2.0**53:
            raise ValidationError("progress: current and total must be numbers, finite, and at most 2**53.")
    told = {"current": current}
    if total is not None:
        told["total"] = total
    if message is not None:
        told["message"] = clean(message, _LONGEST_MESSAGE)
    return told


def _kept(data: dict[str, Any]) -> str | None:
    if not data:
        return None
    try:
        text = shape_of().keep(data, "log").text
        if len(text) <= LONGEST:
            return text
    except Exception:  # not a value that we can keep: what it looks like will do
        pass
    some = [*data.items()][:_MOST_VALUES]
    return to_json({clean(key, 255): clean(_shown(value), _LONGEST_VALUE) for key, value in some}).decode()


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"
