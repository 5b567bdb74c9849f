"""The pytest plugin of Holdfast: the fixtures `holdfast_app` and `holdfast_clock`.

Not inside the package: pytest loads every plugin that is installed, and importing one from inside would import all of
Holdfast into test runs that never ask for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from holdfast import Holdfast
    from holdfast.testing import HandClock


@pytest.fixture
def holdfast_clock() -> HandClock:
    """The clock of `holdfast_app`: it stands still until `advance(seconds)`."""
    from holdfast.testing import HandClock

    return HandClock()


@pytest.fixture
def holdfast_app(holdfast_clock: HandClock) -> Iterator[Holdfast]:
    """An app on a temporary database that executes only when told to; `register` the jobs under test."""
    from holdfast.testing import app_for_tests

    app = app_for_tests(clock=holdfast_clock)
    yield app
    app.stop().wait()
