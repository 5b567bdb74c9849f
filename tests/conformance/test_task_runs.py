"""The second ancestor, 11.1, 11.2, 11.8, 11.9, 11.12: single runs, their limits and delays, and several workers."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from conformance_jobs import LONG, Gate, Heard
from conformance_tree import double, ended, family, told

from holdfast import (
    CancelRun,
    Children,
    ConflictError,
    Holdfast,
    NotFoundError,
    Retry,
    Step,
    TimedOut,
    ValidationError,
    job,
)
from holdfast.testing import app_for_tests, drain
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, until

# -- 11.1 ------------------------------------------------------------------------------------------------------------


def test_a_job_that_only_another_app_knows_is_not_triggered_here(house: House) -> None:
    with house.app(double) as known, house.app(worker=False) as here:
        with pytest.raises(NotFoundError, match="double"):
            here.trigger(known.jobs.double.bind(1))
        assert here.get_runs().wait(LONG) == []


def test_a_parent_whose_job_nobody_here_knows_waits_for_somebody_who_does(house: House) -> None:
    """There it fails; here the deployment that forgot a job costs time only."""
    whole = house.app(double, family)
    whole.migrate().wait(LONG)
    run = whole.jobs.family.trigger([1, 2]).wait(LONG)
    assert whole.process_one().wait(LONG)
    whole.stop().wait(LONG)
    # Its children are executed by who does not know the parent.
    half = house.app(double)
    assert half.process_until_idle().wait(LONG) == 2
    there = half.get_run(run.id).wait(LONG)
    assert there is not None
    assert str(there.status) == "pending"
    half.stop().wait(LONG)
    with house.app(double, family) as app:
        output: Any = app.wait_for_run(run.id, timeout=PATIENCE).wait(LONG).output
    assert [child.unwrap() for child in output.results] == [2, 4]


def test_a_single_child_can_not_be_taken_away_from_its_parent() -> None:
    with app_for_tests(double, family) as app:
        run = ended(app, app.jobs.family.trigger([1]).wait())
        (child,) = app.get_runs(job="double").wait()
        with pytest.raises(ConflictError):
            child.delete().wait()
        run.delete().wait()
        assert app.get_runs().wait() == []


# -- 11.2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "status"), [({}, "timed_out"), ({"timeout": 60}, "completed")])
def test_the_timeout_of_a_trigger_goes_before_that_of_the_job(options: dict[str, Any], status: str) -> None:
    clock = HandClock()

    @job(timeout=0.5)
    async def slow() -> None:
        clock.advance(1)
        await asyncio.Event().wait() if status == "timed_out" else None

    with app_for_tests(slow, clock=clock) as app:
        assert str(ended(app, app.jobs.slow.options(**options).trigger().wait()).status) == status


def test_three_cancels_at_once_are_one(house: House) -> None:
    gate = Gate()

    @job
    def held() -> Any:
        return gate()

    with house.app(held) as app:
        heard = Heard(app, "run:cancel")
        for started in (True, False):
            run = app.jobs.held.options(delay=0 if started else 60).trigger().wait(LONG)
            if started:
                gate.wait()
            replies = [run.cancel() for _ in range(3)]
            answers: list[str] = []
            for reply in replies:
                try:
                    answers.append(str(reply.wait(LONG).status))
                except ConflictError:
                    answers.append("conflict")
            assert sorted(answers) == ["cancelled", "conflict", "conflict"]
            assert str(run.refresh().wait(LONG).status) == "cancelled"
        gate.open()
    assert heard.types == ["run:cancel"] * 2


def test_right_after_a_cancel_the_function_may_still_be_executing_and_is_gone_later(house: House) -> None:
    gate = Gate()

    @job
    def held() -> Any:
        return gate()

    async def main() -> None:
        async with house.app(held) as app:
            run = await app.jobs.held.trigger()
            await asyncio.to_thread(gate.wait)
            assert str((await run.cancel()).status) == "cancelled"
            assert app.stats().running == (run.id,)
            gate.open()
            await until(lambda: app.stats().running == ())
            assert str((await run.refresh()).status) == "cancelled"

    asyncio.run(main())


def test_a_delay_goes_before_the_first_attempt_only() -> None:
    clock = HandClock()
    times: list[int] = []

    @job(delay=0.25, retry=Retry(max_retries=1))
    async def work(step: Step) -> None:
        times.append(clock.now())
        if step.attempt == 0:
            raise OSError("again")

    with app_for_tests(work, clock=clock) as app:
        run = app.jobs.work.trigger().wait()
        created = clock.now()
        assert str(ended(app, run).status) == "completed"
    assert [time - created for time in times] == [250_000, 250_000]


@pytest.mark.parametrize("given", [{"delay": 0}, {"run_at": datetime(2001, 1, 1, tzinfo=UTC)}], ids=["none", "moment"])
def test_no_delay_at_a_trigger_goes_before_that_of_the_job(given: dict[str, Any]) -> None:
    @job(delay="1h")
    async def work() -> None: ...

    with app_for_tests(work) as app:
        run = app.jobs.work.options(**given).trigger().wait()
        drain(app).wait()
        assert run.refresh().wait().is_terminal


def test_a_retry_must_say_how_often() -> None:
    with pytest.raises(TypeError, match="max_retries"):
        Retry()  # type: ignore[call-arg]


def test_a_job_that_is_told_to_stop_may_cancel_its_run(house: House) -> None:
    @job
    async def polite(step: Step) -> None:
        began.set()
        await step.shutdown
        raise CancelRun("we are closing")

    async def main() -> None:
        app = house.app(polite)
        await app.init()
        await app.jobs.polite.trigger()
        await began.wait()
        await app.stop()

    began = asyncio.Event()
    asyncio.run(main())
    assert house.sql("select status, error from holdfast_runs") == [("cancelled", "we are closing")]


# -- 11.8 ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_not_there_is_told_by_its_id(house: House) -> None:
    with house.app(double, worker=False) as app:
        for verb in (app.wait_for_run, app.cancel, app.retrigger, app.delete_run):
            with pytest.raises(NotFoundError, match="Run not found: nobody"):
                verb("nobody").wait(LONG)
        assert app.get_run("nobody").wait(LONG) is None


def test_the_handle_of_an_id_shows_the_run_as_it_is(house: House) -> None:
    gate = Gate()

    @job
    def held() -> Any:
        return gate()

    with house.app(held) as app:
        run = app.jobs.held.trigger().wait(LONG)
        gate.wait()
        there = app.get_run(run.id).wait(LONG)
        assert there is not None
        assert (str(there.status), there.job_name, there.attempt) == ("leased", "held", 0)
        gate.open()
        there.result(timeout=PATIENCE).wait(LONG)


# -- 11.9 ------------------------------------------------------------------------------------------------------------

BAD_TIMES = {"text": "soon", "negative": -1, "bool": True, "list": [1]}
BAD_RETRIES = {"text": "3", "number": 3, "dict": {"max_retries": 3}}


def where(what: str, options: dict[str, Any]) -> Any:
    """Give the options to a job, or to a trigger."""

    def work() -> None: ...

    return job(**options)(work) if what == "job" else job(work).options(**options)


@pytest.mark.parametrize("what", ["job", "trigger"])
@pytest.mark.parametrize("option", ["timeout", "deadline", "delay"])
@pytest.mark.parametrize("bad", sorted(BAD_TIMES))
def test_a_bad_time_is_refused_by_name_where_it_is_written(what: str, option: str, bad: str) -> None:
    with pytest.raises(ValidationError, match=option):
        where(what, {option: BAD_TIMES[bad]})


@pytest.mark.parametrize("what", ["job", "trigger"])
@pytest.mark.parametrize("option", ["timeout", "deadline"])
def test_a_limit_of_nothing_is_refused(what: str, option: str) -> None:
    with pytest.raises(ValidationError, match=f"{option}.*longer than 0"):
        where(what, {option: 0})


@pytest.mark.parametrize("what", ["job", "trigger"])
@pytest.mark.parametrize("bad", sorted(BAD_RETRIES))
def test_what_is_no_retry_is_refused_where_it_is_written(what: str, bad: str) -> None:
    with pytest.raises(ValidationError, match="retry"):
        where(what, {"retry": BAD_RETRIES[bad]})


@pytest.mark.parametrize("retries", ["1", -1, 10_000, True, 1.0], ids=["text", "negative", "many", "bool", "float"])
def test_a_number_of_retries_that_is_none_is_refused(retries: Any) -> None:
    with pytest.raises(ValidationError, match="max_retries"):
        Retry(retries)


@pytest.mark.parametrize("what", ["job", "trigger"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timeout": 1},
        {"retry": Retry(0)},
        {"retry": Retry(1000, delay="1h", factor=10, max_delay="1d", jitter=1), "timeout": "1h"},
        {"delay": 0, "timeout": "500ms", "deadline": "30d"},
    ],
    ids=["none", "timeout", "no retries", "most retries", "times"],
)
def test_right_options_are_taken(what: str, options: dict[str, Any]) -> None:
    assert where(what, options).name == "work"


def test_ids_are_never_the_same() -> None:
    with app_for_tests(double) as app:
        runs = app.trigger_many([app.jobs.double.bind(n) for n in range(200)]).wait()
    ids = [run.id for run in runs]
    assert len({*ids}) == 200
    assert sorted(ids) == ids
    assert all(re.fullmatch(r"[0-9a-z]{26}", one, re.IGNORECASE) for one in ids)


@pytest.mark.parametrize(
    ("given", "attempts", "ending"),
    [
        ({}, 1, ("timed_out", "TimedOut", "late")),
        ({"retry": Retry(3)}, 3, ("timed_out", "TimedOut", "late")),
        ({"retry": Retry(0), "timeout": "1h"}, 0, ("timed_out", "TimedOut", "late")),
    ],
    ids=["none", "one", "all"],
)
def test_options_of_a_trigger_replace_those_of_the_job_each_as_a_whole(
    given: dict[str, Any], attempts: int, ending: tuple[str, str, str]
) -> None:
    @job(retry=Retry(1, delay=10), timeout="1m")
    async def work() -> None:
        raise TimedOut("late")

    with app_for_tests(work) as app:
        run = ended(app, app.jobs.work.options(**given).trigger().wait())
        assert (run.attempt, told(run)) == (attempts, ending)


# -- 11.12 -----------------------------------------------------------------------------------------------------------


def test_what_runs_can_be_counted_as_it_ends_one_by_one(house: House) -> None:
    gates = [Gate(n) for n in range(3)]

    @job
    def held(n: int) -> Any:
        return gates[n]()

    async def main() -> None:
        async with house.app(held) as app:
            runs = [await app.jobs.held.trigger(n) for n in range(3)]
            for gate in gates:
                await asyncio.to_thread(gate.wait)
            for n, run in enumerate(runs):
                assert len(app.stats().running) == 3 - n
                gates[n].open()
                await run.wait(timeout=PATIENCE)
                await until(lambda left=2 - n: len(app.stats().running) == left)  # type: ignore[misc]

    asyncio.run(main())


def test_a_thousand_runs_below_one_over_two_workers_come_in_their_order(house: House) -> None:
    @job
    async def below(n: int) -> int:
        return n

    @job
    async def above(count: int) -> Children[None]:
        return Children(None, [below.bind(n) for n in range(count)])

    @above.finalize
    async def total(output: None, children: list[Any]) -> list[int]:
        return [child.unwrap() for child in children]

    async def main() -> None:
        async with house.app(total, below, concurrency=50) as one, house.app(total, below, concurrency=50):
            output = await one.jobs.above.run(1000)
            assert output == list(range(1000))
        assert house.sql("select count(*), count(distinct id) from holdfast_runs where job_name = 'below'") == [
            (1000, 1000)
        ]

    asyncio.run(main())


def test_jobs_of_all_kinds_triggered_from_two_apps_all_end(house: House) -> None:
    async def main() -> None:
        async with house.app(double, family) as one, house.app(double, family) as two:
            apps: list[Holdfast] = [one, two]
            for app in apps:
                app.sequence("chain", app.jobs.double, app.jobs.double)
            runs = [await app.jobs.chain.trigger(n) for n in range(5) for app in apps]
            parents = [await app.jobs.family.trigger([n, n + 1]) for n in range(5) for app in apps]
            assert [await run.result(timeout=PATIENCE) for run in runs] == [4 * n for n in range(5) for _ in apps]
            for at, run in enumerate(parents):
                output: Any = await run.result(timeout=PATIENCE)
                assert [child.unwrap() for child in output.results] == [at // 2 * 2, at // 2 * 2 + 2]

    asyncio.run(main())


def test_drain_leaves_nothing_behind() -> None:
    """What all tests of this kind rely on: time that is turned by hand brings every run to its end."""
    with app_for_tests(double, family) as app:
        app.jobs.family.options(delay="1d").trigger([1, -1]).wait()
        assert drain(app).wait() == 0
        assert drain(app, until="2d").wait() == 4
        assert {run.is_terminal for run in app.get_runs().wait()} == {True}
