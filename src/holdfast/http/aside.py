"""Plain functions of the application, called beside the event loop: hooks, and what checks an input.

On threads that nobody waits for at the end: a function that never returns must not keep a server from stopping. And
on so many at most: where all of them hang, who asks is refused at once, and no thread more is lost.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ..basis.errors import Overloaded
from ..engine.threads import Threads

T = TypeVar("T")

#: Plain functions that may be under way at a time.
MOST = 100

_threads = Threads("holdfast-http")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.reset)


async def aside(fn: Callable[..., T], *args: Any) -> T:
    """What the function gives; the loop goes on meanwhile. Directly where there are no threads."""
    if sys.platform == "emscripten":
        return fn(*args)
    if _threads.under_way >= MOST:
        raise Overloaded(f"{MOST} hooks, or checks of inputs, have not returned yet.")
    given: T = await _threads.call(fn, *args)
    return given
