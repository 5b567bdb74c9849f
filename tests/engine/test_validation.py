"""`validate=`: sync at the trigger, async before the job's function; what it may return, and what it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import pytest

from holdfast import (
    CancelRun,
    DefinitionError,
    Holdfast,
    NonRetryable,
    NotFoundError,
    RunFailed,
    Step,
    SyncStep,
    TimedOut,
    ValidationError,
    job,
)
from house import PATIENCE, House, Stuck


@dataclass
class Order:
    item: str
    count: int


def refuse_many(count: int) -> None:
    if count > 10:
        raise ValueError("too many")


# -- sync --------------------------------------------------------------------------------------------------------


def test_a_sync_validation_refuses_in_the_call_itself_and_nothing_is_written(house: House) -> None:
    @job(validate=refuse_many)
    async def work(count: int) -> int:
        return count

    with house.app(work, worker=False) as app:
        for verb in (app.jobs.work.trigger, app.jobs.work.run, app.jobs.work.bind, app.jobs.work.trigger_and_wait):
            with pytest.raises(ValidationError, match="Invalid input to job 'work': too many"):
                verb(11)
        assert app.get_runs().wait() == []


def test_a_sync_validation_sees_what_the_job_will_see(house: House) -> None:
    seen: list[Any] = []

    def check(day: date, *, times: int = 3) -> None:
        seen.append((day, times))

    @job(validate=check)
    async def work(day: date, *, times: int = 3) -> None: ...

    with house.app(work, worker=False) as app:
        app.jobs.work.bind("2026-11-21")
    assert seen == [(date(2026, 11, 21), 3)]


def test_a_validation_is_asked_after_the_types(house: House) -> None:
    seen: list[Any] = []

    @job(validate=seen.append)
    async def work(count: int) -> None: ...

    with house.app(work, worker=False) as app, pytest.raises(ValidationError, match="count"):
        app.jobs.work.bind("many")
    assert seen == []


def test_what_a_sync_validation_returns_is_written_in_place_of_the_only_parameter(house: House) -> None:
    @job(validate=lambda order: Order(order.item.strip(), order.count))
    async def work(order: Order) -> str:
        return f"{order.count} {order.item}"

    with house.app(work) as app:
        run = app.jobs.work.trigger_and_wait(Order("  pen ", 2)).wait(PATIENCE)
    assert run.output == "2 pen"
    assert run.input == {"item": "pen", "count": 2}


def test_of_several_parameters_those_that_are_named_are_replaced(house: House) -> None:
    @job(validate=lambda a, b, c: {"b": b * 10})
    async def work(a: int, b: int, *, c: int) -> list[int]:
        return [a, b, c]

    with house.app(work) as app:
        assert app.jobs.work.run(1, 2, c=3).wait(PATIENCE) == [1, 20, 3]


@pytest.mark.parametrize(("given", "words"), [(7, "returned 7"), ({"x": 1}, r"returned \{'x': 1\}"),
                                              ({"a": "no number"}, "a: ")], ids=str)  # fmt: skip
def test_a_replacement_that_does_not_fit_is_refused(house: House, given: Any, words: str) -> None:
    @job(validate=lambda a, b: given)
    async def work(a: int, b: int) -> None: ...

    with house.app(work, worker=False) as app, pytest.raises(ValidationError, match=words):
        app.jobs.work.bind(1, 2)


def test_a_sync_validation_that_finds_nothing_says_so(house: House) -> None:
    def check(user: int) -> None:
        raise NotFoundError(f"no user {user}")

    @job(validate=check)
    async def work(user: int) -> None: ...

    with house.app(work, worker=False) as app, pytest.raises(NotFoundError, match=r"^no user 7$"):
        app.jobs.work.bind(7)


def test_a_sync_function_that_gives_something_to_await_is_refused(house: House) -> None:
    async def check(count: int) -> None: ...

    @job(validate=lambda count: check(count))
    async def work(count: int) -> None: ...

    with house.app(work, worker=False) as app, pytest.raises(ValidationError, match="make it an `async def`"):
        app.jobs.work.bind(1)


def test_a_retrigger_validates_again(house: House) -> None:
    most = 100

    def check(count: int) -> None:
        if count > most:
            raise ValueError("too many by now")

    @job(validate=check)
    async def work(count: int) -> int:
        return count

    with house.app(work) as app:
        run = app.jobs.work.trigger_and_wait(50).wait(PATIENCE)
        most = 10
        with pytest.raises(ValidationError, match=f"Cannot retrigger run {run.id}: .*too many by now"):
            app.retrigger(run.id).wait()
        assert len(app.get_runs().wait()) == 1


def test_what_can_not_be_called_is_refused_where_it_is_written() -> None:
    def work() -> None: ...

    with pytest.raises(DefinitionError, match="validate: 'check' is not a function"):
        Holdfast().job(validate="check")(work)  # type: ignore[arg-type]


# -- async -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync", "partial"])
def test_an_async_validation_is_called_by_who_executes_the_run_before_its_function(house: House, colour: str) -> None:
    story: list[str] = []

    async def check(count: int, word: str = "check") -> int:
        story.append(word)
        return count + 1

    validate = partial(check, word="partial") if colour == "partial" else check

    @job(name="work", validate=validate)
    async def work(step: Step, count: int) -> int:
        story.append("job")
        return await step.run("twice", lambda: count * 2)

    @job(name="work", validate=validate)
    def work_sync(step: SyncStep, count: int) -> int:
        story.append("job")
        return step.run("twice", lambda: count * 2)

    with house.app(work_sync if colour == "sync" else work) as app:
        handle = app.get_job("work")
        assert handle is not None
        call = handle.bind(20)
        assert story == []
        run = app.trigger(call).wait().wait().wait(PATIENCE)
    assert (run.output, run.input) == (42, {"count": 20})
    assert story == ["partial" if colour == "partial" else "check", "job"]


def test_an_async_validation_is_asked_once_for_a_run(house: House, stuck: Stuck) -> None:
    asked: list[int] = []

    async def check(count: int) -> int:
        asked.append(count)
        return count * 2

    @job(validate=check)
    async def work(step: Step, count: int) -> int:
        return int(await step.run("hang", stuck.hang, count))

    async def main() -> None:
        run_id = await house.crash(work, stuck, 21)
        assert (await house.resume(work, run_id)).output == 42

    asyncio.run(main())
    assert asked == [21]
    assert house.steps("name, position") == [("(validate)", 0), ("hang", 1)]


@pytest.mark.parametrize(
    ("error", "status", "kind", "words"),
    [
        (ValueError("too many"), "failed", "ValidationError", "Invalid input to job 'work': too many"),
        (ValidationError("too many"), "failed", "ValidationError", "Invalid input to job 'work': too many"),
        (NonRetryable("no", kind="policy"), "failed", "ValidationError", "Invalid input to job 'work': no"),
        (NotFoundError("no user"), "failed", "NotFoundError", "no user"),
        (TimedOut("too late"), "timed_out", "TimedOut", "too late"),
        (CancelRun("never mind"), "cancelled", None, "never mind"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_failure_of_an_async_validation_ends_the_run(
    house: House, error: Exception, status: str, kind: str | None, words: str
) -> None:
    called: list[int] = []

    async def check(count: int) -> None:
        called.append(-1)
        raise error

    @job(validate=check)
    async def work(count: int) -> None:
        called.append(count)

    with house.app(work) as app:
        run = app.jobs.work.trigger_and_wait(11).wait(PATIENCE)
    assert (run.status, run.error_type, run.error) == (status, kind, words)
    assert called == [-1]


def test_the_saved_failure_of_a_validation_is_raised_again_without_a_call(house: House) -> None:
    asked: list[int] = []

    async def check(count: int) -> None:
        asked.append(count)
        raise ValueError("no")

    @job(validate=check)
    async def work(count: int) -> None: ...

    async def main() -> None:
        async with house.app(work) as app:
            run = await app.jobs.work.trigger_and_wait(1)
        # As if the process had died just before the end was written.
        house.sql("update holdfast_runs set status = 'pending', completed_at = null, error = null, error_type = null")
        assert (await house.resume(work, run.id)).error == "Invalid input to job 'work': no"

    asyncio.run(main())
    assert asked == [1]


def test_an_async_replacement_that_does_not_fit_fails_the_run(house: House) -> None:
    async def check(count: int) -> Any:
        return "many"

    @job(validate=check)
    async def work(count: int) -> None: ...

    with house.app(work) as app, pytest.raises(RunFailed, match="Invalid input: count"):
        app.jobs.work.run(1).wait(PATIENCE)


@pytest.mark.parametrize("inline", [False, True], ids=["threads", "inline"])
def test_the_validation_of_a_retriggered_run_stands_in_nobodys_way(house: House, inline: bool) -> None:
    looked: list[int] = []

    def check(n: int) -> None:
        looked.append(len(app.get_runs().wait(PATIENCE)))  # refused in a thread that others wait for

    @job(name="work", validate=check)
    def work(n: int) -> int:
        return n

    app = house.app(work, inline=inline)
    with app:
        run = app.jobs.work.trigger(1).wait()
        app.process_until_idle().wait(PATIENCE)
        run.wait().wait(PATIENCE)
        again = app.retrigger(run.id).wait(PATIENCE)
        assert again.input == {"n": 1}
    assert looked == [0, 1]
