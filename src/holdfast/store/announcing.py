"""What a round tells other processes: gathered while its verbs are served, told when it commits.

A word is one text: who says it, whether there may be something to claim, and the runs that have ended, are gone or were
taken from their holders. It is a hint for those who wait: they read the tables, whatever it says. Nobody is told of
steps, progress and log lines: those would be more words than there are commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..basis.ids import Ids
from ..model.run import NewRun, RunRow
from .base import Cancelled, Claimed, ClaimOrder, Deleted, Ended, Ending, Recall, Sweep, Triggered, Tx
from .several_writers import SeveralWriters
from .watch import EVERYTHING, News

#: Bytes of a word: PostgreSQL takes 7,999.
LONGEST_WORD = 7900
_SOMETHING, _NOTHING, _MANY = "+", "-", "*"
#: Who says what its own process shall hear, too.
NOBODY = "nobody"


@dataclass(slots=True)
class Gathered:
    """What a transaction has for others."""

    claimable: bool = False
    runs: dict[str, None] = field(default_factory=dict)


def word(sender: str, gathered: Gathered) -> str:
    """As it is sent."""
    claimable = _SOMETHING if gathered.claimable else _NOTHING
    text = f"{sender} {claimable} {' '.join(gathered.runs)}"
    return text if len(text.encode()) <= LONGEST_WORD else f"{sender} {claimable} {_MANY}"


def heard(text: str, me: str) -> News | None:
    """What it means; None: it is our own. Anything that nobody of ours would say means: look at everything."""
    sender, _, rest = text.partition(" ")
    if sender == me:
        return None
    claimable, _, ids = rest.partition(" ")
    if claimable not in (_SOMETHING, _NOTHING) or len(text) > LONGEST_WORD:
        return EVERYTHING
    runs = None if ids == _MANY else frozenset(ids.split(" ")) if ids else frozenset[str]()
    return News(claimable == _SOMETHING, runs)


class Announcing(SeveralWriters):
    """The verbs, gathering what others want to know in `tx.seen["news"]`."""

    _me: str | None = None
    _limited = False
    """Whether there are jobs of which only so many may be leased: then each end may make room for another run."""

    @property
    def me(self) -> str:
        """Who speaks here: this store, in this process."""
        if self._me is None:
            self._me = Ids(self.clock.now).new()
        return self._me

    def reset_after_fork(self) -> None:
        super().reset_after_fork()
        self._me = None

    # -- gathering ---------------------------------------------------------------------------------------------

    def _news(self, tx: Tx) -> Gathered:
        gathered: Gathered = tx.seen.setdefault("news", Gathered())
        return gathered

    def _are_over(self, tx: Tx, run_ids: Iterable[str]) -> None:
        """These runs have ended, or are gone."""
        if ids := dict.fromkeys(run_ids):
            news = self._news(tx)
            news.runs.update(ids)
            news.claimable = news.claimable or self._limited

    def _may_be_claimed(self, tx: Tx, anything: object) -> None:
        if anything:
            self._news(tx).claimable = True

    def _let_go_of(self, tx: Tx, endings: Sequence[Ending]) -> None:
        self._are_over(tx, [ending.lease.run_id for ending in endings if ending.transition.ends])
        back = [ending for ending in endings if ending.transition.target == "pending" and ending.delay <= 0]
        self._may_be_claimed(tx, back)

    def _pass_on(self, tx: Tx, keys: Sequence[str | None]) -> None:
        super()._pass_on(tx, keys)
        self._may_be_claimed(tx, any(key is not None for key in keys))

    def _triggered(self, tx: Tx, made: Sequence[Triggered]) -> None:
        now = tx.now
        self._may_be_claimed(tx, any(one.disposition == "created" and one.run.run_at <= now for one in made))

    # -- verbs -------------------------------------------------------------------------------------------------

    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        made = super().trigger(tx, runs)
        self._triggered(tx, made)
        return made

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        answers = super().finish(tx, endings)
        self._let_go_of(tx, [ending for ending, ended in zip(endings, answers, strict=True) if ended.accepted])
        return answers

    def cancel(self, tx: Tx, run_ids: Sequence[str]) -> list[Cancelled]:
        answers = super().cancel(tx, run_ids)
        self._are_over(tx, [run_id for run_id, one in zip(run_ids, answers, strict=True) if one.accepted])
        return answers

    def delete(self, tx: Tx, run_ids: Sequence[str]) -> list[Deleted]:
        answers = super().delete(tx, run_ids)
        self._are_over(tx, [run_id for run_id, one in zip(run_ids, answers, strict=True) if one.accepted])
        return answers

    def _expire(self, tx: Tx, sweep: Sweep) -> list[RunRow]:
        rows = super()._expire(tx, sweep)
        self._are_over(tx, [row.id for row in rows])
        self._may_be_claimed(tx, rows)
        return rows

    def _pass_deadlines(self, tx: Tx, limit: int) -> list[RunRow]:
        rows = super()._pass_deadlines(tx, limit)
        self._are_over(tx, [row.id for row in rows])
        return rows

    def _cancel_below(self, tx: Tx, limit: int) -> list[RunRow]:
        rows = super()._cancel_below(tx, limit)
        self._are_over(tx, [row.id for row in rows])
        return rows

    def _wake(self, tx: Tx, run_ids: Sequence[str]) -> list[Any]:
        woken = super()._wake(tx, run_ids)
        if "sleepers" not in tx.seen:
            self._may_be_claimed(tx, woken)
        return woken

    def _wake_sleepers(self, tx: Tx) -> None:
        # Who claims knows when they want to be woken, as with delayed runs.
        tx.seen["sleepers"] = True
        super()._wake_sleepers(tx)
        del tx.seen["sleepers"]
        tx.seen["made due"] = True

    def recall(self, tx: Tx, recalls: Sequence[Recall]) -> list[int]:
        counts = super().recall(tx, recalls)
        self._may_be_claimed(tx, any(counts))
        return counts

    def _make_due(self, tx: Tx) -> None:
        super()._make_due(tx)
        tx.seen["made due"] = True

    def _claim(self, tx: Tx, order: ClaimOrder) -> Claimed:
        self._limited = self._limited or bool(order.limits)
        claimed = super()._claim(tx, order)
        # Of delayed runs and sleepers that this claim has found due, it may have left some.
        self._may_be_claimed(tx, tx.seen.pop("made due", False) and len(claimed.runs) == order.limit)
        return claimed


__all__ = ["LONGEST_WORD", "NOBODY", "Announcing", "Gathered", "heard", "word"]
