"""Runs the tests on every promised Python that is installed, and adds up.

    python3 tools/test.py [--python 3.12] [--on postgres] [--workers N] [-- PYTEST ARGUMENTS]

The lowest version runs everything, and also measures branch coverage of the floors that must not be wrong. The
highest leaves out what comes out the same on every Python: each test marked `sampled`, see tests/sampling.py; those in
between run a few. How many were left out is printed with the reasons, and counted in the table. HOLDFAST_TESTS=full (or
sample, or few) in the environment is for all versions. A version that is not installed is named and counted.

PostgreSQL and MariaDB are started once for all of it (and installed before, where we may: see tools/servers.py). All
versions test both stores; the lowest also runs the tests of whole apps on each, under the same names as on SQLite,
but for most of what comes out the same on every database (`elsewhere`).
A server that can't be had is named and counted; with HOLDFAST_TEST_REQUIRE=all that is a failure. So it is with the
browser, for the tests of the React client: see tools/browser.py. They are run on the lowest version only.

With HOLDFAST_TEST_UNSTEADY=3 in the environment tests that fail are run once more, alone, if they are no more than
three in all runs together. Those that pass then are named as UNSTEADY, with all that they printed when they failed:
each is a fault, of the test or of what it tests, that somebody has to look for. They are not counted as failures.

The last line is always `N passed, N failed, N skipped` over all runs; an error outside a test counts as a failure.
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
from typing import Dict, Iterable, List, NamedTuple, Tuple

import environment
from environment import Python

import browser
import servers

DATABASES = {"sqlite": "SQLite", **servers.NAMES}
FILES = {"postgres": "postgres", "mariadb": "mysql"}
COVERED = ["rules", "store", "commit", "engine"]
COVERAGE_FLOOR = 95
#: Seconds for one test. One that takes longer shows what its threads are doing, and fails alone: its process ends, and
#: another one goes on with the rest. The slowest takes half a minute.
TEST_LIMIT = 240
#: Files of tests that are named for how long they took.
SLOWEST = 12
#: Seconds for one run of pytest, for whatever else may hang.
RUN_LIMIT = 3600


class Result(NamedTuple):
    """What one run of pytest came to."""

    name: str
    database: str
    passed: int
    failed: int
    skipped: int
    left_out: int
    seconds: float
    unsteady: List[str]


def _workers() -> int:
    """One more than there are cores: much of the time a test waits for other processes."""
    return _cores() + 1


def _cores() -> int:
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


def print_slowest(path: Path) -> None:
    """The files that took longest, of all workers together: where to look when all of it takes too long."""
    took: Dict[str, float] = {}
    try:
        for case in ElementTree.parse(str(path)).getroot().iter("testcase"):
            name = case.get("classname", "")
            took[name] = took.get(name, 0.0) + float(case.get("time", 0))
    except (OSError, ElementTree.ParseError):
        return
    print(f"{sum(took.values()):.0f} s of tests, and most of it in:")
    for name, seconds in sorted(took.items(), key=lambda one: -one[1])[:SLOWEST]:
        print(f"{seconds:>7.0f} s  {name.replace('.', '/')}", flush=True)


def _failed_tests(cache: Path) -> List[str]:
    """The names of those that failed; nothing if pytest did not live to say so."""
    try:
        return sorted(json.loads((cache / "v" / "cache" / "lastfailed").read_text()))
    except (OSError, ValueError):
        return []


def run_tests(
    python: Python, database: str, mode: str, covered: bool, workers: int, extra: List[str], bear: int
) -> Result:
    """The suite on one Python and database.

    `full`, or without most of what is the same on every Python (`sample`), or without most of all (`few`).
    Of tests that fail, `bear` at most are run again.
    """
    print(f"\n━━ Python {python.name}.{python.patch} on {DATABASES[database]} ━━", flush=True)
    venv = environment.prepare_dev(python)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        report, sampled, elsewhere = (Path(folder, name) for name in ("report.xml", "sampled.json", "elsewhere.json"))
        variables = {
            "HOLDFAST_TESTS": mode,
            "HOLDFAST_TESTS_LEFT_OUT": str(sampled),
            "HOLDFAST_TESTS_ELSEWHERE": str(elsewhere),
            "HOLDFAST_TEST_ON": database,
        }
        cache = Path(folder, "cache")
        arguments = ["python", "-m", "pytest", "-q", "-o", f"cache_dir={cache}"]
        if workers > 0:  # one, too, is a process of its own, which can be ended
            arguments += ["-o", f"faulthandler_timeout={TEST_LIMIT}", "-o", "faulthandler_exit_on_timeout=true"]
        alone = list(arguments)
        arguments.append(f"--junitxml={report}")
        if workers > 0:
            arguments += ["-n", str(workers), "--dist=worksteal"]
        if covered:
            measured = ["--cov=holdfast", "--cov-branch", "--cov-report="]
            arguments += measured + (["--cov-append"] if database != "sqlite" else [])
            alone += [*measured, "--cov-append"]
        code = environment.run_in(venv, arguments + extra, RUN_LIMIT, **variables)
        if code == 130:
            raise KeyboardInterrupt
        passed, failed, skipped = read_report(report, code)
        print_slowest(report)
        unsteady = _failed_tests(cache)
        # One test may have failed twice, when it began and when it ended.
        if code != 0 and 0 < len(unsteady) <= min(bear, failed):
            print(f"\n── once more, alone: {', '.join(unsteady)} ──", flush=True)
            # What was left out has been counted.
            again = {name: variables[name] for name in ("HOLDFAST_TESTS", "HOLDFAST_TEST_ON")}
            if environment.run_in(venv, [*alone, "--last-failed", *extra], RUN_LIMIT, **again) == 0:
                passed, failed = passed + failed, 0
        unsteady = [] if failed else unsteady
        left_out = sum(json.loads(sampled.read_text()).values()) if sampled.exists() else 0
        if elsewhere.exists():
            left_out += sum(json.loads(elsewhere.read_text())["left_out"].values())
    seconds = time.monotonic() - started
    return Result(python.name, database, passed, failed, skipped, left_out, seconds, unsteady)


def _mode(python: Python, database: str, chosen: List[Python]) -> str:
    """How much to run on this Python, among those that are chosen."""
    if python is chosen[0]:
        return "full" if database == "sqlite" else "sample"
    return "sample" if python is chosen[-1] else "few"


def report_coverage(python: Python, without: Iterable[str]) -> bool:
    """Print the branch coverage of the covered floors; False when it is below the floor.

    What is only for a database that could not be had does not count.
    """
    print(f"\n━━ Branch coverage of {', '.join(COVERED)} (at least {COVERAGE_FLOOR} %) ━━", flush=True)
    include = ",".join(f"*/holdfast/{name}/*" for name in COVERED)
    arguments = [
        "python",
        "-m",
        "coverage",
        "report",
        f"--include={include}",
        "--omit=" + ",".join(f"*/store/*{FILES[kind]}*" for kind in without),
        "--skip-covered",
        "--skip-empty",
    ]
    venv = environment.ROOT / f".venv-{python.name}"
    return environment.run_in(venv, [*arguments, f"--fail-under={COVERAGE_FLOOR}", "--precision=1"]) == 0


def print_table(
    results: List[Result], missing: List[str], troubles: Dict[str, str], without_browser: List[str]
) -> None:
    print("\nPython  database    passed  failed  skipped  left out  seconds")
    for result in results:
        print(
            f"{result.name:<8}{DATABASES[result.database]:<12}{result.passed:>6}{result.failed:>8}{result.skipped:>9}"
            f"{result.left_out:>10}{result.seconds:>9.1f}",
        )
    if any(result.left_out for result in results):
        print("left out: the same on every Python or database, or about another database: see the reasons above;")
        print("          HOLDFAST_TESTS=full leaves out only the last")
    for name in missing:
        print(f"{name:<8}  NOT TESTED: Python {name} is not installed")
    for kind, trouble in troubles.items():
        print(f"{DATABASES[kind]:<10}NOT TESTED: {trouble}")
    for what in without_browser:
        print(f"{'browser':<10}NOT TESTED: there is no {what}")
    for result in results:
        for name in result.unsteady:
            where = f"Python {result.name} on {DATABASES[result.database]}"
            print(f"UNSTEADY: {name} failed on {where}, and passed alone: see above, and find out why")
    print(f"\n{len({result.name for result in results})} Python versions tested, {len(missing)} not tested", flush=True)
    print(f"{len(DATABASES) - len(troubles)} databases to be had, {len(troubles)} not tested", flush=True)
    print(f"{0 if without_browser else 1} browser to be had, {1 if without_browser else 0} not tested", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests on every installed Python.")
    parser.add_argument("--python", default="", help="only this version, e.g. 3.12")
    parser.add_argument("--on", default="", help="only this database: sqlite, postgres or mariadb")
    parser.add_argument(
        "--workers", type=int, default=_workers(), help="parallel test processes; 0: none, for a debugger"
    )
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
    if options.on not in ("", *DATABASES):
        environment.fail(f"ON={options.on}: give one of {', '.join(DATABASES)}.")

    venv = environment.prepare_dev(chosen[0] if chosen else environment.choose(pythons))
    servers.prepare(venv)
    all_in_full = os.environ.get("HOLDFAST_TESTS") == "full"
    in_full = [environment.prepare_dev(python) for python in chosen] if all_in_full else [venv]
    if options.on not in ("", "sqlite"):
        in_full = []
    without_browser = sorted({what for each in in_full for what in browser.prepare(each)})
    for what in without_browser:
        print(f"NOT TESTED: in a browser. There is no {what}", flush=True)
    running = servers.Running(venv)
    try:
        os.environ.update(running.addresses)
        troubles = running.troubles
        for trouble in troubles.values():
            print(f"NOT TESTED: {trouble}", flush=True)

        # Coverage of a selection of the tests, or of another version than usual, would only mislead.
        asked_mode = os.environ.get("HOLDFAST_TESTS", "")
        selected = options.extra or options.python or options.on or asked_mode in ("sample", "few")
        covered = chosen[0] if chosen and not selected else None
        runs = [(python, "sqlite") for python in chosen]
        runs[1:1] = [(chosen[0], kind) for kind in servers.KINDS if chosen and kind not in troubles]
        results: List[Result] = []
        allowed = int(os.environ.get("HOLDFAST_TEST_UNSTEADY", "0"))
        for python, database in runs:
            if options.on in ("", database):
                mode = asked_mode or _mode(python, database, chosen)
                bear = allowed - sum(len(result.unsteady) for result in results)
                results.append(
                    run_tests(python, database, mode, python is covered, options.workers, options.extra, bear)
                )
    finally:
        running.stop()
    well_covered = True
    if covered is not None:
        well_covered = report_coverage(covered, troubles)
    else:
        print("\nCoverage is measured only by a full run over all versions.")

    print_table(results, missing, troubles, without_browser)
    passed = sum(result.passed for result in results)
    failed = sum(result.failed for result in results)
    skipped = sum(result.skipped for result in results)
    if not well_covered:
        print(f"Branch coverage of {', '.join(COVERED)} could not be shown to be {COVERAGE_FLOOR} %: see above")
    lacking = bool(troubles or without_browser) and os.environ.get("HOLDFAST_TEST_REQUIRE") == "all"
    if lacking:
        print(
            f"HOLDFAST_TEST_REQUIRE=all, and {len(troubles)} databases could not be had, {len(without_browser)} "
            "things for the browser: see above"
        )
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 0 if passed and not failed and well_covered and not lacking else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(130) from None
