"""How a relational store says a statement: by its name, with the rows of a round as one value."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ..basis.clock import Clock
from .base import Store


class Said(Store):
    """Three ways of saying a statement. A dialect says how."""

    clock: Clock

    @abstractmethod
    def _ask(self, connection: Any, name: str, rows: Sequence[Any], *values: Any) -> list[Any]:
        """What the statement of this name gives for these rows (tuples, or single values) and values, as tuples."""

    @abstractmethod
    def _do(self, connection: Any, name: str, rows: Sequence[Any], *values: Any) -> int:
        """The same for one that gives nothing: how many rows it changed."""

    @abstractmethod
    def _find(self, connection: Any, name: str, *values: Any) -> list[Any]:
        """What a statement gives that takes no rows."""

    def _read_now(self) -> int | None:
        """The time by which a read judges; None: the statement knows it."""
        return self.clock.now()
