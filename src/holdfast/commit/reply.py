"""A reply: what every verb gives back. Await it in async code, or call `.wait()` in sync code.

One class for both worlds. It is a slot that is filled once, by any thread, and asked any number of times, from any
loop or thread. A whole round is answered with one wake-up per event loop, however many replies it holds: waking a
loop costs a system call, and doing it per reply costs more than the rest of the engine.

(This sits on the floor of the commit line, not beside the app, because a ticket in the line *is* a reply.)
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from ..basis.errors import StoreClosed, WouldDeadlock

T = TypeVar("T")
Answer: TypeAlias = "tuple[Reply[Any], Any, BaseException | None]"
#: Who waits for a reply: a task in its loop, by a future of that loop, or somebody who is called.
_Waiter: TypeAlias = "asyncio.Future[None] | Callable[[], None]"

_log = logging.getLogger("holdfast")
_running_loop = asyncio._get_running_loop

# One lock for all replies: it is held for a few bytecodes and never while calling anything. Re-entrant, because a
# garbage collection in between may run __del__, which logs, and a log handler may use a reply.
_lock = threading.RLock()

#: Who follows all runs is woken so many at a time: each of them then sends something, and what others wait for takes
#: several rounds of the loop (with 16 a trigger beside a thousand streams took 16 ms at worst, with 4 it takes 9).
_SOME = 4

_place = threading.local()


def _in_child() -> None:
    # Another thread may have held it at the moment of the fork, and that thread does not exist here.
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def may_wait() -> bool:
    """Whether this thread may block until others have been served: not if it is the one who serves."""
    return getattr(_place, "where", None) is None


def may_block() -> bool:
    """Whether `.wait()` is possible in this thread at all."""
    return _running_loop() is None and may_wait()


class no_waiting:
    """While this is entered, `.wait()` is refused in this thread: it would block what the reply depends on."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        self.outer: Any | None = getattr(_place, "where", None)
        _place.where = self.where

    def __exit__(self, *_: object) -> None:
        _place.where = self.outer


class Reply(Generic[T]):
    """The answer to something that was asked of the database, now or soon.

    A write is under way before you get its reply, and goes on whether or not you wait; cancelling an await, or a
    `wait` that times out, leaves it alone. A failed reply that nobody asks for is logged.
    """

    __slots__ = ("__weakref__", "_asked", "_convert", "_error", "_value", "_waiters", "_what")

    def __init__(self, what: str = "reply", convert: Callable[[Any], T] | None = None) -> None:
        self._what = what
        # Applied by whoever asks first, in its own thread: decoding is not the writing thread's work.
        self._convert = convert
        self._value: Any = None
        self._error: BaseException | None = None
        self._waiters: list[_Waiter] | None = []  # None once answered
        self._asked = False

    if not TYPE_CHECKING:  # type checkers must go on to refuse unknown attributes

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            raise AttributeError(
                f"{self._what}: this is a reply. `await` it, or call .wait(), and then ask for {name!r}."
            )

    def done(self) -> bool:
        """Whether the answer is there."""
        return self._waiters is None

    def __await__(self) -> Generator[Any, None, T]:
        self._ask()
        if self._waiters is not None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._subscribe(future):
                try:
                    yield from future
                except BaseException:  # cancelled: nobody waits here any more
                    self._unsubscribe(future)
                    raise
        return self._take()

    def wait(self, timeout: float | None = None) -> T:
        """Block this thread until the answer is there; `TimeoutError` after `timeout` seconds.

        Refused (`WouldDeadlock`) where it would block what it waits for: in an event loop's own thread, in a
        listener, a codec or `__del__`.
        """
        if self._waiters is not None:
            self._refuse_to_block()
        self._ask()
        if self._waiters is not None:
            gate = threading.Lock()
            gate.acquire()
            if self._subscribe(gate.release):
                try:
                    # A time that is over is no time: -1 would mean for ever.
                    came = gate.acquire(timeout=-1 if timeout is None else max(0, min(timeout, threading.TIMEOUT_MAX)))
                finally:
                    self._unsubscribe(gate.release)
                if not came and self._waiters is not None:
                    raise TimeoutError(
                        f"{self._what}: no answer within {self._said(timeout)} s. The work itself goes on."
                    )
        return self._take()

    def _said(self, timeout: float | None) -> str:
        return f"{timeout:g}"

    def _refuse_to_block(self) -> None:
        if _running_loop() is not None:
            raise WouldDeadlock(f"{self._what}: .wait() would block the event loop of this thread. Use `await`.")
        if (where := getattr(_place, "where", None)) is not None:
            raise WouldDeadlock(f"{self._what}: .wait() is not possible in {where}: it would wait for itself.")

    def _ask(self) -> None:
        """Somebody wants the answer. Reads and waits start here (see `LazyReply`)."""
        self._asked = True

    def _take(self) -> T:
        if self._convert is not None:
            self._decode()
        if self._error is not None:
            # Without this the traceback would grow with every await.
            raise self._error.with_traceback(None)
        return cast("T", self._value)

    def _decode(self) -> None:
        # Not under the lock, for it may be a user's code. So two that ask for the first time at the same moment may
        # both do it, each with the raw value; the first to be ready counts, and all get the same object.
        with _lock:
            convert, raw = self._convert, self._value
        if convert is None or self._error is not None:
            return
        try:
            value = convert(raw)
        except Exception as error:
            if self._decoded(None, error):
                raise
        else:
            self._decoded(value, None)

    def _decoded(self, value: Any, error: Exception | None) -> bool:
        with _lock:
            if self._convert is None:
                return False
            self._value, self._error, self._convert = value, error, None
            return True

    def when_done(self, call: Callable[[], None]) -> None:
        """Ask, and call when the answer is there: in the thread that answers, or at once. For the engine."""
        self._ask()
        if not self._subscribe(call):
            call()

    def _settle(self, value: Any, error: BaseException | None) -> list[_Waiter]:
        with _lock:
            waiters = self._waiters
            if waiters is None:
                return []
            self._value, self._error, self._waiters = value, error, None
        return waiters

    def _subscribe(self, waiter: _Waiter) -> bool:
        with _lock:
            if self._waiters is None:
                return False
            self._waiters.append(waiter)
            return True

    def _unsubscribe(self, waiter: _Waiter) -> None:
        with _lock:
            if self._waiters is not None and waiter in self._waiters:
                self._waiters.remove(waiter)

    def __del__(self) -> None:
        try:
            if self._error is not None and not self._asked:
                _log.error("%s failed, and nobody asked: %r", self._what, self._error)
        except Exception:  # pragma: no cover - the interpreter is going away, and logging with it
            pass

    def __repr__(self) -> str:
        state = "pending" if self._waiters is not None else repr(self._error or self._value)
        return f"<Reply {self._what}: {state}>"


class LazyReply(Reply[T]):
    """A reply that starts when it is first asked: reads, waits and everything else that is no write."""

    __slots__ = ("_start",)

    def __init__(self, what: str, start: Callable[[Reply[T]], None], convert: Callable[[Any], T] | None = None) -> None:
        super().__init__(what, convert)
        self._start: Callable[[Reply[T]], None] | None = start

    def _ask(self) -> None:
        self._asked = True
        with _lock:
            start, self._start = self._start, None
        if start is not None:
            try:
                start(self)
            except Exception as error:
                answer([(self, None, error)])


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def answer(answers: Iterable[Answer], *, few_at_once: bool = False) -> None:
    """Fill replies and wake who waits for them. Any thread; a reply that was answered before stays as it is.

    `few_at_once`: a loop that has many to wake does what else it has to do in between.
    """
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    calls: list[Callable[[], None]] = []
    for reply, value, error in answers:
        for waiter in reply._settle(value, error):
            if callable(waiter):
                calls.append(waiter)
            else:
                loops.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, waiters in loops.items():
        wake = _wake_some if few_at_once else _wake
        if loop is _running_loop():
            wake(waiters)
            continue
        try:
            loop.call_soon_threadsafe(wake, waiters)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to tell
    for call in calls:
        try:
            call()
        except Exception:  # one that fails must not keep the answer from the others
            _log.exception("after an answer")


def _wake_some(waiters: list[asyncio.Future[None]]) -> None:
    """The first of them now, and the others each time when the loop has looked at its sockets."""
    _wake(waiters[:_SOME])
    if rest := waiters[_SOME:]:
        asyncio.get_running_loop().call_soon(_wake_some, rest)


def hand_on(source: Reply[Any], target: Reply[Any], convert: Callable[[Any], Any] | None = None) -> None:
    """Ask `source`, and answer `target` with what it gives."""

    def done() -> None:
        try:
            value = source._take()
            value = value if convert is None else convert(value)
        except BaseException as error:  # also a SystemExit out of a user's function
            answer([(target, None, error)])
        else:
            answer([(target, value, None)])

    source.when_done(done)


async def answer_with(work: Callable[[], Coroutine[Any, Any, Any]], reply: Reply[Any], closed: str) -> None:
    """Answer the reply with what the work gives, in a task. `closed`: why that was cancelled, if it was."""
    try:
        value = await work()
    except asyncio.CancelledError:
        # Of a task of ours, because its loop ends. Nobody has cancelled whoever waits, perhaps in another one.
        answer([(reply, None, StoreClosed(closed))])
        raise
    except BaseException as error:
        answer([(reply, None, error)])
        if not isinstance(error, Exception):
            raise
    else:
        answer([(reply, value, None)])


def answered(value: T, what: str = "reply") -> Reply[T]:
    """A reply whose answer is already known."""
    reply: Reply[T] = Reply(what)
    reply._settle(value, None)
    return reply
