"""What happens to streams when the process is told to stop: they end, before the server begins to wait for them.

A server that stops gracefully waits until all requests are answered, and only then says that it stops. A stream is
never answered, so both would wait for ever. The signal comes before that: whoever listened to it is told, too.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_NAMES = ("SIGTERM", "SIGINT", "SIGBREAK")


def close_at_signals(close: Callable[[], None]) -> Callable[[], None]:
    """Call `close` when this process is told to stop; gives what undoes that.

    Only what already has a handler in Python is listened to: without any, a signal ends the process as ever. Outside
    of the main thread, where nobody can listen, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "emscripten":
        return lambda: None
    before: dict[int, Callable[..., Any]] = {}

    def told(number: int, frame: Any) -> None:
        # In a thread, and begun in the plainest way: the signal may have come in the middle of anything.
        _thread.start_new_thread(close, ())
        before[number](number, frame)

    for number in [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]:
        if callable(then := signal.getsignal(number)):
            before[number] = then
            signal.signal(number, told)

    def undo() -> None:
        for number, then in before.items():
            if signal.getsignal(number) is told:
                signal.signal(number, then)

    return undo
