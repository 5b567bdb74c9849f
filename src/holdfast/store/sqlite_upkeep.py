"""Keeping the write-ahead log short: what is committed goes from the log into the file, and the log begins anew.

SQLite does that by itself at whatever commit makes the log longer than 1,000 pages, beside the writers of other
processes. Before 3.51.3 that may damage the file (the "WAL-reset bug"): one connection begins a checkpoint of a log
that is wholly checkpointed, another one commits, begins the log anew meanwhile, and the first one marks frames of the
new log as done which it has never copied. It takes a commit *during* a checkpoint. So here nobody checkpoints without
the write lock: a transaction is opened, on one connection, and the checkpoint runs beside it on another one.

The mode is PASSIVE. FULL, RESTART and TRUNCATE want the write lock for themselves, would wait for it as long as we hold
it, and then be PASSIVE all the same. The file of the log gets shorter by `journal_size_limit`: whoever begins the log
anew cuts it to that length. Up to there it is overwritten in place, which syncs faster than a file that grows; so a
file that is longer says, for the price of a look at it, that this much was written since the last checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sqlite_file import SqliteFile
    from .sqlite_place import FileConnection

#: Bytes. A longer log is checkpointed between two rounds.
LIMIT = 4 << 20

#: Seconds until a long log is looked at again that a reader kept from becoming shorter.
_BUSY_PAUSE = 1.0
_ERROR_PAUSE = 5.0


class Upkeep:
    """Checkpoints of one store, in the thread that writes."""

    def __init__(self, store: SqliteFile) -> None:
        self._store = store
        self.limit: int = LIMIT
        self._not_before = 0.0
        self._quiet: tuple[int, int] | None = None

    def is_due(self, wal_size: int) -> bool:
        """Whether the log has become so long that it should not wait for an idle moment."""
        return wal_size > self.limit and self._store.clock.steady() >= self._not_before

    def when_idle(self, connection: FileConnection) -> bool:
        """Nobody waits: a checkpoint, if anything was committed since the last. False if a reader was in the way."""
        seen = self._mark(connection)
        if seen == self._quiet:
            return True
        complete = self.run(connection)
        self._quiet = seen if complete else None
        return complete

    def _mark(self, connection: FileConnection) -> tuple[int, int]:
        # Of others' commits the one number tells, of our own the other.
        theirs: int = connection.execute("pragma data_version").fetchone()[0]
        return theirs, connection.total_changes

    def run(self, connection: FileConnection) -> bool:
        """A checkpoint under the write lock; False if a reader kept it from taking all of the log."""
        store = self._store
        pause = _ERROR_PAUSE
        second = store.connect()
        try:
            store.wait_to_write(connection)
            try:
                store.confirm_file(connection)
                busy, length, done = second.execute("pragma wal_checkpoint(passive)").fetchone()
            finally:
                if connection.in_transaction:
                    connection.execute("rollback")
            complete = not busy and done == length
            pause = 0.0 if complete else _BUSY_PAUSE
            return complete
        finally:
            self._not_before = store.clock.steady() + pause
            store.disconnect(second)
