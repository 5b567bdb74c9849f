"""S8: a run that is part of the caller's own transaction, with every library that can have one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from holdfast import ConflictError, NotFoundError, ValidationError, WouldDeadlock
from house import PATIENCE
from lent_places import Place, app_on, every_kind, ids, scene
from shops import Shop, opened, play

pytestmark = [
    pytest.mark.only("sqlite", "takes each database, whichever is chosen"),
    pytest.mark.sampled("drivers and servers: the same on every Python", every=4),
]


@scene
async def test_s8_the_run_is_there_if_and_only_if_the_transaction_commits_(place: Place, shop: Shop) -> None:
    app = place.app
    await shop.begin()
    await shop.order("ada")
    run = await shop.get(app.jobs.mail.options(connection=shop.given).trigger("ada"))
    assert (run.disposition, run.status) == ("created", "pending")
    if not place.url.startswith("sqlite"):
        assert await ids(shop, app) == set()
    await shop.commit()
    assert await ids(shop, app) == {run.id}
    await shop.begin()
    await shop.order("eve")
    await shop.get(app.trigger(app.jobs.mail.bind("eve"), connection=shop.given))
    await shop.rollback()
    assert await ids(shop, app) == {run.id}
    await shop.begin()
    assert await shop.orders() == ["ada"]
    await shop.rollback()


@every_kind
def test_s8_it_is_executed_after_the_commit(place: Place) -> None:
    ids: list[str] = []

    async def scenario() -> None:
        async with opened(place.kind, place.url) as shop:
            for keyed in (place.app.jobs.mail, place.app.jobs.mail.options(concurrency_key="k")):
                await shop.begin()
                ids.append((await shop.get(keyed.options(connection=shop.given).trigger("ada"))).id)
                await shop.commit()

    play(place.kind, scenario)
    with app_on(place.tables) as working:
        for run_id in ids:
            assert working.wait_for_run(run_id, timeout=PATIENCE).wait().output == "mailed ada"


@scene
async def test_s8_it_may_be_the_first_statement_of_a_transaction(place: Place, shop: Shop) -> None:
    await shop.begin()
    run = await shop.get(place.app.jobs.mail.options(connection=shop.given).trigger("ada"))
    await shop.rollback()
    assert await ids(shop, place.app) == set()
    with pytest.raises(NotFoundError):
        await shop.get(run.wait())


@scene
async def test_s8_several_are_part_of_one(place: Place, shop: Shop) -> None:
    app, given = place.app, shop.given
    await shop.begin()
    await shop.order("ada")
    one = await shop.get(app.jobs.mail.options(connection=given, labels={"a": "b"}).trigger("ada"))
    many = await shop.get(app.trigger_many([app.jobs.mail.bind(str(n)) for n in range(20)], connection=given))
    keyed = await shop.get(app.jobs.mail.options(connection=given, concurrency_key="k").trigger("eve"))
    await shop.commit()
    assert await ids(shop, app) == {one.id, keyed.id, *[run.id for run in many]}
    assert len(many) == 20
    assert [run.id for run in await shop.get(app.get_runs(labels={"a": "b"}))] == [one.id]


@scene
async def test_s8_random_ends_leave_a_run_for_each_row(place: Place, shop: Shop) -> None:
    chance = random.Random(8)
    for number in range(20):
        await shop.begin()
        await shop.order(str(number))
        await shop.get(place.app.trigger(place.app.jobs.mail.bind(str(number)), connection=shop.given))
        await (shop.commit() if chance.random() < 0.5 else shop.rollback())
    await shop.begin()
    rows = set(await shop.orders())
    await shop.rollback()
    assert {run.input["to"] for run in await shop.get(place.app.get_runs(limit=None))} == rows
    assert 5 < len(rows) < 15


@scene
async def test_s8_what_is_undone_to_a_savepoint_is_undone(place: Place, shop: Shop) -> None:
    app = place.app
    await shop.begin()
    await shop.order("ada")
    kept = await shop.get(app.jobs.mail.options(connection=shop.given).trigger("ada"))
    undo = await shop.until_undone()
    await shop.get(app.jobs.mail.options(connection=shop.given).trigger("eve"))
    await undo()
    await shop.commit()
    assert await ids(shop, app) == {kept.id}


@scene
async def test_s8_a_conflict_leaves_the_transaction_as_it_was(place: Place, shop: Shop) -> None:
    app = place.app
    keyed = app.jobs.mail.options(concurrency_key="k")
    first = await shop.get(keyed.trigger("first"))
    await shop.begin()
    await shop.order("ada")
    with pytest.raises(ConflictError, match="concurrency key 'k'"):
        await shop.get(keyed.options(connection=shop.given).trigger("second"))
    with pytest.raises(ConflictError, match=r"calls\[1\]"):
        await shop.get(app.trigger_many([app.jobs.mail.bind("x"), keyed.bind("y")], connection=shop.given))
    again = await shop.get(keyed.options(connection=shop.given, coalesce="skip").trigger("third"))
    assert (again.id, again.disposition) == (first.id, "coalesced")
    await shop.order("eve")
    await shop.commit()
    await shop.begin()
    assert await shop.orders() == ["ada", "eve"]
    await shop.rollback()
    assert await ids(shop, app) == {first.id}


@scene
async def test_s8_an_idempotency_key_leads_to_the_run_that_is_there_(place: Place, shop: Shop) -> None:
    once = place.app.jobs.mail.options(idempotency_key="i")
    first = await shop.get(once.trigger("ada"))
    await shop.begin()
    again = await shop.get(once.options(connection=shop.given).trigger("eve"))
    await shop.commit()
    assert (again.id, again.disposition) == (first.id, "idempotent")


@scene
async def test_s8_without_an_open_transaction_it_is_refused(place: Place, shop: Shop) -> None:
    with pytest.raises(ValidationError, match="no transaction is open"):
        await shop.get(place.app.jobs.mail.options(connection=shop.given).trigger("ada"))
    await shop.begin()
    await shop.order("ada")
    await shop.commit()
    with pytest.raises(ValidationError, match="no transaction is open"):
        await shop.get(place.app.jobs.mail.options(connection=shop.given).trigger("ada"))
    assert await ids(shop, place.app) == set()


@every_kind
def test_s8_a_connection_that_commits_by_itself_is_refused(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place.kind, place.url, autocommit=True) as shop:
            if "SqlAlchemy" in place.kind.__name__:
                await shop.begin()
            with pytest.raises(ValidationError, match=r"no transaction is open|autocommit"):
                await shop.get(place.app.jobs.mail.options(connection=shop.given).trigger("ada"))
            assert await ids(shop, place.app) == set()

    play(place.kind, scenario)


@pytest.mark.parametrize("theirs", ["no tables", "other tables"])
@every_kind
def test_s8_a_connection_to_another_database_is_refused_and_stays_usable(
    place: Place, elsewhere: str, theirs: str
) -> None:
    async def scenario() -> None:
        async with opened(place.kind, elsewhere) as shop:
            await shop.begin()
            await shop.order("ada")
            with pytest.raises(ValidationError, match="another database"):
                await shop.get(place.app.jobs.mail.options(connection=shop.given).trigger("ada"))
            await shop.order("eve")
            await shop.commit()
            await shop.begin()
            assert await shop.orders() == ["ada", "eve"]
            await shop.rollback()

    if theirs == "other tables":
        with app_on(elsewhere + place.tables.removeprefix(place.url), worker=False):
            pass
    play(place.kind, scenario)


@scene
async def test_s8_waiting_for_a_run_of_ones_own_open_transaction_is_refused(place: Place, shop: Shop) -> None:
    app = place.app
    await shop.begin()
    await shop.order("ada")
    run = await shop.get(app.jobs.mail.options(connection=shop.given).trigger("ada"))
    with pytest.raises(WouldDeadlock, match="Commit first"):
        await shop.get(run.wait())
    if shop.is_async:
        # Another task may know more; for it there is no such run yet.
        with pytest.raises(NotFoundError):
            await asyncio.create_task(_waiting(run))
    await shop.rollback()
    with pytest.raises(NotFoundError):
        await shop.get(run.wait())


async def _waiting(run: Any) -> None:
    await run.wait()


@scene
async def test_s8_a_closed_connection_is_refused(place: Place, shop: Shop) -> None:
    if "Session" in type(shop).__name__ or "Scoped" in type(shop).__name__ or "Django" in type(shop).__name__:
        return  # these open another one
    other = type(shop)(place.url)
    await other.open()
    await other.close()
    with pytest.raises(ValidationError, match="connection: "):
        await shop.get(place.app.jobs.mail.options(connection=other.given).trigger("ada"))
