"""Thousands of seeds of the simulation, on both stores; that it is deterministic; and that it does find faults.

Each campaign runs in a process of its own: coverage would make it many times slower, and it replaces parts of the
engine. HOLDFAST_SEEDS says how many seeds (10,000; 500 where HOLDFAST_TESTS is sample or few).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEEDS = int(os.environ.get("HOLDFAST_SEEDS", "10000" if os.environ.get("HOLDFAST_TESTS", "full") == "full" else "500"))
#: Commands, which the workers of pytest share; with few seeds it takes longer to start one.
PARTS = 10 if SEEDS > 1000 else 2
#: Of twenty seeds one is told on both stores, which must agree.
ON_BOTH = SEEDS // 20
PATIENCE = 300


def told(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "COVERAGE_"))}
    done = subprocess.run(
        [sys.executable, str(HERE / "simulate.py"), *arguments],
        capture_output=True, text=True, timeout=PATIENCE, env={**inherited, **environment}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def counts(text: str) -> dict[str, int]:
    return {what: int(many) for many, what in re.findall(r"(\d+) ([a-z_ ]+?)(?:,|$)", text.splitlines()[0])}


@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_breaks_a_promise(part: int) -> None:
    many = (SEEDS - ON_BOTH) // PARTS
    code, text = told("--seeds", str(many), "--first", str(part * many), "--here")
    assert code == 0, text
    # Not in vain: things went wrong, and leases were lost and tried to be used.
    found = counts(text)
    assert found["seeds"] == many
    for what in ("crashes", "pauses", "ambiguous", "takeovers", "stale renew_leases", "stale finish"):
        assert found[what] > many / 50, (what, found)


@pytest.mark.parametrize("part", range(PARTS))
def test_both_stores_tell_the_same_story_and_break_no_promise(part: int) -> None:
    many = ON_BOTH // PARTS
    code, text = told("--seeds", str(many), "--first", str(1_000_000 + part * many), "--store", "both", "--here")
    assert code == 0, text
    assert counts(text)["seeds"] == 2 * many


@pytest.mark.parametrize("store", ["model", "sqlite"])
def test_the_same_seed_tells_the_same_story_in_every_process(store: str) -> None:
    arguments = ("--seed", "22", "--store", store)  # one with crashes, pauses and takeovers
    texts = {told(*arguments, PYTHONHASHSEED=hash_seed)[1] for hash_seed in ("0", "1", "4711")}
    after_others = told("--seeds", "1", "--first", "22", "--store", store, "--here", "--digests")[1]
    (text,) = texts
    digest = re.search(r"digest (\w+)", text)
    assert digest is not None, text
    assert digest[1] in after_others


def regressions() -> list[tuple[str, str]]:
    lines = (HERE / "regressions.txt").read_text("utf-8").splitlines()
    return [tuple(line.split()[:2]) for line in lines if line and not line.startswith("#")]  # type: ignore[misc]


def test_no_seed_that_failed_once_fails_again() -> None:
    for store, seed in regressions():
        code, text = told("--seed", seed, "--store", store)
        assert code == 0, text


@pytest.mark.sampled("planted faults are found on every Python alike")
def test_planted_faults_are_found() -> None:
    code, text = told("--hunt")
    assert code == 0, text
    assert text.count(" · 1 of ") >= 28


def test_a_failing_seed_is_printed_with_what_repeats_it() -> None:
    code, text = told("--seeds", "40", "--mutant", "no self-fence", "--here")
    assert code == 1
    repeat = re.search(r"repeat with: python tests/simulation/simulate.py (.*) --trace", text)
    assert repeat is not None, text
    code, text = told(*repeat[1].split(), "--mutant", "no self-fence", "--trace")
    assert code == 1
    assert "BROKEN" in text
