"""Watching what other processes commit to the same database.

SQLite has no notifications, but a number that changes with every commit by somebody else. Reading it costs
microseconds, so it is read every 20 ms, less often while nothing happens. PostgreSQL tells of what concerns others when
it is committed. Either leads to cheap questions: is there something to claim, is a run still ours, has a run ended that
somebody here waits for? Whatever is told or not, these are asked again after a while, so that a word that is lost costs
time and nothing else; where nothing is ever told, as often as somebody here needs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from ..basis.clock import Clock, SystemClock
from ..commit.forks import inside
from ..model.options import Options
from ..model.run import RunFilter
from ..store.base import ClaimOrder, Store
from ..store.watch import EVERYTHING, News, Watch
from .hub import Hub
from .leases import LeaseKeeper

SHORTEST = 0.02
LONGEST = 0.1
_SLOWER = 1.25
#: Seconds after an error: the first pause, and the longest.
_AFTER_ERROR = 0.5
_AFTER_MANY = 5.0
#: What is told is heard at once. Of many words so many, and then one more after so many seconds each; the others wait
#: for so long, and while they are nothing for us, up to `SHORTEST`. Words of our own are among them: whoever has just
#: triggered a run must not be deaf when its end is told.
_AT_ONCE, _ONE_MORE = 4.0, 0.01
_GAP = 0.005
#: Seconds until everything is looked at where there is no number: while a run is followed (nobody is told of steps,
#: progress and lines); while somebody waits for an end of which we are told, or are not; while runs are executed here.
_FOLLOWING = 0.05
_WAITING_TOLD, _WAITING = 0.5, 0.05
_HOLDING = 0.5
#: Where nobody tells us anything, an idle worker looks after this part of the time for which it has been idle, or after
#: `polling_interval`.
_OF_IDLE = 0.25
#: Runs of which it is remembered that we were told of them; seconds for which, after other words, that may be any run.
_MOST_PASSED = 1000
_PASSED_FOR = 1.0

_steady = SystemClock().steady


class Watcher:
    """One thread that looks, while there is somebody to tell."""

    def __init__(self, store: Store, clock: Clock, hub: Hub, keeper: LeaseKeeper, options: Options) -> None:
        self._store = store
        self._clock = clock
        self._polling = options.polling_interval
        self._hub = hub
        self._keeper = keeper
        self.reset()

    def reset(self) -> None:
        """Nothing is watched (also in the child of a fork, where the connection is the parent's)."""
        if (left := getattr(self, "_watching", None)) is not None:
            _parents.append(left)
        self._watching: Watch | None = None
        self._resting = False
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._closed = False
        self._again = False
        self._passed: dict[str, None] = {}
        """Runs that we were told of lately, whether or not somebody waited for them."""
        self._all_passed_at = -_PASSED_FOR
        self._at_once, self._counted_at = _AT_ONCE, _steady()
        self._taken, self._busy_at = 0, -_PASSED_FOR
        self.order: Callable[[], ClaimOrder | None] = lambda: None
        """What the worker could claim now; None if it could take nothing."""
        self.found: Callable[[], None] = lambda: None
        """There is something to claim."""
        self.follow: Callable[[Any], bool] = lambda _: False
        """Look for those who subscribed to runs; whether there is more to look at soon."""
        self.checks: int = 0

    def start(self) -> None:
        """Watch from now on."""
        with self._lock:
            if not self._closed and (self._thread is None or not self._thread.is_alive()):
                self._stopping = False
                self._wake.clear()
                self._watching = self._store.watch()
                self._thread = threading.Thread(target=self._watch, name="holdfast-watch", daemon=True)
                self._thread.start()

    def look_again(self) -> None:
        """Somebody new waits: what they wait for may have happened just before. Look, whether or not it changed."""
        self._again = True
        if self._thread is None:
            self.start()
        elif self._resting and (watching := self._watching) is not None:
            watching.rouse()

    def await_run(self, run_id: str) -> None:
        """Somebody waits for this run from now on, and is on the list; its end may have come just before."""
        watching = self._watching
        # Who is told looks only if the word may have come too early: what comes from now on finds who waits. To look at
        # each run that somebody waits for would cost more than the run.
        if self._thread is None or watching is None or watching.pace != "told" or self._may_have_passed(run_id):
            self.look_again()

    def _may_have_passed(self, run_id: str) -> bool:
        return run_id in self._passed or _steady() - self._all_passed_at < _PASSED_FOR

    def _note(self, news: News) -> None:
        """Before anybody looks who waits: who comes later finds it noted."""
        if news.runs is None:
            self._all_passed_at = _steady()
            return
        self._passed.update(dict.fromkeys(news.runs))
        while len(self._passed) > _MOST_PASSED:
            del self._passed[next(iter(self._passed))]

    def open(self) -> None:
        """Whoever waits from now on may start it (again)."""
        self._closed = False

    def stop(self) -> None:
        """Watch no more, until `open` and `start`."""
        with self._lock:
            self._closed = True
            self._stopping = True
            self._wake.set()
            if self._watching is not None:
                self._watching.rouse()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _watch(self) -> None:
        watch = self._watching
        assert watch is not None
        pause, trouble, whole_at = SHORTEST, 0.0, 0.0
        while not self._stopping:
            try:
                with inside:
                    news = watch.changed()
                self.checks += 1
                if news is not None:
                    self._note(news)
                if self._again or (watch.pace != "marks" and _steady() - whole_at >= self._patience(watch)):
                    news = EVERYTHING
                if news is not None and (watch.pace == "marks" or self._matters(news)):
                    if news is EVERYTHING:
                        self._again = False
                        whole_at = _steady()
                    began = self._clock.steady()
                    with inside:
                        self.look(watch.connection, news)
                    # With very many waiters a look takes long: leave nine tenths of the time to others.
                    least = SHORTEST if watch.pace == "marks" else _GAP
                    pause = max(least, 9 * (self._clock.steady() - began))
                elif watch.pace == "marks":
                    pause = min(pause * _SLOWER, LONGEST)
                else:
                    pause = min(max(pause, _GAP) * _SLOWER, SHORTEST)
                trouble = 0.0
            except Exception as error:
                self._hub.report(self._store.translate(error), "watch")
                watch.close()
                pause = trouble = min(max(trouble * 2, _AFTER_ERROR), _AFTER_MANY)
            if trouble or watch.pace != "told" or pause > SHORTEST or not self._goes_at_once():
                self._wake.wait(pause)
            if watch.pace != "marks" and not trouble and self._rest(watch, whole_at) > LONGEST:
                pause = 0.0
        watch.close()

    def _goes_at_once(self) -> bool:
        """Whether the next word is heard without a pause. One that is has been counted."""
        now = _steady()
        self._at_once = min(_AT_ONCE, self._at_once + (now - self._counted_at) / _ONE_MORE)
        self._counted_at = now
        if self._at_once < 1:
            return False
        self._at_once -= 1
        return True

    def _rest(self, watch: Watch, whole_at: float) -> float:
        """Until there is something to look at; how long it was."""
        began = _steady()
        self._resting = True  # first, then a look whether somebody has just come who would have roused us
        try:
            if not (self._again or self._stopping):
                left = self._patience(watch) - (_steady() - whole_at)
                # Not longer: a run that is held from now on rouses nobody.
                watch.rest(min(max(left, 0.0), _HOLDING))
        finally:
            self._resting = False
        return _steady() - began

    def _patience(self, watch: Watch) -> float:
        """Seconds from one look at everything to the next."""
        if self._hub.followed or self._hub.follows_all:
            return _FOLLOWING
        held = self._keeper.held
        if held or self._taken != self._keeper.taken:
            self._taken, self._busy_at = self._keeper.taken, _steady()
        if self._hub.awaited_elsewhere({holder.lease.run_id for holder in held}):
            return min(self._polling, _WAITING_TOLD) if watch.pace == "told" else _WAITING
        if watch.pace == "looks":
            # Where there was something a moment ago there will soon be more.
            return min(self._polling, max(SHORTEST, (_steady() - self._busy_at) * _OF_IDLE))
        return min(self._polling, _HOLDING) if held else self._polling

    def _matters(self, news: News) -> bool:
        """Whether it is about anything that somebody here cares about."""
        if news.runs is None or self._hub.follows_all or (news.claimable and self.order() is not None):
            return True
        held = [holder for holder in self._keeper.held if holder.lease.run_id in news.runs]
        return bool(held or news.concern_some(self._hub.followed) or self._awaited(news.runs))

    def _awaited(self, run_ids: Iterable[str]) -> list[str]:
        return [run_id for run_id in run_ids if self._hub.is_awaited(run_id)]

    def look(self, connection: Any, news: News = EVERYTHING) -> None:
        """Ask what has changed for those who are here."""
        if news.claimable and (order := self.order()) is not None and self._store.has_claimable(connection, order):
            self.found()
        if holders := [holder for holder in self._keeper.held if news.concerns(holder.lease.run_id)]:
            lost = self._store.lost_leases(connection, [holder.lease for holder in holders])
            for holder in holders:
                if holder.lease in lost:
                    holder.lease_lost(lost[holder.lease])
        # Before those who wait for ends: what led to an end is told first.
        followed = self._hub.follows_all or news.concern_some(self._hub.followed)
        if followed and self.follow(connection):
            self._again = True
        if awaited := self._hub.awaited if news.runs is None else self._awaited(news.runs):
            # Of those that still run nothing else is read: there may be thousands, and large.
            ended = self._store.ended(connection, awaited)
            if ids := tuple(run_id for run_id, status in ended.items() if status != "gone"):
                self._hub.ended(self._store.find_runs(connection, RunFilter(ids=ids)))
            self._hub.gone(ended.keys() - set(ids))


_parents: list[Watch] = []
