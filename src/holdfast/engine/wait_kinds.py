"""What a run may wait for: its time, a signal, runs below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pydantic
from pydantic_core import from_json, to_json

from ..basis.errors import Outdated
from ..basis.failures import keep_failure
from ..basis.text import error_text
from ..basis.values import MISSING, Shape, problems, shape_of
from ..commit.reply import Reply
from ..commit.ticket import Ticket
from ..model.run import NewRun, RunFilter, RunRow
from ..model.wait import WHICH, WaitRow, wait_key
from ..store.base import Take, Taken
from .context import PLAIN, StepOptions, Unwind
from .schema import is_model

if TYPE_CHECKING:
    from .steps import _Opened, _Result
    from .waits import Waits

#: Makes the runs below a run that belong to a wait of that key, one after the other; None for a part of that work.
Making: TypeAlias = Callable[[str], Iterator[NewRun | None]]


class Standing(NamedTuple):
    """How a wait stands."""

    waits: Waits
    opened: _Opened
    row: WaitRow | None = None
    """As it is written down; None: it is not."""
    until: int | None = None


class Wait:
    """What all of them have in common."""

    kind: str
    mark: str
    """What is saved in place of a function and its arguments."""
    how: StepOptions = PLAIN
    delay: int | None = None
    """Microseconds from the moment when it is written down."""
    until: int | None = None
    signal: str | None = None
    outlasts_attempts: bool = False
    """What it came to counts in a retry, too, also when that was a failure."""
    resumed: bool = False
    """An earlier execution has begun to wait."""

    def children(self, waits: Waits, key: str) -> Iterator[NewRun | None]:  # noqa: ARG002 - for those who have some
        """The runs that are written together with the wait: see `Making`."""
        return iter(())

    async def written(self) -> None:
        """It is written down, and nothing was awaited yet."""

    async def conclude(self, at: Standing) -> _Result | None:
        """What it has come to; None: it goes on."""
        raise NotImplementedError

    async def load(self, at: Standing, text: str) -> Any:
        """The value of what was saved."""
        raise NotImplementedError


class Timer(Wait):
    """A time, or so long from now."""

    kind: str = "timer"

    def __init__(self, delay: int | None, until: int | None) -> None:
        self.delay: int | None = delay
        self.until: int | None = until
        self.mark: str = "sleep" if until is None else "sleep_until"

    async def conclude(self, at: Standing) -> _Result | None:
        if at.until is None or at.waits.engine.now() < at.until:
            return None
        return at.waits.steps._came_to(at.opened, "null", None)

    async def load(self, at: Standing, text: str) -> None:  # noqa: ARG002 - there is none
        return None


class Signal(Wait):
    """A signal of this name, for so long."""

    kind: str = "signal"
    # A retry that waited again could take the other way through the function, after all that was done on the first.
    outlasts_attempts: bool = True

    def __init__(self, name: str, timeout: int | None, annotation: Any) -> None:
        self.signal: str | None = name
        self.delay: int | None = timeout
        self.mark: str = f"signal {name}"
        self._annotation = annotation

    async def conclude(self, at: Standing) -> _Result | None:
        waits, opened = at.waits, at.opened
        execution, steps = waits.execution, waits.steps
        error = TimeoutError(f"no signal {self.signal!r} came in time")
        failure, seen = keep_failure(error)
        seal = waits.engine.payloads.seal

        def tickets() -> list[Ticket[Any]]:
            there = steps._checkpoint(opened, "completed", None, None)
            late = steps._checkpoint(opened, "failed", None, seal(failure.to_json()))
            take = Take(execution.lease.owner, self.signal or "", there, late, not steps.moved_on)
            return [*execution.pending_notes(), Ticket("take_signals", take, what=f"signal of run {there.run_id}")]

        taken: Taken = await execution.write(tickets)
        if taken.status == "nothing":
            return None
        if taken.status == "lost":
            execution.lease_lost(None)
            raise Unwind
        if taken.status == "late":
            return steps._stood(opened, None, None, seen)
        text = steps._text_of(taken.output or "")
        return steps._stood(opened, text, await self.load(at, text), None)

    async def load(self, at: Standing, text: str) -> Any:
        try:
            return load_sent(text, self._annotation, f"signal {self.signal!r} of run {at.waits.execution.row.id}")
        except Outdated as error:
            raise at.waits.steps._must_fail(error) from None


def sent_text(value: Any) -> str:
    """The text of a signal's value: models by their fields, all else as it is."""
    return shape_of(type(value) if is_model(type(value)) else MISSING).keep(value, "value").text


def load_sent(text: str, annotation: Any, what: str) -> Any:
    """The value of a signal, as its receiver wants it; `Outdated` if it can't be that."""
    if annotation is None:
        return shape_of().load(text, what)
    shape: Shape = shape_of(annotation)
    try:
        if text.startswith("~"):
            return shape.validate(shape_of().load(text, what))
        return shape.validate_json(text)
    except Outdated:
        raise
    except pydantic.ValidationError as error:
        raise Outdated(f"{what}: {problems(error)}") from None
    except Exception as error:  # of a validator of the user's
        raise Outdated(f"{what}: {error_text(error, 500)}") from None


class Below(Wait):
    """Runs below this one: all of them.

    What they came to is theirs to keep, and stays as long as this run: here is only which they were.
    """

    kind: str = "children"

    def __init__(self, make: Making, value: Callable[[list[RunRow]], Any], mark: str) -> None:
        self._make = make
        self._value = value
        """What the ended runs come to: a value, or an error that it raises."""
        self.mark: str = mark

    def children(self, waits: Waits, key: str) -> Iterator[NewRun | None]:
        sealed = waits.engine.triggers.sealed
        return (None if new is None else sealed(new) for new in self._make(key))

    async def conclude(self, at: Standing) -> _Result | None:
        waits, opened, row, _ = at
        if row is None or not self.resumed:
            return None  # they were written a moment ago
        rows = await self._read(waits, row.key, row.created_at)
        if any(child.completed_at is None for child in rows):
            return None
        try:
            value = self._value(rows)
        except Outdated as error:
            raise waits.steps._must_fail(error) from None
        except Exception as error:
            return waits.steps._failed(opened, error)
        return waits.steps._came_to(opened, self._text(waits, rows) or f"{WHICH}{row.created_at}", value)

    def _text(self, waits: Waits, rows: list[RunRow]) -> str | None:  # noqa: ARG002 - for a single one
        """What is kept here all the same."""
        return None

    async def load(self, at: Standing, text: str) -> Any:
        try:
            return self._value(await self._read(at.waits, wait_key(*at.opened.key), int(text.removeprefix(WHICH))))
        except Outdated as error:
            raise at.waits.steps._must_fail(error) from None

    async def _read(self, waits: Waits, key: str | None, created_at: int) -> list[RunRow]:
        store, wanted = waits.engine.store, RunFilter(parent=waits.execution.row.id, awaited_as=key)

        async def read() -> list[RunRow]:
            reply: Reply[list[RunRow]] = Reply("find_runs")
            waits.engine.reader.ask(lambda c: store.find_runs(c, wanted), reply)
            return await reply

        # Those of another attempt of this run may be there, too: what is written together has one time.
        found = await waits.persistently(read)
        rows: list[RunRow] = [row for row in found if (row.created_at, row.awaited_as) == (created_at, key)]
        # Two attempts may be of one moment, where a clock stands still: the later one's have the greater ids.
        latest = {row.child_index: row for row in sorted(rows, key=lambda row: row.id)}
        return sorted(latest.values(), key=lambda row: row.child_index or 0)


class OneBelow(Below):
    """A run below this one, and its output as it is stored. A small one is kept here, too: a replay need not look."""

    kind: str = "child"

    def __init__(self, make: Making, text: Callable[[RunRow], str], mark: str) -> None:
        super().__init__(make, lambda rows: text(rows[0]), mark)

    def _text(self, waits: Waits, rows: list[RunRow]) -> str | None:
        text = waits.engine.payloads.open(rows[0].output or "null")
        return text if len(text) <= _SMALL else None

    async def load(self, at: Standing, text: str) -> Any:
        return await super().load(at, text) if text.startswith(WHICH) else text


class Spawned(Below):
    """A run below this one that nobody waits for; its id."""

    kind: str = "child"

    async def conclude(self, at: Standing) -> _Result | None:
        assert at.row is not None
        (child,) = await self._read(at.waits, at.row.key, at.row.created_at)
        return at.waits.steps._came_to(at.opened, to_json(child.id).decode(), child.id)

    async def load(self, at: Standing, text: str) -> Any:  # noqa: ARG002 - it is in the text
        return from_json(text)


#: Characters.
_SMALL = 4096
