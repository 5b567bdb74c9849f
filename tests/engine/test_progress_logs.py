"""S3: progress and log lines of runs, and checkpoints while the database is in trouble."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

import databases
from databases import StoreHere
from holdfast import Event, Step, StoreUnavailable, SyncStep, job
from holdfast.basis.clock import SystemClock
from holdfast.store.base import LogSave, ProgressSave, StepSave, Tx
from house import PATIENCE, House, Stuck, until


class Troubled(StoreHere):
    """A store that refuses some verbs for some times."""

    def __init__(self, url: str) -> None:
        super().__init__(url, clock=SystemClock())
        self.trouble: dict[str, int] = {}
        self.poison = "poison"
        self.progress_rounds = 0
        self.unanswered = 0
        """So many more commits of lines are done, and their answers lost."""
        self._has_lines = False

    def commit(self, tx: Tx) -> None:
        super().commit(tx)
        has_lines, self._has_lines = self._has_lines, False
        if has_lines and self.unanswered:
            self.unanswered -= 1
            raise databases.driver.OperationalError("the answer was lost")

    def _refuse(self, verb: str) -> None:
        if self.trouble.get(verb, 0):
            self.trouble[verb] -= 1
            raise StoreUnavailable(f"{verb}: the disk is on fire")

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        self._refuse("save_steps")
        if any(self.poison in (save.step.output or "") for save in saves):
            raise databases.driver.DataError("this row is poison")
        return super().save_steps(tx, saves)

    def save_logs(self, tx: Tx, lines: Sequence[LogSave]) -> list[None]:
        self._refuse("save_logs")
        self._has_lines = True
        return super().save_logs(tx, lines)

    def save_progress(self, tx: Tx, rows: Sequence[ProgressSave]) -> list[None]:
        self._refuse("save_progress")
        self.progress_rounds += 1
        return super().save_progress(tx, rows)

    def find_steps(self, *args: Any, **more: Any) -> Any:
        self._refuse("find_steps")
        return super().find_steps(*args, **more)


@pytest.fixture
def store(house: House) -> Troubled:
    return Troubled(house.url)


def test_s3_of_many_progresses_the_last_one_is_kept_and_few_are_written(house: House, store: Troubled) -> None:
    heard: list[Event] = []

    @job
    async def work(step: Step) -> None:
        for number in range(500):
            step.progress(number, 500, "rows\0")

    async def main() -> None:
        async with house.app(work, store=store) as app:
            app.on("run:progress", heard.append)
            run = await app.jobs.work.trigger_and_wait()
            assert run.progress == {"current": 499, "total": 500, "message": "rows\ufffd"}
            assert (await run.refresh()).progress == run.progress

    asyncio.run(main())
    assert len(heard) == 500
    assert store.progress_rounds < 50


def test_s3_a_progress_that_was_refused_is_sent_again_with_the_end(house: House, store: Troubled) -> None:
    @job
    async def work(step: Step) -> None:
        step.progress(1)
        await until(lambda: not store.trouble["save_progress"])
        await step.run("a", abs, 1)

    async def main() -> None:
        store.trouble["save_progress"] = 1
        async with house.app(work, store=store) as app:
            run = await app.jobs.work.trigger_and_wait()
            assert (await run.refresh()).progress == {"current": 1}

    asyncio.run(main())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "1", None, 2**60, True])
def test_a_progress_that_is_no_number_is_refused_in_the_call(house: House, number: Any) -> None:
    @job
    async def work(step: Step) -> None:
        step.progress(number)

    async def main() -> None:
        async with house.app(work) as app:
            assert (await app.jobs.work.trigger_and_wait()).error_type == "ValidationError"

    asyncio.run(main())


def test_s3_lines_belong_to_the_step_that_wrote_them_also_in_parallel(house: House) -> None:
    @job
    async def work(step: Step) -> None:
        async def body(number: int) -> None:
            for i in range(3):
                step.log.info(f"{number}.{i}")
                await asyncio.sleep(0)

        def in_thread() -> None:
            step.log.warn("thread")

        step.log.debug("before")
        await asyncio.gather(*[step.run(f"s{number}", body, number) for number in range(3)])
        await step.run("t", in_thread)
        await step.run("t", in_thread)
        step.log.error("after", count=1)

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger_and_wait()
            lines = await app.get_logs(run.id)
        assert {line.message: line.step_name for line in lines if line.message[0].isdigit()} == {
            f"{number}.{i}": f"s{number}" for number in range(3) for i in range(3)
        }
        rest = [(line.level, line.message, line.step_name) for line in lines if not line.message[0].isdigit()]
        assert rest == [
            ("debug", "before", None),
            ("warning", "thread", "t"),
            ("warning", "thread", "t#1"),
            ("error", "after", None),
        ]
        assert lines[-1].data == {"count": 1}

    asyncio.run(main())


def test_s3_lines_of_a_saved_step_are_there_after_a_crash(house: House, stuck: Stuck) -> None:
    @job
    async def work(step: Step) -> None:
        async def body() -> None:
            for number in range(50):
                step.log.info(f"line {number}")

        await step.run("body", body)
        await step.run("wait", stuck.hang)

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        async with house.app(work, worker=False) as app:
            assert [line.message for line in await app.get_logs(run_id)] == [f"line {n}" for n in range(50)]

    asyncio.run(main())


def test_s3_lines_that_were_refused_are_sent_again_once_before_their_step_is_saved(
    house: House, store: Troubled, caplog: pytest.LogCaptureFixture
) -> None:
    @job
    async def work(step: Step) -> None:
        async def body() -> None:
            step.log.info("one")
            await until(lambda: not store.trouble["save_logs"])
            step.log.info("two")

        await step.run("body", body)
        step.log.info("three")

    async def main() -> None:
        store.trouble["save_logs"] = 1
        async with house.app(work, store=store) as app:
            run = await app.jobs.work.trigger_and_wait()
            assert sorted(line.message for line in await app.get_logs(run.id)) == ["one", "three", "two"]

    asyncio.run(main())
    assert "nobody asked" not in caplog.text


@pytest.mark.parametrize("answers_lost", [1, 2, 3])
def test_s3_a_line_whose_commit_gave_no_answer_is_there_once(house: House, store: Troubled, answers_lost: int) -> None:
    @job
    async def work(step: Step) -> None:
        async def body() -> None:
            step.log.info("one")
            # The first playing of its round and the second; the third one is that of the line when it is sent again.
            await until(lambda: store.unanswered <= max(0, answers_lost - 2))

        await step.run("body", body)
        step.log.info("two")

    async def main() -> None:
        store.unanswered = answers_lost
        async with house.app(work, store=store) as app:
            run = await app.jobs.work.trigger_and_wait()
            assert [line.message for line in await app.get_logs(run.id)] == ["one", "two"]
        assert store.unanswered == 0

    asyncio.run(main())


def test_data_that_can_not_be_kept_is_shown_and_fails_nothing(house: House) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    @job
    async def work(step: Step) -> None:
        step.log.info("\ud800", message="may be a key", self=1)
        step.log.info("odd", thing=object, hostile=Hostile(), **{"\0": 1})
        step.log.info("big", text="x" * 100_000)

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger_and_wait()
            assert run.status == "completed"
            first, second, third = [(line.message, line.data) for line in await app.get_logs(run.id)]
            assert first == ("\ufffd", {"message": "may be a key", "self": 1})
            assert second[1] == {"thing": "<class 'object'>", "hostile": "<unprintable Hostile>", "\ufffd": "1"}
            assert len(third[1]["text"]) < 5000

    asyncio.run(main())


@pytest.mark.parametrize("form", ["async", "sync"])
def test_a_checkpoint_is_tried_until_the_database_takes_it(house: House, store: Troubled, form: str) -> None:
    calls: list[int] = []

    @job(name="work")
    async def work(step: Step) -> int:
        await step.run("effect", calls.append, 1)
        return 1

    @job(name="work")
    def work_sync(step: SyncStep) -> int:
        step.log.info("beside it")
        step.run("effect", calls.append, 1)
        return 1

    async def main() -> None:
        store.trouble["save_steps"] = 2
        async with house.app(work if form == "async" else work_sync, store=store) as app:
            assert await app.get_job("work").run() == 1  # type: ignore[union-attr]

    asyncio.run(main())
    assert calls == [1]
    assert [context for context, _ in house.errors if context != "claim"] == ["checkpoint"] * 2
    assert house.sql("select count(*) from holdfast_logs") == [(0 if form == "async" else 1,)]


def test_a_page_of_the_history_is_asked_again_until_the_database_answers(
    house: House, stuck: Stuck, store: Troubled
) -> None:
    @job
    async def work(step: Step) -> int:
        total = sum(await asyncio.gather(*[step.run(f"n{number}", abs, number) for number in range(150)]))
        await step.run("wait", stuck.hang)
        return total

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        store.trouble["find_steps"] = 2  # a read over an older connection is asked once more by itself
        assert (await house.resume(work, run_id, store=store)).output == 11175

    asyncio.run(main())
    assert "checkpoint" in {context for context, _ in house.errors}


@pytest.mark.parametrize("form", ["async", "sync"])
def test_a_row_that_the_database_refuses_for_ever_fails_its_step_durably(
    house: House, store: Troubled, form: str
) -> None:
    @job(name="work")
    async def work(step: Step) -> str:
        try:
            return await step.run("a", lambda: "poison")
        except Exception as error:
            return type(error).__name__ + ": " + str(error)[:40]

    @job(name="work")
    def work_sync(step: SyncStep) -> str:
        try:
            return step.run("a", lambda: "poison")
        except Exception as error:
            return type(error).__name__ + ": " + str(error)[:40]

    async def main() -> None:
        async with house.app(work if form == "async" else work_sync, store=store) as app:
            text = await app.get_job("work").run()  # type: ignore[union-attr]
            assert text.startswith("NotKept: a: $: the database refused it: ")

    asyncio.run(main())
    assert house.steps("status") == [("failed",)]


def test_a_step_whose_wait_is_cut_short_while_it_is_being_saved_is_saved(house: House) -> None:
    told: list[Event] = []

    @job
    async def work(step: Step) -> str:
        committer = app_of[0]._engine.committer
        gate, called = threading.Event(), asyncio.Event()

        async def body() -> int:
            committer.gate = gate
            called.set()
            return 1

        task = asyncio.create_task(step.run("a", body))
        await called.wait()  # and its checkpoint is in the line: nothing was awaited in between
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE)
        committer.gate = None
        gate.set()
        return "cancelled" if task.cancelled() else "not"

    app_of: list[Any] = []

    async def main() -> None:
        async with house.app(work) as app:
            app_of.append(app)
            app.on("step:complete", told.append)
            run = await app.jobs.work.trigger_and_wait()
            assert (run.output, run.completed_step_count) == ("cancelled", 1)

    asyncio.run(main())
    assert house.steps() == [("a", 0, "completed")]
    assert [event.data["step_name"] for event in told] == ["a"]
