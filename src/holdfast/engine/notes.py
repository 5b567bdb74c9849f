"""What a run says of itself beside its steps: progress and log lines, on their way to the database."""

from __future__ import annotations

import math
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
            self.flush_progress()

    def flush_progress(self) -> None:
        """Send the last progress before what follows: after the end of the run it would be refused."""
        sending, progress = self._sending, self._progress
        lost = sending is not None and sending.done() and sending._error is not None
        if progress is None or (progress is self._sent and not lost):
            return
        self._sent = progress
        execution = self._execution
        ticket: Ticket[None] = Ticket(
            "save_progress", ProgressSave(execution.lease.owner, progress), then=self._progress_saved
        )
        ticket._asked = True  # progress may be lost; nobody needs to hear of it
        self._sending = ticket
        execution.engine.committer.join(ticket, pass_always=True)

    def _progress_saved(self, _: None) -> None:
        """In the committing thread: what was said meanwhile goes next."""
        if not self._execution.is_over:
            self.flush_progress()

    # -- log ---------------------------------------------------------------------------------------------------

    def log(self, level: str, message: str, data: dict[str, Any]) -> None:
        """Append a line. Cleaned, never refused: a log line must not fail a run."""
        execution = self._execution
        if execution.is_over:
            return
        run, now = execution.row, execution.engine.clock.now()
        step_name, text = current_step.get(), clean(message)
        row = LogRow(0, run.id, run.generation, step_name, level, text, _kept(data), now)
        self._send(LogSave(execution.lease.owner, row))
        if self._hub.hears("log:write"):
            self._hub.tell("log:write", run, level=level, message=text, data=data, step_name=step_name)

    def _send(self, save: LogSave) -> Ticket[None]:
        ticket: Ticket[None] = Ticket("save_logs", save, weight=len(save.line.message) + len(save.line.data or ""))
        ticket._asked = True  # `resend` looks after those that fail
        self._execution.engine.committer.join(ticket, pass_always=True)
        self._lines.append(ticket)
        while self._lines and self._lines[0].done() and self._lines[0]._error is None:
            self._lines.popleft()
        return ticket

    @property
    def has_lost(self) -> bool:
        """Whether lines were refused by a database in trouble."""
        return any(ticket._error is not None for ticket in self._lines)

    def resend(self) -> Ticket[None] | None:
        """Send the lines again that a database in trouble has refused; the last of them."""
        last = None
        for _ in range(len(self._lines)):
            ticket = self._lines.popleft()
            if not ticket.done():
                self._lines.append(ticket)
            elif isinstance(ticket._error, StoreUnavailable):
                last = self._send(ticket.row)
            elif ticket._error is not None:
                self._hub.report(ticket._error, "log", self._execution.row.id)
        return last


def _told(current: Any, total: Any, message: Any) -> dict[str, Any]:
    for number in (current, 0 if total is None else total):
        if type(number) not in (int, float) or not (type(number) is int or math.isfinite(number)):
            raise ValidationError("progress: current and total must be finite numbers.")
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
    return to_json({clean(key, 255): clean(_shown(value), _LONGEST_VALUE) for key, value in data.items()}).decode()


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"
