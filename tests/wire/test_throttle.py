"""The throttle, by numbers: no clock, no loop."""

from __future__ import annotations

from datetime import UTC, datetime

from holdfast import Event
from holdfast.http.throttle import Throttle


def told(type: str, n: int = 0, run_id: str = "a") -> Event:
    return Event(type, datetime(2026, 1, 1, tzinfo=UTC), n, run_id, "job", {}, {"progress": {"current": n}})


def progress(n: int, run_id: str = "a") -> Event:
    return told("run:progress", n, run_id)


def numbers(events: list[Event]) -> list[int]:
    return [event.sequence for event in events]


def test_the_first_progress_passes_at_once() -> None:
    assert numbers(Throttle(1).pass_on(progress(1), 0)) == [1]


def test_of_a_burst_the_first_and_the_last_are_sent_at_both_ends_of_the_window() -> None:
    throttle = Throttle(1)
    sent = [numbers(throttle.pass_on(progress(n), n / 10)) for n in range(5)]
    assert sent == [[0], [], [], [], []]
    assert throttle.due_at() == 1
    assert numbers(throttle.due(0.9)) == []
    assert numbers(throttle.due(1.0)) == [4]
    assert throttle.due_at() is None


def test_the_window_begins_again_with_what_was_sent_at_its_end() -> None:
    throttle = Throttle(1)
    throttle.pass_on(progress(1), 0)
    throttle.pass_on(progress(2), 0.5)
    assert numbers(throttle.due(1)) == [2]
    assert throttle.pass_on(progress(3), 1.5) == []
    assert throttle.due_at() == 2


def test_after_the_window_a_progress_passes_at_once_and_what_was_held_is_outdated() -> None:
    throttle = Throttle(1)
    throttle.pass_on(progress(1), 0)
    throttle.pass_on(progress(2), 0.5)
    assert numbers(throttle.pass_on(progress(3), 1.5)) == [3]
    assert throttle.due_at() is None


def test_each_run_has_its_own_window() -> None:
    throttle = Throttle(1)
    assert numbers(throttle.pass_on(progress(1), 0)) == [1]
    assert numbers(throttle.pass_on(progress(2, "b"), 0)) == [2]
    throttle.pass_on(progress(3), 0.2)
    throttle.pass_on(progress(4, "b"), 0.4)
    assert sorted(numbers(throttle.due(1))) == [3, 4]


def test_other_events_pass_at_once_before_what_is_held() -> None:
    throttle = Throttle(1)
    throttle.pass_on(progress(1), 0)
    throttle.pass_on(progress(2), 0.1)
    assert numbers(throttle.pass_on(told("step:complete", 3), 0.2)) == [3]
    assert numbers(throttle.due(1)) == [2]


def test_the_end_of_a_run_sends_what_is_held_first_and_the_next_progress_passes_at_once() -> None:
    for end in ("run:complete", "run:fail", "run:cancel", "run:delete"):
        throttle = Throttle(1)
        throttle.pass_on(progress(1), 0)
        throttle.pass_on(progress(2), 0.1)
        assert numbers(throttle.pass_on(told(end, 3), 0.2)) == [2, 3]
        assert numbers(throttle.pass_on(progress(4), 0.3)) == [4]


def test_the_end_of_the_stream_sends_everything_that_is_held() -> None:
    throttle = Throttle(1)
    for n, run_id in enumerate("abab"):
        throttle.pass_on(progress(n, run_id), 0)
    assert numbers(throttle.rest()) == [2, 3]
    assert throttle.rest() == []


def test_without_a_window_everything_passes() -> None:
    for window in (0, -1):
        throttle = Throttle(window)
        assert [numbers(throttle.pass_on(progress(n), 0)) for n in range(3)] == [[0], [1], [2]]


def test_the_runs_that_are_remembered_do_not_grow_for_ever() -> None:
    throttle = Throttle(1)
    for n in range(5000):
        throttle.pass_on(progress(n, str(n)), n)
    assert len(throttle._sent_at) <= 1001
