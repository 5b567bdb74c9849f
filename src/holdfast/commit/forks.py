"""A fork waits until none of our threads is inside the database.

SQLite keeps its locks in memory that all connections of a process share, and knows nothing of forks. A child that is
made while a thread of the parent writes inherits "somebody in this process is writing", and nobody there will ever
take that back: every connection of the child would find the file locked for ever, or hang in a mutex.
"""

from __future__ import annotations

import os
import threading

#: A thread may wait that long for another process's lock; then forking goes on, at the child's risk.
_PATIENCE = 15.0


class _Inside:
    """Entered by whoever uses a connection. May be entered again by who is in."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._door = threading.Condition(threading.RLock())
        self._count = 0
        self._mine = threading.local()

    def __enter__(self) -> None:
        depth = getattr(self._mine, "depth", 0)
        self._mine.depth = depth + 1
        if not depth:
            with self._door:
                self._count += 1

    def __exit__(self, *_: object) -> None:
        self._mine.depth -= 1
        if not self._mine.depth:
            with self._door:
                self._count -= 1
                self._door.notify_all()

    def before_fork(self) -> None:
        self._door.acquire()
        own = 1 if getattr(self._mine, "depth", 0) else 0
        self._door.wait_for(lambda: self._count <= own, _PATIENCE)

    def after_fork_in_parent(self) -> None:
        self._door.release()


inside: _Inside = _Inside()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=inside.before_fork, after_in_parent=inside.after_fork_in_parent, after_in_child=inside.reset
    )
