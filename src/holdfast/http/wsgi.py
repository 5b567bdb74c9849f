"""WSGI: the handler as an application for gunicorn, waitress or werkzeug, or to be mounted into Flask or Django.

Each request has an event loop of its own, in the thread that the server gave it, for as long as it is answered: nothing
runs beside it, and a server may fork when it likes. A stream holds its thread until it ends, so let the server have
more threads than `max_streams`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

from .handler import Handler
from .messages import Request, Response
from .stream import HEARTBEAT

#: WSGI has text of bytes: each character is one.
_CODE = "latin-1"


class WsgiApp:
    """A handler as a WSGI application. Made by `app.wsgi(…)`."""

    def __init__(self, handler: Handler) -> None:
        self.handler: Handler = handler

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        runner = asyncio.Runner()
        try:
            response = runner.run(self.handler.handle(_request(environ, self.handler.max_body)))
            begun = _begun(response, start_response)
        except BaseException:
            runner.close()
            raise
        if response.stream is not None:
            return _Chunks(response.stream, runner)
        runner.close()
        return [] if environ["REQUEST_METHOD"] == "HEAD" else begun


class _Chunks:
    """The chunks of a stream, each made when the server asks for it. The server closes it, whatever happens."""

    def __init__(self, stream: AsyncIterator[bytes], runner: asyncio.Runner) -> None:
        self._stream = stream
        self._runner = runner
        self._has_begun = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._has_begun:
            # Headers are sent with the first bytes: so the client sees that it is connected.
            self._has_begun = True
            return HEARTBEAT
        chunk = self._runner.run(_next(self._stream))
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Nobody reads any more."""
        try:
            self._runner.run(_close(self._stream))
        finally:
            self._runner.close()


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    return await anext(stream, None)


async def _close(stream: AsyncIterator[bytes]) -> None:
    await stream.aclose()  # type: ignore[attr-defined]


def _begun(response: Response, start_response: Callable[..., Any]) -> list[bytes]:
    """The status and the headers are told; the body, if it is there already."""
    headers = [
        (name, value.replace("\r", "").replace("\n", ""))
        for name, value in response.headers.items()
        if name.lower() != "connection"  # the server's business
    ]
    body = [] if response.stream is not None or response.status == 204 else [response.body]
    if body and "Content-Length" not in response.headers:
        headers.append(("Content-Length", str(len(response.body))))
    try:
        phrase = HTTPStatus(response.status).phrase
    except ValueError:
        phrase = "Unknown"  # a hook may refuse with any number
    start_response(f"{response.status} {phrase}", headers)
    return body


def _request(environ: Mapping[str, Any], most: int) -> Request:
    headers = [
        (name.removeprefix("HTTP_").replace("_", "-").lower(), str(value))
        for name, value in environ.items()
        if name.startswith("HTTP_") or (name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    ]
    return Request(
        method=environ["REQUEST_METHOD"],
        path=_text(environ.get("PATH_INFO", "")) or "/",
        query=environ.get("QUERY_STRING", ""),
        headers=headers,
        body=_body(environ, most),
        # Without a word of who it is, it is not this machine.
        client=environ.get("REMOTE_ADDR", ""),
        root=_text(environ.get("SCRIPT_NAME", "")),
        scope=environ,
    )


def _body(environ: Mapping[str, Any], most: int) -> bytes:
    """What was sent, but no more than is needed to see that it is too long."""
    told = environ.get("CONTENT_LENGTH") or ""
    if told.isascii() and told.isdigit():
        left = int(told[:20])
        if left > most:
            return b""  # refused by what the header says
    elif environ.get("wsgi.input_terminated"):
        left = most + 1
    else:
        left = 0
    parts = []
    while left > 0 and (part := environ["wsgi.input"].read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _text(given: str) -> str:
    return given.encode(_CODE, "replace").decode("utf-8", "replace")
