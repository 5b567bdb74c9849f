"""What goes wrong between a client and its server, and how an answer becomes the library's own error.

    HoldfastError
     ├─ StoreError
     │   └─ StoreUnavailable
     │       └─ ServerUnavailable   no answer, or "not now": trying later may help
     ├─ Refused                     the server knows us not, or doesn't let us
     └─ ServerError                 whatever else it answered

All else is raised as the library raises it: `ValidationError`, `NotFoundError`, `ConflictError`, …
"""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from ..basis.errors import (
    ConflictError,
    HoldfastError,
    NotFoundError,
    PayloadTooLarge,
    StoreUnavailable,
    ValidationError,
)
from ..basis.text import clean

#: With these nothing is wrong that time, or another try, can't mend.
NOT_NOW = frozenset({408, 429, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Of an answer that explains itself.
_LONGEST = 2000
_KINDS: dict[int, type[HoldfastError]] = {
    400: ValidationError,
    404: NotFoundError,
    409: ConflictError,
    413: PayloadTooLarge,
}


class ServerUnavailable(StoreUnavailable):
    """The server does not answer now; what was asked has not been acknowledged. Try again later."""

    def __init__(
        self,
        message: str | None = None,
        answered: int | None = None,
        is_unsent: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        # All of them: an error of a step is kept as its args, and is another one if they don't make it again.
        self.args: tuple[Any, ...] = (self.message, answered, is_unsent, retry_after)
        self.answered: int | None = answered
        """The HTTP status of its answer; None: there was none."""
        self.is_unsent: bool = is_unsent
        """Nothing of the request has reached the server."""
        self.retry_after: float = retry_after
        """Seconds that the server wants to be left alone."""


class Refused(HoldfastError):
    """The server does not let us do this: it does not know who we are, or we may not."""

    status = 403

    def __init__(self, message: str | None = None, answered: int = 403) -> None:
        super().__init__(message)
        self.args: tuple[Any, ...] = (self.message, answered)
        self.answered: int = answered
        """401: give `headers=` that say who you are; 403: you may not."""


class ServerError(HoldfastError):
    """The server failed, or it is no Holdfast server."""

    def __init__(self, message: str | None = None, answered: int | None = None) -> None:
        super().__init__(message)
        self.args: tuple[Any, ...] = (self.message, answered)
        self.answered: int | None = answered
        """The HTTP status of its answer; None: the answer could not be read."""


def error_of(
    status: int, body: bytes, place: str, retry_after: str | None = None, points_to: str | None = None
) -> HoldfastError:
    """What an answer without success means. `place` says what was asked, for people; `points_to` is for a redirect."""
    said = _said(body)
    if status in NOT_NOW:
        text = said or f"{place}: the server answered {status}."
        return ServerUnavailable(text, status, retry_after=_seconds(retry_after))
    if status in (401, 403):
        return Refused(f"{place}: the server answered {status}{f': {said}' if said else '.'}", status)
    kind = _KINDS.get(status)
    # Whatever else answers there says 404 as well, but not in our words.
    if kind is not None and said is not None:
        return kind(said)
    if status == 404:
        return ServerError(f"{place}: there is no such route. Is it the URL of a Holdfast server, with its path?", 404)
    if status in _REDIRECTS and points_to:
        # Nobody follows it: the headers that say who asks would go to wherever it points.
        return ServerError(
            f"{place}: the server answered {status}, and that it is at {points_to}. If that is a Holdfast server, "
            f"give its url: url={points_to!r}.",
            status,
        )
    return ServerError(f"{place}: the server answered {status}{f': {said}' if said else ''}.", status)


def no_answer_of_ours(place: str, what: str = "the answer is not one of a Holdfast server") -> ServerError:
    """Something answers there as if all were well, but no server of ours."""
    return ServerError(f"{place}: {what}. Is it the URL of a Holdfast server?", 200)


def _said(body: bytes) -> str | None:
    try:
        document = from_json(body)
    except ValueError:
        return None
    text = document.get("error") if isinstance(document, dict) else None
    return clean(text, _LONGEST) if isinstance(text, str) and text else None


def _seconds(given: str | None) -> float:
    try:
        return min(max(float(given or 0), 0.0), 60.0)
    except ValueError:  # a date: we have our own times
        return 0.0
