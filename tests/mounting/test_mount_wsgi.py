"""The routes under WSGI: beside the views of Flask, in servers with threads, and what becomes of their streams."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from flask import Flask
from mounted import BASE, EXAMPLES, asking, events, followed, server, until
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from holdfast import SyncStep, job
from holdfast.http import Auth, Reject, WsgiApp
from house import House

pytestmark = [
    pytest.mark.sampled("web servers: the same on every Python", every=4),
    pytest.mark.only("sqlite", "where it is mounted has nothing to do with the database"),
]


@job
def counted(step: SyncStep, rows: int) -> int:
    for row in range(rows):
        step.run(f"row-{row}", str, row)
    return rows


# -- the example, in gunicorn --------------------------------------------------------------------------------------


def gunicorn(folder: Path) -> contextlib.AbstractContextManager[Any]:
    conf = str(EXAMPLES / "gunicorn_mounted.py")
    return server(folder, "-m", "gunicorn", "-c", conf, "--bind", "127.0.0.1:{port}", "flask_mounted:web")


@pytest.fixture(scope="module")
def flask_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gunicorn(tmp_path_factory.mktemp("flask")) as it:
        yield it.url


def test_a_run_that_a_view_of_flask_has_triggered_is_followed_over_ours_by_who_is_logged_in(flask_url: str) -> None:
    with asking(flask_url) as ada, asking(flask_url) as bob:
        assert ada.post("/imports").status_code == 401
        assert ada.get(f"{BASE}/runs").json() == {"error": "Log in first."}
        for client, name in ((ada, "ada"), (bob, "bob")):
            assert client.post(f"/login/{name}").status_code == 200
        run_id = ada.post("/imports", params={"rows": 3}).json()["runId"]
        last = followed(ada, run_id)
        assert (last["type"], last["output"]) == ("run:complete", 3)
        assert ada.get(f"/imports/{run_id}").json()["status"] == "completed", (
            "whoever asks again and again sees it, too"
        )
        assert bob.get(f"/imports/{run_id}").status_code == 404
        assert bob.get(f"{BASE}/run", params={"runId": run_id}).status_code == 404
        assert ada.get(f"{BASE}/openapi.json").json()["servers"] == [{"url": BASE}]
        for path in ("/health", "/ready"):
            assert ada.get(BASE + path).json() == {"status": "ok"}


def test_gunicorn_that_is_told_to_stop_does_not_wait_for_streams(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        it = stack.enter_context(gunicorn(tmp_path))
        client = stack.enter_context(asking(it.url))
        client.post("/login/ada")
        streams = [stack.enter_context(client.stream("GET", f"{BASE}/runs/subscribe")) for _ in range(3)]
        chunks = [stream.iter_text() for stream in streams]
        assert [next(each) for each in chunks] == [": \n\n"] * 3
        assert it.stop() == 0, it.log.read_text()
        for stream in chunks:
            assert events("".join(stream)) == []


# -- other servers -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_werkzeug(web: Any) -> Iterator[str]:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: Any, **__: Any) -> None: ...

    it = make_server("127.0.0.1", 0, web, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=it.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{it.port}"
    finally:
        it.shutdown()
        thread.join()
        it.server_close()


@contextlib.contextmanager
def in_waitress(web: Any) -> Iterator[str]:
    import waitress
    from waitress import wasyncore

    bound = socket.create_server(("127.0.0.1", 0))
    it = waitress.create_server(web, sockets=[bound], threads=8, channel_timeout=5)
    thread = threading.Thread(target=it.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        # Its loop ends with the last of its sockets. The trigger is one of them: it may be closed while it is pulled.
        with contextlib.suppress(OSError):
            it.trigger.pull_trigger(lambda: wasyncore.close_all(it._map))
        thread.join()
        it.task_dispatcher.shutdown()


SERVERS: dict[str, Callable[[Any], contextlib.AbstractContextManager[str]]] = {
    "werkzeug": in_werkzeug,
    "waitress": in_waitress,
}


def mounted(runs: WsgiApp) -> Flask:
    web = Flask("mounted")
    web.add_url_rule("/hello", view_func=lambda: "hello")
    web.wsgi_app = DispatcherMiddleware(web.wsgi_app, {BASE: runs})  # type: ignore[method-assign]
    return web


@pytest.mark.parametrize("serving", SERVERS.values(), ids=SERVERS)
def test_beside_the_views_of_flask_everything_is_answered(serving: Any, house: House) -> None:
    with house.app(counted) as app, serving(mounted(app.wsgi())) as url, asking(url) as client:
        made = client.post(f"{BASE}/trigger", json={"jobName": "counted", "input": {"rows": 2}})
        assert (made.status_code, made.json()["disposition"]) == (200, "created")
        assert followed(client, made.json()["runId"])["output"] == 2
        assert client.get("/hello").text == "hello"
        assert client.get(f"{BASE}/nope").text == "Not Found"
        assert client.head(f"{BASE}/runs").status_code == 404
        assert client.get(f"{BASE}/run", params={"runId": "löwe"}).status_code == 404
        large = client.post(f"{BASE}/trigger", content=b"x" * (3 << 20))
        assert (large.status_code, "longer than" in large.json()["error"]) == (413, True)
        assert client.delete(f"{BASE}/run", params={"runId": made.json()["runId"]}).json() == {"success": True}


@pytest.mark.parametrize("serving", SERVERS.values(), ids=SERVERS)
def test_a_stream_is_told_as_it_comes_and_nothing_is_left_when_its_client_has_gone(serving: Any, house: House) -> None:
    with house.app(counted) as app:
        runs = app.wsgi(heartbeat=0.05)
        with serving(mounted(runs)) as url, asking(url) as client:
            with client.stream("GET", f"{BASE}/runs/subscribe") as stream:
                chunks = stream.iter_text()
                assert next(chunks) == ": \n\n", "the client sees at once that it is connected"
                client.post(f"{BASE}/trigger", json={"jobName": "counted", "input": {"rows": 1}})
                assert events(next(chunk for chunk in chunks if "data: " in chunk))[0]["type"] == "run:trigger"
                assert runs.handler.streams == 1
            place = urlsplit(url)
            for _ in range(3):
                with socket.create_connection((place.hostname, place.port)) as gone:
                    gone.sendall(f"GET {BASE}/runs/subscribe HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                    assert b"200 OK" in gone.recv(100)
            until("nothing is left of them", lambda: runs.handler.streams == 0)
            until("nothing is followed for them", lambda: not app._engine.feed.is_read)
            runs.handler.close()


def test_more_streams_than_there_are_threads_for_are_refused(house: House) -> None:
    with house.app(counted) as app:
        runs = app.wsgi(max_streams=1)
        with in_werkzeug(runs) as url, asking(url) as client:
            with client.stream("GET", "/runs/subscribe") as stream:
                assert next(stream.iter_text()) == ": \n\n"
                assert client.get("/runs/subscribe").status_code == 503
            runs.handler.close()


# -- without a server ----------------------------------------------------------------------------------------------


def asked(runs: WsgiApp, method: str = "GET", path: str = "/runs", body: bytes = b"", **more: Any) -> tuple[str, bytes]:
    said: list[Any] = []
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "", "HTTP_HOST": "localhost",
        "REMOTE_ADDR": "127.0.0.1", "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body), **more,
    }  # fmt: skip
    answer = runs(environ, lambda status, headers: said.append((status, dict(headers))))
    text = b"".join(answer)
    getattr(answer, "close", lambda: None)()
    status, headers = said[0]
    assert {"Connection", "Transfer-Encoding"}.isdisjoint(headers), "those are the server's"
    assert int(headers.get("Content-Length", len(text))) == len(text)
    return status, text


def test_a_server_without_threads_for_streams_has_none(house: House) -> None:
    with house.app(counted) as app:
        assert asked(app.wsgi(max_streams=0), path="/runs/subscribe")[0] == "503 Service Unavailable"


def test_without_auth_only_who_is_known_to_be_on_this_machine_is_answered(house: House) -> None:
    with house.app(counted) as app:
        runs = app.wsgi()
        assert asked(runs) == ("200 OK", b"[]")
        for address in ("10.0.0.1", "", "unix:"):
            assert asked(runs, REMOTE_ADDR=address)[0] == "403 Forbidden", address
        assert asked(runs, HTTP_HOST="evil.example")[0] == "403 Forbidden"


def test_a_body_is_read_as_far_as_it_may_be_long(house: House) -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size: int = -1) -> bytes:
            assert size >= 0, "nobody reads to the end of what has none"
            self.taken += size
            return b"x" * size

    with house.app(counted) as app:
        runs, body = app.wsgi(max_body=1000), b'{"jobName": "counted", "input": {"rows": 1}}'
        assert asked(runs, "POST", "/trigger", body)[0] == "200 OK"
        chunked = {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}
        assert asked(runs, "POST", "/trigger", body, **chunked)[0] == "200 OK"
        endless = Endless()
        assert asked(runs, "POST", "/trigger", **chunked, **{"wsgi.input": endless})[0].startswith("413 ")
        assert endless.taken == 1001
        for told in ("1001", "9" * 5000, "x", "-1", "²"):
            untouched = Endless()
            assert asked(runs, "POST", "/trigger", CONTENT_LENGTH=told, **{"wsgi.input": untouched})[0][0] == "4", told
            assert untouched.taken == 0


def test_what_a_hook_refuses_with_has_no_way_into_the_headers(house: House) -> None:
    def authenticate(_: Any) -> None:
        raise Reject(499, "no", headers={"X-Why": "a\r\nSet-Cookie: b"})

    with house.app(counted) as app:
        runs = app.wsgi(auth=Auth(authenticate=authenticate))
        said: list[Any] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/runs", "REMOTE_ADDR": "10.0.0.1"}
        runs(environ, lambda status, headers: said.append((status, dict(headers))))
        assert said[0][0] == "499 Unknown"
        assert said[0][1]["X-Why"] == "aSet-Cookie: b"


def test_streams_end_in_their_threads_when_the_handler_is_closed(house: House) -> None:
    with house.app(counted) as app:
        runs = app.wsgi()
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/runs/subscribe", "REMOTE_ADDR": "127.0.0.1"}
        answer = runs(environ | {"HTTP_HOST": "localhost"}, lambda *_: None)
        threading.Timer(0.1, runs.handler.close).start()
        assert list(answer) == [b": \n\n"]
        answer.close()  # type: ignore[attr-defined]
        assert runs.handler.streams == 0


# -- a bridge from ASGI --------------------------------------------------------------------------------------------


def test_a_bridge_from_asgi_answers_and_streams_to_the_end_too(house: House) -> None:
    from a2wsgi import ASGIMiddleware

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        app = house.app(counted)
        bridge: Any = ASGIMiddleware(app.asgi(), loop=loop)  # type: ignore[arg-type]
        with app, in_werkzeug(mounted(bridge)) as url, asking(url) as client:
            made = client.post(f"{BASE}/trigger", json={"jobName": "counted", "input": {"rows": 2}})
            assert followed(client, made.json()["runId"])["output"] == 2
            assert client.get(f"{BASE}/openapi.json").json()["servers"] == [{"url": BASE}]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_signals_are_left_alone_where_nobody_listens_to_them() -> None:
    """A signal without a handler ends the process, and must do so further on."""
    from holdfast.http import close_at_signals

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        undo = close_at_signals(lambda: None)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert callable(signal.getsignal(signal.SIGINT))
        undo()
        in_thread: list[Any] = []
        thread = threading.Thread(target=lambda: in_thread.append(close_at_signals(lambda: None)))
        thread.start()
        thread.join()
        in_thread[0]()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_client_that_vanishes_in_the_middle_of_its_body_has_triggered_nothing(house: House) -> None:
    with house.app(counted) as app, in_waitress(mounted(app.wsgi())) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port)) as gone:
            gone.sendall(f"POST {BASE}/trigger HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{{".encode())
        assert httpx.get(f"{url}{BASE}/runs").json() == []
