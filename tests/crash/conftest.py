"""The field, and the table at the end of a campaign."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crash_places
import pytest
from crash_field import EVERY, Field, Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    if not hasattr(os, "fork"):
        pytest.skip("the crash campaign forks its victims: it needs Linux or macOS")
    one = Zygote()
    yield one
    one.close()


@pytest.fixture
def crash_field(zygote: Zygote, tmp_path: Path) -> Iterator[Field]:
    yield Field(zygote, tmp_path)
    crash_places.close()


COLUMNS = ("points", "cases", "kills", "unanswered", "paused", "takeovers", "rerun", "stale", "accepted", "violations")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    told = [
        (name, value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", [])
        if report.when == "call"
    ]
    rows = [(value[0], value[1:]) for name, value in told if name == "crash"]
    left_out = sum(value for name, value in told if name == "crash, left out")
    planted = [value for name, value in told if name == "planted"]
    if not rows and not planted:
        return
    write = terminalreporter.write_line
    terminalreporter.section("crash campaign")
    for found in planted:
        write(f"planted fault found: {found}")
    if not rows:
        return
    write(f"{'operation':<20}" + "".join(f"{name:>11}" for name in COLUMNS))
    for operation, numbers in rows:
        write(f"{operation:<20}" + "".join(f"{number:>11}" for number in numbers))
    total = [sum(column) for column in zip(*[numbers for _, numbers in rows], strict=True)]
    write(f"{'all':<20}" + "".join(f"{number:>11}" for number in total))
    write(
        "kills: SIGKILL before and after each statement. unanswered: COMMIT done, its answer lost. paused: stopped\n"
        "past the lease. rerun: step bodies that began again because their checkpoint was not yet saved, each within\n"
        "its allowance. stale: writes that paused processes attempted after losing their lease; accepted: those that\n"
        "counted."
    )
    if left_out:
        write(
            f"left out: {left_out} cases. Of the faults that are not about a commit every {EVERY}th was tried;\n"
            "HOLDFAST_CRASH=all tries all of them."
        )
