"""Many runs at once: in a terminal a table that moves, with a bar per run; elsewhere a line when something happens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..model.run import RunStatus
from ..run import Run
from .choice import ID_LENGTH
from .terminal import console, say
from .tree import job_label, words
from .view import FIRST, STYLES, lasted, many, progress_line, status_text

#: Without a terminal: seconds between two lines of one run that say how far it is.
_LINE_SECONDS = 5.0
#: Lines of the terminal that are left to others: the prompt above, our summary below.
_MARGIN = 4
_NARROW = 90


class Board:
    """Shows how far runs are. When it is left, the last picture stays, whole."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._live = Live(console=console(), auto_refresh=False) if console().is_terminal and not quiet else None
        self._runs: list[Run[Any]] = []
        self._gone: Collection[str] = ()
        self._depths: Mapping[str, int] = {}
        self._told: dict[str, tuple[RunStatus, float]] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.vertical_overflow = "visible"
            self._live.update(self._picture(len(self._runs)), refresh=True)
            self._live.stop()

    def show(self, runs: list[Run[Any]], gone: Collection[str] = (), depths: Mapping[str, int] | None = None) -> None:
        """How they are now; `gone` are the ids of those that were deleted, `depths` tell how far below they are."""
        self._runs, self._gone, self._depths = runs, gone, depths or {}
        if self._live is None:
            self._tell()
        else:
            self._live.update(self._picture(max(3, console().height - _MARGIN)), refresh=True)

    def _picture(self, room: int) -> Group:
        runs = self._runs
        left_out = 0
        if len(runs) > room:
            order = {run.id: number for number, run in enumerate(runs)}
            top = runs[0].id if self._depths else None
            first = sorted(runs, key=lambda run: (run.id != top, FIRST.index(run.status), order[run.id]))[: room - 1]
            left_out = len(runs) - len(first)
            runs = sorted(first, key=lambda run: order[run.id])
        parts: list[Any] = [self._table(runs)]
        if left_out:
            parts.append(Text(f"… and {left_out} more", style="dim"))
        parts.append(self._summary())
        return Group(*parts)

    def _table(self, runs: list[Run[Any]]) -> Table:
        roomy = console().width >= _NARROW
        table = Table(box=None, pad_edge=False, header_style="bold")
        job = max([len("JOB"), *(min(len(self._label(run)), 24 if not self._depths else 36) for run in runs)])
        widths = {"JOB": job, "STATUS": len("completed"), "": 20 if roomy else 10, "TOOK": 6}
        if roomy:
            widths = {"ID": ID_LENGTH, **widths}
        # The words have what is left: a long error must not push the others together.
        left = console().width - sum(widths.values()) - 2 * len(widths)
        for name, width in widths.items():
            if name == "TOOK":
                table.add_column("PROGRESS", width=max(left, 8), overflow="ellipsis", no_wrap=True)
            table.add_column(
                name, width=width, overflow="ellipsis", no_wrap=True, justify="right" if name == "TOOK" else "left"
            )
        for run in runs:
            gone = run.id in self._gone
            cells: list[Any] = [Text(run.id, style="dim" if run.is_terminal else "")] if roomy else []
            cells.append(Text(self._label(run)))
            cells.append(Text("deleted", style="magenta") if gone else status_text(run.status))
            cells.append("" if gone else _bar(run))
            cells.append(Text(words(run), style="red" if run.error else ""))
            cells.append(Text(lasted(run)))
            table.add_row(*cells)
        return table

    def _label(self, run: Run[Any]) -> str:
        depth = self._depths.get(run.id, 0)
        return ("  " * (depth - 1) + "└ " if depth else "") + job_label(run)

    def _summary(self) -> Text:
        counts = Counter(run.status for run in self._runs if run.id not in self._gone)
        ended = sum(run.is_terminal or run.id in self._gone for run in self._runs)
        line = Text(f"{ended} of {many(len(self._runs), 'run')} ended", style="bold")
        for status in RunStatus:
            if counts[status]:
                line.append(" · ", style="dim").append(f"{counts[status]} {status}", style=STYLES[status])
        return line

    def _tell(self) -> None:
        now = time.monotonic()
        for run in self._runs:
            status, at = self._told.get(run.id, (None, 0.0))
            moves = run.status is RunStatus.LEASED and progress_line(run) and now - at >= _LINE_SECONDS
            if run.status is not status or moves:
                said = f"  {said}" if (said := words(run)) else ""
                say(f"{datetime.now(UTC):%H:%M:%S}  {run.id}  {job_label(run)} {run.status}{said}")
                self._told[run.id] = run.status, now


def _bar(run: Run[Any]) -> ProgressBar | str:
    told = run.progress or {}
    total, current = told.get("total"), told.get("current") or 0
    if run.status is RunStatus.COMPLETED:
        return ProgressBar(total=1, completed=1)
    if total:
        # Of a run that ended badly the bar stays where it was.
        style = STYLES[run.status] if run.is_terminal else "bar.complete"
        return ProgressBar(total=total, completed=min(current, total), complete_style=style)
    if run.status is RunStatus.LEASED:
        return ProgressBar(total=None, pulse=True, animation_time=time.monotonic())
    return ""
