"""S8: a run in the caller's own transaction, where things go wrong or are set up strangely."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

import servers
from holdfast import ConflictError, Holdfast, RunFailed, StoreUnavailable, SyncStep, ValidationError, WouldDeadlock
from house import PATIENCE, until
from lent_places import Place, app_on, ids, kinds, mail, scene_of
from shops import Shop, opened, play

pytestmark = [
    pytest.mark.only("sqlite", "takes each database, whichever is chosen"),
    pytest.mark.sampled("drivers and servers: the same on every Python", every=4),
]

asynchronous = scene_of("sqlite", "postgres", only=lambda kind: kind.is_async)
on_postgres = scene_of("postgres")
on_servers = scene_of("postgres", "mariadb")


# -- asynchronous connections ----------------------------------------------------------------------------------------


@asynchronous
async def test_s8_nothing_is_asked_of_an_asynchronous_connection_before_the_await(place: Place, shop: Shop) -> None:
    await shop.begin()
    reply = place.app.jobs.mail.options(connection=shop.given).trigger("ada")
    with pytest.raises(WouldDeadlock, match="Use `await`"):
        reply.wait()
    assert not reply.done()
    run = await reply
    assert (await reply).id == run.id
    assert reply.wait() is run
    await shop.commit()
    assert await ids(shop, place.app) == {run.id}


@asynchronous
async def test_s8_what_is_never_awaited_is_complained_of(
    place: Place, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.begin()
    with caplog.at_level(logging.ERROR, "holdfast"):
        place.app.jobs.mail.options(connection=shop.given).trigger("ada")
        gc.collect()
    await shop.commit()
    assert "trigger of mail was never awaited: nothing was written" in caplog.text
    assert await ids(shop, place.app) == set()


@asynchronous
async def test_s8_triggers_of_several_tasks_in_one_transaction_take_turns(place: Place, shop: Shop) -> None:
    if "Pool" in type(shop).__name__:
        return  # its connection refuses a second task by itself
    keyed = place.app.jobs.mail.options(concurrency_key="k")
    first = await keyed.trigger("first")
    await shop.begin()
    mine = place.app.jobs.mail.options(connection=shop.given)
    several = [mine.trigger(str(n)) for n in range(10)]
    refused = [keyed.options(connection=shop.given).trigger(str(n)) for n in range(10)]
    mixed = [reply for pair in zip(several, refused, strict=True) for reply in pair]
    answers = await asyncio.gather(*mixed, return_exceptions=True)
    await shop.commit()
    assert [type(answer) for answer in answers[1::2]] == [ConflictError] * 10
    assert await ids(shop, place.app) == {first.id, *[run.id for run in answers[::2]]}
    assert len(await ids(shop, place.app)) == 11


@scene_of("postgres", only=lambda kind: kind.is_async)
async def test_s8_a_cancelled_await_lets_go_of_the_connection_and_leaves_nothing_behind(
    place: Place, shop: Shop
) -> None:
    await shop.begin()
    await shop.order("ada")
    once = place.app.jobs.mail.options(idempotency_key="i", labels={"a": "b"})
    with closing(servers.connect(place.url, autocommit=False)) as blocker:
        blocker.execute("select 1")
        await once.options(connection=blocker).trigger("first")
        waiting = asyncio.create_task(_awaiting(once.options(connection=shop.given).trigger("second")))
        await until(lambda: _somebody_waits(place.url))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        blocker.rollback()
        await shop.order("eve")
        await shop.commit()
    assert await ids(shop, place.app) == set()
    await shop.begin()
    assert await shop.orders() == ["ada", "eve"]
    await shop.rollback()


@scene_of("postgres", only=lambda kind: kind.is_async)
async def test_s8_after_a_cancelled_await_the_next_one_begins_anew(place: Place, shop: Shop) -> None:
    await shop.begin()
    once = place.app.jobs.mail.options(idempotency_key="i")
    with closing(servers.connect(place.url, autocommit=False)) as blocker:
        blocker.execute("select 1")
        await once.options(connection=blocker).trigger("first")
        reply = once.options(connection=shop.given).trigger("second")
        waiting = asyncio.create_task(_awaiting(reply))
        await until(lambda: _somebody_waits(place.url))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        blocker.rollback()
    run = await reply
    await shop.commit()
    assert run.disposition == "created"
    assert await ids(shop, place.app) == {run.id}


async def _awaiting(reply: Any) -> Any:
    return await reply


def _somebody_waits(url: str) -> bool:
    return bool(servers.execute(url, "select exists (select 1 from pg_locks where not granted)")[0][0])


# -- several writers -------------------------------------------------------------------------------------------------


@on_postgres
async def test_s8_a_lost_race_in_a_repeatable_transaction_is_the_librarys_own_error(place: Place, shop: Shop) -> None:
    await shop.be_repeatable()
    await shop.begin()
    await shop.order("ada")
    once = place.app.jobs.mail.options(idempotency_key="i")
    first = await shop.get(once.trigger("first"))
    with pytest.raises(Exception, match="could not serialize access") as caught:
        await shop.get(once.options(connection=shop.given).trigger("second"))
    assert type(caught.value).__module__.partition(".")[0] == type(shop).library
    assert not isinstance(caught.value, StoreUnavailable)
    await shop.order("eve")
    await shop.commit()
    assert await ids(shop, place.app) == {first.id}


@scene_of("mariadb")
async def test_s8_in_a_repeatable_transaction_of_mariadb_what_it_does_not_see_is_an_error(
    place: Place, shop: Shop
) -> None:
    await shop.be_repeatable()
    await shop.begin()
    await shop.order("ada")
    await shop.orders()
    once = place.app.jobs.mail.options(idempotency_key="i")
    first = await shop.get(once.trigger("first"))
    with pytest.raises(StoreUnavailable, match="Begin it anew"):
        await shop.get(once.options(connection=shop.given).trigger("second"))
    with pytest.raises(ValidationError, match="READ COMMITTED"):
        await shop.get(place.app.jobs.mail.options(connection=shop.given, concurrency_key="k").trigger("third"))
    await shop.order("eve")
    await shop.commit()
    assert await ids(shop, place.app) == {first.id}


@on_postgres
async def test_s8_a_concurrency_key_in_an_open_transaction_holds_nobody_up(place: Place, shop: Shop) -> None:
    keyed = place.app.jobs.mail.options(concurrency_key="k")
    await shop.begin()
    mine = await shop.get(keyed.options(connection=shop.given).trigger("mine"))
    others = await shop.get(place.app.jobs.call.options(concurrency_key="k").trigger("theirs"))
    cancelled = await shop.get(others.cancel())
    assert cancelled.status == "cancelled"
    again = await shop.get(place.app.jobs.call.options(concurrency_key="k").trigger("theirs"))
    await shop.commit()
    assert await ids(shop, place.app) == {mine.id, others.id, again.id}


@pytest.mark.parametrize("many", [3])
@kinds("postgres", "mariadb", only=lambda kind: kind.__name__ in ("Psycopg", "PyMySQL"))
def test_s8_keyed_runs_of_such_transactions_are_all_executed_one_after_the_other(place: Place, many: int) -> None:
    made: list[str] = []

    async def scenario() -> None:
        async with opened(place.kind, place.url) as shop:
            for n in range(many):
                await shop.begin()
                for job in (place.app.jobs.mail, place.app.jobs.call):
                    keyed = job.options(connection=shop.given, concurrency_key=f"k{n % 2}", coalesce="skip")
                    made.append((await shop.get(keyed.trigger(str(n)))).id)
                await shop.commit()

    play(place.kind, scenario)
    with app_on(place.tables) as working:
        for run_id in made:
            assert working.wait_for_run(run_id, timeout=PATIENCE).wait().status == "completed"


@on_servers
async def test_s8_elsewhere_an_open_transaction_keeps_nobody_from_writing(place: Place, shop: Shop) -> None:
    await shop.begin()
    mine = await shop.get(place.app.jobs.mail.options(connection=shop.given).trigger("mine"))
    other = await shop.get(place.app.jobs.mail.trigger("other"))
    assert (await shop.get(other.cancel())).status == "cancelled"
    assert (await shop.get(other.wait())).status == "cancelled"
    await shop.commit()
    # Of what was committed, the next transaction on the connection is no part.
    await shop.begin()
    await shop.order("ada")
    assert (await shop.get(mine.cancel())).status == "cancelled"
    assert (await shop.get(mine.wait())).status == "cancelled"
    await shop.rollback()


@on_postgres
async def test_s8_a_transaction_that_has_failed_is_refused(place: Place, shop: Shop) -> None:
    await shop.begin()
    with pytest.raises(Exception, match="does not exist"):
        await shop.say("select * from nowhere")
    with pytest.raises((ValidationError, StoreUnavailable, Exception), match=r"failed|aborted|broken") as caught:
        await shop.get(place.app.jobs.mail.options(connection=shop.given).trigger("ada"))
    assert type(caught.value).__module__.startswith("holdfast.")
    await shop.rollback()
    assert await ids(shop, place.app) == set()


@kinds("sqlite", "postgres", "mariadb", only=lambda kind: kind.__name__ in ("Sqlite3", "Psycopg", "PyMySQL"))
def test_s8_the_connection_of_a_step_transaction_can_be_given_too(place: Place) -> None:
    with app_on(place.tables) as app:

        @app.job
        def order(step: SyncStep, fails: bool) -> str:
            def write(connection: Any) -> str:
                run = app.jobs.mail.options(connection=connection, concurrency_key="k").trigger("ada").wait()
                if fails:
                    raise ValueError("no")
                return str(run.id)

            return step.transaction("write", write)

        with pytest.raises(RunFailed, match="no"):
            order.run(True).wait(PATIENCE)
        assert app.get_runs(job="mail").wait() == []
        run_id = order.run(False).wait(PATIENCE)
        assert app.wait_for_run(run_id, timeout=PATIENCE).wait().output == "mailed ada"


# -- what must not matter --------------------------------------------------------------------------------------------


def _psycopg_of_dicts(url: str) -> Any:
    import psycopg

    connection = psycopg.connect(url, row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.ClientCursor)
    connection.adapters.register_loader("text", psycopg.types.string.TextBinaryLoader)
    connection.adapters.register_loader("int8", psycopg.types.numeric.FloatLoader)
    return connection


def _psycopg_block(url: str) -> Any:
    import psycopg

    connection = psycopg.connect(url, autocommit=True, prepare_threshold=None)
    connection.execute("begin")
    return connection


@pytest.mark.parametrize("made", [_psycopg_of_dicts, _psycopg_block])
@kinds("postgres", only=lambda kind: kind.__name__ == "Psycopg")
def test_s8_how_a_connection_to_postgresql_is_set_up_does_not_matter(place: Place, made: Callable[[str], Any]) -> None:
    with closing(made(place.url)) as connection:
        connection.execute("select 1")
        run = place.app.jobs.mail.options(connection=connection).trigger("ada").wait()
        again = place.app.jobs.mail.options(connection=connection, idempotency_key="i").trigger("ada").wait()
        once_more = place.app.jobs.mail.options(connection=connection, idempotency_key="i").trigger("ada").wait()
        assert (once_more.id, once_more.input) == (again.id, {"to": "ada"})
        connection.commit()
    assert {run.id for run in place.app.get_runs().wait()} == {run.id, again.id}


@kinds("mariadb", only=lambda kind: kind.__name__ == "PyMySQL")
def test_s8_how_a_connection_to_mariadb_is_set_up_does_not_matter(place: Place) -> None:
    async def scenario() -> None:
        from pymysql.cursors import SSDictCursor

        async with opened(place.kind, place.url) as shop:
            connection = shop.given
            connection.cursorclass = SSDictCursor
            connection.begin()
            text = "a\\b'c\"d\n😀\\'"
            once = place.app.jobs.mail.options(connection=connection, idempotency_key="i")
            run = once.trigger(text).wait()
            assert once.trigger("other").wait().input == {"to": text}
            connection.commit()
            assert place.app.get_run(run.id).wait().input == {"to": text}
            connection.begin()
            with connection.cursor() as cursor:
                cursor.execute("set session sql_mode = 'NO_BACKSLASH_ESCAPES'")
            with pytest.raises(ValidationError, match="NO_BACKSLASH_ESCAPES"):
                place.app.jobs.mail.options(connection=connection).trigger("ada")
            connection.rollback()

    play(place.kind, scenario)


# -- what is refused -------------------------------------------------------------------------------------------------


@on_servers
async def test_s8_a_connection_of_another_kind_of_database_is_refused(place: Place, shop: Shop) -> None:
    with_file = Holdfast("sqlite://", jobs=[mail], worker=False)
    await shop.get(with_file.init())
    await shop.begin()
    with pytest.raises(ValidationError, match="not of SQLite"):
        await shop.get(with_file.jobs.mail.options(connection=shop.given).trigger("ada"))
    await shop.rollback()
    await shop.get(with_file.stop())


@scene_of("sqlite", "postgres", only=lambda kind: kind.__name__ == "Django")
async def test_s8_an_atomic_block_that_is_broken_is_refused(place: Place, shop: Shop) -> None:
    await shop.begin()
    shop.given.set_rollback(True)
    with pytest.raises(ValidationError, match="can't be used here"):
        place.app.jobs.mail.options(connection=shop.given).trigger("ada")
    await shop.rollback()


_CHILD = """
import sqlite3, sys
from holdfast import Holdfast, job

@job
def mail(to: str) -> str:
    return to

with Holdfast(sys.argv[1], jobs=[mail], worker=False) as app:
    connection = sqlite3.connect(sys.argv[1].removeprefix("sqlite:///"))
    connection.execute("begin immediate")
    app.jobs.mail.options(connection=connection).trigger("ada").wait()
    connection.commit()
    connection.close()
libraries = {"aiosqlite", "psycopg", "asyncpg", "pymysql", "sqlalchemy", "django"}
print(sorted(libraries & set(sys.modules)))
"""


def test_s8_no_library_is_imported_that_its_user_has_not(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'app.db'}"
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, url], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
