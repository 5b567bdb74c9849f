"""S8: a run that is part of the caller's own sqlite3 transaction."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from holdfast import ConflictError, Holdfast, NotFoundError, ValidationError, WouldDeadlock, job
from house import PATIENCE, House


@job
def mail(to: str) -> str:
    return f"mailed {to}"


pytestmark = pytest.mark.only("sqlite", "a transaction of the sqlite3 module")


@pytest.fixture
def app(house: House) -> Any:
    with house.app(mail, worker=False) as app:
        yield app


@pytest.fixture
def mine(house: House, app: Holdfast) -> Any:
    """A connection of the user's, with a table of the user's."""
    connection = sqlite3.connect(house.path)
    connection.execute("create table if not exists orders (id integer primary key, who text)")
    connection.commit()
    yield connection
    connection.close()


def order(connection: sqlite3.Connection, who: str) -> None:
    connection.execute("insert into orders (who) values (?)", (who,))


def ids(app: Holdfast) -> set[str]:
    return {run.id for run in app.get_runs(limit=None).wait()}


def test_s8_the_run_is_there_if_and_only_if_the_transaction_commits(app: Holdfast, mine: sqlite3.Connection) -> None:
    order(mine, "ada")
    run = app.jobs.mail.options(connection=mine).trigger("ada").wait()
    assert (run.disposition, run.status) == ("created", "pending")
    assert ids(app) == set()
    mine.commit()
    assert ids(app) == {run.id}
    order(mine, "eve")
    app.jobs.mail.options(connection=mine).trigger("eve").wait()
    mine.rollback()
    assert ids(app) == {run.id}
    assert mine.execute("select who from orders").fetchall() == [("ada",)]


def test_s8_a_hundred_random_ends_leave_a_run_for_each_row(app: Holdfast, mine: sqlite3.Connection) -> None:
    chance = random.Random(8)
    for number in range(100):
        order(mine, str(number))
        app.trigger(app.jobs.mail.bind(str(number)), connection=mine).wait()
        (mine.commit if chance.random() < 0.5 else mine.rollback)()
    rows = {who for (who,) in mine.execute("select who from orders")}
    assert {run.input["to"] for run in app.get_runs(limit=None).wait()} == rows
    assert 20 < len(rows) < 80


def test_s8_a_worker_of_the_same_process_sees_the_run_after_the_commit(house: House) -> None:
    with house.app(mail, polling_interval=3600) as app:
        mine = sqlite3.connect(house.path)
        mine.execute("begin immediate")
        run = app.jobs.mail.options(connection=mine).trigger("ada").wait()
        mine.commit()
        assert run.result(timeout=PATIENCE).wait() == "mailed ada"
        mine.close()


def test_s8_many_runs_are_part_of_it_together(app: Holdfast, mine: sqlite3.Connection) -> None:
    order(mine, "ada")
    calls = [app.jobs.mail.bind(str(n)) for n in range(20)]
    runs = app.trigger_many(calls, connection=mine).wait()
    mine.commit()
    assert ids(app) == {run.id for run in runs}


def test_s8_a_conflict_leaves_the_transaction_usable(app: Holdfast, mine: sqlite3.Connection) -> None:
    keyed = app.jobs.mail.options(concurrency_key="k")
    keyed.trigger("first").wait()
    order(mine, "ada")
    with pytest.raises(ConflictError, match="concurrency key 'k'"):
        keyed.options(connection=mine).trigger("second").wait()
    with pytest.raises(ConflictError, match=r"calls\[1\]"):
        app.trigger_many([app.jobs.mail.bind("x"), keyed.bind("y")], connection=mine).wait()
    mine.commit()
    assert mine.execute("select who from orders").fetchall() == [("ada",)]
    assert len(ids(app)) == 1


def test_s8_an_idempotency_key_leads_to_the_run_that_is_there(app: Holdfast, mine: sqlite3.Connection) -> None:
    once = app.jobs.mail.options(idempotency_key="i")
    first = once.trigger("ada").wait()
    order(mine, "ada")
    again = once.options(connection=mine).trigger("eve").wait()
    assert (again.id, again.disposition) == (first.id, "idempotent")
    mine.commit()


# -- what is refused -----------------------------------------------------------------------------------------------


def test_s8_what_can_not_take_the_run_is_refused_before_anything_is_written(
    app: Holdfast, house: House, mine: sqlite3.Connection, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("begin")
    copy = tmp_path / "copy.db"
    shutil.copy(house.path, copy)
    copied = sqlite3.connect(copy)
    copied.execute("begin")
    closed = sqlite3.connect(house.path)
    closed.close()
    for connection, why in (
        (mine, "no transaction is open"),
        (other, "another database"),
        (copied, "another database"),
        (closed, "can't be used here"),
        ("sqlite:///app.db", "str is none that can be used here"),
    ):
        with pytest.raises(ValidationError, match=why):
            app.jobs.mail.options(connection=connection).trigger("ada")
    elsewhere: list[BaseException] = []

    def use() -> None:
        try:
            app.jobs.mail.options(connection=mine).trigger("ada")
        except ValidationError as error:
            elsewhere.append(error)

    order(mine, "ada")
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "thread" in str(elsewhere[0])
    mine.rollback()
    assert ids(app) == set()
    other.close()
    copied.close()


def test_s8_who_holds_the_lock_must_not_wait_for_what_it_locks_out(app: Holdfast, mine: sqlite3.Connection) -> None:
    before = app.jobs.mail.trigger("before").wait()
    order(mine, "ada")
    run = app.jobs.mail.options(connection=mine).trigger("ada").wait()
    for wait in (lambda: run.wait().wait(), lambda: before.wait().wait(), lambda: app.jobs.mail.trigger("x").wait()):
        with pytest.raises(WouldDeadlock, match="Commit first"):
            wait()
    assert app.get_run(before.id).wait() is not None
    with pytest.raises(NotFoundError):
        run.refresh().wait()
    mine.rollback()
    with pytest.raises(NotFoundError):
        run.wait().wait()
    assert app.jobs.mail.trigger("y").wait().disposition == "created"


def test_s8_async_code_is_told_too_when_it_awaits_a_run_of_its_own_open_transaction(house: House) -> None:
    async def main() -> None:
        async with house.app(mail) as app:
            mine = sqlite3.connect(house.path)
            mine.execute("begin immediate")
            run = await app.jobs.mail.options(connection=mine).trigger("ada")
            with pytest.raises(WouldDeadlock, match="Commit first"):
                await run.wait()
            mine.commit()
            assert await run.result() == "mailed ada"
            mine.close()

    asyncio.run(main())


def test_s8_a_connection_is_no_part_of_a_call_and_nobody_waits_at_once(app: Holdfast, mine: sqlite3.Connection) -> None:
    order(mine, "ada")
    inside = app.jobs.mail.options(connection=mine)
    with pytest.raises(ValidationError, match="a call carries no connection"):
        inside.bind("ada")
    with pytest.raises(WouldDeadlock):
        inside.run("ada")
    with pytest.raises(WouldDeadlock):
        inside.trigger_and_wait("ada")
    mine.rollback()


# -- what must not matter ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rows", "bytes", "autocommit", "manual", "cursor"])
def test_s8_how_the_connection_is_set_up_does_not_matter(app: Holdfast, house: House, kind: str) -> None:
    options: dict[str, Any] = {}
    if kind == "autocommit":
        if sys.version_info < (3, 12):
            pytest.skip("sqlite3.connect(autocommit=…) came with Python 3.12")
        options = {"autocommit": False}
    mine = sqlite3.connect(house.path, isolation_level=None if kind == "manual" else "", **options)
    if kind == "rows":
        mine.row_factory = sqlite3.Row
    if kind == "bytes":
        mine.text_factory = bytes
    if kind != "autocommit":
        mine.execute("begin immediate")
    cursor = mine.execute("select name from sqlite_master order by name") if kind == "cursor" else None
    first = cursor.fetchone() if cursor else None
    run = app.jobs.mail.options(connection=mine).trigger("ada").wait()
    if cursor is not None:
        names = [first, *cursor.fetchall()]
        assert names == sorted(names)
        assert len(names) > 10
        cursor.close()
    assert mine.row_factory is (sqlite3.Row if kind == "rows" else None)
    assert mine.text_factory is (bytes if kind == "bytes" else str)
    mine.commit()
    mine.close()
    assert ids(app) == {run.id}


_CHILD = """
import os, signal, sqlite3, sys
from holdfast import Holdfast, job

@job
def mail(to: str) -> str:
    return to

app = Holdfast(sys.argv[1], jobs=[mail], worker=False)
connection = sqlite3.connect(sys.argv[2])
connection.execute("insert into orders (who) values ('ada')")
app.jobs.mail.options(connection=connection).trigger("ada").wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_s8_who_is_killed_before_the_commit_leaves_neither_the_row_nor_the_run(
    app: Holdfast, house: House, mine: sqlite3.Connection
) -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD, house.url, str(house.path)], timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGKILL
    assert ids(app) == set()
    assert mine.execute("select * from orders").fetchall() == []
