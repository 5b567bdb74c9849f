"""Who may do what, from a browser: a cookie says who it is, and pages of other sites may neither read nor change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browsing import Gates, Serve, Visitor

from house import House

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.sampled("pages in a browser: the same on every Python")

GUARDED = ("serve", "page_server:guarded", "--port", "0")


@pytest.fixture
def other(browser: Browser, serve: Serve) -> Iterator[Visitor]:
    """Somebody else, in a browser of their own."""
    other = Visitor(browser)
    yield other
    other.context.close()
    assert other.complaints() == []


def test_who_does_not_say_who_it_is_is_told_so(visitor: Visitor, serve: Serve, house: House) -> None:
    visitor.bears("status of 401")
    visitor.open(serve(*GUARDED).told["url"], follow="no", resume="no", realtime="no")
    visitor.runs.shows(error="Failed to fetch runs: Unauthorized")
    visitor.job.press("trigger")
    visitor.job.shows(answer='Error: {"error":"Unauthorized"}', status=None)
    assert house.status() == []


def test_two_visitors_see_each_their_own_runs(
    visitor: Visitor, other: Visitor, serve: Serve, gates: Gates, house: House
) -> None:
    url = serve(*GUARDED).told["url"]
    for one, name in ((visitor, "ada"), (other, "bob")):
        one.context.add_cookies([{"name": "who", "value": name, "url": url}])
        one.open(url)
    visitor.job.fill("input", {"rows": 1, "held": True})
    visitor.job.press("triggerAndWait")
    visitor.job.shows(status="leased")
    run_id = visitor.job.read("currentRunId")
    visitor.expect(visitor.runs.row(run_id).locator(".labels")).to_have_text('{"who":"ada"}')
    other.job.press("triggerAndWait")
    other.job.shows(status="completed")
    mine = other.job.read("currentRunId")
    other.runs.ids(mine)
    other.bears("status of 404")
    for action in ("cancel", "retrigger", "deleteRun", "getSteps"):
        other.runs.do(action, run_id)
        other.runs.shows(answer="Error: Run not found")
    other.runs.do("getRun", run_id)
    other.runs.shows(answer=None)
    visitor.runs.ids(run_id)
    gates.let_go("row 0")
    visitor.job.shows(status="completed", currentRunId=run_id)
    other.job.shows(currentRunId=mine)
    assert house.status() == ["completed", "completed"]


# Asks from a page of another site: of the same machine, by its other name.
ELSEWHERE = """async (api) => {
  const job = JSON.stringify({ jobName: "import-rows", input: { rows: 1 } });
  const post = (more) => fetch(api + "/trigger", { method: "POST", body: job, ...more }).then(
    (answer) => answer.type, () => "refused");
  const json = { headers: { "Content-Type": "application/json" } };
  const stream = new Promise((told) => {
    const source = new EventSource(api + "/runs/subscribe");
    source.onopen = () => told("open");
    source.onerror = () => told("refused");
  });
  return [
    await post({ mode: "no-cors" }), await post(json), await post({ ...json, mode: "no-cors" }),
    await fetch(api + "/runs").then((answer) => answer.text(), () => "refused"), await stream,
  ];
}"""


def test_a_page_of_another_site_neither_reads_nor_changes_anything(
    visitor: Visitor, serve: Serve, house: House
) -> None:
    visitor.bears("CORS policy", "Failed to load resource")
    url = serve().told["url"]
    visitor.open(url.replace("127.0.0.1", "localhost"), show="runs", realtime="no").runs.shows(isLoading=False)
    answers = visitor.page.evaluate(ELSEWHERE, f"{url}/api/durably")
    assert answers == ["refused"] * 5
    # Two of them were sent without asking first, as a browser lets any page do: the server refused them.
    assert house.status() == []


def test_a_name_that_suddenly_leads_here_is_refused(visitor: Visitor, serve: Serve) -> None:
    visitor.bears("status of 403")
    url = serve().told["url"].replace("127.0.0.1", "evil.localhost")
    runs = visitor.open(url, show="runs", realtime="no").runs
    runs.shows(error="Failed to fetch runs: Forbidden")
