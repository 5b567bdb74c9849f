"""What goes between this process and the database: every statement has a name, a number, and may be its last.

A *point* is a statement and its how-manieth use within the operation that is looked at: `commit#2`. Names instead of
one long count, so that it doesn't matter in which order threads get their turn. A fault strikes at one point:

* `before`, `after`: SIGKILL, to ourselves, around the statement. What is between two statements is `after` the first.
* `unanswered` (commits): it is done, and the program is told that it failed.
* `paused` (begins): SIGSTOP before the write. Somebody else takes over meanwhile; then we go on as if nothing were.
"""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crash_world import World

from holdfast.store import sqlite as store
from holdfast.store.sqlite_place import FileConnection

sys.path.append(str(Path(__file__).parents[1] / "mutants"))
from mutants import MUTANTS as MUTANTS
from mutants import plant

_ = store._SQL["claim"]  # the first one that is asked for reads them all
_NAMES = {text: name for name, text in store._SQL.items()}
_OPENING = (
    "pragma",
    "select 1 from sqlite_master",
    "select coalesce(max(number), 0) from holdfast_migrations",
    "select max(number) from holdfast_migrations",  # at each begin; a kill there is one right after it
    "select 1 from holdfast_migrations where number",
    "select value from holdfast_meta",
)
#: What only the holder of a lease may do.
FENCED = (
    "renew_leases", "save_progress", "save_logs", "save_attempts", "save_steps", "finish", "save_waits", "take_signals",
)  # fmt: skip


#: The names of statements without one of their guards.
_PLANTED: dict[str, str] = {}


def name_of(sql: str) -> str:
    """What a statement is called here."""
    if (name := _NAMES.get(sql) or _PLANTED.get(sql)) is not None:
        return name
    if sql in ("begin immediate", "commit", "rollback"):
        return sql.split()[0]
    if sql.startswith("select old.id"):
        return "find_old"
    if sql.startswith("select") and " holdfast_runs as r " in sql:
        return "find_runs"
    if sql.startswith("pragma data_version"):
        return "change_mark"
    if " charges " in sql:
        return "rows of the user's: " + sql.split()[0]
    if " from temp.sqlite_master" in sql:
        return "hidden tables"
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
        if mutant is not None:
            plant(mutant)
            _PLANTED.update({text: name for name, text in store._SQL.items()})
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def attach(self) -> None:
        """From now on every connection that is opened in this process goes through here."""
        wire, connect = self, sqlite3.connect

        @functools.cache
        def counted(kind: type[FileConnection]) -> type[FileConnection]:
            class Counted(kind):  # type: ignore[misc, valid-type]
                def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                    return wire.passing(self, sql, lambda text: kind.execute(self, text, *values))

            return Counted

        def connected(*args: Any, factory: type[FileConnection] = FileConnection, **more: Any) -> Any:
            return connect(*args, factory=counted(factory), **more)

        sqlite3.connect = connected

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
        cursor = run(sql)
        if self.was_paused and name in FENCED:
            # SQLite counts the changes of a statement only once its rows are fetched.
            cursor = _Fetched(cursor)  # type: ignore[assignment]
            self.world.tell("stale", verb=name, changed=connection.total_changes - before)
        self.strike(point, "after")
        if self.strike(point, "unanswered"):
            raise sqlite3.OperationalError("the answer was lost")
        return cursor
