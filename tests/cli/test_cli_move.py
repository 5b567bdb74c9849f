"""`holdfast move`: what it prints, what it refuses, and a kill in the middle."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from console_script import LONG, Cli, Shop, Spawn, parsed

from holdfast import Holdfast

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=8)


@pytest.fixture
def new(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new.db'}"


def filled(shop: Shop) -> None:
    for name in ("Ada", "Bob"):
        shop.greet.trigger(name).wait()
    shop.work()
    shop.never.trigger().wait()


def runs_in(url: str) -> int:
    app = Holdfast(url, worker=False)
    try:
        return len(app.get_runs(limit=None).wait())
    finally:
        app.stop().wait()


def test_a_move_says_what_it_moved_and_the_old_database_where_to(cli: Cli, shop: Shop, new: str) -> None:
    filled(shop)
    done = cli("move", shop.url, new)
    assert done.returncode == 0
    said = f"{shop.url}: moved 3 runs (2 progress, 2 steps, 2 logs) to {new}. Start the workers with the new URL."
    assert done.stdout.splitlines()[-1] == said
    assert runs_in(new) == 3
    left = cli("runs", "list", "-u", shop.url)
    assert left.returncode == 5
    assert f"this database was moved to {new}: use that one" in left.stderr
    assert parsed(cli("doctor", shop.url, "--json"))["ok"] is False


def test_as_json_it_gives_counts_and_checksums_and_nothing_else(cli: Cli, shop: Shop, new: str) -> None:
    filled(shop)
    document = parsed(cli("move", shop.url, new, "--json"))
    assert (document["from"], document["to"], document["dry_run"], document["resumed"]) == (shop.url, new, False, False)
    assert document["rows"] == {
        "runs": 3, "labels": 0, "progress": 2, "steps": 2, "step_attempts": 0, "logs": 2, "waits": 0, "signals": 0,
    }  # fmt: skip
    assert {len(sum) for sum in document["sha256"].values()} == {64}


def test_a_dry_run_writes_nothing(cli: Cli, shop: Shop, new: str, tmp_path: Path) -> None:
    filled(shop)
    done = cli("move", shop.url, new, "--dry-run")
    assert done.stdout == f"{shop.url}: 3 runs (2 progress, 2 steps, 2 logs) would be moved to {new}\n"
    assert not (tmp_path / "new.db").exists()
    assert runs_in(shop.url) == 3


def test_while_a_worker_executes_it_is_refused_and_the_worker_named(
    cli: Cli, shop: Shop, spawn: Spawn, shop_module: Path, new: str
) -> None:
    process = spawn("worker", f"{shop_module.stem}:app")
    assert process.stdout is not None
    while "Ready" not in process.stdout.readline():
        assert process.poll() is None
    held = shop.app.job(name="hold")(_hold).trigger().wait()
    pause = threading.Event()
    while not any(worker.runs for worker in shop.app.workers().wait()):
        pause.wait(0.01)
    done = cli("move", shop.url, new)
    assert done.returncode == 6
    assert f":{process.pid} (1 run). Stop them first" in done.stderr
    held.cancel().wait()
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONG) == 0


def test_a_target_with_runs_is_refused(cli: Cli, shop: Shop, new: str) -> None:
    filled(shop)
    assert cli("move", shop.url, new).returncode == 0
    other = new.replace("new.db", "other.db")
    assert cli("migrate", other).returncode == 0
    done = cli("move", other, new)
    assert done.returncode == 6
    assert "there are runs in this database" in done.stderr


def test_a_killed_move_is_made_up_for_by_the_same_command(cli: Cli, shop: Shop, spawn: Spawn, new: str) -> None:
    shop.app.trigger_many([shop.greet.bind(f"name {n}") for n in range(20_000)]).wait()
    process = spawn("move", shop.url, new)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("copying")
    process.kill()
    process.wait(LONG)
    usable = [cli("runs", "list", "-n", "1", "-u", url).returncode == 0 for url in (shop.url, new)]
    assert usable in ([True, False], [False, False], [False, True])
    again = cli("move", shop.url, new)
    assert (again.returncode == 0) is not usable[1]
    assert runs_in(new) == 20_000
    assert cli("runs", "list", "-u", shop.url).returncode == 5


def _hold() -> None: ...
