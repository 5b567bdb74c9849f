"""`make bench`: Holdfast beside the limit, in one run, each measurement in a process of its own, in random order.

Prints medians with (min-max) and the ratio of each pair. Absolute figures of a shared machine mean little; look at the
ratios. `--quick` for a short one, `--json FILE` keeps every sample.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import limit

import engine

WHO: dict[str, Any] = {"holdfast": engine, "limit": limit}
WORK: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    # name: (unit, size, quick size)
    "drain": ("runs/s", (10_000,), (2_000,)),
    "checkpoints": ("steps/s", (1_000, 10), (200, 10)),
    "triggers": ("triggers/s, 1 caller", (2_000,), (500,)),
    "triggers_together": ("triggers/s, 100 callers", (20_000,), (2_000,)),
    "latency": ("ms trigger to done, p50", (500,), (100,)),
}


def measure(who: str, work: str, size: tuple[int, ...]) -> float:
    """One measurement, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(getattr(WHO[who], work)(f"sqlite:///{folder}/bench.db", *size))
    if work == "latency":
        return float(statistics.median(result)) * 1000
    amount = 1
    for factor in size:
        amount *= factor
    return amount / float(result)


def in_a_process(who: str, work: str, size: tuple[int, ...]) -> float:
    """The same in a fresh one, so that nothing is warm for one and cold for the other."""
    command = [sys.executable, __file__, "--one", who, work, *map(str, size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(samples: dict[tuple[str, str], list[float]]) -> str:
    """The figures, side by side."""
    lines = [f"{'work':<32}{'Holdfast':>26}{'limit':>26}{'ratio':>8}"]
    for work, (unit, _, _) in WORK.items():
        cells = []
        for who in WHO:
            values = samples[who, work]
            digits = 2 if work == "latency" else 0
            low, middle, high = min(values), statistics.median(values), max(values)
            cells.append(f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})")
        pairs = zip(samples["holdfast", work], samples["limit", work], strict=True)
        ratio = statistics.median([mine / theirs for mine, theirs in pairs])
        lines.append(f"{work + ', ' + unit:<32.32}{cells[0]:>26}{cells[1]:>26}{ratio:>8.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.one:
        who, work, *size = asked.one
        print(measure(who, work, tuple(map(int, size))))
        return
    rounds = 1 if asked.quick else asked.rounds
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}, "
          f"WAL, synchronous=FULL, {rounds} rounds, each in a fresh process, pairs in random order")  # fmt: skip
    samples: dict[tuple[str, str], list[float]] = {(who, work): [] for who in WHO for work in WORK}
    for number in range(rounds):
        for work, (_, size, quick) in WORK.items():
            for who in random.sample(list(WHO), len(WHO)):
                samples[who, work].append(in_a_process(who, work, quick if asked.quick else size))
                print(f"\rround {number + 1}/{rounds} {work:<20}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 40, end="\r", file=sys.stderr)
    print(table(samples))
    if asked.json:
        asked.json.write_text(json.dumps({f"{who} {work}": values for (who, work), values in samples.items()}))


if __name__ == "__main__":
    main()
