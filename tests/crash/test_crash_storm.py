"""kill -9 of everything at once, again and again, in real time, at moments that a seed chooses."""

from __future__ import annotations

import os
import random
import select
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from crash_checker import AUDIT, Checker
from crash_field import Field, Tally
from crash_world import World, read
from test_crash_points import row

pytestmark = [
    pytest.mark.only("sqlite", "a storm over one file; what a server keeps is tried point by point"),
    pytest.mark.crash,
    pytest.mark.sampled("the storm: what it looks for is the same on every Python"),
]

SEED = 20
ROUNDS = 20
PATIENCE = 20.0


def test_killing_all_processes_twenty_times_loses_and_doubles_nothing(crash_field: Field, record_property: Any) -> None:
    folder = crash_field.folder
    crash_field.healthy(folder, "migrate")
    database = sqlite3.connect(folder / "holdfast.db")
    database.executescript(AUDIT)
    database.close()
    os.mkfifo(folder / "world.bell")
    bell = os.open(folder / "world.bell", os.O_RDWR | os.O_NONBLOCK)
    chance = random.Random(SEED)
    tally = Tally(points=ROUNDS, cases=ROUNDS)
    for number in range(ROUNDS):
        programs = ["storm_worker", "storm_worker", "storm_client"]
        pids = [
            crash_field.zygote.ask("start", folder=folder, program=program, seed=SEED + number)["pid"]
            for program in programs
        ]
        _listen(bell, chance.randrange(2, 120))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            assert crash_field.zygote.ask("wait", pid=pid) == {"pid": pid, "signal": int(signal.SIGKILL)}
            tally.kills += 1
        while select.select([bell], [], [], 0)[0]:
            os.read(bell, 4096)
    os.close(bell)
    (folder / "world.bell").unlink()
    crash_field.healthy(folder, "recover", seed=SEED + ROUNDS)
    found = Checker(folder).check()
    tally.counts.update(found.counts)
    tally.violations += [str(found)] if found.broken else []
    record_property("crash", row("storm (real time)", tally))
    assert not found.broken, str(found)
    assert tally.kills == 3 * ROUNDS
    assert found.counts["runs"] >= 5 * ROUNDS / 2
    assert found.counts["takeovers"] >= ROUNDS / 4


def test_the_beginning_of_a_line_that_a_killed_process_left_is_no_event(tmp_path: Path) -> None:
    path = tmp_path / "world.jsonl"
    World(path).tell("asked", op="trigger")
    with path.open("a") as file:
        file.write('\n{"ev": "ok", "pi')
    World(path).tell("asked", op="cancel")
    assert [event["op"] for event in read(path)] == ["trigger", "cancel"]


def _listen(bell: int, events: int) -> None:
    """Return after so many events in the world."""
    heard = 0
    while heard < events:
        assert select.select([bell], [], [], PATIENCE)[0], f"nothing happened for {PATIENCE} s"
        heard += len(os.read(bell, events - heard))
