"""`holdfast move FROM_URL TO_URL`: all runs of one database into another."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..basis.errors import ValidationError
from ..store.movable import Movable
from ..store.move import Moved
from ..store.move import move as move_house
from . import exits
from .choice import AsJson
from .far import needs_database, needs_no_url
from .load import app_for
from .progress import Bar
from .terminal import print_json, say
from .view import many


def move(
    source: Annotated[str, typer.Argument(metavar="FROM_URL", help="The database that is left.")],
    target: Annotated[str, typer.Argument(metavar="TO_URL", help="The one that is moved into; made if need be.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count everything, write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move all runs, with their steps, logs and keys, into another database, of whatever kind. Stop the workers first.

    Meanwhile nobody can write the old database. It gets a mark when the copy is durable and was read back: who opens
    it then is told where it went. Broken off, it is as it was; the same command again makes up for it.
    """
    needs_no_url("move")
    for given in (source, target):
        needs_database(given, "move")
    here, there = app_for(source), app_for(target, new=True)
    try:
        stores = here._engine.store, there._engine.store
        for store in stores:
            if not isinstance(store, Movable):
                raise ValidationError(f"{store.name} can't be moved.")
        with Bar(quiet=as_json) as bar:

            def told(what: str, table: str, done: int, total: int) -> None:
                bar.show(what, done, total, f"{table}: {done:,} / {total:,}")

            moved = move_house(*stores, dry_run=dry_run, told=told)  # type: ignore[arg-type]  # looked at above
    finally:
        here.stop().wait()
        there.stop().wait()
    if as_json:
        print_json(_document(moved, dry_run=dry_run))
    else:
        say(_summary(moved, dry_run=dry_run))


def _document(moved: Moved, *, dry_run: bool) -> dict[str, Any]:
    return {
        "from": exits.masked(moved.source),
        "to": exits.masked(moved.target),
        "dry_run": dry_run,
        "resumed": moved.resumed,
        "rows": {table: sum.rows for table, sum in moved.sums.items()},
        "sha256": {} if dry_run else {table: sum.digest for table, sum in moved.sums.items()},
    }


def _summary(moved: Moved, *, dry_run: bool) -> str:
    source, target = exits.masked(moved.source), exits.masked(moved.target)
    if moved.resumed:
        return f"{source}: everything had been moved to {target} already; now that can be used."
    told = ", ".join(f"{sum.rows:,} {table}" for table, sum in moved.sums.items() if sum.rows and table != "runs")
    runs = many(moved.sums["runs"].rows, "run") + (f" ({told})" if told else "")
    if dry_run:
        return f"{source}: {runs} would be moved to {target}"
    return f"{source}: moved {runs} to {target}. Start the workers with the new URL."
