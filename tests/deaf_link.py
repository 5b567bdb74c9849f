"""A link to a PostgreSQL server that swallows notifications, or looks like that of a pooler.

    with DeafLink(url) as link:
        app = Holdfast(link.url)

Everything else passes as it is. Not for TLS: it reads along.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

_NOTICE, _KEY = b"A", b"K"


class DeafLink:
    """Listens on loopback until it is left."""

    def __init__(self, url: str, *, like_a_pooler: bool = False) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._like_a_pooler = like_a_pooler
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.swallowed = 0
        """So many notifications did not pass."""
        login = parts.netloc.rpartition("@")[0]
        port = self._server.getsockname()[1]
        query = "&".join(filter(None, [parts.query, "sslmode=disable&gssencmode=disable"]))
        self.url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}", query=query))
        self._begin(self._accept)

    def __enter__(self) -> DeafLink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one in [self._server, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
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
                server = socket.create_connection(self._to)
                self._open += [client, server]
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._begin(self._ask, client, server)
                self._begin(self._answer, client, server)

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        _hang_up(server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                passed, rest = self._read(rest + data)
                client.sendall(passed)
        _hang_up(client)

    def _read(self, data: bytes) -> tuple[bytes, bytes]:
        """What passes of whole messages, and the part of one that has not come to its end."""
        passed = []
        while len(data) >= 5:
            (length,) = struct.unpack("!I", data[1:5])
            if len(data) < length + 1:
                break
            message, data = data[: length + 1], data[length + 1 :]
            if message[:1] == _NOTICE and not self._like_a_pooler:
                self.swallowed += 1
                continue
            if message[:1] == _KEY and self._like_a_pooler:
                message = message[:5] + struct.pack("!I", 4_000_000) + message[9:]
            passed.append(message)
        return b"".join(passed), data


def _hang_up(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
