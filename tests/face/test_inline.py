"""Under the limits of a browser (Pyodide): no thread can be started, and everything still works inline."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import databases

LONG = 30.0

NO_THREADS = """
import sys, threading, warnings
warnings.simplefilter("error")

def refuse(self):
    raise RuntimeError("can't start new thread")

threading.Thread.start = refuse
import asyncio
from holdfast import Holdfast, Step, SyncStep, WouldDeadlock

app = Holdfast(sys.argv[1], inline=True)

@app.step
async def up(text: str) -> str:
    return text.upper()

@app.job
async def hello(step: Step, name: str) -> str:
    first = await step.run("sync", str.strip, name)
    step.progress(1, 2)
    step.log.info("half-way")
    return "Hello " + await up(first)

@app.job
def count(step: SyncStep, n: int) -> list[int]:
    return [step.run(f"double-{i}", lambda i=i: 2 * i) for i in range(n)]

@app.job
async def parent() -> str:
    return await hello.run(" you ")
"""


def run(script: str, url: str) -> str:
    code = NO_THREADS + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, url], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(params=["file", pytest.param("memory", marks=pytest.mark.only("sqlite", "in memory"))])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return databases.url(tmp_path / "app.db") if request.param == "file" else "sqlite:///:memory:"


def test_async_jobs_sync_jobs_events_and_reads_work_in_one_loop(url: str) -> None:
    script = """
    heard = []
    app.on("run:complete", lambda event: heard.append(event.job_name))

    @app.on("run:complete")
    async def listener(event):
        heard.append("async")

    async def main():
        async with app:
            print(await hello.run(" you "))
            print(await count.run(3))
            print(await parent.run())
            run = await hello.trigger("a")
            print((await run.wait()).status, (await run.refresh()).progress)
            print([step.name for step in await app.get_steps(run.id)], len(await app.get_logs(run.id)))
            late = await count.options(delay=0.05).trigger(1)
            print(await late.result())
            gone = await hello.options(queue="other").trigger("b")
            print((await gone.cancel()).status)
        print(heard.count("async"), heard.count("hello"), heard.count("count"))

    asyncio.run(main())
    print(threading.active_count())
    """
    assert run(script, url).splitlines() == [
        "Hello YOU", "[0, 2, 4]", "Hello YOU", "completed {'current': 1, 'total': 2}", "['sync', 'up'] 1", "[0]",
        "cancelled", "6 3 2", "1",
    ]  # fmt: skip


def test_sync_code_works_by_processing_until_idle(url: str) -> None:
    script = """
    app.migrate().wait()
    runs = [hello.trigger("a").wait(), count.trigger(2).wait()]
    print(app.process_until_idle().wait())
    print([run.result().wait() for run in runs])
    print(app.process_one().wait(), len(app.get_runs().wait()))
    app.stop().wait()
    app.stop().wait()
    """
    assert run(script, url).splitlines() == ["2", "['Hello A', [0, 2]]", "False 2"]


def test_blocking_for_what_only_this_thread_could_execute_is_refused(url: str) -> None:
    script = """
    app.migrate().wait()
    pending = hello.trigger("a").wait()
    for wait in (pending.wait, pending.result, lambda: hello.run("b")):
        try:
            wait().wait()
        except WouldDeadlock as error:
            print("process_until_idle" in str(error))
    print(app.process_until_idle().wait(), pending.result().wait())
    app.stop().wait()
    """
    assert run(script, url).splitlines() == ["True"] * 3 + ["2 Hello A"]


def test_a_started_worker_gets_the_thread_while_somebody_waits(url: str) -> None:
    script = """
    with app:
        print(hello.run("a").wait(), parent.trigger().wait().result(timeout=20).wait())
        pending = hello.options(queue="other").trigger("b").wait()
        try:
            pending.wait(timeout=0.05).wait()
        except TimeoutError:
            print("not now", app._engine.hub.awaited)
    """
    assert run(script, url).splitlines() == ["Hello A Hello YOU", "not now []"]
