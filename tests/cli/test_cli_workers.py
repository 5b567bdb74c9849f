"""`holdfast workers`: who executes what."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from console_script import LONG, Cli, Shop, Spawn, parsed

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
    assert lines[0].split() == ["WORKER", "STATE", "SEEN", "UP", "JOBS", "HOLDS"]
    assert f"{socket.gethostname()}:{process.pid}" in lines[1]
    assert "alive" in lines[1]
    assert f"hold {held.id}" in lines[1]
    held.cancel().wait()
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONG) == 0
    assert parsed(cli("workers", shop.url, "--json")) == {"workers": []}


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
    pause = threading.Event()
    for _ in range(round(LONG / 0.01)):
        if any(run.id == run_id for worker in shop.app.workers().wait() for run in worker.runs):
            return
        pause.wait(0.01)
    raise AssertionError("nobody claimed it")
