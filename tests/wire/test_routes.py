"""The nine routes of the ancestor: what is sent, what is answered, and what is refused in which words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asking import Asking
from holdfast import Holdfast, Step, ValidationError, job
from house import House

CLIENT_RUN = {
    "id", "jobName", "input", "status", "currentStepIndex", "completedStepCount", "progress", "output", "error",
    "labels", "startedAt", "completedAt", "createdAt", "isTerminal", "isActive",
}  # fmt: skip
STATUSES = "pending, leased, completed, failed, cancelled"


@job(name="import-csv")
async def import_csv(step: Step, rows: int) -> int:
    for row in range(rows):
        await step.run(f"row-{row}", lambda row=row: row)
    step.progress(rows, rows)
    return rows


@job
async def broken() -> None:
    raise ValueError("no such file")


@job
async def nothing() -> None: ...


def run(test: Callable[[Asking], Any], house: House, *, worker: bool = False, **options: Any) -> None:
    """The test with a handler of an app that executes or doesn't."""

    async def main() -> None:
        async with open_to(house, worker=worker, **options) as ask:
            await test(ask)

    asyncio.run(main())


@asynccontextmanager
async def open_to(
    house: House, *, worker: bool = False, app: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Asking]:
    async with house.app(import_csv, broken, nothing, worker=worker, **(app or {})) as made:
        yield Asking(made, **options)


async def ended(ask: Asking, run_id: str) -> None:
    await ask.handler.app.wait_for_run(run_id)


# -- dispatch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    ["GET /", "GET /nothing", "GET /trigger", "POST /runs", "HEAD /runs", "OPTIONS /runs", "PUT /run", "GET /runs/",
     "GET //runs", "GET /Runs", "GET /x/../runs", "GET /subscribe/"],
)  # fmt: skip
def test_what_is_no_route_is_not_found_in_plain_text(place: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        answer = await ask.ask(*place.split(" "))
        assert (answer.status, answer.body) == (404, b"Not Found")
        assert answer.headers["Content-Type"] == "text/plain;charset=UTF-8"

    run(test, house)


def test_a_base_path_is_what_comes_before_the_routes_and_nothing_else(house: House) -> None:
    async def test(ask: Asking) -> None:
        assert (await ask.get("/api/runs")).status == 200
        assert [(await ask.get(path)).status for path in ("/runs", "/apiruns", "/api", "/x/api/runs")] == [404] * 4

    run(test, house, base_path="/api/")


def test_json_is_answered_as_json_without_a_charset_and_with_safe_headers(house: House) -> None:
    async def test(ask: Asking) -> None:
        headers = (await ask.get("/runs")).headers
        assert headers["Content-Type"] == "application/json"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")

    run(test, house)


def test_parameters_that_nobody_asked_for_are_ignored(house: House) -> None:
    async def test(ask: Asking) -> None:
        assert (await ask.get("/runs", {"page": "3", "limit": ""})).json == []

    run(test, house)


# -- trigger -------------------------------------------------------------------------------------------------------


def test_a_trigger_answers_the_run_and_what_it_did(house: House) -> None:
    async def test(ask: Asking) -> None:
        answer = await ask.post("/trigger", {"jobName": "import-csv", "input": {"rows": 2}})
        assert (answer.status, set(answer.json)) == (200, {"runId", "disposition"})
        assert answer.json["disposition"] == "created"
        shown = (await ask.get("/run", {"runId": answer.json["runId"]})).json
        assert (shown["jobName"], shown["input"], shown["status"]) == ("import-csv", {"rows": 2}, "pending")

    run(test, house)


def test_a_job_may_also_be_named_by_its_key_in_python(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("import_csv", {"rows": 0})
        assert (await ask.get("/run", {"runId": run_id})).json["jobName"] == "import-csv"
        listed = await ask.get("/runs", {"jobName": "import_csv"})
        assert [one["id"] for one in listed.json] == [run_id]

    run(test, house)


def test_keys_and_labels_of_a_trigger_are_kept(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger(
            "import-csv", {"rows": 0}, idempotencyKey="i", concurrencyKey="c", labels={"a.b/c": "x"}
        )
        kept = await ask.handler.app.get_run(run_id)
        assert kept is not None
        assert (kept.idempotency_key, kept.concurrency_key, kept.labels) == ("i", "c", {"a.b/c": "x"})

    run(test, house)


def test_the_same_idempotency_key_leads_to_the_same_run_whatever_else_is_sent(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("import-csv", {"rows": 0}, idempotencyKey="i")
        again = await ask.post("/trigger", {"jobName": "import-csv", "input": {"rows": 5}, "idempotencyKey": "i"})
        assert again.json == {"runId": run_id, "disposition": "idempotent"}

    run(test, house)


def test_of_one_concurrency_key_a_second_one_conflicts_or_coalesces(house: House) -> None:
    async def test(ask: Asking) -> None:
        body = {"jobName": "import-csv", "input": {"rows": 0}, "concurrencyKey": "c"}
        run_id = (await ask.post("/trigger", body)).json["runId"]
        refused = await ask.post("/trigger", body)
        assert refused.status == 409
        assert refused.error == (
            'A pending run already exists for concurrency key "c" in job "import-csv". '
            "Use coalesce: 'skip' to return the existing run instead."
        )
        skipped = await ask.post("/trigger", body | {"coalesce": "skip"})
        assert skipped.json == {"runId": run_id, "disposition": "coalesced"}

    run(test, house)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({}, 400, "jobName is required"),
        ({"jobName": ""}, 400, "jobName is required"),
        ({"jobName": None}, 400, "jobName is required"),
        ({"jobName": "non-existent"}, 404, "Job not found: non-existent"),
        ({"jobName": "non-existent", "coalesce": 5}, 404, "Job not found: non-existent"),
        ({"jobName": 5}, 404, "Job not found: 5"),
        ({"jobName": "import-csv", "coalesce": "x"}, 400, "Invalid coalesce value: 'x'."),
        ({"jobName": "import-csv", "coalesce": "skip"}, 400, "coalesce requires concurrencyKey"),
        ({"jobName": "import-csv", "coalesce": "skip", "concurrencyKey": ""}, 400, "coalesce requires concurrencyKey"),
        ({"jobName": "import-csv"}, 400, "Invalid input: it is missing"),
        ({"jobName": "import-csv", "input": None}, 400, "Invalid input: it is no object"),
        ({"jobName": "import-csv", "input": [1]}, 400, "Invalid input: it is no object"),
        ({"jobName": "import-csv", "input": {"rows": "many"}}, 400, "Invalid input: rows: "),
        ({"jobName": "import-csv", "input": {}, "labels": {"a b": "x"}}, 400, "Invalid input: rows: "),
        ({"jobName": "nothing", "labels": {"a b": "x"}}, 400, "Invalid label key 'a b': must contain only"),
        ({"jobName": "nothing", "labels": {"a": 5}}, 400, "labels: a: int is not a string."),
        ({"jobName": "nothing", "labels": ["a"]}, 400, "labels: list is not a mapping"),
        ({"jobName": "nothing", "idempotencyKey": 5}, 400, "idempotencyKey: int is not a key."),
        ({"jobName": "nothing", "concurrencyKey": "k" * 256}, 400, "concurrencyKey: longer than 255 bytes."),
    ],
)
def test_what_a_trigger_refuses_it_refuses_in_this_order_and_writes_nothing(
    body: Any, status: int, error: str, house: House
) -> None:
    async def test(ask: Asking) -> None:
        answer = await ask.post("/trigger", body)
        assert answer.status == status
        assert answer.error.startswith(error)
        assert house.status() == []

    run(test, house)


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"x"', b"5", b"\xff\xfe", b'{"a": NaN}', b"{} {}"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes, house: House) -> None:
    async def test(ask: Asking) -> None:
        answer = await ask.post("/trigger", body)
        assert answer.status == 400
        assert answer.error in ("The body is not valid JSON.", "The body must be a JSON object.")

    run(test, house)


def test_a_job_without_parameters_needs_no_input(house: House) -> None:
    async def test(ask: Asking) -> None:
        assert (await ask.post("/trigger", {"jobName": "nothing"})).status == 200

    run(test, house)


def test_a_body_needs_no_content_type(house: House) -> None:
    async def test(ask: Asking) -> None:
        body = {"jobName": "nothing", "input": {}}
        for headers in ({}, {"Content-Type": "text/plain;charset=UTF-8"}, {"Content-Type": "application/json"}):
            assert (await ask.post("/trigger", body, headers=headers)).status == 200

    run(test, house)


# -- lists ---------------------------------------------------------------------------------------------------------


def test_a_list_is_a_bare_array_newest_first(house: House) -> None:
    async def test(ask: Asking) -> None:
        ids = [await ask.trigger("nothing") for _ in range(3)]
        listed = (await ask.get("/runs")).json
        assert [one["id"] for one in listed] == ids[::-1]

    run(test, house)


def test_a_run_on_the_wire_has_these_fields_and_none_of_the_inner_ones(house: House) -> None:
    async def test(ask: Asking) -> None:
        await ask.trigger("import-csv", {"rows": 0}, idempotencyKey="i", concurrencyKey="c")
        (listed,) = (await ask.get("/runs")).json
        assert set(listed) == CLIENT_RUN | {"state"}
        assert (listed["isTerminal"], listed["isActive"], listed["progress"], listed["output"]) == (
            False, True, None, None,
        )  # fmt: skip
        assert (listed["startedAt"], listed["completedAt"], listed["error"]) == (None, None, None)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", listed["createdAt"])
        assert (await ask.get("/run", {"runId": listed["id"]})).json == listed

    run(test, house)


def test_a_list_goes_by_job_status_and_labels_and_repeated_ones_mean_any(house: House) -> None:
    async def test(ask: Asking) -> None:
        one = await ask.trigger("nothing", labels={"team.a": "x", "n": "1"})
        two = await ask.trigger("import-csv", {"rows": 0}, labels={"team.a": "x"})
        three = await ask.trigger("broken")
        await ask.post("/cancel", params={"runId": three})

        async def ids(*params: tuple[str, str]) -> set[str]:
            return {found["id"] for found in (await ask.get("/runs", list(params))).json}

        assert await ids(("jobName", "nothing")) == {one}
        assert await ids(("jobName", "nothing"), ("jobName", "broken")) == {one, three}
        assert await ids(("status", "pending")) == {one, two}
        assert await ids(("status", "pending"), ("status", "cancelled")) == {one, two, three}
        assert await ids(("label.team.a", "x")) == {one, two}
        assert await ids(("label.team.a", "x"), ("label.n", "1")) == {one}
        assert await ids(("label.n", "2"), ("label.n", "1")) == {one}, "of one key the last counts"
        assert await ids(("jobName", "")) == set()
        assert await ids(("jobName", "nobody")) == set()

    run(test, house)


def test_pages_do_not_overlap_also_of_runs_of_one_moment(house: House) -> None:
    async def test(ask: Asking) -> None:
        ids = [await ask.trigger("nothing") for _ in range(5)][::-1]
        house.sql("update holdfast_runs set created_at = 1")
        pages = [(await ask.get("/runs", {"limit": "2", "offset": str(at)})).json for at in (0, 2, 4, 6)]
        assert [[one["id"] for one in page] for page in pages] == [ids[:2], ids[2:4], ids[4:], []]
        assert len((await ask.get("/runs", {"offset": "3"})).json) == 2
        older = await ask.get("/runs", {"before": ids[2], "limit": "5"})
        assert [one["id"] for one in older.json] == ids[3:]

    run(test, house)


@pytest.mark.parametrize(("limit", "many"), [("0", 0), ("1x", 1), ("1.5", 1), (" 2", 2), ("+2", 2), ("", 3)])
def test_a_limit_is_read_as_c_reads_numbers(limit: str, many: int, house: House) -> None:
    async def test(ask: Asking) -> None:
        for _ in range(3):
            await ask.trigger("nothing")
        assert len((await ask.get("/runs", {"limit": limit})).json) == many

    run(test, house)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"limit": "-1"}, "Invalid limit: must be a non-negative integer"),
        ({"limit": "x"}, "Invalid limit: must be a non-negative integer"),
        ({"limit": "NaN"}, "Invalid limit: must be a non-negative integer"),
        ({"limit": "9" * 40}, "Invalid limit: must be a non-negative integer"),
        ({"limit": "501"}, "Invalid limit: must be at most 500"),
        ({"offset": "-1"}, "Invalid offset: must be a non-negative integer"),
        ({"offset": "x"}, "Invalid offset: must be a non-negative integer"),
        ({"status": "running"}, f"Invalid status: running. Must be one of: {STATUSES}"),
        ({"status": "waiting"}, f"Invalid status: waiting. Must be one of: {STATUSES}"),
        ({"status": ""}, f"Invalid status: empty value. Must be one of: {STATUSES}"),
        ([("status", "pending"), ("status", "x")], f"Invalid status: x. Must be one of: {STATUSES}"),
        ([("status", "pending"), ("status", "")], f"Invalid status: empty value. Must be one of: {STATUSES}"),
        ({"label.a b": "x"}, "Invalid label key 'a b': must contain only"),
        ({"label.": "x"}, "Invalid label key '': must contain only"),
        ({"jobName": "a\0b"}, "jobName: 'a\\x00b' is not a usable string."),
    ],
)  # fmt: skip
def test_a_list_refuses_what_it_does_not_understand(params: Any, error: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        answer = await ask.get("/runs", params)
        assert answer.status == 400
        assert answer.error.startswith(error)

    run(test, house)


def test_a_list_without_a_limit_is_no_longer_than_a_page(house: House) -> None:
    async def test(ask: Asking) -> None:
        for _ in range(3):
            await ask.trigger("nothing")
        assert len((await ask.get("/runs")).json) == 2

    run(test, house, max_page=2)


# -- one run -------------------------------------------------------------------------------------------------------

OF_A_RUN = [
    "GET /run", "GET /steps", "GET /subscribe", "POST /retrigger", "POST /cancel", "DELETE /run", "GET /run/steps",
    "GET /run/logs", "GET /run/children", "POST /signal",
]  # fmt: skip


@pytest.mark.parametrize("place", OF_A_RUN)
def test_whatever_is_about_a_run_needs_its_id_and_the_run(place: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        for params in ({}, {"runId": ""}):
            answer = await ask.ask(*place.split(" "), params)
            assert (answer.status, answer.error) == (400, "runId query parameter is required")
        missing = await ask.ask(*place.split(" "), {"runId": "nobody"})
        assert (missing.status, missing.error) == (404, "Run not found")
        hostile = await ask.ask(*place.split(" "), {"runId": "a\0b"})
        assert hostile.status == 400

    run(test, house)


def test_an_ended_run_says_so(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("import-csv", {"rows": 2})
        await ended(ask, run_id)
        shown = (await ask.get("/run", {"runId": run_id})).json
        assert (shown["status"], shown["output"], shown["isTerminal"], shown["isActive"]) == (
            "completed", 2, True, False,
        )  # fmt: skip
        assert shown["progress"] == {"current": 2, "total": 2}
        assert (shown["currentStepIndex"], shown["completedStepCount"]) == (2, 2)
        failed = await ask.trigger("broken")
        await ended(ask, failed)
        shown = (await ask.get("/run", {"runId": failed})).json
        assert (shown["status"], shown["error"], shown["output"]) == ("failed", "no such file", None)

    run(test, house, worker=True)


@pytest.mark.parametrize(
    ("ours", "theirs", "terminal"),
    [("waiting", "leased", False), ("timed_out", "failed", True), ("finalize_failed", "failed", True)],
)
def test_s11_statuses_that_the_ancestor_does_not_know_are_shown_as_theirs_and_filtered_alike(
    ours: str, theirs: str, terminal: bool, house: House
) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("nothing")
        ended_at = "1" if terminal else "null"
        house.sql(
            f"update holdfast_runs set status = '{ours}', completed_at = {ended_at}, started_at = 1, generation = 1"
        )
        shown = (await ask.get("/run", {"runId": run_id})).json
        assert (shown["status"], shown["state"], shown["isTerminal"], shown["isActive"]) == (
            theirs, ours, terminal, not terminal,
        )  # fmt: skip
        assert [one["id"] for one in (await ask.get("/runs", {"status": theirs})).json] == [run_id]
        async with ask.stream("/subscribe", {"runId": run_id}) as stream:
            event = await stream.event()
            assert event is not None
            assert event["type"] == ("run:fail" if terminal else "run:leased")

    run(test, house)


def test_steps_are_whole_while_the_run_goes_on_and_none_once_it_has_ended(house: House, stuck: Any) -> None:
    @job
    async def slow(step: Step) -> int:
        await step.run("first", lambda: {"a": 1})
        return int(await step.run("second", stuck.hang, 2))

    async def main() -> None:
        async with house.app(slow) as app:
            ask = Asking(app)
            run_id = await ask.trigger("slow")
            await stuck.came()
            (step,) = (await ask.get("/steps", {"runId": run_id})).json
            assert set(step) == {
                "id", "runId", "name", "index", "status", "output", "error", "startedAt", "completedAt",
            }  # fmt: skip
            assert (step["runId"], step["name"], step["index"], step["status"], step["output"], step["error"]) == (
                run_id, "first", 0, "completed", {"a": 1}, None,
            )  # fmt: skip
            every = (await ask.get("/run/steps", {"runId": run_id})).json
            assert [one["name"] for one in every][:1] == ["first"]
            stuck.let_go()
            await ended(ask, run_id)
            assert (await ask.get("/steps", {"runId": run_id})).json == []
            assert [one["name"] for one in (await ask.get("/run/steps", {"runId": run_id})).json] == ["first", "second"]

    asyncio.run(main())


def test_steps_stay_where_they_are_to_be_preserved_and_of_a_cancelled_run(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("import-csv", {"rows": 2})
        await ended(ask, run_id)
        found = (await ask.get("/steps", {"runId": run_id})).json
        assert [(step["name"], step["index"]) for step in found] == [("row-0", 0), ("row-1", 1)]

    run(test, house, worker=True, app={"preserve_steps": True})


def test_a_retrigger_is_a_new_run_that_is_executed(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("import-csv", {"rows": 1})
        await ended(ask, run_id)
        answer = await ask.post("/retrigger", params={"runId": run_id})
        assert (answer.status, set(answer.json), answer.json["success"]) == (200, {"success", "runId"}, True)
        assert answer.json["runId"] != run_id
        await ended(ask, answer.json["runId"])
        assert (await ask.get("/run", {"runId": answer.json["runId"]})).json["output"] == 1

    run(test, house, worker=True)


def test_what_has_not_ended_is_neither_triggered_again_nor_deleted(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("nothing")
        again = await ask.post("/retrigger", params={"runId": run_id})
        assert (again.status, again.error) == (409, f"Cannot retrigger pending run: {run_id}")
        deleted = await ask.delete("/run", params={"runId": run_id})
        assert (deleted.status, deleted.error) == (409, f"Cannot delete pending run: {run_id}")

    run(test, house)


def test_a_retrigger_of_a_job_that_is_gone_names_it_and_no_other(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("nothing")
        await ask.post("/cancel", params={"runId": run_id})
        house.sql("update holdfast_runs set job_name = 'gone'")
        answer = await ask.post("/retrigger", params={"runId": run_id})
        assert (answer.status, answer.error) == (404, "Unknown job: gone")

    run(test, house)


def test_a_cancel_ends_a_run_once(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("nothing")
        answer = await ask.post("/cancel", params={"runId": run_id})
        assert (answer.status, answer.json) == (200, {"success": True})
        again = await ask.post("/cancel", params={"runId": run_id})
        assert (again.status, again.error) == (409, f"Cannot cancel already cancelled run: {run_id}")

    run(test, house)


def test_a_cancel_of_a_completed_run_conflicts(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("nothing")
        await ended(ask, run_id)
        answer = await ask.post("/cancel", params={"runId": run_id})
        assert (answer.status, answer.error) == (409, f"Cannot cancel completed run: {run_id}")

    run(test, house, worker=True)


def test_a_deletion_answers_json_and_the_run_is_gone(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("nothing")
        await ask.post("/cancel", params={"runId": run_id})
        answer = await ask.delete("/run", params={"runId": run_id})
        assert (answer.status, answer.json) == (200, {"success": True})
        assert (await ask.get("/run", {"runId": run_id})).status == 404

    run(test, house)


# -- what goes wrong with us ----------------------------------------------------------------------------------------


def test_a_fault_of_ours_is_told_with_a_reference_and_nothing_of_what_it_was(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(ask: Asking) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("secret path /var/lib/secret.db")

        monkeypatch.setattr(Holdfast, "get_run", broken)
        answer = await ask.get("/run", {"runId": "x"})
        assert answer.status == 500
        reference = answer.error.rsplit(" ", 1)[1].rstrip(".")
        assert "secret" not in answer.error
        assert reference in caplog.text
        assert "secret path" in caplog.text

    run(test, house)


def test_a_database_that_cannot_serve_is_503_and_to_be_tried_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        app = house.app(nothing, worker=False)
        ask = Asking(app)
        answer = await ask.get("/runs")  # there are no tables
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.error == "The database isn't ready for us. The log says why."
        assert "there are no Holdfast tables yet" in caplog.text
        ready, health = await ask.get("/ready"), await ask.get("/health")
        assert (ready.status, health.status) == (503, 200)
        heads = [await ask.ask("HEAD", path) for path in ("/ready", "/health")]
        assert [(head.status, head.body) for head in heads] == [(503, b""), (200, b"")]
        assert heads[1].headers["Content-Length"] == str(len(health.body))
        await app.init()
        assert (await ask.get("/ready")).json == {"status": "ok"}
        await app.stop()
        stopped = await ask.get("/runs")
        assert (stopped.status, stopped.error) == (503, "The database can't serve us now. Try again later.")

    asyncio.run(main())


@pytest.mark.parametrize("made", ["handler", "asgi", "wsgi"])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_streams": "5"}, "max_streams: '5' must be a whole number, at least 0"),
        ({"max_streams": -1}, "max_streams: -1 must be"),
        ({"max_page": True}, "max_page: True must be a whole number, at least 1"),
        ({"max_page": 0}, "max_page: 0 must be"),
        ({"max_body": 1e6}, "max_body: 1000000.0 must be"),
        ({"max_body": 0}, "max_body: 0 must be"),
        ({"heartbeat": 0}, "heartbeat: it must be longer than 0 seconds"),
        ({"sse_throttle": ""}, "sse_throttle: '' is not a duration"),
        ({"base_path": None}, "base_path: None is no text"),
        ({"on_request": True}, "on_request: True can't be called"),
    ],
)  # fmt: skip
def test_options_that_no_request_could_be_answered_with_are_refused_at_once(
    options: dict[str, Any], error: str, made: str, house: House
) -> None:
    with pytest.raises(ValidationError, match=re.escape(error)):
        getattr(house.app(), made)(**options)
