"""What the contestants measure with. Standard library only: DBOS imports it in an environment of its own."""

from __future__ import annotations

import contextlib
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Seconds between one run and the next, at random up to this, so that the worker is idle and polls are met anywhere.
PAUSE = 0.02


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds. The first is left out: it warms up."""
    times = [one * 1000 for one in seconds[1:]]
    return {"p50": statistics.median(times), "p99": statistics.quantiles(times, n=100)[98]}


def peak() -> float:
    """The most memory that this process has held, in MB (10^6 bytes)."""
    # Not `ru_maxrss` where it can be helped: that of a child begins with what its parent held.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def held() -> float:
    """The memory that this process holds now, in MB; the most that it has held where that can't be told."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024 / 1e6
    return peak()


@contextlib.contextmanager
def workers(commands: Sequence[Sequence[str]]) -> Iterator[None]:
    """Worker processes that are ready, and have just been told to begin. Killed on leaving."""
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for command in commands]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline()
        for child in children:
            assert child.stdin is not None
            child.stdin.write(b"go\n")
            child.stdin.flush()
        yield
    finally:
        for child in children:
            child.kill()
            child.communicate()


def wait_for_the_word() -> None:
    """The other side of it."""
    print("ready", flush=True)
    sys.stdin.readline()


def filled(work: str, sizes: Sequence[int]) -> tuple[int, int]:
    """How many runs are pending and how many have ended before a measurement, as its sizes say."""
    work = work.removeprefix("far_").removeprefix("silent_")
    if work == "drain":
        runs, pending, finished = (*sizes, 0, 0)[:3]
        return max(runs, pending), finished
    if work == "latency":
        return 0, (*sizes, 0)[1]
    return sizes[0] if work in ("checkpoints", "workers", "busy_drain", "busy_checkpoints") else 0, 0
