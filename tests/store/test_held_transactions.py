"""A lease holder that writes and a worker that takes its run over never miss each other, however long either stops.

A zombie's checkpoint counts only if whoever takes the run over reads it. So its transaction holds the run, and a
takeover goes past it until it has ended, one way or the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

import servers
from holdfast.model.run import NewRun, RunFilter
from holdfast.model.step import AttemptRow, LogRow, ProgressRow, StepRow
from holdfast.model.wait import WaitRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import (
    AttemptSave,
    Claimed,
    ClaimOrder,
    Ending,
    Lease,
    LogSave,
    ProgressSave,
    Renewal,
    StepSave,
    Sweep,
    Tx,
    WaitSave,
)
from holdfast.store.mysql import MysqlStore
from holdfast.store.postgres import PostgresStore
from holdfast.store.several_writers import SeveralWriters
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)

LEASE = 30_000_000
T = TypeVar("T")


def eventually(look: Callable[[], T]) -> T:
    """What it gives as soon as that is something."""
    end = time.monotonic() + 30
    pause = threading.Event()
    while time.monotonic() < end:
        if found := look():
            return found
        # MariaDB looks for who waits anew only if nobody has asked it for a tenth of a second.
        pause.wait(0.15)
    raise AssertionError("it never came")


class Scene:
    """One run, leased to a zombie whose time is over; its connection, and that of somebody else."""

    def __init__(self, url: str, *, key: str | None = None, lease: float = 30.0) -> None:
        self.url = url
        self.clock = HandClock()
        kind = PostgresStore if url.startswith("postgres") else MysqlStore
        kind(url, clock=self.clock).migrate()
        self.store: SeveralWriters = kind(url, clock=self.clock, lease=lease)
        self.zombie, self.other = self.store.open(), self.store.open()
        self.do("trigger", NewRun("run", "job", "1", concurrency_key=key))
        (run,) = self.claim("zombie").runs
        self.lease = Lease("run", run.generation, "zombie")
        self.clock.advance(31)

    def close(self) -> None:
        for link in (self.zombie, self.other):
            self.store.disconnect(link)

    def do(self, verb: str, row: Any) -> Any:
        """In a transaction of somebody else."""
        tx = self.store.begin(self.other)
        (answer,) = getattr(self.store, verb)(tx, [row])
        self.store.commit(tx)
        return answer

    def claim(self, owner: str) -> Claimed:
        claimed: Claimed = self.do("claim", ClaimOrder(owner, 10, LEASE, ("job",)))
        return claimed

    def take_over(self) -> Claimed:
        """What somebody gets who thinks that the zombie is dead."""
        self.do("expire", Sweep(5))
        return self.claim("heir")

    def step(self) -> StepSave:
        return StepSave("zombie", StepRow("run", "s", 0, 0, "completed", 0, 1, None, '"z"', None, 1, 1))

    def write(self, verb: str, row: Any, *, in_a_round: bool = True) -> tuple[Tx, Any]:
        """The zombie writes, and has not committed."""
        tx = self.store.begin(self.zombie)
        if in_a_round:
            self.store.lock(tx, {verb: [row]})
        (answer,) = getattr(self.store, verb)(tx, [row])
        return tx, answer

    def steps(self) -> list[str]:
        return [step.name for step in self.store.find_steps(self.other, "run")]


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
    return found


@pytest.fixture(params=["without a key", "with a key"])
def scene(request: pytest.FixtureRequest, url: str) -> Iterator[Scene]:
    scene = Scene(url, key="key" if request.param == "with a key" else None)
    yield scene
    scene.close()


@pytest.fixture
def plain(url: str) -> Iterator[Scene]:
    scene = Scene(url)
    yield scene
    scene.close()


@pytest.fixture
def impatient(url: str) -> Iterator[Scene]:
    scene = Scene(url, lease=0.6)
    yield scene
    scene.close()


@pytest.mark.parametrize("in_a_round", [True, False], ids=["in a round", "by itself"])
def test_a_checkpoint_that_is_held_across_a_takeover_is_read_by_whoever_takes_over(
    scene: Scene, in_a_round: bool
) -> None:
    tx, saved = scene.write("save_steps", scene.step(), in_a_round=in_a_round)
    assert saved
    assert scene.take_over().runs == [], "nobody gets past what the zombie is writing"
    scene.store.commit(tx)
    claimed = scene.take_over()
    assert [run.generation for run in claimed.runs] == [3]
    assert [step.output for step in claimed.steps["run"]] == ['"z"']


def test_a_held_checkpoint_that_is_undone_is_nowhere(scene: Scene) -> None:
    tx, _ = scene.write("save_steps", scene.step())
    scene.store.rollback(tx)
    claimed = scene.take_over()
    assert len(claimed.runs) == 1
    assert (claimed.steps, scene.steps()) == ({}, [])


def test_a_checkpoint_that_comes_after_the_takeover_is_refused(scene: Scene) -> None:
    assert len(scene.take_over().runs) == 1
    tx, saved = scene.write("save_steps", scene.step())
    assert not saved
    scene.store.commit(tx)
    assert scene.steps() == []


def test_a_takeover_that_is_held_lets_the_zombie_wait_and_then_refuses_it(scene: Scene) -> None:
    tx = scene.store.begin(scene.other)
    assert len(scene.store.expire(tx, [Sweep(5)])[0]) == 1
    saved: list[bool] = []

    def write() -> None:
        late, answer = scene.write("save_steps", scene.step())
        scene.store.commit(late)
        saved.append(answer)

    thread = threading.Thread(target=write)
    thread.start()
    eventually(lambda: servers.execute(scene.url, waiting_in(scene.url)))
    scene.store.commit(tx)
    thread.join(60)
    assert saved == [False]
    assert scene.steps() == []


def waiting_in(url: str) -> str:
    """A question that has an answer as soon as somebody waits for a lock."""
    if url.startswith("postgres"):
        return "select 1 from pg_locks where not granted"
    return "select 1 from information_schema.innodb_trx where trx_state = 'LOCK WAIT'"


def _others(scene: Scene) -> dict[str, Callable[[], Any]]:
    return {
        "save_logs": lambda: LogSave("zombie", LogRow(0, "run", 1, None, "info", "late", None, 1)),
        "save_progress": lambda: ProgressSave("zombie", ProgressRow("run", 1, "{}")),
        "save_attempts": lambda: AttemptSave("zombie", AttemptRow("run", "s", 0, 0, 0, 0, 1, 1)),
        "renew_leases": lambda: Renewal(scene.lease, LEASE),
        "finish": lambda: Ending(scene.lease, TABLE[Cause.COMPLETE], output="1"),
    }


@pytest.mark.parametrize("verb", ["save_logs", "save_progress", "save_attempts", "renew_leases", "finish"])
def test_whatever_a_zombie_holds_nobody_takes_the_run_over_meanwhile(scene: Scene, verb: str) -> None:
    tx, _ = scene.write(verb, _others(scene)[verb]())
    assert scene.take_over().runs == []
    scene.store.rollback(tx)
    assert len(scene.take_over().runs) == 1


def test_a_zombie_that_is_frozen_in_its_transaction_is_thrown_out_and_its_run_taken_over(impatient: Scene) -> None:
    scene = impatient
    tx, _ = scene.write("save_steps", scene.step())
    claimed = eventually(lambda: [one for one in [scene.take_over()] if one.runs])[0]
    assert claimed.steps == {}
    with pytest.raises(scene.store._driver_error) as caught:
        scene.store.commit(tx)
    assert "StoreUnavailable" in type(scene.store.translate(caught.value)).__name__
    scene.store.rollback(tx)
    assert scene.steps() == []


def test_what_somebody_holds_keeps_nobody_from_the_others(scene: Scene) -> None:
    for number in range(3):
        scene.do("trigger", NewRun(f"other {number}", "job", "1"))
    scene.claim("dead")
    scene.clock.advance(31)
    tx, _ = scene.write("save_steps", scene.step())
    assert [run.id for run in scene.take_over().runs] == [f"other {number}" for number in range(3)]
    scene.store.commit(tx)


def test_a_key_whose_row_somebody_holds_is_passed_over_and_looked_at_again_soon(plain: Scene) -> None:
    scene = plain
    scene.do("trigger", NewRun("keyed", "job", "1", concurrency_key="key"))
    scene.do("trigger", NewRun("free", "job", "1"))
    tx = scene.store.begin(scene.zombie)
    scene.store.lock(tx, {"cancel": ["keyed"]})
    claimed = scene.claim("me")
    assert [run.id for run in claimed.runs] == ["free"]
    assert claimed.next_due_at is not None
    assert scene.clock.now() < claimed.next_due_at < scene.clock.now() + 1_000_000
    scene.store.rollback(tx)
    claimed = scene.claim("me")
    assert ([run.id for run in claimed.runs], claimed.next_due_at) == (["keyed"], None)


def test_a_claim_that_finds_nothing_locked_does_not_ask_to_be_called_again(plain: Scene) -> None:
    scene = plain
    for number in range(3):
        scene.do("trigger", NewRun(f"a {number}", "job", "1", concurrency_key="held"))
        scene.claim("me")
    scene.do("trigger", NewRun("limited", "other", "1"))
    scene.do("trigger", NewRun("limited too", "other", "1"))
    order = ClaimOrder("me", 10, LEASE, ("job", "other"), limits=(("other", 1),))
    assert [run.id for run in scene.do("claim", order).runs] == ["limited"]
    assert scene.do("claim", order).next_due_at is None


def test_a_claim_that_takes_what_was_written_meanwhile_knows_of_the_delayed_run_that_was_written_before(
    plain: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would look for the delayed one: the news of the other one finds that it has been taken already."""
    scene, lease = plain, plain.store._lease
    claims = scene.store.open()
    came: list[str] = []

    def late(*args: Any) -> bool:
        if not came:
            for run in (NewRun("delayed", "job", "1", delay=5_000_000), NewRun("now", "job", "1")):
                came.append(run.id)
                scene.do("trigger", run)
        return lease(*args)

    monkeypatch.setattr(scene.store, "_lease", late)
    tx = scene.store.begin(claims)
    (claimed,) = scene.store.claim(tx, [ClaimOrder("me", 10, LEASE, ("job",))])
    scene.store.commit(tx)
    scene.store.disconnect(claims)
    assert [run.id for run in claimed.runs] == ["now"]
    assert claimed.next_due_at == scene.clock.now() + 5_000_000


def test_a_claim_that_takes_something_knows_when_the_next_sleeper_wakes(plain: Scene) -> None:
    scene = plain
    wait = WaitRow("run", "s#0", "timer", None, None, 0)
    scene.do("save_waits", WaitSave("zombie", scene.lease.generation, wait, delay=5_000_000))
    suspended = Ending(scene.lease, TABLE[Cause.SUSPEND], waiting_for="s")
    assert scene.do("finish", suspended).accepted
    scene.do("trigger", NewRun("now", "job", "1"))
    claimed = scene.claim("me")
    assert [run.id for run in claimed.runs] == ["now"]
    assert claimed.next_due_at == scene.clock.now() + 5_000_000


def test_of_one_limited_job_one_claim_counts_at_a_time(plain: Scene) -> None:
    scene = plain
    for number in range(4):
        scene.do("trigger", NewRun(f"run {number}", "limited", "1"))
    order = ClaimOrder("me", 10, LEASE, ("limited",), limits=(("limited", 2),))
    scene.do("claim", order._replace(limit=0))  # from now on there is something to lock
    tx = scene.store.begin(scene.zombie)
    assert len(scene.store.claim(tx, [order._replace(owner="other")])[0].runs) == 2
    claimed = scene.do("claim", order)
    assert claimed.runs == []
    assert claimed.next_due_at is not None
    scene.store.commit(tx)
    assert scene.do("claim", order).runs == []
    assert len(scene.store.find_runs(scene.other, RunFilter(statuses=("leased",), jobs=("limited",)))) == 2
