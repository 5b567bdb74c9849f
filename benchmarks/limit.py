"""The limit: what a bare loop reaches on the same tables with the same promise, and nothing of an engine.

One thread, one connection, WAL, synchronous=FULL. It claims a hundred rows, awaits a trivial coroutine for each and
writes their ends together with the next claim. No validation, no fencing answers, no events, no replies, no leases
kept. An engine that shares its commits as well as this can only lose what Python spends on the rest.
"""

from __future__ import annotations

import json
import sqlite3
import time

from holdfast.store.sqlite import SqliteStore

BATCH = 100

_CLAIM = """
update holdfast_runs set status = 'leased', lease_owner = 'w', lease_expires_at = ?1 + 30000000,
  generation = generation + 1, started_at = coalesce(started_at, ?1), updated_at = ?1
where rowid in (
  select rowid from holdfast_runs where status = 'pending' and due = 1 and queue = 'default' and job_name = 'noop'
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


def fill(url: str, runs: int) -> None:
    """Write pending runs."""
    connection = _open(url)
    connection.execute("begin immediate")
    now = time.time_ns() // 1000
    connection.executemany(_INSERT, [(f"{n:026d}", now, json.dumps({"number": n})) for n in range(runs)])
    connection.execute("commit")
    connection.close()


async def drain(url: str, runs: int) -> float:
    """Seconds to execute that many pending runs."""
    fill(url, runs)
    connection = _open(url)
    began = time.perf_counter()
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
    took = time.perf_counter() - began
    connection.close()
    return took


async def checkpoints(url: str, runs: int, steps: int) -> float:
    """Seconds for that many runs of that many steps, a hundred runs at a time."""
    fill(url, runs)
    connection = _open(url)
    began = time.perf_counter()
    for _ in range(0, runs, BATCH):
        now = time.time_ns() // 1000
        connection.execute("begin immediate")
        rows = connection.execute(_CLAIM, (now, BATCH)).fetchall()
        connection.execute("commit")
        for position in range(steps):
            saves = [(id, f"s{position}", position, json.dumps(await _noop(position)), now) for id, _ in rows]
            connection.execute("begin immediate")
            connection.executemany(_STEP, saves)
            connection.execute("commit")
        connection.execute("begin immediate")
        connection.executemany(_FINISH, [(id, now, "0") for id, _ in rows])
        connection.execute("commit")
    took = time.perf_counter() - began
    connection.close()
    return took


async def triggers(url: str, runs: int) -> float:
    """Seconds for that many single insertions, each with its own commit."""
    connection = _open(url)
    began = time.perf_counter()
    for n in range(runs):
        connection.execute("begin immediate")
        now = time.time_ns() // 1000
        connection.execute(_INSERT, (f"{n:026d}", now, json.dumps({"number": n})))
        connection.execute("commit")
    took = time.perf_counter() - began
    connection.close()
    return took


async def triggers_together(url: str, runs: int) -> float:
    """Seconds for the same in commits of a hundred."""
    connection = _open(url)
    began = time.perf_counter()
    for first in range(0, runs, BATCH):
        now = time.time_ns() // 1000
        connection.execute("begin immediate")
        rows = [(f"{n:026d}", now, json.dumps({"number": n})) for n in range(first, first + BATCH)]
        connection.executemany(_INSERT, rows)
        connection.execute("commit")
    took = time.perf_counter() - began
    connection.close()
    return took


async def latency(url: str, runs: int) -> list[float]:
    """Seconds of insert, claim and end of one run after the other: three commits each."""
    connection = _open(url)
    times = []
    for n in range(runs):
        began = time.perf_counter()
        for sql in ("insert", "claim", "finish"):
            now = time.time_ns() // 1000
            connection.execute("begin immediate")
            if sql == "insert":
                connection.execute(_INSERT, (f"{n:026d}", now, json.dumps({"number": n})))
            elif sql == "claim":
                ((id, text),) = connection.execute(_CLAIM, (now, 1)).fetchall()
            else:
                connection.execute(_FINISH, (id, now, json.dumps(await _noop(**json.loads(text)))))
            connection.execute("commit")
        times.append(time.perf_counter() - began)
    connection.close()
    return times
