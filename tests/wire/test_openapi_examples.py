"""Requests made of `/openapi.json`, as others make their clients of it: each answer is one that it promises.

A few hundred here, the same in every run; `make fuzz-http` makes thousands of others (`HOLDFAST_FUZZ`: so many for each
route and mode).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from asking import Asking
from holdfast import Children, Step, job
from holdfast.http import Request, Response
from holdfast.http.openapi import document
from holdfast.http.routes import BY_PLACE, ROUTES
from holdfast.http.stream import HEARTBEAT
from house import House

pytestmark = pytest.mark.sampled("requests: what is answered is the same on every Python", every=4)

FUZZ = int(os.environ.get("HOLDFAST_FUZZ") or 0)
EXAMPLES = FUZZ or 12
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
#: Numbers of a query: what follows the digits does not count, and an empty one is none, as with the ancestor.
READ_AS_C_DOES = {"limit", "offset", "after", "most"}
MODES = {"fitting": GenerationMode.POSITIVE, "unfit": GenerationMode.NEGATIVE}


@job
async def number(step: Step, n: int) -> int:
    step.log.info("a line", n=n)
    return await step.run("twice", lambda: n * 2)


@job
async def failing(step: Step) -> None:
    await step.run("broken", lambda: 1 // 0)


@job
async def parent() -> Children[None]:
    return Children(None, [number.bind(1), failing.bind()])


@job
async def asking(step: Step) -> Any:
    return await step.wait_for_signal("answer")


INPUTS: dict[str, dict[str, Any]] = {
    "number": {"n": 3}, "failing": {}, "parent": {}, "asking": {}, "approval": {"key": "k"},
}  # fmt: skip
#: Places in the stream of a run: before everything, within, after the end, and none.
PLACES = {"number": "0.0.", "failing": "3.1.1:0", "parent": "0.0..end", "asking": "x", "approval": "9.9.1:0-9"}

SCHEMA = schemathesis.openapi.from_dict(document(ROUTES))
OPERATIONS = {one.label: one for one in (found.ok() for found in SCHEMA.get_all_operations())}
#: Of a route that takes nothing there is nothing that does not fit.
WHAT = [
    (f"{route.method} {route.path}", mode)
    for route in ROUTES
    for mode in MODES
    if mode == "fitting" or route.params or route.body is not None
]


def test_every_route_is_an_operation() -> None:
    assert set(OPERATIONS) == {f"{route.method} {route.path}" for route in ROUTES}


@pytest.mark.parametrize(("label", "mode"), WHAT)
def test_what_is_answered_is_what_openapi_says(label: str, mode: str, house: House) -> None:
    operation = OPERATIONS[label]
    statuses: Counter[int] = Counter()

    async def begin(ask: Asking) -> list[str]:
        app = ask.handler.app
        await app.init()
        for name in ("number", "failing", "parent", "asking"):
            await ask.trigger(name, INPUTS[name])
        await app.process_until_idle()
        ended = await ask.trigger("number", INPUTS["number"])
        await app.cancel(ended)
        await ask.trigger("number", INPUTS["number"])
        await ask.trigger("approval", INPUTS["approval"])
        return [run.id for run in await app.get_runs()]

    app = house.app(number, failing, parent, asking, worker=False)
    app.sleeping("approval", output=int)
    ask = Asking(app, heartbeat=0.005)
    loop = asyncio.new_event_loop()
    try:
        runs = loop.run_until_complete(begin(ask))

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=not FUZZ, phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )  # fmt: skip
        @given(
            case=operation.as_strategy(generation_mode=MODES[mode]),
            run=st.sampled_from([None, *range(len(runs))]),
            name=st.sampled_from([None, *INPUTS]),
        )
        def test(case: Any, run: int | None, name: str | None) -> None:
            # Nothing of what is made at random names a run or a job that there is.
            if run is not None and case.query and "runId" in case.query:
                case.query["runId"] = runs[run]
            if case.headers and "Last-Event-ID" in case.headers and name is not None:
                case.headers["Last-Event-ID"] = PLACES[name]
            for body in [case.body, *_calls(case.body)]:
                if name is not None and isinstance(body, dict) and "jobName" in body:
                    body["jobName"] = name
                    if label == "POST /wake":
                        body.update({"jobName": "approval", "output": 5, "error": None})
                    else:
                        body["input"] = INPUTS[name]
            prepared = requests.Request(**case.as_transport_kwargs(base_url="http://localhost")).prepare()
            status, headers, content = loop.run_until_complete(answered(ask, prepared))
            statuses[status] += 1
            response = schemathesis.Response(
                status, {key: [value] for key, value in headers.items()}, content, prepared, 0.0, verify=False
            )
            as_made = run is None and name is None and not (set(case.query or ()) & READ_AS_C_DOES)
            case.validate_response(response, checks=[*CHECKS, negative_data_rejection] if as_made else CHECKS)

        test()
    finally:
        loop.run_until_complete(app.stop())
        loop.close()
    assert ask.handler.streams == 0
    assert statuses.total() >= EXAMPLES
    if mode == "fitting":
        assert statuses[200], "nothing fitted"


def _calls(body: Any) -> list[Any]:
    calls = body.get("calls") if isinstance(body, dict) else None
    return calls if isinstance(calls, list) else []


async def answered(ask: Asking, sent: requests.PreparedRequest) -> tuple[int, dict[str, str], bytes]:
    """The answer; of a stream what there is to tell until nothing happens."""
    place = urlsplit(str(sent.url))
    body = sent.body if isinstance(sent.body, bytes) else (sent.body or "").encode()
    request = Request(str(sent.method), unquote(place.path), place.query, dict(sent.headers), body)
    response = await ask.handler.handle(request)
    content = response.body
    if response.stream is not None:
        content = await _told(response, request)
    return response.status, dict(response.headers), content


async def _told(response: Response, request: Request) -> bytes:
    assert response.stream is not None
    chunks = []
    try:
        async for chunk in response.stream:
            if chunk == HEARTBEAT:
                break
            chunks.append(chunk)
    finally:
        if (aclose := getattr(response.stream, "aclose", None)) is not None:
            await aclose()
    content = b"".join(chunks)
    event = jsonschema_rs.validator_for(BY_PLACE[request.method, request.path].answer)
    for line in content.splitlines():
        if line.startswith(b"data: "):
            event.validate(json.loads(line[6:]))
    return content
