"""Leaves out, on a Python that is not the lowest one, what comes out the same on every Python.

`tools/test.py` sets HOLDFAST_TESTS=full for the lowest version, HOLDFAST_TESTS=sample for the highest, and
HOLDFAST_TESTS=few for those in between, which also leave out seven eighths of everything else; unset is full. A test
says by `@pytest.mark.sampled("why", every=8)` that it doesn't depend on the version: every eighth one
stays in a sample (each version keeps other ones), and none without `every`. Of a large family, one test with many
parameters, an eighth stays without being asked: the same one each time, by a hash of the id, and another one on each
version. Only the values themselves (tests/basis) are tried in full on each. What was left out is counted and printed
with its reason.

The processes that such a test starts are not measured by coverage: that would cost half as much again, and what
nothing but a page or a server walks through is not tested. The same goes for whole folders of tests that only come
through what others test more closely (`UNMEASURED`), and there for the test itself, too.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

#: On a server, which only the lowest version uses, less is left out: what `databases` says.
MODE = os.environ.get("HOLDFAST_TESTS", "full")
SAMPLE = MODE != "full" and os.environ.get("HOLDFAST_TEST_ON", "") in ("", "sqlite")
FAMILY = 40
"""So many parameters make a large family."""
EIGHTH = 8
WHOLE = ("tests/basis/",)
"""What differs from Python to Python: its families are tried in full."""
UNMEASURED = ("tests/browser/", "tests/docs/", "tests/mutants/", "tests/simulation/")
BETWEEN = "a Python between the lowest and the highest: an eighth stays, by a hash of the test's id"
A_FAMILY = f"families of {FAMILY} and more: an eighth stays, by a hash of the test's id"
REPORT_VARIABLE = "HOLDFAST_TESTS_LEFT_OUT"
_LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    if MODE not in ("full", "sample", "few"):
        raise pytest.UsageError(f"HOLDFAST_TESTS={MODE}: give full, sample or few")
    config.stash[_LEFT_OUT] = Counter()


def unmeasured() -> dict[str, str]:
    """Our environment, for a process that coverage is not to follow into."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS_")}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if item.get_closest_marker("sampled") is None and not item.nodeid.startswith(UNMEASURED):
        return (yield)
    measured = {name: os.environ.pop(name) for name in set(os.environ) - set(unmeasured())}
    try:
        return (yield)
    finally:
        os.environ.update(measured)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(UNMEASURED):
            item.add_marker("no_cover")
    if not SAMPLE:
        return
    seen: Counter[tuple[str, str]] = Counter()
    families = Counter(_family(item) for item in items)
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is None:
            is_large = families[_family(item)] >= FAMILY
            why = A_FAMILY if is_large else BETWEEN
            stays = item.nodeid.startswith(WHOLE) or _is_in_the_eighth(item) or not (is_large or MODE == "few")
        else:
            why = marker.args[0]
            every: int | None = marker.kwargs.get("every")
            place = (item.nodeid.split("::")[0], why)
            stays = every is not None and seen[place] % every == sys.version_info.minor % every
            seen[place] += 1
        if stays:
            kept.append(item)
        else:
            left_out.append(item)
            config.stash[_LEFT_OUT][why] += 1
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


def _family(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _is_in_the_eighth(item: pytest.Item) -> bool:
    return zlib.crc32(item.nodeid.encode()) % EIGHTH == sys.version_info.minor % EIGHTH


def pytest_sessionfinish(session: pytest.Session) -> None:
    # A worker of xdist hands its count to the process that prints; each worker has collected the same tests.
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        left_out = session.config.stash[_LEFT_OUT]
        output["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    told: dict[str, int] = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash[_LEFT_OUT].update(Counter(told) - node.config.stash[_LEFT_OUT])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash[_LEFT_OUT]
    if left_out:
        version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
        terminalreporter.section(f"{left_out.total()} left out on {version}: the same on every Python")
        for why, count in left_out.most_common():
            terminalreporter.write_line(f"{count:>6}  {why}")
    if report := os.environ.get(REPORT_VARIABLE):
        Path(report).write_text(json.dumps(left_out), encoding="utf-8")
