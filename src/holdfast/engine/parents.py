"""Parents: jobs that return `Children`, and what comes after that.

A parent is a job whose function returns, a wait for the runs below it, and perhaps one more run, its finalize. All of
it is made of steps and waits: once `(return)` is saved the function is never called again, `(children)` is the wait for
all of them, `(finalize)` that for the run whose output is the parent's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json, to_json

from ..basis.errors import ChildrenFailed, NotKept, Outdated
from ..model.run import NewRun, RunFilter, RunRow, RunStatus
from ..model.step import StepKey
from ..model.wait import wait_key
from ..rules.lifecycle import Cause
from .branches import Place, here
from .call import Call, TriggerOptions
from .family import Children, ChildrenShape, outputs
from .outcome import Outcome
from .steps import _Opened, no_function
from .wait_kinds import Below, Making

if TYPE_CHECKING:
    from .execution import Execution

RETURN: str = "(return)"
CHILDREN: str = "(children)"
FINALIZE: str = "(finalize)"


class _Returned(NamedTuple):
    """What the function came to."""

    output: str
    """Its own part, as it is stored."""
    children: int
    on_failure: str

    def to_json(self) -> str:
        return to_json(self._asdict()).decode()


class _Children(Below):
    """The runs below a parent; what its function returned is saved when they are written, and not before."""

    def __init__(self, parent: Parent, make: Making) -> None:
        super().__init__(make, lambda rows: rows, CHILDREN)
        self._parent = parent

    async def written(self) -> None:
        await self._parent.save_return()


class Parent:
    """One execution of a parent, from the call of its function to its end."""

    def __init__(self, execution: Execution, call: Callable[[], Awaitable[Any]]) -> None:
        self._execution = execution
        self._engine = execution.engine
        self._call = call
        self._returned: _Returned | None = None
        self._opened: _Opened | None = None
        self._is_saved = False

    async def outcome(self) -> Outcome:
        """What the parent comes to. It may be suspended on the way, any number of times."""
        execution, calls = self._execution, list[Call[Any]]()
        await self._recall()
        if self._returned is None:
            calls = self._take(await self._call())
        execution.branches.main = here()
        said = self._returned
        assert said is not None
        rows: list[RunRow] = []
        if said.children:
            wait = _Children(self, execution.waits.asking.maker(calls))
            rows = await execution.waits.begin_inner(CHILDREN, wait)
        if execution.job.finalize is not None:
            await self.save_return()
            return await self._finalized(rows)
        return self._completed(said, rows)

    def _take(self, value: Any) -> list[Call[Any]]:
        execution = self._execution
        if type(value) is not Children:
            raise NotKept(
                f"the job says that it returns Children, and returned {type(value).__name__}", "Invalid output"
            )
        kept = execution.job.signature.output.keep(
            value.output, "Invalid output", compare_bytes=execution.compare_bytes
        )
        calls = execution.waits.asking.checked(value.calls, "Children")
        self._returned = _Returned(execution.within_limit(kept.text, "Invalid output"), len(calls), value.on_failure)
        steps = execution.steps
        # Its place is before what it waits for, although it is saved with that.
        self._opened = steps._open(StepKey(RETURN, 0), no_function, (), {}, steps.plain)
        return calls

    # -- what its function has returned ------------------------------------------------------------------------

    async def _recall(self) -> None:
        steps, key = self._execution.steps, StepKey(RETURN, 0)
        saved = await steps._find(key, steps._history.take(key))
        if saved is not None:
            self._returned = _Returned(**from_json(saved.output or ""))
            self._is_saved = True
            # The steps of the function are not asked for again; what follows comes after them all the same.
            steps.go_behind(saved)

    async def save_return(self) -> None:
        """It will not be called again."""
        if self._is_saved or self._returned is None or self._opened is None:
            return
        steps = self._execution.steps
        place = Place(StepKey(RETURN, 0))
        steps._enter(place)
        try:
            opened = self._opened._replace(fingerprint=RETURN)
            result = steps._came_to(opened, self._returned.to_json(), None)
            await steps.keep(result, opened)
            self._is_saved = True
        finally:
            steps._leave(place)

    # -- what follows ------------------------------------------------------------------------------------------

    def _completed(self, said: _Returned, rows: list[RunRow]) -> Outcome:
        execution = self._execution
        results = execution.waits.asking.results(rows)
        if said.on_failure == "fail":
            try:
                outputs(results)
            except ChildrenFailed as error:
                return Outcome(Cause.FAIL, error=error.message, error_type="ChildrenFailed")
        shape = execution.job.output
        assert isinstance(shape, ChildrenShape)
        text = shape.text(said.output, results)
        return Outcome(Cause.COMPLETE, output=execution.within_limit(text, "Invalid output"))

    async def _finalized(self, rows: list[RunRow]) -> Outcome:
        execution, engine, said = self._execution, self._engine, self._returned
        job = execution.job.finalize
        assert job is not None
        assert said is not None
        text = to_json(
            {"job": execution.job.name, "output": said.output, "children": rows[0].created_at if rows else None}
        ).decode()
        call: Call[Any] = Call(job, text, TriggerOptions())

        def make(key: str) -> Iterator[NewRun]:
            made = execution.waits.asking.maker([call])(key)
            return (new._replace(is_finalize=1, child_index=None) for new in made)

        wait = Below(make, lambda found: found[0], FINALIZE)
        wait.kind = "finalize"
        row: RunRow = await execution.waits.begin_inner(FINALIZE, wait)
        if row.status == RunStatus.COMPLETED:
            return Outcome(Cause.COMPLETE, output=engine.payloads.open(row.output or "null"))
        error = None if row.error is None else engine.payloads.shown_text(row.error)
        return Outcome(
            Cause.FINALIZE_FAILED,
            error=error or f"The finalize ended as {row.status}",
            error_type=row.error_type or str(row.status),
        )


async def finalize_arguments(execution: Execution, text: str) -> tuple[Any, ...]:
    """What a finalize is called with: the output of the parent, and the results of all runs below that."""
    engine, row = execution.engine, execution.row
    try:
        kept = from_json(text)
        parent, own, at = kept["job"], kept["output"], kept["children"]
    except (ValueError, KeyError, TypeError) as error:
        raise Outdated(f"input of finalize run {row.id}: {error}") from None
    output = engine.registry.need(parent).signature.output.load(own, f"output of run {row.parent_id}")
    if at is None:
        return output, []
    wanted = RunFilter(parent=row.parent_id, awaited_as=wait_key(CHILDREN, 0))

    async def read() -> list[RunRow]:
        return await engine.reader.read("find_runs", lambda c: engine.store.find_runs(c, wanted), list)

    rows: list[RunRow] = [one for one in await execution.waits.persistently(read) if one.created_at == at]
    rows.sort(key=lambda one: one.child_index or 0)
    return output, execution.waits.asking.results(rows)
