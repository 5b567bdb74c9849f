"""Bodies that say what JSON, or this wire, can't tell; and what `/openapi.json` tells of the routes."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from asking import Asking
from holdfast import Step, job
from holdfast.http import Request
from house import House


@job
async def echo(value: Any) -> Any:
    return value


@job
async def talking(step: Step, lines: int) -> int:
    return lines


@job
async def asking(step: Step) -> Any:
    return await step.wait_for_signal("answer")


def run(test: Callable[[Asking], Any], house: House, **options: Any) -> None:
    async def main() -> None:
        async with house.app(echo, talking, asking, worker=False) as app:
            app.sleeping("approval", output=int)
            await test(Asking(app, **options))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/trigger", '{"jobName": "echo", "input": {"value": 1e999}}', "input.value"),
        ("/trigger", '{"jobName": "echo", "input": {"value": [1, {"a b": -1e400}]}}', "input.value[1].a b"),
        ("/trigger", f'{{"jobName": "echo", "input": {{"value": {"9" * 400}.5}}}}', "input.value"),
        ("/trigger", '{"jobName": "talking", "input": {"lines": 1}, "delay": 1E+999}', "delay"),
        ("/runs/trigger", '{"calls": [{"jobName": "echo", "input": {"value": 1e999}}]}', "calls[0].input.value"),
        ("/signal", '{"name": "answer", "value": {"Infinity": 1e999}}', "value.Infinity"),
        ("/wake", '{"jobName": "approval", "key": "k", "output": 1e999}', "output"),
    ],
)
def test_a_number_that_no_float_can_hold_is_refused_by_its_path(path: str, body: str, where: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("asking")
        params = {"runId": run_id} if path == "/signal" else ()
        refused = await ask.post(path, body.encode(), params)
        assert (refused.status, refused.error) == (
            400, f"{where}: the number is too large. Send a smaller one, or a text.",
        )  # fmt: skip
        assert len(house.status()) == 1

    run(test, house)


def test_what_only_looks_like_a_number_that_is_too_large_is_taken(house: House) -> None:
    async def test(ask: Asking) -> None:
        many = int("9" * 400)
        given = ["1e999", "Infinity", 1e308, -1e-999, many, {"Infinity": 5}]
        run_id = await ask.trigger("echo", {"value": given})
        assert (await ask.get("/run", {"runId": run_id})).json["input"]["value"] == given

    run(test, house)


def test_a_body_that_is_encoded_is_said_to_be_that(house: House) -> None:
    async def test(ask: Asking) -> None:
        body = json.dumps({"jobName": "echo", "input": {"value": 1}}).encode()
        refused = await ask.post("/trigger", gzip.compress(body), headers={"Content-Encoding": "gzip"})
        assert refused.status == 415
        assert refused.error == "The body is encoded: 'gzip'. Send it as it is, without Content-Encoding."
        assert house.status() == []
        for said in ({"Content-Encoding": "identity"}, {"Content-Encoding": "gzip"}):  # decoded on the way
            assert (await ask.post("/trigger", body, headers=said)).status == 200
        assert (await ask.post("/trigger", b"no", headers={"Content-Encoding": "identity"})).status == 400

    run(test, house)


def test_openapi_says_where_the_routes_are_and_nothing_of_how_they_are_written(house: House) -> None:
    async def test(ask: Asking) -> None:
        for root, url in (("", "/jobs"), ("/", "/jobs"), ("/a/", "/a/jobs"), ("/a b", "/a%20b/jobs")):
            told = json.loads((await ask.handler.handle(Request("GET", "/jobs/openapi.json", root=root))).body)
            assert told["servers"] == [{"url": url}]
        assert "ancestor" not in json.dumps(told)

    run(test, house, base_path="/jobs")
