"""The example without a process that stays: every request and every call of the scheduler is a process of its own."""

from __future__ import annotations

import asyncio
import hmac
import importlib.util
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mounted import EXAMPLES, LONG, environment, program

pytestmark = [
    pytest.mark.sampled("web servers: the same on every Python", every=4),
    pytest.mark.only("sqlite", "where it is mounted has nothing to do with the database"),
]

SECRETS = {"API_SECRET": "for the gateway", "CRON_SECRET": "for the scheduler"}
API, CRON = ({"authorization": f"Bearer {secret}"} for secret in SECRETS.values())

CALL = """
import asyncio
import json
import sys

import serverless_app as shop

what, event, seconds, slow = json.loads(sys.argv[1])
if slow:
    async def send(customer):  # one takes longer than the platform gives
        if customer == slow:
            await asyncio.sleep(600)
        plain(customer)

    plain, shop.send = shop.send, send
done = asyncio.run(shop.answer(event) if what == "answer" else shop.work(event, seconds))
print(json.dumps(done))
"""


class Platform:
    """Calls the functions, each time in a new process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def words(self, what: str, event: Any, seconds: float = 30.0, slow: str = "") -> list[str]:
        return ["-c", CALL, json.dumps([what, event, seconds, slow])]

    def call(self, *what: Any, **more: Any) -> dict[str, Any]:
        called: dict[str, Any] = json.loads(program(self.folder, *self.words(*what, **more), **SECRETS))
        return called

    def request(self, method: str, path: str, query: str = "", body: Any = None, headers: Any = API) -> Any:
        event = {
            "method": method, "path": path, "query": query, "headers": headers, "client": "203.0.113.7",
            "body": "" if body is None else json.dumps(body),
        }  # fmt: skip
        answer = self.call("answer", event)
        return answer["status"], json.loads(answer["body"]) if answer["status"] == 200 else answer["body"]

    def work(self, **more: Any) -> Any:
        return self.call("work", {"headers": CRON}, **more)

    def bill(self, *customers: str) -> str:
        body = {"jobName": "bill", "input": {"customers": customers}}
        status, made = self.request("POST", "/trigger", body=body)
        assert status == 200, made
        return str(made["runId"])

    @property
    def sent(self) -> list[str]:
        return (self.folder / "sent.txt").read_text().split()

    def counts(self, run_id: str) -> Any:
        with closing(sqlite3.connect(self.folder / "shop.db")) as connection:
            return connection.execute(
                "select status, attempt, crashes from holdfast_runs where id = ?", (run_id,)
            ).fetchone()


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def test_requests_and_calls_of_the_scheduler_in_processes_of_their_own_finish_runs(platform: Platform) -> None:
    first = platform.bill("Ada", "Grace")
    assert platform.work() == {"status": 200, "processed": 1}
    status, run = platform.request("GET", "/run", f"runId={first}")
    assert (status, run["status"], run["output"], platform.sent) == (200, "completed", 2, ["Ada", "Grace"])
    assert platform.request("GET", "/runs/subscribe") == (501, "Ask again instead.")


def test_a_run_that_takes_longer_than_a_call_may_goes_on_in_the_next_one_behind_its_last_step(
    platform: Platform,
) -> None:
    run_id = platform.bill("Ada", "Grace", "Joan")
    assert platform.work(seconds=1.5, slow="Grace") == {"status": 202}
    assert platform.counts(run_id) == ("pending", 0, 0), "handed back, and nothing is counted"
    assert platform.sent == ["Ada"]
    assert platform.work() == {"status": 200, "processed": 1}
    assert platform.sent == ["Ada", "Grace", "Joan"]


@pytest.mark.crash
def test_a_call_that_the_platform_kills_loses_no_step_and_repeats_none_that_was_saved(platform: Platform) -> None:
    run_id = platform.bill("Ada", "Grace")
    words = platform.words("work", {"headers": CRON}, 60.0, "Grace")
    killed = subprocess.Popen([sys.executable, *words], cwd=platform.folder, env=environment(platform.folder) | SECRETS)
    steps = "select count(*) from holdfast_steps where status = 'completed'"
    with closing(sqlite3.connect(platform.folder / "shop.db")) as connection:
        while connection.execute(steps).fetchone() != (1,):
            assert killed.poll() is None
        killed.kill()
        killed.wait(LONG)
        # Nobody could hand it back: the next call takes it when its lease is over, which is now.
        with connection:
            connection.execute("update holdfast_runs set lease_expires_at = 1, due = 1")
    while platform.counts(run_id)[0] != "completed":
        assert platform.work()["status"] == 200
    assert platform.sent == ["Ada", "Grace"]


WRONG = ["", "Bearer", "Bearer ", "for the scheduler", "Bearer for the gateway", "bearer for the scheduler", "\ud800é"]


def load(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("serverless_app", EXAMPLES / "serverless_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.chdir(folder)
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    spec.loader.exec_module(module)
    return module


def test_who_does_not_know_the_secret_is_refused_in_constant_time_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shop = load(monkeypatch, tmp_path)
    compared: list[int] = []

    def compare_digest(a: Any, b: Any) -> bool:
        compared.append(1)
        return really(a, b)

    really = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    wrong = [{}, *({"authorization": text} for text in WRONG)]
    for headers in wrong:
        assert asyncio.run(shop.work({"headers": headers})) == {"status": 401}
    for headers in [{}, *wrong, CRON]:
        if headers == {"authorization": "Bearer for the gateway"}:
            continue
        event = {"method": "GET", "path": "/runs", "headers": headers, "client": None}
        assert asyncio.run(shop.answer(event))["status"] == 401, headers
    assert len(compared) == 2 * len(wrong) + 1, "each of them was compared in the one way"
    assert list(tmp_path.iterdir()) == [], "no database was opened, no file was made"
    assert shop.app.stats().rounds == 0
