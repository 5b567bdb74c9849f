"""What a type checker must understand. It is checked, never run; `test_typing.py` says by whom."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, assert_type

from pydantic import JsonValue

from holdfast import (
    AbortSignal,
    Call,
    Event,
    EventType,
    Holdfast,
    Job,
    LogLine,
    Reply,
    Retry,
    Run,
    RunStatus,
    SleepingJob,
    Spread,
    Stats,
    Step,
    StepAttempt,
    StepRecord,
    Subscription,
    SyncStep,
    is_domain_event,
)
from holdfast import job as package_job
from holdfast.client import Acted, NamedJob, remote_job
from holdfast.client import Client as FarClient


@dataclass
class Table:
    rows: int


@dataclass
class Row:
    id: int


class Marks(TypedDict):
    tenant: str


app = Holdfast("sqlite://")


# -- the four forms of a job, with and without options ------------------------------------------------------


@app.job
async def with_step(step: Step, path: str, batch: int = 100) -> Table:
    return Table(batch)


@app.job
def sync_with_step(step: SyncStep, path: str) -> int:
    return 1


@app.job
async def alone(row: Row) -> list[Row]:
    return [row]


@app.job
def sync_alone(number: int, *, double: bool = False) -> str:
    return ""


@app.job(name="named", queue="slow", priority=5, labels={"team": "a"})
async def named(step: Step, path: str) -> Table:
    return Table(1)


@app.job(name="sync-named")
def sync_named(step: SyncStep, path: str) -> bytes:
    return b""


@app.job()
async def nothing() -> None: ...


@app.job
async def free_form(data: JsonValue) -> JsonValue:
    return data


@package_job
async def loose(step: Step, count: int) -> tuple[int, str]:
    return count, ""


@package_job(name="loose-sync")
def loose_sync(count: int) -> set[str]:
    return set()


# A job is the input of the function without its step, and what it returns, not awaited.
j1: Job[[str, int], Table] = with_step
j2: Job[[str], int] = sync_with_step
j3: Job[[Row], list[Row]] = alone
j5: Job[[str], Table] = named
j6: Job[[str], bytes] = sync_named
j7: Job[[], None] = nothing
j8: Job[[int], tuple[int, str]] = app.register(loose)
j9: Job[[int], set[str]] = app.register(loose_sync)
j10: Job[..., Any] = with_step

registered = app.register(loose)
assert_type(registered.trigger(1), Reply[Run[tuple[int, str]]])
assert_type(app.register(loose, loose_sync), tuple[Job[..., Any], ...])
assert_type(app.get_job("named"), Job[..., Any] | None)
assert_type(app.jobs.named, Job[..., Any])


# -- triggering ---------------------------------------------------------------------------------------------

assert_type(with_step.trigger("a"), Reply[Run[Table]])
assert_type(with_step.trigger("a", batch=5), Reply[Run[Table]])
assert_type(with_step.run("a", 5), Reply[Table])
assert_type(with_step.trigger_and_wait("a"), Reply[Run[Table]])
assert_type(with_step.bind("a"), Call[Table])
assert_type(sync_with_step.run("a"), Reply[int])
assert_type(alone.run(Row(1)), Reply[list[Row]])
assert_type(sync_alone.run(1, double=True), Reply[str])
assert_type(named.run("a"), Reply[Table])
assert_type(sync_named.run("a"), Reply[bytes])
assert_type(nothing.run(), Reply[None])
assert_type(free_form.run({"a": [1, None, {"b": 2.5}]}), Reply[JsonValue])
assert_type(app.trigger(with_step.bind("a")), Reply[Run[Table]])
assert_type(app.trigger_many([with_step.bind("a"), sync_alone.bind(1)]), Reply[list[Run[Any]]])
assert_type(with_step.options(connection=object()).trigger("a"), Reply[Run[Table]])
assert_type(app.retrigger("id"), Reply[Run[Any]])

chosen = with_step.options(
    idempotency_key="k", labels={"a": "b"}, priority=1, delay=timedelta(minutes=5), queue="slow"
).options(run_at=datetime.now(UTC))
chosen = chosen.options(concurrency_key="k", coalesce="active")
assert_type(chosen.trigger("a", 1), Reply[Run[Table]])
assert_type(chosen.options(delay="5m").run("a"), Reply[Table])
calls: list[Call[Any]] = [with_step.bind("a"), sync_with_step.bind("b")]


# -- replies and runs, in sync and in async code ------------------------------------------------------------


def in_sync_code() -> None:
    with app:
        assert_type(with_step.run("a").wait(), Table)
        run = with_step.trigger("a").wait(timeout=5)
        assert_type(run, Run[Table])
        assert_type(run.output, Table | None)
        assert_type(run.status, RunStatus)
        assert_type(run.error, str | None)
        assert_type(run.progress, dict[str, Any] | None)
        assert_type(run.labels, dict[str, str])
        assert_type(run.run_at, datetime)
        assert_type(run.completed_at, datetime | None)
        assert_type(run.wait(5), Reply[Run[Table]])
        assert_type(run.result().wait(), Table)
        assert_type(run.cancel().wait(), Run[Table])
        assert_type(run.delete(), Reply[None])
        assert_type(app.purge_runs(older_than="30d").wait(), int)
        assert_type(run.refresh().wait(), Run[Table])
        assert_type(app.process_one().wait(), bool)
        assert_type(app.process_until_idle(max_runs=5, max_seconds="1m").wait(), int)


async def in_async_code() -> None:
    async with app as entered:
        assert_type(entered, Holdfast)
        assert_type(await with_step.run("a"), Table)
        assert_type(await (await with_step.trigger("a")).result(), Table)
        assert_type(await with_step.get_run("id"), Run[Table] | None)
        assert_type(await with_step.get_runs(status="failed", limit=5), list[Run[Table]])
        assert_type(await app.get_run("id"), Run[Any] | None)
        assert_type(await app.get_runs(job=[with_step, "other"], status=[RunStatus.FAILED]), list[Run[Any]])
        assert_type(await app.get_runs(parent="id"), list[Run[Any]])
        assert_type(await app.get_steps("id"), list[StepRecord])
        assert_type(await app.get_logs("id"), list[LogLine])
        assert_type(await app.wait_for_run("id", timeout=5), Run[Any])
        assert_type(await app.cancel("id"), Run[Any])
        assert_type(app.delete_run("id"), Reply[None])
        assert_type(await app.purge_runs(older_than=timedelta(days=30), status="failed", limit=None), int)
        assert_type(await asyncio.gather(with_step.run("a"), sync_with_step.run("b")), tuple[Table, int])
        assert_type(await asyncio.wait_for(with_step.run("a"), 5), Table)


# -- steps --------------------------------------------------------------------------------------------------


def count(path: str, *, name: str = "") -> int:
    return 1


def write(connection: sqlite3.Connection, name: str, *, twice: bool = False) -> int:
    return 1


async def fetch(path: str, signal: AbortSignal | None = None) -> Table:
    return Table(1)


class Client:
    def get(self, path: str) -> list[str]:
        return []

    async def post(self, path: str, body: bytes) -> bool:
        return True


async def steps(step: Step, client: Client) -> None:
    assert_type(await step.run("sync", count, "a"), int)
    assert_type(await step.run("named", count, "a", name="b"), int)
    assert_type(await step.run("async", fetch, "a"), Table)
    assert_type(await step.transaction("write", write, "a"), int)
    assert_type(await step.options(timeout=1).transaction("write", write, "a", twice=True), int)
    assert_type(await step.run("method", client.get, "a"), list[str])
    assert_type(await step.run("async-method", client.post, "a", body=b""), bool)
    assert_type(await step.run("builtin", len, "abc"), int)
    assert_type(await step.run("lambda", lambda: 1.5), float)
    assert_type(await asyncio.gather(step.run("a", count, "x"), step.run("b", fetch, "y")), tuple[int, Table])
    assert_type(await asyncio.gather(*[step.run(f"s{n}", count, "x") for n in range(3)]), list[int])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(step.run("t", fetch, "x"))
    assert_type(task.result(), Table)
    assert_type(step.run_id, str)
    assert_type(step.attempt, int)
    assert_type(step.labels, dict[str, str])
    assert_type(step.signal, AbortSignal)
    step.progress(1, 2, "rows")
    step.progress(0.5)
    step.log.info("done", count=7, rows=[1])
    step.raise_if_aborted()
    assert_type(step.idempotency_key("charge"), str)


def sync_steps(step: SyncStep, client: Client) -> None:
    assert_type(step.transaction("write", write, "a"), int)
    assert_type(step.run("sync", count, "a", name="b"), int)
    assert_type(step.run("async", fetch, "a"), Table)
    assert_type(step.run("method", client.get, "a"), list[str])
    assert_type(step.run("async-method", client.post, "a", b""), bool)
    assert_type(step.options(retry=Retry(3, delay="1s")), SyncStep)
    assert_type(step.options(timeout=2).run("sync", count, "a", name="b"), int)
    assert_type(step.options(timeout="2s").run("async", fetch, "a"), Table)


async def steps_with_options(step: Step, client: Client) -> None:
    careful = step.options(retry=Retry(max_retries=3, delay=1, factor=2, max_delay="1m", jitter=0.5), timeout="30s")
    assert_type(careful, Step)
    assert_type(await careful.run("sync", count, "a", name="b"), int)
    assert_type(await careful.run("async", fetch, "a"), Table)
    assert_type(await careful.options(timeout=2.5).run("method", client.get, "a"), list[str])
    both = await asyncio.gather(careful.run("a", count, "x"), careful.run("b", fetch, "y"))
    assert_type(both, tuple[int, Table])


async def look_at_tries(run: Run[int]) -> None:
    for record in await app.get_steps(run.id):
        assert_type(record.completed_at, datetime | None)
        assert_type(record.attempts, tuple[StepAttempt, ...])
        assert_type([one.error for one in record.attempts], list[str | None])


@app.step(retry=Retry(2), timeout="1m")
async def patient(amount: int) -> Table:
    return Table(amount)


as_patient: Callable[[int], Awaitable[Table]] = patient


def check(path: str) -> None: ...


@app.job(validate=check)
async def validated(path: str) -> Table:
    return Table(1)


assert_type(validated.run("a"), Reply[Table])


@app.step
async def charge(amount: int, *, currency: str = "EUR") -> Table:
    return Table(amount)


@app.step(name="sync", key=lambda id: str(id))
def load(id: int) -> Row:
    return Row(id)


as_async: Callable[[int], Awaitable[Table]] = charge
as_sync: Callable[[int], Row] = load
assert_type(load(1), Row)


async def uses_steps() -> None:
    assert_type(await charge(5, currency="USD"), Table)


# -- the rest of the app ------------------------------------------------------------------------------------


@app.on("run:complete")
def listener(event: Event) -> None:
    assert_type(event.run_id, str | None)


off: Callable[[], None] = app.on("run:fail", listener)
assert_type(app.migrate(), Reply[list[str]])
assert_type(app.init(), Reply[None])
assert_type(app.stop(timeout=5), Reply[None])
listed = Holdfast(jobs=[loose, loose_sync], worker=False, lease="1m", queues=["a", "b"])
by_key = Holdfast(jobs={"loose": loose}, worker="thread")
labelled = [Holdfast(labels_schema=Row), Holdfast(labels_schema=Table), Holdfast(labels_schema=Marks)]


# -- watching -----------------------------------------------------------------------------------------------


class Counting:
    name = "counting"

    def install(self, app: Holdfast) -> None:
        app.on("run:complete", lambda event: None)


async def watches(run: Run[Table]) -> None:
    async for event in app.subscribe(run.id):
        assert_type(event, Event)
        assert_type(is_domain_event(event), bool)
    async with run.subscribe() as events:
        assert_type(events, Subscription)
        assert_type(await anext(events), Event)
    assert_type(await run.result(on_progress=lambda told: print(told["current"]), on_log=print_line), Table)
    assert_type(await run.wait(5, on_log=wait_line), Run[Table])
    assert_type(await app.wait_for_run(run.id, on_progress=print), Run[Any])


def watches_too(run: Run[Table]) -> None:
    for event in run.subscribe():
        assert_type(event.is_domain, bool)


def print_line(line: LogLine) -> None: ...


async def wait_line(line: LogLine) -> None: ...


kind: EventType = "run:complete"
assert_type(app.use(Counting()), Counting)
assert_type(app.stats(), Stats)
assert_type(app.stats().verbs["claim"].to_answer, Spread)
app.emit("app:imported", {"rows": 7}, run_id="x")


# -- a client of a server ----------------------------------------------------------------------------------


@package_job
async def loose_table(step: Step, rows: int) -> Table:
    return Table(rows)


approval = app.sleeping("approval", output=bool)


async def asks_elsewhere(client: FarClient) -> None:
    typed: Job[[int], Table] = client.job(loose_table)
    assert_type(await typed.run(3), Table)
    assert_type(await client.job(loose_table).run(3), Table)
    run = await client.job(loose_table).options(priority=1).trigger(3)
    assert_type(run, Run[Table])
    assert_type(run.output, Table | None)
    assert_type(client.job("import-airports"), NamedJob)
    assert_type(await client.job("import-airports").trigger(3, more=1), Run[Any])
    assert_type(await client.trigger(loose_table.bind(3)), Run[Table])
    assert_type(client.job(approval), SleepingJob[bool])
    assert_type(await client.wake(approval, "key", output=True), Run[bool])
    assert_type(await client.cancel_runs(job=loose_table), Acted)
    async for event in client.subscribe(run.id):
        assert_type(event, Event)


far: Job[[int], Table] = remote_job("http://far", loose_table, retry=Retry(3), name="far")
by_name: Job[[dict[str, Any]], Any] = remote_job(FarClient("http://far"), "by-name")
