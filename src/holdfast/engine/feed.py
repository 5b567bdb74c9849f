"""The feed: what happens to all runs, here and in other processes, for those who look at lists.

What happens here is told by the hub. What others do is found by whoever looks after each commit of anybody: the newest
runs, and those that are leased, are asked for, and each that goes on elsewhere is followed as a subscription does it.
Both are bounded, and of what began and ended elsewhere between two looks no more is told than that. So it tells of
everything here, and of as much elsewhere as somebody can look at; a list that is read again after an event is right in
any case.

Readers keep what they were not asked for, at most `MOST_UNREAD` events; a slow one loses the oldest, and is told how
many.
There is a feed while somebody reads: without readers nothing is asked or followed.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from ..basis.clock import to_datetime
from ..basis.errors import StoreClosed
from ..commit.reply import Reply, answer
from ..model.event import EVENTS, Event
from ..model.run import RunStatus
from ..store.base import Passing
from .retold import Making
from .subscription import MOST_UNREAD, Subscription, woken_within
from .trail import LAST

if TYPE_CHECKING:
    from .engine import Engine

#: Runs that one look asks for: of the newest so many, and so many that are leased. Also of those that are followed.
MOST_FOLLOWED = 200
#: Looks for which the end of a run is left to the hub, where runs are executed here: its listeners come later.
_LEFT_FOR = 10
#: Runs of which is remembered that they were told.
_MOST_REMEMBERED = 2000

#: What the feed tells, but for what belongs to no run or to nobody else.
TYPES = EVENTS - {"worker:error", "run:lease-renewed"}
_TERMINAL = frozenset(str(status) for status in RunStatus.terminal())
_ENDS: dict[str, str] = {RunStatus.COMPLETED: "run:complete", RunStatus.CANCELLED: "run:cancel"}

Kept = Callable[[str, Mapping[str, str]], bool]
"""Whether runs of this job, with these labels, are of interest."""


class FeedReader:
    """One who reads the feed, from now on. Close it, or let go of it."""

    __slots__ = ("__weakref__", "_engine", "_is_over", "_lock", "_unread", "_wake", "dropped", "kept", "label")

    def __init__(self, engine: Engine, kept: Kept, label: tuple[str, str] | None) -> None:
        self.kept: Kept = kept
        self.label: tuple[str, str] | None = label
        self.dropped: int = 0
        self._engine = engine
        self._lock = threading.RLock()
        self._unread: deque[Making] = deque()
        self._wake: Reply[None] | None = None
        self._is_over = False

    async def anext_within(self, seconds: float | None) -> Event | None:
        """The next event; None after the feed has ended. `TimeoutError` when the time is over."""
        engine, clock = self._engine, self._engine.clock
        until = None if seconds is None else clock.steady() + seconds
        while True:
            got = self._take()
            if not isinstance(got, Reply):
                return got
            await woken_within(engine.subscriptions, got, None if until is None else until - clock.steady())

    def _take(self) -> Event | Reply[None] | None:
        with self._lock:
            if self._unread:
                making = self._unread.popleft()
            elif self._is_over:
                return None
            else:
                if self._wake is None or self._wake.done():
                    self._wake = Reply("event of any run")
                return self._wake
        # Not under the lock: opening a payload may call a user's codec.
        return making if isinstance(making, Event) else making()

    def give(self, making: Making) -> Reply[None] | None:
        """Any thread. What is to be answered now, if there is somebody who waits."""
        with self._lock:
            if self._is_over:
                return None
            self._unread.append(making)
            if len(self._unread) > MOST_UNREAD:
                self._unread.popleft()
                self.dropped += 1
            wake, self._wake = self._wake, None
        return wake

    def _wake_up(self) -> None:
        with self._lock:
            wake, self._wake = self._wake, None
        if wake is not None:
            answer([(wake, None, None)])

    def end(self) -> None:
        """The feed is over."""
        with self._lock:
            self._is_over = True
        self._wake_up()

    def close(self) -> None:
        """Nobody reads any more. Any thread, any number of times."""
        self.end()
        self._engine.feed.leave(self)


class _Once:
    """An event that the first of its readers makes, for all of them."""

    __slots__ = ("_made", "_making")

    def __init__(self, making: Callable[[], Event]) -> None:
        self._making = making
        self._made: Event | None = None

    def __call__(self) -> Event:
        if self._made is None:
            self._made = self._making()
        return self._made


class _Elsewhere(Subscription):
    """A run that goes on elsewhere: what was read of it is given to the feed; what the hub tells, the hub tells all."""

    __slots__ = ("_feed", "_tells_lease", "seen")

    def __init__(self, feed: Feed, seen: Passing, *, with_snapshot: bool) -> None:
        super().__init__(feed.engine.subscriptions, seen.id, with_snapshot=with_snapshot)
        self.seen: Passing = seen
        self._feed: Feed = feed
        self._tells_lease = with_snapshot

    def begin(self) -> None:
        self._begin()

    def _give(self, type: str, making: Making) -> None:
        # One that was seen pending may have been claimed here since. Its snapshot would tell the lease a second time.
        is_from_hub = isinstance(making, Event) and making.sequence
        if type == "run:leased":
            self._tells_lease = False
        if not is_from_hub and (type in LAST or not self._trail.is_here):
            if type in ("run:complete", "run:fail") and self._tells_lease:
                self._tell_lease()
            self._feed.retold(self.seen, type, making)
        if type in LAST:
            self._finish(None)

    def _tell_lease(self) -> None:
        """It began and ended after it was seen and before its state was read: that says nothing but the end."""
        retold = self._trail._retold
        if retold.row is not None and retold.row.started_at is not None:
            self._feed.retold(self.seen, "run:leased", retold.lease(None, None))

    def _finish(self, error: BaseException | None) -> None:
        super()._finish(error)
        self._feed.no_more(self)


class Feed:
    """All readers of one app in this process, and what they are told."""

    def __init__(self, engine: Engine) -> None:
        self.engine: Engine = engine
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._readers: tuple[weakref.ref[FeedReader], ...] = ()
        self._by_label: dict[tuple[str, str] | None, list[weakref.ref[FeedReader]]] = {}
        """The same: of a thousand readers each event is shown to the few whose label it has."""
        self._silence: list[Callable[[], None]] = []
        self._followed: dict[str, _Elsewhere] = {}
        self._told: dict[str, bool] = {}
        """Runs that were told, or were there before; True: also their end."""
        self._least: str | None = None
        """Runs with a greater id are new; None: nobody has looked yet."""
        self._announced: set[str] = set()
        """Of these runs the trigger was told."""
        self._left_to_the_hub: dict[str, int] = {}
        """Runs that were seen to have ended, perhaps here, and how often: the hub tells it, after what was before."""

    def reset_after_fork(self) -> None:
        """In the child: they are the parent's."""
        self._reset()

    def read(self, kept: Kept, label: tuple[str, str] | None = None) -> FeedReader:
        """Events of the runs that are kept, from now on. `label`: all of these have it."""
        reader = FeedReader(self.engine, kept, label)
        with self._lock:
            if self.engine.refusal() is not None:
                raise StoreClosed()
            begins = not self._readers
            self._readers = (*self._readers, weakref.ref(reader, self._forgotten))
            self._by_label.setdefault(label, []).append(self._readers[-1])
            if begins:
                hub = self.engine.hub
                self._silence = [hub.on(type, self._hear) for type in TYPES]
                hub.follows_all = True
        self.engine.subscriptions.look_soon()
        return reader

    @property
    def is_read(self) -> bool:
        """Whether there is anybody."""
        return bool(self._readers)

    def _forgotten(self, reader: weakref.ref[FeedReader]) -> None:
        self._without(lambda one: one is reader)

    def leave(self, reader: FeedReader) -> None:
        """It reads no more."""
        self._without(lambda one: one() in (reader, None))

    def _without(self, gone: Callable[[weakref.ref[FeedReader]], bool]) -> None:
        with self._lock:
            if not self._readers:
                return
            self._readers = tuple(one for one in self._readers if not gone(one))
            self._by_label = {}
            for ref in self._readers:
                if (reader := ref()) is not None:
                    self._by_label.setdefault(reader.label, []).append(ref)
            if self._readers:
                return
            over = self._stop()
        for one in over:
            one.close()

    def _stop(self) -> list[_Elsewhere]:
        for off in self._silence:
            off()
        self.engine.hub.follows_all = False
        over = list(self._followed.values())
        self._silence, self._followed, self._least = [], {}, None
        self._told, self._announced, self._left_to_the_hub = {}, set(), {}
        return over

    def close(self) -> None:
        """The app stops: all streams end."""
        with self._lock:
            readers, self._readers, self._by_label = self._readers, (), {}
            over = self._stop()
        for reader in readers:
            if (one := reader()) is not None:
                one.end()
        for followed in over:
            followed.close()

    # -- being told --------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        """From the hub, on the thread of listeners."""
        if event.run_id is None or event.job_name is None:
            return
        with self._lock:
            if self._tells(event.run_id, event.type):
                self._give(event.job_name, event.labels, event)

    def retold(self, seen: Passing, type: str, making: Making) -> None:
        """What others have done, from whoever has looked."""
        with self._lock:
            if self._tells(seen.id, type):
                self._give(seen.job_name, _labels(seen), making)

    def _tells(self, run_id: str, type: str) -> bool:
        """Whether it is news: a beginning and an end may come from both."""
        if type == "run:delete":
            return True
        if type == "run:trigger":
            if run_id in self._announced:
                return False
            self._announced.add(run_id)
        if self._told.get(run_id):
            return False
        self._told[run_id] = type in LAST
        return True

    def _give(self, job_name: str, labels: Mapping[str, str], making: Making) -> None:
        if not isinstance(making, Event):
            making = _Once(making)
        wakes = [
            wake
            for label in (None, *labels.items())
            for ref in self._by_label.get(label, ())
            if (reader := ref()) is not None and reader.kept(job_name, labels)
            if (wake := reader.give(making)) is not None
        ]
        if wakes:
            # All of a loop with one system call; but those that read something else shall not wait for all of these.
            answer([(wake, None, None) for wake in wakes], few_at_once=True)

    def no_more(self, one: _Elsewhere) -> None:
        """Its end was told."""
        with self._lock:
            if self._followed.get(one.run_id) is one:
                del self._followed[one.run_id]

    # -- looking -----------------------------------------------------------------------------------------------

    def look(self, connection: Any) -> bool:
        """What the database has of runs that go on elsewhere, or are new; True if another look is needed soon."""
        if not self._readers:
            return False
        seen = self.engine.store.passing(connection, MOST_FOLLOWED)
        with self._lock:
            if not self._readers:
                return False
            begins = self._least is None
            if self._least is None:
                self._least = seen[MOST_FOLLOWED - 1].id if len(seen) >= MOST_FOLLOWED else ""
            follow = [one for run in reversed(seen) if (one := self._notice(run, begins=begins)) is not None]
            self._forget({run.id for run in seen})
        for one in follow:
            one.begin()
        return bool(self._left_to_the_hub)

    def _notice(self, run: Passing, *, begins: bool) -> _Elsewhere | None:
        """A run that was seen; how to follow it, if it is to be followed from now on."""
        ended, was_told = run.status in _TERMINAL, run.id in self._told
        if begins:
            self._told.setdefault(run.id, ended)
        elif not was_told:
            self._told[run.id] = False
            if run.id > (self._least or "") and self._tells(run.id, "run:trigger"):
                self._give(run.job_name, _labels(run), self._event("run:trigger", run))
        if self._told[run.id] or run.id in self._followed:
            return None
        if ended:
            self._notice_the_end(run)
            return None
        if len(self._followed) >= MOST_FOLLOWED or not self._goes_on_elsewhere(run):
            return None
        # A lease that is there when its state is read, a moment later, is news unless it was there by now.
        is_news = not begins or run.lease_owner is None
        one = self._followed[run.id] = _Elsewhere(self, run, with_snapshot=is_news)
        return one

    def _goes_on_elsewhere(self, run: Passing) -> bool:
        worker = self.engine.worker
        if run.lease_owner is not None:
            return run.lease_owner != self.engine.identity
        # Whoever claims it here is heard of; if nobody does, it must be somebody else.
        return worker is None or not worker.running

    def _notice_the_end(self, run: Passing) -> None:
        seen = self._left_to_the_hub[run.id] = self._left_to_the_hub.get(run.id, 0) + 1
        if self.engine.worker is not None and seen <= _LEFT_FOR:
            return
        del self._left_to_the_hub[run.id]
        self._told[run.id] = True
        labels, end = _labels(run), _ENDS.get(run.status, "run:fail")
        for type in ("run:leased", end) if end != "run:cancel" else (end,):
            self._give(run.job_name, labels, self._event(type, run))

    def _event(self, type: str, run: Passing) -> Event:
        when = to_datetime(run.created_at if type == "run:trigger" else self.engine.clock.now())
        assert when is not None
        return Event(type, when, 0, run.id, run.job_name, _labels(run), {})

    def _forget(self, seen: set[str]) -> None:
        over = len(self._told) - _MOST_REMEMBERED
        if over > 0:
            gone = [run_id for run_id in self._told if run_id not in seen and run_id not in self._followed]
            for run_id in gone[:over]:
                del self._told[run_id]
                self._announced.discard(run_id)
        for run_id in [one for one in self._left_to_the_hub if one not in seen or self._told.get(one)]:
            del self._left_to_the_hub[run_id]


def _labels(run: Passing) -> dict[str, str]:
    try:
        return {} if run.labels == "{}" else dict(from_json(run.labels))
    except ValueError:  # edited by hand
        return {}
