"""The line to a server: one thread with a loop and its connections, for async and sync callers alike.

Whoever asks gets a `Reply`, as from the library; the coroutine that fills it runs here. So a client can be used from
any loop and any thread, and a reply may be awaited where it was not made.

A call is *safe* if asking again does no harm: reads, and what carries an idempotency key. Those are tried again with a
back-off when there was no answer; others only if nothing of them has left this process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from pydantic_core import from_json, to_json

from ..basis.chance import fraction
from ..basis.clock import Clock, SystemClock
from ..basis.codec import Payloads
from ..basis.durations import seconds
from ..basis.errors import HoldfastError, StoreClosed, ValidationError
from ..basis.ids import Ids
from ..basis.text import clean, error_text, shown
from ..commit.reply import LazyReply, Reply, answer, answer_with
from ..model.options import Options
from ..model.retry import LONGEST_MAX_DELAY, Retry
from ..rules.retry import delay_before
from .errors import ServerUnavailable, error_of, no_answer_of_ours

try:
    import httpx
except ImportError as _missing:  # pragma: no cover - the tests have it; tests/client/test_client_import.py
    raise ImportError(
        'holdfast.client needs httpx. Get it with: pip install "holdfast[client]" '
        '(in a checkout: pip install ".[client]")'
    ) from _missing

T = TypeVar("T")
Params = Sequence[tuple[str, str | int]]
Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]
Work = Callable[[], Coroutine[Any, Any, T]]

_log = logging.getLogger("holdfast")
_sleep = asyncio.sleep

_CLOSED = "This client has been closed."
#: What the name of a header may be.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Seconds until a connection is there.
_CONNECT = 5.0
#: Seconds without a sign of life after which a stream is taken for dead: the server gives one each 15.
_SILENCE = 45.0


class Line:
    """One server. It looks like an engine where a run or a subscription asks for one."""

    def __init__(
        self,
        url: str,
        headers: Headers,
        timeout: float,
        retry: Retry,
        patience: Retry,
        transport: httpx.AsyncBaseTransport | None,
        clock: Clock | None = None,
    ) -> None:
        self.url: str = checked_url(url)
        self.payloads: Payloads = Payloads()
        self.options: Options = Options()
        self.clock: Clock = clock or SystemClock()
        self.ids: Ids = Ids(self.clock.now)
        self.retry: Retry = retry
        self.patience: Retry = patience
        if not callable(headers):
            headers = _checked_headers(headers)
        self._headers: Headers = headers
        self._timeout = httpx.Timeout(timeout, connect=min(_CONNECT, timeout))
        self._transport = transport
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # Twice by one thread: a client that is forgotten is closed wherever that is noticed.
        self._door = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: httpx.AsyncClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return shown_url(self.url)

    # -- the thread --------------------------------------------------------------------------------------------

    def _home(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():
            self._reset()  # in the child of a fork: the thread is the parent's
        with self._door:
            if self._closed:
                raise StoreClosed(_CLOSED)
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # A daemon: a program that forgot to close its client shall end.
                threading.Thread(target=_live, args=(self._loop,), name="holdfast-client", daemon=True).start()
            return self._loop

    @property
    def http(self) -> httpx.AsyncClient:
        """The connections. In the line's own loop."""
        if self._http is None:
            # No limit: each stream is a connection of its own, and what waits for one would never end.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
            self._http = httpx.AsyncClient(timeout=self._timeout, limits=limits, transport=self._transport)
        return self._http

    def begin(self, work: Work[Any], reply: Reply[Any]) -> Callable[[], None]:
        """Answer the reply with what the work gives; a function that ends the work. Any thread."""
        made: list[asyncio.Task[None]] = []

        def start() -> None:
            if self._closed:
                answer([(reply, None, StoreClosed(_CLOSED))])
                return
            task = loop.create_task(answer_with(work, reply, _CLOSED))
            made.append(task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        def end() -> None:
            try:
                loop.call_soon_threadsafe(lambda: [task.cancel() for task in made])
            except RuntimeError:
                pass  # the line is closed, and with it all work

        with self._door:  # so it is before the end of the loop
            loop = self._home()
            loop.call_soon_threadsafe(start)
        return end

    def asked(self, what: str, work: Work[Any], convert: Callable[[Any], T] | None = None) -> Reply[T]:
        """A reply of what is under way from now on: something that writes."""
        reply: Reply[T] = Reply(what, convert)
        self.begin(work, reply)
        return reply

    def lazily(self, what: str, work: Work[Any], convert: Callable[[Any], T] | None = None) -> Reply[T]:
        """A reply of what begins when somebody wants it: something that reads."""

        def start(reply: Reply[T]) -> None:
            self.begin(work, reply)

        return LazyReply(what, start, convert)

    def close(self, then: Callable[[], None] = lambda: None) -> None:
        """End everything that is under way, and all connections; call `then` afterwards. The thread ends by itself.

        Any thread, any number of times.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._door:
            self._closed = True
            loop, self._loop = self._loop, None
            if loop is not None:
                ending = loop

                def over(_: object) -> None:
                    then()
                    ending.stop()

                ending.call_soon_threadsafe(lambda: ending.create_task(self._end()).add_done_callback(over))
        if loop is None:
            then()

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel("closed")
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()

    # -- requests ----------------------------------------------------------------------------------------------

    async def get(
        self, path: str, params: Params = (), *, read: Callable[[Any], T], retry: Retry | None = None
    ) -> T:  # fmt: skip
        """What a read answers."""
        return await self.ask("GET", path, params, read=read, is_safe=True, retry=retry)

    async def ask(
        self, method: str, path: str, params: Params = (), body: Any = None, *, read: Callable[[Any], T],
        is_safe: bool, retry: Retry | None = None,
    ) -> T:  # fmt: skip
        """What `read` makes of the document that is answered. `ServerUnavailable` if there is no answer.

        Else the library's errors, and `ServerError` for an answer that can't be read. `retry`: that of the line unless
        given.
        """
        retry = retry or self.retry
        failures, was_lost = 0, False
        while True:
            try:
                return read_by(read, await self._once(method, path, params, body), f"{method} {self!r}{path}")
            except ServerUnavailable as error:
                failures += 1
                was_lost = was_lost or not error.is_unsent
                if not (is_safe or error.is_unsent) or failures > retry.max_retries:
                    raise
                await self.rest(failures, error.retry_after, retry)
            except HoldfastError as error:
                if was_lost:
                    error.add_note("An answer before this one was lost: what was asked may have been done.")
                raise

    async def rest(self, failures: int, at_least: float = 0.0, retry: Retry | None = None) -> None:
        """The pause after so many failures in a row."""
        retry = retry or self.retry
        pause = delay_before(retry, failures, fraction) / 1e6
        await _sleep(max(pause, min(at_least, _longest(retry))))

    async def _once(self, method: str, path: str, params: Params, body: Any) -> Any:
        content = None if body is None else to_json(body)
        headers = self._sent_headers()
        if content is not None:
            headers["Content-Type"] = "application/json"
        with _told(f"{method} {self!r}{path}"):
            response = await self.http.request(
                method, self.url + path, params=list(params), content=content, headers=headers
            )
        place = f"{method} {self!r}{path}"
        if response.status_code != 200:
            raise self._refused(response, response.content, path, place)
        try:
            return from_json(response.content)
        except (ValueError, RecursionError):
            raise no_answer_of_ours(place, "the answer is no JSON") from None

    def _refused(self, response: httpx.Response, body: bytes, path: str, place: str) -> HoldfastError:
        headers = response.headers
        points_to = _pointed_to(self.url + path, path, headers.get("location"))
        return error_of(response.status_code, body, place, headers.get("retry-after"), points_to)

    @asynccontextmanager
    async def stream(self, path: str, params: Params, place: str | None) -> AsyncIterator[httpx.Response | None]:
        """A stream from a place on; None: there is nothing more to tell."""
        headers = self._sent_headers() | {"Accept": "text/event-stream"}
        if place is not None:
            headers["Last-Event-ID"] = place
        what = f"GET {self!r}{path}"
        # What is read is refused by `read` of the frames; here only whether it begins.
        async with self.http.stream(
            "GET", self.url + path, params=list(params), headers=headers,
            timeout=httpx.Timeout(self._timeout.connect, read=_SILENCE),
        ) as response:  # fmt: skip
            if response.status_code == 204:
                yield None
                return
            if response.status_code != 200:
                raise self._refused(response, await response.aread(), path, what)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                # A page, for example: waited for, it would be a stream that ends too early, again and again.
                raise no_answer_of_ours(what, "the answer is no stream of events")
            yield response

    def _sent_headers(self) -> dict[str, str]:
        return _checked_headers(self._headers()) if callable(self._headers) else dict(self._headers)


class _told:
    """What httpx raises, as an error of ours."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, httpx.RequestError | httpx.InvalidURL | httpx.StreamError):
            # What it says is said: its own traceback would be some sixty lines of httpx and httpcore before ours.
            raise unanswered(error, self.place) from None


def unanswered(error: BaseException, place: str) -> ServerUnavailable:
    """There was no answer. What was sent may have been done."""
    is_unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    said = error_text(error, 300) or type(error).__name__
    return ServerUnavailable(f"{place}: no answer: {said}", is_unsent=is_unsent)


def read_by(read: Callable[[Any], T], document: Any, place: str) -> T:
    """What `read` makes of a document. Whatever else answers in JSON is no server of ours.

    All documents are read here: what is missing in one of them, or of another type, is nobody's `KeyError`.
    """
    try:
        return read(document)
    except Exception as error:
        raise no_answer_of_ours(place) from error


LOST = (httpx.RequestError, httpx.StreamError)


def _longest(retry: Retry) -> float:
    """Seconds that a server may ask us to wait: `max_delay`, or, where that says nothing, the longest delay there is.

    A server that asks for an hour shall not keep somebody who wants to know within a second.
    """
    longest = seconds(retry.max_delay, "max_delay")
    if longest < LONGEST_MAX_DELAY:
        return longest
    return max(delay_before(retry, number, lambda: 0.0) for number in (1, max(retry.max_retries, 1))) / 1e6


def _pointed_to(asked: str, path: str, location: str | None) -> str | None:
    """What a redirect would have to be given as `url`: where it points, without what was asked there."""
    if location is None:
        return None
    try:
        parts = urlsplit(urljoin(asked, location))
    except ValueError:
        return None
    return clean(shown_url(urlunsplit(parts._replace(path=parts.path.removesuffix(path), query="", fragment=""))), 500)


def _live(loop: asyncio.AbstractEventLoop) -> None:
    """The thread: knows nothing of the client, which may be forgotten."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def is_header(name: object, value: object) -> bool:
    """Whether this can be sent."""
    return (
        isinstance(name, str) and _NAME.fullmatch(name) is not None
        and isinstance(value, str) and value.isascii() and value.isprintable() and value == value.strip()
    )  # fmt: skip


def _checked_headers(given: object) -> dict[str, str]:
    """These headers. A `ValidationError` does not repeat a value: it may be a secret."""
    if not isinstance(given, Mapping):
        raise ValidationError("headers: it is no mapping. Write e.g. {'Authorization': 'Bearer …'}.")
    for name, value in given.items():
        if not is_header(name, value):
            raise ValidationError(
                f"headers: {shown(name)} can't be sent. Name and value are text of printable ASCII characters, without "
                "blanks or line breaks around them."
            )
    return dict(given)


def checked_url(url: object) -> str:
    """The URL of a server, without a slash at its end."""
    if not isinstance(url, str):
        raise ValidationError(f"url: {shown(url)} is no URL. Write e.g. 'http://127.0.0.1:8000'.")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises if it is none
    except ValueError as error:
        raise ValidationError(f"url: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValidationError(
            f"url: {shown(shown_url(url))} is no URL of a server. Write e.g. 'http://127.0.0.1:8000'."
        )
    if parts.query or parts.fragment:
        raise ValidationError("url: leave out what follows the path.")
    return urlunsplit(parts).rstrip("/")


def shown_url(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
