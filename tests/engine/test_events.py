"""All events: their names, what they carry, their order; an application's own; listeners that are too slow."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any, get_args

import pytest
from around import LONG, rows, until, url

from holdfast import Event, EventType, Holdfast, Step, SyncStep, ValidationError, is_domain_event
from holdfast.engine import hub as module
from holdfast.engine.hub import EVENTS, Hub
from holdfast.testing.clock import HandClock

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "events.md"
DOMAIN = {"run:trigger", "run:coalesced", "run:complete", "run:fail", "run:cancel", "run:delete"}


def names() -> set[str]:
    return {name for part in get_args(EventType) for name in (get_args(part) or (part,))}


def recorder(app: Holdfast) -> list[Event]:
    heard: list[Event] = []
    for name in sorted(EVENTS):
        app.on(name, heard.append)
    return heard


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_fifteen_names_of_the_ancestor_are_there() -> None:
    assert names() >= DOMAIN | {
        "run:leased", "run:lease-renewed", "run:progress", "step:start", "step:complete", "step:fail", "step:cancel",
        "log:write", "worker:error",
    }  # fmt: skip
    assert names() == EVENTS


def test_the_page_has_a_row_for_each_of_them() -> None:
    page = PAGE.read_text("utf-8")
    assert [name for name in sorted(EVENTS) if f"| `{name}` |" not in page] == []


def test_six_of_them_are_domain_events() -> None:
    clock = HandClock()
    one, heard = Hub(clock, inline=True), []
    for name in EVENTS:
        one.on(name, heard.append)
        one.tell(name)
    assert {event.type for event in heard if event.is_domain} == DOMAIN
    assert {event.type for event in heard if is_domain_event(event)} == DOMAIN
    assert len(heard) == len(EVENTS)


# -- what they carry, and in which order -------------------------------------------------------------------------------


def test_every_event_of_a_run_says_which_run_it_is(tmp_path: Path) -> None:
    app = Holdfast(url(tmp_path))
    heard = recorder(app)

    @app.job(labels={"tenant": "a"})
    async def job(step: Step, n: int) -> int:
        step.log.info("bare")
        step.log.info("with", n=n)
        step.progress(1)
        step.progress(2, 3, "of three")
        await step.run("a", int, n)
        if n < 0:
            await step.run("b", int, "no number")
        return n

    with app:
        for n in (1, -1):
            app.wait_for_run(job.trigger(n).wait(LONG).id).wait(LONG)
    assert heard
    for event in heard:
        assert (event.job_name, event.labels) == ("job", {"tenant": "a"}), event
        assert event.run_id
    by_type: dict[str, list[Event]] = {}
    for event in heard:
        by_type.setdefault(event.type, []).append(event)
    # What is not there is absent.
    assert [event.data.get("data", "absent") for event in by_type["log:write"][:2]] == ["absent", {"n": 1}]
    assert [event.progress for event in by_type["run:progress"][:2]] == [
        {"current": 1},
        {"current": 2, "total": 3, "message": "of three"},
    ]
    assert by_type["run:leased"][0].input == {"n": 1}
    assert by_type["run:fail"][0].error_type == "ValueError"


def test_what_listeners_get_of_a_log_line_is_a_copy(tmp_path: Path) -> None:
    app, heard = Holdfast(url(tmp_path)), []
    app.on("log:write", heard.append)

    @app.job
    async def job(step: Step) -> None:
        rows = [1]
        step.log.info("rows", rows=rows)
        rows.append(2)
        step.log.info("odd", kind=object)

    with app:
        job.run().wait(LONG)
    assert heard[0].data["data"]["rows"] == [1]
    assert heard[1].data["data"] == {"kind": "<class 'object'>"}


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_cancel_is_told_before_the_one_step_that_it_drops(tmp_path: Path, colour: str) -> None:
    app = Holdfast(url(tmp_path))
    heard = recorder(app)
    began, go = threading.Event(), threading.Event()

    def body() -> None:
        began.set()
        assert go.wait(LONG)

    if colour == "async":

        @app.job
        async def job(step: Step) -> None:
            await step.run("a", body)
    else:

        @app.job(name="job")
        def job_sync(step: SyncStep) -> None:
            step.run("a", body)

    with app:
        for _ in range(5):
            began.clear()
            go.clear()
            run = app.get_job("job").trigger().wait(LONG)  # type: ignore[union-attr]
            assert began.wait(LONG)
            app._engine.committer.gate = gate = threading.Event()
            cancelled = run.cancel()
            go.set()  # the body returns while the cancel is on its way: whoever comes first
            gate.set()
            cancelled.wait(LONG)
            app._engine.committer.gate = None
            until(lambda id=run.id: any(e.type in ("step:cancel", "step:complete") for e in heard if e.run_id == id))
    by_run: dict[str | None, list[str]] = {}
    for event in heard:
        by_run.setdefault(event.run_id, []).append(event.type)
    for types in by_run.values():
        # Saved in the round of the cancel it counts; else it is dropped, once, after the run was.
        assert types in (
            ["run:trigger", "run:leased", "step:start", "run:cancel", "step:cancel"],
            ["run:trigger", "run:leased", "step:start", "step:complete", "run:cancel"],
        )


def test_a_renewal_says_until_when(tmp_path: Path) -> None:
    clock = HandClock()
    app, heard, go = Holdfast(url(tmp_path), clock=clock, lease=30), [], threading.Event()
    app.on("run:lease-renewed", heard.append)

    @app.job
    def job() -> None:
        assert go.wait(LONG)

    with app:
        run = job.trigger().wait(LONG)
        until(lambda: app.stats().running)
        clock.advance(11)
        until(lambda: heard)
        go.set()
        run.wait(LONG).wait()
    assert heard[0].run_id == run.id
    assert heard[0].lease_owner
    assert (heard[0].lease_expires_at - heard[0].timestamp).total_seconds() == pytest.approx(30, abs=1)


def test_the_database_knows_before_a_listener_does(tmp_path: Path) -> None:
    app = Holdfast(url(tmp_path))
    seen: list[tuple[str, str, int]] = []

    def look(event: Event) -> None:
        path = tmp_path / "app.db"
        ((status,),) = rows(path, "select status from holdfast_runs where id = ?", event.run_id)
        ((steps,),) = rows(path, "select count(*) from holdfast_steps where run_id = ?", event.run_id)
        seen.append((event.type, status, steps))

    for name in ("run:trigger", "step:complete", "run:complete"):
        app.on(name, look)

    @app.job
    async def job(step: Step) -> None:
        await step.run("a", int)

    with app:
        job.run().wait(LONG)
    assert [one[0] for one in seen] == ["run:trigger", "step:complete", "run:complete"]
    assert seen[1][2] == 1
    assert seen[2][1] == "completed"


def test_q9_a_failure_that_another_one_decided_is_told(tmp_path: Path) -> None:
    """A worker died five times over a run: who finds that out says so."""
    app = Holdfast(url(tmp_path), polling_interval=0.05)
    heard: list[Event] = []
    told = threading.Event()
    app.on("run:fail", lambda event: (heard.append(event), told.set()))

    @app.job
    async def job() -> None: ...

    app.migrate().wait(LONG)
    run = job.options(labels={"a": "b"}).trigger().wait(LONG)
    rows(
        tmp_path / "app.db",
        "update holdfast_runs set status = 'leased', generation = 9, crashes = 4, lease_owner = 'dead', "
        "lease_expires_at = 1",
    )
    with app:
        assert told.wait(LONG)
        with pytest.raises(Exception, match="died 5 times"):
            run.result(LONG).wait(LONG)
    assert [(event.run_id, event.error_type, event.labels) for event in heard] == [
        (run.id, "WorkerCrashed", {"a": "b"})
    ]


# -- an application's own ----------------------------------------------------------------------------------------------


def test_an_event_of_ones_own_reaches_its_listeners(tmp_path: Path) -> None:
    app, heard = Holdfast(url(tmp_path)), []
    app.on("app:imported", heard.append)

    @app.job(labels={"tenant": "a"})
    async def job() -> None:
        app.emit("app:imported", {"rows": (1, 2)})

    with app:
        app.emit("app:imported")
        app.emit("app:imported", {"rows": 7}, run_id="other")
        job.run().wait(LONG)
        until(lambda: len(heard) == 3)
    assert [(event.data, event.run_id) for event in heard[:2]] == [({}, None), ({"rows": 7}, "other")]
    assert (heard[2].rows, heard[2].job_name, heard[2].labels) == ([1, 2], "job", {"tenant": "a"})
    assert not heard[0].is_domain
    assert [event.sequence for event in heard] == sorted(event.sequence for event in heard)


@pytest.mark.parametrize(
    "name", ["run:complete", "step:x", "log:mine", "worker:error", "imported", "", "a b:c", "a:", 7]
)
def test_names_that_are_ours_or_none_are_refused(name: Any) -> None:
    with pytest.raises(ValidationError, match="emit"):
        Holdfast().emit(name)


@pytest.mark.parametrize("data", [{"x": object()}, {"x": float("nan")}, {("a", 1): 1}, [1], "text"])
def test_data_that_json_can_not_say_is_refused(data: Any) -> None:
    with pytest.raises(ValidationError, match="emit: data"):
        Holdfast().emit("app:x", data)


# -- plug-ins ----------------------------------------------------------------------------------------------------------


class Counting:
    name = "counting"

    def __init__(self) -> None:
        self.installed = 0
        self.heard: list[str] = []

    def install(self, app: Holdfast) -> None:
        self.installed += 1
        app.on("run:complete", lambda event: self.heard.append(event.type))


def test_a_plug_in_is_installed_once_per_name_and_hears(tmp_path: Path) -> None:
    app, first, second = Holdfast(url(tmp_path)), Counting(), Counting()
    assert app.use(first) is first
    assert app.use(first) is first
    assert app.use(second) is second
    other = Counting()
    other.name = "another"
    app.use(other)

    @app.job
    async def job() -> None: ...

    with app:
        job.run().wait(LONG)
    assert (first.installed, second.installed, other.installed) == (1, 0, 1)
    assert first.heard == other.heard == ["run:complete"]


def test_what_a_plug_in_raises_is_raised_in_the_call_and_it_may_be_tried_again() -> None:
    app = Holdfast()

    class Faulty:
        name = "faulty"
        broken = True

        def install(self, app: Holdfast) -> None:
            if self.broken:
                raise OSError("no network")

    plugin = Faulty()
    with pytest.raises(OSError, match="no network"):
        app.use(plugin)
    plugin.broken = False
    assert app.use(plugin) is plugin


def test_what_is_no_plug_in_is_refused() -> None:
    class Async:
        name = "async"

        async def install(self, app: Holdfast) -> None: ...

    for wrong in (object(), Async()):
        with pytest.raises(ValidationError, match="use: "):
            Holdfast().use(wrong)  # type: ignore[type-var]


# -- slow listeners ----------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_events_for_a_stuck_listener_take_bounded_memory(caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    one, go, stuck = Hub(clock), threading.Event(), threading.Event()
    heard: list[Event] = []
    errors: list[Event] = []

    def slow(event: Event) -> None:
        stuck.set()
        assert go.wait(LONG)
        heard.append(event)

    one.on("run:progress", slow)
    one.on("run:complete", heard.append)
    one.on("worker:error", errors.append)
    one.tell("run:progress", n=-1)
    assert stuck.wait(LONG)
    most = 0
    with caplog.at_level(logging.ERROR, "holdfast"):
        for n in range(100_000):
            one.tell("run:progress", n=n)
            if n % 100 == 0:
                one.tell("run:complete", n=n)
            if n == 50_000:
                clock.advance(1)
            most = max(most, len(one._others))
        assert most == module.MOST_UNTOLD
        assert len(one._domain) == 1000  # none of those is ever dropped
        go.set()
        one.close()
    progress = [event.n for event in heard if event.type == "run:progress"]
    assert [event.n for event in heard if event.type == "run:complete"] == list(range(0, 100_000, 100))
    assert progress[0] == -1
    assert progress[1:] == list(range(100_000 - len(progress) + 1, 100_000))  # the oldest were dropped
    assert one.dropped >= 100_000 - module.MOST_UNTOLD
    said = [record.message for record in caplog.records if "too slow" in record.message]
    # At the first one, a second later, and what was left when the listener came back: never one by one.
    assert 2 <= len(said) <= 4, said
    assert sum(int(text.partition("slow: ")[2].partition(" ")[0]) for text in said) == one.dropped
    assert {event.context for event in errors} <= {"listeners"}
    assert [event.sequence for event in heard] == sorted(event.sequence for event in heard)


def test_async_listeners_that_never_end_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNFINISHED", 50)
    app = Holdfast(url(tmp_path))
    unfinished, most = 0, 0
    go: asyncio.Event | None = None
    all_there = threading.Event()
    ended: list[int] = []

    @app.on("app:x")
    async def slow(event: Event) -> None:
        nonlocal unfinished, most, go
        go = go or asyncio.Event()
        unfinished += 1
        most = max(most, unfinished)
        if unfinished == 50:
            all_there.set()
        await go.wait()
        unfinished -= 1
        ended.append(event.n)

    with app:
        loop = app._engine.home.loop  # type: ignore[union-attr]
        for n in range(200):
            app.emit("app:x", {"n": n})
        assert all_there.wait(LONG)
        assert most == 50
        loop.call_soon_threadsafe(lambda: go and go.set())
        until(lambda: len(ended) == 200)
    assert sorted(ended) == list(range(200))
    assert most <= 51


def test_inline_async_listeners_are_bounded_by_dropping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNFINISHED", 50)

    async def main() -> None:
        app, heard = Holdfast(url(tmp_path), inline=True), []

        @app.on("app:x")
        async def listener(event: Event) -> None:
            heard.append(event.n)

        async with app:
            for n in range(200):
                app.emit("app:x", {"n": n})
            assert heard == []  # the loop has not turned
            await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
            assert heard == list(range(50))
            assert app.stats().dropped_events == 150

    asyncio.run(main())
