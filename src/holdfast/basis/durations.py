"""Durations as people write them: seconds, a `timedelta`, or text such as "90s", "5m", "12h", "30d"."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import TypeAlias, cast

from .errors import ValidationError
from .text import shown

Duration: TypeAlias = float | int | timedelta | str

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TEXT = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
#: A thousand years: more is a mistake, and would not fit into a timestamp.
_LONGEST = 1000 * 366 * 86400


def seconds(duration: Duration, what: str = "duration") -> float:
    """The duration in seconds; `ValidationError` naming `what` for anything negative, endless or unreadable."""
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str):
        match = _TEXT.fullmatch(duration.strip())
        if match is None:
            raise ValidationError(f"{what}: {shown(duration)} is not a duration. Write e.g. '90s', '5m', '12h', '30d'.")
        value = float(match[1]) * _UNITS[match[2]]
    elif type(duration) in (int, float):
        try:
            value = float(cast("float", duration))
        except OverflowError:
            value = math.inf
    else:
        raise ValidationError(
            f"{what}: {type(duration).__name__} is not a duration. Give seconds, a timedelta or e.g. '5m'."
        )
    if not math.isfinite(value) or value < 0 or value > _LONGEST:
        raise ValidationError(f"{what}: {shown(duration)} must be between 0 seconds and 1000 years.")
    return value


def micros(duration: Duration, what: str = "duration") -> int:
    """The duration in microseconds, the unit of every time in the database."""
    return round(seconds(duration, what) * 1_000_000)
