"""A server instead of a database: which one, what is sent along, and what can't be done there."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import typer

from ..app import Holdfast
from ..basis.errors import ValidationError
from ..model.retry import Retry

if TYPE_CHECKING:
    from ..client import Client

App: TypeAlias = "Holdfast | Client"
"""What most commands ask: an app on a database, or a client of a server. They have the same verbs."""


@dataclass
class Everywhere:
    """What was said before the command: `holdfast --url … --header … COMMAND`."""

    url: str | None = None
    headers: tuple[str, ...] = ()


everywhere: Everywhere = Everywhere()


def is_server(url: str | None) -> bool:
    """Whether it is the URL of a server."""
    return bool(url) and str(url).lower().startswith(("http://", "https://"))


def chosen(context: typer.Context, url: str | None) -> str | None:
    """The URL that counts: the one after the command, before it, or of the environment. A callback of that option."""
    source = context.get_parameter_source("url")
    return url if source is not None and source.name == "COMMANDLINE" else everywhere.url or url


def client_of(url: str) -> Client:
    """A client of this server, with the headers and the token that were given."""
    if importlib.util.find_spec("httpx") is None:
        raise ValidationError(
            'A server is asked by httpx. Get it with: pip install "holdfast[client]" '
            '(in a checkout: pip install ".[client]")'
        )
    from ..client import Client

    return Client(url, headers=_headers(), retry=Retry(5, delay=0.1, factor=2))  # a person is there: three seconds


def be_patient(app: App) -> None:
    """The server has answered: from now on it may be away for a while, as for one that waits for a run."""
    if not isinstance(app, Holdfast):
        app._engine.retry = app._engine.patience


def _headers() -> dict[str, str]:
    from ..client.line import is_header

    headers: dict[str, str] = {}
    for number, one in enumerate(everywhere.headers, 1):
        name, colon, value = one.partition(":")
        if not colon or not is_header(name.strip(), value.strip()):
            # It may hold a secret: it is not repeated.
            raise ValidationError(f"--header: the one with number {number} is none. Write 'Name: value'.")
        headers[name.strip()] = value.strip()
    token = os.environ.get("HOLDFAST_TOKEN", "")
    if token and "authorization" not in {name.lower() for name in headers}:
        if not is_header("Authorization", f"Bearer {token}"):
            raise ValidationError("HOLDFAST_TOKEN: it holds characters that no header may have.")
        headers["Authorization"] = f"Bearer {token}"
    return headers


def who_is_said() -> str:
    """What a server was told of who asks, without the secret: it refused that."""
    if any(one.lower().startswith("authorization:") for one in everywhere.headers):
        return "What --header says in Authorization was refused."
    if os.environ.get("HOLDFAST_TOKEN"):
        return "The token in HOLDFAST_TOKEN was refused."
    return "HOLDFAST_TOKEN is not set, and no --header says who asks."


def needs_database(url: str | None, command: str, instead: str = "") -> None:
    """Refuse a server: this command works on the database itself."""
    if is_server(url):
        raise ValidationError(
            f"{command} works on the database itself, not through a server. Give the URL of the database"
            f"{f', or {instead}' if instead else ''}."
        )


def needs_no_url(command: str) -> None:
    """Refuse a URL before the command: this one takes an app with a database of its own."""
    if everywhere.url is not None:
        raise ValidationError(f"{command} uses the database of the app that it names: leave --url out.")
