"""A job's own validation: `@app.job(validate=check)`, beyond what the types of its parameters say.

`check` gets the arguments as the job will get them. It raises if they won't do. It may return other ones: of a job with
one parameter its new value, of a job with several a mapping by name of those that change; None leaves all as they are.

A plain function is called where the run is triggered, before anything is written, and what it returns is the input that
is written. An `async def` one is called by whoever executes the run, before the job's own function, once: what it came
to is kept as a step. It is never tried again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..basis.errors import CancelRun, DefinitionError, NotFoundError, TimedOut, ValidationError
from ..basis.text import clean, shown
from .calls import callee
from .registry import JobDefinition

if TYPE_CHECKING:
    from .execution import Execution

STEP = "(validate)"
"""The name under which the result of an async validation is kept."""

#: What says more than that the input is wrong.
_KEPT = (NotFoundError, TimedOut, CancelRun)


def checked_validate(fn: object) -> Callable[..., Any]:
    """The function; `DefinitionError` for what can't be called."""
    if not callable(fn):
        raise DefinitionError(f"validate: {shown(fn)} is not a function.")
    return fn


def asked_at_triggers(job: JobDefinition) -> bool:
    """Whether the job has a validation that is called before anything is written."""
    return job.validate is not None and not callee(job.validate).is_async


def encode_input(job: JobDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The text of a job's input, checked by its types and by its own function; `ValidationError` saying what is wrong.

    `NotFoundError` out of the function is raised as it is.
    """
    return _checked(job, job.signature.encode(args, kwargs))


def encode_object(job: JobDefinition, given: Mapping[str, Any]) -> str:
    """The same of input that came as a JSON object. Keys that nobody knows are dropped, unless a model forbids them."""
    return _checked(job, job.signature.encode_mapping(given))


def _checked(job: JobDefinition, text: str) -> str:
    if job.validate is None or not asked_at_triggers(job):
        return text
    values = job.signature.decode(text)
    try:
        given = job.validate(*values[0], **values[1])
        if hasattr(type(given), "__await__"):
            if inspect.iscoroutine(given):
                given.close()
            raise TypeError("validate= returned something to await; make it an `async def`")
    except NotFoundError:
        raise
    except Exception as error:
        raise _invalid(job, error) from error
    return text if given is None else _replaced(job, given, *values)


async def validated(
    execution: Execution, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for the job's function, after its async validation. Raises what the run fails with."""
    job = execution.job
    check = job.validate
    if check is None or not callee(check).is_async:
        return args, kwargs

    async def validate() -> str | None:
        try:
            given = await check(*args, **kwargs)
        except Exception as error:
            if issubclass(type(error), _KEPT):
                raise
            raise _invalid(job, error) from error
        return None if given is None else _replaced(job, given, args, kwargs)

    text = await execution.steps.run(execution.branches.place(STEP), validate, (), {})
    return (args, kwargs) if text is None else job.signature.decode(text)


def _replaced(job: JobDefinition, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The input with what was given in place of what was there."""
    names = job.signature.names
    if len(names) == 1:
        given = {names[0]: given}
    if not isinstance(given, Mapping) or not set(names).issuperset(given):
        what = f"one of {', '.join(names)}" if names else "nothing: the job has no parameters"
        raise ValidationError(
            f"Invalid input to job {job.name!r}: validate= returned {shown(given, 100)}. Return None, or a mapping of "
            f"new values by name ({what})."
        )
    values = {**dict(zip(names, args, strict=False)), **kwargs, **given}
    count = len(args)
    return job.signature.encode(tuple(values[name] for name in names[:count]), {n: values[n] for n in names[count:]})


def _invalid(job: JobDefinition, error: Exception) -> ValidationError:
    reason = clean(error, 2000) or clean(type(error).__name__, 200)
    return ValidationError(f"Invalid input to job {job.name!r}: {reason}")
