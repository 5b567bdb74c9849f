"""What relational databases share: every verb as one statement per round, and what its answers mean.

A dialect brings the statements, under the names that are used here, and three ways of saying one. The rows of a round
go along as one value (JSON, arrays): a statement gives Python's global lock away once, a loop over rows once per row,
and with a busy event loop beside it each of those may cost a switch interval.

Several rows of one call may be about the same run: a zombie's and its successor's, or one twice. So answers are told
apart by the whole lease, and of two words of one holder the first counts.

Long because every verb is here, and few of them are more than their statement and its answers.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any, Literal

from ..model.run import LEAVES, Disposition, NewRun, RunFilter, RunRow
from ..model.step import AttemptRow, LogRow, StepKey, StepRow, Tries
from ..model.worker import CheckIn, HeldRow, WorkerRow
from .base import (
    LEASES_REMEMBERED,
    MORE,
    STEP_PAGE,
    AttemptSave,
    Cancelled,
    Claimed,
    ClaimOrder,
    Deleted,
    Ended,
    Ending,
    Followed,
    Lease,
    LogSave,
    Old,
    Passing,
    PlayAgain,
    ProgressSave,
    Recall,
    Renewal,
    StepMark,
    StepSave,
    Sweep,
    Triggered,
    Tx,
    conflict_in,
    the_first_counts,
)
from .below import Below

#: The columns of a run that are stored in its row, in the order of `RunRow`.
STORED = RunRow._fields[:-3]
COLUMNS = ", ".join(f"r.{name}" for name in STORED)
BARE_COLUMNS = ", ".join(STORED)

#: Statuses that are no end.
_GO_ON = frozenset({"pending", "leased", "waiting"})

#: In the order of `find_triggered`: the run itself, who has its idempotency key.
_DISPOSITIONS: tuple[Literal["created", "idempotent"], ...] = ("created", "idempotent")

#: Delayed runs that one claim may make due.
PROMOTED_AT_ONCE = 10_000

#: Runs below others, and steps, tries and lines of theirs, that one round deletes: others want to write, too.
DELETED_AT_ONCE = 500
_DELETED_WEIGHT = 5_000

#: Bounds of one statement of a batch.
BATCH_ROWS = 10_000
BATCH_BYTES = 8 << 20

#: The tables that hold something of a run; the run itself is last.
_PARTS = ("labels", "progress", "steps", "step_attempts", "logs", "waits", "signals", "runs")


class Relational(Below):
    """The verbs. A dialect says how to say a statement, how runs are listed, and what is old."""

    _driver_error: type[Exception]
    """What the driver raises."""

    # -- writes: fenced ----------------------------------------------------------------------------------------

    def renew_leases(self, tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        last = {renewal.lease: (*renewal.lease, renewal.duration) for renewal in renewals}
        held = set(self._ask(tx.connection, "renew_leases", [*last.values()], tx.instant))
        return [renewal.lease in held for renewal in renewals]

    def save_logs(self, tx: Tx, lines: Sequence[LogSave]) -> list[None]:
        rows = [
            (
                line.run_id,
                line.generation,
                owner,
                line.step_name,
                line.level,
                line.message,
                line.data,
                line.created_at,
                tx.replay or again,
            )
            for owner, line, again in lines
        ]
        self._do(tx.connection, "save_logs", rows)
        return [None] * len(lines)

    def save_progress(self, tx: Tx, rows: Sequence[ProgressSave]) -> list[None]:
        last = {(row.run_id, row.generation, owner): row.progress for owner, row in rows}
        asked = [(*lease, progress) for lease, progress in last.items()]
        self._do(tx.connection, "save_progress", asked, tx.instant)
        return [None] * len(rows)

    def save_attempts(self, tx: Tx, saves: Sequence[AttemptSave]) -> list[bool]:
        last: dict[tuple[Any, ...], AttemptSave] = {}
        for save in saves:
            known = last.get(_trying(save))
            if known is None or known.attempt.ended_at is None:
                last[_trying(save)] = save
        rows = [(save.owner, *save.attempt[:-1]) for save in last.values()]
        saved = set(self._ask(tx.connection, "save_attempts", rows))
        return [_trying(save)[1:] in saved for save in saves]

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        rows, answers_to = writings(saves)
        answers = answers_to(self._ask(tx.connection, "save_steps", rows))
        if not all(answers):
            refused = [(save.owner, *save.step, i) for i, save in enumerate(saves) if not answers[i]]
            for (index,) in self._ask(tx.connection, "saved_steps", refused):
                answers[index] = True
        moved_on = [save.step.run_id for save, kept in zip(saves, answers, strict=True) if save.moved_on and kept]
        if moved_on:
            self._do(tx.connection, "move_on", moved_on)
        self._drop_waits(tx, [save for save, kept in zip(saves, answers, strict=True) if kept])
        return answers

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        first: dict[Lease, Ending] = {}
        for e in endings:
            first.setdefault(e.lease, e)
        rows = [finishable(e) for e in first.values()]
        written = self._let_go(tx, rows)
        ended = {row[:2]: row[5] for row in written}
        self._pass_on(tx, [row[2] for row in written])
        self._after_ends(tx, [(row[0], row[4], row[5]) for row in written if row[3] not in _GO_ON])
        # What they wait for may have come before they did.
        woken = {row[0] for row in self._wake(tx, [row[0] for row in written if row[3] == "waiting"])}
        counted = [first[e.lease] is e and e.lease[:2] in ended for e in endings]
        states: dict[str, tuple[int, str, str | None]] = {}
        if not all(counted):
            refused = [e.lease.run_id for e, done in zip(endings, counted, strict=True) if not done]
            found = self._ask(tx.connection, "states", refused)
            states = {run_id: (generation, status, owner) for run_id, generation, status, owner in found}
        answers = []
        for e, done in zip(endings, counted, strict=True):
            wanted = str(e.transition.target)
            if done:
                status = "pending" if e.lease.run_id in woken else wanted
                answers.append(Ended(True, tx.now, status, ended[e.lease[:2]] == LEAVES))
            else:
                # Nobody but the holder leaves the generation as it was: the ending was written before, and its
                # answer lost.
                state = states.get(e.lease.run_id)
                before = state is not None and state[0] == e.lease.generation and state[1] in _reached(wanted)
                answers.append(Ended(before, tx.now, state and state[1], before and e.transition.ends))
        return answers

    def _let_go(self, tx: Tx, rows: Sequence[Any]) -> list[Any]:
        """Write these endings; of those that counted what they were and are."""
        return self._ask(tx.connection, "finish", rows, tx.instant)

    # -- writes: guarded ---------------------------------------------------------------------------------------

    def cancel(self, tx: Tx, run_ids: Sequence[str]) -> list[Cancelled]:
        if not run_ids:
            return []
        ids = list(dict.fromkeys(run_ids))
        before = {row[0]: row[2] for row in self._ask(tx.connection, "states", ids)}
        written = self._ask(tx.connection, "cancel", ids, tx.now)
        cancelled = {row[0] for row in written}
        self._pass_on(tx, [row[1] for row in written])
        self._after_ends(tx, [(row[0], row[2], row[3]) for row in written])
        rows = {row.id: row for row in self.find_runs(tx.connection, RunFilter(ids=tuple(ids)))}
        if tx.replay:
            cancelled.update(run_id for run_id in ids if before.get(run_id) == "cancelled")
        return the_first_counts(Cancelled(rows.get(i), before.get(i), i in cancelled) for i in run_ids)

    def delete(self, tx: Tx, run_ids: Sequence[str]) -> list[Deleted]:
        found = self._forgettable(tx, run_ids)
        roots = [run_id for run_id, deleted in found.items() if deleted.accepted]
        below, all_of_it = self._some_below(tx, roots)
        if leave := [*below, *(roots if all_of_it else ())]:
            for part in _PARTS:
                self._do(tx.connection, f"delete_{part}", leave)
        if not all_of_it:
            found |= {run_id: found[run_id]._replace(accepted=False, standing=MORE) for run_id in roots}
        missing = Deleted(tx.replay)
        return [found.get(run_id, missing) for run_id in run_ids]

    def drop_outputs(self, tx: Tx, run_ids: Sequence[str]) -> list[bool]:
        found = self._forgettable(tx, run_ids)
        if family := self._family(tx, found):
            self._do(tx.connection, "drop_outputs", family)
            self._do(tx.connection, "outputs_dropped", family)
        return [run_id in found and found[run_id].accepted for run_id in run_ids]

    def _forgettable(self, tx: Tx, run_ids: Sequence[str]) -> dict[str, Deleted]:
        found = self._ask(tx.connection, "forgettable", list(dict.fromkeys(run_ids)))
        return {run_id: Deleted(standing is None, standing, *told) for run_id, standing, *told in found}

    def _some_below(self, tx: Tx, roots: Sequence[str]) -> tuple[list[str], bool]:
        """What is below these runs, as much of it as one round deletes; and whether that is all."""
        ids: list[str] = []
        weight = 0
        found = self._ask(tx.connection, "members", roots, DELETED_AT_ONCE + 1) if roots else []
        for run_id, much in found:
            weight += much
            if len(ids) == DELETED_AT_ONCE or (ids and weight > _DELETED_WEIGHT):
                return ids, False
            ids.append(run_id)
        return ids, True

    def _family(self, tx: Tx, found: dict[str, Deleted]) -> list[str]:
        roots = [run_id for run_id, deleted in found.items() if deleted.accepted]
        return [run_id for (run_id,) in self._ask(tx.connection, "family", roots)] if roots else []

    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        rows = self._rows(tx, runs)
        new = rows
        if any(run.coalesce == "active" for run in runs):
            there = {row[0] for row in self._ask(tx.connection, "find_active", rows)}
            new = [row for index, row in enumerate(rows) if index not in there]
        created = {row[0] for row in self._insert(tx, new)}
        now = tx.now
        self._pass_on(tx, [run.concurrency_key for run in runs if run.concurrency_key and run.id in created])
        labelled = [run for run in runs if run.labels != "{}" and run.id in created]
        if labelled:
            self._label(tx, labelled)
        standing: dict[int, Triggered] = {}
        if len(created) < len(runs):
            places = {run.id: index for index, run in enumerate(runs) if run.id in created}
            standing = self._standing(tx.connection, runs, rows, places)
        answers = []
        for index, run in enumerate(runs):
            if run.id in created:
                answers.append(Triggered(fresh(run, now), "created"))
            elif index in standing:
                answers.append(standing[index])
            else:
                raise PlayAgain("the run that stood in the way of another one is gone by now")
        return answers

    def _standing(
        self, connection: Any, runs: Sequence[NewRun], rows: Sequence[Any], places: Mapping[str, int]
    ) -> dict[int, Triggered]:
        """What stands in the way of these, by index. `places`: where runs of this call were asked for themselves."""
        standing: dict[int, Triggered] = {}
        kind: Disposition | Literal["conflict"]
        for index, place, *columns in self._ask(connection, "find_triggered", rows):
            if places.get(columns[0], index) > index:
                continue  # asked for after this one
            if place < len(_DISPOSITIONS):
                kind = _DISPOSITIONS[place]
            else:
                kind = "coalesced" if runs[index].coalesce else "conflict"
            standing.setdefault(index, Triggered(RunRow(*columns), kind))
        return standing

    def find_standing(self, connection: Any, runs: Sequence[NewRun]) -> list[Triggered | None]:
        # Times and inputs are not asked about.
        rows = [insertable(run._replace(input=""), None, None) for run in runs]
        standing = self._standing(connection, runs, rows, {})
        return [standing.get(index) for index in range(len(runs))]

    def _rows(self, tx: Tx, runs: Sequence[NewRun]) -> list[Any]:
        """What `insert_runs` takes of these runs."""
        now = tx.now
        return [insertable(run, _run_at(run, now), run.deadline and now + run.deadline) for run in runs]

    def _insert(self, tx: Tx, rows: Sequence[Any]) -> list[Any]:
        """The ids of those that were not there yet."""
        return self._ask(tx.connection, "insert_runs", rows, tx.instant)

    def _label(self, tx: Tx, runs: Sequence[NewRun]) -> None:
        """Write the labels of runs that were just inserted."""
        self._do(tx.connection, "insert_labels", [run.id for run in runs])

    def _pass_on(self, tx: Tx, keys: Sequence[str | None]) -> None:
        """Runs have come to these concurrency keys or have left them: who is next may go, where nobody holds them."""
        asked = [*dict.fromkeys(key for key in keys if key is not None)]
        if asked:
            self._do(tx.connection, "bring_forward", asked)

    def trigger_many(self, tx: Tx, batches: Sequence[Sequence[NewRun]]) -> list[list[Triggered]]:
        if len(batches) == 1:
            return [self._whole(tx, batches[0])]
        made = self._whole(tx, [run for batch in batches for run in batch])
        if conflict_in(made) is not None:
            # Each for itself, so that the one that is refused takes nobody along.
            return [self._whole(tx, batch) for batch in batches]
        ends = list(accumulate(map(len, batches), initial=0))
        return [made[begin:end] for begin, end in pairwise(ends)]

    def _whole(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        connection = tx.connection
        self._find(connection, "batch")
        made: list[Triggered] = []
        try:
            for part in _parts(runs):
                answers = self.trigger(tx, part)
                if (refused := conflict_in(answers)) is not None:
                    self._find(connection, "undo_batch")
                    made += answers[: refused + 1]
                    break
                made += answers
            self._find(connection, "end_batch")
        except BaseException:
            with contextlib.suppress(self._driver_error):  # after some errors everything is undone already
                self._find(connection, "undo_batch")
                self._find(connection, "end_batch")
            raise
        return made

    def expire(self, tx: Tx, sweeps: Sequence[Sweep]) -> list[list[RunRow]]:
        return [self._expire(tx, sweep) for sweep in sweeps]

    def _expire(self, tx: Tx, sweep: Sweep) -> list[RunRow]:
        if tx.waited > sweep.patience:
            return []
        found = self._find(tx.connection, "expire", tx.now, sweep.max_crashes, sweep.limit)
        rows = [RunRow(*row) for row in found]
        self._pass_on(tx, [row.concurrency_key for row in rows if row.completed_at is not None])
        self._rows_ended(tx, rows)
        return rows

    def pass_deadlines(self, tx: Tx, limits: Sequence[int]) -> list[list[RunRow]]:
        return [self._pass_deadlines(tx, limit) for limit in limits]

    def _pass_deadlines(self, tx: Tx, limit: int) -> list[RunRow]:
        rows = [RunRow(*row) for row in self._find(tx.connection, "pass_deadlines", tx.now, limit)]
        self._pass_on(tx, [row.concurrency_key for row in rows])
        self._rows_ended(tx, rows)
        return rows

    def recall(self, tx: Tx, recalls: Sequence[Recall]) -> list[int]:
        return [self._do(tx.connection, "recall", recall.keep, recall.owner, tx.now) for recall in recalls]

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        return [self._claim(tx, order) for order in orders]

    def _claim(self, tx: Tx, order: ClaimOrder) -> Claimed:
        connection = tx.connection
        if tx.replay and order.known is not None:
            self._do(connection, "recall", order.known, order.owner, tx.now)
        due = self._ripen(tx)
        runs: list[RunRow] = []
        again = True
        while again:
            again = self._lease(tx, order, runs)
        if doomed := self._doomed(tx, runs):
            runs = [run for run in runs if run.id not in doomed]
        # RETURNING gives rows in any order.
        runs.sort(key=lambda run: (-run.priority, run.run_at, run.id))
        resumed = [run.id for run in runs if run.generation > 1]
        steps: dict[str, list[StepRow]] = {}
        if resumed:
            for row in self._ask(connection, "first_steps", resumed, STEP_PAGE):
                steps.setdefault(row[0], []).append(StepRow(*row))
        return Claimed(runs, steps, due)

    def _ripen(self, tx: Tx) -> int | None:
        """Delayed runs and sleepers whose time has come go into their lines; when the next one's comes."""
        connection = tx.connection
        due = self._next_due(connection)
        if due is not None and due <= tx.now:
            self._make_due(tx)
            due = self._next_due(connection)
        wake = self._next_wake(connection)
        if wake is not None and wake <= tx.now:
            self._wake_sleepers(tx)
            wake = self._next_wake(connection)
        return min((at for at in (due, wake) if at is not None), default=None)

    def _make_due(self, tx: Tx) -> None:
        """Delayed runs whose time has come go into their lines."""
        promoted = self._find(tx.connection, "promote", tx.now, PROMOTED_AT_ONCE)
        self._pass_on(tx, [row[0] for row in promoted])

    def _next_due(self, connection: Any) -> int | None:
        found = self._find(connection, "next_due")
        return found[0][0] if found else None

    def _lease(self, tx: Tx, order: ClaimOrder, runs: list[RunRow]) -> bool:
        """Lease what may be leased, to the end of `runs`; whether there may be more."""
        connection, many = tx.connection, max(order.limit - len(runs), 0)
        verb, wanted = "claim", wanted_of(order)
        if order.limits:
            limits = dict(order.limits)
            leased = self._leased_of_jobs(tx, [*limits])
            room = {job: limits[job] - count for job, count in leased}
            wanted = wanted_of(order, room)
            if any(0 < some < many for some in room.values()):
                verb = "claim_within"
        found = [RunRow(*row) for row in self._take(tx, verb, wanted, many, order)]
        runs += found
        if keys := [run.concurrency_key for run in found if run.concurrency_key is not None]:
            self._do(connection, "hold_back", keys)
        # What has just been taken may have stood before others of its key, or of a job that is full now.
        return 0 < len(found) < many and (bool(keys) or verb == "claim_within")

    def _leased_of_jobs(self, tx: Tx, jobs: Sequence[str]) -> list[Any]:
        return self._ask(tx.connection, "leased_of_jobs", jobs)

    def _take(self, tx: Tx, verb: str, wanted: Sequence[Any], many: int, order: ClaimOrder) -> list[Any]:
        return self._ask(tx.connection, verb, wanted, many, order.owner, tx.now, order.lease)

    # -- writes: who is there ----------------------------------------------------------------------------------

    def check_in(self, tx: Tx, workers: Sequence[CheckIn]) -> list[None]:
        self._do(tx.connection, "check_in", [*{worker.id: worker for worker in workers}.values()], tx.instant)
        return [None] * len(workers)

    def check_out(self, tx: Tx, workers: Sequence[str]) -> list[None]:
        self._do(tx.connection, "check_out", workers)
        return [None] * len(workers)

    def forget_workers(self, tx: Tx, limits: Sequence[int]) -> list[int]:
        asked = [(tx.now, LEASES_REMEMBERED, limit) for limit in limits]
        return [len(self._find(tx.connection, "forget_workers", *one)) for one in asked]

    # -- reads -------------------------------------------------------------------------------------------------

    def find_steps(self, connection: Any, run_id: str, *, first: int = 0, until: int | None = None) -> list[StepRow]:
        last = 2**62 if until is None else until
        return [StepRow(*row) for row in self._find(connection, "find_steps", run_id, first, last)]

    def find_attempts(self, connection: Any, run_id: str) -> list[AttemptRow]:
        found = self._find(connection, "find_attempts", run_id)
        return [AttemptRow(*row)._replace(live=bool(row[-1])) for row in found]

    def failed_tries(self, connection: Any, run_id: str, run_attempt: int) -> dict[StepKey, Tries]:
        found = self._find(connection, "failed_tries", run_id, run_attempt)
        return {StepKey(name, occurrence): Tries(failed, last_at) for name, occurrence, failed, last_at in found}

    def find_logs(self, connection: Any, run_id: str, *, after: int = 0, limit: int | None = None) -> list[LogRow]:
        many = 2**62 if limit is None else limit
        return [LogRow(*row) for row in self._find(connection, "find_logs", run_id, after, many)]

    def follow(self, connection: Any, run_ids: Sequence[str]) -> dict[str, Followed]:
        found = self._ask(connection, "follow", run_ids)
        return {run_id: Followed(*columns) for run_id, *columns in found}

    def passing(self, connection: Any, most: int) -> list[Passing]:
        found = {row[0]: Passing(*row) for row in self._find(connection, "passing", most)}
        return sorted(found.values(), reverse=True)  # by id: no two are alike in it

    def step_marks(self, connection: Any, wanted: Sequence[tuple[str, int]]) -> list[StepMark]:
        return [StepMark(*row) for row in self._ask(connection, "step_marks", wanted)]

    def marked_steps(self, connection: Any, marks: Sequence[StepMark]) -> list[StepRow]:
        return [StepRow(*row) for row in self._ask(connection, "marked_steps", marks)]

    def logs_after(self, connection: Any, wanted: Sequence[tuple[str, int]], limit: int) -> list[LogRow]:
        return [LogRow(*row) for row in self._ask(connection, "logs_after", wanted, limit)]

    def has_claimable(self, connection: Any, order: ClaimOrder) -> bool:
        found = self._ask(connection, "has_claimable", wanted_of(order, dict(order.limits)), self._read_now())
        return bool(found[0][0])

    def lost_leases(self, connection: Any, leases: Sequence[Lease]) -> dict[Lease, str]:
        lost = self._ask(connection, "lost_leases", leases)
        return {leases[at]: status for at, status in lost}

    def ended(self, connection: Any, run_ids: Sequence[str]) -> dict[str, str]:
        return dict(self._ask(connection, "ended", run_ids))

    def find_workers(self, connection: Any) -> list[WorkerRow]:
        found = self._find(connection, "find_workers", self._read_now())
        held: dict[str, list[HeldRow]] = {}
        for owner, *columns in self._find(connection, "leased"):
            held.setdefault(owner, []).append(HeldRow(*columns))
        return [WorkerRow(*row)._replace(alive=bool(row[-1]), held=tuple(held.get(row[0], ()))) for row in found]

    def find_old(self, connection: Any, old: Old) -> list[str]:
        ids: list[str] = []
        total = 0
        for run_id, weight in self._old(connection, old):
            total += weight
            if ids and total > old.weight:
                break
            ids.append(run_id)
        return ids

    @abstractmethod
    def _old(self, connection: Any, old: Old) -> Iterable[tuple[str, int]]:
        """Ids of runs that may be forgotten, the oldest end first, each with how much there is of it."""


def _reached(wanted: str) -> tuple[str, ...]:
    """What a run that its holder has put there may be by now, under the same generation."""
    return ("waiting", "pending") if wanted == "waiting" else (wanted,)


def _parts(runs: Sequence[NewRun]) -> Iterator[Sequence[NewRun]]:
    """A batch as a few statements: what a statement gets as one text is bounded, for memory and by SQLite."""
    begin = size = 0
    for end, run in enumerate(runs):
        if end - begin == BATCH_ROWS or size > BATCH_BYTES:
            yield runs[begin:end]
            begin, size = end, 0
        size += len(run.input)
    yield runs[begin:]


def wanted_of(order: ClaimOrder, room: Mapping[str, int] = MappingProxyType({})) -> list[tuple[str, str, int | None]]:
    # Once each: a job named twice would fill the claim's limit with the same runs twice.
    pairs = dict.fromkeys((queue, job) for queue in order.queues for job in order.jobs)
    return [(queue, job, room.get(job)) for queue, job in pairs if room.get(job, 1) > 0]


def _trying(save: AttemptSave) -> tuple[Any, ...]:
    """What tells one try from another: by whom, which one, under which generation."""
    return (save.owner, *save.attempt[:5], save.attempt.generation)


def _run_at(run: NewRun, now: int) -> int:
    return now + run.delay if run.run_at is None else run.run_at


def insertable(run: NewRun, run_at: int | None, deadline_at: int | None) -> tuple[Any, ...]:
    """What `insert_runs` takes of a run."""
    return (
        run.id, run.job_name, run.input, run.queue, run.priority,
        run_at,
        run.idempotency_key, run.concurrency_key, run.labels, run.tenant, run.codec, run.trace, run.coalesce,
        run.timeout, run.retry, deadline_at,
        run.parent_id, run.root_id, run.child_index, run.is_finalize, run.awaited_as,
    )  # fmt: skip


def writings(saves: Sequence[StepSave]) -> tuple[list[Any], Callable[[Iterable[Any]], list[bool]]]:
    """What `save_steps` takes of these; and by what it gives, which of them it has written."""
    # What tells one writing of a step from another: by whom, which step, under which generation.
    keys = [(save.owner, *save.step[:3], save.step.generation) for save in saves]
    first: dict[tuple[Any, ...], StepSave] = {}
    for key, save in zip(keys, saves, strict=True):
        first.setdefault(key, save)

    def answers(found: Iterable[Any]) -> list[bool]:
        written = set(found)
        return [first[key] is save and key[1:] in written for key, save in zip(keys, saves, strict=True)]

    return [(save.owner, *save.step) for save in first.values()], answers


def finishable(e: Ending) -> tuple[Any, ...]:
    """What `finish` takes of an ending."""
    return (
        *e.lease, e.transition.target, e.transition.ends, e.output, e.error, e.error_type, e.transition.attempt,
        e.delay, e.waiting_for, e.used, e.holds,
    )  # fmt: skip


def fresh(run: NewRun, now: int) -> RunRow:
    """The row that was just inserted, without asking for it."""
    return RunRow(
        run.id, run.job_name, "pending", run.queue, run.priority, _run_at(run, now),
        0, 0, 0, None, None, now, now, None, None,
        run.timeout, run.retry, run.deadline and now + run.deadline,
        run.parent_id, run.root_id, run.child_index, run.is_finalize, run.awaited_as, 0, None, 0,
        run.idempotency_key, run.concurrency_key, run.tenant, run.labels, run.codec,
        run.trace, run.input, None, None, None,
    )  # fmt: skip
