"""A reply whose work is done by whoever awaits it: over a connection of the caller's, which lives in its loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from ..basis.errors import WouldDeadlock
from .reply import Reply, answer

T = TypeVar("T")

_log = logging.getLogger("holdfast")


class AwaitedReply(Reply[T]):
    """Nothing happens before it is awaited. If that is cancelled, the next await begins anew."""

    __slots__ = ("_turn", "_work")

    def __init__(self, what: str, work: Callable[[], Awaitable[Any]], convert: Callable[[Any], T]) -> None:
        super().__init__(what, convert)
        self._work = work
        self._turn = asyncio.Lock()

    def __await__(self) -> Generator[Any, None, T]:
        return self._get().__await__()

    async def _get(self) -> T:
        self._asked = True
        async with self._turn:
            if not self.done():
                try:
                    made = await self._work()
                except Exception as error:
                    answer([(self, None, error)])
                else:
                    answer([(self, made, None)])
        return self._take()

    def wait(self, timeout: float | None = None) -> T:
        if not self.done():
            raise WouldDeadlock(
                f"{self._what}: the connection is asynchronous, and only your loop can use it. Use `await`, or give a "
                "synchronous connection."
            )
        return super().wait(timeout)

    def when_done(self, call: Callable[[], None]) -> None:  # noqa: ARG002 - nobody is there to do it
        raise WouldDeadlock(f"{self._what}: nothing happens before it is awaited.")

    def __del__(self) -> None:
        try:
            if not self._asked:
                _log.error("%s was never awaited: nothing was written", self._what)
        except Exception:  # pragma: no cover - the interpreter is going away, and logging with it
            pass
