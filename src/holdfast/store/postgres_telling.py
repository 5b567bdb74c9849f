"""Telling others, on PostgreSQL (NOTIFY): one word for a round, sent by its COMMIT.

Whoever says something holds a lock of the whole server while it commits, so who has nothing for others says nothing. A
server that refuses to pass words on (its queue is full because a listener sleeps in a transaction) refuses the commit
with them: that round is played again, and for a while nothing is said.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from ..basis.clock import SystemClock
from .announcing import NOBODY, Announcing, Gathered, word
from .base import Triggered, Tx, Undone
from .postgres_place import AGAIN, READ_ONLY, Address, Link

if TYPE_CHECKING:
    from .watch import Watch

_log = logging.getLogger("holdfast")

#: Seconds for which nothing is said after the server has refused to pass it on.
_SILENCE = 60.0
#: The part of the server's queue that may be full when a word goes along in a transaction that isn't ours: if there is
#: no room for it, that one fails.
_ROOM = 0.5
_LONGEST_NAME = 63

_steady = SystemClock().steady


class PostgresTelling(Announcing):
    """What is gathered, told on the channel of this schema."""

    address: Address
    _silent_until = 0.0
    _said_once: frozenset[str] = frozenset()

    @property
    def channel(self) -> str:
        """Its name: whoever uses the same tables hears it."""
        name = f"holdfast_{self.address.schema}"
        if len(name) > _LONGEST_NAME:
            digest = hashlib.sha256(name.encode()).hexdigest()[:16]
            name = f"{name[: _LONGEST_NAME - 17]}_{digest}"
        return name

    def watch(self) -> Watch:
        from .postgres_watch import PostgresWatch

        return PostgresWatch(self)

    def say_once(self, text: str) -> None:
        """A warning that concerns this database as a whole."""
        if text not in self._said_once:
            self._said_once |= {text}
            _log.warning("%s: %s", self.name, text)

    def _end(self, tx: Tx) -> str:
        """COMMIT, with what was put off and what the transaction has for others; what the server says to it.

        `Undone` if what was put off has failed.
        """
        connection: Link = tx.connection
        gathered: Gathered | None = tx.seen.get("news")
        if gathered is None or _steady() < self._silent_until:
            return self._ended(connection, "commit")
        literal = pq.Escaping(connection.pg.pgconn).escape_literal
        text = f"{literal(self.channel.encode()).decode()}, {literal(word(self.me, gathered).encode()).decode()}"
        try:
            return self._ended(connection, f"select pg_notify({text}); commit")
        except psycopg.Error as error:
            if error.sqlstate is not None and error.sqlstate not in AGAIN and not connection.is_lost:
                self._silent_until = _steady() + _SILENCE
                said = self.address.hide(" ".join(str(error).split()))
                self.say_once(f"other processes are not told what happens here; they will look for it ({said})")
            raise

    def _ended(self, connection: Link, words: str) -> str:
        asks = connection.asks
        try:
            return connection.end(words)
        except psycopg.Error as error:
            # In a transaction that has failed nothing else was listened to. If nothing was put off it was the telling.
            if asks and connection.pg.info.transaction_status == pq.TransactionStatus.INERROR:
                raise Undone(elsewhere=error.sqlstate == READ_ONLY) from error
            raise

    def announce(self, tx: Tx, made: Sequence[Triggered]) -> None:  # noqa: ARG002 - it was gathered
        # Gathered while it was written; and this process doesn't know when it commits, so it is told, too.
        gathered: Gathered | None = tx.seen.pop("news", None)
        if gathered is not None and _steady() >= self._silent_until:
            values: tuple[Any, ...] = (self.channel, word(NOBODY, gathered), _ROOM)
            tx.connection.execute("select pg_notify($1, $2) where pg_notification_queue_usage() < $3", values)


__all__ = ["PostgresTelling"]
