"""A real SQLite file behind a line whose every transaction can be watched and spoiled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import databases
from databases import StoreHere
from holdfast.basis.clock import SystemClock
from holdfast.commit.committer import Committer
from holdfast.commit.ticket import ORDER, Ticket
from holdfast.model.run import NewRun, RunFilter
from holdfast.model.step import LogRow, StepRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease, LogSave, Renewal, StepSave, Tx

LONG = 60.0
"""Seconds after which a test has failed. Nothing ever waits that long."""


class WatchedStore(StoreHere):
    """Writes down what it is told to do. Functions put on the lists are called, once each, at that point."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.rounds: list[list[tuple[str, int]]] = []
        self.replays: list[bool] = []
        self.threads: set[int] = set()
        self.connected = 0
        self.disconnected = 0
        self.on_connect: list[Callable[[], None]] = []
        self.on_begin: list[Callable[[], None]] = []
        self.on_verb: list[Callable[[str], None]] = []
        self.before_commit: list[Callable[[], None]] = []
        self.after_commit: list[Callable[[], None]] = []

    def connect(self, *, read_only: bool = False) -> Any:
        if self.on_connect:
            self.on_connect.pop(0)()
        connection = super().connect(read_only=read_only)
        self.connected += 1
        return connection

    def disconnect(self, connection: Any) -> None:
        self.disconnected += 1
        super().disconnect(connection)

    def begin(self, connection: Any) -> Tx:
        tx = super().begin(connection)
        self.rounds.append([])
        return tx

    def begin_round(self, connection: Any, *args: Any, **more: Any) -> Tx:
        if self.on_begin:
            self.on_begin.pop(0)()
        seen = len(self.rounds)
        tx = super().begin_round(connection, *args, **more)
        self.rounds[seen:] = [[]]
        return tx

    def commit(self, tx: Tx) -> None:
        self.replays.append(tx.replay)
        self.threads.add(threading.get_ident())
        if self.before_commit:
            self.before_commit.pop(0)()
        super().commit(tx)
        if self.after_commit:
            self.after_commit.pop(0)()


def _watched(verb: str) -> Any:
    def call(self: WatchedStore, tx: Tx, rows: Sequence[Any]) -> Any:
        self.rounds[-1].append((verb, len(rows)))
        if self.on_verb:
            self.on_verb.pop(0)(verb)
        return getattr(StoreHere, verb)(self, tx, rows)

    return call


for _verb in ORDER:
    setattr(WatchedStore, _verb, _watched(_verb))


class Line:
    """A committer, its store, and short words for long calls."""

    def __init__(self, path: Path, *, inline: bool, lock_timeout: float = 10.0) -> None:
        self.clock = SystemClock()
        self.path = path
        self.store = WatchedStore(databases.url(path), lock_timeout=lock_timeout)
        self.store.migrate()
        self.connection = self.store.connect(read_only=True)
        self.committer = Committer(self.store, self.clock, inline=inline)
        self.inline = inline
        self._names = iter(range(10**9))
        self.forget()

    def forget(self) -> None:
        """What was written down so far is not what the test is about."""
        self.store.rounds.clear()
        self.store.replays.clear()
        self.store.threads.clear()

    def close(self) -> None:
        if self.committer.gate is not None:
            self.committer.gate.set()
        self.committer.close().wait(LONG)
        self.store.disconnect(self.connection)
        self.store.close()
        assert self.store.connected == self.store.disconnected, "a connection was leaked"

    # -- tickets -----------------------------------------------------------------------------------------------

    def new(self, **values: Any) -> NewRun:
        return NewRun(**{"id": f"{next(self._names):026d}", "job_name": "job", "input": "1", **values})

    def ticket(self, *, weight: int = 0, **more: Any) -> Ticket[Any]:
        """A trigger."""
        options = {name: more.pop(name) for name in ("what", "convert", "then") if name in more}
        return Ticket("trigger", self.new(**more), weight=weight, **options)

    def poison(self) -> Ticket[Any]:
        """A ticket that can't be served: a text with NUL can't be kept."""
        return self.ticket(input='"\x00"')

    def log(self, lease: Lease, message: str = "message", *, weight: int = 0) -> Ticket[Any]:
        row = LogRow(0, lease.run_id, lease.generation, None, "info", message, None, 1)
        return Ticket("save_logs", LogSave(lease.owner, row), weight=weight)

    def step(self, lease: Lease, name: str = "step") -> Ticket[Any]:
        row = StepRow(lease.run_id, name, 0, 0, "completed", 0, lease.generation, None, "1", None, 1, 1)
        return Ticket("save_steps", StepSave(lease.owner, row))

    def finish(self, lease: Lease) -> Ticket[Any]:
        return Ticket("finish", Ending(lease, TABLE[Cause.COMPLETE], output="1"))

    def renew(self, lease: Lease) -> Ticket[Any]:
        return Ticket("renew_leases", Renewal(lease, 60_000_000))

    def claim(self, limit: int = 100) -> Ticket[Any]:
        return Ticket("claim", ClaimOrder("worker", limit, 60_000_000, ("job",)))

    def join(self, *tickets: Ticket[Any]) -> None:
        self.committer.join(*tickets)

    def write(self, ticket: Ticket[Any]) -> Any:
        self.committer.join(ticket)
        return ticket.wait(LONG)

    def lease(self) -> Lease:
        """A fresh run, claimed."""
        run_id = self.write(self.ticket()).run.id
        claimed = self.write(self.claim()).runs
        self.forget()
        return next(Lease(run.id, run.generation, "worker") for run in claimed if run.id == run_id)

    def hold(self) -> threading.Event:
        """Hold the next round of the thread until the event is set."""
        gate = self.committer.gate = threading.Event()
        return gate

    def join_during_a_round(self, *tickets: Ticket[Any]) -> None:
        """They are all in the line before the next round begins, in either placement."""
        first = self.ticket(then=lambda _: self.committer.join(*tickets, pass_always=True))
        self.write(first)
        for ticket in tickets:
            with_error(ticket)
        assert self.store.rounds.pop(0) == [("trigger", 1)]

    # -- questions ---------------------------------------------------------------------------------------------

    def ids(self) -> list[str]:
        return [row.id for row in self.store.find_runs(self.connection, RunFilter())]

    def messages(self, lease: Lease) -> list[str]:
        return [row.message for row in self.store.find_logs(self.connection, lease.run_id)]


def with_error(ticket: Any) -> BaseException | None:
    """Wait, and give back how it failed."""
    try:
        ticket.wait(LONG)
    except Exception as error:
        return error
    return None


def until(condition: Callable[[], object]) -> None:
    """Look again and again, for what another thread does by itself in a moment."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it never happened"
