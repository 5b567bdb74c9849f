"""Every error that Holdfast raises.

    HoldfastError
     ├─ DefinitionError          a job, step or option was written wrongly (raised where it is written)
     ├─ ValidationError    400   input that was refused before anything was written
     │   └─ PayloadTooLarge 413
     ├─ NotFoundError      404
     ├─ ConflictError      409
     ├─ StoreError         503   the database can't serve us now
     │   ├─ StoreUnavailable     locked, full, read-only, gone: trying later may help
     │   ├─ StoreClosed          this app was stopped
     │   ├─ SchemaError          the tables are missing, older or newer than this code
     │   └─ Overloaded           too much is waiting to be written
     ├─ WouldDeadlock            a wait that could never end, refused
     ├─ RunFailed / RunTimedOut / RunCancelled     how the awaited run ended
     └─ inside a run
         ├─ ChildrenFailed       runs below this one that did not complete
         ├─ StepFailed           a step's error whose own class can't be rebuilt
         ├─ NotKept              a value that would not come back as it went in
         ├─ AmbiguousStep        one step name in two branches
         ├─ StepChanged          other arguments under a saved name
         └─ Outdated             stored data that today's code can't read

    Retryable, NonRetryable, TimedOut, CancelRun    raised by *your* code to say how the run goes on

The docstring of a class is its default message. `status` is the HTTP status that the error maps to.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from .text import clean


class HoldfastError(Exception):
    """Holdfast could not do what was asked."""

    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().split("\n")[0])

    @property
    def message(self) -> str:
        """The text of the error."""
        return str(self.args[0])

    def __str__(self) -> str:
        return self.message


class DefinitionError(HoldfastError, TypeError):
    """This definition can't be used."""


class ValidationError(HoldfastError, ValueError):
    """The input was refused; nothing was written."""

    status = 400


class PayloadTooLarge(ValidationError):
    """The value is larger than the configured limit; nothing was written."""

    status = 413


class NotFoundError(HoldfastError, LookupError):
    """There is no such run. It may have been deleted or purged."""

    status = 404


class ConflictError(HoldfastError):
    """The run is not in a state that allows this."""

    status = 409


class StoreError(HoldfastError):
    """The database can't serve us."""

    status = 503


class StoreUnavailable(StoreError):
    """The database can't serve us now; what was asked has not been acknowledged. Try again later."""


class StoreClosed(StoreError):
    """This app has been stopped; start it again to use it."""


class SchemaError(StoreError):
    """The database has no Holdfast tables, or tables that this version can't use. Run `holdfast migrate`."""


class Overloaded(StoreError):
    """Too much is waiting to be written. Await some of the replies before submitting more."""


class WouldDeadlock(HoldfastError, RuntimeError):
    """This wait could never end."""


class RunFailed(HoldfastError):
    """The run failed."""

    def __init__(self, message: str, run_id: str = "", error_type: str | None = None) -> None:
        super().__init__(message)
        self.args: tuple[Any, ...] = (
            message,
            run_id,
            error_type,
        )  # by which a run above it has the same error when it is replayed
        self.run_id = run_id
        self.error_type = error_type
        """Name of the exception class that ended the run, as it was stored."""


class RunTimedOut(RunFailed):
    """The run timed out."""


class RunCancelled(HoldfastError):
    """The run was cancelled."""

    status = 409

    def __init__(self, message: str, run_id: str = "") -> None:
        super().__init__(message)
        self.args: tuple[Any, ...] = (message, run_id)
        self.run_id = run_id


class ChildrenFailed(HoldfastError):
    """Runs below this one did not complete."""

    def __init__(self, message: str, run_ids: list[str]) -> None:
        super().__init__(message)
        self.args: tuple[Any, ...] = (message, run_ids)
        self.run_ids: list[str] = run_ids
        """Of those without an output, at most a hundred."""


class StepFailed(HoldfastError):
    """A step failed with an error whose class can't be rebuilt from what was stored."""

    def __init__(self, type: str, message: str) -> None:
        Exception.__init__(self, type, message)
        self.type = type

    @property
    def message(self) -> str:
        return str(self.args[1])

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}" if self.args[1] else str(self.args[0])


class NotKept(HoldfastError):
    """A value would not come back from the database as it went in, so it was not saved."""

    def __init__(
        self, reason: str, what: str = "value", path: str = "$", before: object = None, after: object = None
    ) -> None:
        # All of it in `args`, as text: this error is saved as the failure of its step and raised again on replay.
        self.reason: str = str(_short(reason))
        self.what: str = str(_short(what))
        self.path: str = str(_short(path))
        self.before: str | None = _short(before)
        self.after: str | None = _short(after)
        Exception.__init__(self, self.reason, self.what, self.path, self.before, self.after)

    @property
    def message(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.what}: {self.path}: {self.reason}"


class AmbiguousStep(HoldfastError):
    """One step name is used by two branches of a run; give each its own name."""


class StepChanged(HoldfastError):
    """A saved step is now called with other arguments."""


class Outdated(HoldfastError):
    """Stored data can't be read by today's code."""


class WorkerCrashed(HoldfastError):
    """The run's workers died again and again without progress."""


class Retryable(Exception):
    """Raise it in a job: this error may be tried again, if the job has retries."""


class NonRetryable(Exception):
    """Raise it in a job: fail at once, whatever retries are left. `kind` is kept as the error's type."""

    def __init__(self, message: str = "", kind: str | None = None) -> None:
        # Both in `args`: out of a step, this error is saved and raised again on replay.
        super().__init__(message, *(() if kind is None else (kind,)))
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])


class TimedOut(Exception):
    """Raise it in a job: end this attempt as timed out."""


class CancelRun(Exception):
    """Raise it in a job: end the run as cancelled."""


def _short(value: object) -> str | None:
    if value is None:
        return None
    try:
        # Not isinstance: it asks the value for its `__class__`, which may be a property that raises.
        text = str.__str__(cast("str", value)) if issubclass(type(value), str) else repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    # Cut before it is cleaned: what was cleaned once must stay as it is when the error is made again.
    return clean(text[:1000])
