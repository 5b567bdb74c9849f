"""What wakes a run and what puts it to sleep, in two transactions at once: the second always sees the first.

Each of these tests holds one transaction open until the other one waits for it, or has gone past it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

import databases
import servers
from holdfast.model.run import NewRun
from holdfast.model.wait import NewSignal
from holdfast.rules.lifecycle import Cause
from holdfast.store.base import Lease, Sweep, Tx
from holdfast.store.mysql import MysqlStore
from holdfast.store.postgres import PostgresStore
from holdfast.store.several_writers import SeveralWriters
from holdfast.testing.clock import HandClock
from holdfast.testing.contract.below import BelowBench

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)

SECOND = 1_000_000
LEASE = 30 * SECOND
T = TypeVar("T")
Row = tuple[str, Any]
"""A verb and what it is about."""


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


class Pair(BelowBench):
    """A store with two connections that write; a third one looks. Runs have a concurrency key, or none."""

    store: SeveralWriters

    def __init__(self, url: str, *, keyed: bool) -> None:
        self.url = url
        self.keyed = keyed
        self.setup_method()
        self.first, self.second = self.store.open(), self.store.open()

    def make_store(self, clock: HandClock) -> SeveralWriters:
        kind = PostgresStore if self.url.startswith("postgres") else MysqlStore
        return kind(self.url, clock=clock)

    def new(self, job: str = "job", input: str = '{"a":1}', **values: Any) -> NewRun:
        key = f"key {self._count}" if self.keyed else None
        return super().new(job, input, **{"concurrency_key": key, **values})

    def close(self) -> None:
        for link in (self.first, self.second):
            self.store.disconnect(link)
        self.teardown_method()

    def begin(self, link: Any, *rows: Row) -> tuple[Tx, list[Any]]:
        """A round that has not committed, and its answers."""
        tx = self.store.begin(link)
        batches: dict[str, Sequence[Any]] = {verb: [row] for verb, row in rows}
        self.store.lock(tx, batches)
        return tx, [getattr(self.store, verb)(tx, batch)[0] for verb, batch in batches.items()]

    def round(self, *rows: Row) -> list[Any]:
        """One that takes no longer than it has to."""
        tx, answers = self.begin(self.second, *rows)
        self.store.commit(tx)
        return answers

    def together(self, one: Row, other: Row) -> list[Any]:
        """The answers of both; the other one has to wait until the first has committed."""
        tx, answers = self.begin(self.first, one)
        thread = threading.Thread(target=lambda: answers.extend(self.round(other)))
        thread.start()
        eventually(self.somebody_waits)
        self.store.commit(tx)
        thread.join(60)
        assert len(answers) == 2
        return answers

    def somebody_waits(self) -> Any:
        if self.url.startswith("postgres"):
            return servers.execute(self.url, "select 1 from pg_locks where not granted")
        return servers.execute(self.url, "select 1 from information_schema.innodb_trx where trx_state = 'LOCK WAIT'")

    def end(self, lease: Lease, how: str) -> Row:
        return ("cancel", lease.run_id) if how == "cancel" else ("finish", self.ending(lease, output="1"))

    def suspension(self, lease: Lease, waiting_for: str) -> Row:
        return "finish", self.ending(lease, Cause.SUSPEND, waiting_for=waiting_for)

    def signal(self, lease: Lease) -> Row:
        return "send_signals", NewSignal("s" * 26, lease.run_id, "go", "1")

    def below(self, many: int = 2, **values: Any) -> tuple[Lease, list[Lease]]:
        """A run that waits for those below it, and their leases."""
        above, children = self.parent(many, **values)
        claimed = self.claim("below")
        return above, [self.lease_of(child, claimed) for child in children]

    def child(self, lease: Lease, job: str = "below", wait: str | None = "wait", **values: Any) -> NewRun:
        if values.get("child_index") == 1:
            values["deadline"] = LEASE
        return super().child(lease, job, wait, **values)

    def outlive(self, lease: Lease) -> None:
        """The time of all others is over."""
        self.clock.advance(20)
        self.round(("renew_leases", self.renewal(lease)))
        self.clock.advance(11)

    def waiter(self) -> Lease:
        """A run that is about to wait for a signal."""
        lease = self.lease()
        self.save_wait(self.wait(lease, kind="signal", signal="go"))
        return lease


@pytest.fixture(scope="module")
def schemas() -> Iterator[Iterator[str]]:
    """URLs of empty ones: on PostgreSQL a database for each takes ten times as long to make."""
    with contextmanager(databases._fresh)("postgres") as url:
        yield (f"{url}?schema=test_{number}" for number in itertools.count())


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "mariadb":
        found: str = request.getfixturevalue("mariadb_url")
    else:
        found = next(request.getfixturevalue("schemas"))
    return found


@pytest.fixture(params=["without keys", "with keys"])
def pair(request: pytest.FixtureRequest, url: str) -> Iterator[Pair]:
    pair = Pair(url, keyed=request.param == "with keys")
    yield pair
    pair.close()


@pytest.fixture
def plain(url: str) -> Iterator[Pair]:
    pair = Pair(url, keyed=False)
    yield pair
    pair.close()


@pytest.mark.parametrize("how", ["finish and finish", "finish and cancel", "cancel and finish"])
def test_of_two_last_ends_below_a_run_that_come_at_once_the_second_wakes_it(pair: Pair, how: str) -> None:
    above, children = pair.below()
    pair.together(*[pair.end(child, one) for child, one in zip(children, how.split(" and "), strict=True)])
    assert pair.status(above.run_id) == "pending"
    assert [run.id for run in pair.claim()] == [above.run_id]


def test_of_many_last_ends_in_two_threads_none_is_missed(plain: Pair) -> None:
    families = [plain.below() for _ in range(30)]
    start = threading.Barrier(2)
    failed: list[BaseException] = []

    def write(link: Any, mine: int) -> None:
        try:
            for _, children in families:
                start.wait(60)
                tx, _ = plain.begin(link, plain.end(children[mine], "finish"))
                plain.store.commit(tx)
        except BaseException as error:
            failed.append(error)
            start.abort()

    threads = [threading.Thread(target=write, args=(link, at)) for at, link in enumerate((plain.first, plain.second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failed == []
    assert {plain.status(above.run_id) for above, _ in families} == {"pending"}


@pytest.mark.parametrize("sweep", [("expire", Sweep(1)), ("pass_deadlines", 10)], ids=["given up", "too late"])
def test_a_run_that_is_swept_up_waits_for_nobody_and_wakes_the_one_above_it(pair: Pair, sweep: Row) -> None:
    above, (other, swept) = pair.below()
    pair.outlive(other)
    tx, _ = pair.begin(pair.first, pair.end(other, "finish"))
    assert pair.round(sweep) == [[]], "whoever ends another one below the same run looks at its waits"
    pair.store.commit(tx)
    assert pair.status(above.run_id) == "waiting"
    assert [row.id for row in pair.round(sweep)[0]] == [swept.run_id]
    assert pair.status(above.run_id) == "pending"


@pytest.mark.parametrize("sweep", [("expire", Sweep(1)), ("pass_deadlines", 10)], ids=["given up", "too late"])
def test_an_end_waits_while_another_one_below_the_same_run_is_swept_up(pair: Pair, sweep: Row) -> None:
    above, (other, swept) = pair.below()
    pair.outlive(other)
    rows, ended = pair.together(sweep, pair.end(other, "finish"))
    assert ([row.id for row in rows], ended.accepted) == ([swept.run_id], True)
    assert pair.status(above.run_id) == "pending"


def test_a_signal_that_is_sent_while_a_run_goes_to_sleep_wakes_it(pair: Pair) -> None:
    lease = pair.waiter()
    ended, sent = pair.together(pair.suspension(lease, "signal"), pair.signal(lease))
    assert (ended.status, sent.status) == ("waiting", "sent")
    assert pair.status(lease.run_id) == "pending"


def test_a_run_that_goes_to_sleep_while_a_signal_is_sent_to_it_is_woken_at_once(pair: Pair) -> None:
    lease = pair.waiter()
    sent, ended = pair.together(pair.signal(lease), pair.suspension(lease, "signal"))
    assert (sent.status, ended.status) == ("sent", "pending")
    assert pair.status(lease.run_id) == "pending"


def test_a_signal_that_is_undone_wakes_nobody(plain: Pair) -> None:
    lease = plain.waiter()
    plain.round(plain.suspension(lease, "signal"))
    tx, _ = plain.begin(plain.first, plain.signal(lease))
    plain.store.rollback(tx)
    assert plain.status(lease.run_id) == "waiting"


def test_who_takes_a_signal_while_one_is_sent_gets_it(plain: Pair) -> None:
    lease = plain.waiter()
    _, taken = plain.together(plain.signal(lease), ("take_signals", plain.take(lease)))
    assert (taken.status, taken.output) == ("taken", "1")


@pytest.mark.parametrize("end_first", [True, False], ids=["the end first", "the sleep first"])
def test_the_last_end_below_a_run_that_goes_to_sleep_wakes_it(plain: Pair, end_first: bool) -> None:
    above = plain.lease()
    new = plain.child(above)
    plain.save_wait(plain.wait(above, kind="child", children=(new,)))
    rows = [plain.end(plain.lease_of(new.id, plain.claim("below")), "finish"), plain.suspension(above, "child")]
    plain.together(*(rows if end_first else reversed(rows)))
    assert plain.status(above.run_id) == "pending"


def test_what_a_run_begets_while_it_is_cancelled_is_cancelled_with_it(plain: Pair) -> None:
    lease = plain.lease()
    new = plain.child(lease)
    save = plain.wait(lease, kind="child", children=(new,))
    saved, cancelled = plain.together(("save_waits", save), ("cancel", lease.run_id))
    assert (saved.run_id, cancelled.accepted) == (lease.run_id, True)
    assert [row.id for row in plain.cancel_below()] == [new.id]


def test_a_run_that_is_being_cancelled_begets_nothing(plain: Pair) -> None:
    lease = plain.lease()
    save = plain.wait(lease, kind="child", children=(plain.child(lease),))
    assert plain.together(("cancel", lease.run_id), ("save_waits", save))[1] is None
    assert plain.runs(parent=lease.run_id) == []


def test_what_is_below_a_cancelled_run_and_held_by_somebody_is_cancelled_later(pair: Pair) -> None:
    above, children = pair.below()
    pair.cancel(above.run_id)
    tx, _ = pair.begin(pair.first, ("renew_leases", pair.renewal(children[0])))
    assert [row.id for row in pair.round(("cancel_below", 10))[0]] == [children[1].run_id]
    pair.store.commit(tx)
    assert [row.id for row in pair.round(("cancel_below", 10))[0]] == [children[0].run_id]
    assert pair.round(("cancel_below", 10)) == [[]]


def test_a_claim_that_meets_a_run_of_a_cancelled_tree_wakes_the_one_above_it(pair: Pair) -> None:
    top, (middle,) = pair.below(1)
    leaf = pair.child(middle, "leaf")
    pair.save_wait(pair.wait(middle, kind="child", children=(leaf,)))
    pair.round(pair.suspension(middle, "child"))
    pair.cancel(top.run_id)
    _, claimed = pair.together(pair.signal(middle), ("claim", pair.order("leaf")))
    assert claimed.runs == []
    assert (pair.status(leaf.id), pair.status(middle.run_id)) == ("cancelled", "pending")
    assert [row.id for row in pair.cancel_below()] == [middle.run_id]


def test_a_sleeper_that_somebody_holds_is_passed_over_and_woken_by_the_next_claim(pair: Pair) -> None:
    held, free = pair.sleeping(delay=5 * SECOND), pair.sleeping(delay=5 * SECOND)
    pair.clock.advance(5)
    tx, _ = pair.begin(pair.first, pair.signal(held))
    claimed = pair.round(("claim", pair.order()))[0]
    assert [run.id for run in claimed.runs] == [free.run_id]
    assert claimed.next_due_at is not None
    assert claimed.next_due_at > pair.clock.now(), "who asks at once asks without end"
    pair.store.rollback(tx)
    assert [run.id for run in pair.claim()] == [held.run_id]
