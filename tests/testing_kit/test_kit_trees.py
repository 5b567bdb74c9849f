"""`crash_at_every_step` of runs that wait, and of trees: each commit is struck, and what a crash changes is named."""

from __future__ import annotations

import os
import uuid
from typing import Any

import pytest

from holdfast import Children, ChildResult, Done, Holdfast, Retry, Step, SyncStep, job
from holdfast.engine.wait_kinds import Below
from holdfast.store.sqlite import SqliteStore
from holdfast.testing import CrashReport, answering, campaign, crash_at_every_step, effects

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="crash_at_every_step forks: it needs POSIX"),
    pytest.mark.sampled("kill -9 by the testing kit: the same on every Python", every=4),
]

END = "(end of the run)"


def problems(report: CrashReport) -> list[tuple[str, str]]:
    return [(problem.step, problem.kind) for problem in report.problems]


def app_with(jobs: Any) -> Any:
    """An app of one's own for each test, and its jobs."""
    app = Holdfast("sqlite://", worker=False)
    jobs(app)
    return app.jobs


def below(app: Holdfast) -> None:
    """Jobs that others put below theirs."""

    @app.job
    async def double(step: Step, n: int) -> int:
        def grow() -> int:
            effects.record(f"grow {n}", idempotency_key=step.idempotency_key("grow"))
            return 2 * n

        return await step.run("grow", grow)

    @app.job
    async def gathers(step: Step, n: int) -> int:
        return sum(await step.gather(double.bind(n), double.bind(n + 1)))

    @app.job
    async def calls(step: Step, n: int) -> int:
        one = await step.call(double.bind(n))
        await step.spawn(double.bind(n + 1))
        return one + await step.run("after", lambda: 1)

    @app.job
    def maps(step: SyncStep, n: int) -> list[str]:
        results = step.map(refuses, [n, 0], on_failure="collect")
        return [result.status for result in results]

    @app.job
    async def refuses(n: int) -> int:
        return 1 // n

    @app.job
    async def parent(step: Step, n: int) -> Children[int]:
        return Children(await step.run("before", lambda: n), [double.bind(n), double.bind(n + 1)])

    @app.job
    async def total(output: int, children: list[ChildResult]) -> int:
        return output + sum(child.unwrap(double) for child in children)

    parent.finalize_with(total)

    @app.job
    async def grand(step: Step, n: int) -> int:
        return await step.call(gathers.bind(n))

    async def look(step: Step, wanted: int) -> Done[int] | None:
        await step.run("look", lambda: 1)
        return Done(7) if wanted == 0 else None

    app.loop("poll", look, max_iterations=2, delay="1d")


@job
async def sleeper(step: Step) -> str:
    await step.run("before", lambda: None)
    await step.sleep("rest", "30d")
    return await step.run("after", lambda: "rested")


@job
def sync_sleeper(step: SyncStep) -> str:
    step.sleep("rest", "30d")
    return step.run("after", lambda: "rested")


@job
async def asks(step: Step) -> list[Any]:
    found = [await step.wait_for_signal("answer") for _ in range(2)]
    try:
        found.append(await step.wait_for_signal("never", timeout="2d"))
    except TimeoutError:
        found.append("late")
    return found


# -- good jobs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [sleeper, sync_sleeper], ids=lambda one: one.name)
def test_a_run_that_sleeps_is_killed_around_the_wait_the_suspension_and_the_waking(one: Any) -> None:
    report = crash_at_every_step(one)
    report.raise_if_bad()
    found = {"before": 2, "rest": 4, "(suspended)": 2, "after": 2, END: 1}
    if one is sync_sleeper:
        del found["before"]
    assert report.kills_of == found
    assert report.steps == [name for name in found if name[0] != "("]
    assert report.notes == []


def test_a_run_that_is_answered_takes_each_answer_once() -> None:
    with answering("answer", {"yes": True}, "thanks"):
        report = crash_at_every_step(asks)
    report.raise_if_bad()
    assert report.kills_of == {"answer": 4, "answer#1": 4, "never": 4, "(suspended)": 6, END: 1}


def test_runs_below_are_killed_at_their_steps_and_ends_too() -> None:
    report = crash_at_every_step(app_with(below).gathers, 3)
    report.raise_if_bad()
    step = "gather(double)"
    assert report.kills_of == {
        step: 4,
        "(suspended)": 2,
        **{f"{step}[{n}] / {what}": 2 for n in (0, 1) for what in ("grow", END)},
        END: 1,
    }
    assert report.reruns_of == {f"{step}[{n}] / grow": 1 for n in (0, 1)}
    assert set(report.steps) == {step, *(f"{step}[{n}] / grow" for n in (0, 1))}
    assert report.notes == []


@pytest.mark.parametrize(
    ("name", "given", "struck"),
    [
        ("calls", 3, {"double()", "double() / grow", "spawn(double) / grow", "spawn(double)", "after"}),
        ("maps", 3, {"map(refuses)", f"map(refuses)[1] / {END}"}),
        ("parent", 3, {"before", "(return)", "(children)", "(children)[1] / grow", f"(finalize) / {END}"}),
        ("grand", 3, {"gathers()", "gathers() / gather(double)", "gathers() / gather(double)[1] / grow"}),
        ("poll", 1, {"iteration", "iteration / look", "iteration#1 / look"}),
    ],
)
def test_trees_of_every_kind_survive_every_crash(name: str, given: Any, struck: set[str]) -> None:
    report = crash_at_every_step(getattr(app_with(below), name), given)
    report.raise_if_bad()
    assert struck <= report.kills_of.keys()
    assert report.notes == []
    assert report.kills == sum(report.kills_of.values()) > 2 * len(struck)


def test_an_attempt_that_puts_all_below_itself_again_is_told_from_the_one_before() -> None:
    app = Holdfast("sqlite://", worker=False)

    @app.job
    async def picky(n: int) -> int:
        if n:
            raise ValueError("no")
        return n

    @app.job(retry=Retry(max_retries=1, delay="1h"))
    async def stubborn(step: Step) -> int:
        await step.gather(picky.bind(0), picky.bind(1 - step.attempt))
        return step.attempt

    report = crash_at_every_step(stubborn)
    report.raise_if_bad()
    name = "gather(picky)"
    assert {f"{name}[1] / {END}", f"{name} (2)[1] / {END}", "(tried again)"} <= report.kills_of.keys()


def test_what_unwinds_at_a_suspension_asks_for_nothing() -> None:
    @job
    async def tidy(step: Step) -> str:
        try:
            await step.sleep("rest", "1d")
        finally:
            await step.run("tidy", lambda: None)
        return await step.run("after", lambda: "done")

    crash_at_every_step(tidy).raise_if_bad()


# -- bad jobs ------------------------------------------------------------------------------------------------------


def test_an_effect_that_a_run_below_applies_twice_is_named_with_its_place() -> None:
    app = Holdfast("sqlite://", worker=False)

    @app.job
    async def pays(step: Step) -> None:
        await step.run("pay", lambda: effects.record("pay"))

    @app.job
    async def above(step: Step) -> None:
        await step.gather(pays.bind())

    report = crash_at_every_step(above)
    assert problems(report) == [("gather(pays)[0] / pay", "effect-twice")]


def test_a_value_that_a_suspension_loses_in_no_crash_is_the_same_with_one() -> None:
    """Code before a wait runs again with and without a crash: what it forgets is forgotten in both."""

    @job
    async def forgets(step: Step) -> int:
        seen: list[int] = []
        await step.run("see", lambda: seen.append(1))
        await step.sleep("rest", "1d")
        return len(seen)

    crash_at_every_step(forgets).raise_if_bad()


def test_a_wait_whose_name_is_chance_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "_LIMIT", 3)

    @job
    async def by_chance(step: Step) -> None:
        await step.run("first", lambda: None)
        await step.sleep(f"rest-{uuid.uuid4().hex}", "1d")

    # Each waking asks for another sleep: such a job never ends, without any crash.
    with pytest.raises(RuntimeError, match="by_chance does not end without a crash"):
        crash_at_every_step(by_chance)


def test_a_run_that_nobody_answers_is_refused_with_advice() -> None:
    with pytest.raises(RuntimeError, match=r"asks does not end without a crash: it waits for a signal.*answering"):
        crash_at_every_step(asks)


# -- faults of the engine, planted ----------------------------------------------------------------------------------


def test_a_wake_up_that_is_lost_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    after_ends = SqliteStore._after_ends

    def forgets(self: SqliteStore, tx: Any, ended: Any) -> None:
        after_ends(self, tx, [(run_id, None, tree) for run_id, _, tree in ended])

    monkeypatch.setattr(SqliteStore, "_after_ends", forgets)
    with pytest.raises(RuntimeError, match="gathers does not end without a crash: waiting"):
        crash_at_every_step(app_with(below).gathers, 3)


def test_runs_that_are_written_again_after_a_crash_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    children = Below.children

    def twice(self: Below, waits: Any, key: str) -> Any:
        made = children(self, waits, key)
        # As if what is written with the wait were written again by whoever comes after a crash.
        return (*made, *children(self, waits, key)) if waits.execution.row.crashes else made

    monkeypatch.setattr(Below, "children", twice)
    report = crash_at_every_step(app_with(below).gathers, 3)
    assert any("only there after a crash" in problem.text for problem in report.problems), str(report)
