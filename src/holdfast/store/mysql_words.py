"""What is said to MariaDB: the named statements, taken apart where a value goes, and texts that hold values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from pydantic_core import to_json

from ..basis.errors import ValidationError
from . import queries
from .relational import COLUMNS

Parts: TypeAlias = Sequence[str]
"""A statement: texts, and between them the numbers of values."""

#: A NUL itself, not the six characters of its JSON escape inside a payload that is JSON too.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

#: A text out of JSON, whatever the database is set up for.
_TEXT = "longtext character set utf8mb4 collate utf8mb4_nopad_bin"

#: Microseconds since 1970, by the database, at the beginning of the statement. Sessions are in UTC.
NOW = "timestampdiff(microsecond, '1970-01-01', utc_timestamp(6))"

_IDS = f"json_table($1, '$[*]' columns (id {_TEXT} path '$')) as e"
_RUN = "straight_join holdfast_runs as r force index (primary) on r.id = e.id"
_HELD = """straight_join holdfast_runs as r force index (primary)
  on r.id = e.id and r.generation = e.generation and r.lease_owner = e.owner"""
_LEASES = f"""json_table($1, '$[*]' columns (
  at for ordinality, id {_TEXT} path '$[0]', generation bigint path '$[1]', owner {_TEXT} path '$[2]')) as e"""
_STEPS = f"""json_table($1, '$[*]' columns (
  owner {_TEXT} path '$[0]', run_id {_TEXT} path '$[1]', name {_TEXT} path '$[2]', occurrence bigint path '$[3]',
  position bigint path '$[4]', status {_TEXT} path '$[5]', attempt bigint path '$[6]', generation bigint path '$[7]',
  fingerprint {_TEXT} path '$[8]', output {_TEXT} path '$[9]', error {_TEXT} path '$[10]',
  started_at bigint path '$[11]', completed_at bigint path '$[12]', number bigint path '$[13]')) as e"""

_WAITS = f"""json_table($1, '$[*]' columns (
  at for ordinality, owner {_TEXT} path '$[0]', id {_TEXT} path '$[1]', generation bigint path '$[2]',
  name {_TEXT} path '$[3]', kind {_TEXT} path '$[4]', until bigint path '$[5]', delay bigint path '$[6]',
  `signal` {_TEXT} path '$[7]')) as e"""
_SIGNALS = f"""json_table($1, '$[*]' columns (
  at for ordinality, id {_TEXT} path '$[0]', run_id {_TEXT} path '$[1]', name {_TEXT} path '$[2]',
  value {_TEXT} path '$[3]', `key` {_TEXT} path '$[4]')) as e"""
_TAKES = f"""json_table($1, '$[*]' columns (
  at for ordinality, owner {_TEXT} path '$[0]', id {_TEXT} path '$[1]', generation bigint path '$[2]',
  name {_TEXT} path '$[3]', `signal` {_TEXT} path '$[4]')) as e"""

#: Values are `$1` and so on, as in PostgreSQL: a statement may say one twice.
_VALUE = re.compile(r"\$(\d+)")

#: Of one job in one queue, in claim order: the number of both among those that are wanted, and whether with a key.
FRONT = """(select p.id, {key}, p.priority, p.run_at, {number}
  from holdfast_runs as p force index (holdfast_runs_claimable)
  where p.claimable = {kind} and p.queue = $1 and p.job_name = $2
  order by p.priority desc, p.run_at, p.id limit {many})"""
_LOCKED_FRONT = f"""(select {COLUMNS}
  from holdfast_runs as r force index (holdfast_runs_claimable)
  where r.claimable = 1 and r.queue = $1 and r.job_name = $2
  order by r.priority desc, r.run_at, r.id limit $3
  for update skip locked)"""


def split(text: str) -> Parts:
    """A statement, taken apart where a value goes; without its comments."""
    lines = [line.partition("  -- ")[0] for line in text.splitlines() if not line.lstrip().startswith("--")]
    return _VALUE.split("\n".join(lines))


def quoted(value: Any) -> str:
    """A value as it is written in a statement: a text, a whole number, yes or no, or nothing."""
    if isinstance(value, str):
        # Sessions are strict, in UTF-8, and know the backslash: nothing else can end a text.
        return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    if value is None:
        return "null"
    return str(int(value))


def filled(parts: Parts, values: Sequence[Any]) -> str:
    """The statement with its values."""
    texts = [quoted(value) for value in values]
    return "".join([part if at % 2 == 0 else texts[int(part) - 1] for at, part in enumerate(parts)])


def rows_of(rows: Sequence[Any]) -> str:
    """The rows of a statement as one value."""
    text = to_json(rows).decode()
    if "\\u0000" in text and _NUL.search(text):
        # It could be kept here, but not be moved to another database.
        raise ValidationError("a text with a NUL character can't be kept; nothing was written.")
    return text


class _Statements(dict[str, Parts]):
    """All statements by name, read when the first one is needed."""

    def __missing__(self, name: str) -> Parts:
        if self:
            raise LookupError(f"no statement is called {name}")
        texts = queries.load(
            "mysql", text=_TEXT, ids=_IDS, runs=f"{_IDS} {_RUN}", held=_HELD, leases=_LEASES, steps=_STEPS,
            waits=_WAITS, signals=_SIGNALS, takes=_TAKES, columns=COLUMNS, now=NOW,
        )  # fmt: skip
        self.update((name, split(text)) for name, text in texts.items())
        return self[name]


SQL = _Statements()
LOCKED_FRONT = split(_LOCKED_FRONT)
