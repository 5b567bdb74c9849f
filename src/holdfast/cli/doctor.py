"""`holdfast doctor URL`: what is wrong with a database, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..store.doctor import Finding, examine
from . import exits
from .choice import AsJson, Url
from .far import needs_database
from .load import app_for
from .terminal import plain_line, print_json, show

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="URL", help="The database: sqlite:///path/to/file.db, postgresql://…, mysql://…", show_default=False
        ),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Examine a database, read-only, and say what to do. Exit code 1 if a check fails.

    SQLite: file, log, pages. PostgreSQL and MariaDB: settings that weaken a commit, replication, connections, clocks,
    old transactions, dead rows, the plan of a claim, notifications. All: tables, runs, leases, payloads.

    Safe beside running workers. Reads all of an SQLite file once (quick_check), and the payloads of the newest 1,000
    runs.
    """
    place = place or url
    needs_database(place, "doctor")
    store = app_for(place)._engine.store
    found = examine(store)
    failed = any(finding.level == "fail" for finding in found)
    if as_json:
        checks = [
            {
                **one._asdict(),
                "text": exits.masked(one.text),
                "advice": exits.masked(one.advice),
                "data": one.data or {},
            }
            for one in found
        ]
        print_json({"url": exits.masked(store.name), "ok": not failed, "checks": checks})
    else:
        show(_table(found))
    if failed:
        raise typer.Exit(exits.FAILED)


def _table(found: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        what = Text(plain_line(finding.text, 1000))
        if finding.advice:
            what.append(f"\n→ {plain_line(finding.advice, 1000)}", style="dim")
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), Text(finding.check), what)
    return table
