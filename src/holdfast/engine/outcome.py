"""How the user's function ended, in the words of the lifecycle."""

from __future__ import annotations

from typing import NamedTuple

from ..basis.errors import CancelRun, NonRetryable, TimedOut
from ..basis.text import clean
from ..rules.lifecycle import Cause

_LONGEST_TYPE = 255


class Outcome(NamedTuple):
    """What the run comes to."""

    cause: Cause
    output: str | None = None
    error: str | None = None
    error_type: str | None = None


def outcome_of(error: BaseException) -> Outcome:
    """What an exception out of the user's function means."""
    try:
        return _meant(_alone(error))
    except Exception:  # its every attribute may be a hook that raises; its run must end all the same
        kind = clean(type(error).__name__, _LONGEST_TYPE)
        return Outcome(Cause.FAIL, error=clean(error) or kind, error_type=kind)


def _meant(error: BaseException) -> Outcome:
    if isinstance(error, CancelRun):
        return Outcome(Cause.CANCEL_ITSELF, error=clean(error) or None)
    if isinstance(error, TimedOut):
        return Outcome(Cause.TIME_OUT, error=clean(error) or "The run timed out", error_type="TimedOut")
    kind = error.kind if isinstance(error, NonRetryable) and error.kind else type(error).__qualname__
    kind = clean(kind, _LONGEST_TYPE)
    return Outcome(Cause.FAIL, error=clean(error) or kind, error_type=kind)


def _alone(error: BaseException) -> BaseException:
    """The one error of a group of one: a TaskGroup wraps whatever a branch raises, also a `CancelRun`."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
