"""`holdfast doctor` on PostgreSQL: each check on a real server, and on one that is sick on purpose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

import servers
from holdfast import Holdfast, StoreUnavailable, SyncStep
from holdfast.store import postgres_doctor
from holdfast.store.doctor import Finding, examine
from holdfast.store.postgres import PostgresStore
from holdfast.store.postgres_doctor import (
    Settings,
    connections,
    dead_rows,
    durability,
    nodes_of,
    replication,
    transactions,
)
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

CHECKS = [
    "server", "durability", "replication", "connections", "clock skew", "oldest transaction", "notifications", "tables",
    "dead rows", "claim", "runs", "expired leases", "oldest pending run", "runs that nobody takes",
    "workers with leases", "clock", "payloads",
]  # fmt: skip
HEALTHY = Settings("on", "on", "on", "", "on")
LONG = 60


@pytest.fixture
def url(postgres_url: str) -> str:
    """A database, in a schema of its own, with one run of each end, and one that waits."""
    url = f"{postgres_url}?schema=shop"
    app = Holdfast(PostgresStore(url))

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
    return url


def found(url: str, **options: Any) -> dict[str, Finding]:
    return {one.check: one for one in examine(PostgresStore(url, **options))}


def change(url: str, sql: str) -> None:
    servers.execute(url, sql)


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(round(LONG / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it never came to be")


def test_a_healthy_database_is_told_of_in_order_and_only_the_test_server_itself_is_blamed(url: str) -> None:
    told = examine(PostgresStore(url))
    assert [one.check for one in told] == CHECKS
    assert {one.check: one.text for one in told if one.level != "ok"}.keys() <= {"durability", "runs that nobody takes"}
    by_name = {one.check: one for one in told}
    assert by_name["runs"].data == {"completed": 1, "failed": 1, "pending": 1}
    assert by_name["server"].text.startswith("PostgreSQL ")
    assert by_name["claim"].text == "it finds runs by holdfast_runs_claimable, in order"
    assert "holdfast_runs" in (by_name["dead rows"].data or {})


def test_the_durability_that_is_told_is_what_the_server_says(url: str) -> None:
    ((fsync,),) = servers.execute(url, "show fsync")
    told = found(url)["durability"]
    assert (told.data or {})["fsync"] == fsync
    assert told.level == ("ok" if fsync == "on" else "fail")


@pytest.mark.parametrize(
    ("settings", "pooled", "level", "words"),
    [
        (HEALTHY, False, "ok", "are on"),
        (HEALTHY._replace(fsync="off"), False, "fail", "fsync is off"),
        (HEALTHY._replace(full_page_writes="off"), False, "warn", "full_page_writes is off"),
        (HEALTHY._replace(synchronous_commit="off"), False, "ok", "on in sessions of Holdfast"),
        (HEALTHY._replace(synchronous_commit="off"), True, "fail", "acknowledged or not"),
        (HEALTHY._replace(synchronous_commit="remote_apply"), True, "ok", "are on"),
    ],
    ids=["healthy", "fsync", "full_page_writes", "synchronous_commit", "pooled", "remote_apply"],
)
def test_settings_that_weaken_a_commit_are_named(settings: Settings, pooled: bool, level: str, words: str) -> None:
    told = durability(settings, pooled=pooled)
    assert told.level == level
    assert words in told.text


def test_a_commit_that_is_off_for_the_database_is_on_for_holdfast(url: str) -> None:
    change(url, f"alter database {url.split('/')[-1].split('?')[0]} set synchronous_commit = off")
    told = found(url)["durability"]
    assert (told.data or {})["synchronous_commit"] == "off"
    store = PostgresStore(url)
    link = store.connect()
    try:
        assert link.execute("show synchronous_commit").fetchone() == ("on",)
    finally:
        store.disconnect(link)


@pytest.mark.parametrize(
    ("names", "standbys", "level", "words"),
    [
        ("", [], "ok", "no standby"),
        ("", [("a", "async")], "warn", "1 standby, none of them synchronous"),
        ("a", [("a", "sync"), ("b", "async")], "ok", "synchronous with a"),
        ("a", [("b", "async")], "fail", "no such standby is connected"),
        ("a", [("a", "")], "ok", "hidden from this role"),
    ],
    ids=["none", "asynchronous", "synchronous", "missing", "hidden"],
)
def test_what_a_failover_would_lose_is_told(names: str, standbys: list[Any], level: str, words: str) -> None:
    told = replication(HEALTHY._replace(synchronous_standby_names=names), standbys, [])
    assert told.level == level
    assert words in told.text


@pytest.mark.parametrize("how", ["local", "remote_write"])
def test_a_standby_that_no_commit_waits_for_is_told(how: str) -> None:
    settings = HEALTHY._replace(synchronous_standby_names="a", synchronous_commit=how)
    told = replication(settings, [("a", "sync")], [])
    assert told.level == "warn"
    assert f"synchronous_commit is {how}" in told.text


def test_a_slot_that_nobody_reads_is_named_before_it_fills_the_disk(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = url.split("/")[-1].split("?")[0] + "_slot"
    change(url, f"select pg_create_physical_replication_slot('{name}', true)")
    try:
        assert found(url)["replication"].level == "ok"
        monkeypatch.setattr(postgres_doctor, "_MUCH_LOG", -1)
        told = found(url)["replication"]
        assert told.level == "warn"
        assert name in told.text
    finally:
        change(url, f"select pg_drop_replication_slot('{name}')")


def test_too_many_connections_are_told_before_there_is_no_room() -> None:
    assert connections(80, 20, 100).level == "ok"
    assert connections(81, 20, 100).level == "warn"


def test_the_oldest_transaction_is_named_with_its_process(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(servers.connect(url, autocommit=False)) as forgotten:
        ((process,),) = forgotten.execute("select pg_backend_pid()").fetchall()
        told = found(url)["oldest transaction"]
        assert told.level == "ok"
        assert process in [one["pid"] for one in (told.data or {})["transactions"]]
        monkeypatch.setattr(postgres_doctor, "_LONG_TRANSACTION", 0.0)
        told = found(url)["oldest transaction"]
        assert told.level == "warn"
        assert "idle in transaction" in told.text
        assert f"pg_terminate_backend({(told.data or {})['transactions'][0]['pid']})" in told.advice


def test_a_prepared_transaction_that_nobody_ends_is_named() -> None:
    assert transactions([], [("ours", "ada", 30.0)]).level == "ok"
    told = transactions([], [("ours", "ada", 7200.0)])
    assert told.level == "warn"
    assert "'ours' of ada is 2 h old" in told.text


def test_a_transaction_of_others_whose_age_is_hidden_is_told_all_the_same() -> None:
    told = transactions([(7, "ada", "psql", "", None, 40)], [])
    assert (told.level, told.text) == ("ok", "process 7 (ada, psql), state hidden, of unknown age, 40 behind")


def test_clocks_that_differ_are_told_with_how_sure_that_is(url: str) -> None:
    told = found(url)["clock skew"]
    assert told.level == "ok"
    assert (told.data or {})["unsure_seconds"] < 5
    # A clock that stands in 2027: the server's is behind it, by months.
    told = found(url, clock=HandClock(1_800_000_000_000_000))["clock skew"]
    assert told.level == "warn"
    assert "behind this machine's" in told.text


def test_a_notification_is_sent_and_heard(url: str) -> None:
    told = found(url)["notifications"]
    assert told.level == "ok"
    assert 0 < (told.data or {})["seconds"] < 5


def test_behind_a_pooler_it_says_what_is_not_there(url: str) -> None:
    told = found(url + "&pooler=transaction")
    assert "through a pooler" in told["server"].text
    assert told["notifications"].text.startswith("none behind a pooler")
    assert told["claim"].level == "ok"


def test_without_tables_it_says_how_to_make_them(postgres_url: str) -> None:
    told = found(postgres_url)
    assert told["tables"].level == "fail"
    assert "holdfast migrate postgresql://" in told["tables"].advice
    assert list(told) == CHECKS[: CHECKS.index("tables") + 1]


def test_tables_newer_than_the_code_fail(url: str) -> None:
    change(url, "insert into shop.holdfast_migrations values (9999, '9999_future', 0)")
    told = found(url)["tables"]
    assert told.level == "fail"
    assert "upgrade the package" in told.advice


@contextmanager
def role(url: str) -> Iterator[str]:
    """The URL with which somebody connects who may nothing."""
    name = url.split("/")[-1].split("?")[0] + "_guest"
    change(url, f"create role {name} login password 'guest'")
    scheme, _, rest = url.partition("://")
    try:
        yield f"{scheme}://{name}:guest@{rest.partition('@')[2]}"
    finally:
        change(url, f"drop owned by {name}")
        change(url, f"drop role {name}")


def test_a_role_without_rights_is_told_which_it_needs(url: str) -> None:
    with role(url) as guest:
        told = found(guest)
        assert "grant pg_monitor to" in told["server"].advice
        assert told["tables"].level == "fail"
        assert "docs/how-to/postgresql.md#who-may-do-what" in told["tables"].advice
        assert told["notifications"].level == "ok"


def test_a_claim_without_its_index_is_told(url: str) -> None:
    change(url, "drop index shop.holdfast_runs_claimable")
    told = found(url)["claim"]
    assert told.level == "warn"
    assert "sorts them" in told.text
    assert "holdfast_runs_claimable missing or invalid" in told.advice


def test_the_explanation_of_a_claim_claims_nothing(url: str) -> None:
    before = servers.execute(url, "select status, generation from shop.holdfast_runs order by id")
    assert found(url)["claim"].level == "ok"
    assert servers.execute(url, "select status, generation from shop.holdfast_runs order by id") == before


def test_tables_that_autovacuum_leaves_out_are_named(url: str) -> None:
    change(url, "alter table shop.holdfast_runs set (autovacuum_enabled = false)")
    told = found(url)["dead rows"]
    assert told.level == "warn"
    assert "leaves out holdfast_runs" in told.text
    assert told.data is not None
    # What a session has done is counted soon after its end.
    for _ in range(3):
        change(url, "update shop.holdfast_runs set priority = priority + 1")
    until(lambda: (found(url)["dead rows"].data or {})["holdfast_runs"]["dead"] >= 9)


def test_many_dead_rows_are_told_with_when_they_were_last_cleaned_up() -> None:
    few = [("holdfast_runs", 100_000, 20_000, 0, False, 1), ("holdfast_steps", 0, 900, None, False, 1)]
    assert dead_rows(few, HEALTHY).level == "ok"
    told = dead_rows([("holdfast_runs", 100_000, 30_000, 0, False, 1)], HEALTHY)
    assert told.level == "warn"
    assert "30,000 dead rows beside 100,000, last vacuumed 1970-01-01" in told.text
    assert "autovacuum is off" in dead_rows(few, HEALTHY._replace(autovacuum="off")).text


def test_a_lease_that_nobody_takes_over_and_a_run_that_nobody_claims_are_told(url: str) -> None:
    change(
        url,
        "update shop.holdfast_runs set status = 'leased', lease_owner = 'gone', lease_expires_at = 1 "
        "where status = 'pending'",
    )
    told = found(url)
    assert told["expired leases"].level == "warn"
    assert (told["expired leases"].data or {})["count"] == 1
    assert told["workers with leases"].text.startswith("gone: 1, until 1970-01-01")
    change(
        url,
        "update shop.holdfast_runs set status = 'pending', lease_owner = null, lease_expires_at = null, run_at = 1 "
        "where status = 'leased'",
    )
    told = found(url)
    assert told["oldest pending run"].level == "warn"
    assert "'greet'" in told["oldest pending run"].advice
    assert told["runs that nobody takes"].text == "1 of greet in the queue default (no worker is alive)"


def test_rows_of_the_future_and_texts_that_nobody_can_read_are_told(url: str) -> None:
    change(url, "update shop.holdfast_runs set updated_at = 9000000000000000 where status = 'pending'")
    change(url, "update shop.holdfast_runs set input = '{' where status = 'pending'")
    told = found(url)
    assert told["clock"].level == "warn"
    assert told["payloads"].level == "warn"
    assert "input of " in told["payloads"].text


def test_where_nobody_answers_it_is_said_as_everywhere() -> None:
    with pytest.raises(StoreUnavailable, match="can't be reached"):
        examine(PostgresStore("postgresql://nobody@127.0.0.1:9/none?connect_timeout=2"))


def test_the_nodes_of_a_plan_are_all_found() -> None:
    plan = {"Node Type": "a", "Plans": [{"Node Type": "b", "Plans": [{"Node Type": "c"}]}, {"Node Type": "d"}]}
    assert [node["Node Type"] for node in nodes_of(plan)] == ["a", "b", "c", "d"]
