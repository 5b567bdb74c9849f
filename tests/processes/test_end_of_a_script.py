"""A script that triggers as its last act, and waits for nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import databases
from holdfast import Holdfast

SCRIPT = """
import asyncio, sys
from holdfast import Holdfast

app = Holdfast(sys.argv[1], worker=False)

@app.job
def noop(number: int) -> int:
    return number

def sync():
    app.init().wait()
    noop.trigger(1)

async def inside_a_loop():
    await app.init()
    noop.trigger(1)

sync() if sys.argv[2] == "sync" else asyncio.run(inside_a_loop())
"""


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_s8_a_write_is_under_way_once_it_is_called_and_survives_the_end_of_the_script(
    tmp_path: Path, colour: str
) -> None:
    url = databases.url(tmp_path / "app.db")
    subprocess.run([sys.executable, "-c", SCRIPT, url, colour], check=True, timeout=60)
    app = Holdfast(url, worker=False)
    assert [run.job_name for run in app.get_runs().wait()] == ["noop"]
    app.stop().wait()
