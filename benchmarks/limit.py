"""The limit: what a bare loop reaches on the same tables with the same promise, and nothing of an engine.

One thread, one connection, every commit synced. It claims a hundred rows, awaits a trivial coroutine for each and
writes their ends together with the next claim. Input and output are JSON, the ends are fenced. No validation, no
answers of the fence, no fence of steps, no events, no replies, no leases kept. An engine that shares its commits as
well as this can only lose what Python spends on the rest. What servers are told is in `limit_servers`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Protocol

import delay
import places
import shared

import engine
from holdfast.store.sqlite import SqliteStore

BATCH = 100

#: Word for word the condition of the index `holdfast_runs_claimable`, else SQLite sorts all that is pending.
_CLAIM = """
update holdfast_runs set status = 'leased', lease_owner = 'w', lease_expires_at = ?1 + 30000000,
  generation = generation + 1, started_at = coalesce(started_at, ?1), updated_at = ?1
where rowid in (
  select rowid from holdfast_runs
  where status = 'pending' and due = 1 and turn <> 1 and queue = 'default' and job_name = 'noop'
  order by priority desc, run_at, id limit ?2)
returning id, input"""
_FINISH = """
update holdfast_runs set status = 'completed', lease_owner = null, lease_expires_at = null, completed_at = ?2,
  updated_at = ?2, output = ?3
where id = ?1 and generation = 1 and lease_owner = 'w'"""
_INSERT = """
insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, input)
values (?1, 'noop', 'pending', ?2, 1, ?2, ?2, ?3)"""
_STEP = """
insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, output, started_at,
  completed_at)
values (?1, ?2, 0, ?3, 'completed', 0, 1, ?4, ?5, ?5)"""


#: Of one run: id, when it ended, output.
End = tuple[str, int, str]
#: Of one step: run, name, position, output, when.
Save = tuple[str, str, int, str, int]


class Loop(Protocol):
    """The connection of a bare loop. Each call is one transaction, and has been synced when it returns."""

    def insert(self, runs: Sequence[tuple[str, int, str]]) -> None:
        """Runs: id, time, input."""

    def turn(self, ended: Sequence[End], now: int, many: int) -> list[tuple[str, str]]:
        """Write these ends and claim up to that many runs: id and input of each."""

    def save(self, saves: Sequence[Save]) -> None:
        """Write these steps."""

    def close(self) -> None:
        """Close it."""


class SqliteLoop:
    """On a SQLite file, with WAL and synchronous=FULL."""

    def __init__(self, url: str) -> None:
        store = SqliteStore(url)
        store.migrate()
        self._connection = store.connect()
        # Holdfast checkpoints by itself; a bare loop leaves that to SQLite.
        self._connection.execute("pragma wal_autocheckpoint = 1000")
        self.close = self._connection.close

    def _together(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        self._connection.execute("begin immediate")
        self._connection.executemany(sql, rows)
        self._connection.execute("commit")

    def insert(self, runs: Sequence[tuple[str, int, str]]) -> None:
        self._together(_INSERT, runs)

    def save(self, saves: Sequence[Save]) -> None:
        self._together(_STEP, saves)

    def turn(self, ended: Sequence[End], now: int, many: int) -> list[tuple[str, str]]:
        connection: sqlite3.Connection = self._connection
        connection.execute("begin immediate")
        connection.executemany(_FINISH, ended)
        rows = connection.execute(_CLAIM, (now, many)).fetchall() if many else []
        connection.execute("commit")
        return rows


def _open(url: str) -> Loop:
    if places.kind_of(url) == "sqlite":
        return SqliteLoop(url)
    import limit_servers  # who has no server needs no driver

    return limit_servers.open_loop(url)


def _now() -> int:
    return time.time_ns() // 1000


async def _noop(number: int) -> int:
    return number


def _insert(loop: Loop, numbers: range) -> None:
    now = _now()
    loop.insert([(f"1{n:025d}", now, json.dumps({"number": n})) for n in numbers])


async def _execute(loop: Loop, runs: int) -> None:
    ended: list[End] = []
    done = 0
    while done < runs:
        now = _now()
        rows = loop.turn(ended, now, BATCH)
        done += len(ended)
        ended = [(id, now, json.dumps(await _noop(**json.loads(text)))) for id, text in rows]


def fill(url: str, work: str, *sizes: int) -> None:
    """Write what is there before: pending runs, and finished ones."""
    pending, finished = shared.filled(work, sizes)
    loop = _open(url)
    _insert(loop, range(pending))
    loop.close()
    if finished:
        places.add_finished(url, finished)
    places.settle(url)


async def drain(url: str, runs: int, pending: int = 0, finished: int = 0) -> dict[str, float]:
    """Execute that many of the pending runs."""
    loop = _open(url)
    used = time.process_time()
    began = time.perf_counter()
    await _execute(loop, runs)
    took = time.perf_counter() - began
    used = time.process_time() - used
    loop.close()
    if runs >= pending:
        places.check(url, runs + finished)
    return {"rate": runs / took, "memory": shared.peak(), "cpu": used / runs * 1e6}


async def checkpoints(url: str, runs: int, steps: int) -> dict[str, float]:
    """That many runs of that many steps, a hundred runs at a time."""
    loop = _open(url)
    used = time.process_time()
    began = time.perf_counter()
    ended: list[End] = []
    for _ in range(0, runs, BATCH):
        now = _now()
        rows = loop.turn(ended, now, BATCH)
        for position in range(steps):
            loop.save([(id, f"s{position}", position, json.dumps(await _noop(position)), now) for id, _ in rows])
        ended = [(id, now, "0") for id, _ in rows]
    loop.turn(ended, _now(), 0)
    took = time.perf_counter() - began
    used = time.process_time() - used
    loop.close()
    places.check(url, runs)
    return {"rate": runs * steps / took, "cpu": used / runs / steps * 1e6}


async def triggers(url: str, runs: int) -> dict[str, float]:
    """That many single insertions, each with its own commit."""
    return await triggers_together(url, runs, 1)


async def triggers_together(url: str, runs: int, callers: int = BATCH) -> dict[str, float]:
    """The same in commits of a hundred."""
    loop = _open(url)
    began = time.perf_counter()
    for first in range(0, runs, callers):
        _insert(loop, range(first, min(first + callers, runs)))
    took = time.perf_counter() - began
    loop.close()
    return {"rate": runs / took}


async def latency(url: str, runs: int, finished: int = 0) -> dict[str, float]:
    """Insert, claim and end of one run after the other, three commits each: milliseconds."""
    loop = _open(url)
    took = []
    for n in range(runs + 1):
        began = time.perf_counter()
        _insert(loop, range(n, n + 1))
        ((id, text),) = loop.turn([], _now(), 1)
        output = json.dumps(await _noop(**json.loads(text)))
        loop.turn([(id, _now(), output)], 0, 0)
        took.append(time.perf_counter() - began)
    loop.close()
    places.check(url, runs + 1 + finished)
    return shared.percentiles(took)


async def family(url: str, children: int) -> dict[str, float]:
    """That many insertions in one commit, and their execution: children a second. Nobody waits for each."""
    loop = _open(url)
    began = time.perf_counter()
    _insert(loop, range(children))
    await _execute(loop, children)
    took = time.perf_counter() - began
    loop.close()
    places.check(url, children)
    return {"rate": children / took}


async def far_drain(url: str, runs: int) -> dict[str, float]:
    """A drain with the database a millisecond away."""
    with delay.far(url, engine.FAR) as away:
        return await drain(away, runs)


async def far_checkpoints(url: str, runs: int, steps: int) -> dict[str, float]:
    """Steps with the database a millisecond away."""
    with delay.far(url, engine.FAR) as away:
        return await checkpoints(away, runs, steps)


async def far_latency(url: str, runs: int) -> dict[str, float]:
    """One run after the other with the database a millisecond away."""
    with delay.far(url, engine.FAR) as away:
        return await latency(away, runs)
