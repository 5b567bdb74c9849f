"""A network that is slower: everything between here and a server takes half a millisecond each way.

    with far(url, 1.0) as url: ...

In a process of its own, so that it doesn't share Python's lock with who is measured. What its own threads take to wake
comes on top, so the true time there and back is measured, too (`round_trip`).
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from urllib.parse import urlsplit, urlunsplit

import places


@contextlib.contextmanager
def far(url: str, milliseconds: float) -> Iterator[str]:
    """The same database, that many milliseconds away, there and back."""
    parts = urlsplit(url)
    command = [sys.executable, __file__, parts.hostname or "127.0.0.1", str(parts.port), str(milliseconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            port = int(proxy.stdout.readline())
            login = parts.netloc.rpartition("@")[0]
            yield urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))
        finally:
            proxy.kill()


def round_trip(url: str) -> float:
    """Milliseconds of the least that can be asked, the median of a hundred."""
    took = []
    with contextlib.closing(places.connect(url)) as connection:
        cursor = connection.cursor()
        for _ in range(110):
            began = time.perf_counter()
            cursor.execute("select 1")
            cursor.fetchall()
            took.append(time.perf_counter() - began)
    return statistics.median(took[10:]) * 1000


def _pass_on(source: socket.socket, target: socket.socket, seconds: float) -> None:
    queue: SimpleQueue[tuple[float, bytes]] = SimpleQueue()

    def send() -> None:
        data = b"-"
        with contextlib.suppress(OSError):
            while data:
                due, data = queue.get()
                if (left := due - time.monotonic()) > 0:
                    time.sleep(left)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    data = b"-"
    while data:
        try:
            data = source.recv(1 << 18)
        except OSError:
            data = b""
        queue.put((time.monotonic() + seconds, data))


def _serve(host: str, port: int, seconds: float) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    while True:
        client, _ = listening.accept()
        server = socket.create_connection((host, port))
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pair in ((client, server), (server, client)):
            threading.Thread(target=_pass_on, args=(*pair, seconds), daemon=True).start()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 2000)
