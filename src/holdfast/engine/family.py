"""Runs below a run, as their results are seen above: by a finalize, and in the output of a parent that has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar, overload

from pydantic_core import CoreSchema, core_schema, from_json, to_json

from ..basis.codec import Payloads
from ..basis.errors import ChildrenFailed, RunCancelled, RunFailed, RunTimedOut, ValidationError
from ..basis.text import shown
from ..basis.values import Shape, shape_of
from ..model.run import RunRow, RunStatus

if TYPE_CHECKING:
    from .call import Call
    from .registry import JobDefinition

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)

#: Of those without an output as many are named.
_NAMED = 5


class Named(Protocol[R_co]):
    """A job, to say whose output it is."""

    def bind(self, *args: Any, **kwargs: Any) -> Call[R_co]: ...


class ChildResult:
    """How a run below another has ended."""

    __slots__ = ("_job", "_text", "error", "error_type", "job_name", "run_id", "status")

    def __init__(
        self,
        run_id: str,
        job_name: str,
        status: str,
        text: str | None,
        error: str | None,
        error_type: str | None,
        job: JobDefinition | None = None,
    ) -> None:
        self.run_id: str = run_id
        self.job_name: str = job_name
        self.status: RunStatus = RunStatus(status)
        """`completed`, or how it ended without its output."""
        self.error: str | None = error
        """The message of what ended it, if it has no output."""
        self.error_type: str | None = error_type
        self._text = text
        self._job = job

    @classmethod
    def of(cls, row: RunRow, job: JobDefinition | None, payloads: Payloads) -> ChildResult:
        """That of an ended run."""
        error = None if row.error is None else payloads.shown_text(row.error)
        return cls(row.id, row.job_name, row.status, payloads.open_some(row.output), error, row.error_type, job)

    @overload
    def unwrap(self, /) -> Any: ...
    @overload
    def unwrap(self, job: Named[R], /) -> R: ...
    def unwrap(self, job: Any = None, /) -> Any:
        """The output; `RunFailed`, `RunTimedOut` or `RunCancelled` if there is none.

        With `job` the type of the output is known; `ValidationError` if it is another job's.
        """
        known: JobDefinition | None = self._job if job is None else job._definition
        if known is not None and known.name != self.job_name:
            raise ValidationError(f"unwrap: run {self.run_id} is one of {self.job_name!r}, not of {known.name!r}.")
        shape = shape_of() if known is None else known.output
        return shape.load(self.text(), f"output of run {self.run_id}")

    def text(self) -> str:
        """The output as it is stored; raises as `unwrap` does if there is none."""
        if self.status == RunStatus.CANCELLED:
            why = f" ({self.error})" if self.error else ""
            raise RunCancelled(f"Run was cancelled: {self.run_id}{why}", self.run_id)
        if self.status != RunStatus.COMPLETED:
            kind = RunTimedOut if self.status == RunStatus.TIMED_OUT else RunFailed
            raise kind(self.error or "Run failed", self.run_id, self.error_type)
        return self._text or "null"

    def to_json(self) -> dict[str, Any]:
        """As it is kept in the output of the run above."""
        kept = {"run_id": self.run_id, "job_name": self.job_name, "status": str(self.status)}
        if self._text is not None:
            return {**kept, **written(self._text)}
        return {**kept, "error": self.error, "error_type": self.error_type}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> ChildResult:
        text = None if kept["status"] != RunStatus.COMPLETED else read(kept)
        return cls(kept["run_id"], kept["job_name"], kept["status"], text, kept.get("error"), kept.get("error_type"))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """For the signature of a finalize, which is given them and never stores them."""
        return core_schema.json_or_python_schema(core_schema.any_schema(), core_schema.is_instance_schema(cls))

    def __repr__(self) -> str:
        return f"<ChildResult {self.run_id} {self.job_name} {self.status}>"


class Children(Generic[T_co]):
    """What a parent returns: its own output, and the calls to be executed below it, at the same time.

    Once all of them have ended, its finalize gets both. Without one, this is what the run comes to, with the results;
    if one of them has no output, it fails with `ChildrenFailed`, or completes with `on_failure="collect"`.
    """

    __slots__ = ("_calls", "_on_failure", "_output", "_results")

    is_children: ClassVar[bool] = True
    """By which the signature of a job sees that it is a parent."""

    def __init__(
        self,
        output: T_co,
        calls: Iterable[Call[Any]] = (),
        /,
        *,
        on_failure: Literal["fail", "collect"] = "fail",
    ) -> None:
        if on_failure not in ("fail", "collect"):
            raise ValidationError(f'on_failure: {shown(on_failure)} must be "fail" or "collect".')
        if not isinstance(calls, Iterable):
            raise ValidationError(f"Children: calls: {shown(calls)} is no list. Write Children(output, [job.bind(…)]).")
        self._output = output
        self._calls = tuple(calls)
        self._on_failure = on_failure
        self._results: list[ChildResult] = []

    @property
    def output(self) -> T_co:
        """The parent's own."""
        return self._output

    @property
    def calls(self) -> tuple[Call[Any], ...]:
        """What it wants to be executed below it."""
        return self._calls

    @property
    def on_failure(self) -> str:
        return self._on_failure

    @property
    def results(self) -> list[ChildResult]:
        """How they have ended, in the order of the calls; none before that."""
        return self._results

    def __repr__(self) -> str:
        return f"Children({self._output!r}, {len(self._calls) or len(self._results)} runs)"


class ChildrenShape:
    """How the output of a parent without a finalize is kept: `{"output": …, "children": […]}`."""

    def __init__(self, own: Shape) -> None:
        self.own: Shape = own

    def text(self, own: str, results: Iterable[ChildResult]) -> str:
        """What is written."""
        kept = {**written(own), "children": [one.to_json() for one in results]}
        return to_json(kept).decode()

    def load(self, text: str, what: str = "value") -> Children[Any]:
        """The value of a stored text; `Outdated` if it can't be read."""
        kept = from_json(text)
        found = Children[Any](self.own.load(read(kept), what))
        found._results = [ChildResult.from_json(one) for one in kept["children"]]
        return found

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of the output."""
        return {
            "type": "object",
            "properties": {
                "output": self.own.json_schema(),
                "children": {"type": "array", "items": {"type": "object"}},
            },
            "required": ["children"],
        }


def written(text: str) -> dict[str, Any]:
    """A stored text as a part of a JSON object: as itself, or, if it is tagged, as a text apart."""
    return {"tagged": text} if text.startswith("~") else {"output": from_json(text)}


def read(kept: Mapping[str, Any]) -> str:
    """The stored text again."""
    tagged: str | None = kept.get("tagged")
    return to_json(kept.get("output")).decode() if tagged is None else tagged


def outputs(results: Sequence[ChildResult]) -> list[Any]:
    """The outputs of all; `ChildrenFailed` if one has none."""
    bad = [one for one in results if one.status != RunStatus.COMPLETED]
    if bad:
        told = ", ".join(f"{one.job_name} {one.run_id} {one.status}" for one in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise ChildrenFailed(
            f"{len(bad)} of {len(results)} runs below have no output: {told}{more}. "
            f"The first: {bad[0].error or bad[0].status}",
            [one.run_id for one in bad[:100]],
        )
    return [one.unwrap() for one in results]
