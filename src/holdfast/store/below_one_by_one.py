"""For authors of stores: the verbs about runs that wait, one row after the other. See `OneByOne`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

from ..model.run import KEEPS, LEAVES, LEFT_GOING, RunRow, RunStatus
from ..model.step import StepRow
from ..model.wait import NewSignal, WaitRow, wait_key
from .base import SIGNALS_UNREAD, Lease, Sent, StepSave, Store, Take, Taken, Tx, WaitSave


class SignalRow(NamedTuple):
    """A signal, as kept."""

    id: str
    run_id: str
    name: str
    value: str
    key: str | None
    created_at: int
    consumed_by: str | None = None


class _Tables(Protocol):
    runs: MutableMapping[str, RunRow]
    waits: MutableMapping[tuple[str, str], WaitRow]
    signals: MutableMapping[str, SignalRow]
    steps: MutableMapping[tuple[str, str, int], StepRow]


class BelowOneByOne(Store):
    """Waits, signals, and trees."""

    @abstractmethod
    def tables(self, connection: Any) -> Any:
        """The tables as this connection sees them."""

    @abstractmethod
    def now(self) -> int:
        """The time by which the store judges."""

    @abstractmethod
    def _held(self, tx: Tx, lease: Lease) -> RunRow | None:
        """The run, if this lease of it still counts."""

    @abstractmethod
    def _put(self, tx: Tx, run: RunRow) -> RunRow:
        """Write a row."""

    @abstractmethod
    def _let_go(self, tx: Tx, run: RunRow, status: str, **changes: Any) -> RunRow:
        """Nobody holds it any more."""

    # -- waits -------------------------------------------------------------------------------------------------

    def save_waits(self, tx: Tx, saves: Sequence[WaitSave]) -> list[WaitRow | None]:
        return [self._save_wait(tx, save) for save in saves]

    def _save_wait(self, tx: Tx, save: WaitSave) -> WaitRow | None:
        wait, waits = save.wait, self.tables(tx.connection).waits
        run = self._held(tx, Lease(wait.run_id, save.generation, save.owner))
        if run is None:
            return None
        until = tx.now + save.delay if wait.until is None and save.delay is not None else wait.until
        standing: WaitRow | None = waits.get((run.id, wait.key))
        if standing is None:
            standing = waits[run.id, wait.key] = wait._replace(until=until, created_at=tx.now)
            self._put(tx, run._replace(tree=max(run.tree, 1)))
            self.trigger(tx, save.children)
        return standing

    def _drop_wait(self, tx: Tx, save: StepSave) -> None:
        if save.ends_wait:
            waits = self.tables(tx.connection).waits
            waits.pop((save.step.run_id, wait_key(save.step.name, save.step.occurrence)), None)

    # -- signals -----------------------------------------------------------------------------------------------

    def send_signals(self, tx: Tx, signals: Sequence[NewSignal]) -> list[Sent]:
        return [self._send(tx, signal) for signal in signals]

    def _send(self, tx: Tx, new: NewSignal) -> Sent:
        tables: _Tables = self.tables(tx.connection)
        run = tables.runs.get(new.run_id)
        of_run = [one for one in tables.signals.values() if one.run_id == new.run_id]
        if new.id in tables.signals:
            return Sent("sent", run and run.status)
        if new.key is not None and any((one.name, one.key) == (new.name, new.key) for one in of_run):
            return Sent("again", run and run.status)
        if run is None:
            return Sent("gone")
        if run.completed_at is not None:
            return Sent("ended", run.status)
        if sum(one.consumed_by is None for one in of_run) >= SIGNALS_UNREAD:
            return Sent("full", run.status)
        tables.signals[new.id] = SignalRow(new.id, new.run_id, new.name, new.value, new.key, tx.now)
        self._wake(tx, [run.id])
        return Sent("sent", run.status)

    def take_signals(self, tx: Tx, takes: Sequence[Take]) -> list[Taken]:
        return [self._take_signal(tx, take) for take in takes]

    def _take_signal(self, tx: Tx, take: Take) -> Taken:
        tables: _Tables = self.tables(tx.connection)
        step, key = take.step, wait_key(take.step.name, take.step.occurrence)
        if self._held(tx, Lease(step.run_id, step.generation, take.owner)) is None:
            return Taken("lost")
        if tx.replay and take.late is not None and (there := tables.steps.get(step[:3])) is not None:
            written = (there.generation, there.status, there.started_at)
            if written == (take.late.generation, take.late.status, take.late.started_at):
                return Taken("late")  # as before, and what has come since is not its
        of_run = [one for one in tables.signals.values() if one.run_id == step.run_id]
        mine = next((one for one in of_run if one.consumed_by == key), None)
        unread = [one for one in of_run if one.name == take.signal and one.consumed_by is None]
        if mine is None and unread:
            mine = min(unread, key=lambda one: (one.created_at, one.id))
            tables.signals[mine.id] = mine._replace(consumed_by=key)
        wait = tables.waits.get((step.run_id, key))
        if mine is not None:
            taken, row = Taken("taken", mine.value), step._replace(output=mine.value)
        elif take.late is not None and wait is not None and wait.until is not None and wait.until <= tx.now:
            taken, row = Taken("late"), take.late
        else:
            return Taken("nothing")
        (saved,) = self.save_steps(tx, [StepSave(take.owner, row, take.moved_on, ends_wait=True)])
        return taken if saved else Taken("lost")

    # -- waking ------------------------------------------------------------------------------------------------

    def _wake(self, tx: Tx, run_ids: Iterable[str]) -> None:
        tables: _Tables = self.tables(tx.connection)
        for run_id in run_ids:
            run = tables.runs.get(run_id)
            if run is not None and run.status == RunStatus.WAITING and self._has_what_it_waits_for(tables, run_id, tx):
                pending = str(RunStatus.PENDING)
                self._put(tx, run._replace(status=pending, waiting_for=None, updated_at=tx.now))

    def _has_what_it_waits_for(self, tables: _Tables, run_id: str, tx: Tx) -> bool:
        for wait in [one for key, one in tables.waits.items() if key[0] == run_id]:
            if wait.until is not None and wait.until <= tx.now:
                return True
            if wait.kind == "signal":
                if any(
                    (one.run_id, one.name, one.consumed_by) == (run_id, wait.signal, None)
                    for one in tables.signals.values()
                ):
                    return True
            elif wait.kind != "timer" and not any(
                (run.parent_id, run.awaited_as, run.completed_at) == (run_id, wait.key, None)
                for run in tables.runs.values()
            ):
                return True
        return False

    def _wake_sleepers(self, tx: Tx) -> int | None:
        """Wake those whose time has come; when the next one wants to be woken."""
        tables: _Tables = self.tables(tx.connection)
        self._wake(tx, [run_id for run_id, until in _sleepers(tables) if until <= tx.now])
        return min((until for _, until in _sleepers(tables)), default=None)

    # -- ends --------------------------------------------------------------------------------------------------

    def _ended(self, tx: Tx, run: RunRow) -> None:
        """This run has just ended."""
        tables: _Tables = self.tables(tx.connection)
        if run.tree:
            for key in [key for key in tables.waits if key[0] == run.id]:
                del tables.waits[key]
        if run.tree == KEEPS and any(
            below.completed_at is None or below.tree == LEFT_GOING
            for below in tables.runs.values()
            if below.parent_id == run.id
        ):
            self._put(tx, run._replace(tree=LEFT_GOING))
        if run.parent_id is not None:
            self._wake(tx, [run.parent_id])

    def cancel_below(self, tx: Tx, limits: Sequence[int]) -> list[list[RunRow]]:
        return [self._cancel_below(tx, limit) for limit in limits]

    def _cancel_below(self, tx: Tx, limit: int) -> list[RunRow]:
        tables: _Tables = self.tables(tx.connection)
        left = {run.id for run in tables.runs.values() if run.tree == LEAVES}
        through = set(left)
        while through:
            # Also below those that have ended with their output.
            rows = [run for run in tables.runs.values() if run.parent_id in through and run.tree == LEFT_GOING]
            through = {self._put(tx, run._replace(tree=LEAVES)).id for run in rows}
            left |= through
        found = [run for run in tables.runs.values() if run.parent_id in left and run.completed_at is None]
        rows = [
            self._let_go(
                tx, run, str(RunStatus.CANCELLED), error="The run above it ended first", error_type="ParentEnded",
                generation=run.generation + 1, waiting_for=None,
            )
            for run in found[:limit]
        ]  # fmt: skip
        below = {run.parent_id for run in tables.runs.values() if run.completed_at is None}
        for run_id in left - below:
            self._put(tx, tables.runs[run_id]._replace(tree=1))
        return rows

    def _is_doomed(self, tables: _Tables, run: RunRow) -> bool:
        """Whether a run above this one has ended without its output."""
        while run.parent_id is not None and run.parent_id in tables.runs:
            run = tables.runs[run.parent_id]
            if run.tree == LEAVES:
                return True
        return False

    def _cancel_doomed(self, tx: Tx, run: RunRow) -> None:
        self.cancel(tx, [run.id])
        ended = self.tables(tx.connection).runs[run.id]
        self._put(tx, ended._replace(error="The run above it ended first", error_type="ParentEnded"))

    # -- reads -------------------------------------------------------------------------------------------------

    def next_due_at(self, connection: Any) -> int | None:
        tables, now = self.tables(connection), self.now()
        later = [run.run_at for run in tables.runs.values() if run.status == RunStatus.PENDING and run.run_at > now]
        return min([*later, *(until for _, until in _sleepers(tables))], default=None)

    def find_waits(self, connection: Any, run_id: str) -> list[WaitRow]:
        waits: Mapping[tuple[str, str], WaitRow] = self.tables(connection).waits
        rows = [wait for key, wait in waits.items() if key[0] == run_id]
        return sorted(rows, key=lambda wait: (wait.created_at, wait.key))


def _sleepers(tables: _Tables) -> list[tuple[str, int]]:
    return [
        (wait.run_id, wait.until)
        for wait in tables.waits.values()
        if wait.until is not None and tables.runs[wait.run_id].status == RunStatus.WAITING
    ]


__all__ = ["BelowOneByOne", "SignalRow"]
