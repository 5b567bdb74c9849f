"""Watching what other processes commit to the same database.

SQLite has no notifications, but a number that changes with every commit by somebody else. Reading it costs
microseconds, so it is read every 20 ms, less often while nothing happens. A change leads to cheap questions: is there
something to claim, is a run still ours, has a run ended that somebody here waits for? Polling, and nothing more, is
what happens without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..basis.clock import Clock
from ..commit.forks import inside
from ..model.run import RunFilter
from ..store.base import ClaimOrder, Store
from .hub import Hub
from .leases import LeaseKeeper

SHORTEST = 0.02
LONGEST = 0.1
_SLOWER = 1.25
#: Seconds after an error: the first pause, and the longest.
_AFTER_ERROR = 0.5
_AFTER_MANY = 5.0


class Watcher:
    """One thread that looks, while there is somebody to tell."""

    def __init__(self, store: Store, clock: Clock, hub: Hub, keeper: LeaseKeeper) -> None:
        self._store = store
        self._clock = clock
        self._hub = hub
        self._keeper = keeper
        self.reset()

    def reset(self) -> None:
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._closed = False
        self._again = False
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
                self._thread = threading.Thread(target=self._watch, name="holdfast-watch", daemon=True)
                self._thread.start()

    def look_again(self) -> None:
        """Somebody new waits: what they wait for may have happened just before. Look, whether or not it changed."""
        self._again = True
        if self._thread is None:
            self.start()

    def open(self) -> None:
        """Whoever waits from now on may start it (again)."""
        self._closed = False

    def stop(self) -> None:
        """Watch no more, until `open` and `start`."""
        with self._lock:
            self._closed = True
            self._stopping = True
            self._wake.set()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _watch(self) -> None:
        connection: Any = None
        mark: int | None = None
        pause, trouble = SHORTEST, 0.0
        while not self._stopping:
            try:
                with inside:
                    if connection is None:
                        connection = self._store.connect(read_only=True)
                        mark = None
                    self._store.confirm(connection)
                    seen = self._store.change_mark(connection)
                self.checks += 1
                if seen != mark or seen is None or self._again:
                    self._again = False
                    began = self._clock.steady()
                    with inside:
                        self.look(connection)
                    # With very many waiters a look takes long: leave nine tenths of the time to others.
                    pause = max(SHORTEST, 9 * (self._clock.steady() - began))
                    mark = seen
                else:
                    pause = min(pause * _SLOWER, LONGEST)
                trouble = 0.0
            except Exception as error:
                self._hub.report(self._store.translate(error), "watch")
                if connection is not None:
                    self._store.disconnect(connection)
                connection = None
                pause = trouble = min(max(trouble * 2, _AFTER_ERROR), _AFTER_MANY)
            self._wake.wait(pause)
        if connection is not None:
            self._store.disconnect(connection)

    def look(self, connection: Any) -> None:
        """Ask what has changed for those who are here."""
        if (order := self.order()) is not None and self._store.has_claimable(connection, order):
            self.found()
        if holders := self._keeper.held:
            lost = self._store.lost_leases(connection, [holder.lease for holder in holders])
            for holder in holders:
                if holder.lease in lost:
                    holder.lease_lost(lost[holder.lease])
        # Before those who wait for ends: what led to an end is told first.
        if self.follow(connection):
            self._again = True
        if awaited := self._hub.awaited:
            # Of those that still run nothing else is read: there may be thousands, and large.
            ended = self._store.ended(connection, awaited)
            if ids := tuple(run_id for run_id, status in ended.items() if status != "gone"):
                self._hub.ended(self._store.find_runs(connection, RunFilter(ids=ids)))
            self._hub.gone(ended.keys() - set(ids))
