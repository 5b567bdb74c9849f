"""Some seconds of storm: real processes that are killed and stopped while they work, and no promise is broken.

The long form is `make storm`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
    record_property(
        "storm",
        f"{counts['runs ended']} runs, {counts['kills']} kills, {counts['stops past the lease']} stops past the lease, "
        f"{counts['takeovers']} takeovers, {counts['stale writes attempted']} stale writes attempted, 0 accepted, "
        f"{counts['step bodies run again']} of {counts['step bodies begun']} bodies run again: {figures['command']}",
    )
    print(done.stdout)


PLAN = """
import sys
sys.path[:0] = sys.argv[2:]
from storm_plan import life_of_client, life_of_worker
for life in (life_of_worker, life_of_client):
    for number in range(2):
        for of in range(40):
            print(life(int(sys.argv[1]), number, of))
"""


def plan(seed: int, hashes: str = "0") -> str:
    """The faults of two workers and two clients, as another process makes them, with other hashes of texts."""
    folders = [str(STORM.parent), str(STORM.parents[1] / "crash")]
    command = [sys.executable, "-c", PLAN, str(seed), *folders]
    return subprocess.check_output(command, text=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": hashes})


def test_the_same_seed_plans_the_same_faults() -> None:
    told = plan(7)
    assert plan(7, hashes="1") == told
    assert plan(8) != told
    assert len(told.splitlines()) == 160
    for kind in ("before commit", "after save_steps", "unanswered commit", "paused begin with finish", "stopped after"):
        assert kind in told
