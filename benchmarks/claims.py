"""What concurrency keys and job limits cost: claims, triggers and ends beside 100,000 pending runs.

Each figure is the median time of a verb of the store inside a transaction that is rolled back, so that every time it
meets the same rows; the commit, which is the same for all, is left out. The shapes take turns. Look at the ratios.
`--pending`, `--times` for other sizes.

    python benchmarks/claims.py
"""

from __future__ import annotations

import argparse
import platform
import sqlite3
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from holdfast.model.run import NewRun
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease, Tx
from holdfast.store.sqlite import SqliteStore

LEASE = 30_000_000
TOGETHER = 10

_FILL = """
with recursive n (i) as (select 0 union all select i + 1 from n where i < ?1 - 1)
insert into holdfast_runs (id, job_name, status, run_at, due, turn, generation, concurrency_key, created_at, updated_at,
                           input, lease_owner, lease_expires_at)
select printf('%s%025d', ?2, i), ?3 || iif(?5 > 1, i % ?5, ''), ?6, ?7 - ?1 + i, 1,
  iif(?4 = 0, 0, iif(?6 = 'leased', 2, 1)), 1, iif(?4 = 0, null, printf('key %d', (i / ?5) % max(?4, 1))), ?7, ?7,
  '{"number":1}', iif(?6 = 'leased', 'other', null), iif(?6 = 'leased', ?7 + 60000000, null)
from n"""
# Those that wait have been claimed before (they gave their key up and are back): of a job and key no more than one may
# wait that was not.


@dataclass
class Shape:
    """A database, and what a worker asks of it."""

    name: str
    keys: int = 0
    jobs: int = 1
    saturated: bool = False
    """All keys are held (and there are unkeyed runs to be had)."""
    limit: int | None = None
    """Of the job whose runs are pending: it is full (and there are runs of another job)."""

    def make(self, pending: int) -> None:
        self.store = SqliteStore("sqlite://")
        self.store.migrate()
        self.connection = self.store.connect()
        tx = self.store.begin(self.connection)
        others = 1_000 if self.saturated or self.limit else 0

        def fill(count: int, prefix: str, job: str, keys: int, status: str = "pending", jobs: int = 1) -> None:
            if count:
                tx.connection.execute(_FILL, (count, prefix, job, keys, jobs, status, tx.now))

        fill(pending - others, "a", "work", self.keys, jobs=self.jobs)
        fill(others, "b", "other" if self.limit else "work" if self.jobs == 1 else "work0", 0)
        if self.saturated:
            fill(self.keys, "c", "holder", self.keys, "leased")
        if self.limit:
            fill(self.limit, "d", "work", 0, "leased")
        self.store._pass_on(tx, [f"key {n}" for n in range(self.keys)])
        self.store.commit(tx)
        jobs = ("work",) if self.jobs == 1 else tuple(f"work{n}" for n in range(self.jobs))
        limits = (("work", self.limit),) if self.limit else ()
        self.order = ClaimOrder("me", TOGETHER, LEASE, (*jobs, "other"), limits=limits)
        self.times: list[float] = []
        self.looks: list[float] = []

    def measure(self) -> None:
        tx = self.store.begin(self.connection)
        began = time.perf_counter()
        (claimed,) = self.store.claim(tx, [self.order])
        self.times.append(time.perf_counter() - began)
        self.store.rollback(tx)
        assert len(claimed.runs) == TOGETHER, (self.name, len(claimed.runs))
        began = time.perf_counter()
        assert self.store.has_claimable(self.connection, self.order)
        self.looks.append(time.perf_counter() - began)


SHAPES = [
    Shape("no keys"),
    Shape("10 keys, all held", 10, saturated=True),
    Shape("10 keys, all free", 10),
    Shape("10,000 keys, all held", 10_000, saturated=True),
    Shape("10,000 keys, all free", 10_000),
    Shape("10 jobs, no keys", jobs=10),
    Shape("10 jobs that share 10,000 free keys", 10_000, jobs=10),
    Shape("a job that is full", limit=4),
]


def claims(pending: int, times: int) -> None:
    """The table of claims."""
    for shape in SHAPES:
        shape.make(pending)
    for number in range(times + 20):
        for shape in SHAPES[number % len(SHAPES) :] + SHAPES[: number % len(SHAPES)]:
            shape.measure()
    print(f"{f'claim of {TOGETHER}, {pending:,} pending':<38}{'µs':>8}{'µs/run':>8}{'ratio':>7}{'look, µs':>10}")
    base = {1: SHAPES[0], 10: next(shape for shape in SHAPES if shape.jobs == 10)}
    for shape in SHAPES:
        mine, theirs = (statistics.median(one.times[20:]) for one in (shape, base[shape.jobs]))
        look = statistics.median(shape.looks[20:])
        print(f"{shape.name:<38}{mine * 1e6:>8.0f}{mine * 1e5:>8.1f}{mine / theirs:>7.2f}{look * 1e6:>10.1f}")
        shape.store.disconnect(shape.connection)
        shape.store.close()


def verbs(pending: int, times: int) -> None:
    """The table of triggers and ends, without and with keys, of which each has its own, and one that is shared."""
    shape = Shape("10 keys, all held", 10, saturated=True)
    shape.make(pending)
    store, connection = shape.store, shape.connection
    tx = store.begin(connection)
    new = [NewRun(f"e{n:025d}", "ends", "1", concurrency_key=f"end {n}" if n >= 100 else None) for n in range(200)]
    store.trigger(tx, new)
    (claimed,) = store.claim(tx, [ClaimOrder("me", 1000, LEASE, ("ends",))])
    store.trigger(tx, [NewRun(f"f{n:025d}", "ends", "1", concurrency_key=f"end {n}") for n in range(100, 200)])
    store.commit(tx)
    endings = [Ending(Lease(run.id, 1, "me"), TABLE[Cause.COMPLETE], output="1") for run in claimed.runs]
    held = Ending(Lease(f"c{0:025d}", 1, "other"), TABLE[Cause.COMPLETE], output="1")
    plain, keyed = endings[:100], endings[100:]

    def runs(count: int, *, keys: bool) -> list[NewRun]:
        return [NewRun(f"g{n:025d}", "new", "1", concurrency_key=f"new {n}" if keys else None) for n in range(count)]

    works: dict[str, Callable[[Tx], Any]] = {
        "trigger 1": lambda tx: store.trigger(tx, runs(1, keys=False)),
        "trigger 1, with a key": lambda tx: store.trigger(tx, runs(1, keys=True)),
        "trigger 100": lambda tx: store.trigger(tx, runs(100, keys=False)),
        "trigger 100, each with a key": lambda tx: store.trigger(tx, runs(100, keys=True)),
        "finish 1": lambda tx: store.finish(tx, plain[:1]),
        "finish 1, another waits for its key": lambda tx: store.finish(tx, keyed[:1]),
        "finish 1, 10,000 wait for its key": lambda tx: store.finish(tx, [held]),
        "finish 100": lambda tx: store.finish(tx, plain),
        "finish 100, another waits for each": lambda tx: store.finish(tx, keyed),
    }
    took: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(times + 20):
        for name, work in works.items():
            tx = store.begin(connection)
            began = time.perf_counter()
            work(tx)
            took[name].append(time.perf_counter() - began)
            store.rollback(tx)
    print(f"\n{f'beside {pending:,} pending':<38}{'µs':>8}{'µs/run':>8}{'ratio':>7}")
    for name, values in took.items():
        count = int(name.split()[1].strip(","))
        base = took[f"{name.split()[0]} {count}"]
        mine, theirs = statistics.median(values[20:]), statistics.median(base[20:])
        print(f"{name:<38}{mine * 1e6:>8.0f}{mine / count * 1e6:>8.1f}{mine / theirs:>7.2f}")
    store.disconnect(connection)
    store.close()


def main() -> None:
    """Measure all, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=200)
    asked = parser.parse_args()
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}, "
          f"medians of {asked.times}")  # fmt: skip
    claims(asked.pending, asked.times)
    verbs(asked.pending, asked.times)


if __name__ == "__main__":
    main()
