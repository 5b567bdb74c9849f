"""A codec that is away for a while, or for good: what is kept, what is said of it, and who can end it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from around import until

import databases
from holdfast import Codec, Holdfast, Retry, Step, StoreUnavailable, SyncStep
from holdfast.testing.clock import HandClock
from house import PATIENCE


class Away(Codec):
    """Reverses, when it is there."""

    name = "away"

    def __init__(self) -> None:
        self.away = False
        self.refuses = ""

    def _turn(self, text: str) -> str:
        if self.away or (self.refuses and self.refuses in text):
            raise StoreUnavailable("no key service")
        return text[::-1]

    encode = decode = _turn


def _app(folder: Path, codec: Codec, **options: Any) -> Holdfast:
    return Holdfast(databases.url(folder / "app.db"), codec=codec, **options)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_s3_log_lines_of_a_saved_step_are_never_lost_also_if_the_codec_was_away_when_they_were_written(
    tmp_path: Path, kind: str
) -> None:
    codec = Away()
    app = _app(tmp_path, codec)

    def body(step: Any) -> None:
        codec.away = True
        step.log.info("first", n=1)
        codec.away = False
        step.log.info("second")

    if kind == "async":

        @app.job(name="work")
        async def work(step: Step) -> None:
            await step.run("one", body, step)
    else:

        @app.job(name="work")
        def work(step: SyncStep) -> None:
            step.run("one", body, step)

    with app:
        run = work.trigger().wait()
        run.wait().wait(PATIENCE)
        lines = app.get_logs(run.id).wait()
    assert [(line.message, line.data, line.step_name) for line in lines] == [
        ("first", {"n": 1}, "one"),
        ("second", None, "one"),
    ]


def test_a_run_whose_end_can_not_be_sealed_can_be_cancelled_and_is_let_go(tmp_path: Path) -> None:
    codec, clock = Away(), HandClock()
    codec.refuses = "bad"
    app = _app(tmp_path, codec, clock=clock)
    reports: list[str] = []

    @app.job
    def work() -> str:
        return "bad"

    app.on("worker:error", lambda event: reports.append(event.data["error"]))
    with app:
        run = work.trigger().wait()
        until(lambda: len(reports) > 3, clock=clock)
        began = clock.steady()
        before = len(reports)
        until(lambda: clock.steady() - began > 60, clock=clock)
        flood = len(reports) - before
        assert run.cancel().wait().status == "cancelled"
        worker = app._engine.worker
        assert worker is not None
        until(lambda: not worker.executing, clock=clock)
        assert run.refresh().wait().status == "cancelled"
    assert flood <= 61


def test_what_happened_before_is_there_for_a_retry_or_the_reason_why_not(tmp_path: Path) -> None:
    codec = Away()
    app = _app(tmp_path, codec)
    seen: list[str | None] = []

    @app.job(retry=Retry(1))
    def work(step: SyncStep) -> None:
        if step.attempt == 0:
            raise ValueError("first")
        codec.away = True
        try:
            seen.append(step.previous_error)
        finally:
            codec.away = False

    with app:
        assert work.trigger().wait().wait().wait(PATIENCE).status == "completed"
    assert seen == ["no key service"]
