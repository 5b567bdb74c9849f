"""What begins a round on PostgreSQL goes along with what is asked first, and what was promised of both still holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from postgres_messages import LEASE, a_run, a_step, an_end, do, eventually, found, messages

import servers
from holdfast.basis.errors import SchemaError, StoreUnavailable
from holdfast.commit.round import Rounds
from holdfast.commit.ticket import Ticket
from holdfast.model.run import NewRun
from holdfast.store.base import ClaimOrder
from holdfast.store.postgres import PostgresStore
from holdfast.store.postgres_place import Link

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)


@pytest.fixture
def store(postgres_url: str) -> PostgresStore:
    store = PostgresStore(postgres_url, lock_timeout=20.0)
    store.migrate()
    return store


@pytest.fixture
def link(store: PostgresStore) -> Iterator[Link]:
    link = store.open()
    yield link
    store.disconnect(link)


# -- messages ------------------------------------------------------------------------------------------------------


def test_a_round_of_one_verb_is_two_messages_the_second_of_which_commits(
    store: PostgresStore, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, other = a_run(store, link), a_run(store, link, "other")
    do(store, link, "save_steps", a_step("first"))
    do(store, link, "finish", an_end(other))
    order = ClaimOrder("me", 10, LEASE, ("job",))
    for verb, row in (
        ("trigger", NewRun("new", "job", "1")),
        ("claim", order),
        ("save_steps", a_step()),
        ("finish", an_end(lease)),
    ):
        with monkeypatch.context() as patched:
            sent = messages(link, patched)
            do(store, link, verb, row)
        assert [text.startswith("begin") for text in sent] == [True, False], (verb, sent)
        assert sent[1].endswith("commit")


def test_a_run_is_triggered_and_claimed_in_three_messages(
    store: PostgresStore, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(store, link)
    sent = messages(link, monkeypatch)
    new, order = NewRun("new", "job", "1"), ClaimOrder("me", 10, LEASE, ("job",))
    tx = store.begin_round(link, {"trigger": [new], "claim": [order]})
    store.trigger(tx, [new])
    (claimed,) = store.claim(tx, [order])
    store.commit(tx)
    assert [run.id for run in claimed.runs] == ["new"]
    assert len(sent) == 3


def test_a_delayed_run_whose_time_has_come_is_claimed_in_five_messages(
    store: PostgresStore, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what has come is looked for: keys of delayed runs, and these; no sleepers."""
    do(store, link, "trigger", NewRun("warm", "job", "1", delay=1))
    do(store, link, "claim", ClaimOrder("me", 10, LEASE, ("job",)))
    do(store, link, "trigger", NewRun("new", "job", "1", delay=1))
    sent = messages(link, monkeypatch)
    claimed = do(store, link, "claim", ClaimOrder("me", 10, LEASE, ("job",)))
    assert ([run.id for run in claimed.runs], claimed.next_due_at) == (["new"], None)
    assert len(sent) == 5


def test_a_round_that_asks_nothing_says_nothing(
    store: PostgresStore, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = messages(link, monkeypatch)
    store.commit(store.begin_round(link, {"save_steps": [a_step()]}))
    store.rollback(store.begin_round(link, {"save_steps": [a_step()]}))
    assert sent == []
    assert not link.in_transaction


@pytest.mark.parametrize(
    "output",
    [r'"it\'s; execute holdfast_1(1); \\ $1 %s "', '"' + "x" * 300_000 + '"', '"\u20ac \U0001f600"'],
    ids=["quotes", "large", "not ascii"],
)
def test_what_goes_along_arrives_as_it_is(store: PostgresStore, link: Link, output: str) -> None:
    a_run(store, link)
    assert do(store, link, "save_steps", a_step(output=output))
    assert [step.output for step in store.find_steps(link, "run")] == [output]


# -- time ----------------------------------------------------------------------------------------------------------


def test_an_end_that_is_said_with_its_locks_has_the_time_after_them(store: PostgresStore, link: Link) -> None:
    lease, other = a_run(store, link), store.open()
    holding = store.begin(other)
    store.lock(holding, {"cancel": ["run"]})
    thread = threading.Thread(target=do, args=(store, link, "finish", an_end(lease)))
    thread.start()
    eventually(lambda: servers.execute(store.address.conninfo, "select 1 from pg_locks where not granted"))
    released = store._find(other, "now")[0][0]
    store.rollback(holding)
    thread.join(30)
    ended = found(store, other)
    assert ended.completed_at is not None
    assert ended.completed_at >= released
    store.disconnect(other)


def test_times_that_count_from_now_count_from_the_time_of_the_server(store: PostgresStore, link: Link) -> None:
    before = store._find(link, "now")[0][0]
    made = do(store, link, "trigger", NewRun("run", "job", "1", delay=5, deadline=7)).run
    after = store._find(link, "now")[0][0]
    assert before <= made.created_at <= after
    assert (made.run_at, made.deadline_at) == (made.created_at + 5, made.created_at + 7)
    assert found(store, link) == made


def test_who_looks_at_the_time_first_is_told_the_one_after_the_locks(store: PostgresStore, link: Link) -> None:
    a_run(store, link)
    tx = store.begin_round(link, {"save_steps": [a_step()]})
    assert not link.in_transaction
    assert not tx.begun
    before = store.clock.now()
    assert abs(tx.now - before) < 3_600_000_000
    assert link.in_transaction
    assert tx.begun
    store.rollback(tx)


# -- trouble -------------------------------------------------------------------------------------------------------


def test_a_round_whose_connection_was_lost_before_it_is_said_over_a_new_one(store: PostgresStore, link: Link) -> None:
    a_run(store, link)
    lost = link.pg.info.backend_pid
    servers.execute(store.address.conninfo, f"select pg_terminate_backend({lost}, 10000)")
    assert do(store, link, "save_steps", a_step())
    assert link.pg.info.backend_pid != lost
    assert [step.name for step in store.find_steps(link, "run")] == ["s"]


def test_a_session_that_may_not_write_any_more_is_left(store: PostgresStore, link: Link) -> None:
    a_run(store, link)
    left = link.pg.info.backend_pid
    link.say("set default_transaction_read_only = on")
    assert do(store, link, "save_steps", a_step())
    assert link.pg.info.backend_pid != left


def test_a_session_whose_prepared_statements_are_gone_prepares_them_anew(store: PostgresStore, link: Link) -> None:
    a_run(store, link)
    assert do(store, link, "save_steps", a_step("first"))
    link.say("deallocate all")
    assert do(store, link, "save_steps", a_step("second"))
    assert [step.name for step in store.find_steps(link, "run")] == ["first", "second"]


def undone(store: PostgresStore, link: Link) -> None:
    tx = store.begin_round(link, {"save_steps": [a_step("undone")]})
    store.save_steps(tx, [a_step("undone")])
    store.rollback(tx)


def undone_in_part(store: PostgresStore, link: Link) -> None:
    tx = store.begin(link)
    for name in ("batch", "undo_batch"):
        store._find(link, name)
    store.commit(tx)


@pytest.mark.parametrize("undo", [undone, undone_in_part])
def test_after_something_was_undone_nothing_is_asked_that_the_session_has_forgotten(
    store: PostgresStore, link: Link, monkeypatch: pytest.MonkeyPatch, undo: Callable[[PostgresStore, Link], None]
) -> None:
    a_run(store, link)
    assert do(store, link, "save_steps", a_step("first"))
    undo(store, link)
    sent = messages(link, monkeypatch)
    assert do(store, link, "save_steps", a_step("second"))
    assert len([text for text in sent if text.startswith("begin")]) == 1
    assert [step.name for step in store.find_steps(link, "run")] == ["first", "second"]


def test_tables_that_somebody_has_migrated_are_refused_and_nothing_is_written(store: PostgresStore, link: Link) -> None:
    a_run(store, link)
    servers.execute(store.address.conninfo, "insert into holdfast_migrations values (9999, 'newer', 1)")
    with pytest.raises(SchemaError, match="newer"):
        do(store, link, "save_steps", a_step())
    servers.execute(store.address.conninfo, "alter table holdfast_steps rename to holdfast_steps_of_newer")
    with pytest.raises(SchemaError, match="newer"):
        do(store, link, "save_steps", a_step())
    assert servers.execute(store.address.conninfo, "select count(*) from holdfast_steps_of_newer") == [(0,)]


def test_an_error_of_what_went_along_undoes_the_round_and_no_other(store: PostgresStore, link: Link) -> None:
    a_run(store, link)
    wrong = a_step()._replace(step=a_step().step._replace(completed_at=2**70))
    with pytest.raises(psycopg.DataError):
        do(store, link, "save_steps", a_step("first"), wrong)
    assert do(store, link, "save_steps", a_step())
    assert [step.name for step in store.find_steps(link, "run")] == ["s"]


def test_a_lock_that_is_not_given_refuses_the_round(postgres_url: str) -> None:
    store = PostgresStore(postgres_url, lock_timeout=0.2)
    store.migrate()
    link, other = store.open(), store.open()
    a_run(store, link)
    holding = store.begin(other)
    store.lock(holding, {"cancel": ["run"]})
    with pytest.raises(psycopg.errors.LockNotAvailable):
        do(store, link, "save_steps", a_step())
    store.rollback(holding)
    assert do(store, link, "save_steps", a_step())
    for one in (link, other):
        store.disconnect(one)


def test_who_could_not_begin_counts_from_when_it_wanted_to(store: PostgresStore) -> None:
    rounds = Rounds(store, store.clock)
    name = store.address.conninfo.rpartition("/")[2]
    ticket: Ticket[Any] = Ticket("trigger", NewRun("first", "job", "1"))
    assert rounds.serve([ticket]) is None
    before = store.clock.steady()
    admin = store.address.conninfo.rpartition("/")[0] + "/postgres"
    servers.execute(admin, f"alter database {name} allow_connections false")
    servers.execute(admin, f"select pg_terminate_backend({rounds.connection.pg.info.backend_pid}, 10000)")
    refused: Ticket[Any] = Ticket("trigger", NewRun("second", "job", "1"))
    assert isinstance(rounds.serve([refused]), StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        refused.wait()
    assert rounds._out_since is not None
    assert rounds._out_since >= before
    servers.execute(admin, f"alter database {name} allow_connections true")
    again: Ticket[Any] = Ticket("trigger", NewRun("third", "job", "1"))
    assert rounds.serve([again]) is None
    assert again.wait().disposition == "created"
    assert rounds._out_since is None
    assert rounds._longest > 0
    rounds.disconnect()
