"""A progress bar in a terminal; elsewhere a plain line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.text import Text

from .terminal import console, say

#: Without a terminal: seconds between lines, and the least growth that is worth one.
_LINE_SECONDS = 1.0
_LINE_SHARE = 0.1


class Bar:
    """Shows how far something is. `say` writes above it."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._live: Progress | None = None
        self._quiet = quiet
        if console().is_terminal and not quiet:
            # The bar gives way first where there is little room: the words say the same.
            columns: list[ProgressColumn] = [
                SpinnerColumn(finished_text=" "),
                TextColumn("{task.description}", markup=False),
            ]
            if console().width >= 60:
                columns.append(BarColumn(bar_width=min(40, console().width - 50)))
            columns.append(TextColumn("{task.fields[words]}", markup=False))
            live = self._live = Progress(*columns, console=console(), transient=True)
            self._task = live.add_task("", total=None, words="")
        self._last_name = ""
        self._last_words = ""
        self._last_current = 0.0
        self._last_at = float("-inf")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str | Text) -> None:
        """A line that stays."""
        say(line)

    def show(self, name: str, current: float | None, total: float | None, words: str) -> None:
        """How far it is now. Cheap: call it as often as you look."""
        if self._live is not None:
            # A total of None would make the bar run to and fro: right while nothing is known.
            self._live.update(self._task, description=name, completed=current or 0, total=total or None, words=words)
            return
        if self._quiet:
            return
        now = time.monotonic()
        grown = (current or 0) - self._last_current >= _LINE_SHARE * (total or 0)
        if name != self._last_name or (words != self._last_words and grown and now - self._last_at >= _LINE_SECONDS):
            say(f"{name}  {words}".rstrip())
            self._last_name, self._last_words = name, words
            self._last_current, self._last_at = current or 0, now
