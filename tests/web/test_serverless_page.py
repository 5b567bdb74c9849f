"""What the page on cron and serverless says of invocations that are cut off."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sampled("web servers: the same on every Python", every=4)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "serverless.md"

INVOCATION = """
import os
import signal
import sys
from pathlib import Path

os.environ["CRON_SECRET"] = "open sesame"
from holdfast import SyncStep

from bills import app, execute_some


def note(line: str) -> None:
    with open("ledger.txt", "a") as ledger:
        ledger.write(line)


def long_one(step: SyncStep) -> None:
    note("long ")
    if sys.argv[1] == "killed by the platform":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "slow":
        step.signal.wait()


@app.job
def careful(step: SyncStep) -> str:
    step.run("first", note, "first ")
    step.run("long", long_one, step)
    return "done"


if sys.argv[1] == "trigger":
    with app:
        careful.trigger().wait()
elif sys.argv[1] == "look":
    with app:
        run = app.get_runs().wait()[0]
        print(run.status, run.crashes, run.output)
else:
    print(execute_some("Bearer open sesame"))
"""


class Platform:
    """Invokes the page's own module, in a process for each invocation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shown = re.search(r"^```python file=bills.py\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        assert shown is not None
        # The page's own limits, but of seconds: who runs the tests has no minute.
        text = shown[1].replace("worker=False)", 'worker=False, lease="2s")').replace("timeout=50", "timeout=2")
        assert text.count('lease="2s"') == text.count("timeout=2)") == 1
        (folder / "bills.py").write_text(text, "utf-8")
        (folder / "invocation.py").write_text(INVOCATION, "utf-8")

    def invoke(self, how: str) -> tuple[int, str]:
        command = [sys.executable, "-W", "error", "invocation.py", how]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout.strip()

    @property
    def ledger(self) -> str:
        return (self.folder / "ledger.txt").read_text()


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    platform = Platform(tmp_path)
    assert platform.invoke("trigger") == (0, "")
    return platform


@pytest.mark.crash
def test_a_run_whose_invocation_was_killed_goes_on_in_a_later_one_when_the_lease_is_over(platform: Platform) -> None:
    assert platform.invoke("killed by the platform") == (-9, "")
    for _ in range(100):
        answer = platform.invoke("with time enough")
        if answer != (0, "(200, {'processed': 0})"):  # the lease is not over yet
            break
    assert answer == (0, "(200, {'processed': 1})")
    assert platform.invoke("look") == (0, "completed 0 done")
    assert platform.ledger == "first long long "


def test_an_invocation_that_takes_too_long_hands_its_run_to_the_next_one_at_once_and_uncounted(
    platform: Platform,
) -> None:
    assert platform.invoke("slow") == (0, "(202, {})")
    assert platform.invoke("look") == (0, "pending 0 None")
    assert platform.invoke("with time enough") == (0, "(200, {'processed': 1})")
    assert platform.ledger == "first long long "
