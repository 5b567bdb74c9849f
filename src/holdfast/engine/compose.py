"""Jobs that are made of other jobs: one after the other, or one again and again.

Their runs have one run below them at a time. They do nothing themselves, and hold no slot while those go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Generic, TypeVar, get_args, get_origin

from ..basis.durations import Duration, micros
from ..basis.errors import DefinitionError, NotFoundError, RunCancelled, RunFailed, ValidationError
from ..basis.text import shown
from ..basis.values import MISSING, Shape, shape_of
from ..rules.lifecycle import Cause
from .call import Call, TriggerOptions
from .context import Step
from .family import Children, read
from .fitting import check_handover, described
from .outcome import Concluded, Outcome
from .registry import JobDefinition, Outputs, check_if_known
from .schema import Signature
from .validation import asked_at_triggers, encode_input

T = TypeVar("T")

NO_OPTIONS: TriggerOptions = TriggerOptions()

#: What is said of a run that has composed jobs below it and one of them without its output.
_FAILED = Cause.FINALIZE_FAILED


@dataclass(frozen=True)
class Done(Generic[T]):
    """Returned by the iteration of a loop that is the last one: what the loop has found."""

    value: T


@dataclass(frozen=True)
class LoopResult(Generic[T]):
    """What a loop came to: whether one of its iterations was `Done`, and then its value."""

    success: bool
    output: T | None = None


class Composed(Signature):
    """The signature of a job that is made of others: the input of one, and an output."""

    def __init__(
        self, first: Signature, output: Callable[[], Outputs], check: Callable[[], object] = lambda: None
    ) -> None:
        # Not that of the class above: there is no function to look at.
        self.takes_step: bool = True
        self.is_async: bool = True
        self.names: tuple[str, ...] = first.names
        self._first = first
        self._outputs = output
        self._check = check

    def __repr__(self) -> str:
        return f"<Composed {self._first!r}>"

    def resolve(self) -> None:
        self._first.resolve()
        self._check()

    def inputs(self) -> list[tuple[str, Any, bool]]:
        return self._first.inputs()

    @property
    def takes_model(self) -> bool:
        return self._first.takes_model

    @property
    def is_parent(self) -> bool:
        return False

    @property
    def input(self) -> Shape:
        return self._first.input

    @property
    def output(self) -> Any:
        return self._outputs()

    def input_json_schema(self) -> dict[str, Any]:
        return self._first.input_json_schema()

    def output_json_schema(self) -> dict[str, Any]:
        return self._outputs().json_schema()

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        return self._first.encode(args, kwargs)

    def encode_mapping(self, mapping: Mapping[str, Any]) -> str:
        return self._first.encode_mapping(mapping)

    def decode(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._first.decode(text)


@dataclass(frozen=True)
class InSequence:
    """What the run of a sequence does."""

    name: str
    stages: tuple[JobDefinition, ...] = field(repr=False)
    options: tuple[TriggerOptions, ...] = field(repr=False)

    async def __call__(self, step: Step, *args: Any, **kwargs: Any) -> Outcome:
        text, output = self.stages[0].signature.encode(args, kwargs), ""
        for index, stage in enumerate(self.stages):
            if index:
                text = self._handed_on(index, output)
                if asked_at_triggers(stage):
                    text = await self._validated(step, index, text)
            call: Call[Any] = Call(stage, text, self.options[index])
            try:
                output = await step._waits.text_of(call, f"{index + 1}. {stage.name}")
            except (RunFailed, RunCancelled) as error:
                raise self._failed(index, error.message, error) from error
        return Outcome(Cause.COMPLETE, output=output)

    def _handed_on(self, index: int, output: str) -> str:
        stage, before = self.stages[index], self.stages[index - 1]
        value = before.output.load(output, f"output of {before.name}")
        signature = stage.signature
        try:
            if isinstance(value, Mapping) and len(signature.names) > 1:
                return signature.encode_mapping(value)
            return signature.encode((value,) if signature.names else (), {})
        except ValidationError as error:
            raise self._failed(index, error.message, error) from error

    async def _validated(self, step: Step, index: int, text: str) -> str:
        """The text after the job's own validation, which is asked once: who replays may find that it would refuse."""
        stage = self.stages[index]

        def validate() -> str:
            return encode_input(stage, *stage.signature.decode(text))

        try:
            return await step.run(f"validate {index + 1}. {stage.name}", validate)
        except (ValidationError, NotFoundError) as error:
            raise self._failed(index, error.message, error) from error

    def _failed(self, index: int, why: str, error: Exception) -> Concluded:
        text = f"Sequence {self.name!r} failed in run {index + 1} ({self.stages[index].name}): {why}"
        kind = getattr(error, "error_type", None) or type(error).__name__
        return Concluded(Outcome(_FAILED, error=text, error_type=kind))


def sequence(name: str, stages: Sequence[JobDefinition], options: Sequence[TriggerOptions]) -> JobDefinition:
    """A job whose runs are one of each of these, the output of one being the input of the next."""
    if not stages:
        raise DefinitionError(f"sequence {name!r}: give at least one job.")
    for stage, option in zip(stages, options, strict=True):
        _check_below(f"sequence {name!r}", stage, option)
    fn = InSequence(name, tuple(stages), tuple(options))

    def check() -> None:
        for before, stage in pairwise(stages):
            gives = getattr(before.output, "annotation", Children)
            check_handover(f"sequence {name!r}", before.name, gives, stage.name, stage.signature)

    check_if_known(stages, check)
    signature = Composed(stages[0].signature, lambda: stages[-1].output, check)
    return JobDefinition(name, name, fn, signature, validate=_asked_before(stages[0]), parts=tuple(stages))


@dataclass(frozen=True)
class InLoop:
    """What the run of a loop does."""

    name: str
    iteration: JobDefinition = field(repr=False)
    options: TriggerOptions = field(repr=False)
    most: int
    delay: Duration | Callable[[int], Duration] | None

    async def __call__(self, step: Step, *args: Any, **kwargs: Any) -> LoopResult[Any]:
        text = self.iteration.signature.encode(args, kwargs)
        for number in range(self.most):
            delay, options = self.delay(number) if callable(self.delay) else self.delay, self.options
            if delay is not None:
                options = replace(options, delay=micros(delay, "delay"), run_at=None)
            call: Call[Any] = Call(self.iteration, text, options)
            try:
                output = await step._waits.text_of(call, "iteration")
            except (RunFailed, RunCancelled) as error:
                text = f"Loop {self.name!r} failed in iteration {number + 1} ({self.iteration.name}): {error.message}"
                kind = getattr(error, "error_type", None) or type(error).__name__
                raise Concluded(Outcome(_FAILED, error=text, error_type=kind)) from error
            value = self.iteration.output.load(output, f"output of {self.iteration.name}")
            if isinstance(value, Done):
                return LoopResult(True, value.value)
        return LoopResult(False)


def loop(
    name: str,
    iteration: JobDefinition,
    most: object,
    delay: Duration | Callable[[int], Duration] | None,
    options: TriggerOptions = NO_OPTIONS,
) -> JobDefinition:
    """A job whose runs are one of the iteration after the other, until one is `Done`, at most so many."""
    if type(most) is not int or most < 1:
        raise ValidationError(f"max_iterations: {shown(most)} must be a whole number above 0.")
    if delay is not None and not callable(delay):
        micros(delay, "delay")
    _check_below(f"loop {name!r}", iteration, options)

    def output() -> Shape:
        return shape_of(LoopResult[_found(iteration)])  # type: ignore[misc]  # what the iteration finds

    fn = InLoop(name, iteration, options, most, delay)
    check_if_known([iteration], output)
    signature = Composed(iteration.signature, output, output)
    return JobDefinition(name, name, fn, signature, validate=_asked_before(iteration), parts=(iteration,))


def _found(iteration: JobDefinition) -> Any:
    """What an iteration says that it finds: the T of its `Done[T]`."""
    annotation = getattr(iteration.output, "annotation", Children)
    for one in (annotation, *get_args(annotation)):
        if get_origin(one) is Done:
            return get_args(one)[0]
        if one is Done:
            return Any
    if annotation is MISSING or annotation is Any:
        return Any
    raise DefinitionError(
        f"{iteration.name}: the iteration of a loop returns Done[…] or None, not {described(annotation)}."
    )


@dataclass(frozen=True)
class Asleep:
    """What a sleeping run does: it waits for the one word that ends it."""

    name: str

    async def __call__(self, step: Step, key: str) -> Outcome:  # noqa: ARG002 - its key is what others know it by
        said = await step.wait_for_signal(WAKE)
        if "error" in said:
            return Outcome(Cause.FAIL, error=said["error"], error_type=said.get("error_type") or "Woken")
        return Outcome(Cause.COMPLETE, output=read(said))


def _asked_before(job: JobDefinition) -> Callable[..., Any] | None:
    """The validation that a trigger asks, of the job that gets the input first."""
    return job.validate if asked_at_triggers(job) else None


def _check_below(what: str, job: JobDefinition, options: TriggerOptions) -> None:
    """A run below another has no key: nobody could wake it by that."""
    if options.idempotency_key is not None or options.coalesce is not None:
        raise DefinitionError(f"{what}: {job.name!r}: a run below another has no idempotency_key, and no coalesce=.")
    if isinstance(job.fn, Asleep):
        raise DefinitionError(
            f"{what}: {job.name!r} is a sleeping job, and a run below another has no key to be woken by. "
            "Give a job that waits with step.wait_for_signal."
        )


#: Names of signals that only we send: whoever sends another one of it would get around what a wake checks.
OURS = "holdfast:"

#: The signal that ends a sleeping run, and its key: the first counts.
WAKE: str = f"{OURS}wake"


def sleeping(name: str, annotation: Any, deadline: int | None, step_types: tuple[type, type]) -> JobDefinition:
    """A job whose runs wait until somebody outside says what they came to."""

    def asleep(key: str) -> None: ...

    shape = shape_of(annotation)
    signature = Composed(Signature(asleep, step_types), lambda: shape)
    return JobDefinition(name, name, Asleep(name), signature, deadline=deadline)
