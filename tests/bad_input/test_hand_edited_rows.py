"""Rows that somebody wrote by hand into columns that are not payloads. One bad row must not stop the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bed import SECONDS

import databases
from holdfast import Holdfast, StoreUnavailable, SyncStep


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Holdfast(databases.url(tmp_path / "rows.db")).migrate().wait()
    return tmp_path / "rows.db"


@pytest.fixture
def database(path: Path) -> Iterator[databases.Shell]:
    with databases.shell(path) as shell:
        yield shell


def app_of(path: Path) -> Holdfast:
    app = Holdfast(databases.url(path), polling_interval=0.1)

    @app.job(name="count")
    def count(step: SyncStep, number: int) -> int:
        step.log.info("counting")
        step.progress(1, 2)
        return step.run("next", int.__add__, number, 1)

    return app


NOT_UTF_8 = "cast(x'22ff22' as text)"

only_sqlite = pytest.mark.only("sqlite", "elsewhere every text is UTF-8")

#: What a hand may have done to a run that waits, and how that run ends.
EDITS = {
    "an input that is not UTF-8": (f"input = {NOT_UTF_8}", "failed"),
    "labels that are not JSON": ("labels = 'nonsense'", "completed"),
    "labels that are a list": ("labels = '[1]'", "completed"),
    "labels of numbers": ("labels = '{\"a\": 1}'", "completed"),
    "labels that are not UTF-8": (f"labels = {NOT_UTF_8}", "completed"),
    "a retry that is not JSON": ("retry = 'nonsense'", None),
    "a retry that is not UTF-8": (f"retry = {NOT_UTF_8}", None),
    "a trace that is not UTF-8": (f"trace = {NOT_UTF_8}", "completed"),
    "an error before it ran": ("error = 'from nowhere', error_type = 'Nothing'", "completed"),
    "an output before it ran": ("output = 'nonsense'", "completed"),
    "an unknown waiting_for": ("waiting_for = 'godot'", "completed"),
    "a huge attempt": ("attempt = 9223372036854775806", "completed"),
    "a huge generation": ("generation = 4611686018427387904", "completed"),
    "a created_at before all time": ("created_at = -9223372036854775807", "completed"),
    "a created_at after all time": ("created_at = 9223372036854775807", "completed"),
    "a priority beyond all": ("priority = 9223372036854775807", "completed"),
    "an empty idempotency key": ("idempotency_key = ''", "completed"),
    "a codec that nobody has": ("codec = 'vault'", None),
    "a sealed input that nobody can open": ("input = '^vault^AAAA'", None),
}


@pytest.mark.parametrize(
    "edit",
    [pytest.param(name, marks=only_sqlite if NOT_UTF_8 in change else ()) for name, (change, _) in EDITS.items()],
)
def test_a_run_that_was_edited_by_hand_stops_nobody_else(path: Path, database: databases.Shell, edit: str) -> None:
    change, ends = EDITS[edit]
    app = app_of(path)
    bad = app.jobs.count.trigger(1).wait()
    database.execute(f"update holdfast_runs set {change} where id = ?", (bad.id,))
    good = [app.jobs.count.trigger(n).wait() for n in range(3)]
    with app:
        assert [run.result().wait(SECONDS) for run in good] == [1, 2, 3]
        for _ in range(int(SECONDS / 0.05)):
            [status] = database.execute("select status from holdfast_runs where id = ?", (bad.id,)).fetchone()
            if status in ("completed", "failed"):
                break
            app._engine.watcher._wake.wait(0.05)
        assert status == ends or (ends is None and status in ("completed", "failed")), status
        seen = app.get_runs().wait()
        assert len(seen) == 4, "it can be listed, too"


def test_tables_refuse_what_no_code_could_read(path: Path, database: databases.Shell) -> None:
    app = app_of(path)
    run = app.jobs.count.trigger(1).wait()
    refused = ["status = 'paused'", "status = 'leased'", "attempt = 'many'", "run_at = null"]
    for change in [*refused, "labels = x'00ff'"] if databases.ON == "sqlite" else refused:
        with pytest.raises(databases.driver.DatabaseError):
            database.execute(f"update holdfast_runs set {change} where id = ?", (run.id,))
    app.stop().wait()


@only_sqlite
def test_a_text_that_is_not_utf_8_is_read_from_the_second_try_on(path: Path, database: databases.Shell) -> None:
    app = app_of(path)
    bad = app.jobs.count.trigger(1).wait()
    database.execute(f"update holdfast_runs set input = {NOT_UTF_8} where id = ?", (bad.id,))
    with pytest.raises(StoreUnavailable, match="Texts are read leniently from now on"):
        app.get_runs().wait()
    [seen] = app.get_runs().wait()
    assert seen.id == bad.id
    _: Any = seen.input, seen.labels, repr(seen)
    app.stop().wait()


@only_sqlite
@pytest.mark.parametrize(
    "what", ["holdfast_logs set message", "holdfast_progress set progress", "holdfast_steps set name"]
)
def test_what_hangs_on_a_run_may_be_nonsense_too(path: Path, database: databases.Shell, what: str) -> None:
    app = app_of(path)
    run = app.jobs.count.trigger(1).wait()
    assert app.process_one().wait()
    database.execute(f"update {what} = {NOT_UTF_8}")
    for attempt in range(2):
        try:
            assert app.get_run(run.id).wait() is not None  # which says how far it is
            app.get_steps(run.id).wait()
            app.get_logs(run.id).wait()
        except StoreUnavailable:
            assert attempt == 0
    with app:
        assert app.jobs.count.run(5).wait(SECONDS) == 6
