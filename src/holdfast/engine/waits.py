"""Durable waits: what a run does while it can do nothing.

A wait parks its own branch on a future; nothing is raised. While all that goes on in a run is waiting, its slot is
another's, and unless the next wake is near the run is *suspended*: a crash on purpose. Its waits are saved, its lease
is given back in one fenced commit, and this execution is over: whatever its code still does, returns or swallows
counts for nothing. Whoever claims the run later starts its function again from the top; waits that are over give what
they came to, as steps do.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..basis.errors import DefinitionError, Outdated, StoreUnavailable
from ..basis.text import clean
from ..commit.reply import Reply
from ..commit.ticket import Ticket
from ..model.run import NewRun
from ..model.step import StepKey, StepRow
from ..model.wait import WaitRow, wait_key
from ..store.base import WaitSave
from .branches import Place
from .children import Asking
from .context import Unwind, current_step, refuse_inside
from .steps import FIRST_PAUSE, Steps, _Opened, _Result, longer, no_function
from .wait_kinds import Standing, Wait

if TYPE_CHECKING:
    from .call import Call
    from .engine import Engine
    from .execution import Execution

#: With more runs than that below it, a wait gets a round of its own.
_MANY = 100

#: So many of them are made before somebody else has the event loop.
_AT_ONCE = 20

#: Seconds for which other branches of the run may do something that is no step, before it is suspended.
_SETTLE = 0.2


class Waits:
    """The waits of one execution."""

    def __init__(self, execution: Execution) -> None:
        self.execution: Execution = execution
        self.engine: Engine = execution.engine
        self.steps: Steps = execution.steps
        self.asking: Asking = Asking(execution)
        self._parked: dict[asyncio.Future[None], tuple[Any, Wait, int | None]] = {}
        self._known: Reply[list[WaitRow]] | None = None
        self._settling: asyncio.TimerHandle | None = None

    # -- one wait ----------------------------------------------------------------------------------------------

    def begin(self, name: str, wait: Wait) -> Coroutine[Any, Any, Any]:
        """A wait of an async job, in the branch that asks for it."""
        self._refuse(name)
        return self._entered(self.execution.branches.place(name), wait)

    async def _entered(self, place: Place, wait: Wait) -> Any:
        return await self._wait(place, wait, self.steps._enter(place))

    def begin_sync(self, name: str, wait: Wait) -> Any:
        """The same for a sync job, whose thread blocks meanwhile."""
        self._refuse(name)
        if self.engine.options.inline:
            raise DefinitionError(
                f"Step {clean(name, 100)!r}: without threads a sync job can't wait. Make the job an async one."
            )
        place = self.execution.branches.place(name)
        branch = self.steps._enter(place)
        return self.steps._in_loop(self._wait(place, wait, branch))

    def call(self, call: Call[Any], name: str | None) -> Coroutine[Any, Any, Any]:
        """The output of a run of this call."""
        # Here and now, so that the step has its place whichever task awaits it.
        asked = self.begin(*self.asking.call(call, name))

        async def output() -> Any:
            return self._output(call, await asked)

        return output()

    def text_of(self, call: Call[Any], name: str) -> Coroutine[Any, Any, str]:
        """The output of a run of this call, as it is stored."""
        return self.begin(*self.asking.call(call, name))

    def call_sync(self, call: Call[Any], name: str | None) -> Any:
        """The same, blocking."""
        return self._output(call, self.begin_sync(*self.asking.call(call, name)))

    def _output(self, call: Call[Any], text: str) -> Any:
        try:
            return call.job.output.load(text, f"output of {call.job_name}")
        except Outdated as error:
            raise self.steps._must_fail(error) from None

    def begin_inner(self, name: str, wait: Wait) -> Coroutine[Any, Any, Any]:
        """A wait of the engine's own."""
        return self._entered(Place(StepKey(name, 0)), wait)

    async def begin_all(self, asked: Iterable[tuple[str, Wait]]) -> list[Any]:
        """One after the other; what all of them came to, in one list."""
        return [value for name, wait in asked for value in await self.begin(name, wait)]

    def begin_all_sync(self, asked: Iterable[tuple[str, Wait]]) -> list[Any]:
        """The same, blocking."""
        return [value for name, wait in asked for value in self.begin_sync(name, wait)]

    def _refuse(self, name: object) -> None:
        refuse_inside(name)
        if (step := current_step.get()) is not None:
            raise DefinitionError(
                f"{clean(str(name), 100)!r}: a run can't wait inside of a step ({clean(step, 100)!r}). "
                "Wait between steps."
            )

    async def _wait(self, place: Place, wait: Wait, branch: Any) -> Any:
        steps = self.steps
        try:
            saved = steps._history.take(place.key)
            if saved is not None or steps._history.more:
                saved = await steps._find(place.key, saved)
            opened = steps._open(place.key, no_function, (), {}, wait.how)._replace(fingerprint=wait.mark)
            if saved is not None and (wait.outlasts_attempts or steps._counts(saved)):
                return await self._replayed(wait, saved, opened)
            attempt = steps._begin(opened, is_new=False)
            result = await self._over(wait, opened, branch)
            if not result.is_saved and not await self.execution.write(steps._saving, result, attempt, True):
                raise Unwind
            return result.give()
        finally:
            steps._leave(place)

    async def _replayed(self, wait: Wait, saved: StepRow, opened: _Opened) -> Any:
        steps = self.steps
        what = f"step {str(opened.key)!r} of run {saved.run_id}"
        self.execution.said_before()
        if saved.fingerprint != wait.mark:
            steps._changed(what, str(saved.fingerprint), wait.mark)
        if saved.status == "failed":
            return steps._replay(saved._replace(fingerprint=None), opened)
        return await self.persistently(lambda: wait.load(Standing(self, opened), saved.output or ""))

    async def _over(self, wait: Wait, opened: _Opened, branch: Any) -> _Result:
        """What the wait has come to, once it is over."""
        row = await self._known_row(opened)
        if row is None:
            self.execution.goes_on()
        until = None
        if row is None and wait.kind == "timer" and wait.delay is not None and wait.delay <= self._warm_for:
            until = self.engine.now() + wait.delay  # so short that it is not worth a word
        elif row is None:
            row = await self._save(wait, opened)
        else:
            wait.resumed = True
            self.execution.said_before()
            # For who looks at it later: it began when it was first asked for.
            opened = opened._replace(started_at=row.created_at)
        await wait.written()
        until = until if row is None else row.until
        while (result := await wait.conclude(Standing(self, opened, row, until))) is None:
            await self._park(branch, wait, until)
        return result

    @property
    def _warm_for(self) -> int:
        return round(self.engine.options.warm_for * 1_000_000)

    # -- what earlier executions have said ---------------------------------------------------------------------

    async def _known_row(self, opened: _Opened) -> WaitRow | None:
        if self.execution.row.generation == 1:
            return None
        run_id, store = self.execution.row.id, self.engine.store
        key = wait_key(*opened.key)

        async def find() -> WaitRow | None:
            if self._known is None or self._known._error is not None:
                self._known = Reply("find_waits")
                self.engine.reader.ask(lambda c: store.find_waits(c, run_id), self._known)
            return next((row for row in await self._known if row.key == key), None)

        found: WaitRow | None = await self.persistently(find)
        return found

    async def persistently(self, question: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The answer, asked for until there is one or this execution is over."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await question()
            except StoreUnavailable as error:
                self.execution.refused_for_now(error)
            await self.execution.worker.pause(pause)
            pause = longer(pause)

    async def _save(self, wait: Wait, opened: _Opened) -> WaitRow:
        execution = self.execution
        row = WaitRow(execution.row.id, wait_key(*opened.key), wait.kind, wait.until, wait.signal, 0)
        children = await self._made(wait.children(self, row.key))
        save = WaitSave(execution.lease.owner, execution.lease.generation, row, wait.delay, children)

        def saved(standing: WaitRow | None) -> None:
            if standing is None:
                execution.lease_lost(None)
            elif children and self.engine.worker is not None:
                self.engine.worker.wake(made_here=True)

        def tickets() -> list[Ticket[Any]]:
            what = f"wait {str(opened.key)!r} of run {row.run_id}"
            many = len(children) > _MANY  # a round of its own, and no reason to refuse what others want to write
            count = 1 if many else 1 + len(children)
            ticket: Ticket[Any] = Ticket("save_waits", save, what=what, then=saved, count=count, bulk=many)
            return [*execution.pending_notes(), ticket]

        standing: WaitRow | None = await execution.write(tickets)
        if standing is None:
            raise Unwind
        return standing

    async def _made(self, children: Iterator[NewRun | None]) -> tuple[NewRun, ...]:
        """All of them. Of many a few at a time, and of one wait at a time: the event loop is everybody's.

        A hundred runs may come to their `map` at once, each with a thousand inputs that are checked and encoded.
        """
        made = [*itertools.islice(children, _AT_ONCE)]
        if len(made) == _AT_ONCE:
            async with self.execution.worker.long_work:
                while part := [*itertools.islice(children, _AT_ONCE)]:
                    made += part
                    await asyncio.sleep(0)
        return tuple(child for child in made if child is not None)

    # -- parking -----------------------------------------------------------------------------------------------

    async def _park(self, branch: Any, wait: Wait, until: int | None) -> None:
        """Until the time has come, here; whatever else it waits for leads to another execution."""
        self.execution.check()
        worker, clock = self.execution.worker, self.engine.clock
        if until is not None and (pass_time := self.engine.pass_time) is not None:
            left = (until - self.engine.now()) / 1e6
            if 0 < left <= self.engine.options.warm_for:
                pass_time(left)
                return
        future: asyncio.Future[None] = worker.loop.create_future()
        timer = None
        if until is not None:
            seconds = max(0.0, (until - self.engine.now()) / 1e6)
            # A timer of a year would overflow some loops.
            timer = clock.call_later(worker.loop, min(seconds, 86400.0), lambda: _ring(future))
        self._parked[future] = (branch, wait, until)
        try:
            self.consider()
            await future
        finally:
            if timer is not None:
                timer.cancel()
            del self._parked[future]
            worker.resume(self.execution)
            self.execution.rise()
        self.execution.check()

    def consider(self) -> None:
        """Something has come to rest. If nothing else goes on in this run its slot is free, and it may be suspended."""
        execution = self.execution
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if execution.is_over or execution.leaving or not self._parked:
            return
        if execution.branches.busy > len(self._parked):
            return
        execution.worker.freed(execution)
        execution.rest()
        now = self.engine.now()
        nearest = min((until for _, _, until in self._parked.values() if until is not None), default=None)
        if nearest is not None and nearest - now <= self._warm_for:
            return
        loop = execution.worker.loop
        alone = [branch for branch, _, _ in self._parked.values()] == [execution.branches.main]
        if alone and not self.steps.has_tasks:
            loop.call_soon(self._suspend)
        else:
            self._settling = loop.call_later(_SETTLE, self._suspend)

    def _suspend(self) -> None:
        execution = self.execution
        self._settling = None
        if self._parked and not execution.is_over and execution.branches.busy <= len(self._parked):
            kinds = [wait.kind for _, wait, _ in self._parked.values()]
            execution.suspend("timer" if set(kinds) == {"timer"} else next(kind for kind in kinds if kind != "timer"))

    def let_go(self) -> None:
        """The execution is over: nobody is left waiting."""
        for future in list(self._parked):
            future.cancel()


def _ring(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
