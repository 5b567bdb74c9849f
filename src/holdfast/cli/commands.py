"""The `holdfast` command: which commands there are, and what becomes of their errors."""

from __future__ import annotations

import io
import logging
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from . import exits
from .choice import AsJson, Url
from .demo import demo
from .doctor import doctor
from .far import everywhere, needs_database
from .forget import delete, purge
from .load import app_for
from .move import move
from .runs import runs
from .send import signal, wake
from .serve import serve
from .terminal import plain_line, print_json, say
from .watch import watch
from .worker import worker
from .workers import workers

cli: typer.Typer = typer.Typer(
    name="holdfast",
    help="Durable execution for Python: look at runs, execute them, and see one survive a kill.",
    epilog=exits.EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli.command(epilog=exits.EPILOG)(demo)
cli.command(epilog=exits.EPILOG)(worker)
cli.command(epilog=exits.EPILOG)(serve)
cli.command(epilog=exits.EPILOG)(workers)
# A negative number is a value, no option.
cli.command(epilog=exits.EPILOG, context_settings={"ignore_unknown_options": True})(signal)
cli.command(epilog=exits.EPILOG)(wake)
cli.command(epilog=exits.EPILOG)(move)
cli.command(epilog=exits.EPILOG)(doctor)
runs.command(epilog=exits.EPILOG)(watch)
runs.command(epilog=exits.EPILOG)(delete)
runs.command(epilog=exits.EPILOG)(purge)
cli.add_typer(runs, name="runs")


@cli.command(epilog=exits.EPILOG)
def migrate(
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="URL", help="The database: sqlite:///path/to/file.db, postgresql://…, mysql://…", show_default=False
        ),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make the tables of a database, or bring them up to this version. Safe to repeat, and beside running workers."""
    place = place or url
    needs_database(place, "migrate")
    app = app_for(place, new=True)
    shown = exits.masked(app._engine.store.name)
    try:
        applied = app.migrate().wait()
    finally:
        app.stop().wait()
    if as_json:
        print_json({"url": shown, "applied": applied})
    elif applied:
        say(f"{shown}: applied {', '.join(applied)}")
    else:
        say(f"{shown}: nothing to do, the tables are up to date")


def _version(wanted: bool) -> None:
    if wanted:
        say(f"holdfast {version('holdfast')}")
        raise typer.Exit


@cli.callback()
def _options(
    show_version: Annotated[  # noqa: ARG001 - its own callback prints it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option("--url", "-u", metavar="URL", help="For every command: the database, or a server (http://…)."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            "-H",
            metavar="'NAME: VALUE'",
            help="Sent to the server with each request (repeatable). HOLDFAST_TOKEN is sent as a bearer token.",
        ),
    ] = None,
) -> None:
    everywhere.url, everywhere.headers = url, tuple(header or ())


class _Plain(logging.Formatter):
    """What the engine reports may quote a user's data. In one line, but for the traceback of a run."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        what, _, where = text.partition("\n") if record.name == "holdfast.runs" else (text, "", "")
        when = self.formatTime(record, "%H:%M:%S")
        first = f"{when} {record.levelname.lower()}: {plain_line(what, 2000)}"
        rest = [line[: len(line) - len(line.lstrip(" "))] + plain_line(line, 2000) for line in where.splitlines()]
        return exits.masked("\n".join([first, *rest]))


def run() -> int:
    """Run what the arguments ask for; the exit code. No error leaves as a traceback."""
    # Terminals that can't show a character get a `?`, not an exception.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    log = logging.getLogger("holdfast")
    log.addHandler(handler)
    log.propagate = False
    try:
        try:
            cli(prog_name="holdfast")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who read us (`| head`) has had enough. Python would complain once more when it closes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else exits.FAILED
    except Exception as error:
        return exits.complain(error)
    return exits.OK
