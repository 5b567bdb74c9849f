"""Moving house: everything arrives and ends exactly once, and whatever breaks off can be done again."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from moving_house import LONG, ONCE, SECOND, House, contents

from holdfast import (
    ConflictError,
    SchemaError,
    StoreError,
    StoreUnavailable,
    ValidationError,
)
from holdfast.model.worker import CheckIn
from holdfast.store.base import ClaimOrder, Tx
from holdfast.store.movable import TABLES, Table
from holdfast.store.move import move
from holdfast.store.sqlite import SqliteStore

pytestmark = pytest.mark.sampled("moving house: what is copied is the same on every Python", every=8)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.fill()
    yield house
    house.close()


def use(house: House, path: Path) -> list[str]:
    """Open the database as anybody does, and write into it."""
    app = house.app(path, worker=False)
    try:
        return [app.jobs.work.trigger("probe").wait(LONG).id]
    finally:
        app.stop().wait(LONG)


# -- what arrives --------------------------------------------------------------------------------------------------


def test_every_row_of_every_table_arrives_as_it_was(house: House) -> None:
    before = contents(house.old)
    assert all(before.values()), "a table without rows proves nothing"
    moved = house.move()
    assert contents(house.new) == before
    assert {name: sum.rows for name, sum in moved.sums.items()} == {
        table.removeprefix("holdfast_"): len(rows) for table, rows in before.items()
    }


def test_pending_delayed_and_half_done_runs_end_exactly_once_afterwards(house: House) -> None:
    house.move()
    assert house.end_all(house.new) == ONCE


def test_the_other_way_back_is_a_move_too(house: House, tmp_path: Path) -> None:
    before = contents(house.old)
    house.move()
    move(house.store(house.new), house.store(tmp_path / "third.db"))
    assert contents(tmp_path / "third.db") == before
    house.new = tmp_path / "third.db"
    assert house.end_all(house.new) == ONCE


def test_idempotency_keys_and_labels_are_known_in_the_new_house(house: House) -> None:
    house.move()
    app = house.app(house.new, worker=False)
    again = app.jobs.work.options(idempotency_key="once").trigger("ended").wait(LONG)
    assert again.disposition == "idempotent"
    assert [run.id for run in app.get_runs(labels={"a": "ü '\""}).wait(LONG)] == [again.id]


def test_log_lines_written_after_the_move_come_after_those_before(house: House) -> None:
    house.move()
    house.end_all(house.new)
    app = house.app(house.new, worker=False)
    with closing(sqlite3.connect(house.new)) as connection:
        (run_id,) = connection.execute("select id from holdfast_runs where input like '%fails%'").fetchone()
    lines = app.get_logs(run_id).wait(LONG)
    assert [line.created_at for line in lines] == sorted(line.created_at for line in lines)
    assert len({line.id for line in lines}) == len(lines) == 2


def test_an_empty_house_can_be_moved_too(tmp_path: Path) -> None:
    old, new = (SqliteStore(f"sqlite:///{tmp_path}/{name}.db") for name in ("a", "b"))
    old.migrate()
    assert {sum.rows for sum in move(old, new).sums.values()} == {0}


def test_rows_go_in_batches_whatever_their_size(house: House) -> None:
    app = house.app(house.old, worker=False)
    app.trigger_many([app.jobs.work.bind(f"many {n}") for n in range(1500)]).wait(LONG)
    app.trigger_many([app.jobs.work.bind("x" * 900_000) for _ in range(9)]).wait(LONG)
    app.stop().wait(LONG)
    told: list[tuple[str, str, int, int]] = []
    before = contents(house.old)
    house.move(told=lambda *one: told.append(one))
    assert contents(house.new) == before
    of_runs = [done for what, table, done, _ in told if (what, table) == ("copying", "runs")]
    assert len(of_runs) >= 4
    assert of_runs == sorted(of_runs)
    assert told[-1][0] == "verifying"


def test_the_tables_of_a_move_are_all_tables_but_those_that_each_store_makes_itself(house: House) -> None:
    with closing(sqlite3.connect(house.old)) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        columns = {name: [row[1] for row in connection.execute(f"pragma table_info({name})")] for name in names}
    for left in ("holdfast_meta", "holdfast_migrations", "holdfast_keys", "holdfast_workers"):
        del columns[left]
    assert {table.name: sorted(table.columns) for table in TABLES} == {
        name: sorted(found) for name, found in columns.items()
    }


# -- what is left ----------------------------------------------------------------------------------------------------


def test_the_old_house_says_where_everything_went(house: House) -> None:
    house.move()
    with pytest.raises(SchemaError, match=f"this database was moved to sqlite:///{house.new}: use that one"):
        use(house, house.old)
    with pytest.raises(SchemaError, match="was moved to"):
        house.store(house.old).migrate()


def test_a_process_that_has_the_old_house_open_hears_of_it_with_its_next_word(house: House) -> None:
    app = house.app(house.old, worker=False)
    house.clock.advance(60)
    assert app.jobs.work.trigger("before").wait(LONG).id
    assert len(app.get_runs().wait(LONG)) == 8
    house.move()
    with pytest.raises(SchemaError, match="was moved to"):
        app.jobs.work.trigger("after").wait(LONG)
    with pytest.raises(SchemaError, match="was moved to"):
        app.get_runs().wait(LONG)


def test_a_worker_that_was_idle_in_the_old_house_says_so_and_executes_nothing(house: House) -> None:
    before = house.effects.read_text()
    told: list[str] = []
    store = house.store(house.old)
    connection = store.connect()
    house.move()
    app = house.app(house.old)
    app.on("worker:error", lambda event: told.append(str(event.data["error"])))
    with pytest.raises(SchemaError, match="was moved to"):
        app.process_one().wait(LONG)
    with pytest.raises(SchemaError, match="was moved to"):
        store.begin(connection)
    store.disconnect(connection)
    assert house.effects.read_text() == before


def test_what_the_old_house_says_has_no_password_in_it(house: House) -> None:
    new = house.store(house.new)
    new.name = "postgresql://user@host/db"
    assert new.whereabouts == f"sqlite:///{house.new}"


# -- refusals --------------------------------------------------------------------------------------------------------


def hold(house: House, checked_in: bool = True) -> None:
    def claim(store: SqliteStore, tx: Tx) -> None:
        if checked_in:
            store.check_in(tx, [CheckIn("owner", "pod-7", 42, "[]", "[]", "1", 30 * SECOND)])
        assert store.claim(tx, [ClaimOrder("owner", 1, 30 * SECOND, ("work",))])[0].runs

    house.write(house.old, claim)


@pytest.mark.parametrize(("checked_in", "who"), [(True, r"pod-7:42 \(1 run\)"), (False, r"owner \(1 run\)")])
def test_while_a_worker_holds_a_lease_it_is_refused_and_the_worker_named(
    house: House, checked_in: bool, who: str
) -> None:
    hold(house, checked_in)
    with pytest.raises(ConflictError, match=f"workers hold runs: {who}"):
        house.move()
    assert not house.new.exists()
    assert use(house, house.old)


def test_a_lease_that_is_over_is_in_nobodys_way(house: House) -> None:
    hold(house)
    house.clock.advance(31)
    house.move()


def test_a_target_with_runs_is_refused_and_stays_as_it_is(house: House) -> None:
    app = house.app(house.new, worker=False)
    app.migrate().wait(LONG)
    app.jobs.work.trigger("mine").wait(LONG)
    before = contents(house.new)
    with pytest.raises(ConflictError, match="there are runs in this database"):
        house.move()
    assert contents(house.new) == before
    assert use(house, house.old)
    assert use(house, house.new)


def test_a_target_with_tables_and_no_runs_will_do(house: House) -> None:
    house.store(house.new).migrate()
    house.move()
    assert house.end_all(house.new) == ONCE


def test_one_database_by_two_names_is_refused(house: House, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(house.old)
    house.new = tmp_path / "link.db"
    with pytest.raises(ValidationError, match="are the same database"):
        house.move()


@pytest.mark.parametrize("which", ["old", "new"])
def test_tables_of_another_version_are_refused(house: House, which: str) -> None:
    house.store(house.new).migrate()
    with closing(sqlite3.connect(getattr(house, which))) as connection, connection:
        connection.execute("insert into holdfast_migrations values (77, 'from the future', 1)")
    with pytest.raises(SchemaError, match=f"{which}.db: the tables have version 77"):
        house.move()


def test_without_tables_there_is_nothing_to_move(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with pytest.raises(SchemaError, match="no Holdfast tables yet"):
        move(SqliteStore(f"sqlite:///{tmp_path}/empty.db"), SqliteStore(f"sqlite:///{tmp_path}/b.db"))
    assert not (tmp_path / "b.db").exists()


def test_what_was_moved_is_not_moved_to_a_third_place(house: House, tmp_path: Path) -> None:
    house.move()
    house.new = tmp_path / "third.db"
    with pytest.raises(SchemaError, match="was moved already, to"):
        house.move()
    assert not house.new.exists()


def test_moving_the_same_way_again_says_that_it_was_done(house: House) -> None:
    house.move()
    with pytest.raises(SchemaError, match="was moved already, to"):
        house.move()
    assert use(house, house.new)


def test_a_row_that_the_new_house_can_not_keep_is_named_and_nothing_is_moved(house: House) -> None:
    with closing(sqlite3.connect(house.old)) as connection, connection:
        connection.execute("update holdfast_runs set input = cast(x'ff22' as text) where input like '%plain%'")
        (run_id,) = connection.execute("select id from holdfast_runs where hex(input) = 'FF22'").fetchone()
    with pytest.raises(ValidationError, match=f"can't keep the row of holdfast_runs with id '{run_id}'"):
        house.move()
    with closing(sqlite3.connect(house.old)) as connection, connection:
        connection.execute("update holdfast_runs set input = '\"x\"' where id = ?", (run_id,))
    house.move()


# -- others, meanwhile -----------------------------------------------------------------------------------------------


def test_nobody_writes_the_old_house_meanwhile(house: House) -> None:
    app = house.app(house.old, worker=False)
    refused: list[BaseException] = []

    def trigger(*_: Any) -> None:
        if not refused:
            with pytest.raises(StoreUnavailable, match="is locked") as caught:
                app.jobs.work.trigger("late").wait(LONG)
            refused.append(caught.value)

    house.move(told=trigger)
    assert refused
    with pytest.raises(SchemaError, match="was moved to"):
        app.jobs.work.trigger("later").wait(LONG)


def test_nobody_uses_the_new_house_before_it_is_complete(house: House) -> None:
    house.store(house.new).migrate()
    there = house.app(house.new, worker=False)
    assert there.get_runs().wait(LONG) == []
    refused: list[BaseException] = []

    def look(what: str, *_: Any) -> None:
        if what == "verifying" and not refused:
            with pytest.raises(SchemaError, match=f"a move from sqlite:///{house.old} into this database") as caught:
                there.get_runs().wait(LONG)
            refused.append(caught.value)

    house.move(told=look)
    assert refused
    assert len(there.get_runs().wait(LONG)) == 7


# -- power cuts ------------------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Nothing in this process happens any more."""


class Cut:
    """Counts what the two databases are asked to do, and cuts the power before or after one of it."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left, self.after = at, after
        self.asked: list[str] = []

    def here(self, what: str, act: Callable[[], Any]) -> Any:
        self.asked.append(what)
        if self.left == 0 and not self.after:
            raise PowerCut(what)
        done = act()
        if self.left == 0:
            raise PowerCut(what)
        self.left -= 1
        return done


class Dying(SqliteStore):
    """A database in a house whose power may be cut."""

    cut: Cut

    def migrate(self) -> list[str]:
        return self.cut.here("migrate", super().migrate)  # type: ignore[no-any-return]

    def commit(self, tx: Tx) -> None:
        self.cut.here("commit", lambda: super(Dying, self).commit(tx))

    def insert(self, tx: Tx, table: Table, rows: Any) -> None:
        self.cut.here(f"insert {table.name}", lambda: super(Dying, self).insert(tx, table, rows))

    def settle(self, tx: Tx) -> None:
        self.cut.here("settle", lambda: super(Dying, self).settle(tx))

    def set_mark(self, tx: Tx, mark: Any) -> None:
        self.cut.here(f"mark {mark.state}", lambda: super(Dying, self).set_mark(tx, mark))

    def drop_mark(self, tx: Tx) -> None:
        super().drop_mark(tx)


def cut_move(house: House, cut: Cut) -> bool:
    """Move with that power cut; whether it came to it."""
    stores = [Dying(f"sqlite:///{path}", clock=house.clock, lock_timeout=0.05) for path in (house.old, house.new)]
    for store in stores:
        store.cut = cut
    try:
        move(*stores)
    except PowerCut:
        return True
    return False


def is_usable(house: House, path: Path) -> bool:
    try:
        store = house.store(path)
        store.disconnect(store.open())
    except SchemaError:
        return False
    return True


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_wherever_the_power_is_cut_one_house_at_most_can_be_used_and_the_same_call_makes_up_for_it(
    house: House, tmp_path: Path, after: bool
) -> None:
    seen = set()
    at = 0
    clock, template = house.clock, house.old
    while True:
        (tmp_path / str(at)).mkdir()
        house = House(tmp_path / str(at))
        house.clock = clock
        shutil.copy(template, house.old)
        before = contents(house.old)
        cut = Cut(at, after=after)
        if not cut_move(house, cut):
            break
        usable = is_usable(house, house.old), is_usable(house, house.new)
        filled = house.new.exists() and usable[1] and bool(contents(house.new)["holdfast_runs"])
        seen.add((usable[0], filled))
        assert not (usable[0] and filled), f"both after {cut.asked}"
        if usable[0]:
            assert contents(house.old) == before
        if filled:
            assert contents(house.new) == before
            with pytest.raises(SchemaError, match="was moved already"):
                house.move()
        else:
            moved = house.move()
            assert moved.resumed is not usable[0], f"after {cut.asked}"
        assert contents(house.new) == before
        assert not is_usable(house, house.old)
        assert is_usable(house, house.new)
        at += 1
    assert at >= 14
    # Before the mark of the old house; between the two marks; after the last commit.
    assert seen == ({(True, False), (False, False), (False, True)} if after else {(True, False), (False, False)})


def test_what_broke_off_in_tables_of_an_older_version_is_not_gone_on_with(house: House) -> None:
    assert cut_move(house, Cut(5, after=False))
    with closing(sqlite3.connect(house.new)) as connection, connection:
        connection.execute("update holdfast_migrations set number = 0 where number = 1")
    with pytest.raises(SchemaError, match="an earlier move has made tables of version 0, this code needs 1"):
        house.move()
    assert is_usable(house, house.old)


def test_who_goes_on_in_the_old_house_after_a_power_cut_has_it_as_it_was(house: House) -> None:
    assert cut_move(house, Cut(5, after=False))
    assert house.end_all(house.old) == ONCE
    with pytest.raises(SchemaError, match=r"is not complete\. Run that `holdfast move` again"):
        use(house, house.new)


def test_a_move_that_was_broken_off_is_not_gone_on_with_from_another_house(house: House, tmp_path: Path) -> None:
    assert cut_move(house, Cut(5, after=False))
    other = house.store(tmp_path / "other.db")
    other.migrate()
    with pytest.raises(SchemaError, match=f"a move from sqlite:///{house.old} into this database is not complete"):
        move(other, house.store(house.new))


class Forgetful(SqliteStore):
    """Loses a row, or changes one, on the way."""

    what: str

    def insert(self, tx: Tx, table: Table, rows: Any) -> None:
        if table.name == "holdfast_steps":
            rows = rows[1:] if self.what == "loses" else [(*rows[0][:-1], 1), *rows[1:]]
        super().insert(tx, table, rows)


@pytest.mark.parametrize("what", ["loses", "changes"])
def test_a_copy_that_is_not_the_same_is_found_out_before_the_old_house_is_left(house: House, what: str) -> None:
    bad = Forgetful(f"sqlite:///{house.new}", clock=house.clock)
    bad.what = what
    with pytest.raises(StoreError, match=r"holdfast_steps has .* Nothing was moved"):
        move(house.store(house.old), bad)
    assert use(house, house.old)
    assert not is_usable(house, house.new)


# -- looking only ----------------------------------------------------------------------------------------------------


def test_a_dry_run_counts_and_writes_nothing(house: House) -> None:
    before = contents(house.old)
    moved = house.move(dry_run=True)
    assert {name: sum.rows for name, sum in moved.sums.items()} == {
        table.removeprefix("holdfast_"): len(rows) for table, rows in before.items()
    }
    assert not house.new.exists()
    assert use(house, house.old)


def test_a_dry_run_refuses_what_the_move_would_refuse(house: House) -> None:
    app = house.app(house.new, worker=False)
    app.migrate().wait(LONG)
    app.jobs.work.trigger("mine").wait(LONG)
    with pytest.raises(ConflictError, match="there are runs in this database"):
        house.move(dry_run=True)
    house.new = house.new.with_name("free.db")
    hold(house)
    with pytest.raises(ConflictError, match="workers hold runs"):
        house.move(dry_run=True)
