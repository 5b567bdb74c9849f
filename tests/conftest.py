"""Fixtures of tests of whole apps. What they give is in `house`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.testing.clock import HandClock
from house import House, Stuck


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
