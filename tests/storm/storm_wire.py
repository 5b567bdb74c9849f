"""What goes between a process of the storm and the database: where it may be struck, and which stale writes it tries.

The points are those of the crash campaign, a statement and its how-manieth use, here over the whole life of a process.
`begin with finish#3` is the third round that holds the end of a run: a stop before it surely leaves an end that is
written by whoever is no longer the holder.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import crash_wire
from crash_wire import Wire, name_of
from crash_world import World
from storm_world import Line

from holdfast import Holdfast
from holdfast.store.base import Taken

T = TypeVar("T")

#: What only the holder of a lease may do: the verbs of the store.
FENCED = (
    "save_steps", "finish", "renew_leases", "save_progress", "save_logs", "save_attempts", "save_waits", "take_signals",
)  # fmt: skip
#: Verbs whose rounds have points at their commit, too: of waits and trees.
COMMITTED = ("save_waits", "take_signals", "finish", "send_signals", "cancel", "cancel_below")
Fault = tuple[str, str]


class Storming(Wire):
    """Strikes more than once, at points that are counted from the start of the process."""

    faults: set[Fault]
    serving: Callable[[], Sequence[Any]]

    def storm(self, faults: Collection[Fault]) -> None:
        """Strike at these from now on."""
        self.phase = "storm"
        self.faults = set(faults)
        self.serving = tuple

    def look(self, connection: Any, sql: str, values: dict[str, Any]) -> list[Any]:
        """The rows of a question that is no point, asked within the transaction of this connection of the store."""
        raise NotImplementedError

    def point(self, name: str) -> str | None:
        if threading.current_thread().name in ("holdfast-watch", "holdfast-read"):
            return None  # they ask as often as they like
        with self._lock:
            self._count[name] += 1
            return f"{name}#{self._count[name]}"

    def strike(self, point: str | None, phase: str) -> bool:
        if (point, phase) not in self.faults:
            return False
        assert point is not None
        self.faults.discard((point, phase))
        self.fault = (point, phase)
        return super().strike(point, phase)

    def through(self, name: str, ask: Callable[[], T], lose: Callable[[], object]) -> T:
        """Let a statement of this name pass, or not. `lose` is told that there was no answer."""
        point = self.point(name)
        self.strike(point, "before")
        self.strike(point, "paused")
        committing = threading.current_thread().name == "holdfast-commit"
        verbs = sorted({ticket.verb for ticket in self.serving()}) if committing and name in ("begin", "commit") else []
        if name == "begin":
            for verb in verbs:
                self.strike(self.point(f"begin with {verb}"), "paused")
        points = [self.point(f"commit with {verb}") for verb in verbs if name == "commit" and verb in COMMITTED]
        for one in points:
            self.strike(one, "before")
        answer = ask()
        for one in (point, *points):
            self.strike(one, "after")
        if [one for one in (point, *points) if self.strike(one, "unanswered")]:
            lose()
        return answer


class StormWire(Storming):
    """The way to a file of SQLite."""

    def __init__(self, world: Line, faults: Collection[Fault]) -> None:
        # Nothing but `tell` is used of it.
        stands_for: World = world  # type: ignore[assignment]
        super().__init__(stands_for, "storm", None, None)
        # Statements that were changed by a planted fault keep their names.
        crash_wire._PLANTED.update({text: name for name, text in crash_wire.store._SQL.items()})
        self.storm(faults)

    def passing(self, connection: sqlite3.Connection, sql: str, run: Callable[[str], sqlite3.Cursor]) -> sqlite3.Cursor:
        return self.through(name_of(sql), lambda: run(sql), _lose)

    def look(self, connection: sqlite3.Connection, sql: str, values: dict[str, Any]) -> list[Any]:
        return sqlite3.Connection.execute(connection, sql, values).fetchall()


def _lose() -> None:
    raise sqlite3.OperationalError("the answer was lost")


Look = Callable[[Any, str, dict[str, Any]], list[Any]]


def watch_stale_writes(app: Holdfast, world: Line, look: Look) -> None:
    """Tell the world of each write that is attempted under a lease which somebody else has ended.

    A lease that is over stays so. What the writing would change is looked at within its transaction: nobody can take
    the lease in between. On a server only a round has its runs locked by then; of who writes beside a round what
    stands under its own generation is looked at.
    """
    store: Any = app._engine.store

    def watch(verb: str) -> None:
        def watched(tx: Any, rows: Sequence[Any]) -> Any:
            def content(lease: tuple[str, int]) -> Any:
                return look(tx.connection, _CONTENT[verb], {"run": lease[0], "generation": lease[1]})

            stale = {} if tx.replay else _stale(look, tx.connection, rows)
            # What the holder writes in this very round looks the same.
            held = {_lease_of(row)[0] for index, row in enumerate(rows) if index not in stale} if stale else set()
            locked = not store.locks or "locked" in tx.seen or ":generation" in _CONTENT[verb]
            looked = {index: lease for index, lease in stale.items() if locked and lease[0] not in held}
            if looked:
                assert tx.now > 0, "whoever is asked for it has locked what was to be locked, and put off until now"
            before = {index: content(lease) for index, lease in looked.items()}
            answers = getattr(type(store), verb)(store, tx, rows)
            if stale:
                accepted = {index for index in stale if _accepted(answers[index])}
                accepted |= {index for index, lease in looked.items() if content(lease) != before[index]}
                shown = stale[min(accepted or stale)]
                world.tell("stale", verb=verb, count=len(stale), changed=len(accepted), of=shown[0], gen=shown[1])
            return answers

        setattr(store, verb, watched)

    for verb in FENCED:
        watch(verb)


def _stale(look: Look, connection: Any, rows: Sequence[Any]) -> dict[int, tuple[str, int]]:
    """The leases of those rows whose run is gone, or has a later generation than theirs; without what was cancelled."""
    leases = [_lease_of(row) for row in rows]
    runs = {f"run{number}": run for number, run in enumerate(sorted({run for run, _ in leases}))}
    marks = ", ".join(f":{name} " for name in runs)
    found = look(connection, f"select id, generation, status from holdfast_runs where id in ({marks})", runs)
    now = {run: (generation, status) for run, generation, status in found}
    return {
        index: (run, generation)
        for index, (run, generation) in enumerate(leases)
        if now.get(run, (-1, ""))[0] != generation and now.get(run, (-1, ""))[1] != "cancelled"
    }


def _lease_of(row: Any) -> tuple[str, int]:
    if (wait := getattr(row, "wait", None)) is not None:
        return wait.run_id, row.generation
    for part in ("lease", "step", "attempt", "line", "row"):
        if (one := getattr(row, part, None)) is not None:
            return one.run_id, one.generation
    raise AssertionError(f"no lease in {row}")


def _accepted(answer: Any) -> bool:
    if isinstance(answer, Taken):
        return answer.status in ("taken", "late")
    return bool(getattr(answer, "accepted", answer))


#: What the writing would change, whatever its answer says. Each value has a blank behind it.
_CONTENT = {
    "save_steps": "select count(*) from holdfast_steps where run_id = :run and generation = :generation ",
    "save_attempts": "select count(*) from holdfast_step_attempts where run_id = :run and generation = :generation ",
    "save_logs": "select count(*) from holdfast_logs where run_id = :run and generation = :generation ",
    "save_progress": "select progress, updated_at from holdfast_progress where run_id = :run ",
    "save_waits": "select key, until, created_at from holdfast_waits where run_id = :run order by key ",
    "take_signals": "select id, consumed_by from holdfast_signals where run_id = :run order by id ",
    "finish": "select status, output, attempt, completed_at from holdfast_runs where id = :run ",
    "renew_leases": "select lease_expires_at from holdfast_runs where id = :run ",
}
