"""How the user's function ended, in the words of the lifecycle."""

from __future__ import annotations

import logging
from typing import NamedTuple, cast

from ..basis.errors import CancelRun, NonRetryable, TimedOut
from ..basis.failures import shown_traceback
from ..basis.text import clean, error_text, fit
from ..model.run import RunRow
from ..rules.lifecycle import Cause

_log = logging.getLogger("holdfast.runs")
_LEVELS = {Cause.FAIL: logging.WARNING, Cause.TIME_OUT: logging.WARNING, Cause.RETRY: logging.INFO}

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
    broke: str | None = None
    """Where the function broke, for the log."""


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


def where_it_broke(outcome: Outcome, error: BaseException) -> str | None:
    """For the log, the traceback of a failure that somebody wants to have there; the error itself need not be kept."""
    level = _LEVELS.get(outcome.cause)
    if level is None or not _log.isEnabledFor(level):
        return None
    return shown_traceback(error) or error_text(error)


def log_failure(run: RunRow, outcome: Outcome) -> None:
    """Tell the log of an end, or a retry, that is durable: the database keeps no traceback of a run."""
    if outcome.broke is not None:
        again = outcome.cause is Cause.RETRY
        what = f"retried in {outcome.delay / 1e6:g} s" if again else "it has failed"
        where = outcome.broke.rstrip()
        level = _LEVELS[outcome.cause]
        _log.log(level, "run %s of %s, attempt %d: %s\n%s", run.id, run.job_name, run.attempt + 1, what, where)


def alone(error: BaseException) -> BaseException:
    """The one error of a group of one: a TaskGroup wraps whatever a branch raises, also a `CancelRun`."""
    # Not isinstance: it asks the error for its `__class__`, which may be a property that raises.
    while issubclass(type(error), BaseExceptionGroup) and len(cast("BaseExceptionGroup", error).exceptions) == 1:
        error = cast("BaseExceptionGroup", error).exceptions[0]
    return error
