"""S3: what a run that is executed again takes from what was saved."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from holdfast import NonRetryable, Step, StepFailed, SyncStep, job
from holdfast.store.base import STEP_PAGE
from house import House, Stuck


class Declined(Exception):
    """The bank says no."""


class Odd(Exception):
    """Its args do not rebuild it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}", object())


@dataclass
class Point:
    x: int
    y: int


def test_s3_a_saved_success_is_returned_without_calling_the_function_again(house: House, stuck: Stuck) -> None:
    calls: list[int] = []

    def first(number: int) -> int:
        calls.append(number)
        return number * 2

    @job
    async def work(step: Step, number: int) -> list[int]:
        return [await step.run("first", first, number), await step.run("second", stuck.hang, 5)]

    async def main() -> None:
        run_id = await house.crash(work, stuck, 21)
        run = await house.resume(work, run_id)
        assert run.output == [42, 5]
        assert (calls, stuck.calls) == ([21], 2)
        assert (run.crashes, run.attempt, run.generation) == (0, 0, 3)

    asyncio.run(main())


def test_s3_a_saved_success_is_returned_in_a_sync_job_too(house: House, stuck: Stuck) -> None:
    calls: list[int] = []

    @job
    def work(step: SyncStep, number: int) -> list[int]:
        return [step.run("first", calls.append, number) or 1, step.run("second", stuck.hang_sync, 5)]

    async def main() -> None:
        run_id = await house.crash(work, stuck, 21)
        assert (await house.resume(work, run_id)).output == [1, 5]
        assert (calls, stuck.calls) == ([21], 2)

    asyncio.run(main())


def test_s3_a_success_counts_in_a_new_attempt_and_a_failure_does_not(house: House, stuck: Stuck) -> None:
    calls: list[str] = []

    def good() -> str:
        calls.append("good")
        return "good"

    def bad() -> None:
        calls.append("bad")
        raise Declined("no")

    @job
    async def work(step: Step) -> str:
        await step.run("good", good)
        try:
            await step.run("bad", bad)
        except Declined:
            pass
        return str(await step.run("wait", stuck.hang, "end"))

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        house.sql("update holdfast_runs set attempt = 1")
        assert (await house.resume(work, run_id)).output == "end"
        assert calls == ["good", "bad", "bad"]
        assert house.steps("name, status, attempt") == [
            ("good", "completed", 0),
            ("bad", "failed", 1),
            ("wait", "completed", 1),
        ]

    asyncio.run(main())


@pytest.mark.parametrize("form", ["async", "sync"])
def test_s3_a_final_failure_is_raised_again_in_the_same_attempt_without_charging_twice(
    house: House, stuck: Stuck, form: str
) -> None:
    charges: list[int] = []
    seen: list[Exception] = []

    def charge(amount: int) -> None:
        charges.append(amount)
        raise Declined("no funds", amount)

    @job(name="pay")
    async def pay(step: Step) -> str:
        try:
            await step.run("charge", charge, 5)
        except Declined as error:
            seen.append(error)
        return str(await step.run("wait", stuck.hang, "declined"))

    @job(name="pay")
    def pay_sync(step: SyncStep) -> str:
        try:
            step.run("charge", charge, 5)
        except Declined as error:
            seen.append(error)
        return str(step.run("wait", stuck.hang_sync, "declined"))

    work: Any = pay if form == "async" else pay_sync

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        assert (await house.resume(work, run_id)).output == "declined"

    asyncio.run(main())
    assert charges == [5]
    assert [(type(error), error.args) for error in seen] == [(Declined, ("no funds", 5))] * 2


@pytest.mark.parametrize("form", ["async", "sync"])
def test_s3_a_step_returns_when_its_checkpoint_is_committed_and_not_before(house: House, form: str) -> None:
    seen: list[list[str]] = []

    def look() -> None:
        seen.append([name for (name,) in house.steps("name")])

    @job(name="work")
    async def work(step: Step) -> None:
        for name in ("first", "second"):
            await step.run(name, list)
            look()

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        for name in ("first", "second"):
            step.run(name, list)
            look()

    async def main() -> None:
        one: Any = work if form == "async" else work_sync
        async with house.app(one) as app:
            await (await app.get_job("work").trigger()).result()  # type: ignore[union-attr]

    asyncio.run(main())
    assert seen == [["first"], ["first", "second"]]


def test_s3_the_key_of_a_step_is_the_same_in_every_execution(house: House, stuck: Stuck) -> None:
    keys: list[str] = []

    @job
    async def work(step: Step) -> None:
        keys.append(step.idempotency_key("charge"))
        await step.run("wait", stuck.hang)

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        await house.resume(work, run_id)
        assert keys == [f"{run_id}:charge"] * 2

    asyncio.run(main())


def test_s3_what_a_step_raises_is_the_same_live_and_on_replay(house: House, stuck: Stuck) -> None:
    seen: list[tuple[type, str, Any]] = []

    def odd() -> None:
        raise Odd(3)

    def final() -> None:
        raise NonRetryable("never", kind="Broken")

    async def look(step: Step, name: str, fn: Any) -> None:
        try:
            await step.run(name, fn)
        except Exception as error:
            seen.append((type(error), str(error), getattr(error, "kind", None)))

    @job
    async def work(step: Step) -> None:
        await look(step, "odd", odd)
        await look(step, "final", final)
        await look(step, "set", lambda: {object()})
        await step.run("wait", stuck.hang)

    async def main() -> None:
        await house.resume(work, await house.crash(work, stuck))

    asyncio.run(main())
    assert seen[:3] == seen[3:]
    assert [kind.__name__ for kind, *_ in seen[:3]] == ["StepFailed", "NonRetryable", "NotKept"]
    assert seen[0][0] is StepFailed
    assert seen[0][1].startswith("Odd: ('code 3'")
    assert seen[1] == (NonRetryable, "never", "Broken")


def test_s3_the_caller_gets_the_decoded_value_a_new_object_each_time(house: House, stuck: Stuck) -> None:
    kept = Point(1, 2)
    seen: list[Any] = []

    def give() -> Point:
        return kept

    @job
    async def work(step: Step) -> None:
        seen.append(await step.run("point", give))
        seen.append(await step.run("tuple", lambda: (1, {2, 3})))
        await step.run("wait", stuck.hang)

    async def main() -> None:
        await house.resume(work, await house.crash(work, stuck))

    asyncio.run(main())
    assert seen == [Point(1, 2), (1, {2, 3})] * 2
    assert len({id(kept), id(seen[0]), id(seen[2])}) == 3


def test_s3_a_value_that_can_not_be_kept_names_step_and_path_and_is_not_made_again(house: House, stuck: Stuck) -> None:
    calls: list[int] = []
    texts: list[str] = []

    def effect() -> Any:
        calls.append(1)
        return {"rows": [1, object()]}

    @job
    async def work(step: Step) -> None:
        try:
            await step.run("effect", effect)
        except Exception as error:
            texts.append(str(error))
        await step.run("wait", stuck.hang)

    async def main() -> None:
        await house.resume(work, await house.crash(work, stuck))

    asyncio.run(main())
    assert calls == [1]
    assert texts[0] == texts[1]
    assert texts[0].startswith("step 'effect': $.rows[1]: ")


def test_s3_other_arguments_are_told_once_and_the_saved_value_is_used(house: House, stuck: Stuck) -> None:
    day = [1]

    @job
    async def work(step: Step) -> list[int]:
        values = [await step.run(f"add-{i}", lambda a: a + 0, day[0]) for i in range(2)]
        await step.run("wait", stuck.hang)
        return values

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        day[0] = 2
        assert (await house.resume(work, run_id)).output == [1, 1]

    asyncio.run(main())
    told = [text for context, text in house.errors if context == "step-changed"]
    assert len(told) == 1
    assert told[0].startswith("Step 'add-0' of run ")
    assert "rename the step" in told[0]


def test_s3_strict_makes_other_arguments_fail_the_run_even_if_its_code_swallows_it(house: House, stuck: Stuck) -> None:
    day = [1]

    @job
    async def work(step: Step) -> int:
        try:
            value = await step.run("add", lambda a: a, day[0])
        except Exception:
            return -1
        await step.run("wait", stuck.hang)
        return int(value)

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        day[0] = 2
        run = await house.resume(work, run_id, strict=True)
        assert (run.status, run.error_type) == ("failed", "StepChanged")

    asyncio.run(main())


def test_s3_the_order_of_a_set_is_no_other_argument(house: House, stuck: Stuck) -> None:
    from holdfast.engine.calls import fingerprint

    assert fingerprint("f", ({"a", "b", "c"},), {}) == fingerprint("f", ({"c", "a", "b"},), {})
    assert fingerprint("f", ([1, 2],), {}) != fingerprint("f", ([2, 1],), {})
    assert fingerprint("f", (b"\xff",), {}) != fingerprint("f", (b"\xfe",), {})


def test_s3_a_step_value_that_todays_code_refuses_fails_the_run_and_not_the_worker(house: House, stuck: Stuck) -> None:
    def text() -> str:
        return "abc"

    def number() -> int:
        return 1

    today: list[Any] = [text]

    @job
    async def work(step: Step) -> Any:
        try:
            value = await step.run("value", today[0])
        except Exception:
            value = "swallowed"
        return await step.run("wait", stuck.hang, value)

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        today[0] = number
        async with house.app(work) as app:
            run = await app.wait_for_run(run_id)
            assert (run.status, run.error_type) == ("failed", "Outdated")
            assert run.error is not None
            assert "step 'value'" in run.error
            assert await app.jobs.work.run() == 1

    asyncio.run(main())


def test_s3_a_stored_input_that_todays_code_refuses_fails_the_run_and_not_the_worker(house: House) -> None:
    @job(name="work")
    async def before(step: Step, size: str) -> str:
        return size

    @job(name="work")
    async def after(step: Step, size: int) -> int:
        return size

    async def main() -> None:
        async with house.app(before, worker=False) as app:
            run_id = (await app.jobs.before.trigger("large")).id
        async with house.app(after) as app:
            run = await app.wait_for_run(run_id)
            assert (run.status, run.error_type) == ("failed", "Outdated")
            assert "size" in (run.error or "")
            assert await app.jobs.after.run(3) == 3

    asyncio.run(main())


def test_s3_an_unrelated_step_before_the_others_breaks_nothing(house: House, stuck: Stuck) -> None:
    calls: list[str] = []
    new = [False]

    def note(text: str) -> str:
        calls.append(text)
        return text

    @job
    async def work(step: Step) -> list[str]:
        begun = [await step.run("new", note, "new")] if new[0] else []
        return [*begun, await step.run("old", note, "old"), str(await step.run("wait", stuck.hang, "end"))]

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        new[0] = True
        assert (await house.resume(work, run_id)).output == ["new", "old", "end"]

    asyncio.run(main())
    assert calls == ["old", "new"]


def test_s3_saved_steps_may_be_asked_for_in_any_order(house: House, stuck: Stuck) -> None:
    calls: list[int] = []
    order = [list(range(2 * STEP_PAGE + 10))]

    def note(number: int) -> int:
        calls.append(number)
        return number

    @job
    async def work(step: Step) -> int:
        values = {number: await step.run(f"n{number}", note, number) for number in order[0]}
        assert all(number == value for number, value in values.items())
        await step.run("wait", stuck.hang)
        return len(values)

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        order[0].reverse()
        assert (await house.resume(work, run_id)).output == 2 * STEP_PAGE + 10

    asyncio.run(main())
    assert len(calls) == 2 * STEP_PAGE + 10


@pytest.mark.parametrize("form", ["async", "sync"])
def test_s3_a_run_of_a_thousand_steps_resumes_in_linear_time(
    house: House, stuck: Stuck, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def note(number: int) -> int:
        calls.append(number)
        return number

    @job(name="long")
    async def long(step: Step) -> int:
        total = 0
        for start in range(0, 1000, 50):
            total += sum(await asyncio.gather(*[step.run(f"n{start + i}", note, start + i) for i in range(50)]))
        await step.run("wait", stuck.hang)
        return total

    @job(name="long")
    def long_sync(step: SyncStep) -> int:
        total = sum(step.run("n", note, number) for number in range(1000))
        step.run("wait", stuck.hang_sync)
        return total

    work: Any = long if form == "async" else long_sync

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        async with house.app(work, worker=False) as app:
            pages: list[tuple[int, int | None]] = []
            store = app._engine.store
            find_steps = store.find_steps

            def counted(connection: Any, run_id: str, *, first: int = 0, until: int | None = None) -> Any:
                pages.append((first, until))
                return find_steps(connection, run_id, first=first, until=until)

            monkeypatch.setattr(store, "find_steps", counted)
            assert await app.process_one()
            run = await app.wait_for_run(run_id)
            assert run.output == 499_500
        assert pages == [(first, first + STEP_PAGE) for first in range(STEP_PAGE, 1000, STEP_PAGE)]

    asyncio.run(main())
    assert sorted(calls) == list(range(1000))


def test_s3_steps_beyond_the_first_page_are_found_though_the_first_ones_were_not_saved(
    house: House, stuck: Stuck
) -> None:
    """Where the first hundred steps were still running when later ones were saved, the first page is empty."""
    calls: list[int] = []

    def note(number: int) -> int:
        calls.append(number)
        return number

    @job
    async def work(step: Step) -> int:
        for number in range(3 * STEP_PAGE):
            await step.run(f"n{number}", note, number)
        await step.run("wait", stuck.hang)
        return 1

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        house.sql("delete from holdfast_steps where position < ?", 2 * STEP_PAGE)
        calls.clear()
        assert (await house.resume(work, run_id)).output == 1

    asyncio.run(main())
    assert calls == list(range(2 * STEP_PAGE))


def test_s3_a_closure_made_anew_keeps_its_own_annotation(house: House) -> None:
    def maker(kind: Any) -> Any:
        def make() -> Any:
            return kind(1, 2) if kind is Point else (1, 2)

        make.__annotations__["return"] = kind
        return make

    @job
    async def work(step: Step) -> list[str]:
        values = [await step.run("a", maker(Point)), await step.run("b", maker(tuple[int, int]))]
        return [type(value).__name__ for value in values]

    async def main() -> None:
        async with house.app(work) as app:
            assert await app.jobs.work.run() == ["Point", "tuple"]

    asyncio.run(main())
