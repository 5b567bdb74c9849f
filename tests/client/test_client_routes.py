"""The routes that were made for the client, as whoever else asks them finds them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from far import PATIENCE, app_on

from asking import Asking
from holdfast.http import Auth
from house import House

pytestmark = [
    pytest.mark.sampled("the client: the same on every Python", every=6),
    pytest.mark.elsewhere("the client: it knows the wire only", every=6),
]


def run(test: Callable[[Asking], Awaitable[None]], house: House, **options: Any) -> None:
    worker = options.pop("worker", False)

    async def main() -> None:
        async with app_on(house.url, worker=worker) as app:
            await test(Asking(app, **options))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"priority": "high"}, "priority: "),
        ({"queue": ""}, "queue: "),
        ({"delay": -1}, "delay: "),
        ({"delay": 1, "runAt": "2036-01-01T00:00:00Z"}, "delay or runAt"),
        ({"runAt": "tomorrow"}, "runAt: 'tomorrow' is no moment"),
        ({"runAt": "2036-01-01T00:00:00"}, "with a time zone"),
        ({"retry": 3}, "retry: give an object"),
        ({"retry": {"maxRetries": 1, "wait": 2}}, "retry: give an object"),
        ({"retry": {"maxRetries": -1}}, "max_retries: "),
        ({"timeout": 0}, "timeout: "),
        ({"deadline": "soon"}, "deadline: "),
    ],
    ids=["priority", "queue", "delay", "both", "no moment", "no zone", "number", "unknown", "negative", "none", "text"],
)  # fmt: skip
def test_options_that_can_not_be_are_refused_by_name(given: dict[str, Any], error: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        body = {"jobName": "asks", "input": {}, **given}
        for answer in (await ask.post("/trigger", body), await ask.post("/runs/trigger", {"calls": [body]})):
            assert (answer.status, error in answer.error) == (400, True), answer
        assert (await ask.get("/runs")).json == []

    run(test, house)


@pytest.mark.parametrize("calls", [None, {}, [5], [{}] * 1001], ids=["none", "object", "number", "too many"])
def test_calls_that_are_none_are_refused(calls: Any, house: House) -> None:
    async def test(ask: Asking) -> None:
        answer = await ask.post("/runs/trigger", {"calls": calls})
        assert (answer.status, answer.error[:6]) == (400, "calls:")

    run(test, house)


def test_pages_of_records_are_as_large_as_the_server_allows_and_say_where_the_next_begins(house: House) -> None:
    async def test(ask: Asking) -> None:
        body = {"calls": [{"jobName": "asks", "input": {}}] * 7}
        ids = [one["run"]["id"] for one in (await ask.post("/runs/trigger", body)).json["runs"]][::-1]
        found, before = [], None
        while True:
            params = {"most": "500"} | ({"before": before} if before else {})
            page = (await ask.get("/runs/records", params)).json
            assert len(page["runs"]) <= 3
            found += [one["id"] for one in page["runs"]]
            if (before := page["nextBefore"]) is None:
                break
        assert found == ids
        assert (await ask.get("/runs/records", {"state": "pending", "status": "failed"})).json["runs"] == []
        assert (await ask.get("/runs/records", {"state": "gone"})).status == 400

    run(test, house, max_page=3)


def test_a_trigger_of_many_asks_the_hook_for_each_and_is_apart_by_tenant(house: House) -> None:
    asked: list[Any] = []

    def on_trigger(who: str, body: dict[str, Any]) -> None:
        asked.append((who, body["input"]))
        body.pop("priority", None)

    async def test(ask: Asking) -> None:
        body = {"jobName": "fails", "input": {"text": "x"}, "priority": 9, "idempotencyKey": "k", "concurrencyKey": "c"}
        other = {"jobName": "asks", "input": {}}
        ids = []
        for name in ("ada", "bob"):
            ask.headers = {"x-name": name}
            runs = (await ask.post("/runs/trigger", {"calls": [body, other]})).json["runs"]
            assert [one["disposition"] for one in runs] == ["created"] * 2
            assert [one["run"]["labels"] for one in runs] == [{"user": name}] * 2
            assert (runs[0]["run"]["priority"], runs[0]["run"]["concurrencyKey"]) == (0, "c")
            ids.append(runs[0]["run"]["id"])
        for path in ("/run/record", "/run/events"):
            refused = await ask.get(path, {"runId": ids[0]})
            assert (refused.status, refused.error) == (404, "Run not found")
        assert [one["id"] for one in (await ask.get("/runs/records", {"jobName": "fails"})).json["runs"]] == ids[1:]
        assert (await ask.get("/runs/records", {"label.user": "ada"})).json == {"runs": [], "nextBefore": None}
        assert asked == [(name, given) for name in ("ada", "bob") for given in ({"text": "x"}, {})]

    auth = Auth(
        authenticate=lambda request: request.header("x-name"), on_trigger=on_trigger, tenant=lambda name: {"user": name}
    )
    run(test, house, auth=auth)


def test_a_retrigger_by_a_key_is_one_for_each_tenant_and_job(house: House) -> None:
    async def test(ask: Asking) -> None:
        made = []
        for name in ("ada", "bob"):
            ask.headers = {"x-name": name}
            old = await ask.trigger("asks")
            await ask.post("/cancel", params={"runId": old})
            for _ in range(2):
                again = await ask.post("/retrigger", params={"runId": old, "idempotencyKey": "k"})
                made.append(again.json["runId"])
        assert len(set(made)) == 2
        assert made[0] == made[1]

    auth = Auth(authenticate=lambda request: request.header("x-name"), tenant=lambda name: {"user": name})
    run(test, house, auth=auth)


def test_a_stream_that_begins_now_says_first_where_that_is(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("asks")
        app = ask.handler.app
        async with asyncio.timeout(PATIENCE):
            while not (await app.get_run(run_id)).waiting_for:  # type: ignore[union-attr]
                pass  # nobody announces it
        async with ask.stream("/run/events", {"runId": run_id, "after": "now"}) as stream:
            place = await stream.block()
            assert place is not None
            assert place.startswith("id: ")
            await app.send_signal(run_id, "answer", 5)
            await stream.block()
        # Whoever comes back there is told everything since, and nothing before.
        async with ask.stream("/run/events", {"runId": run_id}, headers={"Last-Event-ID": place[4:]}) as stream:
            text = ""
            while (block := await stream.block()) is not None:
                text += block
        assert '"run:complete"' in text
        assert "asking" not in text
        assert text.count("step:complete") <= 1

    run(test, house, worker=True)
