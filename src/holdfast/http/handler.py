"""The handler: one request in, one response out. It knows no framework, no socket and no thread.

The gate comes before routing, and everything goes through it: sizes, host, who it is, and then the route's own need.
What goes wrong in a hook is a refusal. What goes wrong with us is told with a reference into the log, and without a
word of why.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypedDict

from ..basis.durations import Duration, seconds
from ..basis.errors import HoldfastError, NotKept, SchemaError, StoreError, ValidationError
from ..basis.text import error_text, shown
from .asked import Asked
from .auth import Auth, Insecure, called, labels_of_tenant
from .guard import LOCAL_HOSTS, check_host, check_origin, check_sizes, is_local, known_host, known_origin
from .messages import Reject, Request, Response, error_response, not_found, stream_response
from .naming import check_query
from .need import Need
from .routes import BY_PLACE, Route
from .stream import Frames, Shared
from .streaming import of_all

if TYPE_CHECKING:
    from ..app import Holdfast

_log = logging.getLogger("holdfast")

OnRequest = Callable[[], Any]

#: Bytes of a body beyond the input of a run: the rest of what a trigger says.
_BESIDE_INPUT = 1 << 16
_NO_AUTH = (
    "Requests from other machines are refused: this server has no auth. Give auth=Auth(authenticate=…), or "
    'auth=Insecure("why that is right").'
)


class HandlerOptions(TypedDict, total=False):
    """How requests are answered. Durations are seconds, or texts such as "15s"."""

    auth: Auth | Insecure | None
    on_request: OnRequest | None
    sse_throttle: Duration
    """Between two progress events of one run on a stream."""
    heartbeat: Duration
    """Between two signs of life on a stream that has nothing to tell."""
    base_path: str
    hosts: Iterable[str] | None
    origins: Iterable[str]
    max_body: int | None
    """Bytes; None: those of the largest input, and a little more."""
    max_page: int
    """Runs in one list."""
    max_streams: int
    """Open at once."""


class Handler:
    """Answers requests to an app. Made by `app.handler(…)` or, for a server, `app.asgi(…)`."""

    def __init__(
        self,
        app: Holdfast,
        *,
        auth: Auth | Insecure | None = None,
        on_request: OnRequest | None = None,
        sse_throttle: Duration = 0.1,
        heartbeat: Duration = 15.0,
        base_path: str = "",
        hosts: Iterable[str] | None = None,
        origins: Iterable[str] = (),
        max_body: int | None = None,
        max_page: int = 500,
        max_streams: int = 5000,
    ) -> None:
        given: object = auth
        if given is not None and not isinstance(given, Auth | Insecure):
            raise ValidationError(f"auth: {shown(auth)} is neither Auth(…) nor Insecure(reason).")
        self.app: Holdfast = app
        self.auth: Auth | Insecure | None = auth
        if on_request is not None and not callable(on_request):
            raise ValidationError(f"on_request: {shown(on_request)} can't be called.")
        self.on_request: OnRequest | None = on_request
        self.sse_throttle: float = seconds(sse_throttle, "sse_throttle")
        self.heartbeat: float = seconds(heartbeat, "heartbeat")
        if not self.heartbeat:
            raise ValidationError("heartbeat: it must be longer than 0 seconds.")
        where: object = base_path
        if not isinstance(where, str):
            raise ValidationError(f"base_path: {shown(base_path)} is no text.")
        self.base_path: str = "/" + base_path.strip("/") if base_path.strip("/") else ""
        # Without auth nobody but this machine may ask, so a name of this machine is all that is needed.
        self.hosts: frozenset[str] | None = frozenset(LOCAL_HOSTS) if auth is None else None
        if hosts is not None:
            self.hosts = frozenset(known_host(name) for name in _listed("hosts", hosts))
        self.origins: frozenset[str] = frozenset(known_origin(origin) for origin in _listed("origins", origins))
        most = app._engine.options.max_input_bytes + _BESIDE_INPUT if max_body is None else max_body
        self.max_body: int = _counted("max_body", most, 1)
        self.max_page: int = _counted("max_page", max_page, 1)
        self.max_streams: int = _counted("max_streams", max_streams, 0)  # none at all, where each takes a thread
        # Weakly: a response that nobody sends is forgotten with what it follows.
        self._streams: weakref.WeakSet[Frames] = weakref.WeakSet()
        self.of_all: Shared = Shared(of_all)
        self._door = threading.RLock()
        self._closed = False
        self._when_closed: dict[object, Callable[[], None]] = {}

    async def handle(self, request: Request) -> Response:
        """The answer. Raises nothing but what ends the process, or cancels the task."""
        try:
            return await self._handle(request)
        except Reject as no:
            return no.response()
        except SchemaError:
            # Without the why, which names the database. Trying again is of use only once somebody has read the log.
            _log.warning("%s %s: the database isn't ready for us", request.method, request.path, exc_info=True)
            return error_response(503, "The database isn't ready for us. The log says why.", {"Retry-After": "1"})
        except StoreError:
            _log.warning("%s %s: the database can't serve us", request.method, request.path, exc_info=True)
            return error_response(503, "The database can't serve us now. Try again later.", {"Retry-After": "1"})
        except NotKept as error:
            return error_response(400, str(error))  # what was sent would not come back as it is
        except HoldfastError as error:
            if error.status >= 500:
                return self._broken(request, error)
            return error_response(error.status, error.message)
        except Exception as error:
            return self._broken(request, error)

    def _broken(self, request: Request, error: Exception) -> Response:
        reference = self.app._engine.ids.new()
        _log.error("%s: %s %s: %s", reference, request.method, shown(request.path), error_text(error), exc_info=error)
        return error_response(500, f"Internal error. The log has it under {reference}.")

    async def _handle(self, request: Request) -> Response:
        check_sizes(request)
        route = self._route(request)
        if route is not None and route.need is Need.NOTHING:
            # Also by another name: what looks whether we live knows an address.
            answer = await route.act(Asked(self, request, route.need, []))
            return answer if request.method != "HEAD" else _without_body(answer)
        if self.auth is None and not is_local(request):
            raise Reject(403, _NO_AUTH)
        check_host(request, self.hosts)
        asked = Asked(self, request, Need.NOTHING if route is None else route.need, [])
        await self._know(asked)
        if route is None:
            return not_found()
        check_origin(request, self.origins)
        asked.params = request.params()
        if route.need.is_of_a_run:
            await asked.find_run()
        elif route.need.is_of_runs:
            await asked.find_scope()
        if not route.need.is_of_a_run and route.need is not Need.TRIGGER:
            await asked.permit()
        check_query(route, asked.params)
        return await route.act(asked)

    async def _know(self, asked: Asked) -> None:
        """Who it is; then whatever is to be done for each request."""
        try:
            if isinstance(self.auth, Auth):
                asked.who = await called("authenticate", self.auth.authenticate, asked.request)
                asked.tenant = await labels_of_tenant(self.auth, asked.who)
            if self.on_request is not None:
                await called("on_request", self.on_request)
        except (Reject, StoreError):
            raise
        except HoldfastError as error:
            # Of the application's own code: it must not look like a word about the request.
            raise RuntimeError(error_text(error)) from error

    def _route(self, request: Request) -> Route | None:
        path = request.path
        if self.base_path:
            if not path.startswith(self.base_path + "/"):
                return None
            path = path[len(self.base_path) :]
        if request.method == "HEAD":
            # Some of those that look whether we live ask so. Nobody else has a reason to.
            route = BY_PLACE.get(("GET", path))
            return route if route is not None and route.need is Need.NOTHING else None
        return BY_PLACE.get((request.method, path))

    # -- streams -----------------------------------------------------------------------------------------------

    def streamed(self, make: Callable[[Callable[[], None]], Frames]) -> Response:
        """A stream that is counted, and ends when the handler is closed."""
        with self._door:
            if self._closed or len(self._streams) >= self.max_streams:
                raise Reject(503, "There are too many streams. Try again later.", headers={"Retry-After": "5"})
            made: list[Frames] = []
            frames = make(lambda: self._leave(made))
            made.append(frames)
            self._streams.add(frames)
        return stream_response(frames)

    def _leave(self, frames: list[Frames]) -> None:
        with self._door:
            self._streams.difference_update(frames)

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    def close(self) -> None:
        """End all streams, and begin no others: the server stops. Any thread."""
        with self._door:
            self._closed = True
            streams, told = list(self._streams), list(self._when_closed.values())
        for frames in streams:
            frames.end()
        for call in told:
            call()

    def when_closed(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call it when the handler is closed, in any thread; at once if it is. Gives what undoes that."""
        key = object()
        with self._door:
            self._when_closed[key] = call
            closed = self._closed
        if closed:
            call()
        return lambda: self._forget(key)

    def _forget(self, key: object) -> None:
        with self._door:
            self._when_closed.pop(key, None)

    def open(self) -> None:
        """Begin streams (again)."""
        self._closed = False


def _counted(name: str, given: object, least: int) -> int:
    # Here, and not at the first request: there it would be an error of ours, without a word of why.
    if type(given) is not int or given < least:
        raise ValidationError(f"{name}: {shown(given)} must be a whole number, at least {least}.")
    return given


def _without_body(answer: Response) -> Response:
    return Response(answer.status, {**answer.headers, "Content-Length": str(len(answer.body))})


def _listed(name: str, given: Iterable[str]) -> list[str]:
    """The names; a text is an iterable of its letters."""
    anything: object = given
    if isinstance(anything, str | bytes) or not isinstance(anything, Iterable):
        raise ValidationError(f"{name}: {shown(given)} is no list. Write [{shown(given)}].")
    names = list(given)
    for one in names:
        known: object = one
        if not isinstance(known, str):
            raise ValidationError(f"{name}: {shown(one)} is no text.")
    return names
