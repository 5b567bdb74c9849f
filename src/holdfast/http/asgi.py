"""ASGI: the handler as an application for uvicorn, or to be mounted into Starlette, FastAPI or Django.

Mounted, it answers requests only; started by itself, it also starts and stops the app with the server. When a client
has gone, its stream ends at once. Nothing is sent faster than it is taken: `send` waits for the client. So that a
client that takes nothing does not keep a server from stopping, its stream is cut off when the handler is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from ..basis.text import error_text
from .handler import Handler
from .leaving import close_at_signals
from .messages import Request

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger("holdfast")

#: Seconds that a client has to take what is left of its stream once the handler is closed.
_REST = 2.0


class Gone(BaseException):  # no error of ours or of a hook's
    """The client has left while it was sending."""


class AsgiApp:
    """A handler as an ASGI application. Made by `app.asgi(…)`."""

    def __init__(self, handler: Handler) -> None:
        self.handler: Handler = handler
        self.stop_timeout: float | None = 30.0
        """Started by itself: seconds that runs may go on when the server stops; None: as long as they take."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        app, forget = self.handler.app, _nothing
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await app.init()
                    self.handler.open()
                    forget = close_at_signals(self._leave)
                except Exception as error:
                    await app.stop()
                    await send({"type": "lifespan.startup.failed", "message": error_text(error, 500)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                forget()
                self.handler.close()
                await app.stop(self.stop_timeout)
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _leave(self) -> None:
        self.handler.close()
        self.handler.app._engine.claim_no_more()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self.handler.handle(_request(scope, receive))
        except Gone:
            return
        # Headers of one connection are HTTP/1's business.
        keeps = str(scope.get("http_version", "1.1")).startswith("1")
        headers = [
            (name.lower().encode("latin-1"), _safe(value).encode("latin-1", "replace"))
            for name, value in response.headers.items()
            if keeps or name.lower() != "connection"
        ]
        if response.stream is None and response.status != 204 and "Content-Length" not in response.headers:
            headers.append((b"content-length", str(len(response.body)).encode()))
        try:
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            if response.stream is None:
                await send({"type": "http.response.body", "body": response.body})
            else:
                async with _cut_off(self.handler, receive):
                    await _stream(response.stream, receive, send)
        except OSError:
            pass  # the client has gone, or was cut off
        finally:
            if response.stream is not None:
                await response.stream.aclose()  # type: ignore[attr-defined]


@asynccontextmanager
async def _cut_off(handler: Handler, receive: Receive) -> AsyncIterator[None]:
    """What is still being sent a while after the handler was closed comes to its end, or gets a `TimeoutError`."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    over = False

    def cut() -> None:
        # uvicorn waits until everything was taken even of a connection that it closes. Only an abort ends it, and what
        # we get from it knows the connection. Of other servers, which wait for a few seconds only, nothing is known.
        abort = getattr(getattr(getattr(receive, "__self__", None), "transport", None), "abort", None)
        if abort is not None:
            abort()  # by which `send` returns
        else:
            limit.reschedule(loop.time())

    def begin() -> None:
        nonlocal timer
        if not over and timer is None:
            timer = loop.call_later(_REST, cut)

    def closed() -> None:
        try:
            loop.call_soon_threadsafe(begin)
        except RuntimeError:
            pass  # the loop is closed: nothing is being sent

    forget = handler.when_closed(closed)
    try:
        async with asyncio.timeout(None) as limit:
            yield
    finally:
        over = True
        forget()
        if timer is not None:
            timer.cancel()


async def _stream(chunks: AsyncIterator[bytes], receive: Receive, send: Send) -> None:
    """Send each chunk when the one before was taken, until there are no more, or the client has gone."""
    end = getattr(chunks, "end", None)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if end is not None:
            end()  # what waits for the next chunk comes to its end

    # So that the client sees that it is connected, whatever happens next.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    watching = asyncio.ensure_future(watch())
    try:
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        watching.cancel()


def _nothing() -> None: ...


def _request(scope: Scope, receive: Receive) -> Request:
    over = False

    async def part() -> bytes:
        nonlocal over
        while not over:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            over = not message.get("more_body", False)
            if body := message.get("body", b""):
                return bytes(body)
        return b""

    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    # Mounted: servers and frameworks give the whole path, and say how much of it led here. What a proxy in front has
    # cut off may be said, too, without being there.
    for before in (root, root.removeprefix(scope.get("app_root_path", ""))):
        if before and (path == before or path.startswith(before + "/")):
            path = path[len(before) :] or "/"
            break
    client = scope.get("client")
    return Request(
        method=scope["method"],
        path=path,
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope.get("headers", ())],
        # Without a word of who it is, as behind a socket in the file system, it is not this machine.
        client=client[0] if client else "",
        root=root,
        receive=part,
        scope=scope,
    )


def _safe(value: str) -> str:
    """A value for a header: what would begin another one is left out."""
    return value.replace("\r", "").replace("\n", "")
