"""PostgreSQL keeps every promise of a store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

import databases
from holdfast.store.base import Store, Tx
from holdfast.store.postgres import PostgresStore
from holdfast.testing.clock import HandClock
from holdfast.testing.contract.claiming import ClaimContract
from holdfast.testing.contract.ending import EndingContract
from holdfast.testing.contract.leases import LeaseContract
from holdfast.testing.contract.steps import StepContract
from holdfast.testing.contract.triggering import TriggerContract
from holdfast.testing.store import StoreContract

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=16)


class OnSchemas:
    """A schema for each test: a database for each takes ten times as long to make."""

    store: Store
    kind: ClassVar[type[PostgresStore]] = PostgresStore
    urls: ClassVar[Iterator[str]]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _database(cls) -> Iterator[None]:
        with contextmanager(databases._fresh)("postgres") as url:
            cls.urls = (f"{url}?schema=test_{number}" for number in itertools.count())
            yield

    def make_store(self, clock: HandClock) -> Store:
        return self.kind(next(self.urls), clock=clock)

    def force_status(self, connection: Any, run_id: str, status: str) -> None:
        assert isinstance(self.store, PostgresStore)
        table = f"{self.store.address.schema}.holdfast_runs"
        connection.execute(f"update {table} set status = $1, completed_at = 1 where id = $2", (status, run_id))


class TestPostgres(OnSchemas, StoreContract):
    pass


class InRounds(PostgresStore):
    """Every transaction begins as that of a round: with what is asked first, and with the locks of that."""

    def begin(self, connection: Any) -> Tx:
        tx = self.begin_round(connection, {})
        tx.seen.pop("locked", None)
        return tx


class TestInRounds(OnSchemas, TriggerContract, ClaimContract, LeaseContract, StepContract, EndingContract):
    kind = InRounds
