"""The second ancestor, 12: where an engine in Python goes wrong most easily, and what a tree adds to that."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conformance_jobs import LONG
from conformance_tree import double, ended, family, told

from holdfast import Children, ChildResult, Holdfast, Step, job
from holdfast.testing import app_for_tests, drain
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, until


@pytest.fixture
def app() -> Iterator[Holdfast]:
    with app_for_tests(double, family) as app:
        yield app


# -- whose cancellation it was ---------------------------------------------------------------------------------------


def test_a_time_limit_of_the_users_own_is_a_failure_and_no_timeout_of_the_run(app: Holdfast) -> None:
    @app.job(timeout="1h")
    async def hasty() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    run = ended(app, hasty.trigger().wait())
    assert told(run)[:2] == ("failed", "TimeoutError")


def test_a_task_that_the_user_has_cancelled_ends_no_run(app: Holdfast) -> None:
    @app.job
    async def careful(step: Step) -> str:
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return await step.run("go on", lambda: "went on")
        return "was not cancelled"

    assert ended(app, careful.trigger().wait()).output == "went on"


# -- what the loop holds weakly --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["job", "step", "branch"])
def test_what_only_waits_is_not_lost_to_a_garbage_collection(house: House, where: str) -> None:
    """A loop holds its tasks weakly: here nobody but the engine holds the task, and nobody but the task its future."""
    parked: list[weakref.ref[asyncio.Future[str]]] = []

    async def park() -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        parked.append(weakref.ref(future))
        return await future

    @job
    async def waits(step: Step) -> str:
        if where == "job":
            return await park()
        if where == "step":
            return await step.run("park", park)
        first, _ = await asyncio.gather(step.run("park", park), step.run("beside", lambda: 1))
        return first

    async def main() -> None:
        async with house.app(waits) as app:
            run = await app.jobs.waits.trigger()
            await until(lambda: parked)
            gc.collect()
            future = parked[0]()
            assert future is not None, "the run is gone"
            future.set_result("there")
            del future
            assert await run.result(timeout=PATIENCE) == "there"

    asyncio.run(main())


# -- what comes after what -------------------------------------------------------------------------------------------


def test_a_run_ends_after_all_that_it_waited_for(house: House) -> None:
    @job
    async def parent(n: int) -> Children[int]:
        return Children(n, [double.bind(n), double.bind(n + 1)])

    @parent.finalize(name="last")
    async def last(output: int, children: list[ChildResult]) -> int:
        return output + sum(child.unwrap(double) for child in children)

    @job
    async def top(step: Step, n: int) -> int:
        return await step.call(last.bind(n))

    with house.app(top, last, double) as app:
        assert app.jobs.top.run(1).wait(LONG) == 7
    ends = dict(house.sql("select job_name, max(completed_at) from holdfast_runs group by job_name"))
    in_order = ["double", "last", "parent", "top"]
    assert sorted(in_order, key=lambda name: (ends[name], in_order.index(name))) == in_order


# -- nothing is something, and everything keeps its type -------------------------------------------------------------

VALUES: dict[str, Any] = {
    "none": None,
    "no text": "",
    "zero": 0,
    "false": False,
    "no items": [],
    "no keys": {},
    "moment": datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC),
    "day": date(2026, 2, 3),
    "set": {1, 2},
    "bytes": b"\x00\xff",
    "decimal": Decimal("1.10"),
    "tuple": (1, ("a", None)),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_comes_through_a_tree_as_it_was_given(app: Holdfast, kind: str) -> None:
    """By the input, a step, a child, a finalize, a sequence, a loop of one, a signal, and a word to a sleeper."""
    value = VALUES[kind]

    @app.job
    async def echo(value: Any) -> Any:
        return value

    @app.job
    async def parent(value: Any) -> Children[Any]:
        return Children(value, [echo.bind(value)])

    @parent.finalize
    async def both(output: Any, children: list[ChildResult]) -> list[Any]:
        return [output, children[0].unwrap(echo)]

    @app.job
    async def plain(value: Any) -> Children[Any]:
        return Children(value, [echo.bind(value)])

    @app.job
    async def above(step: Step, value: Any) -> list[Any]:
        called = await step.call(echo.bind(value))
        kept = await step.run("kept", lambda: value)
        (gathered,) = await step.gather(echo.bind(value))
        return [called, kept, gathered, await step.wait_for_signal("word")]

    asleep = app.sleeping("asleep")
    chain = app.sequence("chain", echo, echo)
    app.wake(asleep, "k", output=value).wait()
    waiting = above.trigger(value).wait()
    app.send_signal(waiting.id, "word", value).wait()
    whole: Any = ended(app, plain.trigger(value).wait()).output
    came = [
        *ended(app, waiting).output,
        *ended(app, both.trigger(value).wait()).output,
        ended(app, chain.trigger(value).wait()).output,
        ended(app, asleep.trigger("k").wait()).output,
        whole.output,
        whole.results[0].unwrap(),
    ]
    assert came == [value] * 10
    assert {type(one) for one in came} == {type(value)}


# -- one clock -------------------------------------------------------------------------------------------------------


def test_all_times_of_a_tree_are_those_of_one_clock() -> None:
    clock = HandClock()
    with app_for_tests(double, clock=clock) as app:

        @app.job
        async def parent(step: Step) -> Children[int]:
            await step.sleep("rest", "1d")
            return Children(1, [app.jobs.double.options(delay="1h").bind(1)])

        begin = clock.now()
        run = parent.trigger().wait()
        drain(app, until="2d").wait()
        (child,) = app.get_runs(job="double").wait()
        run = run.refresh().wait()
        day, hour = 86_400_000_000, 3_600_000_000
        times = [one._row.created_at - begin for one in (run, child)]
        ends = [one._row.completed_at - begin for one in (child, run)]  # type: ignore[operator]
        assert (times, ends) == ([0, day], [day + hour, day + hour])


# -- what measures it ------------------------------------------------------------------------------------------------

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"


@pytest.mark.parametrize(
    ("knob", "text"),
    [
        ("--on=nowhere", "nowhere"),
        ("--rounds=-1", "--rounds"),
        ("--rounds=0", "--rounds"),
        ("--only=nothing", "nothing"),
    ],
    ids=["database", "rounds below none", "no rounds", "work"],
)
def test_a_knob_of_the_benchmark_that_makes_no_sense_is_refused(knob: str, text: str) -> None:
    if not BENCHMARKS.is_file():
        pytest.skip("there is no benchmarks folder beside these tests: not a checkout")
    command = [sys.executable, str(BENCHMARKS), "--quick", "--without-peers", knob]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert text in done.stderr
