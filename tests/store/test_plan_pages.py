"""The pages of plans are of the statements that there are, and of indexes that there are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"

if not FOLDER.is_dir():
    pytest.skip("there is no benchmarks folder beside these tests: not a checkout", allow_module_level=True)

sys.path.insert(0, str(FOLDER))
try:
    import explain
finally:
    sys.path.remove(str(FOLDER))

pytestmark = pytest.mark.sampled("pages of the documentation are the same on every Python")

KINDS = {"postgres": "postgres", "mariadb": "mysql"}
_MADE_BY_POSTGRES = re.compile(r"holdfast_\w+_pkey")


def page(kind: str) -> str:
    text: str = explain.PAGES[kind].read_text(encoding="utf-8")
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_each_hot_statement_is_on_the_page_and_nothing_else(kind: str) -> None:
    named = re.findall(r"^## (.*)$", page(kind), re.MULTILINE)
    assert named == sorted(explain.statements(kind)), "run: python benchmarks/explain.py KIND --write"


@pytest.mark.parametrize("kind", KINDS)
def test_the_indexes_of_the_page_are_in_the_schema(kind: str) -> None:
    folder = ROOT / "src" / "holdfast" / "store" / "migrations" / KINDS[kind]
    made = set(re.findall(r"(?:index|key) (holdfast_\w+)", (folder / "schema.sql").read_text(encoding="utf-8")))
    cells = re.findall(r"^\| \[.*\) \| (holdfast_.*) \|$", page(kind), re.MULTILINE)
    used = {name.partition(" of ")[0] for cell in cells for name in cell.split(", ")} - {"PRIMARY"}
    used = {name for name in used if not _MADE_BY_POSTGRES.fullmatch(name)}
    assert len(used) > 10
    assert used <= made


def test_no_statement_of_postgres_reads_a_table_of_runs_or_of_what_they_have_as_a_whole() -> None:
    whole = re.findall(r"Seq Scan on (\w+)", page("postgres"))
    assert set(whole) <= {"holdfast_workers"}
