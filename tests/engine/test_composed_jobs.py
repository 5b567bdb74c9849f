"""Sequences, loops and sleeping jobs: made of runs below a run, and of waits."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest

from holdfast import (
    Children,
    ChildResult,
    DefinitionError,
    Done,
    Holdfast,
    LoopResult,
    NotKept,
    Step,
    ValidationError,
)
from holdfast.testing import app_for_tests, drain
from house import House


@pytest.fixture
def app() -> Any:
    with app_for_tests() as app:
        yield app


def outcome(app: Holdfast, run: Any) -> Any:
    drain(app, until="2d").wait()
    return run.refresh().wait()


# -- sequences -----------------------------------------------------------------------------------------------------


def test_a_sequence_hands_each_output_on(app: Holdfast) -> None:
    @app.job
    async def parse(text: str) -> list[int]:
        return [int(part) for part in text.split()]

    @app.job
    async def spread(numbers: list[int]) -> dict[str, int]:
        return {"low": min(numbers), "high": max(numbers)}

    @app.job
    def width(low: int, high: int) -> int:
        return high - low

    run = outcome(app, app.sequence("width-of", parse, spread, width).trigger("3 9 5").wait())
    assert run.output == 6
    assert [one.job_name for one in reversed(app.get_runs().wait())] == ["width-of", "parse", "spread", "width"]


def test_a_sequence_of_one_and_one_of_sequences(app: Holdfast) -> None:
    @app.job
    async def inc(n: int) -> int:
        return n + 1

    one = app.sequence("one", inc)
    both = app.sequence("both", one, app.sequence("three", inc, inc, inc))
    assert outcome(app, both.trigger(0).wait()).output == 4


def test_a_sequence_of_parents(app: Holdfast) -> None:
    @app.job
    async def inc(n: int) -> int:
        return n + 1

    @app.job
    async def fan(n: int) -> Children[int]:
        return Children(n, [inc.bind(n), inc.bind(n)])

    @fan.finalize
    async def total(output: int, children: list[ChildResult]) -> int:
        return output + sum(child.unwrap(inc) for child in children)

    assert outcome(app, app.sequence("fans", total, total).trigger(1).wait()).output == 5 + 12


def test_a_sequence_stops_at_the_first_run_without_an_output(app: Holdfast) -> None:
    calls: list[str] = []

    @app.job
    async def good(n: int) -> int:
        return n

    @app.job
    async def bad(n: int) -> int:
        raise ValueError("no good")

    @app.job
    async def never(n: int) -> int:
        calls.append("never")
        return n

    run = outcome(app, app.sequence("chain", good, bad, never).trigger(1).wait())
    assert (str(run.status), run.error_type, calls) == ("finalize_failed", "ValueError", [])
    assert run.error == "Sequence 'chain' failed in run 2 (bad): no good"


def test_a_sequence_whose_parts_do_not_fit_says_so(app: Holdfast) -> None:
    @app.job
    async def text() -> str:
        return "seven"

    @app.job
    async def number(n: int) -> int:
        return n

    run = outcome(app, app.sequence("misfit", text, number).trigger().wait())
    assert str(run.status) == "finalize_failed"
    assert "in run 2 (number): Invalid input: n:" in (run.error or "")


def test_a_sequence_whose_parts_can_never_fit_is_refused_where_it_is_made(app: Holdfast) -> None:
    @app.job
    async def number(n: int) -> int:
        return n

    @app.job
    async def numbers(n: int) -> list[int]:
        return [n]

    @app.job
    async def nothing() -> None: ...

    @app.job
    async def named(n: int) -> dict[str, Any]:
        return {"text": str(n), "times": 2}

    @app.job
    async def whatever(n: int) -> Any:
        return n

    @app.job
    async def text(text: str) -> str:
        return text

    @app.job
    async def repeated(text: str, times: int) -> str:
        return text * times

    anything: Any = app.sequence
    with pytest.raises(DefinitionError, match="sequence 'misfit': number gives int, and text takes text: str"):
        anything("misfit", number, text)
    with pytest.raises(DefinitionError, match=r"numbers gives .*, and number takes n: int"):
        anything("misfit", numbers, number)
    with pytest.raises(DefinitionError, match="nothing gives nothing, and number takes n: int"):
        anything("misfit", nothing, number)
    with pytest.raises(DefinitionError, match="repeated takes text, times, and number gives int"):
        anything("misfit", number, repeated)
    for first, second in ((named, repeated), (whatever, text), (whatever, repeated), (text, number), (number, nothing)):
        anything(f"{first.name}-{second.name}", first, second)


def test_what_names_a_type_that_is_defined_later_is_looked_at_when_a_worker_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def number() -> int:
        return 1

    async def text(text: Any) -> str:
        return str(text)

    text.__annotations__["text"] = "Later"
    app = Holdfast("sqlite://")
    anything: Any = app.sequence
    anything("misfit", app.job(number), app.job(text))
    monkeypatch.setitem(text.__globals__, "Later", str)
    with pytest.raises(DefinitionError, match="number gives int, and text takes text: str"), app:
        pass


def test_a_sequence_of_nothing_is_refused(app: Holdfast) -> None:
    with pytest.raises(DefinitionError, match="at least one"):
        app.sequence("empty")  # type: ignore[call-overload]


# -- loops ---------------------------------------------------------------------------------------------------------


def test_a_loop_goes_on_until_it_is_done(app: Holdfast) -> None:
    calls: list[str] = []

    async def look(name: str) -> Done[datetime] | None:
        calls.append(name)
        return Done(datetime(2026, 1, 1)) if len(calls) == 3 else None

    poll = app.loop("poll", look, max_iterations=20, delay=lambda number: 10 * number)
    run = outcome(app, poll.trigger("x").wait())
    assert run.output == LoopResult(success=True, output=datetime(2026, 1, 1))
    assert calls == ["x"] * 3
    assert len(app.get_runs(job="poll.iteration").wait()) == 3


def test_a_loop_that_is_never_done_completes_all_the_same(app: Holdfast) -> None:
    @app.job
    def never() -> Done[int] | None:
        return None

    run = outcome(app, app.loop("patience", never, max_iterations=2).trigger().wait())
    assert (str(run.status), run.output) == ("completed", LoopResult(success=False))


def test_an_iteration_that_fails_ends_the_loop(app: Holdfast) -> None:
    calls: list[int] = []

    async def second(step: Step) -> Done[int] | None:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("broken")
        return None

    run = outcome(app, app.loop("loop", second, max_iterations=5).trigger().wait())
    assert (str(run.status), run.error) == (
        "finalize_failed",
        "Loop 'loop' failed in iteration 2 (loop.iteration): broken",
    )


@pytest.mark.parametrize("most", [0, -1, 1.5, True])
def test_bad_loops_are_refused(app: Holdfast, most: Any) -> None:
    async def look() -> Done[int] | None:
        return None

    with pytest.raises(ValidationError, match="max_iterations"):
        app.loop("loop", look, max_iterations=most)


def test_an_iteration_that_can_never_be_done_is_refused(app: Holdfast) -> None:
    @app.job
    async def number() -> int:
        return 1

    anything: Any = app.loop
    with pytest.raises(DefinitionError, match=r"number: the iteration of a loop returns .* or None, not int"):
        anything("loop", number, max_iterations=2)


def test_an_iteration_may_be_a_parent_whose_finalize_says_that_it_is_done(app: Holdfast) -> None:
    @app.job
    async def family(n: int) -> Children[int]:
        return Children(n)

    @family.finalize
    async def close(output: int, children: list[ChildResult]) -> Done[str] | None:
        return Done(f"after {output}")

    run = outcome(app, app.loop("loop", close, max_iterations=2).trigger(3).wait())
    assert run.output == LoopResult(True, "after 3")


# -- sleeping jobs -------------------------------------------------------------------------------------------------


def test_a_sleeping_run_ends_as_it_is_woken(app: Holdfast) -> None:
    approval = app.sleeping("approval", output=datetime)
    run = approval.trigger("order-1").wait()
    assert approval.trigger("order-1").wait().disposition == "idempotent"
    drain(app).wait()
    assert run.refresh().wait().waiting_for == "signal"
    app.wake(approval, "order-1", output=datetime(2026, 2, 3)).wait()
    app.wake(approval, "order-1", output=datetime(1999, 1, 1)).wait()
    assert outcome(app, run).output == datetime(2026, 2, 3)
    assert app.wake(approval, "order-1", error="too late").wait().output == datetime(2026, 2, 3)


def test_a_sleeping_job_with_options_is_known_by_the_same_key(app: Holdfast) -> None:
    approval = app.sleeping("approval", output=int)
    labelled = approval.options(labels={"user": "ada"})
    run = labelled.trigger("order-1").wait()
    assert approval.trigger("order-1").wait().id == run.id
    app.wake(labelled, "order-1", output=7).wait()
    ended = outcome(app, run)
    assert (ended.output, ended.labels) == (7, {"user": "ada"})


def test_a_sleeping_run_is_not_triggered_again_for_nobody_could_wake_it(app: Holdfast) -> None:
    approval = app.sleeping("approval")
    run = approval.trigger("order-1").wait()
    app.cancel(run.id).wait()
    with pytest.raises(ValidationError, match="'approval', of which there is one run of a key"):
        app.retrigger(run.id).wait()
    assert len(app.get_runs().wait()) == 1


def test_a_sleeping_run_may_be_told_that_it_failed(app: Holdfast) -> None:
    approval = app.sleeping("approval")
    run = approval.trigger("order-1").wait()
    app.wake(approval, "order-1", error=ValueError("refused")).wait()
    ended = outcome(app, run)
    assert (str(ended.status), ended.error, ended.error_type) == ("failed", "refused", "ValueError")


def test_a_wake_before_the_trigger_is_kept(app: Holdfast) -> None:
    approval = app.sleeping("approval", output=int)
    app.wake(approval, "order-1", output=7).wait()
    assert outcome(app, approval.trigger("order-1").wait()).output == 7


def test_a_sleeping_run_that_nobody_wakes_times_out(app: Holdfast) -> None:
    run = app.sleeping("approval", deadline=60).trigger("order-1").wait()
    assert str(outcome(app, run).status) == "timed_out"


def test_bad_keys_and_wakes_are_refused(app: Holdfast) -> None:
    approval = app.sleeping("approval", output=int)
    for key in ("", 10, None, "x" * 300):
        with pytest.raises(ValidationError):
            approval.trigger(key)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="one of them"):
        app.wake(approval, "k")
    with pytest.raises(NotKept):
        app.wake(approval, "k", output=object())


def test_a_sequence_and_a_loop_in_an_app_that_runs(house: House) -> None:
    async def main() -> None:
        async with house.app() as app:

            @app.job
            async def inc(n: int) -> int:
                return n + 1

            async def until_three(n: int) -> Done[int] | None:
                return Done(n) if n >= 0 else None

            pipe = app.sequence("pipe", inc, inc)
            poll = app.loop("poll", until_three, max_iterations=3)
            assert await pipe.run(1) == 3
            assert await poll.run(3) == LoopResult(success=True, output=3)

    asyncio.run(main())
