"""Several statements of a transaction in one message to PostgreSQL: they take one way there and back.

What opens a transaction and locks the runs of its round is *put off* until something is asked, and goes along with
that. Nobody needs those answers before, but for the time: a statement that is sent together with the locks takes
it from the server, where they have left it (`TIME`).

It is said in SQL (`execute name('…')`) rather than in the pipeline mode of the driver: one message is answered as one,
whoever waits for it waits as for any other, and a server drops what follows a statement that has failed. Without COMMIT
among them everything may be said anew over another connection. What ends with it (`end`) may have happened if there was
no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from ..basis.clock import SystemClock
from .base import Tx, Undone

#: Where the locks leave the time for the statements after them.
TIME = "holdfast.now"
_TAKE_TIME = f"current_setting('{TIME}')::bigint"

#: Can't be prepared.
_BARE = re.compile(r"(--.*\n)*savepoint")

#: A message of one statement has its values beside it; in one of several they are part of the text, and read twice.
LONGEST = 1 << 18

#: After so many statements, each time that many more, and after so many seconds all is planned anew: a plan for ten
#: rows may read the whole table, and others may have made it large since. (The server notices by its autovacuum, which
#: looks once a minute.)
_PLANNED_ANEW = 64
_PLANNED_FOR = 60.0

#: So many statements are prepared to go along with others. There are fewer that anybody asks first in a transaction.
_PREPARED = 100

_steady = SystemClock().steady


class Opening(Tx):
    """A transaction of which the server may not know yet. To look at `now` is to ask it."""

    def __init__(self, connection: Any, *, by_hand: bool) -> None:
        self._by_hand = by_hand
        """Its time is not the server's."""
        super().__init__(connection, 0, begun=False)
        self._now: int | None = None

    @property
    def now(self) -> int:
        if self._now is None:
            self.connection.settle()
            assert self._now is not None, "what was put off has told the time"
        return self._now

    @now.setter
    def now(self, value: int | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._now = value

    @property
    def told(self) -> int | None:
        return self._now

    @property
    def instant(self) -> Any:
        return self if self._now is None and not self._by_hand else self.now


class PutOff(NamedTuple):
    """A statement whose answer nobody waits for."""

    sql: str
    values: Sequence[Any] | None
    """None: it is said as it is."""
    then: Callable[[list[Any]], None] | None = None
    """Called with the rows of its answer."""
    again: Callable[[psycopg.Error], bool] | None = None
    """Called when the message that begins with it has failed: whether it may be sent once more."""
    asks: bool = False
    """Whether the transaction is for it: it is said even if nothing else is asked."""


class Together:
    """What is put off on one connection."""

    pg: psycopg.Connection[Any]
    _execute: Any

    def __init__(self) -> None:
        self._put_off: list[PutOff] = []
        self._names: dict[str, str] = {}
        """Of statements that this session has prepared for this."""
        self._named = 0
        self._said: int = 0
        """Statements, so far."""
        self._plan_at = _PLANNED_ANEW
        self._plan_by = _steady() + _PLANNED_FOR
        self.over: bool = False
        """While what came with a COMMIT is read."""

    def put_off(self, *statements: PutOff) -> None:
        """Say them with what is asked next."""
        self._put_off += statements

    def drop(self) -> bool:
        """Forget what was put off; whether it is all of the transaction."""
        unknown = self.is_unknown
        self._put_off = []
        return unknown

    @property
    def is_unknown(self) -> bool:
        """Whether the server doesn't know of the transaction yet."""
        return bool(self._put_off) and self._put_off[0].again is not None

    @property
    def asks(self) -> bool:
        """Whether something was put off for which the transaction is."""
        return any(part.asks for part in self._put_off)

    def take_back(self, statement: PutOff) -> bool:
        """Don't say it after all; False if it has been said."""
        left = [part for part in self._put_off if part is not statement]
        is_there, self._put_off = len(left) < len(self._put_off), left
        return is_there

    def prepared_is_gone(self) -> None:
        """Prepare anew: the session is another one, or the driver has deallocated all, as it does after a ROLLBACK."""
        self._names = {}

    def settle(self) -> None:
        """Say what was put off now."""
        if self._put_off:
            self._together()

    def along(self, sql: str, values: Sequence[Any] | None) -> Any:
        """Ask this, with all that was put off: the cursor with its answer."""
        if not self.can_say(sql, values or ()):
            self.settle()
            return self._execute(sql, known(values))
        return self._together(PutOff(sql, values))

    def can_say(self, sql: str, values: Sequence[Any]) -> bool:
        """Whether this may go along with others: it is not too much, and prepared or can be."""
        return sum([len(value) for value in values if isinstance(value, str)]) <= LONGEST and (
            sql in self._names or len(self._names) < _PREPARED
        )

    def planned_anew(self) -> list[PutOff]:
        """What to say from time to time: tables that were small have grown."""
        now = _steady()
        if self._said >= self._plan_at:
            self._plan_at *= 2
        elif now < self._plan_by:
            return []
        self._plan_by = now + _PLANNED_FOR
        return [PutOff("discard plans", None)]

    def is_quiet(self) -> bool:
        """Whether the server has said nothing by itself, as it does when it ends a session. Asks nobody."""
        try:
            # What has come is taken by the first look, and that nothing follows is seen by the second.
            for _ in range(2):
                self.pg.pgconn.consume_input()
        except psycopg.OperationalError:
            return False
        return not self.pg.closed

    def end(self, words: str) -> str:
        """Say what was put off, and end the transaction with these words; what the server says to the end.

        `Undone` if that could not even be sent.
        """
        parts, self._put_off = self._put_off, []
        try:
            said = [self.spoken(part.sql, part.values) for part in parts]
        except psycopg.Error as error:
            raise Undone(elsewhere=self.pg.closed) from error
        self._said += len(parts)
        self.over = True
        try:
            cursor = self._send(parts, [*said, words])
        finally:
            self.over = False
        while cursor.nextset():
            pass
        return str(cursor.statusmessage)

    def _together(self, *asked: PutOff) -> Any:
        parts, self._put_off = [*self._put_off, *asked], []
        try:
            return self._send(parts, [self.spoken(part.sql, part.values) for part in parts])
        except psycopg.Error as error:
            if (again := parts[0].again) is None or not again(error):
                raise
            try:
                return self._send(parts, [self.spoken(part.sql, part.values) for part in parts])
            except psycopg.Error as second:
                if not self.pg.closed:
                    again(second)  # it may know better what is wrong
                raise second from error

    def _send(self, parts: Sequence[PutOff], said: Sequence[str]) -> Any:
        cursor = self._execute("; ".join(said), prepare=False)
        for part in parts:
            if part is not parts[0]:
                cursor.nextset()
            if part.then is not None:
                part.then(cursor.fetchall())
        return cursor

    def spoken(self, sql: str, values: Sequence[Any] | None) -> str:
        """A statement with its values, to be said among others. What has values is prepared first."""
        if values is None or _BARE.match(sql):
            return sql
        if (name := self._names.get(sql)) is None:
            name, self._named = f"holdfast_{self._named}", self._named + 1
            types = ", ".join(["bigint" if isinstance(value, int | Opening) else "unknown" for value in values])
            self._execute(f"prepare {name}{types and f' ({types})'} as {sql}", prepare=False)
            self._names[sql] = name
        return f"execute {name}({', '.join(map(self._literal, values))})" if values else f"execute {name}"

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return pq.Escaping(self.pg.pgconn).escape_literal(value.encode()).decode()
        if isinstance(value, Opening):
            return _TAKE_TIME
        return "null" if value is None else str(int(value))


def known(values: Sequence[Any] | None) -> Sequence[Any] | None:
    """The values of a statement, once the time is known."""
    return values and [value.now if isinstance(value, Opening) else value for value in values]


__all__ = ["LONGEST", "TIME", "Opening", "PutOff", "Together", "known"]
