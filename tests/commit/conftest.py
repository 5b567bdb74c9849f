"""A line in either placement, on a real SQLite file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from watched_line import Line


@pytest.fixture(params=["thread", "inline"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path / "line.db", inline=request.param == "inline")
    yield made
    made.close()


@pytest.fixture
def threaded(tmp_path: Path) -> Iterator[Line]:
    """For what only a thread of its own can show."""
    made = Line(tmp_path / "line.db", inline=False)
    yield made
    made.close()


@pytest.fixture
def inline(tmp_path: Path) -> Iterator[Line]:
    """For what only the caller's own thread can show."""
    made = Line(tmp_path / "line.db", inline=True)
    yield made
    made.close()
