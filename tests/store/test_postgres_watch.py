"""What a watch of PostgreSQL hears, and what it makes of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import servers
from deaf_link import DeafLink
from holdfast.basis.clock import SystemClock
from holdfast.basis.ids import Ids
from holdfast.model.run import NewRun
from holdfast.model.wait import NewSignal, WaitRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.announcing import LONGEST_WORD, Gathered, heard, word
from holdfast.store.base import ClaimOrder, Ending, Lease, Store, Tx, WaitSave
from holdfast.store.watch import EVERYTHING, News, Watch

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)

LONG = 30.0

IDS = Ids(SystemClock().now)
SILENCE = 0.3
"""Seconds in which something that was said would have been heard."""


def open_store(url: str) -> Any:
    from holdfast.store.postgres import PostgresStore  # only here the driver is needed

    return PostgresStore(url)


@pytest.fixture
def store(postgres_url: str) -> Any:
    made = open_store(postgres_url)
    made.migrate()
    return made


@pytest.fixture
def other(postgres_url: str, store: Any) -> Any:
    """The store of another process."""
    return open_store(postgres_url)


@pytest.fixture
def watch(store: Any) -> Iterator[Watch]:
    one = store.watch()
    assert one.changed() is EVERYTHING, "first all that was there before is looked at"
    assert one.changed() is None
    yield one
    one.close()


def write(store: Any, verb: str, *rows: Any) -> list[Any]:
    connection = store.open()
    tx = store.begin(connection)
    answers: list[Any] = getattr(store, verb)(tx, list(rows))
    store.commit(tx)
    store.disconnect(connection)
    return answers


def new(**more: Any) -> NewRun:
    return NewRun(id=IDS.new(), job_name="work", input="{}", **more)


def hear(watch: Watch, seconds: float = LONG) -> News | None:
    """The next news, or None after some seconds."""
    until = time.monotonic() + seconds
    while (news := watch.changed()) is None and (left := until - time.monotonic()) > 0:
        watch.rest(left)
    return news


def test_a_trigger_elsewhere_is_heard_as_something_to_claim(watch: Watch, other: Store) -> None:
    write(other, "trigger", new())
    assert hear(watch) == News(claimable=True, runs=frozenset())


def test_a_cancel_elsewhere_names_its_run(watch: Watch, other: Store) -> None:
    run = new(delay=10**9)
    write(other, "trigger", run)
    write(other, "cancel", run.id)
    assert hear(watch) == News(claimable=False, runs=frozenset([run.id]))


def test_an_end_elsewhere_names_its_run(watch: Watch, other: Store) -> None:
    run = new()
    write(other, "trigger", run)
    assert hear(watch)
    [claimed] = write(other, "claim", ClaimOrder("somebody", 1, 10**7, ("work",)))
    lease = Lease(run.id, claimed.runs[0].generation, "somebody")
    write(other, "finish", Ending(lease, TABLE[Cause.COMPLETE], output="1"))
    assert hear(watch) == News(claimable=False, runs=frozenset([run.id]))


def test_the_end_of_a_run_with_a_key_lets_another_one_go(watch: Watch, other: Store) -> None:
    run = new(concurrency_key="k")
    write(other, "trigger", run)
    assert hear(watch)
    write(other, "cancel", run.id)
    assert hear(watch) == News(claimable=True, runs=frozenset([run.id]))


def sleeping(other: Store, kind: str, *below: NewRun, signal: str | None = None) -> str:
    """A run that waits for a signal, or for runs below it."""
    run = new()
    write(other, "trigger", run)
    [claimed] = write(other, "claim", ClaimOrder("somebody", 1, 10**7, ("work",)))
    lease = Lease(run.id, claimed.runs[0].generation, "somebody")
    children = tuple(child._replace(parent_id=run.id, root_id=run.id, awaited_as="w#0") for child in below)
    wait = WaitRow(run.id, "w#0", kind, None, signal, 0)
    write(other, "save_waits", WaitSave("somebody", lease.generation, wait, None, children))
    write(other, "finish", Ending(lease, TABLE[Cause.SUSPEND], waiting_for=kind))
    return run.id


def test_a_run_that_a_signal_wakes_elsewhere_is_heard_as_something_to_claim(watch: Watch, other: Store) -> None:
    run_id = sleeping(other, "signal", signal="go")
    while hear(watch, SILENCE):
        pass
    write(other, "send_signals", NewSignal(IDS.new(), run_id, "no", "1"))
    assert hear(watch, SILENCE) is None
    write(other, "send_signals", NewSignal(IDS.new(), run_id, "go", "1"))
    assert hear(watch) == News(claimable=True, runs=frozenset())


def test_the_last_end_below_a_run_names_itself_and_is_heard_as_something_to_claim(watch: Watch, other: Store) -> None:
    child = new(delay=10**9)
    sleeping(other, "child", child)
    while hear(watch, SILENCE):
        pass
    write(other, "cancel", child.id)
    assert hear(watch) == News(claimable=True, runs=frozenset([child.id]))


def test_what_is_cancelled_below_a_run_elsewhere_is_named(watch: Watch, other: Store) -> None:
    below = [new(delay=10**9) for _ in range(2)]
    above = sleeping(other, "children", *below)
    while hear(watch, SILENCE):
        pass
    write(other, "cancel", above)
    assert hear(watch) == News(claimable=False, runs=frozenset([above]))
    write(other, "cancel_below", 10)
    assert hear(watch) == News(claimable=False, runs=frozenset([child.id for child in below]))


def test_what_is_of_no_use_to_others_is_not_said(watch: Watch, other: Store) -> None:
    run = new(delay=10**9)
    write(other, "trigger", run)
    write(other, "claim", ClaimOrder("somebody", 1, 10**7, ("work",)))
    write(other, "cancel", IDS.new())
    write(other, "expire")
    assert hear(watch, SILENCE) is None


def test_a_process_does_not_hear_itself(watch: Watch, store: Store) -> None:
    write(store, "trigger", new())
    assert hear(watch, SILENCE) is None


def test_nothing_is_heard_before_the_commit_and_nothing_of_what_is_undone(watch: Watch, other: Any) -> None:
    connection = other.open()
    tx = other.begin(connection)
    other.trigger(tx, [new()])
    assert hear(watch, SILENCE) is None
    other.rollback(tx)
    other.disconnect(connection)
    assert hear(watch, SILENCE) is None


def test_a_round_says_one_word(postgres_url: str, other: Any, store: Store) -> None:
    runs = [new(delay=10**9) for _ in range(20)]
    with servers.connect(postgres_url) as listener:
        listener.execute(f"listen {other.channel}")
        connection = other.open()
        tx = other.begin(connection)
        other.trigger(tx, [*runs, new(), new()])
        other.cancel(tx, [run.id for run in runs])
        other.commit(tx)
        other.disconnect(connection)
        said = [notice.payload for notice in listener.notifies(timeout=SILENCE)]
    assert len(said) == 1
    assert heard(said[0], "me") == News(claimable=True, runs=frozenset(run.id for run in runs))


def test_more_runs_than_a_word_can_hold_are_many(watch: Watch, other: Any) -> None:
    runs = [new(delay=10**9) for _ in range(500)]
    write(other, "trigger", *runs)
    write(other, "cancel", *[run.id for run in runs])
    assert hear(watch) == News(claimable=False, runs=None)


def test_a_word_is_never_longer_than_the_server_takes() -> None:
    for many in range(0, 3000, 7):
        text = word("sender", Gathered(True, dict.fromkeys(f"é{n}" for n in range(many))))
        assert len(text.encode()) <= LONGEST_WORD
        news = heard(text, "me")
        assert news is not None
        assert news.runs is None or len(news.runs) == many


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "x y", "x ++", "'; drop table holdfast_runs; --", "{", '["a"]', "+" * 7999, "a + " + "b" * 7995],
)
def test_what_nobody_of_ours_would_say_means_look(text: str) -> None:
    assert heard(text, "me") is EVERYTHING


@pytest.mark.parametrize("text", ["a - '; drop table holdfast_runs; --", "a -  ", "a + \x01 \ud7ff 🙂"])
def test_ids_that_are_none_are_of_no_run(text: str) -> None:
    news = heard(text, "me")
    assert news is not None
    assert news.runs is not None


def test_a_caller_whose_transaction_is_its_own_says_it_with_its_commit(
    postgres_url: str, watch: Watch, store: Any, other: Any
) -> None:
    with servers.connect(postgres_url, autocommit=False) as theirs:
        from psycopg import RawCursor
        from psycopg.types.numeric import Int8BinaryDumper

        class Cursored:
            def execute(self, sql: str, values: Any = ()) -> Any:
                cursor = RawCursor(theirs)
                cursor.adapters.register_dumper(int, Int8BinaryDumper)
                return cursor.execute(sql, values)

        # As the store itself would have it: the process that wrote it must hear of it, too.
        tx = Tx(Cursored(), SystemClock().now())
        [made] = store.trigger_many(tx, [[new()]])
        store.announce(tx, made)
        assert hear(watch, SILENCE) is None
        theirs.commit()
        assert hear(watch) == News(claimable=True, runs=frozenset())


def test_who_listens_again_listens_before_it_reads(postgres_url: str, watch: Any, other: Any) -> None:
    """What is committed between reading and listening would be seen by nobody."""
    watch.rest(0.01)
    pid = watch.connection.pg.info.backend_pid
    servers.execute(postgres_url, f"select pg_terminate_backend({pid})")
    assert hear(watch) is EVERYTHING
    # It reads now, and does not see what is written after that.
    write(other, "trigger", new())
    watch.rest(LONG)
    assert watch.changed() == News(claimable=True, runs=frozenset())


def test_whoever_rouses_it_ends_its_rest(watch: Watch) -> None:
    for _ in range(3):
        began = time.monotonic()
        thread = threading.Timer(0.05, watch.rouse)
        thread.start()
        watch.rest(LONG)
        thread.join()
        assert time.monotonic() - began < LONG / 2
    assert watch.changed() is None


def test_behind_a_pooler_it_looks_and_says_so_once(
    postgres_url: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with DeafLink(postgres_url, like_a_pooler=True) as link, caplog.at_level(logging.WARNING):
        pooled = open_store(link.url)
        for _ in range(2):
            one = pooled.watch()
            assert one.changed() is EVERYTHING
            assert one.pace == "looks"
            one.close()
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 1
        assert "pooler=none" in said[0]
        assert "pooler=transaction" in said[0]
        listening = servers.execute(
            postgres_url,
            "select count(*) from pg_stat_activity where query ilike 'listen%' and datname = current_database()",
        )
        assert listening == [(0,)], "it has left nobody's session listening"


def test_a_pooler_that_keeps_sessions_may_be_said_to_be_none(postgres_url: str, store: Store) -> None:
    with DeafLink(postgres_url, like_a_pooler=True) as link:
        one = open_store(f"{link.url}&pooler=none").watch()
        assert one.changed() is EVERYTHING
        assert one.pace == "told"
        one.close()


def test_with_pooler_transaction_in_the_url_it_does_not_listen(postgres_url: str, store: Store) -> None:
    one = open_store(f"{postgres_url}?pooler=transaction").watch()
    assert one.changed() is EVERYTHING
    assert one.pace == "looks"
    one.close()


def test_a_server_that_refuses_the_word_refuses_no_round(
    postgres_url: str, store: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a full queue does: an error of the COMMIT, after which everything of it is undone."""
    from holdfast.commit.committer import Committer
    from holdfast.commit.ticket import Ticket

    monkeypatch.setattr(type(store), "channel", "x" * 64)  # longer than the server takes
    committer = Committer(store, SystemClock())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ticket: Ticket[Any] = Ticket("trigger", new())
            committer.join(ticket)
            assert ticket.wait(LONG).disposition == "created"
    committer.close().wait(LONG)
    said = [record.getMessage() for record in caplog.records]
    assert sum("other processes are not told" in text for text in said) == 1
    assert sum("gave no answer" in text for text in said) == 1, (
        "the first one was played again, the second said nothing"
    )
    assert servers.execute(postgres_url, "select count(*) from holdfast_runs") == [(2,)]


def test_the_channel_of_a_schema_with_a_long_name_is_its_own(postgres_url: str) -> None:
    names = ["a", "b", "c" * 63, "c" * 62 + "d"]
    channels = [open_store(f"{postgres_url}?schema={name}").channel for name in names]
    assert len(set(channels)) == len(names)
    assert all(len(channel) <= 63 for channel in channels)
