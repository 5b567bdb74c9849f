"""What tests of mounting share: an example in a server of its own, as its first line says, and how it is asked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "web"
BASE = "/api/durably"
LONG = 60.0
"""Seconds after which a test has failed. Nothing ever waits that long."""


def until(what: str, condition: Any) -> None:
    """Nobody tells when another process is as far as that: look again and again."""
    pause = threading.Event()
    for _ in range(round(LONG / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError(f"it never came to be: {what}")


def environment(folder: Path) -> dict[str, str]:
    """Examples are found, and what servers leave in a home is in the folder."""
    path = os.pathsep.join(filter(None, [str(folder), str(EXAMPLES), os.environ.get("PYTHONPATH")]))
    return os.environ | {"HOME": str(folder), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def program(folder: Path, *words: str, **more: str) -> str:
    """What a program of Python prints; it complains about nothing."""
    command = [sys.executable, "-W", "error", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder) | more, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


class Server:
    """A server in a process (group) of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", *[word.format(port=self.port) for word in words]],
                cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code; that it was ended by the signal that it was told to end by is none."""
        self.process.send_signal(number)
        code = self.process.wait(LONG)
        return 0 if code == -number else code


@contextlib.contextmanager
def server(folder: Path, *words: str) -> Iterator[Server]:
    """It listens. `{port}` in the words is its port; killed at the end if it is still there."""
    started = Server(folder, *words)
    try:
        until("the server listens", started.listens)
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.process.pid, signal.SIGKILL)
        started.process.wait(LONG)


def asking(url: str, **options: Any) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=LONG, **options)


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream that has ended as streams end: after a whole block."""
    assert text == "" or text.endswith("\n\n"), text[-200:]
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def followed(client: httpx.Client, run_id: str) -> dict[str, Any]:
    """The last event of the run, which is followed to its end."""
    with client.stream("GET", f"{BASE}/subscribe", params={"runId": run_id}) as stream:
        assert stream.status_code == 200, stream.read()
        assert stream.headers["content-type"] == "text/event-stream"
        return events(stream.read().decode())[-1]
