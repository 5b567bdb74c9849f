"""Making, starting, stopping and leaving an app: in any order, from anywhere, with nothing left behind (S4, S10)."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import databases
from holdfast import Holdfast, SyncStep
from holdfast.basis.errors import SchemaError, StoreClosed

LONG = 20.0


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(round(LONG / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it never came to be")


def make(tmp_path: Path, **options: Any) -> tuple[Holdfast, Any]:
    app = Holdfast(databases.url(tmp_path / "app.db"), **options)

    @app.job
    def double(step: SyncStep, n: int) -> int:
        return step.run("double", lambda: n * 2)

    return app, double


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("holdfast")]


@pytest.fixture(autouse=True)
def _nobody_else_is_there() -> None:
    """What an earlier test in this process has called in threads may leave these idle; they go after ten seconds."""
    until(lambda: ours() == [])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_s10_making_an_app_opens_starts_and_writes_nothing(tmp_path: Path) -> None:
    before = descriptors()
    app, double = make(tmp_path)
    double.bind(1)
    app.on("run:complete", print)
    assert list(tmp_path.iterdir()) == []
    assert (descriptors(), ours()) == (before, [])


def test_an_app_that_was_never_started_can_be_stopped_again_and_again(tmp_path: Path) -> None:
    app, _ = make(tmp_path)
    app.stop().wait(LONG)
    app.stop().wait(LONG)

    async def main() -> None:
        await app.stop()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []
    assert ours() == []


@pytest.mark.parametrize("way", ["with", "async with", "thread", "inline"])
def test_s10_nothing_is_left_after_twenty_starts_and_stops(tmp_path: Path, way: str) -> None:
    options: dict[str, Any] = {"thread": {"worker": "thread"}, "inline": {"inline": True}}.get(way, {})
    app, double = make(tmp_path, **options)
    app.on("run:complete", lambda event: None)

    async def cycle() -> None:
        async with app:
            assert await double.run(2) == 4
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def once() -> None:
        if way == "with":
            with app:
                assert double.run(2).wait(LONG) == 4
        else:
            asyncio.run(cycle())

    once()
    gc.collect()
    before = descriptors(), threading.active_count()
    for _ in range(20):
        once()
    gc.collect()
    assert (descriptors(), threading.active_count()) == before
    assert ours() == []


def test_a_temporary_database_is_removed_when_its_app_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = Holdfast("sqlite://")
    app.migrate().wait(LONG)
    assert len(list(tmp_path.iterdir())) == 1
    app.stop().wait(LONG)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_database_is_removed_with_an_app_that_nobody_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Holdfast("sqlite://")._engine.store.migrate()
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_init_start_and_migrate_may_be_called_again_and_at_once(tmp_path: Path) -> None:
    app, double = make(tmp_path)

    async def main() -> None:
        await asyncio.gather(app.init(), app.migrate(), app.init(), app.migrate())
        await app.init()
        await asyncio.gather(app.start(), app.start())
        assert await double.run(1) == 2
        assert ours().count("holdfast-leases") == 1
        assert ours().count("holdfast-watch") == 1
        await app.stop()

    asyncio.run(main())
    assert ours() == []


def test_many_threads_may_init_and_stop_at_once(tmp_path: Path) -> None:
    app, double = make(tmp_path)
    together = threading.Barrier(6)

    def call(what: Callable[[], Any]) -> None:
        together.wait(LONG)
        what().wait(LONG)

    for what in (app.init, app.stop):
        threads = [threading.Thread(target=call, args=(what,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        if what is app.init:
            assert ours().count("holdfast-loop") == 1
            assert double.run(2).wait(LONG) == 4
    assert ours() == []


def test_starting_without_tables_is_told_to_the_first_who_asks(tmp_path: Path) -> None:
    app, double = make(tmp_path)
    app.start().wait(LONG)
    with pytest.raises(SchemaError, match="holdfast migrate"):
        double.trigger(1).wait(LONG)
    app.stop().wait(LONG)


@pytest.mark.parametrize("way", ["with", "async with"])
def test_entering_an_app_whose_tables_are_too_new_leaves_nothing_behind(tmp_path: Path, way: str) -> None:
    app, _ = make(tmp_path)
    app.migrate().wait(LONG)
    app.stop().wait(LONG)
    databases.rows(tmp_path / "app.db", "insert into holdfast_migrations values (9999, 'future', 1)")

    async def enter_async() -> None:
        async with app:
            raise AssertionError("entered")

    def enter() -> None:
        with app:
            raise AssertionError("entered")

    with pytest.raises(SchemaError, match="newer"):
        enter() if way == "with" else asyncio.run(enter_async())
    assert ours() == []


def test_an_app_is_not_started_while_it_stops(tmp_path: Path) -> None:
    app, _ = make(tmp_path)
    go, started = threading.Event(), threading.Event()

    @app.job
    def hold() -> None:
        started.set()
        assert go.wait(LONG)

    app.init().wait(LONG)
    hold.trigger().wait(LONG)
    assert started.wait(LONG)
    stopping = app.stop()
    threads = [threading.Thread(target=stopping.wait, args=(LONG,)) for _ in range(2)]
    threads.append(threading.Thread(target=app.stop(0).wait, args=(LONG,)))
    for thread in threads:
        thread.start()
    until(lambda: app._engine.stopping)
    with pytest.raises(StoreClosed, match=r"Wait for stop\(\)"):
        app.start()
    go.set()
    for thread in threads:
        thread.join(LONG)
    app.init().wait(LONG)
    app.stop().wait(LONG)
    assert ours() == []


def test_s4_what_does_not_end_within_the_timeout_is_handed_back_uncounted(tmp_path: Path) -> None:
    app, _ = make(tmp_path)
    go = threading.Event()
    reasons: list[str | None] = []

    @app.job
    async def forever(n: int) -> None:
        await asyncio.Event().wait()

    @app.job
    def polite(step: SyncStep) -> None:
        assert step.shutdown.wait(LONG)
        assert step.signal.wait(LONG)
        reasons.append(step.signal.reason)
        go.set()

    app.init().wait(LONG)
    runs = [forever.trigger(1).wait(LONG), polite.trigger().wait(LONG)]
    until(lambda: len(app.get_runs(status="leased").wait(LONG)) == 2)
    app.stop(timeout=0).wait(LONG)
    assert go.wait(LONG)
    assert reasons == ["shutdown"]
    other = Holdfast(databases.url(tmp_path / "app.db"), worker=False)
    for run in runs:
        back = other.get_run(run.id).wait(LONG)
        assert back is not None
        assert (back.status, back.crashes, back.attempt, back.lease_owner) == ("pending", 0, 0, None)
    other.stop().wait(LONG)


def test_s4_a_slice_that_is_stopped_hands_its_run_back_and_takes_no_other(tmp_path: Path) -> None:
    app, _ = make(tmp_path)
    there = threading.Event()

    @app.job
    def long(step: SyncStep, n: int) -> None:
        step.run("one", lambda: n)
        there.set()
        assert step.signal.wait(LONG)
        step.raise_if_aborted()

    app.migrate().wait(LONG)
    for n in range(3):
        long.trigger(n).wait(LONG)
    processed = app.process_until_idle()
    with pytest.raises(TimeoutError):  # asked once, it goes on by itself
        processed.wait(0)
    assert there.wait(LONG)
    app.stop(timeout=0).wait(LONG)
    assert processed.wait(LONG) == 1
    other = Holdfast(databases.url(tmp_path / "app.db"), worker=False)
    runs = other.get_runs().wait(LONG)
    assert [(run.status, run.generation, run.crashes) for run in runs] == [
        ("pending", 0, 0),
        ("pending", 0, 0),
        ("pending", 1, 0),
    ]
    other.stop().wait(LONG)


def test_stopping_does_not_close_the_loop_of_the_caller(tmp_path: Path) -> None:
    app, _double = make(tmp_path)
    loop = asyncio.new_event_loop()

    async def init() -> None:
        await app.init()

    loop.run_until_complete(init())
    app.stop().wait(LONG)  # turns that loop, for nobody else does
    assert not loop.is_closed()
    loop.close()
    assert ours() == []


def test_an_app_whose_loop_was_closed_under_it_can_be_stopped_and_used_again(tmp_path: Path) -> None:
    app, double = make(tmp_path)

    async def forget() -> None:
        await app.init()
        assert await double.run(1) == 2

    asyncio.run(forget())
    asyncio.run(forget())
    app.stop().wait(LONG)
    assert ours() == []


def test_after_a_stop_reads_and_writes_say_that_it_is_closed_and_start_nothing(tmp_path: Path) -> None:
    app, double = make(tmp_path)
    with app:
        run = double.trigger(1).wait(LONG)
        run.wait().wait(LONG)
    for call in (lambda: double.trigger(1), lambda: app.get_run(run.id), run.wait, run.cancel, app.get_runs):
        with pytest.raises(StoreClosed):
            call().wait(LONG)
    assert ours() == []


def test_the_watcher_gets_over_a_database_that_is_not_there_yet(tmp_path: Path) -> None:
    errors: list[Any] = []
    app, _double = make(tmp_path, polling_interval=3600)
    app.on("worker:error", errors.append)
    app.start().wait(LONG)
    until(lambda: any(event.context == "watch" for event in errors))
    other, _ = make(tmp_path, worker=False)
    other.migrate().wait(LONG)
    assert other.jobs.double.trigger(4).wait(LONG).result().wait(LONG) == 8
    other.stop().wait(LONG)
    app.stop().wait(LONG)
