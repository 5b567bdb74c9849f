"""Relational verbs about runs that wait: what for, what wakes them, and the runs below them.

There are no counters. Whether a run may go on is asked of the rows, by one statement (`wake`), in the transaction of
whatever may have been the last thing that was missing: a signal, the end of a run below, the time, or the very
suspension. Whoever asks holds the row of the waiting run: so of two that come at once the second sees the first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ..model.run import KEEPS, NewRun, RunRow
from ..model.wait import NewSignal, WaitRow, wait_key
from .base import SIGNALS_UNREAD, Sent, StepSave, Take, Taken, Triggered, Tx, WaitSave
from .said import Said

#: Sleeping runs that one claim may wake: more than it takes, and no more than others can wait for.
WOKEN_AT_ONCE = 200


class Below(Said):
    """Waits, signals, and trees."""

    @abstractmethod
    def _pass_on(self, tx: Tx, keys: Sequence[str | None]) -> None:
        """Runs have come to these concurrency keys or have left them."""

    # -- waits -------------------------------------------------------------------------------------------------

    def save_waits(self, tx: Tx, saves: Sequence[WaitSave]) -> list[WaitRow | None]:
        rows = [
            (s.owner, s.wait.run_id, s.generation, s.wait.key, s.wait.kind, s.wait.until, s.delay, s.wait.signal)
            for s in saves
        ]
        # Those that are there from before have their children: what is given now is not theirs.
        before = {row[0] for row in self._ask(tx.connection, "standing_waits", rows)}
        self._do(tx.connection, "save_waits", rows, tx.now)
        standing = {at: WaitRow(*row) for at, *row in self._ask(tx.connection, "standing_waits", rows)}
        if standing:
            self._do(tx.connection, "has_tree", sorted({wait.run_id for wait in standing.values()}))
        children = [child for at in sorted(standing.keys() - before) for child in saves[at].children]
        if children:
            self._beget(tx, children)
        return [standing.get(at) for at in range(len(saves))]

    def _beget(self, tx: Tx, children: Sequence[NewRun]) -> list[Triggered]:
        return self.trigger(tx, children)

    def _drop_waits(self, tx: Tx, saves: Sequence[StepSave]) -> None:
        """What these runs waited for is saved."""
        if keys := [(s.step.run_id, wait_key(s.step.name, s.step.occurrence)) for s in saves if s.ends_wait]:
            self._do(tx.connection, "drop_waits", keys)

    # -- signals -----------------------------------------------------------------------------------------------

    def send_signals(self, tx: Tx, signals: Sequence[NewSignal]) -> list[Sent]:
        self._do(tx.connection, "send_signals", signals, tx.now, SIGNALS_UNREAD)
        answers = [Sent("gone")] * len(signals)
        for at, sent, known, status in self._ask(tx.connection, "sent_signals", signals):
            if sent:
                answers[at] = Sent("sent", status)
            elif known:
                answers[at] = Sent("again", status)
            elif status is not None:
                waiting = status in ("pending", "leased", "waiting")
                answers[at] = Sent("full" if waiting else "ended", status)
        self._wake(tx, [s.run_id for s, answer in zip(signals, answers, strict=True) if answer.status == "sent"])
        return answers

    def take_signals(self, tx: Tx, takes: Sequence[Take]) -> list[Taken]:
        # What was late before stays late, and must not take what has come since: nobody holds that row.
        late = [(t.owner, *t.late, at) for at, t in enumerate(takes) if t.late is not None and tx.replay]
        stood = {at for (at,) in self._ask(tx.connection, "saved_steps", late)} if late else set[int]()
        answers = [Taken("late" if at in stood else "lost") for at in range(len(takes))]
        rows = [
            (
                None if at in stood else t.owner,
                t.step.run_id, t.step.generation, wait_key(t.step.name, t.step.occurrence), t.signal,
            )
            for at, t in enumerate(takes)
        ]  # fmt: skip
        # One of a run and name at a time: each takes the oldest that is left.
        turns: dict[tuple[str, str], int] = {}
        by_turn: dict[int, list[Any]] = {}
        for row in rows:
            turn = turns[row[1], row[4]] = turns.get((row[1], row[4]), -1) + 1
            by_turn.setdefault(turn, []).append(row)
        for turn in sorted(by_turn):
            self._do(tx.connection, "take_signals", by_turn[turn])
        saves: list[StepSave] = []
        places: list[int] = []
        for at, value, is_late in self._ask(tx.connection, "taken_signals", rows, tx.now):
            take = takes[at]
            answers[at] = Taken("nothing")
            if value is not None:
                answers[at] = Taken("taken", value)
                saves.append(StepSave(take.owner, take.step._replace(output=value), take.moved_on, ends_wait=True))
                places.append(at)
            elif is_late and take.late is not None:
                answers[at] = Taken("late")
                saves.append(StepSave(take.owner, take.late, take.moved_on, ends_wait=True))
                places.append(at)
        if saves:
            for at, saved in zip(places, self.save_steps(tx, saves), strict=True):
                if not saved:
                    answers[at] = Taken("lost")
        return answers

    # -- waking ------------------------------------------------------------------------------------------------

    def _wake(self, tx: Tx, run_ids: Sequence[str]) -> list[Any]:
        """Those of these waiting runs that have what they waited for are pending from now on."""
        if not run_ids:
            return []
        woken = self._ask(tx.connection, "wake", sorted(set(run_ids)), tx.now)
        self._pass_on(tx, [key for _, key in woken])
        return woken

    def _wake_sleepers(self, tx: Tx) -> None:
        """Those whose time has come."""
        due = self._find(tx.connection, "sleepers_due", tx.now, WOKEN_AT_ONCE)
        self._wake(tx, [run_id for (run_id,) in due])

    def _next_wake(self, connection: Any) -> int | None:
        found = self._find(connection, "next_wake")
        return found[0][0] if found else None

    # -- ends --------------------------------------------------------------------------------------------------

    def _after_ends(self, tx: Tx, ended: Sequence[tuple[str, str | None, int]]) -> None:
        """These runs have just ended, each with the run above it and what it has of a tree."""
        if trees := [run_id for run_id, _, tree in ended if tree]:
            self._do(tx.connection, "delete_waits", trees)
        if kept := [run_id for run_id, parent, tree in ended if tree == KEEPS and parent is not None]:
            self._do(tx.connection, "leave_going", kept)
        self._wake(tx, [parent for _, parent, _ in ended if parent is not None])

    def _rows_ended(self, tx: Tx, rows: Sequence[RunRow]) -> None:
        self._after_ends(tx, [(row.id, row.parent_id, row.tree) for row in rows if row.completed_at is not None])

    def cancel_below(self, tx: Tx, limits: Sequence[int]) -> list[list[RunRow]]:
        return [self._cancel_below(tx, limit) for limit in limits]

    def _cancel_below(self, tx: Tx, limit: int) -> list[RunRow]:
        rows: list[RunRow] = []
        through: Sequence[Any] = [None]
        while through and not rows:
            # Several that have ended with their output may stand above each other.
            through = self._find(tx.connection, "go_through", limit)
            rows = [RunRow(*row) for row in self._find(tx.connection, "cancel_below", tx.now, limit)]
        self._find(tx.connection, "settle_trees")
        self._pass_on(tx, [row.concurrency_key for row in rows])
        if trees := [row.id for row in rows if row.tree]:
            self._do(tx.connection, "delete_waits", trees)
        return rows

    def _doomed(self, tx: Tx, claimed: Sequence[RunRow]) -> set[str]:
        """Of these runs, which have just been claimed, those that are cancelled: a run above them has ended."""
        below = [run.id for run in claimed if run.parent_id is not None]
        doomed = {run_id for (run_id,) in self._ask(tx.connection, "doomed", below)} if below else set()
        if doomed:
            self._doom(tx, sorted(doomed))
        return doomed

    def _doom(self, tx: Tx, run_ids: Sequence[str]) -> None:
        self.cancel(tx, run_ids)
        self._do(tx.connection, "above_ended", run_ids)

    @abstractmethod
    def _next_due(self, connection: Any) -> int | None:
        """When the first delayed run wants to start."""

    # -- reads -------------------------------------------------------------------------------------------------

    def next_due_at(self, connection: Any) -> int | None:
        both = (self._next_due(connection), self._next_wake(connection))
        return min((at for at in both if at is not None), default=None)

    def find_waits(self, connection: Any, run_id: str) -> list[WaitRow]:
        return [WaitRow(*row) for row in self._find(connection, "find_waits", run_id)]


__all__ = ["WOKEN_AT_ONCE", "Below"]
