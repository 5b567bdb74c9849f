"""Every example runs as a program, in an empty folder, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sampled("the examples: they do the same on every Python", every=4)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

#: Lines that must be among what it prints.
PRINTS = {
    "agent": [
        "the model has heard 3 things",
        "A holdfast grips the rock. (3 pages about holdfast, 3 pages about seaweed, old notes deleted)",
    ],
    "fan_out": ["990 resized, 10 broken, "],
    "order_approval": ["released place 7 for order-2", "receipt of order-1", "refused by bob"],
    "poll_until_ready": ["export-7 is queued", "True ready: 42 rows"],
    "cancel": ["cancelled", "no result: RunCancelled", "frame 0 left unfinished: cancelled"],
    "encrypted": [
        "the app reads:  Ada Lovelace is in good health",
        "the file holds: ^fernet^gAAAA",
    ],
    "no_server": ["run:complete HELLO ADA", "completed thinking", "{'error': 'Run not found'}"],
    "hello": ["import_airports created", "3376 airports"],
    "idempotent_trigger": [
        "created -> booked 12.50 for pay_31",
        "idempotent -> booked 12.50 for pay_31",
        "created -> booked 9.90 for pay_32",
        "2 runs",
    ],
    "parallel_steps": [
        "{'DEN': 1656, 'LAX': 38, 'JFK': 4}",
        "['describe-DEN', 'describe-JFK', 'describe-LAX', 'fetch-DEN', 'fetch-JFK', 'fetch-LAX']",
        "['DEN lies high', 'LAX lies low', 'JFK lies low']",
    ],
    "pydantic_values": [
        "Invoice(number=1, due=datetime.date(2027, 1, 31), total=Decimal('0.30'))",
        "stored as {'customer': 'Ada', 'due': '2027-01-31', 'prices': ['0.10', '0.20']}",
        "Invalid input: due: ",
    ],
    "survive_a_kill": [
        "the first worker ended with -9",
        "completed ['receipt of order-7', 'parcel of order-7']",
        "charged order-7 - once",
    ],
    "sync_job": [
        "Dear Amelia, thank you for flying with us. Yours, the airline",
        "pending -> completed",
        "0 write completed 'Dear Charles, thank you for flying with us.'",
    ],
    "testing_a_job": [
        "passed: test_a_message_is_delivered_once",
        "passed: test_a_wrong_address_fails_the_run",
        "passed: test_the_function_of_a_step_is_a_plain_function",
        "passed: test_no_crash_makes_it_deliver_twice",
    ],
    "web_and_worker": [
        "triggered here, not executed here: pending",
        "['cat.jpg@64', 'cat.jpg@256']",
    ],
}


#: In these some runs fail on purpose, and the log says where.
FAILING = ("fan_out", "testing_a_job")


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "HOLDFAST_URL"}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_does_what_it_says(path: Path, tmp_path: Path) -> None:
    done = _run(tmp_path, str(path))
    assert (done.returncode, bool(done.stderr)) == (0, path.stem in FAILING), done.stderr
    assert ": it has failed" in done.stderr or not done.stderr
    lines = done.stdout.splitlines()
    for expected in PRINTS[path.stem]:
        assert any(line.startswith(expected) for line in lines), (expected, done.stdout)
    # Who tries it again has the files of the first time; an idempotency key may rightly make it print less.
    again = _run(tmp_path, str(path))
    assert (again.returncode, bool(again.stderr)) == (0, path.stem in FAILING), again.stderr


def test_no_example_is_forgotten() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in PRINTS if f"`{name}.py`" not in listed] == []


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_an_example_is_short_and_says_what_it_shows(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert text.startswith('"""')


def test_the_example_of_tests_passes_under_pytest(tmp_path: Path) -> None:
    done = _run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "testing_a_job.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
