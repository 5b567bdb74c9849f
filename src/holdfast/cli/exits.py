"""Exit codes, and the one line that an error becomes.

The codes are part of the interface: scripts branch on them.
"""

from __future__ import annotations

import os
import re
import sys
import traceback

from ..basis.errors import (
    ConflictError,
    DefinitionError,
    HoldfastError,
    NotFoundError,
    StoreError,
    ValidationError,
)
from ..basis.text import error_text
from ..model.run import RunStatus
from .far import who_is_said
from .terminal import plain_line

OK = 0
FAILED = 1
USAGE = 2
CANCELLED = 3
NOT_FOUND = 4
NO_DATABASE = 5
CONFLICT = 6
INTERRUPTED = 130

EPILOG = (
    "Exit codes: 0 done or run completed · 1 run failed or timed out · 2 wrong usage · 3 run cancelled · "
    "4 no such run or job · 5 database or server can't be used · 6 the run's status does not allow it · 130 interrupted"
)

_CODES: list[tuple[type[HoldfastError], int]] = [
    (NotFoundError, NOT_FOUND),
    (ConflictError, CONFLICT),
    (StoreError, NO_DATABASE),
    (ValidationError, USAGE),
    (DefinitionError, USAGE),
]
# Up to the last @ of the word: a password may hold one itself. The example of our own messages has none.
_PASSWORD = re.compile(r"(?!://user:password@host/database\b)(://[^\s:@/'\"]*):[^\s'\"]*@")


def of_run(status: RunStatus) -> int:
    """The exit code that tells how a run ended."""
    if status is RunStatus.COMPLETED:
        return OK
    return CANCELLED if status is RunStatus.CANCELLED else FAILED


def of_runs(statuses: list[RunStatus], *, gone: bool) -> int:
    """The exit code that tells how several ended: the worst counts. `gone`: some were deleted, and nobody knows."""
    codes = {of_run(status) for status in statuses}
    return FAILED if FAILED in codes else NOT_FOUND if gone else CANCELLED if CANCELLED in codes else OK


def of_error(error: BaseException) -> int:
    """The exit code of an error."""
    if _answered(error) is not None:
        return NO_DATABASE  # the run that a script asks for has not failed: nobody told of it
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def _answered(error: BaseException) -> int | None:
    """The HTTP status with which a server refused or failed; the errors of `holdfast.client` are not at hand here."""
    answered = getattr(error, "answered", None)
    return answered if isinstance(answered, int) else None


def masked(text: str) -> str:
    """The text with the passwords of its URLs replaced by `***`."""
    return _PASSWORD.sub(r"\1:***@", text)


def complain(error: BaseException) -> int:
    """Write the error as one line on stderr; gives its exit code.

    A traceback is for who debugs Holdfast itself: HOLDFAST_DEBUG=1 shows it.
    """
    if os.environ.get("HOLDFAST_DEBUG"):
        traceback.print_exception(error)
    text = error.message if isinstance(error, HoldfastError) else error_text(error)
    if _answered(error) == 401:
        text = f"{text} ({who_is_said()})"
    sys.stderr.write(f"holdfast: {masked(plain_line(text, 2000))}\n")
    return of_error(error)
