"""What the tests of the worker and its surroundings share: a store that can be watched and spoiled, and patience."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import databases
from holdfast.basis.errors import StoreUnavailable
from holdfast.store.base import Claimed, ClaimOrder, Tx
from holdfast.testing.clock import HandClock

LONG = 20.0
"""Seconds after which a test has failed. Nothing ever waits that long."""


def until(condition: Callable[[], object], what: str = "it", *, clock: HandClock | None = None) -> None:
    """Return once the condition holds: for what nobody announces, such as another thread being asleep.

    With a clock its time goes on meanwhile.
    """
    pause = threading.Event()
    for _ in range(round(LONG / 0.002)):
        if condition():
            return
        if clock is not None:
            clock.advance(0.5)
        pause.wait(0.002)
    raise AssertionError(f"{what} never came to be")


def url(tmp_path: Path) -> str:
    return databases.url(tmp_path / "app.db")


class Spoiled(databases.StoreHere):
    """Counts claims, and fails where it is told to."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.claims = 0
        self.failing_claims = 0
        self.lost_commits = 0
        """So many commits of claims that got something happen, and their answer is lost."""
        self.dead_commits = 0
        """So many commits after those do not happen."""
        self._got = False

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        self.claims += 1
        if self.failing_claims:
            self.failing_claims -= 1
            raise StoreUnavailable("the disk is on fire")
        got = super().claim(tx, orders)
        self._got = any(claimed.runs for claimed in got)
        return got

    def commit(self, tx: Tx) -> None:
        if self._got and self.lost_commits:
            self.lost_commits -= 1
            super().commit(tx)
            raise databases.driver.OperationalError("no answer")
        if tx.replay and self.dead_commits:
            self.dead_commits -= 1
            raise databases.driver.OperationalError("no answer")
        super().commit(tx)


def rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Look at the database, or prepare it, beside the engine."""
    return databases.rows(path, sql, *values)
