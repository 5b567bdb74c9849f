"""A verb over an asynchronous connection: played from its beginning with the answers so far, until it has them all.

Verbs are synchronous, and each is a handful of statements. A thread in between would cost a switch for each of them,
and could go on after its task was cancelled. So the verb is stopped at the first statement that has no answer; that one
is awaited, by the caller's own task, and the verb begins again. The same answers lead it to the same place.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from .lending import Fetched, Lent

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gave:
    """What a statement gave."""

    rows: list[Any]
    rowcount: int
    gives_rows: bool

    def fetched(self) -> Fetched:
        """It, to be read anew."""
        return Fetched(self.rows, self.rowcount, self.gives_rows or None)


Execute: TypeAlias = Callable[[str, Any], Awaitable[Gave]]


#: Of connections over which something is played: two tasks with one savepoint would undo each other's.
_turns: weakref.WeakKeyDictionary[Any, asyncio.Lock] = weakref.WeakKeyDictionary()


def turn(connection: Any) -> asyncio.Lock:
    """To be held by the one task that uses it."""
    try:
        return _turns.setdefault(connection, asyncio.Lock())
    except TypeError:  # no weak references to it: the proxy of an asyncpg pool, which refuses a second task by itself
        return asyncio.Lock()


class _Stopped(BaseException):
    """Here an answer is missing: that of this statement."""

    def __init__(self, sql: str, parameters: Any) -> None:
        super().__init__(sql)
        self.statement: tuple[str, Any] = (sql, parameters)


class Played(Lent):
    """A connection that knows its answers."""

    def __init__(self) -> None:
        self._answers: list[Gave | BaseException] = []
        self._place = 0
        self._stopped: _Stopped | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> Fetched:
        if self._stopped is None and self._place < len(self._answers):
            answer = self._answers[self._place]
            self._place += 1
            if isinstance(answer, BaseException):
                raise answer.with_traceback(None)
            return answer.fetched()
        # What the verb wants to do on its way out, it wants when it is stopped, not when it fails.
        self._stopped = self._stopped or _Stopped(sql, parameters)
        raise self._stopped

    async def play(self, connection: Any, verb: Callable[[Lent], T], execute: Execute) -> T:
        """What the verb gives. After a cancelled await it ends as after an error of the database: by undoing."""
        try:
            async with turn(connection):
                return await self._play(verb, execute)
        finally:
            self._answers.clear()  # this object may be remembered for as long as the transaction is open

    async def _play(self, verb: Callable[[Lent], T], execute: Execute) -> T:
        cancelled = False
        while True:
            self._place, self._stopped = 0, None
            try:
                return verb(self)
            except _Stopped as stopped:
                statement = execute(*stopped.statement)
            try:
                self._answers.append(await (_finished(statement) if cancelled else statement))
            except asyncio.CancelledError as error:
                cancelled = True
                self._answers.append(error)
            except Exception as error:
                self._answers.append(error)


async def _finished(statement: Awaitable[Gave]) -> Gave:
    """Its answer, however often the task is cancelled meanwhile: it was once, and is told so in the end."""
    task = asyncio.ensure_future(statement)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
        except Exception:
            break
    return task.result()
