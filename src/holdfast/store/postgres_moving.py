"""PostgreSQL: its rows as they are, for moving house."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from ..basis.clock import Clock
from .base import Tx
from .movable import Mark, Movable, Table
from .postgres_place import Link

#: Rows that are fetched at once: each may be some megabytes.
_FETCHED = 50


class PostgresMovable(Movable):
    """A database that can be moved, or moved into."""

    clock: Clock
    _turned: bool

    def _q(self, text: str) -> str:
        """The text with its tables where they are."""
        raise NotImplementedError

    def hold_still(self, connection: Link) -> Tx:
        # Every transaction of ours reads the number of the version first, and so waits here, or is waited for. Others'
        # write runs.
        connection.say(
            f"{connection.begin}; set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0; "
            + self._q("lock table holdfast_migrations, holdfast_runs in access exclusive mode")
        )
        now = self._say(connection, "select (extract(epoch from clock_timestamp()) * 1000000)::bigint")[0][0]
        return Tx(connection, self.clock.now() if self._turned else now)

    def _say(self, connection: Link, text: str, values: Sequence[Any] = ()) -> list[Any]:
        parts, numbers = text.split("?"), count(1)
        numbered = "".join([parts[0], *(f"${next(numbers)}{part}" for part in parts[1:])])
        cursor = connection.execute(self._q(numbered), values)
        return cursor.fetchall() if cursor.description else []

    def _stream(self, connection: Link, text: str) -> Iterator[tuple[Any, ...]]:
        connection.say(self._q(f"declare holdfast_rows no scroll cursor for {text}"))
        while rows := connection.execute(f"fetch {_FETCHED} from holdfast_rows").fetchall():
            yield from rows
        connection.say("close holdfast_rows")

    def _insertion(self, table: Table) -> str:
        words = super()._insertion(table)
        return f"{words} overriding system value" if table.name == "holdfast_logs" else words

    def settle(self, tx: Tx) -> None:
        self._say(
            tx.connection,
            "insert into holdfast_keys (key, kind) select distinct concurrency_key, 'key' from holdfast_runs "
            "where completed_at is null and concurrency_key is not null on conflict do nothing",
        )
        self._say(
            tx.connection,
            "select setval(pg_get_serial_sequence(?, 'id'), coalesce(max(id), 0) + 1, false) from holdfast_logs",
            [self._q("holdfast_logs")],
        )

    def set_mark(self, tx: Tx, mark: Mark) -> None:
        super().set_mark(tx, mark)
        if mark.state == "moved_to":
            # For transactions of callers that were looked at before the move, and write after it.
            self._say(tx.connection, "alter table holdfast_runs add constraint holdfast_moved check (false) not valid")
