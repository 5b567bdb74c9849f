"""The world outside: what really happened, in one order, whatever dies.

One file, opened for appending; one line per event, one write per line. The kernel puts the lines behind one another
and keeps them when the writer is killed, so the number of the line is the truth about what came before what. An
event is on record when `tell` returns: no effect can happen unseen.

A writer that is killed *inside* its write may leave the beginning of a line: the kernel writes page by page. Nobody
went on after that, so what it would have told has not happened. The newline comes first, so that the next line is not
glued to such a stump.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Happening = dict[str, Any]

#: Where the folder of a case says which database is its, and which sessions its processes have had, if it is no file.
ADDRESS = "database.url"
SESSIONS = "sessions.log"


class World:
    """Appends to the log of one case. `bell`, a FIFO, gets one byte per event, for those who count along."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        bell = path.with_suffix(".bell")
        self._bell = os.open(bell, os.O_WRONLY | os.O_NONBLOCK) if bell.exists() else None

    def tell(self, what: str, **more: Any) -> None:
        line = "\n" + json.dumps({"ev": what, "pid": os.getpid(), **more})
        assert os.write(self._file, line.encode()) == len(line.encode())
        if self._bell is not None:
            os.write(self._bell, b".")


def read(path: Path) -> list[Happening]:
    """All events so far, each with its number `seq`."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return [{"seq": number, **event} for number, line in enumerate(lines) if (event := _event(line))]


def _event(line: str) -> Happening | None:
    try:
        event: Happening = json.loads(line)
    except ValueError:  # a stump, or the nothing before the first newline
        return None
    return event
