"""The tables of a database and how they came to be: a numbered chain for old ones, one file for new ones.

A new database gets `schema.sql`, the tables as they are today, and is marked as having been through the whole chain.
An older one goes through the numbers that it lacks. A test proves that both ways lead to the same tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

from ..basis.errors import SchemaError

_FRESH = "schema.sql"


class Migration(NamedTuple):
    """One step from an older schema to a newer one. Never edited after a release."""

    number: int
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of today (`fresh`), and the chain of migrations that leads to the same ones."""

    fresh: str
    migrations: tuple[Migration, ...]

    @property
    def newest(self) -> int:
        """The version that this code works with."""
        return self.migrations[-1].number

    def since(self, version: int) -> list[Migration]:
        """What a database of that version lacks."""
        return [migration for migration in self.migrations if migration.number > version]

    @classmethod
    def load(cls, dialect: str) -> Schema:
        """The schema that came with this package."""
        folder = resources.files(__package__ or __name__).joinpath("migrations", dialect)
        texts = {entry.name: entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(".sql")}
        fresh = texts.pop(_FRESH)
        chain = [Migration(int(name[:4]), name.removesuffix(".sql"), texts[name]) for name in sorted(texts)]
        return cls(fresh, tuple(chain))


def statements(text: str) -> Iterator[str]:
    """Single statements; `executescript` would commit the transaction that holds the migration together."""
    gathered = ""
    for line in text.splitlines(keepends=True):
        gathered += line
        if sqlite3.complete_statement(gathered):
            yield gathered
            gathered = ""
    if any(line.strip() and not line.lstrip().startswith("--") for line in gathered.splitlines()):
        # Left out silently, it would be missing in every database.
        raise SchemaError(f"A migration ends in the middle of a statement: {gathered.strip()!r}")
