"""The limit: what a bare loop reaches on the same tables with the same promise, and nothing of an engine.

One thread, one connection, WAL, synchronous=FULL. It claims a hundred rows, awaits a trivial coroutine for each and
writes their ends together with the next claim. Input and output are JSON, the ends are fenced. No validation, no
answers of the fence, no fence of steps, no events, no replies, no leases kept. An engine that shares its commits as
well as this can only lose what Python spends on the rest.
"""

from __future__ import annotations

import json
import sqlite3
import time

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


def _open(url: str) -> sqlite3.Connection:
    store = SqliteStore(url)
    store.migrate()
    connection = store.connect()
    # Holdfast checkpoints by itself; a bare loop leaves that to SQLite.
    connection.execute("pragma wal_autocheckpoint = 1000")
    return connection


async def _noop(number: int) -> int:
    return number


def _insert(connection: sqlite3.Connection, numbers: range) -> None:
    now = time.time_ns() // 1000
    connection.execute("begin immediate")
    connection.executemany(_INSERT, [(f"1{n:025d}", now, json.dumps({"number": n})) for n in numbers])
    connection.execute("commit")


async def _execute(connection: sqlite3.Connection, runs: int) -> None:
    ended: list[tuple[str, int, str]] = []
    done = 0
    while done < runs:
        connection.execute("begin immediate")
        now = time.time_ns() // 1000
        connection.executemany(_FINISH, ended)
        rows = connection.execute(_CLAIM, (now, BATCH)).fetchall()
        connection.execute("commit")
        done += len(ended)
        ended = [(id, now, json.dumps(await _noop(**json.loads(text)))) for id, text in rows]


def fill(url: str, work: str, *sizes: int) -> None:
    """Write what is there before: pending runs, and finished ones."""
    pending, finished = shared.filled(work, sizes)
    connection = _open(url)
    _insert(connection, range(pending))
    if finished:
        engine.add_finished(connection, finished)
    connection.close()


async def drain(url: str, runs: int, pending: int = 0, finished: int = 0) -> dict[str, float]:
    """Execute that many of the pending runs."""
    connection = _open(url)
    used = time.process_time()
    began = time.perf_counter()
    await _execute(connection, runs)
    took = time.perf_counter() - began
    used = time.process_time() - used
    connection.close()
    if runs >= pending:
        engine._check(url, runs + finished)
    return {"rate": runs / took, "memory": shared.peak(), "cpu": used / runs * 1e6}


async def checkpoints(url: str, runs: int, steps: int) -> dict[str, float]:
    """That many runs of that many steps, a hundred runs at a time."""
    connection = _open(url)
    used = time.process_time()
    began = time.perf_counter()
    ended: list[tuple[str, int, str]] = []
    for _ in range(0, runs, BATCH):
        now = time.time_ns() // 1000
        connection.execute("begin immediate")
        connection.executemany(_FINISH, ended)
        rows = connection.execute(_CLAIM, (now, BATCH)).fetchall()
        connection.execute("commit")
        for position in range(steps):
            saves = [(id, f"s{position}", position, json.dumps(await _noop(position)), now) for id, _ in rows]
            connection.execute("begin immediate")
            connection.executemany(_STEP, saves)
            connection.execute("commit")
        ended = [(id, now, "0") for id, _ in rows]
    connection.execute("begin immediate")
    connection.executemany(_FINISH, ended)
    connection.execute("commit")
    took = time.perf_counter() - began
    used = time.process_time() - used
    connection.close()
    engine._check(url, runs)
    return {"rate": runs * steps / took, "cpu": used / runs / steps * 1e6}


async def triggers(url: str, runs: int) -> dict[str, float]:
    """That many single insertions, each with its own commit."""
    return await triggers_together(url, runs, 1)


async def triggers_together(url: str, runs: int, callers: int = BATCH) -> dict[str, float]:
    """The same in commits of a hundred."""
    connection = _open(url)
    began = time.perf_counter()
    for first in range(0, runs, callers):
        _insert(connection, range(first, min(first + callers, runs)))
    took = time.perf_counter() - began
    connection.close()
    return {"rate": runs / took}


async def latency(url: str, runs: int, finished: int = 0) -> dict[str, float]:
    """Insert, claim and end of one run after the other, three commits each: milliseconds."""
    connection = _open(url)
    took = []
    for n in range(runs + 1):
        began = time.perf_counter()
        _insert(connection, range(n, n + 1))
        now = time.time_ns() // 1000
        connection.execute("begin immediate")
        ((id, text),) = connection.execute(_CLAIM, (now, 1)).fetchall()
        connection.execute("commit")
        output = json.dumps(await _noop(**json.loads(text)))
        connection.execute("begin immediate")
        connection.execute(_FINISH, (id, time.time_ns() // 1000, output))
        connection.execute("commit")
        took.append(time.perf_counter() - began)
    connection.close()
    engine._check(url, runs + 1 + finished)
    return shared.percentiles(took)


async def family(url: str, children: int) -> dict[str, float]:
    """That many insertions in one commit, and their execution: children a second. Nobody waits for each."""
    connection = _open(url)
    began = time.perf_counter()
    _insert(connection, range(children))
    await _execute(connection, children)
    took = time.perf_counter() - began
    connection.close()
    engine._check(url, children)
    return {"rate": children / took}
