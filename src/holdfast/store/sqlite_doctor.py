"""What is wrong with an SQLite database, found by looking only: `holdfast doctor`.

Opened read-only, and where nobody has it open as an immutable file: not even an empty log is left beside it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from ..basis.errors import StoreUnavailable
from . import doctor, queries
from .doctor import OF_RUNS, SHOWN, Finding, Level, failed, in_bytes, tried
from .sqlite import SqliteStore
from .sqlite_file import OLDEST, lenient
from .sqlite_place import Connection

_SQL = queries.Queries("sqlite", columns="", bare_columns="")

_MIB = 1 << 20
_LONG_LOG = 64 * _MIB
_LITTLE_SPACE, _NO_SPACE = 256 * _MIB, 16 * _MIB


def has_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether this SQLite has the WAL-reset bug; the repair went into two older lines as well."""
    return not (version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45))


def examine(store: SqliteStore) -> list[Finding]:
    """All findings, in the order in which they are worth reading. `StoreUnavailable` if there is no file at all.

    Checks that a damaged file makes impossible are told as failed; the others are made all the same.
    """
    path = store.path
    if not os.path.exists(path):
        raise StoreUnavailable(f"{store.name}: there is no file {path}.")
    found = [_file(path), _library(sqlite3.sqlite_version_info), _log(path), _space(path)]
    # Nobody has it open where there is no log. Opened otherwise, SQLite would make one, and leave it.
    in_header = None if os.path.exists(path + "-wal") else _mode_in_header(path)
    try:
        connection = _open(path, immutable=in_header is not None)
    except sqlite3.Error as error:
        return [*found, failed("opens", store.translate(error), _DAMAGED)]
    with closing(connection):
        found.append(tried(store, "journal", partial(_journal, in_header, connection), _DAMAGED))
        found.append(tried(store, "pages", partial(_pages, connection), _DAMAGED))
        tables = tried(store, "tables", partial(_tables, store, connection), _DAMAGED)
        found.append(tables)
        if tables.level == "ok":
            now, find = store.clock.now(), partial(_find, connection)
            found += [tried(store, name, partial(ask, now, find), _DAMAGED) for name, ask in OF_RUNS.items()]
    return found


def _find(connection: sqlite3.Connection, name: str, *values: Any) -> list[Any]:
    return connection.execute(_SQL[name], values).fetchall()


def _mode_in_header(path: str) -> str:
    """The journal mode of a file that nobody has open: closing an open one would drop SQLite's locks on it."""
    with open(path, "rb") as file:
        header = file.read(20)
    return "wal" if header[18:20] == b"\x02\x02" else "delete"


def _open(path: str, *, immutable: bool) -> sqlite3.Connection:
    uri = f"{Path(path).as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0, factory=Connection)
    try:
        connection.text_factory = lenient
        connection.execute("pragma query_only = on")
        connection.execute("select count(*) from sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


_DAMAGED = "Stop all processes, keep a copy of the file and its -wal, and bring back a backup (or try `.recover`)."


# -- the file ------------------------------------------------------------------------------------------------------


def _file(path: str) -> Finding:
    size = os.path.getsize(path)
    data = {"path": path, "bytes": size}
    directory = os.path.dirname(path)
    lacking = [place for place in (path, directory) if not os.access(place, os.W_OK)]
    if lacking:
        text = f"{path} ({in_bytes(size)}); this user may not write {' and '.join(lacking)}"
        return Finding("file", "fail", text, "SQLite writes the file and makes two more beside it.", data)
    return Finding("file", "ok", f"{path} ({in_bytes(size)}), writable", data=data)


def _library(version: tuple[int, ...]) -> Finding:
    name = ".".join(map(str, version))
    if version < OLDEST:
        return Finding(
            "sqlite", "fail", f"{name} is too old", "Use a Python with SQLite 3.38 or newer.", {"version": name}
        )
    if has_reset_bug(version):
        return Finding(
            "sqlite",
            "warn",
            f"{name} has the WAL-reset bug, which can damage a file that several connections write",
            "Holdfast avoids it: its processes checkpoint only under the write lock, one at a time. Other programs "
            "that write this file don't: let them use `pragma wal_autocheckpoint = 0`, or use SQLite 3.51.3 or newer.",
            {"version": name, "wal_reset_bug": True},
        )
    return Finding("sqlite", "ok", name, data={"version": name, "wal_reset_bug": False})


def _log(path: str) -> Finding:
    size = os.path.getsize(path + "-wal") if os.path.exists(path + "-wal") else 0
    data = {"bytes": size}
    if size > _LONG_LOG:
        advice = "Something reads for very long (a shell, a backup), or no Holdfast process runs: each keeps it short."
        return Finding("log", "warn", f"the write-ahead log has {in_bytes(size)}", advice, data)
    return Finding("log", "ok", f"the write-ahead log has {in_bytes(size)}", data=data)


def _space(path: str) -> Finding:
    free = shutil.disk_usage(os.path.dirname(path)).free
    level: Level = "fail" if free < _NO_SPACE else "warn" if free < _LITTLE_SPACE else "ok"
    advice = "" if level == "ok" else "On a full disk nothing is acknowledged. Make space, or purge old runs."
    return Finding("space", level, f"{in_bytes(free)} free on its disk", advice, {"bytes": free})


def _journal(in_header: str | None, connection: sqlite3.Connection) -> Finding:
    mode = in_header or connection.execute("pragma journal_mode").fetchone()[0]
    if mode != "wal":
        advice = "It is switched to WAL when a Holdfast app opens it."
        return Finding("journal", "warn", f"the journal mode is {mode}", advice, {"mode": mode})
    return Finding("journal", "ok", "write-ahead log", data={"mode": mode})


def _pages(connection: sqlite3.Connection) -> Finding:
    problems = [line for (line,) in connection.execute(f"pragma quick_check({SHOWN})").fetchall()]
    if problems != ["ok"]:
        return Finding("pages", "fail", "; ".join(problems), _DAMAGED, {"problems": problems})
    return Finding("pages", "ok", "quick_check finds nothing")


def _tables(store: SqliteStore, connection: sqlite3.Connection) -> Finding:
    version = store.version(connection)
    return doctor.tables(store, version, store.schema.newest, lambda: store.database_id(connection))
