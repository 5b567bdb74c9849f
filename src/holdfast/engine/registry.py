"""The jobs of an app, by name and by key."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..basis.errors import DefinitionError, NotFoundError, ValidationError
from ..basis.text import shown, storable
from ..model.retry import Retry
from .family import ChildrenShape
from .fitting import described, never_fits
from .schema import Signature

#: Names go into URLs, files and terminals: what they may hold is the same everywhere.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,254}", re.ASCII)
_LABEL_KEY = re.compile(r"[A-Za-z0-9\-_./]{1,64}", re.ASCII)
LONGEST_LABEL = 255
LONGEST_KEY = 255
MOST_LABELS = 32


class Outputs(Protocol):
    """How outputs are read."""

    def load(self, text: str, what: str = "value") -> Any: ...

    def json_schema(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class JobDefinition:
    """A job as it was written: the function and what was said about it."""

    name: str
    key: str
    """Its name in Python, by which `app.jobs.<key>` finds it."""
    fn: Callable[..., Any]
    signature: Signature
    queue: str = "default"
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    """Leased runs of it in the whole database at once."""
    retry: Retry | None = None
    timeout: int | None = None
    """Microseconds that one attempt may run."""
    deadline: int | None = None
    """Microseconds from the trigger to the end."""
    validate: Callable[..., Any] | None = None
    """Its own check of the input. See `validation`."""

    hold_key_while_waiting: bool = False
    """A run of it that is suspended keeps its concurrency key."""
    delay: int = 0
    """Microseconds from the trigger to the first attempt."""
    finalize: JobDefinition | None = None
    """What a parent does when all runs below it have ended: its output is the parent's."""
    parts: tuple[JobDefinition, ...] = ()
    """Jobs that are registered with it, because it puts runs of them below its own."""

    @property
    def output(self) -> Outputs:
        """How its output is read."""
        if self.finalize is not None:
            return self.finalize.output
        return ChildrenShape(self.signature.output) if self.signature.is_parent else self.signature.output

    def resolve(self) -> None:
        """Look up all that its annotations name, and what has to fit; `DefinitionError` if that can't be done."""
        self.signature.resolve()
        if (finalize := self.finalize) is None:
            return
        if not self.signature.is_parent:
            raise DefinitionError(f"{self.name}: a job with a finalize returns Children; write -> Children[…].")
        (name, takes, _), *_ = finalize.signature.inputs()
        gives = self.signature.output.annotation
        if never_fits(gives, takes):
            raise DefinitionError(
                f"{finalize.name} takes {name}: {described(takes)}, and {self.name} gives {described(gives)}."
            )

    @property
    def origin(self) -> tuple[str, str]:
        """Where the function was defined."""
        return getattr(self.fn, "__module__", ""), getattr(self.fn, "__qualname__", "")

    @property
    def described_origin(self) -> str:
        """The same in words; a job that is made of others has no function."""
        module, name = self.origin
        return f"{module}.{name}" if name else "made by app.sequence, app.loop or app.sleeping"


def check_if_known(jobs: Iterable[JobDefinition], check: Callable[[], object]) -> None:
    """At once, where the mistake is, unless the annotations name what is defined later: then when a worker starts."""
    try:
        for job in jobs:
            job.signature.resolve()
    except DefinitionError:
        return
    check()


class Registry:
    """Which jobs this app knows."""

    def __init__(self) -> None:
        self._by_name: dict[str, JobDefinition] = {}
        self._by_key: dict[str, JobDefinition] = {}

    def add(self, job: JobDefinition, *, key: str | None = None, replace: bool) -> JobDefinition:
        """Register a job. The same definition twice is fine; another one under a used name is not.

        With `replace`, a function defined again at the same place (a notebook cell, a reloaded module) takes the
        place of the old one, with a warning.
        """
        known = self._by_name.get(job.name)
        if known is not None and known.fn is not job.fn:
            again = known.origin == job.origin
            if not (again and replace):
                advice = (
                    "It was defined again while a worker runs: stop the app first."
                    if again
                    else f"It is {known.described_origin}, this one is {job.described_origin}. "
                    "Give one of them another name: @app.job(name=…)."
                )
                raise DefinitionError(f"Job {job.name!r} is already registered with a different definition. {advice}")
            warnings.warn(f"Job {job.name!r} was defined again; the new definition counts.", stacklevel=5)
            for used, old in self._by_key.items():
                if old is known:
                    self._by_key[used] = job
        self._by_name[job.name] = job
        self._by_key[key or job.key] = job
        for other in (job.finalize, *job.parts):
            if other is not None:
                self.add(other, replace=replace)
        return job

    def get(self, name: str) -> JobDefinition | None:
        """The job of this name, or, if there is none, of this key."""
        return self._by_name.get(name) or self._by_key.get(name)

    def need(self, name: str) -> JobDefinition:
        """The same, or `NotFoundError`."""
        job = self.get(name)
        if job is None:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise NotFoundError(f"Unknown job: {name}. Registered: {known}.")
        return job

    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def limits(self) -> tuple[tuple[str, int], ...]:
        """The jobs that have a limit, with it."""
        return tuple((name, job.limit) for name, job in self._by_name.items() if job.limit is not None)

    def keys(self) -> tuple[str, ...]:
        return tuple(self._by_key)

    def all(self) -> list[JobDefinition]:
        return list(self._by_name.values())


def checked_name(name: object, what: str) -> str:
    """The name, if it may be one; otherwise `ValidationError` saying what may."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValidationError(
            f"{what}: {shown(name)} can't be a name. "
            "Use 1 to 255 of A-Z a-z 0-9 _ . : / - and begin with a letter or digit."
        )
    return name


def checked_key(key: object, what: str) -> str | None:
    """The key, if it can be kept exactly; an empty one is none."""
    if key is None:
        return None
    if not isinstance(key, str):
        raise ValidationError(f"{what}: {type(key).__name__} is not a key. Give a string.")
    if not key:
        return None
    if len(key.encode("utf-8", "surrogatepass")) > LONGEST_KEY:
        raise ValidationError(f"{what}: longer than {LONGEST_KEY} bytes. Use a hash of it.")
    if (reason := storable(key)) is not None:
        raise ValidationError(f"{what}: {reason}.")
    return key


def checked_labels(labels: object) -> dict[str, str]:
    """The labels, if they can be kept and filtered by."""
    if not isinstance(labels, Mapping):
        raise ValidationError(f"labels: {type(labels).__name__} is not a mapping of strings to strings.")
    if len(labels) > MOST_LABELS:
        raise ValidationError(f"labels: {len(labels)} are too many; {MOST_LABELS} at most.")
    for key, value in labels.items():
        if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key):
            raise ValidationError(
                f"Invalid label key {shown(key)}: must contain only alphanumeric characters, dashes, underscores, "
                "dots, and slashes (1 to 64 of them)."
            )
        if not isinstance(value, str):
            raise ValidationError(f"labels: {key}: {type(value).__name__} is not a string.")
        if len(value) > LONGEST_LABEL:
            raise ValidationError(f"labels: {key}: longer than {LONGEST_LABEL} characters.")
        if (reason := storable(value)) is not None:
            raise ValidationError(f"labels: {key}: {reason}.")
    return dict(labels)
