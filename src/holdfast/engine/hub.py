"""The hub: who is told of what, after it is durable.

Listeners are the user's code, so they are called on a thread of the hub's own, one event after the other, in the
order of the commits: a slow one delays other listeners, never a commit or a run, and a faulty one harms nobody.
Waiters are replies, filled at once by whoever knows that the run has ended.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..basis.clock import Clock, to_datetime
from ..basis.errors import NotFoundError, StoreClosed, ValidationError
from ..basis.text import error_text, shown
from ..commit.reply import Answer, Reply, answer, no_waiting
from ..model.event import Event
from ..model.run import RunRow

_log = logging.getLogger("holdfast")

EVENTS = frozenset(
    {
        "run:trigger",
        "run:leased",
        "run:lease-renewed",
        "run:progress",
        "run:complete",
        "run:fail",
        "run:cancel",
        "step:start",
        "step:complete",
        "step:fail",
        "step:cancel",
        "log:write",
        "worker:error",
    }
)

Listener = Callable[[Event], Any]

#: Seconds that listeners have, when the app stops, for what is still to be told.
_LAST_WORDS = 5.0


class Hub:
    """Listeners and waiters of one app in this process."""

    def __init__(self, clock: Clock, *, inline: bool = False) -> None:
        self.clock = clock
        self.inline = inline
        self.run_async: Callable[[Any], None] | None = None
        """Runs what an async listener returned; set by the engine."""
        self._listeners: dict[str, list[Listener]] = {}
        self._on_error: Callable[[BaseException, Event], Any] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget waiters and what was to be told (also in the child of a fork); listeners stay."""
        self._sequence = itertools.count(1)
        self._waiters: dict[str, list[Reply[Any]]] = {}
        # Re-entrant: a garbage collection may run __del__, which may log, and a log handler may wait or tell.
        self._lock = threading.RLock()
        self._door = threading.Condition(threading.RLock())
        self._events: deque[Event] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.on_waiting: Callable[[], None] = lambda: None

    # -- listeners ---------------------------------------------------------------------------------------------

    def on(self, type: str, listener: Listener) -> Callable[[], None]:
        """Call `listener(event)` for every event of this type; gives a function that ends it."""
        wanted: object = type
        if not isinstance(wanted, str) or wanted not in EVENTS:
            raise ValidationError(f"{shown(type)} is not an event. There are: {', '.join(sorted(EVENTS))}.")
        listeners = self._listeners.setdefault(type, [])
        if listener not in listeners:
            listeners.append(listener)

        def off() -> None:
            if listener in listeners:
                listeners.remove(listener)

        return off

    def on_error(self, handler: Callable[[BaseException, Event], Any]) -> None:
        """Call `handler(error, event)` when a listener raises. The last one set counts."""
        self._on_error = handler

    def hears(self, type: str) -> bool:
        """Whether anybody listens: spares making events for nobody."""
        return bool(self._listeners.get(type))

    def tell(self, type: str, run: RunRow | None = None, /, **data: Any) -> None:
        """Emit an event, from any thread; returns at once."""
        self._tell(type, run and run.id, run and run.job_name, _labels(run), data)

    def _tell(
        self, type: str, run_id: str | None, job_name: str | None, labels: dict[str, str], data: dict[str, Any]
    ) -> None:
        now = to_datetime(self.clock.now())
        assert now is not None
        with self._door:
            event = Event(type, now, next(self._sequence), run_id, job_name, labels, data)
            if self._closed or not self._listeners.get(type):
                return
            if not self.inline:
                self._events.append(event)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name="holdfast-events", daemon=True)
                    self._thread.start()
                else:
                    self._door.notify()
                return
        self._deliver(event)

    def report(self, error: BaseException | str, context: str, run_id: str | None = None) -> None:
        """Something went wrong that no caller is waiting for: log it and emit `worker:error`."""
        text = error if isinstance(error, str) else error_text(error)
        _log.error("%s%s: %s", context, f" of run {run_id}" if run_id else "", text)
        self._tell("worker:error", run_id, None, {}, {"error": text, "context": context})

    def _serve(self) -> None:
        me = threading.current_thread()
        while True:
            with self._door:
                while not self._events and self._thread is me:
                    self._door.wait()
                if not self._events:
                    return
                event = self._events.popleft()
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        with no_waiting("a listener"):
            for listener in tuple(self._listeners.get(event.type, ())):
                try:
                    result = listener(event)
                    if inspect.isawaitable(result):
                        self._deliver_async(result, event)
                except (KeyboardInterrupt, SystemExit) as error:
                    if self.inline:
                        raise  # in the caller's own thread it is the caller's
                    self._failed(error, event)
                except BaseException as error:  # also a CancelledError: it must not end the thread of all listeners
                    self._failed(error, event)

    def _deliver_async(self, result: Any, event: Event) -> None:
        async def finish() -> None:
            try:
                await result
            except Exception as error:
                self._failed(error, event)

        if self.run_async is None:
            if inspect.iscoroutine(result):
                result.close()
            raise RuntimeError("an async listener needs a started app: it runs in the app's event loop")
        self.run_async(finish())

    def _failed(self, error: BaseException, event: Event) -> None:
        if self._on_error is None:
            _log.error("a listener of %s failed: %s", event.type, error_text(error))
            return
        try:
            self._on_error(error, event)
        except Exception as second:
            _log.error("the error handler failed: %s", error_text(second))

    # -- waiters -----------------------------------------------------------------------------------------------

    @property
    def awaited(self) -> list[str]:
        """The runs that somebody waits for."""
        with self._lock:
            return list(self._waiters)

    def expect(self, run_id: str, reply: Reply[Any]) -> None:
        """Answer the reply with the run's row once it has ended."""
        with self._lock:
            self._waiters.setdefault(run_id, []).append(reply)
        self.on_waiting()

    def forget(self, run_id: str, reply: Reply[Any]) -> None:
        """Nobody waits for this reply any more."""
        with self._lock:
            waiting = [other for other in self._waiters.pop(run_id, ()) if other is not reply]
            if waiting:
                self._waiters[run_id] = waiting

    def is_awaited(self, run_id: str) -> bool:
        return run_id in self._waiters

    def ended(self, rows: Iterable[RunRow]) -> None:
        """These runs have ended, durably."""
        answers: list[Answer] = []
        with self._lock:
            for row in rows:
                answers += [(reply, row, None) for reply in self._waiters.pop(row.id, ())]
        answer(answers)

    def gone(self, run_ids: Iterable[str]) -> None:
        """These runs do not exist (any more)."""
        answers: list[Answer] = []
        with self._lock:
            for run_id in run_ids:
                error = NotFoundError(f"Run not found: {run_id}")
                answers += [(reply, None, error) for reply in self._waiters.pop(run_id, ())]
        answer(answers)

    def open(self) -> None:
        """Tell (again)."""
        self._closed = False

    def close(self) -> None:
        """Tell what is still to be told, then stop. Nobody is left waiting."""
        with self._lock:
            waiting, self._waiters = self._waiters, {}
        answer([(reply, None, _stopped()) for replies in waiting.values() for reply in replies])
        with self._door:
            self._closed = True
            thread, self._thread = self._thread, None
            self._door.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=_LAST_WORDS)


def _labels(run: RunRow | None) -> dict[str, str]:
    try:
        return run.label_map if run is not None else {}
    except ValueError:  # edited by hand: no reason to fail the run that is told of
        return {}


def _stopped() -> StoreClosed:
    return StoreClosed("The app was stopped while somebody waited for the end of a run. The run itself goes on.")
