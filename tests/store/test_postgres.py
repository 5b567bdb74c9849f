"""PostgreSQL keeps every promise of a store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

import databases
from holdfast.store.base import Store
from holdfast.store.postgres import PostgresStore
from holdfast.testing.clock import HandClock
from holdfast.testing.store import StoreContract

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=16)


class TestPostgres(StoreContract):
    urls: ClassVar[Iterator[str]]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _database(cls) -> Iterator[None]:
        # A schema for each test: a database for each takes ten times as long to make.
        with contextmanager(databases._fresh)("postgres") as url:
            cls.urls = (f"{url}?schema=test_{number}" for number in itertools.count())
            yield

    def make_store(self, clock: HandClock) -> Store:
        return PostgresStore(next(self.urls), clock=clock)

    def force_status(self, connection: Any, run_id: str, status: str) -> None:
        assert isinstance(self.store, PostgresStore)
        table = f"{self.store.address.schema}.holdfast_runs"
        connection.execute(f"update {table} set status = $1, completed_at = 1 where id = $2", (status, run_id))
