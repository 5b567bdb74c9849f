"""Which errors are tried again, how long after, and what can't be said of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from holdfast import CancelRun, NonRetryable, NotFoundError, NotKept, Retry, Retryable, TimedOut, ValidationError
from holdfast.basis.chance import fraction
from holdfast.basis.errors import AmbiguousStep, DefinitionError, Outdated, StepChanged, StepFailed
from holdfast.rules.retry import delay_before, may_help

SECOND = 1_000_000


def never() -> float:
    raise AssertionError("without jitter nothing is drawn")


def delays(retry: Retry, count: int) -> list[float]:
    return [delay_before(retry, number, never) / SECOND for number in range(1, count + 1)]


def test_the_first_retry_comes_after_the_delay_and_each_further_one_factor_times_later() -> None:
    assert delays(Retry(5, delay=0.1, factor=1.5), 4) == [0.1, 0.15, 0.225, 0.3375]


def test_without_a_factor_all_delays_are_the_same() -> None:
    assert delays(Retry(5, delay="2s"), 3) == [2, 2, 2]


def test_without_a_delay_it_is_tried_again_at_once() -> None:
    assert delays(Retry(3, factor=10), 3) == [0, 0, 0]
    assert delay_before(Retry(1000, factor=10), 1000, never) == 0


def test_no_delay_is_longer_than_the_longest() -> None:
    assert delays(Retry(9, delay=1, factor=2, max_delay=30), 7) == [1, 2, 4, 8, 16, 30, 30]


def test_a_power_beyond_all_numbers_is_the_longest_delay() -> None:
    assert delay_before(Retry(1000, delay=1, factor=10), 1000, never) == 86_400 * SECOND


def test_a_factor_below_one_comes_closer() -> None:
    assert delays(Retry(3, delay=1, factor=0.5), 3) == [1, 0.5, 0.25]


def test_a_delay_is_rounded_to_microseconds() -> None:
    assert delay_before(Retry(9, delay=0.1, factor=0.1), 9, never) == 0
    assert delay_before(Retry(9, delay=1 / 3), 1, never) == 333_333


@pytest.mark.parametrize(("drawn", "left"), [(0.0, 10.0), (0.5, 7.5), (1.0, 5.0)])
def test_jitter_leaves_out_up_to_its_part(drawn: float, left: float) -> None:
    retry = Retry(3, delay=10, jitter=0.5)
    assert delay_before(retry, 1, lambda: drawn) == left * SECOND


def test_chance_gives_parts_of_one() -> None:
    assert all(0 <= fraction() < 1 for _ in range(100))


@pytest.mark.parametrize("error", [ValueError("x"), Retryable("x"), TimedOut("x"), TimeoutError("x"), OSError(5, "io"),
                                   StepFailed("E", "x"), ExceptionGroup("g", [ValueError()])],
                         ids=lambda error: type(error).__name__)  # fmt: skip
def test_whatever_may_end_otherwise_is_tried_again(error: Exception) -> None:
    assert may_help(error)


@pytest.mark.parametrize("error", [NonRetryable("x"), CancelRun("x"), NotKept("x"), Outdated("x"), AmbiguousStep("x"),
                                   StepChanged("x"), ValidationError("x"), DefinitionError("x"), NotFoundError("x"),
                                   KeyboardInterrupt(), SystemExit(1)],
                         ids=lambda error: type(error).__name__)  # fmt: skip
def test_what_another_try_can_not_change_is_not_tried_again(error: BaseException) -> None:
    assert not may_help(error)


def test_an_error_that_lies_about_its_class_is_judged_by_its_type() -> None:
    class Liar(Exception):
        @property
        def __class__(self) -> type:  # type: ignore[override]
            raise RuntimeError("do not ask")

    assert may_help(Liar())


def test_durations_are_kept_in_seconds() -> None:
    assert Retry(1, delay="2s", max_delay=timedelta(minutes=1)) == Retry(1, 2, 1, 60.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_retries": -1}, "max_retries: -1 must be a whole number from 0 to 1000"),
        ({"max_retries": 1001}, "max_retries: 1001"),
        ({"max_retries": True}, "max_retries: True"),
        ({"max_retries": "3"}, "max_retries: '3'"),
        ({"max_retries": 2.0}, "max_retries: 2.0"),
        ({"max_retries": 1, "delay": -1}, "delay: -1 must be between"),
        ({"max_retries": 1, "delay": "soon"}, "delay: 'soon' is not a duration"),
        ({"max_retries": 1, "delay": 3601}, "delay: 3601 must be an hour at most"),
        ({"max_retries": 1, "delay": 5, "max_delay": 4}, "max_delay: 4 must be a day at most, and not shorter"),
        ({"max_retries": 1, "max_delay": "2d"}, "max_delay: '2d' must be a day at most"),
        ({"max_retries": 1, "factor": 0.05}, "factor: 0.05 must be a number from 0.1 to 10"),
        ({"max_retries": 1, "factor": 11}, "factor: 11"),
        ({"max_retries": 1, "factor": float("nan")}, "factor: nan"),
        ({"max_retries": 1, "factor": "2"}, "factor: '2'"),
        ({"max_retries": 1, "jitter": 1.5}, "jitter: 1.5 must be a number from 0 to 1"),
        ({"max_retries": 1, "jitter": True}, "jitter: True"),
    ],
    ids=str,
)
def test_a_wrong_limit_is_refused_with_its_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Retry(**options)
    assert words in str(raised.value)
