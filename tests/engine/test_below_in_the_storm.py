"""What the storm of trees has found out about runs below runs, each by itself."""

from __future__ import annotations

import threading
from typing import Any

from holdfast import Step, job
from holdfast.store.doctor import OF_RUNS
from holdfast.testing import app_for_tests, drain


@job
async def leaf(n: int) -> int:
    return n


@job
async def gathers(step: Step) -> int:
    return sum(await step.gather(leaf.bind(1), leaf.bind(2)))


def test_the_doctor_reads_what_a_wait_for_several_runs_has_saved() -> None:
    with app_for_tests(gathers, leaf) as app:
        app.jobs.gathers.trigger().wait()
        drain(app).wait()
        store: Any = app._engine.store
        connection = store.connect()
        try:
            finding = OF_RUNS["payloads"](0, lambda name, *values: store._find(connection, name, *values))
        finally:
            connection.close()
        assert (finding.level, finding.data) == ("ok", {"runs": 3, "steps": 1, "unreadable": []})


def test_however_many_ends_come_at_once_what_is_below_them_is_asked_for_once() -> None:
    """Otherwise each end of a tree has a round of its own, and a database that is slow never catches up."""
    with app_for_tests(leaf) as app:
        app.get_runs().wait()
        engine = app._engine
        engine.committer.gate = threading.Event()
        for _ in range(5):
            engine.cancel_below()
        assert engine.committer.backlog <= 2
        engine.committer.gate.set()
        engine.committer.gate = None


@job
async def sleeps(step: Step) -> None:
    await step.sleep("long", "1d")


@job
async def spawns(step: Step) -> None:
    await step.spawn(sleeps.bind())


@job
async def fails(step: Step) -> None:
    await step.call(spawns.bind())
    raise ValueError("after all")


def test_s7_what_a_completed_child_has_spawned_is_cancelled_with_the_root() -> None:
    with app_for_tests(fails, spawns, sleeps) as app:
        root = app.jobs.fails.trigger().wait()
        drain(app).wait()
        assert str(root.refresh().wait().status) == "failed"
        assert [str(run.status) for run in app.get_runs(job="sleeps").wait()] == ["cancelled"]
