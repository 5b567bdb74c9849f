"""The tables of a database and how they came to be: a numbered chain for old ones, one file for new ones.

A new database gets `schema.sql`, the tables as they are today, and is marked as having been through the whole chain.
An older one goes through the numbers that it lacks. A test proves that both ways lead to the same tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

from pydantic_core import from_json

from ..basis.errors import SchemaError, StoreUnavailable

_FRESH = "schema.sql"

#: A number that no migration has: the database was moved to another place, or is being moved into. `holdfast_meta` says
#: which. Code that knows nothing of moves takes it for tables that are newer than itself, and keeps away as well.
AWAY = 1_000_000_000


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


def away(name: str, marks: Mapping[str, str]) -> SchemaError:
    """Why nobody may use this database: what `holdfast_meta` says of a move."""
    for key, text in (
        ("moved_to", "this database was moved to {url}: use that one. Here nothing is read or written any more."),
        ("moving_from", "a move from {url} into this database is not complete. Run that `holdfast move` again."),
    ):
        if key in marks:
            return SchemaError(f"{name}: {text.format(url=_url(marks[key]))}")
    return SchemaError(f"{name}: this database was moved, but nothing says to where.")


def not_the_owner(refused: BaseException) -> StoreUnavailable:
    """Why somebody can't make or change the tables, and who can."""
    return StoreUnavailable(
        f"{refused} Tables are made and changed by who owns them: run `holdfast migrate` as the owner of the tables."
    )


def _url(mark: str) -> str:
    try:
        return str(from_json(mark)["url"])
    except (ValueError, LookupError, TypeError):
        return "another place"


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
