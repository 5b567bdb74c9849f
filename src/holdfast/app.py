"""`Holdfast`: the one object that users hold. Everything that touches the database gives a `Reply`.

Long because its verbs are documented where they are, and users look for them in one class.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from .basis.clock import Clock, SystemClock
from .basis.durations import Duration, seconds
from .basis.errors import ConflictError, NotFoundError, Outdated, ValidationError
from .basis.text import shown
from .commit.forks import inside
from .commit.reply import LazyReply, Reply, answer, hand_on, may_block
from .commit.ticket import Ticket
from .engine.arguments import checked_count, checked_statuses, checked_text, checked_timeout, several
from .engine.context import Step, SyncStep, step_function
from .engine.engine import Engine
from .engine.hub import Listener
from .engine.registry import JobDefinition, checked_labels, checked_name
from .engine.worker import Worker
from .job import Call, Job, JobDecorator, JobOptions, TriggerOptions, check_size, checked_options, define
from .model.event import Event
from .model.options import Options
from .model.run import RunFilter, RunRow, RunStatus
from .run import LogLine, Run, StepRecord, result
from .store.base import Store, Triggered
from .store.sqlite import SqliteStore

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

Statuses = RunStatus | str | Iterable[RunStatus] | Iterable[str] | None


class Jobs:
    """The jobs of an app, by the names of their functions: `app.jobs.import_airports`."""

    def __init__(self, app: Holdfast) -> None:
        self._app = app

    def __getattr__(self, key: str) -> Job[..., Any]:
        definition = self._app._engine.registry.get(key)
        if definition is None:
            raise AttributeError(f"there is no job {key!r}")
        return Job(definition, self._app)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._app._engine.registry.keys()]


class Holdfast:
    """Runs functions durably.

    `url` says where: `sqlite:///path/to/file.db`, or `sqlite://` for a temporary file. Nothing is opened, started or
    written before the first use. As a context manager (`async with` or `with`) it makes the tables, starts the worker,
    and stops it when left.

    `worker=False` makes an app that only triggers and watches. `worker="thread"` executes on a loop of its own even
    inside async code, so that blocking jobs can't stall a web server. `lease_renew_interval` is a third of the lease.
    The other options, with their units, are those of `holdfast.model.options.Options`.
    """

    def __init__(
        self,
        url: str | Store = "sqlite://",
        *,
        jobs: Iterable[Job[..., Any]] | Mapping[str, Job[..., Any]] = (),
        worker: bool | Literal["thread"] = True,
        concurrency: int = 10,
        polling_interval: Duration = 1.0,
        lease: Duration = 30.0,
        lease_renew_interval: Duration | None = None,
        queues: Iterable[str] = ("default",),
        max_crashes: int = 5,
        cancel_grace: Duration = 5.0,
        max_input_bytes: int = 1 << 20,
        max_output_bytes: int = 1 << 20,
        strict: bool = False,
        inline: bool | None = None,
        clock: Clock | None = None,
    ) -> None:
        if worker not in (True, False, "thread"):
            raise ValidationError(f"worker: {shown(worker)} must be True, False or 'thread'.")
        length = seconds(lease, "lease")
        renew = length / 3 if lease_renew_interval is None else seconds(lease_renew_interval, "lease_renew_interval")
        options = Options(
            concurrency=concurrency,
            polling_interval=seconds(polling_interval, "polling_interval"),
            lease=length,
            lease_renew_interval=renew,
            queues=tuple(checked_name(queue, "queues") for queue in several(queues, (str,), "queues")),
            max_crashes=max_crashes,
            cancel_grace=seconds(cancel_grace, "cancel_grace"),
            max_input_bytes=max_input_bytes,
            max_output_bytes=max_output_bytes,
            strict=strict,
            # By what the platform is, never by trying: in a browser threads only seem to work.
            inline=sys.platform == "emscripten" if inline is None else inline,
        )
        clock = clock or SystemClock()
        if not isinstance(url, str | Store):
            raise ValidationError(f"url: {type(url).__name__} is no URL. Write e.g. 'sqlite:///app.db'.")
        store = SqliteStore(url, clock=clock) if isinstance(url, str) else url
        if getattr(store, "in_memory", False) and not options.inline:
            raise ValidationError(
                "sqlite:///:memory: has one connection only: use it with inline=True, or 'sqlite://'."
            )
        self._works = worker
        self._engine = Engine(store, clock, options, own_thread=worker == "thread", own_store=isinstance(url, str))
        self.jobs: Jobs = Jobs(self)
        named = cast("Mapping[str, Job[..., Any]]", jobs) if isinstance(jobs, Mapping) else {}
        for job in named.values() if isinstance(jobs, Mapping) else several(jobs, (Job,), "jobs"):
            self.register(job)
        for key, job in named.items():
            self._engine.registry.add(job._definition, key=key, replace=False)

    # -- defining ----------------------------------------------------------------------------------------------

    @overload
    def job(self, fn: Callable[Concatenate[Step, P], Awaitable[R]], /) -> Job[P, R]: ...
    @overload
    def job(self, fn: Callable[Concatenate[SyncStep, P], R], /) -> Job[P, R]: ...
    @overload
    def job(self, fn: Callable[P, Awaitable[R]], /) -> Job[P, R]: ...
    @overload
    def job(self, fn: Callable[P, R], /) -> Job[P, R]: ...
    @overload
    def job(self, /, **options: Unpack[JobOptions]) -> JobDecorator: ...
    def job(self, fn: Any = None, /, **options: Any) -> Any:
        """Make a function a job of this app: `@app.job`, or `@app.job(name=…, queue=…, priority=…, labels=…)`.

        Every parameter (but the step) needs an annotation: they are the input, checked before anything is written.
        """
        localns = sys._getframe(1).f_locals

        def decorate(fn: Callable[..., Any]) -> Job[Any, Any]:
            definition = define(fn, checked_options(options), localns)
            return Job(self._engine.registry.add(definition, replace=not self._is_working), self)

        return decorate if fn is None else decorate(fn)

    @overload
    def step(self, fn: F, /) -> F: ...
    @overload
    def step(self, /, *, name: str | None = None, key: Callable[..., str] | None = None) -> Callable[[F], F]: ...
    def step(self, fn: Any = None, /, *, name: str | None = None, key: Callable[..., str] | None = None) -> Any:
        """Make a function a step wherever a run calls it; elsewhere it stays what it is.

        `key(*args, **kwargs)` tells calls apart that happen in parallel: `@app.step(key=lambda id: id)`.
        """

        def decorate(fn: F) -> F:
            return step_function(fn, name, key)

        return decorate if fn is None else decorate(fn)

    @overload
    def register(self, job: Job[P, R], /) -> Job[P, R]: ...
    @overload
    def register(
        self, first: Job[..., Any], second: Job[..., Any], /, *more: Job[..., Any]
    ) -> tuple[Job[..., Any], ...]: ...
    def register(self, /, *jobs: Any) -> Any:
        """Add jobs that were defined without an app; gives their handles: one, or a tuple of several."""
        for job in jobs:
            if not isinstance(job, Job):
                raise ValidationError(f"register: {shown(job)} is not a job. Decorate it with @holdfast.job.")
        handles = tuple(
            Job[..., Any](self._engine.registry.add(job._definition, replace=not self._is_working), self)
            for job in jobs
        )
        return handles[0] if len(handles) == 1 else handles

    def get_job(self, name: str) -> Job[..., Any] | None:
        """The job of this name or key; None if there is none."""
        definition = self._engine.registry.get(name)
        return None if definition is None else Job(definition, self)

    # -- triggering --------------------------------------------------------------------------------------------

    def trigger(self, call: Call[R]) -> Reply[Run[R]]:
        """Write a run of the call; the reply is there when the run is durable."""
        if not isinstance(call, Call):
            raise ValidationError(f"trigger: {shown(call)} is not a call. Write app.trigger(job.bind(…)).")
        # What is not registered here nobody may ever execute.
        self._engine.registry.need(call.job_name)
        self._check_size(call.input)
        return self._trigger(call)

    def retrigger(self, run_id: str) -> Reply[Run[Any]]:
        """A fresh run with the input of an ended one, which is checked again.

        `NotFoundError` if there is no such run or job, `ConflictError` if it has not ended, `ValidationError` if
        today's code refuses the input.
        """
        engine = self._engine
        checked_text(run_id, "run id")
        reply: Reply[Run[Any]] = Reply(f"retrigger of {run_id}")
        read: Reply[list[RunRow]] = Reply("find_runs")
        read._asked = True

        def found() -> None:
            # In the reading thread: the user's validators run beside the writer, never in its way.
            try:
                if read._error is not None:
                    raise read._error
                written = self._trigger_again(run_id, read._value)
            except Exception as error:
                answer([(reply, None, error)])
            else:
                written._asked = True
                hand_on(written, reply)

        read._subscribe(found)
        engine.reader.ask(lambda c: engine.store.find_runs(c, RunFilter(ids=(run_id,))), read)
        return reply

    def _trigger_again(self, run_id: str, rows: list[RunRow]) -> Ticket[Run[Any]]:
        if not rows:
            raise NotFoundError(f"Run not found: {run_id}")
        row = rows[0]
        if row.completed_at is None:
            raise ConflictError(f"Cannot retrigger {row.status} run: {run_id}")
        job = self._engine.registry.need(row.job_name)
        try:
            args, kwargs = job.signature.decode(row.input)
            text = job.signature.encode(args, kwargs)
        except (Outdated, ValidationError) as error:
            raise ValidationError(f"Cannot retrigger run {run_id}: {error.message}") from error
        # Not `Call[Any](…)`: before Python 3.12 that can't make a frozen dataclass with slots.
        again: Call[Any] = Call(job, text, TriggerOptions())
        new = again.new_run(self._engine.ids.new())
        new = new._replace(queue=row.queue, priority=row.priority, labels=row.labels, tenant=row.tenant)
        return self._engine.trigger(
            new, numbered=False, convert=lambda made: Run(self, made.run, job, made.disposition)
        )

    def _trigger(self, call: Call[R]) -> Ticket[Run[R]]:
        job = call.job

        def convert(made: Triggered) -> Run[R]:
            return Run(self, made.run, job, made.disposition)

        return self._engine.trigger(call.new_run(self._engine.ids.new()), numbered=True, convert=convert)

    def _run(self, call: Call[R]) -> Reply[R]:
        ticket = self._trigger(call)
        return self._engine.wait_for_triggered(
            ticket, f"result of {call.job_name}", lambda row: result(Run[R](self, row, call.job))
        )

    def _trigger_and_wait(self, call: Call[R]) -> Reply[Run[R]]:
        ticket = self._trigger(call)
        return self._engine.wait_for_triggered(
            ticket, f"end of {call.job_name}", lambda row: Run[R](self, row, call.job)
        )

    def _check_size(self, text: str) -> None:
        check_size(text, self._engine.options.max_input_bytes, "input")

    # -- managing ----------------------------------------------------------------------------------------------

    def cancel(self, run_id: str) -> Reply[Run[Any]]:
        """Cancel a run; the reply is there when that is durable.

        A step's body that is under way may come to its end, and its result is dropped; no new step begins.
        `NotFoundError`, or `ConflictError` if the run has ended.
        """
        return self._cancel(run_id, None)

    def _cancel(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any]]:
        return self._engine.cancel(checked_text(run_id, "run id"), lambda row: self._seen(row, job))

    def _seen(self, row: RunRow, job: JobDefinition | None = None) -> Run[Any]:
        return Run(self, row, job or self._engine.registry.get(row.job_name))

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

    # -- life --------------------------------------------------------------------------------------------------

    @property
    def _is_working(self) -> bool:
        worker = self._engine.worker
        return worker is not None and worker.running

    def migrate(self) -> Reply[list[str]]:
        """Make or upgrade the tables; the names of what was applied. Many processes may do it at once."""

        def migrate() -> list[str]:
            with inside:
                return self._engine.store.migrate()

        return self._aside("migrate", migrate)

    def _migrate(self) -> None:
        with inside:
            self._engine.store.migrate()

    def _aside(self, what: str, work: Callable[[], R]) -> Reply[R]:
        """Blocking work of ours, beside the caller's loop where there are threads."""
        engine = self._engine

        def start(reply: Reply[R]) -> None:
            if engine.options.inline:
                answer([(reply, work(), None)])
            else:
                hand_on(engine.threads.call(work), reply)

        return LazyReply(what, start)

    def start(self) -> Reply[None]:
        """Claim and execute runs from now on. The tables must be there."""
        self._engine.open()
        return self._engine.call("start", self._engine.start)

    def init(self) -> Reply[None]:
        """Make the tables and, unless `worker=False`, start the worker."""
        self._engine.open()
        if not self._works:
            return self._aside("init", self._migrate)
        migrated = self.migrate()

        async def init(worker: Worker) -> None:
            await migrated
            await self._engine.start(worker)

        return self._engine.call("init", init)

    def stop(self, timeout: float | None = 30.0) -> Reply[None]:
        """Stop: refuse triggers, claim no more, let runs finish for `timeout` seconds, then hand them back.

        What is handed back is pending again, with its saved steps, and nothing is counted. `timeout=None` waits for as
        long as it takes. The app may be started again.
        """
        return self._engine.stop(checked_timeout(timeout))

    def process_one(self) -> Reply[bool]:
        """Claim one run and execute it to its end; False if there was none. Needs no started worker."""

        async def one(worker: Worker) -> bool:
            self._engine.ready_to_work()
            return await worker.process(1, float("inf")) == 1

        return self._engine.call("process_one", one)

    def process_until_idle(self, *, max_runs: int | None = None, max_seconds: Duration | None = None) -> Reply[int]:
        """Execute runs one after another until there is none to claim; how many. For cron, serverless and tests."""
        most = float("inf") if max_runs is None else checked_count(max_runs, "max_runs")
        longest = float("inf") if max_seconds is None else seconds(max_seconds, "max_seconds")

        async def many(worker: Worker) -> int:
            self._engine.ready_to_work()
            return await worker.process(most, longest)

        return self._engine.call("process_until_idle", many)

    async def __aenter__(self) -> Self:
        try:
            await self.init()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        self._engine.own_thread = True
        try:
            self.init().wait()
        except BaseException:
            self._engine.own_thread = self._works == "thread"
            if may_block():
                self.stop().wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop().wait()
        self._engine.own_thread = self._works == "thread"

    def __repr__(self) -> str:
        return f"<Holdfast {self._engine.store.name}>"
