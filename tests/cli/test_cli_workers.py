"""`holdfast workers`: who executes what."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from console_script import LONG, Cli, Shop, Spawn, parsed

from holdfast import Run

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=8)


def test_without_workers_it_says_so(cli: Cli, shop: Shop) -> None:
    assert cli("workers", shop.url).stdout == "No workers.\n"
    assert parsed(cli("workers", "-u", shop.url, "--json")) == {"workers": []}


def test_a_worker_is_shown_with_what_it_holds_and_gone_after_its_stop(
    cli: Cli, shop: Shop, spawn: Spawn, shop_module: Path
) -> None:
    process = spawn("worker", f"{shop_module.stem}:app")
    assert process.stdout is not None
    while "Ready" not in process.stdout.readline():
        assert process.poll() is None
    held = shop.app.job(name="hold")(_hold).trigger().wait()
    _until_held(shop, held.id)
    (worker,) = parsed(cli("workers", shop.url, "--json"))["workers"]
    assert (worker["pid"], worker["host"], worker["is_alive"]) == (process.pid, socket.gethostname(), True)
    assert worker["jobs"] == ["greet", "hold"]
    assert [(run["id"], run["job_name"]) for run in worker["runs"]] == [(held.id, "hold")]
    lines = cli("workers", shop.url).stdout.splitlines()
    assert lines[0].split() == ["WORKER", "STATE", "SEEN", "UP", "QUEUES", "JOBS", "HOLDS"]
    assert f"{socket.gethostname()}:{process.pid}" in lines[1]
    assert "alive" in lines[1]
    assert "default" in lines[1]
    assert f"hold {held.id}" in lines[1]
    held.cancel().wait()
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONG) == 0
    assert parsed(cli("workers", shop.url, "--json")) == {"workers": []}


def test_a_run_that_no_worker_takes_is_told_why(cli: Cli, shop: Shop, spawn: Spawn, shop_module: Path) -> None:
    def why(run: Run[Any]) -> list[str]:
        shown = cli("runs", "show", run.id, "-u", shop.url)
        assert shown.returncode == 0, shown.stderr
        return [line.partition("→ ")[2] for line in shown.stdout.splitlines() if "→" in line]

    nightly = shop.never.options(queue="nightly", priority=3).trigger().wait()
    unknown = shop.never.trigger().wait()
    later = shop.never.options(delay="1h").trigger().wait()
    assert why(nightly) == ["no worker is alive"]
    process = spawn("worker", f"{shop_module.stem}:app")
    assert process.stdout is not None
    while "Ready" not in process.stdout.readline():
        assert process.poll() is None
    _until(lambda: bool(shop.app.workers().wait()))
    assert why(nightly) == ["no worker that is alive takes the queue nightly"]
    assert why(unknown) == ["no worker that is alive has the job never"]
    assert why(later) == []
    words = cli("runs", "show", nightly.id, "-u", shop.url).stdout.split()
    assert (words[words.index("queue") + 1], words[words.index("priority") + 1]) == ("nightly", "3")
    shown = cli("runs", "show", unknown.id, "-u", shop.url).stdout
    assert "priority" not in shown


def test_a_killed_worker_stays_in_the_list(cli: Cli, shop: Shop, spawn: Spawn, shop_module: Path) -> None:
    process = spawn("worker", f"{shop_module.stem}:app")
    assert process.stdout is not None
    while "Ready" not in process.stdout.readline():
        assert process.poll() is None
    held = shop.app.job(name="hold")(_hold).trigger().wait()
    _until_held(shop, held.id)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(LONG)
    (worker,) = parsed(cli("workers", shop.url, "--json"))["workers"]
    assert worker["pid"] == process.pid


def test_a_database_that_is_not_there_is_told(cli: Cli, tmp_path: Path) -> None:
    done = cli("workers", f"sqlite:///{tmp_path / 'none.db'}")
    assert done.returncode == 5
    assert "there is no file" in done.stderr


def _hold() -> None: ...


def _until_held(shop: Shop, run_id: str) -> None:
    _until(lambda: any(run.id == run_id for worker in shop.app.workers().wait() for run in worker.runs))


def _until(is_so: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(round(LONG / 0.01)):
        if is_so():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to that")
