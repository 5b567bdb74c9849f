"""The commit line: everything that is written passes here, in rounds.

Callers *join the line* with a *ticket* (a store verb and a row). The committer serves the line in *rounds*: all
tickets that are there, in one transaction, with one statement per verb. While a round commits, the next one gathers.
So the previous commit is the only timer: an idle engine commits a lone ticket at once, a busy one commits a thousand
together, and syncing to disk at each commit stays affordable.

What keeps it honest (each has its test in tests/commit):

* Outcomes are announced after COMMIT has returned, never before.
* If a round fails, its tickets are tried again one by one, so that nobody pays for another. That is safe because a
  ticket is plain data for a verb that may run twice; it is rare because expected outcomes are answers, not errors.
  Only when the database itself is in trouble everybody is told at once: trying each alone would only take longer.
* If COMMIT gives no answer, the round is played again with `tx.replay` set, and the verbs read back what happened.
* No user code in a round: values are encoded before joining and decoded by whoever asks the reply.
* Renewals overtake. A round is bounded in tickets and bytes, so that they need not wait behind 5,000 log lines.
* The line is bounded: threads wait for room, event loops are refused (`Overloaded`), engine writes always pass.
* Nobody is left waiting: a closed or dead committer answers every ticket, with an error.
* After a fork the child starts with an empty line and its own connection; what the parent had under way is the
  parent's.

The *starvation guard*: a busy event loop takes the interpreter's lock back so quickly that the committing thread gets
it only after every switch interval, many times per round, and a loop can slow it to a standstill. So while tickets of
a loop are outstanding, a timer in that loop sleeps for some microseconds whenever the loop has other work ready.

Placement: on a thread of its own, or `inline` in the caller's thread, where threads do not exist (a browser) or are
not wanted. Both pass the same suite.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from ..basis.clock import Clock, give_way
from ..basis.errors import Overloaded, SchemaError, StoreClosed, StoreError, StoreUnavailable
from ..store.base import Store, Tx
from .reply import Answer, Reply, _running_loop, answer, answered, no_waiting
from .ticket import ORDER, Ticket, Verb

_log = logging.getLogger("holdfast")

#: Bounds of one round: enough to make the cost of the commit vanish, little enough to end within some 20 ms.
ROUND_TICKETS = 1000
ROUND_BYTES = 4 << 20

#: Above the upper mark callers must wait, until the line is down to the lower one.
UPPER_MARK = 50_000
LOWER_MARK = UPPER_MARK // 2

#: How often the guard looks after a busy loop; a round takes about as long.
_GUARD_SECONDS = 0.0005


class Committer:
    """Serves the line of one store in this process."""

    def __init__(self, store: Store, clock: Clock, *, inline: bool = False, name: str = "holdfast-commit") -> None:
        self.store = store
        self.clock = clock
        self.inline = inline
        self.rounds = 0
        self.last_round_at = 0.0
        """`clock.steady()` when a round was last committed: whoever guards leases sees that the line moves."""
        self._name = name
        self._after_close: BaseException | None = None
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        """An empty line. Also in the child of a fork, where locks may be held by threads that no longer exist."""
        self._pid = os.getpid()
        self._door = threading.Condition(threading.Lock())
        self._line: deque[Ticket[Any]] = deque()
        self._urgent: deque[Ticket[Any]] = deque()
        self._serving = 0
        self._asleep = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self._connection: Any = None
        self._desks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Desk] = weakref.WeakKeyDictionary()
        self._closed_reply: Reply[None] | None = None
        self._inside = threading.local()
        self._serving_inline = threading.RLock()
        self.gate: threading.Event | None = None
        """For tests: while set to an unset event, the next round waits for it."""

    # -- joining -----------------------------------------------------------------------------------------------

    def join(self, *tickets: Ticket[Any], pass_always: bool = False) -> None:
        """Put tickets into the line, together and in this order; returns at once. Their replies will be answered.

        `pass_always` is for what must not be refused: the engine's own writes.
        """
        loop = _running_loop()
        if loop is None:
            if not pass_always:
                self._wait_for_room()
            self._enter(tickets)
            if self.inline:
                self._serve_inline()
        else:
            if not pass_always and self.backlog >= UPPER_MARK:
                raise Overloaded()
            desk = self._desks.get(loop)
            if desk is None:
                desk = self._desks[loop] = _Desk(self, loop)
            desk.add(tickets)

    @property
    def backlog(self) -> int:
        """How many tickets are in the line or being served."""
        return len(self._line) + len(self._urgent) + self._serving

    def _wait_for_room(self) -> None:
        if self.backlog < UPPER_MARK or self.inline:
            return
        with self._door:
            self._door.wait_for(lambda: self.backlog <= LOWER_MARK or self._closing)

    def _enter(self, tickets: Iterable[Ticket[Any]]) -> None:
        with self._door:
            if not self._closing:
                for ticket in tickets:
                    (self._urgent if ticket.verb == "renew_leases" else self._line).append(ticket)
                if self.inline:
                    return
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                    self._thread.start()
                elif self._asleep:
                    self._door.notify_all()
                return
        answer([(ticket, None, self._closed()) for ticket in tickets])

    def _closed(self) -> StoreClosed:
        error = StoreClosed()
        error.__cause__ = self._after_close
        return error

    # -- serving -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        with no_waiting("the committing thread"):
            try:
                while tickets := self._next_round():
                    self._round(tickets)
            except BaseException as error:
                _log.critical("the commit line has died", exc_info=error)
                self._after_close = error
            finally:
                self._disconnect()
                self._leave()

    def _next_round(self) -> list[Ticket[Any]]:
        with self._door:
            self._serving = 0
            if len(self._line) <= LOWER_MARK:
                self._door.notify_all()
            while not (self._line or self._urgent):
                if self._closing:
                    return []
                self._asleep = True
                self._door.wait()
                self._asleep = False
        if (gate := self.gate) is not None:
            gate.wait()
        with self._door:
            return self._take()

    def _take(self) -> list[Ticket[Any]]:
        tickets = list(self._urgent)
        self._urgent.clear()
        weight = 0
        while self._line and len(tickets) < ROUND_TICKETS and weight < ROUND_BYTES:
            ticket = self._line.popleft()
            weight += ticket.weight
            tickets.append(ticket)
        self._serving = len(tickets)
        return tickets

    def _serve_inline(self) -> None:
        if getattr(self._inside, "round", False):
            return  # joined from within a round: whoever serves it will see the ticket
        with self._serving_inline:
            self._inside.round = True
            try:
                while self._line or self._urgent:
                    self._round(self._take())
            finally:
                self._serving = 0
                self._inside.round = False

    def _round(self, tickets: Sequence[Ticket[Any]]) -> None:
        """All together; if that fails, each alone, so that no caller pays for another."""
        answers: list[Answer] = []
        try:
            served = self._attempt(tickets)
        except Exception as error:
            meant = self.store.translate(error)
            if len(tickets) > 1 and not isinstance(meant, StoreUnavailable | SchemaError):
                for ticket in tickets:
                    self._round([ticket])
                return
            # Not one exception for all: each caller adds its own traceback.
            answers = [(ticket, None, _own(meant)) for ticket in tickets]
        else:
            for ticket, value in served:
                answers.append((ticket, value, None))
                if ticket.then is not None:
                    try:
                        ticket.then(value)
                    except Exception:
                        _log.exception("after %s", ticket._what)
        answer(answers)

    def _attempt(self, tickets: Sequence[Ticket[Any]]) -> list[tuple[Ticket[Any], Any]]:
        try:
            return self._transaction(tickets, replay=False)
        except _NoAnswer as unanswered:
            # It may have happened. Every verb can tell from what is there now.
            self._disconnect()
            _log.warning("a commit gave no answer, reading back: %s", unanswered.__cause__)
            try:
                return self._transaction(tickets, replay=True)
            except _NoAnswer as again:
                raise StoreUnavailable(
                    f"{self.store.name}: the commit gave no answer; whether it happened is unknown."
                ) from again.__cause__

    def _transaction(self, tickets: Sequence[Ticket[Any]], *, replay: bool) -> list[tuple[Ticket[Any], Any]]:
        by_verb: dict[Verb, list[Ticket[Any]]] = {}
        for ticket in tickets:
            by_verb.setdefault(ticket.verb, []).append(ticket)
        answers: list[tuple[Ticket[Any], Any]] = []
        tx: Tx | None = None
        try:
            if self._connection is None:
                self._connection = self._connect()
            tx = self.store.begin(self._connection)
            tx.replay = replay
            for verb in ORDER:
                if group := by_verb.get(verb):
                    values = getattr(self.store, verb)(tx, [ticket.row for ticket in group])
                    answers.extend(zip(group, values, strict=True))
        except BaseException as error:
            if tx is not None:
                self.store.rollback(tx)
            if isinstance(self.store.translate(error), StoreError):
                self._disconnect()
            raise
        try:
            self.store.commit(tx)
        except BaseException as error:
            self.store.rollback(tx)
            raise _NoAnswer from self.store.translate(error)
        self.rounds += 1
        self.last_round_at = self.clock.steady()
        return answers

    def _connect(self) -> Any:
        connection = self.store.connect()
        try:
            self.store.check_schema(connection)
        except BaseException:
            self.store.disconnect(connection)
            raise
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self.store.disconnect(self._connection)
            self._connection = None

    # -- closing -----------------------------------------------------------------------------------------------

    def close(self) -> Reply[None]:
        """Serve what is in the line, then stop. Tickets that come later are answered `StoreClosed`."""
        for desk in list(self._desks.values()):
            desk.hand_over()
        with self._door:
            self._closing = True
            self._door.notify_all()
            thread = self._thread
            if thread is not None and thread.is_alive():
                # Whoever asks joins the thread, which ends at once after it has answered.
                self._closed_reply = Reply("close", lambda _: thread.join())
                return self._closed_reply
        if self.inline:
            self._serve_inline()
        self._disconnect()
        return answered(None, "close")

    def open(self) -> None:
        """Take tickets again after a close."""
        with self._door:
            if self._thread is None or not self._thread.is_alive():
                self._thread = None
                self._closing = False
                self._after_close = None

    def _leave(self) -> None:
        """The thread ends: whoever still waits is told."""
        with self._door:
            self._closing = True
            left = [*self._urgent, *self._line]
            self._urgent.clear()
            self._line.clear()
            self._serving = 0
            self._door.notify_all()
            closed = self._closed_reply
        answer([(ticket, None, self._closed()) for ticket in left])
        if closed is not None:
            answer([(closed, None, None)])


class _Desk:
    """Gathers the tickets of one event loop for one tick, so that a tick costs one hand-over and one wake-up."""

    def __init__(self, committer: Committer, loop: asyncio.AbstractEventLoop) -> None:
        self._committer = weakref.ref(committer)
        self._loop = weakref.ref(loop)
        self._gathered: list[Ticket[Any]] = []
        self._guarding = False

    def add(self, tickets: Sequence[Ticket[Any]]) -> None:
        if not self._gathered and (loop := self._loop()) is not None:
            loop.call_soon(self.hand_over)
        self._gathered.extend(tickets)

    def hand_over(self) -> None:
        committer, tickets = self._committer(), self._gathered
        self._gathered = []
        if committer is None or not tickets:
            return
        committer._enter(tickets)
        if committer.inline:
            committer._serve_inline()
        elif not self._guarding and (loop := self._loop()) is not None and not loop.is_closed():
            self._guarding = True
            self._due = loop.time() + _GUARD_SECONDS
            loop.call_later(_GUARD_SECONDS, self._guard)

    def _guard(self) -> None:
        committer, loop = self._committer(), self._loop()
        if committer is None or loop is None or not committer.backlog:
            self._guarding = False
            return
        if _is_busy(loop, self._due):
            give_way()
        self._due = loop.time() + _GUARD_SECONDS
        loop.call_later(_GUARD_SECONDS, self._guard)


def _is_busy(loop: asyncio.AbstractEventLoop, due: float) -> bool:
    """Whether the loop has other work ready: asyncio's own tells, of others a late timer does."""
    ready = getattr(loop, "_ready", None)
    return bool(ready) if ready is not None else loop.time() > due + _GUARD_SECONDS / 2


class _NoAnswer(Exception):
    """COMMIT failed: it may or may not have happened."""


def _own(error: BaseException) -> BaseException:
    try:
        mine = copy.copy(error)
    except Exception:
        mine = StoreError(str(error))
    mine.__cause__ = error.__cause__ or error
    return mine


_all: weakref.WeakSet[Committer] = weakref.WeakSet()
_parents: list[Any] = []


def _in_child() -> None:
    for committer in list(_all):
        # Kept, not closed: closing the parent's connection in the child may harm the parent's locks.
        _parents.append((committer._connection, committer._line, committer._urgent))
        committer._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

__all__ = ["Answer", "Committer"]
