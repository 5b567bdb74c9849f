"""A run as users see it: a picture of its row at one moment, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic_core import from_json

from .basis.clock import to_datetime
from .basis.errors import RunCancelled, RunFailed, RunTimedOut
from .basis.failures import Failure
from .basis.values import plain
from .commit.reply import Reply
from .model.run import Disposition, RunRow, RunStatus
from .model.step import LogRow, StepRow

if TYPE_CHECKING:
    from .engine.registry import JobDefinition
    from .managing import Managing

R_co = TypeVar("R_co", covariant=True)


def _time(micros: int | None) -> datetime:
    when = to_datetime(micros)
    assert when is not None
    return when


class Run(Generic[R_co]):
    """One durable execution of a job, as it was when it was read. It does not change; `refresh()` reads it again."""

    __slots__ = ("_app", "_job", "_row", "disposition")

    def __init__(
        self, app: Managing, row: RunRow, job: JobDefinition | None, disposition: Disposition | None = None
    ) -> None:
        self._app = app
        self._row = row
        self._job = job
        self.disposition = disposition
        """What the trigger did: `created`, or `idempotent` if its key led to a run that was there. Else None."""

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
        return plain(self._row.input)

    @property
    def output(self) -> R_co | None:
        """What the job returned; None until it has completed. `Outdated` if today's code can't read it."""
        if self._row.output is None:
            return None
        if self._job is None:
            value: R_co = plain(self._row.output)
            return value
        value = self._job.signature.output.load(self._row.output, f"output of run {self.id}")
        return value  # noqa: RET504 - gives the Any its type

    @property
    def error(self) -> str | None:
        """The message of what ended it, if it did not complete."""
        return self._row.error

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
    def waiting_for(self) -> str | None:
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

    def wait(self, timeout: float | None = None) -> Reply[Run[R_co]]:
        """The ended run, however it ended. `TimeoutError` after `timeout` seconds; the run goes on."""
        return self._app._wait_for_run(self.id, self._job, timeout)

    def result(self, timeout: float | None = None) -> Reply[R_co]:
        """The output. `RunFailed`, `RunTimedOut` or `RunCancelled` if there is none; `TimeoutError` as `wait`."""
        return self._app._result_of(self.id, self._job, timeout)

    def cancel(self) -> Reply[Run[R_co]]:
        """Cancel it; the reply is there when that is durable. `ConflictError` if it has ended."""
        return self._app._cancel(self.id, self._job)

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
        raise RunCancelled(f"Run was cancelled: {run.id}" + (f" ({row.error})" if row.error else ""), run_id=run.id)
    kind = RunTimedOut if row.status == RunStatus.TIMED_OUT else RunFailed
    raise kind(row.error or "Run failed", run_id=run.id, error_type=row.error_type)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A saved step, for looking at. `index` is its place in the order of starting; times are UTC."""

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
    completed_at: datetime

    @classmethod
    def of(cls, row: StepRow) -> StepRecord:
        failure = Failure.from_json(row.error) if row.error is not None else None
        return cls(
            name=row.name,
            occurrence=row.occurrence,
            index=row.position,
            status=row.status,
            attempt=row.attempt,
            output=None if row.output is None else plain(row.output),
            error=None if failure is None else failure.message,
            error_type=None if failure is None else failure.short_type,
            traceback=None if failure is None else failure.traceback,
            started_at=_time(row.started_at),
            completed_at=_time(row.completed_at),
        )


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
    def of(cls, row: LogRow) -> LogLine:
        data = None if row.data is None else plain(row.data)
        return cls(row.id, row.step_name, row.level, row.message, data, _time(row.created_at))
