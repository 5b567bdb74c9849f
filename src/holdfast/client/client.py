"""`Client`: the verbs of `Holdfast` for an app in another process, over HTTP.

Everything that asks the server gives a `Reply`, and what it is filled with are the library's own `Run`s, events, steps
and errors. What writes begins when it is called; what reads or waits, when somebody wants it.

Long because there is a verb for each of the app's that a server answers.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from pydantic_core import from_json, to_json

from ..basis.clock import to_datetime
from ..basis.durations import Duration, seconds
from ..basis.errors import NotFoundError, NotKept, ValidationError
from ..basis.exact import difference
from ..basis.text import fit, shown
from ..basis.values import plain
from ..commit.reply import Reply, answer, answered
from ..engine.arguments import checked_count, checked_retry, checked_statuses, checked_text, checked_timeout, several
from ..engine.call import Call, TriggerOptions
from ..engine.context import current
from ..engine.registry import JobDefinition, checked_key, checked_labels
from ..engine.stats import Stats
from ..engine.subscription import Subscription
from ..engine.wait_kinds import sent_text
from ..http.wire import camel
from ..job import Job, SleepingJob, handle
from ..model.retry import Retry
from ..model.run import Disposition, RunRow, RunStatus
from ..model.worker import WorkerRecord
from ..run import LogLine, OnLog, OnProgress, Run, StepRecord, Told, result, telling
from . import documents
from .documents import Acted, JobInfo
from .following import Desk, RemoteSubscription
from .line import Headers, Line, Params
from .named import AnyJob, NamedCall, NamedJob, with_key
from .waiting import FarReply, ended, record

if TYPE_CHECKING:
    import httpx

P = ParamSpec("P")
R = TypeVar("R")

Statuses = RunStatus | str | Iterable[RunStatus] | Iterable[str] | None
AnyCall = Call[Any] | NamedCall

#: Of a call whose answer was lost: eight tries within some twelve seconds.
RETRY = Retry(7, delay=0.1, factor=2, max_delay=5, jitter=0.5)
#: Of who waits or follows: a server that is deployed anew is away for a while, and some two minutes are borne.
PATIENCE = Retry(36, delay=0.1, factor=2, max_delay=5, jitter=0.5)
#: Runs that one page asks for.
_PAGE = 200
_NOTHING: Any = object()


class Client:
    """Runs of an app at a server: `Client("https://jobs.example/holdfast", headers={"Authorization": "Bearer …"})`.

    `url` is that of the mounted routes. `headers` go with each request; a function is asked for them each time.
    `timeout` is how long an answer may take. Calls that may be repeated (reads; and triggers, retriggers, signals and
    wakes, which carry a key of yours or of the client's own) are tried again as `retry` says; others only if nothing
    of them was sent. Who waits for a run or follows one bears an absence of the server as `patience` says: some two
    minutes. `transport` is one of httpx.

    Nothing is connected before the first use. One thread serves all that is asked, from whatever loop or thread. Use it
    as a context manager (`with` or `async with`), or call `close()`.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Headers | None = None,
        timeout: Duration = 30.0,
        retry: Retry = RETRY,
        patience: Retry = PATIENCE,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._engine: Line = Line(
            url, {} if headers is None else headers, seconds(timeout, "timeout"), checked_retry(retry),
            checked_retry(patience), transport,
        )  # fmt: skip
        self._desk = Desk(self._engine)
        self._known: dict[str, JobDefinition] = {}
        self._infos: dict[str, JobInfo] = {}
        # The thread knows the line only: so a client that is forgotten is closed. What is under way keeps it till then.
        self._finalizer = weakref.finalize(self, Line.close, self._engine)

    def __repr__(self) -> str:
        return f"<Client {self._engine!r}>"

    # -- jobs --------------------------------------------------------------------------------------------------

    @overload
    def job(self, job: SleepingJob[R], /) -> SleepingJob[R]: ...
    @overload
    def job(self, job: Job[P, R], /) -> Job[P, R]: ...
    @overload
    def job(self, job: str, /) -> NamedJob: ...
    def job(self, job: Any, /) -> Any:
        """The handle of a job at the server: typed, from its definition; or by its name.

        Of a definition the input is checked here, by its types, and there. Its outputs are read by its types, also
        those of runs that are got otherwise from now on.
        """
        if isinstance(job, str):
            return NamedJob(self, checked_text(job, "job"))
        if not isinstance(job, Job):
            raise ValidationError(f"job: {shown(job)} is neither a job nor the name of one.")
        # Its own validation is the server's business: it may do more than look.
        definition = replace(job._definition, validate=None)
        self._known[definition.name] = definition
        made = handle(definition, self)
        return made if job._options == TriggerOptions() else type(made)(definition, self, job._options)

    def get_jobs(self) -> Reply[list[JobInfo]]:
        """The jobs of the server, with their parameters and schemas."""
        return self._engine.lazily("jobs", self._jobs)

    def _get_info(self, name: str) -> Reply[JobInfo]:
        return self._engine.lazily(f"job {name}", lambda: self._info(name))

    async def _jobs(self, retry: Retry | None = None) -> list[JobInfo]:
        return await self._engine.get("/jobs", read=documents.listed(documents.job_info), retry=retry)

    async def _info(self, name: str, retry: Retry | None = None) -> JobInfo:
        if name not in self._infos:
            for info in await self._jobs(retry):
                self._infos[info.name] = info
                self._infos.setdefault(info.key, info)
        if name not in self._infos:
            raise NotFoundError(f"Job not found: {name}")
        return self._infos[name]

    # -- triggering --------------------------------------------------------------------------------------------

    @overload
    def trigger(self, call: Call[R]) -> Reply[Run[R]]: ...
    @overload
    def trigger(self, call: NamedCall) -> Reply[Run[Any]]: ...
    def trigger(self, call: Any) -> Reply[Run[Any]]:
        """Write a run of the call; the reply is there when the run is durable. A lost answer never makes two runs."""
        return self._trigger(_checked(call, "trigger"))

    def trigger_many(self, calls: Iterable[AnyCall]) -> Reply[list[Run[Any]]]:
        """Write a run of each call, at most a thousand, all of them or none. The runs, in the order of the calls."""
        listed = [_checked(call, "trigger_many") for call in several(calls, (Call, NamedCall), "calls")]
        if not listed:
            return answered([], "trigger of no runs")
        return self._trigger_all(listed, f"trigger of {len(listed)} runs", lambda runs: runs)

    @overload
    def _trigger(self, call: AnyCall) -> Reply[Run[Any]]: ...
    @overload
    def _trigger(self, call: AnyCall, connection: Any) -> Reply[Run[Any]]: ...
    def _trigger(self, call: AnyCall, connection: Any = None) -> Reply[Run[Any]]:
        if connection is not None:
            raise ValidationError("connection: a run at a server can't be part of a transaction here.")
        return self._trigger_all([call], f"trigger of {call.job_name}", lambda runs: runs[0])

    def _trigger_all(
        self, calls: list[AnyCall], what: str, convert: Callable[[list[Run[Any]]], R], retry: Retry | None = None
    ) -> Reply[R]:
        line = self._engine
        keys = [call.options.idempotency_key or self._key(call) for call in calls]
        bodies = [_body(call) if isinstance(call, Call) else None for call in calls]
        sleeping = [isinstance(call, NamedCall) for call in calls]

        async def work() -> Any:
            sent = []
            for index, (call, body) in enumerate(zip(calls, bodies, strict=True)):
                if isinstance(call, NamedCall):
                    info = await self._info(call.job_name, retry)
                    body = {"jobName": info.name, "input": call.input(info)}
                    sleeping[index] = info.is_sleeping
                assert body is not None
                sent.append(body | _options_body(with_key(call.options, keys[index])))
            read = documents.triggered(len(sent))
            return await line.ask("POST", "/runs/trigger", body={"calls": sent}, read=read, is_safe=True, retry=retry)

        def made(answer: list[tuple[RunRow, Disposition]]) -> R:
            runs = []
            for (row, said), call, sleeps in zip(answer, calls, sleeping, strict=True):
                # By a key of ours nobody else asks: the run is this call's own, whose first answer was lost.
                is_own = not call.options.idempotency_key and not sleeps
                disposition: Disposition = "created" if is_own and said == "idempotent" else said
                definition = call.job if isinstance(call, Call) else self._known.get(row.job_name)
                runs.append(Run[Any](self, row, definition, disposition))
            return convert(runs)

        return line.asked(what, work, made)

    def _key(self, call: AnyCall) -> str:
        """A key for a call without one. Inside a run it is that run's, so that a replay does not trigger again."""
        execution = current.get()
        if execution is not None:
            execution.check()
            text = call.input if isinstance(call, Call) else repr((call.args, call.kwargs))
            if (key := execution.trigger_key(f"{self._engine!r} {call.job_name}", text)) is not None:
                return key
        return f"client:{self._engine.ids.new()}"

    def _run(self, call: AnyCall) -> Reply[Any]:
        return self._then_end(call, f"result of {call.job_name}", result)

    def _trigger_and_wait(self, call: AnyCall) -> Reply[Run[Any]]:
        return self._then_end(call, f"end of {call.job_name}", lambda run: run)

    def _then_end(self, call: AnyCall, what: str, convert: Callable[[Run[Any]], R]) -> Reply[R]:
        line, triggered = self._engine, self._trigger(call)

        async def work() -> Any:
            run = await triggered
            if run.is_terminal:
                return run
            return Run[Any](self, await ended(line, run.id), run._job, run.disposition)

        return FarReply(line, what, work, convert, None)

    def _check_size(self, text: str) -> None:
        """The server knows how much it takes."""

    def _add(self, job: JobDefinition) -> JobDefinition:
        raise ValidationError(f"{job.name}: jobs are defined where they run. Do it with the job of the app.")

    def retrigger(self, run_id: str, *, idempotency_key: str | None = None) -> Reply[Run[Any]]:
        """A fresh run with the input of an ended one. See `Holdfast.retrigger`; a lost answer never makes two."""
        line = self._engine
        key = checked_key(idempotency_key, "idempotency_key") or f"client:{line.ids.new()}"
        params = [("runId", checked_text(run_id, "run id")), ("idempotencyKey", key)]

        async def work() -> Any:
            asking = line.ask("POST", "/retrigger", params, read=documents.run_id, is_safe=True)
            return await record(line, await self._of_run(run_id, asking))

        return line.asked(f"retrigger of {run_id}", work, lambda row: self._seen(row))

    # -- one run -----------------------------------------------------------------------------------------------

    async def _of_run(self, run_id: str, asking: Awaitable[R]) -> R:
        try:
            return await asking
        except NotFoundError as error:
            if error.message == "Run not found":
                raise NotFoundError(f"Run not found: {run_id}") from None
            raise

    def cancel(self, run_id: str) -> Reply[Run[Any]]:
        """Cancel a run; the reply is there when that is durable. See `Holdfast.cancel`."""
        return self._cancel(checked_text(run_id, "run id"), None)

    def _cancel(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any]]:
        line = self._engine

        async def work() -> Any:
            asking = line.ask("POST", "/cancel", [("runId", run_id)], read=documents.success, is_safe=False)
            await self._of_run(run_id, asking)
            return await record(line, run_id)

        return line.asked(f"cancel of {run_id}", work, lambda row: self._seen(row, job))

    def delete_run(self, run_id: str) -> Reply[None]:
        """Delete an ended run with its steps, logs and labels. See `Holdfast.delete_run`."""
        line = self._engine
        params = [("runId", checked_text(run_id, "run id"))]

        async def work() -> None:
            await self._of_run(run_id, line.ask("DELETE", "/run", params, read=documents.success, is_safe=False))

        return line.asked(f"delete of {run_id}", work)

    def send_signal(self, run_id: str, name: str, value: Any = None, *, key: str | None = None) -> Reply[None]:
        """Send a value to a run, for `step.wait_for_signal(name)` there. See `Holdfast.send_signal`.

        The value is what JSON can tell, or `NotKept`. Without `key` the client makes one: it is never sent twice.
        """
        line, text = self._engine, sent_text(value)
        if text.startswith("~"):
            raise NotKept("JSON can't tell it; send what JSON has.", "value", before=value)
        body = {
            "name": checked_text(name, "signal"),
            "value": from_json(text),
            "key": checked_key(key, "key") or f"client:{line.ids.new()}",
        }
        params = [("runId", checked_text(run_id, "run id"))]

        async def work() -> None:
            asking = line.ask("POST", "/signal", params, body, read=documents.success, is_safe=True)
            await self._of_run(run_id, asking)

        return line.asked(f"signal to {run_id}", work)

    def wake(
        self, job: SleepingJob[R] | NamedJob | str, key: str, *, output: Any = _NOTHING,
        error: str | BaseException | None = None,
    ) -> Reply[Run[R]]:  # fmt: skip
        """Say what the sleeping run of this key has come to; the run, which is about to end. See `Holdfast.wake`."""
        if (output is _NOTHING) == (error is None):
            raise ValidationError("wake: give output= or error=, one of them.")
        if not isinstance(job, str | NamedJob | SleepingJob):
            raise ValidationError(f"wake: {shown(job)} is not a sleeping job, nor the name of one.")
        line = self._engine
        body: dict[str, Any] = {"jobName": _name(job), "key": checked_text(key, "key")}
        if error is None:
            body["output"] = _told_of(job, output) if isinstance(job, SleepingJob) else _exact(output, "output")
        else:
            body["error"] = fit(error) if isinstance(error, BaseException) else error

        async def work() -> Any:
            return await record(line, await line.ask("POST", "/wake", body=body, read=documents.run_id, is_safe=True))

        return line.asked(f"wake of {body['jobName']} {key}", work, lambda row: self._seen(row))

    def get_run(self, run_id: str) -> Reply[Run[Any] | None]:
        """The run; None if there is none."""
        return self._get_run(run_id, None)

    def _get_run(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any] | None]:
        found = self._run_of(None if job is None else job.name, run_id)
        if job is not None:
            self._known.setdefault(job.name, job)
        return found

    def _run_of(self, name: str | None, run_id: str) -> Reply[Run[Any] | None]:
        line = self._engine
        checked_text(run_id, "run id")

        async def work() -> Any:
            try:
                row = await record(line, run_id)
            except NotFoundError:
                return None
            if name is not None and row.job_name != name:
                # It may be known by the name of its function.
                info = self._infos.get(name)
                return row if info is not None and info.name == row.job_name else None
            return row

        return line.lazily(f"run {run_id}", work, lambda found: None if found is None else self._seen(found))

    def _refresh(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any]]:
        line = self._engine
        return line.lazily(f"run {run_id}", lambda: record(line, run_id), lambda found: self._seen(found, job))

    def _seen(self, row: RunRow, job: JobDefinition | None = None) -> Run[Any]:
        return Run(self, row, job or self._known.get(row.job_name))

    def get_steps(self, run_id: str) -> Reply[list[StepRecord]]:
        """The steps of a run, in the order in which they were started. Tracebacks stay with the server."""
        line, params = self._engine, [("runId", checked_text(run_id, "run id"))]
        return line.lazily(
            f"steps of {run_id}",
            lambda: self._of_run(run_id, line.get("/run/steps", params, read=documents.listed(documents.step_record))),
        )

    def get_logs(self, run_id: str, *, after: int = 0, limit: int | None = None) -> Reply[list[LogLine]]:
        """The log lines of a run, in the order of writing; `after` the line with this id."""
        line, left = self._engine, None if limit is None else checked_count(limit, "limit")
        checked_text(run_id, "run id")
        checked_count(after, "after")

        async def work() -> list[LogLine]:
            found: list[LogLine] = []
            last = after
            while left is None or len(found) < left:
                params: Params = [("runId", run_id), ("after", last)]
                asking = line.get("/run/logs", params, read=documents.listed(documents.log_line))
                page = await self._of_run(run_id, asking)
                if not page:
                    break
                found += page
                last = page[-1].id
            return found[:left]

        return line.lazily(f"log of {run_id}", work)

    # -- many runs ---------------------------------------------------------------------------------------------

    def get_runs(
        self,
        *,
        job: AnyJob | Iterable[AnyJob] | None = None,
        status: Statuses = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = 100,
        offset: int = 0,
        before: str | None = None,
        parent: str | None = None,
    ) -> Reply[list[Run[Any]]]:
        """Runs, newest first, that fit all that is given. See `Holdfast.get_runs`; long lists are read in pages."""
        return self._get_runs(
            jobs=_names(job), status=status, labels=labels, limit=limit, offset=offset, before=before, parent=parent
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
        line, most = self._engine, None if limit is None else checked_count(limit, "limit")
        fixed = _filter(jobs, status, labels)
        checked_count(offset, "offset")
        start = None if before is None else checked_text(before, "before")
        if parent is not None:
            fixed.append(("runId", checked_text(parent, "parent")))

        # Below a run some may not be shown to us. They are not to be counted, and the server would.
        skipped = 0 if parent is None else offset
        enough = None if most is None else skipped + most

        async def work() -> list[RunRow]:
            found: list[RunRow] = []
            place = start
            while enough is None or len(found) < enough:
                wanted = _PAGE if enough is None else min(_PAGE, enough - len(found))
                params: list[tuple[str, str | int]] = [*fixed, ("most", wanted)]
                if place is not None:
                    params.append(("before", place))
                if parent is None:
                    if not found and offset:
                        params.append(("offset", offset))
                    page, place = await line.get("/runs/records", params, read=documents.page)
                else:
                    asking = line.get("/run/children", params, read=documents.page)
                    page, place = await self._of_run(parent, asking)
                found += page
                if place is None:
                    break
            return found[skipped:enough]

        return line.lazily("runs", work, lambda found: [self._seen(one) for one in found])

    def cancel_runs(
        self,
        *,
        job: AnyJob | Iterable[AnyJob] | None = None,
        status: Statuses = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Reply[Acted]:
        """Cancel the runs that fit and have not ended, the newest first, at most `limit`: each by itself."""
        return self._each("/runs/cancel", job, status, labels, limit, None)

    def retrigger_runs(
        self,
        *,
        job: AnyJob | Iterable[AnyJob] | None = None,
        status: Statuses = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        idempotency_key: str | None = None,
    ) -> Reply[Acted]:
        """Trigger those again that fit, unless told otherwise those that failed or were cancelled: each by itself."""
        key = checked_key(idempotency_key, "idempotency_key") or f"client:{self._engine.ids.new()}"
        return self._each("/runs/retrigger", job, status, labels, limit, key)

    def _each(
        self, path: str, job: Any, status: Statuses, labels: Mapping[str, str] | None, limit: int | None,
        key: str | None,
    ) -> Reply[Acted]:  # fmt: skip
        line, most = self._engine, None if limit is None else checked_count(limit, "limit")
        fixed = _filter(_names(job), status, labels)
        if key is not None:
            fixed.append(("idempotencyKey", key))

        async def work() -> Acted:
            done: dict[str, str] = {}
            refused: dict[str, str] = {}
            place: str | None = None
            left = most
            while left is None or left > 0:
                wanted = _PAGE if left is None else min(_PAGE, left)
                params = [*fixed, ("most", wanted), *([] if place is None else [("before", place)])]
                asking = self._engine.ask("POST", path, params, read=documents.acted, is_safe=key is not None)
                page, place = await asking
                done |= page.done
                refused |= page.refused
                left = None if most is None else most - len(done) - len(refused)
                if place is None:
                    break
            return Acted(done, refused)

        return line.asked(f"POST {path}", work)

    # -- waiting and watching ----------------------------------------------------------------------------------

    def wait_for_run(
        self,
        run_id: str,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        on_log: OnLog | None = None,
    ) -> Reply[Run[Any]]:
        """The run once it has ended, however it ended. See `Holdfast.wait_for_run`. What callbacks raise is logged."""
        return self._wait_for_run(run_id, None, timeout, telling(on_progress, on_log))

    def _wait_for_run(
        self, run_id: str, job: JobDefinition | None, timeout: float | None, told: Told = None
    ) -> Reply[Run[Any]]:
        what = f"end of run {checked_text(run_id, 'run id')}"
        return self._ended(run_id, what, timeout, told, lambda row: self._seen(row, job))

    def _result_of(
        self, run_id: str, job: JobDefinition | None, timeout: float | None, told: Told = None
    ) -> Reply[Any]:
        what = f"result of run {run_id}"
        return self._ended(run_id, what, timeout, told, lambda row: result(self._seen(row, job)))

    def _ended(
        self, run_id: str, what: str, timeout: float | None, told: Told, convert: Callable[[Any], R]
    ) -> Reply[R]:
        line = self._engine
        listened = None if told is None else lambda: (self.subscribe(run_id), told)
        return FarReply(line, what, lambda: ended(line, run_id), convert, checked_timeout(timeout), listened)

    def subscribe(self, run_id: str) -> Subscription:
        """The events of one run from now until its end: `async for event in …`, or `for`. See `Holdfast.subscribe`.

        A connection that is cut is made again, and nothing is missing or told twice. `ServerUnavailable` if that does
        not succeed in as many tries as `patience` says. A slow reader is waited for.
        """
        return RemoteSubscription(self._desk, checked_text(run_id, "run id"), self)

    def workers(self) -> Reply[list[WorkerRecord]]:
        """Who executes runs of the server's database, in whatever process, and which."""
        read = documents.listed(documents.worker_record)
        return self._engine.lazily("workers", lambda: self._engine.get("/workers", read=read))

    def stats(self) -> Reply[Stats]:
        """How the process that answers is doing."""
        return self._engine.lazily("stats", lambda: self._engine.get("/stats", read=documents.stats))

    # -- life --------------------------------------------------------------------------------------------------

    def close(self) -> Reply[None]:
        """End what is under way: whoever waits gets `StoreClosed`. The runs themselves go on."""
        reply: Reply[None] = Reply("close")
        self._finalizer.detach()
        self._engine.close(lambda: answer([(reply, None, None)]))
        return reply

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close().wait()


# -- bodies ------------------------------------------------------------------------------------------------------


def _checked(call: object, verb: str) -> AnyCall:
    if not isinstance(call, Call | NamedCall):
        raise ValidationError(f"{verb}: {shown(call)} is not a call. Write client.{verb}(job.bind(…)).")
    return call


def _name(job: AnyJob) -> str:
    return job if isinstance(job, str) else job.name


def _names(job: Any) -> tuple[str, ...]:
    return tuple(checked_text(_name(one), "job") for one in several(job, (str, Job, NamedJob), "job"))


def _filter(jobs: tuple[str, ...], status: Statuses, labels: Mapping[str, str] | None) -> list[tuple[str, str | int]]:
    return [
        *[("jobName", name) for name in jobs],
        *[("state", one) for one in checked_statuses(status)],
        *[(f"label.{key}", value) for key, value in checked_labels({} if labels is None else labels).items()],
    ]


def _as_json(value: Any, what: str) -> Any:
    try:
        return from_json(to_json(value, inf_nan_mode="strings", bytes_mode="base64"))
    except Exception as error:
        raise NotKept(f"it can't be sent as JSON: {error}", what) from None


def _exact(value: Any, what: str) -> Any:
    """The same of a value whose types nobody here knows: it must be what JSON tells."""
    told = _as_json(value, what)
    if found := difference(value, told, []):
        raise NotKept(f"{found.reason} when it goes over as JSON", what, f"${found.path}")
    return told


def _body(call: Call[Any]) -> dict[str, Any]:
    """What is sent of a call. `ValidationError` if its input would arrive as something else."""
    signature, text = call.job.signature, call.input
    given = _as_json(plain(text), "input")
    if text.startswith("~"):
        # JSON alone does not tell all of it; the types of the job may.
        again = signature.encode_mapping(given)
        if again != text and signature.decode(again) != signature.decode(text):
            raise ValidationError(
                "Invalid input: it would not arrive as it is, because JSON can't tell it. Annotate the parameters of "
                f"{call.job_name} more closely, or send something simpler."
            )
    return {"jobName": call.job_name, "input": given}


def _told_of(job: SleepingJob[Any], output: Any) -> Any:
    shape: Any = job._definition.output
    kept = shape.keep(output, "output")
    told = _as_json(plain(kept.text), "output")
    if kept.text.startswith("~") and shape.validate_json(to_json(told)) != kept.value:
        raise NotKept("JSON can't tell it; annotate it more closely.", "output", before=output)
    return told


def _options_body(options: TriggerOptions) -> dict[str, Any]:
    if options.tenant:
        raise ValidationError("tenant: the server says whose a run is, by who asks. Leave it out.")
    body: dict[str, Any] = {
        "idempotencyKey": options.idempotency_key,
        "concurrencyKey": options.concurrency_key,
        "coalesce": options.coalesce,
        "labels": None if options.labels is None else dict(options.labels),
        "priority": options.priority,
        "queue": options.queue,
        "delay": _seconds(options.delay),
        "timeout": _seconds(options.timeout),
        "deadline": _seconds(options.deadline),
    }
    if (moment := to_datetime(options.run_at)) is not None:
        body["runAt"] = moment.astimezone(UTC).isoformat()
    if options.retry is not None:
        body["retry"] = {camel(name): value for name, value in from_json(options.retry).items()}
    return {name: value for name, value in body.items() if value is not None}


def _seconds(micros: int | None) -> float | None:
    return None if micros is None else micros / 1e6
