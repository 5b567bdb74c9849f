"""How the user's function ended, in the words of the lifecycle."""

from __future__ import annotations

from typing import NamedTuple, cast

from ..basis.errors import CancelRun, NonRetryable, TimedOut
from ..basis.text import clean, fit
from ..rules.lifecycle import Cause

_LONGEST_TYPE = 255


class Outcome(NamedTuple):
    """What the run comes to."""

    cause: Cause
    output: str | None = None
    error: str | None = None
    error_type: str | None = None
    delay: int = 0
    """Microseconds until the retry."""
    waiting_for: str | None = None
    """Of a run that is suspended."""


class Concluded(Exception):
    """Raised by what the engine composes of jobs: how the run ends, without a retry."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.error or "")
        self.outcome: Outcome = outcome


def outcome_of(error: BaseException) -> Outcome:
    """What an exception out of the user's function means."""
    try:
        return _meant(alone(error))
    except Exception:  # its every attribute may be a hook that raises; its run must end all the same
        kind = clean(type(error).__name__, _LONGEST_TYPE)
        return Outcome(Cause.FAIL, error=fit(error) or kind, error_type=kind)


def _meant(error: BaseException) -> Outcome:
    if isinstance(error, Concluded):
        return error.outcome
    if isinstance(error, CancelRun):
        return Outcome(Cause.CANCEL_ITSELF, error=fit(error) or None)
    if isinstance(error, TimedOut):
        return Outcome(Cause.TIME_OUT, error=fit(error) or "The run timed out", error_type="TimedOut")
    kind = error.kind if isinstance(error, NonRetryable) and error.kind else type(error).__qualname__
    kind = clean(kind, _LONGEST_TYPE)
    return Outcome(Cause.FAIL, error=fit(error) or kind, error_type=kind)


def alone(error: BaseException) -> BaseException:
    """The one error of a group of one: a TaskGroup wraps whatever a branch raises, also a `CancelRun`."""
    # Not isinstance: it asks the error for its `__class__`, which may be a property that raises.
    while issubclass(type(error), BaseExceptionGroup) and len(cast("BaseExceptionGroup", error).exceptions) == 1:
        error = cast("BaseExceptionGroup", error).exceptions[0]
    return error
