"""Procrastinate at the same work, as far as it does that: triggers, drains, and the time from trigger to done.

    python peer_procrastinate.py fill|measure default URL WORK SIZE...      prints figures as JSON
    python peer_procrastinate.py versions

Runs in a virtual environment of its own. It has neither steps nor results nor children. Its worker is told of new jobs
by LISTEN, executes a hundred at once, and here keeps what has succeeded, as the others do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import time
from importlib.metadata import version
from typing import Any

import procrastinate  # type: ignore[import-not-found]  # this runs in an environment of Procrastinate
import psycopg
import shared

SETTINGS: dict[str, Any] = {
    "concurrency": 100,  # as ours; its default is 1
    "max_size": 20,  # connections; its default is 4
    "fetch_job_polling_interval": 5.0,  # its default: new jobs are told by LISTEN
}

_ended = asyncio.Event()
_calls = 0
_wanted = 0


def _app(url: str) -> Any:
    connector = procrastinate.PsycopgConnector(conninfo=url, max_size=SETTINGS["max_size"])
    app = procrastinate.App(connector=connector)

    @app.task(name="noop", pass_context=False)  # type: ignore[untyped-decorator]
    async def noop(number: int) -> int:
        global _calls
        _calls += 1
        if _calls == _wanted:
            _ended.set()
        return number

    return app


def _rows(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql).fetchall()


def _check(url: str, runs: int) -> None:
    found = dict(_rows(url, "select status::text, count(*) from procrastinate_jobs group by 1"))
    assert found == {"succeeded": runs}, found


async def fill(url: str, work: str, *sizes: int) -> None:
    """Its tables, and the pending jobs of a work."""
    pending, _ = shared.filled(work, sizes)
    app = _app(url)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for first in range(0, pending, 1000):
            numbers = [{"number": n} for n in range(first, min(first + 1000, pending))]
            await app.tasks["noop"].batch_defer_async(*numbers)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum analyze")


async def drain(url: str, runs: int) -> dict[str, float]:
    """Until all pending jobs have ended."""
    app = _app(url)
    used = time.process_time()
    async with app.open_async():
        began = time.perf_counter()
        await app.run_worker_async(concurrency=SETTINGS["concurrency"], wait=False, install_signal_handlers=False)
        took = time.perf_counter() - began
    used = time.process_time() - used
    _check(url, runs)
    return {"rate": runs / took, "memory": shared.peak(), "cpu": used / runs * 1e6}


async def triggers(url: str, runs: int) -> dict[str, float]:
    """One caller."""
    return await triggers_together(url, runs, 1)


async def triggers_together(url: str, runs: int, callers: int = 100) -> dict[str, float]:
    """A hundred tasks that await each of theirs."""
    app = _app(url)

    async def caller() -> None:
        for number in range(runs // callers):
            await app.tasks["noop"].defer_async(number=number)

    async with app.open_async():
        began = time.perf_counter()
        await asyncio.gather(*[caller() for _ in range(callers)])
        took = time.perf_counter() - began
    return {"rate": runs // callers * callers / took}


async def latency(url: str, runs: int) -> dict[str, float]:
    """From deferring until it was called; that its end is written is not waited for, in its favour."""
    global _wanted
    app = _app(url)
    took, pauses = [], random.Random(1)
    async with app.open_async():
        worker = asyncio.create_task(
            app.run_worker_async(concurrency=SETTINGS["concurrency"], install_signal_handlers=False)
        )
        await asyncio.sleep(1)
        for number in range(runs + 1):
            await asyncio.sleep(pauses.uniform(0, shared.PAUSE))
            _wanted = _calls + 1
            _ended.clear()
            began = time.perf_counter()
            await app.tasks["noop"].defer_async(number=number)
            await _ended.wait()
            took.append(time.perf_counter() - began)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    return shared.percentiles(took)


def main() -> None:
    """One measurement, in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["fill", "measure", "versions"])
    parser.add_argument("mode", nargs="?")
    parser.add_argument("url", nargs="?", default="")
    parser.add_argument("work", nargs="?", default="")
    parser.add_argument("sizes", nargs="*", type=int)
    asked = parser.parse_args()
    if asked.phase == "versions":
        print(json.dumps({
            "Procrastinate": version("procrastinate"), "psycopg": version("psycopg"),
            "Python": platform.python_version(), "settings": SETTINGS,
        }))  # fmt: skip
    elif asked.phase == "fill":
        asyncio.run(fill(asked.url, asked.work, *asked.sizes))
    else:
        print(json.dumps(asyncio.run(globals()[asked.work](asked.url, *asked.sizes))))


if __name__ == "__main__":
    main()
