"""Reads: beside the line, on a connection of their own, so that a long list never stands before a checkpoint."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from ..basis.errors import StoreClosed, StoreError
from ..store.base import Store
from .reply import Answer, LazyReply, Reply, answer, no_waiting

T = TypeVar("T")
Question: TypeAlias = Callable[[Any], Any]


class Reader:
    """Answers questions to one store, one after another: on a thread of its own, or inline in the caller's."""

    def __init__(self, store: Store, *, inline: bool = False, name: str = "holdfast-read") -> None:
        self.store = store
        self.inline = inline
        self._name = name
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._door = threading.Condition(threading.Lock())
        self._questions: deque[tuple[Question, Reply[Any]]] = deque()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._connection: Any = None

    def read(self, what: str, question: Callable[[Any], Any], convert: Callable[[Any], T]) -> Reply[T]:
        """The answer to `question(connection)`, converted by whoever asks. Starts when it is asked for."""
        return LazyReply(what, lambda reply: self.ask(question, reply), convert)

    def ask(self, question: Question, reply: Reply[Any]) -> None:
        """Answer the reply with what `question(connection)` gives; now, not when the reply is asked."""
        if self.inline:
            self._answer([(question, reply)])
            return
        with self._door:
            if not self._closing:
                self._questions.append((question, reply))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                    self._thread.start()
                else:
                    self._door.notify()
                return
        answer([(reply, None, StoreClosed())])

    def _serve(self) -> None:
        with no_waiting("the reading thread"):
            while True:
                with self._door:
                    while not self._questions and not self._closing:
                        self._door.wait()
                    batch = list(self._questions)
                    self._questions.clear()
                if not batch:
                    break
                self._answer(batch)
            self._disconnect()

    def _answer(self, batch: list[tuple[Question, Reply[Any]]]) -> None:
        answers: list[Answer] = []
        for question, reply in batch:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                answers.append((reply, question(self._connection), None))
            except Exception as error:
                meant = self.store.translate(error)
                if isinstance(meant, StoreError):
                    self._disconnect()
                answers.append((reply, None, meant))
        answer(answers)

    def _connect(self) -> Any:
        connection = self.store.connect(read_only=True)
        try:
            self.store.check_schema(connection)
        except BaseException:
            self.store.disconnect(connection)
            raise
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self.store.disconnect(self._connection)
            self._connection = None

    def close(self) -> None:
        """Answer what was asked, then stop. Blocks for as long as the last question takes."""
        with self._door:
            self._closing = True
            self._door.notify_all()
            thread = self._thread
        if thread is None:
            self._disconnect()
        elif thread is not threading.current_thread():
            thread.join()

    def open(self) -> None:
        """Answer again after a close."""
        with self._door:
            self._thread = None
            self._closing = False


_all: weakref.WeakSet[Reader] = weakref.WeakSet()
_parents: list[Any] = []


def _in_child() -> None:
    for reader in list(_all):
        _parents.append((reader._connection, reader._questions))
        reader._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
