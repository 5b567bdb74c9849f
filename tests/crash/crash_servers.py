"""What the child processes do whose database is on a server: transactions of steps, ended anywhere by SIGKILL.

The points are what a transaction asks of its store, by name and number: `save_steps#2`. Besides `before` and `after`
there is one within: the commit is `sent`, and its sender dies before there is an answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crash_world import World

from holdfast import Holdfast, Step
from holdfast.store.base import Store
from holdfast.testing.clock import HandClock

DAY = 86_400.0
ENDLESS = 1_000_000
AT_ONCE = 200
"""Runs that one process works on."""
POINTS = ("share", "lost_leases", "insert", "effect", "take_back", "lock", "save_logs", "save_steps", "commit")


class Points:
    """Counts what transactions ask for, and strikes at one of them."""

    def __init__(self, world: World, fault: tuple[str, str] | None) -> None:
        self._world = world
        self._fault = fault
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._here = threading.local()

    def attach(self, store: Store) -> None:
        """From now on the transactions of this store go through here."""
        any_store: Any = store
        share = any_store.share

        def shared() -> Any:
            self._here.within = True
            transaction = self.passed("share", share)
            for name in ("take_back", "commit"):
                setattr(transaction, name, self._guarded(name, getattr(transaction, name), transaction))
            close = transaction.close

            def closed() -> None:
                self._here.within = False
                close()

            transaction.close = closed
            return transaction

        any_store.share = shared
        for name in ("lost_leases", "lock", "save_logs", "save_steps"):
            setattr(any_store, name, self._guarded(name, getattr(any_store, name)))

    def _guarded(self, name: str, verb: Callable[..., Any], transaction: Any = None) -> Callable[..., Any]:
        def guarded(*args: Any, **more: Any) -> Any:
            return self.passed(name, lambda: verb(*args, **more), transaction)

        return guarded

    def passed(self, name: str, ask: Callable[[], Any], transaction: Any = None) -> Any:
        if not getattr(self._here, "within", False):
            return ask()
        with self._lock:
            self._count[name] += 1
            point = f"{name}#{self._count[name]}"
        self._world.tell("at", point=point)
        self._strike(point, "before")
        if self._fault == (point, "sent"):
            _send_commit(transaction)
            self._strike(point, "sent")
        answer = ask()
        self._strike(point, "after")
        return answer

    def _strike(self, point: str, phase: str) -> None:
        if self._fault == (point, phase):
            os.kill(os.getpid(), signal.SIGKILL)


def _send_commit(transaction: Any) -> None:
    raw = transaction.connection
    if hasattr(raw, "pgconn"):
        raw.pgconn.send_query(b"commit")
        while raw.pgconn.flush():
            pass
    else:
        raw._execute_command(3, "commit")  # COM_QUERY


def run(
    folder: Path, program: str, *, url: str, when: int, fault: tuple[str, str] | None = None, count: int = 0
) -> None:
    """Run a program to its end, in this process: `trigger` or `work_on`."""
    clock = HandClock()
    clock.advance(when * DAY)
    options: dict[str, Any] = {"lease": 60.0, "polling_interval": 0.2, "cancel_grace": 1.0, "max_crashes": ENDLESS}
    app = Holdfast(url, clock=clock, worker=False, **options)
    points = Points(World(folder / "world.log"), fault)
    points.attach(app._engine.store)

    def pay_in(connection: Any, step: Step, value: int) -> int:
        step.log.info("paying")
        cursor = connection.cursor()
        for part in range(2):
            points.passed(
                "insert",
                lambda: cursor.execute("insert into charges values (%s, %s, %s)", (step.run_id, part, value)),  # noqa: B023
            )
        points.passed("effect", int)
        return value

    @app.job
    async def pay(step: Step, n: int) -> int:
        step.log.info("about to pay")
        return await step.transaction("pay", pay_in, step, n)

    async def main() -> None:
        if program == "trigger":
            await app.migrate()
            await app.trigger_many([pay.bind(n) for n in range(count)])
        else:
            await app.process_until_idle(max_runs=AT_ONCE)

    asyncio.run(main())
