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
from holdfast.model.run import NewRun
from holdfast.model.step import StepRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease, StepSave
from holdfast.store.postgres import PostgresStore
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

MANY = 4000
LEASE = 30_000_000


class Full:
    """A database with thousands of runs of each kind: ended, pending with and without a key, delayed, leased."""

    def __init__(self, url: str, *, analysed: bool) -> None:
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
        self.trigger(20, keyed=True)
        self.trigger(20)
        if analysed:
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

    def claim(self, many: int, job: str = "job") -> list[Lease]:
        (claimed,) = self.do("claim", [ClaimOrder("me", many, LEASE, (job,))])
        return [Lease(run.id, run.generation, "me") for run in claimed.runs]

    def ending(self, lease: Lease) -> Ending:
        return Ending(lease, TABLE[Cause.COMPLETE])

    def do(self, verb: str, rows: list[Any]) -> Any:
        tx = self.store.begin(self.link)
        self.store.lock(tx, {verb: rows})
        answers = getattr(self.store, verb)(tx, rows)
        self.store.commit(tx)
        return answers


def pages_of(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.fixture(scope="module", params=["known to the planner", "unknown to the planner"])
def full(request: pytest.FixtureRequest) -> Iterator[Full]:
    with contextmanager(databases._fresh)("postgres") as url:
        full = Full(url, analysed=request.param == "known to the planner")
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
            seen[name] = (max(pages_of(plan[0]["Plan"]), seen.get(name, (0, ""))[0]), json.dumps(plan, indent=1))
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
        rows = [StepRow(one.run_id, "s", 0, 0, "completed", 0, one.generation, None, "1", None, 1, 1) for one in leases]
        full.do("save_steps", [StepSave("me", row) for row in rows])
        full.do("finish", [full.ending(lease) for lease in leases])
        full.do("finish", [full.ending(lease) for lease in leases])  # the answer was lost
        assert full.store.ended(full.link, [lease.run_id for lease in leases])

    tx = full.store.begin(full.link)
    full.store.rollback(tx)
    found = watched(full, lambda: in_transactions(full, life))
    assert {"claim", "claim_keyed", "finish", "save_steps", "bring_forward", "hold_back", "keys_of"} <= set(found)
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
