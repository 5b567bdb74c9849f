"""The commit line: everything that is written passes here, in rounds.

Callers *join the line* with a *ticket* (a store verb and a row). The committer serves the line in *rounds*: all
tickets that are there, in one transaction, with one statement per verb. While a round commits, the next one gathers.
So the previous commit is the only timer: an idle engine commits a lone ticket at once, a busy one commits a thousand
together, and syncing to disk at each commit stays affordable.

What keeps it honest (each has its test in tests/commit):

* Outcomes are announced after COMMIT has returned, never before.
* If a round fails, its halves are tried again, down to the ticket that can't be served, so that nobody pays for
  another. That is safe because a ticket is plain data for a verb that may run twice; it is rare because expected
  outcomes are answers, not errors. Only when the database itself is in trouble everybody is told at once: trying
  each alone would only take longer.
* If COMMIT gives no answer, the round is played again with `tx.replay` set, and the verbs read back what happened.
* No user code in a round: values are encoded before joining and decoded by whoever asks the reply.
* Renewals overtake, and with them what judges leases in the same round. A round is bounded in tickets and bytes, so
  that they need not wait behind 5,000 log lines.
* The line is bounded: threads wait for room, event loops are refused (`Overloaded`), engine writes always pass.
* What is large and comes in parts (`Ticket.bulk`) is served a part at a time, and whoever else is there comes between
  two parts. Where there is one writer, other processes get as much time between them as the last part took.
* A batch that must be written in one transaction counts as all that it holds. It is never cut: whoever finds room is
  let in with whatever it brings, and a batch longer than a round has one of its own.
* Nobody is left waiting: a closed or dead committer answers every ticket, with an error.
* After a fork the child starts with an empty line and its own connection; what was under way is the parent's.

Placement: on a thread of its own, or `inline` in the caller's thread, where threads do not exist (a browser) or are
not wanted. Both pass the same suite. Event loops join at a `Desk`, which also guards the thread against starvation.

Long because the line, its bounds, its two placements and its end are about the same few fields under one lock.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..basis.clock import Clock
from ..basis.errors import Overloaded, StoreClosed, StoreError, StoreUnavailable
from ..store.base import Store
from .desk import Desk
from .reply import Answer, Reply, _running_loop, answer, answered, may_wait, no_waiting
from .round import Rounds, with_cause
from .tally import Tally
from .ticket import URGENT, Rider, Ticket
from .turns import Turn, Turns

_log = logging.getLogger("holdfast")

#: Bounds of one round: enough to make the cost of the commit vanish, little enough to end within some 20 ms.
ROUND_TICKETS = 1000
ROUND_BYTES = 4 << 20

#: Above the upper mark callers must wait, until the line is down to the lower one.
UPPER_MARK = 50_000
LOWER_MARK = UPPER_MARK // 2

#: Microseconds that a rider waits before it goes along. What is over sooner costs nothing.
RIDE_AFTER = 100_000
_GONE = object()

#: Seconds after which the next part of something large goes in any case; a machine may have slept during the last one.
_LONGEST_REST = 1.0

#: How long the end of the interpreter waits for what nobody awaited.
_EXIT_SECONDS = 5.0


class Committer:
    """Serves the line of one store in this process."""

    def __init__(self, store: Store, clock: Clock, *, inline: bool = False, name: str = "holdfast-commit") -> None:
        self.store = store
        self.clock = clock
        self.inline = inline
        self._name = name
        self._closing = False
        self._on_trouble: Callable[[BaseException], None] | None = None
        self._reset()
        _all.add(self)

    def report_to(self, on_trouble: Callable[[BaseException], None]) -> None:
        """Whom to tell of what fails in the upkeep of the database, which no caller waits for."""
        self._on_trouble = self._rounds.on_trouble = on_trouble

    def _reset(self) -> None:
        """An empty line. Also in the child of a fork, where locks may be held by threads that no longer exist."""
        # Re-entrant: a garbage collection may run __del__, which may log, and a log handler may join the line.
        self._door = threading.Condition(threading.RLock())
        self._line: deque[Ticket[Any]] = deque()
        self._urgent: deque[Ticket[Any]] = deque()
        self._bulk: deque[Ticket[Any]] = deque()
        self._bulk_went = False
        self._bulk_from = 0.0
        self._serving: Sequence[Ticket[Any]] = ()
        self.riders: dict[Rider, None] = {}
        """What goes along with a round that goes anyway, and never causes one; taken out again when it is too late.

        In the order of coming. Any thread may put one in or take one out.
        """
        self._outstanding = 0
        self._asleep = False
        self._thread: threading.Thread | None = None
        self._closed: Reply[None] = answered(None, "close")
        self._died_of: BaseException | None = None
        self._rounds = Rounds(self.store, self.clock)
        self._turns = Turns()
        self.longest: int = 0
        """The most tickets that ever were in the line."""
        if self._on_trouble is not None:
            self._rounds.on_trouble = self._on_trouble
        self._tidying: Reply[bool] | None = None
        self._desks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Desk] = weakref.WeakKeyDictionary()
        self._desk: Desk | None = None
        self._waiting_desks: set[Desk] = set()
        self._inline_lock = threading.Lock()
        self._inline_server: int | None = None
        self.gate: threading.Event | None = None
        """For tests: while set to an unset event, the next round on the thread waits for it."""

    # -- joining -----------------------------------------------------------------------------------------------

    def join(self, *tickets: Ticket[Any], pass_always: bool = False, at_once: bool = False) -> None:
        """Put tickets into the line, together and in this order; returns at once. Their replies will be answered.

        `pass_always` is for what must not be refused: the engine's own writes. `at_once`, inline only, serves the
        line before it returns, for blocking code that runs in the loop's own thread.
        """
        loop = _running_loop()
        if loop is not None and at_once and self.inline:
            if (desk := self._desks.get(loop)) is not None:
                self._receive(desk)
            loop = None
        if loop is None:
            if not pass_always:
                self._wait_for_room()
            self._enter(tickets)
            if self.inline:
                self._serve_inline()
        else:
            desk = self._desk
            if desk is None or not desk.belongs_to(loop):
                desk = self._desk = self._desk_of(loop)
            if not pass_always and self.backlog + len(desk) >= UPPER_MARK:
                raise Overloaded()
            desk.add(tickets)

    def hand_over(self) -> None:
        """What was joined in this thread's loop goes into the line now, not at the end of the tick."""
        loop = _running_loop()
        if loop is not None and (desk := self._desks.get(loop)) is not None:
            self._receive(desk)

    def give_way_until(self, done: Callable[[], bool]) -> None:
        """Let another thread in, however busy the loop of this thread is, until `done()`. Elsewhere without effect.

        A loop that is busy with short calls gives Python's lock away and takes it back before anybody else wakes up: a
        thread that needs it may wait for ever. See `Desk`.
        """
        if not self.inline and (loop := _running_loop()) is not None:
            self._desk_of(loop).give_way_until(done)

    @property
    def backlog(self) -> int:
        """How many tickets are in the line or being served; a batch counts as what it holds."""
        return self._outstanding

    def has_part_in_line(self, verb: str) -> bool:
        """Whether a part of this verb is in the line, and its round has not begun."""
        with self._door:
            return any(ticket.verb == verb for ticket in self._bulk)

    @property
    def tally(self) -> Tally:
        """What was served, in figures."""
        return self._rounds.tally

    @property
    def rounds(self) -> int:
        """How many rounds were committed."""
        return self._rounds.count

    @property
    def last_round_at(self) -> float:
        """`clock.steady()` when a round was last committed: whoever guards leases sees that the line moves."""
        return self._rounds.last_at

    def now(self) -> int:
        """Microseconds since 1970, by the database, as far as it has been heard of."""
        return self._rounds.time.now()

    def _wait_for_room(self) -> None:
        # Who empties the line must not wait for it to be emptied.
        if self.backlog >= UPPER_MARK and not self.inline and may_wait():
            with self._door:
                self._door.wait_for(lambda: self.backlog <= LOWER_MARK or self._closing)

    def _desk_of(self, loop: asyncio.AbstractEventLoop) -> Desk:
        # A loop that was closed within the tick never handed over; when the next one comes is the time to see that.
        for left in [desk for desk in self._waiting_desks.copy() if desk.is_left()]:
            self._receive(left)
        with self._door:
            return self._desks.setdefault(loop, Desk(self, loop))

    def _receive(self, desk: Desk) -> None:
        self._waiting_desks.discard(desk)
        if tickets := desk.take():
            self._enter(tickets)
            if self.inline:
                self._serve_inline()

    def _enter(self, tickets: Sequence[Ticket[Any]]) -> None:
        with self._door:
            refusal = self._refusal()
            if refusal is None:
                now = self.clock.steady()
                for ticket in tickets:
                    ticket.joined_at = now
                    self._queue_of(ticket).append(ticket)
                self._outstanding += _count(tickets)
                self.longest = max(self.longest, self._outstanding)
                if self._asleep:
                    self._asleep = False
                    self._door.notify_all()
        if refusal is not None:
            self._rounds.refuse(tickets, refusal)

    def _queue_of(self, ticket: Ticket[Any]) -> deque[Ticket[Any]]:
        return self._urgent if ticket.verb in URGENT else self._bulk if ticket.bulk else self._line

    def _refusal(self) -> StoreError | None:
        """Why nobody can be served; starts the thread for the first ticket."""
        if self._closing:
            return self._closed_error()
        if self._thread is None and not self.inline:
            thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter is going away
                why = f"{self.store.name}: the committing thread can't be started ({error})."
                return with_cause(StoreUnavailable(why), error)
            self._thread = thread
            # Whoever asks joins the thread, which ends at once after it has answered.
            self._closed = Reply("close", lambda _: thread.join())
        return None

    def _closed_error(self) -> StoreError:
        return with_cause(StoreClosed(), self._died_of)

    @contextlib.contextmanager
    def aside(self) -> Iterator[Callable[[], None]]:
        """While this is entered somebody else writes, over a connection of its own; no round begins if that excludes
        them. What is entered gives the turn back: call it if that is over before this is left, in any thread.

        Inline, what joins meanwhile is served on leaving.
        """
        if self.inline:
            try:
                with self._inline_lock:
                    self._inline_server = threading.get_ident()
                    try:
                        yield _nothing
                    finally:
                        self._inline_server = None
            finally:
                self._serve_inline()
            return
        turn = Turn() if self.store.locks else self._turns.take()

        def give() -> None:
            self._turns.give(turn)

        try:
            yield give
        finally:
            give()

    def tidy(self) -> Reply[bool]:
        """Let the store look after its files as soon as nobody is served; False if it should be asked again sooner."""
        if self.inline:
            with self._inline_lock, no_waiting("upkeep"):
                return answered(self._rounds.upkeep(idle=True), "tidy")
        with self._door:
            if self._closing or self._thread is None:
                return answered(True, "tidy")  # nothing was written here
            tidying = self._tidying = self._tidying or Reply("tidy")
            self._door.notify_all()
        return tidying

    # -- serving -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        with no_waiting("the committing thread"):
            try:
                while self._next_round():
                    turn = self._turns.take()
                    try:
                        # Not kept in a variable: it would live through the next sleep, and so would its unasked
                        # failures.
                        if self._serving:
                            self._serve_round()
                        self._look_after()
                    finally:
                        self._turns.give(turn)
            except BaseException as error:
                _log.critical("the commit line has died", exc_info=error)
                self._died_of = error
            finally:
                self._rounds.disconnect()
                self._leave()

    def _next_round(self) -> bool:
        with self._door:
            self._end_round()
            # While a part rests, what tidies waits for it, too.
            while not (self._line or self._urgent or (self._tidying and not self._bulk)):
                if self._bulk_may_go():
                    break
                if self._closing:
                    return False
                rest = self._bulk_from - self.clock.steady() if self._bulk else None
                self._asleep = True
                if not self._door.wait(rest):
                    self._bulk_from = 0.0
                self._asleep = False
        if (gate := self.gate) is not None:
            gate.wait()
        with self._door:
            return self._take() or self._tidying is not None

    def _serve_round(self) -> None:
        began = self.clock.steady()
        self._rounds.serve(self._serving)
        if self._bulk_went and not self.store.locks:
            now = self.clock.steady()
            self._bulk_from = now + min(now - began, _LONGEST_REST)

    def _look_after(self) -> None:
        """Between two rounds: what is due in any case; and all that can be done, if somebody asked and nobody waits."""
        tidying: Reply[bool] | None = None
        if self._tidying is not None:
            with self._door:
                if not (self._line or self._urgent or self._bulk):
                    tidying, self._tidying = self._tidying, None
        done = self._rounds.upkeep(idle=tidying is not None)
        if tidying is not None:
            answer([(tidying, done, None)])

    def _take(self) -> bool:
        """Whoever comes first, up to the bounds; renewals come before and beside them. False if nobody is there."""
        tickets: list[Ticket[Any]] = []
        while self._urgent:
            tickets.append(self._urgent.popleft())
        line, room, weight = self._line, ROUND_TICKETS, 0
        self._bulk_went = self._bulk_may_go()
        if self._bulk_went:
            tickets.append(self._bulk.popleft())
            room = 0
        while line and room > 0 and weight < ROUND_BYTES:
            if line[0].count > room < ROUND_TICKETS:
                break  # a batch that is longer than what is left: it comes first in the next round
            ticket = line.popleft()
            weight += ticket.weight
            room -= ticket.count
            tickets.append(ticket)
        if tickets and self.riders:
            boarded = self._boarded()
            self._outstanding += len(boarded)
            tickets += boarded
        self._serving = tickets
        return bool(tickets)

    def _bulk_may_go(self) -> bool:
        """Whether the next part of something large has a round now: not if others are there, and the last went so."""
        if not self._bulk or (self._line and self._bulk_went):
            return False
        return self._closing or self.inline or self.clock.steady() >= self._bulk_from

    def _boarded(self) -> list[Ticket[Any]]:
        """The tickets of the riders that have waited for long enough: most are taken out again before that."""
        now = self.clock.now()
        boarded: list[Ticket[Any]] = []
        for rider in list(self.riders):
            # The younger ones come after it. A clock that was set back must not keep them for ever.
            if 0 <= now - rider.since < RIDE_AFTER or len(boarded) == ROUND_TICKETS:
                break
            if self.riders.pop(rider, _GONE) is not _GONE:
                boarded.append(rider.ticket())
        return boarded

    def _end_round(self) -> None:
        """The tickets are only now no longer outstanding: the guards must look until they have been announced."""
        before = self._outstanding
        self._outstanding -= _count(self._serving)
        self._serving = ()
        if self._outstanding <= LOWER_MARK < before:
            self._door.notify_all()

    def _serve_inline(self) -> None:
        if self._inline_server == threading.get_ident():
            return  # joined from within a round: whoever serves it will see the ticket
        with self._inline_lock, no_waiting("a round"):
            self._inline_server = threading.get_ident()
            try:
                while self._next_inline_round():
                    self._rounds.serve(self._serving)
                    self._rounds.upkeep()
            except BaseException as error:  # the caller was interrupted, but others may wait too
                why = "The caller that was writing this was interrupted; whether it happened is unknown."
                answer([(ticket, None, with_cause(StoreUnavailable(why), error)) for ticket in self._serving])
                raise
            finally:
                self._inline_server = None
                with self._door:
                    self._end_round()
                if self._closing:
                    self._rounds.disconnect()

    def _next_inline_round(self) -> bool:
        with self._door:
            self._end_round()
            return self._take()

    # -- closing -----------------------------------------------------------------------------------------------

    def close(self) -> Reply[None]:
        """Serve what is in the line, then stop. Tickets that come later are answered `StoreClosed`."""
        for desk in self._waiting_desks.copy():
            self._receive(desk)
        with self._door:
            self._closing = True
            self._door.notify_all()
        if self.inline:
            self._serve_inline()
        return self._closed

    def open(self) -> None:
        """Take tickets again after a close, and after what was left in the line then has been served."""
        with self._door:
            thread = self._thread if self._closing else None
        if thread is not None:
            thread.join()
        with self._door:
            if self._closing:
                self._thread = None
                self._closed = answered(None, "close")
                self._closing = False
                self._died_of = None

    def _leave(self) -> None:
        """The thread ends: whoever still waits is told."""
        with self._door:
            self._closing = True
            left = [*self._serving, *self._urgent, *self._line, *self._bulk]
            self._urgent.clear()
            self._bulk.clear()
            self._line.clear()
            self._serving = ()
            self._outstanding = 0
            self._door.notify_all()
            tidying, self._tidying = self._tidying, None
        if tidying is not None:
            answer([(tidying, False, None)])
        answer([(ticket, None, self._closed_error()) for ticket in left])
        answer([(self._closed, None, None)])

    def _start_as_child(self) -> None:
        """After a fork. What was under way is the parent's, but a child that asks for it shall not wait for ever."""
        left: list[Reply[Any]] = [*self._serving, *self._urgent, *self._line, *self._bulk, self._closed]
        for desk in self._waiting_desks:
            left += desk.take_in_child()
        # Kept, not closed: closing the parent's connection in the child may harm the parent's locks.
        _parents.append(self._rounds.connection)
        self._reset()
        for reply in left:
            reply._asked = True
            # Nobody is woken: the loops and threads that wait are the parent's.
            reply._settle(None, StoreClosed("This was in the line before the fork: it is the parent's to write."))


def _count(tickets: Sequence[Ticket[Any]]) -> int:
    return sum([ticket.count for ticket in tickets])


_all: weakref.WeakSet[Committer] = weakref.WeakSet()
_parents: list[Any] = []


def _nothing() -> None:
    return


def _in_child() -> None:
    for committer in list(_all):
        committer._start_as_child()


def _at_exit() -> None:
    """A script that triggers and ends without awaiting: what it has asked for is written first."""
    for committer in list(_all):
        if committer.backlog or committer._waiting_desks:
            with contextlib.suppress(Exception):
                committer.close().wait(_EXIT_SECONDS)


atexit.register(_at_exit)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

__all__ = ["Answer", "Committer"]
