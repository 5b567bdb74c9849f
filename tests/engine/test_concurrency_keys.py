"""S5: runs of one concurrency key go one after the other; and the limit of a job, which is no key."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from around import LONG, rows, until, url

import databases
from databases import StoreHere
from holdfast import ConflictError, Event, Holdfast, Step, SyncStep, ValidationError, WouldDeadlock
from holdfast.store.base import Claimed, ClaimOrder, Tx


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **more: Any) -> None:
        asyncio.run(test(*args, **more))

    return run


class Diary:
    """What began and ended, in order; a run goes on when its gate is open."""

    def __init__(self, *, open: bool = True) -> None:
        self.lines: list[str] = []
        self.open = asyncio.Event()
        self._news = asyncio.Event()
        if open:
            self.open.set()

    async def live(self, name: str) -> str:
        self._write(f"start{name}")
        await asyncio.sleep(0)
        await self.open.wait()
        self._write(f"end{name}")
        return name

    def _write(self, line: str) -> None:
        self.lines.append(line)
        self._news.set()

    async def reads(self, *lines: str) -> None:
        async with asyncio.timeout(LONG):
            while self.lines != list(lines):
                self._news.clear()
                await self._news.wait()


def app_on(tmp_path: Path, **options: Any) -> Holdfast:
    # Nothing within a test is the work of polling.
    return Holdfast(url(tmp_path), **{"polling_interval": 60, "concurrency": 3, "cancel_grace": 60, **options})


def asleep(app: Holdfast) -> bool:
    """Whether its worker has looked for work, and found none."""
    worker = app._engine.worker
    return worker is not None and worker._asleep and not worker._claiming


# -- one after the other ---------------------------------------------------------------------------------------------


@in_a_loop
async def test_s5_runs_of_one_key_go_strictly_one_after_the_other_over_all_jobs(tmp_path: Path) -> None:
    app, diary = app_on(tmp_path), Diary()

    @app.job
    async def one(name: str) -> str:
        return await diary.live(name)

    @app.job
    async def other(name: str) -> str:
        return await diary.live(name)

    @app.job
    async def third(name: str) -> str:
        return await diary.live(name)

    async with app:
        jobs = [job.options(concurrency_key="customer") for job in (one, other, third)]
        runs = [await job.trigger(str(n)) for n, job in enumerate(jobs, 1)]
        assert [await run.result(LONG) for run in runs] == ["1", "2", "3"]
    assert diary.lines == ["start1", "end1", "start2", "end2", "start3", "end3"]


@in_a_loop
async def test_s5_a_run_queues_behind_the_leased_one_of_its_key(tmp_path: Path) -> None:
    app, diary = app_on(tmp_path), Diary(open=False)

    @app.job
    async def work(name: str) -> str:
        return await diary.live(name)

    async with app:
        keyed = work.options(concurrency_key="customer")
        first = await keyed.trigger("1")
        await diary.reads("start1")
        second = await keyed.trigger("2")
        assert (first.disposition, second.disposition) == ("created", "created")
        assert second.concurrency_key == "customer"
        with pytest.raises(ConflictError):
            await keyed.trigger("3")
        diary.open.set()
        assert await second.result(LONG) == "2"
    assert diary.lines == ["start1", "end1", "start2", "end2"]


@in_a_loop
async def test_s5_other_keys_and_runs_without_a_key_are_executed_beside_it(tmp_path: Path) -> None:
    app, diary = app_on(tmp_path, concurrency=10), Diary(open=False)

    @app.job
    async def work(name: str) -> str:
        return await diary.live(name)

    async with app:
        await work.options(concurrency_key="a").trigger("1")
        await diary.reads("start1")
        waits = await work.options(concurrency_key="a").trigger("2")
        await work.options(concurrency_key="b").trigger("3")
        for name in ("4", "5"):
            await work.options(concurrency_key="").trigger(name)
        await diary.reads("start1", "start3", "start4", "start5")
        diary.open.set()
        await waits.wait(LONG)


@in_a_loop
async def test_s5_the_next_of_a_key_begins_at_once_when_the_holder_is_cancelled(tmp_path: Path) -> None:
    app, diary = app_on(tmp_path), Diary(open=False)

    @app.job
    async def work(name: str) -> str:
        return await diary.live(name)

    async with app:
        app._engine.watcher.stop()  # it would see the change in the database, a little later
        first = await work.options(concurrency_key="a").trigger("1")
        await diary.reads("start1")
        second = await work.options(concurrency_key="a").trigger("2")
        await asyncio.to_thread(until, lambda: asleep(app), "a quiet worker")
        await first.cancel()
        await diary.reads("start1", "start2")
        diary.open.set()
        assert await second.result(LONG) == "2"


class Slow(StoreHere):
    """A claim that is held up, when it is told to."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.hold_up = False
        self.claiming, self.go_on = threading.Event(), threading.Event()

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        got = super().claim(tx, orders)
        if self.hold_up:
            self.hold_up = False
            self.claiming.set()
            assert self.go_on.wait(LONG)
        return got


@pytest.mark.parametrize("limited", [False, True])
def test_s5_an_end_that_comes_during_a_claim_that_finds_nothing_is_not_overlooked(
    tmp_path: Path, limited: bool
) -> None:
    store = Slow(url(tmp_path))
    app = Holdfast(store, polling_interval=60, worker="thread")
    gate = threading.Event()

    @app.job(**({"limit": 1} if limited else {}))
    def work(name: str) -> str:
        assert gate.wait(LONG)
        return name

    with app:
        app._engine.watcher.stop()  # it would see the change in the database, a little later
        keyed = work if limited else work.options(concurrency_key="k")
        first = keyed.trigger("1").wait(LONG)
        until(lambda: first.refresh().wait(LONG).status == "leased")
        until(lambda: asleep(app), "a quiet worker")
        store.hold_up = True
        second = keyed.trigger("2").wait(LONG)
        assert store.claiming.wait(LONG)
        gate.set()
        # Behind the claim, which is being served.
        until(lambda: "finish" in [one.verb for one in app._engine.committer._line], "the end in the line")
        store.go_on.set()
        assert second.result(LONG).wait(LONG) == "2"
    store.close()


@in_a_loop
async def test_s5_cancelling_one_that_waits_in_another_process_lets_the_next_go(tmp_path: Path) -> None:
    # This app executes nothing of `elsewhere`, which is first in no line of its own.
    app, web = app_on(tmp_path, polling_interval=databases.across(60)), app_on(tmp_path, worker=False)
    started = asyncio.Event()

    async def mine() -> None:
        started.set()

    async def elsewhere() -> None: ...

    app.job(mine)
    one, other = web.job(mine), web.job(elsewhere)
    async with app, web:
        first = await other.options(concurrency_key="a", priority=5).trigger()
        run = await one.options(concurrency_key="a").trigger()
        await run.wait(LONG)
        assert started.is_set(), "what nobody here executes does not keep the key"
        await first.cancel()


@in_a_loop
async def test_s5_many_keys_and_a_full_worker_drain(tmp_path: Path) -> None:
    app = app_on(tmp_path, concurrency=5)
    here: dict[str, int] = {}
    most: list[int] = []

    async def body(key: str) -> None:
        here[key] = here.get(key, 0) + 1
        most.append(here[key])
        await asyncio.sleep(0)
        here[key] -= 1

    jobs = []
    for n in range(8):

        async def work(key: str) -> None:
            await body(key)

        jobs.append(app.job(name=f"work-{n}")(work))
    async with app:
        replies = [
            job.options(concurrency_key=f"key-{k}").trigger(f"key-{k}") for job in jobs for k in range(6)
        ]  # fmt: skip
        for reply in replies:
            assert (await (await reply).wait(LONG)).status == "completed"
    assert max(most) == 1
    assert len(most) == 48


def test_s5_sync_jobs_of_one_key_do_not_overlap_either(tmp_path: Path) -> None:
    app = app_on(tmp_path)
    inside = threading.Lock()
    overlaps: list[str] = []

    def body(name: str) -> None:
        if not inside.acquire(blocking=False):
            overlaps.append(name)
            return
        inside.release()

    jobs = []
    for n in range(5):

        def work(name: str) -> None:
            body(name)

        jobs.append(app.job(name=f"work-{n}")(work))
    with app:
        for run in [job.options(concurrency_key="k").trigger(job.name).wait(LONG) for job in jobs]:
            assert run.wait(LONG).wait().status == "completed"
    assert overlaps == []


def test_s5_process_one_is_false_while_the_only_run_waits_for_its_key(tmp_path: Path) -> None:
    app = app_on(tmp_path, worker=False)

    @app.job
    def work() -> None: ...

    with app:
        first = work.options(concurrency_key="k").trigger().wait(LONG)
        leased = "status = 'leased', turn = 2, lease_owner = 'other', lease_expires_at = ?, generation = 1"
        rows(tmp_path / "app.db", f"update holdfast_runs set {leased}", 2**60)
        second = work.options(concurrency_key="k").trigger().wait(LONG)
        assert app.process_one().wait(LONG) is False
        first.cancel().wait(LONG)
        assert app.process_one().wait(LONG) is True
        assert second.refresh().wait(LONG).status == "completed"


# -- triggers inside of runs -----------------------------------------------------------------------------------------


@in_a_loop
async def test_s5_a_trigger_inside_a_run_does_not_inherit_its_key(tmp_path: Path) -> None:
    app = app_on(tmp_path)

    @app.job
    async def child() -> str:
        return "child"

    @app.job
    async def parent(step: Step) -> str:
        return await child.run()

    async with app:
        run = await parent.options(concurrency_key="k").trigger()
        assert await run.result(LONG) == "child"
        made = await child.get_runs()
        assert [one.concurrency_key for one in made] == [None]


@in_a_loop
async def test_s5_a_run_that_waits_for_another_of_its_own_key_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    app = app_on(tmp_path)

    @app.job
    async def child() -> None: ...

    @app.job
    async def parent() -> list[str]:
        mine = child.options(concurrency_key="k")
        said = []
        for wait in (mine.run, mine.trigger_and_wait):
            with pytest.raises(WouldDeadlock, match="holds the concurrency key 'k'"):
                await wait()
            said.append("refused")
        return said

    async with app:
        run = await parent.options(concurrency_key="k").trigger()
        assert await run.result(LONG) == ["refused", "refused"]
        assert await child.get_runs() == []


@in_a_loop
async def test_s5_a_run_that_waits_for_a_pending_run_of_its_own_key_by_its_handle_is_refused(tmp_path: Path) -> None:
    app = app_on(tmp_path)

    @app.job
    async def child() -> str:
        return "done"

    @app.job
    async def parent(step: Step) -> str:
        handle = await child.options(concurrency_key="k").trigger()
        with pytest.raises(WouldDeadlock, match="begins only after its end"):
            await handle.wait()
        with pytest.raises(WouldDeadlock, match="would wait for its own end"):
            await app.wait_for_run(step.run_id)
        again = parent.options(concurrency_key="k", coalesce="active", idempotency_key="x")
        with pytest.raises(WouldDeadlock):
            await again.run()
        return handle.id

    async with app:
        run = await parent.options(concurrency_key="k").trigger()
        child_id = await run.result(LONG)
        assert await (await app.get_run(child_id)).result(LONG) == "done"  # type: ignore[union-attr]


@in_a_loop
async def test_s5_a_run_may_wait_for_an_ended_run_of_its_key_and_for_one_of_another_key(tmp_path: Path) -> None:
    app = app_on(tmp_path)

    @app.job
    async def child(name: str) -> str:
        return name

    @app.job
    async def parent() -> list[str]:
        old = child.options(concurrency_key="k", idempotency_key="old")
        return [await old.run("new"), await child.options(concurrency_key="l").run("other")]

    async with app:
        await child.options(concurrency_key="k", idempotency_key="old").run("old")
        run = await parent.options(concurrency_key="k").trigger()
        assert await run.result(LONG) == ["old", "other"]


# -- coalescing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Holdfast:
    return app_on(tmp_path, worker=False)


def test_s5_a_second_never_claimed_run_of_job_and_key_is_a_conflict_that_says_what_to_do(web: Holdfast) -> None:
    @web.job
    def work(n: int) -> None: ...

    @web.job
    def other(n: int) -> None: ...

    with web:
        work.options(concurrency_key="k").trigger(1).wait(LONG)
        with pytest.raises(ConflictError) as caught:
            work.options(concurrency_key="k").trigger(2).wait(LONG)
        message = str(caught.value)
        assert message == (
            "A pending run already exists for concurrency key 'k' in job 'work'. "
            'Use coalesce="skip" to get the existing run instead.'
        )
        assert caught.value.status == 409
        keyed = work.options(concurrency_key="k")
        for refused in (keyed.run(2), keyed.trigger_and_wait(2)):
            with pytest.raises(ConflictError):
                refused.wait(LONG)
        assert other.options(concurrency_key="k").trigger(1).wait(LONG).disposition == "created"
        assert work.options(concurrency_key="l").trigger(1).wait(LONG).disposition == "created"
        assert len({work.trigger(1).wait(LONG).id for _ in range(3)}) == 3, "without a key there is no limit"
        assert len(web.get_runs().wait(LONG)) == 6


def test_s5_skip_answers_with_the_waiting_run_as_it_is_and_tells_what_was_skipped(web: Holdfast) -> None:
    events: list[Event] = []

    @web.job(labels={"of": "job"})
    def work(n: int) -> int:
        return n

    for type in ("run:trigger", "run:coalesced"):
        web.on(type, events.append)
    with web:
        skip = work.options(concurrency_key="k", coalesce="skip")
        first = skip.options(labels={"a": "1"}).trigger(1).wait(LONG)
        second = skip.options(labels={"a": "2"}).trigger(2).wait(LONG)
        assert (first.disposition, second.disposition) == ("created", "coalesced")
        assert (second.id, second.input, second.labels) == (first.id, {"n": 1}, {"of": "job", "a": "1"})
        once = skip.options(idempotency_key="once")
        assert once.trigger(3).wait(LONG).disposition == "coalesced"
        until(lambda: len(events) == 3, "the events")
    assert [event.type for event in events] == ["run:trigger", "run:coalesced", "run:coalesced"]
    told = events[1]
    assert (told.run_id, told.job_name, told.labels) == (first.id, "work", {"of": "job", "a": "1"})
    assert told.data["skipped_input"] == {"n": 2}
    assert told.data["skipped_labels"] == {"of": "job", "a": "2"}
    assert events[2].data["skipped_labels"] == {"of": "job"}


def test_s5_idempotency_beats_keys_and_tells_nothing(web: Holdfast) -> None:
    events: list[Event] = []

    @web.job
    def work(n: int) -> int:
        return n

    web.on("run:coalesced", events.append)
    with web:
        known = work.options(idempotency_key="once", concurrency_key="k").trigger(1).wait(LONG)
        for coalesce in (None, "skip", "active"):
            again = work.options(idempotency_key="once", concurrency_key="k", coalesce=coalesce).trigger(2)
            run = again.wait(LONG)
            assert (run.disposition, run.id, run.input) == ("idempotent", known.id, {"n": 1})
    assert events == []


@in_a_loop
async def test_s5_waiting_for_a_coalesced_trigger_gives_the_output_of_the_run_that_was_there(tmp_path: Path) -> None:
    app, diary = app_on(tmp_path), Diary(open=False)

    @app.job
    async def work(name: str) -> str:
        return await diary.live(name)

    async with app:
        keyed = work.options(concurrency_key="k")
        await keyed.trigger("1")
        await diary.reads("start1")
        active = [keyed.options(coalesce="active").trigger_and_wait("x"), keyed.options(coalesce="active").run("x")]
        second = await keyed.options(coalesce="skip").trigger("2")
        assert second.disposition == "created", "skip does not look at the leased one"
        third = keyed.options(coalesce="skip").run("3")
        diary.open.set()
        outputs = [(await active[0]).output, await active[1], await third]
        assert outputs == ["1", "1", "2"]


@pytest.mark.parametrize("value", ["Skip", "", 1, True, object()], ids=lambda value: type(value).__name__)
def test_s5_an_unknown_coalesce_is_refused_and_the_valid_ones_are_named(web: Holdfast, value: Any) -> None:
    @web.job
    def work() -> None: ...

    with pytest.raises(ValidationError, match=r'Invalid coalesce value: .*Valid values: "skip", "active"\.'):
        work.options(concurrency_key="k", coalesce=value)


@pytest.mark.parametrize("key", [None, ""])
def test_s5_coalesce_without_a_key_is_refused(web: Holdfast, key: str | None) -> None:
    @web.job
    def work() -> None: ...

    with pytest.raises(ValidationError, match="coalesce requires a concurrency_key"):
        work.options(coalesce="skip", concurrency_key=key)
    with pytest.raises(ValidationError, match="coalesce requires a concurrency_key"):
        work.options(coalesce="skip", concurrency_key="k").options(concurrency_key="")


@pytest.mark.parametrize("key", [1, b"k", "k" * 256, "é" * 128, "a\0b", "\ud800"], ids=ascii)
def test_s5_a_key_that_cant_be_kept_is_refused(web: Holdfast, key: Any) -> None:
    @web.job
    def work() -> None: ...

    with pytest.raises(ValidationError, match="concurrency_key: "):
        work.options(concurrency_key=key)


def test_s5_an_empty_key_is_none(web: Holdfast) -> None:
    @web.job
    def work() -> None: ...

    with web:
        runs = [work.options(concurrency_key="").trigger().wait(LONG) for _ in range(2)]
        assert [run.concurrency_key for run in runs] == [None, None]


def test_s7_a_retrigger_keeps_the_key_and_conflicts_with_a_run_that_waits_to_start(web: Holdfast) -> None:
    @web.job(queue="default")
    def work(n: int) -> int:
        return n

    with web:
        keyed = work.options(
            concurrency_key="k", coalesce="skip", idempotency_key="i", labels={"a": "b"}, priority=3, queue="slow"
        )
        first = keyed.trigger(1).wait(LONG)
        first.cancel().wait(LONG)
        again = web.retrigger(first.id).wait(LONG)
        assert (again.disposition, again.concurrency_key, again.idempotency_key) == ("created", "k", None)
        assert (again.input, again.labels, again.priority, again.queue) == ({"n": 1}, {"a": "b"}, 3, "slow")
        with pytest.raises(ConflictError, match="concurrency key 'k' in job 'work'"):
            web.retrigger(first.id).wait(LONG)


# -- job limits ------------------------------------------------------------------------------------------------------


@in_a_loop
async def test_s5_no_more_of_a_job_than_its_limit_are_executed_in_the_whole_database(tmp_path: Path) -> None:
    apps = [app_on(tmp_path, concurrency=10, queues=("x", "y")) for _ in range(2)]
    here, most, full, gate = [0], [0], asyncio.Event(), asyncio.Event()
    jobs = []
    for app in apps:

        async def work(n: int) -> int:
            here[0] += 1
            most[0] = max(most[0], here[0])
            if here[0] == 3:
                full.set()
            await gate.wait()
            here[0] -= 1
            return n

        async def free() -> str:
            return "free"

        jobs.append((app.job(limit=3)(work), app.job(free)))
    async with apps[0], apps[1]:
        runs = [await jobs[n % 2][0].options(queue="xy"[n % 2]).trigger(n) for n in range(12)]
        assert await jobs[0][1].options(queue="x").run() == "free"
        await asyncio.wait_for(full.wait(), LONG)
        assert len(await apps[0].get_runs(status="leased")) == 3
        gate.set()
        assert [await run.result(LONG) for run in runs] == list(range(12))
    assert most == [3]


@in_a_loop
async def test_s5_the_end_of_a_run_of_a_full_job_starts_the_next_at_once(tmp_path: Path) -> None:
    app, diary = app_on(tmp_path), Diary(open=False)

    @app.job(limit=1)
    async def work(name: str) -> str:
        return await diary.live(name)

    async with app:
        app._engine.watcher.stop()  # it would see the change in the database, a little later
        first = await work.trigger("1")
        await diary.reads("start1")
        second = await work.trigger("2")
        await asyncio.to_thread(until, lambda: asleep(app), "a quiet worker")
        await first.cancel()
        await diary.reads("start1", "start2")
        diary.open.set()
        assert await second.result(LONG) == "2"


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "4", None, 2**31])
def test_s5_a_limit_is_a_whole_number_above_zero(web: Holdfast, limit: Any) -> None:
    with pytest.raises(ValidationError, match="limit: "):

        @web.job(limit=limit)
        def work() -> None: ...


def test_s5_a_sync_job_may_have_a_limit(tmp_path: Path) -> None:
    app = app_on(tmp_path)

    @app.job(limit=2)
    def work(step: SyncStep, n: int) -> int:
        return n

    with app:
        assert [run.result(LONG).wait() for run in [work.trigger(n).wait(LONG) for n in range(6)]] == list(range(6))
