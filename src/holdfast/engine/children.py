"""Runs below a run: what a job asks for, and what has become of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, overload

from ..basis.codec import Payloads
from ..basis.durations import Duration, micros
from ..basis.errors import ChildrenFailed, RunCancelled, RunFailed, RunTimedOut, ValidationError
from ..basis.text import clean, shown
from ..model.run import NewRun, RunRow, RunStatus
from .arguments import checked_moment, checked_text, several
from .call import Call
from .registry import JobDefinition, Registry
from .wait_kinds import Below, Signal, Timer, Wait

if TYPE_CHECKING:
    from .execution import Execution

A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

Asked: TypeAlias = "tuple[str, Wait]"

#: Of those without an output as many are named.
_NAMED = 5


class Bindable(Protocol[A_contra, R_co]):
    """A job whose whole input may be given as one argument."""

    def bind(self, value: A_contra, /) -> Call[R_co]: ...


class Named(Protocol[R_co]):
    """A job, to say whose output it is."""

    @property
    def name(self) -> str: ...

    def bind(self, *args: Any, **kwargs: Any) -> Call[R_co]: ...


class ChildResult:
    """How a run below another has ended."""

    __slots__ = ("_job", "_payloads", "_row")

    def __init__(self, row: RunRow, job: JobDefinition | None, payloads: Payloads) -> None:
        self._row = row
        self._job = job
        self._payloads = payloads

    @property
    def run_id(self) -> str:
        return self._row.id

    @property
    def job_name(self) -> str:
        return self._row.job_name

    @property
    def status(self) -> RunStatus:
        """`completed`, or how it ended without its output."""
        return RunStatus(self._row.status)

    @property
    def error(self) -> str | None:
        """What ended it, if it has no output."""
        return None if self._row.error is None else self._payloads.shown_text(self._row.error)

    @property
    def error_type(self) -> str | None:
        return self._row.error_type

    @overload
    def unwrap(self, /) -> Any: ...
    @overload
    def unwrap(self, job: Named[R], /) -> R: ...
    def unwrap(self, job: Any = None, /) -> Any:
        """The output; `RunFailed`, `RunTimedOut` or `RunCancelled` if there is none.

        With `job` the type of the output is known, and `ValidationError` is raised if it is another job's.
        """
        row = self._row
        if job is not None and job.name != row.job_name:
            raise ValidationError(f"unwrap: run {row.id} is one of {row.job_name!r}, not of {job.name!r}.")
        if row.status != RunStatus.COMPLETED:
            raise self._failure()
        text = self._payloads.open(row.output or "null")
        what = f"output of run {row.id}"
        if self._job is None:
            raise ValidationError(f"unwrap: job {row.job_name!r} of run {row.id} is not registered here.")
        return self._job.signature.output.load(text, what)

    def _failure(self) -> Exception:
        row, error = self._row, self.error
        if row.status == RunStatus.CANCELLED:
            return RunCancelled(f"Run was cancelled: {row.id}" + (f" ({error})" if error else ""), row.id)
        kind = RunTimedOut if row.status == RunStatus.TIMED_OUT else RunFailed
        return kind(error or "Run failed", row.id, row.error_type)

    def __repr__(self) -> str:
        return f"<ChildResult {self._row.id} {self._row.job_name} {self._row.status}>"


class Asking:
    """What the code of one execution asks for: each time the name of the step, and the wait."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._engine = execution.engine

    def sleep(self, name: str, duration: Duration) -> Asked:
        """So long."""
        return name, Timer(micros(duration, "duration"), None)

    def sleep_until(self, name: str, when: datetime) -> Asked:
        """Until a moment."""
        return name, Timer(None, checked_moment(when))

    def signal(self, name: str, annotation: Any, timeout: Duration | None) -> Asked:
        """A signal of this name."""
        return name, Signal(
            checked_text(name, "signal"), None if timeout is None else micros(timeout, "timeout"), annotation
        )

    def call(self, call: object, name: str | None) -> Asked:
        """One run, and its output."""
        (checked,) = self._checked([call], "call")

        def value(rows: list[RunRow]) -> Any:
            return self._results(rows)[0].unwrap()

        return name or f"{checked.job_name}()", Below(self._maker([checked]), value, f"call {checked.job_name}")

    def gather(self, calls: Iterable[object], name: str | None) -> Asked:
        """Several runs, and their outputs."""
        checked = self._checked(calls, "gather")
        jobs = ", ".join(dict.fromkeys(call.job_name for call in checked))

        def value(rows: list[RunRow]) -> tuple[Any, ...]:
            return tuple(outputs(self._results(rows)))

        named = name or clean(f"gather({jobs})", 200)
        return named, Below(self._maker(checked), value, f"gather {len(checked)}", "children")

    def batches(self, job: Any, inputs: Iterable[Any], on_failure: str, name: str | None) -> list[Asked]:
        """A run for each input, so many at a time."""
        if on_failure not in ("raise", "collect"):
            raise ValidationError(f'on_failure: {shown(on_failure)} must be "raise" or "collect".')
        calls = [job.bind(value) for value in inputs]
        most = self._engine.options.max_children

        def value(rows: list[RunRow]) -> list[Any]:
            results = self._results(rows)
            return results if on_failure == "collect" else outputs(results)

        asked: list[Asked] = []
        for begin in range(0, len(calls), most):
            batch = self._checked(calls[begin : begin + most], "map")
            wait = Below(self._maker(batch, begin), value, f"map {len(batch)}", "children")
            asked.append((name or f"map({job.name})", wait))
        return asked

    def _checked(self, calls: Iterable[object], verb: str) -> list[Call[Any]]:
        """The calls, if all of them may be runs below this one."""
        listed: list[Call[Any]] = several(calls, (Call,), "calls")
        most = self._engine.options.max_children
        if len(listed) > most:
            raise ValidationError(f"{verb}: {len(listed)} calls are more than max_children, which is {most}.")
        for index, call in enumerate(listed):
            self._engine.registry.need(call.job_name)
            if call.options.idempotency_key is not None or call.options.coalesce is not None:
                raise ValidationError(
                    f"{verb}: calls[{index}]: a run below another has no idempotency_key, and no coalesce=."
                )
        return listed

    def _maker(self, calls: Sequence[Call[Any]], first: int = 0) -> Callable[[str], list[NewRun]]:
        engine, row = self._engine, self._execution.row

        def make(key: str) -> list[NewRun]:
            schema = engine.labels_schema
            made = []
            for index, call in enumerate(calls, first):
                labels = call.labels if schema is None else schema.parsed(call.labels)
                made.append(
                    call.new_run(engine.ids.new(), labels)._replace(
                        parent_id=row.id, root_id=row.root_id or row.id, child_index=index, awaited_as=key,
                        tenant=row.tenant,
                    )
                )  # fmt: skip
            return made

        return make

    def _results(self, rows: Iterable[RunRow]) -> list[ChildResult]:
        registry: Registry = self._engine.registry
        return [ChildResult(row, registry.get(row.job_name), self._engine.payloads) for row in rows]


def outputs(results: Sequence[ChildResult]) -> list[Any]:
    """The outputs of all; `ChildrenFailed` if one has none."""
    bad = [one for one in results if one.status != RunStatus.COMPLETED]
    if bad:
        told = ", ".join(f"{one.job_name} {one.run_id} {one.status}" for one in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise ChildrenFailed(
            f"{len(bad)} of {len(results)} runs have no output: {told}{more}. The first: {bad[0].error or bad[0].status}",
            [one.run_id for one in bad[:100]],
        )
    return [one.unwrap() for one in results]
