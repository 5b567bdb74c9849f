"""Apps for tests: `app_for_tests`, `drain`, `run`. Time passes only by hand, and nothing is left behind."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast import Holdfast, NotKept, RunFailed, Step, SyncStep, ValidationError, job
from holdfast.basis.clock import to_datetime
from holdfast.testing import HandClock, app_for_tests, drain, run


@job
def add(a: int, b: int) -> int:
    return a + b


@job
def remind(step: SyncStep, who: str) -> str:
    return step.run("mail", lambda: f"mail to {who}")


@job
async def fetch(step: Step, name: str) -> str:
    return await step.run("fetch", str.upper, name)


@job
def refuse(step: SyncStep) -> None:
    step.run("refuse", int, "no number")


@dataclass
class Guest:
    name: str


@dataclass
class Member(Guest):
    number: int


@job
def invite(step: SyncStep) -> int:
    def guests() -> list[Guest]:
        return [Member("a" * 70_000, 1)]  # comes back as a guest without a number

    return len(step.run("guests", guests))


@job(queue="slow")
def slow() -> str:
    return "slow"


def test_an_app_for_tests_runs_nothing_until_it_is_drained() -> None:
    with app_for_tests(remind) as app:
        triggered = app.jobs.remind.trigger("ada").wait()
        assert triggered.refresh().wait().status == "pending"
        assert drain(app).wait() == 1
        assert triggered.refresh().wait().output == "mail to ada"


def test_an_app_for_tests_works_without_being_entered(tmp_path: Path) -> None:
    app = app_for_tests(add, url=f"sqlite:///{tmp_path / 'mine.db'}")
    triggered = app.jobs.add.trigger(1, 2).wait()
    assert drain(app).wait() == 1
    assert triggered.result().wait() == 3
    app.stop().wait()


def test_async_tests_await_the_same_verbs() -> None:
    async def main() -> None:
        async with app_for_tests(fetch) as app:
            triggered = await app.jobs.fetch.trigger("ada")
            assert await drain(app) == 1
            assert await triggered.result() == "ADA"

    asyncio.run(main())


def test_an_app_for_tests_executes_the_queues_of_its_jobs() -> None:
    with app_for_tests(slow) as app:
        app.jobs.slow.trigger().wait()
        assert drain(app).wait() == 1


def test_a_value_that_does_not_come_back_equal_is_refused_however_large(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as caught:
        run(invite).wait()
    assert caught.value.error_type == NotKept.__name__
    app = Holdfast(f"sqlite:///{tmp_path / 'lenient.db'}", jobs=[invite], worker=False)
    app.migrate().wait()
    triggered = app.jobs.invite.trigger().wait()
    app.process_until_idle().wait()
    assert triggered.refresh().wait().status == "completed"
    app.stop().wait()


def test_what_is_no_job_is_refused() -> None:
    with pytest.raises(ValidationError, match="is not a job"):
        app_for_tests(len)  # type: ignore[arg-type]


def test_draining_executes_what_is_due_and_leaves_the_rest() -> None:
    with app_for_tests(remind) as app:
        app.jobs.remind.trigger("ada").wait()
        later = app.jobs.remind.options(delay="1h").trigger("bob").wait()
        assert drain(app).wait() == 1
        assert later.refresh().wait().status == "pending"


def test_draining_until_turns_the_clock_to_each_run_and_then_to_the_end(clock: HandClock) -> None:
    with app_for_tests(remind, clock=clock) as app:
        start = clock.now()
        runs = [app.jobs.remind.options(delay=delay).trigger(delay).wait() for delay in ("1h", "2h", "5h")]
        assert drain(app, until="3h").wait() == 2
        started = [one.refresh().wait().started_at for one in runs]
        begin = to_datetime(start)
        assert begin is not None
        assert started == [begin + timedelta(hours=1), begin + timedelta(hours=2), None]
        assert clock.now() - start == 3 * 3_600_000_000
        assert drain(app, until=begin + timedelta(hours=5)).wait() == 1


def test_draining_until_a_moment_that_is_over_moves_no_clock(clock: HandClock) -> None:
    with app_for_tests(add, clock=clock) as app:
        start = to_datetime(clock.now())
        clock.advance(60)
        assert drain(app, until=start).wait() == 0
        assert to_datetime(clock.now() - 60_000_000) == start


def test_draining_until_needs_a_clock_that_can_be_turned(tmp_path: Path) -> None:
    app = Holdfast(f"sqlite:///{tmp_path / 'real.db'}")
    with pytest.raises(ValidationError, match="HandClock"):
        drain(app, until=1)


def test_running_a_job_gives_its_output() -> None:
    assert run(add, 1, b=2).wait() == 3
    assert run(remind, "ada").wait() == "mail to ada"
    assert run(fetch, "ada").wait() == "ADA"
    assert run(slow).wait() == "slow"


def test_running_a_job_in_async_code_uses_the_loop_of_the_caller() -> None:
    seen: list[asyncio.AbstractEventLoop] = []

    @job
    async def look() -> None:
        seen.append(asyncio.get_running_loop())

    async def main() -> bool:
        await run(look)
        return seen == [asyncio.get_running_loop()]

    assert asyncio.run(main())


def test_running_a_job_takes_no_time_that_it_would_wait() -> None:
    assert run(add.options(delay="30d", queue="other"), 1, 2).wait() == 3


def test_running_a_job_that_fails_raises_what_its_run_would() -> None:
    with pytest.raises(RunFailed, match="no number") as caught:
        run(refuse).wait()
    assert caught.value.error_type == "ValueError"


def test_wrong_input_is_refused_by_the_call_itself() -> None:
    with pytest.raises(ValidationError, match="b: "):
        run(add, 1, "x")  # type: ignore[arg-type]


def test_running_a_job_leaves_no_database_and_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(threading.enumerate())
    assert run(remind, "ada").wait() == "mail to ada"
    assert list(tmp_path.iterdir()) == []
    assert set(threading.enumerate()) <= before


def test_a_run_has_an_app_of_its_own(tmp_path: Path) -> None:
    app = Holdfast(f"sqlite:///{tmp_path / 'real.db'}")
    handle = app.register(add)
    assert run(handle, 1, 2).wait() == 3
    assert list(tmp_path.iterdir()) == []
