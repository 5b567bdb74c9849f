"""A ticket: one operation in the line, and the reply to whoever put it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from .reply import Reply

T = TypeVar("T")

Verb: TypeAlias = Literal[
    "renew_leases",
    "save_progress",
    "save_logs",
    "save_steps",
    "finish",
    "recall",
    "cancel",
    "trigger",
    "expire",
    "claim",
]

#: The order of the verbs within a round, as they are named above. Renewals first: they keep leases that the same round
#: may judge. What a run says of itself before its end, ends before claims, so that a freed slot is filled in the same
#: transaction.
#: Grouping reorders strangers only: who shares a round asked at the same time, and every verb is guarded.
ORDER: tuple[Verb, ...] = get_args(Verb)


class Ticket(Reply[T], Generic[T]):
    """A store verb and one row for it.

    `then` is called with the store's answer once it is durable, before the reply is answered, in the writing thread:
    engine code only, short, and never a user's.
    """

    __slots__ = ("row", "then", "verb", "weight")

    def __init__(
        self,
        verb: Verb,
        row: Any,
        *,
        what: str | None = None,
        convert: Callable[[Any], T] | None = None,
        then: Callable[[Any], None] | None = None,
        weight: int = 0,
    ) -> None:
        super().__init__(what or verb, convert)
        self.verb: Verb = verb
        self.row: Any = row
        self.then: Callable[[Any], None] | None = then
        self.weight: int = weight
        """About how many bytes it brings along."""
