"""MariaDB: its rows as they are, for moving house."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pymysql.cursors import SSCursor

from ..basis.clock import Clock
from .base import Tx
from .movable import TABLES, Movable
from .mysql_place import Link

_LOCKED = (
    *(table.name for table in TABLES),
    "holdfast_meta",
    "holdfast_migrations",
    "holdfast_keys",
    "holdfast_workers",
)

#: Two more names under which tables are read: whoever has locked tables may use no others.
_ALIASES = ("holdfast_runs as r", "holdfast_workers as w")


class MysqlMovable(Movable):
    """A database that can be moved, or moved into."""

    clock: Clock
    _turned: bool
    quote: str = "`"
    longest_url: int = 160

    def hold_still(self, connection: Link) -> Tx:
        # Every transaction of ours reads the number of the version first, and so waits here, or is waited for. These
        # locks are the session's: they are gone with it, or by `let_go`.
        locks = ", ".join(f"{name} write" for name in (*_LOCKED, *_ALIASES))
        connection.do(
            "set session max_statement_time = 0, idle_transaction_timeout = 0, net_write_timeout = 3600, autocommit = 0"
        )
        try:
            connection.do(f"lock tables {locks}")
        except BaseException:
            connection.do("set session autocommit = 1")
            raise
        now = connection.ask("select timestampdiff(microsecond, '1970-01-01', utc_timestamp(6))")[0][0]
        return Tx(connection, self.clock.now() if self._turned else now)

    def let_go(self, tx: Tx) -> None:
        if not tx.connection.is_lost:
            tx.connection.do("unlock tables")
            tx.connection.do("set session autocommit = 1")

    def _say(self, connection: Link, text: str, values: Sequence[Any] = ()) -> list[Any]:
        parts = text.split("?")
        said = [parts[0]]
        for value, part in zip(values, parts[1:], strict=True):
            said += [_quoted(value), part]
        return connection.ask("".join(said))

    def _stream(self, connection: Link, text: str) -> Iterator[tuple[Any, ...]]:
        connection.raw.be_patient()
        cursor: Any = connection.raw.cursor(SSCursor)
        try:
            cursor.execute(text)
            yield from iter(cursor.fetchone, None)
        finally:
            cursor.close()

    def settle(self, tx: Tx) -> None:
        self._say(
            tx.connection,
            "insert ignore into holdfast_keys (`key`, kind) select distinct r.concurrency_key, 'key' "
            "from holdfast_runs as r where r.completed_at is null and r.concurrency_key is not null",
        )


def _quoted(value: Any) -> str:
    if isinstance(value, str):
        # Sessions are strict, in UTF-8, and know the backslash: nothing else can end a text.
        return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    return "null" if value is None else str(int(value))
