"""The examples of web frameworks: each asked inside of its framework, and each in a real server that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.sampled("web servers: the same on every Python", every=4)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "web"
LONG = 60.0


class Answer(NamedTuple):
    status: int
    body: Any


Ask = Callable[..., Answer]
"""`ask(method, path, body, key)`: one request, with the body as JSON and the key as its idempotency key."""


def until(what: str, condition: Callable[[], object]) -> None:
    """Nobody tells when another process is as far as that: look again and again."""
    pause = threading.Event()
    for _ in range(round(LONG / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError(f"it never came to be: {what}")


def headers_of(key: str | None) -> dict[str, str]:
    return {"Content-Type": "application/json"} | ({} if key is None else {"Idempotency-Key": key})


# -- inside of the framework -------------------------------------------------------------------------------------


def load(name: str) -> ModuleType:
    """The example. Once in a process, however often the fixture is made: Django can't be configured a second time."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Django looks for its URLs by the name of the module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def in_flask() -> Iterator[Ask]:
    example = load("flask_app")

    def ask(method: str, path: str, body: Any = None, key: str | None = None) -> Answer:
        answer = example.web.test_client().open(path, method=method, data=body, headers=headers_of(key))
        return Answer(answer.status_code, answer.json)

    with example.app:
        yield ask


_OF_DJANGO: list[Any] = []
"""The settings of the example, once there are any."""


@contextlib.contextmanager
def in_django() -> Iterator[Ask]:
    from django.conf import settings
    from django.test import Client
    from django.utils.functional import empty

    # Another test of this process may have had settings of its own; the example makes its own once, when it is read.
    settings._wrapped = _OF_DJANGO[0] if _OF_DJANGO else empty
    example = load("django_app")
    if not _OF_DJANGO:
        _OF_DJANGO.append(settings._wrapped)

    def ask(method: str, path: str, body: Any = "", key: str | None = None) -> Answer:
        client = Client(headers={"host": "localhost"})
        answer = client.generic(method, path, body, content_type="application/json", headers=headers_of(key))
        return Answer(answer.status_code, answer.json())

    with example.app:
        yield ask


@contextlib.contextmanager
def in_fastapi() -> Iterator[Ask]:
    import httpx

    example = load("fastapi_app")
    loop, ready, leave = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    clients: list[httpx.AsyncClient] = []

    async def serve() -> None:
        transport = httpx.ASGITransport(example.web)
        async with (
            example.web.router.lifespan_context(example.web),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            clients.append(client)
            ready.set()
            await leave.wait()

    def ask(method: str, path: str, body: Any = None, key: str | None = None) -> Answer:
        asked = clients[0].request(method, path, content=body, headers=headers_of(key))
        answer = asyncio.run_coroutine_threadsafe(asked, loop).result(LONG)
        return Answer(answer.status_code, answer.json())

    server = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    server.start()
    try:
        assert ready.wait(LONG)
        yield ask
    finally:
        loop.call_soon_threadsafe(leave.set)
        server.join(LONG)
        loop.close()


FRAMEWORKS = {"django": in_django, "fastapi": in_fastapi, "flask": in_flask}


@pytest.fixture(scope="module", params=sorted(FRAMEWORKS))
def ask(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(request.param))
        Path("scales.txt").write_text("1.5\n")
        with FRAMEWORKS[request.param]() as ask:
            yield ask


def order(number: int) -> str:
    return json.dumps({"number": number, "cents": 500})


def completed(ask: Ask, run_id: str) -> Any:
    """What the status endpoint says once the run has ended."""
    until("the run has ended", lambda: ask("GET", f"/orders/{run_id}").body["status"] not in ("pending", "leased"))
    return ask("GET", f"/orders/{run_id}").body


def test_a_request_triggers_a_run_and_its_status_can_be_asked_for(ask: Ask) -> None:
    answer = ask("POST", "/orders", order(1))
    assert (answer.status, answer.body["status"]) == (202, "pending")
    run = completed(ask, answer.body["id"])
    assert (run["status"], run["output"], run["error"]) == ("completed", "receipt 1, 1.5 kg", None)


def test_a_request_that_is_repeated_with_its_key_makes_one_run(ask: Ask) -> None:
    first, again = ask("POST", "/orders", order(2), "cart-2"), ask("POST", "/orders", order(2), "cart-2")
    assert (first.status, again.status) == (202, 202)
    assert first.body["id"] == again.body["id"]
    assert ask("POST", "/orders", order(2), "cart-3").body["id"] != first.body["id"]


def test_an_id_that_nobody_has_is_answered_404(ask: Ask) -> None:
    for method, path in (("GET", "/orders/nobody"), ("POST", "/orders/nobody/cancel")):
        answer = ask(method, path)
        assert answer.status == 404
        assert "nobody" in answer.body["error"]


def test_what_holdfast_refuses_is_answered_400(ask: Ask) -> None:
    answer = ask("POST", "/orders", order(3), "k" * 300)
    assert answer.status == 400
    assert answer.body == {"error": "idempotency_key: longer than 255 bytes. Use a hash of it."}


def test_a_wrong_order_is_refused(ask: Ask, request: pytest.FixtureRequest) -> None:
    answer = ask("POST", "/orders", json.dumps({"number": 4, "cents": 0}))
    # FastAPI checks the model by itself, before Holdfast is asked.
    assert answer.status == (422 if "fastapi" in request.node.name else 400)
    assert "greater than 0" in str(answer.body)


def test_cancelling_what_has_ended_is_answered_409(ask: Ask) -> None:
    run_id = ask("POST", "/orders", order(5)).body["id"]
    completed(ask, run_id)
    answer = ask("POST", f"/orders/{run_id}/cancel")
    assert answer.status == 409
    assert "completed" in answer.body["error"]


# -- real servers ------------------------------------------------------------------------------------------------

#: What is started, and in which process the runs are executed. `PORT` is in the environment, too.
SERVERS = {
    "django runserver": ["django_app.py", "runserver", "--noreload", "127.0.0.1:{port}"],
    "flask": ["flask_app.py"],
    "gunicorn": ["-m", "gunicorn", "-c", "gunicorn_conf.py", "--bind", "127.0.0.1:{port}", "flask_app:web"],
    "uvicorn": ["-m", "uvicorn", "--port", "{port}", "fastapi_app:web"],
}
BESIDE = ["-m", "holdfast", "worker", "flask_app:app"]


class Server:
    """A program in a process group of its own, so that a kill gets its children, too."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / f"{self.port}.log"
        path = os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH")]))
        # HOME: some servers leave files there.
        environment = os.environ | {"PORT": str(self.port), "HOME": str(folder), "PYTHONPATH": path}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", *[word.format(port=self.port) for word in command]],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_it_listens(self) -> None:
        def listens() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        until("the server listens", listens)

    def ask(self, method: str, path: str, body: str | None = None, key: str | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers_of(key))
            answer = connection.getresponse()
            return Answer(answer.status, json.loads(answer.read()))

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LONG)


class Scales:
    """A pipe in the place of the file that the step `weigh` reads: it hangs there until something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    def _open(self) -> int | None:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads
                raise
            return None

    @contextlib.contextmanager
    def being_read(self) -> Iterator[int]:
        """Somebody is in the step, and stays there as long as this is open."""
        opened: list[int] = []
        until("the step reads the scales", lambda: opened.extend(filter(None, [self._open()])) or opened)
        try:
            yield opened[0]
        finally:
            os.close(opened[0])

    def wait_until_nobody_reads(self) -> None:
        def nobody() -> bool:
            opened = self._open()
            if opened is not None:
                os.close(opened)
            return opened is None

        until("nobody reads the scales", nobody)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], Server]]:
    with contextlib.ExitStack() as at_the_end:

        def start(command: list[str]) -> Server:
            server = Server(tmp_path, command)
            at_the_end.callback(end, server)
            return server

        yield start


def end(server: Server) -> None:
    with contextlib.suppress(ProcessLookupError):
        server.kill()


def sql(folder: Path, text: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(folder / "shop.db", timeout=LONG)) as connection:
        return connection.execute(text).fetchall()


def was_taken_over_without_repeating_a_step(folder: Path, run_id: str) -> None:
    assert (folder / "bank.txt").read_text() == f"order 7: 500, {run_id}:charge\n"
    assert sql(folder, "select name, status from holdfast_steps order by position") == [
        ("charge", "completed"),
        ("weigh", "completed"),
    ]
    # One for the claim of the killed one, one for the end of its lease, one for the claim of its successor. More if
    # this machine was so busy that another lease was lost.
    [(status, generation)] = sql(folder, "select status, generation from holdfast_runs")
    assert status == "completed"
    assert generation >= 3


@pytest.mark.crash
@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_a_server_that_is_killed_in_the_middle_of_a_run_goes_on_with_it_when_it_is_started_again(
    command: list[str], start: Callable[[list[str]], Server], tmp_path: Path
) -> None:
    scales = Scales(tmp_path / "scales.txt")
    for file in ("django_app.py", "flask_app.py", "gunicorn_conf.py"):
        (tmp_path / file).symlink_to(EXAMPLES / file)
    server = start(command)
    server.wait_until_it_listens()
    answer = server.ask("POST", "/orders", order(7))
    assert answer.status == 202
    path = f"/orders/{answer.body['id']}"
    with scales.being_read():
        assert server.ask("GET", path).body["status"] == "leased"
        server.kill()
    scales.wait_until_nobody_reads()

    server = start(command)
    server.wait_until_it_listens()
    with scales.being_read() as pipe:
        os.write(pipe, b"1.5\n")
    assert completed(server.ask, answer.body["id"])["output"] == "receipt 7, 1.5 kg"
    was_taken_over_without_repeating_a_step(tmp_path, answer.body["id"])


@pytest.mark.crash
def test_a_worker_beside_the_server_may_be_killed_and_the_server_tells_how_its_successor_ended_the_run(
    start: Callable[[list[str]], Server], tmp_path: Path
) -> None:
    scales = Scales(tmp_path / "scales.txt")
    worker = start(BESIDE)
    tables = "select 1 from sqlite_schema where name = 'holdfast_runs'"
    until("the tables are there", lambda: (tmp_path / "shop.db").exists() and sql(tmp_path, tables))
    web = start([word for word in SERVERS["gunicorn"] if word not in ("-c", "gunicorn_conf.py")])
    web.wait_until_it_listens()
    run_id = web.ask("POST", "/orders", order(7)).body["id"]
    with scales.being_read():
        worker.kill()
    scales.wait_until_nobody_reads()
    assert web.ask("GET", f"/orders/{run_id}").body["status"] == "leased"

    start(BESIDE)
    with scales.being_read() as pipe:
        os.write(pipe, b"1.5\n")
    assert completed(web.ask, run_id)["output"] == "receipt 7, 1.5 kg"
    was_taken_over_without_repeating_a_step(tmp_path, run_id)
