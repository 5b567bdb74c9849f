"""Server-sent events, made when they are asked for: nothing is prepared for who does not read.

Each is `data: `, one line of JSON, and an empty line. While nothing happens a comment keeps proxies from closing the
connection. Before the last event of a run the client is told to come back late: a browser would do so every three
seconds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from ..basis.clock import Clock
from ..basis.errors import HoldfastError
from ..engine.trail import LAST
from ..model.event import Event
from .throttle import Throttle
from .wire import written

HEARTBEAT = b": \n\n"
#: Milliseconds until a browser that reconnects to a run that has ended asks again.
_LATE = 86_400_000


class Source(Protocol):
    """Where events come from: a subscription, or the feed."""

    dropped: int

    async def anext_within(self, seconds: float | None) -> Event | None:
        """The next event; None after the last. `TimeoutError` when the time is over."""
        ...

    def close(self) -> None: ...


def frame(document: dict[str, Any], id: str | None = None) -> bytes:
    """One event."""
    data = b"data: " + written(document) + b"\n\n"
    return data if id is None else b"id: " + id.encode() + b"\n" + data


def last_frame(document: dict[str, Any], id: str | None = None) -> bytes:
    """The last event of a run."""
    return b"retry: %d\n\n" % _LATE + frame(document, id)


Framed = Callable[[Event], bytes | None]


class Shared:
    """Frames that many streams send: made once for all of them, as long as they read at about the same time."""

    _MOST = 64

    def __init__(self, framed: Framed) -> None:
        self._framed = framed
        self._made: dict[int, tuple[Event, bytes | None]] = {}

    def __call__(self, event: Event) -> bytes | None:
        known = self._made.get(id(event))
        if known is not None and known[0] is event:
            return known[1]
        made = self._framed(event)
        if len(self._made) >= self._MOST:
            self._made.clear()
        self._made[id(event)] = event, made
        return made


class Frames:
    """The chunks of one stream. For one reader; closing it ends the source."""

    def __init__(
        self,
        source: Source,
        framed: Framed,
        clock: Clock,
        *,
        throttle: float,
        heartbeat: float,
        first: bytes = b"",
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._framed = framed
        self._clock = clock
        self._throttle = Throttle(throttle)
        self._heartbeat = heartbeat
        self._first = first
        self._closed: Callable[[], None] | None = closed
        self._said = 0
        self._chunks = self._made()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._chunks.__anext__()
        except BaseException:
            self.end()
            raise

    async def aclose(self) -> None:
        """Nobody reads any more."""
        self.end()
        await self._chunks.aclose()

    def end(self) -> None:
        """The same, from any thread: what waits for the next chunk comes to its end."""
        self._source.close()
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()

    async def _made(self) -> AsyncGenerator[bytes, None]:
        if self._first:
            yield self._first
        steady = self._clock.steady
        beat_at = steady() + self._heartbeat
        while True:
            due_at = self._throttle.due_at()
            until = beat_at if due_at is None else min(due_at, beat_at)
            try:
                event = await self._source.anext_within(max(until - steady(), 0.0))
            except TimeoutError:
                now = steady()
                chunk = b"".join(self._frames(self._throttle.due(now)))
                if not chunk and now >= beat_at:
                    chunk = HEARTBEAT
                if chunk:
                    beat_at = now + self._heartbeat
                    yield chunk
                continue
            except HoldfastError:
                event = None  # the app was stopped: the client comes back, and then sees
            now = steady()
            events = self._throttle.rest() if event is None else self._throttle.pass_on(event, now)
            chunk = b"".join([*self._dropped(), *self._frames(events), *self._frames(self._throttle.due(now))])
            if chunk:
                beat_at = now + self._heartbeat
                yield chunk
            if event is None:
                return

    def _dropped(self) -> Iterator[bytes]:
        """That the reader was too slow; what is missing has to be read."""
        if self._source.dropped > self._said:
            yield b": %d events were dropped\n\n" % (self._source.dropped - self._said)
            self._said = self._source.dropped

    def _frames(self, events: list[Event]) -> Iterator[bytes]:
        for event in events:
            if (made := self._framed(event)) is not None:
                yield made


def framed_run(kept: Callable[[Event], bool], document: Callable[[Event, str], dict[str, Any]]) -> Framed:
    """Frames of one run: what failed last is remembered for how the run ends."""
    failed = ""

    def framed(event: Event) -> bytes | None:
        nonlocal failed
        if event.type == "step:fail":
            failed = str(event.data.get("step_name") or "")
        if not kept(event):
            return None
        made = document(event, failed if event.sequence else "")
        return last_frame(made) if event.type in LAST else frame(made)

    return framed
