"""What connections have in common that a function of the user's shares with us, on servers: words, and a way to cut.

A server has no way to refuse what would end a transaction. So a statement that says so is refused before it is sent;
what ends it in any other way (a procedure, another class of cursors) is noticed, at the latest before the checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket

OURS = (
    "step.transaction commits by itself, together with the checkpoint, when the function has returned; raise an error "
    "to undo what it has written"
)
OVER = "the transaction of this connection is over: the function has returned, or has taken too long"

#: Seconds for which a function may say nothing to the database: then the server takes it for dead, and undoes it.
IDLE = 600

#: What may hide a semicolon, or a word.
_HIDDEN = re.compile(
    r"""[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(\w*)\$.*?\$\1\$ | --[^\n]* | /\*.*?\*/""",
    re.DOTALL | re.VERBOSE,
)
_BEFORE = re.compile(r"(?:\s|;|--[^\n]*(?:\n|$)|/\*(?!!).*?\*/)*", re.DOTALL)
_ENDS = re.compile(
    r"(?:commit|end|abort|rollback(?!(?:\s+(?:work|transaction))?\s+to\b)|prepare\s+transaction|start\s+transaction"
    r"|begin(?!\s+(?:not\s+)?atomic))\b",
    re.IGNORECASE,
)
#: The body of a function has statements of its own, and an end.
_BODY = re.compile(r"\bbegin\s+atomic\b", re.IGNORECASE)


def beginning(sql: str, length: int = 200) -> str:
    """The first words of a statement, without comments before them."""
    found = _BEFORE.match(sql)
    start = 0 if found is None else found.end()
    return sql[start : start + length]


def ends_it(sql: str, *, several: bool = False) -> str | None:
    """The words that would end the transaction, or begin another one; None without any.

    With `several` the text may be more than one statement.
    """
    texts = [beginning(sql)]
    if several and ";" in sql.rstrip(" \t\r\n;") and _BODY.search(sql) is None:
        texts = [part.lstrip() for part in _HIDDEN.sub(" ", sql).split(";")]
    return next((found[0] for text in texts if (found := _ENDS.match(text)) is not None), None)


class Wire:
    """The line to a server, to be cut by any thread while another one waits for an answer.

    A number of its own for the socket: that of the driver may be somebody else's by now.
    """

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=os.dup(number))

    def cut(self) -> None:
        """Who reads there reads the end. Never raises."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget it; the line stays as it is."""
        with contextlib.suppress(OSError):
            self._socket.close()
