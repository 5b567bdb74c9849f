"""SQLite: one file, one writer at a time, no server.

The rows of a round are one JSON array of arrays: the first parameter of their statement.
"""

from __future__ import annotations

import re
import sqlite3
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic_core import to_json

from ..basis.errors import ValidationError
from ..model.run import RunFilter, RunRow, RunStatus
from . import queries
from .base import Old, SharedTransaction, Tx
from .movable import Movable
from .relational import BARE_COLUMNS, COLUMNS, Relational
from .sqlite_file import SqliteFile, lenient
from .sqlite_old import question
from .sqlite_place import FileConnection
from .sqlite_shared import share

#: Of a claim's candidate `c` that has a concurrency key: nobody goes before it whom this claim could take, and nobody
#: holds the key (nobody does, as long as rows are changed by nobody else).
_FIRST_OF_KEY = """(
    not exists (
      select 1 from holdfast_runs as o
      where o.concurrency_key = c.concurrency_key and o.turn = 0 and o.status = 'pending' and o.due = 1
        and o.concurrency_key is not null and (-o.priority, o.run_at, o.id) < (-c.priority, c.run_at, c.id)
        and o.queue in (select value ->> 0 from json_each(?1))
        and o.job_name in (select value ->> 1 from json_each(?1)))
    and not exists (
      select 1 from holdfast_runs as h
      where h.concurrency_key = c.concurrency_key and h.turn = 2 and h.status in ('pending', 'leased', 'waiting')
        and h.concurrency_key is not null and h.rowid <> c.rowid))"""

_SQL = queries.Queries("sqlite", columns=COLUMNS, bare_columns=BARE_COLUMNS, first_of_key=_FIRST_OF_KEY)

#: What a reader sees beside the columns of the run: progress, how many steps are saved, the next position.
_READ_COLUMNS = f"""{COLUMNS},
  (select progress from holdfast_progress where run_id = r.id),
  (select count(*) from holdfast_steps where run_id = r.id and status = 'completed'),
  coalesce((select max(position) + 1 from holdfast_steps where run_id = r.id), 0)"""

#: Word for word the condition of the index `holdfast_runs_errored`, else SQLite doesn't see that it may be used.
_ERRORED = "r.status in ('failed', 'timed_out', 'finalize_failed', 'cancelled')"

#: A NUL itself, not the six characters of its JSON escape inside a payload that is JSON too.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _rows(rows: Sequence[Any]) -> str:
    text = to_json(rows).decode()
    if "\\u0000" in text and _NUL.search(text):
        # SQLite's JSON functions end a text there, silently.
        raise ValidationError("a text with a NUL character can't be kept exactly; nothing was written.")
    return text


class SqliteStore(Relational, SqliteFile, Movable):
    """The store of `sqlite:///path` (a file), `sqlite://` (a temporary file) and `sqlite:///:memory:` (inline only)."""

    _driver_error = sqlite3.Error

    def share(self) -> SharedTransaction:
        return share(self)

    def _ask(self, connection: Any, name: str, rows: Sequence[Any], *values: Any) -> list[Any]:
        found: list[Any] = connection.execute(_SQL[name], (_rows(rows), *values)).fetchall()
        return found

    def _do(self, connection: Any, name: str, rows: Sequence[Any], *values: Any) -> int:
        changed: int = connection.execute(_SQL[name], (_rows(rows), *values)).rowcount
        return changed

    def _find(self, connection: Any, name: str, *values: Any) -> list[Any]:
        found: list[Any] = connection.execute(_SQL[name], values).fetchall()
        return found

    # -- moving house ------------------------------------------------------------------------------------------

    def hold_still(self, connection: FileConnection) -> Tx:
        tx = self._begin(connection)
        try:
            self._place.confirm(connection, writing=True)
        except BaseException:
            self.rollback(tx)
            raise
        return tx

    @property
    def whereabouts(self) -> str:
        return self.name if self.in_memory else f"sqlite:///{urllib.parse.quote(self.path)}"

    def _say(self, connection: sqlite3.Connection, text: str, values: Sequence[Any] = ()) -> list[Any]:
        return connection.execute(text, values).fetchall()

    def _stream(self, connection: sqlite3.Connection, text: str) -> Iterator[tuple[Any, ...]]:
        # What is not UTF-8 is refused where it can be named: when it is written again.
        connection.text_factory = lenient
        return iter(connection.execute(text))

    # -- listing -----------------------------------------------------------------------------------------------

    def find_runs(self, connection: sqlite3.Connection, filter: RunFilter) -> list[RunRow]:
        # Newest first is the order of the ids: the walk starts where it meets the fewest runs that are not wanted.
        text, walked = f"select {_READ_COLUMNS} from holdfast_runs as r where true", "r.id"
        labels = filter.labels
        values: list[Any] = []
        if labels:
            text = f"""select {_READ_COLUMNS} from holdfast_labels as l cross join holdfast_runs as r on r.id = l.run_id
              where l.key = ? and l.value = ?"""
            walked, values, labels = "l.run_id", [*labels[0]], labels[1:]
        elif filter.statuses and not filter.ids and RunStatus.errored().issuperset(filter.statuses):
            text = f"select {_READ_COLUMNS} from holdfast_runs as r indexed by holdfast_runs_errored where {_ERRORED}"
        for condition, wanted in (
            ("r.id in (select value from json_each(?))", filter.ids),
            ("r.job_name in (select value from json_each(?))", filter.jobs),
            ("r.status in (select value from json_each(?))", filter.statuses),
        ):
            if wanted:
                text += f" and {condition}"
                values.append(_rows(wanted))
        for key, value in labels:
            text += " and exists (select 1 from holdfast_labels where key = ? and value = ? and run_id = r.id)"
            values += [key, value]
        if filter.parent is not None:
            text += " and r.parent_id = ?"
            values.append(filter.parent)
        if filter.awaited_as is not None:
            text += " and r.awaited_as = ?"
            values.append(filter.awaited_as)
        if filter.root is not None:
            text += " and r.root_id = ?"
            values.append(filter.root)
        if filter.before is not None:
            text += f" and {walked} < ?"
            values.append(filter.before)
        text += f" order by {walked} desc limit ? offset ?"
        values += [-1 if filter.limit is None else filter.limit, filter.offset]
        return [RunRow(*row) for row in connection.execute(text, values).fetchall()]

    def _old(self, connection: sqlite3.Connection, old: Old) -> Iterable[tuple[str, int]]:
        text, values = question(old, _rows)
        return connection.execute(text, values)

    def change_mark(self, connection: sqlite3.Connection) -> int | None:
        mark: int = connection.execute("pragma data_version").fetchone()[0]
        return mark
