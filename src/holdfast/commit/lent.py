"""Transactions of callers that are open, and in which this process has triggered.

Nobody else sees what is in them. And while one of SQLite holds the database's write lock, nobody else can write,
neither the committing thread nor a worker. So whoever has one open must not wait for what comes only after it: it would
wait for itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..basis.errors import WouldDeadlock
from ..store.base import LentTransaction

#: Of a connection that always has a transaction open, what was committed long ago is forgotten at this many runs.
_MANY = 1000


@dataclass(slots=True)
class _Lent:
    thread: threading.Thread
    task: weakref.ref[asyncio.Task[Any]] | None
    transaction: LentTransaction
    run_ids: dict[str, None] = field(default_factory=dict)
    """Each once, the oldest first."""

    def is_mine(self) -> bool:
        task = self.task and self.task()
        return self.thread is threading.current_thread() and task is _task()


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop
        return None


class _Open:
    """Which thread, or task of its loop, has written which runs into a transaction of its own that is still open."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        # Re-entrant: a garbage collection in between may run __del__, which may use a reply.
        self._lock = threading.RLock()
        self._lent: list[_Lent] = []

    def add(self, transaction: LentTransaction, run_ids: Iterable[str]) -> None:
        """These runs were written into it by this thread and task."""
        with self._lock:
            self.forget()
            for one in self._lent:
                if one.is_mine() and one.transaction.is_same(transaction):
                    break
            else:
                task = _task()
                one = _Lent(threading.current_thread(), None if task is None else weakref.ref(task), transaction)
                self._lent.append(one)
        if len(one.run_ids) >= _MANY:
            open_ids = one.transaction.uncommitted(one.run_ids)
            one.run_ids = dict.fromkeys([run_id for run_id in one.run_ids if run_id in open_ids][-_MANY:])
        one.run_ids.update(dict.fromkeys(run_ids))

    def forget(self) -> None:
        """Let go of those that have ended, or that nobody else remembers."""
        if self._lent:
            with self._lock:
                self._lent = [one for one in self._lent if not one.transaction.is_over()]

    def refuse_to_block(self, what: str) -> None:
        """`WouldDeadlock` in a thread that has one open that keeps all others from writing."""
        if any(one.transaction.alone for one in self._mine()):
            raise WouldDeadlock(
                f"{what}: this thread has a transaction open in which it has triggered, and nobody else can write "
                "before it ends. Commit first, then .wait()."
            )

    def here(self, run_id: str) -> bool:
        """Whether this thread and task may have one open that this run is part of."""
        return any(run_id in one.run_ids for one in self._mine())

    def _mine(self) -> list[_Lent]:
        if not self._lent:
            return []
        self.forget()
        mine = [one for one in self._lent if one.is_mine()]
        for one in mine:
            open_ids = one.transaction.uncommitted(one.run_ids)
            one.run_ids = {run_id: None for run_id in one.run_ids if run_id in open_ids}
        return [one for one in mine if one.run_ids]


lent: _Open = _Open()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lent.reset)
