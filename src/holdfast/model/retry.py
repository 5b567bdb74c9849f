"""How often, and how long after a failure, something is tried again."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from pydantic_core import from_json, to_json

from ..basis.durations import Duration, seconds
from ..basis.errors import Outdated, ValidationError
from ..basis.text import shown

MOST_RETRIES = 1000
LONGEST_DELAY = 3600.0
LONGEST_MAX_DELAY = 86400.0
LEAST_FACTOR, GREATEST_FACTOR = 0.1, 10.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after a failure, up to `max_retries` times: so there are up to `max_retries + 1` calls.

    The first retry comes `delay` after the failure, each further one `factor` times as long after its own, and none
    longer than `max_delay`. `jitter` is the part of each delay that chance may leave out (0.5: between half of it and
    all), so that many that failed together do not come back together. Durations are kept in seconds.
    """

    max_retries: int
    """0 to 1000. Not the number of calls: that is one more."""
    delay: Duration = 0.0
    """Up to an hour."""
    factor: float = 1.0
    """0.1 to 10."""
    max_delay: Duration = LONGEST_MAX_DELAY
    """Not shorter than `delay`, and a day at most."""
    jitter: float = 0.0
    """0 to 1."""

    def __post_init__(self) -> None:
        if type(self.max_retries) is not int or not 0 <= self.max_retries <= MOST_RETRIES:
            raise ValidationError(
                f"max_retries: {shown(self.max_retries)} must be a whole number from 0 to {MOST_RETRIES}."
            )
        delay, longest = seconds(self.delay, "delay"), seconds(self.max_delay, "max_delay")
        if delay > LONGEST_DELAY:
            raise ValidationError(f"delay: {shown(self.delay)} must be an hour at most.")
        if not delay <= longest <= LONGEST_MAX_DELAY:
            raise ValidationError(
                f"max_delay: {shown(self.max_delay)} must be a day at most, and not shorter than delay ({delay:g} s)."
            )
        factor = _number(self.factor, "factor", LEAST_FACTOR, GREATEST_FACTOR)
        jitter = _number(self.jitter, "jitter", 0.0, 1.0)
        for name, value in (("delay", delay), ("max_delay", longest), ("factor", factor), ("jitter", jitter)):
            object.__setattr__(self, name, value)

    def to_json(self) -> str:
        """As it is kept with a run; `from_json` is its inverse."""
        return to_json(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Retry:
        """The retry of this text; `Outdated` if it is none."""
        try:
            return cls(**from_json(text))
        except (TypeError, ValueError) as error:
            raise Outdated(f"retry: what is stored with the run can't be read: {error}") from error


def _number(value: object, what: str, least: float, greatest: float) -> float:
    if type(value) not in (int, float) or not least <= value <= greatest or math.isnan(value):  # type: ignore[operator, arg-type]
        raise ValidationError(f"{what}: {shown(value)} must be a number from {least:g} to {greatest:g}.")
    return float(value)  # type: ignore[arg-type]
