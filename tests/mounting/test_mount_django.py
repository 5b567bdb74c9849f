"""The routes beside Django's views: for whoever is logged in, opened and closed by the server though Django is not."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mounted import BASE, Server, asking, events, followed, program, server

from holdfast import Holdfast

pytestmark = [
    pytest.mark.sampled("web servers: the same on every Python", every=4),
    pytest.mark.only("sqlite", "where it is mounted has nothing to do with the database"),
]

UVICORN = ["-m", "uvicorn", "--port", "{port}", "--log-level", "warning", "django_mounted:application"]


MAKE = """
import django_mounted
from django.contrib.auth.models import User
from django.core.management import call_command

call_command("migrate", verbosity=0)
for name in ("ada", "bob"):
    User.objects.create_user(name, password=f"{name} knows it")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two users; no runs yet."""
    folder = tmp_path_factory.mktemp("django")
    program(folder, "-c", MAKE)
    return folder


@pytest.fixture(scope="module")
def running(site: Path) -> Iterator[Server]:
    with server(site, *UVICORN) as it:
        yield it


def logged_in(client: httpx.Client, name: str) -> None:
    answer = client.post("/login", json={"username": name, "password": f"{name} knows it"})
    assert answer.json() == {"name": name}


def import_rows(client: httpx.Client, rows: int) -> str:
    answer = client.post(f"{BASE}/trigger", json={"jobName": "import_rows", "input": {"rows": rows}})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["runId"])


def test_django_answers_beside_us_and_we_answer_by_path(running: Server) -> None:
    with asking(running.url) as client:
        assert client.get("/login").status_code == 405, "Django's view takes posts only"
        assert client.get("/health").status_code == 404
        assert client.get("/api/durablyhealth").status_code == 404
        for path in ("/health", "/ready"):
            assert client.get(BASE + path).json() == {"status": "ok"}
        assert client.get(f"{BASE}/nope").json() == {"error": "Log in first."}


def test_the_user_of_djangos_session_is_who_asks(running: Server) -> None:
    with asking(running.url) as ada, asking(running.url) as bob:
        assert ada.get(f"{BASE}/runs").status_code == 401
        logged_in(ada, "ada")
        logged_in(bob, "bob")
        run_id = import_rows(ada, 2)
        last = followed(ada, run_id)
        assert (last["type"], last["output"]) == ("run:complete", 2)
        assert ada.get(f"{BASE}/openapi.json").json()["servers"] == [{"url": BASE}]
        assert bob.get(f"{BASE}/run", params={"runId": run_id}).status_code == 404
        assert run_id not in bob.get(f"{BASE}/runs").text
        ada.cookies.set("sessionid", "x" * 32)
        assert ada.get(f"{BASE}/runs").status_code == 401, "a session that Django does not know"


def test_a_page_of_another_site_changes_nothing_with_the_cookie(running: Server) -> None:
    with asking(running.url) as client:
        logged_in(client, "ada")
        body = {"jobName": "import_rows", "input": {"rows": 1}}
        refused = client.post(f"{BASE}/trigger", json=body, headers={"Origin": "https://evil.example"})
        assert refused.status_code == 403
        same = client.post(f"{BASE}/trigger", json=body, headers={"Origin": running.url})
        assert same.status_code == 200


def test_the_server_opens_and_closes_the_app_though_django_has_no_lifespan(site: Path, tmp_path: Path) -> None:
    shutil.copy(site / "site.db", tmp_path)
    with contextlib.ExitStack() as stack:
        it = stack.enter_context(server(tmp_path, *UVICORN))
        client = stack.enter_context(asking(it.url))
        logged_in(client, "ada")
        run_id = import_rows(client, 3)
        assert followed(client, run_id)["output"] == 3, "the tables are there, and a worker"
        stream = stack.enter_context(client.stream("GET", f"{BASE}/runs/subscribe"))
        assert it.stop() == 0
        assert events(stream.read().decode()) == []
        assert it.log.read_text() == "", "nobody complains, and nothing had to be cut off"
    app = Holdfast(f"sqlite:///{tmp_path / 'shop.db'}", worker=False)
    with app:
        assert app.workers().wait() == [], "its worker has signed off"
        assert [run.status for run in app.get_runs().wait()] == ["completed"]


def test_a_server_without_lifespan_answers_what_needs_no_worker(site: Path, tmp_path: Path) -> None:
    with Holdfast(f"sqlite:///{tmp_path / 'shop.db'}", worker=False):
        """The tables are there."""
    shutil.copy(site / "site.db", tmp_path)
    with server(tmp_path, *UVICORN[:-1], "--lifespan", "off", UVICORN[-1]) as it, asking(it.url) as client:
        logged_in(client, "ada")
        assert client.get(f"{BASE}/ready").json() == {"status": "ok"}
        assert client.get(f"{BASE}/run", params={"runId": import_rows(client, 1)}).json()["status"] == "pending"
