"""What is wrong with a database, found by looking only: `holdfast doctor`. What every kind of database is asked.

A dialect's own doctor (`sqlite_doctor`, `postgres_doctor`, `mysql_doctor`) adds what only it can be asked. The
questions are in queries/<dialect>/doctor.sql, those that all share under the same names with the same columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Literal, NamedTuple

from ..basis.clock import to_datetime
from ..basis.errors import HoldfastError, Outdated, ValidationError
from ..basis.failures import Failure
from ..basis.values import shape_of
from ..model.wait import WHICH
from ..model.worker import names_of, why_nobody_takes
from .base import Store
from .schema import AWAY

Level = Literal["ok", "warn", "fail"]

Find = Callable[..., list[Any]]
"""Gives the rows of the question of this name, for these values."""

#: Runs of which the texts are read; their steps, at most this many for each of them on average.
SAMPLE = 1000
STEPS_EACH = 10
#: Names that are written out; the rest is counted.
SHOWN = 5

_MIB = 1 << 20
_SECOND = 1_000_000
#: Clocks of several machines differ by this much without anybody being to blame.
CLOCKS_DIFFER = 5 * _SECOND
#: A lease that has just run out may be judged by a worker any moment now.
_GRACE = 60 * _SECOND
_LONG_LEASE = 86_400 * _SECOND
_LONG_WAIT = 3600 * _SECOND
#: A clock is asked this often: the quickest answer says most.
_CLOCK_ASKED = 5

_WORKERS = "docs/how-to/web-process-and-workers.md#the-worker"

_DOCTORS = {"SqliteStore": "sqlite_doctor", "PostgresStore": "postgres_doctor", "MysqlStore": "mysql_doctor"}


class Finding(NamedTuple):
    """One check and what came out. `advice` where there is something to do; `data` are the numbers, for programs."""

    check: str
    level: Level
    text: str
    advice: str = ""
    data: dict[str, Any] | None = None


def examine(store: Store) -> list[Finding]:
    """All findings, in the order in which they are worth reading. `StoreUnavailable` if there is no database.

    Checks that a sick database makes impossible are told as failed; the others are made all the same.
    """
    for kind in type(store).__mro__:
        if (name := _DOCTORS.get(kind.__name__)) is not None:
            found: list[Finding] = import_module(f".{name}", __package__).examine(store)
            return found
    raise ValidationError(f"{store.name}: there is no doctor for this kind of store.")


def tried(store: Store, name: str, check: Callable[[], Finding], advice: str = "") -> Finding:
    """What the check found; that it could not be made, if it could not."""
    try:
        return check()
    except Exception as error:
        return failed(name, store.translate(error), advice)


def failed(check: str, error: BaseException, advice: str = "") -> Finding:
    """A check that could not be made."""
    return Finding(check, "fail", error.message if isinstance(error, HoldfastError) else str(error), advice)


def tables(store: Store, version: int, newest: int, identity: Callable[[], str]) -> Finding:
    """Whether the tables are those that this code knows."""
    data: dict[str, Any] = {"version": version, "newest": newest}
    if version == 0:
        return Finding("tables", "fail", "there are no Holdfast tables", f"Run `holdfast migrate {store.name}`.", data)
    data["database_id"] = identity()
    text = f"version {version}, database {data['database_id']}"
    if version == AWAY:
        text = "this database was moved to another place, or a move into it is not complete"
        return Finding("tables", "fail", text, "`holdfast migrate` on it says which, and what to do.", data)
    if version < newest:
        advice = f"This code needs version {newest}. Run `holdfast migrate {store.name}`."
        return Finding("tables", "fail", text, advice, data)
    if version > newest:
        advice = f"This code knows version {newest} at most: upgrade the package."
        return Finding("tables", "fail", text, advice, data)
    return Finding("tables", "ok", text, data=data)


def skew(store: Any, theirs: Callable[[], int], what: str, advice: str) -> Finding:
    """How far the database's clock and ours are apart, as well as that can be known from here."""
    asked = []
    for _ in range(_CLOCK_ASKED):
        began, before = store.clock.steady(), store.clock.now()
        there = theirs()
        took = (store.clock.steady() - began) * _SECOND
        asked.append((took / 2, there - before - took / 2))
    unsure, ahead = min(asked)
    data = {"ahead_seconds": ahead / _SECOND, "unsure_seconds": unsure / _SECOND}
    side = "ahead of" if ahead >= 0 else "behind"
    text = f"{what} is {abs(ahead) / _SECOND:.3f} s {side} this machine's (± {unsure / _SECOND:.3f} s)"
    if abs(ahead) - unsure > CLOCKS_DIFFER:
        return Finding("clock skew", "warn", text, advice, data)
    return Finding("clock skew", "ok", text, data=data)


# -- the runs ------------------------------------------------------------------------------------------------------


def _statuses(_: int, find: Find) -> Finding:
    counts = dict(find("doctor_statuses"))
    text = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none yet"
    return Finding("runs", "ok", text, data=counts)


def _expired(now: int, find: Find) -> Finding:
    ((count, oldest),) = find("doctor_expired", now - _GRACE)
    data = {"count": count, "oldest": when(oldest)}
    if count:
        advice = (
            "They are taken over by the next worker that runs. Is one running that can reach this database? "
            f"See {_WORKERS}."
        )
        return Finding("expired leases", "warn", f"{count}, the oldest since {when(oldest)}", advice, data)
    return Finding("expired leases", "ok", "none", data=data)


def _oldest(now: int, find: Find) -> Finding:
    found = find("doctor_oldest_pending", now)
    if not found:
        return Finding("oldest pending run", "ok", "none waits")
    ((run_id, job, since),) = found
    data = {"run_id": run_id, "job_name": job, "since": when(since)}
    text = f"{run_id} ({job}), since {when(since)}"
    if now - since > _LONG_WAIT:
        advice = f"Is a worker running that knows the job {job!r}, in its queue? See {_WORKERS}."
        return Finding("oldest pending run", "warn", text, advice, data)
    return Finding("oldest pending run", "ok", text, data=data)


def _untaken(now: int, find: Find) -> Finding:
    waiting = find("doctor_due", now, SAMPLE)
    alive = [(names_of(jobs), names_of(queues)) for jobs, queues in find("doctor_alive", now)]
    left = [(count, job, queue, why) for queue, job, count in waiting if (why := why_nobody_takes(job, queue, alive))]
    data = {"untaken": [{"job_name": job, "queue": queue, "runs": count} for count, job, queue, _ in left]}
    if left:
        told = [f"{count} of {job} in the queue {queue} ({why})" for count, job, queue, why in left[:SHOWN]]
        more = [f"and of {len(left) - SHOWN} more jobs"] if len(left) > SHOWN else []
        advice = f"Start a worker whose program has these jobs, for these queues. See {_WORKERS}."
        return Finding("runs that nobody takes", "warn", "; ".join([*told, *more]), advice, data)
    text = f"none; {len(alive)} worker{'' if len(alive) == 1 else 's'} alive"
    return Finding("runs that nobody takes", "ok", text, data=data)


def _owners(_: int, find: Find) -> Finding:
    rows = find("doctor_owners", SAMPLE)
    data = {"workers": [{"id": owner, "runs": count, "until": when(until)} for owner, count, until in rows]}
    told = [f"{owner}: {count}, until {when(until)}" for owner, count, until in rows[:SHOWN]]
    more = [f"and {len(rows) - SHOWN} more workers"] if len(rows) > SHOWN else []
    return Finding("workers with leases", "ok", "; ".join([*told, *more]) or "none", data=data)


def _future(now: int, find: Find) -> Finding:
    ((ahead, newest, leases),) = find("doctor_future", now + CLOCKS_DIFFER, now + _LONG_LEASE)
    data = {"rows_of_the_future": ahead, "newest": when(newest), "long_leases": leases, "now": when(now)}
    if ahead or leases:
        text = f"{ahead} runs say that they were written later than now, {leases} leases end in more than a day"
        advice = "A clock was or is wrong, here or where they were written. Leases can't be judged until it is right."
        return Finding("clock", "warn", text, advice, data)
    return Finding("clock", "ok", f"nothing is of the future at {when(now)}", data=data)


def _readable(_: int, find: Find) -> Finding:
    runs = find("doctor_sample", SAMPLE)
    steps = find("doctor_sample_steps", SAMPLE, SAMPLE * STEPS_EACH)
    problems = [*_in_runs(runs), *_in_steps(steps)]
    looked = f"of the newest {len(runs)} runs and {len(steps)} of their steps"
    data = {"runs": len(runs), "steps": len(steps), "unreadable": problems[:SAMPLE]}
    if problems:
        shown = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if problems[SHOWN:] else "")
        advice = "Somebody has written into the tables. Such a run fails with Outdated; the others are not affected."
        return Finding("payloads", "warn", f"{looked} {len(problems)} texts can't be read: {shown}", advice, data)
    return Finding("payloads", "ok", f"{looked} all can be read (sealed ones are not opened)", data=data)


OF_RUNS: dict[str, Callable[[int, Find], Finding]] = {
    "runs": _statuses,
    "expired leases": _expired,
    "oldest pending run": _oldest,
    "runs that nobody takes": _untaken,
    "workers with leases": _owners,
    "clock": _future,
    "payloads": _readable,
}
"""What is asked about the runs, each with the database's time in microseconds."""


def _in_runs(rows: list[Any]) -> Iterator[str]:
    for run_id, labels, *payloads in rows:
        if not _is_object(labels):
            yield f"labels of {run_id}"
        for name, text in zip(("input", "output"), payloads, strict=True):
            if text is not None and not _is_payload(text):
                yield f"{name} of {run_id}"


def _in_steps(rows: list[Any]) -> Iterator[str]:
    for run_id, name, status, output, error in rows:
        fine = _is_failure(error) if status == "failed" else output is None or _is_which(output) or _is_payload(output)
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


def _is_which(text: str) -> bool:
    """Whether it says only which runs a wait was for."""
    return text.startswith(WHICH) and text.removeprefix(WHICH).isdecimal()


def _is_failure(text: str | None) -> bool:
    if text is None or text.startswith("^"):
        return text is not None
    try:
        Failure.from_json(text)
    except Exception:
        return False
    return True


# -- words ---------------------------------------------------------------------------------------------------------


def when(micros: int | None) -> str | None:
    """The moment as people read it; as a number where it is none."""
    try:
        moment = to_datetime(micros)
    except OverflowError:
        return f"{micros} µs"
    return None if moment is None else moment.isoformat(timespec="seconds")


def in_bytes(count: int) -> str:
    """So many bytes, as people read them."""
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.0f} KiB" if count < _MIB else f"{count / _MIB:,.0f} MiB"


def span(seconds: float) -> str:
    """So long, as people read it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"
