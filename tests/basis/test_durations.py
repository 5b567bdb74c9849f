"""Durations as people write them, and what is not one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from holdfast.basis.durations import micros, seconds
from holdfast.basis.errors import ValidationError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (0, 0),
        (5, 5),
        (0.25, 0.25),
        (timedelta(0), 0),
        (timedelta(minutes=2, milliseconds=5), 120.005),
        ("250ms", 0.25),
        ("0s", 0),
        ("90s", 90),
        ("5m", 300),
        ("1.5m", 90),
        ("12h", 43_200),
        ("30d", 2_592_000),
        ("2w", 1_209_600),
        (" 7s ", 7),
        ("007s", 7),
        (365 * 86400 * 1000, 365 * 86400 * 1000),
    ],
    ids=repr,
)
def test_a_duration_is_read(written: Any, meant: float) -> None:
    assert seconds(written) == pytest.approx(meant)


@pytest.mark.parametrize(
    "written",
    [
        -1, -0.001, timedelta(seconds=-1), "-5s", float("nan"), float("inf"), float("-inf"), 10**12, 10.0**300,
        "1e3s", "99999999w", "", "s", "5", "5 s", "5S", "5M", "5min", "1h30m", "1,5s", ".5s", "5.s", "٥s", "５s",
        "5s\0", "1_0s", "+5s", "soon", None, True, False, [], {}, b"5s", 1j, object,
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_duration_is_refused_by_name(written: Any) -> None:
    with pytest.raises(ValidationError, match=r"^delay: "):
        seconds(written, "delay")


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"^delay: "):
        seconds(10**400, "delay")


@pytest.mark.parametrize(
    ("written", "meant"),
    [(0, 0), (1, 1_000_000), ("1ms", 1000), (0.1 + 0.2, 300_000), (timedelta(microseconds=1), 1), (1e-7, 0)],
    ids=repr,
)
def test_the_database_counts_microseconds(written: Any, meant: int) -> None:
    assert micros(written) == meant
    assert isinstance(micros(written), int)
