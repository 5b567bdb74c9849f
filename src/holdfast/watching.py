"""Watching: the verbs of an app that read, wait and listen. They change nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

from .basis.errors import NotFoundError, ValidationError
from .basis.text import shown
from .commit.reply import Reply
from .engine.arguments import checked_count, checked_statuses, checked_text, checked_timeout, several
from .engine.context import current
from .engine.engine import Engine
from .engine.hub import Listener
from .engine.registry import JobDefinition, checked_labels
from .engine.stats import Stats, stats_of
from .engine.subscription import Subscription
from .job import Job
from .model.event import Event
from .model.run import RunFilter, RunRow, RunStatus
from .model.worker import WorkerRecord
from .run import LogLine, OnLog, OnProgress, Run, StepRecord, Told, result, telling

if TYPE_CHECKING:
    from .managing import Managing

R = TypeVar("R")


class Plugin(Protocol):
    """Something that an app can `use`: it listens, counts, forwards."""

    @property
    def name(self) -> str:
        """Tells plug-ins apart: of one name, one is installed."""
        ...

    def install(self, app: Any, /) -> object:
        """Called once, with the app: register listeners here."""
        ...


PluginT = TypeVar("PluginT", bound=Plugin)

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

        return self._find(RunFilter(ids=(checked_text(run_id, "run id"),)), one, f"get_run of {run_id}")

    def get_runs(
        self,
        *,
        job: str | Job[..., Any] | Iterable[str | Job[..., Any]] | None = None,
        status: Statuses = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = 100,
        offset: int = 0,
        before: str | None = None,
        parent: str | None = None,
    ) -> Reply[list[Run[Any]]]:
        """Runs, newest first, that fit all that is given; nothing given means all.

        `limit=None` gives every one. `before`: only runs older than the one with this id, for paging that stays
        stable while new runs come in. `parent`: only runs directly below the one with this id.
        """
        jobs = tuple(one.name if isinstance(one, Job) else one for one in several(job, (str, Job), "job"))
        return self._get_runs(
            jobs=jobs, status=status, labels=labels, limit=limit, offset=offset, before=before, parent=parent
        )

    def _get_runs(
        self,
        *,
        jobs: tuple[str, ...],
        status: Statuses,
        labels: Mapping[str, str] | None,
        limit: int | None,
        offset: int,
        before: str | None,
        parent: str | None = None,
    ) -> Reply[list[Run[Any]]]:
        wanted = RunFilter(
            jobs=tuple(checked_text(job, "job") for job in jobs),
            statuses=checked_statuses(status),
            labels=tuple(checked_labels({} if labels is None else labels).items()),
            limit=None if limit is None else checked_count(limit, "limit"),
            offset=checked_count(offset, "offset"),
            before=None if before is None else checked_text(before, "before"),
            parent=None if parent is None else checked_text(parent, "parent"),
        )
        return self._find(wanted, lambda rows: [self._seen(row) for row in rows], "get_runs")

    def get_steps(self, run_id: str) -> Reply[list[StepRecord]]:
        """The steps of a run, in the order in which they were started: saved ones, those tried now, and waits.

        Some time after the end of the run their outputs are dropped (`output_dropped`), unless `preserve_steps=True`.
        """
        store, payloads = self._engine.store, self._engine.payloads
        checked_text(run_id, "run id")
        return self._engine.reader.read(
            "get_steps",
            # In this order: what is saved in between is saved, neither running nor waiting.
            lambda c: (store.find_attempts(c, run_id), store.find_waits(c, run_id), store.find_steps(c, run_id)),
            lambda found: StepRecord.all(found[2], found[0], payloads, found[1]),
        )

    def get_logs(self, run_id: str, *, after: int = 0, limit: int | None = None) -> Reply[list[LogLine]]:
        """The log lines of a run, in the order of writing; `after` the line with this id."""
        store, payloads = self._engine.store, self._engine.payloads
        checked_text(run_id, "run id")
        checked_count(after, "after")
        many = None if limit is None else checked_count(limit, "limit")
        return self._engine.reader.read(
            "get_logs",
            lambda c: store.find_logs(c, run_id, after=after, limit=many),
            lambda rows: [LogLine.of(row, payloads) for row in rows],
        )

    def wait_for_run(
        self,
        run_id: str,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        on_log: OnLog | None = None,
    ) -> Reply[Run[Any]]:
        """The run once it has ended, however it ended, in whatever process. `NotFoundError` if there is none.

        Meanwhile `on_progress(dict)` and `on_log(LogLine)` are called with what it says from now on, by whoever waits:
        in the thread of `.wait()`, or in the task that awaits. They may be async. What they raise goes to `on_error`.
        """
        return self._wait_for_run(run_id, None, timeout, telling(on_progress, on_log))

    def _wait_for_run(
        self, run_id: str, job: JobDefinition | None, timeout: float | None, told: Told = None
    ) -> Reply[Run[Any]]:
        what = f"end of run {checked_text(run_id, 'run id')}"
        return self._engine.wait_for(run_id, what, lambda row: self._seen(row, job), checked_timeout(timeout), told)

    def _result_of(
        self, run_id: str, job: JobDefinition | None, timeout: float | None, told: Told = None
    ) -> Reply[Any]:
        def convert(row: RunRow) -> Any:
            return result(self._seen(row, job))

        return self._engine.wait_for(run_id, f"result of run {run_id}", convert, checked_timeout(timeout), told)

    def _refresh(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any]]:
        def one(rows: list[RunRow]) -> Run[Any]:
            if not rows:
                raise NotFoundError(f"Run not found: {run_id}")
            return self._seen(rows[0], job)

        return self._find(RunFilter(ids=(run_id,)), one, f"refresh of {run_id}")

    def _find(self, wanted: RunFilter, convert: Callable[[list[RunRow]], R], what: str = "get_runs") -> Reply[R]:
        store = self._engine.store
        return self._engine.reader.read(what, lambda c: store.find_runs(c, wanted), convert)

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
        """Call `handler(error, event)` when a listener raises, or a callback of who waits. The last one set counts."""
        self._engine.hub.on_error(handler)

    def emit(self, type: str, data: Mapping[str, Any] | None = None, *, run_id: str | None = None) -> None:
        """Tell listeners in this process an event of your own: `app.emit("app:imported", {"rows": 7})`.

        The name has a prefix that is not ours (`run:`, `step:`, `log:`, `worker:`). The data is what JSON can say, and
        listeners get a copy. Inside a run the event carries that run. Returns at once, nothing is written.
        """
        run = None
        if run_id is not None:
            checked_text(run_id, "run id")
        execution = current.get()
        if execution is not None and execution.engine is self._engine and run_id in (None, execution.row.id):
            run = execution.row
        self._engine.hub.emit(type, data, run_id, run)

    def subscribe(self, run_id: str) -> Subscription:
        """The events of one run from now until its end, in whatever process: `async for event in …`, or `for`.

        First how it stands (`run:leased`, `run:progress`), then `run:…`, `step:…` and `log:write` as they happen; the
        last one is `run:complete`, `run:fail`, `run:cancel` or `run:delete`. Nothing happens before the first event is
        asked for; then `NotFoundError` if there is no such run.
        """
        return self._engine.subscriptions.subscribe(checked_text(run_id, "run id"))

    def use(self, plugin: PluginT) -> PluginT:
        """Install a plug-in: call `plugin.install(app)`, once for each `plugin.name`. Gives the plug-in.

        What `install` raises is raised here, and the plug-in is not installed.
        """
        given: object = plugin
        name, install = getattr(given, "name", None), getattr(given, "install", None)
        if not isinstance(name, str) or not name or not callable(install):
            raise ValidationError(f"use: {shown(plugin)} is no plug-in. It needs a `name` and a method `install(app)`.")
        plugins = self._engine.plugins
        if name not in plugins:
            plugins[name] = plugin
            try:
                made = install(self)
                if inspect.isawaitable(made):
                    if inspect.iscoroutine(made):
                        made.close()
                    raise ValidationError(f"use: install() of plug-in {name!r} must not be async.")
            except BaseException:
                del plugins[name]
                raise
        return plugin

    def workers(self) -> Reply[list[WorkerRecord]]:
        """Who executes runs of this database, in whatever process, and which; the first started, first.

        A worker that died stays in the list, not `is_alive`, for ten of its leases; one that was stopped is gone.
        """
        store = self._engine.store
        return self._engine.reader.read(
            "find_workers", store.find_workers, lambda rows: [WorkerRecord.of(row) for row in rows]
        )

    def stats(self) -> Stats:
        """How this process is doing: what runs here, what the database costs, how long the line is. A plain value."""
        return stats_of(self._engine)
