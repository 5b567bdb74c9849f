"""The pages of conformance are whole: every line of an ancestor is there once, and its tests exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "conformance"

#: How many claims each ancestor's own list makes in each section.
CLAIMS = {
    "durably": {
        "11.1": 8, "11.2": 7, "11.3": 15, "11.4": 17, "11.5": 8, "11.6": 7, "11.7": 41, "11.8": 17, "11.9": 26,
        "11.10": 10, "11.11": 3, "11.12": 25, "11.13": 22, "11.14": 20, "11.15": 10, "11.16": 5, "11.17": 20,
    },
    "durable-execution": {
        "11.1": 23, "11.2": 31, "11.3": 10, "11.4": 8, "11.5": 8, "11.6": 22, "11.7": 18, "11.8": 8, "11.9": 12,
        "11.10": 13, "11.11": 23, "11.12": 8, "11.13": 60, "11.14": 18, "11.15": 6, "11.16": 23, "12": 10,
    },
    "http": {"6.1": 17, "6.2": 15, "6.3": 9, "6.4": 3, "6.5": 11, "6.6": 22, "6.7": 2, "11.18": 60, "11.19": 25,
             "14": 14},
}  # fmt: skip
#: Sections about what is odd there, and what may be tripped over.
ODD = {"durably": ["12", "13"], "durable-execution": [], "http": ["12"]}
#: Tables that are no list of claims.
APART = {"durably": "With", "durable-execution": "Decided", "http": "–"}
SECTIONS = [(page, section) for page in CLAIMS for section in (*CLAIMS[page], *ODD[page])]
#: What the description of the second ancestor marks as odd (Q), and where its text and its code differ (D).
MARKED = [*(f"Q{n}" for n in range(1, 24)), *(f"D{n}" for n in range(1, 7))]
HTTP_QUIRKS = {1, 2, 3, 14, 15, 16, 25, 26}
HTTP_HAZARDS = {10, 11, 12}
#: Of all lines: more would mean that the page explains instead of testing.
MOST_REASONS = 0.10

_ROW = re.compile(r"^\| ([QHD]?\d[\d.]*|–) \| (.*) \|$")
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


TEXTS = {page: (PAGES / f"{page}.md").read_text("utf-8") for page in CLAIMS}
ALL = {page: list(lines_of(text)) for page, text in TEXTS.items()}
LINES = {page: [line for line in lines if line.section != APART[page]] for page, lines in ALL.items()}
LATER = [line for line in ALL["durably"] if line.section == "With"]
DECIDED = [line for line in ALL["durable-execution"] if line.section == "Decided"]
each_page = pytest.mark.parametrize("page", sorted(CLAIMS))


def expected(page: str, section: str) -> list[str]:
    if section in CLAIMS[page]:
        return [f"{section}.{n}" for n in range(1, CLAIMS[page][section] + 1)]
    if page == "http":
        return [f"Q{n}" for n in sorted(HTTP_QUIRKS)] + [f"H{n}" for n in sorted(HTTP_HAZARDS)]
    if section == "12":
        return [f"Q{n}" for n in range(1, 27) if n not in HTTP_QUIRKS]
    if section == "13":
        return [f"H{n}" for n in range(1, 16) if n not in HTTP_HAZARDS]
    raise LookupError(section)


@cache
def names_in(path: str) -> frozenset[str]:
    """Names of the test functions and methods of a file; none if there is no such file."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    found = ast.walk(ast.parse(file.read_text("utf-8")))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def missing(tests: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(path, test) for path, test in tests if not test.startswith("test_") or test not in names_in(path)]


@pytest.mark.parametrize(("page", "section"), SECTIONS)
def test_every_line_of_the_ancestor_is_there_once_and_in_order(page: str, section: str) -> None:
    assert [line.number for line in LINES[page] if line.section == section] == expected(page, section)


@each_page
def test_there_are_no_other_sections(page: str) -> None:
    assert {line.section for line in LINES[page]} == {*CLAIMS[page], *ODD[page]}


def test_what_is_about_http_only_is_listed_apart() -> None:
    assert [line.number for line in LATER] == [f"Q{n}" for n in sorted(HTTP_QUIRKS)] + [
        f"H{n}" for n in sorted(HTTP_HAZARDS)
    ]


@each_page
def test_every_line_has_a_test_or_a_reason(page: str) -> None:
    wrong = [line for line in LINES[page] if len(line.cells) != 3 or line.is_reason == bool(line.tests)]
    assert [line.number for line in wrong] == []


@each_page
def test_every_named_test_exists(page: str) -> None:
    """Also those that are named beside the lines."""
    assert missing(_TEST.findall(TEXTS[page])) == []


@each_page
def test_nothing_else_stands_beside_the_tests_of_a_line(page: str) -> None:
    assert [
        line.number for line in LINES[page] if not line.is_reason and _TEST.sub("", line.cells[-1]).replace("<br>", "")
    ] == []


@each_page
def test_few_lines_have_a_reason_in_place_of_a_test(page: str) -> None:
    reasons = [line for line in LINES[page] if line.is_reason]
    assert len(reasons) <= MOST_REASONS * len(LINES[page])
    assert [line.number for line in reasons if len(line.cells[-1]) < 30] == []


@each_page
def test_the_totals_at_the_top_are_right(page: str) -> None:
    (totals,) = _TOTALS.findall(TEXTS[page])
    reasons = sum(line.is_reason for line in LINES[page])
    assert tuple(map(int, totals)) == (len(LINES[page]), len(LINES[page]) - reasons, reasons)


def test_whatever_is_odd_in_the_second_ancestor_was_decided_once() -> None:
    assert [line.number for line in DECIDED if line.number != "–"] == MARKED


def test_what_was_decided_says_how_it_was_there_and_how_it_is_here_and_has_a_test() -> None:
    assert [line.cells for line in DECIDED if len(line.cells) != 3 or not all(line.cells) or not line.tests] == []
    beside = [_TEST.sub("", line.cells[-1]).replace("<br>", "") for line in DECIDED]
    assert [text for text in beside if text] == []


def test_a_line_that_is_missing_or_doubled_or_names_no_test_would_be_seen() -> None:
    """The reading of the page, tried on one with mistakes."""
    page = "## 11.6 x\n| 11.6.1 | a | – | `tests/no.py::test_it` |\n| 11.6.1 | a | – | reason: none |\n"
    first, second = lines_of(page)
    assert [first.number, second.number] != expected("durably", "11.6")
    assert first.tests == [("tests/no.py", "test_it")]
    assert missing(first.tests) == first.tests
    assert (first.is_reason, second.is_reason) == (False, True)
