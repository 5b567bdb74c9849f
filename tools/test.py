"""Runs the tests on every promised Python that is installed, and adds up.

    python3 tools/test.py [--python 3.12] [--workers N] [-- PYTEST ARGUMENTS]

The lowest version runs everything, and also measures branch coverage of the floors that must not be wrong. The
others leave out what comes out the same on every Python: each test marked `sampled`, see tests/sampling.py. How
many those were is printed with the reasons, and counted in the table. HOLDFAST_TESTS=full (or sample) in the
environment is for all versions. A version that is not installed is named and counted. The last line is always
`N passed, N failed, N skipped` over all versions; an error outside a test counts as a failure.
"""
# ruff: noqa: T201, UP006, UP035

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import List, NamedTuple, Tuple

import environment
from environment import Python

COVERED = ["rules", "store", "commit", "engine"]
COVERAGE_FLOOR = 95


class Result(NamedTuple):
    """What one run of pytest came to."""

    name: str
    passed: int
    failed: int
    skipped: int
    left_out: int
    seconds: float


def _workers() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_report(path: Path, exit_code: int) -> Tuple[int, int, int]:
    """Passed, failed and skipped of a junitxml report. A run that ended badly counts as a failure."""
    passed = failed = skipped = 0
    try:
        suites = list(ElementTree.parse(str(path)).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        suites = []
    for suite in suites:
        tests, bad, without = (int(suite.get(key, 0)) for key in ("tests", "failures", "skipped"))
        bad += int(suite.get("errors", 0))
        passed, failed, skipped = passed + max(0, tests - bad - without), failed + bad, skipped + without
    # 5 means that no test was collected; everything else that is not 0 is a failure of something.
    if exit_code not in (0, 5) and failed == 0:
        failed = 1
    return passed, failed, skipped


def run_tests(python: Python, mode: str, covered: bool, workers: int, extra: List[str]) -> Result:
    """The suite on one Python: `full`, or without most of what is the same on every Python (`sample`)."""
    print(f"\n━━ Python {python.name}.{python.patch} ━━", flush=True)
    venv = environment.prepare_dev(python)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        report, left_out = Path(folder, "report.xml"), Path(folder, "left_out.json")
        os.environ.update({"HOLDFAST_TESTS": mode, "HOLDFAST_TESTS_LEFT_OUT": str(left_out)})
        arguments = ["python", "-m", "pytest", "-q", f"--junitxml={report}"]
        # A test that hangs shows where after five minutes, instead of saying nothing for ever.
        arguments += ["-o", "faulthandler_timeout=300"]
        if workers > 1:
            arguments += ["-n", str(workers), "--dist=worksteal"]
        if covered:
            arguments += ["--cov=holdfast", "--cov-branch", "--cov-report="]
        code = environment.run_in(venv, arguments + extra)
        if code == 130:
            raise KeyboardInterrupt
        counts = read_report(report, code)
        sampled_out = sum(json.loads(left_out.read_text()).values()) if left_out.exists() else 0
    return Result(python.name, *counts, sampled_out, time.monotonic() - started)


def report_coverage(python: Python) -> bool:
    """Print the branch coverage of the covered floors; False when it is below the floor."""
    print(f"\n━━ Branch coverage of {', '.join(COVERED)} (at least {COVERAGE_FLOOR} %) ━━", flush=True)
    include = ",".join(f"*/holdfast/{name}/*" for name in COVERED)
    arguments = [
        "python",
        "-m",
        "coverage",
        "report",
        f"--include={include}",
        "--skip-covered",
        "--skip-empty",
    ]
    venv = environment.ROOT / f".venv-{python.name}"
    return environment.run_in(venv, [*arguments, f"--fail-under={COVERAGE_FLOOR}", "--precision=1"]) == 0


def print_table(results: List[Result], missing: List[str]) -> None:
    print("\nPython    passed  failed  skipped  left out  seconds")
    for result in results:
        print(
            f"{result.name:<8}{result.passed:>8}{result.failed:>8}{result.skipped:>9}{result.left_out:>10}"
            f"{result.seconds:>9.1f}",
        )
    if any(result.left_out for result in results):
        print("left out: the same on every Python, see the reasons above; the lowest version runs everything")
    for name in missing:
        print(f"{name:<8}  NOT TESTED: Python {name} is not installed")
    print(f"\n{len(results)} Python versions tested, {len(missing)} not tested", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests on every installed Python.")
    parser.add_argument("--python", default="", help="only this version, e.g. 3.12")
    parser.add_argument("--workers", type=int, default=_workers(), help="parallel test processes")
    parser.add_argument("extra", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()

    pythons = environment.find_pythons()
    promised = [f"{major}.{minor}" for major, minor in environment.PROMISED]
    if options.python and options.python not in promised:
        environment.fail(f"PYTHON={options.python}: give one of {', '.join(promised)}.")
    asked = [options.python] if options.python else promised
    chosen = [python for python in pythons.values() if python.name in asked and not python.lacks]
    missing = [name for name in asked if name not in {python.name for python in chosen}]
    for name in missing:
        lacks = [lack for python in pythons.values() if python.name == name for lack in python.lacks]
        why = f"is there, but without {', '.join(lacks)}" if lacks else "is not installed"
        print(f"NOT TESTED: Python {name} {why}", flush=True)

    # Coverage of a selection of the tests, or of another version than usual, would only mislead.
    selected = options.extra or options.python or os.environ.get("HOLDFAST_TESTS") == "sample"
    covered = chosen[0] if chosen and not selected else None
    asked_mode = os.environ.get("HOLDFAST_TESTS", "")
    results = []
    for python in chosen:
        mode = asked_mode or ("full" if python is chosen[0] else "sample")
        results.append(run_tests(python, mode, python is covered, options.workers, options.extra))
    well_covered = True
    if covered is not None:
        well_covered = report_coverage(covered)
    else:
        print("\nCoverage is measured only by a full run over all versions.")

    print_table(results, missing)
    passed = sum(result.passed for result in results)
    failed = sum(result.failed for result in results)
    skipped = sum(result.skipped for result in results)
    if not well_covered:
        print(f"Branch coverage of {', '.join(COVERED)} could not be shown to be {COVERAGE_FLOOR} %: see above")
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 0 if passed and not failed and well_covered else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(130) from None
