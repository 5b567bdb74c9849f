"""`holdfast doctor` on MariaDB: each check on a real server, and on one that is sick on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

import servers
from holdfast import Holdfast, StoreUnavailable, SyncStep
from holdfast.store import mysql_doctor
from holdfast.store.doctor import Finding, examine
from holdfast.store.mysql import MysqlStore
from holdfast.store.mysql_doctor import comparison, connections, durability, packets, replication, transactions
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

CHECKS = [
    "server", "durability", "replication", "packets", "connections", "clock skew", "oldest transaction", "tables",
    "comparison", "claim", "runs", "expired leases", "oldest pending run", "runs that nobody takes",
    "workers with leases", "clock", "payloads",
]  # fmt: skip
HEALTHY = {
    "innodb_flush_log_at_trx_commit": "1",
    "innodb_doublewrite": "ON",
    "log_bin": "ON",
    "sync_binlog": "1",
    "binlog_format": "ROW",
}


@pytest.fixture
def url(mariadb_url: str) -> str:
    """A database with one run of each end, and one that waits."""
    app = Holdfast(MysqlStore(mariadb_url))

    @app.job
    def greet(step: SyncStep, name: str) -> str:
        return step.run("greet", str.upper, name)

    @app.job
    def refuse(step: SyncStep) -> None:
        step.run("refuse", int, "x")

    app.migrate().wait()
    greet.trigger("you").wait()
    refuse.trigger().wait()
    app.process_until_idle().wait()
    greet.trigger("later").wait()
    app.stop().wait()
    return mariadb_url


def found(url: str, **options: Any) -> dict[str, Finding]:
    return {one.check: one for one in examine(MysqlStore(url, **options))}


def change(url: str, sql: str) -> None:
    servers.execute(url, sql)


def test_a_healthy_database_is_told_of_in_order_and_only_the_test_server_itself_is_blamed(url: str) -> None:
    told = examine(MysqlStore(url))
    assert [one.check for one in told] == CHECKS
    assert {one.check: one.text for one in told if one.level != "ok"}.keys() <= {"durability", "runs that nobody takes"}
    by_name = {one.check: one for one in told}
    assert by_name["runs"].data == {"completed": 1, "failed": 1, "pending": 1}
    assert by_name["server"].text.startswith("MariaDB ")
    assert by_name["claim"].text == "it finds runs by holdfast_runs_claimable, in order"


def test_the_durability_that_is_told_is_what_the_server_says(url: str) -> None:
    ((flushed,),) = servers.execute(url, "select @@global.innodb_flush_log_at_trx_commit")
    told = found(url)["durability"]
    assert (told.data or {})["innodb_flush_log_at_trx_commit"] == str(flushed)
    if flushed == 2:
        assert told.level == "fail"


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, "ok", "flushed to disk"),
        ({"innodb_flush_log_at_trx_commit": "2"}, "fail", "up to a second"),
        ({"innodb_flush_log_at_trx_commit": "0"}, "fail", "up to a second"),
        ({"innodb_doublewrite": "OFF"}, "warn", "innodb_doublewrite is off"),
        ({"sync_binlog": "0"}, "warn", "sync_binlog is 0"),
        ({"sync_binlog": "0", "log_bin": "OFF"}, "ok", "flushed to disk"),
        ({"binlog_format": "STATEMENT"}, "fail", "READ COMMITTED"),
    ],
    ids=["healthy", "flush 2", "flush 0", "doublewrite", "binary log", "no binary log", "statements"],
)
def test_settings_that_weaken_a_commit_are_named(changed: dict[str, str], level: str, words: str) -> None:
    told = durability({**HEALTHY, **changed})
    assert told.level == level
    assert words in told.text


@pytest.mark.parametrize(
    ("variables", "status", "level", "words"),
    [
        ({}, {}, "ok", "no replica"),
        ({}, {"slaves_connected": "2"}, "warn", "no commit waits for any"),
        ({}, {"slaves_connected": "2", "rpl_semi_sync_master_status": "ON"}, "ok", "semi-synchronous"),
        (
            {"wsrep_on": "ON"},
            {"wsrep_cluster_status": "Primary", "wsrep_cluster_size": "3", "wsrep_local_cert_failures": "7"},
            "warn",
            "a Galera node of 3, Primary; 7 commits lost to others",
        ),
        ({"wsrep_on": "ON"}, {"wsrep_cluster_status": "non-Primary"}, "fail", "non-Primary"),
    ],
    ids=["none", "asynchronous", "semi-synchronous", "galera", "minority"],
)
def test_what_a_failover_would_lose_is_told(
    variables: dict[str, str], status: dict[str, str], level: str, words: str
) -> None:
    told = replication(variables, status)
    assert told.level == level
    assert words in told.text


def test_too_many_connections_and_too_small_packets_are_told_before_they_are_in_the_way() -> None:
    assert connections(80, 100).level == "ok"
    assert connections(81, 100).level == "warn"
    assert packets(16 << 20).level == "ok"
    assert packets(1 << 20).level == "warn"


def test_the_oldest_transaction_is_named_with_its_thread(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end = time.monotonic() + 30
    with closing(servers.connect(url, autocommit=False)) as forgotten:
        cursor = forgotten.cursor()
        cursor.execute("select connection_id()")
        ((thread,),) = cursor.fetchall()
        cursor.execute("select count(*) from holdfast_runs")
        pause = threading.Event()
        while True:
            told = found(url)["oldest transaction"]
            assert told.level == "ok"
            if thread in [one["thread"] for one in (told.data or {})["transactions"]]:
                break
            # The server looks anew only if nobody has asked it for a tenth of a second, and other tests ask it, too.
            assert time.monotonic() < end
            pause.wait(0.15)
        monkeypatch.setattr(mysql_doctor, "_LONG_TRANSACTION", -1.0)
        told = found(url)["oldest transaction"]
        assert told.level == "warn"
        assert f"kill {(told.data or {})['transactions'][0]['thread']}" in told.advice


def test_a_long_history_is_told_also_when_nobody_is_seen_to_hold_it() -> None:
    assert transactions([], 1_000).level == "ok"
    assert transactions([], 2_000_000).level == "warn"


def test_clocks_that_differ_are_told_with_how_sure_that_is(url: str) -> None:
    told = found(url)["clock skew"]
    assert told.level == "ok"
    assert (told.data or {})["unsure_seconds"] < 5
    told = found(url, clock=HandClock(1_800_000_000_000_000))["clock skew"]
    assert told.level == "warn"
    assert "behind this machine's" in told.text


def test_without_tables_it_says_how_to_make_them(mariadb_url: str) -> None:
    told = found(mariadb_url)
    assert told["tables"].level == "fail"
    assert "holdfast migrate mysql://" in told["tables"].advice
    assert list(told) == CHECKS[: CHECKS.index("tables") + 1]


def test_tables_newer_than_the_code_fail(url: str) -> None:
    change(url, "insert into holdfast_migrations values (9999, '9999_future', 0)")
    told = found(url)["tables"]
    assert told.level == "fail"
    assert "upgrade the package" in told.advice


@contextmanager
def user(url: str) -> Iterator[str]:
    """The URL with which somebody connects who may only look at the rows."""
    database = url.rpartition("/")[2]
    name = f"{database}_g"
    change(url, f"create user {name} identified by 'guest'")
    try:
        change(url, f"grant select on {database}.* to {name}")
        scheme, _, rest = url.partition("://")
        yield f"{scheme}://{name}:guest@{rest.partition('@')[2]}"
    finally:
        change(url, f"drop user {name}")


def test_a_user_who_may_only_read_is_told_what_is_hidden(url: str) -> None:
    with user(url) as guest:
        told = found(guest)
    assert told["oldest transaction"].text.startswith("hidden; ")
    assert "grant it process" in told["oldest transaction"].advice
    assert told["runs"].level == "ok"


def test_tables_that_were_converted_are_told(url: str) -> None:
    assert comparison([]).level == "ok"
    change(url, "alter table holdfast_keys convert to character set utf8mb4 collate utf8mb4_general_ci")
    told = found(url)["comparison"]
    assert told.level == "fail"
    assert "holdfast_keys.key is utf8mb4_general_ci" in told.text


def test_a_claim_without_its_index_is_told(url: str) -> None:
    change(url, "alter table holdfast_runs drop index holdfast_runs_claimable")
    told = found(url)["claim"]
    assert told.level == "fail"
    assert "holdfast_runs_claimable" in told.text


def test_the_explanation_of_a_claim_claims_nothing(url: str) -> None:
    before = servers.execute(url, "select status, generation from holdfast_runs order by id")
    assert found(url)["claim"].level == "ok"
    assert servers.execute(url, "select status, generation from holdfast_runs order by id") == before


def test_a_lease_that_nobody_takes_over_and_a_run_that_nobody_claims_are_told(url: str) -> None:
    change(
        url,
        "update holdfast_runs set status = 'leased', lease_owner = 'gone', lease_expires_at = 1 "
        "where status = 'pending'",
    )
    told = found(url)
    assert told["expired leases"].level == "warn"
    assert (told["expired leases"].data or {})["count"] == 1
    assert told["workers with leases"].text.startswith("gone: 1, until 1970-01-01")
    change(
        url,
        "update holdfast_runs set status = 'pending', lease_owner = null, lease_expires_at = null, run_at = 1 "
        "where status = 'leased'",
    )
    told = found(url)
    assert told["oldest pending run"].level == "warn"
    assert "'greet'" in told["oldest pending run"].advice
    assert told["runs that nobody takes"].text == "1 of greet in the queue default (no worker is alive)"


def test_rows_of_the_future_and_texts_that_nobody_can_read_are_told(url: str) -> None:
    change(url, "update holdfast_runs set updated_at = 9000000000000000 where status = 'pending'")
    change(url, "update holdfast_runs set input = '{' where status = 'pending'")
    told = found(url)
    assert told["clock"].level == "warn"
    assert told["payloads"].level == "warn"
    assert "input of " in told["payloads"].text


def test_where_nobody_answers_it_is_said_as_everywhere() -> None:
    with pytest.raises(StoreUnavailable, match="can't be reached"):
        examine(MysqlStore("mysql://nobody@127.0.0.1:9/none?connect_timeout=2"))
