"""Durably 11.12, 11.14: reading runs, waiting for them, what listeners hear, and log lines."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conformance_jobs import FORMS, LONG, Gate, Heard, body, steps, work

import databases
from holdfast import Holdfast, Job, NotFoundError, RunCancelled, RunFailed, Step, SyncStep, job
from holdfast.testing.clock import HandClock
from house import House


def _counting(form: str) -> Job[..., Any]:
    @job(name="work")
    async def counting(n: int = 0) -> int:
        return n

    @job(name="work")
    def counting_sync(n: int = 0) -> int:
        return n

    return counting if form == "async" else counting_sync


@pytest.fixture
def web(house: House) -> Any:
    """An app that executes nothing, with two jobs."""

    @job
    def other() -> None: ...

    app = house.app(_counting("sync"), other, worker=False)
    app.init().wait(LONG)
    yield app
    app.stop().wait(LONG)


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_run_tells_everything_before_and_after_it_was_executed(house: House, clock: HandClock, form: str) -> None:
    app = house.app(_counting(form), clock=clock)
    app.migrate().wait(LONG)
    start = datetime.fromtimestamp(clock.now() / 1e6, UTC)
    run = work(app).options(labels={"env": "test"}).trigger(5).wait(LONG)
    assert (run.job_name, run.status, run.input, run.output, run.error) == ("work", "pending", {"n": 5}, None, None)
    assert (run.is_active, run.is_terminal, run.labels, run.progress) == (True, False, {"env": "test"}, None)
    assert (run.created_at, run.updated_at, run.started_at, run.completed_at) == (start, start, None, None)
    assert (run.generation, run.attempt, run.crashes, run.lease_owner, run.completed_step_count) == (0, 0, 0, None, 0)
    clock.advance(60)
    assert app.process_one().wait(LONG)
    ended = run.refresh().wait(LONG)
    later = start + timedelta(seconds=60)
    assert (ended.status, ended.output, ended.error, ended.is_terminal) == ("completed", 5, None, True)
    assert (ended.created_at, ended.started_at, ended.completed_at) == (start, later, later)
    app.stop().wait(LONG)


def test_no_run_is_none(web: Holdfast) -> None:
    assert web.get_run("nobody").wait(LONG) is None


def test_a_list_goes_by_status_one_or_several_and_none_means_all(web: Holdfast) -> None:
    pending, cancelled = [web.jobs.other.trigger().wait(LONG).id for _ in range(2)]
    web.cancel(cancelled).wait(LONG)
    for status, expected in (
        (None, [cancelled, pending]),
        ([], [cancelled, pending]),
        ("pending", [pending]),
        (["cancelled"], [cancelled]),
        (["pending", "cancelled"], [cancelled, pending]),
        ("leased", []),
    ):
        assert [run.id for run in web.get_runs(status=status).wait(LONG)] == expected  # type: ignore[arg-type]


def test_a_list_goes_by_job_one_or_several_and_none_means_all(web: Holdfast) -> None:
    one, two = work(web).trigger(1).wait(LONG).id, web.jobs.other.trigger().wait(LONG).id
    for wanted, expected in (
        (None, [two, one]), ([], [two, one]), ("work", [one]), (["work", "other"], [two, one]), ("nobody", []),
        (web.jobs.other, [two]),
    ):  # fmt: skip
        assert [run.id for run in web.get_runs(job=wanted).wait(LONG)] == expected  # type: ignore[arg-type]


def test_a_list_goes_by_job_and_status_and_labels_at_once(web: Holdfast) -> None:
    labelled = work(web).options(labels={"env": "test", "who": "me"})
    wanted, cancelled = labelled.trigger(1).wait(LONG), labelled.trigger(2).wait(LONG)
    cancelled.cancel().wait(LONG)
    work(web).trigger(3).wait(LONG)
    web.jobs.other.options(labels={"env": "test"}).trigger().wait(LONG)
    found = web.get_runs(job="work", status="pending", labels={"env": "test", "who": "me"}, limit=5).wait(LONG)
    assert [run.id for run in found] == [wanted.id]


def test_ten_runs_come_in_pages_of_three_newest_first_also_if_made_in_one_moment(house: House) -> None:
    app = house.app(_counting("sync"), worker=False, clock=HandClock())  # all have the same time
    app.init().wait(LONG)
    ids = [work(app).trigger(n).wait(LONG).id for n in range(10)][::-1]
    pages = [[run.id for run in app.get_runs(limit=3, offset=n).wait(LONG)] for n in (0, 3, 6, 9, 12)]
    assert pages == [ids[:3], ids[3:6], ids[6:9], ids[9:], []]
    assert [run.id for run in app.get_runs(offset=8, limit=None).wait(LONG)] == ids[8:]
    assert app.get_runs(limit=0).wait(LONG) == []
    app.stop().wait(LONG)


def test_labels_with_dots_and_slashes_can_be_filtered_by_and_none_is_an_empty_map(web: Holdfast) -> None:
    labels = {"org.example/team": "a b", "x-y_z": "1"}
    run = work(web).options(labels=labels).trigger(1).wait(LONG)
    bare = work(web).trigger(2).wait(LONG)
    assert (run.labels, bare.labels) == (labels, {})
    found = web.get_runs(labels={"org.example/team": "a b"}).wait(LONG)
    assert [one.id for one in found] == [run.id]


# -- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_triggering_and_waiting_gives_the_output_and_keeps_the_options(house: House, form: str) -> None:
    with house.app(_counting(form)) as app:
        options = work(app).options(idempotency_key="once", labels={"env": "test"}, priority=2)
        run = options.trigger_and_wait(5).wait(LONG)
        assert (run.output, run.idempotency_key, run.labels, run.priority) == (5, "once", {"env": "test"}, 2)
        assert options.run(6).wait(LONG) == 5


@pytest.mark.parametrize("form", FORMS)
def test_who_waits_for_a_run_that_fails_gets_the_text_of_its_error(house: House, form: str) -> None:
    def fails(step: Any) -> None:
        raise LookupError("no such airport")

    with house.app(body(form, fails)) as app:
        run = work(app).trigger().wait(LONG)
        for reply in (run.result(), work(app).run()):
            with pytest.raises(RunFailed, match="no such airport"):
                reply.wait(LONG)
        with pytest.raises(RunFailed, match="no such airport"):  # it failed long ago
            run.result().wait(LONG)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("verb", ["result", "run"])
def test_who_waits_for_a_run_that_is_cancelled_while_it_executes_is_told(house: House, form: str, verb: str) -> None:
    gate = Gate()
    with house.app(steps(form, hold=gate)) as app:
        if verb == "run":
            waiting = work(app).run()
            gate.wait()
            (run,) = app.get_runs().wait(LONG)
        else:
            run = work(app).trigger().wait(LONG)
            waiting = run.result()
            gate.wait()
        run.cancel().wait(LONG)
        with pytest.raises(RunCancelled, match=run.id):
            waiting.wait(LONG)
        gate.open()


def test_the_text_of_a_wait_that_was_too_long_says_what_it_waited_for(house: House, clock: HandClock) -> None:
    app = house.app(_counting("sync"), worker=False)
    app.init().wait(LONG)
    run = work(app).trigger(1).wait(LONG)
    with pytest.raises(TimeoutError, match=f"end of run {run.id}.*goes on"):
        run.wait(timeout=0).wait(LONG)
    assert run.refresh().wait(LONG).status == "pending"
    app.stop().wait(LONG)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "deleted"])
def test_who_waits_in_another_process_learns_how_the_run_ended_without_polling(
    house: House, form: str, end: str
) -> None:
    gate = Gate(LookupError("no such airport") if end == "failed" else "kept")
    definition = steps(form, hold=gate)
    polling = databases.across(60)
    with house.app(definition, polling_interval=polling) as app:
        other = house.app(definition, worker=False, polling_interval=polling)
        other.init().wait(LONG)
        run = work(other).trigger().wait(LONG)
        waiting = run.result()
        thread = threading.Thread(target=waiting.when_done, args=(lambda: None,))
        thread.start()
        thread.join()
        gate.wait()
        if end in ("cancelled", "deleted"):
            app.cancel(run.id).wait(LONG)
        if end == "deleted":
            # The other one saw nothing yet, or the end already: it may be told either.
            app.delete_run(run.id).wait(LONG)
        gate.open()
        if end == "completed":
            assert waiting.wait(LONG) == ["kept"]
        elif end == "failed":
            with pytest.raises(RunFailed, match="no such airport"):
                waiting.wait(LONG)
        else:
            with pytest.raises((RunCancelled, NotFoundError) if end == "deleted" else RunCancelled):
                waiting.wait(LONG)
        other.stop().wait(LONG)


# -- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_events_are_numbered_from_one_carry_their_time_and_their_payload(
    house: House, clock: HandClock, form: str
) -> None:
    with house.app(_counting(form), clock=clock) as app:
        heard = Heard(app, "run:trigger", "run:leased", "run:complete")
        run = work(app).options(labels={"env": "test"}).trigger_and_wait(5).wait(LONG)
    triggered, leased, completed = heard.events
    assert [event.sequence for event in heard.events] == [1, 2, 3]
    now = datetime.fromtimestamp(clock.now() / 1e6, UTC)
    for event in heard.events:
        assert (event.run_id, event.job_name, event.labels) == (run.id, "work", {"env": "test"})
        assert event.timestamp == now
    assert (triggered.input, leased.lease_owner is None, completed.output) == ({"n": 5}, False, 5)
    assert completed.duration == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_trigger_that_finds_its_run_by_idempotency_key_is_not_told(house: House, form: str) -> None:
    app = house.app(_counting(form), worker=False)
    app.init().wait(LONG)
    heard = Heard(app, "run:trigger", "run:coalesced")
    keyed = work(app).options(idempotency_key="once")
    first = keyed.trigger(1).wait(LONG)
    assert keyed.trigger(2).wait(LONG).disposition == "idempotent"
    app.stop().wait(LONG)  # tells what is still to be told
    assert [(event.type, event.run_id) for event in heard.events] == [("run:trigger", first.id)]


def test_all_listeners_of_a_type_hear_it_and_no_other_type(house: House) -> None:
    with house.app(_counting("sync")) as app:
        one, two, other = Heard(app, "run:complete"), Heard(app, "run:complete"), Heard(app, "run:fail")
        work(app).run(1).wait(LONG)
        one.until("run:complete")
        two.until("run:complete")
    assert (len(one.events), len(two.events), other.events) == (1, 1, [])


@pytest.mark.parametrize("form", FORMS)
def test_a_deleted_run_is_told_with_its_job_and_labels(house: House, form: str) -> None:
    with house.app(_counting(form)) as app:
        heard = Heard(app, "run:delete")
        run = work(app).options(labels={"env": "test"}).trigger_and_wait(1).wait(LONG)
        app.delete_run(run.id).wait(LONG)
    (event,) = heard.events
    assert (event.run_id, event.job_name, event.labels) == (run.id, "work", {"env": "test"})


# -- logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_log_lines_are_told_and_kept_with_level_data_run_and_step(house: House, form: str) -> None:
    @job(name="work")
    async def logs(step: Step) -> None:
        step.log.info("before")
        await step.run("inside", lambda: step.log.warning("within", rows=7))
        step.log.error("after", why={"code": 1})

    @job(name="work")
    def logs_sync(step: SyncStep) -> None:
        step.log.info("before")
        step.run("inside", lambda: step.log.warning("within", rows=7))
        step.log.error("after", why={"code": 1})

    expected = [
        ("info", "before", None, None),
        ("warning", "within", {"rows": 7}, "inside"),
        ("error", "after", {"why": {"code": 1}}, None),
    ]
    with house.app(logs if form == "async" else logs_sync) as app:
        heard = Heard(app, "log:write")
        run = work(app).trigger_and_wait().wait(LONG)
        lines = app.get_logs(run.id).wait(LONG)
    assert [(line.level, line.message, line.data, line.step_name) for line in lines] == expected
    told = [(event.level, event.message, event.data.get("data"), event.step_name) for event in heard.events]
    assert told == expected
    assert {event.run_id for event in heard.events} == {run.id}


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_line_of_an_async_job_comes_before_those_of_the_thread_that_it_calls_next(
    house: House, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    said = threading.Event()

    @job(name="work")
    async def logs(step: Step) -> None:
        def within() -> None:
            step.log.info("within")
            said.set()

        step.log.info("before")
        await step.options(timeout=timeout).run("inside", within)

    with house.app(logs) as app:
        threads = app._engine.threads
        really = threads.call

        def call(fn: Any, *args: Any, **more: Any) -> Any:
            calling = really(fn, *args, **more)
            assert said.wait(LONG)  # the thread is faster than the tick of the loop
            return calling

        monkeypatch.setattr(threads, "call", call)
        run = work(app).trigger_and_wait().wait(LONG)
        assert [line.message for line in app.get_logs(run.id).wait(LONG)] == ["before", "within"]
