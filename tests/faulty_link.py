"""A link to a database server that breaks in the ways in which links break, and heals.

    with FaultyLink(url) as link:
        app = Holdfast(link.url)
        link.break_("half-open")
        link.heal()

What a fault has done to a connection stays: a byte that was swallowed never comes, so a connection that was half-open
is dead after healing, too, and only its owner can find that out.
Any server with a TCP port. Notifications that don't pass: `deaf_link`.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

Fault = Literal["cut", "half-open", "mute", "slow"]
"""cut: connections are reset, new ones refused. half-open: they are kept, but nothing passes, and new ones are taken
without a word. mute: questions pass, answers don't. slow: every piece takes up to `delay` seconds, drawn by `seed`,
and none overtakes another."""


class FaultyLink:
    """Listens on loopback until it is left. `break_` and `heal` from any thread."""

    def __init__(self, url: str, *, delay: float = 0.0, seed: int = 0) -> None:
        parts = urlsplit(url)
        postgres = parts.scheme.startswith("postgres")
        self._to = (parts.hostname or "127.0.0.1", parts.port or (5432 if postgres else 3306))
        self._server = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._server.getsockname()[1]
        login, at, _ = parts.netloc.rpartition("@")
        # TLS would hide what passes; and asking for it is one more piece of every connection.
        query = "&".join(filter(None, [parts.query, "sslmode=disable&gssencmode=disable" if postgres else ""]))
        self.url: str = urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}", query=query))
        self._delay = delay
        self._chance = random.Random(seed)
        self._fault: Fault | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.swallowed: int = 0
        """So many pieces did not pass."""
        self._begin(self._accept)

    def break_(self, fault: Fault) -> None:
        """From now on."""
        self._fault = fault
        if fault == "cut":
            with self._lock:
                left, self._open = self._open, []
            for one in left:
                _reset(one)

    def heal(self) -> None:
        """What is sent or connected from now on passes again."""
        self._fault = None

    def __enter__(self) -> FaultyLink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            left, self._open = self._open, []
        for one in left:
            _reset(one)
        for thread in self._threads:
            thread.join(10)

    def _begin(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if self._fault == "cut":
                    _reset(client)
                    continue
                try:
                    server = socket.create_connection(self._to, timeout=10)
                except OSError:  # the server itself is away
                    _reset(client)
                    continue
                server.settimeout(None)
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open += [client, server]
                pair = _Pair()
                self._begin(self._carry, client, server, pair, False)
                self._begin(self._carry, server, client, pair, True)

    def _carry(self, source: socket.socket, target: socket.socket, pair: _Pair, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                pair.told(self._fault)
                if pair.dead or (pair.mute and answers):
                    self.swallowed += 1
                    continue
                if self._fault == "slow":
                    self._over.wait(self._chance.random() * self._delay)
                target.sendall(data)
        pair.told(self._fault)
        if not (pair.dead or (pair.mute and answers)):  # or it would be told that the other one has gone
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)


class _Pair:
    """What has become of a connection: there is no way back."""

    dead = False
    mute = False

    def told(self, fault: Fault | None) -> None:
        self.dead = self.dead or fault == "half-open"
        self.mute = self.mute or fault == "mute"


def _reset(one: socket.socket) -> None:
    """Close it with a RST, as a router does that has forgotten it."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)  # wakes up who reads from it
    one.close()
