"""The React client as it is published on npm, in Chromium, against `holdfast serve`: runs, and what is done to them.

The page (page.tsx) is React's development build in StrictMode, which mounts everything twice. A test fails, too, if the
browser's console has a warning or an error that it does not name.
"""

from __future__ import annotations

import pytest
from browsing import Gates, Serve, Visitor

from house import House

pytestmark = pytest.mark.sampled("pages in a browser: the same on every Python")

NOBODY = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
HELD = {"rows": 2, "held": True}


def test_a_triggered_run_is_followed_with_its_progress_and_log_to_its_output(
    visitor: Visitor, serve: Serve, gates: Gates, house: House
) -> None:
    job = visitor.open(serve().told["url"]).job
    job.shows(status=None, progress=None, output=None, currentRunId=None, isActive=False)
    job.fill("input", HELD)
    job.press("trigger")
    job.shows(status="leased", isLeased=True, isActive=True, isTerminal=False)
    gates.let_go("row 0")
    job.shows(progress={"current": 1, "total": 2, "message": "1 of 2"})
    job.logs("info: saved row 0")
    gates.let_go("row 1")
    job.shows(status="completed", output={"rows": 2}, isCompleted=True, isTerminal=True, error=None)
    job.logs("info: saved row 0", "info: saved row 1")
    run_id = job.read("currentRunId")
    job.shows(answer={"runId": run_id}, progress={"current": 2, "total": 2, "message": "2 of 2"})
    assert house.sql("select id, status, output from holdfast_runs") == [(run_id, "completed", '{"rows":2}')]
    job.press("reset")
    job.shows(status=None, progress=None, output=None, currentRunId=None)
    job.logs()


def test_who_triggers_and_waits_gets_the_output(visitor: Visitor, serve: Serve, house: House) -> None:
    job = visitor.open(serve().told["url"]).job
    job.press("triggerAndWait")
    job.shows(status="completed", output={"rows": 3})
    job.shows(answer={"runId": job.read("currentRunId"), "output": {"rows": 3}})
    assert house.status() == ["completed"]


def test_who_triggers_and_waits_gets_the_error_of_a_run_that_fails(
    visitor: Visitor, serve: Serve, house: House
) -> None:
    job = visitor.open(serve().told["url"]).job
    job.fill("input", {"rows": 3, "fail_at": 1})
    job.press("triggerAndWait")
    job.shows(status="failed", isFailed=True, isTerminal=True, output=None)
    error = job.read("error")
    assert "row 1 has no name" in error
    job.shows(answer=f"Error: {error}")
    assert house.sql("select status from holdfast_runs where error like '%row 1 has no name%'") == [("failed",)]


def test_an_output_of_nothing_is_left_out_while_it_is_live_and_null_afterwards(
    visitor: Visitor, serve: Serve, house: House
) -> None:
    job = visitor.open(serve().told["url"], job="give-nothing").job
    job.fill("input", {})
    job.press("trigger")
    job.shows(status="completed")
    assert house.status() == ["completed"]
    job = visitor.open(visitor.url, job="give-nothing", run=job.read("currentRunId")).job
    job.shows(status="completed", output=None, error=None)


@pytest.mark.parametrize(
    ("name", "input", "status", "why"),
    [
        ("import-rows", {"rows": "many"}, 400, "Invalid input"),
        ("export-rows", {"rows": 1}, 404, "Job not found: export-rows"),
    ],
    ids=["input", "job"],
)
def test_a_refused_trigger_throws_the_body_and_writes_nothing(
    visitor: Visitor, serve: Serve, house: House, name: str, input: dict[str, object], status: int, why: str
) -> None:
    job = visitor.open(serve().told["url"], job=name, follow="no", resume="no").job
    visitor.bears(f"status of {status}")
    job.fill("input", input)
    job.press("trigger")
    job.place.get_by_text(why).wait_for()
    assert job.read("answer").startswith('Error: {"error":"')
    job.shows(status=None, isActive=False)
    assert house.status() == []


def test_a_property_of_the_client_may_be_the_key_of_the_job_in_python(
    visitor: Visitor, serve: Serve, gates: Gates, house: House
) -> None:
    job = visitor.open(serve().told["url"], job="import_rows").job
    job.fill("input", HELD)
    job.press("trigger")
    job.shows(status="leased")
    gates.wait("row 0")
    visitor.reload()
    job.shows(status="leased")  # found again by that name
    gates.let_go("row 0")
    gates.let_go("row 1")
    job.shows(status="completed", output={"rows": 2})
    assert house.sql("select job_name, status from holdfast_runs") == [("import-rows", "completed")]


def test_a_run_is_cancelled_while_it_is_executed(visitor: Visitor, serve: Serve, gates: Gates, house: House) -> None:
    visitor.open(serve().told["url"])
    job, runs = visitor.job, visitor.runs
    job.fill("input", HELD)
    job.press("triggerAndWait")
    job.shows(status="leased")
    gates.wait("row 0")
    run_id = job.read("currentRunId")
    runs.do("cancel", run_id)
    job.shows(status="cancelled", isCancelled=True, isTerminal=True, answer="Error: Job cancelled")
    visitor.expect(runs.row(run_id).locator(".status")).to_have_text("cancelled")
    assert house.status() == ["cancelled"]
    gates.let_go("row 0")
    visitor.bears("status of 409")
    runs.do("cancel", run_id)
    runs.place.get_by_text("Error: Cannot cancel").wait_for()
    assert gates.came == ["row 0"]
    assert house.status() == ["cancelled"]


def test_a_run_that_failed_is_triggered_again_and_the_new_one_is_followed(
    visitor: Visitor, serve: Serve, house: House
) -> None:
    visitor.open(serve().told["url"])
    job, runs = visitor.job, visitor.runs
    job.fill("input", {"rows": 2, "fail_at": 0})
    job.press("trigger")
    job.shows(status="failed")
    first = job.read("currentRunId")
    runs.do("retrigger", first)
    visitor.expect(runs.place.locator("tr")).to_have_count(2)
    second = runs.read("answer")
    job.shows(currentRunId=second, status="failed")
    runs.ids(second, first)
    input = '{"rows":2,"held":false,"fail_at":0}'
    assert house.sql("select id, status, input from holdfast_runs order by id") == [
        (first, "failed", input),
        (second, "failed", input),
    ]


def test_what_goes_on_can_neither_be_deleted_nor_triggered_again(
    visitor: Visitor, serve: Serve, gates: Gates, house: House
) -> None:
    visitor.open(serve().told["url"])
    visitor.bears("status of 409")
    runs = visitor.runs
    run_id = visitor.trigger(1, input={"held": True})
    gates.wait("row 0")
    runs.do("deleteRun", run_id)
    runs.place.get_by_text("Error: Cannot delete").wait_for()
    runs.do("retrigger", run_id)
    runs.place.get_by_text("Error: Cannot retrigger").wait_for()
    assert house.status() == ["leased"]
    gates.let_go("row 0")
    visitor.job.shows(status="completed")


def test_a_deleted_run_vanishes_from_the_list_and_nothing_is_left_of_it(
    visitor: Visitor, serve: Serve, house: House
) -> None:
    visitor.open(serve().told["url"], show="runs")
    runs = visitor.runs
    kept, gone = visitor.trigger(1), visitor.trigger(1)
    visitor.expect(runs.row(gone).locator(".status")).to_have_text("completed")
    runs.do("deleteRun", gone)
    runs.ids(kept)
    assert house.sql("select id from holdfast_runs") == [(kept,)]
    visitor.bears("status of 404")
    runs.do("getRun", gone)
    runs.shows(answer=None)
    runs.do("cancel", gone)
    runs.shows(answer="Error: Run not found")


def test_a_run_and_its_steps_are_read_by_id(visitor: Visitor, serve: Serve, gates: Gates) -> None:
    visitor.open(serve().told["url"], show="runs")
    runs = visitor.runs
    run_id = visitor.trigger(2, input={"held": True})
    gates.let_go("row 0")
    gates.wait("row 1")
    runs.do("getRun", run_id)
    runs.place.locator(".answer", has_text='"currentStepIndex":1').wait_for()
    run = runs.read("answer")
    assert (run["id"], run["status"], run["jobName"]) == (run_id, "leased", "import-rows")
    assert run["input"] == {"rows": 2, "held": True, "fail_at": None}
    assert run["progress"] == {"current": 1, "total": 2, "message": "1 of 2"}
    runs.do("getSteps", run_id)
    runs.place.locator(".answer", has_text="row-0").wait_for()
    assert [(step["name"], step["status"], step["output"]) for step in runs.read("answer")] == [
        ("row-0", "completed", 0)
    ]
    gates.let_go("row 1")
    visitor.expect(runs.row(run_id).locator(".status")).to_have_text("completed")
    runs.do("getSteps", run_id)
    runs.shows(answer=[])


def test_a_page_that_is_loaded_again_in_mid_run_goes_on_with_it(
    visitor: Visitor, serve: Serve, gates: Gates, house: House
) -> None:
    job = visitor.open(serve().told["url"]).job
    job.fill("input", HELD)
    job.press("trigger")
    gates.let_go("row 0")
    job.shows(progress={"current": 1, "total": 2, "message": "1 of 2"})
    run_id = job.read("currentRunId")
    visitor.reload()
    job.shows(currentRunId=run_id, status="leased", progress={"current": 1, "total": 2, "message": "1 of 2"})
    gates.let_go("row 1")
    job.shows(status="completed", output={"rows": 2})
    job.logs("info: saved row 1")
    assert gates.came == ["row 0", "row 1"]
    assert house.status() == ["completed"]


def test_a_run_that_waits_for_its_turn_is_resumed_as_well(visitor: Visitor, serve: Serve, house: House) -> None:
    job = visitor.open(serve("serve", "page_server:web", "--port", "0", "--no-worker").told["url"]).job
    job.press("trigger")
    job.shows(status="pending", isPending=True, isActive=True)
    visitor.expect(job.place.locator(".currentRunId")).not_to_have_text("null")
    run_id = job.read("currentRunId")
    visitor.reload()
    job.shows(currentRunId=run_id)
    assert house.status() == ["pending"]
    visitor.runs.do("cancel", run_id)
    job.shows(status="cancelled")
    assert house.status() == ["cancelled"]


def test_without_resume_and_follow_a_page_begins_with_nothing(visitor: Visitor, serve: Serve, gates: Gates) -> None:
    job = visitor.open(serve().told["url"], resume="no", follow="no").job
    run_id = visitor.trigger(1, input={"held": True})
    visitor.expect(visitor.runs.row(run_id).locator(".status")).to_have_text("leased")
    visitor.reload()
    visitor.expect(visitor.runs.row(run_id).locator(".status")).to_have_text("leased")
    job.shows(status=None, currentRunId=None)
    assert visitor.asked("limit=1") - visitor.asked("limit=11") == 0
    gates.let_go("row 0")


def test_a_page_can_begin_with_a_given_run(visitor: Visitor, serve: Serve) -> None:
    visitor.open(serve().told["url"], show="runs")
    run_id, later = visitor.trigger(2), visitor.trigger(1)
    visitor.expect(visitor.runs.row(later).locator(".status")).to_have_text("completed")
    job = visitor.open(visitor.url, run=run_id, show="job").job
    job.shows(currentRunId=run_id, status="completed", output={"rows": 2})
    job.logs()  # what was logged before is never told again


def test_the_latest_run_is_followed_whoever_triggers_it(visitor: Visitor, serve: Serve, gates: Gates) -> None:
    job = visitor.open(serve().told["url"]).job
    job.press("triggerAndWait")
    job.shows(status="completed")
    other = visitor.trigger(1, input={"held": True})
    job.shows(currentRunId=other, status="leased", output=None)
    gates.let_go("row 0")
    job.shows(status="completed", output={"rows": 1})


def test_one_run_is_watched_and_its_callbacks_are_called_once(visitor: Visitor, serve: Serve, gates: Gates) -> None:
    visitor.open(serve().told["url"], show="run")
    run = visitor.run
    run.shows(status=None, calls=[])
    run_id = visitor.trigger(5, input={"held": True})
    run.fill("watched", run_id)
    run.shows(status="leased", isLeased=True)
    gates.wait("row 0")
    for row in range(5):
        gates.let_go(f"row {row}")
    run.shows(status="completed", output={"rows": 5}, calls=["start", "complete"], all=5)
    run.logs(*(f"info: saved row {row}" for row in (2, 3, 4)))  # maxLogs
    run.press("clearLogs")
    run.logs()
    failing = visitor.trigger(1, input={"fail_at": 0})
    run.fill("watched", failing)
    run.shows(status="failed", output=None, calls=["start", "complete", "fail"])


def test_the_stream_of_a_run_that_is_not_there_is_told_as_an_error(visitor: Visitor, serve: Serve) -> None:
    visitor.bears("status of 404")
    job = visitor.open(serve().told["url"], run=NOBODY, show="job").job
    job.shows(error="Connection failed", status=None)


def test_of_a_run_that_has_ended_nobody_asks_again_when_a_browser_would(visitor: Visitor, serve: Serve) -> None:
    job = visitor.open(serve().told["url"], show="job").job
    job.press("triggerAndWait")
    job.shows(status="completed")
    asked = visitor.asked("/subscribe?runId=")
    # A stream of no end's telling: when the browser has asked for it twice, it would have asked for ours.
    visitor.page.evaluate("new EventSource('/over-at-once')")
    visitor.until(lambda: visitor.asked("/over-at-once") >= 2)
    assert visitor.asked("/subscribe?runId=") == asked
