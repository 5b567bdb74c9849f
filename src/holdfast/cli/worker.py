"""`holdfast worker module:app`: a process that executes runs until it is told to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Annotated, Any

import typer
from rich.text import Text

from ..app import Holdfast
from ..basis.errors import ValidationError
from ..model.event import Event
from . import exits
from .choice import AsJson, duration
from .far import needs_no_url
from .load import app_at
from .terminal import ago, plain_line, print_json, say

_EVENTS = {
    "run:leased": ("started", "cyan"),
    "run:retry": ("retry", "yellow"),
    "run:complete": ("completed", "green"),
    "run:fail": ("failed", "red"),
    "run:cancel": ("cancelled", "magenta"),
}
#: What is told without --verbose, too: somebody has to do something.
_ALWAYS = ("run:fail",)


def worker(
    place: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the app is, e.g. shop.jobs:app")],
    stop_timeout: Annotated[
        str, typer.Option(help="How long runs may go on after the first signal; then they are handed back.")
    ] = "30s",
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="A line for every run that starts, is tried again or ends; without it only for those that fail.",
        ),
    ] = False,
    as_json: AsJson = False,
    with_stdin: Annotated[bool, typer.Option("--with-stdin", hidden=True, help="Stop when stdin is closed.")] = False,
) -> None:
    """Execute the runs of an app's jobs until SIGTERM or Ctrl-C.

    The first signal stops gracefully: nothing new is claimed, runs may go on for the stop timeout, and what is left is
    handed back with its saved steps for another worker. The second signal exits at once; then another worker takes
    over when the lease is over.
    """
    needs_no_url("worker")
    patience = duration(stop_timeout, "--stop-timeout")
    app = app_at(place)
    if not app._engine.registry.names():
        raise ValidationError(f"{place} has no jobs to execute. Are they defined in a module that it imports?")
    stopping = _Signals()
    stopping.listen()
    if with_stdin:
        threading.Thread(target=stopping.at_end_of_stdin, name="holdfast-stdin", daemon=True).start()
    if not as_json:
        for kind in _EVENTS if verbose else _ALWAYS:
            app.on(kind, _tell)
    try:
        app.migrate().wait()
        app.start().wait()
        _introduce(app, place, as_json)
        stopping.wait()
        left = 0 if app._engine.worker is None else len(app._engine.worker.executing)
        if not as_json:
            many = f"{left} run{'s' if left != 1 else ''} may go on for {patience:g} s. " if left else ""
            say(f"Stopping. {many}Again to exit at once." if left else "Stopping.")
    finally:
        app.stop(patience).wait()


def _introduce(app: Holdfast, place: str, as_json: bool) -> None:
    """What is executed here, and where."""
    options, url = app._engine.options, exits.masked(app._engine.store.name)
    jobs = sorted(job.name for job in app._engine.registry.all())
    if as_json:
        print_json(
            {
                "app": place,
                "url": url,
                "pid": os.getpid(),
                "jobs": jobs,
                "queues": list(options.queues),
                "concurrency": options.concurrency,
            }
        )
        return
    say(Text("holdfast worker", style="bold"), f"{place}  (process {os.getpid()})")
    say(f"  database     {url}")
    say(f"  jobs         {', '.join(jobs)}")
    if options.queues != ("default",):
        say(f"  queues       {', '.join(options.queues)}")
    say(f"  concurrency  {options.concurrency}")
    say("Ready. Ctrl-C stops gracefully.")
    sys.stdout.flush()


def _tell(event: Event) -> None:
    word, style = _EVENTS[event.type]
    say(Text(f"{word:<10}", style=style), f"{event.job_name} {event.run_id} {_why(event)}".rstrip())
    sys.stdout.flush()  # in a pipe, too, it is read while it is news


def _why(event: Event) -> str:
    """`ValueError: no such customer`, before a retry `attempt 2 in 5.0s: …`; empty where nothing went wrong."""
    if event.type not in ("run:fail", "run:retry"):
        return ""
    kind, error = event.data.get("error_type"), str(event.data.get("error") or "")
    said = plain_line(f"{kind}: {error}" if kind else error, 300)
    if event.type == "run:fail":
        return said
    # `attempt` counts those that have failed.
    rest = (event.data["run_at"] - event.timestamp).total_seconds()
    return f"attempt {event.data['attempt'] + 1} in {ago(rest)}: {said}"


class _Signals:
    """The first SIGTERM or SIGINT sets an event, the second one ends the process there and then.

    Handlers of Python run in the main thread, which does nothing but wait: jobs that block their event loop can't keep
    a signal from being heard.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._heard = 0

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._told)
        signal.signal(signal.SIGINT, self._told)

    def _told(self, number: int, _: Any) -> None:
        # Counted, and not read off the event: the end of stdin is no signal, and Ctrl-C often brings both at once.
        self._heard += 1
        if self._heard > 1:
            # No clean-up may hold us up now; what is durable is durable.
            os._exit(128 + number)
        self._stop.set()

    def wait(self) -> None:
        self._stop.wait()

    def at_end_of_stdin(self) -> None:
        sys.stdin.buffer.read()
        self._stop.set()
