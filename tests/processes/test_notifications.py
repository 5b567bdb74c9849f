"""Processes that tell each other what they commit, and that find it out when they are not told.

Those of the first part run on every database, the others on PostgreSQL.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from child import LONG, Child, child

import databases
import servers
from deaf_link import DeafLink
from holdfast import Holdfast, Run
from holdfast.commit.reply import Reply

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)

POLITE = f"polling_interval={databases.UNHURRIED}, lease=60, lease_renew_interval=20"
"""Nothing within a test can be the work of a renewal, nor of polling where somebody is told."""

#: What a worker has to be told of takes no longer, on a machine that does other things, too.
SOON = 15.0

WORKER = """
app = Holdfast(URL, OPTIONS)
through = threading.Event()

@app.job
async def hold(step: Step, n: int) -> int:
    if n < 0:
        say("began")
        say(await step.signal)
    if n > 10**6:
        say("in the middle")
        while not await asyncio.to_thread(through.wait, 0.1):
            step.progress(n := n + 1)
        n = 10**6
    return n

with app:
    say("ready")
    while (line := heard()) != "end":
        if line == "through":
            through.set()
        else:
            watch = app._engine.watcher._watching
            while watch.pace != "told":
                threading.Event().wait(0.01)
            say(watch.connection.pg.info.backend_pid)
"""


def a_worker(path: Path, options: str = POLITE, url: str | None = None) -> Any:
    script = WORKER.replace("OPTIONS", options)
    return child(path, script if url is None else f"URL = {url!r}\n{script}")


def ready(one: Child) -> Child:
    assert one.hear() == "ready"
    return one


@contextmanager
def watching(url: str, **options: Any) -> Iterator[tuple[Holdfast, Any]]:
    """An app of this process, that does not execute."""
    app = Holdfast(url, worker=False, **options)

    @app.job
    def hold(n: int) -> int:
        return n

    app.init().wait(LONG)
    yield app, hold
    app.stop().wait(LONG)


def until(told: Callable[[], bool], what: str = "") -> None:
    end = time.monotonic() + LONG
    while not told():
        assert time.monotonic() < end, what
        threading.Event().wait(0.01)


def took(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def started(run: Run[Any]) -> float:
    """Seconds from the trigger to the start of a run that has ended."""
    assert run.started_at is not None
    return (run.started_at - run.created_at).total_seconds()


# ── On every database ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cancel_reaches_a_run_in_another_process_within_a_second(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with a_worker(path) as worker, watching(databases.url(path)) as (_, hold):
        ready(worker)
        lags = []
        for _ in range(5):
            run = hold.trigger(-1).wait(LONG)
            assert worker.hear() == "began"
            run.cancel().wait(LONG)
            lags.append(took(lambda: worker.hear() == "cancelled"))
        worker.tell("end")
        worker.end()
    assert min(lags) < 1, lags
    assert max(lags) < SOON, lags


def test_an_end_is_seen_from_another_process_at_once(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with a_worker(path) as worker, watching(databases.url(path)) as (_, hold):
        ready(worker)
        lags = []
        for n in range(10):
            ended = hold.trigger(n).wait(LONG).wait().wait(LONG)
            lags.append(time.time() - ended.completed_at.timestamp())
        worker.tell("end")
        worker.end()
    assert statistics.median(lags) < 1, lags


def test_progress_is_seen_from_another_process_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with a_worker(path) as worker, watching(databases.url(path)) as (app, hold):
        ready(worker)
        run = hold.trigger(10**6 + 1).wait(LONG)
        assert worker.hear() == "in the middle"
        seen: list[Any] = []

        def noted(progress: Any) -> None:
            seen.append(progress["current"])
            worker.tell("through")

        app.wait_for_run(run.id, on_progress=noted).wait(LONG)
        worker.tell("end")
        worker.end()
    assert seen
    assert seen == sorted(set(seen)), "each once, in order"


def test_of_three_workers_one_is_killed_and_the_others_do_it_all(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    quick = "polling_interval=0.5, lease=2, concurrency=2"
    with (
        a_worker(path, quick) as first,
        a_worker(path, quick) as second,
        a_worker(path, quick) as third,
        watching(databases.url(path)) as (app, hold),
    ):
        for one in (first, second, third):
            ready(one)
        held = [hold.trigger(10**6 + n).wait(LONG) for n in range(1, 7)]  # both slots of each
        for one in (first, second, third):
            assert [one.hear(), one.hear()] == ["in the middle"] * 2
        others = [hold.trigger(n).wait(LONG) for n in range(50)]
        first.kill()
        for one in (second, third):
            one.tell("through")
        ended = [app.wait_for_run(run.id).wait(LONG) for run in [*held, *others]]
        for one in (second, third):
            one.tell("end")
            one.end()
    assert {run.status for run in ended} == {"completed"}
    assert [run.output for run in ended] == [*[10**6] * 6, *range(50)]
    assert sorted(run.generation for run in ended[:6]) == [1, 1, 1, 1, 3, 3], "taken back, and claimed again"
    assert {run.generation for run in ended[6:]} == {1}, "nobody did what another one was at"


# ── On PostgreSQL ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_is_told_starts_at_once(tmp_path: Path, postgres_url: str) -> None:
    with watching(postgres_url) as (_, hold), a_worker(tmp_path / "app.db", url=postgres_url) as worker:
        ready(worker)
        ended = [hold.trigger(n).wait(LONG).wait().wait(LONG) for n in range(20)]
        worker.tell("end")
        worker.end()
    assert statistics.median(map(started, ended)) < 1, [started(run) for run in ended]


def test_who_has_just_spoken_hears_what_comes_next_at_once(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process hears its own words, too. It must not sleep over the next one after them."""
    paused: list[float] = []
    with watching(postgres_url, polling_interval=databases.UNHURRIED) as (app, hold):
        watcher = app._engine.watcher
        watcher.start()
        until(lambda: watcher._watching is not None and watcher._watching.pace == "told" and not watcher._again)
        until(lambda: watcher._at_once >= 3, "it has been at rest for a while")
        wait = watcher._wake.wait
        monkeypatch.setattr(watcher._wake, "wait", lambda seconds: paused.append(seconds) or wait(seconds))
        for n in range(3):
            seen = watcher.checks
            hold.trigger(n).wait(LONG)
            until(lambda seen=seen: watcher.checks > seen)
        assert paused == []
        for n in range(100):
            hold.trigger(n).wait(LONG)
        assert paused, "many words in a row wait for each other"


def test_who_begins_to_wait_after_the_word_of_the_end_is_told_of_it(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.watcher._WAITING_TOLD", databases.UNHURRIED)
    with (
        watching(postgres_url, polling_interval=databases.UNHURRIED) as (app, hold),
        a_worker(tmp_path / "app.db", url=postgres_url) as worker,
    ):
        ready(worker)
        watcher, awaited = app._engine.watcher, Reply[Any]("end")
        hold.trigger(1).wait(LONG).wait().wait(LONG)  # from now on this process is told
        run = hold.trigger(2).wait(LONG)
        until(lambda: run.id in watcher._passed)
        until(lambda: time.monotonic() - watcher._all_passed_at > 1, "it was told of this very run")
        app._engine.hub.expect(run.id, awaited)
        assert awaited.wait(LONG).output == "2"
        worker.tell("end")
        worker.end()


def test_nobody_looks_for_a_run_that_is_waited_for_where_its_end_will_be_told(
    tmp_path: Path, postgres_url: str
) -> None:
    with watching(postgres_url, polling_interval=databases.UNHURRIED) as (app, hold):
        run = hold.trigger(1).wait(LONG)
        watcher, gone = app._engine.watcher, Reply[Any]("end")
        watcher.start()
        until(lambda: watcher._watching is not None and watcher._watching.pace == "told" and not watcher._again)
        until(lambda: time.monotonic() - watcher._all_passed_at > 1)
        app._engine.hub.expect(run.id, gone)
        assert not watcher._again
        app._engine.hub.forget(run.id, gone)


def test_w1_without_any_notification_a_run_starts_when_it_is_looked_for(tmp_path: Path, postgres_url: str) -> None:
    with watching(postgres_url) as (_, hold), DeafLink(postgres_url) as link:
        with a_worker(tmp_path / "app.db", "polling_interval=1", link.url) as worker:
            ready(worker)
            ended = []
            for n in range(5):
                # Somewhere between two looks.
                threading.Event().wait(0.3 * n)
                ended.append(hold.trigger(n).wait(LONG).wait().wait(LONG))
            run = hold.trigger(-1).wait(LONG)
            assert worker.hear() == "began"
            run.cancel().wait(LONG)
            lag = took(lambda: worker.hear() == "cancelled")
            worker.tell("end")
            worker.end()
        assert link.swallowed > 5
    assert statistics.median(map(started, ended)) < 1 + 1, [started(run) for run in ended]
    assert max(map(started, ended)) < SOON
    assert lag < SOON, "it looks after what it holds twice a second; a renewal would come after ten"


def test_w1_who_waits_without_any_notification_is_answered(tmp_path: Path, postgres_url: str) -> None:
    with watching(postgres_url), a_worker(tmp_path / "app.db", url=postgres_url) as worker:
        ready(worker)
        with DeafLink(postgres_url) as link, watching(link.url, polling_interval=60) as (app, hold):
            run = hold.trigger(10**6 + 1).wait(LONG)
            assert worker.hear() == "in the middle"
            answered: list[float] = []
            waiter = threading.Thread(target=lambda: answered.append(run.wait().wait(LONG) and time.time()))
            waiter.start()
            while not app._engine.hub.awaited:
                waiter.join(0.01)
            for _ in range(3):  # who waits has looked before these, which are answered in turn
                waiter.join(0.1)
                assert app.get_run(run.id).wait(LONG).status == "leased"
            worker.tell("through")
            waiter.join(LONG)
            ended = run.refresh().wait(LONG)
        worker.tell("end")
        worker.end()
    assert answered[0] - ended.completed_at.timestamp() < SOON


def test_a_listener_whose_connection_is_cut_goes_on(tmp_path: Path, postgres_url: str) -> None:
    with watching(postgres_url) as (app, hold), a_worker(tmp_path / "app.db", url=postgres_url) as worker:
        ready(worker)
        took_long = []
        for n in range(5):
            cut = [(False,)]  # it may still believe in the one before
            while cut != [(True,)]:
                worker.tell("who listens?")
                cut = servers.execute(postgres_url, f"select pg_terminate_backend({worker.hear()})")
            ended = hold.trigger(n).wait(LONG).wait().wait(LONG)
            took_long.append(started(ended))
        assert app.get_run(ended.id).wait(LONG).output == 4
        worker.tell("end")
        worker.end()
    assert max(took_long) < SOON, took_long


def test_w3_a_storm_of_words_that_are_not_ours_harms_nobody(tmp_path: Path, postgres_url: str) -> None:
    bad = ["", "x", "x + '; drop table holdfast_runs; --", '{"a": 1}', "x * *", "x - " + "z" * 7900]
    with watching(postgres_url) as (app, hold), a_worker(tmp_path / "app.db", url=postgres_url) as worker:
        ready(worker)
        run = hold.trigger(-1).wait(LONG)
        assert worker.hear() == "began"
        with closing(servers.connect(postgres_url)) as stranger:
            for _ in range(100):
                stranger.execute(
                    "select pg_notify('holdfast_public', (%s::text[])[n %% 6 + 1] || case when n %% 6 in (1, 3) "
                    "then n::text else '' end) from generate_series(1, 100) as n",
                    [bad],
                )
        began = time.monotonic()
        assert hold.trigger(7).wait(LONG).wait().wait(LONG).output == 7
        assert time.monotonic() - began < SOON
        run.cancel().wait(LONG)
        assert worker.hear() == "cancelled"
        assert {one.status for one in app.get_runs().wait(LONG)} == {"completed", "cancelled"}
        worker.tell("end")
        worker.end()


def test_a_listener_that_is_asked_to_look_by_strangers_leaves_the_time_to_others(postgres_url: str) -> None:
    with watching(postgres_url) as (app, hold):
        run = hold.trigger(1).wait(LONG)
        with pytest.raises(TimeoutError):
            run.wait().wait(0.2)
        watcher = app._engine.watcher
        before, began = watcher.checks, time.monotonic()
        with closing(servers.connect(postgres_url)) as stranger:
            for _ in range(1000):
                stranger.execute("select pg_notify('holdfast_public', 'whatever')")
        looked, seconds = watcher.checks - before, time.monotonic() - began
    assert looked <= seconds / 0.005 + seconds / 0.01 + 6, "but for a few, every 5 ms, and one more every 10"


VERSIONS = """
app = Holdfast(URL, polling_interval=60, lease=60, lease_renew_interval=20)

@app.job
def JOB(n: int) -> str:
    return f"JOB {n}"

with app:
    say("ready")
    heard()
"""


def test_two_versions_side_by_side_claim_only_what_each_of_them_knows(tmp_path: Path, postgres_url: str) -> None:
    scripts = [f"URL = {postgres_url!r}\n" + VERSIONS.replace("JOB", job) for job in ("older", "newer")]
    app = Holdfast(postgres_url, worker=False)

    @app.job
    def older(n: int) -> str: ...

    @app.job
    def newer(n: int) -> str: ...

    app.init().wait(LONG)
    with child(tmp_path / "app.db", scripts[0]) as one, child(tmp_path / "app.db", scripts[1]) as two:
        ready(one)
        ready(two)
        runs = [job.trigger(n).wait(LONG) for n in range(10) for job in (older, newer)]
        ended = [app.wait_for_run(run.id).wait(LONG) for run in runs]
        workers = {run.id: run for run in ended}
        for process in (one, two):
            process.tell()
            process.end()
    app.stop().wait(LONG)
    assert [run.output for run in ended] == [f"{job} {n}" for n in range(10) for job in ("older", "newer")]
    assert {run.generation for run in workers.values()} == {1}


def test_where_nobody_tells_anything_who_has_just_found_something_looks_more_often(mariadb_url: str) -> None:
    polling = 4.0

    def app_with(**options: Any) -> tuple[Holdfast, Any]:
        app = Holdfast(mariadb_url, polling_interval=polling, **options)

        @app.job
        def answer() -> int:
            return 42

        app.init().wait(LONG)
        return app, answer

    worker, _ = app_with()
    asker, answer = app_with(worker=False)
    took = []
    for _ in range(4):
        began = time.perf_counter()
        assert answer.run().wait(LONG) == 42
        took.append(time.perf_counter() - began)
    asker.stop().wait(LONG)
    worker.stop().wait(LONG)
    assert max(took[1:]) < polling / 2, took
