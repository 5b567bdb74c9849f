"""What the tests of PostgreSQL's messages share: short words for rounds over one connection, and what it sends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.model.run import NewRun, RunFilter, RunRow
from holdfast.model.step import StepRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease, StepSave
from holdfast.store.postgres import PostgresStore
from holdfast.store.postgres_place import Link

LEASE = 30_000_000


def do(store: PostgresStore, link: Link, verb: str, *rows: Any) -> Any:
    """The answer to the first of these rows, in a round of their own."""
    tx = store.begin_round(link, {verb: rows})
    try:
        answers = getattr(store, verb)(tx, rows)
        store.commit(tx)
    except BaseException:
        store.rollback(tx)
        raise
    return answers[0]


def a_run(store: PostgresStore, link: Link, run_id: str = "run", **values: Any) -> Lease:
    do(store, link, "trigger", NewRun(run_id, "job", "1", **values))
    claimed = do(store, link, "claim", ClaimOrder("me", 10, LEASE, ("job",)))
    (run,) = [run for run in claimed.runs if run.id == run_id]
    return Lease(run.id, run.generation, "me")


def a_step(name: str = "s", output: str = '"done"') -> StepSave:
    return StepSave("me", StepRow("run", name, 0, 0, "completed", 0, 1, None, output, None, 1, 1))


def an_end(lease: Lease) -> Ending:
    return Ending(lease, TABLE[Cause.COMPLETE], output="1", keyed=False)


def found(store: PostgresStore, link: Link, run_id: str = "run") -> RunRow:
    (run,) = store.find_runs(link, RunFilter(ids=(run_id,)))
    return run


def eventually(look: Callable[[], Any]) -> Any:
    """What it gives as soon as that is something; asking again takes a round trip, so nobody sleeps."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if told := look():
            return told
    raise AssertionError("it never came")


def messages(link: Link, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is sent from now on."""
    sent: list[str] = []
    execute = link._execute

    def heard(sql: str, *args: Any, **more: Any) -> Any:
        sent.append(sql)
        return execute(sql, *args, **more)

    monkeypatch.setattr(link, "_execute", heard)
    monkeypatch.setattr(link, "cursor", _Heard(link.cursor, heard))
    return sent


class _Heard:
    """The cursor of a link, whose own statements are heard, too."""

    def __init__(self, cursor: Any, execute: Any) -> None:
        self._cursor = cursor
        self.execute = execute

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)
