"""The real console script in real processes, on a real database."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from console_script import LONG, SCRIPT, SHOP_MODULE, Cli, Shop, Spawn, environment


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `holdfast …` in `tmp_path`; never a traceback, whatever it is asked."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(SCRIPT), *arguments],
            cwd=tmp_path,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start `holdfast …` in `tmp_path` and go on; killed at the end of the test if it is still there."""
    started: list[tuple[subprocess.Popen[str], threading.Timer]] = []

    def start(*arguments: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(SCRIPT), *arguments],
            cwd=tmp_path,
            env=environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # A test that reads from it line by line then comes to an end too.
        limit = threading.Timer(LONG, process.kill)
        limit.start()
        started.append((process, limit))
        return process

    yield start
    for process, limit in started:
        limit.cancel()
        limit.join()
        process.kill()
        process.communicate()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.app.stop().wait()


@pytest.fixture
def shop_module(tmp_path: Path) -> Path:
    """`shop_jobs.py` in the folder where the command is run."""
    path = tmp_path / "shop_jobs.py"
    path.write_text(SHOP_MODULE, encoding="utf-8")
    return path
