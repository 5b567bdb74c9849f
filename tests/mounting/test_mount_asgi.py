"""The routes beside those of FastAPI and Starlette: where they are, who may ask, and how their streams end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from mounted import BASE, LONG, asking, events, followed, server, until
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from asking import serving
from holdfast import Holdfast, Step, job
from holdfast.http import Auth, Reject
from house import House

pytestmark = [
    pytest.mark.sampled("web servers: the same on every Python", every=4),
    pytest.mark.only("sqlite", "where it is mounted has nothing to do with the database"),
]


@job
async def counted(step: Step, rows: int) -> int:
    for row in range(rows):
        await step.run(f"row-{row}", str, row)
    return rows


@job
async def idle() -> None: ...


@contextlib.contextmanager
def asked(web: Any) -> Iterator[httpx.Client]:
    with serving(web) as url, asking(url) as client:
        yield client


def started(client: httpx.Client, rows: int = 2) -> str:
    made = client.post(f"{BASE}/trigger", json={"jobName": "counted", "input": {"rows": rows}})
    assert made.status_code == 200, made.text
    return str(made.json()["runId"])


# -- the example, in uvicorn ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fastapi_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("fastapi"), "-m", "uvicorn", "--port", "{port}", "fastapi_mounted:web") as it:
        yield it.url


ADA, BOB = {"Authorization": "Bearer sesame"}, {"Authorization": "Bearer open"}


def test_a_run_that_a_route_of_fastapi_has_triggered_is_followed_over_ours(fastapi_url: str) -> None:
    with asking(fastapi_url, headers=ADA) as client:
        run_id = client.post("/imports", params={"rows": 3}).json()["runId"]
        last = followed(client, run_id)
        assert (last["type"], last["output"]) == ("run:complete", 3)
        assert client.get(f"{BASE}/run", params={"runId": run_id}).json()["progress"]["total"] == 3


def test_the_dependency_of_fastapi_says_who_asks_there_and_here(fastapi_url: str) -> None:
    with asking(fastapi_url) as client:
        for path in ("/imports?rows=1", f"{BASE}/trigger"):
            assert client.post(path).status_code == 401
        assert client.get(f"{BASE}/runs").json() == {"error": "Who are you?"}
        run_id = client.post("/imports", params={"rows": 1}, headers=ADA).json()["runId"]
        shown = {
            name: client.get(f"{BASE}/run", params={"runId": run_id}, headers=headers).status_code
            for name, headers in (("ada", ADA), ("bob", BOB))
        }
        assert shown == {"ada": 200, "bob": 404}
        assert run_id not in client.get(f"{BASE}/runs", headers=BOB).text


def test_health_and_readiness_are_told_to_everybody_below_the_mount(fastapi_url: str) -> None:
    with asking(fastapi_url) as client:
        for path in ("/health", "/ready"):
            answer = client.get(BASE + path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
            head = client.head(BASE + path)
            assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "15")
            assert client.get(path).status_code == 404, "only there"


def test_the_routes_are_where_openapi_says(fastapi_url: str) -> None:
    with asking(fastapi_url, headers=ADA) as client:
        document = client.get(f"{BASE}/openapi.json").json()
        assert document["servers"] == [{"url": BASE}]
        path = next(path for path, operations in document["paths"].items() if "get" in operations and path == "/jobs")
        assert client.get(document["servers"][0]["url"] + path).json()[0]["name"] == "import_rows"


# -- how it ends ---------------------------------------------------------------------------------------------------

HELD = """
from fastapi_mounted import Step, app, web


@app.job
async def until_stopping(step: Step) -> str:
    async def told() -> str:
        return await step.shutdown

    return await step.run("told", told)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_server_that_is_told_to_stop_ends_its_streams_and_what_it_executes(number: int, tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    with contextlib.ExitStack() as stack:
        it = stack.enter_context(server(tmp_path, "-m", "uvicorn", "--port", "{port}", "held:web"))
        client = stack.enter_context(asking(it.url, headers=ADA))
        made = client.post(f"{BASE}/trigger", json={"jobName": "until_stopping", "input": {}}).json()
        paths = [f"/subscribe?runId={made['runId']}", "/runs/subscribe", f"/run/events?runId={made['runId']}"]
        streams = [stack.enter_context(client.stream("GET", BASE + path)) for path in paths]
        chunks = [stream.iter_text() for stream in streams]
        assert "run:leased" in next(chunks[0])
        assert it.stop(number) == 0, it.log.read_text()
        for stream in chunks:
            events("".join(stream))  # whole to its end: no frame is torn, and the connection was not cut
        assert "Cancel" not in it.log.read_text()
    app = Holdfast(f"sqlite:///{tmp_path / 'shop.db'}", worker=False)
    with app:
        run = app.get_run(made["runId"]).wait()
        assert run is not None
        assert (run.status, run.output) == ("completed", "shutdown")


WORDY = """
from fastapi_mounted import Step, app, web


@app.job
async def wordy(step: Step) -> None:
    for _ in range(200):
        step.log.info("x" * 60_000)
    await step.run("all", str)


@app.job
async def idle() -> None: ...
"""


def test_a_client_that_reads_nothing_keeps_no_server_from_stopping_and_its_worker_claims_no_more(
    tmp_path: Path,
) -> None:
    (tmp_path / "wordy.py").write_text(WORDY)
    with contextlib.ExitStack() as stack:
        it = stack.enter_context(server(tmp_path, "-m", "uvicorn", "--port", "{port}", "wordy:web"))
        client = stack.enter_context(asking(it.url, headers=ADA))
        run_id = client.post(f"{BASE}/trigger", json={"jobName": "wordy", "input": {}}).json()["runId"]
        followed(client, run_id)
        deaf = stack.enter_context(socket.socket())
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", it.port))
        lines = [
            f"GET {BASE}/run/events?runId={run_id} HTTP/1.1",
            "Host: localhost",
            "Authorization: Bearer sesame",
            "",
            "",
        ]
        deaf.sendall("\r\n".join(lines).encode())
        assert deaf.recv(15) == b"HTTP/1.1 200 OK"
        it.process.send_signal(signal.SIGTERM)
        until("it listens no more", lambda: not it.listens())
        app = stack.enter_context(Holdfast(f"sqlite:///{tmp_path / 'shop.db'}", jobs=[idle], worker=False))
        late = app.get_job("idle").trigger().wait()
        assert it.process.wait(LONG) in (0, -signal.SIGTERM), it.log.read_text()
        assert "rror" not in it.log.read_text()
        run = app.get_run(late.id).wait()
        assert run is not None
        assert run.status == "pending"


# -- where it is ---------------------------------------------------------------------------------------------------


def on_fastapi(house: House) -> Any:
    web = FastAPI()
    web.mount(BASE, house.app(counted).asgi())
    return web


def on_starlette(house: House) -> Any:
    return Starlette(routes=[Mount(BASE, app=house.app(counted).asgi())])


def deeper(house: House) -> Any:
    return Starlette(routes=[Mount("/api", app=Starlette(routes=[Mount("/durably", house.app(counted).asgi())]))])


def by_its_own_base_path(house: House) -> Any:
    return house.app(counted).asgi(base_path="api/durably/")


WHERE = {"fastapi": on_fastapi, "starlette": on_starlette, "a mount in a mount": deeper, "alone": by_its_own_base_path}


@pytest.mark.parametrize("proxy", ["", "/shop"])
@pytest.mark.parametrize("web", WHERE.values(), ids=WHERE)
def test_routes_are_found_below_a_path_and_behind_a_proxy_that_has_its_own(web: Any, proxy: str, house: House) -> None:
    async def main() -> None:
        # What the server is told of the proxy (`uvicorn --root-path /shop`) is in the path, too.
        transport = httpx.ASGITransport(web(house), root_path=proxy)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://localhost{proxy}") as client:
            assert (await client.get(f"{BASE}/health")).json() == {"status": "ok"}
            document = (await client.get(f"{BASE}/openapi.json")).json()
            assert document["servers"] == [{"url": proxy + BASE}]
            for path in (
                "/health",
                "/api/health",
                "/api/durablyhealth",
                "/api/durably/health/",
                "/api/durably//health",
            ):
                assert (await client.get(path)).status_code in (404, 307), path

    asyncio.run(main())


def test_a_proxy_that_cuts_its_path_off_is_said_without_being_in_the_path(house: House) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(on_fastapi(house), root_path="/shop")
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get(f"{BASE}/health")).status_code == 200
            assert (await client.get(f"{BASE}/openapi.json")).json()["servers"] == [{"url": "/shop" + BASE}]

    asyncio.run(main())


# -- lifespan ------------------------------------------------------------------------------------------------------


def test_the_lifespan_of_the_app_is_that_of_fastapi_or_a_part_of_it(house: House) -> None:
    told: list[str] = []
    app = house.app(counted)

    @contextlib.asynccontextmanager
    async def lifespan(web: Starlette) -> AsyncIterator[dict[str, Any]]:
        told.append("opened")
        async with app.lifespan(web):
            yield {"mine": 7}
        told.append("closed")

    for web in (FastAPI(lifespan=app.lifespan), FastAPI(lifespan=lifespan), Starlette(lifespan=lifespan)):
        web.mount(BASE, app.asgi())
        with asked(web) as client:
            run_id = started(client)
            assert followed(client, run_id)["output"] == 2
    assert told == ["opened", "closed"] * 2


def test_what_listens_to_signals_is_as_it_was_when_the_lifespan_is_over(house: House) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    async def main() -> None:
        app = house.app(counted)
        handler = app.handler()
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
        async with app.lifespan():
            response = await handler.handle(_all_runs())
            assert response.stream is not None
            signal.raise_signal(signal.SIGTERM)
            assert [chunk async for chunk in response.stream] == []
            assert told == [signal.SIGTERM], "whoever listened before is told, too"
            assert (await handler.handle(_all_runs())).status == 503
        async with app.lifespan():
            response = await handler.handle(_all_runs())
            assert response.status == 200, "when it is started again there are streams again"
            assert response.stream is not None
            await response.stream.aclose()  # type: ignore[attr-defined]

    try:
        asyncio.run(main())
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _all_runs() -> Any:
    from holdfast.http import Request

    return Request("GET", "/runs/subscribe")


# -- beside middleware ---------------------------------------------------------------------------------------------


class ByHeader(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> Any:
        name = conn.headers.get("x-user")
        return None if name is None else (AuthCredentials(["runs"]), SimpleUser(name))


class Stamp(BaseHTTPMiddleware):
    """Passes everything through a queue of its own, as middleware of FastAPI does."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        answer = await call_next(request)
        answer.headers["x-stamp"] = "seen"
        return answer


def user_of(request: Any) -> str:
    user = request.scope["user"]
    if not user.is_authenticated:
        raise Reject(401, "Who are you?")
    return str(user.username)


def behind_middleware(app: Holdfast, **options: Any) -> tuple[Any, Any]:
    auth = Auth(authenticate=user_of, tenant=lambda name: {"user": name})
    runs = app.asgi(auth=auth, **options)
    middleware = [Middleware(AuthenticationMiddleware, backend=ByHeader()), Middleware(Stamp)]
    return Starlette(routes=[Mount(BASE, runs)], lifespan=app.lifespan, middleware=middleware), runs


def test_who_the_middleware_has_found_is_who_asks(house: House) -> None:
    web, _ = behind_middleware(house.app(counted))
    with asked(web) as client:
        assert client.get(f"{BASE}/runs").status_code == 401
        client.headers["x-user"] = "ada"
        run_id = started(client)
        assert followed(client, run_id)["output"] == 2
        answer = client.get(f"{BASE}/runs")
        assert (answer.headers["x-stamp"], [run["id"] for run in answer.json()]) == ("seen", [run_id])
        assert client.get(f"{BASE}/runs", headers={"x-user": "bob"}).json() == []


def test_streams_pass_middleware_as_they_come_and_end_when_the_client_has_gone(house: House) -> None:
    web, runs = behind_middleware(house.app(counted), heartbeat=0.05)
    with asked(web) as client:
        client.headers["x-user"] = "ada"
        with client.stream("GET", f"{BASE}/runs/subscribe") as stream:
            chunks = stream.iter_text()
            run_id = started(client)
            text = next(chunk for chunk in chunks if "data: " in chunk)
            assert events(text)[0]["runId"] == run_id
            assert runs.handler.streams == 1
        until("nothing is left of it", lambda: runs.handler.streams == 0)
        place = urlsplit(str(client.base_url))
        for _ in range(20):
            with socket.create_connection((place.hostname, place.port)) as gone:
                gone.sendall(f"GET {BASE}/runs/subscribe HTTP/1.1\r\nHost: localhost\r\nX-User: ada\r\n\r\n".encode())
        assert client.get(f"{BASE}/health").status_code == 200
        until("nothing is left of them", lambda: runs.handler.streams == 0)
        runs.handler.close()


# -- who is on this machine ----------------------------------------------------------------------------------------


def test_without_auth_a_client_of_whom_the_server_knows_nothing_is_refused(house: House) -> None:
    """As behind a socket in the file system: in front of it stands a proxy, and behind that may be anybody."""
    web, sent = house.app(counted).asgi(), []

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": "/runs", "query_string": b"", "headers": headers}
    for client in ({}, {"client": None}):
        asyncio.run(web({**scope, **client}, receive, send))
    assert [message["status"] for message in sent if "status" in message] == [403, 403]


@pytest.mark.parametrize(
    "name",
    ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via", "X-Forwarded-Host", "X-Forwarded-Proto", "CF-Connecting-IP"],
)
def test_without_auth_what_a_proxy_on_this_machine_has_passed_on_is_refused(name: str, house: House) -> None:
    async def main() -> None:
        async with house.app(counted) as app:
            transport = httpx.ASGITransport(app.asgi())  # a client on this machine
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                assert (await client.get("/runs")).status_code == 200
                refused = await client.get("/runs", headers={name: "203.0.113.7"})
                assert (refused.status_code, "no auth" in refused.json()["error"]) == (403, True)

    asyncio.run(main())
