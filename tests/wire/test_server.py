"""A real server and real sockets: what a handler without any can't show."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from asking import PATIENCE, serving
from holdfast import Holdfast, Step, job
from holdfast.http import AsgiApp
from house import House, Stuck

pytestmark = pytest.mark.sampled("web servers: the same on every Python", every=4)


@job
async def counted(step: Step, rows: int) -> int:
    for row in range(rows):
        await step.run(f"row-{row}", lambda row=row: row)
    return rows


@job
async def nothing() -> None: ...


def server(house: House, *jobs: Any, stack: ExitStack, worker: bool = True, **options: Any) -> tuple[str, AsgiApp]:
    web = house.app(*(jobs or (counted, nothing)), worker=worker).asgi(**options)
    return stack.enter_context(serving(web)), web


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line[6:])


def until(what: str, condition: Any) -> None:
    pause = threading.Event()
    for _ in range(round(PATIENCE / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError(f"it never came to be: {what}")


def test_started_by_itself_it_makes_the_tables_and_executes(house: House) -> None:
    with ExitStack() as stack:
        url, _ = server(house, stack=stack)
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            made = client.post("/trigger", json={"jobName": "counted", "input": {"rows": 3}})
            assert made.status_code == 200
            assert made.headers["content-type"] == "application/json"
            run_id = made.json()["runId"]
            with client.stream("GET", "/subscribe", params={"runId": run_id}) as stream:
                assert stream.headers["content-type"] == "text/event-stream"
                assert stream.headers["cache-control"] == "no-cache"
                assert "content-length" not in stream.headers
                events = list(events_of(stream.iter_lines()))
            assert (events[-1]["type"], events[-1]["output"]) == ("run:complete", 3)
            gone = client.get("/nope")
            assert (gone.status_code, gone.text, gone.reason_phrase) == (404, "Not Found", "Not Found")
            assert client.delete("/run", params={"runId": run_id}).json() == {"success": True}


def test_a_stream_can_be_read_before_anything_has_happened(house: House) -> None:
    with ExitStack() as stack:
        url, _ = server(house, stack=stack)
        with httpx.Client(base_url=url, timeout=PATIENCE) as client, client.stream("GET", "/runs/subscribe") as stream:
            assert stream.status_code == 200, "the headers come at once"
            run_id = httpx.post(f"{url}/trigger", json={"jobName": "nothing"}).json()["runId"]
            event = next(events_of(stream.iter_lines()))
            assert (event["type"], event["runId"]) == ("run:trigger", run_id)


@pytest.mark.parametrize("how", ["closed", "reset", "silent"])
def test_h1_nothing_is_left_of_clients_that_vanish(how: str, house: House) -> None:
    with ExitStack() as stack:
        url, web = server(house, stack=stack, heartbeat=0.05)
        place = urlsplit(url)
        run_id = httpx.post(f"{url}/trigger", json={"jobName": "nothing"}).json()["runId"]
        assert run_id
        engine = web.handler.app._engine
        clients: list[socket.socket] = []
        for _ in range(50):
            client = socket.create_connection((place.hostname, place.port))
            client.sendall(b"GET /runs/subscribe HTTP/1.1\r\nHost: localhost\r\n\r\n")
            clients.append(client)
            stack.callback(client.close)
        until("all are connected", lambda: web.handler.streams == 50)
        if how == "silent":
            return  # they read no more, and say nothing: the server stops in spite of them
        for client in clients:
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        until("none is left", lambda: web.handler.streams == 0)
        until("nothing is followed for them", lambda: not engine.feed.is_read)


def test_h1_after_three_crowds_that_vanish_there_is_no_task_thread_or_subscription_more(house: House) -> None:
    """Half of them read nothing of what they are sent. `benchmarks/serving.py` does it with a thousand."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def here() -> None:
        loops[:] = [asyncio.get_running_loop()]

    def counts() -> tuple[int, int, int, int, int]:
        engine = web.handler.app._engine
        return (
            len(asyncio.all_tasks(loops[0])),
            threading.active_count(),
            web.handler.streams,
            len(engine.feed._readers),
            len(engine.subscriptions.of(run_id)),
        )

    def crowd() -> list[socket.socket]:
        gathered = []
        for number in range(60):
            client = socket.create_connection((place.hostname, place.port), PATIENCE)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            path = b"/runs/subscribe" if number % 3 else b"/subscribe?runId=" + run_id.encode()
            client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if number % 2:
                assert client.recv(100).startswith(b"HTTP/1.1 200")
            gathered.append(client)
        until("all are connected", lambda: web.handler.streams == 60)
        return gathered

    with ExitStack() as stack:
        url, web = server(house, stack=stack, worker=False, on_request=here)
        place = urlsplit(url)
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            run_id = client.post("/trigger", json={"jobName": "nothing"}).json()["runId"]
        fat = {f"fat-{number}": "x" * 250 for number in range(30)}
        until("it has nothing to do", lambda: counts()[0] <= 2)
        threads: list[int] = []
        assert counts()[2:] == (0, 0, 0)
        for way in ("reset", "closed", "reset"):
            gathered = crowd()
            for _ in range(8):
                httpx.post(f"{url}/trigger", json={"jobName": "nothing", "labels": fat})
            for one in gathered:
                if way == "reset":
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()
            until(f"all are gone that were {way}", lambda: counts()[2:] == (0, 0, 0) and counts()[0] <= 2)
            threads.append(counts()[1])  # some begin with the first stream, and stay
        until("no crowd leaves a thread", lambda: counts()[1] <= threads[0])


def test_h2_clients_that_leave_before_the_first_byte_cost_nothing(house: House) -> None:
    with ExitStack() as stack:
        url, web = server(house, stack=stack)
        place = urlsplit(url)
        for _ in range(200):
            client = socket.create_connection((place.hostname, place.port))
            client.sendall(b"GET /runs/subscribe HTTP/1.1\r\nHost: localhost\r\n\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        assert httpx.get(f"{url}/health").status_code == 200
        until("none is left", lambda: web.handler.streams == 0)


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /trigger HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{",
        b"POST /trigger HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
)
def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(
    sent: bytes, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        url, _ = server(house, stack=stack)
        place = urlsplit(url)
        with closing(socket.create_connection((place.hostname, place.port))) as client:
            client.sendall(sent)
        assert httpx.get(f"{url}/runs").json() == []
    assert "Internal error" not in caplog.text
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_h8_malformed_requests_are_refused_and_change_nothing(house: House) -> None:
    with ExitStack() as stack:
        url, _ = server(house, stack=stack, worker=False)
        place = urlsplit(url)
        for sent in (
            b"GARBAGE\r\n\r\n",
            b"POST /trigger HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
            b"GET /runs?limit=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /runs HTTP/1.1\r\n\r\n",
            b"GET /runs HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            b"POST /trigger HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{",
        ):
            with closing(socket.create_connection((place.hostname, place.port))) as client:
                client.settimeout(PATIENCE)
                client.sendall(sent)
                answer = http.client.HTTPResponse(client)
                answer.begin()
                assert 400 <= answer.status < 500, sent
        assert httpx.get(f"{url}/runs").json() == []


def test_a_server_that_stops_ends_its_streams_and_does_not_wait_for_them(house: House, stuck: Stuck) -> None:
    @job
    async def slow(step: Step) -> None:
        await step.run("wait", stuck.hang)

    with ExitStack() as stack:
        url, web = server(house, slow, stack=stack)
        run_id = httpx.post(f"{url}/trigger", json={"jobName": "slow"}).json()["runId"]
        with httpx.stream("GET", f"{url}/subscribe", params={"runId": run_id}, timeout=PATIENCE) as stream:
            lines = stream.iter_lines()
            assert next(events_of(lines))["type"] == "run:leased"
            web.handler.close()
            assert "run:complete" not in [event["type"] for event in events_of(lines)]
            assert httpx.get(f"{url}/runs/subscribe").status_code == 503
        stuck.let_go()


def test_a_stream_that_nobody_takes_is_given_up_when_the_handler_is_closed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the connection can't be known: behind middleware, or in a server that we don't know."""
    monkeypatch.setattr("holdfast.http.asgi._REST", 0.01)

    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            web = app.asgi()
            sends = asyncio.Event()

            async def send(message: Any) -> None:
                if message["type"] == "http.response.body":
                    sends.set()
                    await asyncio.Event().wait()

            async def receive() -> Any:
                return await asyncio.Event().wait()

            scope = {
                "type": "http", "method": "GET", "path": "/runs/subscribe", "query_string": b"", "http_version": "1.1",
                "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1),
            }  # fmt: skip
            answering = asyncio.ensure_future(web(scope, receive, send))
            await sends.wait()
            assert (web.handler.streams, answering.done()) == (1, False)
            web.handler.close()
            await asyncio.wait_for(answering, PATIENCE)
            assert not answering.cancelled()
            assert web.handler.streams == 0
            assert not web.handler._when_closed

    asyncio.run(main())


WORKER = """
import sys
from holdfast import Holdfast, Step

app = Holdfast(sys.argv[1], lease="5s")

@app.job
async def counted(step: Step, rows: int) -> int:
    for row in range(rows):
        await step.run(f"row-{row}", lambda row=row: row)
        step.progress(row + 1, rows)
        step.log.info(f"did {row}")
    return rows

with app:
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_h4_what_a_process_beside_it_executes_is_seen_with_its_progress_and_its_log(house: House) -> None:
    with ExitStack() as stack:
        url, _ = server(house, stack=stack, worker=False)
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, house.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(worker.wait, PATIENCE)
        stack.callback(worker.communicate)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        with (
            httpx.Client(base_url=url, timeout=PATIENCE) as client,
            client.stream("GET", "/runs/subscribe") as every,
        ):
            all_lines = events_of(every.iter_lines())
            run_id = client.post("/trigger", json={"jobName": "counted", "input": {"rows": 30}}).json()["runId"]
            with client.stream("GET", "/subscribe", params={"runId": run_id}) as stream:
                events = list(events_of(stream.iter_lines()))
            types = [event["type"] for event in events]
            assert types[-1] == "run:complete"
            steps = [event["stepIndex"] for event in events if event["type"] == "step:complete"]
            assert steps == sorted(set(steps))
            told: list[str] = []
            for event in all_lines:
                told.append(event["type"])
                if event["type"] == "run:complete":
                    break
            assert told[0] == "run:trigger"


def test_it_is_mounted_into_starlette_and_fastapi(house: House) -> None:
    from fastapi import FastAPI
    from starlette.applications import Starlette
    from starlette.routing import Mount

    async def ask(web: Any, app: Holdfast) -> None:
        transport = httpx.ASGITransport(web)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            made = await client.post("/runs/api/trigger", json={"jobName": "nothing"})
            assert made.status_code == 200, made.text
            run = await app.wait_for_run(made.json()["runId"])
            assert run.status == "completed"
            assert (await client.get("/runs/api/nope")).text == "Not Found"
            assert (await client.get("/runs/api/runs?limit=1")).status_code == 200

    async def main() -> None:
        app = house.app(nothing)
        fast = FastAPI(lifespan=app.lifespan)
        fast.mount("/runs/api", app.asgi())
        async with fast.router.lifespan_context(fast):
            await ask(fast, app)
        star = Starlette(routes=[Mount("/runs/api", app=app.asgi())], lifespan=app.lifespan)
        async with star.router.lifespan_context(star):
            await ask(star, app)

    asyncio.run(main())
