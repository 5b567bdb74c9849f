"""`holdfast demo`: real processes, a real kill, and numbers that come out of the databases."""

from __future__ import annotations

import csv
import os
import shlex
import signal
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest
from console_script import LONG, Cli, Spawn, environment, parsed

from holdfast.cli.demo import _source

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows"),
    pytest.mark.sampled("the demo, installed: the same on every Python", every=4),
]


def test_every_airport_is_there_once_and_no_saved_step_ran_again(cli: Cli, tmp_path: Path) -> None:
    done = cli("demo", "--json", "--pause", "0.01", "--kills", "2", "--path", "here and there")
    assert done.returncode == 0, done.stderr
    told = parsed(done)
    assert told["complete"] is True
    assert (told["rows"], told["distinct_rows"], told["expected_rows"]) == (3376, 3376, 3376)
    assert (told["kills"], told["takeovers"]) == (2, 2)
    assert told["steps"] == 137  # prepare, and 136 batches of 25
    assert told["steps_replayed"] + told["steps_called_after_kill"] == 137
    assert told["steps_replayed"] >= 137 // 2
    # A kill between a call and its checkpoint repeats that call, and no other.
    assert told["steps_called_twice"] == told["steps_called_before_kill"] - told["steps_replayed"]
    assert 0 <= told["steps_called_twice"] <= 2
    assert (told["run"]["status"], told["run"]["output"], told["run"]["generation"]) == ("completed", 3376, 5)
    with closing(sqlite3.connect(told["airports"])) as database, open(_source(), encoding="utf-8", newline="") as file:
        rows = [row["iata"] for row in csv.DictReader(file)]
        assert [iata for (iata,) in database.execute("select iata from airports order by rowid")] == rows
    assert Path(told["airports"]).parent == tmp_path / "here and there"


def test_in_a_pipe_it_tells_the_story_line_by_line_and_what_to_try_next_works(tmp_path: Path, cli: Cli) -> None:
    done = cli("demo", "--pause", "0.01", "--path", "demo")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "\x1b" not in said
    parts = ["Importing", "Worker process", "kill -9", "Worker process", "resumes", "Every airport is there, once."]
    at = -1
    for part in parts:
        at = said.find(part, at + 1)
        assert at >= 0, (part, said)
    assert "3,376  rows in the table, 3,376 different airports" in said
    commands = [line for line in said[said.index("Try next:") :].splitlines()[1:] if not line.startswith("  #")]
    assert len(commands) == 3
    for line in commands[:2]:  # the third is this demo again
        again = subprocess.run(
            shlex.split(line),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert again.returncode == 0, again.stderr
        assert "import-airports" in again.stdout


def test_an_interrupted_demo_says_where_its_files_are(tmp_path: Path, spawn: Spawn) -> None:
    demo = spawn("demo", "--path", "here")
    assert demo.stdout is not None
    line = ""
    while not line.startswith("import-airports  "):
        line = demo.stdout.readline()
        assert line
    demo.send_signal(signal.SIGINT)
    rest = demo.stdout.read()
    assert demo.wait(LONG) == 130
    assert f"Stopped. What was imported so far is in {tmp_path / 'here'}" in rest


def test_no_worker_is_left_behind_when_the_demo_is_killed(tmp_path: Path, spawn: Spawn) -> None:
    demo = spawn("demo", "--path", ".")
    assert demo.stdout is not None
    line = ""
    while not line.startswith("import-airports  "):
        line = demo.stdout.readline()
        assert line
    demo.send_signal(signal.SIGKILL)
    demo.wait(LONG)
    # The worker is nobody's child now. Its stdin has ended with the demo, so it stops, and says so in its log.
    log, pause = tmp_path / "worker.log", threading.Event()
    assert any("Stopping." in log.read_text() or pause.wait(0.05) for _ in range(round(LONG / 0.05)))


def test_a_path_that_can_not_be_a_folder_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = cli("demo", "--path", "file/below")
    assert done.returncode == 2
    assert "file/below" in done.stderr


def test_the_wheel_takes_the_table_from_the_examples() -> None:
    assert _source().read_bytes().count(b"\n") in (3376, 3377)
