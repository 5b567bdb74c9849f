"""Two processes on one file: waking, cancelling, waiting, and taking over what a dead one left (S1, S2, S9, S10)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child import LONG, child

import databases
from holdfast import Holdfast, NotFoundError, SyncStep

POLITE = f"polling_interval={databases.UNHURRIED}, lease=60, lease_renew_interval=20"
"""Nothing within a test can be the work of polling or of a renewal."""


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(round(LONG / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to be")


def watching(path: Path) -> tuple[Holdfast, Any]:
    """An app of this process, that does not execute."""
    app = Holdfast(databases.url(path), worker=False)

    @app.job
    def hold(n: int) -> int:
        return n

    app.init().wait(LONG)
    return app, hold


WORKER = f"""
app = Holdfast(URL, {POLITE})

@app.job
async def hold(step: Step, n: int) -> int:
    if n < 0:
        say("began")
        say(await step.signal)
    return n

with app:
    checks = app._engine.watcher
    say("ready")
    heard()
"""


def test_s9_a_trigger_in_one_process_wakes_an_idle_worker_of_another(tmp_path: Path) -> None:
    app, hold = watching(tmp_path / "app.db")
    with child(tmp_path / "app.db", WORKER) as worker:
        assert worker.hear() == "ready"
        took = []
        for n in range(5):
            began = time.perf_counter()
            assert hold.run(n).wait(LONG) == n
            took.append(time.perf_counter() - began)
        worker.tell()
        worker.end()
    app.stop().wait(LONG)
    assert min(took) < 1, took  # 0.1 s each way at most on an idle machine; never the 60 s of polling
    assert max(took) < 20, took


def test_s9_a_cancel_in_one_process_reaches_the_run_in_another(tmp_path: Path) -> None:
    app, hold = watching(tmp_path / "app.db")
    with child(tmp_path / "app.db", WORKER) as worker:
        assert worker.hear() == "ready"
        run = hold.trigger(-1).wait(LONG)
        assert worker.hear() == "began"
        began = time.perf_counter()
        assert run.cancel().wait(LONG).status == "cancelled"
        assert worker.hear() == "cancelled"
        assert time.perf_counter() - began < 15  # a renewal would have come after 20 s
        worker.tell()
        worker.end()
    app.stop().wait(LONG)


def test_s10_a_process_that_does_not_execute_hears_of_ends_and_of_deletions(tmp_path: Path) -> None:
    app, hold = watching(tmp_path / "app.db")
    kept, deleted = hold.trigger(1).wait(LONG), hold.trigger(2).wait(LONG)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            deleted.wait().wait(LONG)
        except NotFoundError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: app._engine.hub.awaited)
    databases.rows(tmp_path / "app.db", "delete from holdfast_runs where id = ?", deleted.id)
    thread.join(LONG)
    assert len(caught) == 1
    with pytest.raises(NotFoundError):
        app.wait_for_run("missing").wait(LONG)
    with child(tmp_path / "app.db", WORKER) as worker:
        assert kept.result().wait(LONG) == 1
        worker.tell()
        worker.hear()
        worker.end()
    app.stop().wait(LONG)


def test_s9_a_worker_in_one_process_hears_of_a_run_that_comes_due_when_others_wrote_it(tmp_path: Path) -> None:
    app, hold = watching(tmp_path / "app.db")
    with child(tmp_path / "app.db", WORKER) as worker:
        assert worker.hear() == "ready"
        run = hold.options(delay=0.2).trigger(3).wait(LONG)
        now = hold.trigger(4).wait(LONG)  # its claim tells the worker when the other one is due
        assert now.result().wait(LONG) == 4
        assert run.result().wait(LONG) == 3
        worker.tell()
        worker.end()
    app.stop().wait(LONG)


SHORT = "polling_interval=0.1, lease=1.0"

DYING = f"""
app = Holdfast(URL, {SHORT})

@app.job
def import_it(step: SyncStep) -> list[str]:
    first = step.run("first", lambda: "first by the dead")
    def second():
        say("in second")
        threading.Event().wait()
    return [first, step.run("second", second)]

with app:
    import_it.trigger().wait()
    threading.Event().wait()
"""


@pytest.mark.crash
def test_s1_what_a_killed_process_left_is_resumed_by_another_with_its_saved_steps(tmp_path: Path) -> None:
    with child(tmp_path / "app.db", DYING) as dying:
        assert dying.hear() == "in second"
        dying.kill()
    app = Holdfast(databases.url(tmp_path / "app.db"), polling_interval=0.1, lease=1.0)
    crashes: list[int] = []

    @app.job
    def import_it(step: SyncStep) -> list[str]:
        crashes.append(app.get_runs().wait(LONG)[0].crashes)
        first = step.run("first", lambda: "first by me")
        return [first, step.run("second", lambda: "second by me")]

    with app:
        run = app.get_runs().wait(LONG)[0].wait().wait(LONG)
    assert run.output == ["first by the dead", "second by me"]
    assert crashes == [1]
    assert (run.status, run.crashes, run.attempt, run.generation) == ("completed", 0, 0, 3)


@pytest.mark.crash
def test_s1_a_run_that_kills_every_process_is_given_up(tmp_path: Path) -> None:
    script = f"""
    app = Holdfast(URL, {SHORT}, max_crashes=2)

    @app.job
    def kills() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    app.init().wait()
    if not app.get_runs().wait():
        kills.trigger().wait()
    threading.Event().wait()
    """
    for _ in range(2):
        with child(tmp_path / "app.db", script) as dying:
            dying.end(-9)
    app = Holdfast(databases.url(tmp_path / "app.db"), polling_interval=0.1, lease=1.0, max_crashes=2)

    @app.job
    def other() -> None: ...

    with app:
        run = app.get_runs().wait(LONG)[0].wait().wait(LONG)
    assert (run.status, run.error_type, run.crashes) == ("failed", "WorkerCrashed", 2)


@pytest.mark.crash
def test_s2_a_frozen_process_finds_its_run_taken_and_changes_nothing(tmp_path: Path) -> None:
    script = f"""
    app = Holdfast(URL, {SHORT})

    @app.job
    def work(step: SyncStep) -> str:
        def first():
            say("in first")
            heard()
            return "first by the frozen"
        step.run("first", first)
        say("went on")
        return "by the frozen"

    app.on("worker:error", lambda event: say(event.context, event.run_id is not None))
    app.init().wait()
    work.trigger().wait()
    threading.Event().wait()
    """
    with child(tmp_path / "app.db", script) as frozen:
        assert frozen.hear() == "in first"
        # While we hold the write lock the child does not: frozen with it, it would stop everybody.
        with databases.locked(tmp_path / "app.db"):
            os.kill(frozen._process.pid, signal.SIGSTOP)
            os.waitpid(frozen._process.pid, os.WUNTRACED)
        app = Holdfast(databases.url(tmp_path / "app.db"), polling_interval=0.1, lease=1.0)

        @app.job
        def work(step: SyncStep) -> str:
            return step.run("first", lambda: "first by me")

        with app:
            run = app.get_runs().wait(LONG)[0].wait().wait(LONG)
            assert run.output == "first by me"
            os.kill(frozen._process.pid, signal.SIGCONT)
            frozen.tell()
            assert frozen.hear() == "lease-renewal True"
            assert [step.output for step in app.get_steps(run.id).wait(LONG)] == ["first by me"]
            assert run.refresh().wait(LONG).output == "first by me"
        frozen.kill()
