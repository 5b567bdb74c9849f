"""What an outage of the database means for the judging of leases: meanwhile nobody could renew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.basis.errors import StoreUnavailable
from holdfast.commit.round import Rounds
from holdfast.commit.ticket import Ticket
from holdfast.store.base import Sweep, Tx
from holdfast.store.sqlite import SqliteStore
from holdfast.testing.clock import HandClock


class Away(SqliteStore):
    """A store whose database can't be reached for now."""

    def __init__(self, path: Path, clock: HandClock) -> None:
        super().__init__(f"sqlite:///{path}", clock=clock)
        self.away = False
        self.waited: list[float] = []

    def open(self, *, read_only: bool = False) -> Any:
        if self.away:
            raise StoreUnavailable("refused at once")
        return super().open(read_only=read_only)

    def expire(self, tx: Tx, sweeps: Any) -> Any:
        self.waited.append(tx.waited)
        return super().expire(tx, sweeps)


def test_the_time_in_which_no_connection_could_be_opened_counts_as_one_in_which_nobody_could_renew(
    tmp_path: Path, clock: HandClock
) -> None:
    store = Away(tmp_path / "away.db", clock)
    store.migrate()
    rounds = Rounds(store, clock)
    store.away = True
    for _ in range(3):
        refused: Ticket[Any] = Ticket("expire", Sweep(5))
        assert rounds.serve([refused]) is not None
        refused._asked = True
        clock.advance(20)
    store.away = False
    assert rounds.serve([Ticket("expire", Sweep(5))]) is None
    assert store.waited == [60.0]
    clock.advance(5)
    assert rounds.serve([Ticket("expire", Sweep(5))]) is None
    assert store.waited == [60.0, 0.0]
    rounds.disconnect()
