"""Whether something that failed is tried again, and when. The same for a step's retries and for a run's."""

from __future__ import annotations

from ..basis.chance import Chance
from ..basis.errors import (
    AmbiguousStep,
    CancelRun,
    DefinitionError,
    NonRetryable,
    NotFoundError,
    NotKept,
    Outdated,
    StepChanged,
    ValidationError,
)
from ..model.retry import Retry

#: What another try can't change: the user has said so, or it is about what is written in the code or stored.
_NEVER = (
    NonRetryable,
    CancelRun,
    NotKept,
    Outdated,
    AmbiguousStep,
    StepChanged,
    ValidationError,
    DefinitionError,
    NotFoundError,
)


def may_help(error: BaseException) -> bool:
    """Whether another try could end otherwise. What is no `Exception` is never tried again: it ends more than a try."""
    # By the type: an error may lie about its `__class__`, or raise when it is asked for it.
    kind = type(error)
    return issubclass(kind, Exception) and not issubclass(kind, _NEVER)


def delay_before(retry: Retry, number: int, chance: Chance) -> int:
    """Microseconds from a failure to the retry with this number, from 1.

    `delay × factor^(number - 1)`, never more than `max_delay`; of that, chance leaves out up to the part `jitter`.
    """
    delay, longest = float(retry.delay), float(retry.max_delay)  # type: ignore[arg-type]
    try:
        delay = min(delay * retry.factor ** (number - 1), longest)
    except OverflowError:
        delay = longest if delay else 0.0
    if retry.jitter:
        delay *= 1 - retry.jitter * chance()
    return round(delay * 1_000_000)
