"""S3: steps in several branches at once, and how they are told apart."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from holdfast import AmbiguousStep, Holdfast, Run, Step, SyncStep, job
from house import PATIENCE, House, Stuck

app_for_steps = Holdfast("sqlite://", worker=False)


def give(value: Any) -> Any:
    return value


async def give_async(value: Any) -> Any:
    return value


@app_for_steps.step
async def fetch(value: Any) -> Any:
    return value


@app_for_steps.step(key=str)
async def fetch_keyed(value: int) -> int:
    return value * 10


@app_for_steps.step
def inner(value: Any) -> Any:
    return value


async def run_of(house: House, work: Any, *args: Any) -> Run[Any]:
    async with house.app(work) as app:
        run: Run[Any] = await app.get_job(work.name).trigger_and_wait(*args)  # type: ignore[union-attr]
        return run


async def two_branches(step: Step) -> Any:
    async def branch(number: int) -> Any:
        return await step.run("a", give_async, number)

    return await asyncio.gather(branch(1), branch(2))


async def two_calls(step: Step) -> Any:
    return await asyncio.gather(step.run("a", give_async, 1), step.run("a", give_async, 2))


async def task_group(step: Step) -> Any:
    async def branch(number: int) -> Any:
        return await step.run("a", give_async, number)

    async with asyncio.TaskGroup() as group:
        group.create_task(branch(1))
        group.create_task(branch(2))


async def decorated(step: Step) -> Any:
    return await asyncio.gather(fetch(1), fetch(2))


async def swallowed(step: Step) -> Any:
    await asyncio.gather(step.run("a", give_async, 1), step.run("a", give_async, 2), return_exceptions=True)
    return "went on"


async def one_after_the_other(step: Step) -> Any:
    first_is_done = asyncio.Event()

    async def first() -> None:
        await step.run("a", give_async, 1)
        first_is_done.set()

    async def second() -> None:
        await first_is_done.wait()
        await step.run("a", give_async, 2)

    await asyncio.gather(first(), second())


@pytest.mark.parametrize(
    "body", [two_branches, two_calls, task_group, decorated, swallowed, one_after_the_other], ids=lambda b: b.__name__
)
def test_s3_one_name_in_two_branches_fails_the_run_with_advice(house: House, body: Any) -> None:
    @job
    async def work(step: Step) -> Any:
        return await body(step)

    run = asyncio.run(run_of(house, work))
    assert (run.status, run.error_type) == ("failed", "AmbiguousStep")
    assert 'f"fetch-{id}"' in (run.error or "")
    assert "@app.step(key=…)" in (run.error or "")


def test_s3_one_name_in_two_threads_fails_the_run(house: House) -> None:
    found: list[Exception] = []

    @job
    def work(step: SyncStep) -> int:
        def branch() -> None:
            try:
                step.run("a", give, 1)
            except AmbiguousStep as error:
                found.append(error)

        step.run("a", give, 0)
        thread = threading.Thread(target=branch)
        thread.start()
        thread.join(PATIENCE)
        return 1

    run = asyncio.run(run_of(house, work))
    assert (run.status, run.error_type, len(found)) == ("failed", "AmbiguousStep", 1)


def test_s3_tried_parallel_branches_can_not_swap_their_values_on_replay(house: House, stuck: Stuck) -> None:
    """A run-wide counter gave branch 1 the value of branch 2 when the second execution was scheduled differently."""
    slow_first = [True]

    @job
    async def work(step: Step) -> Any:
        async def branch(number: int) -> Any:
            for _ in range(5 if (number == 1) == slow_first[0] else 0):
                await asyncio.sleep(0)
            return number, await step.run("a", give_async, number)

        values = await asyncio.gather(branch(1), branch(2), return_exceptions=True)
        await step.run("wait", stuck.hang)
        return [value for value in values if isinstance(value, tuple)]

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        slow_first[0] = False
        run = await house.resume(work, run_id)
        # Even though its code swallows the error.
        assert (run.status, run.error_type, run.output) == ("failed", "AmbiguousStep", None)

    asyncio.run(main())


def test_s3_branches_with_names_of_their_own_keep_their_values_whatever_the_order(house: House, stuck: Stuck) -> None:
    slow = [0]

    @job
    async def work(step: Step) -> Any:
        async def branch(number: int) -> list[Any]:
            for _ in range(5 if number == slow[0] else 0):
                await asyncio.sleep(0)
            return [await step.run(f"a-{number}", give, (number, i)) for i in range(3)]

        values = await asyncio.gather(*[branch(number) for number in range(4)])
        await step.run("wait", stuck.hang)
        return values

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        slow[0] = 3
        assert (await house.resume(work, run_id)).output == [[(n, i) for i in range(3)] for n in range(4)]

    asyncio.run(main())


def test_s3_coroutines_made_in_one_branch_and_awaited_in_others_go_by_the_order_of_making(
    house: House, stuck: Stuck
) -> None:
    first_goes_first = [False]

    @job
    async def work(step: Step) -> Any:
        made = [step.run("a", give_async, number) for number in (1, 2)]
        done = [asyncio.Event(), asyncio.Event()]

        async def later(index: int) -> Any:
            if (index == 0) != first_goes_first[0]:
                await done[1 - index].wait()
            value = await made[index]
            done[index].set()
            return value

        values = await asyncio.gather(later(0), later(1))
        await step.run("wait", stuck.hang)
        return values

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        first_goes_first[0] = True
        assert (await house.resume(work, run_id)).output == [1, 2]

    asyncio.run(main())


def test_s3_occurrences_are_counted_in_a_loop_also_under_wait_for_and_timeout(house: House, stuck: Stuck) -> None:
    calls: list[int] = []

    def note(number: int) -> int:
        calls.append(number)
        return number

    @job
    async def work(step: Step) -> list[int]:
        values = []
        for number in range(3):
            values.append(await asyncio.wait_for(step.run("a", note, number), PATIENCE))
            async with asyncio.timeout(PATIENCE):
                values.append(await step.run("a", note, 10 + number))
            values.append(await asyncio.wait_for(fetch(20 + number), PATIENCE))
        await step.run("wait", stuck.hang)
        return values

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        assert (await house.resume(work, run_id)).output == [0, 10, 20, 1, 11, 21, 2, 12, 22]

    asyncio.run(main())
    assert calls == [0, 10, 1, 11, 2, 12]
    assert [row for row in house.steps("name, occurrence") if row[0] == "a"] == [("a", i) for i in range(6)]


def test_s3_a_step_whose_time_is_over_is_not_saved_and_its_name_may_be_used_again(house: House) -> None:
    @job
    async def work(step: Step) -> Any:
        never = asyncio.Event()
        try:
            await asyncio.wait_for(step.run("a", never.wait), 0.01)
        except TimeoutError:
            return await step.run("a", give, "later")

    assert asyncio.run(run_of(house, work)).output == "later"
    assert house.steps() == [("a", 1, "completed")]


def test_s3_keyed_steps_may_run_in_parallel(house: House) -> None:
    @job
    async def work(step: Step) -> list[int]:
        return await asyncio.gather(*[fetch_keyed(number) for number in range(3)])

    assert asyncio.run(run_of(house, work)).output == [0, 10, 20]
    assert sorted(house.steps("name, occurrence")) == [(f"fetch_keyed-{i}", 0) for i in range(3)]


def test_s3_a_step_inside_a_step_belongs_to_it_also_when_that_is_not_called_again(house: House, stuck: Stuck) -> None:
    def outer(value: int) -> int:
        return int(inner(value))

    @job
    async def work(step: Step) -> list[int]:
        values = [await step.run("outer", outer, 1)]
        await step.run("wait", stuck.hang)
        values += [await step.run("outer", outer, 2), await step.run("other", outer, 3)]
        return values

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        assert (await house.resume(work, run_id)).output == [1, 2, 3]

    asyncio.run(main())
    assert [f"{name}#{occurrence}" for name, occurrence in house.steps("name, occurrence") if "inner" in name] == [
        "outer > inner#0",
        "outer#1 > inner#0",
        "other > inner#0",
    ]


def test_s3_what_was_saved_inside_a_step_that_was_not_is_returned(house: House, stuck: Stuck) -> None:
    calls: list[int] = []

    def note(value: int) -> int:
        calls.append(value)
        return value

    @job
    async def work(step: Step) -> int:
        async def outer() -> int:
            value = await step.run("note", note, 7)
            await step.run("wait", stuck.hang)
            return value

        return await step.run("outer", outer)

    async def main() -> None:
        assert (await house.resume(work, await house.crash(work, stuck))).output == 7

    asyncio.run(main())
    assert calls == [7]


def test_steps_of_a_decorator_are_plain_functions_outside_of_runs() -> None:
    async def main() -> None:
        assert await fetch(3) == 3
        assert await fetch_keyed(3) == 30

    asyncio.run(main())
    assert inner(4) == 4
    assert fetch.__name__ == "fetch"


def test_a_decorated_step_works_in_sync_jobs_and_inside_step_run(house: House) -> None:
    @job
    def work(step: SyncStep) -> list[Any]:
        return [inner(1), inner(2), step.run("x", fetch, 3)]

    assert asyncio.run(run_of(house, work)).output == [1, 2, 3]
    assert house.steps("name, occurrence") == [("inner", 0), ("inner", 1), ("x", 0), ("x > fetch", 0)]


def test_a_sync_step_called_in_the_event_loop_is_refused_with_advice(house: House) -> None:
    @job
    async def work(step: Step) -> Any:
        return inner(1)

    run = asyncio.run(run_of(house, work))
    assert run.error_type == "DefinitionError"
    assert "await step.run(name, fn)" in (run.error or "")


def test_a_coroutine_in_place_of_a_function_is_refused_with_advice(house: House) -> None:
    @job
    async def work(step: Step) -> Any:
        return await step.run("a", give_async(1))  # type: ignore[call-overload]

    run = asyncio.run(run_of(house, work))
    assert run.error_type == "DefinitionError"
    assert "write step.run(name, give_async, …)" in (run.error or "")


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 256, "\ud800", 7, None])
def test_a_name_that_can_not_be_kept_or_shown_is_refused(house: House, name: Any) -> None:
    @job
    async def work(step: Step) -> Any:
        return await step.run(name, give, 1)

    run = asyncio.run(run_of(house, work))
    assert run.error_type == "ValidationError"
    assert (run.error or "").startswith("step name: ")


def test_branches_that_the_job_leaves_behind_are_cancelled_and_save_nothing_more(house: House) -> None:
    ends: list[str] = []

    @job
    async def work(step: Step) -> str:
        began = asyncio.Event()

        async def body() -> None:
            began.set()
            await asyncio.Event().wait()

        async def branch() -> None:
            try:
                await step.run("left", body)
            except asyncio.CancelledError:
                ends.append("cancelled")
            try:
                await step.run("more", give, 1)
            except asyncio.CancelledError as error:
                ends.append(type(error).__name__)

        tasks.append(asyncio.create_task(branch()))
        await began.wait()
        return "done"

    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        async with house.app(work) as app:
            assert await app.jobs.work.run() == "done"
            await asyncio.wait(tasks, timeout=PATIENCE)

    asyncio.run(main())
    assert ends == ["cancelled", "Unwind"]
    assert house.steps() == []
    assert house.errors == []


def test_positions_are_the_order_of_starting(house: House) -> None:
    @job
    async def work(step: Step) -> None:
        async def slow() -> None:
            await step.run("second", give, 1)

        await asyncio.gather(step.run("first", slow), step.run("third", give, 1))

    assert asyncio.run(run_of(house, work)).current_step_index == 3
    assert [position for (position,) in house.steps("position")] == [0, 1, 2]
