"""The hub: who is told of what, after it is durable.

Listeners are the user's code, so they are called on a thread of the hub's own, one event after the other, in the
order of the commits: a slow one delays other listeners, never a commit or a run, and a faulty one harms nobody. What is
still to be told is bounded: beyond `MOST_UNTOLD` the oldest operational event is dropped for each new one, and counted.
Domain events are never dropped; there are a few per run.
Waiters are replies, filled at once by whoever knows that the run has ended. Subscriptions get their events at once,
too (see `subscription`): they keep them until somebody asks.
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from ..basis.clock import Clock, to_datetime
from ..basis.errors import NotFoundError, StoreClosed, ValidationError
from ..basis.text import error_text, shown
from ..commit.reply import Answer, Reply, answer, no_waiting
from ..model.event import DOMAIN, EVENTS, Event
from ..model.run import RunRow
from ..rules.lifecycle import TABLE

_log = logging.getLogger("holdfast")

Listener = Callable[[Event], Any]

#: Operational events that wait for listeners. A busy process tells some 100,000 a second: enough for a listener that
#: pauses for a moment, and some 10 MB.
MOST_UNTOLD = 10_000
#: Calls of async listeners that have not come to their end.
MOST_UNFINISHED = 1000

#: Seconds that listeners have for what is still to be told when the app stops; and between reports of dropped ones.
_LAST_WORDS, _SAY_AGAIN = 5.0, 1.0

_OURS = ("run", "step", "log", "worker")
#: What the end of an execution is told as.
_ENDS = frozenset([row.event for row in TABLE.values() if row.by_holder and row.event])
_OWN_NAME = re.compile(r"[A-Za-z][\w.-]{0,99}(:[\w.-]{1,100}){1,5}", re.ASCII)


class Hub:
    """Listeners and waiters of one app in this process."""

    def __init__(self, clock: Clock, *, inline: bool = False) -> None:
        self.clock = clock
        self.inline = inline
        self.run_async: Callable[[Any], None] | None = None
        """Runs what an async listener returned; set by the engine."""
        self._listeners: dict[str, list[Listener]] = {}
        self._on_error: Callable[[BaseException, Event], Any] | None = None
        self.dropped: int = 0
        """Operational events that no listener heard, because listeners were too slow."""
        self.followed: Mapping[str, object] = {}
        """The runs that somebody here subscribed to; set by the engine."""
        self.follows_all: bool = False
        """Somebody here wants to know of all runs, wherever they are executed."""
        self.pass_on: Callable[[Event, int], None] = _to_nobody
        """Give an event of such a run, under this generation, to its subscriptions."""
        self.reset()

    def reset(self) -> None:
        """Forget waiters and what was to be told (also in the child of a fork); listeners stay."""
        self._sequence = itertools.count(1)
        self._waiters: dict[str, list[Reply[Any]]] = {}
        # Re-entrant: a garbage collection may run __del__, which may log, and a log handler may wait or tell.
        self._lock = threading.RLock()
        self._door = threading.Condition(threading.RLock())
        self._domain: deque[Event] = deque()
        self._others: deque[Event] = deque()
        self._unfinished = 0
        self._unsaid = 0
        self._said_at: float | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self.on_waiting: Callable[[str], None] = lambda _: None

    # -- listeners ---------------------------------------------------------------------------------------------

    def on(self, type: str, listener: Listener) -> Callable[[], None]:
        """Call `listener(event)` for every event of this type; gives a function that ends it."""
        wanted: object = type
        if not isinstance(wanted, str) or not (wanted in EVENTS or is_own_name(wanted)):
            raise ValidationError(
                f"{shown(type)} is not an event. There are: {', '.join(sorted(EVENTS))}; and your own, with "
                "a prefix of yours ('app:imported')."
            )
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

    def hears(self, type: str, run_id: str | None = None) -> bool:
        """Whether anybody listens to events of this type, or follows the run: spares making them for nobody."""
        if self._listeners.get(type):
            return True
        followed = self.followed
        return bool(followed) and (run_id is None or run_id in followed)

    def hears_ends(self, run_id: str) -> bool:
        """The same of the events that an execution may end with."""
        listeners = self._listeners
        return run_id in self.followed or (bool(listeners) and any(listeners.get(type) for type in _ENDS))

    def tell(self, type: str, run: RunRow | None = None, /, **data: Any) -> None:
        """Emit an event, from any thread; returns at once."""
        if run is None:
            self._tell(type, None, None, {}, data)
        else:
            self._tell(type, run.id, run.job_name, _labels(run), data, run.generation)

    def tell_of(self, type: str, run_id: str, job_name: str | None, labels: dict[str, str], generation: int) -> None:
        """The same of a run that is no more."""
        self._tell(type, run_id, job_name, labels, {}, generation)

    def emit(self, type: str, data: Mapping[str, Any] | None, run_id: str | None, run: RunRow | None) -> None:
        """Tell an event of the application's own."""
        name: object = type
        if not isinstance(name, str) or not is_own_name(name):
            raise ValidationError(
                f"emit: {shown(type)} can't be the name of an event of yours. Use a prefix and a colon: "
                f"'app:imported'. What begins with {', '.join(f'{ours}:' for ours in _OURS)} is told by holdfast only."
            )
        kept = _as_json(data)
        if run is not None:
            self._tell(type, run.id, run.job_name, _labels(run), kept)
        else:
            self._tell(type, run_id, None, {}, kept)

    def _tell(
        self,
        type: str,
        run_id: str | None,
        job_name: str | None,
        labels: dict[str, str],
        data: dict[str, Any],
        generation: int | None = None,
    ) -> None:
        now = to_datetime(self.clock.now())
        assert now is not None
        drops = False
        with self._door:
            event = Event(type, now, next(self._sequence), run_id, job_name, labels, data)
            if self._closed:
                return
            if generation is not None and run_id in self.followed:
                self.pass_on(event, generation)
            if not self._listeners.get(type):
                return
            if not self.inline:
                drops = self._queue(event)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name="holdfast-events", daemon=True)
                    self._thread.start()
                else:
                    self._door.notify_all()
        if self.inline:
            self._deliver(event)
        elif drops:
            self._say_dropped()

    def _queue(self, event: Event) -> bool:
        """Put it to what is to be told; whether another one had to go, and nobody has said so for a while."""
        if event.type in DOMAIN:
            self._domain.append(event)
            return False
        self._others.append(event)
        if len(self._others) <= MOST_UNTOLD:
            return False
        self._others.popleft()
        return self._count_dropped()

    def _count_dropped(self) -> bool:
        self.dropped += 1
        self._unsaid += 1
        return self._said_at is None or self.clock.steady() - self._said_at >= _SAY_AGAIN

    def _say_dropped(self) -> None:
        with self._door:
            many, self._unsaid, self._said_at = self._unsaid, 0, self.clock.steady()
        if many:
            self.report(
                f"Listeners are too slow: {many} operational {'event was' if many == 1 else 'events were'} dropped, "
                "the oldest first",
                "listeners",
            )

    def report(self, error: BaseException | str, context: str, run_id: str | None = None) -> None:
        """Something went wrong that no caller is waiting for: log it and emit `worker:error`."""
        text = error if isinstance(error, str) else error_text(error)
        _log.error("%s%s: %s", context, f" of run {run_id}" if run_id else "", text)
        self._tell("worker:error", run_id, None, {}, {"error": text, "context": context})

    def _serve(self) -> None:
        me = threading.current_thread()
        while True:
            with self._door:
                while not self._domain and not self._others and self._thread is me:
                    if not self._door.wait(_SAY_AGAIN if self._unsaid else None):
                        break  # what was dropped last is said although nothing new is dropped
                if self._domain or self._others:
                    event = self._first()
                else:
                    event = None
            if event is None:
                self._say_dropped()
                if self._thread is not me:
                    return
            else:
                self._deliver(event)

    def _first(self) -> Event:
        domain, others = self._domain, self._others
        if domain and (not others or domain[0].sequence < others[0].sequence):
            return domain.popleft()
        return others.popleft()

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
                    self.failed(error, event)
                except BaseException as error:  # also a CancelledError: it must not end the thread of all listeners
                    self.failed(error, event)

    def _deliver_async(self, result: Any, event: Event) -> None:
        async def finish() -> None:
            try:
                await result
            except Exception as error:
                self.failed(error, event)
            finally:
                with self._door:
                    self._unfinished -= 1
                    self._door.notify_all()

        if self.run_async is None:
            _discard(result)
            raise RuntimeError("an async listener needs a started app: it runs in the app's event loop")
        drops = False
        with self._door:
            if self.inline:
                # Nothing can be waited for: the loop may be this very thread's.
                drops = self._unfinished >= MOST_UNFINISHED and event.type not in DOMAIN
            else:
                me = threading.current_thread()
                # Not for ever: a loop that was closed finishes nothing.
                self._door.wait_for(lambda: self._unfinished < MOST_UNFINISHED or self._thread is not me, _LAST_WORDS)
            if not drops:
                self._unfinished += 1
            says = drops and self._count_dropped()
        if drops:
            _discard(result)
            if says:
                self._say_dropped()
            return
        call = finish()
        try:
            self.run_async(call)
        except BaseException:
            _discard(result)
            with self._door:
                self._unfinished -= 1
            raise

    def failed(self, error: BaseException, event: Event) -> None:
        """What a listener, or a callback of who waits, has raised: tell `on_error`, or log it."""
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

    def awaited_elsewhere(self, held: Set[str]) -> bool:
        """Whether somebody waits for a run that is not one of these."""
        with self._lock:
            return not self._waiters.keys() <= held

    def expect(self, run_id: str, reply: Reply[Any]) -> None:
        """Answer the reply with the run's row once it has ended."""
        with self._lock:
            self._waiters.setdefault(run_id, []).append(reply)
        self.on_waiting(run_id)

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


def _to_nobody(_: Event, __: int) -> None:
    return


def is_own_name(name: str) -> bool:
    """Whether an application may call an event of its own so."""
    return _OWN_NAME.fullmatch(name) is not None and name.partition(":")[0] not in _OURS


def _as_json(data: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy that nobody else holds: listeners get what JSON says of it."""
    given: object = data
    if given is not None and not isinstance(given, Mapping):
        raise ValidationError(f"emit: data must be an object with names, not {shown(data)}.")
    try:
        kept: dict[str, Any] = json.loads(json.dumps(dict(data or {}), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"emit: data must be what JSON can say: {error_text(error, 500)}") from None
    return kept


def _discard(result: Any) -> None:
    if inspect.iscoroutine(result):
        result.close()


def _stopped() -> StoreClosed:
    return StoreClosed("The app was stopped while somebody waited for the end of a run. The run itself goes on.")
