"""What it costs to resume a run of many steps: seconds, per step, and by how much the memory grows.

Each size in a process of its own: a run is executed to its last step, taken from its worker there, and executed again.
Nothing of it is called a second time but the last step. `python benchmarks/resume.py [--quick] [--rounds N]`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

from holdfast import Holdfast, Step

SIZES = (1_000, 5_000, 10_000, 20_000)


def _app(url: str) -> tuple[Holdfast, asyncio.Event, asyncio.Event]:
    app = Holdfast(url)
    came, go_on = asyncio.Event(), asyncio.Event()

    @app.job
    async def many(step: Step, steps: int) -> int:
        total = 0
        for position in range(steps):
            total += await step.run(f"step-{position}", _value, position)
        came.set()
        await go_on.wait()
        return total

    return app, came, go_on


async def _value(position: int) -> int:
    return position


async def _first(url: str, steps: int) -> str:
    app, came, _ = _app(url)
    await app.init()
    run = await app.jobs.many.trigger(steps)
    await came.wait()
    await app.stop(timeout=0)  # handed back, with all its steps
    return str(run.id)


async def _resume(url: str, run_id: str) -> float:
    app, came, go_on = _app(url)
    go_on.set()
    began = time.perf_counter()
    async with app:
        await came.wait()
        took = time.perf_counter() - began
        run = await app.wait_for_run(run_id)
        assert run.output is not None
    return took


def first(folder: str, steps: int) -> None:
    """Write the history; a process of its own, so that its memory is not that of the resume."""
    run_id = asyncio.run(_first(f"sqlite:///{folder}/resume.db", steps))
    with sqlite3.connect(f"{folder}/resume.db") as database:
        assert database.execute("select count(*) from holdfast_steps").fetchone() == (steps,)
    Path(folder, "run").write_text(run_id)


def resume(folder: str, *, traced: bool) -> None:
    """Resume it, and print seconds and growth in bytes."""
    run_id = Path(folder, "run").read_text()
    gc.collect()
    if traced:
        tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = asyncio.run(_resume(f"sqlite:///{folder}/resume.db", run_id))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if traced:
        grown = tracemalloc.get_traced_memory()[1]
    print(json.dumps([took, grown]))


def _child(*arguments: str) -> str:
    return subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True).stdout


def measure(steps: int) -> tuple[float, int, int]:
    """Seconds, growth of the peak of resident memory, peak of what Python has allocated."""
    with tempfile.TemporaryDirectory() as folder:
        _child("--first", folder, str(steps))
        database = Path(folder, "resume.db").read_bytes()
        took, grown = json.loads(_child("--resume", folder))
        for leftover in Path(folder).glob("resume.db*"):
            leftover.unlink()
        Path(folder, "resume.db").write_bytes(database)
        _, allocated = json.loads(_child("--traced", folder))
    return took, grown, allocated


def main() -> None:
    """Measure all sizes, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    parser.add_argument("--traced", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="half of the sizes, once")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if asked.first:
        first(asked.first[0], int(asked.first[1]))
    elif asked.resume or asked.traced:
        resume(asked.resume or asked.traced, traced=bool(asked.traced))
    else:
        rounds = 1 if asked.quick else asked.rounds
        print(f"{'steps':>7}{'resume, s':>12}{'per step, µs':>15}{'peak RSS +MiB':>16}{'peak alloc MiB':>17}")
        for steps in SIZES[:2] if asked.quick else SIZES:
            found = [measure(steps) for _ in range(rounds)]
            took, grown, allocated = (statistics.median(column) for column in zip(*found, strict=True))
            print(
                f"{steps:>7,}{took:>12.3f}{took / steps * 1e6:>15.1f}{grown / 2**20:>16.1f}{allocated / 2**20:>17.1f}"
            )


if __name__ == "__main__":
    main()
