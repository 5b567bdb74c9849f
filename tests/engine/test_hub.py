"""The hub: listeners hear everything in order and harm nobody; nobody waits for ever."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from around import LONG, until, url

from holdfast import Holdfast, Step
from holdfast.basis.errors import NotFoundError, StoreClosed, ValidationError, WouldDeadlock
from holdfast.commit.reply import Reply
from holdfast.engine.hub import EVENTS, Hub
from holdfast.testing.clock import HandClock


def hub() -> Hub:
    return Hub(HandClock())


def test_listeners_hear_events_of_their_type_in_order_until_they_are_taken_off() -> None:
    one, heard, last = hub(), [], threading.Event()
    off = one.on("run:complete", lambda event: heard.append(event.n))
    one.on("run:fail", lambda event: last.set())
    for n in range(100):
        one.tell("run:complete", n=n)
    one.tell("run:fail")
    assert last.wait(LONG)
    off()
    off()
    one.tell("run:complete", n=100)
    one.close()
    assert heard == list(range(100))


def test_a_listener_registered_twice_is_called_once() -> None:
    one, heard = hub(), []
    one.on("run:fail", heard.append)
    one.on("run:fail", heard.append)
    one.tell("run:fail")
    one.close()
    assert len(heard) == 1


def test_a_type_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"run:done.*run:complete"):
        hub().on("run:done", print)


def test_on_is_a_decorator_too(tmp_path: Path) -> None:
    app = Holdfast(url(tmp_path))
    heard: list[Any] = []

    @app.on("run:complete")
    def listener(event: Any) -> None:
        heard.append(event.output)

    @app.job
    def three() -> int:
        return 3

    with app:
        three.run().wait(LONG)
    assert heard == [3]
    assert callable(listener)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
def test_a_faulty_listener_harms_neither_the_next_one_nor_later_events(error: BaseException) -> None:
    one, heard, faults = hub(), [], []
    one.on_error(lambda fault, event: faults.append((fault, event.type)))

    def faulty(event: Any) -> None:
        raise error

    one.on("run:fail", faulty)
    one.on("run:fail", heard.append)
    one.tell("run:fail")
    one.tell("run:fail")
    one.close()
    assert len(heard) == 2
    assert faults == [(error, "run:fail")] * 2


def test_without_a_handler_and_with_a_faulty_one_faults_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    one = hub()

    def faulty(*_: Any) -> None:
        raise ValueError("listener is broken")

    one.on("run:fail", faulty)
    with caplog.at_level(logging.ERROR, "holdfast"):
        one.tell("run:fail")
        until(lambda: "listener is broken" in caplog.text)
        one.on_error(faulty)
        one.tell("run:fail")
        one.close()
    assert "the error handler failed" in caplog.text


def test_a_slow_listener_delays_no_run(tmp_path: Path) -> None:
    app, go = Holdfast(url(tmp_path)), threading.Event()
    app.on("run:trigger", lambda event: go.wait(LONG))

    @app.job
    def one() -> int:
        return 1

    with app:
        assert one.run().wait(LONG) == 1
        assert one.run().wait(LONG) == 1
        go.set()


def test_async_listeners_run_in_the_apps_loop_and_their_faults_go_to_on_error(tmp_path: Path) -> None:
    app = Holdfast(url(tmp_path))
    loops: list[Any] = []
    faults: list[str] = []
    app.on_error(lambda fault, event: faults.append(str(fault)))

    @app.on("run:complete")
    async def listener(event: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        raise ValueError("late")

    @app.job
    def one() -> int:
        return 1

    with app:
        loop = app._engine.home and app._engine.home.loop
        one.run().wait(LONG)
    assert loops == [loop]
    assert faults == ["late"]


def test_waiting_in_a_listener_is_refused_because_it_would_wait_for_itself(tmp_path: Path) -> None:
    app = Holdfast(url(tmp_path))
    faults: list[BaseException] = []
    told = threading.Event()
    app.on_error(lambda fault, event: (faults.append(fault), told.set()))

    @app.job
    def one() -> int:
        return 1

    app.on("run:trigger", lambda event: app.wait_for_run(event.run_id).wait())
    with app:
        one.run().wait(LONG)
        assert told.wait(LONG)
    assert [type(fault) for fault in faults] == [WouldDeadlock]


def test_what_a_run_tells_comes_in_the_order_in_which_it_happened(tmp_path: Path) -> None:
    app = Holdfast(url(tmp_path))
    heard: list[Any] = []
    for type in sorted(EVENTS):
        app.on(type, heard.append)

    @app.job
    async def job(step: Step) -> int:
        step.log.info("here")
        await step.run("a", int)
        try:
            await step.run("b", int, "no number")
        except ValueError:
            step.progress(1, 2)
        return 3

    with app:
        for _ in range(20):
            job.run().wait(LONG)
    by_run: dict[str, list[str]] = {}
    for event in heard:
        if event.type != "run:lease-renewed":  # where a second passes meanwhile
            by_run.setdefault(event.run_id, []).append(event.type)
    assert len(by_run) == 20
    for types in by_run.values():
        assert types == [
            "run:trigger", "run:leased", "log:write", "step:start", "step:complete", "step:start", "step:fail",
            "run:progress", "run:complete",
        ]  # fmt: skip
    numbers = [event.sequence for event in heard]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == len(numbers)


def test_an_error_that_nobody_waits_for_names_its_run(caplog: pytest.LogCaptureFixture) -> None:
    one, heard = hub(), []
    one.on("worker:error", heard.append)
    one.report(ValueError("no"), "claim", "run-1")
    one.report("words", "watch")
    one.close()
    assert [(event.run_id, event.context, event.error) for event in heard] == [
        ("run-1", "claim", "ValueError: no"),
        (None, "watch", "words"),
    ]
    assert "claim of run run-1" in caplog.text


def test_after_a_close_nothing_is_told_and_no_thread_comes_back() -> None:
    one, heard = hub(), []
    one.on("run:fail", heard.append)
    one.close()
    one.tell("run:fail")
    assert one._thread is None
    one.open()
    one.tell("run:fail")
    one.close()
    assert len(heard) == 1


def test_a_close_tells_what_is_still_to_be_told() -> None:
    one, heard, go = hub(), [], threading.Event()
    one.on("run:progress", lambda event: go.wait(LONG))
    one.on("run:fail", heard.append)
    one.tell("run:progress")
    for _ in range(10):
        one.tell("run:fail")
    go.set()
    one.close()
    assert len(heard) == 10


def test_nobody_is_left_waiting_by_a_close() -> None:
    one, reply, gone = hub(), Reply[Any]("end"), Reply[Any]("end")
    one.expect("a", reply)
    one.expect("b", gone)
    one.gone(["b", "c"])
    one.close()
    with pytest.raises(StoreClosed):
        reply.wait(LONG)
    with pytest.raises(NotFoundError):
        gone.wait(LONG)
    assert one.awaited == []


def test_whoever_gives_up_is_forgotten_and_others_stay() -> None:
    one, first, second = hub(), Reply[Any]("end"), Reply[Any]("end")
    one.expect("a", first)
    one.expect("a", second)
    one.forget("a", first)
    assert one.awaited == ["a"]
    one.forget("a", second)
    one.forget("a", second)
    assert one.awaited == []
