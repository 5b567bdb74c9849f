"""The first screen of the README: a durable import of a table, 100 rows per step.

Kill it while it runs and start it again: the steps that were saved are not run again.
"""

import asyncio
import csv
import sqlite3
from contextlib import closing
from itertools import islice
from pathlib import Path

from holdfast import Holdfast, Step

CSV = str(Path(__file__).parent / "data" / "airports.csv")

app = Holdfast("sqlite:///runs.db")


def count_rows(path: str) -> int:
    with open(path, encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def insert(path: str, start: int, batch: int) -> None:
    with open(path, encoding="utf-8", newline="") as file:
        rows = [(row["iata"], row["name"]) for row in islice(csv.DictReader(file), start, start + batch)]
    with closing(sqlite3.connect("airports.db")) as database, database:
        database.execute("create table if not exists airports (iata text primary key, name text)")
        database.executemany("insert or replace into airports values (?, ?)", rows)  # safe to repeat


@app.job
async def import_airports(step: Step, path: str, batch: int = 100) -> int:
    total = await step.run("count", count_rows, path)  # sync or async functions alike
    for start in range(0, total, batch):
        await step.run(f"insert-{start}", insert, path, start, batch)  # never runs again once saved
        step.progress(min(start + batch, total), total, "airports")
    step.log.info("imported", count=total)
    return total


async def main() -> None:
    async with app:  # makes the tables, starts the worker; stops it on leaving
        run = await import_airports.trigger(CSV)  # typed: the function's parameters, less Step
        print(run.job_name, run.disposition)
        print(await run.result(), "airports")


asyncio.run(main())
