"""Verbs of PostgreSQL that wait for the COMMIT, and go along with it in one message.

A lone checkpoint, the end of a lone run, a trigger with the claim of its run: each is one way to the server and back.
That is possible where one statement is all that a verb needs. Whether more is needed is often known only from the
answer (the run has something below it, what is to be claimed has a key). Then the statement has done nothing for that
row, or nothing at all, and the answer is `LATER`: the commit line serves it once more, in a transaction where verbs may
ask what they like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, cast, overload

from ..model.run import NewRun
from .base import LATER, Claimed, ClaimOrder, Ended, Ending, Lease, StepSave, Triggered, Tx
from .postgres_place import Link
from .postgres_statements import as_json
from .postgres_telling import PostgresTelling
from .postgres_together import LONGEST, Opening, PutOff
from .relational import finishable, fresh, wanted_of, writings

#: Where a claim finds what its statement has given.
FOUND = "found"

#: Verbs that look at what a run is, and come after checkpoints and ends. In a round with one of them these don't wait:
#: what has to be done `LATER` would come after what it was to be seen by.
_LOOK = frozenset(
    {"take_signals", "recall", "cancel", "send_signals", "trigger_many", "pass_deadlines", "cancel_below"}
)

#: So often a statement is not postponed after a row of it has had to be served twice.
_PAUSE = 50


class Postponed(Sequence[Any]):
    """Answers that come with the commit. Whoever looks at them before has the verb served at once, in full."""

    def __init__(
        self,
        link: Link,
        size: int,
        statement: tuple[str, Sequence[Any]],
        read: Callable[[list[Any]], list[Any]],
        in_full: Callable[[], list[Any]],
    ) -> None:
        self._link = link
        self._size = size
        self._read = read
        self._in_full = in_full
        self._answers: list[Any] | None = None
        self._statement = PutOff(*statement, self._given, asks=True)
        link.put_off(self._statement)

    def _given(self, found: list[Any]) -> None:
        self._answers = self._read(found)

    def _known(self) -> list[Any]:
        if self._link.take_back(self._statement):
            self._answers = self._in_full()
        assert self._answers is not None, "the message with it has failed"
        return self._answers

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return iter(self._known())

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._known()[index]


class PostgresPostponed(PostgresTelling):
    """The verbs, postponed until the commit where that is possible."""

    _sql: dict[str, str]
    _pauses: dict[str, int]

    def _postpone(
        self,
        tx: Tx,
        name: str,
        size: int,
        rows: Sequence[Any],
        values: Sequence[Any],
        read: Callable[[list[Any]], list[Any]],
        in_full: Callable[[], list[Any]],
    ) -> list[Any]:
        """Answers that will be read from what the statement of this name gives; or those of now, if it can't wait."""
        connection: Link = tx.connection
        if pause := self._pauses.get(name, 0):
            self._pauses[name] = pause - 1
            return in_full()
        if sum([len(value) for row in rows for value in row if isinstance(value, str)]) > LONGEST:
            return in_full()
        statement = self._sql[name], (as_json(rows), *values)
        if not connection.can_say(*statement):
            return in_full()

        def answers(found: list[Any]) -> list[Any]:
            given = read(found)
            if LATER in given:
                self._pauses[name] = _PAUSE
            return given

        postponed = Postponed(connection, size, statement, answers, in_full)
        return cast("list[Any]", postponed)  # nobody changes it

    def _may_postpone(self, tx: Tx, but_with: AbstractSet[str] = frozenset()) -> bool:
        """Whether a verb may be, unless one of those comes after it."""
        # Opened like that, it has a session of its own, and is not played again.
        if not (tx.patient and isinstance(tx, Opening) and "locked" in tx.seen):
            return False
        return but_with.isdisjoint(tx.seen["round"])

    # -- verbs -------------------------------------------------------------------------------------------------

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        def in_full() -> list[bool]:
            return super(PostgresPostponed, self).save_steps(tx, saves)

        if not self._may_postpone(tx, {*_LOOK, "finish"}) or any(save.moved_on or save.ends_wait for save in saves):
            return in_full()
        rows, answers = writings(saves)

        def read(found: list[Any]) -> list[Any]:
            return [written or LATER for written in answers(found)]

        return self._postpone(tx, "save_steps", len(saves), rows, (), read, in_full)

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        def in_full() -> list[Ended]:
            return super(PostgresPostponed, self).finish(tx, endings)

        if not self._may_postpone(tx, _LOOK) or _are_counted(tx) or any(map(_is_for_others, endings)):
            return in_full()
        first: dict[Lease, Ending] = {}
        for e in endings:
            first.setdefault(e.lease, e)

        def read(found: list[Any]) -> list[Any]:
            written = {row[:2] for row in found}
            return [
                Ended(True, tx.now, str(e.transition.target))
                if first[e.lease] is e and e.lease[:2] in written
                else LATER
                for e in endings
            ]

        rows = [finishable(e) for e in first.values()]
        answers = self._postpone(tx, "finish", len(endings), rows, (tx.instant, 1), read, in_full)
        if isinstance(answers, Postponed):
            # Told before it is known to count: that is a hint, like all that is told.
            self._let_go_of(tx, endings)
        return answers

    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        def in_full() -> list[Triggered]:
            made = super(PostgresPostponed, self).trigger(tx, runs)
            # A run that is there may be here only: whoever made it was told to wait for the standby no longer. What is
            # acknowledged now must be there as well.
            tx.seen["met"] = tx.seen.get("met", False) or any(one.disposition != "created" for one in made)
            return made

        if not self._may_postpone(tx) or not all(map(_is_plain, runs)):
            return in_full()

        def read(found: list[Any]) -> list[Any]:
            created = {run_id for (run_id,) in found}
            return [Triggered(fresh(run, tx.now), "created") if run.id in created else LATER for run in runs]

        answers = self._postpone(tx, "insert_runs", len(runs), self._rows(tx, runs), (tx.instant,), read, in_full)
        if isinstance(answers, Postponed):
            self._may_be_claimed(tx, any(run.delay <= 0 for run in runs))
        return answers

    def trigger_many(self, tx: Tx, batches: Sequence[Sequence[NewRun]]) -> list[list[Triggered]]:
        tx.patient = False  # whether one of them is refused decides about all
        return super().trigger_many(tx, batches)

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        def in_full() -> list[Claimed]:
            return super(PostgresPostponed, self).claim(tx, orders)

        if not self._may_postpone(tx) or len(orders) != 1 or orders[0].limits:
            return in_full()
        (order,) = orders

        def read(found: list[Any]) -> list[Any]:
            for row in found:
                times = [at for at in (row[5], row[17]) if at is not None]
                if row[2] is None and (row[0] is not None or any(at <= tx.now for at in times)):
                    return [LATER]
            tx.seen[FOUND] = found
            return in_full()

        values = (order.limit, order.owner, tx.instant, order.lease, tx.instant, 1)
        return self._postpone(tx, "claim", 1, wanted_of(order), values, read, in_full)


def _are_counted(tx: Tx) -> bool:
    """Whether a claim of this round counts the runs that have not ended."""
    return any(order.limits for order in tx.seen["round"].get("claim", ()))


def _is_for_others(ending: Ending) -> bool:
    """Whether others may have to go on, or the run itself, because of it."""
    return ending.keyed or ending.transition.target == "waiting"


def _is_plain(run: NewRun) -> bool:
    """Whether to insert it is all that has to be done, and nothing but an earlier writing of it can be in the way."""
    return (
        run.labels == "{}"
        and run.idempotency_key is None
        and run.concurrency_key is None
        and run.parent_id is None
        and run.run_at is None
        and not run.coalesce
    )


__all__ = ["FOUND", "PostgresPostponed", "Postponed"]
