"""S7: runs below runs, what the run above sees of them, and what its end does to them."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator

from holdfast import (
    Children,
    ChildrenFailed,
    ChildResult,
    DefinitionError,
    Retry,
    RunCancelled,
    RunFailed,
    RunTimedOut,
    Step,
    TimedOut,
    job,
)
from holdfast.testing import app_for_tests, drain
from house import PATIENCE, House, until


@job
async def double(n: int) -> int:
    if n < 0:
        raise ValueError(f"{n} is negative")
    return 2 * n


@job(timeout=0.001)
async def slow(n: int) -> int:
    raise TimedOut("took too long")


@job
async def family(n: int) -> Children[int]:
    return Children(n, [double.bind(i) for i in range(n)])


@job
async def sad(n: int) -> Children[str]:
    return Children("sad", [double.bind(1), double.bind(-n)])


@job
async def tolerant(n: int) -> Children[str]:
    return Children("fine", [double.bind(1), double.bind(-n)], on_failure="collect")


def ended(wanted: Any, *args: Any, jobs: tuple[Any, ...] = ()) -> Any:
    """The run of a job, at its end, with everything below it."""
    with app_for_tests(wanted, double, *jobs) as app:
        run = app.get_job(wanted.name).trigger(*args).wait()
        drain(app, until="1d").wait()
        run = run.refresh().wait()
        return run, run.output if str(run.status) == "completed" else None


# -- from inside a job ---------------------------------------------------------------------------------------------


def test_s7_what_a_call_below_comes_to_is_what_the_run_above_gets() -> None:
    seen: list[tuple[str, str]] = []

    @job
    async def above(step: Step) -> int:
        for call in (double.bind(-1), slow.bind(1)):
            try:
                await step.call(call)
            except (RunFailed, RunTimedOut) as error:
                seen.append((type(error).__name__, error.message))
        return await step.call(double.bind(21))

    run, output = ended(above, jobs=(slow,))
    assert output == 42
    assert seen[-2:] == [("RunFailed", "-1 is negative"), ("RunTimedOut", "took too long")]
    assert run.generation == 4


@pytest.mark.parametrize("whose", [None, {"user": "ada"}], ids=["of nobody", "of another one"])
def test_a_run_below_another_can_not_be_of_somebody_else(whose: dict[str, str] | None) -> None:
    @job
    async def above(step: Step) -> int:
        return await step.call(double.options(tenant={"user": "bob"}).bind(1))

    with app_for_tests(above, double) as app:
        run = app.get_job("above").options(tenant=whose).trigger().wait()
        drain(app).wait()
        run = run.refresh().wait()
        assert (run.status, len(app.get_runs().wait())) == ("failed", 1)
        assert "a run below another is of whom that one is" in str(run.error)


def test_s7_the_error_of_a_call_is_the_same_when_it_is_replayed() -> None:
    seen: list[Any] = []

    @job
    async def above(step: Step) -> None:
        try:
            await step.call(double.bind(-1))
        except RunFailed as error:
            seen.append((error.message, error.run_id, error.error_type))
        await step.sleep("nap", 3600)

    ended(above)
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0][2] == "ValueError"


def test_s7_a_cancelled_run_below_is_told_as_that(house: House) -> None:
    gate = threading.Event()

    @job
    async def stuck() -> None:
        await asyncio.to_thread(gate.wait, PATIENCE)

    @job
    async def above(step: Step) -> str:
        try:
            await step.call(stuck.bind())
        except RunCancelled as error:
            return error.run_id
        return "?"

    async def main() -> None:
        async with house.app(above, stuck, cancel_grace=0.01) as app:
            run = await app.jobs.above.trigger()
            await until(lambda: house.sql("select 1 from holdfast_runs where parent_id is not null"))
            (below,) = await app.get_runs(job="stuck")
            await below.cancel()
            assert await run.result(timeout=PATIENCE) == below.id
            gate.set()

    asyncio.run(main())


def test_s7_gather_names_those_without_an_output() -> None:
    @job
    async def above(step: Step) -> str:
        try:
            await step.gather(double.bind(1), double.bind(-2), double.bind(-3))
        except ChildrenFailed as error:
            return f"{len(error.run_ids)}: {error.message}"
        return "?"

    _, output = ended(above)
    assert output.startswith("2: 2 of 3 runs below have no output: double ")
    assert output.endswith("The first: -2 is negative")


def test_runs_that_make_many_calls_at_once_leave_the_event_loop_to_others(house: House) -> None:
    runs, inputs, calls = 10, 300, 0

    def counted(value: int) -> int:
        nonlocal calls
        calls += 1
        return value

    @job(queue="nobody")
    async def leaf(n: Annotated[int, AfterValidator(counted)]) -> None: ...

    @job
    async def wide(step: Step) -> None:
        await step.map(leaf, range(inputs))

    async def main() -> int:
        most = 0
        async with house.app(wide, leaf) as app:
            for _ in range(runs):
                await app.jobs.wide.trigger()
            while calls < runs * inputs:
                before = calls
                await asyncio.sleep(0)
                most = max(most, calls - before)
        return most

    assert asyncio.run(main()) <= 21 * runs  # and not 3,000


def test_s7_map_with_one_bad_input_among_more_than_max_children_writes_nothing(house: House) -> None:
    @job
    async def wide(step: Step) -> list[int]:
        return await step.map(double, [*range(5), "no number"])

    with house.app(wide, double, max_children=2) as app:
        run = app.jobs.wide.trigger().wait().wait().wait(PATIENCE)
        assert (str(run.status), app.get_runs(job="double").wait()) == ("failed", [])
        assert str(run.error).startswith("map: inputs[5]: Invalid input: n: ")


def test_s7_map_takes_more_than_max_children_in_batches(house: House) -> None:
    @job
    async def above(step: Step, n: int) -> list[int]:
        return await step.map(double, range(n))

    async def main() -> None:
        async with house.app(above, double, max_children=4) as app:
            assert await app.jobs.above.run(10) == [2 * n for n in range(10)]
            assert house.sql("select count(distinct awaited_as) from holdfast_runs") == [(3,)]

    asyncio.run(main())


def test_s7_collected_results_tell_how_each_ended() -> None:
    @job
    async def above(step: Step) -> list[str]:
        results = await step.map(double, [1, -1], on_failure="collect")
        with pytest.raises(RunFailed):
            results[1].unwrap()
        return [f"{one.status} {one.error} {one.unwrap(double) if not one.error else ''}" for one in results]

    _, output = ended(above)
    assert output == ["completed None 2", "failed -1 is negative "]


def test_s7_a_new_attempt_calls_anew_what_has_failed_and_nothing_else() -> None:
    @job(retry=Retry(max_retries=1))
    async def above(step: Step) -> int:
        good = await step.call(double.bind(1))
        await step.call(double.bind(-1 if step.attempt == 0 else 2), name="second")
        return good

    with app_for_tests(above, double) as app:
        run = app.jobs.above.trigger().wait()
        drain(app, until=60).wait()
        assert run.refresh().wait().output == 2
        assert sorted(one.input["n"] for one in app.get_runs(job="double").wait()) == [-1, 1, 2]


def test_s7_several_runs_may_be_spawned_in_one_commit() -> None:
    @job
    async def above(step: Step) -> list[str]:
        return [*await asyncio.gather(*[step.spawn(double.bind(n), name=f"spawn-{n}") for n in range(3)])]

    @job
    async def in_a_row(step: Step) -> list[str]:
        return [await step.spawn(double.bind(n)) for n in range(3)]

    with app_for_tests(above, in_a_row, double) as app:
        for one in (app.jobs.above, app.jobs.in_a_row):
            run = one.trigger().wait()
            drain(app).wait()
            spawned = [app.get_run(found).wait() for found in run.refresh().wait().output]
            assert [found and found.output for found in spawned] == [0, 2, 4]


def test_s7_an_attempt_at_the_same_moment_as_the_one_before_has_runs_of_its_own() -> None:
    @job(retry=Retry(max_retries=1, delay=0))
    async def stubborn(step: Step) -> list[int]:
        return [*await step.gather(double.bind(4), double.bind(5 if step.attempt else -5))]

    with app_for_tests(stubborn, double) as app:  # the clock stands still
        run = app.jobs.stubborn.trigger().wait()
        drain(app).wait()
        ended = run.refresh().wait()
        assert (ended.output, ended.attempt) == ([8, 10], 1)


def test_s7_a_spawned_run_goes_on_when_the_one_above_completes() -> None:
    @job
    async def above(step: Step) -> str:
        return await step.spawn(double.options(delay=60).bind(4))

    with app_for_tests(above, double) as app:
        run = app.jobs.above.trigger().wait()
        drain(app).wait()
        below = app.get_run(run.refresh().wait().output).wait()
        assert (below.parent_id, str(below.status)) == (run.id, "pending")
        drain(app, until=60).wait()
        assert below.refresh().wait().output == 8


def test_s7_recursion() -> None:
    @job
    async def count(step: Step, n: int) -> int:
        return 0 if n == 0 else 1 + await step.call(app.jobs.count.bind(n - 1))

    with app_for_tests(count) as app:
        run = app.jobs.count.trigger(10).wait()
        drain(app).wait()
        assert run.refresh().wait().output == 10
        rows = app.get_runs(job="count").wait()
        assert {row.root_id for row in rows} == {None, run.id}


# -- parents -------------------------------------------------------------------------------------------------------


def test_s7_a_parent_without_a_finalize_gives_its_output_and_all_results() -> None:
    run, output = ended(family, 3)
    assert type(output) is Children
    assert output.output == 3
    assert [one.unwrap(double) for one in output.results] == [0, 2, 4]
    assert [one.job_name for one in output.results] == ["double"] * 3
    assert run.error is None


def test_s7_a_parent_without_children_is_complete_at_once() -> None:
    run, output = ended(family, 0)
    assert (output.output, output.results, run.generation) == (0, [], 1)


def test_s7_a_failed_child_fails_a_parent_without_a_finalize() -> None:
    run, _ = ended(sad, 1)
    assert (str(run.status), run.error_type) == ("failed", "ChildrenFailed")
    assert "1 of 2 runs below have no output" in run.error


def test_s7_unless_it_collects() -> None:
    _, output = ended(tolerant, 1)
    assert [str(one.status) for one in output.results] == ["completed", "failed"]


def test_s7_the_function_of_a_parent_is_called_once() -> None:
    calls: list[int] = []

    @job
    def once() -> Children[int]:
        calls.append(1)
        return Children(1, [double.bind(1)])

    @once.finalize
    def sum_up(output: int, children: list[ChildResult]) -> int:
        return output + sum(child.unwrap(double) for child in children)

    assert ended(sum_up)[1] == 3
    assert calls == [1]


@pytest.mark.parametrize("children", [0, 2])
def test_s7_a_finalize_sees_the_output_and_every_child(children: int) -> None:
    @job
    async def parent(n: int) -> Children[dict[str, int]]:
        return Children({"n": n}, [double.bind(1), double.bind(-1)][:n])

    @parent.finalize(retry=Retry(max_retries=2), name="sum-up")
    async def sum_up(step: Step, output: dict[str, int], children: list[ChildResult]) -> list[Any]:
        if step.attempt == 0:
            raise OSError("again")
        return [output["n"], await step.run("count", len, children), [str(one.status) for one in children]]

    run, output = ended(sum_up, children)
    assert output == [children, children, ["completed", "failed"][:children]]
    assert run.job_name == "parent"


def test_the_steps_of_a_parent_are_in_the_order_in_which_they_began() -> None:
    @job
    async def parent(step: Step) -> Children[int]:
        await step.run("store", len, "ab")
        await step.run("check", len, "ab")
        return Children(1, [double.bind(1)])

    @parent.finalize
    async def sum_up(output: int, children: list[ChildResult]) -> int:
        return output

    with app_for_tests(sum_up, double) as app:
        run = app.get_job("parent").trigger().wait()
        drain(app, until="1d").wait()
        steps = [(step.index, step.name) for step in app.get_steps(run.id).wait()]
        assert steps == [(0, "store"), (1, "check"), (2, "(return)"), (3, "(children)"), (4, "(finalize)")]


def test_s7_a_failed_finalize_is_a_status_of_the_parent() -> None:
    @job
    async def parent() -> Children[int]:
        return Children(1, [double.bind(1)])

    @parent.finalize
    async def strict(output: int, children: list[ChildResult]) -> int:
        raise ValueError("not good enough")

    run, _ = ended(strict)
    assert (str(run.status), run.error, run.error_type) == ("finalize_failed", "not good enough", "ValueError")
    assert run.is_terminal


def test_s7_a_finalize_may_be_a_parent_itself() -> None:
    @job
    async def outer() -> Children[int]:
        return Children(1, [double.bind(1)])

    @job
    async def inner(output: int, children: list[ChildResult]) -> Children[int]:
        return Children(output + children[0].unwrap(double), [double.bind(10)])

    @inner.finalize
    async def last(output: int, children: list[ChildResult]) -> int:
        return output + children[0].unwrap(double)

    whole = outer.finalize_with(last)
    run, output = ended(whole, jobs=(last,))
    assert output == 23
    assert str(run.status) == "completed"


def test_s7_a_tree_of_parents() -> None:
    @job
    async def tree(n: int) -> Children[int]:
        return Children(n, [app.jobs.tree.bind(n - 1)] * 2 if n else [])

    @tree.finalize
    async def total(output: int, children: list[ChildResult]) -> int:
        return 1 + sum(child.unwrap() for child in children)

    with app_for_tests(total) as app:
        run = app.jobs.tree.trigger(3).wait()
        drain(app).wait()
        assert run.refresh().wait().output == 15


def test_s7_cancelling_a_run_cancels_all_that_is_below_it(house: House) -> None:
    gate = threading.Event()

    @job
    async def leaf(step: Step) -> None:
        await asyncio.to_thread(gate.wait, PATIENCE)

    @job
    async def middle(step: Step) -> None:
        await step.gather(leaf.bind(), leaf.options(delay=60).bind())

    @job
    async def top(step: Step) -> None:
        await step.call(middle.bind())

    async def main() -> None:
        async with house.app(top, middle, leaf, cancel_grace=0.01) as app:
            run = await app.jobs.top.trigger()
            await until(lambda: len(house.status()) == 4)
            await run.cancel()
            await until(lambda: set(house.status()) == {"cancelled"})
            worker = app._engine.worker
            assert worker is not None
            await until(lambda: not worker.executing)
            gate.set()

    asyncio.run(main())


def test_s7_a_run_that_fails_cancels_what_is_below_it() -> None:
    @job
    async def above(step: Step) -> None:
        await step.spawn(double.options(delay=3600).bind(1))
        raise ValueError("no")

    with app_for_tests(above, double) as app:
        run = app.jobs.above.trigger().wait()
        drain(app, until=7200).wait()
        assert str(run.refresh().wait().status) == "failed"
        assert [str(one.status) for one in app.get_runs(job="double").wait()] == ["cancelled"]


def test_a_job_that_says_it_has_children_returns_them() -> None:
    @job
    async def liar() -> Children[int]:
        return 1  # type: ignore[return-value]

    run, _ = ended(liar)
    assert "returned int" in run.error


def test_too_many_children_are_refused_before_one_is_written() -> None:
    with app_for_tests(family, double, max_children=5) as app:
        run = app.jobs.family.trigger(6).wait()
        drain(app).wait()
        assert "6 calls are more than max_children, which is 5" in (run.refresh().wait().error or "")
        assert app.get_runs(job="double").wait() == []


def test_what_can_be_no_finalize_is_refused() -> None:
    @job
    async def parent() -> Children[int]:
        return Children(1)

    with pytest.raises(DefinitionError, match="takes the output of the parent"):

        @parent.finalize  # type: ignore[arg-type]
        async def short(output: int) -> int:
            return output

    with pytest.raises(DefinitionError, match="its own finalize"):
        parent.finalize_with(parent)

    with pytest.raises(DefinitionError, match="other takes output: str, and parent gives int"):

        @parent.finalize(name="other")
        async def other(output: str, children: list[ChildResult]) -> str:
            return output

    childless: Any = double
    with pytest.raises(DefinitionError, match="double: a job with a finalize returns Children"):

        @childless.finalize
        async def never(output: int, children: list[ChildResult]) -> int:
            return output


def test_runs_below_a_run_are_executed_by_every_worker(house: House) -> None:
    seen: set[str] = set()
    both = asyncio.Event()

    @job
    async def who(step: Step, n: int) -> str:
        seen.add(owner := str(step._execution.lease.owner))
        if len(seen) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), PATIENCE)  # one worker alone has no slot for all of them
        return owner

    @job
    async def above(step: Step) -> int:
        return len(set(await step.map(who, range(6))))

    async def main() -> None:
        async with house.app(above, who, concurrency=2) as one, house.app(above, who, concurrency=2):
            assert await one.jobs.above.run() == 2

    asyncio.run(main())
