"""What single verbs cost on a server: claims in a large table, and the lock that makes checkpoints safe.

Verbs of the store, by one connection, without an engine. Shapes take turns. Where the server is on this machine, a
claim is timed by the processor time of who serves us there: it says the same whatever else the machine does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import places

from holdfast.basis.clock import SystemClock
from holdfast.model.run import NewRun
from holdfast.model.step import StepRow
from holdfast.store.base import ClaimOrder, Lease, StepSave, Store
from holdfast.store.opening import open_store

LEASE = 60_000_000
TOGETHER = 10
#: Job, its concurrency keys, and whether these are all held (and some runs without a key may go).
SHAPES = {"plain": (0, False), "keys_10": (10, False), "keys_10000": (10_000, False),
          "held_10": (10, True), "held_10000": (10_000, True)}  # fmt: skip
FREE = 1_000


def fill_claims(url: str, pending: int, finished: int) -> None:
    """Of each shape that many pending runs, and that many finished ones."""
    places.add_finished(url, finished)
    now = time.time_ns() // 1000
    for number, (job, (keys, held)) in enumerate(SHAPES.items()):
        common = {"job_name": f"'{job}'", "due": "1", "created_at": str(now), "updated_at": str(now), "input": "'1'"}
        waits = {**common, "status": "'pending'", "run_at": f"{now - pending} + i", "generation": "1"}
        if not keys:
            places.add(url, pending, f"{number}a", **waits, turn="0")
            continue
        key = f"'{job} ' || (i % {keys})" if places.kind_of(url) == "postgres" else f"concat('{job} ', i % {keys})"
        first = f"case when i < {keys} then 0 else 1 end"
        if held:
            leased = {
                "status": "'leased'",
                "turn": "2",
                "lease_owner": "'other'",
                "lease_expires_at": str(now + 10**12),
            }
            holders = {**common, **leased, "job_name": "'holder'", "run_at": str(now)}
            places.add(url, keys, f"{number}h", **holders, concurrency_key=key)
            places.add(url, FREE, f"{number}f", **waits, turn="0")
            first = "1"
        places.add(url, pending - (FREE if held else 0), f"{number}a", **waits, concurrency_key=key, turn=first)
        named = f"insert into holdfast_keys ({'key' if places.kind_of(url) == 'postgres' else '`key`'}, kind)"
        places.rows(url, f"{named} select distinct concurrency_key, 'key' from holdfast_runs "
                         f"where job_name = '{job}' and concurrency_key is not null")  # fmt: skip
    places.settle(url)


def measure_claims(url: str, times: int) -> dict[str, float]:
    """Milliseconds of a claim of ten, of each shape. Rolled back, so that every one meets the same rows."""
    store = open_store(url, clock=SystemClock())
    connection = store.open()
    clock = _clock_of(url, connection)
    took: dict[str, list[float]] = {job: [] for job in SHAPES}
    for _ in range(times + 5):
        for job, seen in took.items():
            tx = store.begin(connection)
            began = clock()
            (claimed,) = store.claim(tx, [ClaimOrder("me", TOGETHER, LEASE, (job,))])
            seen.append(clock() - began)
            if places.kind_of(url) == "postgres":
                connection.pg.pgconn.exec_(b"rollback")  # psycopg itself forgets then what it has prepared
            else:
                store.rollback(tx)
            assert len(claimed.runs) == TOGETHER, (job, len(claimed.runs))
    store.disconnect(connection)
    store.close()
    return {job: statistics.median(seen[5:]) * 1000 for job, seen in took.items()}


def _clock_of(url: str, connection: Any) -> Callable[[], float]:
    """Seconds of processor that the server has spent on this connection; of our clock, if that can't be known."""
    try:
        if places.kind_of(url) == "postgres":
            file = f"/proc/{connection.execute('select pg_backend_pid()').fetchone()[0]}/schedstat"
        else:
            ((thread,),) = connection.ask("select tid from information_schema.processlist where id = connection_id()")
            (file,) = map(str, Path("/proc").glob(f"[0-9]*/task/{thread}/schedstat"))
        with open(file) as there:
            there.read()
    except (OSError, ValueError):
        return time.perf_counter
    return lambda: int(Path(file).read_text().split()[0]) / 1e9


def measure_fence(url: str, runs: int, times: int) -> dict[str, float]:
    """How many times longer a transaction with one checkpoint, or that many, takes for holding its runs."""
    store = open_store(url, clock=SystemClock())
    store.migrate()
    connection = store.open()
    leases = _leases(store, connection, runs)
    took: dict[tuple[int, bool], list[float]] = {(n, locked): [] for n in (1, runs) for locked in (True, False)}
    number = 0
    for _ in range(times + 5):
        for (many, locked), seen in took.items():
            number += 1
            saves = [StepSave("me", _step(lease, number), moved_on=False) for lease in leases[:many]]
            began = time.perf_counter()
            tx = store.begin(connection)
            if locked:
                store.lock(tx, {"save_steps": saves})
            tx.seen["locked"] = True
            assert all(store.save_steps(tx, saves))
            store.commit(tx)
            seen.append(time.perf_counter() - began)
    store.disconnect(connection)
    store.close()
    middle = {shape: statistics.median(seen[5:]) for shape, seen in took.items()}
    return {"one": middle[1, True] / middle[1, False], "together": middle[runs, True] / middle[runs, False],
            "one_ms": middle[1, True] * 1000, "together_ms": middle[runs, True] * 1000}  # fmt: skip


def _leases(store: Store, connection: Any, runs: int) -> list[Lease]:
    tx = store.begin(connection)
    store.trigger(tx, [NewRun(f"{n:026d}", "fenced", "1") for n in range(runs)])
    (claimed,) = store.claim(tx, [ClaimOrder("me", runs, LEASE * 60, ("fenced",))])
    store.commit(tx)
    return [Lease(run.id, run.generation, "me") for run in claimed.runs]


def _step(lease: Lease, number: int) -> StepRow:
    now = time.time_ns() // 1000
    return StepRow(
        lease.run_id, f"step {number}", 0, number, "completed", 0, lease.generation, None, "1", None, now, now
    )
