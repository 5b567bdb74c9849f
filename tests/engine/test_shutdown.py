"""S4: stopping an app while it works, and starting it again."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from holdfast import Event, Step, StoreClosed, SyncStep, job
from house import PATIENCE, House, Stuck, until


def test_s4_a_polite_run_finishes_early_when_it_is_told_of_the_shutdown(house: House) -> None:
    seen: list[Any] = []

    @job
    async def work(step: Step) -> str:
        began.set()
        seen.append(await step.shutdown)
        seen.append(step.signal.aborted)
        return str(await step.run("last", lambda: "done"))

    began = asyncio.Event()
    ended: list[Event] = []

    async def main() -> None:
        app = house.app(work)
        app.on("run:complete", ended.append)
        await app.init()
        await app.jobs.work.trigger()
        await began.wait()
        await app.stop()

    asyncio.run(main())
    assert seen == ["shutdown", False]
    assert house.status() == ["completed"]
    assert [event.run_id for event in ended] == [run_id for (run_id,) in house.sql("select id from holdfast_runs")]


def test_s4_what_is_still_running_is_handed_back_uncounted_and_resumes_with_its_steps(house: House) -> None:
    calls: list[str] = []
    reasons: list[Any] = []
    first_time = [True]

    @job
    async def work(step: Step) -> str:
        async def slow() -> str:
            if first_time[0]:
                began.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    reasons.append(step.signal.reason)
            return "slow"

        await step.run("quick", calls.append, "quick")
        return await step.run("slow", slow)

    began = asyncio.Event()

    async def main() -> None:
        app = house.app(work)
        await app.init()
        run = await app.jobs.work.trigger()
        await began.wait()
        await app.stop(timeout=0)
        [row] = house.sql("select status, attempt, crashes, lease_owner, lease_expires_at from holdfast_runs")
        assert row == ("pending", 0, 0, None, None)
        first_time[0] = False
        assert (await house.resume(work, run.id)).output == "slow"

    asyncio.run(main())
    assert calls == ["quick"]
    assert reasons == ["shutdown"]
    assert house.errors == []


def test_s4_a_sync_run_is_told_and_handed_back_while_its_thread_goes_on(house: House, stuck: Stuck) -> None:
    reasons: list[Any] = []
    over = threading.Event()

    @job
    def work(step: SyncStep) -> str:
        try:
            value = step.run("slow", stuck.hang_sync, "slow")
            reasons.append("went on")
        finally:
            reasons.append(step.signal.reason)
            over.set()
        return str(value)

    async def main() -> None:
        app = house.app(work)
        await app.init()
        run = await app.jobs.work.trigger()
        await stuck.came()
        await app.stop(timeout=0)
        assert house.status() == ["pending"]
        stuck.let_go()
        assert await asyncio.to_thread(over.wait, PATIENCE)
        assert reasons == ["shutdown"]
        assert house.steps() == []
        assert (await house.resume(work, run.id)).output == "slow"

    asyncio.run(main())
    assert reasons == ["shutdown", "went on", None]


def test_s4_triggers_are_refused_from_outside_and_taken_from_runs_that_drain(house: House) -> None:
    @job
    async def child() -> None:
        pass

    @job
    async def work(step: Step) -> str:
        began.set()
        await step.shutdown
        return (await child_handle[0].trigger()).id

    began = asyncio.Event()
    child_handle: list[Any] = []

    async def main() -> None:
        app = house.app(work, child)
        child_handle.append(app.jobs.child)
        await app.init()
        await app.jobs.work.trigger()
        await began.wait()
        stopped = app.stop()
        stopping = asyncio.ensure_future(_awaited(stopped))
        await asyncio.sleep(0)
        with pytest.raises(StoreClosed, match="stopping"):
            await app.jobs.child.trigger()
        await stopping
        with pytest.raises(StoreClosed):
            await app.jobs.child.trigger()

    asyncio.run(main())
    assert house.status() == ["completed", "pending"]


async def _awaited(reply: Any) -> Any:
    return await reply


def test_s4_stopping_twice_and_starting_again_works(house: House) -> None:
    @job
    async def work(number: int) -> int:
        return number

    async def main() -> None:
        app = house.app(work)
        for number in range(2):
            async with app:
                assert await app.jobs.work.run(number) == number
                await app.stop()
            await app.stop()

    asyncio.run(main())


def test_s4_with_works_in_sync_code_and_leaves_no_thread(house: House) -> None:
    @job
    def work(step: SyncStep, number: int) -> int:
        return step.run("n", abs, number)

    before = set(threading.enumerate())
    app = house.app(work)
    for number in range(2):
        with app:
            assert app.jobs.work.run(-number).wait(PATIENCE) == number
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


def test_a_loop_that_cancels_everything_fails_no_run(house: House) -> None:
    """As at the end of `asyncio.run` in a program that forgot to stop its app."""

    @job
    async def work(step: Step) -> str:
        if first_time[0]:
            began.set()
            await asyncio.Event().wait()
        return "done"

    first_time = [True]
    began = asyncio.Event()
    app = house.app(work)
    ids: list[str] = []

    async def forgetful() -> None:
        await app.init()
        ids.append((await app.jobs.work.trigger()).id)
        await began.wait()

    asyncio.run(forgetful())
    assert house.sql("select status, crashes, attempt from holdfast_runs") == [("pending", 0, 0)]
    app.stop().wait(PATIENCE)
    first_time[0] = False

    async def main() -> None:
        assert (await house.resume(work, ids[0])).output == "done"

    asyncio.run(main())


def test_s4_an_app_that_is_about_to_stop_begins_no_run_and_lets_others_go_on(
    house: House, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    @job
    async def work(step: Step, number: int) -> int:
        return int(await step.run("n", stuck.hang, number))

    async def main() -> None:
        app = house.app(work, concurrency=2, polling_interval=0.02)
        async with app:
            first = await app.jobs.work.trigger(1)
            await stuck.came()
            app._engine.claim_no_more()
            looks, look = list[None](), app._engine.worker._fill
            monkeypatch.setattr(app._engine.worker, "_fill", lambda: (looks.append(None), look()))
            second = await app.jobs.work.trigger(2)
            assert not await app.process_one()
            stuck.let_go()
            assert (await app.wait_for_run(first.id, timeout=PATIENCE)).output == 1
            await until(lambda: len(looks) >= 5)
        assert house.status() == ["completed", "pending"]
        async with app:
            assert (await app.wait_for_run(second.id, timeout=PATIENCE)).output == 2

    asyncio.run(main())
