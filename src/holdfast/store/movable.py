"""Moving house, the part of one database: its rows as they are, table by table, and the marks of a move.

The values are the same in all databases by design (times in microseconds, flags 0 and 1, texts), so rows go from one to
another as they are. What differs is said by a dialect in five words: see the abstract methods.

A mark is a row in `holdfast_meta` that says from where or to where, and one in `holdfast_migrations` with a number that
no version has. That number is what every connection looks at before it writes: who has the database open hears of the
move with its next transaction, who opens it at once.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic_core import from_json, to_json

from .base import Store, Tx
from .schema import AWAY, Schema

State: TypeAlias = Literal["moving_from", "moved_to"]


class Table(NamedTuple):
    """A table whose rows move: its name, its columns, and those of them that are its key."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]


class Mark(NamedTuple):
    """Half-way from another database (`moving_from`), or left for it (`moved_to`)."""

    state: State
    url: str
    """Of the other one, without secrets."""
    database_id: str
    """Of the other one."""
    at: int


class Holder(NamedTuple):
    """A worker that holds leases which are not over; without host and pid if it never checked in."""

    owner: str
    host: str | None
    pid: int | None
    runs: int

    def __str__(self) -> str:
        where = self.owner if self.host is None else f"{self.host}:{self.pid}"
        return f"{where} ({self.runs} run{'' if self.runs == 1 else 's'})"


def _table(name: str, key: str, others: str) -> Table:
    return Table(f"holdfast_{name}", (*key.split(), *others.split()), tuple(key.split()))


#: All that belongs to runs. Not who works (nobody does), nor what several writers lock by (each store makes its own).
TABLES = (
    _table(
        "runs",
        "id",
        "job_name status queue priority run_at due turn generation attempt crashes lease_owner lease_expires_at "
        "created_at updated_at started_at completed_at timeout retry deadline_at parent_id root_id child_index "
        "is_finalize awaited_as tree waiting_for wake_at used idempotency_key concurrency_key tenant labels codec "
        "trace input output error error_type outputs_kept",
    ),
    _table("labels", "key value run_id", ""),
    _table("progress", "run_id", "progress updated_at"),
    _table(
        "steps",
        "run_id name occurrence",
        "position kind status attempt generation fingerprint output error started_at completed_at",
    ),
    _table(
        "step_attempts",
        "run_id name occurrence run_attempt number",
        "position generation started_at ended_at error",
    ),
    _table("logs", "id", "run_id generation step_name level message data created_at"),
    _table("waits", "run_id key", "kind until signal created_at"),
    _table("signals", "id", "run_id name key value created_at consumed_by"),
)


class Sum:
    """How many rows a table has, and what tells these rows, in this order, from others."""

    def __init__(self, rows: int = 0) -> None:
        self.rows: int = rows
        self._hash = hashlib.sha256()

    def add(self, rows: int, said: bytes) -> None:
        """So many more, and what they say."""
        self.rows += rows
        self._hash.update(said)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def is_same(self, other: Sum) -> bool:
        return (self.rows, self.digest) == (other.rows, other.digest)


_MARKED = "{q}key{q} in ('moving_from', 'moved_to')"


class Movable(Store):
    """A database that can be moved, or moved into."""

    # -- what a dialect says -----------------------------------------------------------------------------------

    schema: Schema
    quote: str = '"'
    """What goes around the name of a column, which may be a word of SQL."""
    longest_url: int = 10_000
    """Characters of a URL that a mark has room for."""

    @abstractmethod
    def hold_still(self, connection: Any) -> Tx:
        """A transaction beside which nobody else can write anything here, whatever marks there are.

        It may last for long. Who begins to write meanwhile waits, or is refused, and then meets the marks that are
        there when this ends.
        """

    def let_go(self, tx: Tx) -> None:  # noqa: ARG002 - for those whose locks are not the transaction's
        """After its commit or rollback."""
        return

    @abstractmethod
    def _say(self, connection: Any, text: str, values: Sequence[Any] = ()) -> list[Any]:
        """What this SQL gives, if it gives something; a value for each `?`."""

    @abstractmethod
    def _stream(self, connection: Any, text: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query one after the other, few of them in memory. Inside of `hold_still`."""

    def _insertion(self, table: Table) -> str:
        """The words before `values`."""
        return f"insert into {table.name} ({self._names(table.columns)})"

    def _names(self, columns: Sequence[str]) -> str:
        return ", ".join(f"{self.quote}{column}{self.quote}" for column in columns)

    def settle(self, tx: Tx) -> None:  # noqa: ARG002 - for those that keep more than rows
        """All rows are there: make what this store keeps beside them."""
        return

    @property
    def whereabouts(self) -> str:
        """A URL of this database, without secrets, that leads here from everywhere."""
        return self.name

    @abstractmethod
    def version(self, connection: Any) -> int:
        """The number of the last migration; 0 if there are no tables."""

    # -- rows --------------------------------------------------------------------------------------------------

    def count(self, connection: Any, table: Table) -> int:
        """How many rows there are."""
        found: int = self._say(connection, f"select count(*) from {table.name}")[0][0]
        return found

    def tables_version(self, connection: Any) -> int:
        """The number of the last migration, whatever mark there is."""
        text = "select coalesce(max(number), 0) from holdfast_migrations where number < ?"
        return int(self._say(connection, text, [AWAY])[0][0])

    def rows_of(self, connection: Any, table: Table) -> Iterator[tuple[Any, ...]]:
        """All rows, in the order of the key, which is the same in every database."""
        columns, key = self._names(table.columns), self._names(table.key)
        return self._stream(connection, f"select {columns} from {table.name} order by {key}")

    def insert(self, tx: Tx, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows as they are."""
        one = f"({', '.join('?' * len(table.columns))})"
        text = f"{self._insertion(table)} values {', '.join([one] * len(rows))}"
        self._say(tx.connection, text, [value for row in rows for value in row])

    def clear(self, tx: Tx) -> None:
        """No rows are left."""
        for table in TABLES:
            self._say(tx.connection, f"delete from {table.name}")

    # -- who is there, and marks -------------------------------------------------------------------------------

    def holders(self, tx: Tx) -> list[Holder]:
        """Who holds leases that are not over."""
        found = self._say(
            tx.connection,
            "select r.lease_owner, w.host, w.pid, count(*) from holdfast_runs as r "
            "left join holdfast_workers as w on w.id = r.lease_owner "
            "where r.status = 'leased' and r.lease_expires_at > ? group by r.lease_owner, w.host, w.pid order by 1",
            [tx.now],
        )
        return [Holder(*row) for row in found]

    def mark_of(self, connection: Any) -> Mark | None:
        """The mark of a move, if there is one."""
        found = self._say(
            connection,
            f"select {self._names(['key', 'value'])} from holdfast_meta where {_MARKED.format(q=self.quote)}",
        )
        return Mark(found[0][0], **from_json(found[0][1])) if found else None

    def set_mark(self, tx: Tx, mark: Mark) -> None:
        """From the end of this transaction on nobody uses this database."""
        self.drop_mark(tx)
        told = {"url": self._cut(mark.url), "database_id": mark.database_id, "at": mark.at}
        columns = self._names(["key", "value"])
        self._say(
            tx.connection,
            f"insert into holdfast_meta ({columns}) values (?, ?)",
            [mark.state, to_json(told).decode()],
        )
        self._say(
            tx.connection,
            "insert into holdfast_migrations (number, name, applied_at) values (?, ?, ?)",
            [AWAY, mark.state, mark.at],
        )

    def _cut(self, url: str) -> str:
        return url if len(url) <= self.longest_url else url[: self.longest_url - 1] + "…"

    def drop_mark(self, tx: Tx) -> None:
        """From the end of this transaction on it may be used."""
        self._say(tx.connection, f"delete from holdfast_meta where {_MARKED.format(q=self.quote)}")
        self._say(tx.connection, "delete from holdfast_migrations where number = ?", [AWAY])
