"""`crash_at_every_step`: a good job passes, each bad one is named, and the campaign itself can't be vacuous."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast import Holdfast, Step, SyncStep, ValidationError, job
from holdfast.engine.history import History
from holdfast.store.sqlite import SqliteStore
from holdfast.testing import CrashReport, campaign, crash_at_every_step, effects

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="crash_at_every_step forks: it needs POSIX"),
    pytest.mark.sampled("kill -9 by the testing kit: the same on every Python", every=4),
]


def problems(report: CrashReport) -> list[tuple[str, str]]:
    return [(problem.step, problem.kind) for problem in report.problems]


# -- good jobs -----------------------------------------------------------------------------------------------------


@job
def order(step: SyncStep, number: int) -> str:
    def pay(amount: int) -> str:
        effects.record(f"pay {number}", idempotency_key=step.idempotency_key("pay"))
        return f"paid {amount}"

    paid = step.run("pay", pay, number * 10)
    for part in ("left", "right"):
        step.run("pack", lambda part=part: effects.record(part, idempotency_key=step.idempotency_key(part)))
    return step.run("send", lambda: f"{paid}, sent")


@job
async def crowd(step: Step, many: int) -> int:
    async def one(number: int) -> int:
        got = await step.run(f"fetch-{number}", lambda: number)
        return await step.run(f"double-{number}", lambda: got * 2)

    async def asynchronous() -> timedelta:
        return timedelta(hours=1)

    await step.run("begin", asynchronous)
    return sum(await asyncio.gather(*[one(number) for number in range(many)]))


def test_a_good_job_is_killed_twice_at_every_checkpoint_and_once_before_its_end() -> None:
    report = crash_at_every_step(order, 7)
    assert report
    assert report.problems == []
    report.raise_if_bad()
    assert report.steps == ["pay", "pack", "pack#1", "send"]
    assert report.kills == 9
    assert report.kills_of == {"pay": 2, "pack": 2, "pack#1": 2, "send": 2, "(end of the run)": 1}
    # Each body ran again once: when it was killed before its checkpoint.
    assert report.reruns_of == {"pay": 1, "pack": 1, "pack#1": 1, "send": 1}
    assert report.reruns == 4
    assert report.notes == []


def test_the_table_of_a_report_names_every_step() -> None:
    lines = str(crash_at_every_step(order, 7)).splitlines()
    assert lines[0] == "order: 4 steps, 9 kills, 0 problems"
    assert [line.split() for line in lines[3:5]] == [["pay", "2", "1", "-"], ["pack", "2", "1", "-"]]


def test_an_async_job_with_parallel_steps_passes() -> None:
    report = crash_at_every_step(crowd, 3)
    report.raise_if_bad()
    assert set(report.steps) == {"begin", *(f"{what}-{n}" for what in ("fetch", "double") for n in range(3))}
    assert report.kills == 15


def test_a_job_inside_a_test_can_be_crashed_and_a_failure_is_an_end_like_any_other() -> None:
    @job
    def failing(step: SyncStep) -> None:
        with pytest.raises(ValueError, match="no"):
            step.run("try", int, "no")
        step.run("fail", int, "never")

    report = crash_at_every_step(failing)
    report.raise_if_bad()
    assert report.kills_of == {"try": 2, "fail": 2, "(end of the run)": 1}


def test_a_job_without_steps_is_killed_before_its_end() -> None:
    @job
    def add(a: int, b: int) -> int:
        return a + b

    report = crash_at_every_step(add, 1, b=2)
    report.raise_if_bad()
    assert (report.steps, report.kills) == ([], 1)


def test_steps_inside_steps_pass() -> None:
    app = Holdfast("sqlite://")

    @app.step
    def inner(n: int) -> int:
        return n + 1

    @app.step
    def outer(n: int) -> int:
        return inner(n) + inner(n)

    @app.job
    def nested(step: SyncStep) -> int:
        return outer(1) + outer(2)

    report = crash_at_every_step(nested)
    report.raise_if_bad()
    assert report.kills == 13


def test_rows_of_step_transactions_are_there_once_whatever_dies() -> None:
    def put(connection: sqlite3.Connection) -> int:
        connection.execute("create table if not exists charges (id integer primary key)")
        connection.execute("insert into charges default values")
        count: int = connection.execute("select count(*) from charges").fetchone()[0]
        return count

    @job
    async def buy(step: Step) -> list[int]:
        return [await step.transaction(f"put-{number}", put) for number in range(3)]

    report = crash_at_every_step(buy)
    assert report.problems == []
    assert report.kills_of == {"put-0": 2, "put-1": 2, "put-2": 2, "(end of the run)": 1}
    assert report.reruns_of == {"put-0": 1, "put-1": 1, "put-2": 1}


def test_values_that_change_from_run_to_run_are_noted_and_no_problem() -> None:
    @job
    def token(step: SyncStep) -> str:
        name = step.run("token", lambda: uuid.uuid4().hex)
        step.run(f"use-{name}", lambda: None)
        return name

    report = crash_at_every_step(token)
    report.raise_if_bad()
    assert report.kills == 5
    assert len(report.notes) == 3


def test_an_app_without_threads_passes() -> None:
    app = Holdfast("sqlite://", inline=True)
    crash_at_every_step(app.register(order), 7).raise_if_bad()
    crash_at_every_step(app.register(crowd), 2).raise_if_bad()


def test_a_run_that_starts_later_is_not_waited_for() -> None:
    crash_at_every_step(order.options(delay="30d", queue="other"), 7).raise_if_bad()


def test_what_a_job_triggers_goes_to_the_fresh_database_and_not_to_the_real_one(tmp_path: Path) -> None:
    app = Holdfast(f"sqlite:///{tmp_path / 'real.db'}")

    @app.job
    def note(text: str) -> str:
        effects.record(f"note {text}", idempotency_key=text)
        return text

    @app.job
    def parent(step: SyncStep) -> int:
        note.trigger("a").wait()
        return step.run("child", lambda: 1)

    report = crash_at_every_step(parent)
    report.raise_if_bad()
    assert list(tmp_path.iterdir()) == []


# -- bad jobs ------------------------------------------------------------------------------------------------------


@job
def careless(step: SyncStep) -> None:
    step.run("greet", lambda: None)
    step.run("pay", lambda: effects.record("pay"))


@job
def fresh_key(step: SyncStep) -> None:
    step.run("pay", lambda: effects.record("pay", idempotency_key=uuid.uuid4().hex))


@job
def by_chance(step: SyncStep) -> None:
    step.run("first", lambda: None)
    step.run(f"fetch-{uuid.uuid4().hex}", lambda: None)


@job
def lossy(step: SyncStep) -> int:
    basket: list[str] = []

    def fill() -> None:
        basket.append("apple")  # a replay does not call this

    step.run("fill", fill)
    return step.run("count", lambda: len(basket))


@pytest.mark.parametrize("bad", [careless, fresh_key], ids=lambda bad: bad.name)
def test_an_effect_without_a_stable_idempotency_key_is_named_with_its_step(bad: Any) -> None:
    report = crash_at_every_step(bad)
    assert not report
    assert problems(report) == [("pay", "effect-twice")]
    assert "effect 'pay' was applied 2 times instead of 1" in report.problems[0].text
    assert report.problems[0].killed == "killed before the checkpoint of 'pay' was committed"
    with pytest.raises(AssertionError, match="pay: effect 'pay' was applied 2 times"):
        report.raise_if_bad()


def test_an_effect_outside_of_steps_is_named() -> None:
    @job
    def outside(step: SyncStep) -> None:
        effects.record("mail")
        step.run("after", lambda: None)

    report = crash_at_every_step(outside)
    assert problems(report) == [("(outside of steps)", "effect-twice")]


def test_a_step_whose_name_is_chance_is_named() -> None:
    report = crash_at_every_step(by_chance)
    assert [kind for _, kind in problems(report)] == ["differs"]
    assert report.problems[0].step == report.steps[1]
    assert report.problems[0].step.startswith("fetch-")
    assert "in its place after it" in report.problems[0].text


def test_a_value_that_is_lost_outside_of_steps_is_named_with_the_step_that_shows_it() -> None:
    report = crash_at_every_step(lossy)
    assert problems(report) == [("count", "differs"), ("(end of the run)", "differs")]
    assert report.problems[0].text == "the step came to 0, without a crash to 1"
    assert report.problems[0].killed == "killed after the checkpoint of 'fill' was committed"
    assert "output: 0, without a crash 1" in report.problems[1].text


def test_an_effect_that_only_a_replay_leaves_out_is_named() -> None:
    @job
    def forgetful(step: SyncStep) -> None:
        wanted: list[str] = []
        step.run("choose", lambda: wanted.append("mail"))
        step.run("do", lambda: [effects.record(one, idempotency_key=one) for one in wanted])

    assert ("do", "differs") in problems(crash_at_every_step(forgetful))


def test_arguments_that_change_fail_the_run_after_a_crash_and_are_named() -> None:
    @job
    def changing(step: SyncStep) -> None:
        step.run("use", lambda token: None, uuid.uuid4().hex)

    report = crash_at_every_step(changing)
    assert problems(report) == [("(end of the run)", "differs")]
    assert "the run ended as failed by StepChanged: " in report.problems[0].text
    assert report.problems[0].killed == "killed after the checkpoint of 'use' was committed"


def test_a_step_that_is_left_out_after_a_crash_is_named() -> None:
    @job
    def hasty(step: SyncStep) -> None:
        seen: list[int] = []
        step.run("begin", lambda: seen.append(1))
        if seen:
            step.run("more", lambda: None)
        step.run("last", lambda: None)

    assert ("more", "differs") in problems(crash_at_every_step(hasty))


def test_a_process_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "_LIMIT", 1)

    @job
    def endless(step: SyncStep) -> None:
        threading.Event().wait()

    with pytest.raises(RuntimeError, match="did not come to its end within 1 seconds"):
        crash_at_every_step(endless)


def test_steps_in_another_order_after_a_crash_are_named() -> None:
    @job
    def turned(step: SyncStep) -> None:
        seen: list[int] = []
        step.run("begin", lambda: seen.append(1))
        for name in ("a", "b") if seen else ("b", "a"):
            step.run(name, lambda: None)

    found = problems(crash_at_every_step(turned))
    assert found
    assert {kind for _, kind in found} == {"differs"}
    assert {step for step, _ in found} <= {"a", "b"}


# -- faults of the engine, planted ----------------------------------------------------------------------------------


def test_a_step_that_starts_again_after_its_checkpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(History, "take", lambda self, key: None)
    report = crash_at_every_step(order, 7)
    assert ("pay", "started-again") in problems(report)


def test_a_commit_that_keeps_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    commit, count = SqliteStore.commit, itertools.count()

    def forget(self: SqliteStore, tx: Any) -> None:
        # Of the victim the first checkpoint: trigger, sweep and claim come before it.
        if "crash_at_every_step" in tx.seen and next(count) == 0:
            self.rollback(tx)
        else:
            commit(self, tx)

    monkeypatch.setattr(SqliteStore, "commit", forget)
    report = crash_at_every_step(order, 7)
    assert ("pay", "started-again") in problems(report)


# -- the campaign itself --------------------------------------------------------------------------------------------


def test_wrong_input_is_refused_before_anything_is_started() -> None:
    with pytest.raises(ValidationError, match="number: "):
        crash_at_every_step(order, "x")  # type: ignore[arg-type]


def test_a_job_that_ends_its_process_by_itself_is_refused_with_what_it_said() -> None:
    @job
    def leaving(step: SyncStep) -> None:
        os._exit(3)

    with pytest.raises(RuntimeError, match=r"leaving does not end without a crash: .*exit code 3"):
        crash_at_every_step(leaving)


def test_without_fork_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(RuntimeError, match="POSIX"):
        crash_at_every_step(order, 7)


@pytest.fixture
def busy() -> Iterator[threading.Event]:
    """Another thread, which is there while this process forks."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield over
    over.set()
    thread.join()


def test_it_works_beside_threads_an_app_in_use_and_a_running_loop(busy: threading.Event, tmp_path: Path) -> None:
    app = Holdfast(f"sqlite:///{tmp_path / 'mine.db'}")
    handle = app.register(order)

    async def main() -> None:
        async with app:
            assert await handle.run(1) == "paid 10, sent"
            crash_at_every_step(handle, 7).raise_if_bad()
            assert await handle.run(2) == "paid 20, sent"
            assert len(await app.get_runs()) == 2

    asyncio.run(main())


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files, forked, fork = len(os.listdir("/dev/fd")), list[int](), os.fork

    def noted() -> int:
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", noted)
    crash_at_every_step(careless)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/dev/fd")) == files
    (pid,) = forked
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert effects.VARIABLE not in os.environ
