"""What is refused before anybody asks who it is: what is too large, other hosts, pages of other sites."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from ..basis.errors import ValidationError
from ..basis.text import shown
from .messages import MOST_HEADER_BYTES, MOST_HEADERS, MOST_QUERY_BYTES, Reject, Request

#: By these names only this machine is reached, whatever a name server says of others.
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
#: Starlette's TestClient: no socket at all.
_TEST_CLIENT, _TEST_HOST = "testclient", "testserver"
#: By these a proxy says that it only passes something on.
_PASSED_ON = (
    "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "cf-connecting-ip",
)  # fmt: skip
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")


def check_sizes(request: Request) -> None:
    """Headers and query are of a size that somebody could have meant, and the body has one length."""
    many, size = request.header_sizes()
    if many > MOST_HEADERS or size > MOST_HEADER_BYTES:
        raise Reject(431, "The headers are too large.")
    if len(request.query) > MOST_QUERY_BYTES:
        raise Reject(414, "The query is too long.")
    # Where a proxy and this server could read two lengths, what follows might be somebody else's request.
    lengths = len(request.header_list("content-length")) + bool(request.header_list("transfer-encoding"))
    if lengths > 1:
        raise Reject(400, "The body has more than one length.", headers={"Connection": "close"})


def check_host(request: Request, hosts: Collection[str] | None) -> None:
    """The request came by a name that is ours. Against pages whose name suddenly leads here (DNS rebinding)."""
    if hosts is None:
        return
    given = request.header_list("host")
    if not given and request.client is None:
        return  # nobody in between
    if len(given) != 1:
        raise Reject(400, "One Host header is required.")
    name = host_name(given[0])
    if name in hosts or "*" in hosts or (request.client == _TEST_CLIENT and name == _TEST_HOST):
        return
    raise Reject(403, "Requests by this host name are not allowed.")


def host_name(given: str) -> str:
    """A Host header without its port, in one form."""
    name = given.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_local(request: Request) -> bool:
    """Whether who asks is on this machine, and not behind a proxy that is."""
    if any(request.header(name) is not None for name in _PASSED_ON):
        return False
    if request.client is None or request.client == _TEST_CLIENT:
        return True
    try:
        address = ipaddress.ip_address(request.client.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def check_origin(request: Request, origins: Collection[str]) -> None:
    """A page of another site may not let a browser change something here with the user's cookies (CSRF)."""
    if request.method in _READS:
        return
    origin, site = request.header("origin"), request.header("sec-fetch-site")
    if origin is None and site is None:
        return  # no browser
    if origin is not None and origin.lower() in origins:
        return
    same = origin is not None and _place(origin) == (request.header("host") or "").strip().lower()
    if (origin is not None and not same) or site in ("cross-site", "same-site"):
        # The commonest reason is a page of one's own, and it is the operator who reads this first.
        named = f": origins=[{shown(origin)}]" if origin else " in origins="
        raise Reject(
            403,
            "Requests of pages of other sites are not allowed. If it is a page of yours, name its origin where these "
            f"routes are made{named}.",
        )
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if kind in _FORMS:
        raise Reject(415, "A form is no request. Send Content-Type: application/json.")


_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_HOST = re.compile(r"[a-z0-9._-]+")
#: A browser leaves them out.
_USUAL = {"http": ":80", "https": ":443"}


def known_origin(given: str) -> str:
    """An origin as browsers send it. `ValidationError` for what none of them would ever send."""
    found = _ORIGIN.fullmatch(given.strip().lower().removesuffix("/"))
    if found is None:
        raise ValidationError(
            f"origins: {shown(given)} is no origin. Write scheme and host, and a port that is not the usual one, as in "
            "'https://ui.example' or 'http://localhost:3000': no path, no '*', and xn--… for other letters."
        )
    scheme, host, port = found.groups("")
    return f"{scheme}://{host}{'' if port == _USUAL.get(scheme) else port}"


def known_host(given: str) -> str:
    """A name by which requests may come, in one form; "*" for all. `ValidationError` for what no request comes by."""
    if given == "*":
        return given
    name = given.strip().lower()
    if not _is_address(name):
        name = host_name(name)
    if "/" in given or (_HOST.fullmatch(name) is None and not _is_address(name)):
        raise ValidationError(
            f"hosts: {shown(given)} is no name of a host. Write it without scheme and path, as in 'api.example' or "
            "'10.0.0.7', each by itself (there is no '*.example'), xn--… for other letters, and '*' for all names."
        )
    return name


def _place(origin: str) -> str | None:
    """Host and port of an origin; None: it has none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
