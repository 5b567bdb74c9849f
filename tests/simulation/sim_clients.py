"""Who triggers, cancels, waits, retriggers and deletes in a story; and what they were answered.

As in Jepsen: an operation that was answered is `ok` or `fail`; one whose answer never came is `info`: it may have
happened or not. Clients ask a process; if that crashes, they ask another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sim_loop import SECOND

from holdfast.basis.errors import ConflictError, NotFoundError, StoreError
from holdfast.model.retry import Retry

if TYPE_CHECKING:
    from sim_process import Process

    from holdfast import Holdfast
    from simulation import World


class Wish(NamedTuple):
    """One run that is to be triggered, and what is to become of it."""

    at: int
    place: int
    job: str
    program: int
    idempotency_key: str | None
    concurrency_key: str | None
    coalesce: Any
    delay: float
    retry: Retry | None
    priority: int
    timeout: float | None
    deadline: float | None
    then: tuple[tuple[str, int], ...]
    """cancel, wait, retrigger, delete, each so many microseconds after what was before it."""


class Client:
    """Sees to one wish."""

    def __init__(self, world: World, wish: Wish) -> None:
        self.world = world
        self.wish = wish
        self.is_done = False
        self._then = list(wish.then)
        self._run_id = ""
        self._tries = 0
        world.later(wish.at, self._trigger)

    # -- asking ------------------------------------------------------------------------------------------------

    def _ask(
        self, what: str, call: Callable[[Holdfast], Awaitable[Any]], then: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Ask a process that is there; `then` gets the answer, or that there is none."""
        world = self.world
        process = world.some_process(self.wish.place + self._tries)
        if process is None:
            world.later(SECOND, self._ask, what, call, then)
            return
        self._tries += 1
        world.tell("asks", process.name, what, self._run_id)

        async def asking() -> None:
            try:
                answer = await call(process.app)
            except Exception as error:
                self._answered(process, what, then, None, error)
            else:
                self._answered(process, what, then, answer, None)

        task = process.loop.create_task(asking())
        # Later: the process is still dying.
        process.calls[self] = lambda: world.later(1, self._answered, process, what, then, None, StoreError("crashed"))
        self._task = task

    def _answered(
        self, process: Process, what: str, then: Callable[[Any, BaseException | None], None],
        answer: Any, error: BaseException | None,
    ) -> None:  # fmt: skip
        process.calls.pop(self, None)
        said = "ok" if error is None else "info" if isinstance(error, StoreError) else f"fail: {type(error).__name__}"
        self.world.tell("answer", what, self._run_id, said)
        then(answer, error)

    def _again(self, ask: Callable[[], None]) -> None:
        self.world.later(SECOND // 2, ask)

    def _done(self) -> None:
        self.is_done = True
        self.world.undone -= 1

    # -- the wish ----------------------------------------------------------------------------------------------

    def _trigger(self) -> None:
        wish = self.wish

        def call(app: Holdfast) -> Awaitable[Any]:
            job = app.get_job(wish.job)
            assert job is not None
            return job.options(
                idempotency_key=wish.idempotency_key, concurrency_key=wish.concurrency_key, coalesce=wish.coalesce,
                delay=wish.delay, retry=wish.retry, priority=wish.priority,
                timeout=wish.timeout, deadline=wish.deadline,
            ).trigger(wish.program)  # fmt: skip

        self._ask("trigger", call, self._triggered)

    def _triggered(self, run: Any, error: BaseException | None) -> None:
        world = self.world
        if isinstance(error, StoreError):
            self._again(self._trigger)  # may have happened: without an idempotency key there may be two now
        elif isinstance(error, ConflictError):
            self._done()
        elif error is not None:
            world.broken(f"a trigger was answered {error!r}")
            self._done()
        else:
            self._run_id = run.id
            world.acknowledged[run.id] = self.wish
            if (key := self.wish.idempotency_key) is not None and run.disposition != "coalesced":
                same = world.by_key.setdefault((self.wish.job, key), run.id)
                if same != run.id and same not in world.audit.deleted:
                    world.broken(f"I11: two answers for {key}: {same}, {run.id}")
            self._next()

    def _next(self) -> None:
        if not self._then:
            self._done()
            return
        what, delay = self._then.pop(0)
        self.world.later(delay, getattr(self, f"_{what}"))

    def _cancel(self) -> None:
        def answered(run: Any, error: BaseException | None) -> None:
            if isinstance(error, StoreError):
                self._again(self._cancel)
                return
            if error is None:
                self.world.cancelled.add(self._run_id)
                if run.status != "cancelled":
                    self.world.broken(f"I12: the cancelled run is answered as {run.status}")
            elif not isinstance(error, ConflictError | NotFoundError):
                self.world.broken(f"a cancel was answered {error!r}")
            self._next()

        self._ask("cancel", lambda app: app.cancel(self._run_id), answered)

    def _wait(self) -> None:
        def answered(run: Any, error: BaseException | None) -> None:
            if isinstance(error, StoreError):
                self._again(self._wait)
                return
            if error is None:
                self.world.seen.append((run.id, str(run.status), run.output))
            elif not isinstance(error, NotFoundError):
                self.world.broken(f"a wait was answered {error!r}")
            self._next()

        self._ask("wait", lambda app: app.wait_for_run(self._run_id), answered)

    def _retrigger(self) -> None:
        def answered(run: Any, error: BaseException | None) -> None:
            if isinstance(error, StoreError):
                self._again(self._retrigger)
                return
            if error is None:
                self._run_id = run.id
                self.world.acknowledged[run.id] = self.wish
            elif not isinstance(error, ConflictError | NotFoundError):
                self.world.broken(f"a retrigger was answered {error!r}")
            self._next()

        self._ask("retrigger", lambda app: app.retrigger(self._run_id), answered)

    def _delete(self) -> None:
        def answered(_: Any, error: BaseException | None) -> None:
            if isinstance(error, StoreError):
                self._again(self._delete)
                return
            if error is not None and not isinstance(error, ConflictError | NotFoundError):
                self.world.broken(f"a delete was answered {error!r}")
            if error is None:
                self.world.forgotten.add(self._run_id)
            self._next()

        # It may have happened also where the answer is lost.
        self.world.may_be_forgotten.add(self._run_id)
        self._ask("delete", lambda app: app.delete_run(self._run_id), answered)
