"""Named statements are found by name, and no two have one."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.store import queries


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("holdfast.store.queries.resources.files", lambda name: tmp_path)
    (tmp_path / "dialect").mkdir()
    return tmp_path / "dialect"


def test_statements_are_found_by_name_with_their_parts_filled_in(folder: Path) -> None:
    (folder / "a.sql").write_text(
        "-- About a.\n\n-- name: one\n-- Why.\nselect {columns};\n\n-- name: two\nselect '{}';\n"
    )
    (folder / "notes.txt").write_text("-- name: three\n")
    assert queries.load("dialect", columns="a, b") == {"one": "-- Why.\nselect a, b", "two": "select '{}'"}


def test_two_statements_of_one_name_are_refused(folder: Path) -> None:
    (folder / "a.sql").write_text("-- name: one\nselect 1;\n")
    (folder / "b.sql").write_text("-- name: one\nselect 2;\n")
    with pytest.raises(LookupError, match="two statements are called one"):
        queries.load("dialect")
