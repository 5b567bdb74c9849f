"""Fixtures of tests of whole apps. What they give is in `house`, and on which database in `databases`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import databases
import sampling
from holdfast.testing.clock import HandClock
from house import House, Stuck


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(databases, "databases")
    config.pluginmanager.register(sampling, "sampling")


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
