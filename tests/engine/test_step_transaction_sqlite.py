"""`step.transaction` on SQLite: what the function can't do with the connection, and how long it may keep the lock."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast import DefinitionError, Holdfast, Retry, Step, SyncStep, job
from holdfast.testing.clock import HandClock
from house import PATIENCE, House, until

pytestmark = pytest.mark.only("sqlite", "the connection and the lock are those of SQLite")


def put(connection: sqlite3.Connection, who: str) -> None:
    connection.execute("insert into charges (who) values (?)", (who,))


@pytest.fixture
def charges(house: House) -> Callable[[], list[str]]:
    """The rows of the user's that are committed."""
    house.sql("create table charges (who text primary key)")
    return lambda: sorted(who for (who,) in house.sql("select who from charges"))


def outcome(house: House, fn: Callable[..., Any], **options: Any) -> str:
    """What a job of one transaction gives, in an app of its own."""

    @job
    async def work(step: Step) -> str:
        try:
            return str(await step.transaction("pay", fn))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    async def main() -> str:
        async with house.app(work, **options) as app:
            return await (await app.jobs.work.trigger()).result(timeout=PATIENCE)

    return asyncio.run(main())


# -- the connection ------------------------------------------------------------------------------------------------

ENDS: dict[str, Callable[[sqlite3.Connection], Any]] = {
    "commit()": lambda c: c.commit(),
    "rollback()": lambda c: c.rollback(),
    "close()": lambda c: c.close(),
    "with": lambda c: c.__enter__(),
    "executescript": lambda c: c.executescript("select 1"),
    "executescript of a cursor": lambda c: c.cursor().executescript("select 1"),
    "commit by SQL": lambda c: c.execute("commit"),
    "commit by a cursor": lambda c: c.cursor().execute("COMMIT"),
    "end by SQL": lambda c: c.execute("end transaction"),
    "rollback by SQL": lambda c: c.execute("rollback"),
    "begin by SQL": lambda c: c.execute("begin"),
    "another authorizer": lambda c: c.set_authorizer(None),
    "another progress handler": lambda c: c.set_progress_handler(None, 0),
}
BEHIND: dict[str, Callable[[sqlite3.Connection], Any]] = {
    "commit of the base class": lambda c: sqlite3.Connection.commit(c),
    "rollback of the base class": lambda c: sqlite3.Connection.rollback(c),
    "a plain cursor": lambda c: sqlite3.Cursor(c).execute("commit"),
    "script of a plain cursor": lambda c: sqlite3.Cursor(c).executescript("select 1"),
    "isolation level": lambda c: setattr(c, "isolation_level", None),
}


@pytest.mark.parametrize("how", [*ENDS, *BEHIND])
def test_the_function_can_not_end_the_transaction(house: House, charges: Callable[[], list[str]], how: str) -> None:
    seen: list[str] = []

    def stubborn(connection: sqlite3.Connection) -> bool:
        put(connection, "ada")
        with pytest.raises((DefinitionError, sqlite3.DatabaseError)) as caught:
            (ENDS | BEHIND)[how](connection)
        seen.append(str(caught.value))
        put(connection, "eve")
        assert charges() == [], "nothing is committed yet"
        return connection.in_transaction

    assert outcome(house, stubborn) == "True"
    assert charges() == ["ada", "eve"]
    assert ("step.transaction" in seen[0]) is (how in ENDS), seen


def test_the_function_waits_for_other_databases_as_long_as_anybody(house: House) -> None:
    """What asks for our own write lock every few milliseconds does so by itself."""
    assert outcome(house, lambda connection: connection.execute("pragma busy_timeout").fetchone()[0]) == "10000"


def test_savepoints_are_the_functions_own(house: House, charges: Callable[[], list[str]]) -> None:
    def careful(connection: sqlite3.Connection) -> None:
        put(connection, "ada")
        connection.execute("savepoint mine")
        put(connection, "eve")
        connection.execute("rollback to mine")
        connection.execute("release mine")

    assert outcome(house, careful) == "None"
    assert charges() == ["ada"]


@pytest.mark.parametrize("swallowed", [True, False], ids=["swallowed", "raised"])
def test_a_statement_that_rolls_back_by_itself_leaves_nothing(
    house: House, charges: Callable[[], list[str]], swallowed: bool
) -> None:
    later: list[str] = []

    def conflict(connection: sqlite3.Connection) -> None:
        put(connection, "ada")
        try:
            connection.execute("insert or rollback into charges values ('ada')")
        except sqlite3.IntegrityError:
            if not swallowed:
                raise
        with pytest.raises(DefinitionError, match="was ended inside of") as caught:
            put(connection, "eve")  # it would be a transaction by itself
        later.append(str(caught.value))

    said = outcome(house, conflict)
    assert said.startswith(
        "DefinitionError: the transaction was ended" if swallowed else "StepFailed: IntegrityError: UNIQUE"
    )
    assert charges() == []
    assert len(later) == swallowed


def test_a_connection_that_was_closed_behind_our_back_is_a_failure(
    house: House, charges: Callable[[], list[str]]
) -> None:
    def close(connection: sqlite3.Connection) -> None:
        put(connection, "ada")
        sqlite3.Connection.close(connection)

    assert outcome(house, close).startswith("DefinitionError: the transaction was ended")
    assert charges() == []


def test_how_the_function_sets_the_connection_up_does_not_matter(
    house: House, charges: Callable[[], list[str]]
) -> None:
    cursors: list[Any] = []

    def odd(connection: sqlite3.Connection) -> str:
        connection.row_factory = sqlite3.Row
        connection.text_factory = bytes
        connection.isolation_level = "DEFERRED"
        connection.set_trace_callback(lambda sql: None)
        # Neither is read to its end.
        cursors.append(connection.execute("insert into charges values ('ada'), ('eve') returning who"))
        cursors.append(connection.cursor())
        cursors[1].execute("insert into charges values ('bob'), ('joe') returning who")
        return str(next(cursors[0])["who"])

    assert outcome(house, odd) == "b'ada'"
    assert charges() == ["ada", "bob", "eve", "joe"]


def test_a_cursor_that_nobody_knows_of_and_that_still_writes_is_told_of(
    house: House, charges: Callable[[], list[str]]
) -> None:
    cursors: list[Any] = []

    def hidden(connection: sqlite3.Connection) -> None:
        cursors.append(sqlite3.Cursor(connection))
        cursors[0].execute("insert into charges values ('ada'), ('eve') returning who")

    assert outcome(house, hidden).startswith("DefinitionError: step.transaction: a cursor of the function's")
    assert charges() == []


def test_a_table_that_hides_one_of_ours_is_refused(house: House, charges: Callable[[], list[str]]) -> None:
    def hide(connection: sqlite3.Connection) -> None:
        put(connection, "ada")
        connection.execute("create temp table holdfast_steps (a, b)")

    assert "'holdfast_steps' hides the table of Holdfast" in outcome(house, hide)
    assert charges() == []


@pytest.mark.parametrize("when", ["after the return", "after the time"])
def test_what_the_function_leaves_behind_reaches_nothing_any_more(
    house: House, clock: HandClock, charges: Callable[[], list[str]], when: str
) -> None:
    kept: list[sqlite3.Connection] = []
    said: list[str] = []
    begun = threading.Event()

    def keep(connection: sqlite3.Connection) -> None:
        kept.append(connection)
        put(connection, "ada")
        begun.set()
        while when == "after the time":
            try:
                connection.execute("select 1")
            except sqlite3.OperationalError as error:
                said.append(str(error))
                return

    if when == "after the return":
        assert outcome(house, keep) == "None"
    else:
        advance = threading.Thread(target=lambda: begun.wait(PATIENCE) and clock.advance(10.1))
        advance.start()
        assert outcome(house, keep, clock=clock).startswith("TimeoutError: step 'pay': step.transaction took longer")
        advance.join()
        assert said[0].startswith("the transaction of this connection is over")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        put(kept[0], "eve")
    assert charges() == (["ada"] if when == "after the return" else [])


def test_a_run_that_is_triggered_on_its_connection_is_there_if_and_only_if_it_commits(
    house: House, charges: Callable[[], list[str]]
) -> None:
    apps: list[Holdfast] = []

    @job
    def mail(to: str) -> str:
        return f"mailed {to}"

    def pay(connection: sqlite3.Connection, who: str) -> None:
        put(connection, who)
        apps[0].jobs.mail.options(connection=connection).trigger(who).wait()
        if who == "eve":
            raise ValueError("no")

    @job
    async def work(step: Step) -> None:
        await step.transaction("pay-ada", pay, "ada")
        try:
            await step.transaction("pay-eve", pay, "eve")
        except ValueError:
            return

    async def main() -> None:
        async with house.app(work, mail) as app:
            apps.append(app)
            await (await app.jobs.work.trigger()).result(timeout=PATIENCE)
            await until(lambda: house.sql("select output from holdfast_runs where job_name = 'mail'") == [
                ('"mailed ada"',)])  # fmt: skip

    asyncio.run(main())
    assert charges() == ["ada"]


# -- the lock ------------------------------------------------------------------------------------------------------

LIMIT = "step.transaction took longer than 10 s, a third of the lease"


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_s9_after_a_third_of_the_lease_others_may_write_though_the_function_goes_on(
    house: House, clock: HandClock, charges: Callable[[], list[str]], colour: str
) -> None:
    begun, may_go = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        put(connection, "ada")
        begun.set()
        assert may_go.wait(PATIENCE)

    @job(name="work")
    async def work(step: Step) -> str:
        with pytest.raises(TimeoutError) as caught:
            await step.transaction("pay", slow)
        return str(caught.value)

    @job(name="work")
    def work_sync(step: SyncStep) -> str:
        with pytest.raises(TimeoutError) as caught:
            step.transaction("pay", slow)
        return str(caught.value)

    async def main() -> None:
        async with house.app(work if colour == "async" else work_sync, clock=clock) as app:
            run = await app.jobs.work.trigger()
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            clock.advance(10.1)
            # By another connection, and through the line.
            await asyncio.to_thread(put_and_commit, house, "eve")
            assert charges() == ["eve"]
            await app.jobs.work.options(delay=3600).trigger()
            may_go.set()
            said = await run.result(timeout=PATIENCE)
            assert said.startswith(f"step 'pay': {LIMIT}")

    asyncio.run(main())
    assert charges() == ["eve"]
    assert house.steps("status") == [("failed",)]


def put_and_commit(house: House, who: str) -> None:
    house.sql("insert into charges values (?)", who)


def test_s9_a_statement_that_takes_too_long_is_interrupted(
    house: House, clock: HandClock, charges: Callable[[], list[str]]
) -> None:
    begun, ended = threading.Event(), threading.Event()
    said: list[str] = []

    def endless(connection: sqlite3.Connection) -> None:
        put(connection, "ada")
        begun.set()
        try:
            connection.execute(
                "with recursive n (i) as (select 1 union all select i + 1 from n) select count(*) from n"
            ).fetchall()
        except sqlite3.OperationalError as error:
            said.append(str(error))
            ended.set()
            raise

    advance = threading.Thread(target=lambda: begun.wait(PATIENCE) and clock.advance(10.1))
    advance.start()
    assert LIMIT in outcome(house, endless, clock=clock)
    advance.join()
    assert ended.wait(PATIENCE)  # the run has ended; the function may be a moment behind
    assert len(said) == 1
    assert charges() == []


def test_s9_a_half_read_cursor_does_not_keep_the_lock_of_a_transaction_that_takes_too_long(
    house: House, clock: HandClock, charges: Callable[[], list[str]]
) -> None:
    begun, may_go = threading.Event(), threading.Event()
    said: list[str] = []

    def half_read(connection: sqlite3.Connection) -> None:
        put(connection, "ada")
        cursor = connection.execute("with recursive n (i) as (select 1 union all select i + 1 from n) select i from n")
        cursor.fetchone()
        begun.set()
        assert may_go.wait(PATIENCE)
        for read in (cursor.fetchone, lambda: next(cursor), cursor.fetchmany, cursor.fetchall):
            try:
                read()
            except sqlite3.OperationalError as error:
                said.append(str(error))

    def other() -> None:
        assert begun.wait(PATIENCE)
        clock.advance(10.1)
        put_and_commit(house, "eve")
        may_go.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert LIMIT in outcome(house, half_read, clock=clock)
    thread.join()
    assert charges() == ["eve"]
    assert said == ["the transaction of this connection is over: the function has returned, or has taken too long"] * 4


STOPPED_ANYWHERE = """
import itertools, random, sqlite3, sys, threading
from holdfast.store.sqlite import SqliteStore

sys.setswitchinterval(1e-5)  # as if there were many threads
store = SqliteStore("sqlite:///" + sys.argv[1])
store.migrate()
over = 0
for _ in range(150):
    shared = store.share()
    ripe, when = threading.Event(), random.randrange(100)

    def stop():
        ripe.wait()
        shared.stop()

    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        for asked in itertools.count():
            if asked == when:
                ripe.set()
            try:
                shared.connection.execute("select count(*) from holdfast_nothing")
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
    except sqlite3.OperationalError as error:
        over += "the transaction of this connection is over" in str(error)
    stopping.join()
    assert not shared.connection.in_transaction
    shared.close()
print(over)
"""


def test_s9_a_transaction_is_stopped_within_any_statement_and_within_its_error(tmp_path: Path) -> None:
    """In a process of its own: two threads that wait for each other within SQLite stop all of Python."""
    program = [sys.executable, "-c", STOPPED_ANYWHERE, str(tmp_path / "app.db")]
    assert subprocess.run(program, check=True, timeout=PATIENCE, capture_output=True, text=True).stdout == "150\n"


def test_s9_the_leases_of_all_runs_here_are_renewed_with_it(
    house: House, clock: HandClock, charges: Callable[[], list[str]]
) -> None:
    may_go, begun = threading.Event(), threading.Event()
    renewed: list[Any] = []

    def wait() -> None:
        begun.set()
        assert may_go.wait(PATIENCE)

    @job
    async def other(step: Step) -> None:
        await step.run("wait", wait)

    @job
    async def work(step: Step) -> None:
        clock.advance(5)
        await step.transaction("pay", lambda connection: clock.advance(9))
        renewed.extend(house.sql("select lease_expires_at from holdfast_runs where status = 'leased'"))
        may_go.set()

    async def main() -> None:
        async with house.app(work, other, clock=clock, lease_renew_interval=15.0, polling_interval=3600) as app:
            there = await app.jobs.other.trigger()
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            at = clock.now()
            await (await app.jobs.work.trigger()).result(timeout=PATIENCE)
            assert [expires - at for (expires,) in renewed] == [35_000_000] * 2
            await there.result(timeout=PATIENCE)

    try:
        asyncio.run(main())
    finally:
        may_go.set()


def test_transactions_and_rounds_take_turns(house: House, charges: Callable[[], list[str]]) -> None:
    """A line with one round after the other keeps no transaction waiting for the lock."""
    stop = threading.Event()

    @job
    def nothing() -> None:
        return

    @job
    async def work(step: Step) -> None:
        for n in range(20):
            await step.transaction(f"pay-{n}", put, str(n))

    async def main() -> None:
        async with house.app(work, nothing, worker=True) as app:
            run = await app.jobs.work.trigger()

            async def busy() -> None:
                while not stop.is_set():
                    await app.jobs.nothing.options(delay=3600).trigger()

            others = [asyncio.ensure_future(busy()) for _ in range(5)]
            await run.result(timeout=PATIENCE)
            stop.set()
            await asyncio.gather(*others)

    asyncio.run(main())
    assert len(charges()) == 20
    assert house.errors == []


def test_a_lock_that_somebody_else_holds_is_waited_for(house: House, charges: Callable[[], list[str]]) -> None:
    held = sqlite3.connect(house.path, check_same_thread=False)

    @job
    async def work(step: Step) -> int:
        held.execute("begin immediate")
        task = asyncio.ensure_future(step.transaction("pay", put, "ada"))
        await until(lambda: any("checkpoint" in context for context, _ in house.errors))
        held.rollback()
        await task
        return 1

    async def main() -> None:
        from holdfast.store.sqlite import SqliteStore

        async with house.app(work, store=SqliteStore(house.url, lock_timeout=0.05)) as app:
            await (await app.jobs.work.trigger()).result(timeout=PATIENCE)

    asyncio.run(main())
    held.close()
    assert charges() == ["ada"]


# -- inline, and in memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_inline_it_is_the_same_in_the_callers_thread(
    house: House, charges: Callable[[], list[str]], colour: str
) -> None:
    threads: list[Any] = []
    steps: list[Any] = []

    def pay(connection: sqlite3.Connection) -> int:
        threads.append(threading.current_thread())
        steps[0].log.info("within")
        steps[0].progress(1)
        put(connection, "ada")
        return 7

    def decline(connection: sqlite3.Connection) -> int:
        put(connection, "eve")
        steps[0].log.info("declined")
        raise ValueError("no")

    @job(name="work")
    async def work(step: Step) -> int:
        steps.append(step)
        step.log.info("before")
        value = await step.transaction("pay", pay)
        with pytest.raises(ValueError, match="no"):
            await step.options(retry=Retry(1, delay=0)).transaction("decline", decline)
        return value

    @job(name="work")
    def work_sync(step: SyncStep) -> int:
        steps.append(step)
        step.log.info("before")
        value = step.transaction("pay", pay)
        with pytest.raises(ValueError, match="no"):
            step.options(retry=Retry(1, delay=0)).transaction("decline", decline)
        return value

    app = house.app(work if colour == "async" else work_sync, inline=True)
    with app:
        assert app.jobs.work.trigger().wait().result(timeout=PATIENCE).wait() == 7
    assert threads == [threading.main_thread()]
    assert charges() == ["ada"]
    told = [message for (message,) in house.sql("select message from holdfast_logs where level = 'info' order by id")]
    assert told == ["before", "within", "declined", "declined"]
    assert house.errors == []


def test_inline_the_time_is_looked_at_when_the_function_returns(
    house: House, clock: HandClock, charges: Callable[[], list[str]]
) -> None:
    def slow(connection: sqlite3.Connection) -> None:
        put(connection, "ada")
        clock.advance(10.1)

    @job
    def work(step: SyncStep) -> None:
        step.transaction("pay", slow)

    with house.app(work, inline=True, clock=clock) as app:
        run = app.jobs.work.trigger().wait()
        app.process_until_idle().wait()
        ended = run.refresh().wait()
        assert ended.status == "failed"
        assert LIMIT in str(ended.error)
    assert charges() == []


def test_in_memory_there_is_no_connection_for_it() -> None:
    @job
    def work(step: SyncStep) -> str:
        try:
            step.transaction("pay", put, "ada")
        except ValueError as error:
            return str(error)
        return "paid"

    with Holdfast("sqlite:///:memory:", jobs=[work], inline=True) as app:
        run = app.jobs.work.trigger().wait()
        app.process_until_idle().wait()
        assert str(run.refresh().wait().output).startswith("step.transaction: a database in memory has one connection")


def test_a_temporary_database_will_do() -> None:
    def make(connection: sqlite3.Connection) -> int:
        connection.execute("create table charges (who)")
        put(connection, "ada")
        found: int = connection.execute("select count(*) from charges").fetchone()[0]
        return found

    @job
    def work(step: SyncStep) -> int:
        return step.transaction("pay", make)

    with Holdfast("sqlite://", jobs=[work]) as app:
        assert app.jobs.work.run().wait(PATIENCE) == 1
