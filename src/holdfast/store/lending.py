"""Transactions of callers, on connections of their own: of which library, and how it is spoken to.

Above the drivers there are layers (SQLAlchemy, Django), which are taken off (`recognised`): what is written goes
through the driver itself, in the store's own words. A verb gets a `Lent` for its connection. On a synchronous one it
runs in the caller's thread; on an asynchronous one when it is awaited, in the caller's loop.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from ..basis.errors import ValidationError
from ..basis.text import error_text
from .base import Dialect, LentTransaction

T = TypeVar("T")

NOT_OPEN = (
    "connection: no transaction is open on it, so there is nothing that the run could be part of. Write first, or "
    "begin one"
)
AUTOCOMMIT = (
    "connection: it commits after each statement (autocommit), so there is nothing that the run could be part of."
)


class Fetched:
    """What a statement gave, all of it."""

    def __init__(self, rows: list[Any], rowcount: int, description: object = None) -> None:
        self._next = iter(rows)
        self.rowcount: int = rowcount
        self.description: object = description
        """None for what gives no rows."""

    def fetchall(self) -> list[Any]:
        return list(self._next)

    def fetchone(self) -> Any:
        return next(self._next, None)


class Lent(LentTransaction):
    """Somebody's connection, as the verbs see it: each statement is read to its end at once."""

    dialect: ClassVar[Dialect]

    @abstractmethod
    def execute(self, sql: str, parameters: Any = (), /) -> Fetched:
        """As that of a connection of ours."""


class Lending:
    """Somebody's connection, not yet looked at."""

    def theirs(self, error: BaseException) -> BaseException | None:  # noqa: ARG002 - for those that have such errors
        """The error of the caller's own library, if only the caller can help it: by beginning its transaction anew."""
        return None


class Lender(Lending, ABC):
    """A synchronous one."""

    @abstractmethod
    def lend(self, *, begun: bool = False) -> Lent:
        """It, for one verb, in this thread. `ValidationError` unless it can be used here and a transaction is open.

        With `begun` a layer above the driver has begun one, and the driver may not have been told yet.
        """


class AwaitedLender(Lending, ABC):
    """An asynchronous one."""

    @abstractmethod
    async def run(self, verb: Callable[[Lent], T], *, begun: bool = False) -> T:
        """What the verb gives. `ValidationError` as that of `Lender.lend`.

        After a cancelled await nothing of ours uses the connection any more.
        """


def in_savepoint(connection: Lent, verb: Callable[[], T]) -> T:
    """What the verb gives; after an error the caller's transaction is as it was before."""
    connection.execute("savepoint holdfast_lent")
    try:
        made = verb()
    except BaseException:
        with contextlib.suppress(Exception):  # some errors have ended the whole transaction
            connection.execute("rollback to savepoint holdfast_lent")
            connection.execute("release savepoint holdfast_lent")
        raise
    connection.execute("release savepoint holdfast_lent")
    return made


def unusable(error: BaseException) -> ValidationError:
    """What the driver says of a connection that it can't use."""
    return ValidationError(f"connection: it can't be used here: {error_text(error, 300)}")
