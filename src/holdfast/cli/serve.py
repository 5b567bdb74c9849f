"""`holdfast serve module:app`: the HTTP routes of an app on uvicorn, and its worker."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..app import Holdfast
from ..basis.errors import ValidationError
from ..http import AsgiApp, Insecure
from ..http.guard import LOCAL_HOSTS, host_name
from . import exits
from .choice import AsJson, duration
from .far import needs_no_url
from .load import named
from .terminal import print_json, say

if TYPE_CHECKING:
    import uvicorn

#: Bytes that wait for a client that reads slowly, beside what the system keeps: it would be four times as much.
_WAITING = 16 << 10
#: Seconds that open requests have after the first signal. Streams end at once.
_GRACE = 10


def serve(
    place: Annotated[
        str,
        typer.Argument(metavar="MODULE:APP", help="Where the app is, or what its app.asgi(…) gave, e.g. shop.jobs:app"),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any that is free.")] = 8000,
    insecure: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Answer everybody who can reach it, without auth; say why that is right."),
    ] = None,
    worker: Annotated[
        bool | None,
        typer.Option(
            "--worker/--no-worker", help="Execute runs here or not, whatever the app says.", show_default=False
        ),
    ] = None,
    stop_timeout: Annotated[
        str, typer.Option(help="How long runs may go on after the first signal; then they are handed back.")
    ] = "30s",
    as_json: AsJson = False,
) -> None:
    """Serve the HTTP routes of an app, and execute its runs (unless it has worker=False), until SIGTERM or Ctrl-C.

    An app by itself is served to this machine only. For others name an application that knows who may do what:
    web = app.asgi(auth=Auth(…)), and serve MODULE:web.

    The first signal ends all streams, lets open requests be answered, and runs go on for the stop timeout; what is
    left is handed back. The second signal exits at once; then another worker takes over when the lease is over.
    """
    patience = duration(stop_timeout, "--stop-timeout")
    needs_no_url("serve")
    if importlib.util.find_spec("uvicorn") is None:
        raise ValidationError(
            'serve needs uvicorn: pip install "holdfast[http]" (in a checkout: pip install ".[http]")'
        )
    web = _web(place, insecure)
    if web.handler.auth is None and host_name(host) not in LOCAL_HOSTS:
        raise ValidationError(
            f"--host {host} reaches other machines, and this app has no auth. Serve what app.asgi(auth=Auth(…)) gives, "
            'or say --insecure "why everybody may do everything".'
        )
    sockets = _bound(host, port)
    web.stop_timeout = patience
    app = web.handler.app
    if worker is not None:
        app._works = worker and (app._works or True)
    server = _server(web, place, as_json)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)  # as the server does while it runs: also before, and until the end
    try:
        app.migrate().wait()
        server.run(sockets)
    finally:
        for one in sockets:
            one.close()
        app.stop(patience).wait()


def _web(place: str, insecure: str | None) -> AsgiApp:
    found, hint = named(place, AsgiApp)
    if isinstance(found, Holdfast):
        return found.asgi(auth=None if insecure is None else Insecure(insecure))
    if not isinstance(found, AsgiApp):
        if callable(found) and type(found).__module__.partition(".")[0] not in ("holdfast", "builtins"):
            # Of a framework. To serve our app in its place would leave out what it does: who may ask, for one.
            hint = f" It is served by a server of its own, e.g. uvicorn {place}."
        raise ValidationError(
            f"{place!r} is no Holdfast app, and not what app.asgi(…) gives, but of type {type(found).__name__}.{hint}"
        )
    if insecure is not None:
        raise ValidationError(f"--insecure: {place} says by itself who may do what.")
    return found


def _bound(host: str, port: int) -> list[socket.socket]:
    """Sockets at all addresses of this name, with one port. `ValidationError` says why there are none."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            try:
                one = socket.socket(family, kind, protocol)
            except OSError as error:
                missing = error
                continue
            try:
                if os.name == "posix":
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind((address[0], port, *address[2:]))
            except OSError as error:
                one.close()
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                # A name may have addresses that this machine hasn't got: IPv6 in many containers.
                missing = error
                continue
            sockets.append(one)
            port = one.getsockname()[1]
        if missing is not None and not sockets:
            raise missing
    except OSError as error:
        for one in sockets:
            one.close()
        if error.errno == errno.EADDRINUSE:
            raise ValidationError(f"port {port} is in use on {host}; --port 0 takes any that is free.") from error
        raise ValidationError(f"--host {host} --port {port}: can't listen there: {error.strerror or error}.") from error
    return sockets


def _server(web: AsgiApp, place: str, as_json: bool) -> uvicorn.Server:
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    protocol: Any = AutoHTTPProtocol

    class Protocol(protocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=_WAITING)

    class Server(uvicorn.Server):
        """Says where it is, and ends streams when it stops: they would go on for ever."""

        heard = 0

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
            self.heard += 1
            if self.heard > 1:
                # No clean-up may hold us up now; what is durable is durable.
                os._exit(128 + sig)
            self.should_exit = True

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _introduce(web.handler.app, place, _url(self) + web.handler.base_path, as_json)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            web.handler.close()
            if not as_json:
                _take_leave(web)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        web, http=Protocol, lifespan="on", log_level="warning", access_log=False,
        timeout_graceful_shutdown=_GRACE, server_header=False,
    )  # fmt: skip
    return Server(config)


def _url(server: uvicorn.Server) -> str:
    address: Any = server.servers[0].sockets[0].getsockname()
    name = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{name}:{address[1]}"


def _introduce(app: Holdfast, place: str, url: str, as_json: bool) -> None:
    works, jobs = bool(app._works), sorted(app._engine.registry.names())
    database = exits.masked(app._engine.store.name)
    if as_json:
        print_json({"app": place, "url": url, "database": database, "pid": os.getpid(), "jobs": jobs, "worker": works})
    else:
        say(Text("holdfast serve", style="bold"), f"{place}  (process {os.getpid()})")
        say(f"  address      {url}")
        say(f"  database     {database}")
        say(f"  jobs         {', '.join(jobs) or 'none'}")
        say(f"  worker       {'here' if works else 'elsewhere'}")
        say("Ready. Ctrl-C stops gracefully.")
    sys.stdout.flush()


def _take_leave(web: AsgiApp) -> None:
    worker = web.handler.app._engine.worker
    left = 0 if worker is None else len(worker.executing)
    if left:
        many = f"{left} run{'s' if left != 1 else ''}"
        say(f"Stopping. {many} may go on for {web.stop_timeout:g} s. Again to exit at once.")
    else:
        say("Stopping.")
    sys.stdout.flush()
