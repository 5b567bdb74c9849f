"""`holdfast runs watch`: follow one run with its log, or many on one board, until all have ended."""

from __future__ import annotations

import threading
import time
from typing import Annotated, Any

import typer

from ..basis.errors import NotFoundError, ValidationError
from ..model.run import RunStatus
from ..run import Run
from . import exits
from .board import Board
from .choice import ByJob, ByLabel, Url, labels_of, need, opened, these
from .far import App, be_patient
from .progress import Bar
from .terminal import plain_line, print_json, print_json_line, say
from .terminal import show as show_table
from .tree import below
from .view import log_text, many, progress_line, run_document, run_table

#: How often `watch` looks. The end of a single run is noticed sooner, by the library.
_LOOK_SECONDS = 0.15
#: More is no board any more, and each look reads all of them.
_MOST = 1000


def watch(
    run_ids: Annotated[list[str] | None, typer.Argument(help="The ids of the runs.", metavar="[RUN_ID...]")] = None,
    url: Url = None,
    job: ByJob = None,
    label: ByLabel = None,
    all_active: Annotated[bool, typer.Option("--all-active", help="All that have not ended yet.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One run: it and all below it, at the end. Many: a line whenever one has changed."),
    ] = False,
) -> None:
    """Follow runs to their end: status, progress, and of a single one its log and all runs below it.

    It ends when the runs that were asked for have ended. With --job, --label or --all-active: the runs that are active
    now. The exit code tells how they ended: the worst of all counts.
    """
    chosen = bool(job or label or all_active)
    if bool(run_ids) == chosen:
        raise ValidationError(
            "give ids, or --job, --label or --all-active, but not both"
            if chosen
            else "which runs? Give ids, --job, --label, or --all-active"
        )
    with opened(url) as app:
        if run_ids and len(set(run_ids)) == 1:
            _watch_one(app, run_ids[0], as_json)
            return
        found = _given(app, run_ids) if run_ids else _active(app, job, label)
        be_patient(app)
        if not found:
            if not as_json:
                say("No active runs" + (" that fit." if job or label else "."))
            return
        try:
            ended = _watch_many(app, found, as_json)
        except KeyboardInterrupt:
            if not as_json:
                say("Stopped watching; the runs go on.")
            raise typer.Exit(exits.INTERRUPTED) from None
    raise typer.Exit(ended)


# -- one ---------------------------------------------------------------------------------------------------------


def _watch_one(app: App, run_id: str, as_json: bool) -> None:
    run = need(app, run_id)
    be_patient(app)
    try:
        run = run.wait().wait() if as_json else _follow(app, run)
    except KeyboardInterrupt:
        if not as_json:
            say(f"Stopped watching; the run goes on: {run.id}")
        raise typer.Exit(exits.INTERRUPTED) from None
    members = below(app, run)
    if as_json:
        print_json(
            {
                "run": run_document(run),
                "below": [run_document(one) for one in members.runs],
                "below_is_whole": members.is_whole,
            }
        )
    else:
        show_table(run_table(run))
        if left := sum(not one.is_terminal for one in members.runs):
            say(f"{many(left, 'run')} below it {'has' if left == 1 else 'have'} not ended yet.")
    raise typer.Exit(exits.of_run(run.status))


def _follow(app: App, run: Run[Any]) -> Run[Any]:
    """The ended run. Once there are runs below it they are all on one board."""
    looks, log = _Looks(run), _Log(app, run.id)
    with Bar() as bar:
        while True:
            if run._row.tree and (members := below(app, run)).runs:
                break
            told = run.progress or {}
            name = f"{plain_line(run.job_name, 30)} {run.status}"
            bar.show(name, told.get("current"), told.get("total"), progress_line(run))
            log.tell()
            if run.is_terminal:
                return run
            run = looks.next(run)
    with Board() as board:
        while True:
            board.show([run, *members.runs], depths=members.depths)
            log.tell()
            if run.is_terminal:
                return run
            run = looks.next(run)
            members = below(app, run)


class _Looks:
    """One look at a run after the other, until it has ended."""

    def __init__(self, run: Run[Any]) -> None:
        self._end = run.wait()
        self._at = time.monotonic()

    def next(self, run: Run[Any]) -> Run[Any]:
        """As it is a little later, or at its end."""
        # A large tree is read for long: most of the time the database belongs to others.
        pause = max(_LOOK_SECONDS, 4 * (time.monotonic() - self._at))
        try:
            return self._end.wait(pause)
        except TimeoutError:
            if self._end.done():
                raise
        finally:
            self._at = time.monotonic()
        return run.refresh().wait()


class _Log:
    """The log of a run, each line once."""

    def __init__(self, app: App, run_id: str) -> None:
        self._app, self._run_id, self._last = app, run_id, 0

    def tell(self) -> None:
        """What has come since."""
        for line in self._app.get_logs(self._run_id, after=self._last).wait():
            say(log_text(line))
            self._last = line.id


# -- many --------------------------------------------------------------------------------------------------------


def _given(app: App, run_ids: list[str]) -> list[Run[Any]]:
    known = these(app, run_ids)
    if missing := [run_id for run_id in run_ids if run_id not in known]:
        raise NotFoundError(f"Run not found: {', '.join(dict.fromkeys(missing))}")
    return [known[run_id] for run_id in dict.fromkeys(run_ids)]


def _active(app: App, job: list[str] | None, label: list[str] | None) -> list[Run[Any]]:
    labels = labels_of(label)
    found = app.get_runs(job=job, labels=labels, status=RunStatus.active(), limit=_MOST + 1).wait()
    if len(found) > _MOST:
        raise ValidationError(f"more than {_MOST} runs are active: choose fewer with --job and --label")
    return found[::-1]


def _watch_many(app: App, runs: list[Run[Any]], as_json: bool) -> int:
    """The exit code, when all have ended."""
    never = threading.Event()
    seen = {run.id: run for run in runs}
    gone: set[str] = set()
    told: dict[str, Any] = {}
    with Board(quiet=as_json) as board:
        while True:
            if as_json:
                for run in seen.values():
                    if (state := (run.status, run.progress, run.generation)) != told.get(run.id):
                        told[run.id] = state
                        print_json_line({"run": run_document(run)})
            else:
                board.show(list(seen.values()), gone)
            waiting = [run.id for run in seen.values() if not run.is_terminal and run.id not in gone]
            if not waiting:
                break
            never.wait(_LOOK_SECONDS)
            found = these(app, waiting)
            seen |= found
            gone |= set(waiting) - set(found)
    if gone and not as_json:
        say(f"{many(len(gone), 'run')} {'was' if len(gone) == 1 else 'were'} deleted meanwhile.")
    return exits.of_runs([run.status for run in seen.values() if run.id not in gone], gone=bool(gone))
