"""What keeping SQLite's log short costs: the same drain on several files, round by round in turn, in random order.

    python benchmarks/upkeep.py [runs] [rounds]

One file is checkpointed by SQLite itself, after the commit that makes its log longer than 1,000 pages; the others under
the write lock, at different lengths. Each round ends a hundred runs and claims a hundred more. What else the machine
does hits all files alike, so that the ratios mean something where absolute figures don't.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from holdfast.model.run import NewRun, RunRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease
from holdfast.store.sqlite import SqliteStore

LENGTHS = {"by itself, 4 MiB": None, "upkeep, 1 MiB": 1 << 20, "upkeep, 4 MiB": 4 << 20, "upkeep, 16 MiB": 16 << 20}


class File:
    """A database with pending runs, and how its log is kept short."""

    def __init__(self, folder: Path, limit: int | None, runs: int) -> None:
        self.path = folder / f"{limit}.db"
        self.store = SqliteStore(f"sqlite:///{self.path}")
        self.store.migrate()
        self.connection = self.store.open()
        self.limit = limit
        if limit is None:
            self.connection.execute("pragma wal_autocheckpoint = 1000")
            self.connection.execute("pragma journal_size_limit = -1")
        else:
            self.store._upkeep.limit = limit
            self.connection.execute(f"pragma journal_size_limit = {limit}")
        self.took: list[float] = []
        self.claimed: list[RunRow] = []
        for first in range(0, runs, 1000):
            tx = self.store.begin(self.connection)
            self.store.trigger(tx, [NewRun(f"{n:026d}", "noop", "{}") for n in range(first, first + 1000)])
            self.store.commit(tx)

    def round(self) -> None:
        """End what was claimed, claim more."""
        began = time.perf_counter()
        tx = self.store.begin(self.connection)
        leases = [Lease(row.id, row.generation, row.lease_owner or "") for row in self.claimed]
        self.store.finish(tx, [Ending(lease, TABLE[Cause.COMPLETE], output="1") for lease in leases])
        self.claimed = self.store.claim(tx, [ClaimOrder("me", 100, 30_000_000, ("noop",))])[0].runs
        self.store.commit(tx)
        if self.limit is not None and self.store.needs_upkeep:
            self.store.upkeep(self.connection)
        self.took.append(time.perf_counter() - began)


def once(runs: int) -> dict[str, list[float]]:
    """Seconds of each round, for each way."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: File(Path(folder), limit, runs) for name, limit in LENGTHS.items()}
        for _ in range(runs // 100):
            for file in random.sample(list(files.values()), len(files)):
                file.round()
        for file in files.values():
            file.connection.close()
    return {name: file.took for name, file in files.items()}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    samples = [once(runs) for _ in range(rounds)]
    first = next(iter(LENGTHS))
    print(f"{'log':<20}{'throughput':>24}{'longest round':>16}")
    for name in LENGTHS:
        ratios = [sum(sample[first]) / sum(sample[name]) for sample in samples]
        longest = statistics.median([max(sample[name]) for sample in samples]) * 1000
        shown = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        print(f"{name:<20}{shown:>24}{longest:>13.1f} ms")


if __name__ == "__main__":
    main()
