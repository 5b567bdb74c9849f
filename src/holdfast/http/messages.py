"""A request and a response, without any framework: what a server, a browser or a test gives and gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from ..basis.errors import PayloadTooLarge, ValidationError
from .wire import written

#: Sizes beyond which a request is refused before anybody looks at it.
MOST_HEADERS, MOST_HEADER_BYTES = 100, 32 << 10
MOST_QUERY_BYTES, MOST_PARAMS = 16 << 10, 200

#: On every answer: it is no page, and nothing of it is kept by anybody in between.
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. `path` is decoded, without the query; `query` is as it was sent."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    body: bytes = b""
    client: str | None = None
    """The address of who asks; None: nobody in between, as in a test or a browser's worker. "": nobody knows."""
    root: str = ""
    """What came before `path`, where this is mounted. Only for what is told of where the routes are."""
    receive: Callable[[], Awaitable[bytes]] | None = None
    """Gives the next part of the body, and b"" after the last; used instead of `body`."""
    scope: Any = None
    """What the server knows beside that: with ASGI, the scope."""
    _headers: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _parts: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given: Any = self.headers.items() if isinstance(self.headers, Mapping) else self.headers
        for name, value in given:
            self._headers.setdefault(name.lower(), []).append(value)

    def header(self, name: str) -> str | None:
        """The first header of this name, whatever its case."""
        found = self._headers.get(name.lower())
        return found[0] if found else None

    def header_list(self, name: str) -> list[str]:
        """All headers of this name."""
        return self._headers.get(name.lower(), [])

    def header_sizes(self) -> tuple[int, int]:
        """How many headers there are, and how many characters."""
        many = [(name, value) for name, values in self._headers.items() for value in values]
        return len(many), sum(len(name) + len(value) for name, value in many)

    def params(self) -> list[tuple[str, str]]:
        """The parameters of the query, in order. `ValidationError` if there are too many."""
        try:
            return parse_qsl(self.query, keep_blank_values=True, max_num_fields=MOST_PARAMS)
        except ValueError:
            raise ValidationError(f"The query has more than {MOST_PARAMS} parameters.") from None

    async def read(self, most: int) -> bytes:
        """The body. `PayloadTooLarge` as soon as it is known to be longer than `most` bytes."""
        told = self.header("content-length")
        if told is not None and told.isascii() and told.isdigit() and int(told[:20]) > most:
            raise _too_large(most)
        if self.receive is None:
            if len(self.body) > most:
                raise _too_large(most)
            return self.body
        # What has come is kept: a hook may have read it, or the beginning of it, before the route does.
        parts, size = self._parts, sum(map(len, self._parts))
        while size <= most:
            if parts and not parts[-1]:
                return b"".join(parts)
            parts.append(await self.receive())
            size += len(parts[-1])
        raise _too_large(most)


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is longer than {most} bytes.")


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered: a body, or a stream of chunks that are to be sent as they come."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None
    """Close it (`aclose`) when nobody reads it any more."""


class Reject(Exception):
    """Raise it in a hook: the request is answered with this. The body is `{"error": message}` unless another is given.

    Of `on_run_access`, 403 and 404 are answered as a run that does not exist.
    """

    def __init__(
        self,
        status: int = 403,
        message: str = "Forbidden",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status: int = status
        self.message: str = message
        self.headers: dict[str, str] = dict(headers or {})
        self.body: bytes | None = body

    def response(self) -> Response:
        """The answer."""
        if self.body is None:
            return error_response(self.status, self.message, self.headers)
        return Response(self.status, {**SAFE, "Cache-Control": "no-store", **self.headers}, self.body)


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The document as JSON."""
    return Response(
        status,
        {"Content-Type": "application/json", "Cache-Control": "no-store", **SAFE, **(headers or {})},
        written(document),
    )


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """What went wrong, as every route says it."""
    return json_response({"error": message}, status, headers)


def not_found() -> Response:
    """There is no such route."""
    headers = {"Content-Type": "text/plain;charset=UTF-8", "Cache-Control": "no-store", **SAFE}
    return Response(404, headers, b"Not Found")


def no_content() -> Response:
    """There is nothing more to tell."""
    return Response(204, {"Cache-Control": "no-store", **SAFE})


def stream_response(chunks: AsyncIterator[bytes]) -> Response:
    """Events, as they come."""
    headers = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache",
        "Connection": "keep-alive",
        "X-Accel-Buffering": "no",  # proxies that would gather them
        **SAFE,
    }
    return Response(200, headers, stream=chunks)
