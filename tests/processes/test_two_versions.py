"""Two programs of different versions on one file: each does what it knows, runs move from one to the other, and tables
that are newer than a worker stop that worker and cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child import LONG, Child, child

import databases
from holdfast import Holdfast, SyncStep

SHORT = "polling_interval=0.1, lease=1.0"

#: Program A: jobs a and shared. `hang` makes it stand still within a step of its own version.
OLD = f"""
app = Holdfast(URL, {SHORT}, concurrency=2)

@app.job
def a(n: int) -> str:
    return f"a {{n}} by A"

@app.job
def shared(step: SyncStep, n: int) -> list[str]:
    def last() -> str:
        if n < 0:
            say("in last")
            threading.Event().wait()
        return "last by A"
    return [step.run("first", lambda: "first by A"), step.run("last", last)]

app.on("worker:error", lambda event: say("error", event.context, event.error))
with app:
    say("ready")
    while (line := heard()) and line != "end":
        job, _, n = line.partition(" ")
        say(app.get_job(job).trigger(int(n)).wait().id)
"""

#: Program B, written later: jobs b and shared, which has one more step and one more argument.
NEW = f"""
app = Holdfast(URL, {SHORT}, concurrency=2)

@app.job
def b(n: int) -> str:
    return f"b {{n}} by B"

@app.job
def shared(step: SyncStep, n: int, style: str = "plain") -> list[str]:
    def last() -> str:
        if n < -100:
            say("in last")
            threading.Event().wait()
        return "last by B"
    return [
        step.run("first", lambda: "first by B"),
        step.run("added", lambda: f"{{style}} by B"),
        step.run("last", last),
    ]

app.on("worker:error", lambda event: say("error", event.context, event.error))
with app:
    say("ready")
    while (line := heard()) and line != "end":
        job, _, n = line.partition(" ")
        say(app.get_job(job).trigger(int(n)).wait().id)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def watcher(path: Path) -> Iterator[Holdfast]:
    """Looks at the runs of both; knows none of their jobs."""
    app = Holdfast(databases.url(path), worker=False)
    app.init().wait(LONG)
    yield app
    app.stop().wait(LONG)


def ready(one: Child) -> Child:
    assert one.hear() == "ready"
    return one


def asked(one: Child, line: str) -> str:
    one.tell(line)
    return one.hear()


def end_of(watcher: Holdfast, run_id: str) -> Any:
    return watcher.wait_for_run(run_id).wait(LONG)


def test_each_program_executes_what_it_knows_and_nothing_is_handed_to_and_fro(path: Path, watcher: Holdfast) -> None:
    with child(path, OLD) as old, child(path, NEW) as new:
        ready(old)
        ready(new)
        ids: dict[str, list[str]] = {"a": [], "b": [], "shared": []}
        for n in range(10):
            ids["a"].append(asked(old, f"a {n}"))
            ids["b"].append(asked(new, f"b {n}"))
            ids["shared"] += [asked(old, f"shared {n}"), asked(new, f"shared {n}")]
        ended = {job: [end_of(watcher, run_id) for run_id in many] for job, many in ids.items()}
        assert [run.output for run in ended["a"]] == [f"a {n} by A" for n in range(10)]
        assert [run.output for run in ended["b"]] == [f"b {n} by B" for n in range(10)]
        whole = (["first by A", "last by A"], ["first by B", "plain by B", "last by B"])
        assert all(run.output in whole for run in ended["shared"])
        everything = [run for runs in ended.values() for run in runs]
        assert {run.status for run in everything} == {"completed"}
        assert {(run.generation, run.crashes) for run in everything} == {(1, 0)}, "nobody took what it doesn't know"
        for one in (old, new):
            one.tell("end")
            one.end()


@pytest.mark.crash
def test_a_run_of_the_older_program_is_finished_by_the_newer_one(path: Path, watcher: Holdfast) -> None:
    with child(path, OLD) as old:
        run_id = asked(ready(old), "shared -1")
        assert old.hear() == "in last"
        waits = asked(old, "a 7")
        old.kill()
    with child(path, NEW) as new:
        ready(new)
        run = end_of(watcher, run_id)
        assert run.output == ["first by A", "plain by B", "last by B"]
        assert (run.status, run.crashes, run.error) == ("completed", 0, None)
        assert asked(new, "b 1")
        new.tell("end")
        new.end()
    [(status,)] = databases.rows(path, "select status from holdfast_runs where id = ?", waits)
    # If the dead one had claimed it, it is pending again, or will be once its lease is over.
    assert status != "failed", "nobody failed it for being unknown"


@pytest.mark.crash
def test_a_run_of_the_newer_program_is_finished_by_the_older_one(path: Path, watcher: Holdfast) -> None:
    """A step that the old code does not call is left where it is."""
    with child(path, NEW) as new:
        run_id = asked(ready(new), "shared -101")
        assert new.hear() == "in last"
        new.kill()
    databases.rows(path, "update holdfast_runs set input = replace(input, '-101', '101') where id = ?", run_id)
    with child(path, OLD) as old:
        ready(old)
        run = end_of(watcher, run_id)
        assert run.output == ["first by B", "last by A"]
        assert run.status == "completed"
        old.tell("end")
        old.end()
    assert {step.name for step in watcher.get_steps(run_id).wait(LONG)} == {"first", "added", "last"}


def test_tables_that_became_newer_stop_an_old_worker_and_cost_nothing(path: Path, watcher: Holdfast) -> None:
    with child(path, OLD) as old:
        done = asked(ready(old), "a 1")
        assert end_of(watcher, done).output == "a 1 by A"
        running = asked(old, "shared -1")
        assert old.hear() == "in last"
        # Where there are several writers, a claim that has begun may still take what comes with the new tables. So the
        # run comes when claims are refused.
        databases.rows(path, "insert into holdfast_migrations values (9999, '9999_future', 0)")
        while "claim" not in old.hear():
            pass
        databases.rows(
            path,
            "insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, input) "
            "select 'new', 'a', 'pending', run_at, 1, created_at, updated_at, '{\"n\": 2}' "
            "from holdfast_runs limit 1",
        )
        said = old.hear()
        while "claim" not in said:
            said = old.hear()
        assert "SchemaError" in said
        assert "the tables have version 9999" in said
        assert "upgrade the package" in said
        rows = dict(databases.rows(path, "select id, status from holdfast_runs"))
        assert rows == {done: "completed", running: "leased", "new": "pending"}, "it touches nothing any more"
        old.kill()
    databases.rows(path, "delete from holdfast_migrations where number = 9999")
    app = Holdfast(databases.url(path), polling_interval=0.1, lease=1.0)

    @app.job
    def a(n: int) -> str:
        return f"a {n} by another"

    @app.job
    def shared(step: SyncStep, n: int) -> list[str]:
        return [step.run("first", lambda: "first anew"), step.run("last", lambda: "last by another")]

    with app:
        assert app.wait_for_run("new").wait(LONG).output == "a 2 by another"
        assert app.wait_for_run(running).wait(LONG).output == ["first by A", "last by another"]


def test_an_old_worker_whose_tables_become_newer_within_a_run_loses_nothing_of_it(path: Path) -> None:
    """The step that is under way may not be saved by code that does not know the tables: whoever does, goes on."""
    script = f"""
    app = Holdfast(URL, {SHORT})

    @app.job
    def work(step: SyncStep) -> list[str]:
        first = step.run("first", lambda: "first by the old")
        say("first is saved")
        heard()
        return [first, step.run("second", lambda: "second by the old")]

    app.on("worker:error", lambda event: say("error", event.context))
    with app:
        work.trigger().wait()
        threading.Event().wait()
    """
    with child(path, script) as old:
        assert old.hear() == "first is saved"
        databases.rows(path, "insert into holdfast_migrations values (9999, '9999_future', 0)")
        old.tell()
        while old.hear() != "error claim":
            pass
        old.kill()
    databases.rows(path, "delete from holdfast_migrations where number = 9999")
    assert databases.rows(path, "select status, error from holdfast_runs") == [("leased", None)]
    app = Holdfast(databases.url(path), polling_interval=0.1, lease=1.0)

    @app.job
    def work(step: SyncStep) -> list[str]:
        return [step.run("first", lambda: "anew"), step.run("second", lambda: "second by the new")]

    with app:
        run = app.get_runs().wait(LONG)[0].wait().wait(LONG)
    assert run.output == ["first by the old", "second by the new"]
