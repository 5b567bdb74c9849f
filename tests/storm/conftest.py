"""The storm shares its checker, its wire and the world's log with the crash campaign."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
for folder in (HERE.parent / "mutants", HERE.parent / "crash", HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    told = [
        value
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == "storm"
    ]
    if told:
        terminalreporter.section("storm")
        for words in told:
            terminalreporter.write_line(words)
