"""The second ancestor, 11.3 to 11.6 and 11.15: sequences, loops, sleeping jobs and parents, to the letter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from conformance_jobs import FORMS, LONG
from conformance_tree import double, ended, family, told

from holdfast import (
    Children,
    ChildResult,
    DefinitionError,
    Done,
    Holdfast,
    LoopResult,
    NonRetryable,
    NotFoundError,
    Retry,
    Step,
    ValidationError,
    job,
)
from holdfast.testing import app_for_tests, drain
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, until


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def app(clock: HandClock) -> Iterator[Holdfast]:
    with app_for_tests(double, family, clock=clock) as app:
        yield app


# -- 11.3 sequences --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "output"), [("3 1 2", True), ("", False)])
def test_a_sequence_whose_types_change(app: Holdfast, text: str, output: bool) -> None:
    calls: list[str] = []

    @app.job
    async def parse(text: str) -> list[int]:
        calls.append("parse")
        return [int(part) for part in text.split()]

    @app.job
    async def count(numbers: list[int]) -> int:
        calls.append("count")
        return len(numbers)

    @app.job
    async def judge(n: int) -> bool:
        calls.append("judge")
        return n > 0

    run = ended(app, app.sequence("judged", parse, count, judge).trigger(text).wait())
    assert (run.output, calls) == (output, ["parse", "count", "judge"])


def test_the_input_of_a_sequence_is_that_of_its_first_job_defaults_and_validation_included(app: Holdfast) -> None:
    def rounded(n: int, times: int) -> dict[str, int]:
        if times > 10:
            raise ValueError("too often")
        return {"n": n // 10 * 10}

    @app.job(validate=rounded)
    async def multiply(n: int, times: int = 3) -> int:
        return n * times

    chain = app.sequence("chain", multiply, app.jobs.double)
    run = ended(app, chain.trigger(29).wait())
    assert (run.output, run.input) == (120, {"n": 20, "times": 3})
    with pytest.raises(ValidationError, match="n"):
        chain.trigger("two")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="too often"):
        chain.trigger(1, times=11)


def test_the_validation_of_a_later_job_is_asked_once_and_ends_the_sequence(app: Holdfast) -> None:
    asked: list[int] = []

    def small(n: int) -> int:
        asked.append(n)
        if n > 100 or asked.count(n) > 1:
            raise ValueError("too large")
        return n + 1

    @app.job(validate=small)
    async def take(n: int) -> int:
        return n

    chain = app.sequence("chain", app.jobs.double, take, app.jobs.double)
    assert ended(app, chain.trigger(1).wait()).output == 6
    assert told(ended(app, chain.trigger(51).wait())) == (
        "finalize_failed", "ValidationError",
        "Sequence 'chain' failed in run 2 (take): Invalid input to job 'take': too large",
    )  # fmt: skip
    assert (asked, len(app.get_runs(job="take").wait())) == ([2, 102], 1)


def test_the_validation_of_an_iteration_is_asked_at_the_trigger_of_its_loop(app: Holdfast) -> None:
    def positive(n: int) -> None:
        if n < 1:
            raise ValueError("nothing to look for")

    @app.job(validate=positive)
    async def look(n: int) -> Done[int] | None:
        return Done(n)

    poll = app.loop("poll", look, max_iterations=2)
    with pytest.raises(ValidationError, match="nothing to look for"):
        poll.trigger(0)
    assert ended(app, poll.trigger(1).wait()).output == LoopResult(success=True, output=1)


def test_jobs_in_sequences_and_loops_keep_the_options_that_they_were_given_with(app: Holdfast) -> None:
    @app.job
    async def look(n: int) -> Done[int] | None:
        return Done(n)

    chain = app.sequence("chain", app.jobs.double.options(labels={"part": "1"}, priority=3), app.jobs.double)
    poll = app.loop("poll", look.options(labels={"part": "2"}, timeout="1m"), max_iterations=2)
    ended(app, app.sequence("all", chain, poll).trigger(1).wait())
    assert [(one.labels, one.priority) for one in reversed(app.get_runs(job="double").wait())] == [
        ({"part": "1"}, 3), ({}, 0),
    ]  # fmt: skip
    assert app.get_runs(job="look").wait()[0].labels == {"part": "2"}
    with pytest.raises(DefinitionError, match="idempotency_key"):
        app.sequence("keyed", app.jobs.double.options(idempotency_key="k"))


def test_a_cancelled_sequence_cancels_the_run_under_way_and_begins_no_other(app: Holdfast) -> None:
    @app.job
    async def first(n: int) -> int:
        return n

    @app.job
    async def second(step: Step, n: int) -> int:
        await step.sleep("long", "1h")
        return n

    chain = app.sequence("chain", first, second, app.jobs.double)
    run = chain.trigger(1).wait()
    drain(app).wait()
    run.cancel().wait()
    drain(app, until="2h").wait()
    assert [(one.job_name, str(one.status)) for one in reversed(app.get_runs().wait())] == [
        ("chain", "cancelled"), ("first", "completed"), ("second", "cancelled"),
    ]  # fmt: skip


def test_a_sequence_says_which_run_took_too_long(app: Holdfast) -> None:
    @app.job(deadline="1m")
    async def slow(step: Step, n: int) -> int:
        await step.sleep("long", "1h")
        return n

    run = ended(app, app.sequence("chain", slow, app.jobs.double).trigger(1).wait())
    assert told(run) == (
        "finalize_failed", "TimedOut",
        "Sequence 'chain' failed in run 1 (slow): The run did not end before its deadline",
    )  # fmt: skip
    assert app.get_runs(job="double").wait() == []


def test_a_sequence_of_one_that_fails_says_so(app: Holdfast) -> None:
    run = ended(app, app.sequence("one", app.jobs.double).trigger(-1).wait())
    assert told(run) == ("finalize_failed", "ValueError", "Sequence 'one' failed in run 1 (double): -1 is negative")


def test_a_sequence_of_runs_that_each_wait_for_a_word_from_outside(app: Holdfast) -> None:
    @app.job
    async def ask(step: Step, question: str) -> str:
        return await step.wait_for_signal("answer", type=str)

    run = app.sequence("talk", ask, ask.options(), ask).trigger("one").wait()
    for word in ("two", "three", "four"):
        drain(app).wait()
        (waiting,) = app.get_runs(job="ask", status="waiting").wait()
        app.send_signal(waiting.id, "answer", word).wait()
    assert ended(app, run).output == "four"
    assert [one.input["question"] for one in reversed(app.get_runs(job="ask").wait())] == ["one", "two", "three"]


def test_a_sleeping_job_is_no_part_of_a_sequence_or_loop(app: Holdfast) -> None:
    """Nobody could wake it: which run of a key it is must be known to those outside."""
    asleep = app.sleeping("asleep", output=str)
    with pytest.raises(DefinitionError, match=r"asleep.*sleeping"):
        app.sequence("chain", app.jobs.double, asleep)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match=r"asleep.*sleeping"):
        app.loop("again", asleep, max_iterations=2)  # type: ignore[call-overload]


def test_a_sleeping_job_below_a_run_is_refused_with_advice(app: Holdfast) -> None:
    asleep = app.sleeping("asleep", output=str)

    @app.job
    async def above(step: Step) -> str:
        return await step.call(asleep.bind("key"))

    run = ended(app, above.trigger().wait())
    assert (str(run.status), run.error_type) == ("failed", "ValidationError")
    assert "idempotency_key" in (run.error or "")
    assert app.get_runs(job="asleep").wait() == []


# -- 11.4 loops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "gaps"),
    [(10, [10, 10, 10]), ("0s", [0, 0, 0]), (lambda number: 5 * number, [0, 5, 10])],
    ids=["number", "none", "function"],
)
def test_a_delay_goes_before_each_iteration(app: Holdfast, clock: HandClock, delay: Any, gaps: list[int]) -> None:
    times = [clock.now()]

    async def look() -> Done[int] | None:
        times.append(clock.now())
        return Done(len(times)) if len(times) == 4 else None

    run = ended(app, app.loop("poll", look, max_iterations=5, delay=delay).trigger().wait())
    assert run.output == LoopResult(success=True, output=4)
    assert [(after - before) // 1_000_000 for before, after in pairwise(times)] == gaps


@pytest.mark.parametrize(
    ("given", "gaps"),
    [({}, [5, 5]), ({"delay": 0}, [0, 0]), ({"delay": lambda number: 10 * number}, [0, 10])],
    ids=["none", "no delay", "function"],
)
def test_the_delay_of_a_loop_goes_before_that_of_its_iteration(
    app: Holdfast, clock: HandClock, given: dict[str, Any], gaps: list[int]
) -> None:
    times = [clock.now()]

    @app.job(delay=5)
    async def look() -> Done[int] | None:
        times.append(clock.now())
        return None

    ended(app, app.loop("poll", look, max_iterations=2, **given).trigger().wait())
    assert [(after - before) // 1_000_000 for before, after in pairwise(times)] == gaps


def test_a_loop_takes_the_input_of_its_iteration_and_gives_it_to_each(app: Holdfast) -> None:
    seen: list[tuple[int, str]] = []

    async def look(wanted: int, name: str = "x") -> Done[str] | None:
        seen.append((wanted, name))
        return Done(name) if len(seen) == wanted else None

    poll = app.loop("poll", look, max_iterations=5)
    assert ended(app, poll.trigger(2).wait()).output == LoopResult(success=True, output="x")
    assert seen == [(2, "x")] * 2
    with pytest.raises(ValidationError, match="wanted"):
        poll.trigger("many")  # type: ignore[arg-type]


def test_a_loop_finds_what_comes_after_a_second(app: Holdfast, clock: HandClock) -> None:
    begin = clock.now()

    async def look() -> Done[str] | None:
        return Done("there") if clock.now() - begin >= 1_000_000 else None

    run = ended(app, app.loop("poll", look, max_iterations=20, delay=0.1).trigger().wait())
    assert run.output == LoopResult(success=True, output="there")
    assert len(app.get_runs(job="poll.iteration").wait()) == 10


def test_an_iteration_has_its_own_retries(app: Holdfast) -> None:
    @app.job(retry=Retry(1))
    async def look(step: Step) -> Done[int] | None:
        if step.attempt == 0:
            raise OSError("again")
        return Done(step.attempt)

    assert ended(app, app.loop("poll", look, max_iterations=1).trigger().wait()).output == LoopResult(True, 1)


def test_the_iterations_of_a_loop_are_all_directly_below_it(app: Holdfast) -> None:
    async def look() -> Done[int] | None:
        return None

    run = ended(app, app.loop("poll", look, max_iterations=30).trigger().wait())
    below = app.get_runs(job="poll.iteration").wait()
    assert (len(below), {one.parent_id for one in below}) == (30, {run.id})


# -- 11.5 sleeping jobs ----------------------------------------------------------------------------------------------


def test_a_cancelled_sleeper_stays_cancelled_whoever_wakes_it(app: Holdfast) -> None:
    asleep = app.sleeping("asleep", output=int)
    run = asleep.trigger("k").wait()
    drain(app).wait()
    run.cancel().wait()
    woken = app.wake(asleep, "k", output=1).wait()
    assert (woken.id, str(woken.status)) == (run.id, "cancelled")


def test_only_a_sleeping_job_is_woken(app: Holdfast) -> None:
    for wrong in (app.jobs.double, "asleep", None):
        with pytest.raises(ValidationError, match="sleeping"):
            app.wake(wrong, "k", output=1)


def test_one_key_of_two_sleeping_jobs_is_two_runs(app: Holdfast) -> None:
    one, two = app.sleeping("one", output=int), app.sleeping("two", output=int)
    first, second = one.trigger("k").wait(), two.trigger("k").wait()
    app.wake(one, "k", output=1).wait()
    assert ended(app, first).output == 1
    assert str(second.refresh().wait().status) == "waiting"


def test_a_sleeping_job_that_is_not_registered_here_is_not_woken(app: Holdfast, house: House) -> None:
    with house.app(worker=False) as other:
        stranger = other.sleeping("stranger")
        with pytest.raises(NotFoundError, match="stranger"):
            app.wake(stranger, "k", output=1)


@pytest.mark.parametrize("key", ["", 10, None, "x" * 300], ids=["empty", "number", "none", "long"])
def test_a_key_of_a_sleeping_job_is_a_text_of_some_length(app: Holdfast, key: Any) -> None:
    asleep = app.sleeping("asleep", output=int)
    for verb in (asleep.trigger, asleep.bind, lambda key: app.wake(asleep, key, output=1)):
        with pytest.raises(ValidationError):
            verb(key)
    assert app.get_runs().wait() == []


def test_the_deadline_of_a_trigger_goes_before_that_of_the_sleeping_job(app: Holdfast) -> None:
    asleep = app.sleeping("asleep", deadline="1h")
    short, usual = asleep.options(deadline="1m").trigger("short").wait(), asleep.trigger("usual").wait()
    drain(app, until="2m").wait()
    assert [str(run.refresh().wait().status) for run in (short, usual)] == ["timed_out", "waiting"]
    assert told(short.refresh().wait()) == ("timed_out", "TimedOut", "The run did not end before its deadline")


# -- 11.6 parents ----------------------------------------------------------------------------------------------------


def test_a_parent_waits_for_its_children_and_then_for_its_finalize(app: Holdfast) -> None:
    seen: list[str | None] = []

    @app.job
    async def below(n: int) -> int:
        return n

    @app.job
    async def parent() -> Children[int]:
        return Children(1, [below.options(delay=60).bind(1), below.options(delay=120).bind(2)])

    @parent.finalize(delay=60)
    async def total(output: int, children: list[ChildResult]) -> int:
        return output + sum(child.unwrap(below) for child in children)

    run = total.trigger().wait()
    for passed in (0.001, 60, 60):
        drain(app, until=passed).wait()
        seen.append(run.refresh().wait().waiting_for)
    assert seen == ["children", "children", "finalize"]
    assert ended(app, run).output == 4


@pytest.mark.parametrize("children", [0, 2])
def test_a_finalize_that_fails_for_good_fails_the_parent_with_its_error(app: Holdfast, children: int) -> None:
    calls: list[int] = []

    @app.job
    async def parent() -> Children[int]:
        return Children(1, [app.jobs.double.bind(-n) for n in range(1, children + 1)])

    @parent.finalize(retry=Retry(5))
    async def strict(output: int, children: list[ChildResult]) -> int:
        calls.append(len(children))
        raise NonRetryable("no good", kind="Refused")

    run = ended(app, strict.trigger().wait())
    assert (told(run), calls) == (("finalize_failed", "Refused", "no good"), [children])


@pytest.mark.parametrize("children", [0, 2])
def test_a_finalize_that_fails_again_and_again_is_retried_and_fails_the_parent(app: Holdfast, children: int) -> None:
    calls: list[int] = []

    @app.job
    async def parent() -> Children[int]:
        return Children(1, [app.jobs.double.bind(n) for n in range(children)])

    @parent.finalize(retry=Retry(2, delay=1))
    async def strict(output: int, children: list[ChildResult]) -> int:
        calls.append(len(children))
        raise OSError(f"down {len(calls)}")

    run = ended(app, strict.trigger().wait())
    assert (told(run), len(calls)) == (("finalize_failed", "OSError", "down 3"), 3)


def test_a_parent_with_wrong_input_is_refused_and_nothing_is_below_it(app: Holdfast) -> None:
    with pytest.raises(ValidationError, match="numbers"):
        app.jobs.family.trigger("many")  # type: ignore[arg-type]
    assert app.get_runs().wait() == []


def test_a_finalize_that_is_a_parent_with_a_finalize_combines_all(app: Holdfast) -> None:
    double = app.jobs.double

    @app.job
    async def outer(n: int) -> Children[int]:
        return Children(n, [double.bind(n), double.bind(n + 1)])

    @app.job
    async def inner(output: int, children: list[ChildResult]) -> Children[list[int]]:
        sums = [child.unwrap() for child in children]
        return Children([output, *sums], [double.bind(one) for one in sums])

    @inner.finalize
    async def last(output: list[int], children: list[ChildResult]) -> list[list[int]]:
        return [output, [child.unwrap() for child in children]]

    run = ended(app, outer.finalize_with(last).trigger(1).wait())
    assert run.output == [[1, 2, 4], [4, 8]]
    # outer, two children, inner, two of its own, last
    assert len(app.get_runs().wait()) == 7


def test_a_finalize_that_is_a_parent_without_one_gives_its_children(app: Holdfast) -> None:
    @app.job
    async def outer(n: int) -> Children[int]:
        return Children(n, [])

    @app.job
    async def inner(output: int, children: list[ChildResult]) -> Children[int]:
        return Children(output, [app.jobs.double.bind(output)])

    run = ended(app, outer.finalize_with(inner).trigger(4).wait())
    assert (run.output.output, [one.unwrap() for one in run.output.results]) == (4, [8])


def test_the_failure_of_a_grandchild_comes_up_through_two_finalizes(app: Holdfast) -> None:
    @app.job
    async def middle() -> Children[int]:
        return Children(1, [app.jobs.double.bind(-1)])

    @middle.finalize
    async def strict(output: int, children: list[ChildResult]) -> Any:
        return children[0].unwrap()

    @app.job
    async def top() -> Children[int]:
        return Children(1, [strict.bind()])

    @top.finalize
    async def strictest(output: int, children: list[ChildResult]) -> Any:
        try:
            return children[0].unwrap()
        except Exception as error:
            raise ValueError(f"{children[0].status}: {error}") from error

    run = ended(app, strictest.trigger().wait())
    assert told(run)[:2] == ("finalize_failed", "ValueError")
    assert (run.error or "").startswith("finalize_failed: -1 is negative")


def test_a_finalize_sees_that_a_child_timed_out_and_that_one_was_cancelled(app: Holdfast) -> None:
    @app.job
    async def sleeper(step: Step) -> None:
        await step.sleep("long", "1h")

    @app.job
    async def parent() -> Children[int]:
        return Children(1, [sleeper.options(deadline=60).bind(), sleeper.bind()])

    @parent.finalize
    async def seen(output: int, children: list[ChildResult]) -> list[str]:
        return [f"{child.status} {child.error_type}" for child in children]

    run = seen.trigger().wait()
    drain(app).wait()
    app.get_runs(job="sleeper", limit=1).wait()[0].cancel().wait()  # the younger one
    assert ended(app, run).output == ["timed_out TimedOut", "cancelled None"]


@pytest.mark.parametrize("word", ["yes", "no"])
def test_a_child_that_is_answered_from_outside_decides_about_its_parent(app: Holdfast, word: str) -> None:
    @app.job
    async def ask(step: Step) -> str:
        if (answer := await step.wait_for_signal("answer", type=str)) == "no":
            raise NonRetryable("refused", kind="Refused")
        return answer

    @app.job
    async def parent() -> Children[str]:
        return Children("asked", [ask.bind()])

    @parent.finalize
    async def decided(output: str, children: list[ChildResult]) -> str:
        return f"{output}: {children[0].unwrap(ask)}"

    run = decided.trigger().wait()
    drain(app).wait()
    (child,) = app.get_runs(job="ask").wait()
    app.send_signal(child.id, "answer", word).wait()
    run = ended(app, run)
    if word == "yes":
        assert run.output == "asked: yes"
    else:
        assert told(run) == ("finalize_failed", "RunFailed", "refused")


def test_options_of_a_single_child_replace_those_of_its_job_and_are_checked(app: Holdfast) -> None:
    calls: list[int] = []

    @app.job(retry=Retry(5))
    async def weak(n: int) -> None:
        calls.append(n)
        raise OSError("down")

    @app.job
    async def parent() -> Children[int]:
        return Children(1, [weak.bind(1), weak.options(retry=Retry(0)).bind(2)], on_failure="collect")

    ended(app, parent.trigger().wait())
    assert (calls.count(1), calls.count(2)) == (6, 1)
    with pytest.raises(ValidationError, match="timeout"):
        weak.options(timeout=-1)


@pytest.mark.parametrize("end", ["completed", "cancelled"])
def test_a_parent_is_closed_once_nothing_below_it_is_left(house: House, end: str) -> None:
    """Nothing that was noted about a tree stays behind it."""

    @job
    async def asks(step: Step) -> Any:
        return await step.wait_for_signal("never")

    @job
    async def parent() -> Children[int]:
        return Children(1, [double.bind(1)] if end == "completed" else [double.bind(1), asks.bind()])

    async def main() -> None:
        async with house.app(double, asks, parent) as app:
            run = await app.jobs.parent.trigger()
            if end == "completed":
                await run.wait(timeout=PATIENCE)
            else:
                await until(lambda: sorted(house.status()) == ["completed", "waiting", "waiting"])
                await run.cancel()
                await until(lambda: house.status().count("cancelled") == 2)
            await until(lambda: house.sql("select count(*) from holdfast_runs where tree = 2") == [(0,)])

    asyncio.run(main())
    assert set(house.status()) == {"completed", end}
    assert house.sql("select count(*) from holdfast_waits") == [(0,)]
    assert house.sql("select count(*) from holdfast_runs where completed_at is null") == [(0,)]


def test_the_output_of_a_parent_is_stored_with_all_its_children(house: House) -> None:
    with house.app(double, family) as app:
        app.jobs.family.run([1, -1]).wait(LONG)
    [(text,)] = house.sql("select output from holdfast_runs where job_name = 'family'")
    stored = json.loads(text)
    assert stored["output"] == "family"
    assert [{**one, "run_id": len(one["run_id"])} for one in stored["children"]] == [
        {"run_id": 26, "job_name": "double", "status": "completed", "output": 2},
        {"run_id": 26, "job_name": "double", "status": "failed", "error": "-1 is negative", "error_type": "ValueError"},
    ]


# -- 11.15 every face ------------------------------------------------------------------------------------------------


@job
async def fanned(n: int) -> Children[int]:
    return Children(n, [double.bind(n), double.bind(n + 1)])


@fanned.finalize
async def summed(output: int, children: list[ChildResult]) -> int:
    return output + sum(child.unwrap(double) for child in children)


class Shop:
    """One app with a job of each kind."""

    def __init__(self, house: House, **options: Any) -> None:
        self.app = house.app(double, summed, **options)
        self.chain = self.app.sequence("chain", self.app.jobs.double, self.app.jobs.fanned, self.app.jobs.double)
        self.asleep = self.app.sleeping("asleep", output=int)

        async def look(n: int) -> Done[int] | None:
            return Done(n)

        self.poll = self.app.loop("poll", look, max_iterations=3)


KINDS = ["schema", "sleeping", "finalize", "sequence", "loop"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_of_each_kind_in_async_and_in_sync_code(house: House, form: str, kind: str) -> None:
    shop = Shop(house)
    app = shop.app
    calls: dict[str, tuple[Any, tuple[Any, ...], Any]] = {
        "schema": (app.jobs.double, (2,), 4),
        "sleeping": (shop.asleep, ("k",), 5),
        "finalize": (app.jobs.fanned, (1,), 7),
        "sequence": (shop.chain, (1,), 2 * (2 + 4 + 6)),
        "loop": (shop.poll, (3,), LoopResult(success=True, output=3)),
    }
    wanted, args, output = calls[kind]

    async def main() -> None:
        async with app:
            run = await wanted.trigger(*args)
            if kind == "sleeping":
                await app.wake(shop.asleep, "k", output=5)
            assert await run.result(timeout=PATIENCE) == output

    if form == "async":
        asyncio.run(main())
    else:
        with app:
            run = wanted.trigger(*args).wait(LONG)
            if kind == "sleeping":
                app.wake(shop.asleep, "k", output=5).wait(LONG)
            assert run.result(timeout=PATIENCE).wait(LONG) == output


@pytest.mark.parametrize("kind", ["finalize", "sequence", "loop", "sleeping"])
def test_a_job_of_each_kind_without_any_thread(house: House, kind: str) -> None:
    shop = Shop(house, inline=True, worker=False)

    async def main() -> None:
        app = shop.app
        async with app:
            if kind == "sleeping":
                await app.wake(shop.asleep, "k", output=5)
            wanted, args = {
                "finalize": (app.jobs.fanned, (1,)), "sequence": (shop.chain, (1,)),
                "loop": (shop.poll, (3,)), "sleeping": (shop.asleep, ("k",)),
            }[kind]  # fmt: skip
            run = await wanted.trigger(*args)  # type: ignore[attr-defined]
            await app.process_until_idle()
            assert str((await run.refresh()).status) == "completed"

    asyncio.run(main())
