"""One round: its tickets in one transaction, and what happens when that fails.

Outcomes are announced after COMMIT has returned, nowhere else. The database can be lost on any line here: before
COMMIT was asked for nothing has happened and everybody is told so; after it has answered everything has; in between
nobody knows, and the round is played again with `tx.replay`, which every verb understands.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..basis.clock import Clock
from ..basis.errors import HoldfastError, SchemaError, StoreError, StoreUnavailable
from ..store.base import LATER, PlayAgain, Store, Tx, Undone
from .database_time import DatabaseTime
from .forks import inside
from .reply import Answer, answer
from .tally import Tally
from .ticket import APART, ORDER, Ticket, Verb

_log = logging.getLogger("holdfast")

#: The database itself: trying each ticket alone would only take longer.
_TROUBLE = (StoreUnavailable, SchemaError)

#: So often a round is played again that the database has undone.
_AGAIN = 5

#: Seconds that others have to renew, once the write lock is free again, before anybody is judged.
_LENIENT = 2.0


class Rounds:
    """Serves rounds over one connection, opened when needed. One round at a time, in any thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.connection: Any = None
        self.count: int = 0
        self.tally: Tally = Tally()
        self.last_at: float = 0.0
        self.time: DatabaseTime = DatabaseTime(clock)
        self.on_trouble: Callable[[BaseException], None] = _log_trouble
        self._out_since: float | None = None
        self._longest, self._until = 0.0, 0.0

    def serve(
        self, tickets: Sequence[Ticket[Any]], *, replay: bool = False, again: int = 0, full: bool = False
    ) -> BaseException | None:
        """All together; if that fails, the halves, so that no caller pays for another.

        With `full` nothing is left for later. Returns the error if the database itself is in trouble: then the other
        half need not try.
        """
        parts: list[Sequence[Ticket[Any]]]
        if not replay and not (tickets := self._may_go(tickets)):
            return None
        if not replay and len(apart := self._apart(tickets)) > 1:
            return self._serve_each(apart, replay=False, full=full)
        try:
            with inside:
                answers, left = self._transaction(tickets, replay=replay, full=full or replay)
        except Undone as undone:
            meant = self.store.translate(undone.__cause__ or undone)
            if isinstance(meant, PlayAgain) and again < _AGAIN:
                self.tally.again += 1
                return self.serve(tickets, again=again + 1, full=full)
            if isinstance(meant, _TROUBLE) and not undone.elsewhere:
                # Whoever waited for too long must not wait twice.
                return self.refuse(tickets, meant)
            return self.serve(tickets, again=again, full=True)
        except _NoAnswer as unanswered:
            if replay:
                why = str(unanswered.__cause__).removeprefix(f"{self.store.name}: ").rstrip(".")
                unknown = f"{self.store.name}: the commit gave no answer; whether it happened is unknown ({why})."
                return self.refuse(tickets, with_cause(StoreUnavailable(unknown), unanswered.__cause__))
            # It may have happened. Every verb can tell from what is there now.
            _log.warning("a commit gave no answer, reading back: %s", unanswered.__cause__)
            parts, replay = [tickets], True
        except Exception as error:
            meant = self.store.translate(error)
            if isinstance(meant, PlayAgain) and again < _AGAIN:
                # Undone as a whole, for somebody else's sake: the halves would fare no better.
                self.tally.again += 1
                return self.serve(tickets, replay=replay, again=again + 1, full=full)
            if len(tickets) == 1 or isinstance(meant, _TROUBLE):
                return self.refuse(tickets, meant)
            parts = [tickets[: len(tickets) // 2], tickets[len(tickets) // 2 :]]
        else:
            self._announce(answers)
            return self.serve(left, full=True) if left else None
        return self._serve_each(parts, replay=replay, full=full)

    def _serve_each(
        self, parts: Sequence[Sequence[Ticket[Any]]], *, replay: bool, full: bool = False
    ) -> BaseException | None:
        trouble: BaseException | None = None
        for part in parts:
            trouble = self.refuse(part, trouble) if trouble else self.serve(part, replay=replay, full=full)
        return trouble

    def _apart(self, tickets: Sequence[Ticket[Any]]) -> list[Sequence[Ticket[Any]]]:
        """What may share a transaction: all of it, or with several writers what gets idempotency keys in one way."""
        if not self.store.locks or not any(ticket.verb in APART for ticket in tickets):
            return [tickets]
        deletes = any(ticket.verb == "delete" for ticket in tickets)
        single = [ticket for ticket in tickets if ticket.verb == "trigger"] if deletes else []
        batches = [ticket for ticket in tickets if ticket.verb == "trigger_many"]
        others = [
            ticket for ticket in tickets if ticket.verb != "trigger_many" and not (deletes and ticket.verb == "trigger")
        ]
        return [part for part in (others, single, *([ticket] for ticket in batches)) if part]

    def _may_go(self, tickets: Sequence[Ticket[Any]]) -> Sequence[Ticket[Any]]:
        """Those that nothing has come up against since they joined the line."""
        stopped: list[Answer] = [
            (ticket, None, error)
            for ticket in tickets
            if ticket.unless is not None and (error := ticket.unless()) is not None
        ]
        if not stopped:
            return tickets
        answer(stopped)
        return [ticket for ticket in tickets if all(ticket is not one for one, _, _ in stopped)]

    def _announce(self, answers: list[Answer]) -> None:
        announce(answers)

    def refuse(self, tickets: Sequence[Ticket[Any]], error: BaseException) -> BaseException | None:
        """Answer with this error, each with its own. Returns it if the database itself is in trouble."""
        if not isinstance(error, HoldfastError):
            _log.error("%s: a write failed", self.store.name, exc_info=error)
        # The frames of a traceback hold the tickets, which hold the error: a circle that would keep a whole round.
        for one in _chain(error):
            one.__traceback__ = None
        # Not one exception for all: each caller adds its own traceback.
        answer([(ticket, None, _own(error)) for ticket in tickets])
        return error if isinstance(error, _TROUBLE) else None

    def _transaction(
        self, tickets: Sequence[Ticket[Any]], *, replay: bool, full: bool
    ) -> tuple[list[Answer], list[Ticket[Any]]]:
        """The answers, and who has none yet."""
        by_verb: dict[Verb, list[Ticket[Any]]] = {}
        for ticket in tickets:
            by_verb.setdefault(ticket.verb, []).append(ticket)
        asked: list[tuple[list[Ticket[Any]], Sequence[Any]]] = []
        served: list[tuple[str, list[Ticket[Any]], float]] = []
        tx: Tx | None = None
        since = self.clock.steady()
        try:
            tx = self._begin({verb: [ticket.row for ticket in group] for verb, group in by_verb.items()}, replay=replay)
            tx.patient = not full
            known = tx.begun
            for verb in ORDER:
                if group := by_verb.get(verb):
                    began = self.clock.steady()
                    values = getattr(self.store, verb)(tx, [ticket.row for ticket in group])
                    if len(values) != len(group):
                        raise ValueError(f"{verb}: {len(values)} answers to {len(group)} rows")
                    asked.append((group, values))
                    served.append((verb, group, self.clock.steady() - began))
            if tx.begun and not known:
                known = True
                self._waited(tx)
        except BaseException as error:
            if tx is not None:
                self.store.rollback(tx)
            meant = self.store.translate(error)
            if isinstance(meant, StoreError) and not isinstance(meant, PlayAgain):
                self.disconnect()
            if tx is not None:
                self._refused(tx, since)
            raise
        try:
            self.store.commit(tx)
            answers, left = _given(asked)
        except BaseException as error:
            self.store.rollback(tx)
            self._refused(tx, since)
            if isinstance(error, Undone):
                raise
            self.disconnect()
            if isinstance(error, Exception):
                raise _NoAnswer from self.store.translate(error)
            raise  # not the database's word: somebody ends this thread or program
        if not known:
            self._waited(tx)
        if self.store.tells_time and tx.told is not None:
            self.time.told(tx.told, since)
        self.count += 1
        self.last_at = self.clock.steady()
        self.tally.round(served, len(tickets), self.last_at)
        return answers, left

    def _begin(self, batches: Mapping[str, Sequence[Any]], *, replay: bool) -> Tx:
        """Begin, and note for how long that was not possible, since the first attempt that was refused.

        For some seconds more it counts for the rounds that follow: others who could not renew may be slower to begin.
        """
        asked = self.clock.steady()
        try:
            if self.connection is None:
                self.connection = self.store.open()
            tx = self.store.begin_round(self.connection, batches, replay=replay)
        except BaseException:
            if self._out_since is None:
                self._out_since = asked
            raise
        if tx.begun:
            self._waited(tx)
            tx.waited = self._longest
        return tx

    def _refused(self, tx: Tx, since: float) -> None:
        if not tx.begun and self._out_since is None:
            self._out_since = since

    def _waited(self, tx: Tx) -> None:
        now = self.clock.steady()
        waited = tx.waited if self._out_since is None else now - self._out_since
        self._out_since = None
        if waited > self._longest or now >= self._until:
            self._longest, self._until = waited, now + min(waited, _LENIENT)

    def upkeep(self, *, idle: bool = False) -> bool:
        """Let the store look after its files. Nobody's reply depends on it. False: try again sooner."""
        if self.connection is None or not (idle or self.store.needs_upkeep):
            return True
        try:
            with inside:
                return self.store.upkeep(self.connection, idle=idle)
        except Exception as error:
            self.disconnect()
            self.on_trouble(self.store.translate(error))
            return False

    def disconnect(self) -> None:
        """Close the connection; the next round opens another."""
        if self.connection is not None:
            self.store.disconnect(self.connection)
            self.connection = None


def _given(asked: Sequence[tuple[list[Ticket[Any]], Sequence[Any]]]) -> tuple[list[Answer], list[Ticket[Any]]]:
    """The answers, and who has none yet."""
    answers: list[Answer] = []
    left: list[Ticket[Any]] = []
    for group, values in asked:
        for ticket, value in zip(group, values, strict=True):
            if value is LATER:
                left.append(ticket)
            else:
                answers.append((ticket, value, None))
    return answers, left


def announce(answers: Sequence[Answer]) -> None:
    """Say what was committed: to the engine, then to whoever waits. The replies of these answers are tickets."""
    for ticket, value, _ in answers:
        if (then := ticket.then) is not None:  # type: ignore[attr-defined]  # the type of answers says reply
            try:
                then(value)
            except Exception:
                _log.exception("after %s", ticket._what)
    answer(answers)


def _log_trouble(error: BaseException) -> None:
    _log.error("upkeep of the database: %s", error)


class _NoAnswer(Exception):
    """COMMIT failed: it may or may not have happened."""


def with_cause(error: StoreError, cause: BaseException | None) -> StoreError:
    """The error, as if raised `from` the cause."""
    error.__cause__ = cause
    return error


def _own(error: BaseException) -> BaseException:
    try:
        mine = copy.copy(error)
    except Exception:
        mine = StoreError(str(error))
    mine.__cause__ = error.__cause__
    return mine


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
