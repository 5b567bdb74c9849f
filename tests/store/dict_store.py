"""A store in dictionaries: what an author of a naive store writes.

A transaction works on a copy of the tables; committing it makes the copy the tables. So readers see nothing of it
before, and rolling back is forgetting.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from holdfast.basis.clock import Clock
from holdfast.basis.errors import SchemaError
from holdfast.store.base import Tx
from holdfast.store.one_by_one import OneByOne, Tables
from holdfast.store.serialised import serialised


class Connection:
    """Somebody who looks at the database."""

    def __init__(self, database: DictStore) -> None:
        self.database = database
        self.writing: Tables | None = None


@serialised
class DictStore(OneByOne):
    """All runs of one process, gone with it."""

    name = "dict"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.committed: Tables | None = None
        self.commits = 0
        self.id = secrets.token_hex(16)

    def now(self) -> int:
        return self.clock.now()

    def tables(self, connection: Connection) -> Tables:
        if (tables := connection.writing or self.committed) is None:
            raise SchemaError("dict: there are no tables yet.")
        return tables

    # -- connections -------------------------------------------------------------------------------------------

    def connect(self, *, read_only: bool = False) -> Connection:
        return Connection(self)

    def disconnect(self, connection: Connection) -> None:
        connection.writing = None

    def begin(self, connection: Connection) -> Tx:
        if self.committed is not None:
            connection.writing = self.committed.copy()
        return Tx(connection, self.clock.now())

    def commit(self, tx: Tx) -> None:
        self.committed, tx.connection.writing = tx.connection.writing, None
        self.commits += 1

    def rollback(self, tx: Tx) -> None:
        tx.connection.writing = None

    @contextmanager
    def moment(self, connection: Connection) -> Iterator[None]:
        connection.writing = self.committed
        yield
        connection.writing = None

    def close(self) -> None:
        self.committed = None

    # -- schema ------------------------------------------------------------------------------------------------

    def migrate(self) -> list[str]:
        if self.committed is not None:
            return []
        self.committed = Tables()
        return ["tables"]

    def check_schema(self, connection: Connection) -> None:
        self.tables(connection)

    def database_id(self, connection: Connection) -> str:
        return self.id

    def change_mark(self, connection: Connection) -> int:
        return self.commits
