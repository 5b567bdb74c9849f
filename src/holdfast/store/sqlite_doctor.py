"""What is wrong with an SQLite database, found by looking only: `holdfast doctor`.

Opened read-only, and where nobody has it open as an immutable file: not even an empty log is left beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..basis.clock import to_datetime
from ..basis.errors import HoldfastError, Outdated, StoreUnavailable
from ..basis.failures import Failure
from ..basis.values import shape_of
from . import queries
from .sqlite import SqliteStore
from .sqlite_file import OLDEST, lenient
from .sqlite_place import Connection

_SQL = queries.Queries("sqlite", columns="", bare_columns="")

#: Runs of which the texts are read; their steps, at most this many for each of them on average.
SAMPLE = 1000
_STEPS_EACH = 10

_MIB = 1 << 20
_SECOND = 1_000_000
_LONG_LOG = 64 * _MIB
_LITTLE_SPACE, _NO_SPACE = 256 * _MIB, 16 * _MIB
#: Clocks of several machines differ by this much without anybody being to blame.
_CLOCKS_DIFFER = 5 * _SECOND
#: A lease that has just run out may be judged by a worker any moment now.
_GRACE = 60 * _SECOND
_LONG_LEASE = 86_400 * _SECOND
_LONG_WAIT = 3600 * _SECOND
_SHOWN = 5


class Finding(NamedTuple):
    """One check and what came out. `advice` where there is something to do; `data` are the numbers, for programs."""

    check: str
    level: Literal["ok", "warn", "fail"]
    text: str
    advice: str = ""
    data: dict[str, Any] | None = None


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
        return [*found, _failed("opens", store.translate(error))]
    with closing(connection):
        found.append(_tried(store, "journal", partial(_journal, in_header), connection))
        found.append(_tried(store, "pages", _pages, connection))
        tables = _tried(store, "tables", lambda c: _tables(store, c), connection)
        found.append(tables)
        if tables.level == "ok":
            now = store.clock.now()
            for name, ask in _OF_RUNS.items():
                found.append(_tried(store, name, partial(ask, now), connection))
    return found


def _mode_in_header(path: str) -> str:
    """The journal mode of a file that nobody has open: closing an open one would drop SQLite's locks on it."""
    with open(path, "rb") as file:
        header = file.read(20)
    return "wal" if header[18:20] == b"\x02\x02" else "delete"


def _open(path: str, *, immutable: bool) -> sqlite3.Connection:
    uri = f"{Path(path).as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0, factory=Connection)
    connection.text_factory = lenient
    connection.execute("pragma query_only = on")
    connection.execute("select count(*) from sqlite_master").fetchone()
    return connection


def _tried(
    store: SqliteStore, name: str, check: Callable[[sqlite3.Connection], Finding], connection: sqlite3.Connection
) -> Finding:
    try:
        return check(connection)
    except Exception as error:
        return _failed(name, store.translate(error))


def _failed(check: str, error: BaseException) -> Finding:
    text = error.message if isinstance(error, HoldfastError) else str(error)
    return Finding(check, "fail", text, _DAMAGED)


_DAMAGED = "Stop all processes, keep a copy of the file and its -wal, and bring back a backup (or try `.recover`)."


# -- the file ------------------------------------------------------------------------------------------------------


def _file(path: str) -> Finding:
    size = os.path.getsize(path)
    data = {"path": path, "bytes": size}
    directory = os.path.dirname(path)
    lacking = [place for place in (path, directory) if not os.access(place, os.W_OK)]
    if lacking:
        text = f"{path} ({_size(size)}); this user may not write {' and '.join(lacking)}"
        return Finding("file", "fail", text, "SQLite writes the file and makes two more beside it.", data)
    return Finding("file", "ok", f"{path} ({_size(size)}), writable", data=data)


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
        return Finding("log", "warn", f"the write-ahead log has {_size(size)}", advice, data)
    return Finding("log", "ok", f"the write-ahead log has {_size(size)}", data=data)


def _space(path: str) -> Finding:
    free = shutil.disk_usage(os.path.dirname(path)).free
    level: Literal["ok", "warn", "fail"] = "fail" if free < _NO_SPACE else "warn" if free < _LITTLE_SPACE else "ok"
    advice = "" if level == "ok" else "On a full disk nothing is acknowledged. Make space, or purge old runs."
    return Finding("space", level, f"{_size(free)} free on its disk", advice, {"bytes": free})


def _journal(in_header: str | None, connection: sqlite3.Connection) -> Finding:
    mode = in_header or connection.execute("pragma journal_mode").fetchone()[0]
    if mode != "wal":
        advice = "It is switched to WAL when a Holdfast app opens it."
        return Finding("journal", "warn", f"the journal mode is {mode}", advice, {"mode": mode})
    return Finding("journal", "ok", "write-ahead log", data={"mode": mode})


def _pages(connection: sqlite3.Connection) -> Finding:
    problems = [line for (line,) in connection.execute(f"pragma quick_check({_SHOWN})").fetchall()]
    if problems != ["ok"]:
        return Finding("pages", "fail", "; ".join(problems), _DAMAGED, {"problems": problems})
    return Finding("pages", "ok", "quick_check finds nothing")


def _tables(store: SqliteStore, connection: sqlite3.Connection) -> Finding:
    version = store.version(connection)
    data: dict[str, Any] = {"version": version, "newest": store.schema.newest}
    if version == 0:
        return Finding("tables", "fail", "there are no Holdfast tables", f"Run `holdfast migrate {store.name}`.", data)
    data["database_id"] = identity = store.database_id(connection)
    text = f"version {version}, database {identity}"
    if version < store.schema.newest:
        advice = f"This code needs version {store.schema.newest}. Run `holdfast migrate {store.name}`."
        return Finding("tables", "fail", text, advice, data)
    if version > store.schema.newest:
        advice = f"This code knows version {store.schema.newest} at most: upgrade the package."
        return Finding("tables", "fail", text, advice, data)
    return Finding("tables", "ok", text, data=data)


# -- the runs ------------------------------------------------------------------------------------------------------


def _statuses(_: int, connection: sqlite3.Connection) -> Finding:
    counts = dict(connection.execute(_SQL["doctor_statuses"]).fetchall())
    text = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none yet"
    return Finding("runs", "ok", text, data=counts)


def _expired(now: int, connection: sqlite3.Connection) -> Finding:
    count, oldest = connection.execute(_SQL["doctor_expired"], (now - _GRACE,)).fetchone()
    data = {"count": count, "oldest": _when(oldest)}
    if count:
        advice = "They are taken over by the next worker that runs. Is one running that can reach this file?"
        return Finding("expired leases", "warn", f"{count}, the oldest since {_when(oldest)}", advice, data)
    return Finding("expired leases", "ok", "none", data=data)


def _oldest(now: int, connection: sqlite3.Connection) -> Finding:
    row = connection.execute(_SQL["doctor_oldest_pending"], (now,)).fetchone()
    if row is None:
        return Finding("oldest pending run", "ok", "none waits")
    run_id, job, since = row
    data = {"run_id": run_id, "job_name": job, "since": _when(since)}
    text = f"{run_id} ({job}), since {_when(since)}"
    if now - since > _LONG_WAIT:
        advice = f"Is a worker running that knows the job {job!r}, in its queue?"
        return Finding("oldest pending run", "warn", text, advice, data)
    return Finding("oldest pending run", "ok", text, data=data)


def _owners(_: int, connection: sqlite3.Connection) -> Finding:
    rows = connection.execute(_SQL["doctor_owners"], (SAMPLE,)).fetchall()
    data = {"workers": [{"id": owner, "runs": count, "until": _when(until)} for owner, count, until in rows]}
    told = [f"{owner}: {count}, until {_when(until)}" for owner, count, until in rows[:_SHOWN]]
    more = [f"and {len(rows) - _SHOWN} more workers"] if len(rows) > _SHOWN else []
    return Finding("workers with leases", "ok", "; ".join([*told, *more]) or "none", data=data)


def _clock(now: int, connection: sqlite3.Connection) -> Finding:
    ahead, newest, leases = connection.execute(
        _SQL["doctor_future"], (now + _CLOCKS_DIFFER, now + _LONG_LEASE)
    ).fetchone()
    data = {"rows_of_the_future": ahead, "newest": _when(newest), "long_leases": leases, "now": _when(now)}
    if ahead or leases:
        text = f"{ahead} runs say that they were written later than now, {leases} leases end in more than a day"
        advice = "A clock was or is wrong, here or where they were written. Leases can't be judged until it is right."
        return Finding("clock", "warn", text, advice, data)
    return Finding("clock", "ok", f"nothing is of the future at {_when(now)}", data=data)


def _readable(_: int, connection: sqlite3.Connection) -> Finding:
    runs = connection.execute(_SQL["doctor_sample"], (SAMPLE,)).fetchall()
    steps = connection.execute(_SQL["doctor_sample_steps"], (SAMPLE, SAMPLE * _STEPS_EACH)).fetchall()
    problems = [*_in_runs(runs), *_in_steps(steps)]
    looked = f"of the newest {len(runs)} runs and {len(steps)} of their steps"
    data = {"runs": len(runs), "steps": len(steps), "unreadable": problems[:SAMPLE]}
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + (f"; and {len(problems) - _SHOWN} more" if problems[_SHOWN:] else "")
        advice = "Somebody has written into the tables. Such a run fails with Outdated; the others are not affected."
        return Finding("payloads", "warn", f"{looked} {len(problems)} texts can't be read: {shown}", advice, data)
    return Finding("payloads", "ok", f"{looked} all can be read (sealed ones are not opened)", data=data)


_OF_RUNS: dict[str, Callable[[int, sqlite3.Connection], Finding]] = {
    "runs": _statuses,
    "expired leases": _expired,
    "oldest pending run": _oldest,
    "workers with leases": _owners,
    "clock": _clock,
    "payloads": _readable,
}


def _in_runs(rows: list[Any]) -> Iterator[str]:
    for run_id, labels, *payloads in rows:
        if not _is_object(labels):
            yield f"labels of {run_id}"
        for name, text in zip(("input", "output"), payloads, strict=True):
            if text is not None and not _is_payload(text):
                yield f"{name} of {run_id}"


def _in_steps(rows: list[Any]) -> Iterator[str]:
    for run_id, name, status, output, error in rows:
        fine = _is_failure(error) if status == "failed" else output is None or _is_payload(output)
        if not fine:
            yield f"step {name!r} of {run_id}"


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.encode()), dict)
    except (ValueError, RecursionError):
        return False


def _is_payload(text: str) -> bool:
    if text.startswith("^"):  # sealed by a codec, which is not ours to call
        return True
    try:
        text.encode()
        shape_of().load(text)
    except (Outdated, ValueError, RecursionError):
        return False
    return True


def _is_failure(text: str | None) -> bool:
    if text is None or text.startswith("^"):
        return text is not None
    try:
        Failure.from_json(text)
    except Exception:
        return False
    return True


def _when(micros: int | None) -> str | None:
    try:
        moment = to_datetime(micros)
    except OverflowError:
        return f"{micros} µs"
    return None if moment is None else moment.isoformat(timespec="seconds")


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.0f} KiB" if count < _MIB else f"{count / _MIB:,.0f} MiB"
