"""MariaDB keeps every promise of a store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

import databases
import servers
from holdfast.store.base import Store
from holdfast.store.mysql import MysqlStore
from holdfast.testing.clock import HandClock
from holdfast.testing.store import StoreContract

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=16)


class TestMariaDb(StoreContract):
    names: ClassVar[Iterator[str]]
    server: ClassVar[servers.Databases]
    made: ClassVar[list[str]]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _databases(cls) -> Iterator[None]:
        with contextmanager(databases._fresh)("mariadb") as url:
            first = url.rpartition("/")[2]
            cls.server, cls.made = servers.shared("mariadb"), []
            cls.names = (f"{first}_{number}" for number in itertools.count())
            yield
        for name in cls.made:
            cls.server.drop_database(name)

    def make_store(self, clock: HandClock) -> Store:
        self.made.append(self.server.create_database(next(self.names)))
        return MysqlStore(self.server.url(self.made[-1]), clock=clock)

    def force_status(self, connection: Any, run_id: str, status: str) -> None:
        connection.do(f"update holdfast_runs set status = '{status}', completed_at = 1 where id = '{run_id}'")
