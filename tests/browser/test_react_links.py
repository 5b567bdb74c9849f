"""The React client when the link to its server is cut, and when the server dies: what is shown once both are back."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from browsing import Gates, Serve, Visitor

from faulty_link import FaultyLink
from house import House

pytestmark = pytest.mark.sampled("pages in a browser: the same on every Python")

HELD = {"rows": 2, "held": True}
CUT = ("net::ERR", "autoResume error")


def test_streams_that_are_cut_heal_and_show_what_went_on_meanwhile(
    visitor: Visitor, serve: Serve, gates: Gates, house: House
) -> None:
    visitor.bears(*CUT)
    with FaultyLink(serve().told["url"]) as link:
        visitor.open(link.url)
        job, runs = visitor.job, visitor.runs
        job.fill("input", {"rows": 4, "held": True})
        job.press("triggerAndWait")
        job.shows(status="leased")
        gates.let_go("row 0")
        job.shows(progress={"current": 1, "total": 4, "message": "1 of 4"})
        job.logs("info: saved row 0")
        link.break_("cut")
        gates.let_go("row 1")
        gates.let_go("row 2")
        gates.wait("row 3")
        runs.press("refresh")
        runs.shows(error="Failed to fetch")
        job.shows(progress={"current": 1, "total": 4, "message": "1 of 4"})
        link.heal()
        job.shows(progress={"current": 3, "total": 4, "message": "3 of 4"}, status="leased", error=None)
        gates.let_go("row 3")
        run_id = job.read("currentRunId")
        job.shows(status="completed", answer={"runId": run_id, "output": {"rows": 4}})
        job.logs("info: saved row 0", "info: saved row 3")  # none twice; those of between the client can't get
        visitor.expect(runs.row(run_id).locator(".status")).to_have_text("completed")
        runs.shows(error=None)
        visitor.page.goto("about:blank")
    assert gates.came == ["row 0", "row 1", "row 2", "row 3"]
    assert house.status() == ["completed"]


def test_a_run_that_ended_while_the_link_was_cut_is_shown_as_it_ended(
    visitor: Visitor, serve: Serve, gates: Gates
) -> None:
    visitor.bears(*CUT)
    with FaultyLink(serve().told["url"]) as link:
        job = visitor.open(link.url, show="job").job
        job.fill("input", {"rows": 1, "held": True})
        job.press("triggerAndWait")
        job.shows(status="leased")
        gates.wait("row 0")
        link.break_("cut")
        gates.let_go("row 0")
        link.heal()
        job.shows(status="completed", output={"rows": 1})
        job.place.locator(".answer", has_text='"output":{"rows":1}').wait_for()
        visitor.page.goto("about:blank")


def test_a_trigger_over_a_link_that_is_cut_is_told_and_makes_no_run(
    visitor: Visitor, serve: Serve, house: House
) -> None:
    visitor.bears(*CUT)
    with FaultyLink(serve().told["url"]) as link:
        job = visitor.open(link.url, show="job", resume="no").job
        link.break_("cut")
        job.press("trigger")
        job.shows(answer="Error: Failed to fetch")
        assert house.status() == []
        link.heal()
        job.press("triggerAndWait")
        job.shows(status="completed", output={"rows": 3})
        visitor.page.goto("about:blank")
    assert house.status() == ["completed"]


def test_a_server_that_is_killed_in_mid_run_and_started_again_is_found_by_the_page(
    visitor: Visitor, serve: Serve, gates: Gates, house: House
) -> None:
    visitor.bears(*CUT)
    server = serve()
    job = visitor.open(server.told["url"]).job
    job.fill("input", {"rows": 3, "held": True})
    job.press("triggerAndWait")
    gates.let_go("row 0")
    gates.wait("row 1")
    job.shows(progress={"current": 1, "total": 3, "message": "1 of 3"})
    server.kill()
    serve("serve", "page_server:web", "--port", str(urlsplit(server.told["url"]).port))
    gates.wait("row 1", times=2)
    gates.let_go("row 1")
    gates.let_go("row 2")
    run_id = job.read("currentRunId")
    job.shows(status="completed", answer={"runId": run_id, "output": {"rows": 3}})
    assert gates.came == ["row 0", "row 1", "row 1", "row 2"], "what was saved is not done again"
    assert house.sql("select id, status from holdfast_runs") == [(run_id, "completed")]


def test_a_server_that_is_stopped_in_mid_run_lets_the_run_end_and_the_next_one_shows_it(
    visitor: Visitor, serve: Serve, gates: Gates, house: House
) -> None:
    visitor.bears(*CUT)
    server = serve()
    job = visitor.open(server.told["url"], show="job").job
    job.fill("input", HELD)
    job.press("triggerAndWait")
    job.shows(status="leased")
    gates.wait("row 0")
    asked = visitor.asked("/subscribe?runId=")
    server.ask_to_stop()
    # The stream ends at once. The browser asks for it again before the run has ended: it must not give up.
    visitor.until(lambda: visitor.asked("/subscribe?runId=") > asked)
    gates.let_go("row 0")
    gates.let_go("row 1")
    server.stop()
    assert house.status() == ["completed"]
    serve("serve", "page_server:web", "--port", str(urlsplit(server.told["url"]).port))
    job.shows(status="completed", error=None)
    job.place.locator(".answer", has_text='"output":{"rows":2}').wait_for()


def test_a_server_is_stopped_while_pages_look_at_it(visitor: Visitor, serve: Serve) -> None:
    visitor.bears(*CUT)
    server = serve()
    visitor.open(server.told["url"], show="job,run,runs")
    visitor.job.press("triggerAndWait")
    visitor.job.shows(status="completed")
    server.stop()
