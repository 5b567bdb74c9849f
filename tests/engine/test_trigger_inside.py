"""S3: triggering runs inside of runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from holdfast import Step, SyncStep, job
from house import House, Stuck


@job
async def child(number: int) -> int:
    return number


@job
async def other(number: int) -> int:
    return number


def children(house: House) -> list[Any]:
    return house.sql("select job_name, input from holdfast_runs where job_name <> 'work' order by job_name, input")


async def crash_and_resume(house: House, stuck: Stuck, work: Any, before_resume: Any = None) -> Any:
    app = house.app(work, child, other)
    handles.update(child=app.jobs.child, other=app.jobs.other)
    await app.init()
    run = await app.get_job("work").trigger()  # type: ignore[union-attr]
    await stuck.came()
    house.take_away(for_seconds=1000)
    await app.stop(timeout=0)
    stuck.let_go()
    house.sql("update holdfast_runs set run_at = created_at, due = 1 where status = 'pending'")
    async with house.app(work, child, other) as app:
        handles.update(child=app.jobs.child, other=app.jobs.other)
        ended = await app.wait_for_run(run.id)
        assert ended.status == "completed", ended.error
        return ended.output


handles: dict[str, Any] = {}


def test_s3_a_replay_triggers_nothing_twice(house: House, stuck: Stuck) -> None:
    dispositions: list[Any] = []
    extra = [False]

    @job(name="work")
    async def work(step: Step) -> None:
        if extra[0]:
            await handles["other"].trigger(0)  # new since: must not take the place of the next one
        runs = [await handles["child"].trigger(number) for number in (1, 1, 2)]
        dispositions.extend(run.disposition for run in runs)
        await step.run("wait", stuck.hang)
        extra[0] = True

    asyncio.run(crash_and_resume(house, stuck, work))
    assert dispositions == ["created"] * 3 + ["idempotent"] * 3
    assert children(house) == [("child", '{"number":1}'), ("child", '{"number":1}'), ("child", '{"number":2}')]


def test_s3_a_replay_of_a_sync_job_triggers_nothing_twice(house: House, stuck: Stuck) -> None:
    @job(name="work")
    def work(step: SyncStep) -> None:
        for number in (1, 1, 2):
            handles["child"].trigger(number).wait(30)
        step.run("wait", stuck.hang_sync)

    asyncio.run(crash_and_resume(house, stuck, work))
    assert len(children(house)) == 3


def test_s3_in_parallel_branches_triggers_go_by_their_input_whatever_the_order(house: House, stuck: Stuck) -> None:
    order = [[1, 2, 3, 3]]
    ids: list[dict[int, set[str]]] = []

    @job(name="work")
    async def work(step: Step) -> None:
        found: dict[int, set[str]] = {}

        async def branch(number: int) -> None:
            found.setdefault(number, set()).add((await handles["child"].trigger(number)).id)

        async with asyncio.TaskGroup() as group:
            for number in order[0]:
                group.create_task(branch(number))
        ids.append(found)
        order[0] = order[0][::-1]
        await step.run("wait", stuck.hang)

    asyncio.run(crash_and_resume(house, stuck, work))
    assert ids[0] == ids[1]
    assert len(children(house)) == 4


def test_s3_inside_a_step_a_trigger_has_no_key_and_a_key_that_is_given_wins(house: House, stuck: Stuck) -> None:
    @job(name="work")
    async def work(step: Step) -> None:
        async def inside() -> str:
            return str((await handles["child"].trigger(1)).id)

        await step.run("inside", inside)
        await handles["child"].options(idempotency_key="mine").trigger(2)
        await step.run("wait", stuck.hang)

    asyncio.run(crash_and_resume(house, stuck, work))
    assert house.sql("select idempotency_key from holdfast_runs where job_name = 'child' order by input") == [
        (None,),
        ("mine",),
    ]


@pytest.mark.parametrize("form", ["async", "sync"])
def test_a_run_that_is_over_triggers_nothing_more(house: House, stuck: Stuck, form: str) -> None:
    over: list[str] = []

    async def body_async(step: Step) -> None:
        try:
            await step.signal
            await handles["child"].trigger(1)
        finally:
            over.append("left")
            stuck.let_go()

    @job(name="work")
    async def work(step: Step) -> None:
        stuck.is_there.set()
        await body_async(step)

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        stuck.is_there.set()
        step.signal.wait(30)
        try:
            handles["child"].trigger(1)
        finally:
            over.append("left")
            stuck.let_go()

    async def main() -> None:
        async with house.app(work if form == "async" else work_sync, child) as app:
            handles["child"] = app.jobs.child
            run = await app.get_job("work").trigger()  # type: ignore[union-attr]
            await stuck.came()
            await run.cancel()
            assert await asyncio.to_thread(stuck.may_go.wait, 30)

    asyncio.run(main())
    assert over == ["left"]
    assert children(house) == []
