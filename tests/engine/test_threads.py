"""Threads for sync functions: reused, never joined by the exit of the interpreter, gone after a close."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading

import pytest
from around import LONG, until

from holdfast.engine.threads import Threads

WORD = contextvars.ContextVar("word", default="none")


def test_the_result_and_the_exception_come_to_who_called() -> None:
    threads = Threads()
    assert threads.call(divmod, 7, 2).wait(LONG) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        threads.call(divmod, 7, 0).wait(LONG)
    threads.close()


def test_the_callers_context_variables_are_seen() -> None:
    threads = Threads()
    WORD.set("mine")
    assert threads.call(WORD.get).wait(LONG) == "mine"
    threads.close()


def test_calls_run_beside_each_other_and_idle_threads_are_used_again() -> None:
    threads, barrier = Threads(), threading.Barrier(5)
    for _ in range(3):
        for reply in [threads.call(barrier.wait, LONG) for _ in range(5)]:
            reply.wait(LONG)
        until(lambda: threads._idle == len(threads._threads))
    assert len(threads._threads) <= 6
    threads.close()


def test_what_can_not_be_raised_into_a_coroutine_comes_as_a_runtime_error() -> None:
    threads = Threads()
    with pytest.raises(RuntimeError, match="StopIteration"):
        threads.call(next, iter(())).wait(LONG)
    with pytest.raises(SystemExit):
        threads.call(sys.exit, 3).wait(LONG)
    threads.close()


def test_no_thread_is_left_after_a_close() -> None:
    threads = Threads()
    for _ in range(50):
        threads.call(str).wait(LONG)
    threads.close()
    assert not threads._threads


def test_a_close_does_not_wait_for_a_function_that_is_stuck() -> None:
    threads, go = Threads(), threading.Event()
    stuck = threads.call(go.wait, LONG)
    until(lambda: threads._busy)
    threads.call(str).wait(LONG)
    threads.close()
    assert len(threads._threads) == 1
    go.set()
    assert stuck.wait(LONG)
    until(lambda: not threads._threads)


def test_a_thread_that_can_not_be_started_is_told_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            threads.call(print, "never")
    assert threads.call(str, 1).wait(LONG) == "1"
    threads.close()


def test_a_function_that_never_returns_does_not_keep_the_process() -> None:
    code = "import threading; from holdfast.engine.threads import Threads; Threads().call(threading.Event().wait)"
    assert subprocess.run([sys.executable, "-c", code], timeout=LONG).returncode == 0
