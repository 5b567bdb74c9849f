"""What a run says beside its steps: values that it streams, and nothing twice because it was executed again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from around import until

from holdfast import Event, Holdfast, NotKept, Retry, Step, SyncStep, ValidationError, job
from holdfast.testing import app_for_tests, drain
from house import PATIENCE, House, Stuck

DAY = 86_400.0


def lines(app: Holdfast, run_id: str) -> list[str]:
    return [line.message for line in app.get_logs(run_id).wait()]


# -- once ----------------------------------------------------------------------------------------------------------


@job
async def sleeper(step: Step) -> None:
    step.log.info("begun")
    step.progress(1, 4)
    await step.run("a", int)
    step.log.info("between a and b")
    step.progress(2, 4)
    await step.sleep("b", DAY)
    step.log.info("between b and c")
    step.progress(3, 4)
    await step.sleep("c", DAY)
    step.log.info("the end")


@job(name="sleeper")
def sleeper_sync(step: SyncStep) -> None:
    step.log.info("begun")
    step.run("a", int)
    step.log.info("between a and b")
    step.sleep("b", DAY)
    step.log.info("between b and c")
    step.sleep("c", DAY)
    step.log.info("the end")


@pytest.mark.parametrize("definition", [sleeper, sleeper_sync], ids=["async", "sync"])
def test_s6_a_run_that_was_suspended_does_not_write_its_lines_again(definition: Any) -> None:
    with app_for_tests(definition) as app:
        run = app.jobs.sleeper.trigger().wait()
        drain(app, until=3 * DAY).wait()
        assert run.refresh().wait().status == "completed"
        assert lines(app, run.id) == ["begun", "between a and b", "between b and c", "the end"]


def test_s6_nor_does_its_progress_go_backwards() -> None:
    heard: list[Any] = []
    with app_for_tests(sleeper) as app:
        app.on("run:progress", lambda event: heard.append(event.progress["current"]))
        app.jobs.sleeper.trigger().wait()
        drain(app, until=3 * DAY).wait()
    assert heard == [1, 2, 3]


def test_a_run_that_was_taken_over_says_what_is_new(house: House) -> None:
    stuck = Stuck()

    @job
    async def work(step: Step) -> str:
        step.log.info("begun")
        await step.run("a", int)
        step.log.info("after a")
        await step.run("b", stuck.hang)
        step.log.info("after b")
        return "done"

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        async with house.app(work) as app:
            assert (await app.wait_for_run(run_id, timeout=PATIENCE)).output == "done"
            # Nobody knows whether the one before b was written before the crash: b itself is called again.
            begun, *after_a, after_b = [line.message for line in await app.get_logs(run_id)]
            assert (begun, after_b) == ("begun", "after b")
            assert after_a in (["after a"], ["after a", "after a"])

    asyncio.run(main())


def test_what_is_said_within_a_step_is_never_held(house: House) -> None:
    @job(retry=Retry(1, delay=0))
    async def work(step: Step) -> None:
        step.log.info("outside")

        def say() -> None:
            step.log.info("within")
            raise ValueError("no")

        await step.run("say", say)

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger()
            await run.wait(timeout=PATIENCE)
            assert [line.message for line in await app.get_logs(run.id)] == ["outside", "within", "outside", "within"]

    asyncio.run(main())


def test_a_line_after_which_no_step_comes_is_written(house: House) -> None:
    @job(retry=Retry(1, delay=0))
    async def work(step: Step) -> None:
        await step.run("a", int)
        step.log.info(f"attempt {step.attempt}")
        raise ValueError("no")

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger()
            await run.wait(timeout=PATIENCE)
            assert [line.message for line in await app.get_logs(run.id)] == ["attempt 0", "attempt 1"]

    asyncio.run(main())


# -- streamed values -----------------------------------------------------------------------------------------------


@job
async def model(step: Step) -> str:
    step.emit("begun", None)

    def answer() -> str:
        for token in ("forty", "-", "two"):
            step.emit("token", {"text": token})
        return "forty-two"

    return await step.run("answer", answer)


@job(name="model")
def model_sync(step: SyncStep) -> str:
    step.emit("begun", None)

    def answer() -> str:
        for token in ("forty", "-", "two"):
            step.emit("token", {"text": token})
        return "forty-two"

    return step.run("answer", answer)


SAID = [("begun", None, None), *[("token", {"text": token}, "answer") for token in ("forty", "-", "two")]]


def said(events: list[Event]) -> list[Any]:
    return [(event.name, event.value, event.step_name) for event in events if event.type == "run:emit"]


@pytest.mark.parametrize("definition", [model, model_sync], ids=["async", "sync"])
def test_streamed_values_reach_listeners_and_are_no_log_lines(house: House, definition: Any) -> None:
    heard: list[Event] = []

    async def main() -> None:
        async with house.app(definition) as app:
            app.on("run:emit", heard.append)
            run = await app.jobs.model.trigger()
            assert await run.result(timeout=PATIENCE) == "forty-two"
            assert await app.get_logs(run.id) == []

    asyncio.run(main())
    assert said(heard) == SAID


def test_streamed_values_reach_who_follows_the_run_from_elsewhere(house: House) -> None:
    async def main() -> None:
        async with house.app(model, worker=False) as web:
            run = await web.jobs.model.trigger()

            async def follow() -> list[Any]:
                return said([event async for event in web.subscribe(run.id)])

            following = asyncio.create_task(follow())
            await asyncio.to_thread(until, lambda: web._engine.hub.followed)
            async with house.app(model):
                assert await asyncio.wait_for(following, PATIENCE) == SAID

    asyncio.run(main())


def test_a_value_that_has_no_json_form_or_no_room_is_refused_with_what_to_do(house: House) -> None:
    @job
    async def work(step: Step) -> list[str]:
        refused = []
        for name, value in (("x", object()), ("", 1), ("long", "y" * 2000)):
            try:
                step.emit(name, value)
            except (NotKept, ValidationError) as error:
                refused.append(str(error))
        return refused

    async def main() -> list[str]:
        async with house.app(work, max_log_bytes=1024) as app:
            refused: list[str] = await (await app.jobs.work.trigger()).result(timeout=PATIENCE)
            return refused

    no_form, no_name, no_room = asyncio.run(main())
    assert no_form.startswith("step.emit 'x'")
    assert no_name.startswith("step.emit: name: '' can't be one")
    assert no_room.startswith("step.emit 'long': the value has 2,002 bytes as JSON, more than max_log_bytes (1,024)")
