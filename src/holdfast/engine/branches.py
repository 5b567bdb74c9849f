"""What tells the steps and triggers of a run apart, in the same way in every execution.

A step's key is its name and the how-manieth use of it. Uses are counted within one *branch* (a task of the event loop,
or a thread), at the moment when the step is *asked for*: across branches, and after that moment, the order is chance,
and a replay would give one the value of another. So a name belongs to the branch that used it first, and two at
once are refused.

A step inside the body of another is named after that one (`outer > inner`): the body does not run again once its step
is saved, and what is counted inside it must not depend on that. A retry of the outer one is another body, with steps of
its own (`outer (try 2) > inner`).
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import Any, NamedTuple

from ..basis.errors import AmbiguousStep, ValidationError
from ..basis.text import clean
from ..model.step import StepKey
from .context import current_step, current_try

LONGEST_NAME = 255


class Place(NamedTuple):
    """The key of a step that was asked for, or why it can't have one."""

    key: StepKey
    refusal: Exception | None = None


def here() -> Any:
    """The branch that is running: a task of the event loop, or a thread."""
    try:
        return asyncio.current_task() or threading.current_thread()
    except RuntimeError:
        return threading.current_thread()


class Branches:
    """The names and numbers that one execution has given out. Any thread."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self.main: Any = None
        """The branch of the job's function itself."""
        self._owners: dict[str, Any] = {}
        self._occurrences: dict[str, int] = {}
        self._busy: set[str] = set()
        self._triggered: dict[tuple[str, str], int] = {}

    def place(self, name: str) -> Place:
        """The place of a step that is asked for now. Never raises: whoever awaits the step gets the refusal."""
        try:
            name = _full_name(name)
        except ValidationError as error:
            return Place(StepKey("", 0), error)
        caller = here()
        if self._owners.setdefault(name, caller) is not caller:
            return Place(StepKey(name, 0), self._ambiguous(name))
        occurrence = self._occurrences.get(name, 0)
        self._occurrences[name] = occurrence + 1
        return Place(StepKey(name, occurrence))

    def enter(self, place: Place) -> None:
        """The step begins; raises what stands against it."""
        if place.refusal is not None:
            raise place.refusal
        if place.key.name in self._busy:
            raise self._ambiguous(place.key.name)
        self._busy.add(place.key.name)

    @property
    def busy(self) -> int:
        """Steps that have begun and are not over."""
        return len(self._busy)

    def leave(self, place: Place) -> None:
        """The step is over, saved or not."""
        self._busy.discard(place.key.name)

    def _ambiguous(self, name: str) -> AmbiguousStep:
        return AmbiguousStep(
            f"Step {name!r} of run {self._run_id} is used by two branches at once, so a replay could not tell their "
            'values apart. Give each its own name, e.g. f"fetch-{id}" or @app.step(key=…).'
        )

    def trigger_key(self, job_name: str, input_text: str) -> str | None:
        """The idempotency key of a trigger in the run's own code, so that a replay doesn't trigger twice.

        None inside a step: there the step's checkpoint is what keeps it from happening again. In the run's main
        branch triggers of a job are numbered; in another one, whose place is chance, they go by their input.
        """
        if current_step.get() is not None:
            return None
        branch = "" if here() is self.main else hashlib.sha256(input_text.encode()).hexdigest()[:32]
        number = self._triggered.get((branch, job_name), 0)
        self._triggered[branch, job_name] = number + 1
        return f"{self._run_id}:{branch}:{number}"


def check_name(name: object, what: str) -> str:
    """The name of something that a run does; `ValidationError` beginning with `what` for what can't be one."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        shown = repr(clean(name, 100)) if isinstance(name, str) else type(name).__name__
        raise ValidationError(f"{what}: {shown} can't be one. Use 1 to {LONGEST_NAME} printable characters.")
    return str.__str__(name)


def _full_name(name: object) -> str:
    name = check_name(name, "step name")
    if (outer := current_step.get()) is None:
        return name
    if (tries := current_try.get()) is not None and tries[0] == outer:
        # What an earlier try has saved inside is that one's.
        outer = f"{outer} (try {tries[1] + 1})"
    if len(outer) + len(name) + 3 > LONGEST_NAME:
        raise ValidationError(f"step name: {clean(outer, 100)!r} > {clean(name, 100)!r} is too long together.")
    return f"{outer} > {name}"
