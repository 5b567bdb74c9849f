"""Whatever is asked: an answer with a reason, never a fault of ours, and what was refused has changed nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import databases
from asking import Asking
from holdfast import Holdfast, Step, job
from holdfast.http import Request
from holdfast.http.routes import ROUTES

pytestmark = pytest.mark.sampled("requests: what is refused is the same on every Python", every=2)


@job
async def number(step: Step, n: int) -> int:
    return n


@job
async def asking(step: Step) -> Any:
    return await step.wait_for_signal("answer")


TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "\0", "\ud800", "'; drop table holdfast_runs; --", '"', "%", "%00", "../../etc/passwd", "🌊", "\u202e",
         "\r\nX: y", "-1", "1e18", "NaN", "9" * 30, "pending", "number", "asking", "approval"]
    ),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(
        ["runId", "jobName", "status", "limit", "offset", "before", "after", "label.a", "label.", "label.a'b"]
    ),
    TEXTS,
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "jobName",
        "input",
        "idempotencyKey",
        "concurrencyKey",
        "labels",
        "coalesce",
        "name",
        "value",
        "key",
        "output",
        "error",
        "x",
    ]
)
BODIES = st.one_of(
    st.binary(max_size=50),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(FIELDS, VALUES, max_size=6).map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {"jobName": st.sampled_from(["number", "asking", "approval"])},
        optional={"input": st.one_of(VALUES, st.just({"n": 1}), st.just({"key": "k"})), "labels": VALUES, "key": VALUES,
                  "output": VALUES, "idempotencyKey": VALUES, "coalesce": VALUES, "concurrencyKey": VALUES},
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "content-length", "last-event-id", "origin", "x-a", "cookie", "authorization"]),
    TEXTS, max_size=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def open_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.AbstractEventLoop, Asking, list[str]]]:
    loop = asyncio.new_event_loop()
    app = Holdfast(databases.url(tmp_path_factory.mktemp("hostile") / "app.db"), jobs=[number, asking], worker=False)
    app.sleeping("approval", output=int)
    ask = Asking(app)

    async def begin() -> list[str]:
        await app.init()
        return [await ask.trigger("number", {"n": 1}), await ask.trigger("asking")]

    runs = loop.run_until_complete(begin())
    yield loop, ask, runs
    loop.run_until_complete(app.stop())
    loop.close()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from(ROUTES),
    params=st.lists(st.tuples(KEYS, TEXTS), max_size=5),
    which=st.sampled_from([None, 0, 1]),
    body=BODIES,
    headers=HEADERS,
)
def test_h8_no_request_is_a_fault_of_ours(
    open_app: tuple[asyncio.AbstractEventLoop, Asking, list[str]],
    route: Any,
    params: list[tuple[str, str]],
    which: int | None,
    body: bytes,
    headers: dict[str, str],
) -> None:
    loop, ask, runs = open_app
    if which is not None:
        params = [*params, ("runId", runs[which])]

    async def main() -> tuple[int, bytes, bool]:
        from urllib.parse import urlencode

        query = urlencode(params, errors="surrogatepass")
        response = await ask.handler.handle(Request(route.method, route.path, query, headers, body))
        if response.stream is not None:
            await response.stream.aclose()  # type: ignore[attr-defined]
        return response.status, response.body, response.stream is not None

    status, answer, is_stream = loop.run_until_complete(main())
    assert status < 500, answer
    if not is_stream and status != 204:
        document = json.loads(answer)
        assert status == 200 or set(document) == {"error"}
    assert ask.handler.streams == 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=TEXTS, method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "", "get", "\0"]))
def test_h8_no_path_is_a_fault_of_ours(
    open_app: tuple[asyncio.AbstractEventLoop, Asking, list[str]], path: str, method: str
) -> None:
    loop, ask, _ = open_app
    response = loop.run_until_complete(ask.handler.handle(Request(method, "/" + path)))
    assert (response.status, response.body) == (404, b"Not Found")
