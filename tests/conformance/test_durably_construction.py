"""Durably 11.1-11.3: what an app is made of, its tables, its jobs."""

from __future__ import annotations

import inspect
import sqlite3
import threading
from contextlib import closing
from typing import Annotated, Any

import pytest
from conformance_jobs import FORMS, LONG, work
from pydantic import Field

import databases
from holdfast import Holdfast, Job, Step, SyncStep, ValidationError, job
from house import House

VERBS = [
    "migrate", "init", "start", "stop", "on", "on_error", "emit", "use", "get_run", "get_runs", "wait_for_run",
    "subscribe", "get_job", "register", "process_one", "process_until_idle", "retrigger", "cancel", "delete_run",
    "purge_runs", "trigger", "trigger_many",
]  # fmt: skip


# -- 11.1 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_an_app_has_the_verbs_of_the_ancestor(verb: str) -> None:
    assert inspect.ismethod(getattr(Holdfast(), verb))


def test_an_app_needs_no_options() -> None:
    options = Holdfast()._engine.options
    assert (options.concurrency, options.polling_interval, options.lease) == (10, 1.0, 30.0)
    assert (options.lease_renew_interval, options.preserve_steps, options.retain_runs) == (10.0, False, None)


def test_an_app_takes_options_of_its_own(house: House) -> None:
    app = house.app(polling_interval="500ms", concurrency=3, lease="1m", lease_renew_interval=5, retain_runs="30d")
    options = app._engine.options
    assert (options.polling_interval, options.concurrency, options.lease) == (0.5, 3, 60.0)
    assert (options.lease_renew_interval, options.retain_runs) == (5.0, 30 * 86400.0)


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, float("nan"), float("inf"), 1001, "3", True, None])
def test_a_concurrency_that_is_no_whole_number_from_1_to_1000_is_refused(concurrency: Any) -> None:
    with pytest.raises(ValidationError, match=r"concurrency: .* from 1 to 1000"):
        Holdfast(concurrency=concurrency)


def test_the_tables_can_be_read_with_any_sqlite(house: House) -> None:
    app = house.app()
    app.migrate().wait(LONG)
    assert house.sql("select 1") == [(1,)]
    assert house.sql("select count(*) from holdfast_runs") == [(0,)]
    app.stop().wait(LONG)


# -- 11.2 ------------------------------------------------------------------------------------------------------------


def test_migrating_makes_tables_for_runs_steps_logs_and_its_own_number(house: House) -> None:
    house.app().migrate().wait(LONG)
    tables = set(databases.tables(house.path))
    assert {"holdfast_runs", "holdfast_steps", "holdfast_logs", "holdfast_labels"} <= tables
    assert any("schema" in name or "meta" in name for name in tables)


def test_a_run_has_columns_for_its_lease(house: House) -> None:
    house.app().migrate().wait(LONG)
    columns = set(databases.columns(house.path, "holdfast_runs"))
    assert {"lease_owner", "lease_expires_at", "generation"} <= columns


@pytest.mark.only("sqlite", "one lock for all who write")
def test_a_stop_while_it_migrates_harms_nobody(house: House) -> None:
    app = house.app()
    with closing(sqlite3.connect(house.path, isolation_level=None)) as other:
        other.execute("pragma journal_mode = wal")
        other.execute("begin immediate")  # the migration has begun, and has to wait
        migrated = app.migrate()
        thread = threading.Thread(target=migrated.when_done, args=(lambda: None,))
        thread.start()
        app.stop().wait(LONG)
        other.execute("rollback")
    migrated.wait(LONG)
    thread.join()
    assert house.sql("select count(*) from holdfast_runs") == [(0,)]


# -- 11.3 ------------------------------------------------------------------------------------------------------------


def _adult(form: str) -> Job[..., Any]:
    Age = Annotated[int, Field(ge=1)]

    @job(name="work")
    async def adult(step: Step, age: Age, name: str = "nobody"):  # type: ignore[no-untyped-def]
        return [age, name]

    @job(name="work")
    def adult_sync(step: SyncStep, age: Age, name: str = "nobody"):  # type: ignore[no-untyped-def]
        return [age, name]

    return adult if form == "async" else adult_sync


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("age", [0, -1])
def test_input_outside_of_its_bounds_is_refused_and_nothing_is_written(house: House, form: str, age: int) -> None:
    app = house.app(_adult(form), worker=False)
    app.init().wait(LONG)
    with pytest.raises(ValidationError, match="age"):
        work(app).trigger(age)
    assert app.get_runs().wait(LONG) == []
    app.stop().wait(LONG)


@pytest.mark.parametrize("form", FORMS)
def test_input_within_its_bounds_makes_a_pending_run(house: House, form: str) -> None:
    app = house.app(_adult(form), worker=False)
    app.init().wait(LONG)
    run = work(app).trigger(1).wait(LONG)
    assert (len(run.id), run.status, run.disposition) == (26, "pending", "created")
    app.stop().wait(LONG)


@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_with_a_default_may_be_left_out(house: House, form: str) -> None:
    with house.app(_adult(form)) as app:
        assert work(app).run(7).wait(LONG) == [7, "nobody"]
        assert work(app).run(7, name="Ann").wait(LONG) == [7, "Ann"]


@pytest.mark.parametrize("form", FORMS)
def test_a_job_that_does_not_say_what_it_returns_gives_its_output(house: House, form: str) -> None:
    with house.app(_adult(form)) as app:
        assert work(app).output_schema == {}
        assert work(app).trigger_and_wait(7).wait(LONG).output == [7, "nobody"]


def test_several_jobs_are_registered_in_one_call_and_each_can_be_triggered(house: House) -> None:
    @job
    async def one() -> int:
        return 1

    @job
    def two() -> int:
        return 2

    app = house.app()
    first, second = app.register(one, two)
    with app:
        assert [first.run().wait(LONG), second.run().wait(LONG)] == [1, 2]


def test_a_handle_reads_runs_of_its_own_job_only(house: House) -> None:
    @job
    async def one() -> int:
        return 1

    @job
    def two() -> int:
        return 2

    app = house.app(worker=False)
    first, second = app.register(one, two)
    app.init().wait(LONG)
    mine, other = first.trigger().wait(LONG), second.trigger().wait(LONG)
    found = first.get_run(mine.id).wait(LONG)
    assert found is not None
    assert found.id == mine.id
    assert first.get_run(other.id).wait(LONG) is None
    assert [run.id for run in first.get_runs().wait(LONG)] == [mine.id]
    app.stop().wait(LONG)


def test_a_job_that_was_found_by_its_name_can_be_triggered(house: House) -> None:
    @job(name="say-hello")
    def hello(name: str) -> str:
        return f"hello {name}"

    with house.app(hello) as app:
        found = app.get_job("say-hello")
        assert found is not None
        assert found.run("you").wait(LONG) == "hello you"
