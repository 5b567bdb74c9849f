"""Where an event loop joins the line: once per tick, and with a guard that gives the committing thread its turn."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..basis.clock import give_way
from .ticket import Ticket

if TYPE_CHECKING:
    from .committer import Committer

#: How often the guard looks after a busy loop; a round takes about as long.
GUARD_SECONDS = 0.0005


class Desk:
    """Gathers the tickets of one event loop for one tick, so that a tick costs one hand-over and one wake-up.

    The *starvation guard*: a busy event loop takes the interpreter's lock back so quickly that the committing thread
    gets it only after every switch interval, many times per round, and a loop can slow it to a standstill. So while
    tickets are outstanding, a timer in the loop sleeps for some microseconds whenever the loop has other work ready. So
    it does for reads, for the making of tables, and for renewals that are overdue: see `give_way_until`.
    """

    def __init__(self, committer: Committer, loop: asyncio.AbstractEventLoop) -> None:
        self._committer = committer
        self._loop = weakref.ref(loop)
        # Others hand over too, when the committer closes or the loop is dead. Re-entrant as all our locks: a garbage
        # collection may run anything.
        self._lock = threading.RLock()
        self._gathered: list[Ticket[Any]] = []
        self._count = 0
        self._guarding = False
        self._due = 0.0
        self._until: list[Callable[[], bool]] = []

    def belongs_to(self, loop: asyncio.AbstractEventLoop) -> bool:
        return self._loop() is loop

    def is_left(self) -> bool:
        """Whether the loop will never turn again."""
        loop = self._loop()
        return loop is None or loop.is_closed()

    def __len__(self) -> int:
        return self._count

    def add(self, tickets: Sequence[Ticket[Any]]) -> None:
        """Put tickets down until the end of the tick. In the loop's thread."""
        with self._lock:
            if not self._gathered and (loop := self._loop()) is not None:
                loop.call_soon(self._tick)
                self._committer._waiting_desks.add(self)
            self._gathered.extend(tickets)
            self._count += sum([ticket.count for ticket in tickets])

    def take(self) -> list[Ticket[Any]]:
        """What was put down, and it is no longer here. Any thread."""
        with self._lock:
            tickets, self._gathered, self._count = self._gathered, [], 0
        return tickets

    def take_in_child(self) -> list[Ticket[Any]]:
        """The same after a fork, when a thread that no longer exists may hold the lock."""
        self._lock = threading.RLock()
        return self.take()

    def _tick(self) -> None:
        committer, loop = self._committer, self._loop()
        committer._receive(self)
        if not committer.inline and not self._guarding and loop is not None and committer.backlog:
            self._guarding = True
            self._look_later(loop)

    def give_way_until(self, done: Callable[[], bool]) -> None:
        """Guard another thread that works for us, too, until `done()`. In the loop's thread."""
        loop = self._loop()
        if loop is None or done() or done in self._until:
            return
        self._until.append(done)
        if not self._guarding:
            self._guarding = True
            self._look_later(loop)

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + GUARD_SECONDS
        loop.call_later(GUARD_SECONDS, self._guard)

    def _guard(self) -> None:
        loop = self._loop()
        self._until = [done for done in self._until if not done()]
        if loop is None or not (self._committer.backlog or self._until):
            self._guarding = False
            return
        if _is_busy(loop, self._due):
            give_way()
        self._look_later(loop)


def _is_busy(loop: asyncio.AbstractEventLoop, due: float) -> bool:
    """Whether the loop has other work ready: asyncio's own tells, of others a late timer does."""
    ready = getattr(loop, "_ready", None)
    return bool(ready) if ready is not None else loop.time() > due + GUARD_SECONDS / 2
