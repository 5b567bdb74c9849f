"""For authors of stores that can't do two transactions at once."""

from __future__ import annotations

import threading
from typing import Any, TypeVar, cast

from .base import Store, Tx

S = TypeVar("S", bound=Store)


def serialised(kind: type[S]) -> type[S]:
    """The class of stores, whose transactions begin one after the other: a class decorator.

    For stores that can't do two at once. Each waits until the one before has ended, however it did; so such a store is
    for one process.
    """

    class OneAtATime(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            self._free()

        def _free(self) -> None:
            self._turn = threading.Lock()
            self._open: Tx | None = None

        def begin(self, connection: Any) -> Tx:
            turn = self._turn
            turn.acquire()
            try:
                tx: Tx = super().begin(connection)
            except BaseException:
                turn.release()
                raise
            self._open = tx
            return tx

        def commit(self, tx: Tx) -> None:
            try:
                super().commit(tx)
            finally:
                self._end(tx)

        def rollback(self, tx: Tx) -> None:
            try:
                super().rollback(tx)
            finally:
                self._end(tx)

        def _end(self, tx: Tx) -> None:
            if self._open is tx:  # one that is rolled back twice has had its turn
                self._open = None
                self._turn.release()

        def reset_after_fork(self) -> None:
            super().reset_after_fork()
            self._free()

    OneAtATime.__name__, OneAtATime.__qualname__ = kind.__name__, kind.__qualname__
    made: Any = OneAtATime  # type checkers differ about a class that is made of an argument
    return cast("type[S]", made)
