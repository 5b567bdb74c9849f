"""The app of `holdfast demo`: one job that copies a table of airports into a database of its own, in small steps.

Run by `holdfast worker holdfast.cli.demo_job:app`, as any app is. Everything about durability is in the few lines of
`import_airports`; the functions below it are what anybody would write.
"""

from __future__ import annotations

import csv
import os
import sqlite3
import time
from contextlib import closing
from itertools import islice

from .. import Holdfast, Step

app: Holdfast = Holdfast(
    os.environ.get("HOLDFAST_URL", "sqlite:///holdfast-demo.db"),
    # Short, so that the demo shows soon how a new worker takes over. 30 s is the default.
    lease=2.0,
    polling_interval=0.2,
)


@app.job(name="import-airports")
async def import_airports(step: Step, source: str, target: str, batch: int, pause: float) -> int:
    total = await step.run("prepare", prepare, source, target, step.run_id)
    for start in range(0, total, batch):
        await step.run(f"insert-{start}", insert, source, target, step.run_id, start, batch, pause)
        step.progress(min(start + batch, total), total, "airports")
    step.log.info("imported", rows=total)
    return total


def prepare(source: str, target: str, run_id: str) -> int:
    """Make an empty table; how many rows there will be. If it ran again after the crash, rows would be missing."""
    with closing(sqlite3.connect(target, timeout=30)) as database, database:
        database.execute("create table if not exists calls (run_id text, step text, process integer)")
        database.execute("drop table if exists airports")
        database.execute(
            "create table airports (iata text primary key, name text, city text, state text, country text,"
            " latitude real, longitude real)"
        )
        _called(database, run_id, "prepare")
    with open(source, encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def insert(source: str, target: str, run_id: str, start: int, batch: int, pause: float) -> int:
    """Copy the rows from `start` on; how many. Safe to repeat: a crash may come before the checkpoint."""
    with open(source, encoding="utf-8", newline="") as file:
        rows = [tuple(row.values()) for row in islice(csv.DictReader(file), start, start + batch)]
    time.sleep(pause)  # so that there is something to see
    with closing(sqlite3.connect(target, timeout=30)) as database, database:
        database.executemany("insert or replace into airports values (?, ?, ?, ?, ?, ?, ?)", rows)
        _called(database, run_id, f"insert-{start}")
    return len(rows)


def _called(database: sqlite3.Connection, run_id: str, step: str) -> None:
    # Who has really called which step, for the summary: the engine is not asked to judge itself.
    database.execute("insert into calls values (?, ?, ?)", (run_id, step, os.getpid()))


def count(target: str, run_id: str) -> tuple[int, int, dict[int, int]]:
    """Rows, distinct airports, and how many steps each process has called, in the order of their work."""
    with closing(sqlite3.connect(target, timeout=30)) as database:
        rows, distinct = database.execute("select count(*), count(distinct iata) from airports").fetchone()
        calls = database.execute(
            "select process, count(*) from calls where run_id = ? group by process order by min(rowid)", (run_id,)
        )
        return rows, distinct, dict(calls.fetchall())
