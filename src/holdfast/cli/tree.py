"""What is below a run: read in one question, told from above to below, drawn as a tree."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

from rich.text import Text
from rich.tree import Tree

from ..app import Holdfast
from ..model.run import RunFilter, RunStatus
from ..run import Run
from .far import App
from .terminal import console, plain_line
from .view import FIRST, STYLES, lasted, many, progress_line, status_text

#: Runs that are read. Of a larger tree only those directly below are.
_MOST = 10_000
#: Runs drawn directly below one, unless all are asked for; and how deep, also where there are columns for more.
_DRAWN = 20
_DEEPEST = 12
#: Columns that a line needs beside the guides, which take four for each level.
_LINE = 48
_NARROW = 90


class Members(NamedTuple):
    """The runs below one, each after the one above it."""

    runs: list[Run[Any]]
    depths: dict[str, int]
    """Of each, by its id: 1 is directly below."""
    is_whole: bool
    """Whether these are all of them."""


def below(app: App, run: Run[Any]) -> Members:
    """The runs below this one."""
    if not run._row.tree:
        return Members([], {}, True)
    if isinstance(app, Holdfast):
        wanted = RunFilter(root=run.root_id or run.id, limit=_MOST + 1)
        found = app._find(wanted, lambda rows: [app._seen(row) for row in rows]).wait()
    else:
        found = _asked_for(app, run)
    is_whole = len(found) <= _MOST
    if not is_whole:
        found = app.get_runs(parent=run.id, limit=_MOST).wait()
    by_parent: defaultdict[str | None, list[Run[Any]]] = defaultdict(list)
    for one in found:
        by_parent[one.parent_id].append(one)
    # They come newest first, so the oldest is the next one to be taken.
    left = [(one, 1) for one in by_parent[run.id]]
    runs, depths = [], {}
    while left:
        one, depth = left.pop()
        runs.append(one)
        depths[one.id] = depth
        left += [(child, depth + 1) for child in by_parent[one.id]]
    return Members(runs, depths, is_whole)


def _asked_for(app: App, run: Run[Any]) -> list[Run[Any]]:
    """The same of a server, level by level, newest first."""
    found: list[Run[Any]] = []
    level = [run]
    while level and len(found) <= _MOST:
        asked = [app.get_runs(parent=one.id, limit=_MOST + 1) for one in level if one._row.tree]
        for reply in asked:
            reply.when_done(lambda: None)  # all at once
        level = [one for reply in asked for one in reply.wait()]
        found += level
    return sorted(found, key=lambda one: one.id, reverse=True)


def tree_of(run: Run[Any], members: Members, *, everything: bool = False) -> Tree:
    """The runs as a tree: status, job, duration, what it waits for or what became of it."""
    by_parent: defaultdict[str | None, list[Run[Any]]] = defaultdict(list)
    for one in members.runs:
        by_parent[one.parent_id].append(one)
    tree = Tree(_line(run), guide_style="dim")
    deepest = min(_DEEPEST, max(3, (console().width - _LINE) // 4))
    left = [(run, tree, 0)]
    while left:
        above, branch, depth = left.pop()
        children = by_parent[above.id]
        if children and depth >= deepest:
            branch.add(_dim(f"… and {many(len(children), 'run')} below, with what is below them"))
            continue
        drawn = children if everything else _worth_a_look(children)
        left += [(one, branch.add(_line(one)), depth + 1) for one in drawn]
        if rest := Counter(one.status for one in children) - Counter(one.status for one in drawn):
            counts = ", ".join(f"{rest[status]:,} {status}" for status in FIRST if rest[status])
            branch.add(_dim(f"… and {many(rest.total(), 'run')} more: {counts}"))
    if not members.is_whole:
        tree.add(_dim(f"The tree has more than {many(_MOST, 'run')}: only those directly below are read."))
    return tree


def _worth_a_look(children: list[Run[Any]]) -> list[Run[Any]]:
    if len(children) <= _DRAWN:
        return children
    order = {run.id: number for number, run in enumerate(children)}
    first = sorted(children, key=lambda run: (FIRST.index(run.status), order[run.id]))[: _DRAWN - 1]
    return sorted(first, key=lambda run: order[run.id])


def job_label(run: Run[Any], limit: int = 60) -> str:
    """The name of the job; a finalize is marked, unless its name says so."""
    name = plain_line(run.job_name, limit)
    return name + " (finalize)" if run.is_finalize and not name.endswith(".finalize") else name


def words(run: Run[Any]) -> str:
    """What it waits for, how far it is, or what became of it."""
    if run.error:
        return plain_line(f"{run.error_type}: {run.error}" if run.error_type else run.error, 80)
    told = progress_line(run)
    if run.status is RunStatus.WAITING and run.waiting_for:
        return f"waits for {plain_line(run.waiting_for, 30)}" + (f" · {told}" if told else "")
    return told


def _line(run: Run[Any]) -> Text:
    line = Text(job_label(run), style="bold", no_wrap=True, overflow="ellipsis")
    line.append("  ").append_text(_plain(status_text(run.status)))
    if took := lasted(run):
        line.append(f"  {took}", style="not bold dim")
    if said := words(run):
        line.append(f"  {said}", style=f"not bold {STYLES[run.status]}" if run.error else "not bold")
    if console().width >= _NARROW:
        line.append(f"  {run.id}", style="not bold dim")
    return line


def _plain(text: Text) -> Text:
    text.stylize(f"not bold {text.style}")
    return text


def _dim(text: str) -> Text:
    return Text(text, style="dim", no_wrap=True, overflow="ellipsis")
