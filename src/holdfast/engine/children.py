"""Runs below a run: what a job asks for, and what has become of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from ..basis.durations import Duration, micros
from ..basis.errors import ValidationError
from ..basis.text import clean, shown
from ..model.run import NewRun, RunRow
from .arguments import checked_moment, checked_text, several
from .call import Call, of_tenant
from .family import ChildResult, outputs
from .registry import Registry
from .wait_kinds import Below, Making, OneBelow, Signal, Spawned, Timer, Wait

if TYPE_CHECKING:
    from .execution import Execution

A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)

Asked: TypeAlias = "tuple[str, Wait]"


class Bindable(Protocol[A_contra, R_co]):
    """A job whose whole input may be given as one argument."""

    def bind(self, value: A_contra, /) -> Call[R_co]: ...


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
        return name, Timer(None, checked_moment(when, "when"))

    def signal(self, name: str, annotation: Any, timeout: Duration | None) -> Asked:
        """A signal of this name."""
        most = None if timeout is None else micros(timeout, "timeout")
        return name, Signal(checked_text(name, "signal"), most, annotation)

    def call(self, call: object, name: str | None) -> tuple[str, OneBelow]:
        """One run, and its output as it is stored."""
        (checked,) = self.checked([call], "call")

        def text(row: RunRow) -> str:
            return self.results([row])[0].text()

        return name or f"{checked.job_name}()", OneBelow(self.maker([checked]), text, f"call {checked.job_name}")

    def spawn(self, call: object, name: str | None) -> Asked:
        """One run that nobody waits for, and its id."""
        (checked,) = self.checked([call], "spawn")
        make = self.maker([checked])

        def unawaited(key: str) -> Iterator[NewRun]:
            # By the key it is found again: several may be spawned in one commit.
            return (new._replace(child_index=None) for new in make(key))

        mark = f"spawn {checked.job_name}"
        return name or f"spawn({checked.job_name})", Spawned(unawaited, lambda rows: rows[0].id, mark)

    def gather(self, calls: Iterable[object], name: str | None) -> Asked:
        """Several runs, and their outputs."""
        checked = self.checked(calls, "gather")
        jobs = ", ".join(dict.fromkeys(call.job_name for call in checked))

        def value(rows: list[RunRow]) -> tuple[Any, ...]:
            return tuple(outputs(self.results(rows)))

        return name or clean(f"gather({jobs})", 200), Below(self.maker(checked), value, f"gather {len(checked)}")

    def batches(self, job: Any, inputs: Iterable[Any], on_failure: str, name: str | None) -> list[Asked]:
        """A run for each input, so many at a time. All calls are made when the first of them are to be written."""
        if on_failure not in ("raise", "collect"):
            raise ValidationError(f'on_failure: {shown(on_failure)} must be "raise" or "collect".')
        if not callable(getattr(job, "bind", None)):
            raise ValidationError(f"map: {shown(job)} is no job. Write step.map(job, inputs).")
        values = list(inputs)
        calls: list[Call[Any]] = []
        most = self._engine.options.max_children

        def value(rows: list[RunRow]) -> list[Any]:
            results = self.results(rows)
            return results if on_failure == "collect" else outputs(results)

        def batch(begin: int) -> Making:
            def make(key: str) -> Iterator[NewRun | None]:
                for index in range(len(calls), len(values)):
                    try:
                        call = job.bind(values[index])
                    except ValidationError as error:
                        raise ValidationError(f"map: inputs[{index}]: {error}") from None
                    self._check(call, index, "map")
                    calls.append(call)
                    yield None
                yield from self.maker(calls[begin : begin + most], begin)(key)

            return make

        return [
            (name or f"map({job.name})", Below(batch(begin), value, f"map {min(most, len(values) - begin)}"))
            for begin in range(0, len(values), most)
        ]

    def checked(self, calls: Iterable[object], verb: str) -> list[Call[Any]]:
        """The calls, if all of them may be runs below this one."""
        listed: list[Call[Any]] = several(calls, (Call,), "calls")
        most = self._engine.options.max_children
        if len(listed) > most:
            raise ValidationError(f"{verb}: {len(listed)} calls are more than max_children, which is {most}.")
        for index, call in enumerate(listed):
            self._check(call, index, verb)
        return listed

    def _check(self, call: object, index: int, verb: str) -> None:
        if not isinstance(call, Call):
            advice = "Give the calls one by one: gather(*calls)." if isinstance(call, list) else "Write job.bind(…)."
            raise ValidationError(f"{verb}: calls[{index}]: {shown(call)} is no call. {advice}")
        self._engine.registry.need(call.job_name)
        if call.options.idempotency_key is not None or call.options.coalesce is not None:
            raise ValidationError(
                f"{verb}: calls[{index}]: a run below another has no idempotency_key, and no coalesce=."
            )
        if call.options.tenant not in ("", self._execution.row.tenant):
            raise ValidationError(
                f"{verb}: calls[{index}]: a run below another is of whom that one is: leave tenant= out, or trigger it."
            )
        if verb != "spawn":
            self._refuse_a_circle(call, f"{verb}: calls[{index}]")

    def _refuse_a_circle(self, call: Call[Any], what: str) -> None:
        execution, key = self._execution, call.options.concurrency_key
        if execution.job.hold_key_while_waiting and key is not None and key == execution.row.concurrency_key:
            raise ValidationError(
                f"{what}: the run above it has the concurrency key {shown(key)} and keeps it while it waits "
                "(hold_key_while_waiting=True): each would wait for the other. Give the call another key, or none."
            )

    def maker(self, calls: Sequence[Call[Any]], first: int = 0) -> Callable[[str], Iterator[NewRun]]:
        """Makes the runs of these calls, for a wait of that key."""
        engine, row = self._engine, self._execution.row

        def make(key: str) -> Iterator[NewRun]:
            schema = engine.labels_schema
            for index, call in enumerate(calls, first):
                labels = of_tenant(call.labels, row.tenant)
                labels = labels if schema is None else of_tenant(schema.parsed(labels), row.tenant)
                new = call.new_run(engine.ids.new(), labels)
                yield new._replace(
                    parent_id=row.id,
                    root_id=row.root_id or row.id,
                    child_index=index,
                    awaited_as=key,
                    tenant=row.tenant,
                )

        return make

    def results(self, rows: Iterable[RunRow]) -> list[ChildResult]:
        registry: Registry = self._engine.registry
        return [ChildResult.of(row, registry.get(row.job_name), self._engine.payloads) for row in rows]
