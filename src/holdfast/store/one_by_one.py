"""For authors of stores: every verb of `Store` over a few mappings, one row after the other.

`OneByOne` asks for little: mappings of rows, and transactions over them. What the verbs mean is written here once
more, in plain Python and by the table of the lifecycle, so that a store over anything that can keep rows by a key (a
dictionary, a key-value server, a file) is made in a hundred lines and passes the suite. It reads all rows for many of
its answers: fine for thousands of runs, not for millions; SQL stores say every verb as one statement instead.

`serialised` (beside this file) lets one transaction begin after the other, for what can't do two at once.

Long because every verb is here, each in a few lines.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from ..model.run import KEEPS, LEAVES, NewRun, RunFilter, RunRow, RunStatus
from ..model.step import EMITTED, AttemptRow, LogRow, StepKey, StepRow, Tries
from ..model.wait import WaitRow
from ..model.worker import CheckIn, HeldRow, WorkerRow
from ..rules.lifecycle import TABLE, Cause, after_expiry
from .base import (
    LEASES_REMEMBERED,
    STEP_PAGE,
    AttemptSave,
    Cancelled,
    Claimed,
    ClaimOrder,
    Deleted,
    Ended,
    Ending,
    Lease,
    LogSave,
    Old,
    ProgressSave,
    Recall,
    Renewal,
    StepSave,
    Sweep,
    Triggered,
    Tx,
    conflict_in,
    the_first_counts,
)
from .below_one_by_one import BelowOneByOne, SignalRow


@dataclass(slots=True)
class Tables:
    """The rows of a database, each table a mapping. All keys and rows are plain tuples, texts and numbers."""

    runs: MutableMapping[str, RunRow] = field(default_factory=dict)
    steps: MutableMapping[tuple[str, str, int], StepRow] = field(default_factory=dict)
    attempts: MutableMapping[tuple[str, str, int, int, int], AttemptRow] = field(default_factory=dict)
    logs: MutableMapping[int, LogRow] = field(default_factory=dict)
    progress: MutableMapping[str, str] = field(default_factory=dict)
    holders: MutableMapping[str, str] = field(default_factory=dict)
    """By concurrency key the run that holds it, from its first claim to its end or suspension."""
    dropped: MutableMapping[str, bool] = field(default_factory=dict)
    """Runs whose step outputs are gone."""
    workers: MutableMapping[str, WorkerRow] = field(default_factory=dict)
    waits: MutableMapping[tuple[str, str], WaitRow] = field(default_factory=dict)
    signals: MutableMapping[str, SignalRow] = field(default_factory=dict)

    def copy(self) -> Tables:
        """The same rows, to be changed apart."""
        return Tables(*(dict(getattr(self, name)) for name in self.__dataclass_fields__))


class OneByOne(BelowOneByOne):
    """A store by its rows. A subclass says how to connect and to commit, and where the tables are."""

    @abstractmethod
    def tables(self, connection: Any) -> Tables:
        """The tables as this connection sees them; in a transaction, with what it has written."""

    @abstractmethod
    def now(self) -> int:
        """The time by which the store judges, in microseconds."""

    # -- writes: fenced ----------------------------------------------------------------------------------------

    def _held(self, tx: Tx, lease: Lease) -> RunRow | None:
        """The run, if this lease of it still counts."""
        run = self.tables(tx.connection).runs.get(lease.run_id)
        return run if run and (run.generation, run.lease_owner) == (lease.generation, lease.owner) else None

    def renew_leases(self, tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        return [self._renew(tx, *renewal) for renewal in renewals]

    def _renew(self, tx: Tx, lease: Lease, duration: int) -> bool:
        if (run := self._held(tx, lease)) is not None:
            self._put(tx, run._replace(lease_expires_at=tx.now + duration))
        return run is not None

    def save_logs(self, tx: Tx, lines: Sequence[LogSave]) -> list[None]:
        logs = self.tables(tx.connection).logs
        # What may have been committed before is left out if it stands.
        there = {row._replace(id=0) for row in logs.values()} if tx.replay or any(one.again for one in lines) else set()
        ids = itertools.count(max(logs, default=0) + 1)
        for owner, line, again in lines:
            stands = (tx.replay or again) and line._replace(id=0) in there
            if self._held(tx, Lease(line.run_id, line.generation, owner)) and not stands:
                number = next(ids)
                logs[number] = line._replace(id=number)
        return [None] * len(lines)

    def save_progress(self, tx: Tx, rows: Sequence[ProgressSave]) -> list[None]:
        for owner, row in rows:
            if self._held(tx, Lease(row.run_id, row.generation, owner)):
                self.tables(tx.connection).progress[row.run_id] = row.progress
        return [None] * len(rows)

    def save_attempts(self, tx: Tx, saves: Sequence[AttemptSave]) -> list[bool]:
        ended = {save.attempt[:5] for save in saves if save.attempt.ended_at is not None}
        return [self._save_attempt(tx, save, save.attempt[:5] in ended) for save in saves]

    def _save_attempt(self, tx: Tx, save: AttemptSave, ends: bool) -> bool:
        row, attempts = save.attempt, self.tables(tx.connection).attempts
        if not self._held(tx, Lease(row.run_id, row.generation, save.owner)):
            return False
        there = attempts.get(row[:5])
        if row.ended_at is None and there is not None and there.ended_at is not None:
            return ends
        attempts[row[:5]] = row
        return True

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        return [self._save_step(tx, save) for save in saves]

    def _save_step(self, tx: Tx, save: StepSave) -> bool:
        row, steps = save.step, self.tables(tx.connection).steps
        run = self._held(tx, Lease(row.run_id, row.generation, save.owner))
        if run is None:
            return False
        there = steps.get(row[:3])
        if there is None or (there.status == "failed" and there.attempt < row.attempt):
            steps[row[:3]] = row
        elif (there.generation, there.status, there.started_at) != (row.generation, row.status, row.started_at):
            return False
        if save.moved_on:
            self._put(tx, run._replace(crashes=0))
        self._drop_wait(tx, save)
        return True

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        return [self._finish(tx, ending) for ending in endings]

    def _finish(self, tx: Tx, ending: Ending) -> Ended:
        wanted = str(ending.transition.target)
        if (run := self._held(tx, ending.lease)) is not None:
            later = {"run_at": tx.now + ending.delay} if ending.delay > 0 else {}
            attempt, error, error_type = run.attempt + ending.transition.attempt, ending.error, ending.error_type
            if not ending.transition.ends and error is None:
                error, error_type = run.error, run.error_type  # that of the last attempt stays
            self._let_go(
                tx, run, wanted, output=ending.output, error=error, error_type=error_type, attempt=attempt,
                waiting_for=ending.waiting_for, used=ending.used, holds=ending.holds, **later,
            )  # fmt: skip
            # What it waits for may have come before it did.
            self._wake(tx, [run.id])
            now = self.tables(tx.connection).runs[run.id]
            return Ended(True, tx.now, now.status, now.tree == LEAVES)
        run = self.tables(tx.connection).runs.get(ending.lease.run_id)
        # Nobody but the holder leaves the generation as it was.
        reached = (wanted, "pending") if wanted == "waiting" else (wanted,)
        before = run is not None and run.generation == ending.lease.generation and run.status in reached
        return Ended(before, tx.now, run.status if run else None, before and ending.transition.ends)

    def _let_go(self, tx: Tx, run: RunRow, status: str, *, holds: bool = False, **changes: Any) -> RunRow:
        ends = RunStatus(status).is_terminal
        keeps = status == RunStatus.PENDING or (status == RunStatus.WAITING and holds)
        if not keeps and run.concurrency_key is not None:
            holders = self.tables(tx.connection).holders
            if holders.get(run.concurrency_key) == run.id:
                del holders[run.concurrency_key]
        if ends and run.tree:
            changes["tree"] = KEEPS if status == RunStatus.COMPLETED else LEAVES
        row = self._put(
            tx, run._replace(
                status=status, lease_owner=None, lease_expires_at=None, updated_at=tx.now,
                completed_at=tx.now if ends else None, **changes,
            ),
        )  # fmt: skip
        if ends:
            self._ended(tx, row)
        return row

    def _put(self, tx: Tx, run: RunRow) -> RunRow:
        self.tables(tx.connection).runs[run.id] = run
        return run

    # -- writes: guarded ---------------------------------------------------------------------------------------

    def cancel(self, tx: Tx, run_ids: Sequence[str]) -> list[Cancelled]:
        runs = self.tables(tx.connection).runs
        before = {run_id: runs[run_id].status for run_id in run_ids if run_id in runs}
        for run_id, status in before.items():
            if RunStatus(status).is_active and runs[run_id].status == status:
                generation = runs[run_id].generation + 1
                self._let_go(tx, runs[run_id], "cancelled", generation=generation, waiting_for=None)
        rows = {row.id: row for row in self.find_runs(tx.connection, RunFilter(ids=tuple(before)))}
        answers = []
        for run_id in run_ids:
            was = before.get(run_id)
            accepted = was in RunStatus.active() or (tx.replay and was == RunStatus.CANCELLED)
            answers.append(Cancelled(rows.get(run_id), was, accepted))
        return the_first_counts(answers)

    def delete(self, tx: Tx, run_ids: Sequence[str]) -> list[Deleted]:
        found = {run_id: self._forgettable(tx, run_id) for run_id in run_ids}
        tables = self.tables(tx.connection)
        for gone in self._families(tx, found):
            for step in [key for key in tables.steps if key[0] == gone]:
                del tables.steps[step]
            for attempt in [key for key in tables.attempts if key[0] == gone]:
                del tables.attempts[attempt]
            for number in [number for number, line in tables.logs.items() if line.run_id == gone]:
                del tables.logs[number]
            for wait in [key for key in tables.waits if key[0] == gone]:
                del tables.waits[wait]
            for signal in [key for key, row in tables.signals.items() if row.run_id == gone]:
                del tables.signals[signal]
            tables.progress.pop(gone, None)
            tables.dropped.pop(gone, None)
            tables.runs.pop(gone, None)
        return [found[run_id] for run_id in run_ids]

    def drop_outputs(self, tx: Tx, run_ids: Sequence[str]) -> list[bool]:
        found = {run_id: self._forgettable(tx, run_id) for run_id in run_ids}
        tables = self.tables(tx.connection)
        found = {run_id: deleted for run_id, deleted in found.items() if run_id in tables.runs}
        for run_id in self._families(tx, found):
            tables.dropped[run_id] = True
            for key in [key for key in tables.steps if key[0] == run_id]:
                tables.steps[key] = tables.steps[key]._replace(output=None)
        return [run_id in found and found[run_id].accepted for run_id in run_ids]

    def _forgettable(self, tx: Tx, run_id: str) -> Deleted:
        runs = self.tables(tx.connection).runs
        if (run := runs.get(run_id)) is None:
            return Deleted(tx.replay)
        standing = None
        if run.completed_at is None:
            standing = run.status
        elif run.parent_id is not None:
            standing = "child"
        elif any(row.root_id == run_id and row.completed_at is None for row in runs.values()):
            standing = "parent"
        return Deleted(standing is None, standing, run.job_name, run.labels, run.generation)

    def _families(self, tx: Tx, found: dict[str, Deleted]) -> list[str]:
        roots = {run_id for run_id, deleted in found.items() if deleted.accepted}
        below = [row.id for row in self.tables(tx.connection).runs.values() if row.root_id in roots]
        return [*roots, *below]

    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        return [self._trigger(tx, run) for run in runs]

    def find_standing(self, connection: Any, runs: Sequence[NewRun]) -> list[Triggered | None]:
        return [self._standing(connection, run) for run in runs]

    def _standing(self, connection: Any, new: NewRun) -> Triggered | None:
        runs = self.tables(connection).runs
        if (mine := runs.get(new.id)) is not None:
            return Triggered(mine, "created")
        of_job = [run for run in runs.values() if run.job_name == new.job_name]
        for run in of_job:
            if new.idempotency_key is not None and (run.tenant, run.idempotency_key) == (
                new.tenant,
                new.idempotency_key,
            ):
                return Triggered(run, "idempotent")
        of_key = [
            run for run in of_job if new.concurrency_key is not None and run.concurrency_key == new.concurrency_key
        ]
        in_line = [run for run in of_key if run.status == RunStatus.PENDING and run.generation == 0]
        first = next((run for run in in_line if run.parent_id is None and new.parent_id is None), None)
        if first is not None:
            return Triggered(first, "coalesced" if new.coalesce else "conflict")
        active = [run for run in of_key if run.completed_at is None]
        if active and new.coalesce == "active":
            return Triggered(max(active, key=lambda run: run.id), "coalesced")
        return None

    def _trigger(self, tx: Tx, new: NewRun) -> Triggered:
        if (standing := self._standing(tx.connection, new)) is not None:
            return standing
        run_at = tx.now + new.delay if new.run_at is None else new.run_at
        fresh: dict[str, Any] = dict.fromkeys(RunRow._fields) | {
            **{name: getattr(new, name) for name in RunRow._fields if name in NewRun._fields},
            "deadline_at": None if new.deadline is None else tx.now + new.deadline,
            "status": str(RunStatus.PENDING), "run_at": run_at, "created_at": tx.now, "updated_at": tx.now,
            "generation": 0, "attempt": 0, "crashes": 0, "tree": 0, "used": 0,
            "completed_step_count": 0, "current_step_index": 0,
        }  # fmt: skip
        return Triggered(self._put(tx, RunRow(**fresh)), "created")

    def trigger_many(self, tx: Tx, batches: Sequence[Sequence[NewRun]]) -> list[list[Triggered]]:
        return [self._trigger_batch(tx, batch) for batch in batches]

    def _trigger_batch(self, tx: Tx, batch: Sequence[NewRun]) -> list[Triggered]:
        made: list[Triggered] = []
        for new in batch:
            made.append(self._trigger(tx, new))
            if conflict_in(made) is not None:
                written = {run.id for run in batch}
                for run_id in [one.run.id for one in made if one.disposition == "created" and one.run.id in written]:
                    del self.tables(tx.connection).runs[run_id]
                break
        return made

    def expire(self, tx: Tx, sweeps: Sequence[Sweep]) -> list[list[RunRow]]:
        return [self._expire(tx, sweep) for sweep in sweeps]

    def _expire(self, tx: Tx, sweep: Sweep) -> list[RunRow]:
        if tx.waited > sweep.patience:
            return []
        over = [
            run
            for run in self.tables(tx.connection).runs.values()
            if run.status == RunStatus.LEASED and (run.lease_expires_at or 0) <= tx.now
        ]
        over.sort(key=lambda run: run.lease_expires_at or 0)
        rows = []
        for run in over[: sweep.limit]:
            transition, crashes = after_expiry(run.crashes, sweep.max_crashes), run.crashes + 1
            text = f"The worker died {crashes} times in a row while executing this run, without progress"
            error, kind = (text, "WorkerCrashed") if transition.ends else (run.error, run.error_type)
            rows.append(
                self._let_go(
                    tx, run, str(transition.target),
                    error=error, error_type=kind, generation=run.generation + 1, crashes=crashes,
                )
            )  # fmt: skip
        return rows

    def pass_deadlines(self, tx: Tx, limits: Sequence[int]) -> list[list[RunRow]]:
        return [self._pass_deadlines(tx, limit) for limit in limits]

    def _pass_deadlines(self, tx: Tx, limit: int) -> list[RunRow]:
        runs = self.tables(tx.connection).runs.values()
        late = [run for run in runs if run.completed_at is None and run.deadline_at and run.deadline_at <= tx.now]
        late.sort(key=lambda run: run.deadline_at or 0)
        status, text = str(TABLE[Cause.PASS_DEADLINE].target), "The run did not end before its deadline"
        return [
            self._let_go(
                tx, run, status, error=text, error_type="TimedOut", generation=run.generation + 1, waiting_for=None
            )
            for run in late[:limit]
        ]

    def recall(self, tx: Tx, recalls: Sequence[Recall]) -> list[int]:
        return [self._recall(tx, recall.owner, recall.keep) for recall in recalls]

    def _recall(self, tx: Tx, owner: str, keep: Iterable[str]) -> int:
        runs = self.tables(tx.connection).runs
        found = [run for run in runs.values() if run.lease_owner == owner and run.id not in keep]
        for run in found:
            self._let_go(tx, run, str(TABLE[Cause.RECALL].target), generation=run.generation + 1)
        return len(found)

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        return [self._claim(tx, order) for order in orders]

    def _claim(self, tx: Tx, order: ClaimOrder) -> Claimed:
        if tx.replay and order.known is not None:
            self._recall(tx, order.owner, order.known)
        tables = self.tables(tx.connection)
        wake = self._wake_sleepers(tx)
        got: list[RunRow] = []
        while len(got) < order.limit and (run := next(self._claimable(tables, order, tx.now), None)) is not None:
            if self._is_doomed(tables, run):
                self._cancel_doomed(tx, run)
                continue
            if run.concurrency_key is not None:
                tables.holders[run.concurrency_key] = run.id
            leased = run._replace(
                status=str(RunStatus.LEASED), lease_owner=order.owner, lease_expires_at=tx.now + order.lease,
                generation=run.generation + 1, updated_at=tx.now,
                started_at=tx.now if run.started_at is None else run.started_at,
            )  # fmt: skip
            got.append(self._put(tx, leased))
        steps = {run.id: self.find_steps(tx.connection, run.id) for run in got if run.generation > 1}
        pages = {
            run_id: [row for row in all if row.position < STEP_PAGE or row.position == all[-1].position]
            for run_id, all in steps.items()
            if all
        }
        later = [run.run_at for run in tables.runs.values() if run.status == RunStatus.PENDING and run.run_at > tx.now]
        return Claimed(got, pages, min([*later, *([] if wake is None else [wake])], default=None))

    def _claimable(self, tables: Tables, order: ClaimOrder, now: int) -> Iterator[RunRow]:
        """What this order may get, the first in claim order first."""
        leased = [run.job_name for run in tables.runs.values() if run.status == RunStatus.LEASED]
        full = {job for job, limit in order.limits if leased.count(job) >= limit}
        due = [
            run
            for run in tables.runs.values()
            if run.status == RunStatus.PENDING
            and run.run_at <= now
            and run.job_name in order.jobs
            and run.job_name not in full
            and run.queue in order.queues
            and (run.concurrency_key is None or tables.holders.get(run.concurrency_key, run.id) == run.id)
        ]
        return iter(sorted(due, key=lambda run: (-run.priority, run.run_at, run.id)))

    # -- writes: who is there ----------------------------------------------------------------------------------

    def check_in(self, tx: Tx, workers: Sequence[CheckIn]) -> list[None]:
        there = self.tables(tx.connection).workers
        for new in workers:
            started_at = there[new.id].started_at if new.id in there else tx.now
            there[new.id] = WorkerRow(**new._asdict(), started_at=started_at, seen_at=tx.now)
        return [None] * len(workers)

    def check_out(self, tx: Tx, workers: Sequence[str]) -> list[None]:
        for worker_id in workers:
            self.tables(tx.connection).workers.pop(worker_id, None)
        return [None] * len(workers)

    def forget_workers(self, tx: Tx, limits: Sequence[int]) -> list[int]:
        return [self._forget_workers(tx, limit) for limit in limits]

    def _forget_workers(self, tx: Tx, limit: int) -> int:
        there = self.tables(tx.connection).workers
        gone = [row.id for row in there.values() if row.seen_at + LEASES_REMEMBERED * row.lease <= tx.now][:limit]
        for worker_id in gone:
            del there[worker_id]
        return len(gone)

    # -- reads -------------------------------------------------------------------------------------------------

    def find_runs(self, connection: Any, filter: RunFilter) -> list[RunRow]:
        tables = self.tables(connection)
        found = sorted(
            (
                run
                for run in tables.runs.values()
                if (not filter.ids or run.id in filter.ids)
                and (not filter.jobs or run.job_name in filter.jobs)
                and (not filter.statuses or run.status in filter.statuses)
                and (not filter.labels or set(filter.labels) <= set(run.label_map.items()))
                and (filter.parent is None or run.parent_id == filter.parent)
                and (filter.awaited_as is None or run.awaited_as == filter.awaited_as)
                and (filter.root is None or run.root_id == filter.root)
                and (filter.before is None or run.id < filter.before)
            ),
            key=lambda run: run.id,
            reverse=True,
        )
        end = None if filter.limit is None else filter.offset + filter.limit
        return [self._read(tables, run) for run in found[filter.offset : end]]

    def _read(self, tables: Tables, run: RunRow) -> RunRow:
        steps = [step for key, step in tables.steps.items() if key[0] == run.id]
        return run._replace(
            progress=tables.progress.get(run.id),
            completed_step_count=sum(step.status == "completed" for step in steps),
            current_step_index=max((step.position + 1 for step in steps), default=0),
        )

    def find_steps(self, connection: Any, run_id: str, *, first: int = 0, until: int | None = None) -> list[StepRow]:
        rows = [row for key, row in self.tables(connection).steps.items() if key[0] == run_id]
        found = [row for row in rows if row.position >= first and (until is None or row.position < until)]
        return sorted(found, key=lambda row: (row.position, row.started_at, row.name, row.occurrence))

    def find_attempts(self, connection: Any, run_id: str) -> list[AttemptRow]:
        tables = self.tables(connection)
        run = tables.runs.get(run_id)
        held = run.generation if run is not None and run.status == RunStatus.LEASED else None
        rows = [row._replace(live=row.generation == held) for key, row in tables.attempts.items() if key[0] == run_id]
        return sorted(rows, key=lambda row: (row.position, row.name, row.occurrence, row.run_attempt, row.number))

    def failed_tries(self, connection: Any, run_id: str, run_attempt: int) -> dict[StepKey, Tries]:
        steps, tries = self.tables(connection).steps, dict[StepKey, Tries]()
        for row in self.find_attempts(connection, run_id):
            step = steps.get(row[:3])
            saved = step is not None and (step.status == "completed" or step.attempt == run_attempt)
            if row.run_attempt == run_attempt and row.error is not None and not saved:
                failed, last_at = tries.get(StepKey(row.name, row.occurrence), (0, 0))
                tries[StepKey(row.name, row.occurrence)] = Tries(failed + 1, max(last_at, row.ended_at or 0))
        return tries

    def find_logs(self, connection: Any, run_id: str, *, after: int = 0, limit: int | None = None) -> list[LogRow]:
        lines = self.tables(connection).logs.items()
        rows = [row for id, row in lines if row.run_id == run_id and id > after and row.level != EMITTED]
        return sorted(rows, key=lambda row: row.id)[:limit]

    def has_claimable(self, connection: Any, order: ClaimOrder) -> bool:
        tables, now = self.tables(connection), self.now()
        return next(self._claimable(tables, order, now), None) is not None or any(
            wait.until is not None and wait.until <= now and tables.runs[wait.run_id].status == RunStatus.WAITING
            for wait in tables.waits.values()
        )

    def lost_leases(self, connection: Any, leases: Sequence[Lease]) -> dict[Lease, str]:
        runs = self.tables(connection).runs
        tx = Tx(connection, 0)
        return {
            lease: runs[lease.run_id].status if lease.run_id in runs else "gone"
            for lease in leases
            if self._held(tx, lease) is None
        }

    def ended(self, connection: Any, run_ids: Sequence[str]) -> dict[str, str]:
        runs = self.tables(connection).runs
        found = {run_id: runs.get(run_id) for run_id in run_ids}
        return {
            run_id: "gone" if run is None else run.status
            for run_id, run in found.items()
            if run is None or run.completed_at is not None
        }

    def find_workers(self, connection: Any) -> list[WorkerRow]:
        tables, now = self.tables(connection), self.now()
        leased = sorted((run for run in tables.runs.values() if run.lease_owner), key=lambda r: (r.updated_at, r.id))
        return [
            row._replace(
                alive=row.seen_at + row.lease > now,
                held=tuple(HeldRow(r.id, r.job_name, r.updated_at) for r in leased if r.lease_owner == row.id),
            )
            for row in sorted(tables.workers.values(), key=lambda row: (row.started_at, row.id))
        ]

    def find_old(self, connection: Any, old: Old) -> list[str]:
        tables = self.tables(connection)
        young = {run.root_id for run in tables.runs.values() if not _ended_before(run, old.before)}
        found = [
            run
            for run in tables.runs.values()
            if _ended_before(run, old.before)
            and run.parent_id is None
            and run.id not in young
            and (not old.jobs or run.job_name in old.jobs)
            and (not old.statuses or run.status in old.statuses)
            and set(old.labels) <= set(dict(from_json(run.labels)).items())
            and not (old.outputs and run.id in tables.dropped)
        ]
        found.sort(key=lambda run: run.completed_at or 0)
        ids: list[str] = []
        total = 0
        for run in found[: old.limit]:
            total += sum(key[0] == run.id for table in (tables.steps, tables.attempts) for key in table)
            total += sum(line.run_id == run.id for line in tables.logs.values())
            if ids and total > old.weight:
                break
            ids.append(run.id)
        return ids


def _ended_before(run: RunRow, before: int) -> bool:
    return run.completed_at is not None and run.completed_at < before
