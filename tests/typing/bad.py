"""Every marked line must be an error for every checker, and no other line. Checked, never run; see `test_typing`."""

# ruff: noqa: F841, RUF059
from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

from holdfast import Call, Holdfast, Job, Reply, Retry, Run, Step, SyncStep
from holdfast import job as package_job
from holdfast.client import Client, remote_job


class Out: ...


class In: ...


app = Holdfast("sqlite://")


@app.job
async def j1(step: Step, a: str, b: int = 1) -> Out:
    return Out()


@app.job
async def j2(a: str) -> Out:
    return Out()


@app.job(name="x")
def j3(step: SyncStep, a: str) -> int:
    return 1


@app.job
async def j4(p: In) -> int:
    return 1


@package_job
async def loose(step: Step, a: int) -> Out:
    return Out()


def read(path: str, *, name: str = "") -> list[str]:
    return []


async def fetch(path: str) -> Out:
    return Out()


# -- wrong arguments ----------------------------------------------------------------------------------------

j1.trigger()  # E missing a
j1.trigger(1)  # E wrong type
j1.trigger("a", "b")  # E wrong type of b
j1.trigger("a", c=1)  # E unknown
j1.trigger("a", 1, 2)  # E too many
j1.run(None)  # E None
j1.trigger_and_wait(b=1)  # E missing a
j1.bind("a", b="x")  # E wrong type of b
j1.options(idempotency_key="k").trigger(3)  # E wrong type after options
j2.trigger(1)  # E
j3.trigger(a=1)  # E
j3.run(step=None, a="x")  # E the step is not the caller's to give
j4.trigger("x")  # E
j4.trigger(q=In())  # E
app.register(loose).trigger("x")  # E
loose.trigger("x")  # E

# -- wrong options ------------------------------------------------------------------------------------------

j1.options(idempotency=3)  # E unknown
j1.options(idempotency_key=3)  # E
j1.options(concurrency_key=3)  # E
j1.options(concurrency_key="k", coalesce="all")  # E
j1.options(priority="high")  # E
j1.options(labels={"a": 1})  # E
j1.options(delay=[5])  # E
j1.options(run_at="tomorrow")  # E
Holdfast(5)  # E
Holdfast(worker="process")  # E
Holdfast(concurency=5)  # E unknown
app.trigger(j1)  # E a job is not a call
app.get_runs(statuses="failed")  # E unknown
app.get_runs(labels={"a": 1})  # E


@app.job(nmae="x")  # E unknown
async def k1(a: str) -> int:
    return 1


@app.job(priority="high")  # E
async def k2(a: str) -> int:
    return 1


# -- the colour of the step: accepted by the decorator of a checker, reported where the job is used --------------


@app.job
def k3(step: Step, a: str) -> int:
    return 1


@app.job
async def k4(step: SyncStep, a: str) -> int:
    return 1


k3.trigger("a")  # E a sync function with an async step
x4: Reply[int] = k4.run("a")  # E an async function with a sync step


# -- what comes out -----------------------------------------------------------------------------------------

r1: Reply[int] = j1.run("a")  # E
r2: Reply[Run[int]] = j1.trigger("a")  # E
r3: Reply[Out] = j1.trigger_and_wait("a")  # E it gives the run
r4: Call[int] = j1.bind("a")  # E
r5: Job[[int], Out] = j1  # E
r6: int = j3.run("a")  # E a reply is no value
r7: str = j3.run("a").wait()  # E
j3.run("a").bit_length()  # E nobody waited


async def results() -> None:
    run = await j1.trigger("a")
    n1: int = await run.result()  # E
    n2: Out = run.output  # E it may be None
    n3: Out = await run.wait()  # E the run
    n4: Run[Out] = await j1.get_run("id")  # E it may be None
    n5: Out = run.result()  # E await forgotten
    run.status = "failed"  # E a picture does not change
    async with asyncio.TaskGroup() as group:
        group.create_task(j1.trigger("a"))  # E a reply is no coroutine


# -- steps --------------------------------------------------------------------------------------------------


def write(connection: sqlite3.Connection, name: str) -> int:
    return 1


def nothing() -> int:
    return 1


async def steps(step: Step) -> None:
    await step.run("a", read)  # E missing path
    await step.run("a", read, 1)  # E
    await step.run("a", read, "x", nme="y")  # E
    await step.run(read, "x")  # E name forgotten
    await step.run("a", fetch("x"))  # E called already
    x: int = await step.run("a", read, "x")  # E
    y: int = await step.run("a", fetch, "x")  # E
    step.run("a", read, "x").append("y")  # E await forgotten
    await step.transaction("a", write)  # E missing name
    await step.transaction("a", write, 1)  # E
    await step.transaction("a", write, "x", nme="y")  # E
    z: str = await step.transaction("a", write, "x")  # E
    await step.transaction("a", nothing)  # E no connection
    await asyncio.gather(read("x"))  # E no coroutine
    p, q, r = await asyncio.gather(step.run("a", read, "x"), step.run("b", fetch, "y"))  # E two values
    step.progress("half")  # E
    step.progress(1, total="2")  # E
    step.log.info()  # E nothing to say
    step.log.shout("x")  # E
    step.sleeep("x")  # E
    step.options(retry=3)  # E a number is no Retry
    step.options(times=3)  # E
    await step.options(timeout="1s").run("a", read)  # E missing path
    n: int = await step.options(timeout="1s").run("a", read, "x")  # E
    Retry("3")  # E
    Retry(3, wait=1)  # E


def sync_steps(step: SyncStep) -> None:
    step.run("a", read)  # E missing path
    step.run("a", fetch, 1)  # E
    x: int = step.run("a", read, "x")  # E
    y: list[int] = step.run("a", read, "x")  # E
    step.transaction("a", write, 1)  # E
    z: str = step.transaction("a", write, "x")  # E


async def wrong_await(step: SyncStep) -> None:
    await step.run("a", read, "x")  # E a sync step gives the value


@app.step
async def charge(amount: int) -> Out:
    return Out()


async def uses_steps() -> None:
    await charge("5")  # E
    n: int = await charge(5)  # E


def asks_elsewhere(client: Client) -> None:
    client.job(loose).trigger("a")  # E wrong type
    client.job(loose).trigger()  # E missing
    client.job(loose).options(idempotency=3)  # E
    s: str = client.job(loose).run(3).wait()  # E
    client.job(5)  # E neither a job nor a name
    client.trigger(loose)  # E a job is no call
    client.wake(loose, "key", output=1)  # E it does not sleep


remote_job("http://far", loose, retries=3)  # E
remote_job("http://far", loose).trigger("a")  # E
remote_job("http://far", "by-name").trigger(3)  # E


unused: Any = (r1, r2, r3, r4, r5, r6, r7, x4)
