"""What time it is for a database, as rounds tell it."""

from __future__ import annotations

import pytest

from holdfast.commit.database_time import DatabaseTime
from holdfast.testing.clock import HandClock

HOUR = 3_600_000_000


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def told(clock: HandClock, time: DatabaseTime, ahead: int, took: float = 0.0) -> None:
    """The database says that it is so far ahead of us, and the answer takes so long."""
    asked, there = clock.steady(), clock.now() + ahead
    clock.advance(took)
    time.told(there, asked)


def test_before_anything_was_heard_it_is_what_our_clock_says(clock: HandClock) -> None:
    assert DatabaseTime(clock).now() == clock.now()


@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
def test_it_is_what_the_database_said_and_goes_on_from_there(clock: HandClock, ahead: int) -> None:
    time = DatabaseTime(clock)
    told(clock, time, ahead)
    assert time.now() == clock.now() + ahead
    clock.advance(60)
    assert time.now() == clock.now() + ahead


def test_our_clock_may_be_set_without_any_effect(clock: HandClock) -> None:
    time = DatabaseTime(clock)
    told(clock, time, 0)
    before = time.now()
    clock.jump(-3600)
    assert time.now() == before


def test_it_is_never_ahead_of_the_database(clock: HandClock) -> None:
    time = DatabaseTime(clock)
    told(clock, time, HOUR, took=2.0)
    assert time.now() == clock.now() + HOUR - 2_000_000


def test_a_quicker_answer_says_more_and_a_slower_one_is_no_help(clock: HandClock) -> None:
    time = DatabaseTime(clock)
    told(clock, time, HOUR, took=2.0)
    told(clock, time, HOUR, took=0.5)
    assert time.now() == clock.now() + HOUR - 500_000
    told(clock, time, HOUR, took=3.0)
    assert time.now() == clock.now() + HOUR - 500_000


def test_after_a_while_clocks_may_have_parted_and_a_slower_answer_counts(clock: HandClock) -> None:
    time = DatabaseTime(clock)
    told(clock, time, HOUR, took=0.001)
    clock.advance(60)
    told(clock, time, HOUR + 1000, took=0.002)
    assert time.now() == clock.now() + HOUR + 1000 - 2000


@pytest.mark.parametrize("ahead", [-HOUR, -5_000_000, 5_000_000, HOUR])
def test_another_server_or_a_clock_that_was_set_counts_at_once_however_slow_the_answer(
    clock: HandClock, ahead: int
) -> None:
    time = DatabaseTime(clock)
    told(clock, time, 0)
    told(clock, time, ahead, took=1.0)
    assert time.now() == clock.now() + ahead - 1_000_000
