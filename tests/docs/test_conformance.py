"""The conformance page is whole: every line of the ancestor is there once, and its tests exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "conformance" / "durably.md"

#: How many claims the ancestor's own list makes in each section.
CLAIMS = {
    "11.1": 8, "11.2": 7, "11.3": 15, "11.4": 17, "11.5": 8, "11.6": 7, "11.7": 41, "11.8": 17, "11.9": 26,
    "11.10": 10, "11.11": 3, "11.12": 25, "11.13": 22, "11.14": 20, "11.15": 10, "11.16": 5, "11.17": 20,
}  # fmt: skip
HTTP_QUIRKS = {1, 2, 3, 14, 15, 16, 25, 26}
HTTP_HAZARDS = {10, 11, 12}
#: Of all lines: more would mean that the page explains instead of testing.
MOST_REASONS = 0.10

_ROW = re.compile(r"^\| ([QH]?\d[\d.]*) \| (.*) \|$")
_TEST = re.compile(r"`([\w/.]+\.py)::(\w+)`")
_TOTALS = re.compile(r"\*\*(\d+) lines: (\d+) with tests, (\d+) with a reason\.\*\*")


class Line(NamedTuple):
    section: str
    number: str
    cells: list[str]

    @property
    def is_reason(self) -> bool:
        return self.cells[-1].startswith("reason: ")

    @property
    def tests(self) -> list[tuple[str, str]]:
        return _TEST.findall(self.cells[-1])


def lines_of(text: str) -> Iterator[Line]:
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line[3:].split()[0]
        elif row := _ROW.match(line):
            yield Line(section, row[1], [cell.strip() for cell in row[2].split(" | ")])


ALL = list(lines_of(PAGE.read_text("utf-8")))
LINES = [line for line in ALL if line.section != "With"]
LATER = [line for line in ALL if line.section == "With"]


def expected(section: str) -> list[str]:
    if section == "12":
        return [f"Q{n}" for n in range(1, 27) if n not in HTTP_QUIRKS]
    if section == "13":
        return [f"H{n}" for n in range(1, 16) if n not in HTTP_HAZARDS]
    return [f"{section}.{n}" for n in range(1, CLAIMS[section] + 1)]


@cache
def names_in(path: str) -> frozenset[str]:
    """Names of the test functions and methods of a file; none if there is no such file."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    found = ast.walk(ast.parse(file.read_text("utf-8")))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("section", [*CLAIMS, "12", "13"])
def test_every_line_of_the_ancestor_is_there_once_and_in_order(section: str) -> None:
    assert [line.number for line in LINES if line.section == section] == expected(section)


def test_there_are_no_other_sections() -> None:
    assert {line.section for line in LINES} == {*CLAIMS, "12", "13"}


def test_what_is_about_http_only_is_listed_apart() -> None:
    assert [line.number for line in LATER] == [f"Q{n}" for n in sorted(HTTP_QUIRKS)] + [
        f"H{n}" for n in sorted(HTTP_HAZARDS)
    ]


def test_every_line_has_a_test_or_a_reason() -> None:
    assert [line.number for line in LINES if len(line.cells) != 3 or line.is_reason == bool(line.tests)] == []


def test_every_named_test_exists() -> None:
    named = [(line.number, path, test) for line in LINES for path, test in line.tests]
    assert [one for one in named if not one[2].startswith("test_") or one[2] not in names_in(one[1])] == []


def test_nothing_else_stands_beside_the_tests_of_a_line() -> None:
    assert [
        line.number for line in LINES if not line.is_reason and _TEST.sub("", line.cells[-1]).replace("<br>", "")
    ] == []


def test_few_lines_have_a_reason_in_place_of_a_test() -> None:
    reasons = [line for line in LINES if line.is_reason]
    assert len(reasons) <= MOST_REASONS * len(LINES)
    assert [line.number for line in reasons if len(line.cells[-1]) < 30] == []


def test_the_totals_at_the_top_are_right() -> None:
    (totals,) = _TOTALS.findall(PAGE.read_text("utf-8"))
    reasons = sum(line.is_reason for line in LINES)
    assert tuple(map(int, totals)) == (len(LINES), len(LINES) - reasons, reasons)


def test_a_line_that_is_missing_or_doubled_or_names_no_test_would_be_seen() -> None:
    """The reading of the page, tried on one with mistakes."""
    page = "## 11.6 x\n| 11.6.1 | a | – | `tests/no.py::test_it` |\n| 11.6.1 | a | – | reason: none |\n"
    first, second = lines_of(page)
    assert [first.number, second.number] != expected("11.6")
    assert first.tests == [("tests/no.py", "test_it")]
    assert "test_it" not in names_in("tests/no.py")
    assert (first.is_reason, second.is_reason) == (False, True)
