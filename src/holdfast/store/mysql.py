"""MariaDB: many writers at a time, on many machines.

The rows of a round are one JSON array in the text of the statement (`$1`), taken apart by `json_table`. Transactions
are READ COMMITTED: what a statement has waited for, the next one sees. `several_writers` says what is locked when.

An update gives nothing back here, and finds no rows for itself without locking what it reads. So what others do with
one statement is several: look without locking; lock by primary key what was found, the rows of keys before the rows of
runs; look again, change it, and say what it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pymysql
from pydantic_core import from_json

from ..basis.clock import Clock
from ..basis.errors import ValidationError
from ..model.run import NewRun, RunFilter, RunRow
from .base import ClaimOrder, Old, Triggered, Tx
from .mysql_listing import listing, question
from .mysql_moving import MysqlMovable
from .mysql_place import Link
from .mysql_server import MysqlServer
from .mysql_words import FRONT, LOCKED_FRONT, SQL, filled, rows_of, split
from .schema import Schema
from .several_writers import SeveralWriters

#: Characters of what is found by: the columns are not wider, because no index could be.
LONGEST = 255
LONGEST_ID = 64

#: More are looked at than are taken, so that those which somebody holds locked do not stand before the others.
_LOOKED_AT = 4

#: Runs that have ended, below which one look finds nothing left.
_SETTLED_AT_ONCE = 10_000


class MysqlStore(SeveralWriters, MysqlServer, MysqlMovable):
    """The store of `mysql://user:password@host/database`.

    `lease` is the shortest lease in seconds that anybody takes here; `clock` replaces the database's own time, for
    tests.
    """

    _driver_error = pymysql.Error
    _lines_are_guarded = False

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        lease: float = 30.0,
        lock_timeout: float = 10.0,
        schema: Schema | None = None,
    ) -> None:
        super().__init__(url, clock=clock, lease=lease, lock_timeout=lock_timeout, schema=schema)
        self._several: dict[str, Callable[..., Any]] = {
            "bring_forward": self._say_bring_forward,
            "hold_back": self._say_hold_back,
            "recall": self._say_recall,
            "promote": self._say_promote,
            "expire": self._say_expired,
            "pass_deadlines": self._say_late,
            "wake": self._say_wake,
            "sleepers_due": self._say_sleepers_due,
            "take_signals": self._say_take_signals,
            "leave_going": self._say_leave_going,
            "go_through": self._say_go_through,
            "cancel_below": self._say_cancel_below,
            "settle_trees": self._say_settle_trees,
            "forget_workers": self._say_forget_workers,
            "renew_leases": self._told("renew_leases"),
            "finish": self._told("finish"),
            "cancel": self._told("cancel"),
        }

    # -- how to say it -----------------------------------------------------------------------------------------

    def _ask(self, connection: Any, name: str, rows: Sequence[Any], *values: Any) -> list[Any]:
        if (several := self._several.get(name)) is not None:
            found: list[Any] = several(connection, rows, *values)
            return found
        return self._found(connection, name, rows, *values)

    def _do(self, connection: Any, name: str, rows: Sequence[Any], *values: Any) -> int:
        if (several := self._several.get(name)) is not None:
            changed: int = several(connection, rows, *values)
            return changed
        return self._change(connection, name, rows, *values)

    def _find(self, connection: Any, name: str, *values: Any) -> list[Any]:
        if (several := self._several.get(name)) is not None:
            found: list[Any] = several(connection, *values)
            return found
        link: Link = connection
        return link.ask(filled(SQL[name], values))

    def _found(self, link: Link, name: str, rows: Sequence[Any], *values: Any) -> list[Any]:
        return link.ask(filled(SQL[name], (rows_of(rows), *values)))

    def _change(self, link: Link, name: str, rows: Sequence[Any], *values: Any) -> int:
        return link.do(filled(SQL[name], (rows_of(rows), *values)))

    def _told(self, name: str) -> Callable[..., list[Any]]:
        """Says which rows will be changed, holds them, and changes them."""

        def several(link: Link, rows: Sequence[Any], *values: Any) -> list[Any]:
            said = (rows_of(rows), *values)
            return link.first(f"{filled(SQL[f'told_{name}'], said)};\n{filled(SQL[name], said)}")

        return several

    def _read_now(self) -> int | None:
        return self.clock.now() if self._turned else None

    def _time(self, now: int) -> int:
        return self.clock.now() if self._turned else now

    # -- what takes several statements -------------------------------------------------------------------------

    def _hold(self, tx: Tx, keys: Iterable[str]) -> None:
        held: set[str] = tx.seen.setdefault("keys", set())
        if wanted := sorted(set(keys) - held):
            self._change(tx.connection, "hold_keys", wanted)
            held.update(wanted)

    def _lockable(self, link: Link, found: Sequence[tuple[str, str | None]]) -> list[str]:
        """Of these runs, each with its key, those without one and those whose key nobody else has locked; it is now."""
        keys = sorted({key for _, key in found if key is not None})
        mine = {key for (key,) in self._found(link, "lock_free_keys", keys)} if keys else set()
        return [run_id for run_id, key in found if key is None or key in mine]

    def _say_bring_forward(self, link: Link, keys: Sequence[str]) -> int:
        first = [run_id for (run_id,) in self._found(link, "front_of_keys", keys)]
        return self._change(link, "bring_forward", first) if first else 0

    def _say_hold_back(self, link: Link, keys: Sequence[str]) -> int:
        there = [run_id for (run_id,) in self._found(link, "line_of_keys", keys)]
        return self._change(link, "hold_back", there) if there else 0

    def _say_recall(self, link: Link, keep: Sequence[str], owner: str, now: int) -> int:
        kept = set(keep)
        unknown = [run_id for (run_id,) in self._find(link, "leased_to", owner) if run_id not in kept]
        mine = [run_id for (run_id,) in self._found(link, "lock_leased", unknown, owner)] if unknown else []
        return self._change(link, "recall", mine, now) if mine else 0

    def _say_promote(self, link: Link, now: int, limit: int) -> list[Any]:
        ids = self._lockable(link, self._find(link, "look_for_delayed", now, limit))
        mine = self._found(link, "lock_delayed", ids) if ids else []
        if mine:
            self._change(link, "promote", [run_id for run_id, _ in mine])
        return [(key,) for _, key in mine]

    def _say_expired(self, link: Link, now: int, max_crashes: int, limit: int) -> list[Any]:
        return self._take_from_holders(link, "expire", "expired", limit, now, max_crashes)

    def _say_late(self, link: Link, now: int, limit: int) -> list[Any]:
        return self._take_from_holders(link, "pass_deadlines", "late", limit, now)

    def _take_from_holders(self, link: Link, verb: str, what: str, limit: int, now: int, *more: int) -> list[Any]:
        found = self._find(link, f"look_for_{what}", now, limit * _LOOKED_AT)
        ids = self._lockable(link, [row[:2] for row in found])
        # Their end may wake the run above, which whoever ends the others below it holds, too.
        above = {run_id: (parent, key) for run_id, _, parent, key in found if parent is not None}
        if above:
            free = set(self._lock_free(link, self._lockable(link, [*set(above.values())])))
            ids = [run_id for run_id in ids if run_id not in above or above[run_id][0] in free]
        mine = [run_id for (run_id,) in self._found(link, f"lock_{what}", ids, now, limit)] if ids else []
        if not mine:
            return []
        self._change(link, verb, mine, now, *more)
        return self._found(link, "runs", mine)

    def _lock_free(self, link: Link, ids: Sequence[str]) -> list[str]:
        """Those of these runs that nobody else has locked; it is now."""
        return [run_id for (run_id,) in self._found(link, "lock_free_runs", sorted(ids))] if ids else []

    def _say_wake(self, link: Link, ids: Sequence[str], now: int) -> list[Any]:
        woken = self._found(link, "told_wake", ids, now)
        if woken:
            self._change(link, "wake", [run_id for run_id, _ in woken], now)
        return woken

    def _say_sleepers_due(self, link: Link, now: int, limit: int) -> list[Any]:
        found = self._find(link, "look_for_sleepers", now, limit)
        return [(run_id,) for run_id in self._lock_free(link, self._lockable(link, found))]

    def _say_take_signals(self, link: Link, takes: Sequence[Any]) -> int:
        oldest = self._found(link, "oldest_signals", takes)
        return self._change(link, "take_signals", oldest) if oldest else 0

    def _say_leave_going(self, link: Link, ids: Sequence[str]) -> int:
        mine = [run_id for (run_id,) in self._found(link, "left_going", ids)]
        return self._change(link, "leave_going", mine) if mine else 0

    def _say_go_through(self, link: Link, limit: int) -> list[Any]:
        mine = self._lock_free(link, [run_id for (run_id,) in self._find(link, "look_through", limit)])
        if mine:
            self._change(link, "go_through", mine)
        return mine

    def _say_cancel_below(self, link: Link, now: int, limit: int) -> list[Any]:
        ids = self._lockable(link, self._find(link, "look_below", limit * _LOOKED_AT))
        mine = [run_id for (run_id,) in self._found(link, "lock_below", ids, limit)] if ids else []
        if not mine:
            return []
        self._change(link, "cancel_below", mine, now)
        return self._found(link, "runs", mine)

    def _say_settle_trees(self, link: Link) -> list[Any]:
        mine = self._lock_free(link, [run_id for (run_id,) in self._find(link, "look_for_settled", _SETTLED_AT_ONCE)])
        if mine:
            self._change(link, "settle_trees", mine)
        return []

    def _say_forget_workers(self, link: Link, now: int, leases: int, limit: int) -> list[Any]:
        old = self._find(link, "old_workers", now, leases, limit)
        return old[: self._change(link, "forget_old", [worker for (worker,) in old], now, leases)] if old else []

    # -- verbs -------------------------------------------------------------------------------------------------

    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        for run in runs:
            for text in (run.job_name, run.queue, run.idempotency_key, run.concurrency_key, run.tenant):
                # `insert ignore` would cut it.
                if text is not None and len(text) > LONGEST:
                    raise ValidationError(f"{self.name}: a name or key has more than {LONGEST} characters.")
            if len(run.id) > LONGEST_ID:
                raise ValidationError(f"{self.name}: an id has more than {LONGEST_ID} characters.")
        if tx.lent and tx.seen["isolation"] != "READ-COMMITTED" and any(run.concurrency_key for run in runs):
            raise ValidationError(
                "connection: with a concurrency key its transaction must be READ COMMITTED: any other doesn't see who "
                "stands in line now."
            )
        return super().trigger(tx, runs)

    def _insert(self, tx: Tx, rows: Sequence[Any]) -> list[Any]:
        lined = [row for row in rows if _line(row) is not None]
        if not lined:
            return super()._insert(tx, rows)
        taken = {_line(lined[at]) for (at,) in self._found(tx.connection, "taken_lines", lined)}
        if len({_line(row) for row in lined}) < len(lined):
            rows = self._first_of_lines(tx, rows, taken)
        else:
            rows = [row for row in rows if _line(row) not in taken]
        return super()._insert(tx, rows) if rows else []

    def _first_of_lines(self, tx: Tx, rows: Sequence[Any], taken: set[Any]) -> list[Any]:
        """Of these rows those that would be written, one after the other in this order."""
        unlined = [(*row[:7], None, *row[8:]) for row in rows if row[6] is not None]
        made = {run_id for (run_id,) in super()._insert(tx, unlined)} if unlined else set()
        if made:
            # From now on their idempotency keys are ours, and those of the others are somebody's.
            self._change(tx.connection, "take_out", sorted(made))
        free = {_idempotency(row) for row in rows if row[0] in made}
        there = {state[0] for state in self._found(tx.connection, "states", [row[0] for row in rows])}
        chosen = []
        for row in rows:
            key, line = _idempotency(row), _line(row)
            if row[0] in there or (row[6] is not None and key not in free) or line in taken:
                continue
            free.discard(key)
            if line is not None:
                taken.add(line)
            chosen.append(row)
        return chosen

    def _label(self, tx: Tx, runs: Sequence[NewRun]) -> None:
        rows = [(run.id, key, value) for run in runs for key, value in from_json(run.labels).items()]
        self._change(tx.connection, "insert_labels", rows)

    def _take(self, tx: Tx, verb: str, wanted: Sequence[Any], many: int, order: ClaimOrder) -> list[Any]:  # noqa: ARG002 - room is in `wanted`
        """The first `many` in claim order, leased."""
        if not wanted or many <= 0:
            return []
        link: Link = tx.connection
        front = " union all ".join(
            filled(split(FRONT.format(key=key, kind=kind, number=number, many=many)), (queue, job))
            for number, (queue, job, _) in enumerate(wanted)
            for kind, key in ((1, "null"), (2, "p.concurrency_key"))
        )
        found = link.ask(f"{front} order by 3 desc, 4, 1 limit {many}")
        free: dict[int, int] = {}
        keyed: list[tuple[str, str | None]] = []
        room = {job: left for _, job, left in wanted if left is not None}
        for run_id, key, _, _, number in found:
            job = wanted[number][1]
            if job in room:
                room[job] -= 1
                if room[job] < 0:
                    continue
            if key is None:
                free[number] = free.get(number, 0) + 1
            else:
                keyed.append((run_id, key))
        taken: list[RunRow] = []
        if free:
            parts = [filled(LOCKED_FRONT, (*wanted[number][:2], count)) for number, count in free.items()]
            taken = [RunRow(*row) for row in link.ask(" union all ".join(parts))]
        may_go = self._lockable(link, keyed) if keyed else []
        if len(taken) < sum(free.values()) or len(may_go) < len(keyed):
            tx.seen["more"] = True  # somebody else has them, for now
        if may_go:
            mine = [RunRow(*row) for row in self._found(link, "lock_keyed", may_go, rows_of(wanted))]
            taken += mine
            refused = set(may_go).difference([run.id for run in mine])
            if refused and (late := [run_id for (run_id,) in self._found(link, "out_of_turn", sorted(refused))]):
                # They stood before others that may go.
                self._change(link, "hold_back", late)
                tx.seen["more"] = True
        if taken:
            self._change(link, "lease", [run.id for run in taken], order.owner, tx.now, order.lease)
        # They are locked: what has just been written is known.
        return [
            run._replace(
                status="leased",
                lease_owner=order.owner,
                lease_expires_at=tx.now + order.lease,
                generation=run.generation + 1,
                started_at=tx.now if run.started_at is None else run.started_at,
                updated_at=tx.now,
            )
            for run in taken
        ]

    def find_runs(self, connection: Any, filter: RunFilter) -> list[RunRow]:
        text, values = listing(filter)
        return [RunRow(*row) for row in connection.ask(filled(split(text), values))]

    def _old(self, connection: Any, old: Old) -> Iterable[tuple[str, int]]:
        text, values = question(old)
        found: list[tuple[str, int]] = connection.ask(filled(split(text), values))
        return found

    def change_mark(self, connection: Any) -> int | None:  # noqa: ARG002 - there is none
        return None


def _line(row: Sequence[Any]) -> tuple[str, str] | None:
    """In which of those that were never claimed only the first counts. Runs below others queue."""
    return (row[1], row[7]) if row[7] is not None and row[16] is None else None


def _idempotency(row: Sequence[Any]) -> tuple[str, str, str]:
    return row[9], row[1], row[6]
