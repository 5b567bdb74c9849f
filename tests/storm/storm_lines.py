"""What goes between a process of the storm and a database server: the names of `crash_lines`, struck as in a storm."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from typing import Any, TypeVar

import crash_lines
from storm_wire import Fault, Storming
from storm_world import Line

import servers

T = TypeVar("T")

_plainly = threading.local()
"""`.here`: this thread asks past the wire."""


class StormLine(Storming, crash_lines.Line):
    """The way to a server."""

    def asked(self, connection: Any, sql: str, ask: Callable[[], T]) -> T:
        return ask() if getattr(_plainly, "here", False) else super().asked(connection, sql, ask)

    def one_asked(self, connection: Any, name: str, ask: Callable[[], T]) -> T:
        return self.through(name, ask, lambda: self.lose(connection))

    def has_session(self, number: int) -> None:
        """Nobody waits here until they are gone."""


class OnPostgres(StormLine, crash_lines.PostgresLine):
    def __init__(self, world: Line, faults: Collection[Fault], url: str) -> None:
        from holdfast.store import postgres

        stands_for: Any = world
        super().__init__(stands_for, "storm", None, url)
        # By way of the store: there a planted fault may have changed them.
        self._names = {text: name for name, text in postgres.statements(self.schema).items()}
        self.storm(faults)

    def look(self, connection: Any, sql: str, values: dict[str, Any]) -> list[Any]:
        import psycopg

        with psycopg.Cursor(connection.pg) as cursor:
            self._execute(cursor, _named(sql), values, prepare=False)
            return list(cursor.fetchall())


class OnMariadb(StormLine, crash_lines.MariadbLine):
    def __init__(self, world: Line, faults: Collection[Fault], url: str) -> None:
        stands_for: Any = world
        super().__init__(stands_for, "storm", None, url)
        self.storm(faults)

    def look(self, connection: Any, sql: str, values: dict[str, Any]) -> list[Any]:
        cursor = connection.raw.cursor()
        self._execute(cursor, _named(sql), values)
        return list(cursor.fetchall())


def _named(sql: str) -> str:
    """`:name ` is how SQLite is told a value."""
    return re.sub(r":(\w+) ", r"%(\1)s ", sql)


def wire(world: Line, faults: Collection[Fault], url: str) -> StormLine:
    return OnMariadb(world, faults, url) if url.startswith("mysql") else OnPostgres(world, faults, url)


def looker(url: str, sql: str, away: tuple[type[Exception], ...]) -> Callable[[str, str], bool | None]:
    """Asks over a connection of its own, past the wire; None if the server is away."""

    def saved(run: str, step: str) -> bool | None:
        _plainly.here = True
        try:
            with suppress(*away), closing(servers.connect(url)) as connection:
                cursor = connection.cursor()
                cursor.execute(sql.replace("?", "%s"), (run, step))
                return bool(cursor.fetchone()[0])
        finally:
            _plainly.here = False
        return None

    return saved


assert os.environ.get("HOLDFAST_TEST_ON") in servers.KINDS, "set it before: what is imported here chooses by it"
