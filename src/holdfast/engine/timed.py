"""A step's body with a time limit: told when the time is over, cancelled where that is possible, and left in the end.

The body runs in a task of its own, because whoever waits must be able to leave it. The rules, in the order of time:

* A body that is done when its time is over has made it: its result counts.
* Otherwise it is *told*: its `signal` is set to `timeout`, and what is async is cancelled. From then on the step has
  failed, whatever the body still returns or raises: who is told to stop returns early, and half a result is none.
* It has `cancel_grace` seconds to come back. Then it is *left*: nothing can end a thread, or a coroutine that swallows
  its cancellation. The step fails for good, because two bodies of one step at once would be worse, and the body counts
  as abandoned until it returns.
* Nothing happens around a COMMIT: the limit is that of the body, and it is over before its result is written. Nor after
  a cancel or the loss of the lease: then the body is told *that*, by the same signal, and the first reason stays.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..basis.clock import Timer
from ..commit.reply import Reply
from .attempts import Attempt, current_attempt
from .signals import AbortSignal

if TYPE_CHECKING:
    from .calls import Callee
    from .execution import Execution


class Timed:
    """One call of a body that may take so many seconds. For the app's loop."""

    def __init__(
        self,
        execution: Execution,
        attempt: Attempt,
        seconds: float,
        known: Callee,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._execution = execution
        self._attempt = attempt
        self._seconds = seconds
        self._known = known
        self._call = fn, args, kwargs
        self.signal: AbortSignal = AbortSignal()
        if known.wants_signal and "signal" not in kwargs:
            self._call = fn, args, {**kwargs, "signal": self.signal}
        self._value: Any = None
        self._error: BaseException | None = None
        self._in_thread: Reply[Any] | None = None
        self._grace: Timer | None = None
        self._wake: Callable[[], object] = lambda: None

    async def result(self) -> Any:
        """What the body returns or raises; `TimeoutError` if it takes too long."""
        clock, loop = self._execution.engine.clock, asyncio.get_running_loop()
        follows = self._execution.signal.on_abort(self.signal.set)
        token = current_attempt.set(self._attempt)
        self._task = task = loop.create_task(self._body())
        current_attempt.reset(token)
        task.add_done_callback(lambda _: self._wake())
        timer = clock.call_later(loop, self._seconds, self._over)
        try:
            cancelled = await self._come_back(loop)
        finally:
            follows()
            for one in (timer, self._grace):
                if one is not None:
                    one.cancel()
        if not task.done():
            self._attempt.left = True
            what = f"Step {str(self._attempt.key)!r} of run {self._execution.row.id}"
            self._execution.worker.leave_behind(task, f"{what} was told to stop (timeout) and did not", self._execution)
        elif not self._attempt.told:
            task.result()  # raises if it was cancelled
            if self._error is not None:
                raise self._error
            return self._value
        if cancelled:
            raise asyncio.CancelledError
        raise TimeoutError(f"step {str(self._attempt.key)!r} took longer than {self._seconds:g} s") from self._error

    async def _come_back(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return when the body is done, or is left; whether somebody has cancelled the step meanwhile."""
        task, cancelled = self._task, False
        while not (task.done() or self._attempt.left):
            turn: asyncio.Future[None] = loop.create_future()
            self._wake = functools.partial(_settle, turn)
            try:
                await turn
            except asyncio.CancelledError:
                # As if the body were awaited directly.
                cancelled = True
                task.cancel()
        return cancelled

    async def _body(self) -> None:
        try:
            self._value = await self._called()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # not out of the task: a SystemExit would end the loop
            self._error = error

    async def _called(self) -> Any:
        fn, args, kwargs = self._call
        if self._known.is_async:
            return await fn(*args, **kwargs)
        if self._execution.engine.options.inline:
            value = fn(*args, **kwargs)  # nothing else runs meanwhile, and no time is seen to pass
        else:
            self._execution.notes.before_a_thread()
            self._in_thread = self._execution.engine.threads.call(fn, *args, **kwargs)
            value = await self._in_thread
            self._in_thread = None
        # By its type: `inspect.isawaitable` asks the value for its `__class__`, which may be a property that raises.
        if not hasattr(type(value), "__await__"):
            return value
        if self._attempt.told:
            if inspect.iscoroutine(value):
                value.close()
            return None
        return await value

    def _over(self) -> None:
        if self._task.done() or self._execution.is_over:
            return
        if self._in_thread is not None and self._in_thread.done():
            # The thread has returned, and the task has not heard of it yet.
            self._task.get_loop().call_soon(self._over)
            return
        self._attempt.told = True
        self.signal.set("timeout")
        if self._in_thread is None:
            self._task.cancel()
        engine = self._execution.engine
        self._grace = engine.clock.call_later(self._task.get_loop(), engine.options.cancel_grace, self._leave)

    def _leave(self) -> None:
        if not self._task.done():
            self._attempt.left = True
            self._wake()


def _settle(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
