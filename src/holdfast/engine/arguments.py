"""What is given to the verbs of the app, checked: each gives the value, or raises `ValidationError` naming it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, cast, get_args

from ..basis.clock import from_datetime
from ..basis.durations import Duration, micros
from ..basis.errors import ValidationError
from ..basis.text import error_text, shown, storable
from ..model.retry import Retry
from ..model.run import Coalesce, RunStatus

#: SQLite and PostgreSQL hold more; nobody needs it, and JavaScript must read it exactly.
_HIGHEST_PRIORITY = 2**31 - 1


def checked_text(value: object, what: str) -> str:
    """A text that every database can look for."""
    if not isinstance(value, str) or "\0" in value or storable(value) is not None:
        raise ValidationError(f"{what}: {shown(value)} is not a usable string.")
    return value


def checked_count(value: object, what: str) -> int:
    """A count that every database and JavaScript can hold."""
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValidationError(f"Invalid {what}: must be a non-negative integer.")
    return value


def checked_timeout(value: object) -> float | None:
    """Seconds from none to a year; None for as long as it takes."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValidationError(f"timeout: {shown(value)} must be seconds, or None for as long as it takes.")
    # A time that is over is no time; a year is longer than any process waits, and no timer overflows at it.
    return None if value == float("inf") else float(min(max(value, 0), 366 * 86400))


def several(given: Any, alone: tuple[type, ...], what: str) -> list[Any]:
    """What was given alone, as a list, or as nothing."""
    if given is None or isinstance(given, alone):
        return [] if given is None else [given]
    if not isinstance(given, Iterable):
        raise ValidationError(f"{what}: {type(given).__name__} is none of: a name, several names, None.")
    return list(given)


def checked_statuses(status: object) -> tuple[str, ...]:
    """The names of statuses that exist."""
    given = several(status, (str,), "status")
    known = [str(one) for one in RunStatus]
    for one in given:
        if one not in known:
            raise ValidationError(
                f"Invalid status: {one if isinstance(one, str) else shown(one)}. Must be one of: {', '.join(known)}"
            )
    return tuple(str(one) for one in given)


def checked_limit(limit: object) -> int:
    """A number of runs, at least one."""
    if type(limit) is not int or not 1 <= limit <= _HIGHEST_PRIORITY:
        raise ValidationError(f"limit: {shown(limit)} must be a whole number above 0.")
    return limit


def checked_flag(flag: object, what: str) -> bool:
    """True or False, and nothing that could be taken for one."""
    if not isinstance(flag, bool):
        raise ValidationError(f"{what}: {shown(flag)} must be True or False.")
    return flag


def checked_coalesce(coalesce: object) -> Coalesce:
    """One of the two words."""
    for valid in get_args(Coalesce):
        if isinstance(coalesce, str) and coalesce == valid:
            return cast("Coalesce", valid)
    valid_ones = ", ".join(f'"{valid}"' for valid in get_args(Coalesce))
    raise ValidationError(f"Invalid coalesce value: {shown(coalesce)}. Valid values: {valid_ones}.")


def checked_priority(priority: object) -> int:
    """A whole number of 32 bits."""
    if type(priority) is not int or not -_HIGHEST_PRIORITY - 1 <= priority <= _HIGHEST_PRIORITY:
        raise ValidationError(f"priority: {shown(priority)} must be a whole number of at most 32 bits.")
    return priority


def checked_retry(retry: object) -> Retry:
    """A `Retry`."""
    if not isinstance(retry, Retry):
        raise ValidationError(f'retry: {shown(retry)} is no Retry. Write e.g. Retry(3, delay="10s", factor=2).')
    return retry


def checked_limit_of_time(limit: Duration, what: str) -> int:
    """Microseconds, at least one."""
    if (time := micros(limit, what)) <= 0:
        raise ValidationError(f"{what}: {shown(limit)} must be longer than 0 seconds.")
    return time


def checked_moment(when: object, what: str = "run_at") -> int:
    """Microseconds since 1970."""
    if not isinstance(when, datetime):
        raise ValidationError(f"{what}: {type(when).__name__} is not a datetime.")
    try:
        return from_datetime(when)
    except Exception as error:  # also what a time zone of the user's raises
        raise ValidationError(f"{what}: {error_text(error, 200)}; no such moment can be kept.") from error
