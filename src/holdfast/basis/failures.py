"""Exceptions that survive: a job sees the same error when a step fails and when the failure is replayed.

An exception is stored as the name of its class, its args, its message and its traceback. It comes back as its own
class if that class is already imported and `cls(*args)` gives the same exception; else as `StepFailed` with the
name and the message. Which of the two is decided when it is stored, by rebuilding it once, and the job gets the
rebuilt one at once. Nothing is imported by name, and no attribute hook of a module or class is called: a hostile
name finds nothing that `vars()` does not show.
"""

from __future__ import annotations

import sys
import traceback
import types
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import from_json, to_json

from .errors import Outdated, StepFailed
from .exact import difference
from .text import clean, error_text, fit, fit_end
from .values import shape_of

#: Of a traceback the end tells where it broke; 8 KiB are some 80 frames.
LONGEST_TRACEBACK = 8192
LONGEST_ARGS = 65536
#: What one try of several has failed with; the whole error is kept with the step.
LONGEST_TRY = 2048
#: All of it as it is stored, in bytes. Enough for message (`text.LONGEST`), traceback and args of full length, unless
#: JSON has to write much of them in another way.
LONGEST_ERROR = 160 * 1024
_MOST_FRAMES = 40
_MOST_CAUSES = 8


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as it is stored."""

    type: str
    """`module:qualname` of the class."""
    message: str
    args: str | None
    """The stored text of its args; None if the class can't be rebuilt from them."""
    traceback: str | None

    @property
    def size(self) -> int:
        """Bytes of its JSON."""
        return len(to_json(asdict(self)))

    @property
    def short_type(self) -> str:
        """The name of the class without its module, e.g. `ValueError`, `Account.Declined`."""
        return self.type.rpartition(":")[2]

    def to_json(self) -> str:
        """One JSON text; `from_json` is its inverse."""
        return to_json(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Failure:
        """The failure of this text; `Outdated` if it is none."""
        try:
            stored = from_json(text)
            fields = [stored[name] for name in ("type", "message", "args", "traceback")]
        except Exception as error:
            raise Outdated(f"error: the stored text can't be read: {clean(error, 500)}") from None
        if not all(isinstance(field, str) for field in fields[:2]) or not all(
            field is None or isinstance(field, str) for field in fields[2:]
        ):
            raise Outdated("error: the stored text is not that of an error")
        return cls(*fields)


def failed_text(error: BaseException | Failure) -> str:
    """How a try failed, in a line or a few: `ValueError: no such thing`, cut at `LONGEST_TRY` bytes."""
    if isinstance(error, BaseException):
        return fit(error_text(error, LONGEST_TRY), LONGEST_TRY)
    return fit(f"{error.short_type}: {error.message}" if error.message else error.short_type, LONGEST_TRY)


def keep_failure(error: Exception) -> tuple[Failure, Exception]:
    """What to store of this exception, and the exception that the job shall see: now, and at every replay."""
    kind = type(error)
    failure = Failure(
        type=clean(f"{kind.__module__}:{kind.__qualname__}", 500),
        message=fit(error),
        args=None,
        traceback=shown_traceback(error),
    )
    while failure.size > LONGEST_ERROR:
        less = fit(failure.message, len(failure.message.encode()) // 2)
        shorter = failure.traceback and fit_end(failure.traceback, len(failure.traceback.encode()) // 2)
        failure = Failure(failure.type, less, None, shorter)
    try:
        args = shape_of().keep(_constructor_args(error), "args", compare_bytes=None).text
        rebuilt = _rebuild(failure.type, args)
    except Exception:
        args, rebuilt = "", None
    # Args of any size would make a row of any size; no handler looks at so much of an error.
    if rebuilt is not None and len(args.encode()) <= LONGEST_ARGS and _same(error, rebuilt):
        whole = Failure(failure.type, failure.message, args, failure.traceback)
        if whole.size <= LONGEST_ERROR:
            return whole, rebuilt
    return failure, StepFailed(failure.short_type, failure.message)


def load_failure(failure: Failure) -> Exception:
    """The exception that `keep_failure` gave to the job; `StepFailed` if today's code has no such class."""
    if failure.args is not None:
        try:
            rebuilt = _rebuild(failure.type, failure.args)
        except Exception:
            rebuilt = None
        if rebuilt is not None:
            return rebuilt
    return StepFailed(failure.short_type, failure.message)


def _constructor_args(error: Exception) -> tuple[Any, ...]:
    if isinstance(error, OSError):
        # OSError keeps its file names out of `args`, but pickle's protocol knows the full list.
        return tuple(OSError.__reduce__(error)[1])
    return error.args


def _rebuild(name: str, args: str) -> Exception | None:
    cls = _imported_class(name)
    values = shape_of().load(args)
    if cls is None or type(values) is not tuple:
        return None
    rebuilt = cls(*values)
    return rebuilt if type(rebuilt) is cls else None


def _imported_class(name: str) -> type[Exception] | None:
    """The exception class of this name, if a module that is already imported holds it in plain sight."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    if not isinstance(found, types.ModuleType):
        return None
    # object.__getattribute__: a lazy module imports things when it is merely asked for an attribute.
    found = object.__getattribute__(found, "__dict__").get(qualname.partition(".")[0])
    for part in qualname.split(".")[1:]:
        found = type.__getattribute__(found, "__dict__").get(part) if isinstance(found, type) else None
    if not isinstance(found, type) or Exception not in type.__getattribute__(found, "__mro__"):
        return None
    return found


def _same(error: Exception, rebuilt: Exception) -> bool:
    try:
        return (
            type(error) is type(rebuilt)
            and str(error) == str(rebuilt)
            and _equal(error.args, rebuilt.args)
            and _equal(_attributes(error), _attributes(rebuilt))
        )
    except KeyboardInterrupt:
        raise
    except BaseException:  # a SystemExit out of `__str__` is no reason to stop, either
        return False


def _equal(before: Any, after: Any) -> bool:
    opaque: list[Any] = []
    return difference(before, after, opaque) is None and not opaque


def _attributes(error: Exception) -> dict[str, Any]:
    # Notes are commentary: they go into the traceback and make no other exception of it.
    return {name: value for name, value in vars(error).items() if name != "__notes__"}


def shown_traceback(error: BaseException) -> str | None:
    """Its last frames and what led to it, at most `LONGEST_TRACEBACK` bytes; None if it can't be shown."""
    try:
        return _traceback(error)
    except Exception:  # an error may have hooks on its every attribute
        return None


def _traceback(error: BaseException) -> str:
    """The last frames of the error and of what led to it, oldest first.

    Written by hand: `traceback` formats a whole chain of causes however long, and every message in full.
    """
    parts: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    link = ""
    while cause is not None and id(cause) not in seen and len(seen) < _MOST_CAUSES:
        seen.add(id(cause))
        parts.append(_own_traceback(cause) + link)
        if cause.__cause__ is not None:
            cause, link = cause.__cause__, "\nThe above exception was the direct cause of the following exception:\n\n"
        else:
            cause = None if cause.__suppress_context__ else cause.__context__
            link = "\nDuring handling of the above exception, another exception occurred:\n\n"
    if cause is not None:
        parts.append("(earlier causes left out)\n\n")
    return fit_end(clean("".join(reversed(parts)), sys.maxsize), LONGEST_TRACEBACK)


def _own_traceback(error: BaseException) -> str:
    lines = []
    try:
        if error.__traceback__ is not None:
            lines = ["Traceback (most recent call last):\n"]
            lines += traceback.format_list(traceback.extract_tb(error.__traceback__, limit=-_MOST_FRAMES))
    except Exception:  # a traceback of generated code may have no readable source; the error itself goes on
        lines.append("  (frames can't be shown)\n")
    lines.append(f"{error_text(error, 1000)}\n")
    notes = getattr(error, "__notes__", None)
    lines += [f"{clean(note, 1000)}\n" for note in (notes if isinstance(notes, list) else [])[:10]]
    if isinstance(error, BaseExceptionGroup):
        lines += [f"  + {error_text(member, 1000)}\n" for member in error.exceptions[:10]]
    return "".join(lines)
