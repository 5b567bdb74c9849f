"""SQLite: one file, one writer at a time, no server.

Every verb is one statement per round, with its rows as one JSON array: a statement gives Python's global lock away
once, a loop over rows once per row, and with a busy event loop beside it each of those may cost a switch interval.

Write transactions begin IMMEDIATE. A deferred one that reads first fails at once, without waiting, when somebody
else commits in between. WAL lets readers work beside the writer; `synchronous=FULL` syncs at every commit, which is
affordable because one commit serves a whole round.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from ..basis.clock import Clock, SystemClock
from ..basis.errors import SchemaError, StoreError, StoreUnavailable, ValidationError
from ..model.run import NewRun, RunFilter, RunRow
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
    Store,
    Sweep,
    Triggered,
    Tx,
    WorkerRow,
)

_STORED = RunRow._fields[:-3]
_COLUMNS = ", ".join(f"r.{name}" for name in _STORED)
_SQL = queries.load("sqlite", columns=_COLUMNS, bare_columns=", ".join(_STORED))

#: What a reader sees beside the columns of the run: progress, how many steps are saved, the next position.
_READ_COLUMNS = f"""{_COLUMNS},
  (select progress from holdfast_progress where run_id = r.id),
  (select count(*) from holdfast_steps where run_id = r.id and status = 'completed'),
  coalesce((select max(position) + 1 from holdfast_steps where run_id = r.id), 0)"""

#: Delayed runs that one claim may make due.
_PROMOTED_AT_ONCE = 10_000

_IN_TROUBLE = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_LOCKED: "is locked",
    sqlite3.SQLITE_FULL: "can't grow: the disk is full",
    sqlite3.SQLITE_IOERR: "can't be read or written",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_CANTOPEN: "can't be opened",
    sqlite3.SQLITE_PERM: "may not be accessed",
    sqlite3.SQLITE_AUTH: "may not be accessed",
    sqlite3.SQLITE_CORRUPT: "is damaged; run `pragma integrity_check` on a copy of it",
    sqlite3.SQLITE_NOTADB: "is not an SQLite database",
    sqlite3.SQLITE_NOMEM: "ran out of memory",
    sqlite3.SQLITE_PROTOCOL: "is locked by another process",
}


def _rows(rows: Sequence[Any]) -> str:
    return to_json(rows).decode()


class SqliteStore(Store):
    """The store of `sqlite:///path` (a file), `sqlite://` (a temporary file) and `sqlite:///:memory:` (inline only)."""

    def __init__(self, url: str, *, clock: Clock | None = None, lock_timeout: float = 10.0) -> None:
        self.name = url
        self.clock = clock or SystemClock()
        self.lock_timeout = lock_timeout
        """Seconds to wait for another process's write transaction before answering `StoreUnavailable`."""
        path = _path_of(url)
        self.in_memory = path == ":memory:"
        self._temporary = path is None
        self._path: str | None = path if path is None or self.in_memory else os.path.abspath(path)
        self._only: sqlite3.Connection | None = None
        self._opening = threading.Lock()

    @property
    def path(self) -> str:
        """The file; that of a temporary database is made on first use."""
        with self._opening:
            if self._path is None:
                self._path = str(Path(tempfile.mkdtemp(prefix="holdfast-")) / "holdfast.db")
            return self._path

    # -- connections -------------------------------------------------------------------------------------------

    def connect(self, *, read_only: bool = False) -> sqlite3.Connection:
        if self.in_memory:
            # A second connection would be another, empty database.
            self._only = self._only or self._open(read_only=False)
            return self._only
        return self._open(read_only=read_only)

    def _open(self, *, read_only: bool) -> sqlite3.Connection:
        path = self.path
        directory = os.path.dirname(path)
        if not self.in_memory and not os.path.isdir(directory):
            raise StoreUnavailable(f"{self.name}: the directory {directory} does not exist.")
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(
                path,
                timeout=self.lock_timeout,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            connection.execute("pragma synchronous = full")
            connection.execute("pragma cache_size = -16384")
            if not self.in_memory:
                self._use_wal(connection, read_only)
            if read_only:
                connection.execute("pragma query_only = on")
            return connection
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise self.translate(error) from error

    def _use_wal(self, connection: sqlite3.Connection, read_only: bool) -> None:
        if connection.execute("pragma journal_mode").fetchone()[0] == "wal" or read_only:
            return
        # The switch needs the file for itself for a moment and does not wait for it by itself.
        deadline = self.clock.steady() + self.lock_timeout
        pause = threading.Event()
        while True:
            try:
                connection.execute("pragma journal_mode = wal")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or self.clock.steady() > deadline:
                    raise
                pause.wait(0.01)

    def disconnect(self, connection: sqlite3.Connection) -> None:
        if connection is not self._only:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def begin(self, connection: sqlite3.Connection) -> Tx:
        asked = self.clock.steady()
        connection.execute("begin immediate")
        return Tx(connection, self.clock.now(), self.clock.steady() - asked)

    def commit(self, tx: Tx) -> None:
        tx.connection.execute("commit")

    def rollback(self, tx: Tx) -> None:
        with contextlib.suppress(sqlite3.Error):
            if tx.connection.in_transaction:
                tx.connection.execute("rollback")

    def close(self) -> None:
        if self._only is not None:
            self._only.close()
            self._only = None
        if self._temporary and self._path is not None:
            shutil.rmtree(os.path.dirname(self._path), ignore_errors=True)
            self._path = None

    def translate(self, error: BaseException) -> BaseException:
        if not isinstance(error, sqlite3.Error):
            return error
        code = _code(error)
        if code in _IN_TROUBLE:
            translated: StoreError = StoreUnavailable(f"{self.name}: the database {_IN_TROUBLE[code]} ({error}).")
        elif isinstance(error, sqlite3.ProgrammingError):
            translated = StoreUnavailable(f"{self.name}: {error}.")
        else:
            translated = StoreError(f"{self.name}: {error}.")
        translated.__cause__ = error
        return translated

    # -- schema ------------------------------------------------------------------------------------------------

    def migrations(self) -> list[tuple[int, str, str]]:
        """All migrations as (number, name, SQL), in order."""
        folder = resources.files(__package__).joinpath("migrations/sqlite")
        files = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
        return [(int(name[:4]), name.removesuffix(".sql"), folder.joinpath(name).read_text("utf-8")) for name in files]

    def migrate(self) -> list[str]:
        connection = self.connect()
        try:
            # Whoever gets the write lock first does it; the others find it done.
            tx = self.begin(connection)
            try:
                applied = self._apply(tx)
                self.commit(tx)
                return applied
            except BaseException:
                self.rollback(tx)
                raise
        except sqlite3.Error as error:
            raise self.translate(error) from error
        finally:
            self.disconnect(connection)

    def _apply(self, tx: Tx) -> list[str]:
        version = self._version(tx.connection)
        known = self.migrations()
        self._refuse_newer(version, known[-1][0])
        applied = []
        for number, name, text in known:
            if number > version:
                for statement in _statements(text):
                    tx.connection.execute(statement)
                tx.connection.execute("insert into holdfast_migrations values (?, ?, ?)", (number, name, tx.now))
                applied.append(name)
        tx.connection.execute(
            "insert into holdfast_meta values ('database_id', ?) on conflict do nothing",
            (secrets.token_hex(16),),
        )
        return applied

    def check_schema(self, connection: sqlite3.Connection) -> None:
        version, newest = self._version(connection), self.migrations()[-1][0]
        self._refuse_newer(version, newest)
        if version == 0:
            raise SchemaError(
                f"{self.name}: there are no Holdfast tables. Call migrate() or init(), or run `holdfast migrate`."
            )
        if version < newest:
            raise SchemaError(
                f"{self.name}: the tables have version {version}, this code needs {newest}. "
                "Call migrate(), or run `holdfast migrate`."
            )

    def _refuse_newer(self, version: int, newest: int) -> None:
        if version > newest:
            raise SchemaError(
                f"{self.name}: the tables have version {version}, this code knows {newest} at most. "
                "A newer Holdfast has used this database: upgrade the package."
            )

    def _version(self, connection: sqlite3.Connection) -> int:
        if not connection.execute("select 1 from sqlite_master where name = 'holdfast_migrations'").fetchone():
            return 0
        found: int = connection.execute("select coalesce(max(number), 0) from holdfast_migrations").fetchone()[0]
        return found

    def database_id(self, connection: sqlite3.Connection) -> str:
        found: str = connection.execute("select value from holdfast_meta where key = 'database_id'").fetchone()[0]
        return found

    # -- writes: fenced ----------------------------------------------------------------------------------------

    def renew_leases(self, tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        asked = [(*renewal.lease, renewal.duration) for renewal in renewals]
        held = {row[0] for row in tx.connection.execute(_SQL["renew_leases"], (_rows(asked), tx.now)).fetchall()}
        return [renewal.lease.run_id in held for renewal in renewals]

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
        tx.connection.execute(_SQL["save_logs"], (_rows(rows),))
        return [None] * len(lines)

    def save_progress(self, tx: Tx, rows: Sequence[ProgressSave]) -> list[None]:
        last = {row.run_id: (row.run_id, row.generation, owner, row.progress) for owner, row in rows}
        tx.connection.execute(_SQL["save_progress"], (_rows(list(last.values())), tx.now))
        return [None] * len(rows)

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        rows = [(save.owner, *save.step) for save in saves]
        saved = set(tx.connection.execute(_SQL["save_steps"], (_rows(rows),)).fetchall())
        if len(saved) < len(saves):
            unsaved = [row for row in rows if row[1:4] not in saved]
            saved.update(tx.connection.execute(_SQL["saved_steps"], (_rows(unsaved),)).fetchall())
        moved_on = [save.step.run_id for save in saves if save.moved_on and save.step[:3] in saved]
        if moved_on:
            tx.connection.execute(_SQL["move_on"], (_rows(moved_on),))
        return [save.step[:3] in saved for save in saves]

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
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
            for e in endings
        ]
        ended = {row[0] for row in tx.connection.execute(_SQL["finish"], (_rows(rows), tx.now)).fetchall()}
        states: dict[str, tuple[int, str, str | None]] = {}
        if len(ended) < len(endings):
            refused = [e.lease.run_id for e in endings if e.lease.run_id not in ended]
            found = tx.connection.execute(_SQL["states"], (_rows(refused),)).fetchall()
            states = {run_id: (generation, status, owner) for run_id, generation, status, owner in found}
        answers = []
        for e in endings:
            wanted = str(e.transition.target)
            if e.lease.run_id in ended:
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
        standing: dict[int, RunRow] = {}
        if len(created) < len(runs):
            for index, *columns in tx.connection.execute(_SQL["find_triggered"], (_rows(rows),)).fetchall():
                standing[index] = RunRow(*columns)
        answers = []
        for index, run in enumerate(runs):
            if run.id in created:
                answers.append(Triggered(_fresh(run, rows[index][5], now), "created"))
            else:
                row = standing[index]
                answers.append(Triggered(row, "created" if row.id == run.id else "idempotent"))
        return answers

    def expire(self, tx: Tx, sweeps: Sequence[Sweep]) -> list[list[RunRow]]:
        return [
            [
                RunRow(*row)
                for row in tx.connection.execute(_SQL["expire"], (tx.now, sweep.max_crashes, sweep.limit)).fetchall()
            ]
            for sweep in sweeps
        ]

    def recall(self, tx: Tx, recalls: Sequence[Recall]) -> list[int]:
        return [
            tx.connection.execute(_SQL["recall"], (recall.owner, _rows(recall.keep), tx.now)).rowcount
            for recall in recalls
        ]

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        return [self._claim(tx, order) for order in orders]

    def _claim(self, tx: Tx, order: ClaimOrder) -> Claimed:
        execute = tx.connection.execute
        due = execute(_SQL["next_due"]).fetchone()
        if due is not None and due[0] <= tx.now:
            execute(_SQL["promote"], (tx.now, _PROMOTED_AT_ONCE))
            due = execute(_SQL["next_due"]).fetchone()
        found = execute(_SQL["claim"], (_wanted(order), order.limit, order.owner, tx.now, order.lease)).fetchall()
        # RETURNING gives rows in any order.
        runs = sorted((RunRow(*row) for row in found), key=lambda run: (-run.priority, run.run_at, run.id))
        resumed = [run.id for run in runs if run.generation > 1]
        steps: dict[str, list[StepRow]] = {}
        if resumed:
            for row in execute(_SQL["first_steps"], (_rows(resumed), STEP_PAGE)).fetchall():
                steps.setdefault(row[0], []).append(StepRow(*row))
        return Claimed(runs, steps, due and due[0])

    def report_workers(self, tx: Tx, workers: Sequence[WorkerRow]) -> list[None]:
        tx.connection.execute(_SQL["report_workers"], (_rows(workers),))
        return [None] * len(workers)

    def dismiss_workers(self, tx: Tx, worker_ids: Sequence[str]) -> list[None]:
        tx.connection.execute(_SQL["dismiss_workers"], (_rows(worker_ids),))
        return [None] * len(worker_ids)

    # -- reads -------------------------------------------------------------------------------------------------

    def find_runs(self, connection: sqlite3.Connection, filter: RunFilter) -> list[RunRow]:
        text = f"select {_READ_COLUMNS} from holdfast_runs as r where true"
        values: list[Any] = []
        for condition, wanted in (
            ("r.id in (select value from json_each(?))", filter.ids),
            ("r.job_name in (select value from json_each(?))", filter.jobs),
            ("r.status in (select value from json_each(?))", filter.statuses),
        ):
            if wanted:
                text += f" and {condition}"
                values.append(_rows(wanted))
        for key, value in filter.labels:
            text += " and exists (select 1 from holdfast_labels where key = ? and value = ? and run_id = r.id)"
            values += [key, value]
        if filter.before is not None:
            text += " and r.id < ?"
            values.append(filter.before)
        text += " order by r.id desc limit ? offset ?"
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

    def find_workers(self, connection: sqlite3.Connection) -> list[WorkerRow]:
        return [WorkerRow(*row) for row in connection.execute(_SQL["find_workers"]).fetchall()]

    def has_claimable(self, connection: sqlite3.Connection, order: ClaimOrder) -> bool:
        wanted = (_wanted(order), self.clock.now())
        return bool(connection.execute(_SQL["has_claimable"], wanted).fetchone()[0])

    def lost_leases(self, connection: sqlite3.Connection, leases: Sequence[Lease]) -> dict[str, str]:
        return dict(connection.execute(_SQL["lost_leases"], (_rows(leases),)).fetchall())

    def change_mark(self, connection: sqlite3.Connection) -> int | None:
        mark: int = connection.execute("pragma data_version").fetchone()[0]
        return mark


def _path_of(url: str) -> str | None:
    """The file that a URL names; None for a temporary one."""
    scheme, separator, rest = url.partition("://")
    if scheme != "sqlite" or not separator:
        raise ValidationError(f"{url!r} is not an SQLite URL. Write 'sqlite:///path/to/file.db' or 'sqlite://'.")
    if not rest:
        return None
    if not rest.startswith("/") or rest == "/":
        raise ValidationError(
            f"{url!r}: a file is named after three slashes ('sqlite:///app.db'), an absolute one after four."
        )
    path = urllib.parse.unquote(rest[1:])
    if "?" in path or "\0" in path:
        raise ValidationError(f"{url!r}: options in the URL are not supported.")
    return path


def _code(error: sqlite3.Error) -> int:
    # Extended codes carry the primary one in the low byte.
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _wanted(order: ClaimOrder) -> str:
    return _rows([(queue, job) for queue in order.queues for job in order.jobs])


def _fresh(run: NewRun, run_at: int, now: int) -> RunRow:
    """The row that was just inserted, without asking for it."""
    return RunRow(
        run.id, run.job_name, "pending", run.queue, run.priority, run_at, 0, 0, 0, None, None, now, now, None, None,
        None, None, None, None, 0, None, run.idempotency_key, run.concurrency_key, run.tenant, run.labels, run.codec,
        run.trace, run.input, None, None, None,
    )  # fmt: skip


def _statements(text: str) -> Iterator[str]:
    """Single statements; `executescript` would commit the transaction that holds the migration together."""
    gathered = ""
    for line in text.splitlines(keepends=True):
        gathered += line
        if sqlite3.complete_statement(gathered):
            yield gathered
            gathered = ""
