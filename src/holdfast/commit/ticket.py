"""A ticket: one operation in the line, and the reply to whoever put it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, get_args

from .lent import lent
from .reply import Reply

T = TypeVar("T")

Verb: TypeAlias = Literal[
    "renew_leases",
    "delete",
    "drop_outputs",
    "save_progress",
    "save_logs",
    "save_attempts",
    "save_waits",
    "save_steps",
    "take_signals",
    "finish",
    "recall",
    "cancel",
    "send_signals",
    "trigger",
    "trigger_many",
    "expire",
    "pass_deadlines",
    "cancel_below",
    "claim",
    "check_in",
    "check_out",
    "forget_workers",
]

#: The order of the verbs within a round, as they are named above. Renewals first: they keep leases that the same round
#: may judge. Then what forgets: only what ended before this round, so that playing it again finds the same for all
#: others. What a run says of itself before its end, ends before claims, so that a freed slot is filled in the same
#: transaction. Who is there comes last: nobody waits for it.
#: Grouping reorders strangers only: who shares a round asked at the same time, and every verb is guarded.
ORDER: tuple[Verb, ...] = get_args(Verb)


#: Verbs that get idempotency keys in a way of their own. Where several write at a time no transaction gets some in two
#: ways, and each batch has its own: whoever waits for a key after it has got another may wait in a circle.
APART: tuple[Verb, ...] = ("delete", "trigger_many")

#: What overtakes the line: renewals, and the judgement of leases with those that came with it, in one round (S9).
URGENT: tuple[Verb, ...] = ("renew_leases", "expire")


class Rider(Protocol):
    """Something that is worth a row, but not a round. See `Committer.riders`."""

    since: int
    """Since when it waits, by `clock.now()`."""

    def ticket(self) -> Ticket[Any]:
        """Called once, in the committing thread, when it goes along: engine code only, and short."""
        ...


class Ticket(Reply[T], Generic[T]):
    """A store verb and one row for it.

    `then` is called with the store's answer once it is durable, before the reply is answered, in the writing thread:
    engine code only, short, and never a user's.
    """

    __slots__ = ("bulk", "count", "joined_at", "row", "then", "unless", "verb", "weight")

    def __init__(
        self,
        verb: Verb,
        row: Any,
        *,
        what: str | None = None,
        convert: Callable[[Any], T] | None = None,
        then: Callable[[Any], None] | None = None,
        weight: int = 0,
        count: int = 1,
        bulk: bool = False,
        unless: Callable[[], Exception | None] | None = None,
    ) -> None:
        super().__init__(what or verb, convert)
        self.verb: Verb = verb
        self.row: Any = row
        self.then: Callable[[Any], None] | None = then
        self.weight: int = weight
        """About how many bytes it brings along."""
        self.count: int = count
        """As how many tickets it counts: a batch is as long as what it holds."""
        self.bulk: bool = bulk
        """A part of something large: it has a round of its own, and others have one before the next part."""
        self.unless: Callable[[], Exception | None] | None = unless
        """Asked in the writing thread before its round: why it must not go now. It is answered with that."""
        self.joined_at: float = 0.0
        """`clock.steady()` when it came into the line."""

    def _refuse_to_block(self) -> None:
        super()._refuse_to_block()
        lent.refuse_to_block(self._what)
