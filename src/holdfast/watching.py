"""Watching: the verbs of an app that read, wait and listen. They change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from .basis.errors import NotFoundError
from .commit.reply import Reply
from .engine.arguments import checked_count, checked_statuses, checked_text, checked_timeout, several
from .engine.engine import Engine
from .engine.hub import Listener
from .engine.registry import JobDefinition, checked_labels
from .job import Job
from .model.event import Event
from .model.run import RunFilter, RunRow, RunStatus
from .run import LogLine, Run, StepRecord, result

if TYPE_CHECKING:
    from .managing import Managing

R = TypeVar("R")

Statuses = RunStatus | str | Iterable[RunStatus] | Iterable[str] | None


class Watching:
    """What an app tells of its runs."""

    _engine: Engine

    def _seen(self, row: RunRow, job: JobDefinition | None = None) -> Run[Any]:
        return Run(cast("Managing", self), row, job or self._engine.registry.get(row.job_name))

    # -- reading -----------------------------------------------------------------------------------------------

    def get_run(self, run_id: str) -> Reply[Run[Any] | None]:
        """The run; None if there is none."""
        return self._get_run(run_id, None)

    def _get_run(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any] | None]:
        def one(rows: list[RunRow]) -> Run[Any] | None:
            if not rows or (job is not None and rows[0].job_name != job.name):
                return None
            return self._seen(rows[0], job)

        return self._find(RunFilter(ids=(checked_text(run_id, "run id"),)), one)

    def get_runs(
        self,
        *,
        job: str | Job[..., Any] | Iterable[str | Job[..., Any]] | None = None,
        status: Statuses = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = 100,
        offset: int = 0,
        before: str | None = None,
    ) -> Reply[list[Run[Any]]]:
        """Runs, newest first, that fit all that is given; nothing given means all.

        `limit=None` gives every one. `before`: only runs older than the one with this id, for paging that stays
        stable while new runs come in.
        """
        jobs = tuple(one.name if isinstance(one, Job) else one for one in several(job, (str, Job), "job"))
        return self._get_runs(jobs=jobs, status=status, labels=labels, limit=limit, offset=offset, before=before)

    def _get_runs(
        self,
        *,
        jobs: tuple[str, ...],
        status: Statuses,
        labels: Mapping[str, str] | None,
        limit: int | None,
        offset: int,
        before: str | None,
    ) -> Reply[list[Run[Any]]]:
        wanted = RunFilter(
            jobs=tuple(checked_text(job, "job") for job in jobs),
            statuses=checked_statuses(status),
            labels=tuple(checked_labels({} if labels is None else labels).items()),
            limit=None if limit is None else checked_count(limit, "limit"),
            offset=checked_count(offset, "offset"),
            before=None if before is None else checked_text(before, "before"),
        )
        return self._find(wanted, lambda rows: [self._seen(row) for row in rows])

    def get_steps(self, run_id: str) -> Reply[list[StepRecord]]:
        """The saved steps of a run, in the order in which they were started."""
        store = self._engine.store
        checked_text(run_id, "run id")
        return self._engine.reader.read(
            "get_steps", lambda c: store.find_steps(c, run_id), lambda rows: [StepRecord.of(row) for row in rows]
        )

    def get_logs(self, run_id: str, *, after: int = 0, limit: int | None = None) -> Reply[list[LogLine]]:
        """The log lines of a run, in the order of writing; `after` the line with this id."""
        store = self._engine.store
        checked_text(run_id, "run id")
        checked_count(after, "after")
        many = None if limit is None else checked_count(limit, "limit")
        return self._engine.reader.read(
            "get_logs",
            lambda c: store.find_logs(c, run_id, after=after, limit=many),
            lambda rows: [LogLine.of(row) for row in rows],
        )

    def wait_for_run(self, run_id: str, *, timeout: float | None = None) -> Reply[Run[Any]]:
        """The run once it has ended, however it ended, in whatever process. `NotFoundError` if there is none."""
        return self._wait_for_run(run_id, None, timeout)

    def _wait_for_run(self, run_id: str, job: JobDefinition | None, timeout: float | None) -> Reply[Run[Any]]:
        what = f"end of run {checked_text(run_id, 'run id')}"
        return self._engine.wait_for(run_id, what, lambda row: self._seen(row, job), checked_timeout(timeout))

    def _result_of(self, run_id: str, job: JobDefinition | None, timeout: float | None) -> Reply[Any]:
        what = f"result of run {run_id}"
        return self._engine.wait_for(run_id, what, lambda row: result(self._seen(row, job)), checked_timeout(timeout))

    def _refresh(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any]]:
        def one(rows: list[RunRow]) -> Run[Any]:
            if not rows:
                raise NotFoundError(f"Run not found: {run_id}")
            return self._seen(rows[0], job)

        return self._find(RunFilter(ids=(run_id,)), one)

    def _find(self, wanted: RunFilter, convert: Callable[[list[RunRow]], R]) -> Reply[R]:
        store = self._engine.store
        return self._engine.reader.read("find_runs", lambda c: store.find_runs(c, wanted), convert)

    # -- events ------------------------------------------------------------------------------------------------

    @overload
    def on(self, type: str, listener: Listener, /) -> Callable[[], None]: ...
    @overload
    def on(self, type: str, /) -> Callable[[Listener], Listener]: ...
    def on(self, type: str, listener: Listener | None = None, /) -> Any:
        """Call `listener(event)` for every event of this type in this process; gives a function that ends it.

        Without a listener it is a decorator. Listeners are called one after the other on a thread of their own, after
        the commit that they tell of; what they raise goes to `on_error`.
        """
        if listener is not None:
            return self._engine.hub.on(type, listener)

        def decorate(listener: Listener) -> Listener:
            self._engine.hub.on(type, listener)
            return listener

        return decorate

    def on_error(self, handler: Callable[[BaseException, Event], Any]) -> None:
        """Call `handler(error, event)` when a listener raises."""
        self._engine.hub.on_error(handler)
