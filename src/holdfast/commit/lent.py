"""Transactions of callers that are open, and in which this process has triggered.

While one of them holds the database's write lock, nobody else can write: neither the committing thread nor a worker.
So a thread that has one open must not wait for what is still to be written. It would wait for itself, until the lock
times out.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..basis.errors import WouldDeadlock
from ..store.base import LentTransaction

#: Of a connection that always has a transaction open, what was committed long ago is forgotten at this many runs.
_MANY = 1000


@dataclass(slots=True)
class _Lent:
    thread: threading.Thread
    transaction: LentTransaction
    run_ids: set[str] = field(default_factory=set)


class _Open:
    """Which thread has written which runs into a transaction of its own that is still open."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        # Re-entrant: a garbage collection in between may run __del__, which may use a reply.
        self._lock = threading.RLock()
        self._lent: list[_Lent] = []

    def add(self, transaction: LentTransaction, run_ids: Iterable[str]) -> None:
        """These runs were written into it by this thread."""
        me = threading.current_thread()
        with self._lock:
            self.forget()
            for one in self._lent:
                if one.thread is me and one.transaction.is_same(transaction):
                    break
            else:
                one = _Lent(me, transaction)
                self._lent.append(one)
        if len(one.run_ids) >= _MANY:
            one.run_ids = one.transaction.uncommitted(one.run_ids)
        one.run_ids.update(run_ids)

    def forget(self) -> None:
        """Let go of those that have ended, or that nobody else remembers."""
        if self._lent:
            with self._lock:
                self._lent = [one for one in self._lent if not one.transaction.is_over()]

    def refuse_to_block(self, what: str) -> None:
        """`WouldDeadlock` in a thread that has one open: what is to be written waits for its lock."""
        if self.here():
            raise WouldDeadlock(
                f"{what}: this thread has a transaction open in which it has triggered, and nobody else can write "
                "before it ends. Commit first, then .wait()."
            )

    def here(self, run_id: str | None = None) -> bool:
        """Whether this thread has one open: any, or the one that this run is part of."""
        if not self._lent:
            return False
        self.forget()
        me = threading.current_thread()
        for one in [one for one in self._lent if one.thread is me]:
            one.run_ids = one.transaction.uncommitted(one.run_ids)
            if one.run_ids if run_id is None else run_id in one.run_ids:
                return True
        return False


lent: _Open = _Open()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lent.reset)
