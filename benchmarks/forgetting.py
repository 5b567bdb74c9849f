"""What forgetting costs: the index by ends at each end, and a purge to those who trigger beside it.

`python benchmarks/forgetting.py finish 21` · `python benchmarks/forgetting.py purge 40000`
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

from holdfast import Holdfast
from holdfast.model.run import NewRun
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease
from holdfast.store.sqlite import SqliteStore
from holdfast.testing.clock import HandClock

RUNS = 10_000


def finish(*, index: bool) -> float:
    """Microseconds of processor time that the end of one run takes, 100 ends a round, nothing synced."""
    clock = HandClock()
    store = SqliteStore("sqlite://", clock=clock)
    store.migrate()
    connection = store.connect()
    connection.execute("pragma synchronous = off")
    if not index:
        connection.execute("drop index holdfast_runs_ended")
    tx = store.begin(connection)
    store.trigger(tx, [NewRun(f"{number:026d}", "job", '{"n":1}') for number in range(RUNS)])
    (claimed,) = store.claim(tx, [ClaimOrder("me", RUNS, 10**9, ("job",))])
    store.commit(tx)
    leases = [Lease(run.id, run.generation, "me") for run in claimed.runs]
    began = time.process_time()
    for first in range(0, RUNS, 100):
        clock.advance(0.01)
        tx = store.begin(connection)
        store.finish(tx, [Ending(lease, TABLE[Cause.COMPLETE], "1") for lease in leases[first : first + 100]])
        store.commit(tx)
    took = time.process_time() - began
    store.disconnect(connection)
    store.close()
    return took / RUNS * 1e6


def compare(rounds: int) -> None:
    """With the index and without, in pairs, in random order."""
    got: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for index in random.sample([True, False], 2):
            got[index].append(finish(index=index))
    for index, values in got.items():
        name = "with the index" if index else "without"
        print(f"{name:<16}{statistics.median(values):.2f} us/run ({min(values):.2f}-{max(values):.2f})")
    pairs = zip(got[True], got[False], strict=True)
    print(f"median of the ratios {statistics.median([one / other for one, other in pairs]):.3f}")


_MANY = "with recursive n(i) as (select 0 union all select i + 1 from n where i < ? - 1)"
_FILL = (
    f"{_MANY} insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, completed_at, "
    "input, output) select printf('%026d', i), 'noop', 'completed', 0, 1, 0, 0, ? + i, '1', '1' from n"
)
_STEPS = (
    "with recursive k(j) as (select 0 union all select j + 1 from k where j < 4) "
    "insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, output, started_at, "
    "completed_at) select id, 's' || j, 0, j, 'completed', 0, 1, printf('%0200d', j), 0, 0 from holdfast_runs, k"
)
_LOGS = (
    "insert into holdfast_logs (run_id, generation, level, message, created_at) "
    "select id, 1, 'info', 'some text', 0 from holdfast_runs"
)


async def purge(count: int) -> None:
    """Delete that many old runs while one caller triggers again and again."""
    with tempfile.TemporaryDirectory() as folder:
        app = Holdfast(f"sqlite:///{folder}/bench.db", worker=False)

        @app.job
        async def noop(n: int) -> int:
            return n

        await app.migrate()
        with sqlite3.connect(Path(folder) / "bench.db") as database:
            database.execute(_FILL, (count, time.time_ns() // 1000 - 10 * 86400 * 10**6))
            database.execute(_STEPS)
            database.execute(_LOGS)
        database.close()

        async def triggers(until: asyncio.Future[int]) -> str:
            took = []
            while not until.done():
                began = time.perf_counter()
                await noop.trigger(1)
                took.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(0.002)
            last = statistics.quantiles(took, n=100)[98]
            return f"p50 {statistics.median(took):.2f} p99 {last:.2f} max {max(took):.1f} ms of {len(took)}"

        over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(3, over.set_result, 0)
        alone = await triggers(over)
        began = time.perf_counter()
        reply = app.purge_runs(older_than="1d", limit=None)
        gone: asyncio.Future[int] = asyncio.ensure_future(_awaited(reply))
        beside = await triggers(gone)
        took = time.perf_counter() - began
        print(f"{await gone:,} runs with 5 steps and a log line each in {took:.1f} s: {count / took:,.0f} runs/s")
        print(f"triggers beside it {beside}; alone {alone}")
        await app.stop()


async def _awaited(reply: object) -> int:
    return await reply  # type: ignore[misc,no-any-return]


if __name__ == "__main__":
    if sys.argv[1] == "finish":
        compare(int(sys.argv[2]))
    else:
        asyncio.run(purge(int(sys.argv[2])))
