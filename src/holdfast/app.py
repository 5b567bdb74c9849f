"""`Holdfast`: the one object that users hold: what it is made with, its jobs, its life.

Its other verbs are in `managing` (what writes) and `watching` (what reads). Everything that touches the database gives
a `Reply`.

Long because of overloads: each form of a job, and of what is made of jobs, has its line.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from .basis.clock import Clock, SystemClock
from .basis.codec import Codec, Payloads
from .basis.durations import Duration, seconds
from .basis.errors import ValidationError
from .basis.text import shown
from .basis.values import MISSING
from .commit.forks import inside
from .commit.reply import LazyReply, Reply, answer, hand_on, may_block, no_waiting
from .engine.arguments import checked_count, checked_limit_of_time, checked_timeout, several
from .engine.children import Bindable
from .engine.compose import NO_OPTIONS, Done, LoopResult, loop, sequence, sleeping
from .engine.context import STEP_TYPES, Step, SyncStep, step_function, step_options
from .engine.engine import Engine
from .engine.labels import LabelsSchema
from .engine.registry import JobDefinition, checked_name
from .engine.worker import Worker
from .job import Job, JobDecorator, JobOptions, SleepingJob, checked_options, define, handle
from .managing import Managing
from .model.options import Options
from .model.retry import Retry
from .store.base import Store
from .store.opening import open_store

if TYPE_CHECKING:
    from .http import AsgiApp, Handler, WsgiApp
    from .http.handler import HandlerOptions

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F", bound=Callable[..., Any])


class Jobs:
    """The jobs of an app, by the names of their functions: `app.jobs.import_airports`."""

    def __init__(self, app: Holdfast) -> None:
        self._app = app

    def __getattr__(self, key: str) -> Job[..., Any]:
        definition = self._app._engine.registry.get(key)
        if definition is None:
            raise AttributeError(f"there is no job {key!r}")
        return handle(definition, self._app)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._app._engine.registry.keys()]


class Holdfast(Managing):
    """Runs functions durably.

    `url` says where: `sqlite:///path/to/file.db`, or `sqlite://` for a temporary file; `postgresql://…`; `mysql://…`
    for MariaDB. Nothing is opened, started or written before the first use. As a context manager (`async with` or
    `with`) it makes the tables, starts the worker, and stops it when left.

    `worker=False` makes an app that only triggers and watches. `worker="thread"` executes on a loop of its own even
    inside async code, so that blocking jobs can't stall a web server. `lease_renew_interval` is a third of the lease.
    `labels_schema` is a Pydantic model, dataclass or TypedDict: what the labels of every run must be, its job's and its
    trigger's together. The other options, with their units, are those of `holdfast.model.options.Options`.
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
        warm_for: Duration = 5.0,
        max_children: int = 1000,
        max_input_bytes: int = 1 << 20,
        max_output_bytes: int = 1 << 20,
        max_log_bytes: int = 1 << 16,
        retain_runs: Duration | None = None,
        preserve_steps: bool = False,
        strict: bool = False,
        labels_schema: type[Any] | None = None,
        codec: Codec | Iterable[Codec] = (),
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
            warm_for=seconds(warm_for, "warm_for"),
            max_children=max_children,
            max_input_bytes=max_input_bytes,
            max_output_bytes=max_output_bytes,
            max_log_bytes=max_log_bytes,
            retain_runs=None if retain_runs is None else seconds(retain_runs, "retain_runs"),
            preserve_steps=preserve_steps,
            strict=strict,
            # By what the platform is, never by trying: in a browser threads only seem to work.
            inline=sys.platform == "emscripten" if inline is None else inline,
        )
        clock = clock or SystemClock()
        labels = None if labels_schema is None else LabelsSchema(labels_schema)
        if not isinstance(url, str | Store):
            raise ValidationError(f"url: {type(url).__name__} is no URL. Write e.g. 'sqlite:///app.db'.")
        store = open_store(url, clock=clock, lease=length) if isinstance(url, str) else url
        if getattr(store, "in_memory", False) and not options.inline:
            raise ValidationError(
                "sqlite:///:memory: has one connection only: use it with inline=True, or 'sqlite://'."
            )
        self._works = worker
        self._engine = Engine(
            store,
            clock,
            options,
            own_thread=worker == "thread",
            own_store=isinstance(url, str),
            payloads=Payloads(cast("list[Codec]", several(codec, (Codec,), "codec")), lambda: no_waiting("a codec")),
            labels_schema=labels,
        )
        self._handlers: weakref.WeakSet[Handler] = weakref.WeakSet()
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
        """Make a function a job of this app: `@app.job`, or `@app.job(name=…, queue=…, priority=…, limit=…, labels=…)`.

        Every parameter (but the step) needs an annotation: they are the input, checked before anything is written.
        """
        localns = sys._getframe(1).f_locals

        def decorate(fn: Callable[..., Any]) -> Job[Any, Any]:
            return Job(self._add(define(fn, checked_options(options), localns)), self)

        return decorate if fn is None else decorate(fn)

    def _add(self, job: JobDefinition) -> JobDefinition:
        return self._engine.registry.add(job, replace=not self._is_working)

    @overload
    def sequence(self, name: str, a: Job[P, A], /) -> Job[P, A]: ...
    @overload
    def sequence(self, name: str, a: Job[P, A], b: Bindable[A, R], /) -> Job[P, R]: ...
    @overload
    def sequence(self, name: str, a: Job[P, A], b: Bindable[A, B], c: Bindable[B, R], /) -> Job[P, R]: ...
    @overload
    def sequence(
        self, name: str, a: Job[P, A], b: Bindable[A, B], c: Bindable[B, C], d: Bindable[C, R], /
    ) -> Job[P, R]: ...
    @overload
    def sequence(
        self, name: str, a: Job[P, A], b: Bindable[A, B], c: Bindable[B, C], d: Bindable[C, D], e: Bindable[D, R], /
    ) -> Job[P, R]: ...
    @overload
    def sequence(
        self,
        name: str,
        a: Job[P, A],
        b: Bindable[A, B],
        c: Bindable[B, C],
        d: Bindable[C, D],
        e: Bindable[D, E],
        f: Bindable[E, R],
        /,
    ) -> Job[P, R]: ...
    def sequence(self, name: str, /, *jobs: Any) -> Any:
        """A job whose runs are a run of each of these jobs, one after the other, each below it.

        The output of one is the input of the next: its only parameter, or, if it has several and the output is a
        mapping, each by its name. The output of the last is that of the sequence. If one has none, those after it do
        not run, and the sequence ends as `finalize_failed`, naming it.
        """
        listed: list[Job[..., Any]] = several(jobs, (Job,), "jobs")
        stages = [self.register(job)._definition for job in listed]
        options = [job._options for job in listed]
        return Job(self._add(sequence(checked_name(name, "job name"), stages, options)), self)

    @overload
    def loop(
        self,
        name: str,
        iteration: Callable[P, Awaitable[Done[T] | None]] | Job[P, Done[T] | None],
        /,
        *,
        max_iterations: int,
        delay: Duration | Callable[[int], Duration] | None = None,
    ) -> Job[P, LoopResult[T]]: ...
    @overload
    def loop(
        self,
        name: str,
        iteration: Callable[P, Done[T] | None],
        /,
        *,
        max_iterations: int,
        delay: Duration | Callable[[int], Duration] | None = None,
    ) -> Job[P, LoopResult[T]]: ...
    def loop(self, name: str, iteration: Any, /, *, max_iterations: int, delay: Any = None) -> Any:
        """A job whose runs are runs of the iteration, one after the other, until one returns `Done(value)`.

        Its output is `LoopResult(True, value)`, or `LoopResult(False)` after `max_iterations`. Each iteration gets the
        same input. `delay` goes before each of them, instead of the iteration's own; a function gets its number,
        from 0. If an iteration has no output, the loop ends as `finalize_failed`, naming it.
        """
        if isinstance(iteration, Job):
            inner = self.register(iteration)._definition
        else:
            localns = sys._getframe(1).f_locals
            inner = self._add(define(iteration, {"name": f"{name}.iteration"}, localns))
        options = iteration._options if isinstance(iteration, Job) else NO_OPTIONS
        return Job(self._add(loop(checked_name(name, "job name"), inner, max_iterations, delay, options)), self)

    @overload
    def sleeping(self, name: str, /, *, output: type[R], deadline: Duration | None = None) -> SleepingJob[R]: ...
    @overload
    def sleeping(self, name: str, /, *, deadline: Duration | None = None) -> SleepingJob[Any]: ...
    def sleeping(self, name: str, /, *, output: Any = MISSING, deadline: Duration | None = None) -> Any:
        """A job whose runs do nothing until `app.wake(job, key, output=…)` says what they came to.

        `job.trigger(key)`: there is one run of a key, for as long as it is there. With `deadline` it ends as timed out
        if nobody has woken it in time.
        """
        limit = None if deadline is None else checked_limit_of_time(deadline, "deadline")
        return SleepingJob(self._add(sleeping(checked_name(name, "job name"), output, limit, STEP_TYPES)), self)

    @overload
    def step(self, fn: F, /) -> F: ...
    @overload
    def step(
        self,
        /,
        *,
        name: str | None = None,
        key: Callable[..., str] | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> Callable[[F], F]: ...
    def step(
        self,
        fn: Any = None,
        /,
        *,
        name: str | None = None,
        key: Callable[..., str] | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """Make a function a step wherever a run calls it; elsewhere it stays what it is.

        `key(*args, **kwargs)` tells calls apart that happen in parallel: `@app.step(key=lambda id: id)`. `retry` and
        `timeout` are those of `Step.options`.
        """
        how = step_options(retry, timeout)

        def decorate(fn: F) -> F:
            return step_function(fn, name, key, how)

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
        handles = tuple(handle(self._add(job._definition), self) for job in jobs)
        return handles[0] if len(handles) == 1 else handles

    def get_job(self, name: str) -> Job[..., Any] | None:
        """The job of this name or key; None if there is none."""
        definition = self._engine.registry.get(name)
        return None if definition is None else handle(definition, self)

    # -- over HTTP ---------------------------------------------------------------------------------------------

    def handler(self, **options: Unpack[HandlerOptions]) -> Handler:
        """What answers requests without any framework: `await handler.handle(Request("GET", "/runs"))`.

        For servers and frameworks use `asgi`, which has the same options.
        """
        from .http.handler import Handler

        handler = Handler(self, **options)
        self._handlers.add(handler)
        return handler

    def asgi(self, **options: Unpack[HandlerOptions]) -> AsgiApp:
        """An ASGI application with the HTTP routes: mount it anywhere, or start it by itself with uvicorn.

        `auth=Auth(…)` says who may do what. Without it only this machine is answered. `auth=Insecure("why")` answers
        everybody. `hosts` are the names that it may be asked by; `origins` other sites whose pages may use it.
        `on_request` is called before each request; `base_path` is what comes before the routes, where the server does
        not say it. Started by itself it also makes the tables and starts the worker; mounted, `lifespan` does.
        """
        from .http.asgi import AsgiApp

        return AsgiApp(self.handler(**options))

    def wsgi(self, **options: Unpack[HandlerOptions]) -> WsgiApp:
        """The same as a WSGI application, for Flask, gunicorn, waitress. It neither starts nor stops anything.

        A stream holds a thread of the server for as long as somebody reads: have more threads than `max_streams`.
        """
        from .http.wsgi import WsgiApp

        return WsgiApp(self.handler(**options))

    @asynccontextmanager
    async def lifespan(self, _: object = None) -> AsyncIterator[None]:
        """For frameworks that ask for one: `FastAPI(lifespan=app.lifespan)`, `Starlette(lifespan=app.lifespan)`.

        Makes the tables, starts the worker and stops it. When the process is told to stop, streams of this app end at
        once, as the server would wait for them, and no more runs are claimed. In a lifespan of your own:
        `async with app.lifespan():`.
        """
        from .http.leaving import close_at_signals

        try:
            async with self:
                forget = close_at_signals(self._leave)
                try:
                    yield
                finally:
                    forget()
                    self._end_streams()
        finally:
            for handler in [*self._handlers]:
                handler.open()  # for whoever starts it again, in whatever way

    def _leave(self) -> None:
        self._end_streams()
        self._engine.claim_no_more()

    def _end_streams(self) -> None:
        for handler in [*self._handlers]:
            handler.close()

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
                engine.committer.give_way_until(reply.done)

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
            return await worker.process_one()

        return self._engine.call("process_one", one)

    def process_until_idle(self, *, max_runs: int | None = None, max_seconds: Duration | None = None) -> Reply[int]:
        """Execute runs one after another until there is none to claim; how many. For cron, serverless and tests.

        After `max_runs`, or `max_seconds`, no further one begins; one that has begun goes on to its end. To bound that,
        too, wait for this with a timeout and then `stop(timeout=0)`: the run is handed back with its saved steps.
        """
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
