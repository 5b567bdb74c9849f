"""What is promised of PostgreSQL alone: URLs, connections, poolers, errors in our words, commits without an answer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
import pytest

import servers
from holdfast import Holdfast
from holdfast.basis.errors import SchemaError, StoreUnavailable, ValidationError
from holdfast.commit.round import Rounds
from holdfast.commit.ticket import Ticket
from holdfast.model.run import NewRun, RunFilter
from holdfast.store.base import PlayAgain, Tx
from holdfast.store.opening import open_store
from holdfast.store.postgres import PostgresStore
from holdfast.store.postgres_place import Limits, Link, address
from holdfast.store.schema import Schema
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)


@pytest.fixture
def store(postgres_url: str) -> PostgresStore:
    store = PostgresStore(postgres_url)
    store.migrate()
    return store


def test_a_migration_may_take_longer_than_any_statement(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    store.limits = store.limits._replace(statement=0.3)
    store.schema = Schema(f"{store.schema.fresh}; select pg_sleep(1);", store.schema.migrations)
    assert store.migrate()


def test_what_is_waited_for_is_measured_by_the_lease_and_by_how_many_hosts_there_are() -> None:
    limits = [Limits.of(lease, 10.0) for lease in (0.5, 9, 30, 600)]
    assert [one.patience for one in limits] == [7.5, 13.5, 45, 45]
    assert [one.idle for one in limits] == [0.25, 4.5, 10, 10], "below the lease"
    one_host, two_hosts = {"host": "db1"}, {"host": "db1,db2"}
    assert [one.asked(one_host)["connect_timeout"] for one in limits] == ["2", "3", "10", "10"]
    assert [one.asked(two_hosts)["connect_timeout"] for one in limits] == ["2", "3", "3", "3"]
    assert limits[0].asked({**two_hosts, "connect_timeout": "7"})["connect_timeout"] == "7"


@pytest.fixture
def link(store: PostgresStore) -> Iterator[Link]:
    link = store.open()
    yield link
    store.disconnect(link)


def trigger(store: PostgresStore, link: Link, *ids: str) -> None:
    tx = store.begin(link)
    store.trigger(tx, [NewRun(one, "job", "1") for one in ids])
    store.commit(tx)


def setting(link: Link, name: str) -> str:
    return str(link.execute("select current_setting($1)", (name,)).fetchone()[0])


def pid_of(link: Link) -> int:
    return link.pg.info.backend_pid


T = TypeVar("T")


def eventually(look: Callable[[], T]) -> T:
    """What it gives as soon as that is something; asking again takes a round trip, so nobody sleeps."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found := look():
            return found
    raise AssertionError("it never came")


# -- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "POSTGRESQL"])
def test_every_common_scheme_opens_postgresql(scheme: str) -> None:
    store = open_store(f"{scheme}://me@127.0.0.1/app", clock=HandClock())
    assert isinstance(store, PostgresStore)
    assert store.address.conninfo == "postgresql://me@127.0.0.1/app"


def test_an_app_opens_the_store_of_its_url(postgres_url: str) -> None:
    app = Holdfast(postgres_url, clock=HandClock(), worker=False)

    @app.job
    def double(n: int) -> int:
        return 2 * n

    with app:
        run = double.trigger(4).wait()
        assert app.get_run(run.id).wait().status == "pending"
    found = servers.execute(postgres_url, "select job_name, status from holdfast_runs")
    assert found == [("double", "pending")]


def test_an_app_executes_runs_on_postgresql(postgres_url: str) -> None:
    app = Holdfast(postgres_url)

    @app.job
    def double(n: int) -> int:
        return 2 * n

    with app:
        assert double.run(4).wait() == 8


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@host:1234/app", "postgresql://me@host:1234/app"),
        (
            "postgresql://me:s3%2Fcret@a,b:1/app?schema=x&sslmode=require",
            "postgresql://me@a,b:1/app?schema=x&sslmode=require",
        ),
        ("postgresql://host/app?user=me&password=s3cret", "postgresql://host/app?user=me"),
    ],
)
def test_a_name_has_no_password(url: str, shown: str) -> None:
    assert address(url).name == shown


@pytest.mark.parametrize(
    "wrong",
    ["postgresql://h/d?schema=a%22b", "postgresql://h/d?schema=", "postgresql://h/d?pooler=yes", "postgresql://"],
)
def test_a_url_that_says_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        PostgresStore(wrong)


def test_an_option_that_libpq_does_not_know_is_refused_without_the_password() -> None:
    with pytest.raises(ValidationError, match="colour") as caught:
        PostgresStore("postgresql://me:s3cret@host/app?colour=blue")
    assert "s3cret" not in str(caught.value)


def test_without_the_driver_the_error_says_what_to_install() -> None:
    script = """
import sys
sys.modules["psycopg"] = None
from holdfast import Holdfast
try:
    Holdfast("postgresql://host/app")
except ValueError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'holdfast[postgres]'" in told.stdout


def test_importing_the_package_imports_no_driver() -> None:
    script = "import sys, holdfast; print('psycopg' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "False\n"


# -- connections ---------------------------------------------------------------------------------------------------


def test_a_connection_waits_for_nothing_for_ever(store: PostgresStore, link: Link) -> None:
    assert setting(link, "application_name") == "holdfast"
    assert setting(link, "lock_timeout") == "10s"
    assert setting(link, "statement_timeout") == "30s"
    assert setting(link, "idle_in_transaction_session_timeout") == "10s"
    dsn = link.pg.info.get_parameters()
    assert dsn["target_session_attrs"] == "read-write"
    assert dsn["tcp_user_timeout"] == "15000"


def test_who_holds_a_transaction_open_is_thrown_out_before_its_lease_ends(postgres_url: str) -> None:
    store = PostgresStore(postgres_url, lease=4)
    store.migrate()
    link = store.open()
    assert setting(link, "idle_in_transaction_session_timeout") == "2s"
    store.disconnect(link)


def test_what_the_url_says_of_a_connection_counts(postgres_url: str) -> None:
    store = PostgresStore(f"{postgres_url}?application_name=mine&options=-c%20statement_timeout%3D5s")
    store.migrate()
    link = store.open()
    assert (setting(link, "application_name"), setting(link, "statement_timeout")) == ("mine", "5s")
    store.disconnect(link)


def test_commits_are_durable_where_the_server_says_that_they_need_not_be(store: PostgresStore) -> None:
    name = store.address.conninfo.rpartition("/")[2]
    servers.execute(store.address.conninfo, f"alter database {name} set synchronous_commit = off")
    link = store.open()
    assert setting(link, "synchronous_commit") == "on"
    store.disconnect(link)


def test_a_reading_connection_can_not_write(store: PostgresStore) -> None:
    link = store.open(read_only=True)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
        store.trigger(Tx(link, 1), [NewRun("a", "job", "1")])
    assert "is read-only" in str(store.translate(caught.value))
    store.disconnect(link)


def test_statements_are_prepared_once(store: PostgresStore, link: Link) -> None:
    for number in range(3):
        trigger(store, link, f"run {number}")
    count = "select count(*) from pg_prepared_statements where statement ~ 'insert into .*holdfast_runs'"
    assert servers.execute(store.address.conninfo, count) == [(0,)], "another session"
    assert link.execute(f"{count} and statement !~ 'prepared'").fetchone() == (1,)


def test_the_times_are_those_of_the_database(store: PostgresStore, link: Link) -> None:
    before = store._find(link, "now")[0][0]
    trigger(store, link, "one")
    (run,) = store.find_runs(link, RunFilter())
    assert before <= run.created_at <= store._find(link, "now")[0][0]


def test_what_waited_for_a_lock_is_judged_by_the_time_after_it(store: PostgresStore, link: Link) -> None:
    trigger(store, link, "one")
    other = store.open()
    holding = store.begin(other)
    store.lock(holding, {"cancel": ["one"]})
    waiting: list[Tx] = []

    def wait() -> None:
        tx = store.begin(link)
        store.lock(tx, {"cancel": ["one"]})
        waiting.append(tx)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: servers.execute(store.address.conninfo, "select 1 from pg_locks where not granted"))
    asked = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint"
    ((released,),) = servers.execute(store.address.conninfo, asked)
    store.rollback(holding)
    thread.join(30)
    (tx,) = waiting
    assert tx.now >= released
    store.rollback(tx)
    store.disconnect(other)


# -- lost and found ------------------------------------------------------------------------------------------------


def kill(store: PostgresStore, link: Link) -> None:
    servers.execute(store.address.conninfo, f"select pg_terminate_backend({pid_of(link)}, 10000)")


def test_a_transaction_begins_on_a_new_connection_where_the_old_one_was_lost(store: PostgresStore, link: Link) -> None:
    trigger(store, link, "before")
    lost = pid_of(link)
    kill(store, link)
    trigger(store, link, "after")
    assert pid_of(link) != lost
    assert {run.id for run in store.find_runs(link, RunFilter())} == {"before", "after"}


def test_a_transaction_that_is_lost_in_the_middle_is_not_there(store: PostgresStore, link: Link) -> None:
    tx = store.begin(link)
    store.trigger(tx, [NewRun("lost", "job", "1")])
    kill(store, link)
    with pytest.raises(psycopg.OperationalError) as caught:
        store.commit(tx)
    assert isinstance(store.translate(caught.value), StoreUnavailable)
    store.rollback(tx)
    trigger(store, link, "next")
    assert [run.id for run in store.find_runs(link, RunFilter())] == ["next"]


def test_a_server_that_was_restarted_is_used_again(tmp_path: Any) -> None:
    with servers.postgres() as server:
        store = PostgresStore(server.url(server.create_database()))
        store.migrate()
        link = store.open()
        trigger(store, link, "before")
        server.stop("immediate")
        with pytest.raises(psycopg.OperationalError) as caught:
            store.begin(link)
        told = store.translate(caught.value)
        assert isinstance(told, StoreUnavailable)
        assert server._password not in str(told)
        server.start()
        trigger(store, link, "after")
        assert len(store.find_runs(link, RunFilter())) == 2
        store.disconnect(link)


def test_another_database_under_the_same_url_is_refused(store: PostgresStore, link: Link) -> None:
    kill(store, link)
    servers.execute(store.address.conninfo, "update holdfast_meta set value = 'another' where key = 'database_id'")
    with pytest.raises(StoreUnavailable, match="another database"):
        store.begin(link)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (psycopg.OperationalError("connection refused"), "can't be reached"),
        (psycopg.errors.AdminShutdown("terminating"), "is shutting down"),
        (psycopg.errors.CannotConnectNow("starting up"), "starting"),
        (psycopg.errors.ReadOnlySqlTransaction("no"), "is read-only"),
        (psycopg.errors.TooManyConnections("too many"), "no room"),
        (psycopg.errors.DiskFull("full"), "no room"),
        (psycopg.errors.InsufficientPrivilege("revoked"), "refuses access"),
        (psycopg.errors.InvalidPassword("wrong"), "refuses the login"),
        (psycopg.errors.LockNotAvailable("locked"), "locked for too long"),
        (psycopg.errors.QueryCanceled("timeout"), "took too long"),
        (psycopg.errors.IdleInTransactionSessionTimeout("idle"), "idle for too long"),
        (psycopg.errors.InvalidCatalogName("gone"), "does not exist"),
        (psycopg.InterfaceError("the connection is closed"), "can't be reached"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_trouble_with_the_database_is_told_in_our_words(error: psycopg.Error, said: str) -> None:
    meant = PostgresStore("postgresql://h/d").translate(error)
    assert isinstance(meant, StoreUnavailable)
    assert said in str(meant)
    assert meant.__cause__ is error


@pytest.mark.parametrize(
    "kind", [psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.UniqueViolation]
)
def test_what_was_undone_for_somebody_elses_sake_is_played_again(kind: type[psycopg.Error]) -> None:
    assert isinstance(PostgresStore("postgresql://h/d").translate(kind("undone")), PlayAgain)


def test_an_error_that_quotes_the_password_does_not(store: PostgresStore) -> None:
    store = PostgresStore("postgresql://me:s3cret@h/d")
    assert "s3cret" not in str(store.translate(psycopg.OperationalError("can't connect to me:s3cret@h")))


def test_a_wrong_password_is_told_without_it() -> None:
    with servers.postgres() as server:
        url = server.address.replace(server._password, "wr0ng")
        with pytest.raises(StoreUnavailable) as caught:
            PostgresStore(url).connect()
        assert "password authentication failed" in str(caught.value)
        assert "wr0ng" not in str(caught.value)


def test_a_process_with_too_many_open_files_is_told_so(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("psycopg.waiting.DefaultSelector", full)
    with pytest.raises(StoreUnavailable, match="Too many open files"):
        store.connect()


def test_tables_that_are_gone_are_missing(store: PostgresStore, link: Link) -> None:
    servers.execute(store.address.conninfo, "drop table holdfast_migrations")
    with pytest.raises(psycopg.Error) as caught:
        store.begin(link)
    assert isinstance(store.translate(caught.value), SchemaError)


def test_a_standby_is_never_written_to(store: PostgresStore) -> None:
    name = store.address.conninfo.rpartition("/")[2]
    servers.execute(store.address.conninfo, f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match="read-only"):
        store.connect()


# -- played again --------------------------------------------------------------------------------------------------


class Undone(PostgresStore):
    """Its first transactions are undone by the database."""

    times = 0

    def trigger(self, tx: Tx, runs: Any) -> Any:
        answers = super().trigger(tx, runs)
        if self.times:
            self.times -= 1
            raise psycopg.errors.DeadlockDetected("a deadlock")
        return answers


@pytest.mark.parametrize("times", [1, 5])
def test_a_round_that_the_database_has_undone_is_played_again_as_a_whole(store: PostgresStore, times: int) -> None:
    undone = Undone(store.address.conninfo)
    undone.times = times
    rounds = Rounds(undone, undone.clock)
    tickets: list[Ticket[Any]] = [Ticket("trigger", NewRun(f"run {number}", "job", "1")) for number in range(4)]
    assert rounds.serve(tickets) is None
    assert [ticket.wait().disposition for ticket in tickets] == ["created"] * 4
    assert (rounds.count, rounds.tally.again) == (1, times)
    rounds.disconnect()


def test_a_round_is_not_played_again_for_ever(store: PostgresStore) -> None:
    undone = Undone(store.address.conninfo)
    undone.times = 100
    rounds = Rounds(undone, undone.clock)
    ticket: Ticket[Any] = Ticket("trigger", NewRun("run", "job", "1"))
    assert isinstance(rounds.serve([ticket]), PlayAgain)
    with pytest.raises(StoreUnavailable, match="undone by the database"):
        ticket.wait()
    assert undone.times == 94
    rounds.disconnect()


# -- commits without an answer -------------------------------------------------------------------------------------


@pytest.fixture
def lonely() -> Iterator[servers.Server]:
    """A server that waits for a standby which is not there, with every commit but those that say otherwise."""
    with servers.postgres() as server:
        server.execute("alter system set synchronous_standby_names = 'nobody'")
        server.execute("alter system set synchronous_commit = 'local'")
        server.execute("select pg_reload_conf()")
        yield server


def waiting_for_a_standby(server: servers.Server, *, but: int = 0) -> int:
    """The session whose commit waits, another one than `but`."""
    text = "select pid from pg_stat_activity where wait_event = 'SyncRep' and pid <> %s"
    return int(eventually(lambda: server.execute(text, values=(but,)))[0][0])


def test_a_commit_that_is_only_here_and_not_on_the_standby_has_not_been_answered(lonely: servers.Server) -> None:
    database = lonely.create_database()
    store = PostgresStore(lonely.url(database))
    store.migrate()
    lonely.execute(f"alter database {database} set synchronous_commit = on")
    rounds = Rounds(store, store.clock)
    ticket: Ticket[Any] = Ticket("trigger", NewRun("run", "job", "1"))
    thread = threading.Thread(target=rounds.serve, args=([ticket],))
    thread.start()
    # What a client does that was told to stop waiting: the server says COMMIT, with a warning.
    first = waiting_for_a_standby(lonely)
    lonely.execute(f"select pg_cancel_backend({first})")
    # Read back, the run is there. To say so must wait for the standby as well.
    second = waiting_for_a_standby(lonely, but=first)
    assert not ticket.done()
    lonely.execute(f"select pg_cancel_backend({second})")
    thread.join(60)
    with pytest.raises(StoreUnavailable, match="whether it happened is unknown"):
        ticket.wait()
    rounds.disconnect()


def test_m7_a_run_that_is_only_here_is_acknowledged_to_nobody_who_asks_for_it_again(lonely: servers.Server) -> None:
    database = lonely.create_database()
    stores = [PostgresStore(lonely.url(database)) for _ in range(2)]
    stores[0].migrate()
    lonely.execute(f"alter database {database} set synchronous_commit = on")
    before = 0
    # By the one who made it and by another process, which never knew that it was not acknowledged.
    for n, store in enumerate((stores[0], stores[1], stores[0])):
        rounds = Rounds(store, store.clock)
        ticket: Ticket[Any] = Ticket("trigger", NewRun(f"run {n}", "job", "1", idempotency_key="once"))
        thread = threading.Thread(target=rounds.serve, args=([ticket],))
        thread.start()
        for _ in range(2):
            before = waiting_for_a_standby(lonely, but=before)
            assert not ticket.done()
            lonely.execute(f"select pg_cancel_backend({before})")
        thread.join(60)
        with pytest.raises(StoreUnavailable, match="whether it happened is unknown"):
            ticket.wait()
        rounds.disconnect()


def test_a_commit_that_was_told_to_wait_no_longer_is_not_taken_for_a_rollback(lonely: servers.Server) -> None:
    database = lonely.create_database()
    store = PostgresStore(lonely.url(database))
    store.migrate()
    lonely.execute(f"alter database {database} set synchronous_commit = on")
    link = store.open()
    tx = store.begin(link)
    store.trigger(tx, [NewRun("run", "job", "1")])
    thread = threading.Thread(
        target=lambda: lonely.execute(f"select pg_cancel_backend({waiting_for_a_standby(lonely)})")
    )
    thread.start()
    with pytest.raises(StoreUnavailable, match="canceling wait for synchronous replication"):
        store.commit(tx)
    thread.join(30)
    assert [run.id for run in store.find_runs(link, RunFilter())] == ["run"]
    store.disconnect(link)


def test_a_server_that_accepts_no_commits_is_not_waited_for_for_ever(lonely: servers.Server) -> None:
    database = lonely.create_database()
    store = PostgresStore(lonely.url(database))
    store.migrate()
    lonely.execute(f"alter database {database} set synchronous_commit = on")
    link = store.open()
    link.pg.patience = 0.2
    tx = store.begin(link)
    store.trigger(tx, [NewRun("run", "job", "1")])
    with pytest.raises(psycopg.OperationalError) as caught:
        store.commit(tx)
    assert "did not answer within 0.2 seconds" in str(store.translate(caught.value))
    assert link.is_lost
    store.rollback(tx)


# -- behind a pooler -----------------------------------------------------------------------------------------------


@pytest.fixture
def pooled(postgres_url: str) -> PostgresStore:
    store = PostgresStore(f"{postgres_url}?pooler=transaction")
    store.migrate()
    return store


def test_behind_a_pooler_nothing_is_kept_in_the_session(pooled: PostgresStore) -> None:
    link = pooled.open()
    before = dict(link.execute("select name, setting from pg_settings where source = 'session'").fetchall())
    trigger(pooled, link, "one", "two")
    tx = pooled.begin(link)
    assert setting(link, "idle_in_transaction_session_timeout") == "10s"
    assert setting(link, "enable_seqscan") == "off"
    pooled.commit(tx)
    assert dict(link.execute("select name, setting from pg_settings where source = 'session'").fetchall()) == before
    assert link.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
    pooled.disconnect(link)


class Switchboard:
    """What a pooler in transaction mode does: each transaction, and each read, goes over another session."""

    def __init__(self, store: PostgresStore, link: Link) -> None:
        self.sessions = [link.pg, *[link._connect(True) for _ in range(2)]]
        self.link = link
        self.used = 0

    def switch(self) -> None:
        self.used += 1
        self.link.pg = self.sessions[self.used % len(self.sessions)]
        self.link.cursor = self.link.pg.cursor()
        self.link._execute = self.link.cursor.execute

    def close(self) -> None:
        for session in self.sessions:
            session.close()


def test_every_transaction_may_go_over_another_session(pooled: PostgresStore) -> None:
    link = pooled.open()
    board = Switchboard(pooled, link)
    for number in range(9):
        board.switch()
        trigger(pooled, link, f"run {number}")
    board.switch()
    assert len(pooled.find_runs(link, RunFilter())) == 9
    board.close()


def test_a_pooler_that_refuses_or_drops_settings_is_noticed(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = Link._connect

    def refuses(link: Link, pooled: bool) -> Any:
        if not pooled:
            raise psycopg.OperationalError("unsupported startup parameter: options")
        return connect(link, pooled)

    def drops(link: Link, pooled: bool) -> Any:
        return connect(link, True)

    for pooler in (refuses, drops):
        monkeypatch.setattr(Link, "_connect", pooler)
        link = PostgresStore(postgres_url).connect()
        assert link.pooled
        assert link.pg.prepare_threshold is None
        link.close()


# -- upkeep --------------------------------------------------------------------------------------------------------


def test_keys_of_no_run_that_is_under_way_are_forgotten_while_nobody_waits(store: PostgresStore, link: Link) -> None:
    def keyed(over: Link, run_id: str, key: str) -> Tx:
        tx = store.begin(over)
        store.trigger(tx, [NewRun(run_id, "job", "1", concurrency_key=key)])
        return tx

    for number in range(3):
        store.commit(keyed(link, f"run {number}", f"key {number}"))
    tx = store.begin(link)
    store.cancel(tx, ["run 0", "run 1"])
    store.commit(tx)
    other = store.open()
    using = keyed(other, "new", "key 1")
    assert store.upkeep(link, idle=True)
    store.commit(using)
    store.disconnect(other)
    left = servers.execute(store.address.conninfo, "select key from holdfast_keys order by key")
    assert left == [("key 1",), ("key 2",)], "one of them is somebody's again"
