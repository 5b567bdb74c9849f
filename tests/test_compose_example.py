"""examples/compose: Docker Compose understands it, and its programs do on a real PostgreSQL what its README says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.sampled("the compose example: its processes do the same on every Python")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "compose"
LONG = 60

if not EXAMPLE.is_dir():
    pytest.skip("there is no examples folder beside these tests: not a checkout", allow_module_level=True)


# -- the files -----------------------------------------------------------------------------------------------------


def compose() -> list[str]:
    """The command of Docker Compose, the plug-in or the older program; skips loudly where there is neither."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run([*command, "version"], capture_output=True, timeout=LONG, check=False)
            if asked.returncode == 0:
                return command
    pytest.skip("NO DOCKER COMPOSE: examples/compose/compose.yaml is not checked (install docker-compose)")


def configured(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "POSTGRES_PASSWORD"}
    done = subprocess.run(
        [*compose(), "-f", str(EXAMPLE / "compose.yaml"), "config", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_docker_compose_knows_four_services_three_of_them_workers() -> None:
    assert sorted(configured("--services").split()) == ["db", "migrate", "web", "worker"]
    worker = re.search(r"^  worker:\n((?:    .*\n)+)", configured(), re.MULTILINE)
    assert worker is not None
    assert "replicas: 3" in worker[1]
    assert "holdfast:only-for-trying@db/holdfast" in worker[1]
    assert "condition: service_completed_successfully" in worker[1]


def test_the_image_is_made_of_files_that_are_there_and_runs_programs_that_it_has() -> None:
    dockerfile = (EXAMPLE / "Dockerfile").read_text("utf-8")
    copied = [line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY ")]
    assert copied
    assert [one for line in copied for one in line if not (ROOT / one).exists()] == []
    extras = re.search(r'"/src\[(.*)\]"', dockerfile)
    assert extras is not None
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert [extra for extra in extras[1].split(",") if not re.search(rf"^{extra} = ", project, re.MULTILINE)] == []
    for script in ("shop.py", "web.py"):
        assert f"examples/compose/{script}" in dockerfile


# -- the programs --------------------------------------------------------------------------------------------------


class Place:
    """The containers, without containers: each program a process, in a folder of its own."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.bank = folder / "bank"
        self._environment = {**os.environ, "HOLDFAST_URL": url, "BANK": str(self.bank), "PYTHONUNBUFFERED": "1"}
        for script in ("shop.py", "web.py"):
            shutil.copy(EXAMPLE / script, folder)

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**self._environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        return process

    def worker(self) -> subprocess.Popen[str]:
        process = self.start("-m", "holdfast", "worker", "shop:app")
        told(process, r"Ready\.")
        return process

    def web(self) -> Callable[..., Any]:
        process = self.start("web.py", PORT="0")
        port = told(process, r"listening on (\d+)")[1]

        def ask(path: str, method: str = "GET") -> Any:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
            with urllib.request.urlopen(request, timeout=LONG) as answer:
                return json.load(answer)

        return ask


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(round(LONG / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it never came to be")


def told(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.match(pattern, line):
            return found
    raise AssertionError(f"{process.args} ended without saying {pattern!r}")


@pytest.fixture
def place(postgres_url: str, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        place = Place(postgres_url, tmp_path, stack)
        migrated = place.start("-m", "holdfast", "migrate")
        assert "applied 0001_initial" in migrated.communicate(timeout=LONG)[0]
        yield place


def test_three_workers_execute_what_the_web_process_triggers(place: Place) -> None:
    ask = place.web()
    for _ in range(3):
        place.worker()
    triggered = [ask(f"/orders/{number}", "POST") for number in range(20)]
    assert {one["disposition"] for one in triggered} == {"created"}
    assert ask("/orders/7", "POST") == {"run": triggered[7]["run"], "disposition": "idempotent"}

    def all_ended() -> bool:
        return all(ask(f"/runs/{one['run']}")["status"] == "completed" for one in triggered)

    until(all_ended)
    assert ask(f"/runs/{triggered[7]['run']}")["output"] == ["receipt 7", "parcel 7"]
    assert [one["alive"] for one in ask("/workers")] == [True] * 3
    assert len(place.bank.read_text("utf-8").splitlines()) == 20


@pytest.mark.crash
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes: POSIX only")
def test_what_killed_workers_had_is_taken_over_after_their_lease(place: Place) -> None:
    os.mkfifo(place.bank)  # the bank doesn't answer until somebody reads
    ask = place.web()
    workers = [place.worker() for _ in range(3)]
    run = ask("/orders/7", "POST")["run"]
    until(lambda: ask(f"/runs/{run}")["status"] == "leased")
    for worker in workers:
        worker.kill()
        worker.wait(LONG)
    place.worker()
    with place.bank.open(encoding="utf-8") as bank:
        (key,) = bank.read().splitlines()
    assert key.startswith(run)
    until(lambda: ask(f"/runs/{run}")["status"] == "completed")
    # Claimed, taken back, claimed again.
    assert ask(f"/runs/{run}")["generation"] == 3


def test_a_question_about_nothing_is_a_404(place: Place) -> None:
    ask = place.web()
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        ask("/runs/none")
    refused.value.close()
