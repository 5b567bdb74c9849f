"""What is promised of MariaDB alone: URLs, sessions, what happens when nobody answers, errors in our words, locks."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import pytest

import servers
from holdfast import Holdfast, SyncStep
from holdfast.basis.errors import PayloadTooLarge, SchemaError, StoreError, StoreUnavailable, ValidationError
from holdfast.commit.round import Rounds
from holdfast.commit.ticket import Ticket
from holdfast.model.run import NewRun, RunFilter
from holdfast.model.step import StepRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store import mysql_place
from holdfast.store.base import ClaimOrder, Ending, Lease, PlayAgain, StepSave, Sweep, Tx
from holdfast.store.mysql import MysqlStore
from holdfast.store.mysql_place import Limits, Link, address
from holdfast.store.mysql_words import FRONT, LOCKED_FRONT, SQL, filled, rows_of, split
from holdfast.store.opening import open_store
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)


@pytest.fixture
def store(mariadb_url: str) -> MysqlStore:
    store = MysqlStore(mariadb_url)
    store.migrate()
    return store


@pytest.fixture
def link(store: MysqlStore) -> Iterator[Link]:
    link = store.open()
    yield link
    store.disconnect(link)


def trigger(store: MysqlStore, link: Link, *ids: str, **values: Any) -> None:
    tx = store.begin(link)
    store.trigger(tx, [NewRun(one, "job", "1", **values) for one in ids])
    store.commit(tx)


def setting(link: Link, name: str) -> Any:
    return link.ask(f"select @@{name}")[0][0]


def kill(mariadb_url: str, link: Link) -> None:
    servers.execute(mariadb_url, f"kill {link.raw.thread_id()}")


# -- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql", "MySQL"])
def test_every_common_scheme_opens_mariadb(scheme: str) -> None:
    store = open_store(f"{scheme}://me@db.example/app", clock=HandClock())
    assert isinstance(store, MysqlStore)
    assert store.address.hosts == (("db.example", 3306),)
    assert (store.address.user, store.address.password, store.address.database) == ("me", "", "app")


def test_an_app_executes_runs_on_mariadb(mariadb_url: str) -> None:
    app = Holdfast(mariadb_url)

    @app.job
    def double(n: int) -> int:
        return 2 * n

    with app:
        assert double.run(4).wait() == 8
    assert servers.execute(mariadb_url, "select job_name, status from holdfast_runs") == [("double", "completed")]


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        ("mysql://me:s3cret@host:1234/app", "mysql://me@host:1234/app", "s3cret"),
        ("mysql://me:s3%2Fc%40ret@a,b:1,[::1]:2/my%20app", "mysql://me@a,b:1,[::1]:2/my%20app", "s3/c@ret"),
        ("mariadb:///app?unix_socket=%2Ftmp%2Fs.sock", "mariadb:///app?unix_socket=%2Ftmp%2Fs.sock", ""),
    ],
)
def test_the_name_of_a_mariadb_has_no_password(url: str, shown: str, password: str) -> None:
    assert (address(url).name, address(url).password) == (shown, password)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("mysql://me:s3cret@host", "names no database"),
        ("mysql://me:s3cret@host/", "names no database"),
        ("mysql://me:s3c/ret@host/app", "names no database"),
        ("mysql://me:s3c#ret@host/app", "names no database"),
        ("mysql://me:s3cret@host/app?colour=blue", "unknown option 'colour'"),
        ("mysql://me:s3cret@host:port/app", "is no host"),
        ("mysql://", "no scheme of a MariaDB URL"),
    ],
)
def test_a_url_of_mariadb_that_can_not_be_understood_is_refused_without_its_password(wrong: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        MysqlStore(wrong)
    assert "s3c" not in str(caught.value)


def test_without_pymysql_the_error_says_what_to_install() -> None:
    script = """
import sys
sys.modules["pymysql"] = None
from holdfast import Holdfast
try:
    Holdfast("mysql://host/app")
except ValueError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'holdfast[mysql]'" in told.stdout


def test_importing_the_package_does_not_import_pymysql() -> None:
    script = "import sys, holdfast; print('pymysql' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "False\n"


def test_the_first_host_that_answers_is_used(store: MysqlStore) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()[1]
        host, port = store.address.hosts[0]
        both = MysqlStore(store.name.replace(f"{host}:{port}", f"{host}:{nobody},{host}:{port}"))
        both.address = both.address._replace(password=store.address.password)
        both.disconnect(both.open())


# -- sessions ------------------------------------------------------------------------------------------------------


def test_a_session_has_what_it_needs_however_the_server_is_set_up() -> None:
    odd = {
        "sql-mode": "ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,ORACLE",
        "character-set-server": "latin1",
        "default-time-zone": "+02:00",
        "transaction-isolation": "SERIALIZABLE",
        "autocommit": "0",
        "sysdate-is-now": "1",
    }
    hostile = "back\\slash 'quote' \"double\" 🧗 \x1a"
    with servers.mariadb(**odd) as server:
        store = MysqlStore(server.url(server.create_database()))
        store.migrate()
        link = store.open()
        trigger(store, link, "run", trace=hostile, idempotency_key="key ")
        (run,) = store.find_runs(link, RunFilter())
        assert (run.trace, run.idempotency_key) == (hostile, "key ")
        assert abs(run.created_at - store.clock.now()) < 60_000_000, "no zone of time"
        assert setting(link, "tx_isolation") == "READ-COMMITTED"
        store.disconnect(link)


def test_limits_for_people_who_make_mistakes_are_not_ours() -> None:
    limits = {
        "sql_select_limit": 1, "sql_safe_updates": 1, "sql_big_selects": 0, "max_join_size": 5,
        "sort_buffer_size": 1024, "max_sort_length": 64, "max_recursive_iterations": 1,
    }  # fmt: skip
    called = []
    with servers.mariadb() as server:
        for name, value in limits.items():
            server.execute(f"set global {name} = {value}")
        app = Holdfast(server.url(server.create_database()), warm_for=0, polling_interval=0.1)

        @app.job
        def long(step: SyncStep) -> list[int]:
            values = [step.run(f"n{n}", lambda n=n: called.append(n) or n) for n in range(10)]
            step.sleep("a while", 0.2)
            return values

        with app:
            runs = app.trigger_many([long.bind() for _ in range(3)]).wait()
            assert [run.result(timeout=30).wait() for run in runs] == [[*range(10)]] * 3
    assert sorted(called) == sorted([*range(10)] * 3), "what was saved was read again"


def test_a_session_waits_for_nothing_for_ever(mariadb_url: str) -> None:
    store = MysqlStore(mariadb_url, lease=4, lock_timeout=3)
    store.migrate()
    link = store.open()
    names = ("innodb_lock_wait_timeout", "lock_wait_timeout", "max_statement_time", "idle_transaction_timeout")
    assert [setting(link, name) for name in names] == [3, 3, 5.0, 2]
    store.disconnect(link)


def test_a_reading_session_of_mariadb_can_not_write(store: MysqlStore) -> None:
    link = store.open(read_only=True)
    with pytest.raises(pymysql.Error) as caught:
        store.trigger(Tx(link, 1), [NewRun("a", "job", "1")])
    assert "is read-only" in str(store.translate(caught.value))
    store.disconnect(link)


def test_an_old_server_or_another_product_is_refused(store: MysqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_place, "OLDEST", (99, 0))
    with pytest.raises(StoreError, match=r"MariaDB 99.0 or newer is needed, this server is 1"):
        store.connect()


@pytest.mark.parametrize("version", ["8.0.36", "5.5.5-10.6.4-MariaDB-log", "10.10.2-MariaDB"])
def test_these_versions_are_too_old(store: MysqlStore, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    ask = Link.ask
    monkeypatch.setattr(Link, "ask", lambda link, sql: ask(link, sql.replace("version()", f"'{version}'")))
    with pytest.raises(StoreError, match=f"this server is {version}"):
        store.connect()


def test_what_waited_for_a_lock_of_mariadb_is_judged_by_the_time_after_it(store: MysqlStore, link: Link) -> None:
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
    question = "select 1 from information_schema.innodb_trx where trx_state = 'LOCK WAIT'"
    watching = store.connect()
    pause = threading.Event()
    while not watching.ask(question):
        pause.wait(0.15)  # asked within a tenth of a second it says the same again
    released = store._find(other, "now")[0][0]
    store.rollback(holding)
    thread.join(30)
    (tx,) = waiting
    assert tx.now >= released
    store.rollback(tx)
    for one in (other, watching):
        store.disconnect(one)


# -- nobody answers ------------------------------------------------------------------------------------------------


class Line:
    """A line to the server that can be told to carry nothing more back, or one byte at a time."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self.mute = threading.Event()
        self.trickle = threading.Event()
        self.gone = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open = [self._listening]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._to)
                self._open += [client, server]
                threading.Thread(target=self._carry, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, True), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if back and self.mute.is_set():
                    continue
                if back and self.trickle.is_set():
                    for byte in data:
                        other.sendall(bytes([byte]))
                        self.gone.wait(0.05)
                    continue
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.gone.set()
        for one in self._open:
            one.close()


@pytest.fixture
def line(store: MysqlStore) -> Iterator[Line]:
    line = Line(store.address.hosts[0])
    yield line
    line.close()


def over(line: Line, store: MysqlStore, statement: float = 1.0) -> MysqlStore:
    distant = MysqlStore(store.name)
    distant.address = store.address._replace(hosts=(("127.0.0.1", line.port),))
    distant.limits = Limits(lock=1, statement=statement, idle=5)
    return distant


@pytest.mark.parametrize("how", ["mute", "trickle"])
def test_a_server_that_does_not_answer_is_given_up_and_its_connection_left(
    store: MysqlStore, line: Line, how: str
) -> None:
    distant = over(line, store)
    link = distant.open()
    trigger(distant, link, "before")
    getattr(line, how).set()
    with pytest.raises(pymysql.OperationalError) as caught:
        distant.find_runs(link, RunFilter())
    meant = distant.translate(caught.value)
    assert isinstance(meant, StoreUnavailable)
    assert "doesn't answer" in str(meant)
    assert link.is_lost
    getattr(line, how).clear()
    trigger(distant, link, "after")
    assert {run.id for run in distant.find_runs(link, RunFilter())} == {"before", "after"}
    distant.disconnect(link)


def test_a_commit_without_an_answer_is_read_back(
    store: MysqlStore, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    distant = over(line, store)
    commit = distant.commit

    def unheard(tx: Tx) -> None:
        line.mute.set()
        monkeypatch.setattr(distant, "commit", commit)
        try:
            commit(tx)
        finally:
            line.mute.clear()

    monkeypatch.setattr(distant, "commit", unheard)
    rounds = Rounds(distant, distant.clock)
    ticket: Ticket[Any] = Ticket("trigger", NewRun("run", "job", "1"))
    assert rounds.serve([ticket]) is None
    assert ticket.wait().disposition == "created"
    assert len(store.find_runs(store.open(), RunFilter())) == 1
    rounds.disconnect()


# -- lost and found ------------------------------------------------------------------------------------------------


def test_a_transaction_of_mariadb_begins_on_a_new_connection_where_the_old_one_was_lost(
    mariadb_url: str, store: MysqlStore, link: Link
) -> None:
    trigger(store, link, "before")
    kill(mariadb_url, link)
    trigger(store, link, "after")
    assert {run.id for run in store.find_runs(link, RunFilter())} == {"before", "after"}


def test_a_transaction_of_mariadb_that_is_lost_in_the_middle_is_not_there(
    mariadb_url: str, store: MysqlStore, link: Link
) -> None:
    tx = store.begin(link)
    store.trigger(tx, [NewRun("lost", "job", "1")])
    kill(mariadb_url, link)
    with pytest.raises(pymysql.Error) as caught:
        store.commit(tx)
    assert isinstance(store.translate(caught.value), StoreUnavailable)
    store.rollback(tx)
    trigger(store, link, "next")
    assert [run.id for run in store.find_runs(link, RunFilter())] == ["next"]


def test_another_mariadb_under_the_same_url_is_refused(mariadb_url: str, store: MysqlStore, link: Link) -> None:
    kill(mariadb_url, link)
    servers.execute(mariadb_url, "update holdfast_meta set value = 'another' where `key` = 'database_id'")
    with pytest.raises(StoreUnavailable, match="another database"):
        store.begin(link)


def test_tables_of_mariadb_that_are_gone_are_missing(mariadb_url: str, store: MysqlStore, link: Link) -> None:
    servers.execute(mariadb_url, "drop table holdfast_migrations")
    with pytest.raises(pymysql.Error) as caught:
        store.begin(link)
    assert isinstance(store.translate(caught.value), SchemaError)


def test_a_wrong_password_of_mariadb_is_told_without_it(store: MysqlStore) -> None:
    wrong = MysqlStore(store.name)
    wrong.address = store.address._replace(password="wr0ng")
    with pytest.raises(StoreUnavailable, match="refuses access") as caught:
        wrong.connect()
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (2003, "can't be reached"), (2006, "doesn't answer"), (2013, "doesn't answer"), (1040, "no more connections"),
        (1045, "refuses access"), (1049, "does not exist"), (1053, "is shutting down"), (1927, "ended our connection"),
        (1021, "no room left"), (1290, "is read-only"), (1969, "took too long"), (1030, "can't be read or written"),
        (0, "can't be reached"),
    ],
)  # fmt: skip
def test_trouble_with_mariadb_is_told_in_our_words(code: int, said: str) -> None:
    error = pymysql.OperationalError(code, "me:s3cret@h")
    meant = MysqlStore("mysql://me:s3cret@h/d").translate(error)
    assert type(meant) is StoreUnavailable
    assert said in str(meant)
    assert "s3cret" not in str(meant)
    assert meant.__cause__ is error


@pytest.mark.parametrize(
    ("code", "kind"), [(1213, PlayAgain), (1205, PlayAgain), (1406, ValidationError), (1064, StoreError)]
)
def test_errors_of_mariadb_about_what_was_asked_are_told_apart(code: int, kind: type[Exception]) -> None:
    assert type(MysqlStore("mysql://h/d").translate(pymysql.DataError(code, "?"))) is kind


# -- what does not fit ---------------------------------------------------------------------------------------------


def test_a_value_that_the_server_would_not_take_is_refused_before_it_is_sent(store: MysqlStore, link: Link) -> None:
    texts = [("small", "1"), ("big", "x" * (link.largest + 1))]
    rounds = Rounds(store, store.clock)
    tickets: list[Ticket[Any]] = [Ticket("trigger", NewRun(name, "job", text)) for name, text in texts]
    rounds.serve(tickets)
    assert tickets[0].wait().disposition == "created"
    with pytest.raises(PayloadTooLarge, match="max_allowed_packet"):
        tickets[1].wait()
    assert [run.id for run in store.find_runs(link, RunFilter())] == ["small"]
    rounds.disconnect()


@pytest.mark.parametrize(
    "values",
    [{"job_name": "x" * 256}, {"idempotency_key": "x" * 256}, {"concurrency_key": "é" * 256}, {"id": "x" * 65}],
)
def test_a_name_that_the_tables_would_cut_is_refused(store: MysqlStore, link: Link, values: dict[str, str]) -> None:
    new = NewRun("run", "job", "1")._replace(**values)
    tx = store.begin(link)
    with pytest.raises(ValidationError, match="more than"):
        store.trigger(tx, [new])
    store.rollback(tx)


def test_keys_of_255_characters_of_any_kind_are_kept(store: MysqlStore, link: Link) -> None:
    key = "🧗" * 255
    trigger(store, link, "run", idempotency_key=key, concurrency_key=key, tenant=key, queue=key)
    (run,) = store.find_runs(link, RunFilter())
    assert {run.idempotency_key, run.concurrency_key, run.tenant, run.queue} == {key}


# -- played again --------------------------------------------------------------------------------------------------


def everything(store: MysqlStore, link: Link) -> list[Any]:
    runs = store.find_runs(link, RunFilter())
    return [[run._replace(created_at=0, updated_at=0, run_at=0, started_at=0, completed_at=0, lease_expires_at=0)
             for run in runs], [store.find_steps(link, run.id) for run in runs]]  # fmt: skip


def prepared(store: MysqlStore, link: Link) -> list[Ticket[Any]]:
    """A round about everything: two runs with a lease, one of them to end, and one whose lease is over."""
    for number in range(3):
        trigger(store, link, f"old {number}", concurrency_key=f"k{number}", idempotency_key=f"i{number}")
    tx = store.begin(link)
    order = ClaimOrder("me", 10, 60_000_000, ("job",), limits=(("job", 9),))
    store.lock(tx, {"claim": [order]})
    store.claim(tx, [order])
    link.do("update holdfast_runs set lease_expires_at = 1 where id = 'old 2'")
    store.commit(tx)
    leases = [Lease(f"old {number}", 1, "me") for number in range(2)]
    return [
        Ticket("trigger", NewRun("new", "job", "1", concurrency_key="k0", idempotency_key="n", labels='{"a":"b"}')),
        Ticket("trigger", NewRun("known", "job", "1", idempotency_key="i1")),
        Ticket("finish", Ending(leases[0], TABLE[Cause.COMPLETE], output="1")),
        Ticket("save_steps", StepSave("me", StepRow("old 1", "s", 0, 0, "completed", 0, 1, None, "1", None, 1, 1))),
        Ticket("expire", Sweep(5)),
        Ticket("claim", order),
    ]


@pytest.mark.parametrize("code", [1213, 1205])
def test_wherever_mariadb_undoes_a_round_it_is_played_again_as_a_whole(mariadb_url: str, code: int) -> None:
    expected: list[Any] = []
    failing, count = 0, 1
    while failing < count:  # the last one is the commit: what has no answer is read back
        servers.execute(mariadb_url, f"create or replace database {mariadb_url.rpartition('/')[2]}")
        store = MysqlStore(mariadb_url)
        store.migrate()
        link = store.open()
        tickets = prepared(store, link)
        said = 0

        class Failing(MysqlStore):
            def connect(self, *, read_only: bool = False, at: int = failing) -> Link:
                link = super().connect(read_only=read_only)
                say: Callable[[str], Any] = link._say

                def counted(sql: str) -> Any:
                    nonlocal said
                    said += 1
                    if said == at and code == 1213:
                        say("rollback")  # by itself a deadlock undoes all, a wait that was too long nothing
                    if said == at:
                        raise pymysql.OperationalError(code, "for somebody else's sake")
                    return say(sql)

                link._say = counted  # type: ignore[method-assign]
                return link

        undone = Failing(mariadb_url)
        rounds = Rounds(undone, undone.clock)
        rounds.connection = undone.open()
        said = 0
        rounds.serve(tickets)
        answers = [ticket.wait() for ticket in tickets]
        told = [answers[0].disposition, answers[1].disposition, answers[2].accepted, answers[3], len(answers[4]),
                sorted((run.id, run.generation) for run in answers[5].runs)]  # fmt: skip
        found = [told, everything(store, link)]
        if failing == 0:
            expected, count = found, said
            assert told == ["created", "idempotent", True, True, 1, [("new", 1), ("old 2", 3)]]
            assert count > 15
        assert found == expected, failing
        assert rounds.tally.again == (failing > 0)
        rounds.disconnect()
        store.disconnect(link)
        failing += 3


# -- keys and claims -----------------------------------------------------------------------------------------------


def test_keys_that_nobody_needs_any_more_are_forgotten_when_idle(store: MysqlStore, link: Link) -> None:
    for number in range(3):
        trigger(store, link, f"run {number}", concurrency_key=f"k{number}")
    tx = store.begin(link)
    store.cancel(tx, ["run 0", "run 1"])
    store.commit(tx)
    assert store.upkeep(link, idle=True)
    assert link.ask("select `key` from holdfast_keys") == [("k2",)]
    trigger(store, link, "run 4", concurrency_key="k0")
    assert link.ask("select `key` from holdfast_keys order by 1") == [("k0",), ("k2",)]


def test_a_claim_reads_its_index_in_its_order(store: MysqlStore, link: Link) -> None:
    tx = store.begin(link)
    store.trigger(tx, [NewRun(f"run {number:04}", f"job {number % 3}", "1") for number in range(600)])
    store.commit(tx)
    front = filled(split(FRONT.format(key="null", kind=1, number=0, many=10)), ("default", "job 1"))
    for text in (front, filled(LOCKED_FRONT, ("default", "job 1", 10))):
        ((_, _, _, kind, _, key, _, _, _, extra),) = link.ask(f"explain {text.strip('()')}")
        assert (kind, key) == ("ref", "holdfast_runs_claimable")
        assert "filesort" not in extra
        assert "temporary" not in extra


@pytest.mark.parametrize("rows", [0, 3, 600])
@pytest.mark.parametrize(
    "name",
    ["lock_runs", "told_finish", "told_cancel", "cancel", "lease", "promote", "delete_runs", "told_renew_leases"],
)
def test_what_locks_runs_finds_each_by_its_id_however_many_there_are(
    store: MysqlStore, link: Link, name: str, rows: int
) -> None:
    if rows:
        tx = store.begin(link)
        store.trigger(tx, [NewRun(f"run {number:04}", "job", "1") for number in range(rows)])
        store.commit(tx)
        link.ask("analyze table holdfast_runs")
    leased = name.startswith("told_") and name != "told_cancel"
    asked: list[Any] = [("run 0001", 1, "me", 1), ("run 0002", 1, "me", 1)] if leased else ["run 0001", "run 0002"]
    text = filled(SQL[name], (rows_of(asked), 1, 1, 1)).partition(";")[0]
    found = {row[2]: row[3:6] for row in link.ask(f"explain {text}")}
    assert found["r"] == ("eq_ref", "PRIMARY", "PRIMARY")


def test_claims_at_once_get_different_runs(store: MysqlStore) -> None:
    links = [store.open() for _ in range(4)]
    tx = store.begin(links[0])
    store.trigger(tx, [NewRun(f"run {number:04}", f"job {number % 2}", "1") for number in range(80)])
    store.commit(tx)
    order = ClaimOrder("me", 20, 60_000_000, ("job 0", "job 1"))
    open_ones = [store.begin(one) for one in links]
    got = [[run.id for run in store.claim(tx, [order])[0].runs] for tx in open_ones]
    for tx in open_ones:
        store.commit(tx)
    assert [len(ids) for ids in got] == [20] * 4
    assert len({run_id for ids in got for run_id in ids}) == 80
    for one in links:
        store.disconnect(one)


def test_several_of_one_line_in_one_call_meet_as_if_they_had_come_one_by_one(store: MysqlStore, link: Link) -> None:
    trigger(store, link, "there", idempotency_key="taken")
    new = [
        NewRun("a", "job", "1", concurrency_key="k", idempotency_key="taken"),
        NewRun("b", "job", "1", concurrency_key="k", idempotency_key="z", coalesce="skip"),
        NewRun("c", "job", "1", idempotency_key="z"),
        NewRun("d", "job", "1", concurrency_key="k", idempotency_key="y", coalesce="skip"),
        NewRun("e", "job", "1", idempotency_key="y"),
        NewRun("f", "other", "1", concurrency_key="k"),
        NewRun("f", "other", "1", concurrency_key="k"),
    ]
    tx = store.begin(link)
    made = [(one.disposition, one.run.id) for one in store.trigger(tx, new)]
    store.commit(tx)
    assert made == [
        ("idempotent", "there"), ("created", "b"), ("idempotent", "b"), ("coalesced", "b"), ("created", "e"),
        ("created", "f"), ("created", "f"),
    ]  # fmt: skip
    assert {run.id for run in store.find_runs(link, RunFilter())} == {"there", "b", "e", "f"}
