"""`step.transaction`: rows of the user's and the checkpoint are there together, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

import databases
from databases import ON, StoreHere
from holdfast import (
    AbortSignal,
    Event,
    Holdfast,
    Retry,
    Run,
    Step,
    StepChanged,
    StoreUnavailable,
    SyncStep,
    WouldDeadlock,
    job,
)
from holdfast.basis.clock import SystemClock
from holdfast.store.base import Lease, SharedTransaction
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, Stuck, until

COLOURS = ["async", "sync"]


class Declined(Exception):
    """The bank says no."""


_table = ["charges"]


def put(connection: Any, who: str) -> None:
    """A row of the user's, written as the driver wants it."""
    sql = f"insert into {_table[0]} (who) values (?)"
    connection.cursor().execute(sql if ON == "sqlite" else sql.replace("?", "%s"), (who,))


def pay(connection: Any, who: str) -> int:
    put(connection, who)
    return 7


@pytest.fixture
def charges(house: House) -> Callable[[], list[str]]:
    """The rows of the user's that are committed."""
    house.sql("create table charges (who varchar(80))")
    _table[0] = databases.table(house.path, "charges")
    return lambda: sorted(who for (who,) in house.sql("select who from charges"))


def job_of(colour: str, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A job of one transaction, which gives what that came to."""

    @job(name="work")
    async def work(step: Step) -> str:
        try:
            return str(await step.options(**options).transaction("pay", fn, *args))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    @job(name="work")
    def work_sync(step: SyncStep) -> str:
        try:
            return str(step.options(**options).transaction("pay", fn, *args))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return work if colour == "async" else work_sync


async def run_of(app: Holdfast, timeout: float = PATIENCE) -> Run[Any]:
    handle = app.get_job("work")
    assert handle is not None
    return await (await handle.trigger()).wait(timeout=timeout)


def outcome(house: House, colour: str, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a job of one transaction gives, in an app of its own."""

    async def main() -> Any:
        async with house.app(job_of(colour, fn, *args, **options)) as app:
            run = await run_of(app)
            assert run.status == "completed", run.error
            return run.output

    return asyncio.run(main())


# -- together, or not at all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
def test_the_rows_and_the_step_are_there_together(house: House, charges: Callable[[], list[str]], colour: str) -> None:
    assert outcome(house, colour, pay, "ada") == "7"
    assert charges() == ["ada"]
    assert house.steps() == [("pay", 0, "completed")]


@pytest.mark.parametrize("colour", COLOURS)
def test_what_the_function_raises_undoes_its_rows_and_is_the_failure_of_the_step(
    house: House, charges: Callable[[], list[str]], colour: str
) -> None:
    def decline(connection: Any) -> None:
        put(connection, "ada")
        raise Declined("no money")

    assert outcome(house, colour, decline) == "Declined: no money"
    assert charges() == []
    assert house.steps() == [("pay", 0, "failed")]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_retry_leaves_the_rows_of_the_try_that_succeeded(
    house: House, charges: Callable[[], list[str]], colour: str
) -> None:
    calls: list[int] = []

    def wobble(connection: Any) -> int:
        calls.append(1)
        put(connection, f"try {len(calls)}")
        if len(calls) < 3:
            raise Declined("not yet")
        return len(calls)

    assert outcome(house, colour, wobble, retry=Retry(2)) == "3"
    assert charges() == ["try 3"]
    tries = house.sql("select number, case when error is null then 'well' else 'failed' end, ended_at is not null "
                      "from holdfast_step_attempts order by number")  # fmt: skip
    assert [(number, how, bool(ended)) for number, how, ended in tries] == [
        (0, "failed", True), (1, "failed", True), (2, "well", True)]  # fmt: skip


def test_a_value_that_can_not_be_kept_undoes_the_rows(house: House, charges: Callable[[], list[str]]) -> None:
    def strange(connection: Any) -> Any:
        put(connection, "ada")
        return object()

    assert "NotKept" in outcome(house, "async", strange)
    assert charges() == []


def test_a_replay_gives_the_saved_value_and_calls_nothing(
    house: House, stuck: Stuck, charges: Callable[[], list[str]]
) -> None:
    @job
    async def work(step: Step) -> list[int]:
        return [await step.transaction("pay", pay, "ada"), await step.run("then", stuck.hang, 5)]

    async def main() -> None:
        run = await house.resume(work, await house.crash(work, stuck))
        assert run.output == [7, 5]
        assert (charges(), run.crashes) == (["ada"], 0)

    asyncio.run(main())


def test_a_saved_failure_is_raised_again_within_its_attempt(
    house: House, stuck: Stuck, charges: Callable[[], list[str]]
) -> None:
    calls: list[str] = []

    def decline(connection: Any) -> None:
        calls.append("called")
        put(connection, "ada")
        raise Declined("no money")

    @job
    async def work(step: Step) -> str:
        try:
            await step.transaction("pay", decline)
        except Declined as error:
            await step.run("then", stuck.hang)
            return str(error)
        return "paid"

    async def main() -> None:
        run = await house.resume(work, await house.crash(work, stuck))
        assert run.output == "no money"
        assert (calls, charges()) == (["called"], [])

    asyncio.run(main())


def test_the_checkpoint_sets_the_crashes_back(house: House, charges: Callable[[], list[str]]) -> None:
    crashes: list[Any] = []

    def look() -> None:
        crashes.append(house.sql("select crashes from holdfast_runs")[0][0])

    @job
    async def work(step: Step) -> None:
        look()
        await step.transaction("pay", pay, "ada")
        look()

    async def main() -> None:
        async with house.app(work, worker=False) as app:
            await app.get_job("work").trigger()  # type: ignore[union-attr]
            house.sql("update holdfast_runs set crashes = 3")
            await app.process_one()

    asyncio.run(main())
    assert crashes == [3, 0]


def test_many_transactions_at_once_are_all_there(house: House, charges: Callable[[], list[str]]) -> None:
    @job
    async def work(step: Step, who: str) -> int:
        values = await asyncio.gather(*(step.transaction(f"pay-{n}", pay, f"{who}-{n}") for n in range(5)))
        return sum(values)

    async def main() -> None:
        async with house.app(work) as app:
            runs = await app.trigger_many([work.bind(who) for who in ("ada", "eve", "bob")])
            assert [await run.result(timeout=PATIENCE) for run in runs] == [35] * 3
        assert charges() == sorted(f"{who}-{n}" for who in ("ada", "eve", "bob") for n in range(5))
        assert house.errors == []

    asyncio.run(main())


# -- a step like any other -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
def test_its_events_are_those_of_a_step(house: House, charges: Callable[[], list[str]], colour: str) -> None:
    told: list[tuple[str, Any]] = []

    def hear(event: Event) -> None:
        told.append((event.type, event.data.get("output")))

    async def main() -> None:
        async with house.app(job_of(colour, pay, "ada")) as app:
            for kind in ("step:start", "step:complete", "step:fail"):
                app.on(kind, hear)
            run = await run_of(app)
            await until(lambda: len(told) == 2)
            assert (run.completed_step_count, run.current_step_index) == (1, 1)

    asyncio.run(main())
    assert told == [("step:start", None), ("step:complete", 7)]


def test_the_same_name_again_is_another_occurrence(house: House, charges: Callable[[], list[str]]) -> None:
    @job
    async def work(step: Step) -> list[int]:
        return [await step.transaction("pay", pay, who) for who in ("ada", "eve")] + [await step.run("pay", len, "abc")]

    async def main() -> None:
        async with house.app(work) as app:
            assert (await run_of(app)).output == [7, 7, 3]

    asyncio.run(main())
    assert charges() == ["ada", "eve"]
    assert house.steps("name, occurrence") == [("pay", 0), ("pay", 1), ("pay", 2)]


def test_other_arguments_under_a_saved_name_are_noticed(
    house: House, stuck: Stuck, charges: Callable[[], list[str]]
) -> None:
    who = ["ada"]

    @job
    async def work(step: Step) -> int:
        value = await step.transaction("pay", pay, who[0])
        await step.run("then", stuck.hang)
        return value

    async def main() -> None:
        run_id = await house.crash(work, stuck)
        who[0] = "eve"
        run = await house.resume(work, run_id, strict=True)
        assert (run.status, run.error_type) == ("failed", StepChanged.__name__)
        assert charges() == ["ada"]

    asyncio.run(main())


@pytest.mark.parametrize("colour", COLOURS)
def test_its_lines_are_committed_with_it_though_the_line_stands_still(
    house: House, charges: Callable[[], list[str]], colour: str
) -> None:
    steps: list[Any] = []
    gate = threading.Event()
    seen: list[Any] = []

    def chatty(connection: Any) -> None:
        steps[0].progress(1, 2)
        steps[0].log.info("within", n=1)
        put(connection, "ada")
        steps[0].log.info("within", n=2)

    def after(step: Any) -> None:
        seen.extend(house.sql("select step_name, data from holdfast_logs order by id"))
        gate.set()

    @job(name="work")
    async def work(step: Step) -> None:
        steps.append(step)
        step._execution.engine.committer.gate = gate
        await step.transaction("pay", chatty)
        after(step)

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        steps.append(step)
        step._execution.engine.committer.gate = gate
        step.transaction("pay", chatty)
        after(step)

    async def main() -> None:
        async with house.app(work if colour == "async" else work_sync) as app:
            assert (await run_of(app)).status == "completed"

    asyncio.run(main())
    assert seen == [("pay", '{"n":1}'), ("pay", '{"n":2}')]
    assert len(house.sql("select * from holdfast_logs")) == 2
    assert charges() == ["ada"]


def test_lines_from_before_it_are_saved_when_it_is(house: House, charges: Callable[[], list[str]]) -> None:
    seen: list[Any] = []

    @job
    async def work(step: Step) -> None:
        for n in range(3):
            step.log.info(f"line {n}")
        await step.transaction("pay", pay, "ada")
        seen.extend(house.sql("select message from holdfast_logs order by id"))

    async def main() -> None:
        async with house.app(work) as app:
            await run_of(app)

    asyncio.run(main())
    assert seen == [("line 0",), ("line 1",), ("line 2",)]


@pytest.mark.parametrize("colour", COLOURS)
def test_the_lines_of_a_failure_are_kept_though_its_rows_are_not(
    house: House, charges: Callable[[], list[str]], colour: str
) -> None:
    def decline(connection: Any) -> None:
        handle: Any = current_step_object[0]
        handle.log.warning("no money")
        put(connection, "ada")
        raise Declined("no")

    current_step_object: list[Any] = []

    @job(name="work")
    async def work(step: Step) -> None:
        current_step_object.append(step)
        with contextlib.suppress(Declined):
            await step.transaction("pay", decline)

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        current_step_object.append(step)
        with contextlib.suppress(Declined):
            step.transaction("pay", decline)

    async def main() -> None:
        async with house.app(work if colour == "async" else work_sync) as app:
            await run_of(app)

    asyncio.run(main())
    assert house.sql("select message, step_name from holdfast_logs") == [("no money", "pay")]
    assert charges() == []


# -- what is refused -----------------------------------------------------------------------------------------------


async def awaited(connection: Any) -> int:
    return 1


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    "fn", [awaited, lambda connection: awaited(connection)], ids=["async def", "gives a coroutine"]
)
def test_a_function_that_would_have_to_be_awaited_is_refused(
    house: House, charges: Callable[[], list[str]], fn: Any, colour: str
) -> None:
    assert "DefinitionError" in (said := outcome(house, colour, fn))
    assert "is no plain function" in said


@pytest.mark.parametrize("colour", COLOURS)
def test_a_step_inside_of_it_is_refused(house: House, charges: Callable[[], list[str]], colour: str) -> None:
    refused: list[str] = []
    steps: list[Any] = []

    def nested(connection: Any) -> None:
        put(connection, "ada")
        for verb in (steps[0].run, steps[0].transaction):
            with pytest.raises(WouldDeadlock) as caught:
                verb("inner", len, "abc")
            refused.append(str(caught.value))

    @job(name="work")
    async def work(step: Step) -> None:
        steps.append(step)
        await step.transaction("outer", nested)

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        steps.append(step)
        step.transaction("outer", nested)

    async def main() -> None:
        async with house.app(work if colour == "async" else work_sync) as app:
            assert (await run_of(app)).status == "completed"

    asyncio.run(main())
    assert len(refused) == 2
    assert all("step.transaction('outer')" in one for one in refused)
    assert charges() == ["ada"]
    assert house.steps() == [("outer", 0, "completed")]


def test_waiting_inside_of_it_is_refused_and_a_trigger_without_waiting_is_written_after_it(
    house: House, charges: Callable[[], list[str]]
) -> None:
    @job
    def other(n: int) -> int:
        return n

    apps: list[Holdfast] = []

    def impatient(connection: Any) -> None:
        put(connection, "ada")
        reply = apps[0].trigger(other.bind(1))
        with pytest.raises(WouldDeadlock, match=r"the function of step\.transaction"):
            reply.wait()
        with pytest.raises(WouldDeadlock):
            apps[0].trigger(other.bind(2)).wait()

    async def main() -> None:
        async with house.app(job_of("async", impatient), other) as app:
            apps.append(app)
            assert (await run_of(app)).output == "None"
            await until(lambda: len(house.sql("select id from holdfast_runs where job_name = 'other'")) == 2)

    asyncio.run(main())
    assert charges() == ["ada"]


# -- leases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
def test_s2_without_the_lease_nothing_is_called(house: House, charges: Callable[[], list[str]], colour: str) -> None:
    calls: list[str] = []

    def late(connection: Any) -> None:
        calls.append("called")

    @job(name="work")
    async def work(step: Step) -> None:
        if step._execution.row.generation == 1:
            house.take_away(for_seconds=1000)
        await step.transaction("pay", late)

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        if step._execution.row.generation == 1:
            house.take_away(for_seconds=1000)
        step.transaction("pay", late)

    async def main() -> None:
        async with house.app(work if colour == "async" else work_sync, worker=False) as app:
            await app.get_job("work").trigger()  # type: ignore[union-attr]
            await app.process_one()

    asyncio.run(main())
    assert calls == []
    assert house.steps() == []


class Spoiled(StoreHere):  # type: ignore[misc, valid-type]
    """A store that can be told how its commits of a step end, and what it overlooks."""

    def __init__(self, url: str) -> None:
        super().__init__(url, clock=SystemClock())
        self.commits: list[str] = []
        """What becomes of the next ones: unanswered, undone, odd."""
        self.opens = 0
        """So many connections are refused after a commit without an answer."""
        self.overlooks = False
        self.looked = 0
        self.is_blind = False
        """Whoever looks for the step does not find it."""
        self._trouble = 0

    def lost_leases(self, connection: Any, leases: Any) -> dict[Lease, str]:
        return {} if self.overlooks else super().lost_leases(connection, leases)

    def share(self) -> SharedTransaction:
        shared = super().share()
        before = shared.commit

        def commit() -> None:
            how = self.commits.pop(0) if self.commits else ""
            if how in ("", "unanswered"):
                before()
            if how:
                self._trouble = self.opens
                raise (
                    databases.driver.OperationalError("no answer")
                    if how != "odd"
                    else ValueError("a row is in the way")
                )

        shared.commit = commit  # type: ignore[method-assign]
        return shared

    def open(self, *, read_only: bool = False) -> Any:
        if self._trouble:
            self._trouble -= 1
            raise StoreUnavailable("the disk is on fire")
        return super().open(read_only=read_only)

    def marked_steps(self, connection: Any, marks: Any) -> Any:
        self.looked += 1
        return [] if self.is_blind else super().marked_steps(connection, marks)

    def translate(self, error: BaseException) -> BaseException:
        if isinstance(error, databases.driver.OperationalError) and "no answer" in str(error):
            return StoreUnavailable(str(error))
        return super().translate(error)


@pytest.mark.parametrize("colour", COLOURS)
def test_s2_a_checkpoint_that_is_refused_undoes_the_rows(
    house: House, charges: Callable[[], list[str]], colour: str
) -> None:
    """The fence of the checkpoint alone, with the look at the lease before it left out."""
    store = Spoiled(house.url)
    store.overlooks = True
    calls: list[str] = []

    def late(connection: Any) -> None:
        calls.append("called")
        put(connection, "ada")

    @job(name="work")
    async def work(step: Step) -> None:
        house.take_away(for_seconds=1000)
        await step.transaction("pay", late)

    @job(name="work")
    def work_sync(step: SyncStep) -> None:
        house.take_away(for_seconds=1000)
        step.transaction("pay", late)

    async def main() -> None:
        async with house.app(work if colour == "async" else work_sync, store=store, worker=False) as app:
            await app.get_job("work").trigger()  # type: ignore[union-attr]
            await app.process_one()

    asyncio.run(main())
    assert calls == ["called"]
    assert charges() == []
    assert house.steps() == []


# -- a commit without an answer ------------------------------------------------------------------------------------


def spoiled(house: House, colour: str, store: Spoiled, fn: Callable[..., Any]) -> Any:
    async def main() -> Any:
        async with house.app(job_of(colour, fn), store=store) as app:
            return (await run_of(app, timeout=10)).output

    return asyncio.run(main())


@pytest.mark.parametrize("colour", COLOURS)
def test_s1_a_commit_that_happened_without_an_answer_is_found_and_counts(
    house: House, charges: Callable[[], list[str]], colour: str
) -> None:
    store, calls = Spoiled(house.url), []
    store.commits, store.opens = ["unanswered"], 2

    def count(connection: Any) -> int:
        calls.append(1)
        return pay(connection, "ada")

    assert spoiled(house, colour, store, count) == "7"
    assert (len(calls), charges(), store.looked) == (1, ["ada"], 1)
    assert len(house.errors) == 2, "it says that it can't look"


@pytest.mark.parametrize("colour", COLOURS)
def test_s1_a_commit_that_did_not_happen_is_made_again_with_another_call(
    house: House, charges: Callable[[], list[str]], colour: str
) -> None:
    store, calls = Spoiled(house.url), []
    store.commits = ["undone", "undone"]

    def count(connection: Any) -> int:
        calls.append(1)
        return pay(connection, f"call {len(calls)}")

    assert spoiled(house, colour, store, count) == "7"
    assert (len(calls), charges(), store.looked) == (3, ["call 3"], 2)


def test_s1_a_commit_that_is_only_seen_later_keeps_another_call_from_counting(
    house: House, charges: Callable[[], list[str]]
) -> None:
    """As that of a server which was asked to commit, lost its client, and was slow."""
    store, calls = Spoiled(house.url), []
    store.commits, store.is_blind = ["unanswered"], True

    def count(connection: Any) -> int:
        calls.append(1)
        return pay(connection, f"call {len(calls)}")

    async def main() -> None:
        async with house.app(job_of("async", count), store=store, worker=False) as app:
            run = await app.get_job("work").trigger()  # type: ignore[union-attr]
            await app.process_one()
        assert (len(calls), charges()) == (2, ["call 1"])
        house.take_away()
        assert (await house.resume(job_of("async", count), run.id)).output == "7"
        assert (len(calls), charges()) == (2, ["call 1"])

    asyncio.run(main())


def test_s1_a_commit_that_the_database_refuses_is_a_failure_of_the_step(
    house: House, charges: Callable[[], list[str]]
) -> None:
    store = Spoiled(house.url)
    store.commits = ["odd"]
    assert (
        spoiled(house, "async", store, lambda connection: pay(connection, "ada")) == "ValueError: a row is in the way"
    )
    assert charges() == []


# -- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
def test_s4_a_time_limit_undoes_the_rows(
    house: House, clock: HandClock, charges: Callable[[], list[str]], colour: str
) -> None:
    begun, reasons = threading.Event(), []

    def slow(connection: Any, signal: AbortSignal | None = None) -> int:
        put(connection, "ada")
        begun.set()
        assert signal is not None
        assert signal.wait(PATIENCE)
        reasons.append(signal.reason)
        return 1

    async def main() -> None:
        async with house.app(job_of(colour, slow, timeout="2s"), clock=clock) as app:
            run = await app.get_job("work").trigger()  # type: ignore[union-attr]
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            clock.advance(2.1)
            assert (await run.wait(timeout=PATIENCE)).output == (
                "TimeoutError: step 'pay' took longer than 2 s; what it wrote was undone"
            )

    asyncio.run(main())
    assert reasons == ["timeout"]
    assert charges() == []


@pytest.mark.parametrize("colour", COLOURS)
def test_s4_a_function_that_does_not_come_back_is_left_and_its_rows_are_gone(
    house: House, clock: HandClock, charges: Callable[[], list[str]], colour: str
) -> None:
    begun, told, may_go = threading.Event(), threading.Event(), threading.Event()

    def deaf(connection: Any, signal: AbortSignal | None = None) -> int:
        assert signal is not None
        signal.on_abort(lambda _: told.set())
        put(connection, "ada")
        begun.set()
        assert may_go.wait(PATIENCE)
        return 1

    async def main() -> None:
        app = house.app(job_of(colour, deaf, timeout="2s", retry=Retry(5)), clock=clock, cancel_grace=1.0)
        async with app:
            run = await app.get_job("work").trigger()  # type: ignore[union-attr]
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            clock.advance(2.1)
            assert await asyncio.to_thread(told.wait, PATIENCE)
            clock.advance(1.1)
            done = await run.wait(timeout=PATIENCE)
            assert done.output.startswith("TimeoutError"), "and no other try: two bodies at once would be worse"
            assert app._engine.worker is not None
            assert app._engine.worker._abandoned == 1
            may_go.set()
            await until(lambda: app._engine.worker is not None and app._engine.worker._abandoned == 0)
        assert [context for context, _ in house.errors] == ["abandoned"]

    try:
        asyncio.run(main())
    finally:
        may_go.set()
    assert charges() == []


def test_whoever_stops_waiting_undoes_what_is_under_way(house: House, charges: Callable[[], list[str]]) -> None:
    begun, may_go = threading.Event(), threading.Event()

    def slow(connection: Any) -> int:
        put(connection, "ada")
        begun.set()
        assert may_go.wait(PATIENCE)
        return 1

    @job
    async def work(step: Step) -> str:
        task = asyncio.ensure_future(step.transaction("pay", slow))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        # The right to write is free, though the function has not returned.
        return str(await step.run("then", len, "abc"))

    async def main() -> None:
        async with house.app(work) as app:
            run = await run_of(app)
            may_go.set()
            assert run.output == "3"

    asyncio.run(main())
    assert charges() == []
    assert house.steps("name") == [("then",)]


# -- where ---------------------------------------------------------------------------------------------------------


def test_a_store_without_such_transactions_says_so(house: House) -> None:
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
    from dict_store import DictStore

    async def main() -> None:
        async with house.app(job_of("async", pay, "ada"), store=DictStore(SystemClock())) as app:
            assert (await run_of(app)).output == (
                "ValidationError: step.transaction: dict has no transaction that a function could write into."
            )

    asyncio.run(main())
