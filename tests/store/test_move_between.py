"""Moving house from one kind of database to another: the same rows, and every run ends exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moving_house import LONG, ONCE, SECOND, House, Place, ask, contents

from holdfast import ConflictError, SchemaError, StoreUnavailable, ValidationError
from holdfast.model.worker import CheckIn
from holdfast.store.base import ClaimOrder
from holdfast.store.move import move

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.fill()
    yield house
    house.close()


@pytest.fixture(params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    return str(request.getfixturevalue(f"{request.param}_url"))


def go(house: House, old: Place, new: Place, **options: Any) -> None:
    move(house.store(old), house.store(new), **options)


def test_every_row_arrives_as_it_was_and_goes_back_so(house: House, server: str) -> None:
    before = contents(house.old)
    assert all(before.values()), "a table without rows proves nothing"
    go(house, house.old, server)
    assert contents(server) == before
    go(house, server, house.new)
    assert contents(house.new) == before
    assert house.end_all(house.new) == ONCE


def test_pending_delayed_and_half_done_runs_end_exactly_once_on_a_server(house: House, server: str) -> None:
    go(house, house.old, server)
    assert house.end_all(server) == ONCE


def test_runs_with_concurrency_keys_end_exactly_once_on_a_server(house: House, server: str) -> None:
    app = house.app(house.old, worker=False)
    for number in range(20):
        app.jobs.work.options(concurrency_key=f"key {number}").trigger(f"keyed {number}").wait(LONG)
    app.stop().wait(LONG)
    go(house, house.old, server)
    app = house.app(server)
    assert app.process_until_idle().wait(LONG) >= 20
    assert house.effects.read_text().count("keyed") == 40


def test_what_is_written_on_a_server_after_the_move_comes_after_what_was_there(house: House, server: str) -> None:
    go(house, house.old, server)
    before = [row[0] for row in contents(server)["holdfast_logs"]]
    house.end_all(server)
    after = [row[0] for row in contents(server)["holdfast_logs"]]
    assert after[: len(before)] == before
    assert len(after) > len(before)
    app = house.app(server, worker=False)
    assert app.jobs.work.options(idempotency_key="once").trigger("ended").wait(LONG).disposition == "idempotent"


def test_who_has_the_server_s_database_open_hears_of_the_move(house: House, server: str) -> None:
    go(house, house.old, server)
    app = house.app(server, worker=False)
    assert app.jobs.work.trigger("before").wait(LONG).id
    go(house, server, house.new)
    with pytest.raises(SchemaError, match=f"this database was moved to {f'sqlite:///{house.new}'[:150]}"):
        app.jobs.work.trigger("after").wait(LONG)
    with pytest.raises(SchemaError, match="was moved to"):
        house.app(server, worker=False).get_runs().wait(LONG)


def test_nobody_writes_a_server_s_database_meanwhile(house: House, server: str) -> None:
    go(house, house.old, server)
    app = house.app(server, worker=False)
    app.get_runs().wait(LONG)
    refused: list[BaseException] = []

    def trigger(*_: Any) -> None:
        if not refused:
            with pytest.raises(StoreUnavailable) as caught:
                app.jobs.work.trigger("late").wait(LONG)
            refused.append(caught.value)

    go(house, server, house.new, told=trigger)
    assert refused
    assert len(contents(house.new)["holdfast_runs"]) == 7


def test_a_worker_of_the_server_s_database_is_named(house: House, server: str) -> None:
    go(house, house.old, server)

    def claim(store: Any, tx: Any) -> None:
        store.check_in(tx, [CheckIn("owner", "pod-7", 42, "[]", "[]", "1", 30 * SECOND)])
        assert store.claim(tx, [ClaimOrder("owner", 1, 30 * SECOND, ("work",))])[0].runs

    house.write(server, claim)
    with pytest.raises(ConflictError, match=r"workers hold runs: pod-7:42 \(1 run\)"):
        go(house, server, house.new)
    assert not house.new.exists()


def test_a_move_that_broke_off_leaves_a_server_s_database_that_nobody_can_use_and_starts_over(
    house: House, server: str
) -> None:
    before = contents(house.old)

    class PowerCut(BaseException):
        pass

    def cut(what: str, *_: Any) -> None:
        if what == "verifying":
            raise PowerCut

    with pytest.raises(PowerCut):
        go(house, house.old, server, told=cut)
    with pytest.raises(SchemaError, match="is not complete"):
        house.app(server, worker=False).get_runs().wait(LONG)
    assert contents(house.old) == before
    go(house, house.old, server)
    assert contents(server) == before


def test_a_server_s_database_with_runs_is_refused(house: House, server: str) -> None:
    app = house.app(server, worker=False)
    app.migrate().wait(LONG)
    app.jobs.work.trigger("mine").wait(LONG)
    with pytest.raises(ConflictError, match="there are runs in this database"):
        go(house, house.old, server)
    assert len(ask(server, "select id from holdfast_runs")) == 1


def test_a_server_s_database_is_not_moved_into_itself(house: House, server: str) -> None:
    go(house, house.old, server)
    with pytest.raises(ValidationError, match="are the same database"):
        go(house, server, server)


def test_no_statement_of_anybody_s_adds_a_run_to_a_postgresql_database_that_was_moved(
    house: House, postgres_url: str
) -> None:
    go(house, house.old, postgres_url)
    go(house, postgres_url, house.new)
    with pytest.raises(Exception, match="holdfast_moved"):
        ask(
            postgres_url,
            "insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, input) "
            "values ('late', 'work', 'pending', 1, 1, 1, 1, '1')",
        )


def test_texts_of_all_kinds_arrive_as_they_were(house: House, server: str) -> None:
    app = house.app(house.old, worker=False)
    texts = ["'; drop table holdfast_runs; --", "back\\slash \\' \\\\", "%s %(a)s ? $1 `", "🧗‍♀️ ü 漢 \u202e", " ends "]
    for text in texts:
        app.jobs.work.options(labels={"t": text}, concurrency_key=text).trigger(text * 3).wait(LONG)
    app.stop().wait(LONG)
    before = contents(house.old)
    go(house, house.old, server)
    assert contents(server) == before
    go(house, server, house.new)
    assert contents(house.new) == before
