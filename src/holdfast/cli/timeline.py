"""The steps of a run and their attempts as bars over its time; what only waited is drawn as waiting."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from ..run import Run, StepAttempt, StepRecord
from .terminal import ago, console, json_line, plain_line
from .view import moment

#: Below this many columns there is no room for bars.
_NARROW = 80
#: Failed tries that get a line of their own, the last ones.
_TRIES_SHOWN = 5
_STATUS = {"completed": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "waiting": "blue"}


class _Marks(NamedTuple):
    """What a bar is made of."""

    called: str
    failed: str
    waits: str
    rests: str


_MARKS = _Marks("━", "×", "╌", "·")
_ASCII = _Marks("=", "x", "-", ".")


class _Scale(NamedTuple):
    """Where a moment is on the axis."""

    begin: datetime
    end: datetime
    width: int

    @classmethod
    def of(cls, run: Run[Any], steps: list[StepRecord], now: datetime, width: int) -> _Scale:
        starts = [step.started_at for step in steps]
        ends = [step.completed_at or step.started_at for step in steps]
        begin = min([run.started_at or run.created_at, *starts])
        return cls(begin, max([run.completed_at or now, begin, *ends]), width)

    @property
    def seconds(self) -> float:
        return (self.end - self.begin).total_seconds()

    def at(self, when: datetime) -> int:
        """A column, from 0."""
        share = (when - self.begin).total_seconds() / (self.seconds or 1.0)
        return min(self.width - 1, max(0, int(share * self.width)))

    def axis(self, *, goes_on: bool) -> str:
        """`0          4m 10s`: what the first and the last column mean."""
        last = ago(self.seconds) + (" (now)" if goes_on else "")
        return "0" + last.rjust(self.width - 1)


def timeline(run: Run[Any], steps: list[StepRecord], all_steps: list[StepRecord]) -> Table:
    """One line per step, and one per failed try. The bars are over the time from the first claim of the run to its end.

    `all_steps` are those that tell how long that time is.
    """
    now, roomy = datetime.now(UTC), console().width >= _NARROW
    width = console().width
    names = [_name(step, min(36, width // 4 if roomy else width // 3)) for step in steps]
    scale = _Scale.of(run, all_steps, now, max(16, min(48, width // 4 - 4)))
    # What is left beside the other columns: a long output must not push them together.
    others = max(map(len, names), default=8) + len("interrupted") + len("29d 23h") + (scale.width if roomy else 0)
    room = max(10, width - others - 4 * 2)
    marks = _ASCII if console().options.ascii_only else _MARKS
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("STEP", no_wrap=True, overflow="ellipsis", min_width=8)
    table.add_column("STATUS", no_wrap=True, min_width=len("completed"))
    if roomy:
        table.add_column(scale.axis(goes_on=not run.is_terminal), no_wrap=True, width=scale.width, header_style="dim")
    table.add_column("TOOK", no_wrap=True, justify="right")
    table.add_column("OUTPUT", no_wrap=True, overflow="ellipsis")

    def line(name: str, status: Text, bar: Text, since: datetime, until: datetime | None, said: Text) -> None:
        took = Text(ago(((until or now) - since).total_seconds()))
        table.add_row(Text(name), status, *([bar] if roomy else []), took, said)

    for step, name in zip(steps, names, strict=True):
        status = Text(step.status, style=_STATUS.get(step.status, ""))
        line(name, status, _bar(step, scale, marks, now), step.started_at, step.completed_at, _said(step, room, now))
        for one, title in _failed_tries(step):
            bar = _drawn([(scale.at(one.started_at), scale.at(one.ended_at or one.started_at), "failed")], scale, marks)
            error = Text(plain_line(one.error or "", room), style="red")
            line(f"  {title}", Text("failed", style="red"), bar, one.started_at, one.ended_at, error)
    return table


def _name(step: StepRecord, limit: int) -> str:
    return plain_line(step.name, limit) + (f" #{step.occurrence + 1}" if step.occurrence else "")


def _failed_tries(step: StepRecord) -> Iterator[tuple[StepAttempt, str]]:
    tries = [one for one in step.attempts if one.error is not None]
    if step.status == "failed":
        tries = tries[:-1]  # its line says so already
    several = len({one.run_attempt for one in step.attempts}) > 1
    for one in tries[-_TRIES_SHOWN:]:
        yield one, f"try {one.number + 1}" + (f" of attempt {one.run_attempt + 1}" if several else "")


def _bar(step: StepRecord, scale: _Scale, marks: _Marks, now: datetime) -> Text:
    first, end = scale.at(step.started_at), scale.at(step.completed_at or now)
    if step.wait is not None:
        return _drawn([(first, end, "waits")], scale, marks)
    parts: list[tuple[int, int, str]] = []
    for number, one in enumerate(step.attempts):
        ended = one.ended_at
        if ended is None:
            # Nobody lived to tell when it ended, unless it goes on.
            is_last = number == len(step.attempts) - 1
            ended = now if step.status == "running" and is_last else one.started_at
        begins = scale.at(one.started_at)
        if parts:
            parts.append((parts[-1][1] + 1, begins - 1, "rests"))
        failed = one.error is not None
        parts.append((begins, scale.at(ended), "failed" if failed else "called"))
    return _drawn(parts or [(first, end, "called")], scale, marks)


def _drawn(parts: list[tuple[int, int, str]], scale: _Scale, marks: _Marks) -> Text:
    """The parts, each from one column to another, in one line. Later ones lie above earlier ones."""
    styles = {"called": "green", "failed": "red", "waits": "blue", "rests": "dim"}
    cells: list[tuple[str, str]] = [(" ", "")] * scale.width
    for begin, end, kind in parts:
        for column in range(begin, end + 1):
            mark = marks.called if kind == "failed" and column < end else getattr(marks, kind)
            cells[column] = mark, styles[kind]
    bar = Text(no_wrap=True)
    for mark, style in cells:
        bar.append(mark, style=style)
    bar.rstrip()
    return bar


def _said(step: StepRecord, room: int, now: datetime) -> Text:
    """What it gave, or what it waits for."""
    if step.status == "failed":
        return Text(plain_line(f"{step.error_type}: {step.error}", room), style="red")
    if step.status == "waiting":
        until = "" if step.until is None else f", until {moment(step.until)}"
        if len(said := f"waits for {step.wait}{until}") > room and step.until is not None:
            said = f"{step.wait}, {ago((step.until - now).total_seconds())} left"
        return Text(plain_line(said, room), style="blue")
    if step.output_dropped:
        return Text("(dropped)", style="dim")
    if step.completed_at is None or (step.wait is not None and step.output is None):
        return Text("")
    return Text(json_line(step.output, room))
