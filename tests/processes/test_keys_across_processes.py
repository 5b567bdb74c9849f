"""S5 over two processes: the run that a dead worker held goes first again, and the next of its key waits for that."""

from __future__ import annotations

from pathlib import Path

from child import LONG, child

import databases
from holdfast import Holdfast, SyncStep

WORKER = """
app = Holdfast(URL, polling_interval=0.05, lease=0.6, lease_renew_interval=0.2)

@app.job
async def work(step: Step, name: str, hangs: bool) -> str:
    say("start", name, step.attempt)
    if hangs:
        say(await step.signal)
    say("end", name)
    return name

@app.job
async def other(step: Step, name: str) -> str:
    say("start", name, step.attempt)
    say("end", name)
    return name

with app:
    say("ready")
    heard()
"""


def test_s5_the_next_of_a_key_waits_until_the_run_of_a_killed_worker_has_gone_again(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    app = Holdfast(databases.url(path), worker=False)

    @app.job
    def work(step: SyncStep, name: str, hangs: bool) -> str:
        return name

    @app.job
    def other(step: SyncStep, name: str) -> str:
        return name

    app.init().wait(LONG)
    with child(path, WORKER) as first:
        assert first.hear() == "ready"
        held = work.options(concurrency_key="k").trigger("1", False).wait(LONG)
        assert [first.hear(), first.hear()] == ["start 1 0", "end 1"], "the two processes understand each other"
        assert held.wait(LONG).wait(LONG).status == "completed"
        held = work.options(concurrency_key="k").trigger("2", True).wait(LONG)
        assert first.hear() == "start 2 0"
        urgent = other.options(concurrency_key="k", priority=9).trigger("3").wait(LONG)
        younger = work.options(concurrency_key="k").trigger("4", False).wait(LONG)
        free = other.options(concurrency_key="l").trigger("5").wait(LONG)
        assert [first.hear(), first.hear()] == ["start 5 0", "end 5"], "another key is not held up"
        free.wait(LONG).wait(LONG)
        first.kill()
    statuses = [run.refresh().wait(LONG).status for run in (held, urgent, younger, free)]
    assert statuses == ["leased", "pending", "pending", "completed"]
    # However slow the machine is, this one loses no lease, and starts nothing twice.
    long_leases = WORKER.replace("lease=0.6, lease_renew_interval=0.2", "lease=30")
    with child(path, long_leases.replace("if hangs:", "if False:")) as second:
        assert second.hear() == "ready"
        said = [second.hear() for _ in range(6)]
        assert said == ["start 2 0", "end 2", "start 3 0", "end 3", "start 4 0", "end 4"]
        assert [run.result(LONG).wait(LONG) for run in (held, urgent, younger)] == ["2", "3", "4"]
        second.tell()
        second.end()
    lost = held.refresh().wait(LONG)
    assert (lost.crashes, lost.generation, lost.attempt) == (1, 3, 0)
    starts = [run.refresh().wait(LONG).started_at for run in (urgent, younger)]
    assert all(start is not None and lost.completed_at is not None and start >= lost.completed_at for start in starts)
    app.stop().wait(LONG)


def test_s5_a_trigger_of_a_web_process_meets_the_run_that_waits_and_its_worker_goes_on_by_itself(
    tmp_path: Path,
) -> None:
    path = tmp_path / "app.db"
    app = Holdfast(databases.url(path), worker=False)

    @app.job
    def work(step: SyncStep, name: str, hangs: bool) -> str:
        return name

    app.init().wait(LONG)
    with child(path, WORKER) as worker:
        assert worker.hear() == "ready"
        first = work.options(concurrency_key="k").trigger("1", True).wait(LONG)
        assert worker.hear() == "start 1 0"
        skip = work.options(concurrency_key="k", coalesce="skip")
        made = [skip.trigger(name, False).wait(LONG) for name in ("2", "3")]
        active = work.options(concurrency_key="k", coalesce="active").trigger("4", False).wait(LONG)
        assert [run.disposition for run in (*made, active)] == ["created", "coalesced", "coalesced"]
        assert made[0].id == made[1].id == active.id
        first.cancel().wait(LONG)
        # The cancel makes way in the database; the worker sees that somebody has written.
        heard = [worker.hear() for _ in range(3)]
        assert sorted(heard)[-1] == "start 2 0"
        assert made[0].result(LONG).wait(LONG) == "2"
        worker.tell()
        worker.end()
    app.stop().wait(LONG)
