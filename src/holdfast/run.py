"""A run as users see it: a picture of its row at one moment, and what can be done with it.

Long because its steps, their tries, its waits and its log lines are shown with it, by the same few rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar, cast

from pydantic_core import from_json

from .basis.clock import to_datetime
from .basis.codec import Payloads
from .basis.errors import Outdated, RunCancelled, RunFailed, RunTimedOut, StoreUnavailable, ValidationError
from .basis.failures import Failure, failed_text
from .basis.text import shown
from .commit.reply import Reply
from .engine.subscription import Subscription
from .model.event import Event
from .model.run import Disposition, RunRow, RunStatus
from .model.step import AttemptRow, LogRow, StepKey, StepRow
from .model.wait import BELOW, WHICH, WaitKind, WaitRow, kind_of, step_of

if TYPE_CHECKING:
    from .engine.registry import JobDefinition
R_co = TypeVar("R_co", covariant=True)

Told: TypeAlias = Callable[[Event], object] | None


def _time(micros: int | None) -> datetime:
    when = to_datetime(micros)
    assert when is not None
    return when


class Opening(Protocol):
    """What can open payloads."""

    @property
    def payloads(self) -> Payloads: ...


class Keeper(Protocol):
    """Who a run is asked of: an app, or a client of one elsewhere."""

    @property
    def _engine(self) -> Opening: ...

    def subscribe(self, run_id: str) -> Subscription: ...
    def delete_run(self, run_id: str) -> Reply[None]: ...
    def _cancel(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any]]: ...
    def _refresh(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any]]: ...
    def _wait_for_run(
        self, run_id: str, job: JobDefinition | None, timeout: float | None, told: Told = None
    ) -> Reply[Run[Any]]: ...
    def _result_of(
        self, run_id: str, job: JobDefinition | None, timeout: float | None, told: Told = None
    ) -> Reply[Any]: ...


class Run(Generic[R_co]):
    """One durable execution of a job, as it was when it was read. It does not change; `refresh()` reads it again."""

    __slots__ = ("_app", "_job", "_row", "disposition")

    def __init__(
        self, app: Keeper, row: RunRow, job: JobDefinition | None, disposition: Disposition | None = None
    ) -> None:
        self._app = app
        self._row = row
        self._job = job
        self.disposition: Disposition | None = disposition
        """What the trigger did: `created`; `idempotent` or `coalesced` if a key led to a run that was there."""

    # -- what it is --------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """26 characters; later runs have greater ids."""
        return self._row.id

    @property
    def job_name(self) -> str:
        return self._row.job_name

    @property
    def status(self) -> RunStatus:
        return RunStatus(self._row.status)

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended, for good."""
        return self.status.is_terminal

    @property
    def is_active(self) -> bool:
        return self.status.is_active

    @property
    def input(self) -> Any:
        """What it was triggered with: an object by parameter name, or the single model's fields."""
        return self._app._engine.payloads.shown(self._row.input)

    @property
    def output(self) -> R_co | None:
        """What the job returned; None until it has completed. `Outdated` if today's code can't read it."""
        if self._row.output is None:
            return None
        payloads = self._app._engine.payloads
        if self._job is None:
            value: R_co = payloads.shown(self._row.output)
            return value
        text = payloads.open(self._row.output)
        value = self._job.output.load(text, f"output of run {self.id}")
        return value  # noqa: RET504 - gives the Any its type

    @property
    def error(self) -> str | None:
        """The message of what ended it, if it did not complete."""
        return None if self._row.error is None else self._app._engine.payloads.shown_text(self._row.error)

    @property
    def error_type(self) -> str | None:
        """The name of that error's class."""
        return self._row.error_type

    @property
    def progress(self) -> dict[str, Any] | None:
        """`{"current": …}`, and `total` and `message` where they were given."""
        return None if self._row.progress is None else dict(from_json(self._row.progress))

    @property
    def labels(self) -> dict[str, str]:
        return self._row.label_map

    @property
    def queue(self) -> str:
        return self._row.queue

    @property
    def priority(self) -> int:
        return self._row.priority

    @property
    def idempotency_key(self) -> str | None:
        return self._row.idempotency_key

    @property
    def concurrency_key(self) -> str | None:
        return self._row.concurrency_key

    @property
    def generation(self) -> int:
        """The fencing number: how often it was claimed, or taken from its worker."""
        return self._row.generation

    @property
    def attempt(self) -> int:
        """How many retries it had."""
        return self._row.attempt

    @property
    def crashes(self) -> int:
        """How many workers in a row have died of it, or under it, without a checkpoint in between."""
        return self._row.crashes

    @property
    def lease_owner(self) -> str | None:
        return self._row.lease_owner

    @property
    def lease_expires_at(self) -> datetime | None:
        return to_datetime(self._row.lease_expires_at)

    @property
    def run_at(self) -> datetime:
        """It does not start before."""
        return _time(self._row.run_at)

    @property
    def created_at(self) -> datetime:
        return _time(self._row.created_at)

    @property
    def updated_at(self) -> datetime:
        return _time(self._row.updated_at)

    @property
    def started_at(self) -> datetime | None:
        """When it was claimed for the first time."""
        return to_datetime(self._row.started_at)

    @property
    def completed_at(self) -> datetime | None:
        """When it ended, however it did."""
        return to_datetime(self._row.completed_at)

    @property
    def parent_id(self) -> str | None:
        return self._row.parent_id

    @property
    def root_id(self) -> str | None:
        return self._row.root_id

    @property
    def is_finalize(self) -> bool:
        """Whether it is the finalize of the run above it."""
        return bool(self._row.is_finalize)

    @property
    def waiting_for(self) -> str | None:
        """While it waits: `timer`, `signal`, `child`, `children` or `finalize`."""
        return self._row.waiting_for

    @property
    def completed_step_count(self) -> int:
        """How many steps are saved as completed."""
        return self._row.completed_step_count

    @property
    def current_step_index(self) -> int:
        """The position after the last saved step."""
        return self._row.current_step_index

    # -- what can be done with it ------------------------------------------------------------------------------

    def wait(
        self, timeout: float | None = None, *, on_progress: OnProgress | None = None, on_log: OnLog | None = None
    ) -> Reply[Run[R_co]]:
        """The ended run, however it ended. `TimeoutError` after `timeout` seconds; the run goes on.

        The callbacks are those of `app.wait_for_run`.
        """
        return self._app._wait_for_run(self.id, self._job, timeout, telling(on_progress, on_log))

    def result(
        self, timeout: float | None = None, *, on_progress: OnProgress | None = None, on_log: OnLog | None = None
    ) -> Reply[R_co]:
        """The output. `RunFailed`, `RunTimedOut` or `RunCancelled` if there is none; `TimeoutError` as `wait`."""
        return self._app._result_of(self.id, self._job, timeout, telling(on_progress, on_log))

    def subscribe(self) -> Subscription:
        """Its events, from now until its end: `async for event in run.subscribe()`, or `for`. See `app.subscribe`."""
        return self._app.subscribe(self.id)

    def cancel(self) -> Reply[Run[R_co]]:
        """Cancel it; the reply is there when that is durable. `ConflictError` if it has ended."""
        return self._app._cancel(self.id, self._job)

    def delete(self) -> Reply[None]:
        """Delete it; the reply is there when it is gone for good. `ConflictError` if it has not ended."""
        return self._app.delete_run(self.id)

    def refresh(self) -> Reply[Run[R_co]]:
        """The run as it is now. `NotFoundError` if it is gone."""
        return self._app._refresh(self.id, self._job)

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.job_name} {self._row.status}>"


def result(run: Run[R_co]) -> R_co:
    """The output of an ended run, or the error that says how it ended."""
    row = run._row
    if row.status == RunStatus.COMPLETED:
        output: Any = run.output
        value: R_co = output
        return value
    if row.status == RunStatus.CANCELLED:
        raise RunCancelled(f"Run was cancelled: {run.id}" + (f" ({run.error})" if row.error else ""), run_id=run.id)
    kind = RunTimedOut if row.status == RunStatus.TIMED_OUT else RunFailed
    raise kind(run.error or "Run failed", run_id=run.id, error_type=row.error_type)


@dataclass(frozen=True, slots=True)
class StepAttempt:
    """One try of a step. `ended_at` is None while it is called, and for ever if nobody lived to tell how it ended."""

    number: int
    """How many tries had failed before. Each attempt of the run has them anew."""
    run_attempt: int
    """The attempt of the run that it belongs to."""
    started_at: datetime
    ended_at: datetime | None
    error: str | None
    """How it failed, shortened."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step, for looking at. `index` is its place in the order of starting; times are UTC.

    `status` is `completed` or `failed` once it is saved. Before that it is `running` (it is called, or rests until its
    next try; known some tenths of a second after it began, at the latest with the next renewal of the lease) or
    `interrupted` (the execution that called it is over; the next one will call it again). A wait is `waiting`.
    """

    name: str
    occurrence: int
    index: int
    status: str
    attempt: int
    output: Any
    error: str | None
    error_type: str | None
    traceback: str | None
    started_at: datetime
    completed_at: datetime | None
    attempts: tuple[StepAttempt, ...]
    """Its tries, in order. The last one is how it ended."""
    output_dropped: bool = False
    """It had an output, which was dropped after the end of the run (`preserve_steps`)."""
    wait: WaitKind | None = None
    """What it waits or waited for; None: it calls a function."""
    until: datetime | None = None
    """Of a wait that goes on: no longer than until then."""

    @classmethod
    def all(
        cls,
        rows: Iterable[StepRow],
        tries: Iterable[AttemptRow],
        payloads: Payloads,
        waits: Iterable[WaitRow] = (),
    ) -> list[StepRecord]:
        """The records of a run: its saved steps, those that were begun, and what it waits for."""
        by_step: dict[StepKey, list[AttemptRow]] = {}
        for one in tries:
            by_step.setdefault(StepKey(one.name, one.occurrence), []).append(one)
        records = [cls.of(row, by_step.pop(StepKey(row.name, row.occurrence), []), payloads) for row in rows]
        records += [cls._begun(begun, payloads) for begun in by_step.values()]
        saved = {StepKey(record.name, record.occurrence) for record in records if record.status == "completed"}
        going_on = {key: row for row in waits if (key := step_of(row.key)) not in saved}
        # What failed in an attempt before is waited for anew.
        records = [record for record in records if StepKey(record.name, record.occurrence) not in going_on]
        # Where they stand in the order is written when they are over: until then they are last.
        last = max((record.index for record in records), default=-1)
        records += [cls._waiting(row, last + number) for number, row in enumerate(going_on.values(), 1)]
        return sorted(records, key=lambda record: (record.index, record.started_at, record.name, record.occurrence))

    @classmethod
    def _waiting(cls, row: WaitRow, index: int) -> StepRecord:
        key = step_of(row.key)
        return cls(
            key.name, key.occurrence, index, "waiting", 0, None, None, None, None, _time(row.created_at), None, (),
            wait=cast("WaitKind", row.kind), until=to_datetime(row.until),
        )  # fmt: skip

    @classmethod
    def _begun(cls, tries: list[AttemptRow], payloads: Payloads) -> StepRecord:
        last = tries[-1]
        status = "running" if last.live else "interrupted"
        return cls(
            last.name, last.occurrence, last.position, status, last.run_attempt, None, None, None, None,
            _time(tries[0].started_at), None, tuple(_attempt(one, payloads) for one in tries),
        )  # fmt: skip

    @classmethod
    def of(cls, row: StepRow, tries: list[AttemptRow], payloads: Payloads) -> StepRecord:
        failure = None if row.error is None else _failure(row.error, payloads)
        wait = kind_of(row.fingerprint)
        return cls(
            name=row.name,
            occurrence=row.occurrence,
            index=row.position,
            status=row.status,
            attempt=row.attempt,
            output=None if row.output is None else _output(row.output, wait, payloads),
            error=None if failure is None else failure.message,
            error_type=None if failure is None else failure.short_type,
            traceback=None if failure is None else failure.traceback,
            started_at=_time(row.started_at),
            completed_at=_time(row.completed_at),
            attempts=_with_the_last(row, tries, failure, payloads),
            # Also what is nothing is kept as text.
            output_dropped=row.status == "completed" and row.output is None,
            wait=wait,
        )


def _output(stored: str, wait: WaitKind | None, payloads: Payloads) -> Any:
    # What runs below came to is theirs, unless it is small: then only which they were is kept.
    if wait in BELOW and payloads.shown_text(stored).startswith(WHICH):
        return None
    return payloads.shown(stored)


def _with_the_last(
    row: StepRow, tries: list[AttemptRow], failure: Failure | None, payloads: Payloads
) -> tuple[StepAttempt, ...]:
    """The tries, and the one that was saved as the step: a first try has no row of its own, or one that is open."""
    shown = [_attempt(one, payloads) for one in tries if one.run_attempt != row.attempt or one.ended_at is not None]
    now = _time(row.completed_at)
    before = [one for one in shown if one.run_attempt == row.attempt]
    if not before or before[-1].ended_at != now:
        error = None if failure is None else failed_text(failure)
        last = StepAttempt(len(before), row.attempt, _time(row.started_at), now, error)
        shown = sorted([*shown, last], key=lambda one: one.run_attempt)
    return tuple(shown)


def _attempt(row: AttemptRow, payloads: Payloads) -> StepAttempt:
    error = None if row.error is None else payloads.shown_text(row.error)
    return StepAttempt(row.number, row.run_attempt, _time(row.started_at), to_datetime(row.ended_at), error)


def _failure(stored: str, payloads: Payloads) -> Failure:
    try:
        text = payloads.open(stored)
    except (Outdated, StoreUnavailable) as error:
        return Failure("", error.message, None, None)
    return Failure.from_json(text)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a run has written. `id` grows in the order of writing."""

    id: int
    step_name: str | None
    level: str
    message: str
    data: Any
    created_at: datetime

    @classmethod
    def of(cls, row: LogRow, payloads: Payloads) -> LogLine:
        data = None if row.data is None else payloads.shown(row.data)
        return cls(row.id, row.step_name, row.level, payloads.shown_text(row.message), data, _time(row.created_at))


OnProgress: TypeAlias = Callable[[dict[str, Any]], object]
OnLog: TypeAlias = Callable[[LogLine], object]


def telling(on_progress: OnProgress | None, on_log: OnLog | None) -> Callable[[Event], object] | None:
    """What to do with each event for callbacks; None without any."""
    for name, call in (("on_progress", on_progress), ("on_log", on_log)):
        if call is not None and not callable(call):
            raise ValidationError(f"{name}: {shown(call)} can't be called.")
    if on_progress is None and on_log is None:
        return None

    def tell(event: Event) -> object:
        if event.type == "run:progress" and on_progress is not None:
            return on_progress(dict(event.data["progress"]))
        if event.type == "log:write" and on_log is not None:
            data = event.data
            line = LogLine(0, data["step_name"], data["level"], data["message"], data.get("data"), event.timestamp)
            return on_log(line)
        return None

    return tell
