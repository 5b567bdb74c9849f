"""Whether the file at a path is still the one that a connection has open, and what is refused when it is not.

A file may be deleted, moved or replaced under a process that has it open. SQLite goes on writing into what it has: it
says "committed", and nobody else will ever see it. So device and inode of the path are compared with what was opened:
after each COMMIT, before anybody is told that it counts, and before a transaction if the last such look is some time
ago. Two looks at the file system each time, four microseconds together.

Never opens the files by itself: closing them would drop the locks of this whole process, which is how POSIX has it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..basis.errors import StoreUnavailable

_TAKES_NUMBERS_FOR_NAMES = (3, 12) <= sys.version_info < (3, 12, 4)
"""Python 3.12.0 to 3.12.3 do, and warn of every statement that has one (python/cpython#117995)."""
_NUMBERED = re.compile(r"\?\d")


def _by_number(parameters: Any) -> Any:
    return {str(number): value for number, value in enumerate(parameters, 1)}


def numbered(sql: str, parameters: Any) -> Any:
    """The values of one execution, so that this Python takes `?1` for the number that it is."""
    return _by_number(parameters) if _TAKES_NUMBERS_FOR_NAMES and _NUMBERED.search(sql) else parameters


def all_numbered(sql: str, parameters: Iterable[Any]) -> Iterable[Any]:
    """Those of several."""
    return map(_by_number, parameters) if _TAKES_NUMBERS_FOR_NAMES and _NUMBERED.search(sql) else parameters


class NumberedConnection(sqlite3.Connection):
    """Takes `?1` for the number that it is."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return super().execute(sql, numbered(sql, parameters))

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        return super().executemany(sql, all_numbered(sql, parameters))


if TYPE_CHECKING or not _TAKES_NUMBERS_FOR_NAMES:
    Connection = sqlite3.Connection
else:
    Connection = NumberedConnection


class Mark(NamedTuple):
    """What tells one file from another, as long as somebody has it open: numbers of closed ones are used again."""

    device: int
    inode: int


class FileConnection(Connection):
    """A connection that knows which files it has open."""

    file: Mark | None = None
    wal: Mark | None = None
    size: int = 0
    """Bytes of the file when it was last looked at. It only grows, but for a `vacuum`."""
    opening: int = 0
    """How often the file had turned out to be read-only when this one was opened."""


class Place:
    """The path of one database, as one process has seen it."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.wal_path: str = path + "-wal"
        self.known: str | None = None
        """The id of the database that was opened here. Only that one is served from now on."""
        self._openings = 0
        self._doubtful: Mark | None = None
        self._left_over: tuple[Mark, int, int] | None = None

    # -- opening -----------------------------------------------------------------------------------------------

    def before_opening(self) -> os.stat_result | None:
        """The file; None if there is none, and there was none before. Refuses what must not be opened."""
        known = self.known  # before the look: another thread may be making the file
        found = _stat(self.path)
        if known is None:
            return found
        if found is None:
            raise self._gone()
        if found.st_size == 0:
            # To SQLite this is a new database, and it would make one of it.
            raise self._unavailable(f"the file {self.path} is empty now. {_PUT_BACK}")
        if self._doubtful is not None and self._doubtful != _mark(found) and self._is_left_over():
            raise self._unavailable(
                f"the file {self.path} was replaced, but {self.wal_path} still belongs to the one that was there. "
                "Together they would make a damaged database. Put back the old file, or remove that one too."
            )
        return found

    def _is_left_over(self) -> bool:
        found = _stat(self.wal_path)
        return found is not None and (_mark(found), found.st_size, found.st_mtime_ns) == self._left_over

    def opened(self, connection: FileConnection, before: os.stat_result | None) -> None:
        """The connection has opened the file, which was looked at before."""
        found = _stat(self.path)
        if found is None or (before is not None and _mark(before) != _mark(found)):
            raise self._moved(found is None)
        connection.file, connection.size, connection.opening = _mark(found), found.st_size, self._openings
        if (wal := _stat(self.wal_path)) is not None:
            connection.wal = _mark(wal)

    def trust(self, connection: sqlite3.Connection, database_id: str) -> None:
        """Compare the id with that of the database that was here before; after trouble, look the file through."""
        if self.known is not None and self.known != database_id:
            raise self._unavailable(
                f"the file {self.path} is another database than the one that this app has used so far "
                f"(its id is {database_id}, not {self.known}). Put back the right one, or restart this process."
            )
        if self._doubtful is not None:
            [first] = connection.execute("pragma quick_check(1)").fetchone()
            if first != "ok":
                raise self._unavailable(f"the file {self.path} is damaged ({first}). {_PUT_BACK}")
            self._doubtful = self._left_over = None
        self.known = database_id

    # -- in use ------------------------------------------------------------------------------------------------

    def was_read_only(self) -> None:
        """Nobody goes on with a connection of before.

        All connections of a process share how SQLite has opened the -shm file, so as long as one of them is left that
        found it read-only, the file stays read-only for this process whatever its mode is now.
        """
        self._openings += 1

    def _is_there(self, connection: FileConnection) -> None:
        """Refuse to go on unless the file at the path is that of the connection, and as long as it was."""
        if connection.opening != self._openings:
            raise self._unavailable(f"the file {self.path} was read-only. It is opened anew.")
        try:
            found = os.stat(self.path)
        except OSError:
            found = None
        mark = connection.file
        if found is None or mark is None or found.st_ino != mark.inode or found.st_dev != mark.device:
            self._suspect(connection)
            raise self._moved(found is None)
        if found.st_size < connection.size:
            self._suspect(connection)
            raise self._unavailable(f"the file {self.path} has become shorter. It is checked before it is used again.")
        connection.size = found.st_size

    def confirm(self, connection: FileConnection, *, writing: bool = False) -> int:
        """Refuse to go on unless the files at the path are those of the connection; gives the bytes of the WAL.

        `writing`: the connection holds the write lock, or has just committed.
        """
        self._is_there(connection)
        wal, mark = _stat(self.wal_path), connection.wal
        if mark is None and not (writing and wal is None):
            connection.wal = None if wal is None else _mark(wal)  # it is made by the first transaction
        elif wal is None or mark is None or wal.st_ino != mark.inode or wal.st_dev != mark.device:
            if writing and (wal is None or wal.st_size == 0):
                self._rescue(connection)
            raise self._unavailable(
                f"the file {self.wal_path} was deleted under this app. It is part of the database: never remove it "
                "while anybody has the database open."
            )
        return 0 if wal is None else wal.st_size

    def _suspect(self, connection: FileConnection) -> None:
        self._doubtful = connection.file
        wal = _stat(self.wal_path)
        if wal is not None and _mark(wal) == connection.wal:
            # Ours, which is still open here: nobody else can have the same number now.
            self._left_over = (_mark(wal), wal.st_size, wal.st_mtime_ns)

    def _rescue(self, connection: FileConnection) -> None:
        """The connection still has the deleted WAL open, and with it what was committed: bring that into the file."""
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("rollback")
            connection.execute("pragma wal_checkpoint(full)")

    def _moved(self, is_gone: bool) -> StoreUnavailable:
        if is_gone:
            return self._gone()
        return self._unavailable(f"the file {self.path} was replaced under this app; looking at what is there now.")

    def _gone(self) -> StoreUnavailable:
        return self._unavailable(f"the file {self.path} is gone: deleted or moved while this app used it. {_PUT_BACK}")

    def _unavailable(self, text: str) -> StoreUnavailable:
        return StoreUnavailable(f"{self.name}: {text}")


_PUT_BACK = (
    "Put it back, with its -wal file if there is one, or a backup of it in place of both: the app goes on by itself. "
    "Until then nothing is written and nothing acknowledged."
)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None


def _mark(found: os.stat_result) -> Mark:
    return Mark(found.st_dev, found.st_ino)
