"""SQLite: one file, one writer at a time, no server.

Every verb is one statement per round, with its rows as one JSON array: a statement gives Python's global lock away
once, a loop over rows once per row, and with a busy event loop beside it each of those may cost a switch interval.

Several rows of one call may be about the same run: a zombie's and its successor's, or one twice. So answers are told
apart by the whole lease, and of two words of one holder the first counts.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from ..basis.errors import ValidationError
from ..model.run import Disposition, NewRun, RunFilter, RunRow, RunStatus
from ..model.step import LogRow, StepRow
from . import queries
from .base import (
    STEP_PAGE,
    Cancelled,
    Claimed,
    ClaimOrder,
    Ended,
    Ending,
    Lease,
    LogSave,
    ProgressSave,
    Recall,
    Renewal,
    StepSave,
    Sweep,
    Triggered,
    Tx,
)
from .sqlite_file import SqliteFile

_STORED = RunRow._fields[:-3]
_COLUMNS = ", ".join(f"r.{name}" for name in _STORED)
_SQL = queries.Queries("sqlite", columns=_COLUMNS, bare_columns=", ".join(_STORED))

#: What a reader sees beside the columns of the run: progress, how many steps are saved, the next position.
_READ_COLUMNS = f"""{_COLUMNS},
  (select progress from holdfast_progress where run_id = r.id),
  (select count(*) from holdfast_steps where run_id = r.id and status = 'completed'),
  coalesce((select max(position) + 1 from holdfast_steps where run_id = r.id), 0)"""

#: Word for word the condition of the index `holdfast_runs_errored`, else SQLite doesn't see that it may be used.
_ERRORED = "r.status in ('failed', 'timed_out', 'finalize_failed', 'cancelled')"

#: In the order of `find_triggered`: the run itself, who has its idempotency key, who is first in its line.
_DISPOSITIONS: tuple[Disposition, ...] = ("created", "idempotent", "coalesced")

#: Delayed runs that one claim may make due.
_PROMOTED_AT_ONCE = 10_000


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
            )
            for owner, line in lines
        ]
        tx.connection.execute(_SQL["save_logs"], (_rows(rows), tx.replay))
        return [None] * len(lines)

    def save_progress(self, tx: Tx, rows: Sequence[ProgressSave]) -> list[None]:
        last = {(row.run_id, row.generation, owner): row.progress for owner, row in rows}
        asked = [(*lease, progress) for lease, progress in last.items()]
        tx.connection.execute(_SQL["save_progress"], (_rows(asked), tx.now))
        return [None] * len(rows)

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        first: dict[tuple[Any, ...], StepSave] = {}
        for save in saves:
            first.setdefault(_writing(save), save)
        rows = [(save.owner, *save.step) for save in first.values()]
        saved = set(tx.connection.execute(_SQL["save_steps"], (_rows(rows),)).fetchall())
        answers = [first[_writing(save)] is save and _writing(save)[1:] in saved for save in saves]
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
        ended = set(tx.connection.execute(_SQL["finish"], (_rows(rows), tx.now)).fetchall())
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
        cancelled = {row[0] for row in tx.connection.execute(_SQL["cancel"], (asked, tx.now)).fetchall()}
        rows = {row.id: row for row in self.find_runs(tx.connection, RunFilter(ids=tuple(ids)))}
        if tx.replay:
            cancelled.update(run_id for run_id in ids if before.get(run_id) == "cancelled")
        return [Cancelled(rows.get(i), before.get(i), i in cancelled) for i in run_ids]

    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        now = tx.now
        rows = [
            (
                run.id, run.job_name, run.input, run.queue, run.priority,
                now + run.delay if run.run_at is None else run.run_at,
                run.idempotency_key, run.concurrency_key, run.labels, run.tenant, run.codec, run.trace,
            )
            for run in runs
        ]  # fmt: skip
        created = {row[0] for row in tx.connection.execute(_SQL["insert_runs"], (_rows(rows), now)).fetchall()}
        labelled = [run.id for run in runs if run.labels != "{}" and run.id in created]
        if labelled:
            tx.connection.execute(_SQL["insert_labels"], (_rows(labelled),))
        standing: dict[int, tuple[Disposition, RunRow]] = {}
        if len(created) < len(runs):
            for index, place, *columns in tx.connection.execute(_SQL["find_triggered"], (_rows(rows),)).fetchall():
                standing.setdefault(index, (_DISPOSITIONS[place], RunRow(*columns)))
        answers = []
        for index, run in enumerate(runs):
            if run.id in created:
                answers.append(Triggered(_fresh(run, rows[index][5], now), "created"))
            else:
                disposition, row = standing[index]
                answers.append(Triggered(row, disposition))
        return answers

    def expire(self, tx: Tx, sweeps: Sequence[Sweep]) -> list[list[RunRow]]:
        return [self._expire(tx, sweep) for sweep in sweeps]

    def _expire(self, tx: Tx, sweep: Sweep) -> list[RunRow]:
        if tx.waited > sweep.patience:
            return []
        found = tx.connection.execute(_SQL["expire"], (tx.now, sweep.max_crashes, sweep.limit))
        return [RunRow(*row) for row in found.fetchall()]

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
            execute(_SQL["promote"], (tx.now, _PROMOTED_AT_ONCE))
            due = execute(_SQL["next_due"]).fetchone()
        found = execute(
            _SQL["claim"], (_wanted(order), max(order.limit, 0), order.owner, tx.now, order.lease)
        ).fetchall()
        # RETURNING gives rows in any order.
        runs = sorted((RunRow(*row) for row in found), key=lambda run: (-run.priority, run.run_at, run.id))
        resumed = [run.id for run in runs if run.generation > 1]
        steps: dict[str, list[StepRow]] = {}
        if resumed:
            for row in execute(_SQL["first_steps"], (_rows(resumed), STEP_PAGE)).fetchall():
                steps.setdefault(row[0], []).append(StepRow(*row))
        return Claimed(runs, steps, due and due[0])

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

    def find_logs(
        self, connection: sqlite3.Connection, run_id: str, *, after: int = 0, limit: int | None = None
    ) -> list[LogRow]:
        many = -1 if limit is None else limit
        return [LogRow(*row) for row in connection.execute(_SQL["find_logs"], (run_id, after, many)).fetchall()]

    def has_claimable(self, connection: sqlite3.Connection, order: ClaimOrder) -> bool:
        wanted = (_wanted(order), self.clock.now())
        return bool(connection.execute(_SQL["has_claimable"], wanted).fetchone()[0])

    def lost_leases(self, connection: sqlite3.Connection, leases: Sequence[Lease]) -> dict[Lease, str]:
        lost = connection.execute(_SQL["lost_leases"], (_rows(leases),)).fetchall()
        return {leases[at]: status for at, status in lost}

    def ended(self, connection: sqlite3.Connection, run_ids: Sequence[str]) -> dict[str, str]:
        return dict(connection.execute(_SQL["ended"], (_rows(run_ids),)).fetchall())

    def change_mark(self, connection: sqlite3.Connection) -> int | None:
        mark: int = connection.execute("pragma data_version").fetchone()[0]
        return mark


def _wanted(order: ClaimOrder) -> str:
    # Once each: a job named twice would fill the claim's limit with the same runs twice.
    return _rows(list(dict.fromkeys((queue, job) for queue in order.queues for job in order.jobs)))


def _writing(save: StepSave) -> tuple[Any, ...]:
    """What tells one writing of a step from another: by whom, which step, under which generation."""
    return (save.owner, *save.step[:3], save.step.generation)


def _fresh(run: NewRun, run_at: int, now: int) -> RunRow:
    """The row that was just inserted, without asking for it."""
    return RunRow(
        run.id, run.job_name, "pending", run.queue, run.priority, run_at, 0, 0, 0, None, None, now, now, None, None,
        None, None, None, None, 0, None, run.idempotency_key, run.concurrency_key, run.tenant, run.labels, run.codec,
        run.trace, run.input, None, None, None,
    )  # fmt: skip
