"""What goes between this process and the database: every statement has a name, a number, and may be its last.

A *point* is a statement and its how-manieth use within the operation that is looked at: `commit#2`. Names instead of
one long count, so that it doesn't matter in which order threads get their turn. A fault strikes at one point:

* `before`, `after`: SIGKILL, to ourselves, around the statement. What is between two statements is `after` the first.
* `unanswered` (commits): it is done, and the program is told that it failed.
* `paused` (begins): SIGSTOP before the write. Somebody else takes over meanwhile; then we go on as if nothing were.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from crash_world import World

from holdfast.store import sqlite as store
from holdfast.store.sqlite_place import FileConnection

_ = store._SQL["claim"]  # the first one that is asked for reads them all
_NAMES = {text: name for name, text in store._SQL.items()}
_OPENING = (
    "pragma",
    "select 1 from sqlite_master",
    "select coalesce(max(number), 0) from holdfast_migrations",
    "select max(number) from holdfast_migrations",  # at each begin; a kill there is one right after it
    "select value from holdfast_meta",
)
#: What only the holder of a lease may do.
FENCED = ("renew_leases", "save_progress", "save_logs", "save_attempts", "save_steps", "finish")

#: Planted faults: how a statement looks without one of its guards.
MUTANTS: dict[str, dict[str, Callable[[str], str]]] = {
    "checkpoint without its fence": {"save_steps": lambda text: _cut(text, _fence("e", 7, 0))},
    "checkpoint not unique": {
        # The table is without its primary key as well: see crash_field.
        "save_steps": lambda text: text[: text.index("on conflict")] + "returning run_id, name, occurrence, generation",
    },
    "expired lease never reclaimed": {"expire": lambda text: _cut(text, "status = 'leased' and", "false and")},
    "end without its fence": {"finish": lambda text: _cut(text, _fence("e", 1, 2))},
    "renewal without its fence": {
        "renew_leases": lambda text: _cut(text, _fence("e", 1, 2), " and r.status = 'leased'"),
    },
    "log without its fence": {"save_logs": lambda text: _cut(text, _fence("e", 1, 2))},
    "progress without its fence": {"save_progress": lambda text: _cut(text, _fence("e", 1, 2))},
    "try without its fence": {"save_attempts": lambda text: _cut(text, _fence("e", 7, 0))},
    "failed tries not counted": {"failed_tries": lambda text: _cut(text, "a.error is not null", "false")},
    "checkpoints not loaded on takeover": {
        "first_steps": lambda text: _cut(text, "s.position < ?2", "s.position < 0 * ?2")
    },
    "idempotency key not kept": {"insert_runs": lambda text: _cut(text, "value ->> 6", "null")},
    "commit that keeps nothing": {"commit": lambda text: "rollback"},
    "output not kept": {"finish": lambda text: _cut(text, "output = e.value ->> 5", "output = e.value ->> 6")},
    "cancel not guarded by status": {
        "cancel": lambda text: _cut(text, " and status in ('pending', 'leased', 'waiting')"),
    },
    "delete not guarded by status": {
        "forgettable": lambda text: _cut(text, "when r.completed_at is null then r.status"),
        "delete_runs": lambda text: _cut(text, " and completed_at is not null"),
    },
    "half a deletion": {"delete_logs": lambda text: text + " and false"},
    "outputs dropped while the run may go on": {
        "forgettable": lambda text: _cut(text, "when r.completed_at is null then r.status"),
    },
}


MUTANTS |= {
    "key not passed on at an end": {
        "finish": lambda text: _cut(text, "iif(status = 'pending', null, concurrency_key)", "null")
    },
    "key not passed on at a cancel": {
        "cancel": lambda text: _cut(text, "returning id, concurrency_key", "returning id, null")
    },
    "key not asked for by a claim": {
        # The table is without its unique index as well: see crash_field.
        "claim": lambda text: _cut(text, "where c.concurrency_key is null or", "where true or"),
        "bring_forward": lambda text: _cut(text, "h.turn = 2", "h.turn = 3"),
    },
    "one waiting run per key, claimed before or not": {},  # an index: see crash_field
}


def _fence(row: str, generation: int, owner: int) -> str:
    return f" and r.generation = {row}.value ->> {generation} and r.lease_owner = {row}.value ->> {owner}"


def _cut(text: str, part: str, by: str = "") -> str:
    assert part in text, f"the statement has changed; adapt the planted fault: {text}"
    return text.replace(part, by)


def name_of(sql: str) -> str:
    """What a statement is called here."""
    if sql in _NAMES:
        return _NAMES[sql]
    if sql in ("begin immediate", "commit", "rollback"):
        return sql.split()[0]
    if sql.startswith("select old.id"):
        return "find_old"
    if sql.startswith("select") and " holdfast_runs as r " in sql:
        return "find_runs"
    if sql.startswith("pragma data_version"):
        return "change_mark"
    if sql.startswith(_OPENING):
        return "open: " + " ".join(sql.split()[:2])
    return f"unknown: {sql[:60]}"


class _Fetched:
    """A cursor whose rows were fetched already."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self.rowcount = cursor.rowcount
        self._rows = cursor.fetchall()

    def fetchall(self) -> list[Any]:
        return self._rows


class Wire:
    """Counts the points of one operation, and strikes at one of them."""

    def __init__(self, world: World, operation: str, fault: tuple[str, str] | None, mutant: str | None) -> None:
        self.world = world
        self.operation = operation
        self.fault = fault
        """Point and phase."""
        self.phase = ""
        self.points: list[str] = []
        self.was_paused = False
        self._changes = MUTANTS[mutant] if mutant else {}
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def attach(self) -> None:
        """From now on every connection that is opened in this process goes through here."""
        wire, connect = self, sqlite3.connect

        class Counted(FileConnection):
            def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:  # type: ignore[override]
                return wire.passing(self, sql, lambda text: FileConnection.execute(self, text, *values))

        sqlite3.connect = lambda *args, **more: connect(*args, **{**more, "factory": Counted})  # type: ignore[assignment]

    def reach(self, phase: str) -> None:
        """The program has come to this operation."""
        self.phase = phase

    def point(self, name: str) -> str | None:
        """Count a point of this name; None if it is not looked at now."""
        watching = threading.current_thread().name == "holdfast-watch"  # as often as it likes
        if self.phase != self.operation or watching or name.startswith("open: ") != (self.operation == "open"):
            return None
        with self._lock:
            self._count[name] += 1
            found = f"{name}#{self._count[name]}"
            self.points.append(found)
        return found

    def strike(self, point: str | None, phase: str) -> bool:
        """Do what is to be done here, if anything is. Does not return from a SIGKILL."""
        if point is None or self.fault != (point, phase):
            return False
        self.fault = None
        self.world.tell("fault", point=point, phase=phase)
        if phase in ("before", "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        if phase == "paused":
            # To this very thread: sent to the process, others might take it while this one goes on for a while.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            self.was_paused = True
        return True

    def at(self, name: str) -> None:
        """A point in the program itself, not in what it tells the database."""
        point = self.point(name)
        self.strike(point, "before")

    def passing(self, connection: sqlite3.Connection, sql: str, run: Callable[[str], sqlite3.Cursor]) -> sqlite3.Cursor:
        name = name_of(sql)
        point = self.point(name)
        self.strike(point, "before")
        self.strike(point, "paused")
        before = connection.total_changes
        change = self._changes.get(name)
        cursor = run(sql if change is None else change(sql))
        if self.was_paused and name in FENCED:
            # SQLite counts the changes of a statement only once its rows are fetched.
            cursor = _Fetched(cursor)  # type: ignore[assignment]
            self.world.tell("stale", verb=name, changed=connection.total_changes - before)
        self.strike(point, "after")
        if self.strike(point, "unanswered"):
            raise sqlite3.OperationalError("the answer was lost")
        return cursor
