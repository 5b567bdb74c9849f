"""Some seconds of storm: real processes that are killed and stopped while they work, and no promise is broken.

On a file, and on a PostgreSQL that is restarted meanwhile. The long form of both is `make storm`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crash_checker import AUDIT

import servers
from holdfast import Holdfast

STORM = Path(__file__).with_name("storm.py")
SEED = os.environ.get("HOLDFAST_STORM_SEED", "11")

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the storm forks its processes: it needs Linux or macOS"),
]


def storm(*arguments: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    figures = folder / "storm.json"
    # Nothing is measured in processes that are killed anyway.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-W", "error", str(STORM), "--json", str(figures), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    return done, json.loads(figures.read_text()) if figures.exists() else {}


@pytest.mark.sampled("the storm: what it looks for is the same on every Python, and needs half a minute")
def test_no_promise_is_broken_in_some_seconds_of_storm(tmp_path: Path, record_property: Any) -> None:
    done, figures = storm("--short", "--seed", SEED, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    counts = figures["counts"]
    assert figures["violations"] == {}
    assert counts["stale writes accepted"] == 0
    assert counts["kills"] >= 8
    assert counts["stops past the lease"] >= 3
    assert counts["checks"] > 10_000
    record_property("storm", told(figures))
    print(done.stdout)


@pytest.mark.sampled("the storm: what it looks for is the same on every Python, and needs half a minute")
def test_no_promise_is_broken_in_some_seconds_of_storm_on_a_postgresql_that_is_restarted(
    postgres_url: str,  # so that it is left out as loudly as the others where there is none
    tmp_path: Path,
    record_property: Any,
) -> None:
    if servers.programs("postgres") is None:
        pytest.skip("NO PostgreSQL: a server of one's own is needed, and its programs are not here")
    done, figures = storm("--on", "postgres", "--short", "--seed", SEED, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    counts = figures["counts"]
    assert figures["violations"] == {}
    assert counts["stale writes accepted"] == 0
    assert counts["stale writes attempted"] >= 5
    assert counts["kills"] >= 6
    assert counts["stops past the lease"] >= 3
    assert counts["server restarts"] >= 2
    assert counts["deadlocks"] == 0
    assert counts["checks"] > 10_000
    record_property("storm", told(figures))
    print(done.stdout)


def told(figures: dict[str, Any]) -> str:
    """The figures in one line."""
    counts = figures["counts"]
    restarts = f"{counts['server restarts']} restarts of the server, " if "server restarts" in counts else ""
    return (
        f"{counts['runs ended']} runs, {counts['kills']} kills, {counts['stops past the lease']} stops past the lease, "
        f"{restarts}{counts['takeovers']} takeovers, {counts['stale writes attempted']} stale writes attempted, "
        f"0 accepted, {counts['step bodies run again']} of {counts['step bodies begun']} bodies run again, "
        f"{counts['trees']} trees of {counts['nodes']} runs with {counts['wake-ups']} wake-ups: "
        f"{figures['command']}"
    )


PLAN = """
import sys
sys.path[:0] = sys.argv[2:]
import itertools
from storm_plan import life_of_client, life_of_worker, restarts
seed = int(sys.argv[1])
for server in (False, True):
    for life in (life_of_worker, life_of_client):
        for number in range(2):
            for of in range(40):
                print(life(seed, number, of, server=server))
for restart in itertools.islice(restarts(seed), 10):
    print(*restart)
"""


def plan(seed: int, hashes: str = "0") -> str:
    """What strikes two workers, two clients and a server, as another process makes it, with other hashes of texts."""
    folders = [str(STORM.parent), str(STORM.parents[1] / "crash")]
    command = [sys.executable, "-c", PLAN, str(seed), *folders]
    return subprocess.check_output(command, text=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": hashes})


def test_the_same_seed_plans_the_same_faults() -> None:
    lives = plan(7)
    assert plan(7, hashes="1") == lives
    assert plan(8) != lives
    assert len(lives.splitlines()) == 330
    for kind in (
        "before commit", "after save_steps", "unanswered commit", "paused begin with finish", "stopped after",
        " wake#", " save_waits#", " take_signals#", "commit with save_waits#", "paused begin with save_waits#",
    ):  # fmt: skip
        assert kind in lives
    assert lives.count(" fast ") == lives.count(" immediate ") == 5


def test_the_audit_tells_an_expired_lease_from_one_that_a_worker_puts_back(tmp_path: Path) -> None:
    """Also where it has run out: the server was away for longer, and whoever held it is back first."""
    path = tmp_path / "app.db"
    with Holdfast(f"sqlite:///{path}", worker=False) as app:
        app.migrate().wait()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(AUDIT)
        for run in ("put back", "expired"):
            database.execute(
                "insert into holdfast_runs (id, job_name, input, status, run_at, due, created_at, updated_at,"
                " lease_owner, lease_expires_at) values (?, 'job', '{}', 'leased', 1, 1, 1, 1, 'worker', 5)",
                (run,),
            )
        free = "update holdfast_runs set status = 'pending', generation = 1, lease_owner = null, updated_at = 9"
        database.execute(f"{free}, lease_expires_at = null where id = 'put back'")
        database.execute(f"{free}, lease_expires_at = null, crashes = 1 where id = 'expired'")
        told = database.execute("select run_id, name from audit where kind = 'change' order by id").fetchall()
    assert told == [("put back", None), ("expired", "expired")]
