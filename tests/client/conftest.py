"""A server with jobs that are executed beside it, and clients of it."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator

import pytest
from far import PATIENCE, Served, app_on

from asking import serving
from holdfast.client import Client
from house import House


@pytest.fixture(autouse=True)
def _no_client_is_left() -> Iterator[None]:
    """What a test leaves open is closed. The client of a remote job lives as long as the job."""
    yield
    for client in [one for one in gc.get_objects() if type(one) is Client]:
        client.close().wait(PATIENCE)
    for thread in threading.enumerate():
        if thread.name == "holdfast-client":
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _the_log_of_the_server_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in this process. What it says of runs that fail would be among what a command shows."""
    runs = logging.getLogger("holdfast.runs")
    monkeypatch.setattr(runs, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(runs, "propagate", False)


@pytest.fixture
def served(house: House) -> Iterator[Served]:
    """With a worker."""
    app = app_on(house.url)
    with serving(app.asgi(), lifespan="on") as url, Client(url) as client:
        yield Served(app, url, client)


@pytest.fixture
def idle(house: House) -> Iterator[Served]:
    """Nobody executes."""
    app = app_on(house.url, worker=False)
    with serving(app.asgi(), lifespan="on") as url, Client(url) as client:
        yield Served(app, url, client)
