"""One app with its worker per file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bed import Bed


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    bed = Bed(tmp_path_factory.mktemp("bed") / "app.db")
    with bed.app:
        yield bed
    if bed.connection is not None:
        bed.connection.close()
