"""Presence: a worker says who and where it is, and that it is still there, in `holdfast_workers`.

Nothing depends on it but what people see: leases alone decide who may execute. So it never has a commit of its own
while there are others to share one with, its failure is nobody's, and it is not tried again before its time.
"""

from __future__ import annotations

import functools
import os
import platform
import threading
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from ..commit.ticket import Ticket
from ..model.worker import CheckIn

if TYPE_CHECKING:
    from .engine import Engine


class Presence:
    """The row of this process's worker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.reset()

    def reset(self) -> None:
        """Say nothing (also in the child of a fork)."""
        self._door = threading.Lock()
        self._due: float | None = None

    def begin(self) -> None:
        """From now on this worker is there; its row is written with its first claim."""
        with self._door:
            if self._due is None:
                self._due = self._engine.clock.steady()

    def tickets(self, late: float = 0.0) -> list[Ticket[Any]]:
        """What is to be written now, if it is time: one in half a lease. For a round that goes anyway."""
        engine = self._engine
        now = engine.clock.steady()
        if (due := self._due) is None or now < due + late:
            return []  # asked at each claim
        with self._door:
            if self._due != due:
                return []
            self._due = now + engine.options.lease / 2
        return [_unasked("check_in", self._row())]

    def look(self) -> None:
        """Write it, if it is overdue: in the thread that keeps leases, for a loop that is blocked or rests."""
        if tickets := self.tickets(self._engine.options.lease / 6):
            self._engine.committer.join(*tickets, pass_always=True)

    def leave(self) -> None:
        """This worker is gone when the line has been served. Once nothing looks any more."""
        with self._door:
            was_here, self._due = self._due is not None, None
        if was_here:
            self._engine.committer.join(_unasked("check_out", self._engine.identity), pass_always=True)

    def _row(self) -> CheckIn:
        engine = self._engine
        return CheckIn(
            engine.identity,
            platform.node(),
            os.getpid(),
            to_json(sorted(engine.registry.names())).decode(),
            to_json(engine.options.queues).decode(),
            _version(),
            round(engine.options.lease * 1_000_000),
        )


@functools.cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow, and only workers need it

    try:
        return version("holdfast")  # reads a file: a millisecond
    except PackageNotFoundError:  # frozen into a program, or taken from its sources: that is no reason not to work
        return "unknown"


def _unasked(verb: Any, row: Any) -> Ticket[Any]:
    ticket: Ticket[Any] = Ticket(verb, row)
    ticket._asked = True
    return ticket
