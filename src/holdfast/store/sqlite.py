"""SQLite: one file, one writer at a time, no server.

Every verb is one statement per round, with its rows as one JSON array: a statement gives Python's global lock away
once, a loop over rows once per row, and with a busy event loop beside it each of those may cost a switch interval.

Several rows of one call may be about the same run: a zombie's and its successor's, or one twice. So answers are told
apart by the whole lease, and of two words of one holder the first counts.

Long because every verb is here, and few of them are more than their statement and its answers.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any, Literal

from pydantic_core import to_json

from ..basis.errors import ValidationError
from ..model.run import Disposition, NewRun, RunFilter, RunRow, RunStatus
from ..model.step import AttemptRow, LogRow, StepKey, StepRow, Tries
from . import queries
from .base import (
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
    ProgressSave,
    Recall,
    Renewal,
    StepMark,
    StepSave,
    Sweep,
    Triggered,
    Tx,
    conflict_in,
)
from .sqlite_file import SqliteFile
from .sqlite_old import question

_STORED = RunRow._fields[:-3]
_COLUMNS = ", ".join(f"r.{name}" for name in _STORED)

#: Of a claim's candidate `c` that has a concurrency key: nobody goes before it whom this claim could take, and nobody
#: holds the key (nobody does, as long as rows are changed by nobody else).
_FIRST_OF_KEY = """(
    not exists (
      select 1 from holdfast_runs as o
      where o.concurrency_key = c.concurrency_key and o.turn = 0 and o.status = 'pending' and o.due = 1
        and o.concurrency_key is not null and (-o.priority, o.run_at, o.id) < (-c.priority, c.run_at, c.id)
        and o.queue in (select value ->> 0 from json_each(?1))
        and o.job_name in (select value ->> 1 from json_each(?1)))
    and not exists (
      select 1 from holdfast_runs as h
      where h.concurrency_key = c.concurrency_key and h.turn = 2 and h.status in ('pending', 'leased')
        and h.concurrency_key is not null and h.rowid <> c.rowid))"""

_SQL = queries.Queries("sqlite", columns=_COLUMNS, bare_columns=", ".join(_STORED), first_of_key=_FIRST_OF_KEY)

#: What a reader sees beside the columns of the run: progress, how many steps are saved, the next position.
_READ_COLUMNS = f"""{_COLUMNS},
  (select progress from holdfast_progress where run_id = r.id),
  (select count(*) from holdfast_steps where run_id = r.id and status = 'completed'),
  coalesce((select max(position) + 1 from holdfast_steps where run_id = r.id), 0)"""

#: Word for word the condition of the index `holdfast_runs_errored`, else SQLite doesn't see that it may be used.
_ERRORED = "r.status in ('failed', 'timed_out', 'finalize_failed', 'cancelled')"

#: In the order of `find_triggered`: the run itself, who has its idempotency key.
_DISPOSITIONS: tuple[Literal["created", "idempotent"], ...] = ("created", "idempotent")

#: Delayed runs that one claim may make due.
_PROMOTED_AT_ONCE = 10_000


#: Bounds of one statement of a batch.
BATCH_ROWS = 10_000
BATCH_BYTES = 8 << 20

#: The tables that hold something of a run; the run itself is last.
_PARTS = ("labels", "progress", "steps", "step_attempts", "logs", "waits", "signals", "runs")


#: A NUL itself, not the six characters of its JSON escape inside a payload that is JSON too.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _rows(rows: Sequence[Any]) -> str:
    text = to_json(rows).decode()
    if "\\u0000" in text and _NUL.search(text):
        # SQLite's JSON functions end a text there, silently.
        raise ValidationError("a text with a NUL character can't be kept exactly; nothing was written.")
    return text


class SqliteStore(SqliteFile):
    """The store of `sqlite:///path` (a file), `sqlite://` (a temporary file) and `sqlite:///:memory:` (inline only)."""

    # -- writes: fenced ----------------------------------------------------------------------------------------

    def renew_leases(self, tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        last = {renewal.lease: (*renewal.lease, renewal.duration) for renewal in renewals}
        held = set(tx.connection.execute(_SQL["renew_leases"], (_rows([*last.values()]), tx.now)).fetchall())
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
        tx.connection.execute(_SQL["save_logs"], (_rows(rows),))
        return [None] * len(lines)

    def save_progress(self, tx: Tx, rows: Sequence[ProgressSave]) -> list[None]:
        last = {(row.run_id, row.generation, owner): row.progress for owner, row in rows}
        asked = [(*lease, progress) for lease, progress in last.items()]
        tx.connection.execute(_SQL["save_progress"], (_rows(asked), tx.now))
        return [None] * len(rows)

    def save_attempts(self, tx: Tx, saves: Sequence[AttemptSave]) -> list[bool]:
        last: dict[tuple[Any, ...], AttemptSave] = {}
        for save in saves:
            known = last.get(_trying(save))
            if known is None or known.attempt.ended_at is None:
                last[_trying(save)] = save
        rows = [(save.owner, *save.attempt[:-1]) for save in last.values()]
        saved = set(tx.connection.execute(_SQL["save_attempts"], (_rows(rows),)).fetchall())
        return [_trying(save)[1:] in saved for save in saves]

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        # What tells one writing of a step from another: by whom, which step, under which generation.
        writings = [(save.owner, *save.step[:3], save.step.generation) for save in saves]
        first: dict[tuple[Any, ...], StepSave] = {}
        for writing, save in zip(writings, saves, strict=True):
            first.setdefault(writing, save)
        rows = [(save.owner, *save.step) for save in first.values()]
        saved = set(tx.connection.execute(_SQL["save_steps"], (_rows(rows),)).fetchall())
        answers = [first[w] is save and w[1:] in saved for w, save in zip(writings, saves, strict=True)]
        if not all(answers):
            refused = [(save.owner, *save.step, i) for i, save in enumerate(saves) if not answers[i]]
            for (index,) in tx.connection.execute(_SQL["saved_steps"], (_rows(refused),)).fetchall():
                answers[index] = True
        moved_on = [save.step.run_id for save, kept in zip(saves, answers, strict=True) if save.moved_on and kept]
        if moved_on:
            tx.connection.execute(_SQL["move_on"], (_rows(moved_on),))
        return answers

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        first: dict[Lease, Ending] = {}
        for e in endings:
            first.setdefault(e.lease, e)
        rows = [
            (
                *e.lease,
                e.transition.target,
                e.transition.ends,
                e.output,
                e.error,
                e.error_type,
                e.transition.attempt,
                e.delay,
            )
            for e in first.values()
        ]
        written = tx.connection.execute(_SQL["finish"], (_rows(rows), tx.now)).fetchall()
        ended = {row[:2] for row in written}
        self._pass_on(tx, [row[2] for row in written])
        counted = [first[e.lease] is e and e.lease[:2] in ended for e in endings]
        states: dict[str, tuple[int, str, str | None]] = {}
        if not all(counted):
            refused = [e.lease.run_id for e, done in zip(endings, counted, strict=True) if not done]
            found = tx.connection.execute(_SQL["states"], (_rows(refused),)).fetchall()
            states = {run_id: (generation, status, owner) for run_id, generation, status, owner in found}
        answers = []
        for e, done in zip(endings, counted, strict=True):
            wanted = str(e.transition.target)
            if done:
                answers.append(Ended(True, tx.now, wanted))
            else:
                # Nobody but the holder leaves the generation as it was: the ending was written before, and its
                # answer lost.
                state = states.get(e.lease.run_id)
                before = state == (e.lease.generation, wanted, None)
                answers.append(Ended(before, tx.now, state and state[1]))
        return answers

    # -- writes: guarded ---------------------------------------------------------------------------------------

    def cancel(self, tx: Tx, run_ids: Sequence[str]) -> list[Cancelled]:
        if not run_ids:
            return []
        ids = list(dict.fromkeys(run_ids))
        asked = _rows(ids)
        before = {row[0]: row[2] for row in tx.connection.execute(_SQL["states"], (asked,)).fetchall()}
        written = tx.connection.execute(_SQL["cancel"], (asked, tx.now)).fetchall()
        cancelled = {row[0] for row in written}
        self._pass_on(tx, [row[1] for row in written])
        rows = {row.id: row for row in self.find_runs(tx.connection, RunFilter(ids=tuple(ids)))}
        if tx.replay:
            cancelled.update(run_id for run_id in ids if before.get(run_id) == "cancelled")
        return [Cancelled(rows.get(i), before.get(i), i in cancelled) for i in run_ids]

    def delete(self, tx: Tx, run_ids: Sequence[str]) -> list[Deleted]:
        found = self._forgettable(tx, run_ids)
        if family := self._family(tx, found):
            for part in _PARTS:
                tx.connection.execute(_SQL[f"delete_{part}"], (family,))
        missing = Deleted(tx.replay)
        return [found.get(run_id, missing) for run_id in run_ids]

    def drop_outputs(self, tx: Tx, run_ids: Sequence[str]) -> list[bool]:
        found = self._forgettable(tx, run_ids)
        if family := self._family(tx, found):
            tx.connection.execute(_SQL["drop_outputs"], (family,))
            tx.connection.execute(_SQL["outputs_dropped"], (family,))
        return [run_id in found and found[run_id].accepted for run_id in run_ids]

    def _forgettable(self, tx: Tx, run_ids: Sequence[str]) -> dict[str, Deleted]:
        found = tx.connection.execute(_SQL["forgettable"], (_rows(list(dict.fromkeys(run_ids))),)).fetchall()
        return {run_id: Deleted(standing is None, standing, *told) for run_id, standing, *told in found}

    def _family(self, tx: Tx, found: dict[str, Deleted]) -> str | None:
        roots = [run_id for run_id, deleted in found.items() if deleted.accepted]
        if not roots:
            return None
        return _rows([run_id for (run_id,) in tx.connection.execute(_SQL["family"], (_rows(roots),)).fetchall()])

    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        now = tx.now
        rows = [
            (
                run.id, run.job_name, run.input, run.queue, run.priority,
                now + run.delay if run.run_at is None else run.run_at,
                run.idempotency_key, run.concurrency_key, run.labels, run.tenant, run.codec, run.trace, run.coalesce,
                run.timeout, run.retry, run.deadline and now + run.deadline,
            )
            for run in runs
        ]  # fmt: skip
        new = rows
        if any(run.coalesce == "active" for run in runs):
            there = {row[0] for row in tx.connection.execute(_SQL["find_active"], (_rows(rows),)).fetchall()}
            new = [row for index, row in enumerate(rows) if index not in there]
        created = {row[0] for row in tx.connection.execute(_SQL["insert_runs"], (_rows(new), now)).fetchall()}
        self._pass_on(tx, [run.concurrency_key for run in runs if run.concurrency_key and run.id in created])
        labelled = [run.id for run in runs if run.labels != "{}" and run.id in created]
        if labelled:
            tx.connection.execute(_SQL["insert_labels"], (_rows(labelled),))
        standing: dict[int, Triggered] = {}
        kind: Disposition | Literal["conflict"]
        if len(created) < len(runs):
            places = {run.id: index for index, run in enumerate(runs) if run.id in created}
            for index, place, *columns in tx.connection.execute(_SQL["find_triggered"], (_rows(rows),)).fetchall():
                if places.get(columns[0], index) > index:
                    continue  # asked for after this one
                if place < len(_DISPOSITIONS):
                    kind = _DISPOSITIONS[place]
                else:
                    kind = "coalesced" if runs[index].coalesce else "conflict"
                standing.setdefault(index, Triggered(RunRow(*columns), kind))
        answers = []
        for index, run in enumerate(runs):
            if run.id in created:
                answers.append(Triggered(_fresh(run, rows[index][5], now), "created"))
            else:
                answers.append(standing[index])
        return answers

    def _pass_on(self, tx: Tx, keys: Sequence[str | None]) -> None:
        """Runs have come to these concurrency keys or have left them: who is next may go, where nobody holds them."""
        asked = [*dict.fromkeys(key for key in keys if key is not None)]
        if asked:
            tx.connection.execute(_SQL["bring_forward"], (_rows(asked),))

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
        execute = tx.connection.execute
        execute(_SQL["batch"])
        made: list[Triggered] = []
        try:
            for part in _parts(runs):
                answers = self.trigger(tx, part)
                if (refused := conflict_in(answers)) is not None:
                    execute(_SQL["undo_batch"])
                    made += answers[: refused + 1]
                    break
                made += answers
            execute(_SQL["end_batch"])
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # after some errors SQLite has undone everything by itself
                execute(_SQL["undo_batch"])
                execute(_SQL["end_batch"])
            raise
        return made

    def expire(self, tx: Tx, sweeps: Sequence[Sweep]) -> list[list[RunRow]]:
        return [self._expire(tx, sweep) for sweep in sweeps]

    def _expire(self, tx: Tx, sweep: Sweep) -> list[RunRow]:
        if tx.waited > sweep.patience:
            return []
        found = tx.connection.execute(_SQL["expire"], (tx.now, sweep.max_crashes, sweep.limit)).fetchall()
        rows = [RunRow(*row) for row in found]
        self._pass_on(tx, [row.concurrency_key for row in rows if row.completed_at is not None])
        return rows

    def pass_deadlines(self, tx: Tx, limits: Sequence[int]) -> list[list[RunRow]]:
        return [self._pass_deadlines(tx, limit) for limit in limits]

    def _pass_deadlines(self, tx: Tx, limit: int) -> list[RunRow]:
        rows = [RunRow(*row) for row in tx.connection.execute(_SQL["pass_deadlines"], (tx.now, limit)).fetchall()]
        self._pass_on(tx, [row.concurrency_key for row in rows])
        return rows

    def recall(self, tx: Tx, recalls: Sequence[Recall]) -> list[int]:
        return [
            tx.connection.execute(_SQL["recall"], (recall.owner, _rows(recall.keep), tx.now)).rowcount
            for recall in recalls
        ]

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        return [self._claim(tx, order) for order in orders]

    def _claim(self, tx: Tx, order: ClaimOrder) -> Claimed:
        execute = tx.connection.execute
        if tx.replay and order.known is not None:
            execute(_SQL["recall"], (order.owner, _rows(order.known), tx.now))
        due = execute(_SQL["next_due"]).fetchone()
        if due is not None and due[0] <= tx.now:
            promoted = execute(_SQL["promote"], (tx.now, _PROMOTED_AT_ONCE)).fetchall()
            self._pass_on(tx, [row[0] for row in promoted])
            due = execute(_SQL["next_due"]).fetchone()
        runs: list[RunRow] = []
        again = True
        while again:
            again = self._lease(tx, order, runs)
        # RETURNING gives rows in any order.
        runs.sort(key=lambda run: (-run.priority, run.run_at, run.id))
        resumed = [run.id for run in runs if run.generation > 1]
        steps: dict[str, list[StepRow]] = {}
        if resumed:
            for row in execute(_SQL["first_steps"], (_rows(resumed), STEP_PAGE)).fetchall():
                steps.setdefault(row[0], []).append(StepRow(*row))
        return Claimed(runs, steps, due and due[0])

    def _lease(self, tx: Tx, order: ClaimOrder, runs: list[RunRow]) -> bool:
        """Lease what may be leased, to the end of `runs`; whether there may be more."""
        execute, many = tx.connection.execute, max(order.limit - len(runs), 0)
        verb, wanted = "claim", _wanted(order)
        if order.limits:
            limits = dict(order.limits)
            leased = execute(_SQL["leased_of_jobs"], (_rows([*limits]),)).fetchall()
            room = {job: limits[job] - count for job, count in leased}
            wanted = _wanted(order, room)
            if any(0 < some < many for some in room.values()):
                verb = "claim_within"
        rows = execute(_SQL[verb], (wanted, many, order.owner, tx.now, order.lease)).fetchall()
        found = [RunRow(*row) for row in rows]
        runs += found
        if keys := [run.concurrency_key for run in found if run.concurrency_key is not None]:
            execute(_SQL["hold_back"], (_rows(keys),))
        # What has just been taken may have stood before others of its key, or of a job that is full now.
        return 0 < len(found) < many and (bool(keys) or verb == "claim_within")

    # -- reads -------------------------------------------------------------------------------------------------

    def find_runs(self, connection: sqlite3.Connection, filter: RunFilter) -> list[RunRow]:
        # Newest first is the order of the ids: the walk starts where it meets the fewest runs that are not wanted.
        text, walked = f"select {_READ_COLUMNS} from holdfast_runs as r where true", "r.id"
        labels = filter.labels
        values: list[Any] = []
        if labels:
            text = f"""select {_READ_COLUMNS} from holdfast_labels as l cross join holdfast_runs as r on r.id = l.run_id
              where l.key = ? and l.value = ?"""
            walked, values, labels = "l.run_id", [*labels[0]], labels[1:]
        elif filter.statuses and not filter.ids and RunStatus.errored().issuperset(filter.statuses):
            text = f"select {_READ_COLUMNS} from holdfast_runs as r indexed by holdfast_runs_errored where {_ERRORED}"
        for condition, wanted in (
            ("r.id in (select value from json_each(?))", filter.ids),
            ("r.job_name in (select value from json_each(?))", filter.jobs),
            ("r.status in (select value from json_each(?))", filter.statuses),
        ):
            if wanted:
                text += f" and {condition}"
                values.append(_rows(wanted))
        for key, value in labels:
            text += " and exists (select 1 from holdfast_labels where key = ? and value = ? and run_id = r.id)"
            values += [key, value]
        if filter.before is not None:
            text += f" and {walked} < ?"
            values.append(filter.before)
        text += f" order by {walked} desc limit ? offset ?"
        values += [-1 if filter.limit is None else filter.limit, filter.offset]
        return [RunRow(*row) for row in connection.execute(text, values).fetchall()]

    def find_steps(
        self, connection: sqlite3.Connection, run_id: str, *, first: int = 0, until: int | None = None
    ) -> list[StepRow]:
        last = 2**62 if until is None else until
        return [StepRow(*row) for row in connection.execute(_SQL["find_steps"], (run_id, first, last)).fetchall()]

    def find_attempts(self, connection: sqlite3.Connection, run_id: str) -> list[AttemptRow]:
        found = connection.execute(_SQL["find_attempts"], (run_id,)).fetchall()
        return [AttemptRow(*row)._replace(live=bool(row[-1])) for row in found]

    def failed_tries(self, connection: sqlite3.Connection, run_id: str, run_attempt: int) -> dict[StepKey, Tries]:
        found = connection.execute(_SQL["failed_tries"], (run_id, run_attempt)).fetchall()
        return {StepKey(name, occurrence): Tries(failed, last_at) for name, occurrence, failed, last_at in found}

    def find_logs(
        self, connection: sqlite3.Connection, run_id: str, *, after: int = 0, limit: int | None = None
    ) -> list[LogRow]:
        many = -1 if limit is None else limit
        return [LogRow(*row) for row in connection.execute(_SQL["find_logs"], (run_id, after, many)).fetchall()]

    def follow(self, connection: sqlite3.Connection, run_ids: Sequence[str]) -> dict[str, Followed]:
        found = connection.execute(_SQL["follow"], (_rows(run_ids),)).fetchall()
        return {run_id: Followed(*columns) for run_id, *columns in found}

    def step_marks(self, connection: sqlite3.Connection, wanted: Sequence[tuple[str, int]]) -> list[StepMark]:
        return [StepMark(*row) for row in connection.execute(_SQL["step_marks"], (_rows(wanted),)).fetchall()]

    def marked_steps(self, connection: sqlite3.Connection, marks: Sequence[StepMark]) -> list[StepRow]:
        return [StepRow(*row) for row in connection.execute(_SQL["marked_steps"], (_rows(marks),)).fetchall()]

    def logs_after(self, connection: sqlite3.Connection, wanted: Sequence[tuple[str, int]], limit: int) -> list[LogRow]:
        return [LogRow(*row) for row in connection.execute(_SQL["logs_after"], (_rows(wanted), limit)).fetchall()]

    def has_claimable(self, connection: sqlite3.Connection, order: ClaimOrder) -> bool:
        wanted = (_wanted(order, dict(order.limits)), self.clock.now())
        return bool(connection.execute(_SQL["has_claimable"], wanted).fetchone()[0])

    def lost_leases(self, connection: sqlite3.Connection, leases: Sequence[Lease]) -> dict[Lease, str]:
        lost = connection.execute(_SQL["lost_leases"], (_rows(leases),)).fetchall()
        return {leases[at]: status for at, status in lost}

    def ended(self, connection: sqlite3.Connection, run_ids: Sequence[str]) -> dict[str, str]:
        return dict(connection.execute(_SQL["ended"], (_rows(run_ids),)).fetchall())

    def find_old(self, connection: sqlite3.Connection, old: Old) -> list[str]:
        text, values = question(old, _rows)
        ids: list[str] = []
        total = 0
        for run_id, weight in connection.execute(text, values):
            total += weight
            if ids and total > old.weight:
                break
            ids.append(run_id)
        return ids

    def change_mark(self, connection: sqlite3.Connection) -> int | None:
        mark: int = connection.execute("pragma data_version").fetchone()[0]
        return mark


def _parts(runs: Sequence[NewRun]) -> Iterator[Sequence[NewRun]]:
    """A batch as a few statements: what a statement gets as one text is bounded, for memory and by SQLite."""
    begin = size = 0
    for end, run in enumerate(runs):
        if end - begin == BATCH_ROWS or size > BATCH_BYTES:
            yield runs[begin:end]
            begin, size = end, 0
        size += len(run.input)
    yield runs[begin:]


def _wanted(order: ClaimOrder, room: Mapping[str, int] = MappingProxyType({})) -> str:
    # Once each: a job named twice would fill the claim's limit with the same runs twice.
    pairs = dict.fromkeys((queue, job) for queue in order.queues for job in order.jobs)
    return _rows([(queue, job, room.get(job)) for queue, job in pairs if room.get(job, 1) > 0])


def _trying(save: AttemptSave) -> tuple[Any, ...]:
    """What tells one try from another: by whom, which one, under which generation."""
    return (save.owner, *save.attempt[:5], save.attempt.generation)


def _fresh(run: NewRun, run_at: int, now: int) -> RunRow:
    """The row that was just inserted, without asking for it."""
    return RunRow(
        run.id, run.job_name, "pending", run.queue, run.priority, run_at, 0, 0, 0, None, None, now, now, None, None,
        run.timeout, run.retry, run.deadline and now + run.deadline,
        None, None, None, 0, None, run.idempotency_key, run.concurrency_key, run.tenant, run.labels, run.codec,
        run.trace, run.input, None, None, None,
    )  # fmt: skip
