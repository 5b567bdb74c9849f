"""Replies of runs: waiting for an end, giving up, and what is refused because it would wait for ever (S8)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import databases
from databases import StoreHere
from holdfast import (
    CancelRun,
    Holdfast,
    NotFoundError,
    RunCancelled,
    RunFailed,
    RunTimedOut,
    Step,
    SyncStep,
    TimedOut,
    ValidationError,
    WouldDeadlock,
)
from holdfast.basis.errors import StoreClosed
from holdfast.commit.reply import Reply
from holdfast.model.run import RunFilter, RunRow

LONG = 20.0


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(round(LONG / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it never came to be")


async def turns_until(condition: Callable[[], object]) -> None:
    """Let the loop turn until the condition holds."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to be")


class Desk:
    """An app with one run that ends when it is told to."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path / "app.db"
        self.app = Holdfast(databases.url(self.path), **options)
        self.go = threading.Event()

        @self.app.job
        def hold(n: int) -> int:
            assert self.go.wait(LONG)
            return n

        self.hold = hold

    @property
    def awaited(self) -> list[str]:
        return self.app._engine.hub.awaited


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    with desk.app:
        yield desk
        desk.go.set()


def test_s8_wait_gives_the_ended_run_and_result_its_output(desk: Desk) -> None:
    run = desk.hold.trigger(4).wait(LONG)
    assert run.status in ("pending", "leased")
    desk.go.set()
    assert run.wait().wait(LONG).output == 4
    assert run.result().wait(LONG) == 4
    assert desk.app.wait_for_run(run.id).wait(LONG).output == 4
    assert run.status != "completed"  # a run is a picture
    assert run.refresh().wait(LONG).status == "completed"


def test_s8_a_wait_that_times_out_harms_neither_the_run_nor_later_waits(desk: Desk) -> None:
    run = desk.hold.trigger(4).wait(LONG)
    with pytest.raises(TimeoutError, match="goes on"):
        run.wait(timeout=0.01).wait()
    with pytest.raises(TimeoutError):
        run.result().wait(0.01)
    with pytest.raises(TimeoutError):
        desk.app.wait_for_run(run.id, timeout=0).wait()
    assert desk.awaited == []
    again = run.result()
    with pytest.raises(TimeoutError):
        again.wait(0)
    desk.go.set()
    assert again.wait(LONG) == 4
    assert desk.awaited == []


def test_s8_an_await_that_is_cancelled_or_times_out_leaves_no_waiter_behind(desk: Desk) -> None:
    async def main() -> None:
        run = await desk.hold.trigger(4)
        reply = run.result()
        for _ in range(3):
            task = asyncio.ensure_future(reply)
            await turns_until(lambda: desk.awaited)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert desk.awaited == []
        with pytest.raises(TimeoutError):
            await run.wait(timeout=0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run.wait(), 0.01)
        assert desk.awaited == []
        first, second = asyncio.ensure_future(reply), asyncio.ensure_future(reply)
        await turns_until(lambda: desk.awaited)
        first.cancel()
        await asyncio.sleep(0)
        assert desk.awaited == [run.id]  # the other one still waits
        desk.go.set()
        assert await second == 4
        assert desk.awaited == []

    asyncio.run(main())


def test_s8_run_that_is_given_up_before_it_was_written_leaves_no_waiter_behind(desk: Desk) -> None:
    desk.app._engine.committer.gate = gate = threading.Event()
    reply = desk.hold.run(4)
    with pytest.raises(TimeoutError):
        reply.wait(0.01)
    gate.set()
    until(lambda: desk.app.get_runs().wait(LONG))
    assert desk.awaited == []
    desk.go.set()
    assert reply.wait(LONG) == 4


def test_s8_result_raises_what_ended_the_run_with_its_id_and_type(desk: Desk) -> None:
    app = desk.app

    @app.job
    def fails() -> None:
        raise LookupError("no such thing")

    @app.job
    def times_out() -> None:
        raise TimedOut("too slow")

    @app.job
    def gives_up() -> None:
        raise CancelRun("never mind")

    for job, kind, error_type, text in (
        (fails, RunFailed, "LookupError", "no such thing"),
        (times_out, RunTimedOut, "TimedOut", "too slow"),
        (gives_up, RunCancelled, None, "never mind"),
    ):
        run = job.trigger().wait(LONG)
        with pytest.raises(kind, match=text) as caught:
            run.result().wait(LONG)
        assert caught.value.run_id == run.id
        assert getattr(caught.value, "error_type", None) == error_type
        assert run.wait().wait(LONG).is_terminal  # wait never raises for how it ended
        with pytest.raises(kind):
            job.run().wait(LONG)


def test_s8_a_cancelled_run_is_told_to_who_waits(desk: Desk) -> None:
    run = desk.hold.trigger(1).wait(LONG)
    waiting = run.wait()
    thread = threading.Thread(target=waiting.wait, args=(LONG,))
    thread.start()
    until(lambda: desk.awaited)
    assert run.cancel().wait(LONG).status == "cancelled"
    thread.join()
    assert waiting.wait(LONG).status == "cancelled"
    with pytest.raises(RunCancelled):
        run.result().wait(LONG)


def test_s8_a_missing_run_is_not_found(desk: Desk) -> None:
    for reply in (desk.app.wait_for_run("0" * 26), desk.app._refresh("0" * 26, None)):
        with pytest.raises(NotFoundError):
            reply.wait(LONG)
    assert desk.awaited == []


def test_s8_a_write_is_under_way_even_if_nobody_awaits_it(desk: Desk) -> None:
    desk.hold.trigger(1)
    desk.hold.run(2)
    desk.hold.trigger_and_wait(3)
    until(lambda: len(desk.app.get_runs().wait(LONG)) == 3)


def test_s8_reads_and_waits_begin_when_they_are_asked_for(desk: Desk) -> None:
    run = desk.hold.trigger(1).wait(LONG)
    waiting, listing = run.wait(), desk.app.get_runs()
    desk.hold.trigger(2).wait(LONG)
    assert desk.awaited == []
    assert len(listing.wait(LONG)) == 2
    desk.go.set()
    waiting.wait(LONG)


def test_s8_wrong_input_is_refused_in_the_call_itself_and_nothing_is_written(desk: Desk) -> None:
    for call in (desk.hold.trigger, desk.hold.run, desk.hold.trigger_and_wait, desk.hold.bind):
        with pytest.raises(ValidationError):
            call("seven")
    assert desk.app.get_runs().wait(LONG) == []


def test_s8_a_reply_may_be_awaited_from_several_loops_and_threads(desk: Desk) -> None:
    reply = desk.hold.run(7)
    values: list[int] = []
    threads = [threading.Thread(target=lambda: values.append(asyncio.run(_awaited(reply)))) for _ in range(3)]
    threads += [threading.Thread(target=lambda: values.append(reply.wait(LONG))) for _ in range(3)]
    for thread in threads:
        thread.start()
    desk.go.set()
    for thread in threads:
        thread.join()
    assert values == [7] * 6


async def _awaited(reply: Any) -> Any:
    return await reply


def test_s8_blocking_in_an_event_loop_is_refused_with_advice(desk: Desk) -> None:
    async def main() -> None:
        run = await desk.hold.trigger(1)
        with pytest.raises(WouldDeadlock, match="await"):
            run.wait().wait()
        assert desk.awaited == []

    asyncio.run(main())


def test_s8_an_end_between_registering_and_looking_is_never_missed(tmp_path: Path) -> None:
    app = Holdfast(databases.url(tmp_path / "app.db"), polling_interval=3600)

    @app.job
    async def quick(n: int) -> int:
        return n

    async def main() -> None:
        async with app:
            for n in range(0, 300, 10):
                runs = await asyncio.gather(*[quick.trigger(n + i) for i in range(10)])
                ended = await asyncio.gather(*[run.wait() for run in runs])
                assert [run.output for run in ended] == list(range(n, n + 10))
            assert app._engine.hub.awaited == []

    asyncio.run(asyncio.wait_for(main(), 60))


def test_who_waits_is_told_when_the_app_stops(tmp_path: Path) -> None:
    desk = Desk(tmp_path, worker=False)
    desk.app.init().wait(LONG)
    run = desk.hold.trigger(1).wait(LONG)
    waiting = run.wait()
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            waiting.wait(LONG)
        except StoreClosed as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: desk.awaited)
    desk.app.stop().wait(LONG)
    thread.join()
    assert len(caught) == 1
    with pytest.raises(StoreClosed):
        run.wait().wait(LONG)
    assert desk.awaited == []


def test_a_failed_write_that_nobody_asked_for_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(tmp_path, worker=False)
    desk.app.init().wait(LONG)
    desk.app.stop().wait(LONG)
    with caplog.at_level(logging.ERROR, "holdfast"):
        desk.hold.trigger(1)
        until(lambda: "nobody asked" in caplog.text)


# -- inside runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_s8_a_run_may_not_wait_for_another_when_all_slots_wait(tmp_path: Path, colour: str) -> None:
    app = Holdfast(databases.url(tmp_path / "app.db"), concurrency=2)
    both = threading.Barrier(2)

    @app.job
    def child() -> int:
        return 1

    if colour == "async":

        @app.job
        async def parent(step: Step) -> int:
            await step.run("meet", both.wait, LONG)
            return await child.run()
    else:

        @app.job
        def parent(step: SyncStep) -> int:
            step.run("meet", both.wait, LONG)
            return child.run().wait(LONG)

    with app:
        runs = [parent.trigger().wait(LONG) for _ in range(2)]
        ended = [run.wait().wait(LONG) for run in runs]
        # The second one to wait would have taken the last slot for waiting.
        assert sorted(run.status for run in ended) == ["completed", "failed"]
        failed = next(run for run in ended if run.status == "failed")
        assert failed.error_type == "WouldDeadlock"
        assert "concurrency" in (failed.error or "")
    assert app._engine.waiting_inside == {}


def test_s8_two_branches_of_one_run_may_wait_while_there_is_a_slot(tmp_path: Path) -> None:
    app = Holdfast(databases.url(tmp_path / "app.db"), concurrency=2)

    @app.job
    async def child(n: int) -> int:
        return n

    @app.job
    async def parent(step: Step) -> int:
        return sum(await asyncio.gather(*[child.run(n) for n in range(5)]))

    with app:
        assert parent.run().wait(LONG) == 10
        assert app._engine.waiting_inside == {}


class Reads(StoreHere):
    """Writes down which runs were read."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.read: list[str] = []

    def find_runs(self, connection: Any, filter: RunFilter) -> list[RunRow]:
        found = super().find_runs(connection, filter)
        self.read += [row.id for row in found]
        return found


def test_of_the_runs_that_are_awaited_none_is_read_before_it_has_ended(tmp_path: Path) -> None:
    url = databases.url(tmp_path / "app.db")
    store = Reads(url)
    app, other = Holdfast(store, worker=False), Holdfast(url, worker=False)

    @app.job
    def never() -> None: ...

    app.init().wait(LONG)
    runs = [never.trigger().wait(LONG) for _ in range(3)]
    ends: list[Reply[Any]] = [Reply("end") for _ in runs]
    for run, end in zip(runs, ends, strict=True):
        app._engine.hub.expect(run.id, end)
    connection = store.connect(read_only=True)
    app._engine.watcher.look(connection)
    assert store.read == []
    other.cancel(runs[1].id).wait(LONG)
    app._engine.watcher.look(connection)
    assert ends[1].wait(LONG).status == "cancelled"
    assert set(store.read) == {runs[1].id}
    store.disconnect(connection)
    app.stop().wait(LONG)
    other.stop().wait(LONG)
