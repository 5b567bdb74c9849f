"""V9, V12: rows that today's code can't read or does not know. They end their own run, or wait; the worker goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bed import SECONDS

import databases
from holdfast import Holdfast, Outdated, RunFailed, Step


@pytest.fixture
def url(tmp_path: Path) -> str:
    return databases.url(tmp_path / "rows.db")


@pytest.fixture
def database(tmp_path: Path, url: str) -> Iterator[databases.Shell]:
    Holdfast(url).migrate().wait()
    with databases.shell(tmp_path / "rows.db") as shell:
        yield shell


def app_of(url: str) -> Holdfast:
    app = Holdfast(url)

    @app.job(name="count")
    async def count(number: int) -> int:
        return number + 1

    @app.job(name="twice")
    async def twice(step: Step, number: int) -> int:
        return await step.run("double", double, number)

    return app


def double(number: int) -> int:
    return number * 2


#: What might stand where `{"number": 1}` did: broken, of an older shape, or hostile.
TEXTS = [
    "",
    "{",
    "null",
    "[]",
    "5",
    "{}",
    '{"number": "x"}',
    '{"number": 1e999}',
    '{"number": NaN}',
    '{"numbers": 1}',
    "~",
    "~@{}",
    '~{"$": "no such tag"}',
    '~{"$": "map", "v": 5}',
    '{"$": "tuple"}',
    "[" * 200_000,
    '{"number": ' + "9" * 5000 + "}",
    '{"number": {"py/object": "os.system"}}',
    "\x80\x04cos\nsystem\n.",
    "\ufeff{}",
    "x" * 2_000_000,
]


@pytest.mark.parametrize("at", range(len(TEXTS)))
def test_an_input_that_cannot_be_read_fails_its_run_alone(url: str, database: databases.Shell, at: int) -> None:
    app = app_of(url)
    bad = app.jobs.count.trigger(1).wait()
    database.execute("update holdfast_runs set input = ? where id = ?", (TEXTS[at], bad.id))
    good = app.jobs.count.trigger(1).wait()
    with app:
        assert good.result().wait(SECONDS) == 2
        ended = bad.wait().wait(SECONDS)
        assert (ended.status, ended.error_type) == ("failed", "Outdated") or TEXTS[at].startswith('{"number": 999')
        assert (ended.error or "").startswith("input: ") or ended.status == "completed"
        assert len(ended.error or "") < 20_000
        assert ended.input is not None or TEXTS[at] == "null"


@pytest.mark.parametrize("at", range(len(TEXTS)))
def test_a_saved_step_that_cannot_be_read_fails_its_run_alone(url: str, database: databases.Shell, at: int) -> None:
    app = app_of(url)
    run = app.jobs.twice.trigger(1).wait()
    assert app.process_one().wait()
    database.execute("update holdfast_steps set output = ? where run_id = ?", (TEXTS[at], run.id))
    database.execute(
        "update holdfast_runs set status = 'pending', completed_at = null, output = null where id = ?", (run.id,)
    )
    good = app.jobs.count.trigger(1).wait()
    with app:
        ended = run.wait().wait(SECONDS)
        assert good.result().wait(SECONDS) == 2
        if TEXTS[at] != "5":
            assert (ended.status, ended.error_type) == ("failed", "Outdated")
            assert (ended.error or "").startswith("step 'double'")
        [step] = app.get_steps(run.id).wait()
        assert step.name == "double"


def test_an_output_that_todays_code_cannot_read_is_outdated_for_who_asks(url: str, database: databases.Shell) -> None:
    app = app_of(url)
    run = app.jobs.count.trigger(1).wait()
    assert app.process_one().wait()
    database.execute("update holdfast_runs set output = '{\"old\": 1}' where id = ?", (run.id,))
    again = app.get_run(run.id).wait()
    assert again is not None
    with pytest.raises(Outdated, match=f"output of run {run.id}"):
        _ = again.output
    with pytest.raises(Outdated):
        run.result().wait(SECONDS)
    assert app.stop().wait() is None


def test_a_retrigger_of_an_input_that_no_longer_fits_is_refused(url: str, database: databases.Shell) -> None:
    app = app_of(url)
    run = app.jobs.count.trigger(1).wait()
    database.execute("update holdfast_runs set input = '{\"numbers\": 1}' where id = ?", (run.id,))
    assert app.process_one().wait()
    with pytest.raises(ValueError, match="Cannot retrigger run"):
        app.retrigger(run.id).wait(SECONDS)
    assert database.execute("select count(*) from holdfast_runs").fetchone() == (1,)
    with pytest.raises(RunFailed):
        run.result().wait(SECONDS)
    app.stop().wait()


def test_runs_of_a_job_that_nobody_knows_here_stay_for_who_knows_it(url: str, database: databases.Shell) -> None:
    old: Any = app_of(url)
    kept = old.jobs.count.trigger(1).wait()
    old.stop().wait()
    young = Holdfast(url)

    @young.job(name="other")
    async def other() -> int:
        return 1

    with young:
        assert other.run().wait(SECONDS) == 1
        seen = young.get_run(kept.id).wait()
        assert seen is not None
        assert (seen.status, seen.generation, seen.input) == ("pending", 0, {"number": 1})
    # Not taken and given back again and again: nobody has touched it.
    untouched = database.execute(
        "select generation, updated_at - created_at from holdfast_runs where id = ?", (kept.id,)
    )
    assert list(untouched.fetchall()) == [(0, 0)]
    again = app_of(url)
    with again:
        assert again.wait_for_run(kept.id).wait(SECONDS).output == 2
