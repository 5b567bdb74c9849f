"""The worker: what it claims, when, how many at once, and what stops it (S4, S9, S10)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from around import LONG, Spoiled, rows, until, url

from databases import StoreHere
from holdfast import Holdfast, Step
from holdfast.model.run import NewRun
from holdfast.store.base import Claimed, ClaimOrder, Tx
from holdfast.testing.clock import HandClock


class Log:
    """What a job was called with, in order, and how many were at it at once."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.active = 0
        self.most = 0
        self.go = threading.Event()

    def called(self, what: Any) -> None:
        self.seen.append(what)


@pytest.fixture
def log() -> Log:
    return Log()


def make(tmp_path: Path, log: Log, **options: Any) -> tuple[Holdfast, Any]:
    app = Holdfast(options.pop("url", url(tmp_path)), **options)

    @app.job
    def note(n: int) -> int:
        log.called(n)
        return n

    return app, note


# -- claiming ----------------------------------------------------------------------------------------------------


def test_no_more_runs_execute_at_once_than_concurrency_says(tmp_path: Path, log: Log) -> None:
    app = Holdfast(url(tmp_path), concurrency=3)
    lock = threading.Lock()

    @app.job
    def hold(n: int) -> None:
        with lock:
            log.active += 1
            log.most = max(log.most, log.active)
        assert log.go.wait(LONG)
        with lock:
            log.active -= 1

    with app:
        runs = [hold.trigger(n).wait(LONG) for n in range(10)]
        until(lambda: log.active == 3)
        assert len(app.get_runs(status="leased").wait(LONG)) == 3
        log.go.set()
        for run in runs:
            run.result().wait(LONG)
    assert log.most == 3


def test_a_freed_slot_is_filled_at_once_not_at_the_next_poll(tmp_path: Path, log: Log) -> None:
    app, note = make(tmp_path, log, concurrency=1, clock=HandClock())  # time stands still: nothing is ever polled
    with app:
        runs = [note.trigger(n) for n in range(20)]
        assert [run.wait(LONG).result().wait(LONG) for run in runs] == list(range(20))


def test_what_a_dead_process_left_is_all_taken_over_at_one_look_however_much(tmp_path: Path, log: Log) -> None:
    app, note = make(tmp_path, log, clock=HandClock())  # time stands still: there is no second look
    app.migrate().wait(LONG)
    for reply in [note.trigger(n) for n in range(250)]:
        reply.wait(LONG)
    rows(
        tmp_path / "app.db",
        "update holdfast_runs set status = 'leased', lease_owner = 'dead', lease_expires_at = 0, generation = 1",
    )
    with app:
        until(lambda: len(log.seen) == 250)
    assert sorted(log.seen) == list(range(250))


def test_runs_are_taken_by_priority_then_age(tmp_path: Path, log: Log) -> None:
    app, note = make(tmp_path, log)
    app.migrate().wait(LONG)
    for n, priority in enumerate([0, 5, -1, 5, 0]):
        note.options(priority=priority).trigger(n).wait(LONG)
    assert app.process_until_idle().wait(LONG) == 5
    assert log.seen == [1, 3, 0, 4, 2]
    app.stop().wait(LONG)


def test_unknown_jobs_stay_pending_and_nobody_runs_hot_over_them(tmp_path: Path, log: Log) -> None:
    other = Holdfast(url(tmp_path), worker=False)

    @other.job
    def unknown() -> None: ...

    other.init().wait(LONG)
    for _ in range(3):
        unknown.trigger().wait(LONG)
    store = Spoiled(url(tmp_path))
    app, note = make(tmp_path, log, url=store, clock=HandClock())
    with app:
        assert note.run(1).wait(LONG) == 1
        until(lambda: app._engine.worker is not None and app._engine.worker._asleep)
        claims, checks = store.claims, app._engine.watcher.checks
        unknown.trigger().wait(LONG)  # a change that leads to nothing
        until(lambda: app._engine.watcher.checks > checks + 5)
        assert store.claims == claims
        assert {run.status for run in app.get_runs(job="unknown").wait(LONG)} == {"pending"}
    other.stop().wait(LONG)
    assert claims <= 4


def test_only_the_queues_of_the_worker_are_served(tmp_path: Path, log: Log) -> None:
    app, note = make(tmp_path, log, queues=["fast", "default"])
    app.migrate().wait(LONG)
    note.options(queue="slow").trigger(1).wait(LONG)
    note.options(queue="fast").trigger(2).wait(LONG)
    note.trigger(3).wait(LONG)
    assert app.process_until_idle().wait(LONG) == 2
    assert sorted(log.seen) == [2, 3]
    app.stop().wait(LONG)


def test_a_delayed_run_starts_when_its_time_has_come_without_polling(tmp_path: Path, log: Log) -> None:
    clock = HandClock()
    app, note = make(tmp_path, log, clock=clock, polling_interval="30d")
    with app:
        run = note.options(delay="1h").trigger(1).wait(LONG)
        until(lambda: clock.next_timer() == 3600, "a timer for the run")
        clock.advance(3599)
        assert run.refresh().wait(LONG).status == "pending"
        clock.advance(1)
        assert run.result().wait(LONG) == 1


def test_a_run_that_is_due_later_does_not_hide_one_that_is_due_sooner(tmp_path: Path, log: Log) -> None:
    clock = HandClock()
    app, note = make(tmp_path, log, clock=clock, polling_interval="30d")
    with app:
        note.options(delay="2h").trigger(2).wait(LONG)
        until(lambda: clock.next_timer() == 7200)
        sooner = note.options(delay="1h").trigger(1).wait(LONG)
        until(lambda: clock.next_timer() == 3600)
        clock.advance(3600)
        assert sooner.result().wait(LONG) == 1
        assert log.seen == [1]


def test_a_job_that_is_registered_while_the_worker_runs_is_taken_too(tmp_path: Path, log: Log) -> None:
    app, _ = make(tmp_path, log, clock=HandClock())
    with app:

        @app.job
        def late(n: int) -> int:
            return -n

        assert late.run(4).wait(LONG) == -4


# -- trouble -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["input", "labels", "trace", "codec", "error"])
def test_a_row_that_was_edited_by_hand_stops_neither_the_others_nor_lists(
    tmp_path: Path, log: Log, column: str
) -> None:
    app, note = make(tmp_path, log)
    app.on("run:leased", lambda event: None)
    app.on("run:complete", lambda event: None)
    app.migrate().wait(LONG)
    runs = [note.trigger(n).wait(LONG) for n in range(3)]
    rows(tmp_path / "app.db", f"update holdfast_runs set {column} = '[{{\"' where id = ?", runs[0].id)
    with app:
        ended = [run.wait().wait(LONG) for run in runs]
        assert [run.status for run in ended[1:]] == ["completed"] * 2
        assert ended[0].status == ("failed" if column == "input" else "completed")
        assert len(app.get_runs().wait(LONG)) == 3
        assert [run.output for run in app.get_runs(status="completed", limit=2).wait(LONG)] == [2, 1]


@pytest.mark.parametrize("text", ["{", "[", "\x01", "null", "99999999999999999999999999"])
def test_a_saved_step_or_progress_that_was_edited_by_hand_fails_that_run_only(tmp_path: Path, text: str) -> None:
    app = Holdfast(url(tmp_path))

    @app.job
    async def job(step: Step, n: int) -> int:
        step.progress(1)
        return await step.run("double", lambda: n * 2)

    app.migrate().wait(LONG)
    broken, fine = job.trigger(1).wait(LONG), job.trigger(2).wait(LONG)
    rows(
        tmp_path / "app.db",
        "insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, fingerprint, "
        "output, started_at, completed_at) values (?, 'double', 0, 0, 'completed', 0, 1, null, ?, 1, 1)",
        broken.id,
        text,
    )
    rows(tmp_path / "app.db", "update holdfast_runs set generation = 1 where id = ?", broken.id)
    rows(tmp_path / "app.db", "insert into holdfast_progress values (?, ?, 1)", broken.id, text)
    with app:
        assert fine.result().wait(LONG) == 4
        ended = broken.wait().wait(LONG)
        assert ended.is_terminal
        assert len(app.get_runs().wait(LONG)) == 2


def test_s9_errors_of_the_database_on_claiming_are_told_with_growing_pauses_and_pass(tmp_path: Path, log: Log) -> None:
    clock, errors, store = HandClock(), [], Spoiled(url(tmp_path))
    app, note = make(tmp_path, log, url=store, clock=clock, polling_interval="30d")
    app.on("worker:error", lambda event: errors.append((event.context, event.error)))
    app.migrate().wait(LONG)
    run = note.trigger(1).wait(LONG)
    store.failing_claims = 5
    with app:
        pauses = []
        for failed in range(1, 6):
            until(lambda failed=failed: store.failing_claims == 5 - failed and len(errors) == failed)
            until(lambda: (clock.next_timer() or 1e9) < 1e6)
            pauses.append(round(clock.next_timer() or 0, 3))
            clock.advance(pauses[-1])
        assert run.result().wait(LONG) == 1
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert {context for context, _ in errors} == {"claim"}
    assert "on fire" in errors[0][1]


def test_what_a_claim_with_a_lost_answer_leased_is_given_anew_at_once(tmp_path: Path, log: Log) -> None:
    store = Spoiled(url(tmp_path))
    app, note = make(tmp_path, log, url=store, clock=HandClock())
    with app:
        store.lost_commits = 1
        run = note.trigger(7).wait(LONG).wait().wait(LONG)
    assert (run.status, run.crashes, run.generation) == ("completed", 0, 3)
    assert log.seen == [7]


def test_a_claim_that_is_played_again_takes_nothing_from_another_one_of_its_worker(tmp_path: Path, log: Log) -> None:
    store = Spoiled(url(tmp_path))
    app, note = make(tmp_path, log, url=store)
    app.migrate().wait(LONG)
    for n in (1, 2):
        note.trigger(n).wait(LONG)
    committer, done = app._engine.committer, list[bool]()
    store.lost_commits = 1
    committer.gate = threading.Event()
    threads = [threading.Thread(target=lambda: done.append(app.process_one().wait(LONG))) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: [ticket.verb for ticket in committer._line].count("claim") == 2, "two claims in one round")
    committer.gate.set()
    for thread in threads:
        thread.join()
    assert done == [True, True]
    assert sorted(log.seen) == [1, 2]
    app.stop().wait(LONG)


class Slow(StoreHere):
    """Holds up claims while it is told to."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.asked, self.go = threading.Event(), threading.Event()
        self.go.set()

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        self.asked.set()
        assert self.go.wait(LONG)
        return super().claim(tx, orders)


class News(StoreHere):
    """Somebody comes right after a claim was committed that has found nothing, before the worker is told."""

    comes: Callable[[], None] | None = None
    found_nothing = False

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        got = super().claim(tx, orders)
        self.found_nothing = not any(claimed.runs for claimed in got)
        return got

    def commit(self, tx: Tx) -> None:
        super().commit(tx)
        found_nothing, self.found_nothing = self.found_nothing, False
        if self.comes is not None and found_nothing:
            comes, self.comes = self.comes, None
            comes()


def test_a_trigger_that_comes_while_a_claim_finds_nothing_is_not_overlooked(tmp_path: Path, log: Log) -> None:
    store, beside = News(url(tmp_path)), StoreHere(url(tmp_path))
    # Time stands still: nothing is ever polled.
    app, _ = make(tmp_path, log, url=store, clock=HandClock(), worker="thread")

    with app:
        app._engine.watcher.stop()  # it would see the change in the database, a little later
        worker = app._engine.worker
        assert worker is not None

        def trigger() -> None:
            connection = beside.connect()
            tx = beside.begin(connection)
            beside.trigger(tx, [NewRun("a", "note", '{"n":7}')])
            beside.commit(tx)
            beside.disconnect(connection)
            worker.wake()

        store.comes = trigger
        worker.wake()  # it looks, and finds nothing
        until(lambda: log.seen == [7], "the run")
    store.close()
    beside.close()


def test_a_trigger_that_is_written_right_after_a_claim_that_found_nothing_is_not_overlooked(
    tmp_path: Path, log: Log
) -> None:
    store = News(url(tmp_path))
    app, note = make(tmp_path, log, url=store, clock=HandClock(), worker="thread")
    with app:
        app._engine.watcher.stop()
        worker = app._engine.worker
        assert worker is not None
        written = threading.Event()
        until(lambda: worker._asleep, "the worker's sleep")

        def trigger() -> None:
            worker.in_loop(lambda: written.wait(LONG))  # the loop hears of the claim and of the trigger at once
            note.trigger(7).when_done(written.set)

        store.comes = trigger
        worker.wake()
        until(lambda: log.seen == [7], "the run")
    store.close()


def test_a_run_that_is_triggered_beside_an_idle_worker_is_claimed_in_the_round_that_writes_it(
    tmp_path: Path, log: Log
) -> None:
    async def main() -> int:
        app, note = make(tmp_path, log)
        async with app:
            await note.run(1)
            before = app._engine.committer.rounds
            await note.run(2)
            return app._engine.committer.rounds - before

    # The other round writes the end.
    assert asyncio.run(main()) == 2


def test_a_claim_that_is_cancelled_with_all_tasks_of_its_loop_hands_back_and_is_not_the_last(
    tmp_path: Path, log: Log
) -> None:
    store = Slow(url(tmp_path))
    app, note = make(tmp_path, log, url=store, polling_interval=0.05)

    async def main() -> None:
        async with app:
            store.go.clear()
            run = note.trigger(1)
            store.asked.clear()
            await asyncio.to_thread(store.asked.wait, LONG)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            store.go.set()
            async with asyncio.timeout(LONG):
                ended = await (await run).wait()
            assert (ended.status, ended.crashes) == ("completed", 0)

    asyncio.run(main())
    assert log.seen == [1]


def test_what_a_claim_leased_whose_answer_never_came_is_recalled_before_the_next_one(tmp_path: Path, log: Log) -> None:
    clock, store = HandClock(), Spoiled(url(tmp_path))
    app, _note = make(tmp_path, log, url=store, clock=clock, polling_interval="30d")
    with app:
        store.lost_commits, store.dead_commits = 1, 1
        other, theirs = make(tmp_path, log, worker=False, clock=clock)  # so that the claim has a round of its own
        pending = theirs.trigger(7).wait(LONG)
        assert app._engine.worker is not None
        app._engine.worker.wake()  # where nobody is told of others' commits, it would look in a month
        until(lambda: clock.next_timer() == 0.1, "the pause after the error")
        assert pending.refresh().wait(LONG).status == "leased"
        clock.advance(0.1)
        run = pending.wait().wait(LONG)
        other.stop().wait(LONG)
    assert (run.status, run.crashes, run.generation) == ("completed", 0, 3)
    assert log.seen == [7]


def test_s4_a_worker_with_too_many_stuck_functions_claims_again_when_they_return(tmp_path: Path, log: Log) -> None:
    app = Holdfast(url(tmp_path), concurrency=1, cancel_grace=0, clock=HandClock())
    errors: list[str] = []
    app.on("worker:error", lambda event: errors.append(event.context))

    @app.job
    def stuck() -> None:
        log.called(1)
        assert log.go.wait(LONG)

    with app:
        for n in (1, 2):
            run = stuck.trigger().wait(LONG)
            until(lambda n=n: len(log.seen) == n)
            run.cancel().wait(LONG)
            until(lambda n=n: errors.count("abandoned") == n)
        third = stuck.trigger().wait(LONG)
        assert third.refresh().wait(LONG).status == "pending"
        log.go.set()
        assert third.wait().wait(LONG).status == "completed"


# -- one by one --------------------------------------------------------------------------------------------------


def test_process_one_executes_one_run_and_says_whether_there_was_any(tmp_path: Path, log: Log) -> None:
    app, note = make(tmp_path, log)
    app.migrate().wait(LONG)
    assert app.process_one().wait(LONG) is False
    note.trigger(1).wait(LONG)
    note.trigger(2).wait(LONG)
    assert app.process_one().wait(LONG) is True
    assert log.seen == [1]
    assert app.process_one().wait(LONG) is True
    assert app.process_one().wait(LONG) is False
    app.stop().wait(LONG)


def test_process_until_idle_stops_at_max_runs_and_at_max_seconds(tmp_path: Path) -> None:
    clock = HandClock()
    app = Holdfast(url(tmp_path), clock=clock)

    @app.job
    def slow() -> None:
        clock.advance(10)

    app.migrate().wait(LONG)
    for _ in range(9):
        slow.trigger().wait(LONG)
    assert app.process_until_idle(max_runs=2).wait(LONG) == 2
    assert app.process_until_idle(max_seconds=25).wait(LONG) == 3
    assert app.process_until_idle(max_runs=0).wait(LONG) == 0
    assert app.process_until_idle().wait(LONG) == 4
    app.stop().wait(LONG)


def test_runs_are_processed_in_the_loop_of_the_caller_too(tmp_path: Path) -> None:
    app = Holdfast(url(tmp_path))
    loops = []

    @app.job
    async def here(n: int) -> int:
        loops.append(asyncio.get_running_loop())
        return n

    async def main() -> None:
        await app.migrate()
        runs = [await here.trigger(n) for n in range(3)]
        assert await app.process_one()
        assert await app.process_until_idle() == 2
        assert [await run.result() for run in runs] == [0, 1, 2]
        assert set(loops) == {asyncio.get_running_loop()}
        await app.stop()

    asyncio.run(main())


def test_two_apps_share_a_backlog_and_every_run_executes_once(tmp_path: Path, log: Log) -> None:
    apps = [make(tmp_path, log)[0] for _ in range(2)]
    apps[0].migrate().wait(LONG)
    for n in range(60):
        apps[0].jobs.note.trigger(n).wait(LONG)
    counts = [app.process_until_idle() for app in apps]
    threads = [threading.Thread(target=count.wait, args=(LONG,)) for count in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(count.wait(LONG) for count in counts) == 60
    assert sorted(log.seen) == list(range(60))
    for app in apps:
        app.stop().wait(LONG)


def test_a_stopped_app_can_process_again(tmp_path: Path, log: Log) -> None:
    app, note = make(tmp_path, log)
    with app:
        note.run(1).wait(LONG)
    assert app.process_until_idle().wait(LONG) == 0
    note.trigger(2).wait(LONG)
    assert app.process_one().wait(LONG)
    app.stop().wait(LONG)
    assert log.seen == [1, 2]


# -- where -------------------------------------------------------------------------------------------------------


def test_s10_an_app_without_a_worker_triggers_and_watches_only(tmp_path: Path, log: Log) -> None:
    web, note = make(tmp_path, log, worker=False)
    web.init().wait(LONG)
    run = note.trigger(5).wait(LONG)
    assert web._engine.worker is None
    assert run.refresh().wait(LONG).status == "pending"
    waiting = run.result()
    app, _ = make(tmp_path, log)
    with app:
        assert waiting.wait(LONG) == 5
    web.stop().wait(LONG)


def test_s10_a_worker_on_a_thread_keeps_blocking_jobs_away_from_the_callers_loop(tmp_path: Path) -> None:
    app = Holdfast(url(tmp_path), worker="thread")
    go = threading.Event()

    @app.job
    async def rude() -> str:
        assert go.wait(LONG)
        return "done"

    async def main() -> None:
        async with app:
            run = await rude.trigger()
            go.set()  # reached only because this loop is not the one that is blocked
            assert await run.result() == "done"

    asyncio.run(main())


def test_many_threads_may_trigger_at_once(tmp_path: Path, log: Log) -> None:
    app, note = make(tmp_path, log)
    with app:

        def trigger(first: int) -> None:
            for n in range(first, first + 25):
                note.run(n).wait(LONG)

        threads = [threading.Thread(target=trigger, args=(100 * i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(log.seen) == [100 * i + n for i in range(6) for n in range(25)]


# -- stopping ----------------------------------------------------------------------------------------------------


def test_s4_a_claim_that_is_under_way_when_the_worker_stops_is_handed_back(tmp_path: Path, log: Log) -> None:
    store = Spoiled(url(tmp_path))
    app, _note = make(tmp_path, log, url=store)
    other, _ = make(tmp_path, log, worker=False)
    app.init().wait(LONG)
    until(lambda: app._engine.worker is not None and app._engine.worker._asleep)
    app._engine.committer.gate = gate = threading.Event()
    run = other.jobs.note.trigger(1).wait(LONG)
    assert app._engine.worker is not None
    worker = app._engine.worker
    until(lambda: worker._claiming, "a claim")
    stopping = app.stop()
    thread = threading.Thread(target=stopping.wait, args=(LONG,))
    thread.start()
    until(lambda: worker._stopping)
    gate.set()
    thread.join()
    after = other.get_run(run.id).wait(LONG)
    assert after is not None
    assert (after.status, after.generation, after.crashes, after.attempt) == ("pending", 1, 0, 0)
    assert log.seen == []
    other.stop().wait(LONG)


def test_s4_a_run_that_drains_may_still_trigger_but_nobody_else_may(tmp_path: Path, log: Log) -> None:
    app, note = make(tmp_path, log)
    started = threading.Event()

    @app.job
    def parent() -> str:
        started.set()
        assert log.go.wait(LONG)
        return note.trigger(1).wait(LONG).id

    app.init().wait(LONG)
    run = parent.trigger().wait(LONG)
    assert started.wait(LONG)
    stopping = app.stop()
    thread = threading.Thread(target=stopping.wait, args=(LONG,))
    thread.start()
    until(lambda: app._engine.stopping)
    with pytest.raises(Exception, match="takes no more triggers"):
        note.trigger(2).wait(LONG)
    log.go.set()
    thread.join()
    other, _ = make(tmp_path, log, worker=False)
    ended = other.get_run(run.id).wait(LONG)
    assert ended is not None
    assert (ended.status, ended.error) == ("completed", None)
    other.stop().wait(LONG)


def test_a_worker_that_comes_back_is_another_worker(tmp_path: Path, log: Log) -> None:
    app, note = make(tmp_path, log)
    owners = []
    app.on("run:leased", lambda event: owners.append(event.lease_owner))
    for n in range(2):
        with app:
            note.run(n).wait(LONG)
    assert len(set(owners)) == 2
