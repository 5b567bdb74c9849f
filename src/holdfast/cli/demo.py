"""`holdfast demo`: a real import, its worker killed half-way, and the proof that nothing was lost or done twice."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..app import Holdfast
from ..basis.errors import HoldfastError, ValidationError
from ..run import Run
from . import exits
from .choice import AsJson
from .progress import Bar
from .terminal import ago, plain_line, print_json, say
from .terminal import show as show_table
from .view import progress_line, run_document

_LOOK_SECONDS = 0.05
#: Nothing in it takes this long: then something is wrong, and it is better to say so.
_LONGEST = 120.0


def demo(
    path: Annotated[
        Path | None, typer.Option("--path", help="Keep the databases in this folder. Default: a new temporary one.")
    ] = None,
    kills: Annotated[int, typer.Option("--kills", min=0, max=9, help="How often a worker is killed.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, max=1000, help="Rows per step.")] = 25,
    pause: Annotated[float, typer.Option("--pause", min=0, max=1, help="Seconds that each step takes.")] = 0.06,
    as_json: AsJson = False,
) -> None:
    """Import 3,376 airports, kill -9 the worker half-way, and see another one finish the job.

    The worker is a process of its own. What the summary says is counted in the databases afterwards.
    """
    folder = path.resolve() if path else Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValidationError(f"--path {folder}: {error.strerror}") from error
    show = _Show(folder, quiet=as_json)
    began = time.monotonic()
    try:
        run = show.play(kills, batch, pause)
    except KeyboardInterrupt:
        if not as_json:
            say(f"Stopped. What was imported so far is in {folder}")
        raise typer.Exit(exits.INTERRUPTED) from None
    summary = _count(show, run, time.monotonic() - began)
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary, show)
    raise typer.Exit(exits.of_run(run.status) if summary["complete"] else exits.FAILED)


@dataclass
class _Show:
    """The play: this process watches, worker processes work and are killed."""

    folder: Path
    quiet: bool
    killed: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"sqlite:///{(self.folder / 'holdfast.db').as_posix().replace('%', '%25')}"

    @property
    def target(self) -> Path:
        return self.folder / "airports.db"

    def play(self, kills: int, batch: int, pause: float) -> Run[Any]:
        os.environ["HOLDFAST_URL"] = self.url  # the app reads it, here and in the workers
        from . import demo_job

        with ExitStack() as stack:
            app = demo_job.app
            stack.callback(lambda: app.stop().wait())
            app.migrate().wait()
            source = str(_source())
            call = demo_job.import_airports.bind(source, str(self.target), batch, pause)
            run = app.trigger(call).wait()
            bar = stack.enter_context(Bar()) if not self.quiet else None
            self.tell(bar, f"Importing US airports into {self.target}")
            worker = stack.enter_context(_WorkerProcess(self, bar))
            end, dead = run.wait(), 0
            giving_up = time.monotonic() + _LONGEST
            while True:
                if bar is not None:
                    told = run.progress or {}
                    bar.show(run.job_name, told.get("current", 0), told.get("total"), progress_line(run))
                if run.is_terminal:
                    return run
                worker.check()
                if time.monotonic() > giving_up:
                    raise HoldfastError(f"The demo takes longer than {_LONGEST:g} s. See {worker.log}")
                works = run.generation > dead and run.lease_owner is not None
                if works and len(self.killed) < kills and _share(run) >= (len(self.killed) + 1) / (kills + 1):
                    worker.kill()
                    run = run.refresh().wait()
                    dead = run.generation
                    self.tell(bar, f"kill -9 {worker.pid} at {progress_line(run)}", "bold red")
                    worker = stack.enter_context(_WorkerProcess(self, bar))
                try:
                    run = end.wait(_LOOK_SECONDS)
                except TimeoutError:
                    seen, run = run.generation, run.refresh().wait()
                    if run.generation != seen and run.lease_owner is not None and self.killed:
                        self.tell(bar, f"Its lease is over: process {worker.pid} resumes the run from its saved steps")

    def tell(self, bar: Bar | None, line: str, style: str = "") -> None:
        if bar is not None:
            bar.say(Text(plain_line(line, 500), style=style))


class _WorkerProcess:
    """A `holdfast worker` of the demo's app."""

    def __init__(self, show: _Show, bar: Bar | None) -> None:
        self._show = show
        self.log = show.folder / "worker.log"
        command = [sys.executable, "-m", "holdfast", "worker", "holdfast.cli.demo_job:app", "--with-stdin"]
        command += ["--stop-timeout", "0"]  # on Ctrl-C nobody wants to see the rest
        with open(self.log, "ab") as log:
            # Its stdin ends when we do, however we end: no worker is left behind.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
        self.pid = self._process.pid
        show.tell(bar, f"Worker process {self.pid} started")

    def __enter__(self) -> _WorkerProcess:
        return self

    def kill(self) -> None:
        """SIGKILL: no clean-up, no goodbye."""
        self._process.kill()
        self._process.wait()
        self._show.killed.append(self.pid)

    def check(self) -> None:
        """`HoldfastError` if it ended by itself."""
        if self.pid not in self._show.killed and self._process.poll() is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "it left no word")
            raise HoldfastError(f"The worker process ended by itself ({self._process.returncode}): {last}")

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _share(run: Run[Any]) -> float:
    told = run.progress or {}
    return told["current"] / told["total"] if told.get("total") else 0.0


def _source() -> Path:
    """The table of airports: in an installed package beside this file, in the repository among the examples."""
    here = Path(__file__).resolve().parent
    places = (here / "data" / "airports.csv", here.parents[2] / "examples" / "data" / "airports.csv")
    for place in places:
        if place.is_file():
            return place
    raise HoldfastError(f"airports.csv is missing from this installation: {places[0]}")


def _count(show: _Show, run: Run[Any], took: float) -> dict[str, Any]:
    """What the databases say afterwards."""
    from . import demo_job

    app: Holdfast = demo_job.app
    app._engine.open()
    steps = app.get_steps(run.id).wait()
    run = run.refresh().wait()
    app.stop().wait()
    rows, distinct, calls = demo_job.count(str(show.target), run.id)
    with open(_source(), encoding="utf-8") as file:
        expected = sum(1 for _ in file) - 1
    before = sum(many for process, many in calls.items() if process in show.killed)
    after = sum(calls.values()) - before
    return {
        "complete": rows == distinct == expected,
        "rows": rows,
        "distinct_rows": distinct,
        "expected_rows": expected,
        "steps": len(steps),
        "steps_called_before_kill": before,
        "steps_called_after_kill": after,
        # The last process needed all of them, and called only some.
        "steps_replayed": len(steps) - list(calls.values())[-1] if show.killed else 0,
        "steps_called_twice": sum(calls.values()) - len(steps),
        "kills": len(show.killed),
        # Each claim and each lease that ran out counts one.
        "takeovers": (run.generation - 1) // 2,
        "seconds": round(took, 3),
        "url": show.url,
        "airports": str(show.target),
        "run": run_document(run),
    }


def _print_summary(summary: dict[str, Any], show: _Show) -> None:
    """The numbers, and what to try next."""
    ok = summary["complete"]
    twice = summary["steps_called_twice"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(f"{summary['rows']:,}", f"rows in the table, {summary['distinct_rows']:,} different airports")
    table.add_row(f"{summary['kills']}", f"kill -9, {_many(summary['takeovers'], 'takeover')} by a new process")
    table.add_row(f"{summary['steps']}", "steps saved")
    if summary["kills"]:
        last = "the new process" if summary["kills"] == 1 else "the last process"
        table.add_row(f"{summary['steps_called_before_kill']}", f"called before {last} came")
        table.add_row(f"{summary['steps_replayed']}", f"replayed by {last}: their saved values, no call")
        table.add_row(f"{summary['steps_called_after_kill']}", f"called by {last}")
    note = "  (the kill fell between the insert and its checkpoint; the insert may be repeated)" if twice else ""
    table.add_row(f"{twice}", f"called twice{note}")
    table.add_row(ago(summary["seconds"]), "in all")
    say("")
    say(
        Text("Every airport is there, once.", style="bold green")
        if ok
        else Text("This is not what should have happened.", style="bold red")
    )
    show_table(table)
    say("")
    say("Try next:")
    command, url, run_id = _command(), shlex.quote(show.url), summary["run"]["id"]
    for line, why in (
        (f"{command} runs show {run_id} -u {url}", "each step and when it was saved"),
        (f"{command} runs list -u {url} --json", "the same for programs"),
        (f"{command} demo --kills 3", "once more, with three kills"),
    ):
        say(Text(f"  # {why}", style="dim"))
        say(f"  {line}")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _command() -> str:
    """How the user may call us again: by name, or by path where the name is not on the user's own PATH."""
    if sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV"):
        return "holdfast"
    script = Path(sys.argv[0]).resolve()
    if script.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m holdfast"
    relative = os.path.relpath(script)
    return shlex.quote(str(script) if relative.startswith("..") else relative)
