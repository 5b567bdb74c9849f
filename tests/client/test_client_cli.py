"""The command line on a server: the same commands, the same documents, the same exit codes."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from far import PATIENCE, Served, app_on, approval_of, asks, fails, holds, import_rows, parent, until

from asking import serving
from faulty_link import FaultyLink
from holdfast import Retry
from holdfast.cli import commands, far
from holdfast.http import Auth, Reject
from house import House

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=4)

HIDDEN = ("HOLDFAST_URL", "HOLDFAST_TOKEN", "HOLDFAST_DEBUG", "COLUMNS", "FORCE_COLOR")


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `holdfast …` in this process, as its script does; never a traceback."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **more: str) -> Done:
        log = logging.getLogger("holdfast")
        handlers, propagates = list(log.handlers), log.propagate
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for name in HIDDEN:
                patch.delenv(name, raising=False)
            for name, value in more.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["holdfast", *arguments])
            code = commands.run()
        log.handlers, log.propagate = handlers, propagates
        done = Done(code, *capsys.readouterr())
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    return run


def test_lists_and_runs_look_as_those_of_the_database(cli: Cli, served: Served, house: House) -> None:
    served.client.job(import_rows).trigger_and_wait(2).wait(PATIENCE)
    above = served.client.job(parent).trigger_and_wait(2).wait(PATIENCE)
    served.client.job(fails).trigger_and_wait().wait(PATIENCE)
    for command in (("runs", "list"), ("runs", "list", "--status", "failed"), ("runs", "show", above.id), ("workers",)):
        near = cli(*command, "--url", house.url, "--json")
        far = cli("--url", served.url, *command, "--json")
        assert (near.returncode, far.returncode) == (0, 0), far.stderr
        wanted, found = json.loads(near.stdout), json.loads(far.stdout)
        for document in (wanted, found):
            for worker in document.get("workers", ()):
                del worker["seen_at"]
        assert found == wanted, command
    text = cli("--url", served.url, "runs", "show", above.id).stdout
    assert "import-rows" in text


def test_runs_are_watched_cancelled_triggered_again_and_deleted(cli: Cli, served: Served) -> None:
    url = served.url
    done = served.client.job(import_rows).trigger(2).wait(PATIENCE)
    watched = cli("--url", url, "runs", "watch", done.id)
    assert watched.returncode == 0, watched.stderr
    assert "completed" in watched.stdout
    assert "imported" in watched.stdout
    assert cli("runs", "watch", done.id, "-u", url, "--json").returncode == 0
    bad = served.client.job(fails).trigger().wait(PATIENCE)
    assert cli("-u", url, "runs", "watch", bad.id).returncode == 1
    held = served.client.job(holds).trigger().wait(PATIENCE)
    assert "Cancelled holds" in cli("-u", url, "runs", "cancel", held.id).stdout
    assert cli("-u", url, "runs", "cancel", held.id).returncode == 6
    again = cli("-u", url, "runs", "retrigger", done.id, "--json")
    (made,) = json.loads(again.stdout)["runs"]
    assert made["retriggered_from"] == done.id
    assert cli("-u", url, "runs", "watch", made["id"], done.id).returncode == 0
    assert "Deleted fails" in cli("-u", url, "runs", "delete", bad.id, "--yes").stdout
    missing = cli("-u", url, "runs", "show", bad.id)
    assert (missing.returncode, "Run not found" in missing.stderr) == (4, True)


def test_who_watches_bears_a_server_that_is_away_for_a_while(
    cli: Cli, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far, "Retry", lambda *_, **__: Retry(0))  # whoever does not watch is told at once
    run = served.client.job(asks).trigger().wait(PATIENCE)

    def cut() -> None:
        until(lambda: len(link._open) > 2)  # the watch follows: its stream is a connection of its own
        link.break_("cut")
        assert cli_is_over.wait(0.4) is False
        served.app.send_signal(run.id, "answer", 5).wait(PATIENCE)
        link.heal()

    cli_is_over = threading.Event()
    with FaultyLink(served.url) as link:
        thread = threading.Thread(target=cut)
        thread.start()
        done = cli("-u", link.url, "runs", "watch", run.id)
        cli_is_over.set()
        thread.join(PATIENCE)
    assert (done.returncode, "completed" in done.stdout) == (0, True), done.stderr


def test_signals_and_wakes_arrive(cli: Cli, served: Served) -> None:
    run = served.client.job(asks).trigger().wait(PATIENCE)
    assert cli("-u", served.url, "signal", run.id, "answer", '{"yes": 1}').returncode == 0
    assert run.result().wait(PATIENCE) == {"yes": 1}
    sleeper = served.client.job(approval_of(served.app)).trigger("k").wait(PATIENCE)
    woken = cli("-u", served.url, "wake", "approval", "k", "--output", "5").stdout
    assert woken in (f"Woke approval {sleeper.id}\n", f"approval {sleeper.id} has ended: completed\n")
    assert sleeper.result().wait(PATIENCE) == 5
    other = served.client.job(approval_of(served.app)).trigger("l").wait(PATIENCE)
    wrong = cli("-u", served.url, "wake", other.id, "--output", '"five"')
    assert (wrong.returncode, "output" in wrong.stderr) == (2, True)
    assert cli("-u", served.url, "wake", other.id, "--error", "no").returncode == 0
    until(lambda: served.app.get_run(other.id).wait(PATIENCE).is_terminal)


def test_who_wakes_the_run_of_a_tenant_by_its_id_is_told_that_it_was_another_one(cli: Cli, served: Served) -> None:
    theirs = approval_of(served.app).options(tenant={"user": "ada"}).trigger("k").wait(PATIENCE)
    told = cli("-u", served.url, "wake", theirs.id, "--output", "5")
    assert (told.returncode, f"run {theirs.id} is a tenant's" in told.stderr) == (2, True)
    assert not served.app.get_run(theirs.id).wait(PATIENCE).is_terminal


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (("migrate",), "works on the database itself"),
        (("doctor",), "works on the database itself"),
        (("move", "sqlite:///a.db", "sqlite:///b.db"), "leave --url out"),
        (("worker", "shop:app"), "leave --url out"),
        (("serve", "shop:app"), "leave --url out"),
        (("runs", "purge", "--older-than", "1d", "--yes"), "works on the database itself"),
        (("runs", "purge", "--older-than", "1d"), "works on the database itself"),
    ],
    ids=["migrate", "doctor", "move", "worker", "serve", "purge", "purge that would ask"],
)
def test_what_needs_the_database_itself_is_refused(command: tuple[str, ...], error: str, cli: Cli) -> None:
    done = cli("--url", "http://127.0.0.1:9", *command)
    assert (done.returncode, error in done.stderr) == (2, True), done.stderr
    if command[0] in ("migrate", "doctor"):
        assert cli(*command, "http://127.0.0.1:9").returncode == 2
    if command[0] == "move":
        assert "works on the database itself" in cli("move", "http://127.0.0.1:9", "sqlite:///b.db").stderr


def test_a_server_that_is_not_there_has_the_exit_code_of_a_database_that_is_not(cli: Cli) -> None:
    done = cli("runs", "list", HOLDFAST_URL="http://127.0.0.1:9")
    assert (done.returncode, "no answer" in done.stderr) == (5, True), done.stderr


def test_the_url_after_the_command_counts_before_the_one_before_it_and_that_before_the_environment(
    cli: Cli, served: Served, house: House
) -> None:
    run = served.client.job(import_rows).trigger(0).wait(PATIENCE)
    nowhere = "http://127.0.0.1:9"
    assert run.id in cli("-u", nowhere, "runs", "list", "-u", served.url, "--json").stdout
    assert run.id in cli("-u", served.url, "runs", "list", "--json", HOLDFAST_URL=nowhere).stdout
    assert run.id in cli("-u", house.url, "runs", "list", "--json", HOLDFAST_URL=nowhere).stdout


def test_who_asks_is_said_by_a_token_or_a_header_and_never_shown(cli: Cli, house: House) -> None:
    def authenticate(request: Any) -> str:
        if request.header("authorization") != "Bearer sesame":
            raise Reject(401, "Who are you?")
        return "ada"

    with serving(app_on(house.url, worker=False).asgi(auth=Auth(authenticate=authenticate)), lifespan="on") as url:
        refused = cli("-u", url, "runs", "list")
        assert (refused.returncode, refused.stderr) == (
            5,
            f"holdfast: GET {url}/runs/records: the server answered 401: Who are you? "
            "(HOLDFAST_TOKEN is not set, and no --header says who asks.)\n",
        )
        watched = cli("-u", url, "runs", "watch", "01M7YB0Q3J4ZC6W1D8M2V5K9RT", HOLDFAST_TOKEN="open")
        assert (watched.returncode, "The token in HOLDFAST_TOKEN was refused." in watched.stderr) == (5, True)
        allowed = [
            cli("-u", url, "runs", "list", HOLDFAST_TOKEN="sesame"),
            cli("-u", url, "-H", "Authorization: Bearer sesame", "runs", "list", HOLDFAST_TOKEN="wrong"),
        ]
        assert [done.returncode for done in allowed] == [0, 0]
        shown = [
            cli("-u", url, "runs", "show", "nothing", HOLDFAST_TOKEN="sesame"),
            cli("-u", url, "-H", "sesame", "runs", "list"),
            cli("-u", url, "runs", "list", HOLDFAST_TOKEN="ses\name"),
            cli("-u", "http://ada:sesame@127.0.0.1:9", "runs", "list", HOLDFAST_TOKEN="sesame"),
        ]
        assert [done.returncode for done in shown] == [4, 2, 2, 5]
        assert "sesame" not in "".join(done.stdout + done.stderr for done in (*allowed, *shown))


def test_a_refusal_and_a_wrong_path_are_no_failed_run(cli: Cli, house: House) -> None:
    auth = Auth(authenticate=lambda request: "ada", tenant=lambda name: {"user": name})
    with serving(app_on(house.url, worker=False).asgi(auth=auth), lifespan="on") as url:
        refused = cli("-u", url, "workers")
        assert (refused.returncode, "GET" in refused.stderr, "403: Forbidden" in refused.stderr) == (5, True, True)
        lost = cli("-u", f"{url}/elsewhere", "runs", "list")
        assert (lost.returncode, "there is no such route" in lost.stderr) == (5, True)


def test_a_server_without_its_scheme_is_told_how_to_write_it(cli: Cli) -> None:
    done = cli("-u", "localhost:8322", "runs", "list")
    assert (done.returncode, done.stderr) == (
        2, "holdfast: 'localhost:8322' is no URL. For a server write http://localhost:8322\n",
    )  # fmt: skip


def test_what_answers_and_is_no_server_of_ours_has_the_exit_code_of_one_that_is_not_there(cli: Cli) -> None:
    async def web(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"a": 1}'})

    with serving(web, lifespan="off") as url:
        for command in (["runs", "list"], ["runs", "show", "x"], ["runs", "watch", "x"], ["workers"]):
            done = cli("-u", url, *command)
            assert (done.returncode, "Is it the URL of a Holdfast server?" in done.stderr) == (5, True), command
