"""Random operations on a store and on the model of its keys, and the two compared after each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ...model.run import RunFilter
from ...rules.lifecycle import Cause
from ...store.base import ClaimOrder, Lease, Recall, Sweep
from .bench import LEASE, SECOND, StoreBench
from .lines import Lines

T = TypeVar("T")

#: Jobs.
A, B, C = "a", "b", "c"
_EVERYTHING = RunFilter()


class Dice:
    """Numbers that look random and are the same for each seed, on every platform and Python."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def roll(self, sides: int) -> int:
        """From 0 to sides - 1."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self._state >> 33) % sides

    def choice(self, of: Sequence[T]) -> T:
        return of[self.roll(len(of))]

    def sample(self, of: Sequence[T], count: int) -> list[T]:
        left = list(of)
        return [left.pop(self.roll(len(left))) for _ in range(count)]


class Walk:
    """Random operations on a store and on the model, and the two compared after each."""

    def __init__(self, bench: StoreBench, seed: int) -> None:
        self.bench = bench
        self.chance: Dice = Dice(seed)
        self.model: Lines = Lines()
        self.done: list[str] = []

    def steps(self, count: int) -> None:
        acts = (self.trigger, self.trigger, self.trigger, self.claim, self.claim, self.finish, self.finish, self.cancel,
                self.lose, self.wait)  # fmt: skip
        for _ in range(count):
            act = self.chance.choice(acts)
            self.done.append(act.__name__)
            act()
            self.compare()
        assert {"claim", "finish", "cancel", "lose", "wait"} <= set(self.done)

    def compare(self) -> None:
        story = f"after {len(self.done)}: {self.done[-8:]}"
        rows = self.bench.store.find_runs(self.bench.connection, _EVERYTHING)
        assert {row.id: row.status for row in rows} == {run.id: run.status for run in self.model.runs}, story
        held = [row.concurrency_key for row in rows if row.status == "leased" and row.concurrency_key is not None]
        assert len(held) == len(set(held)), f"a key leased twice {story}"

    def trigger(self) -> None:
        chance, now = self.chance, self.bench.clock.now()
        new = [
            self.bench.new(
                chance.choice((A, B, C)),
                queue=chance.choice(("x", "x", "y")),
                priority=chance.choice((0, 0, 0, 1, 2)),
                run_at=now + chance.choice((0, 0, 0, 20 * SECOND)),
                concurrency_key=chance.choice(("k", "l", "m", None)),
                idempotency_key=chance.choice((None, None, None, "once")),
                coalesce=None,
            )
            for _ in range(chance.choice((1, 1, 3)))
        ]
        new = [run._replace(coalesce=chance.choice((None, "skip", "active"))) if run.concurrency_key else run
               for run in new]  # fmt: skip
        expected = self.model.trigger(new, now)
        for replay in (False, *[True] * chance.roll(2)):
            answers = self.bench.do("trigger", new, replay=replay)
            assert [(made.disposition, made.run.id) for made in answers] == expected, (new, answers, replay)
            expected = self.model.trigger(new, now)

    def order(self) -> ClaimOrder:
        chance = self.chance
        jobs = tuple(chance.sample((A, B, C), chance.choice((1, 2, 3, 3))))
        limits = tuple((job, chance.choice((1, 2))) for job in jobs if chance.roll(10) < 3)
        queues = chance.choice((("x",), ("x", "y"), ("x", "y")))
        return ClaimOrder("worker", chance.choice((1, 2, 3, 9)), LEASE, jobs, queues, limits=limits)

    def claim(self) -> None:
        order, now = self.order(), self.bench.clock.now()
        story = f"{order} after {self.done[-8:]}"
        promising = self.bench.store.has_claimable(self.bench.connection, order)
        claimed = [run.id for run in self.bench.do("claim", [order])[0].runs]
        assert promising or not claimed, story
        if order.limits:
            # Which of two goes where a key and a limit meet is open; that nobody is forgotten is not.
            for run in [run for run in self.model.runs if run.id in claimed]:
                assert self.model.may_go(run, order, now), story
                self.model.take(run)
            assert self.model.claim(order._replace(limit=order.limit - len(claimed)), now) == [], story
        else:
            assert claimed == [run.id for run in self.model.claim(order, now)], story

    def finish(self) -> None:
        causes = (Cause.COMPLETE, Cause.FAIL, Cause.RETRY, Cause.RELEASE, Cause.SUSPEND)
        for run in self.chance.sample(held := self.model.leased(), min(len(held), 2)):
            cause = self.chance.choice(causes)
            delay = self.chance.choice((0, 15 * SECOND)) if cause in (Cause.RETRY, Cause.RELEASE) else 0
            lease = Lease(run.id, run.generation, "worker")
            for replay in (False, *[True] * self.chance.roll(2)):
                assert self.bench.finish(lease, cause, delay=delay, replay=replay).accepted
            self.model.finish(run, cause, self.bench.clock.now(), delay)

    def cancel(self) -> None:
        active = [run for run in self.model.runs if run.status in ("pending", "leased", "waiting")]
        for run in self.chance.sample(active, min(len(active), 1)):
            assert self.bench.cancel(run.id).accepted
            self.model.end(run, "cancelled")

    def lose(self) -> None:
        """Leases are lost: all run out, or the worker doesn't know of them."""
        if self.chance.roll(2) == 0:
            self.bench.clock.advance(LEASE / SECOND)
            self.bench.do("expire", [Sweep(max_crashes=2)])
            self.model.expire(2)
        else:
            self.bench.do("recall", [Recall("worker", ())])
            for run in self.model.leased():
                self.model.back(run)

    def wait(self) -> None:
        self.bench.clock.advance(self.chance.choice((1, 5, 20)))
