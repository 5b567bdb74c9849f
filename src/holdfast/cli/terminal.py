"""Text for terminals and for programs: what comes out of a database is data, and must stay that.

A job may save any text. Written raw to a terminal it could move the cursor, set the title or hide what stands before
it; so escape sequences and control characters are taken out of everything that is shown, and Rich's markup is never
used on data.
"""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import UTC, datetime
from functools import cache
from typing import Any

from pydantic_core import from_json, to_json
from rich.console import Console, RenderableType
from rich.text import Text

#: Wide enough that nothing is cut for a pipe, where nobody sees the edge.
_PIPE_WIDTH = 160

_SEQUENCE = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\\\|\x9c|$)"  # OSC, DCS…: titles, links, key bindings
    "|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
# Also what turns the direction of writing, and the lone surrogates that no terminal can show.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """The text without anything that a terminal would obey; lines stay lines."""
    return _CONTROL.sub("", _SEQUENCE.sub("", text.replace("\r\n", "\n")))


def plain_line(text: str, limit: int = 200) -> str:
    """The same in one line, cut to `limit` characters."""
    # Cut before the searching too: ten megabytes of output make one line.
    line = clean(_SPACE.sub(" ", text[: limit * 8])).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def json_line(value: Any, limit: int) -> str:
    """A value as compact JSON, for people, cut to `limit` characters."""
    return plain_line(json.dumps(jsonable(value), ensure_ascii=False), limit)


def jsonable(value: Any) -> Any:
    """The value in what JSON has; whatever JSON lacks as text."""
    return from_json(to_json(value, fallback=str, bytes_mode="base64", inf_nan_mode="strings"))


def iso(when: datetime | None) -> str | None:
    """`2026-01-31T08:30:00.000000Z`: always UTC and always this long, so that it sorts as text."""
    return None if when is None else when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def print_json(document: Any) -> None:
    """One JSON document on stdout. ASCII only: it fits every locale, and no character of it can be a control one."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.stdout.flush()


def print_json_line(document: Any) -> None:
    """The same on one line, for readers who take what comes."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


@cache
def console() -> Console:
    """Where people read."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return Console(highlight=False)
    return Console(highlight=False, width=_PIPE_WIDTH)


def show(table: RenderableType) -> None:
    """A table or tree; in a pipe without the blanks that would fill its last column."""
    if console().is_terminal:
        console().print(table)
        return
    with console().capture() as captured:
        console().print(table)
    for line in captured.get().splitlines():
        console().file.write(line.rstrip() + "\n")


def say(*parts: str | Text) -> None:
    """One line for people. Strings are data here, never markup, and are not wrapped."""
    console().print(*[Text(clean(part)) if isinstance(part, str) else part for part in parts], soft_wrap=True)


def ago(span: float) -> str:
    """A span as people say it: `850ms`, `3.2s`, `4m 10s`, `2h 5m`, `3d 4h`."""
    if span < 0.9995:
        return f"{max(span, 0) * 1000:.0f}ms"
    if span < 59.95:
        return f"{span:.1f}s"
    whole = round(span)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"
