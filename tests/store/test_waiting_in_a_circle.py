"""Two rounds that insert the same idempotency keys, in several statements each, wait for each other only one way."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import databases
from holdfast.basis.clock import SystemClock
from holdfast.model.run import NewRun
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease
from holdfast.store.several_writers import SeveralWriters

pytestmark = pytest.mark.only("postgres mariadb", "who writes to a file is alone")

LONG = 30.0
#: Seconds in which the other one does its first verb, if it doesn't wait.
MOMENT = 0.5


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SeveralWriters]:
    one = databases.StoreHere(databases.url(tmp_path), clock=SystemClock())
    assert isinstance(one, SeveralWriters)
    one.migrate()
    yield one
    one.close()


def new(id: str, once: str) -> NewRun:
    return NewRun(id, "job", "1", idempotency_key=once)


class Together:
    """Two rounds; each waits for the other after its first verb, if that comes so far."""

    def __init__(self, store: SeveralWriters) -> None:
        self.store = store
        self.begun = (threading.Event(), threading.Event())
        self.errors: list[BaseException] = []

    def go(self, one: Mapping[str, Sequence[Any]], other: Mapping[str, Sequence[Any]]) -> None:
        threads = [threading.Thread(target=self._round, args=(at, verbs)) for at, verbs in enumerate((one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        assert self.errors == []

    def _round(self, at: int, verbs: Mapping[str, Sequence[Any]]) -> None:
        link = self.store.open()
        try:
            tx = self.store.begin(link)
            self.store.lock(tx, verbs)
            for verb, rows in verbs.items():
                getattr(self.store, verb)(tx, rows)
                self.begun[at].set()
                self.begun[1 - at].wait(MOMENT)
            self.store.commit(tx)
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.begun[at].set()
            self.store.disconnect(link)


def test_single_runs_and_batches(store: SeveralWriters) -> None:
    Together(store).go(
        {"trigger": [new("a1", "x")], "trigger_many": [[new("a2", "y")]]},
        {"trigger": [new("b1", "y")], "trigger_many": [[new("b2", "x")]]},
    )


def test_several_batches_of_which_one_is_refused(store: SeveralWriters) -> None:
    Together(store).go(
        {"trigger_many": [[new("a1", "x")], [new("a2", "y")]], "trigger": [new("a3", "z")]},
        {"trigger_many": [[new("b1", "z")], [new("b2", "y")]], "trigger": [new("b3", "x")]},
    )


def test_a_deletion_and_a_trigger(store: SeveralWriters) -> None:
    link = store.open()
    for id, once in (("old-x", "x"), ("old-y", "y")):
        tx = store.begin(link)
        store.trigger(tx, [new(id, once)])
        store.commit(tx)
        tx = store.begin(link)
        (claimed,) = store.claim(tx, [ClaimOrder("me", 1, 10**9, ("job",))])
        store.commit(tx)
        (run,) = claimed.runs
        tx = store.begin(link)
        store.finish(tx, [Ending(Lease(run.id, run.generation, "me"), TABLE[Cause.COMPLETE], "1")])
        store.commit(tx)
    store.disconnect(link)
    Together(store).go(
        {"delete": ["old-x"], "trigger": [new("a1", "y")]},
        {"delete": ["old-y"], "trigger": [new("b1", "x")]},
    )
