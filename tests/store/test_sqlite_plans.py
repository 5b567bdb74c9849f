"""How much SQLite has to do: no hot statement reads the history, and the future costs a claim nothing.

Nothing here measures time. A plan says which index is used; instructions of SQLite's virtual machine say how much.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from holdfast.model.run import NewRun, RunFilter
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease, Sweep
from holdfast.store.below import WOKEN_AT_ONCE
from holdfast.store.queries import load
from holdfast.store.sqlite import _SQL, SqliteStore
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("what SQLite plans is the same on every Python", every=8)

CLOCK = HandClock()
NOW = CLOCK.now()
LEASE = 30_000_000

_RUN = ["id", "job", "in", "default", 0, NOW, "idem", "key", "{}", "", None, None, "active", None, None, None]
_RUN += [None, None, None, 0, None]
#: One of thousands that sleep.
SLEEPER = f"0 waitingsleeper{0:026d}"
#: Leased to me, with a wait, with thousands of signals that it has taken, and some that it has not.
AWAKE = "0 awake"
#: Waits for thousands of runs below it, most of which have ended.
PARENT = "0 parent"
#: Has ended without its output, above thousands of runs.
ROOT = "0 root"
_SAVE = ["me", "r1", "step", 0, 0, "completed", 0, 1, None, "1", None, 1, 2, 0]

#: Every statement that a worker runs again and again, with values for it.
HOT: dict[str, tuple[Any, ...]] = {
    "insert_runs": (json.dumps([_RUN]), NOW),
    "insert_labels": (json.dumps(["r1"]),),
    "find_triggered": (json.dumps([_RUN]),),
    "next_due": (),
    "promote": (NOW, 10_000),
    "claim": (json.dumps([["default", "job", None], ["default", "lined", None]]), 10, "me", NOW, LEASE),
    "claim_within": (json.dumps([["default", "job", 3], ["default", "job2", None]]), 10, "me", NOW, LEASE),
    "leased_of_jobs": (json.dumps(["job", "lined"]),),
    "hold_back": (json.dumps(["key", "free"]),),
    "bring_forward": (json.dumps(["key", "free"]),),
    "find_active": (json.dumps([_RUN]),),
    "has_claimable": (json.dumps([["default", "job", None], ["default", "lined", 3]]), NOW),
    "finish": (json.dumps([["r1", 1, "me", "completed", True, "1", None, None, 0, 0, None]]), NOW),
    "states": (json.dumps(["r1"]),),
    "cancel": (json.dumps(["r1"]), NOW),
    "expire": (NOW, 5, 100),
    "pass_deadlines": (NOW, 100),
    "recall": (json.dumps(["r1"]), "me", NOW),
    "renew_leases": (json.dumps([["r1", 1, "me", LEASE]]), NOW),
    "lost_leases": (json.dumps([["r1", 1, "me"]]),),
    "ended": (json.dumps(["r1"]),),
    "move_on": (json.dumps(["r1"]),),
    "save_progress": (json.dumps([["r1", 1, "me", "{}"]]), NOW),
    "save_steps": (json.dumps([_SAVE]),),
    "save_attempts": (json.dumps([["me", "r1", "step", 0, 0, 0, 0, 1, 1, 2, "E"]]),),
    "failed_tries": ("r1", 0),
    "find_attempts": ("r1",),
    "saved_steps": (json.dumps([_SAVE]),),
    "first_steps": (json.dumps(["r1"]), 100),
    "find_steps": ("r1", 0, 100),
    "save_logs": (json.dumps([["r1", 1, "me", None, "info", "text", None, 1, True]]),),
    "find_logs": ("r1", 0, 100),
    "save_waits": (json.dumps([["me", AWAKE, 1, "wait#0", "timer", None, 5, None]]), NOW),
    "standing_waits": (json.dumps([["me", AWAKE, 1, "wait#0"]]),),
    "has_tree": (json.dumps([AWAKE]),),
    "drop_waits": (json.dumps([[SLEEPER, "wait#0"]]),),
    "wake": (json.dumps([SLEEPER, PARENT]), NOW),
    "sleepers_due": (NOW, 1_000),
    "next_wake": (),
    "find_waits": (SLEEPER,),
    "send_signals": (json.dumps([[f"s{n}", AWAKE, "go", "1", "key"] for n in range(2)]), NOW, 1_000),
    "sent_signals": (json.dumps([["s0", AWAKE, "go", "1", "key"]]),),
    "take_signals": (json.dumps([["me", AWAKE, 1, "wait#0", "go"]]),),
    "taken_signals": (json.dumps([["me", AWAKE, 1, "wait#0", "go"]]), NOW),
    "leave_going": (json.dumps([AWAKE]),),
    "go_through": (2,),
    "cancel_below": (NOW, 2),
    "settle_trees": (),
    "above_ended": (json.dumps([AWAKE]),),
    "doomed": (json.dumps([f"0 pendingbelow{n:026d}" for n in range(10)]),),
    "check_in": (json.dumps([["w1", "host", 1, "[]", "[]", "1", LEASE]]), NOW),
    "check_out": (json.dumps(["w1"]),),
    "forget_workers": (NOW, 10, 1000),
    "find_workers": (NOW,),
    "leased": (),
    "follow": (json.dumps(["r1"]),),
    "passing": (200,),
    "step_marks": (json.dumps([["r1", 0]]),),
    "marked_steps": (json.dumps([["r1", "step", 0, 0, 1]]),),
    "logs_after": (json.dumps([["r1", 0]]), 100),
    "members": (json.dumps(["r1"]), 500),
    **{
        name: (json.dumps(["r1"]),)
        for name in (
            "forgettable",
            "family",
            "delete_labels",
            "delete_progress",
            "delete_steps",
            "delete_step_attempts",
            "delete_logs",
            "delete_waits",
            "delete_signals",
            "delete_runs",
            "drop_outputs",
            "outputs_dropped",
        )
    },
}

_BIG = "holdfast_(runs|steps|step_attempts|logs|labels|waits|signals)"
_PARTIAL = "runs_claimable|runs_delayed|runs_leases|runs_above_cancelled|runs_asleep"


def fill(
    connection: sqlite3.Connection, count: int, *, status: str, job: str = "job", due: int = 1, first: int = 0
) -> None:
    """Many rows at once, made by SQLite itself."""
    ended = "1" if status == "completed" else "null"
    connection.execute(
        f"""
        with recursive n(i) as (select ? union all select i + 1 from n where i < ? - 1)
        insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, completed_at, input,
                                   generation)
        select printf('%s%026d', ?, i), ?, ?, ? + iif(?, 0, 3600000000 + i), ?, 0, 0, {ended}, '1', ? from n
        """,
        (first, first + count, status + job, job, status, NOW, due, due, 1 if status == "completed" else 0),
    )


def fill_keys(
    connection: sqlite3.Connection, count: int, *, keys: Sequence[str], job: str = "job", held: Sequence[str] = ()
) -> None:
    """Runs that were claimed before and wait for their keys, in turns; some keys are held by runs of another job."""
    connection.executemany(
        """
        insert into holdfast_runs (id, job_name, status, run_at, due, turn, generation, concurrency_key, created_at,
                                   updated_at, input)
        values (printf('key %026d', ?), ?, 'pending', ?, 1, 1, 1, ?, 0, 0, '1')""",
        ((n, job, NOW, keys[n % len(keys)]) for n in range(count)),
    )
    connection.executemany(
        """
        insert into holdfast_runs (id, job_name, status, run_at, due, turn, generation, concurrency_key, created_at,
                                   updated_at, input, lease_owner, lease_expires_at)
        values ('holder of ' || ?1, 'holder', 'leased', ?2, 1, 2, 1, ?1, 0, 0, '1', 'other', ?3)""",
        [(key, NOW, NOW + LEASE) for key in held],
    )
    connection.execute(_SQL["bring_forward"], (json.dumps(keys),))


def fill_waits(connection: sqlite3.Connection) -> None:
    """Runs that wait, signals, and trees, thousands of each. All are older than the others."""
    fill(connection, 3_000, status="waiting", job="sleeper")
    fill(connection, 3_000, status="pending", job="below")
    fill(connection, 3_000, status="completed", job="below")
    connection.execute("update holdfast_runs set id = '0 ' || id where job_name in ('sleeper', 'below')")
    run = "insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, input, generation"
    connection.execute(f"{run}, tree) values (?, 'job', 'waiting', 0, 1, 0, 0, '1', 1, 1)", (PARENT,))
    connection.execute(f"{run}, tree, completed_at) values (?, 'job', 'failed', 0, 1, 0, 0, '1', 1, 2, 1)", (ROOT,))
    connection.execute(
        f"{run}, lease_owner, lease_expires_at) values (?, 'job', 'leased', 0, 1, 0, 0, '1', 1, 'me', ?)",
        (AWAKE, NOW + LEASE),
    )
    connection.execute(
        """
        update holdfast_runs set
          parent_id = iif(status = 'pending', ?1, ?2), root_id = iif(status = 'pending', ?1, ?2), awaited_as = 'wait#0'
        where job_name = 'below'""",
        (ROOT, PARENT),
    )
    last = f"0 pendingbelow{2999:026d}"
    connection.execute("update holdfast_runs set parent_id = ?1, root_id = ?1 where id = ?2", (PARENT, last))
    wait = "insert into holdfast_waits (run_id, key, kind, until, signal, created_at)"
    connection.execute(
        f"{wait} select id, 'wait#0', 'timer', ?, null, 0 from holdfast_runs where status = 'waiting'", (NOW + LEASE,)
    )
    connection.execute(
        "update holdfast_runs set wake_at = ? where status = 'waiting' and id <> ?", (NOW + LEASE, PARENT)
    )
    connection.execute(f"{wait} values (?, 'wait#0', 'signal', ?, 'go', 0)", (AWAKE, NOW - 1))
    connection.execute("update holdfast_waits set kind = 'children', until = null where run_id = ?", (PARENT,))
    connection.execute(
        """
        with recursive n(i) as (select 0 union all select i + 1 from n where i < 5099)
        insert into holdfast_signals (id, run_id, name, value, created_at, consumed_by)
        select 'old ' || i, ?, 'go', '1', i, iif(i < 5000, 'taken#' || i, null) from n""",
        (AWAKE,),
    )


@pytest.fixture(scope="module", params=["no statistics", "analyzed"])
def full(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    """20,000 finished runs and 6,000 pending ones, 5,000 in two keys, with a step, a log line and a label each.

    Beside them are thousands of runs that wait, of signals, and of runs below others.
    """
    store = SqliteStore("sqlite://", clock=CLOCK)
    store.migrate()
    connection = store.connect()
    connection.execute("begin")
    fill(connection, 20_000, status="completed")
    fill(connection, 1_000, status="pending")
    fill_keys(connection, 5_000, keys=("key", "free"), job="lined", held=("key",))
    connection.execute(
        "insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, started_at, "
        "completed_at) select id, 'step', 0, 0, 'completed', 0, 1, 0, 0 from holdfast_runs"
    )
    connection.execute(
        "insert into holdfast_step_attempts (run_id, name, occurrence, run_attempt, number, position, generation, "
        "started_at) select id, 'step', 0, 0, 0, 0, 1, 0 from holdfast_runs"
    )
    connection.execute(
        "insert into holdfast_logs (run_id, generation, level, message, created_at) "
        "select id, 1, 'info', 'text', 0 from holdfast_runs"
    )
    connection.execute("insert into holdfast_labels select 'env', 'test', id from holdfast_runs")
    fill_waits(connection)
    connection.execute("commit")
    if request.param == "analyzed":
        connection.execute("analyze")
    yield connection
    store.disconnect(connection)
    store.close()


def plan(connection: sqlite3.Connection, text: str, values: tuple[Any, ...]) -> list[str]:
    return [row[3] for row in connection.execute(f"explain query plan {text}", values).fetchall()]


def instructions(connection: sqlite3.Connection, call: Callable[[], object]) -> int:
    """Instructions of SQLite's virtual machine that the call takes, to the next ten."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    connection.set_progress_handler(tick, 10)
    try:
        call()
    finally:
        connection.set_progress_handler(None, 10)
    return count * 10


def test_every_statement_is_either_hot_or_cold() -> None:
    cold = {name for name in load("sqlite") if name.startswith("doctor_")}  # a person waits for them, nobody else
    cold |= {"batch", "undo_batch", "end_batch"}  # savepoints have no plan
    assert set(HOT) == set(load("sqlite")) - cold


@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_never_reads_a_whole_table(full: sqlite3.Connection, name: str) -> None:
    lines = plan(full, _SQL[name], HOT[name])
    aliases = {alias for table, alias in re.findall(r"(\w+) as (\w+)", _SQL[name]) if re.fullmatch(_BIG, table)}
    for line in lines:
        scanned = re.match(r"SCAN (\w+)(.*)", line)
        if scanned and (re.fullmatch(_BIG, scanned[1]) or scanned[1] in aliases):
            # These indexes hold only what is pending, leased, delayed or asleep, or to be cancelled, never the history.
            partial = re.search(rf"USING (COVERING )?INDEX holdfast_({_PARTIAL})", scanned[2])
            assert partial, f"{name}: {line}\n" + "\n".join(lines)


@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_costs_the_same_with_a_long_history(full: sqlite3.Connection, name: str) -> None:
    def call() -> None:
        full.execute(_SQL[name], HOT[name]).fetchall()

    full.execute("begin")
    try:
        # One pass over 21,000 rows would be 100,000 instructions at least.
        assert instructions(full, call) < 5_000, plan(full, _SQL[name], HOT[name])
    finally:
        full.execute("rollback")


@pytest.mark.parametrize(
    "filter",
    [
        RunFilter(ids=("a", "b")),
        RunFilter(jobs=("job",), limit=20),
        RunFilter(limit=20),
        RunFilter(limit=20, before="pending"),
        RunFilter(statuses=("failed",), limit=20),
        RunFilter(statuses=("pending", "leased"), limit=20),
        RunFilter(labels=(("env", "prod"),), limit=20),
        RunFilter(labels=(("env", "test"),), limit=20),
        RunFilter(parent=PARENT, awaited_as="wait#0", limit=20),
        RunFilter(parent=ROOT, awaited_as="other#0"),
        RunFilter(root=ROOT, limit=20),
    ],
    ids=repr,
)
def test_a_page_of_a_listing_does_not_read_the_history(full: sqlite3.Connection, filter: RunFilter) -> None:
    store = SqliteStore("sqlite://", clock=CLOCK)
    assert instructions(full, lambda: store.find_runs(full, filter)) < 20_000


# -- what is not for us costs nothing --------------------------------------------------------------------------------


def claim_cost(*, others: bool) -> tuple[int, int, int]:
    """Instructions of a claim of ten runs, of a look beforehand, and of an expiry."""
    store = SqliteStore("sqlite://", clock=CLOCK)
    store.migrate()
    connection = store.connect()
    connection.execute("begin")
    fill(connection, 1_000, status="pending")
    if others:
        fill(connection, 100_000, status="pending", job="unknown")
        fill(connection, 100_000, status="pending", job="job", due=0, first=1_000_000)
    connection.execute("commit")
    order = ClaimOrder("me", 10, LEASE, ("job", "second", "third"))
    tx = store.begin(connection)
    costs = (
        instructions(connection, lambda: store.claim(tx, [order])),
        instructions(connection, lambda: store.has_claimable(connection, order)),
        instructions(connection, lambda: store.expire(tx, [Sweep(5)])),
    )
    claimed = connection.execute("select count(*) from holdfast_runs where status = 'leased'").fetchone()
    assert claimed == (10,)
    store.rollback(tx)
    store.disconnect(connection)
    store.close()
    return costs


def test_unknown_jobs_and_the_future_do_not_slow_a_claim() -> None:
    alone, among = claim_cost(others=False), claim_cost(others=True)
    assert alone[0] > 100, "something was measured"
    for without, beside in zip(alone, among, strict=True):
        assert beside < 2 * without + 20, (alone, among)


def keyed_costs(keys: int, *, held: bool) -> tuple[int, int]:
    """Instructions of a claim of ten runs, and of a look beforehand, with 30,000 runs in so many keys."""
    store = SqliteStore("sqlite://", clock=CLOCK)
    store.migrate()
    connection = store.connect()
    connection.execute("begin")
    fill(connection, 1_000, status="pending")
    names = [f"key {n}" for n in range(keys)]
    if keys:
        fill_keys(connection, 30_000, keys=names, held=names if held else ())
    connection.execute("commit")
    tx = store.begin(connection)
    order = ClaimOrder("me", 10, LEASE, ("job", "other"))
    look = instructions(connection, lambda: store.has_claimable(connection, order))
    claim = instructions(connection, lambda: store.claim(tx, [order]))
    assert connection.execute("select count(*) from holdfast_runs where lease_owner = 'me'").fetchone() == (10,)
    store.rollback(tx)
    store.disconnect(connection)
    store.close()
    return claim, look


@pytest.mark.parametrize(("keys", "held"), [(10, True), (10, False), (10_000, True), (10_000, False)])
def test_runs_that_wait_for_their_keys_do_not_slow_a_claim(keys: int, held: bool) -> None:
    (claim, look), (alone, look_alone) = keyed_costs(keys, held=held), keyed_costs(0, held=False)
    # Those that may go cost a little more: whether another of the key goes first is asked for each.
    assert claim < (1.1 if held else 2) * alone, (claim, alone)
    assert look <= look_alone + 20


def test_a_full_job_with_many_pending_runs_does_not_slow_a_claim() -> None:
    store = SqliteStore("sqlite://", clock=CLOCK)
    store.migrate()
    connection = store.connect()
    fill(connection, 1_000, status="pending")
    order = ClaimOrder("me", 10, LEASE, ("job", "full"))
    limited = order._replace(limits=(("full", 1),))
    store.trigger(tx := store.begin(connection), [NewRun("full", "full", "1")])
    store.claim(tx, [order._replace(jobs=("full",))])
    store.commit(tx)
    costs = []
    for one in (order, limited):
        tx = store.begin(connection)
        look = instructions(connection, lambda: store.has_claimable(connection, one))  # noqa: B023
        costs.append((instructions(connection, lambda: store.claim(tx, [one])), look))  # noqa: B023
        store.rollback(tx)
        if one is order:
            fill(connection, 30_000, status="pending", job="full", first=1_000_000)
    store.disconnect(connection)
    store.close()
    assert costs[1][0] < 1.2 * costs[0][0] + 100, costs
    assert costs[1][1] < 2 * costs[0][1] + 100, costs


def test_sleepers_that_were_woken_do_not_slow_a_claim() -> None:
    # They are pending, and what they waited for stays until somebody has executed them.
    costs = []
    for count in (0, 20_000):
        store = SqliteStore("sqlite://", clock=CLOCK)
        store.migrate()
        connection = store.connect()
        connection.execute("begin")
        fill(connection, 1_000, status="pending")
        fill(connection, count, status="pending", job="sleeper")
        connection.execute(
            "insert into holdfast_waits (run_id, key, kind, until, created_at) "
            "select id, 'wait#0', 'timer', ?, 0 from holdfast_runs where job_name = 'sleeper'",
            (NOW - 1,),
        )
        connection.execute("commit")
        order = ClaimOrder("me", 10, LEASE, ("job",))
        tx = store.begin(connection)
        look = instructions(connection, lambda: store.has_claimable(connection, order))  # noqa: B023
        costs.append((instructions(connection, lambda: store.claim(tx, [order])), look))  # noqa: B023
        store.rollback(tx)
        store.disconnect(connection)
        store.close()
    for alone, beside in zip(*costs, strict=True):
        assert beside < 1.1 * alone + 20, costs


def test_a_claim_wakes_no_more_sleepers_than_others_can_wait_for() -> None:
    costs = []
    for count in (1_000, 20_000):
        store = SqliteStore("sqlite://", clock=CLOCK)
        store.migrate()
        connection = store.connect()
        connection.execute("begin")
        fill(connection, count, status="waiting", job="sleeper")
        connection.execute("update holdfast_runs set wake_at = ?", (NOW - 1,))
        connection.execute(
            "insert into holdfast_waits (run_id, key, kind, until, created_at) "
            "select id, 'wait#0', 'timer', ?, 0 from holdfast_runs",
            (NOW - 1,),
        )
        connection.execute("commit")
        tx = store.begin(connection)
        order = ClaimOrder("me", 10, LEASE, ("sleeper",))
        costs.append(instructions(connection, lambda: store.claim(tx, [order])))  # noqa: B023
        left = connection.execute("select count(*) from holdfast_runs where status = 'waiting'").fetchone()[0]
        assert count - left == WOKEN_AT_ONCE
        assert store.claim(tx, [order])[0].next_due_at == NOW - 1, "whoever claims comes again for the others"
        store.rollback(tx)
        store.disconnect(connection)
        store.close()
    assert costs[1] < 1.1 * costs[0] + 20, costs


def test_cancelling_and_deleting_a_part_of_a_tree_does_not_read_all_of_it() -> None:
    costs = []
    for count in (1_500, 30_000):
        store = SqliteStore("sqlite://", clock=CLOCK)
        store.migrate()
        connection = store.connect()
        connection.execute("begin")
        fill(connection, count, status="pending", job="below")
        fill(connection, 1, status="waiting", job="above")
        ((root,),) = connection.execute("select id from holdfast_runs where status = 'waiting'").fetchall()
        connection.execute("update holdfast_runs set tree = 1 where id = ?", (root,))
        connection.execute("update holdfast_runs set parent_id = ?1, root_id = ?1 where id <> ?1", (root,))
        connection.execute("commit")
        tx = store.begin(connection)
        store.cancel(tx, [root])
        cancel = instructions(connection, lambda: store.cancel_below(tx, [200]))  # noqa: B023
        end = "status = 'cancelled', completed_at = 1, turn = 0"
        connection.execute(f"update holdfast_runs set {end} where completed_at is null")
        # The first of them are gone, and what is left is asked for.
        store.delete(tx, [root])
        costs.append((cancel, instructions(connection, lambda: store.delete(tx, [root]))))  # noqa: B023
        store.rollback(tx)
        store.disconnect(connection)
        store.close()
    for small, large in zip(*costs, strict=True):
        assert large < 1.2 * small + 100, costs


def test_passing_a_key_on_does_not_read_its_line() -> None:
    costs = []
    for count in (10, 20_000):
        store = SqliteStore("sqlite://", clock=CLOCK)
        store.migrate()
        connection = store.connect()
        connection.execute("begin")
        fill_keys(connection, count, keys=["key"], held=["key"])
        connection.execute("commit")
        tx = store.begin(connection)
        costs.append(instructions(connection, lambda: store.cancel(tx, ["holder of key"])))  # noqa: B023
        (claimed,) = store.claim(tx, [ClaimOrder("me", 10, LEASE, ("job",))])
        assert len(claimed.runs) == 1
        store.rollback(tx)
        store.disconnect(connection)
        store.close()
    assert costs[1] <= costs[0] + 50, costs


def test_runs_without_a_key_pay_no_statement_for_those_with_one() -> None:
    store = SqliteStore("sqlite://", clock=CLOCK)
    store.migrate()
    connection = store.connect()

    def life(key: str | None) -> list[str]:
        seen: list[str] = []
        tx = store.begin(connection)
        connection.set_trace_callback(seen.append)
        store.trigger(tx, [NewRun(f"{key} {n}", "job", "1", concurrency_key=key and f"{key} {n}") for n in range(3)])
        first, second, _ = store.claim(tx, [ClaimOrder("me", 3, LEASE, ("job",))])[0].runs
        store.finish(tx, [Ending(Lease(first.id, 1, "me"), TABLE[Cause.COMPLETE], output="1")])
        store.cancel(tx, [second.id])
        tx.now += LEASE
        assert len(store.expire(tx, [Sweep(1)])[0]) == 1
        connection.set_trace_callback(None)
        store.commit(tx)
        return [text for text in seen if "turn = 1\nwhere" in text or "front" in text]

    plain, keyed = life(None), life("key")
    store.disconnect(connection)
    store.close()
    assert plain == []
    assert len(keyed) == 5, "one when they come, one when they are claimed, one per way to end"


def test_a_claim_does_not_pay_for_each_run_that_waits() -> None:
    store = SqliteStore("sqlite://", clock=CLOCK)
    store.migrate()
    connection = store.connect()
    costs = []
    for first, count in ((0, 100), (100, 50_000)):
        fill(connection, count, status="pending", first=first)
        tx = store.begin(connection)
        costs.append(instructions(connection, lambda: store.claim(tx, [ClaimOrder("me", 10, LEASE, ("job",))])))  # noqa: B023
        store.rollback(tx)
    store.disconnect(connection)
    store.close()
    assert costs[1] < 2 * costs[0], costs


def test_a_claim_makes_only_so_many_delayed_runs_due_at_once() -> None:
    store = SqliteStore("sqlite://", clock=CLOCK)
    store.migrate()
    connection = store.connect()
    clock = HandClock()
    store.clock = clock
    fill(connection, 25_000, status="pending", due=0)
    clock.advance(2 * 3600)
    order = ClaimOrder("me", 1, LEASE, ("other",))
    left = []
    for _ in range(3):
        tx = store.begin(connection)
        due = store.claim(tx, [order])[0].next_due_at
        store.commit(tx)
        left.append(connection.execute("select count(*) from holdfast_runs where due = 0").fetchone()[0])
        assert (due is None) == (left[-1] == 0)
    store.disconnect(connection)
    store.close()
    assert left == [15_000, 5_000, 0]


def test_one_round_is_a_few_statements_however_many_rows_it_has() -> None:
    store = SqliteStore("sqlite://", clock=CLOCK)
    store.migrate()
    connection = store.connect()

    def statements(count: int, first: int) -> int:
        seen: list[str] = []
        tx = store.begin(connection)
        connection.set_trace_callback(seen.append)
        store.trigger(tx, [NewRun(f"{n:026d}", "job", "1", labels='{"a":"b"}') for n in range(first, first + count)])
        (claimed,) = store.claim(tx, [ClaimOrder("me", count, LEASE, ("job",))])
        assert len(claimed.runs) == count
        leases = [Lease(run.id, run.generation, "me") for run in claimed.runs]
        assert len(store.lost_leases(connection, leases)) == 0
        assert all(cancelled.accepted for cancelled in store.cancel(tx, [lease.run_id for lease in leases]))
        connection.set_trace_callback(None)
        store.commit(tx)
        return len(seen)

    one, many = statements(1, 0), statements(500, 1000)
    store.disconnect(connection)
    store.close()
    assert one == many <= 9


# -- the dialect -----------------------------------------------------------------------------------------------------

#: What SQLite learned after 3.39.
TOO_NEW = [
    r"jsonb", r"'subsec", r"\bsubsecond\b", r"\bconcat(_ws)?\s*\(", r"\bstring_agg\b", r"\btimediff\b",
    r"\boctet_length\b", r"\bunhex\b", r"\bjson_pretty\b", r"\bjson_error_position\b", r"\bjson_array_insert\b",
    r"\bmedian\b", r"\bpercentile", r"\bif\s*\(", r"\bunistr", r"\d_\d", r"\bwithin group\b",
    r"\w\([^()]* order by [^()]*\)",
]  # fmt: skip


@pytest.mark.parametrize("pattern", TOO_NEW)
def test_the_sql_needs_nothing_newer_than_sqlite_3_39(pattern: str) -> None:
    schema = SqliteStore("sqlite://").schema
    texts = {**_SQL, "schema": schema.fresh, **{migration.name: migration.text for migration in schema.migrations}}
    for name, text in texts.items():
        bare = re.sub(r"--[^\n]*", "", text)
        found = re.search(pattern, bare, re.IGNORECASE)
        assert not found, f"{name}: {found and found[0]}"


def test_the_word_list_would_find_something() -> None:
    for text in (
        "select concat(a, b)",
        "select string_agg(a, ',')",
        "select sum(a order by b)",
        "select unixepoch('now', 'subsec')",
        "select jsonb(a)",
    ):
        assert any(re.search(pattern, text) for pattern in TOO_NEW), text
