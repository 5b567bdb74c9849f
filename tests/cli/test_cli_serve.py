"""`holdfast serve`: the routes of an app on a real server, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from console_script import LONG, Cli, Spawn
from test_cli_worker import read_until

from holdfast import Holdfast, Run

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="no SIGTERM on Windows"),
    pytest.mark.sampled("commands: what they print is the same on every Python", every=4),
]

WEB = """
from shop_jobs import app
from holdfast.http import Auth, Reject

def authenticate(request):
    if request.header("authorization") != "Bearer sesame":
        raise Reject(401, "Who are you?")
    return "ali baba"

web = app.asgi(auth=Auth(authenticate=authenticate))
number = 5
"""


@pytest.fixture
def web_module(tmp_path: Path, shop_module: Path) -> None:
    (tmp_path / "shop_web.py").write_text(WEB)


def test_it_serves_executes_and_stops_with_its_streams(spawn: Spawn, shop_module: Path) -> None:
    server = spawn("serve", "shop_jobs:app", "--port", "0", "--json", "--worker")
    said = json.loads(read_until(server, "\n}"))
    assert (said["app"], said["jobs"], said["pid"], said["worker"]) == (
        "shop_jobs:app", ["greet", "hold"], server.pid, True,
    )  # fmt: skip
    with httpx.Client(base_url=said["url"], timeout=LONG) as client:
        run_id = client.post("/trigger", json={"jobName": "greet", "input": {"name": "Ada"}}).json()["runId"]
        with client.stream("GET", "/subscribe", params={"runId": run_id}) as stream:
            assert "HELLO ADA" in stream.read().decode()
        with client.stream("GET", "/runs/subscribe") as stream:
            server.send_signal(signal.SIGTERM)
            assert stream.read() == b"", "it ends as a stream ends, and nobody waits for it"
    assert server.communicate(timeout=LONG) == ("", "")
    assert server.returncode == 0


LEAVING = """
from shop_jobs import app
from holdfast import Step

app._works = True

@app.job
async def obedient(step: Step) -> str:
    async def told() -> str:
        return await step.shutdown

    return await step.run("told", told)
"""


def begun(client: httpx.Client, job: str) -> tuple[str, Iterator[str]]:
    """A run that is in its middle, and the stream of its events."""
    run_id = client.post("/trigger", json={"jobName": job}).json()["runId"]
    stream = client.send(client.build_request("GET", "/subscribe", params={"runId": run_id}), stream=True)
    chunks = stream.iter_text()
    seen = next(chunks)
    while "run:leased" not in seen:
        seen = next(chunks)
    return run_id, chunks


@pytest.fixture
def leaving(
    tmp_path: Path, shop_module: Path, spawn: Spawn
) -> Callable[..., tuple[subprocess.Popen[str], httpx.Client]]:
    (tmp_path / "shop_leaving.py").write_text(LEAVING)

    def start(*more: str) -> tuple[subprocess.Popen[str], httpx.Client]:
        server = spawn("serve", "shop_leaving:app", "--port", "0", *more)
        said = read_until(server, "Ready")
        url = next(word for word in said.split() if word.startswith("http://"))
        return server, httpx.Client(base_url=url, timeout=LONG)

    return start


def left_as(tmp_path: Path, run_id: str) -> Run[Any]:
    with Holdfast(f"sqlite:///{tmp_path / 'runs.db'}", worker=False) as app:
        run = app.get_run(run_id).wait()
        assert run is not None
        return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_told_to_stop_it_ends_streams_lets_runs_end_and_hands_back_what_does_not(
    number: int, leaving: Any, tmp_path: Path
) -> None:
    server, client = leaving("--stop-timeout", "500ms")
    with client:
        ends, first = begun(client, "obedient")
        does_not, second = begun(client, "hold")
        server.send_signal(number)
        for stream in (first, second):
            rest = "".join(stream)  # and no error: the connection was not cut
            assert rest == "" or rest.endswith("\n\n"), "no frame is torn"
    said, complained = server.communicate(timeout=LONG)
    assert (server.returncode, complained) == (0, "")
    assert "Stopping. 2 runs may go on for 0.5 s." in said
    run = left_as(tmp_path, ends)
    assert (run.status, run.output) == ("completed", "shutdown")
    run = left_as(tmp_path, does_not)
    assert (run.status, run.crashes, run.attempt, run.lease_owner) == ("pending", 0, 0, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_it_at_once(number: int, leaving: Any, tmp_path: Path) -> None:
    server, client = leaving("--stop-timeout", "1h")
    with client:
        run_id, _ = begun(client, "hold")
        server.send_signal(number)
        read_until(server, "Again to exit at once.")
        server.send_signal(number)
        assert server.wait(LONG) == 128 + number
    assert left_as(tmp_path, run_id).status == "leased", "nobody was told: the lease has to run out"


def test_a_wrong_stop_timeout_is_refused_before_anything_is_done(cli: Cli, web_module: None) -> None:
    done = cli("serve", "shop_jobs:app", "--stop-timeout", "soon")
    assert (done.returncode, "--stop-timeout: 'soon' is not a duration" in done.stderr) == (2, True)


def test_it_says_where_it_is_and_may_execute_nothing(spawn: Spawn, shop_module: Path) -> None:
    server = spawn("serve", "shop_jobs:app", "--port", "0", "--no-worker")
    said = read_until(server, "Ready")
    for part in ("shop_jobs:app", "sqlite:///runs.db", "greet, hold", "http://127.0.0.1:", "elsewhere"):
        assert part in said
    server.send_signal(signal.SIGINT)
    assert server.communicate(timeout=LONG)[1] == ""
    assert server.returncode == 0


def test_what_asgi_gave_is_served_with_its_auth(spawn: Spawn, web_module: None) -> None:
    server = spawn("serve", "shop_web:web", "--port", "0", "--host", "0.0.0.0", "--json")
    url = json.loads(read_until(server, "\n}"))["url"].replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/runs").status_code == 401
    assert httpx.get(f"{url}/runs", headers={"Authorization": "Bearer sesame"}).json() == []
    assert "server" not in httpx.get(f"{url}/health").headers
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=LONG)


def test_an_app_without_auth_is_not_served_to_others_unless_somebody_says_why(
    cli: Cli, spawn: Spawn, web_module: None
) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        refused = cli("serve", "shop_jobs:app", "--host", host)
        assert (refused.returncode, "no auth" in refused.stderr) == (2, True)
    assert cli("serve", "shop_jobs:app", "--insecure", " ").returncode == 2
    assert "by itself" in cli("serve", "shop_web:web", "--insecure", "tests").stderr
    server = spawn("serve", "shop_jobs:app", "--host", "0.0.0.0", "--port", "0", "--insecure", "tests", "--json")
    url = json.loads(read_until(server, "\n}"))["url"].replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/runs", headers={"Host": "anything.example"}).json() == []
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=LONG)


def test_what_is_no_app_and_a_database_that_is_not_there_are_one_line(
    cli: Cli, web_module: None, tmp_path: Path
) -> None:
    assert "of type int" in cli("serve", "shop_web:number").stderr
    assert cli("serve", "shop_web:nobody").returncode == 4
    module = "from holdfast import Holdfast\napp = Holdfast('sqlite:////nowhere/at/all.db')\n"
    (tmp_path / "lost.py").write_text(module)
    assert cli("serve", "lost:app").returncode == 5


def test_a_port_in_use_is_one_line_and_wrong_usage(cli: Cli, shop_module: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = cli("serve", "shop_jobs:app", "--port", port)
    assert done.returncode == 2
    assert done.stderr == f"holdfast: port {port} is in use on 127.0.0.1; --port 0 takes any that is free.\n"


def test_an_address_that_is_not_of_this_machine_is_one_line_and_wrong_usage(cli: Cli, web_module: None) -> None:
    done = cli("serve", "shop_web:web", "--host", "192.0.2.1", "--port", "0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("holdfast: --host 192.0.2.1 --port 0: can't listen there: ")


def test_the_address_that_is_told_has_the_base_path(spawn: Spawn, shop_module: Path, tmp_path: Path) -> None:
    (tmp_path / "shop_below.py").write_text("from shop_jobs import app\nweb = app.asgi(base_path='/holdfast')\n")
    server = spawn("serve", "shop_below:web", "--port", "0", "--json")
    url = json.loads(read_until(server, "\n}"))["url"]
    assert httpx.get(f"{url}/runs").json() == []
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=LONG)


def test_what_has_auth_is_proposed_before_the_app_without(cli: Cli, web_module: None, tmp_path: Path) -> None:
    (tmp_path / "shop_handler.py").write_text("from shop_web import app, web\nhandler = web.handler\n")
    assert cli("serve", "shop_handler:handler").stderr.endswith("Did you mean shop_handler:web?\n")


def test_the_application_of_a_framework_is_left_to_its_server(cli: Cli, shop_module: Path, tmp_path: Path) -> None:
    module = "from shop_jobs import app\nfrom starlette.applications import Starlette\nours = Starlette()\n"
    (tmp_path / "shop_star.py").write_text(module)
    done = cli("serve", "shop_star:ours")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "of type Starlette. It is served by a server of its own, e.g. uvicorn shop_star:ours.\n"
    )
