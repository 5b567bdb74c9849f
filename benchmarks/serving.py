"""What HTTP costs: triggers a second; streams: their delay, their memory, and what is left when they go.

    python benchmarks/serving.py            all of it, with 1,000 streams
    python benchmarks/serving.py 200        with so many

The server, the other clients, and who measures are processes of their own, on this machine; SQLite in a temporary
folder. Each client follows the runs with its own label, as a page of one user does; 20 runs a second are triggered
for them. Half of the clients read 2 KiB a second of what they are sent, and they are sent more. At last all follow
everything: then each event is sent to each of them, and what the measured one waits for is mostly the others.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

SERVER = """
import asyncio, json, sys, threading
from holdfast import Holdfast

app = Holdfast(sys.argv[1], worker=False)

@app.job
async def nothing() -> None: ...

async def here():
    global loop
    loop = asyncio.get_running_loop()

web = app.asgi(max_streams=5000, on_request=here)

def tell():
    for _ in sys.stdin:
        print(json.dumps({
            "streams": web.handler.streams, "readers": len(app._engine.feed._readers),
            "tasks": len(asyncio.all_tasks(loop)), "threads": threading.active_count(),
        }), flush=True)

threading.Thread(target=tell, daemon=True).start()
import holdfast.cli.serve as serve
serve._server(web, "serving", True).run(serve._bound("127.0.0.1", 0))
"""
CONNECTIONS, TRIGGERS = 32, 3000
#: Events that are timed, and seconds between two.
TIMED, PAUSE = 200, 0.02
#: Where all follow everything: the same.
TIMED_OF_ALL, PAUSE_OF_ALL = 30, 0.3
#: Events of 8 KiB that fill the buffers of slow clients.
FILLING = 40
FAT = {f"fat-{number}": "x" * 250 for number in range(30)}

Stream: TypeAlias = "tuple[asyncio.StreamReader, asyncio.StreamWriter]"


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """As a client writes it."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def trigger(**labels: str) -> bytes:
    """A trigger with labels."""
    return request("POST", "/trigger", json.dumps({"jobName": "nothing", "input": {}, "labels": labels}).encode())


async def answer(reader: asyncio.StreamReader) -> Any:
    """The JSON of an answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return json.loads(await reader.readexactly(length))


async def triggers(place: Any) -> float:
    """Triggers a second, over `CONNECTIONS` connections."""
    text = trigger()

    async def one(count: int) -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        for _ in range(count):
            writer.write(text)
            await answer(reader)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one(TRIGGERS // CONNECTIONS) for _ in range(CONNECTIONS)))
    return TRIGGERS // CONNECTIONS * CONNECTIONS / (time.perf_counter() - began)


async def delays(place: Any, many: int, pause: float) -> list[float]:
    """Seconds from a trigger to its event at a reader of the runs with its label."""
    stream, leave = await asyncio.open_connection(place.hostname, place.port)
    leave.write(request("GET", "/runs/subscribe?label.user=me"))
    await stream.readuntil(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    found = []
    for _ in range(many):
        began = time.perf_counter()
        writer.write(trigger(user="me"))
        run_id = (await answer(reader))["runId"].encode()
        while run_id not in await stream.readline():
            pass
        found.append(time.perf_counter() - began)
        await asyncio.sleep(pause)
    leave.close()
    writer.close()
    return found


# -- the other clients, in a process of their own --------------------------------------------------------------------


class Reader(asyncio.Protocol):
    """One that reads all that comes, and forgets it."""


async def clients(url: str, many: int, streams: int, of_all: bool) -> None:
    """Connect them; then read, slowly and fast, and let something happen, until standard input ends.

    `many` have something to be told; `streams` of them are connected: all, or none, to measure without them.
    """
    place, loop = urlsplit(url), asyncio.get_running_loop()
    kept: list[Any] = []
    slow: list[socket.socket] = []
    for number in range(streams):
        is_slow = not of_all and number % 2 == 0
        client = socket.socket()
        if is_slow:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, (place.hostname, place.port))
        filter = "" if of_all else "?label.slow=1" if is_slow else f"?label.user={number}"
        await loop.sock_sendall(client, request("GET", f"/runs/subscribe{filter}"))
        if is_slow:
            slow.append(client)
        else:
            kept.append(await loop.create_connection(Reader, sock=client))
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    if not of_all:
        for _ in range(FILLING):
            writer.write(trigger(slow="1", **FAT))
            await answer(reader)
    print("ready", flush=True)
    over = loop.run_in_executor(None, sys.stdin.read)
    number = 0
    while not over.done():
        await asyncio.sleep(0.05)
        if of_all:
            continue
        number += 1
        writer.write(trigger(user=str(1 + number * 2 % many)))  # one of the fast
        await answer(reader)
        if number % 40 == 0:
            writer.write(trigger(slow="1", **FAT))  # all of the slow
            await answer(reader)
        for client in slow[number % 20 :: 20]:
            try:
                client.recv(2048)
            except BlockingIOError:
                pass


# -- what is told ----------------------------------------------------------------------------------------------------


def told(name: str, found: list[float]) -> float:
    """A line about them; the 99th percentile."""
    cut = statistics.quantiles(found, n=100)
    print(f"{name:52} p50 {cut[49] * 1000:6.1f} ms   p99 {cut[98] * 1000:6.1f} ms")
    return cut[98]


def line(name: str, text: str) -> None:
    """A line about something else."""
    print(f"{name:52} {text}")


def memory(pid: int) -> int:
    """Bytes that a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


class Server:
    """The process, and what it says of itself."""

    def __init__(self, folder: str) -> None:
        command = [sys.executable, "-c", SERVER, f"sqlite:///{folder}/serving.db"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        text = ""
        while not text.endswith("}\n"):
            text += self._said()
        self.url: str = json.loads(text)["url"]

    def _said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def counts(self) -> dict[str, int]:
        """How much there is of what may leak."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, int] = json.loads(self._said())
        return found

    def until(self, streams: int) -> dict[str, int]:
        """The same, once there are so many streams."""
        for _ in range(600):
            if (found := self.counts())["streams"] == streams:
                time.sleep(0.5)  # tasks and transports end a little later
                return self.counts()
            time.sleep(0.05)
        raise AssertionError(f"{found} instead of {streams} streams")


def others(url: str, many: int, streams: int, *, of_all: bool = False) -> subprocess.Popen[str]:
    """The other clients, connected."""
    command = [sys.executable, __file__, "clients", url, str(many), str(streams), str(int(of_all))]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def measure(server: Server, many: int) -> None:
    """All of it, printed."""
    place, pid = urlsplit(server.url), server.process.pid
    line(f"triggers over HTTP, {CONNECTIONS} connections", f"{asyncio.run(triggers(place)):8.0f} a second")
    alone = told("an event at a reader, alone", asyncio.run(delays(place, TIMED, PAUSE)))
    there = others(server.url, many, 0)
    busy = told("the same, while others trigger", asyncio.run(delays(place, TIMED, PAUSE)))
    there.communicate()
    none, before = server.until(0), memory(pid)
    line("without streams", str(none))
    for round, way in enumerate(("killed", "killed", "closed"), 1):
        there = others(server.url, many, many)
        line(f"round {round}: with streams", str(server.until(many)))
        beside = told(f"an event beside {many}, half of them slow", asyncio.run(delays(place, TIMED, PAUSE)))
        line("  p99 beside that alone, and while others trigger", f"{beside / alone:8.2f} {beside / busy:8.2f}")
        line("  memory a stream", f"{(memory(pid) - before) / many / 1024:8.1f} KiB")
        if way == "killed":
            there.kill()
        there.communicate()
        left = server.until(0)
        line(f"  after all were {way} at once", f"{left}   {(memory(pid) - before) / 1e6:+.1f} MB")
    there = others(server.url, many, many, of_all=True)
    found = asyncio.run(delays(place, TIMED_OF_ALL, PAUSE_OF_ALL))
    told(f"an event that is sent to all {many}", found)
    there.communicate()
    server.until(0)
    told("an event at a reader, alone again", asyncio.run(delays(place, TIMED, PAUSE)))


async def within() -> float:
    """Triggers a second without HTTP, by as many tasks."""
    from holdfast import Holdfast

    with tempfile.TemporaryDirectory() as folder:
        app = Holdfast(f"sqlite:///{folder}/within.db", worker=False)

        @app.job
        async def nothing() -> None: ...

        async def one(count: int) -> None:
            for _ in range(count):
                await nothing.trigger()

        async with app:
            began = time.perf_counter()
            await asyncio.gather(*(one(TRIGGERS // CONNECTIONS) for _ in range(CONNECTIONS)))
            return TRIGGERS // CONNECTIONS * CONNECTIONS / (time.perf_counter() - began)


def main(many: int) -> None:
    """Start a server, and measure."""
    line("triggers in the process, as many tasks", f"{asyncio.run(within()):8.0f} a second")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder)
        try:
            measure(server, many)
        finally:
            server.process.terminate()
            server.process.communicate()


if __name__ == "__main__":
    if sys.argv[1:2] == ["clients"]:
        asyncio.run(clients(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1"))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
