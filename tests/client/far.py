"""What tests of the client share: jobs, a server that executes them, and both forms of asking."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from holdfast import AbortSignal, Children, Holdfast, Reply, SleepingJob, Step, job

if TYPE_CHECKING:
    from holdfast.client import Client

PATIENCE = 30.0


class Served(NamedTuple):
    """An app, where it is served, and a client."""

    app: Holdfast
    url: str
    client: Client


@dataclass
class Table:
    rows: int
    at: datetime | None = None


@job(name="import-rows")
async def import_rows(step: Step, rows: int, name: str = "a") -> dict[str, Any]:
    for row in range(rows):
        await step.run(f"row-{row}", str, row)
        step.progress(row + 1, rows)
    step.log.warning("imported", rows=rows)
    return {"rows": rows, "name": name}


@job
async def measure(table: Table, factor: Decimal) -> Table:
    return Table(int(table.rows * factor), table.at)


@job
async def take_table(table: Table) -> int:
    return table.rows


@job
async def pair(at: datetime) -> tuple[datetime, set[int]]:
    return at, {1, 2}


@job
async def anything(value: Any) -> Any:
    return value


@job
async def fails(text: str = "no such file") -> None:
    raise LookupError(text)


@job
async def asks(step: Step) -> Any:
    step.log.info("asking")
    return await step.wait_for_signal("answer")


@job
async def parent(many: int) -> Children[int]:
    return Children(many, [import_rows.bind(0, str(number)) for number in range(many)])


@job
async def holds(step: Step, name: str = "a") -> str:
    return await step.run("hold", _hold)


async def _hold(signal: AbortSignal | None = None) -> str:
    assert signal is not None
    await signal
    return "told to stop"


JOBS = (import_rows, measure, take_table, pair, anything, fails, asks, parent, holds)


def app_on(url: str, **options: Any) -> Holdfast:
    """An app with the jobs, and a sleeping one."""
    app = Holdfast(url, jobs=JOBS, **options)
    app.sleeping("approval", output=int)
    return app


def approval_of(app: Holdfast) -> SleepingJob[int]:
    found = app.get_job("approval")
    assert isinstance(found, SleepingJob)
    return found


def told(form: str, make: Callable[[], Reply[Any]]) -> Any:
    """What a reply gives, in the async or in the sync form."""
    if form == "sync":
        return make().wait(PATIENCE)

    async def ask() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await make()

    return asyncio.run(ask())


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(round(PATIENCE / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to be")
