"""The clock of the machine, times as people see them, and the clock that tests turn by hand."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from holdfast.basis.clock import Clock, SystemClock, from_datetime, to_datetime
from holdfast.testing.clock import HandClock

# -- the machine's -----------------------------------------------------------------------------------------------------


def test_the_system_clock_shows_the_time_in_microseconds() -> None:
    before = time.time_ns() // 1000
    now = SystemClock().now()
    assert before <= now <= time.time_ns() // 1000


def test_the_steady_clock_never_goes_back() -> None:
    clock = SystemClock()
    read = [clock.steady() for _ in range(1000)]
    assert read == sorted(read)


def test_the_steady_clock_does_without_a_boottime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.basis.clock._BOOTTIME", None)
    assert SystemClock().steady() == pytest.approx(time.monotonic(), abs=10)


def test_the_system_clock_waits_for_an_event_or_the_time() -> None:
    event = threading.Event()
    assert not SystemClock().wait(event, 0.001)
    event.set()
    assert SystemClock().wait(event, 60)


def test_the_system_clock_calls_in_the_loop() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        SystemClock().call_later(loop, 0.001, lambda: done.set_result(threading.get_ident()))
        never = SystemClock().call_later(loop, 0.001, lambda: done.set_result(0))
        never.cancel()
        return await done

    assert asyncio.run(main()) == threading.get_ident()


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micros", [0, 1, 999_999, 1_700_000_000_123_456, -1, 253_402_300_799_999_999])
def test_a_stored_time_comes_back_exactly(micros: int) -> None:
    when = to_datetime(micros)
    assert when is not None
    assert when.tzinfo is UTC
    assert from_datetime(when) == micros


def test_no_time_is_no_time() -> None:
    assert to_datetime(None) is None


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    assert from_datetime(datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == 0


def test_a_naive_time_is_a_local_one() -> None:
    naive = datetime(2026, 7, 1, 12)
    assert from_datetime(naive) == from_datetime(naive.astimezone(UTC))


# -- the one turned by hand --------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def test_a_hand_clock_is_a_clock(clock: HandClock) -> None:
    used: Clock = clock
    assert used.now() == 1_700_000_000_000_000


def test_a_hand_clock_stands_still(clock: HandClock) -> None:
    assert {(clock.now(), clock.steady()) for _ in range(100)} == {(clock.now(), 0.0)}


def test_turning_the_hands_moves_both_times(clock: HandClock) -> None:
    start = clock.now()
    for _ in range(10):
        clock.advance(0.1)
    assert (clock.now() - start, clock.steady()) == (1_000_000, 1.0)


def test_the_hands_are_not_turned_back(clock: HandClock) -> None:
    with pytest.raises(ValueError, match="jump"):
        clock.advance(-1)


def test_a_jump_moves_the_wall_clock_alone(clock: HandClock) -> None:
    start = clock.now()
    clock.jump(-3600)
    assert (clock.now() - start, clock.steady()) == (-3_600_000_000, 0.0)


def test_timers_run_when_they_are_due_and_in_that_order(clock: HandClock) -> None:
    async def main() -> list[str]:
        loop, seen = asyncio.get_running_loop(), []
        for name, after in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("b2", 2.0)):
            clock.call_later(loop, after, lambda name=name: seen.append(name))  # type: ignore[misc]
        assert clock.next_timer() == 1.0
        clock.advance(0.999)
        await asyncio.sleep(0)
        assert seen == []
        clock.advance(1.001)
        assert seen == [], "they run in their loop, not in the hand"
        await asyncio.sleep(0)
        assert seen == ["a", "b", "b2"]
        clock.advance(60)
        await asyncio.sleep(0)
        return seen

    assert asyncio.run(main()) == ["a", "b", "b2", "c"]
    assert clock.next_timer() is None


def test_a_timer_without_a_distance_runs_at_the_next_turn(clock: HandClock) -> None:
    async def main() -> list[int]:
        seen: list[int] = []
        clock.call_later(asyncio.get_running_loop(), 0, lambda: seen.append(1))
        clock.call_later(asyncio.get_running_loop(), -5, lambda: seen.append(2))
        assert seen == []
        await asyncio.sleep(0)
        return seen

    assert asyncio.run(main()) == [1, 2]


def test_a_cancelled_timer_never_runs_even_if_it_was_due(clock: HandClock) -> None:
    async def main() -> list[int]:
        seen: list[int] = []
        early = clock.call_later(asyncio.get_running_loop(), 1, lambda: seen.append(1))
        late = clock.call_later(asyncio.get_running_loop(), 1, lambda: seen.append(2))
        early.cancel()
        clock.advance(1)
        late.cancel()
        late.cancel()
        await asyncio.sleep(0)
        return seen

    assert asyncio.run(main()) == []


def test_a_timer_keeps_the_context_of_whoever_set_it(clock: HandClock) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")

    async def main() -> list[str]:
        seen: list[str] = []
        name.set("setter")
        clock.call_later(asyncio.get_running_loop(), 1, lambda: seen.append(name.get()))
        name.set("turner")
        clock.advance(1)
        await asyncio.sleep(0)
        return seen

    assert asyncio.run(main()) == ["setter"]


def test_another_thread_may_turn_the_hands(clock: HandClock) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        clock.call_later(loop, 5, lambda: done.set_result(threading.get_ident()))
        await asyncio.to_thread(clock.advance, 5)
        return await done

    assert asyncio.run(main()) == threading.get_ident()


def test_the_timer_of_a_closed_loop_is_forgotten(clock: HandClock) -> None:
    loop = asyncio.new_event_loop()
    clock.call_later(loop, 1, lambda: None)
    loop.close()
    clock.advance(1)
    assert clock.next_timer() is None


def test_a_waiting_thread_goes_on_when_its_event_is_set(clock: HandClock) -> None:
    event = threading.Event()
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(clock.wait(event, 60)))
    thread.start()
    event.set()
    thread.join(10)
    assert answers == [True]


def test_a_waiting_thread_goes_on_when_the_hands_have_moved(clock: HandClock) -> None:
    entered, answers = threading.Event(), []

    def wait() -> None:
        entered.set()
        answers.append(clock.wait(threading.Event(), 60))

    thread = threading.Thread(target=wait)
    thread.start()
    entered.wait()
    while thread.is_alive():  # it may not have read the clock yet: then its minute begins later
        clock.advance(60)
        thread.join(0.01)
    assert answers == [False]


def test_waiting_for_an_event_that_is_set_takes_no_time(clock: HandClock) -> None:
    event = threading.Event()
    event.set()
    assert clock.wait(event, 0)
    assert not clock.wait(threading.Event(), 0)


def test_threads_that_turn_the_hands_together_lose_nothing(clock: HandClock) -> None:
    threads = [threading.Thread(target=lambda: [clock.advance(0.001) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.steady() == 2.0
