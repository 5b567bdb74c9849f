"""Fixtures of the browser's tests. What they give is in `browsing`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import browsing
import pytest
from browsing import Gates, Process, Serve, Visitor

from house import House

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if lacks := browsing.missing():
        why = f"NOT TESTED: in a browser. {', '.join(lacks)} can't be had here; see tools/browser.py"
        if os.environ.get("HOLDFAST_TEST_REQUIRE") == "all":
            pytest.fail(why)
        pytest.skip(why)
    return browsing.bundle(tmp_path_factory.mktemp("page"))


# Not for longer: its driver has an event loop in this thread, in which other tests want theirs.
@pytest.fixture(scope="module")
def browser(script: Path) -> Iterator[Browser]:
    with browsing.browsing() as browser:
        yield browser


@pytest.fixture
def gates() -> Iterator[Gates]:
    gates = Gates()
    yield gates
    gates.close()


@pytest.fixture
def serve(house: House, script: Path, gates: Gates) -> Iterator[Serve]:
    """Starts `holdfast serve`, or another command, on the house's database."""
    with ExitStack() as running:

        def serve(*command: str, database: str = house.url) -> Process:
            command = command or ("serve", "page_server:web", "--port", "0")
            process = Process(*command, database=database, gates=gates, script=script)
            running.callback(process.stop)
            return process

        yield serve
        gates.open()


@pytest.fixture
def visitor(browser: Browser, serve: Serve) -> Iterator[Visitor]:
    visitor = Visitor(browser)
    yield visitor
    visitor.context.close()
    assert visitor.complaints() == [], "the browser complained"
