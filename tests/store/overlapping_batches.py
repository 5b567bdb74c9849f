"""A process that writes batches about the same few runs and keys as others do at the same time. Prints what it saw.

python overlapping_batches.py URL SEED SECONDS
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from holdfast.basis.clock import SystemClock
from holdfast.basis.errors import HoldfastError
from holdfast.basis.ids import Ids
from holdfast.commit.round import Rounds
from holdfast.commit.ticket import Ticket
from holdfast.model.run import NewRun, RunFilter, RunRow
from holdfast.model.step import AttemptRow, LogRow, ProgressRow, StepRow
from holdfast.model.wait import NewSignal, WaitRow, wait_key
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import (
    AttemptSave,
    ClaimOrder,
    Ending,
    Lease,
    LogSave,
    Old,
    ProgressSave,
    Recall,
    Renewal,
    StepSave,
    Sweep,
    Take,
    WaitSave,
)
from holdfast.store.opening import open_store

JOBS = ("a", "b", "c")
KEYS = ("k", "l", "m", "n", None, None)
ONCE = ("x", "y", "z", "w", None)
LEASE = 300_000
#: However busy the machine is, so many rounds are served.
ROUNDS = 30
CAUSES = (Cause.COMPLETE, Cause.COMPLETE, Cause.FAIL, Cause.RETRY, Cause.RELEASE, Cause.SUSPEND)


class Batches:
    """Random rounds, about what everybody else's are about, too."""

    def __init__(self, url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = SystemClock()
        self.ids = Ids(self.clock.now)
        self.store = open_store(url, clock=self.clock)
        self.store.migrate()
        self.rounds = Rounds(self.store, self.clock)
        self.reading = self.store.open(read_only=True)
        self.owner = f"worker {seed}"
        self.leases: list[Lease] = []
        self.roots: dict[str, str | None] = {}
        self.claimed: list[tuple[str, int]] = []
        self.refused: list[str] = []
        self.accepted: dict[str, int] = {}

    def round(self) -> None:
        chance = self.random
        seen = self.store.find_runs(self.reading, RunFilter(limit=60))
        self.roots |= {run.id: run.root_id for run in seen}
        active = [run for run in seen if run.completed_at is None]
        holders = [Lease(run.id, run.generation, run.lease_owner) for run in active if run.lease_owner]
        leases = self.some([*self.leases, *holders], 8)
        tickets = [self.trigger() for _ in range(chance.randrange(8))]
        if chance.random() < 0.3:
            tickets.append(Ticket("trigger_many", [self.new() for _ in range(5)]))
        tickets += [Ticket("cancel", run.id) for run in self.some(seen, 3)]
        tickets += [ticket for lease in leases for ticket in self.writes(lease)]
        tickets += [ticket for lease in self.some(leases, 2) for ticket in self.waits(lease)]
        tickets += [Ticket("send_signals", self.signal(run.id)) for run in self.some(active, 4)]
        tickets += [Ticket("finish", self.ending(lease)) for lease in self.some(self.leases, 5)]
        tickets += [Ticket(chance.choice(("delete", "drop_outputs")), run_id) for run_id in self.old()]
        if chance.random() < 0.3:
            tickets += [Ticket("expire", Sweep(3, 20)), Ticket("pass_deadlines", 20), Ticket("cancel_below", 20)]
        if chance.random() < 0.05:
            tickets.append(Ticket("recall", Recall(self.owner, tuple(lease.run_id for lease in self.leases))))
        if chance.random() < 0.7:
            limits = (("c", 2),) if chance.random() < 0.5 else ()
            tickets.append(Ticket("claim", ClaimOrder(self.owner, chance.randrange(1, 9), LEASE, JOBS, limits=limits)))
        chance.shuffle(tickets)
        self.rounds.serve(tickets)
        for ticket in tickets:
            self.look(ticket)

    def look(self, ticket: Ticket[Any]) -> None:
        try:
            answer = ticket.wait()
        except HoldfastError as error:
            self.refused.append(f"{ticket.verb}: {error}")
            return
        if ticket.verb == "claim":
            self.leases = [*self.leases[-20:], *[Lease(run.id, run.generation, self.owner) for run in answer.runs]]
            self.claimed += [(run.id, run.generation) for run in answer.runs]
        self.accepted[ticket.verb] = self.accepted.get(ticket.verb, 0) + 1

    def some(self, things: list[Any], most: int) -> list[Any]:
        return self.random.sample(things, self.random.randrange(min(len(things), most) + 1))

    def new(self, **above: Any) -> NewRun:
        chance = self.random
        key = chance.choice(KEYS)
        return NewRun(
            self.ids.new(), chance.choice(JOBS), "1", priority=chance.randrange(3),
            delay=chance.choice((0, 0, 100_000)), idempotency_key=chance.choice(ONCE), concurrency_key=key,
            deadline=chance.choice((None, None, 500_000)), labels=chance.choice(("{}", '{"a":"b"}')),
            coalesce=chance.choice((None, "skip", "active")) if key and not above else None, **above,
        )  # fmt: skip

    def trigger(self) -> Ticket[Any]:
        return Ticket("trigger", self.new())

    def writes(self, lease: Lease) -> list[Ticket[Any]]:
        run_id, generation, owner = lease
        number = self.random.randrange(5)
        return [
            Ticket("renew_leases", Renewal(lease, LEASE)),
            Ticket("save_steps", StepSave(owner, StepRow(
                run_id, f"s{number}", 0, number, "completed", 0, generation, None, "1", None, 1, 1), moved_on=True)),
            Ticket("save_attempts", AttemptSave(owner, AttemptRow(run_id, "s", 0, 0, number, 0, generation, 1))),
            Ticket("save_logs", LogSave(owner, LogRow(0, run_id, generation, None, "info", "hello", None, 1))),
            Ticket("save_progress", ProgressSave(owner, ProgressRow(run_id, generation, "{}"))),
        ][: self.random.randrange(6)]  # fmt: skip

    def waits(self, lease: Lease) -> list[Ticket[Any]]:
        """For a moment, for a signal, or for runs below it; or a wait of before has what it was for."""
        run_id, generation, owner = lease
        number = self.random.randrange(3)
        root = self.roots.get(run_id) or run_id
        name, kind = f"w{number}", ("timer", "signal", "children")[number]
        below = [
            self.new(parent_id=run_id, root_id=root, child_index=index, awaited_as=wait_key(name, 0))
            for index in range(self.random.randrange(1, 4) if kind == "children" else 0)
        ]
        wait = WaitRow(run_id, wait_key(name, 0), kind, None, "go" if kind == "signal" else None, 0)
        step = StepRow(run_id, name, 0, number, "completed", 0, generation, None, "1", None, 1, 1)
        return self.some([
            Ticket("save_waits", WaitSave(owner, generation, wait, self.random.choice((None, 50_000)), tuple(below))),
            Ticket("take_signals", Take(owner, "go", step)),
            Ticket("save_steps", StepSave(owner, step, ends_wait=True)),
            Ticket("finish", Ending(lease, TABLE[Cause.SUSPEND], waiting_for=kind)),
        ], 4)  # fmt: skip

    def signal(self, run_id: str) -> NewSignal:
        return NewSignal(self.ids.new(), run_id, "go", "1", self.random.choice(("k", "l", None, None)))

    def ending(self, lease: Lease) -> Ending:
        return Ending(lease, TABLE[self.random.choice(CAUSES)], output="1", delay=self.random.choice((0, 50_000)))

    def old(self) -> list[str]:
        if self.random.random() < 0.7:
            return []
        return self.store.find_old(self.reading, Old(self.clock.now(), limit=self.random.randrange(1, 9)))

    def close(self) -> None:
        self.rounds.disconnect()
        self.store.disconnect(self.reading)
        self.store.close()


def held_twice(runs: list[RunRow]) -> list[str]:
    """Keys of which two runs are leased."""
    keys = [run.concurrency_key for run in runs if run.status == "leased" and run.concurrency_key]
    return sorted({key for key in keys if keys.count(key) > 1})


def main() -> None:
    url, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    batches = Batches(url, seed)
    print("ready", flush=True)
    sys.stdin.readline()
    end = batches.clock.steady() + seconds
    twice: list[str] = []
    served = 0  # not their transactions: of some rounds there are several
    while batches.clock.steady() < end or served < ROUNDS:
        batches.round()
        served += 1
        twice += held_twice(batches.store.find_runs(batches.reading, RunFilter(statuses=("leased",))))
    told = {
        "rounds": batches.rounds.count,
        "again": batches.rounds.tally.again,
        "claimed": batches.claimed,
        "refused": sorted(set(batches.refused))[:5],
        "accepted": batches.accepted,
        "twice": twice,
    }
    batches.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
