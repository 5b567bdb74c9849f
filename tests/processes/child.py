"""A child process that runs a script against a database, and talks in lines."""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import databases

LONG = 30.0

HEAD = """
import asyncio, os, signal, sys, threading, warnings
warnings.simplefilter("error")
from holdfast import Holdfast, Step, SyncStep

URL = sys.argv[1]

def say(*words):
    print(*words, flush=True)

def heard():
    return sys.stdin.readline().strip()
"""


class Child:
    """Started at once; `hear` gives its next line."""

    def __init__(self, path: Path, script: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", HEAD + textwrap.dedent(script), databases.url(path), str(path.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put("<the end>")

    def hear(self) -> str:
        return self._lines.get(timeout=LONG)

    def tell(self, line: str = "go") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.end(-signal.SIGKILL)

    def end(self, code: int = 0) -> None:
        assert self._process.wait(LONG) == code, f"the child ended with {self._process.returncode}"
        self._listener.join(LONG)

    def clean_up(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(LONG)
        self._listener.join(LONG)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def child(path: Path, script: str) -> Iterator[Child]:
    one = Child(path, script)
    try:
        yield one
    finally:
        one.clean_up()
