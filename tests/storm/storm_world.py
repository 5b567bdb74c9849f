"""The world outside of the database: one process, never killed, that everybody must tell before anything has happened.

It gives each event a number, the one order of all processes, appends it to its log and only then answers. Whoever tells
waits for the answer: so no effect escapes the log, and a process that is killed while it waits has or has not told.
It is not part of what is tested and uses nothing of it.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
from pathlib import Path
from typing import Any

_MOST = 1 << 20


def serve(listening: socket.socket, path: Path) -> None:
    """Serve until everybody has gone who could tell something. One line of JSON in, its number back."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    selector = selectors.DefaultSelector()
    listening.setblocking(False)
    selector.register(listening, selectors.EVENT_READ)
    halves: dict[socket.socket, bytes] = {}
    number = 0
    while True:
        told: list[bytes] = []
        answers: list[tuple[socket.socket, bytes]] = []
        for key, _ in selector.select():
            who = key.fileobj
            assert isinstance(who, socket.socket)
            if who is listening:
                one, _ = listening.accept()
                halves[one] = b""
                selector.register(one, selectors.EVENT_READ)
                continue
            try:
                got = who.recv(_MOST)
            except ConnectionError:
                got = b""
            if not got:
                selector.unregister(who)
                who.close()
                del halves[who]
                continue
            *lines, halves[who] = (halves[who] + got).split(b"\n")
            for line in lines:
                number += 1
                told.append(b'{"seq":%d,%b\n' % (number, line[1:]))
                answers.append((who, b"%d\n" % number))
        if told:
            text = b"".join(told)
            while text:
                text = text[os.write(log, text) :]
            for who, answer in answers:
                try:
                    who.sendall(answer)
                except OSError:  # it was killed while it waited
                    pass


class _Connection(socket.socket):
    """Goes with its thread."""

    def __del__(self) -> None:
        self.close()


class Line:
    """A process's way to the world. Each thread has a connection of its own; it blocks until the world has answered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine = threading.local()

    def tell(self, what: str, **more: Any) -> int:
        """Returns the number of the event."""
        one: socket.socket | None = getattr(self._mine, "socket", None)
        if one is None:
            one = self._mine.socket = _Connection(socket.AF_UNIX)
            one.connect(str(self.path))
        one.sendall(json.dumps({"ev": what, "pid": os.getpid(), **more}).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            got = one.recv(64)
            if not got:
                raise ConnectionError("the world has gone")
            answer += got
        return int(answer)
