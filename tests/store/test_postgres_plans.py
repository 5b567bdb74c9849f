"""Every hot statement finds its rows by an index, also in tables of which the planner knows nothing yet.

Counted are the pages that it looks at, not the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import databases
from holdfast.model.run import NewRun, RunFilter
from holdfast.model.step import StepRow
from holdfast.model.wait import NewSignal, WaitRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease, StepSave, Sweep, Take, WaitSave
from holdfast.store.postgres import PostgresStore
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

MANY = 4000
LEASE = 30_000_000
NOW, EARLIER, NEVER = "known to the planner", "known as it was before anything waited", "unknown to the planner"


class Full:
    """A database with thousands of runs of each kind: ended, pending with and without a key, delayed, leased."""

    def __init__(self, url: str, *, analysed: str) -> None:
        self.clock = HandClock()
        self.store = PostgresStore(url, clock=self.clock)
        self.store.migrate()
        self.link = self.store.open()
        self.count = 0
        self.trigger(MANY // 4)
        ended = self.claim(MANY // 4)
        self.do("finish", [self.ending(lease) for lease in ended])
        self.trigger(MANY // 4, job="waiting", keyed=True)
        self.trigger(MANY // 4, job="waiting")
        self.trigger(MANY // 4, job="waiting", delay=LEASE * 100)
        if analysed == EARLIER:
            self.link.say("vacuum analyze")
        self.put_to_sleep(MANY // 4, "asleep")
        for lease in self.put_to_sleep(MANY // 16, "above", below=4)[MANY // 32 :]:
            self.do("cancel", [lease.run_id])
        while self.do("cancel_below", [MANY])[0]:
            pass
        self.trigger(20, keyed=True)
        self.trigger(20)
        if analysed == NOW:
            self.link.say("vacuum analyze")
        # Planned by what is there now, which is what happens to any session before long.
        self.link.say("discard plans")

    def trigger(self, many: int, *, job: str = "job", keyed: bool = False, delay: int = 0) -> None:
        rows = []
        for _ in range(many):
            self.count += 1
            key = f"key {self.count}" if keyed else None
            rows.append(NewRun(f"{self.count:026d}", job, "1", delay=delay, concurrency_key=key))
        self.do("trigger", rows)

    def put_to_sleep(self, many: int, job: str, *, below: int = 0) -> list[Lease]:
        """Runs that wait for a time in an hour, or for so many runs below each of them."""
        self.trigger(many, job=job)
        leases = self.claim(many, job)
        self.do("save_waits", [self.wait(lease, delay=None if below else LEASE * 100, below=below) for lease in leases])
        self.do("finish", [self.ending(lease, Cause.SUSPEND) for lease in leases])
        return leases

    def wait(
        self,
        lease: Lease,
        *,
        delay: int | None = None,
        signal: str | None = None,
        below: int = 0,
        deadline: int | None = None,
    ) -> WaitSave:
        kind = "children" if below else "signal" if signal else "timer"
        children = []
        for _ in range(below):
            self.count += 1
            above = {"parent_id": lease.run_id, "root_id": lease.run_id, "awaited_as": "s#0"}
            children.append(NewRun(f"{self.count:026d}", "below", "1", deadline=deadline, **above))
        wait = WaitRow(lease.run_id, "s#0", kind, None, signal, 0)
        return WaitSave("me", lease.generation, wait, delay, tuple(children))

    def below(self, lease: Lease) -> list[str]:
        return [row.id for row in self.store.find_runs(self.link, RunFilter(parent=lease.run_id))]

    def step(self, lease: Lease) -> StepRow:
        return StepRow(lease.run_id, "s", 0, 0, "completed", 0, lease.generation, None, "1", None, 1, 1)

    def claim(self, many: int, job: str = "job") -> list[Lease]:
        (claimed,) = self.do("claim", [ClaimOrder("me", many, LEASE, (job,))])
        return [Lease(run.id, run.generation, "me") for run in claimed.runs]

    def ending(self, lease: Lease, cause: Cause = Cause.COMPLETE) -> Ending:
        return Ending(lease, TABLE[cause])

    def do(self, verb: str, rows: list[Any]) -> Any:
        tx = self.store.begin(self.link)
        self.store.lock(tx, {verb: rows})
        answers = getattr(self.store, verb)(tx, rows)
        self.store.commit(tx)
        return answers


def pages_of(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.fixture(scope="module", params=[NOW, EARLIER, NEVER])
def full(request: pytest.FixtureRequest) -> Iterator[Full]:
    with contextmanager(databases._fresh)("postgres") as url:
        full = Full(url, analysed=request.param)
        yield full
        full.store.disconnect(full.link)


def watched(full: Full, call: Any) -> dict[str, tuple[int, str]]:
    """What each statement looked at, by its name, with its plan."""
    seen: dict[str, tuple[int, str]] = {}
    names = {text: name for name, text in full.store._sql.items()}
    execute = full.link.execute

    def explained(sql: str, values: Any = None) -> Any:
        if (name := names.get(sql)) is not None and not sql.lstrip().startswith(("savepoint", "release")):
            full.link.say("savepoint explained")
            ((plan,),) = execute(f"explain (analyze, buffers, format json) {sql}", values).fetchall()
            full.link.say("rollback to savepoint explained")
            plan = plan if isinstance(plan, list) else json.loads(plan)
            looked_at = pages_of(plan[0]["Plan"])
            if looked_at > seen.get(name, (-1, ""))[0]:
                seen[name] = (looked_at, json.dumps(plan, indent=1))
        return execute(sql, values)

    full.link.execute = explained  # type: ignore[method-assign]
    try:
        call()
    finally:
        del full.link.execute  # type: ignore[method-assign]
    return seen


#: So many pages a statement may look at for each of the twenty rows that it is about: index, table, and writing both.
EACH = 40


def test_hot_statements_look_at_few_pages(full: Full) -> None:
    leases: list[Lease] = []

    def life() -> None:
        full.trigger(20, keyed=True)
        leases.extend(full.claim(20))
        full.do("save_steps", [StepSave("me", full.step(lease)) for lease in leases])
        full.do("finish", [full.ending(lease) for lease in leases])
        full.do("finish", [full.ending(lease) for lease in leases])  # the answer was lost
        assert full.store.ended(full.link, [lease.run_id for lease in leases])

    tx = full.store.begin(full.link)
    full.store.rollback(tx)
    found = watched(full, lambda: in_transactions(full, life))
    assert {"claim", "claim_keyed", "finish", "save_steps", "bring_forward", "hold_back", "keys_of"} <= set(found)
    are_cheap(found)


HOT_WHEN_WAITING = """
    cancel_below doomed drop_waits expire find_waits finish has_claimable has_tree keys_of next_wake pass_deadlines
    save_waits send_signals sent_signals settle_trees sleepers_due standing_waits take_signals taken_signals wake
"""


def ids(leases: list[Lease]) -> set[str]:
    return {lease.run_id for lease in leases}


def test_what_puts_runs_to_sleep_and_wakes_them_looks_at_few_pages(full: Full) -> None:
    def life() -> None:
        full.trigger(30, job="life")
        leases = full.claim(30, "life")
        timers, signals, above = leases[:10], leases[10:20], leases[20:]
        full.do("save_waits", [full.wait(lease, delay=1) for lease in timers])
        full.do("save_waits", [full.wait(lease, signal="go") for lease in signals])
        full.do("save_waits", [full.wait(lease, below=2, deadline=LEASE) for lease in above])
        full.do("finish", [full.ending(lease, Cause.SUSPEND) for lease in [*timers, *signals[:5], *above]])
        full.clock.advance(1)
        full.do("send_signals", [NewSignal(f"signal {one.run_id}", one.run_id, "go", "1") for one in signals])
        full.do("take_signals", [Take("me", "go", full.step(lease)) for lease in signals[5:]])
        assert ids(full.claim(20, "life")) == ids([*timers, *signals[:5]])
        full.do("cancel", [run_id for lease in above[:5] for run_id in full.below(lease)])
        assert ids(full.claim(20, "life")) == ids(above[:5])
        assert len(full.claim(20, "below")) == 20
        full.clock.advance(31)
        full.do("cancel", sorted(ids(above[5:8])))
        assert len(full.do("cancel_below", [20])[0]) == 6
        assert len(full.do("expire", [Sweep(5, 15)])[0]) == 15
        assert len(full.do("pass_deadlines", [20])[0]) == 4
        assert full.store.find_waits(full.link, timers[0].run_id)
        full.store.next_due_at(full.link)
        assert full.store.has_claimable(full.link, ClaimOrder("me", 1, LEASE, ("life",)))

    found = watched(full, lambda: in_transactions(full, life))
    assert set(HOT_WHEN_WAITING.split()) <= set(found)
    are_cheap(found)


def test_what_ends_the_rest_of_a_large_tree_does_not_read_what_has_ended(full: Full) -> None:
    def life() -> None:
        full.trigger(1, job="large")
        (above,) = full.claim(1, "large")
        wait = full.wait(above, below=MANY // 2)
        below = [run._replace(job_name="limb") for run in wait.children]
        full.do("save_waits", [wait._replace(children=tuple(below))])
        full.do("finish", [full.ending(above, Cause.SUSPEND)])
        full.do("cancel", [run.id for run in below[40:]])
        full.do("cancel", [above.run_id])
        assert full.claim(20, "limb") == []
        assert len(full.do("cancel_below", [100])[0]) == 20

    found = watched(full, lambda: in_transactions(full, life))
    assert {"doomed", "above_ended", "cancel_below", "settle_trees"} <= set(found)
    are_cheap({name: found[name] for name in ("doomed", "above_ended", "cancel_below", "settle_trees")})


def are_cheap(found: dict[str, tuple[int, str]]) -> None:
    print({name: pages for name, (pages, _) in found.items()})
    dear = {name: (pages, plan) for name, (pages, plan) in found.items() if pages > 20 * EACH}
    for name, (pages, plan) in dear.items():
        print(name, pages, plan)
    assert not dear, {name: pages for name, (pages, _) in dear.items()}


def in_transactions(full: Full, life: Any) -> None:
    """All of it in one transaction: what is explained is undone, which takes one."""
    begin, commit = full.store.begin, full.store.commit
    tx = begin(full.link)

    def begun(connection: Any) -> Any:
        tx.seen.clear()
        return tx

    full.store.begin = begun  # type: ignore[method-assign]
    full.store.commit = lambda tx: None  # type: ignore[method-assign]
    try:
        life()
    finally:
        del full.store.begin, full.store.commit  # type: ignore[method-assign]
    commit(tx)
