"""A worker whose own clock is wrong, beside a server that has the time: sleeps and deadlines are what they say."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import databases
from holdfast import Holdfast, Step
from holdfast.basis.clock import SystemClock

pytestmark = pytest.mark.sampled("what a server's time is for is the same on every Python")

BY_ITS_OWN = pytest.mark.only("postgres mariadb", "on SQLite the time is that of the machine")

HOUR = 3600.0


class Wrong(SystemClock):
    """The clock of this machine, set wrongly."""

    def __init__(self, ahead: float) -> None:
        self._ahead = round(ahead * 1_000_000)

    def now(self) -> int:
        return super().now() + self._ahead


def app_with(tmp_path: Path, ahead: float, *, warm_for: float = 5.0) -> Holdfast:
    return Holdfast(databases.url(tmp_path / "app.db"), clock=Wrong(ahead), warm_for=warm_for, polling_interval=0.1)


@BY_ITS_OWN
@pytest.mark.parametrize("warm_for", [5.0, 0.0], ids=["in memory", "suspended"])
@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
def test_a_sleep_lasts_as_long_as_it_says(tmp_path: Path, ahead: float, warm_for: float) -> None:
    app = app_with(tmp_path, ahead, warm_for=warm_for)

    @app.job
    async def sleeper(step: Step) -> float:
        began = await step.run("begin", time.time)
        await step.sleep("night", 0.5)
        return time.time() - began

    with app:
        run = sleeper.trigger().wait()
        assert 0.5 <= run.result(timeout=20).wait() < 10
        run = app.get_run(run.id).wait()
    assert run._row.generation <= 3, "it was taken, suspended and taken again, and no more than that"


@BY_ITS_OWN
def test_a_deadline_is_over_when_it_is_over_for_the_server(tmp_path: Path) -> None:
    app = app_with(tmp_path, HOUR)

    @app.job(deadline=60)
    async def in_time() -> str:
        return "done"

    with app:
        assert in_time.run().wait() == "done"


@BY_ITS_OWN
def test_a_delayed_run_begins_in_time(tmp_path: Path) -> None:
    app = app_with(tmp_path, -HOUR)

    @app.job
    async def later() -> str:
        return "done"

    with app:
        run = later.options(delay=0.3).trigger().wait()
        assert run.result(timeout=20).wait() == "done"


@BY_ITS_OWN
def test_what_is_purged_by_its_age_is_as_old_as_that(tmp_path: Path) -> None:
    app = app_with(tmp_path, HOUR)

    @app.job
    async def done() -> None: ...

    with app:
        done.run().wait()
        assert app.purge_runs(older_than=60).wait() == 0
        assert app.purge_runs(older_than=0).wait() == 1
