"""Runs over HTTP: the handler, its hooks, ASGI and WSGI. Mount `app.asgi(…)`; see docs/how-to/http.md."""

from .asgi import AsgiApp
from .auth import Auth, Insecure, RunScope
from .handler import Handler
from .leaving import close_at_signals
from .messages import Reject, Request, Response
from .need import Need
from .wsgi import WsgiApp

__all__ = [
    "AsgiApp",
    "Auth",
    "Handler",
    "Insecure",
    "Need",
    "Reject",
    "Request",
    "Response",
    "RunScope",
    "WsgiApp",
    "close_at_signals",
]
