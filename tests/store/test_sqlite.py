"""SQLite keeps every promise of a store."""

from __future__ import annotations

from typing import Any

from holdfast.store.base import Store
from holdfast.store.sqlite import SqliteStore
from holdfast.testing.clock import HandClock
from holdfast.testing.store import StoreContract


class TestSqlite(StoreContract):
    def make_store(self, clock: HandClock) -> Store:
        return SqliteStore("sqlite://", clock=clock)

    def force_status(self, connection: Any, run_id: str, status: str) -> None:
        connection.execute("update holdfast_runs set status = ?, completed_at = 1 where id = ?", (status, run_id))
