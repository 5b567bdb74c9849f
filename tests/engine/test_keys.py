"""S5, as far as keys exist: idempotency, order, and what the tables promise to concurrency keys."""

from __future__ import annotations

from pathlib import Path

import pytest

import databases
from databases import StoreHere
from holdfast import Holdfast
from holdfast.model.run import NewRun, RunFilter, RunRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease, Sweep
from holdfast.testing import HandClock

LEASE = 30_000_000


@pytest.fixture
def app(tmp_path: Path) -> Holdfast:
    return Holdfast(databases.url(tmp_path / "app.db"), worker=False)


def test_s5_an_idempotency_key_leads_to_one_run_also_after_its_end(app: Holdfast) -> None:
    @app.job
    def charge(amount: int) -> int:
        return amount

    with app:
        once = charge.options(idempotency_key="order-7")
        first = once.trigger(1).wait()
        app.process_until_idle().wait()
        again = once.trigger(2).wait()
        assert (first.disposition, again.disposition) == ("created", "idempotent")
        assert (again.id, again.status, again.input) == (first.id, "completed", {"amount": 1})
        assert len(app.get_runs().wait()) == 1


def test_s5_a_key_belongs_to_its_job_and_an_empty_one_is_none(app: Holdfast) -> None:
    @app.job
    def one() -> None: ...

    @app.job
    def other() -> None: ...

    with app:
        runs = [
            job.options(idempotency_key=key).trigger().wait().id
            for job, key in [(one, "k"), (other, "k"), (one, ""), (one, "")]
        ]
        assert len(set(runs)) == 4


def test_s5_claims_go_by_priority_then_time_then_age(app: Holdfast) -> None:
    order: list[str] = []

    @app.job
    def note(name: str) -> None:
        order.append(name)

    with app:
        for name, priority in [("old", 0), ("young", 0), ("low", -1), ("high", 5)]:
            note.options(priority=priority).trigger(name).wait()
        assert app.process_until_idle().wait() == 4
    assert order == ["high", "old", "young", "low"]


class Line:
    """A store with two runs of one concurrency key: the older one leased, the younger one never claimed."""

    def __init__(self, path: Path) -> None:
        self.clock = HandClock()
        self.store = StoreHere(databases.url(path / "line.db"), clock=self.clock)
        self.store.migrate()
        self.connection = self.store.connect()
        self.do("trigger", NewRun("older", "job", "{}", concurrency_key="customer"))
        self.older = self.claim()
        self.clock.advance(1)
        self.do("trigger", NewRun("younger", "job", "{}", concurrency_key="customer"))

    def do(self, verb: str, row: object) -> object:
        tx = self.store.begin(self.connection)
        (answer,) = getattr(self.store, verb)(tx, [row])
        self.store.commit(tx)
        return answer

    def claim(self) -> RunRow:
        tx = self.store.begin(self.connection)
        (claimed,) = self.store.claim(tx, [ClaimOrder("me", 1, LEASE, ("job",))])
        self.store.commit(tx)
        return claimed.runs[0]

    def statuses(self) -> dict[str, str]:
        return {run.id: run.status for run in self.store.find_runs(self.connection, RunFilter())}

    def close(self) -> None:
        self.store.disconnect(self.connection)
        self.store.close()


@pytest.mark.parametrize("cause", [Cause.RETRY, Cause.RELEASE])
def test_s5_tried_a_run_of_a_key_that_returns_to_pending_is_not_stopped_by_a_younger_one(
    tmp_path: Path, cause: Cause
) -> None:
    line = Line(tmp_path)
    lease = Lease("older", line.older.generation, "me")
    ended = line.do("finish", Ending(lease, TABLE[cause]))
    assert ended.accepted  # type: ignore[attr-defined]
    assert line.statuses() == {"older": "pending", "younger": "pending"}
    assert line.claim().id == "older", "it keeps its place before younger runs of its key"
    line.close()


def test_s5_tried_an_expired_run_of_a_key_is_never_failed_because_a_younger_one_waits(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.clock.advance(LEASE / 1e6)
    line.do("expire", Sweep(max_crashes=5))
    assert line.statuses() == {"older": "pending", "younger": "pending"}
    assert line.claim().id == "older"
    line.close()
