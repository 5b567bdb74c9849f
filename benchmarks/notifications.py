"""What notifications cost and what they are good for, on a PostgreSQL database of your own.

    python benchmarks/notifications.py postgresql://user@host/empty_database [seconds]

Draining 3,000 empty runs with one and with two worker processes, which tell each other and which don't, in turns; then
the times from one process to another. The database must be empty and loses what is written.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import psycopg

from holdfast import Holdfast, Step

RUNS = 3000


def jobs(app: Holdfast) -> tuple[Any, Any]:
    @app.job
    async def empty(step: Step, n: int) -> float:  # noqa: ARG001 - its number tells one run from another
        return time.time()

    @app.job
    async def hang(step: Step) -> float:
        await step.signal
        print("told", time.time(), flush=True)
        return 0.0

    return empty, hang


def worker(url: str) -> None:
    """Tells others or not, as it is told itself; answers with the seconds of processor that it has used."""
    app = Holdfast(url, polling_interval=0.2)
    jobs(app)
    with app:
        for line in sys.stdin:
            app._engine.store._silent_until = 0.0 if line == "tell\n" else float("inf")  # type: ignore[attr-defined]
            print(time.process_time(), flush=True)


class Worker:
    """A worker in a process of its own."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, url, "worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, word: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return float(self.hear())

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def end(self) -> None:
        self._process.communicate()


def drain(app: Holdfast, job: Any, workers: list[Worker], database: Any, word: str) -> tuple[float, float]:
    """Runs a second, and the processor time of all workers."""
    before = sum(one.ask(word) for one in workers)
    app.trigger_many([job.bind(n) for n in range(RUNS)]).wait()
    open_runs = "select count(*) from holdfast_runs where completed_at is null"
    while database.execute(open_runs).fetchone()[0]:
        time.sleep(0.02)
    began, ended = database.execute("select min(started_at), max(completed_at) from holdfast_runs").fetchone()
    used = sum(one.ask(word) for one in workers) - before
    database.execute("truncate holdfast_runs cascade")
    return RUNS / (ended - began) * 1e6, used


def lags(app: Holdfast, empty: Any, hang: Any, one: Worker) -> dict[str, list[float]]:
    told: dict[str, list[float]] = {"trigger to start": [], "end to who waits": [], "cancel to signal": []}
    one.ask("tell")
    for n in range(40):
        asked = time.time()
        at = empty.run(n).wait()
        told["trigger to start"].append(at - asked)
        told["end to who waits"].append(time.time() - at)
        time.sleep(0.03)
    for _ in range(10):
        run = hang.trigger().wait()
        while (seen := app.get_run(run.id).wait()) is not None and seen.status == "pending":
            time.sleep(0.01)
        asked = time.time()
        run.cancel().wait()
        told["cancel to signal"].append(float(one.hear().split()[1]) - asked)
    return told


def main(url: str, seconds: float) -> None:
    app = Holdfast(url, worker=False)
    empty, hang = jobs(app)
    app.init().wait()
    until = time.monotonic() + seconds
    with psycopg.connect(url, autocommit=True) as database:
        workers: list[Worker] = []
        for many in (1, 2):
            workers.append(Worker(url))
            until, rest = time.monotonic() + seconds / 2, 0
            found: dict[str, list[tuple[float, float]]] = {"tell": [], "don't": []}
            while time.monotonic() < until or not rest:
                for word in list(found)[:: 1 if rest % 2 else -1]:
                    found[word].append(drain(app, empty, workers, database, word))
                rest += 1
            for word, all_of_them in found.items():
                speed, used = (statistics.median(column) for column in zip(*all_of_them, strict=True))
                print(f"{many} workers, {word}: {speed:.0f} runs/s, {used:.2f} s of workers' processor ({rest} times)")
        workers.pop().end()
        for what, times in lags(app, empty, hang, workers[0]).items():
            print(f"{what}: median {1000 * statistics.median(times):.1f} ms, longest {1000 * max(times):.1f} ms")
        workers.pop().end()
    app.stop().wait()


if __name__ == "__main__":
    if sys.argv[2:] == ["worker"]:
        worker(sys.argv[1])
    else:
        main(sys.argv[1], float(sys.argv[2]) if sys.argv[2:] else 40)
