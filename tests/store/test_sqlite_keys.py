"""What SQLite itself makes sure of about concurrency keys, whoever writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.model.run import NewRun
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease
from holdfast.store.sqlite import SqliteStore
from holdfast.testing.clock import HandClock

LEASE = 30_000_000


class Keys:
    """A store whose key "k" is held by "held"; "free" has none."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(f"sqlite:///{path}/keys.db", clock=HandClock())
        self.store.migrate()
        self.connection = self.store.connect()
        self.do("trigger", NewRun("held", "job", "1", concurrency_key="k"))
        assert self.claim() == ["held"]

    def do(self, verb: str, row: Any) -> Any:
        tx = self.store.begin(self.connection)
        (answer,) = getattr(self.store, verb)(tx, [row])
        self.store.commit(tx)
        return answer

    def claim(self) -> list[str]:
        return [run.id for run in self.do("claim", ClaimOrder("me", 10, LEASE, ("job", "other"))).runs]


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    one = Keys(tmp_path)
    yield one
    one.store.disconnect(one.connection)
    one.store.close()


def test_two_runs_of_one_key_cant_be_leased_whatever_is_written(keys: Keys) -> None:
    keys.do("trigger", NewRun("second", "other", "1", concurrency_key="k"))
    for turn in (0, 1, 2):
        with pytest.raises(sqlite3.IntegrityError):
            keys.connection.execute(
                "update holdfast_runs set status = 'leased', turn = ?, lease_owner = 'x', lease_expires_at = 1 "
                "where id = 'second'",
                (turn,),
            )


def test_runs_that_were_put_back_by_hand_wait_for_their_key_and_stop_nobody_else(keys: Keys) -> None:
    for name in ("first", "second"):
        keys.do("trigger", NewRun(name, "other", "1", concurrency_key="k"))
        keys.do("cancel", name)
    keys.do("trigger", NewRun("free", "other", "1"))
    keys.connection.execute(
        "update holdfast_runs set status = 'pending', completed_at = null where id in ('first', 'second')"
    )
    assert keys.claim() == ["free"]
    keys.do("cancel", "held")
    assert keys.claim() == ["first"]
    keys.do("cancel", "first")
    assert keys.claim() == ["second"]


def test_a_holder_that_was_ended_by_hand_holds_its_key_no_longer(keys: Keys) -> None:
    keys.connection.execute(
        "update holdfast_runs set status = 'failed', completed_at = 1, lease_owner = null, lease_expires_at = null "
        "where id = 'held'"
    )
    keys.do("trigger", NewRun("next", "other", "1", concurrency_key="k"))
    assert keys.claim() == ["next"]


def test_a_suspended_run_that_is_back_waits_for_its_key_and_goes_in_the_order(keys: Keys) -> None:
    keys.do("trigger", NewRun("second", "other", "1", concurrency_key="k"))
    keys.do("finish", Ending(Lease("held", 1, "me"), TABLE[Cause.SUSPEND]))
    assert keys.claim() == ["second"]
    # As a wake will do it.
    keys.connection.execute("update holdfast_runs set status = 'pending' where id = 'held'")
    assert keys.claim() == []
    keys.do("trigger", NewRun("urgent", "job", "1", concurrency_key="k", priority=1))
    keys.do("cancel", "second")
    assert keys.claim() == ["urgent"]
    keys.do("trigger", NewRun("younger", "job", "1", concurrency_key="k"))
    keys.do("cancel", "urgent")
    assert keys.claim() == ["held"], "older than the last one"
    keys.do("cancel", "held")
    assert keys.claim() == ["younger"]


def test_one_of_higher_priority_overtakes_one_that_was_suspended_and_may_go(keys: Keys) -> None:
    keys.do("finish", Ending(Lease("held", 1, "me"), TABLE[Cause.SUSPEND]))
    keys.connection.execute("update holdfast_runs set status = 'pending', turn = 0 where id = 'held'")
    keys.do("trigger", NewRun("later", "job", "1", concurrency_key="k"))
    keys.do("cancel", "later")
    keys.do("trigger", NewRun("urgent", "job", "1", concurrency_key="k", priority=1))
    assert keys.claim() == ["urgent"]
    assert keys.claim() == []
