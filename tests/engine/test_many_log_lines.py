"""A run that writes lines faster than the database takes them: it waits, memory stays bounded, and no line is lost."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from around import LONG, rows, until, url

from databases import StoreHere
from holdfast import Holdfast, Step, SyncStep
from holdfast.basis.errors import StoreUnavailable
from holdfast.engine import notes as module
from holdfast.store.base import LogSave, Tx

MANY = 5000


def app_of(path: Path, colour: str, began: threading.Event, **options: Any) -> Holdfast:
    app = Holdfast(url(path), **options)
    if colour == "async":

        @app.job(name="chatty")
        async def chatty(step: Step) -> int:
            began.set()
            for n in range(MANY):  # never awaits
                step.log.info(f"line {n}")
            return MANY
    else:

        @app.job(name="chatty")
        def chatty_sync(step: SyncStep) -> int:
            began.set()
            for n in range(MANY):
                step.log.info(f"line {n}")
            return MANY

    return app


def unsaved(app: Holdfast) -> int:
    worker = app._engine.worker
    assert worker is not None
    return max((len(execution.notes._lines) for execution in worker.executing), default=0)


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_tight_loop_of_log_lines_waits_for_the_disk(tmp_path: Path, colour: str) -> None:
    began = threading.Event()
    app = app_of(tmp_path, colour, began)
    with app:
        job = app.get_job("chatty")
        assert job is not None
        run = job.trigger().wait(LONG)
        assert began.wait(LONG)
        # Whatever the committing thread is at, from the next round on it stands still.
        gate = app._engine.committer.gate = threading.Event()
        until(lambda: unsaved(app) == module._MOST_UNSAVED or run.refresh().wait(LONG).is_terminal)
        stood = unsaved(app)
        app._engine.committer.gate = None
        gate.set()
        assert run.result(LONG).wait() == MANY
        longest = app.stats().longest_line
    assert stood <= module._MOST_UNSAVED
    # Those of a round are in the line until all are told, and by then as many others may have come; and some claims.
    assert longest <= module._MOST_UNSAVED * 2.1
    lines = rows(tmp_path / "app.db", "select message from holdfast_logs order by id")
    assert [line for (line,) in lines] == [f"line {n}" for n in range(MANY)]


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_inline_the_lines_are_written_at_once(tmp_path: Path, colour: str) -> None:
    app = app_of(tmp_path, colour, threading.Event(), inline=True)
    app.init().wait()
    job = app.get_job("chatty")
    assert job is not None
    assert job.run().wait() == MANY
    assert app.stats().longest_line <= module._MOST_UNSAVED + 20
    app.stop().wait()
    assert rows(tmp_path / "app.db", "select count(*) from holdfast_logs") == [(MANY,)]


class NoLogs(StoreHere):
    """Takes everything but log lines, as long as it is told to."""

    broken = True

    def save_logs(self, tx: Tx, lines: Sequence[LogSave]) -> list[None]:
        if self.broken:
            raise StoreUnavailable("no logs today")
        return super().save_logs(tx, lines)


def test_a_database_in_trouble_costs_lines_that_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    monkeypatch.setattr(module, "_MOST_UNSAVED", 100)
    store = NoLogs(url(tmp_path))
    app = Holdfast(store)
    heard: list[Any] = []
    app.on("worker:error", heard.append)

    @app.job
    def chatty(step: SyncStep) -> None:
        for n in range(1000):
            step.log.info(f"line {n}")
        store.broken = False

    with caplog.at_level(logging.ERROR, "holdfast"), app:
        chatty.run().wait(LONG)
        until(lambda: heard)
    kept = rows(tmp_path / "app.db", "select count(*) from holdfast_logs")[0][0]
    dropped = [int(e.error.partition("lines: ")[2].split()[0]) for e in heard if "dropped" in e.error]
    assert kept >= 100
    assert kept + sum(dropped) == 1000
    assert {event.run_id for event in heard} != {None}
    store.close()


class RefusesLinesOnce(StoreHere):
    """Refuses the first log lines, once it is told that it may."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked, self.may_refuse = threading.Event(), threading.Event()

    def save_logs(self, tx: Tx, lines: Sequence[LogSave]) -> list[None]:
        if not self.asked.is_set():
            self.asked.set()
            assert self.may_refuse.wait(LONG)
            raise StoreUnavailable("no logs now")
        return super().save_logs(tx, lines)


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_lines_that_are_refused_while_the_end_is_on_its_way_come_with_the_end(tmp_path: Path, colour: str) -> None:
    """After the end nobody takes them any more."""
    store = RefusesLinesOnce(url(tmp_path))
    app = Holdfast(store)
    if colour == "async":

        @app.job(name="work")
        async def work(step: Step) -> None:
            step.log.info("the last words")
            await asyncio.to_thread(store.asked.wait, LONG)

    else:

        @app.job(name="work")
        def work_sync(step: SyncStep) -> None:
            step.log.info("the last words")
            assert store.asked.wait(LONG)

    with app:
        run = app.jobs.work.trigger().wait()
        until(lambda: any(ticket.verb == "finish" for ticket in list(app._engine.committer._line)))
        store.may_refuse.set()
        assert run.wait(LONG).wait().status == "completed"
        assert [line.message for line in app.get_logs(run.id).wait()] == ["the last words"]
    store.close()
