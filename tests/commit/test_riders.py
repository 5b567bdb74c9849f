"""What rides along: never a round of its own, never for what is over soon, and nobody pays for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import databases
from databases import StoreHere
from holdfast.commit.committer import RIDE_AFTER, Committer
from holdfast.commit.ticket import Ticket
from holdfast.model.run import NewRun
from holdfast.testing.clock import HandClock


class Passenger:
    """A rider whose ticket triggers a run."""

    def __init__(self, name: str, since: int) -> None:
        self.name = name
        self.since = since
        self.asked = 0

    def ticket(self) -> Ticket[Any]:
        self.asked += 1
        ticket: Ticket[Any] = Ticket("trigger", NewRun(self.name, "rider", "1"))
        ticket._asked = True
        return ticket


class Line:
    def __init__(self, path: Path, clock: HandClock, *, inline: bool) -> None:
        self.clock = clock
        self.path = path
        self.store = StoreHere(databases.url(path), clock=clock)
        self.store.migrate()
        self.committer = Committer(self.store, clock, inline=inline)

    def ride(self, name: str) -> Passenger:
        passenger = Passenger(name, self.clock.now())
        self.committer.riders[passenger] = None
        return passenger

    def write(self, name: str) -> None:
        """A round of somebody else's."""
        ticket: Ticket[Any] = Ticket("trigger", NewRun(name, "job", "1"))
        self.committer.join(ticket)
        ticket.wait(20)

    def rows(self) -> list[str]:
        return [run_id for (run_id,) in databases.rows(self.path, "select id from holdfast_runs")]


@pytest.fixture(params=["thread", "inline"])
def line(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> Iterator[Line]:
    line = Line(tmp_path / "line.db", clock, inline=request.param == "inline")
    yield line
    line.committer.close().wait(20)
    line.store.close()


def test_a_rider_goes_along_with_the_round_of_somebody_else(line: Line) -> None:
    rider = line.ride("rider")
    line.clock.advance(RIDE_AFTER / 1_000_000)
    line.write("other")
    assert set(line.rows()) == {"other", "rider"}
    assert line.committer.rounds == 1
    assert (rider.asked, line.committer.riders, line.committer.backlog) == (1, {}, 0)


def test_a_rider_causes_no_round(line: Line) -> None:
    line.write("first")
    line.ride("rider")
    line.clock.advance(3600)
    line.committer.close().wait(20)
    assert line.rows() == ["first"]


def test_who_has_not_waited_for_long_stays_behind(line: Line) -> None:
    line.ride("old")
    line.clock.advance(RIDE_AFTER / 1_000_000)
    young = line.ride("young")
    line.write("one")
    assert set(line.rows()) == {"one", "old"}
    line.clock.advance(RIDE_AFTER / 1_000_000)
    line.write("two")
    assert set(line.rows()) == {"one", "old", "two", "young"}
    assert young.asked == 1


def test_a_rider_that_got_off_is_not_written(line: Line) -> None:
    rider = line.ride("rider")
    line.clock.advance(3600)
    line.committer.riders.pop(rider)
    line.write("other")
    assert (line.rows(), rider.asked) == (["other"], 0)


def test_a_clock_that_is_set_back_does_not_keep_riders_for_ever(line: Line) -> None:
    line.ride("rider")
    line.clock.jump(-3600)
    line.write("other")
    assert set(line.rows()) == {"other", "rider"}


def test_a_rider_that_is_refused_harms_nobody(line: Line) -> None:
    line.ride("rider\0")
    line.clock.advance(1)
    line.write("other")
    assert line.rows() == ["other"]
