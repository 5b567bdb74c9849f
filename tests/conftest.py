"""Fixtures of tests of whole apps. What they give is in `house`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.testing.clock import HandClock
from house import House, Stuck
from sampling import (  # noqa: F401 - hooks of pytest
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_protocol,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "house.db")


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    stuck = Stuck()
    yield stuck
    stuck.let_go()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()
