"""The second ancestor, 11.16: what its own tests leave out."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conformance_jobs import LONG, Gate
from conformance_tree import double, ended, family, told

from holdfast import (
    Children,
    ChildResult,
    Holdfast,
    PayloadTooLarge,
    Retry,
    Step,
    SyncStep,
    TimedOut,
    job,
)
from holdfast.testing import app_for_tests, drain
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, Stuck, until


@pytest.fixture
def app() -> Iterator[Holdfast]:
    with app_for_tests(double, family) as app:
        yield app


@job
async def nap(step: Step) -> str:
    await step.sleep("long", "1h")
    return "rested"


# -- crashes ---------------------------------------------------------------------------------------------------------


def test_a_run_whose_process_died_goes_again_as_the_same_attempt(house: House, stuck: Stuck) -> None:
    @job(retry=Retry(0))
    async def work(step: Step) -> list[Any]:
        first = await step.run("first", lambda: "kept")
        await step.run("second", stuck.hang)
        return [first, step.attempt, step.previous_error]

    async def main() -> Any:
        run_id = await house.crash(work, stuck)
        return await house.resume(work, run_id)

    run = asyncio.run(main())
    # A crash is no failure of an attempt: there is no error before, and no retry is used up.
    assert run.output == ["kept", 0, None]


def test_a_parent_whose_process_died_while_it_ended_ends_once(house: House, stuck: Stuck) -> None:
    """Where the ancestor takes a lease for the end of the children, and another for closing."""
    calls: list[str] = []

    @job
    async def parent(step: Step) -> Children[int]:
        calls.append("parent")
        await step.run("prepare", stuck.hang)
        return Children(1, [double.bind(1), double.bind(2)])

    @parent.finalize
    async def total(output: int, children: list[ChildResult]) -> int:
        calls.append("finalize")
        return output + sum(child.unwrap(double) for child in children)

    async def main() -> Any:
        run_id = await house.crash(total, stuck)
        async with house.app(total, double) as app:
            return await app.wait_for_run(run_id, timeout=PATIENCE)

    run = asyncio.run(main())
    assert (run.output, calls) == (7, ["parent", "parent", "finalize"])
    assert house.sql("select count(*) from holdfast_runs") == [(4,)]


# -- cascades --------------------------------------------------------------------------------------------------------


def test_what_is_below_a_cancelled_run_says_why_it_is_cancelled(app: Holdfast) -> None:
    app.register(nap)

    @app.job
    async def middle(step: Step) -> None:
        await step.gather(app.jobs.nap.bind(), app.jobs.nap.bind())

    @app.job
    async def top(step: Step) -> None:
        await step.call(middle.bind())

    run = top.trigger().wait()
    drain(app).wait()
    run.cancel().wait()
    drain(app, until="1m").wait()
    assert told(run.refresh().wait()) == ("cancelled", None, None)
    below = [*app.get_runs(job="middle").wait(), *app.get_runs(job="nap").wait()]
    assert [told(one) for one in below] == [("cancelled", "ParentEnded", "The run above it ended first")] * 3


def test_a_run_that_executes_below_a_cancelled_one_is_told(house: House) -> None:
    told: list[str | None] = []
    began = threading.Event()

    @job
    def leaf(step: SyncStep) -> None:
        began.set()
        step.signal.wait(PATIENCE)
        told.append(step.signal.reason)

    @job
    async def middle(step: Step) -> None:
        await step.call(leaf.bind())

    @job
    async def top(step: Step) -> None:
        await step.call(middle.bind())

    async def main() -> None:
        async with house.app(top, middle, leaf) as app:
            run = await app.jobs.top.trigger()
            await asyncio.to_thread(began.wait, PATIENCE)
            await run.cancel()
            await until(lambda: told)

    asyncio.run(main())
    assert told == ["cancelled"]
    assert set(house.status()) == {"cancelled"}


def test_a_cancel_while_the_finalize_waits_cancels_that_too(app: Holdfast) -> None:
    @app.job
    async def parent() -> Children[int]:
        return Children(1, [app.jobs.double.bind(1)])

    @parent.finalize(name="closing")
    async def closing(step: Step, output: int, children: list[ChildResult]) -> int:
        await step.sleep("long", "1h")
        return output

    run = closing.trigger().wait()
    drain(app).wait()
    assert run.refresh().wait().waiting_for == "finalize"
    run.cancel().wait()
    drain(app, until="2h").wait()
    (finalize,) = app.get_runs(job="closing").wait()
    (child,) = app.get_runs(job="double").wait()
    assert [str(one.refresh().wait().status) for one in (run, finalize, child)] == [
        "cancelled", "cancelled", "completed",
    ]  # fmt: skip


def test_a_cancelled_finalize_fails_its_parent(app: Holdfast) -> None:
    @app.job
    async def parent() -> Children[int]:
        return Children(1)

    @parent.finalize(name="closing", delay="1h")
    async def closing(output: int, children: list[ChildResult]) -> int:
        return output

    run = closing.trigger().wait()
    drain(app).wait()
    app.get_runs(job="closing").wait()[0].cancel().wait()
    assert told(ended(app, run)) == ("finalize_failed", "cancelled", "The finalize ended as cancelled")


def test_a_deadline_while_children_go_on_cancels_them(app: Holdfast) -> None:
    app.register(nap)

    @app.job(deadline="10m")
    async def parent() -> Children[int]:
        return Children(1, [app.jobs.nap.bind()], on_failure="collect")

    run = ended(app, parent.trigger().wait())
    assert str(run.status) == "timed_out"
    assert [told(one)[:2] for one in app.get_runs(job="nap").wait()] == [("cancelled", "ParentEnded")]


# -- late words ------------------------------------------------------------------------------------------------------


def test_children_of_a_parent_that_was_cancelled_meanwhile_are_never_written(house: House) -> None:
    gate = Gate()

    @job
    def parent() -> Children[int]:
        gate()
        return Children(1, [double.bind(1)])

    async def main() -> None:
        async with house.app(parent, double) as app:
            run = await app.jobs.parent.trigger()
            await asyncio.to_thread(gate.wait)
            await run.cancel()
            gate.open()
            await until(lambda: app.stats().running == ())
            assert str((await run.refresh()).status) == "cancelled"

    asyncio.run(main())
    assert house.sql("select count(*) from holdfast_runs") == [(1,)]


def test_children_of_an_execution_that_lost_its_lease_are_those_of_its_successor(house: House, stuck: Stuck) -> None:
    @job
    def parent(step: SyncStep) -> Children[str]:
        which = "zombie" if stuck.calls == 0 else "successor"
        stuck.hang_sync()
        return Children(which, [double.bind(len(which))])

    async def main() -> Any:
        async with house.app(parent, double, concurrency=1) as one:
            run = await one.jobs.parent.trigger()
            await stuck.came()
            house.take_away()
            async with house.app(parent, double) as two:
                successor = await two.wait_for_run(run.id, timeout=PATIENCE)
                stuck.let_go()  # the first one comes back, with children of its own
                await until(lambda: one.stats().running == ())
            return successor.output

    output = asyncio.run(main())
    assert (output.output, [child.unwrap() for child in output.results]) == ("successor", [18])
    assert house.sql("select count(*) from holdfast_runs") == [(2,)]


def test_a_cancel_while_a_retry_waits_counts(app: Holdfast) -> None:
    calls: list[int] = []

    @app.job(retry=Retry(3, delay=60))
    async def weak(step: Step) -> None:
        calls.append(step.attempt)
        raise OSError("down")

    run = weak.trigger().wait()
    drain(app).wait()
    assert run.refresh().wait().attempt == 1
    run.cancel().wait()
    drain(app, until="1d").wait()
    assert (str(run.refresh().wait().status), calls) == ("cancelled", [0])


def test_an_attempt_that_timed_out_is_retried_and_may_succeed(app: Holdfast) -> None:
    @app.job(retry=Retry(1, delay=1))
    async def slow(step: Step) -> list[Any]:
        if step.attempt == 0:
            raise TimedOut("too slow")
        return [step.attempt, step.previous_error]

    assert ended(app, slow.trigger().wait()).output == [1, "too slow"]


# -- sleeping jobs ---------------------------------------------------------------------------------------------------


def test_a_sleeping_key_leads_to_one_run_also_after_its_end(app: Holdfast) -> None:
    asleep = app.sleeping("asleep", output=int)
    first, second = asleep.trigger("k").wait(), asleep.trigger("k").wait()
    assert (first.id, second.disposition) == (second.id, "idempotent")
    app.wake(asleep, "k", output=1).wait()
    assert ended(app, first).output == 1
    assert asleep.trigger("k").wait().output == 1


def test_of_two_words_that_come_at_once_one_counts(house: House) -> None:
    async def main() -> None:
        async with house.app() as one, house.app() as two:
            sleepers = [app.sleeping("asleep", output=int) for app in (one, two)]
            for n in range(10):
                run = await sleepers[0].trigger(f"k{n}")
                said = [one.wake(sleepers[0], f"k{n}", output=1), two.wake(sleepers[1], f"k{n}", output=2)]
                for word in said:
                    assert (await word).id == run.id
                came_to = await run.result(timeout=PATIENCE)
                assert came_to in (1, 2)
                again = await two.wake(sleepers[1], f"k{n}", output=3)
                assert (again.id, again.output) == (run.id, came_to)

    asyncio.run(main())


def test_the_word_to_a_sleeper_is_limited_as_any_output() -> None:
    with app_for_tests(max_output_bytes=1000, max_input_bytes=2000) as app:
        asleep = app.sleeping("asleep", output=str)
        with pytest.raises(PayloadTooLarge, match="output: 1001 bytes"):
            app.wake(asleep, "k", output="x" * 999)
        app.wake(asleep, "k", output="x" * 998).wait()
        assert len(ended(app, asleep.trigger("k").wait()).output) == 998


@pytest.mark.parametrize("woken_at", [59, 60, 61])
def test_a_word_and_the_deadline_race_and_one_of_them_counts(woken_at: int) -> None:
    clock = HandClock()
    with app_for_tests(clock=clock) as app:
        asleep = app.sleeping("asleep", output=int, deadline=60)
        run = asleep.trigger("k").wait()
        drain(app).wait()
        clock.advance(woken_at)
        app.wake(asleep, "k", output=1).wait()
        run = ended(app, run)
        # The word comes in time, or the deadline has passed: then whoever looks first ends it so.
        assert str(run.status) == ("completed" if woken_at < 60 else "timed_out")
        again = app.wake(asleep, "k", output=2).wait()
        assert (again.id, again.status, again.output) == (run.id, run.status, run.output)


# -- finalizes -------------------------------------------------------------------------------------------------------


def test_a_finalize_is_retried_and_its_children_are_not(app: Holdfast) -> None:
    @app.job
    async def parent() -> Children[int]:
        return Children(1, [app.jobs.double.bind(1)])

    @parent.finalize(retry=Retry(2, delay=1))
    async def total(step: Step, output: int, children: list[ChildResult]) -> int:
        if step.attempt < 2:
            raise OSError("down")
        return step.attempt

    assert ended(app, total.trigger().wait()).output == 2
    assert len(app.get_runs(job="double").wait()) == 1


@pytest.mark.parametrize("has_finalize", [True, False])
def test_an_output_that_is_too_large_fails_and_is_not_tried_for_ever(has_finalize: bool) -> None:
    with app_for_tests(max_output_bytes=1000) as app:

        @app.job
        async def part(n: int) -> str:
            return "x" * 600

        @app.job
        async def parent() -> Children[int]:
            return Children(1, [part.bind(1), part.bind(2)])

        if has_finalize:

            @parent.finalize(retry=Retry(3))
            async def joined(output: int, children: list[ChildResult]) -> str:
                return "".join(child.unwrap(part) for child in children)

        run = ended(app, app.jobs.parent.trigger().wait())
        assert told(run)[:2] == ("finalize_failed" if has_finalize else "failed", "NotKept")
        assert "larger than the limit of 1000 bytes" in (run.error or "")


def test_a_finalize_has_no_input_that_could_grow_too_large() -> None:
    with app_for_tests(max_input_bytes=1000, max_output_bytes=1000) as app:

        @app.job
        async def part(n: int) -> str:
            return "x" * 900

        @app.job
        async def parent() -> Children[int]:
            return Children(1, [part.bind(n) for n in range(10)])

        @parent.finalize
        async def length(output: int, children: list[ChildResult]) -> int:
            return sum(len(child.unwrap(part)) for child in children)

        assert ended(app, length.trigger().wait()).output == 9000


# -- the rest --------------------------------------------------------------------------------------------------------


def test_many_children_that_end_in_one_batch_are_all_counted(house: House) -> None:
    go = threading.Event()

    @job
    async def held(n: int) -> int:
        await asyncio.to_thread(go.wait, PATIENCE)
        return n

    @job
    async def parent(count: int) -> Children[int]:
        return Children(count, [held.bind(n) for n in range(count)])

    async def main() -> None:
        async with house.app(parent, held, concurrency=30) as app:
            runs = [await app.jobs.parent.trigger(10) for _ in range(3)]
            await until(lambda: house.status().count("leased") == 30)
            go.set()
            for run in runs:
                output: Any = await run.result(timeout=PATIENCE)
                assert [child.unwrap() for child in output.results] == list(range(10))

    asyncio.run(main())


def test_what_one_reader_changes_of_a_result_another_one_does_not_see(app: Holdfast) -> None:
    @app.job
    async def part() -> dict[str, list[int]]:
        return {"numbers": [1]}

    @app.job
    async def parent() -> Children[list[int]]:
        return Children([0], [part.bind()])

    @parent.finalize
    async def changed(output: list[int], children: list[ChildResult]) -> list[Any]:
        output.append(9)
        children[0].unwrap(part)["numbers"].append(9)
        return [output, children[0].unwrap(part)]

    run = ended(app, changed.trigger().wait())
    assert run.output == [[0, 9], {"numbers": [1]}]
    (child,) = app.get_runs(job="part").wait()
    child.output["numbers"].append(9)  # type: ignore[index]
    assert child.output == {"numbers": [1]}


@pytest.mark.parametrize("early", [0.000001, 0])
def test_nothing_begins_a_microsecond_too_early(early: float) -> None:
    clock = HandClock()
    with app_for_tests(double, clock=clock) as app:
        run = app.jobs.double.options(delay=60).trigger(1).wait()
        clock.advance(60 - early)
        assert drain(app).wait() == (0 if early else 1)
        assert run.refresh().wait().is_terminal == (not early)


@pytest.mark.only("sqlite", "a transaction of the sqlite3 module")
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_parent_of_a_transaction_is_there_if_that_commits_and_then_all_below_it(house: House, end: str) -> None:
    with house.app(double, family) as app:
        mine = sqlite3.connect(house.path, isolation_level=None, check_same_thread=False)
        mine.execute("begin immediate")
        run = app.jobs.family.options(connection=mine).trigger([1]).wait(LONG)
        mine.execute(end)
        mine.close()
        if end == "commit":
            output: Any = run.result(timeout=PATIENCE).wait(LONG)
            assert [child.unwrap() for child in output.results] == [2]
    assert len(house.status()) == (2 if end == "commit" else 0)
