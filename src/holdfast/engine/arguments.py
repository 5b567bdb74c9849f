"""What is given to the verbs of the app, checked: each gives the value, or raises `ValidationError` naming it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..basis.errors import ValidationError
from ..basis.text import shown, storable
from ..model.run import RunStatus


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
