"""examples/two_hosts: the run of a host whose cable is pulled is finished by the other one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sampled("what a cable does is the same on every Python")

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "two_hosts" / "two_hosts.py"

if not EXAMPLE.is_file():
    pytest.skip("there is no examples folder beside these tests: not a checkout", allow_module_level=True)


def test_a_host_whose_cable_is_pulled_loses_its_run_to_the_other_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "NOT POSSIBLE HERE" in done.stderr:
        pytest.skip(f"NO NETWORK NAMESPACES: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.fullmatch(
        r"host (?P<first>[ab]) has begun; its cable is cut\n"
        r"flown by (?P<legs>[ab ]+)\n"
        r"host (?P<other>[ab]) took over and finished it, (?P<later>[\d.]+) s later than without the cut\n"
        r"host (?P=first) works again (?P<again>[\d.]+) s after its cable is back; nothing was restarted\n",
        done.stdout,
    )
    assert told is not None, done.stdout
    legs = told["legs"].split()
    assert legs == [told["first"]] * legs.count(told["first"]) + [told["other"]] * legs.count(told["other"])
    # Lease, polling, and what a machine of two busy cores needs.
    assert float(told["later"]) < 3 + 0.5 + 4
