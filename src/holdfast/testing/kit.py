"""Apps for tests: on a temporary database, with a clock turned by hand, executing only when told to."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ParamSpec, TypeVar

from ..app import Holdfast
from ..basis.clock import from_datetime
from ..basis.durations import Duration, micros
from ..basis.errors import ValidationError
from ..commit.reply import LazyReply, Reply, hand_on
from ..engine.call import Call
from ..engine.engine import Engine
from ..engine.worker import Worker
from ..job import Job
from ..run import Run, result
from .answers import answer_all
from .clock import HandClock

P = ParamSpec("P")
R = TypeVar("R")


def app_for_tests(*jobs: Job[..., Any], clock: HandClock | None = None, **options: Any) -> Holdfast:
    """An app on a temporary database, with its tables, ready to use: nothing runs but by `drain` or `process_one`.

    It has a `HandClock` and is strict: a saved step that is called otherwise, or a value that does not come back equal
    however large it is, is an error. The rest between two tries of a step passes by itself. `options` are those of
    `Holdfast`. Reach the jobs as `app.jobs.<name>`. Stop it, or use it as a context manager, to remove the database.
    """
    given: tuple[Any, ...] = jobs  # what is no job `Holdfast` refuses, with a better word
    definitions = [job._definition for job in given if isinstance(job, Job)]
    queues = dict.fromkeys(["default", *(definition.queue for definition in definitions)])
    settings: dict[str, Any] = {"worker": False, "strict": True, "queues": tuple(queues), **options}
    app = Holdfast(settings.pop("url", "sqlite://"), jobs=jobs, clock=clock or HandClock(), **settings)
    # Some milliseconds that block, so that sync and async tests get the same app.
    app._migrate()
    skip_rests(app._engine)
    return app


def skip_rests(engine: Engine) -> None:
    """With a `HandClock`, let the rest between two tries of a step pass at once: nobody else would turn the clock."""
    clock = engine.clock
    if not isinstance(clock, HandClock):
        return

    def pass_time(seconds: float) -> None:
        for holder in engine.keeper.held:
            holder.deadline += seconds  # as if it had been renewed all the time
        clock.advance(seconds)

    engine.pass_time = pass_time


def drain(app: Holdfast, *, until: Duration | datetime | None = None) -> Reply[int]:
    """Execute everything that is due now, one run after another; how many times one was executed.

    With `until` (from now, or a moment) time passes: the app's `HandClock` is advanced to each next moment that brings
    something (a delay, a retry, a sleep, a timeout or a deadline is over) until then, and then to the end.
    """
    clock = app._engine.clock
    end: int | None = None
    if until is not None:
        if not isinstance(clock, HandClock):
            raise ValidationError("drain: until= turns the clock, so the app needs a HandClock. See app_for_tests().")
        end = from_datetime(until) if isinstance(until, datetime) else clock.now() + micros(until, "until")

    async def work(worker: Worker) -> int:
        app._engine.ready_to_work()
        return await _drain(app, worker, end)

    return app._engine.call("drain", work)


async def _drain(app: Holdfast, worker: Worker, end: int | None) -> int:
    clock = app._engine.clock
    done = await work_off(app, worker)
    while end is not None and isinstance(clock, HandClock):
        due = await next_due(app)
        clock.advance(max(0, min(end if due is None else due, end) - clock.now()) / 1_000_000)
        if due is None or due > end:
            break
        done += await work_off(app, worker)
    return done


async def work_off(app: Holdfast, worker: Worker) -> int:
    """Execute, and answer, until only time can bring more; how many times a run was executed."""
    done = await worker.process(float("inf"), float("inf"))
    while await answer_all(app):
        done += await worker.process(float("inf"), float("inf"))
    return done


async def next_due(app: Holdfast) -> int | None:
    """When time brings something: a run that is delayed or sleeps goes on, or has not ended in time. None: never."""
    engine = app._engine
    now = engine.clock.now()
    due = await engine.reader.read("next_due_at", engine.store.next_due_at, lambda at: at)
    open_runs = await app.get_runs(status=("pending", "waiting"), limit=None)
    return min(
        (at for at in (due, *(run._row.deadline_at for run in open_runs)) if at is not None and at > now), default=None
    )


def run(job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Reply[R]:
    """What the job returns, run to its end in an app of its own that is gone afterwards.

    Errors are those of `job.run(...)`. Time passes by itself up to whatever the run waits for. The app knows all jobs
    of the handle's app, so there may be runs below this one; what is triggered by handles of another app goes there.
    """
    call = job.bind(*args, **kwargs)
    theirs = job._app._engine.registry.all() if isinstance(job._app, Holdfast) else []
    queues = {"default", job._definition.queue, call.options.queue or "default", *(one.queue for one in theirs)}

    def start(reply: Reply[R]) -> None:
        app = app_for_tests(job, queues=tuple(sorted(queues)))
        for one in theirs:
            app._engine.registry.add(one, replace=False)
        ended = app._engine.call(f"run of {job.name}", lambda worker: _run(app, worker, call))
        ended.when_done(lambda: hand_on(app.stop(), reply, lambda _: ended._take()))

    return LazyReply(f"run of {job.name}", start)


async def _run(app: Holdfast, worker: Worker, call: Call[R]) -> R:
    app._engine.ready_to_work()
    clock = app._engine.clock
    assert isinstance(clock, HandClock)
    triggered = await app.trigger(call)
    while True:
        await work_off(app, worker)
        ended = await triggered.refresh()
        if ended.is_terminal:
            return result(ended)
        if (due := await next_due(app)) is None:
            raise AssertionError(f"{ended!r} came to no end, and waits for nothing that time brings.{advice(ended)}")
        clock.advance((due - clock.now()) / 1_000_000)


def advice(run: Run[Any]) -> str:
    """What to do about a run that waits for somebody outside."""
    return " Have the signal ready: `with answering(name, value):`." if run.waiting_for == "signal" else ""
