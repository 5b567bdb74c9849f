"""What the processes of the campaign do. Each writes what it knows to a file of its own, outside of the database.

python failover_processes.py client|worker|victim URL FILE NUMBER RATE
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time

from holdfast import Holdfast, Step, SyncStep
from holdfast.basis.errors import Overloaded, StoreError

LEASE, POLLING = 3.0, 0.5
LOOPS = 24
#: Between two tries of a client that was refused.
PAUSE = 0.05


class Book:
    """Lines of time, word and values. What is in it survives the process."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, *words: object) -> None:
        os.write(self._file, f"{time.monotonic():.6f} {' '.join(map(str, words))}\n".encode())


def define(app: Holdfast, book: Book, *, holds: bool) -> None:
    @app.job
    async def work(step: Step, key: str) -> str:
        return await step.run("write", str.upper, key)

    @app.job
    def hold(step: SyncStep, key: str) -> str:
        book.note("began", step.run_id, os.getpid())
        if holds:
            threading.Event().wait()
        return key


async def client(app: Holdfast, book: Book, number: int, rate: float) -> None:
    """Trigger at this rate; what was refused is asked for again under its key, until it is acknowledged."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    work = app.get_job("work")
    assert work is not None

    async def one(loop: int) -> None:
        n = 0
        while not over.is_set():
            n += 1
            due, key = time.monotonic() + LOOPS / rate, f"{number}-{loop}-{n}"
            while True:
                try:
                    run = await work.options(idempotency_key=key).trigger(key)
                except (StoreError, Overloaded) as error:
                    book.note("refused", key, type(error).__name__)
                    await asyncio.sleep(PAUSE)
                else:
                    book.note("acknowledged", key, run.id)
                    break
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async with app:
        book.note("ready", os.getpid())
        await asyncio.gather(*[one(loop) for loop in range(LOOPS)])
    book.note("done")


def main(what: str, url: str, path: str, number: str, rate: str) -> None:
    book = Book(path)
    app = Holdfast(
        url, worker=what != "client", lease=LEASE, polling_interval=POLLING, concurrency=3 if what == "victim" else 20
    )
    define(app, book, holds=what == "victim")
    if what == "client":
        asyncio.run(client(app, book, int(number), float(rate)))
        return
    with app:
        book.note("ready", os.getpid())
        sys.stdin.readline()
    book.note("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
