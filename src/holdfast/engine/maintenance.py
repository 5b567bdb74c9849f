"""What a worker does for its database while it executes nothing.

The worker calls `Maintenance.idle` at each polling interval in which it is idle. Here goes whatever can wait for that
and is needed now and then: the checkpoint of SQLite's log, retention, dropping what ended runs no longer need. Each
part has its own interval and its own bounds, is off the hot path (a claim may come at any moment), and reports its own
failure as `worker:error`: one that fails must not keep the others from their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ..basis.errors import StoreClosed
from ..commit.ticket import Ticket
from ..store.base import Old
from .forgetting import forget

if TYPE_CHECKING:
    from .engine import Engine

#: Seconds between two looks at the database's files; half of it, if a reader was in the way.
_TIDY_SECONDS = 60.0
#: Seconds between two looks at what is old.
_FORGET_SECONDS = 60.0
#: Workers that are forgotten at once.
_WORKERS = 1000
#: How long the outputs of steps are kept after the end, for whoever looks at what has just happened.
OUTPUTS_KEPT_SECONDS = 3600.0


class Maintenance:
    """The chores of one worker, in its event loop."""

    def __init__(self, engine: Engine, is_idle: Callable[[], bool]) -> None:
        self._engine = engine
        self._is_idle = is_idle
        self._at_it = False
        self._left = asyncio.Event()
        self._left.set()
        self._tidy_at = engine.clock.steady() + _TIDY_SECONDS
        never, now = float("inf"), engine.clock.steady()
        self._retain_at = never if engine.options.retain_runs is None else now
        self._drop_at = never if engine.options.preserve_steps else now
        self._workers_at = now + _FORGET_SECONDS

    def is_due(self) -> bool:
        """Whether there is something to do. Cheap: asked whenever a claim finds nothing."""
        return self._engine.clock.steady() >= min(self._tidy_at, self._retain_at, self._drop_at, self._workers_at)

    async def idle(self) -> None:
        """Nothing is executing: do what is due. Never raises for the database, never runs twice at once."""
        if self._at_it:
            return
        self._at_it = True
        self._left.clear()
        try:
            await self._tidy()
            await self._safely(self._retain)
            await self._safely(self._drop_outputs)
            await self._safely(self._forget_workers)
        finally:
            self._at_it = False
            self._left.set()

    async def left(self) -> None:
        """Return once nothing of this is under way. At most a batch is: whoever stops is no longer idle."""
        await self._left.wait()

    async def _safely(self, chore: Callable[[], Awaitable[None]]) -> None:
        try:
            await chore()
        except Exception as error:
            if not (self._engine.stopping and isinstance(error, StoreClosed)):
                self._engine.hub.report(error, "idle-maintenance")

    async def _retain(self) -> None:
        clock, kept = self._engine.clock, self._engine.options.retain_runs
        if clock.steady() < self._retain_at:
            return
        assert kept is not None
        # Also after an error: what is wrong now is wrong a second later.
        self._retain_at = clock.steady() + _FORGET_SECONDS
        await forget(self._engine, "delete", Old(_ago(self._engine, kept)), goes_on=self._is_idle)
        if not self._is_idle():
            self._retain_at = clock.steady()  # work came in between: go on when it is done

    async def _drop_outputs(self) -> None:
        clock = self._engine.clock
        if clock.steady() < self._drop_at:
            return
        self._drop_at = clock.steady() + _FORGET_SECONDS
        old = Old(_ago(self._engine, OUTPUTS_KEPT_SECONDS), outputs=True)
        await forget(self._engine, "drop_outputs", old, goes_on=self._is_idle)
        if not self._is_idle():
            self._drop_at = clock.steady()

    async def _forget_workers(self) -> None:
        clock = self._engine.clock
        if clock.steady() < self._workers_at:
            return
        self._workers_at = clock.steady() + _FORGET_SECONDS
        ticket: Ticket[int] = Ticket("forget_workers", _WORKERS)
        self._engine.committer.join(ticket, pass_always=True)
        await ticket

    async def _tidy(self) -> None:
        clock = self._engine.clock
        if clock.steady() < self._tidy_at:
            return
        done = await self._engine.committer.tidy()
        self._tidy_at = clock.steady() + (_TIDY_SECONDS if done else _TIDY_SECONDS / 2)


def _ago(engine: Engine, seconds: float) -> int:
    return engine.now() - round(seconds * 1_000_000)
