"""`step.transaction` on servers: what the function can't do with the connection, and what it need not care about."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

import databases
from databases import ON
from holdfast import DefinitionError, Holdfast, Step, SyncStep, job
from holdfast.engine import transactions
from house import PATIENCE, House, until

SERVER = "postgres" if ON == "sqlite" else ON
pytestmark = pytest.mark.only(SERVER, "the function shares a connection to a server")
postgres = pytest.mark.only("postgres", "what PostgreSQL does")
mariadb = pytest.mark.only("mariadb", "what MariaDB does")

_table = ["charges"]


def do(connection: Any, sql: str, *values: Any) -> Any:
    """A cursor that has executed this; the table is named as the function has to."""
    cursor = connection.cursor()
    cursor.execute(sql.replace("charges", _table[0]).replace("?", "%s"), values or None)
    return cursor


def put(connection: Any, who: str) -> None:
    do(connection, "insert into charges (who) values (?)", who)


@pytest.fixture
def charges(house: House) -> Callable[[], list[str]]:
    """The rows of the user's that are committed."""
    house.sql("create table charges (who varchar(80) primary key)")
    _table[0] = databases.table(house.path, "charges")
    return lambda: sorted(who for (who,) in house.sql("select who from charges"))


def outcome(house: House, fn: Callable[..., Any], *, timeout: float | None = None, **options: Any) -> str:
    """What a job of one transaction gives, in an app of its own."""

    @job
    async def work(step: Step) -> str:
        try:
            return str(await step.options(timeout=timeout).transaction("pay", fn))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    async def main() -> str:
        async with house.app(work, **options) as app:
            return await (await app.jobs.work.trigger()).result(timeout=PATIENCE)

    return asyncio.run(main())


def driver() -> Any:
    return importlib.import_module({"postgres": "psycopg", "mariadb": "pymysql"}[SERVER])


def is_postgres() -> bool:
    return SERVER == "postgres"


# -- the connection ------------------------------------------------------------------------------------------------


ENDS: dict[str, Callable[[Any], Any]] = {
    "commit()": lambda c: c.commit(),
    "rollback()": lambda c: c.rollback(),
    "close()": lambda c: c.close(),
    "with": lambda c: c.__enter__(),
    "autocommit": lambda c: c.set_autocommit(True) if is_postgres() else c.autocommit(True),
    "commit by SQL": lambda c: do(c, "commit"),
    "commit behind a comment": lambda c: do(c, "/* now */ -- or later\n COMMIT"),
    "rollback by SQL": lambda c: do(c, "rollback"),
    "begin by SQL": lambda c: do(c, "begin"),
    "start transaction by SQL": lambda c: do(c, "start transaction"),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_function_can_not_end_the_transaction(house: House, charges: Callable[[], list[str]], how: str) -> None:
    seen: list[str] = []

    def stubborn(connection: Any) -> str:
        put(connection, "ada")
        with pytest.raises(DefinitionError) as caught:
            ENDS[how](connection)
        seen.append(str(caught.value))
        put(connection, "eve")
        assert charges() == [], "nothing is committed yet"
        return "done"

    assert outcome(house, stubborn) == "done"
    assert charges() == ["ada", "eve"]
    assert "step.transaction" in seen[0]


def test_savepoints_are_the_functions_own(house: House, charges: Callable[[], list[str]]) -> None:
    def careful(connection: Any) -> None:
        put(connection, "ada")
        do(connection, "savepoint mine")
        put(connection, "eve")
        do(connection, "rollback to savepoint mine")
        do(connection, "release savepoint mine")

    assert outcome(house, careful) == "None"
    assert charges() == ["ada"]


def test_text_that_only_looks_like_an_end_is_let_through(house: House, charges: Callable[[], list[str]]) -> None:
    def odd(connection: Any) -> None:
        put(connection, "a; commit; b")
        do(connection, "insert into charges (who) values ('x; rollback'), ('it''s; commit')")

    assert outcome(house, odd) == "None"
    assert charges() == ["a; commit; b", "it's; commit", "x; rollback"]


def behind(connection: Any, sql: str) -> None:
    """By a way that nobody guards."""
    if is_postgres():
        driver().Cursor(connection).execute(sql)
    else:
        base = driver().connections.Connection
        base.query(connection, sql) if sql != "commit" else base.commit(connection)


@pytest.mark.parametrize("swallowed", [True, False], ids=["swallowed", "raised"])
@pytest.mark.parametrize("what", ["commit", "rollback"])
def test_an_end_that_could_not_be_refused_is_noticed_and_the_step_is_not_saved(
    house: House, charges: Callable[[], list[str]], what: str, swallowed: bool
) -> None:
    def sly(connection: Any) -> None:
        put(connection, "ada")
        with contextlib.suppress(*[DefinitionError] if swallowed else []):
            behind(connection, what)
        with contextlib.suppress(*[DefinitionError] if swallowed else []):
            put(connection, "eve")

    assert outcome(house, sly).startswith("DefinitionError: the transaction was ended inside of step.transaction")
    assert charges() == (["ada"] if what == "commit" else []), "what comes after it is undone"
    assert house.steps() == [("pay", 0, "failed")]


@postgres
@pytest.mark.parametrize("sql", ["select 1; commit", "commit and chain", "insert into charges values ('x'); end"])
def test_an_end_among_several_statements_is_refused(house: House, charges: Callable[[], list[str]], sql: str) -> None:
    def sly(connection: Any) -> None:
        put(connection, "ada")
        with pytest.raises(DefinitionError, match="commits by itself"):
            do(connection, sql)

    assert outcome(house, sly) == "None"
    assert charges() == ["ada"]


@postgres
def test_another_transaction_in_its_place_is_noticed(house: House, charges: Callable[[], list[str]]) -> None:
    def sly(connection: Any) -> None:
        put(connection, "ada")
        behind(connection, "commit; begin")
        put(connection, "eve")

    assert outcome(house, sly).startswith("DefinitionError: the transaction was ended inside of")
    assert charges() == ["ada"]


@mariadb
@pytest.mark.parametrize("sql", ["create table other (a int)", "alter table charges add b int", "truncate charges",
                                 "drop table charges", "create or replace table other (a int)"])  # fmt: skip
def test_a_definition_that_would_commit_is_refused_before_it_does(
    house: House, charges: Callable[[], list[str]], sql: str
) -> None:
    def define(connection: Any) -> None:
        put(connection, "ada")
        with pytest.raises(DefinitionError, match="MariaDB commits before a statement that changes a definition"):
            do(connection, sql)
        do(connection, "create temporary table mine (a int)")
        do(connection, "drop temporary table mine")
        assert charges() == []

    assert outcome(house, define) == "None"
    assert charges() == ["ada"]


@mariadb
@pytest.mark.parametrize("last", [True, False], ids=["at the end", "before more"])
def test_rows_that_a_procedure_commits_are_told_of(house: House, charges: Callable[[], list[str]], last: bool) -> None:
    house.sql("create procedure define() begin create table other (a int); start transaction; end")

    def call(connection: Any) -> None:
        put(connection, "ada")
        do(connection, "call define()")
        if not last:
            put(connection, "eve")

    said = outcome(house, call)
    assert said.startswith("DefinitionError: the transaction was ended inside of step.transaction")
    assert "MariaDB commits what was written before it changes a definition" in said
    assert charges() == ["ada"]
    assert house.steps() == [("pay", 0, "failed")]


@postgres
def test_a_failed_statement_that_is_swallowed_is_a_failure(house: House, charges: Callable[[], list[str]]) -> None:
    def careless(connection: Any) -> None:
        put(connection, "ada")
        with contextlib.suppress(driver().Error):
            put(connection, "ada")

    assert "a statement of the function's has failed" in outcome(house, careless)
    assert charges() == []


@postgres
def test_a_failure_within_a_savepoint_is_none(house: House, charges: Callable[[], list[str]]) -> None:
    def careful(connection: Any) -> None:
        put(connection, "ada")
        with contextlib.suppress(driver().Error), connection.transaction():
            put(connection, "ada")

    assert outcome(house, careful) == "None"
    assert charges() == ["ada"]


@postgres
def test_a_constraint_that_was_put_off_fails_the_step(house: House, charges: Callable[[], list[str]]) -> None:
    house.sql("alter table charges add unique (who) deferrable initially deferred")
    house.sql("alter table charges drop constraint charges_pkey")
    calls: list[int] = []

    def twice(connection: Any) -> None:
        calls.append(1)
        put(connection, "ada")
        put(connection, "ada")

    assert outcome(house, twice).startswith("StepFailed: UniqueViolation")
    assert (len(calls), charges()) == (1, [])


def test_an_error_of_the_functions_own_is_its_failure_at_once(house: House, charges: Callable[[], list[str]]) -> None:
    calls: list[int] = []

    def twice(connection: Any) -> None:
        calls.append(1)
        put(connection, "ada")
        put(connection, "ada")

    assert outcome(house, twice).startswith(("StepFailed: UniqueViolation", "StepFailed: IntegrityError"))
    assert (len(calls), charges()) == (1, [])


@postgres
def test_how_the_function_sets_the_connection_up_does_not_matter(
    house: House, charges: Callable[[], list[str]]
) -> None:
    psycopg = driver()

    def odd(connection: Any) -> str:
        connection.row_factory = psycopg.rows.dict_row
        connection.cursor_factory = psycopg.ClientCursor
        connection.prepare_threshold = None
        connection.adapters.register_dumper(str, psycopg.types.json.JsonDumper)
        connection.adapters.register_loader("text", psycopg.types.string.TextBinaryLoader)
        for sql in (
            "search_path = pg_catalog",
            "statement_timeout = 1000",
            "lock_timeout = 1",
            "enable_indexscan = off",
            "synchronous_commit = off",
            "timezone = 'Asia/Tokyo'",
            "standard_conforming_strings = off",
        ):
            do(connection, f"set local {sql}")
        do(connection, "insert into charges (who) values ('ada')")
        return str(do(connection, "select 1 as one").fetchone()["one"])

    assert outcome(house, odd) == "1"
    assert charges() == ["ada"]


@mariadb
def test_how_the_function_sets_the_session_up_does_not_matter(house: House, charges: Callable[[], list[str]]) -> None:
    pymysql = driver()

    def odd(connection: Any) -> str:
        put(connection, "ada")
        for sql in ("sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES'", "time_zone = '+09:00'", "max_statement_time = 1"):
            do(connection, f"set session {sql}")
        connection.set_character_set("latin1")
        connection.decoders = {}
        connection.cursorclass = pymysql.cursors.SSDictCursor
        do(connection, "use information_schema")
        do(connection, "select 1 as one union select 2")  # not read
        return "\\ü'"

    assert outcome(house, odd) == "\\ü'"
    assert charges() == ["ada"]


@mariadb
def test_one_text_is_one_statement(house: House, charges: Callable[[], list[str]]) -> None:
    def inject(connection: Any) -> None:
        put(connection, "ada")
        with pytest.raises(driver().ProgrammingError):
            do(connection, "select 1; delete from charges")

    assert outcome(house, inject) == "None"
    assert charges() == ["ada"]


@postgres
def test_a_transaction_that_only_reads_now_is_refused(house: House, charges: Callable[[], list[str]]) -> None:
    def lock(connection: Any) -> None:
        put(connection, "ada")
        do(connection, "set transaction read only")

    assert "has made the transaction read-only" in outcome(house, lock)
    assert charges() == []


def test_what_the_function_leaves_behind_reaches_nothing_any_more(
    house: House, charges: Callable[[], list[str]]
) -> None:
    kept: list[Any] = []

    def keep(connection: Any) -> None:
        kept.append(connection)
        put(connection, "ada")

    assert outcome(house, keep) == "None"
    with pytest.raises(driver().Error):
        put(kept[0], "eve")
    assert charges() == ["ada"]


def test_a_run_that_is_triggered_on_its_connection_is_there_if_and_only_if_it_commits(
    house: House, charges: Callable[[], list[str]]
) -> None:
    apps: list[Holdfast] = []

    @job
    def mail(to: str) -> str:
        return f"mailed {to}"

    def pay(connection: Any, who: str) -> None:
        put(connection, who)
        apps[0].jobs.mail.options(connection=connection).trigger(who).wait()
        if who == "eve":
            raise ValueError("no")

    @job
    async def work(step: Step) -> None:
        await step.transaction("pay-ada", pay, "ada")
        with contextlib.suppress(ValueError):
            await step.transaction("pay-eve", pay, "eve")

    async def main() -> None:
        async with house.app(work, mail) as app:
            apps.append(app)
            await (await app.jobs.work.trigger()).result(timeout=PATIENCE)
            await until(lambda: house.sql("select output from holdfast_runs where job_name = 'mail'") == [
                ('"mailed ada"',)])  # fmt: skip

    asyncio.run(main())
    assert charges() == ["ada"]


# -- played again --------------------------------------------------------------------------------------------------

UNDONE = {
    "postgres": "do $$ begin raise exception 'a deadlock' using errcode = '40P01'; end $$",
    "mariadb": "signal sqlstate '40001' set mysql_errno = 1213, message_text = 'a deadlock'",
}[SERVER]


def test_what_the_database_undid_for_somebody_elses_sake_is_called_again(
    house: House, charges: Callable[[], list[str]]
) -> None:
    calls: list[int] = []

    def unlucky(connection: Any) -> int:
        calls.append(1)
        put(connection, f"call {len(calls)}")
        if len(calls) < 3:
            do(connection, UNDONE)
        return len(calls)

    assert outcome(house, unlucky) == "3"
    assert charges() == ["call 3"]
    assert house.errors == [], "it is nobody's trouble"


def test_it_is_not_called_again_for_ever(
    house: House, charges: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "_LONGEST_PAUSE", 0.001)
    monkeypatch.setattr(transactions, "_FIRST_PAUSE", 0.001)
    calls: list[int] = []

    def unlucky(connection: Any) -> None:
        calls.append(1)
        put(connection, "ada")
        do(connection, UNDONE)

    assert "a deadlock" in outcome(house, unlucky)
    assert (len(calls), charges()) == (11, [])


def test_a_connection_that_was_lost_is_no_failure(house: House, charges: Callable[[], list[str]]) -> None:
    calls: list[int] = []

    def unlucky(connection: Any) -> int:
        calls.append(1)
        put(connection, f"call {len(calls)}")
        if len(calls) == 1:
            if is_postgres():
                house.sql(f"select pg_terminate_backend({connection.info.backend_pid})")
            else:
                house.sql(f"kill connection {connection.thread_id()}")
            put(connection, "more")
        return len(calls)

    assert outcome(house, unlucky) == "2"
    assert charges() == ["call 2"]
    assert len(house.errors) == 1, "it was told of"


# -- time and leases -----------------------------------------------------------------------------------------------


def test_s9_a_statement_that_takes_too_long_is_stopped_and_its_rows_are_free(
    house: House, charges: Callable[[], list[str]]
) -> None:
    said: list[str] = []

    def endless(connection: Any) -> None:
        put(connection, "ada")
        try:
            do(connection, "select pg_sleep(3600)" if is_postgres() else "select sleep(3600)")
        except driver().Error as error:
            said.append(str(error))
            raise

    assert outcome(house, endless, timeout=0.2).startswith("TimeoutError: step 'pay' took longer than 0.2 s")
    assert "is over" in said[0]
    house.sql("insert into charges values ('ada')")  # it would wait for the other one
    assert house.steps() == [("pay", 0, "failed")]


def test_s9_a_function_that_does_not_come_back_holds_nothing(house: House, charges: Callable[[], list[str]]) -> None:
    may_go = threading.Event()

    def stuck(connection: Any) -> None:
        put(connection, "ada")
        assert may_go.wait(PATIENCE)
        with pytest.raises(driver().Error):
            put(connection, "eve")

    @job
    async def work(step: Step) -> None:
        with pytest.raises(TimeoutError):
            await step.options(timeout=0.2).transaction("pay", stuck)
        house.sql("insert into charges values ('ada')")

    async def main() -> None:
        async with house.app(work, cancel_grace=0.1) as app:
            await (await app.jobs.work.trigger()).result(timeout=PATIENCE)
            may_go.set()

    asyncio.run(main())
    assert charges() == ["ada"]


def test_s9_meanwhile_its_lease_and_all_others_are_renewed_and_rounds_go_on(
    house: House, charges: Callable[[], list[str]]
) -> None:
    leases = "select lease_expires_at from holdfast_runs where job_name = 'work'"

    def slow(connection: Any) -> None:
        put(connection, "ada")
        apps[0].jobs.other.trigger()
        turned: set[Any] = set()
        for _ in range(30_000):
            turned.update(house.sql(leases))
            ended = house.sql("select status from holdfast_runs where job_name = 'other'") == [("completed",)]
            if len(turned) > 2 and ended:
                return
        raise AssertionError("nobody renews")

    @job
    def other() -> None:
        return

    @job
    async def work(step: Step) -> None:
        await step.transaction("pay", slow)

    apps: list[Holdfast] = []

    async def main() -> None:
        async with house.app(work, other, lease=1.5) as app:
            apps.append(app)
            run = await app.jobs.work.trigger()
            await run.result(timeout=PATIENCE)

    asyncio.run(main())
    assert charges() == ["ada"]
    assert house.errors == []


def test_s2_a_lease_that_is_lost_while_the_function_runs_undoes_its_rows(
    house: House, charges: Callable[[], list[str]]
) -> None:
    calls: list[int] = []

    def overtaken(connection: Any) -> None:
        calls.append(1)
        put(connection, f"call {len(calls)}")
        if len(calls) == 1:
            house.take_away()  # nothing of ours is locked

    @job
    async def work(step: Step) -> None:
        await step.transaction("pay", overtaken)

    async def main() -> None:
        async with house.app(work, worker=False) as app:
            run = await app.jobs.work.trigger()
            await app.process_one()
            assert (charges(), house.steps()) == ([], [])
            await app.process_one()
            assert (await run.refresh()).status == "completed"

    asyncio.run(main())
    assert charges() == ["call 2"]


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_inline_it_is_the_same_in_the_callers_thread(
    house: House, charges: Callable[[], list[str]], colour: str
) -> None:
    threads: list[Any] = []

    def pay(connection: Any) -> int:
        threads.append(threading.current_thread())
        put(connection, "ada")
        return 7

    @job(name="work")
    async def work(step: Step) -> int:
        return await step.transaction("pay", pay)

    @job(name="work")
    def work_sync(step: SyncStep) -> int:
        return step.transaction("pay", pay)

    with house.app(work if colour == "async" else work_sync, inline=True) as app:
        assert app.jobs.work.trigger().wait().result(timeout=PATIENCE).wait() == 7
    assert threads == [threading.main_thread()]
    assert charges() == ["ada"]
    assert house.errors == []
