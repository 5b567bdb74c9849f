"""What a run says of itself beside its steps: progress, log lines and streamed values, on their way to the database.

A function that is started again from the top says again what it has said between its steps. That is *held* until the
next step or wait is asked for: one that is there already means that it was said before, and it is dropped; a new one
lets it go, and from then on nothing is held any more.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from ..basis.errors import StoreUnavailable, ValidationError
from ..basis.text import clean, fit
from ..basis.values import plain, shape_of
from ..commit.reply import may_wait
from ..commit.ticket import Ticket
from ..model.step import EMITTED, LogRow, ProgressRow
from ..store.base import LogSave, ProgressSave
from .branches import check_name
from .context import beside, current_step

if TYPE_CHECKING:
    from .execution import Execution

#: Lines of a run that are on their way. Beyond that the writing code waits.
_MOST_UNSAVED = 1000
#: Seconds that it waits for a database in trouble, and between two reports of what was dropped then.
_PATIENCE = 5.0
_SAY_AGAIN = 1.0
#: Seconds for which the first thing that may have been said before is held: nobody knows what the code does meanwhile.
_HOLD = 1.0

_LONGEST_MESSAGE = 1024
_LONGEST_VALUE = 4096
_SHORTEST_VALUE = 64
_LEFT_OUT = '{"…":"left out: longer than max_log_bytes"}'
_MOST_VALUES = 100


class Notes:
    """The progress and the log of one execution. Any thread."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._hub = execution.engine.hub
        self._progress: ProgressRow | None = None
        self._sent: ProgressRow | None = None
        self._sending: Ticket[None] | None = None
        self._unsealed: deque[LogRow] = deque()
        self._lines: deque[Ticket[None]] = deque()
        self._held: deque[LogRow] = deque()
        self._held_progress: dict[str, Any] | None = None
        self._held_since: float | None = None
        self._impatient = False
        self._dropped = 0
        self._said_at: float | None = None

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
        if self._may_be_retold():
            self._held_progress = told
            return
        self._say_progress(told)

    def _say_progress(self, told: dict[str, Any]) -> None:
        row = self._execution.row
        self._progress = ProgressRow(row.id, row.generation, to_json(told).decode())
        if self._hub.hears("run:progress", row.id):
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
        self._say(level, *_within(message, data, self._execution.engine.options.max_log_bytes))

    def emit(self, name: str, value: Any) -> None:
        """Append a value for whoever follows the run; `ValidationError` if it can't be kept."""
        limit = self._execution.engine.options.max_log_bytes
        check_name(name, "step.emit: name")
        kept = shape_of().keep(value, f"step.emit {name!r}").text
        if (size := len(kept.encode())) > limit:
            raise ValidationError(
                f"step.emit {name!r}: the value has {size:,} bytes as JSON, more than max_log_bytes ({limit:,}). Emit "
                "it in parts, or return it from a step."
            )
        self._say(EMITTED, name, kept)

    def _say(self, level: str, text: str, kept: str | None) -> None:
        execution = self._execution
        if execution.is_over:
            return
        run, now = execution.row, execution.engine.clock.now()
        row = LogRow(0, run.id, run.generation, current_step.get(), level, text, kept, now)
        if self._may_be_retold() and len(self._held) < _MOST_UNSAVED:
            self._held.append(row)
        else:
            self._write(row)

    def _may_be_retold(self) -> bool:
        """Whether this may have been said by an earlier execution."""
        if not self._execution.retells or current_step.get() is not None:
            return False
        now = self._execution.engine.clock.steady()
        if self._held_since is None:
            self._held_since = now
        elif now - self._held_since > _HOLD:
            self._execution.goes_on()
            return False
        return True

    def said_before(self) -> None:
        """What comes next in the run's story is there already: so is what was held."""
        if self._held_since is not None:
            self._held.clear()
            self._held_progress = self._held_since = None

    def let_go(self) -> None:
        """What was held is new."""
        told, self._held_progress = self._held_progress, None
        if told is not None:
            self._say_progress(told)
        with contextlib.suppress(IndexError):  # there is none left, or another thread was faster
            while True:
                self._write(self._held.popleft())

    def _write(self, row: LogRow) -> None:
        if len(self._lines) < _MOST_UNSAVED or self._has_room():
            self._unsealed.append(row)
            try:
                self._seal_lines()
            except StoreUnavailable as error:  # a line is not worth to stop for: its step waits until it is sealed
                self._keep_unsealed(error)
        self._forget_saved()
        run, data = self._execution.row, row.data
        if row.level == EMITTED:
            if self._hub.hears("run:emit", run.id):
                self._hub.tell("run:emit", run, name=row.message, value=plain(data or ""), step_name=row.step_name)
        elif self._hub.hears("log:write", run.id):
            more = {} if data is None else {"data": plain(data)}
            self._hub.tell("log:write", run, level=row.level, message=row.message, step_name=row.step_name, **more)

    def _seal_lines(self) -> None:
        """Send what was written. `StoreUnavailable` if the codec can't seal it now: then it is kept."""
        if not self._unsealed:
            return
        payloads, owner = self._execution.engine.payloads, self._execution.lease.owner
        with contextlib.suppress(IndexError):  # there is none left, or another thread was faster
            while True:
                row = self._unsealed.popleft()
                try:
                    sealed = row._replace(message=payloads.seal(row.message), data=payloads.seal_some(row.data))
                except StoreUnavailable:
                    self._unsealed.appendleft(row)
                    raise
                line = self._line(LogSave(owner, sealed))
                # In a transaction of a step they go with it: the line stands still until its end.
                if (open_one := beside.get()) is None or not open_one.keep(line):
                    self._join([line])

    def _keep_unsealed(self, error: StoreUnavailable) -> None:
        if len(self._unsealed) == 1:
            self._hub.report(error, "log", self._execution.row.id)
        elif len(self._unsealed) > _MOST_UNSAVED:
            self._unsealed.popleft()
            self._dropped += 1

    def _has_room(self) -> bool:
        """Whether there is room for another line: wait until half of those that are on their way are saved.

        Whoever writes lines faster than the disk takes them must be slowed down, or memory would be the limit. Blocking
        here is safe, also in the loop's thread: the committing thread is another one. With a database in trouble lines
        are dropped after `_PATIENCE`, and counted, until it takes some again.
        """
        engine = self._execution.engine
        engine.committer.hand_over()
        self._join(self.resent())
        self._forget_saved()
        if len(self._lines) >= _MOST_UNSAVED and not self._impatient and may_wait():
            saved = threading.Event()
            with contextlib.suppress(IndexError):  # another thread was faster
                half = self._lines[len(self._lines) // 2]
                if half._subscribe(saved.set):
                    engine.clock.wait(saved, _PATIENCE)
                    half._unsubscribe(saved.set)
            self._forget_saved()
        self._impatient = len(self._lines) >= _MOST_UNSAVED
        if self._impatient:
            self._dropped += 1
            now = engine.clock.steady()
            if self._said_at is None or now - self._said_at >= _SAY_AGAIN:
                self._said_at = now
                self._say_dropped()
        return not self._impatient

    def _say_dropped(self) -> None:
        if self._dropped:
            many, self._dropped = self._dropped, 0
            lines = "line was" if many == 1 else "lines were"
            text = f"The database takes no log lines: {many} {lines} dropped"
            self._hub.report(text, "log", self._execution.row.id)

    def _line(self, save: LogSave) -> Ticket[None]:
        ticket: Ticket[None] = Ticket("save_logs", save, weight=len(save.line.message) + len(save.line.data or ""))
        ticket._asked = True  # `resent` looks after those that fail
        self._lines.append(ticket)
        return ticket

    def _forget_saved(self) -> None:
        if not self._lines:
            return  # most steps say nothing
        with contextlib.suppress(IndexError):  # another thread was faster
            while self._lines[0].done() and self._lines[0]._error is None:
                self._lines.popleft()

    @property
    def has_lost(self) -> bool:
        """Whether lines were refused by a database in trouble."""
        self._forget_saved()
        return bool(self._lines) and any(ticket._error is not None for ticket in list(self._lines))

    def refused(self) -> StoreUnavailable | None:
        """Why the database has not taken some of the lines that were on their way. In the committing thread."""
        errors = (ticket._error for ticket in list(self._lines))
        return next((StoreUnavailable(str(error)) for error in errors if isinstance(error, StoreUnavailable)), None)

    def resent(self) -> list[Ticket[Any]]:
        """The lines that a database in trouble has refused, to be sent again."""
        if not self.has_lost:
            return []
        lines, self._lines = self._lines, deque()
        again = []
        for ticket in lines:
            if isinstance(ticket._error, StoreUnavailable):
                again.append(self._line(ticket.row._replace(again=True)))
            elif ticket._error is not None:
                self._hub.report(ticket._error, "log", self._execution.row.id)
            elif not ticket.done():
                self._lines.append(ticket)
        return again

    def pending(self) -> list[Ticket[Any]]:
        """What must go before a checkpoint or the end of the run: after that it would be lost, or refused.

        Called once that itself is sealed.
        """
        self._execution.goes_on()
        if not (self._lines or self._unsealed or self._dropped or self._progress):
            return []
        try:
            self._seal_lines()
        except StoreUnavailable as error:
            # The codec has just sealed what they belong to: these it does not take.
            self._dropped += len(self._unsealed)
            self._unsealed.clear()
            self._hub.report(error, "log", self._execution.row.id)
        self._say_dropped()
        return [*self.resent(), *self._unsent_progress()]

    def settle(self) -> None:
        """Block until what was written so far is saved, or refused: it must not come after what is saved now."""
        with contextlib.suppress(IndexError):  # there is none, or another thread was faster
            last = self._lines[-1]
            self._execution.engine.committer.hand_over()
            saved = threading.Event()
            if last._subscribe(saved.set):
                saved.wait()
        if self.has_lost:
            self._execution.write_sync(self.resent)

    def before_a_thread(self) -> None:
        """Another thread will go on: what was said in this loop must be in the line before what is said there."""
        with contextlib.suppress(IndexError):  # there is none, or another thread was faster
            if not self._lines[-1].done():
                self._execution.engine.committer.hand_over()

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


def _within(message: str, data: dict[str, Any], limit: int) -> tuple[str, str | None]:
    """What is kept of a line: at most so many bytes together, with a mark where something is missing."""
    text, kept = fit(message, limit), _kept(data, limit)
    if kept is not None and len(text.encode()) + len(kept.encode()) > limit:
        # The message keeps at least a half.
        text = fit(message, max(limit // 2, limit - len(kept.encode())))
        kept = _kept(data, limit - len(text.encode()))
    return text, kept


def _kept(data: dict[str, Any], room: int) -> str | None:
    if not data:
        return None
    try:
        text = shape_of().keep(data, "log").text
        if len(text.encode()) <= room:
            return text
    except Exception:  # not a value that we can keep: what it looks like will do
        pass
    some, longest = [*data.items()][:_MOST_VALUES], _LONGEST_VALUE
    while longest >= _SHORTEST_VALUE:
        cut = to_json({clean(key, 255): fit(_shown(value), longest) for key, value in some})
        if len(cut) <= room:
            return cut.decode()
        longest //= 4
    return _LEFT_OUT if len(_LEFT_OUT.encode()) <= room else None


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"
