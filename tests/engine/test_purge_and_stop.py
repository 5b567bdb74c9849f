"""A purge that is under way when the app stops."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from holdfast import StoreClosed, job
from holdfast.testing import HandClock
from house import PATIENCE, House


def test_a_purge_that_rests_between_two_batches_when_the_app_stops_says_so(house: House) -> None:
    resting, clock = threading.Event(), HandClock()

    @job(name="work")
    def work() -> None: ...

    app = house.app(work, clock=clock)
    app.init().wait()
    run = app.jobs.work.trigger().wait()
    run.wait().wait(PATIENCE)
    clock.advance(10)
    engine = app._engine
    call_later = clock.call_later

    def rests(loop: Any, seconds: float, call: Any) -> Any:
        if "_pause" in getattr(call, "__qualname__", "") or seconds == 0:
            resting.set()
            seconds = 1000.0
        return call_later(loop, seconds, call)

    clock.call_later = rests  # type: ignore[method-assign]
    purge = app.purge_runs(older_than=5)
    assert resting.wait(PATIENCE)
    clock.call_later = call_later  # type: ignore[method-assign]
    app.stop().wait(PATIENCE)
    assert engine.home is None
    with pytest.raises(StoreClosed):
        purge.wait(PATIENCE)
