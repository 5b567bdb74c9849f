"""The list of runs in the React client: its pages and filters, and what it learns without asking."""

from __future__ import annotations

import pytest
from browsing import Gates, Serve, Visitor

from house import House

pytestmark = pytest.mark.sampled("pages in a browser: the same on every Python")


def test_a_list_has_pages_and_only_the_first_one_is_live(visitor: Visitor, serve: Serve, house: House) -> None:
    runs = visitor.open(serve().told["url"], show="runs", size=2).runs
    runs.shows(isLoading=False, page=0, hasMore=False, error=None)
    runs.ids()
    newest: list[str] = []
    for _ in range(5):
        newest.insert(0, visitor.trigger(1))
        assert visitor.ended(newest[0]) == "completed"
    runs.ids(*newest[:2])
    visitor.expect(runs.row(newest[0]).locator(".status")).to_have_text("completed")
    runs.shows(hasMore=True)
    visitor.is_quiet()
    runs.press("nextPage")
    runs.ids(*newest[2:4])
    runs.press("nextPage")
    runs.ids(*newest[4:])
    runs.shows(page=2, hasMore=False)
    runs.press("nextPage")  # there is none
    runs.press("prevPage")
    runs.ids(*newest[2:4])
    runs.shows(page=1, hasMore=True, isLoading=False)
    newest.insert(0, visitor.trigger(1))
    asked = visitor.asked("/runs?")
    runs.press("refresh")
    runs.shows(answer="done")
    runs.ids(*newest[2:4])
    assert visitor.asked("/runs?") == asked + 1, "nobody has told this page of the new run"
    runs.press("goToPage(0)")
    runs.ids(*newest[:2])
    visitor.is_live()
    newest.insert(0, visitor.trigger(1))
    runs.ids(*newest[:2])
    assert sorted(newest) == [row[0] for row in house.sql("select id from holdfast_runs order by id")]


def test_a_list_shows_status_progress_and_steps_as_they_come(visitor: Visitor, serve: Serve, gates: Gates) -> None:
    visitor.open(serve().told["url"], show="runs")
    run_id = visitor.trigger(2, input={"held": True})
    row = visitor.runs.row(run_id)
    visitor.expect(row.locator(".status")).to_have_text("leased")
    gates.let_go("row 0")
    gates.wait("row 1")
    # The next step has begun, for which the list is read again: progress must still be there when that has come.
    visitor.expect(row.locator(".steps")).to_have_text("1")
    visitor.expect(row.locator(".progress")).to_have_text('{"current":1,"total":2,"message":"1 of 2"}')
    gates.let_go("row 1")
    visitor.expect(row.locator(".status")).to_have_text("completed")
    visitor.expect(row.locator(".output")).to_have_text('{"rows":2}')


def test_progress_comes_to_a_list_without_a_request(visitor: Visitor, serve: Serve, gates: Gates) -> None:
    visitor.open(serve().told["url"], show="runs")
    run_id = str(visitor.api("POST", "/trigger", json={"jobName": "tick", "input": {"times": 2}})["runId"])
    row = visitor.runs.row(run_id)
    visitor.expect(row.locator(".status")).to_have_text("leased")
    visitor.runs.shows(isLoading=False)
    asked = visitor.asked("/runs?")
    gates.let_go("tick 0")
    visitor.expect(row.locator(".progress")).to_contain_text('"current":1')
    assert visitor.asked("/runs?") == asked
    gates.let_go("tick 1")
    visitor.expect(row.locator(".status")).to_have_text("completed")


def test_a_list_without_live_updates_asks_only_when_it_is_told_to(visitor: Visitor, serve: Serve) -> None:
    runs = visitor.open(serve().told["url"], show="runs", realtime="no").runs
    runs.shows(isLoading=False)
    run_id = visitor.trigger(1)
    runs.ids()
    runs.press("refresh")
    runs.ids(run_id)
    assert visitor.asked("/runs/subscribe") == 0


def test_a_list_goes_by_status(visitor: Visitor, serve: Serve) -> None:
    runs = visitor.open(serve().told["url"], show="runs", status=["failed", "cancelled"]).runs
    runs.shows(isLoading=False)
    good, bad = visitor.trigger(1), visitor.trigger(1, input={"fail_at": 0})
    runs.ids(bad)
    visitor.expect(runs.row(bad).locator(".status")).to_have_text("failed")
    runs = visitor.open(visitor.url, show="runs", status="completed").runs
    runs.ids(good)


def test_a_list_goes_by_labels_and_so_does_what_it_is_told(visitor: Visitor, serve: Serve) -> None:
    runs = visitor.open(serve().told["url"], show="runs", label=["tenant=a", "kind=x y&z"]).runs
    runs.shows(isLoading=False)
    asked = visitor.asked("/runs?")
    for labels in ({}, {"tenant": "a"}, {"tenant": "b", "kind": "x y&z"}):
        other = visitor.trigger(1, labels=labels)
        assert visitor.ended(other) == "completed"
    mine = visitor.trigger(1, labels={"tenant": "a", "kind": "x y&z"})
    runs.ids(mine)
    visitor.expect(runs.row(mine).locator(".labels")).to_have_text('{"tenant":"a","kind":"x y&z"}')
    visitor.expect(runs.row(mine).locator(".status")).to_have_text("completed")
    # Of one run: it was triggered, leased, a step began, and it completed.
    assert visitor.asked("/runs?") - asked <= 4


def test_a_list_goes_by_the_names_of_jobs(visitor: Visitor, serve: Serve) -> None:
    serve_url = serve().told["url"]
    runs = visitor.open(serve_url, show="runs", jobs=["give-nothing", "tick"]).runs
    runs.shows(isLoading=False)
    visitor.trigger(1)
    nothing = str(visitor.api("POST", "/trigger", json={"jobName": "give-nothing", "input": {}})["runId"])
    runs.ids(nothing)
    visitor.open(serve_url, show="runs-of-job").runs_of_job.shows(names=["import-rows"])


def test_a_refused_list_is_told_with_its_reason(visitor: Visitor, serve: Serve) -> None:
    visitor.bears("status of 400")
    runs = visitor.open(serve().told["url"], show="runs", status="running", realtime="no").runs
    runs.shows(error="Failed to fetch runs: Bad Request", isLoading=False)
    runs.ids()
