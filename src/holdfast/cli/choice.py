"""Which runs a command is about: by id, or by job, status, label and age."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from ..app import Holdfast
from ..basis.durations import seconds
from ..basis.errors import NotFoundError, ValidationError
from ..model.run import RunFilter, RunStatus
from ..run import Run
from .far import App, chosen, client_of, everywhere, is_server, needs_database
from .load import app_at, app_for

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        "-u",
        envvar="HOLDFAST_URL",
        callback=chosen,
        help="The database: sqlite:///path/to/file.db, postgresql://…, mysql://…; or a server: http://…",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")]
RunId = Annotated[str, typer.Argument(help="The id of the run.", metavar="RUN_ID")]
RunIds = Annotated[list[str], typer.Argument(help="The ids of the runs.", metavar="RUN_ID...")]
ByJob = Annotated[list[str] | None, typer.Option("--job", "-j", help="Only of this job (repeatable).")]
ByLabel = Annotated[list[str] | None, typer.Option("--label", "-l", help="Only with this key=value (repeatable).")]
ByStatus = Annotated[
    list[str] | None,
    typer.Option("--status", "-s", help="Only in this status, or one of: active, terminal, errored (repeatable)."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]

#: Every id is this long. Shorter ones are what is left of one that was cut.
ID_LENGTH = 26

_GROUPS = {"active": RunStatus.active(), "terminal": RunStatus.terminal(), "errored": RunStatus.errored()}


@contextmanager
def opened(url: str | None) -> Iterator[App]:
    """The app of this database, or a client of this server, closed afterwards."""
    if url is not None and is_server(url):
        with client_of(url) as client:
            yield client
        return
    app = app_for(url)
    try:
        yield app
    finally:
        app.stop().wait()


@contextmanager
def database(url: str | None, command: str, instead: str = "") -> Iterator[Holdfast]:
    """The app of this database, closed afterwards. A server is refused."""
    needs_database(url, command, instead)
    app = app_for(url)
    try:
        yield app
    finally:
        app.stop().wait()


@contextmanager
def whole(run_id: str) -> Iterator[None]:
    """Tells those who gave only the beginning of an id that it takes all of it."""
    try:
        yield
    except NotFoundError as error:
        if len(run_id) < ID_LENGTH and run_id in error.message:
            raise NotFoundError(f"{error.message} (Give the whole id: it has {ID_LENGTH} characters.)") from error
        raise


def of_module(place: str, context: typer.Context, url: str | None) -> Holdfast:
    """The app of a module. Its own database is used: another one on the command line is refused."""
    app = app_at(place)
    source = context.get_parameter_source("url")
    said = url if source is not None and source.name == "COMMANDLINE" else everywhere.url
    if said and said != app._engine.store.name:
        url = said
        raise ValidationError(
            f"{place} uses {app._engine.store.name}, not {url}. Leave --url out, or set the app's own database."
        )
    return app


def need(app: App, run_id: str) -> Run[Any]:
    """The run; `NotFoundError` if there is none."""
    with whole(run_id):
        run = app.get_run(run_id).wait()
        if run is None:
            raise NotFoundError(f"Run not found: {run_id}")
    return run


def these(app: App, run_ids: list[str]) -> dict[str, Run[Any]]:
    """Those of the runs that there are, by id; of a database in one question."""
    if not isinstance(app, Holdfast):
        asked = [app.get_run(run_id) for run_id in run_ids]
        for reply in asked:
            reply.when_done(lambda: None)  # all at once
        return {run.id: run for reply in asked if (run := reply.wait()) is not None}
    rows = app._find(RunFilter(ids=tuple(run_ids)), lambda rows: [app._seen(row) for row in rows])
    return {run.id: run for run in rows.wait()}


def labels_of(given: list[str] | None) -> dict[str, str]:
    """`key=value` as they were given."""
    labels = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise ValidationError(f"--label {one!r}: write key=value")
        labels[key] = value
    return labels


def statuses_of(given: list[str] | None) -> list[str] | None:
    """Names of statuses, with groups spelled out."""
    if not given:
        return None
    return sorted({str(status) for one in given for status in _GROUPS.get(one, (one,))})


def moment_of(given: str, option: str) -> datetime:
    """A moment: a date, a time, or how long ago it was."""
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(given, option))
    except ValidationError:
        pass
    try:
        # One without a time zone is local time, as Python takes it.
        return datetime.fromisoformat(given).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValidationError(
            f"{option} {given!r}: write a date (2026-01-31, 2026-01-31T08:30) or an age (12h)"
        ) from error


def duration(text: str, option: str) -> float:
    """The seconds that an option says: `30`, `30s`, `5m`."""
    given: float | str = text
    with suppress(ValueError):
        given = float(text)
    return seconds(given, option)
