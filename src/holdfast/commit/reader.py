"""Reads: beside the line, on a connection of their own, so that a long list never stands before a checkpoint."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from ..basis.errors import StoreClosed, StoreError, StoreUnavailable
from ..store.base import Store
from .forks import inside
from .reply import Answer, LazyReply, Reply, answer, no_waiting

_log = logging.getLogger("holdfast")

T = TypeVar("T")
Question: TypeAlias = Callable[[Any], Any]
Asked: TypeAlias = "tuple[Question, Reply[Any]]"


class Reader:
    """Answers questions to one store, one after another: on a thread of its own, or inline in the caller's."""

    def __init__(self, store: Store, *, inline: bool = False, name: str = "holdfast-read") -> None:
        self.store = store
        self.inline = inline
        self._name = name
        self._closing = False
        self.on_asked: Callable[[Callable[[], bool]], None] = _nothing
        """Called in the asking thread with what tells that nothing is left to be answered."""
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        # Re-entrant: a garbage collection may run __del__, which may log, and a log handler may ask something.
        self._door = threading.Condition(threading.RLock())
        self._questions: deque[Asked] = deque()
        self._asking: list[Asked] = []
        self._thread: threading.Thread | None = None
        self._connection: Any = None
        self._fresh = True
        self._inline_lock = threading.RLock()

    def read(self, what: str, question: Callable[[Any], Any], convert: Callable[[Any], T]) -> Reply[T]:
        """The answer to `question(connection)`, converted by whoever asks. Starts when it is asked for."""
        return LazyReply(what, lambda reply: self.ask(question, reply), convert)

    def ask(self, question: Question, reply: Reply[Any]) -> None:
        """Answer the reply with what `question(connection)` gives; now, not when the reply is asked."""
        if self.inline:
            # One connection serves one thread at a time.
            with self._inline_lock, no_waiting("a read"):
                if self._closing:
                    answer([(reply, None, StoreClosed())])
                else:
                    self._answer([(question, reply)])
            return
        with self._door:
            refusal = self._refusal()
            if refusal is None:
                self._questions.append((question, reply))
                self._door.notify_all()
        if refusal is not None:
            answer([(reply, None, refusal)])
        else:
            self.on_asked(self.is_idle)

    def is_idle(self) -> bool:
        """Whether nothing is asked or being answered."""
        return not (self._questions or self._asking)

    def _refusal(self) -> StoreError | None:
        """Why nothing can be answered; starts the thread for the first question."""
        if self._closing:
            return StoreClosed()
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter is going away
                return StoreUnavailable(f"{self.store.name}: the reading thread can't be started ({error}).")
            self._thread = thread
        return None

    def _serve(self) -> None:
        died_of: BaseException | None = None
        with no_waiting("the reading thread"):
            try:
                while self._next_questions():
                    # Not kept in a variable: it would live through the next sleep, and so would its unasked failures.
                    self._answer(self._asking)
            except BaseException as error:
                _log.critical("the reading thread has died", exc_info=error)
                died_of = error
            finally:
                self._disconnect()
                self._leave(died_of)

    def _next_questions(self) -> bool:
        with self._door:
            self._asking = []
            while not self._questions and not self._closing:
                self._door.wait()
            self._asking = list(self._questions)
            self._questions.clear()
            return bool(self._asking)

    def _leave(self, died_of: BaseException | None) -> None:
        """The thread ends: whoever still waits is told."""
        with self._door:
            self._closing = True
            left = [*self._asking, *self._questions]
            self._asking = []
            self._questions.clear()
        for _, reply in left:
            closed = StoreClosed()
            closed.__cause__ = died_of
            answer([(reply, None, closed)])

    def _answer(self, batch: list[Asked]) -> None:
        answers: list[Answer] = []
        for question, reply in batch:
            try:
                with inside:
                    try:
                        value = self._ask(question)
                    except Exception as error:
                        # What was lost while nobody looked at it is no reason to refuse anybody.
                        if self._fresh or not isinstance(self.store.translate(error), StoreUnavailable):
                            raise
                        self._disconnect()
                        value = self._ask(question)
                answers.append((reply, value, None))
            except Exception as error:
                meant = self.store.translate(error)
                if isinstance(meant, StoreError):
                    self._disconnect()
                answers.append((reply, None, meant))
        answer(answers)

    def _ask(self, question: Question) -> Any:
        self._fresh = self._connection is None
        if self._connection is None:
            self._connection = self.store.open(read_only=True)
        self.store.confirm(self._connection)
        return question(self._connection)

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
        if self.inline:
            with self._inline_lock:
                self._disconnect()
        elif thread is not None and thread is not threading.current_thread():
            thread.join()

    def open(self) -> None:
        """Answer again after a close."""
        with self._door:
            thread = self._thread if self._closing else None
        if thread is not None:
            thread.join()
        with self._door:
            if self._closing:
                self._thread = None
                self._closing = False

    def _start_as_child(self) -> None:
        """After a fork. What was asked is the parent's, but a child that waits for it shall not wait for ever."""
        left = [*self._asking, *self._questions]
        # Kept, not closed: closing the parent's connection in the child may harm the parent's locks.
        _parents.append(self._connection)
        self._reset()
        for _, reply in left:
            reply._asked = True
            # Nobody is woken: the loops and threads that wait are the parent's.
            reply._settle(None, StoreClosed("This was asked before the fork: the answer is the parent's."))


def _nothing(_: object) -> None:
    return


_all: weakref.WeakSet[Reader] = weakref.WeakSet()
_parents: list[Any] = []


def _in_child() -> None:
    for reader in list(_all):
        reader._start_as_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
