"""kill -9 around the transactions of steps: each run leaves its rows once.

One process after the other works on the same runs and dies, at a moment that a seed chooses: before or after a
statement of the transaction, or whenever the signal comes from outside. HOLDFAST_KILLS says how many (60 by default):

    HOLDFAST_KILLS=500 python -m pytest tests/crash/test_crash_transactions.py -q -s

On servers the points are others (`crash_servers`), and fewer are tried by default.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from crash_checker import AUDIT, Checker
from crash_field import Field, Tally
from crash_servers import POINTS as SERVER_POINTS
from test_crash_points import row

import servers

pytestmark = [
    pytest.mark.only("sqlite", "they choose their databases themselves"),
    pytest.mark.crash,
    pytest.mark.sampled("kill -9 in transactions: what a commit keeps is the same on every Python"),
]

KILLS = int(os.environ.get("HOLDFAST_KILLS", "60"))
KILLS_ON_SERVERS = int(os.environ.get("HOLDFAST_KILLS", "24"))
SEED = 5
PATIENCE = 20.0
POINTS = (
    "begin",
    "lost_leases",
    "rows of the user's: create",
    "rows of the user's: insert",
    "after the effect of pay",
    "hidden tables",
    "renew_leases",
    "save_logs",
    "save_steps",
    "commit",
)
#: No run may fail for its crashes here: some of them are killed again and again.
ENDLESS = 1_000_000


def test_kills_in_the_window_leave_the_rows_of_each_run_once(crash_field: Field, record_property: Any) -> None:
    folder, chance = crash_field.folder, random.Random(SEED)
    crash_field.healthy(folder, "migrate")
    with sqlite3.connect(folder / "holdfast.db") as database:
        database.executescript(AUDIT)
    database.close()
    runs = 3 * KILLS
    crash_field.healthy(folder, "trigger_pays", count=runs)
    os.mkfifo(folder / "world.bell")
    bell = os.open(folder / "world.bell", os.O_RDWR | os.O_NONBLOCK)
    died: Counter[str] = Counter()
    for number in range(KILLS):
        common: dict[str, Any] = {"folder": folder, "program": "work_on", "when": number, "max_crashes": ENDLESS}
        if number % 4 == 3:
            died["from outside"] += _killed_from_outside(crash_field, bell, chance, common)
        else:
            point = chance.choice(POINTS)
            phase = "before" if point.startswith("after") else chance.choice(["before", "after"])
            fault = (f"{point}#{chance.randrange(1, 4)}", phase)
            answer = crash_field.zygote.ask("run", operation="transaction", fault=fault, **common)
            assert answer.get("signal") == signal.SIGKILL, f"kill {number}, {phase} {fault[0]}: {answer}"
            died[f"{phase} {point}"] += 1
        while select.select([bell], [], [], 0)[0]:
            os.read(bell, 65536)
    os.close(bell)
    (folder / "world.bell").unlink()
    for later in range(2 + runs // 1000):
        crash_field.healthy(folder, "work_on", when=KILLS + later, max_crashes=ENDLESS)
    crash_field.healthy(folder, "recover", when=KILLS + 10, max_crashes=ENDLESS)

    assert sum(died.values()) == KILLS
    rows = _rows(folder)
    assert len(rows) == runs
    assert set(rows.values()) == {(2, 2)}, "rows and parts of each run"
    found = Checker(folder).check()
    assert not found.broken, str(found)
    assert found.counts["rows of the user's"] == 2 * runs
    again = found.counts["takeovers"]
    assert again >= KILLS / 2, "the kills came when nothing was under way"
    tally = Tally(points=len(died), cases=KILLS, kills=KILLS, counts=found.counts)
    record_property("crash", row("transactions", tally))
    print(f"\n{KILLS} SIGKILLs, {again} takeovers: {runs} runs have left {2 * runs} rows; {dict(sorted(died.items()))}")


def _killed_from_outside(field: Field, bell: int, chance: random.Random, common: dict[str, Any]) -> int:
    """Somewhere in the transaction of the run after so many others."""
    pid = field.zygote.ask("start", **common)["pid"]
    heard, wanted = 0, chance.randrange(1, 5)
    while heard < wanted:
        assert select.select([bell], [], [], PATIENCE)[0], f"nothing happened for {PATIENCE} s"
        heard += len(os.read(bell, wanted - heard))
    os.kill(pid, signal.SIGKILL)
    assert field.zygote.ask("wait", pid=pid) == {"pid": pid, "signal": int(signal.SIGKILL)}
    return 1


def _rows(folder: Path) -> dict[str, tuple[int, int]]:
    database = sqlite3.connect(folder / "holdfast.db")
    try:
        return {
            run: (count, parts)
            for run, count, parts in database.execute(
                "select r.id, count(c.run), count(distinct c.part) from holdfast_runs as r "
                "left join charges as c on c.run = r.id group by r.id"
            )
        }
    finally:
        database.close()


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_kills_on_a_server_leave_the_rows_of_each_run_once(
    crash_field: Field, request: pytest.FixtureRequest, kind: str
) -> None:
    url, folder, chance = request.getfixturevalue(f"{kind}_url"), crash_field.folder, random.Random(SEED)
    kills, runs = KILLS_ON_SERVERS, 2 * KILLS_ON_SERVERS
    crash_field.healthy(folder, "trigger", url=url, when=0, count=runs)
    servers.execute(url, "create table charges (run varchar(80), part int, value int)")
    os.mkfifo(folder / "world.bell")
    bell = os.open(folder / "world.bell", os.O_RDWR | os.O_NONBLOCK)
    died: Counter[str] = Counter()
    for number in range(kills):
        common: dict[str, Any] = {"folder": folder, "program": "work_on", "url": url, "when": 1 + number}
        if number % 4 == 3:
            died["from outside"] += _killed_from_outside(crash_field, bell, chance, common)
        else:
            point = chance.choice(SERVER_POINTS)
            phase = chance.choice(["before", "after", "sent"] if point == "commit" else ["before", "after"])
            fault = (f"{point}#{chance.randrange(1, 4)}", phase)
            answer = crash_field.zygote.ask("run", fault=fault, **common)
            assert answer.get("signal") == signal.SIGKILL, f"kill {number}, {phase} {fault[0]}: {answer}"
            died[f"{phase} {point}"] += 1
        while select.select([bell], [], [], 0)[0]:
            os.read(bell, 65536)
    os.close(bell)
    (folder / "world.bell").unlink()
    unfinished = "select count(*) from holdfast_runs where status <> 'completed'"
    for later in range(3 + runs // 50):
        crash_field.healthy(folder, "work_on", url=url, when=1 + kills + later)
        if servers.execute(url, unfinished) == [(0,)]:
            break

    assert sum(died.values()) == kills
    found = servers.execute(
        url,
        "select r.id, r.status, r.generation, (select count(*) from charges as c where c.run = r.id), "
        "(select count(distinct part) from charges as c where c.run = r.id), "
        "(select count(*) from holdfast_steps as s where s.run_id = r.id and s.status = 'completed') "
        "from holdfast_runs as r",
    )
    assert len(found) == runs
    assert {tuple(rest) for _, status, _, *rest in found if status == "completed"} == {(2, 2, 1)}, "of each run"
    errors = servers.execute(url, "select error, generation from holdfast_runs where status <> 'completed'")
    assert errors == []
    again = sum(generation - 1 for _, _, generation, *_ in found)
    assert again >= kills / 2, "the kills came when nothing was under way"
    print(f"\n{kind}: {kills} SIGKILLs, {again} takeovers: {runs} runs have left {2 * runs} rows; {dict(died)}")
