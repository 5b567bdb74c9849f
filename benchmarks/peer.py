"""DBOS at the same work. Runs in a virtual environment of its own (see peers.py), so it imports nothing of ours.

    python peer.py fill|measure default|wal FILE WORK SIZE...           prints figures as JSON
    python peer.py fill|measure postgres postgresql://… WORK SIZE...

Everything DBOS answers is durable, as with us: SQLite's default journal syncs in full, and so does `wal`, which sets
`journal_mode=WAL` and `synchronous=FULL` on each connection by an event of SQLAlchemy. `SETTINGS` is what a competent
user would set, and where two settings were alike the better one of our trials; `--set NAME=VALUE` tries another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

import shared
import sqlalchemy
from dbos import DBOS, DBOSClient  # type: ignore[import-not-found]  # this runs in an environment of DBOS

SETTINGS: dict[str, float] = {
    "polling_interval_ms": 10,  # of the queue and of waiting for a result; DBOS's default is 1,000
    "worker_concurrency": 100,  # as ours; its default is none, and then all that is pending is claimed at once
    # SQLite has one writer: fewer connections and threads quarrel less, and use a third less processor time.
    "sys_db_pool_size": 4,  # its default is 20
    "max_executor_threads": 16,  # its default, 0: no limit
    "pool_pre_ping": 0,  # its default is 1: a ping before each use of a connection
}
#: What is better on PostgreSQL, which has many writers.
ON_POSTGRES = {"sys_db_pool_size": 20, "max_executor_threads": 0}
QUEUE = "bench"
VERSION = "1"
ENDED = "status not in ('ENQUEUED', 'PENDING', 'DELAYED')"

_calls = 0
_lock = threading.Lock()
_enough = threading.Event()
_wanted = sys.maxsize


def _count() -> None:
    global _calls
    with _lock:
        _calls += 1
        if _calls >= _wanted:
            _enough.set()


def _noop(number: int) -> int:
    _count()
    return number


def _step(number: int) -> int:
    return number


def _stepping(steps: int) -> int:
    for position in range(steps):
        step(position)
    _count()
    return steps


def _family(children: int) -> int:
    handles = [DBOS.enqueue_workflow(QUEUE, noop, number) for number in range(children)]
    return sum(handle.get_result(polling_interval_sec=_poll()) for handle in handles)


def _fan_out_started(children: int) -> int:
    handles = [DBOS.start_workflow(noop, number) for number in range(children)]
    return sum(handle.get_result(polling_interval_sec=_poll()) for handle in handles)


# Synchronous functions: DBOS runs them on threads, which was faster than coroutines in our trials.
step: Any = DBOS.step(name="step")(_step)
noop: Any = DBOS.workflow(name="noop")(_noop)
stepping: Any = DBOS.workflow(name="stepping")(_stepping)
family: Any = DBOS.workflow(name="family")(_family)
fan_out_started: Any = DBOS.workflow(name="fan_out_started")(_fan_out_started)


def _poll() -> float:
    return SETTINGS["polling_interval_ms"] / 1000


def _url(file: str) -> str:
    return file if "://" in file else f"sqlite:///{file}"


def _with_wal() -> None:
    def pragmas(connection: Any, _record: Any) -> None:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", pragmas)


def _configure(file: str, *, listen: bool, executor: str = "worker") -> None:
    config: dict[str, Any] = {
        "name": "bench",
        "system_database_url": _url(file),
        "application_version": VERSION,
        "executor_id": executor,
        "log_level": "ERROR",
        "sys_db_pool_size": int(SETTINGS["sys_db_pool_size"]),
        "db_engine_kwargs": {"pool_pre_ping": bool(SETTINGS["pool_pre_ping"])},
    }
    if SETTINGS["max_executor_threads"]:
        config["max_executor_threads"] = int(SETTINGS["max_executor_threads"])
    DBOS(config=config)
    DBOS.listen_queues([QUEUE] if listen else [])


def _register() -> None:
    limit = {"worker_concurrency": int(SETTINGS["worker_concurrency"])} if SETTINGS["worker_concurrency"] else {}
    DBOS.register_queue(QUEUE, polling_interval_sec=_poll(), on_conflict="always_update", **limit)


def _client(file: str) -> Any:
    return DBOSClient(system_database_url=_url(file), application_name="bench")


def _options(name: str) -> dict[str, str]:
    return {"queue_name": QUEUE, "workflow_name": name, "app_version": VERSION}


def _look(file: str) -> Any:
    """A connection that reads its tables."""
    if "://" in file:
        import psycopg

        return psycopg.connect(file, autocommit=True, options="-c search_path=dbos")
    return sqlite3.connect(file, timeout=30)


def _read(file: str, sql: str) -> int:
    with contextlib.closing(_look(file)) as connection:
        return int(connection.execute(sql).fetchone()[0])


def _all_ended(file: str) -> bool:
    return not _read(file, "select exists (select 1 from workflow_status where status in ('ENQUEUED', 'PENDING'))")


def _check(file: str, count: int, exact: bool = True) -> None:
    done = _read(file, "select count(*) from workflow_status where status = 'SUCCESS'")
    wrong = _read(file, f"select count(*) from workflow_status where {ENDED} and status <> 'SUCCESS'")
    assert not wrong, f"{wrong} runs of DBOS failed"
    assert done == count if exact else done >= count, f"{done:,} of {count:,} runs of DBOS have ended"


# -- what is there before a measurement ------------------------------------------------------------------------------


def _enqueue(file: str, name: str, arguments: list[int]) -> None:
    """By its own means, many in one transaction."""
    client = _client(file)
    engine = sqlalchemy.create_engine(_url(file).replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for number in arguments:
            client.enqueue_in_transaction(connection, _options(name), number)
    engine.dispose()
    client.destroy()


def _finished(file: str, count: int) -> None:
    """One run that DBOS has executed, and copies of its rows by SQL."""
    DBOS.enqueue_workflow(QUEUE, noop, 1).get_result(polling_interval_sec=0.01)
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as database:
        (original,) = database.execute("select workflow_uuid from workflow_status where status = 'SUCCESS'").fetchone()
        database.execute("create temp table copies as with recursive n (i) as (select 1 union all select i + 1 from n "
                         "where i < ?) select lower(hex(randomblob(16))) as id from n", (count - 1,))  # fmt: skip
        for table in ("workflow_status", "workflow_input", "workflow_output"):
            columns = [name for _, name, *_ in database.execute(f"pragma table_info({table})")]
            named = ", ".join(f'"{name}"' for name in columns if name != "workflow_uuid")
            database.execute(
                f"insert into {table} (workflow_uuid, {named}) select c.id, {named} from copies as c, {table} as t "
                "where t.workflow_uuid = ?",
                (original,),
            )
        database.commit()


def fill(file: str, work: str, *sizes: int) -> None:
    """Write what is there before: pending runs, and finished ones by SQL."""
    pending, finished = shared.filled(work, sizes)
    _configure(file, listen=bool(finished))
    DBOS.launch()
    _register()
    if finished:
        _finished(file, finished)
    if work == "checkpoints":
        _enqueue(file, "stepping", [sizes[1]] * pending)
    else:
        _enqueue(file, "noop", [*range(pending)])


def _until_enough(file: str) -> None:
    """Until the last call; after a minute without any, tell what is left. (Seen once: on a loaded machine, it hung.)"""
    known = -1
    while not _enough.wait(60):
        if known == _calls:
            with contextlib.closing(_look(file)) as connection:
                left = connection.execute("select status, count(*) from workflow_status group by 1").fetchall()
            raise TimeoutError(f"DBOS made no call for a minute; {_calls:,} of {_wanted:,} were made; {left}")
        known = _calls


# -- the works -------------------------------------------------------------------------------------------------------


def drain(file: str, runs: int, pending: int = 0, finished: int = 0) -> dict[str, float]:
    """Until that many of the pending runs have ended. The clock starts when DBOS has been launched."""
    global _wanted
    _wanted = runs
    used = time.process_time()
    _configure(file, listen=True)
    DBOS.launch()
    began = time.perf_counter()
    _until_enough(file)
    partly = pending > runs  # the last completions are not waited for, in its favour
    while not partly and not _all_ended(file):
        time.sleep(0.005)
    took = time.perf_counter() - began
    used = time.process_time() - used
    if not partly:
        _check(file, runs + finished)
    return {"rate": runs / took, "memory": shared.peak(), "cpu": used / runs * 1e6}


def checkpoints(file: str, runs: int, steps: int) -> dict[str, float]:
    """Runs of some steps, in steps a second."""
    figures = drain(file, runs)
    saved = _read(file, "select count(*) from operation_outputs")
    assert saved == runs * steps, f"{saved:,} of {runs * steps:,} steps of DBOS are there"
    return {"rate": figures["rate"] * steps, "cpu": figures["cpu"] / steps}


def triggers(file: str, runs: int) -> dict[str, float]:
    """One caller."""
    client = _client(file)
    began = time.perf_counter()
    for number in range(runs):
        client.enqueue(_options("noop"), number)
    took = time.perf_counter() - began
    assert _read(file, "select count(*) from workflow_status where status = 'ENQUEUED'") == runs
    return {"rate": runs / took}


def triggers_together(file: str, runs: int, callers: int = 100) -> dict[str, float]:
    """A hundred threads that enqueue one after the other."""
    client = _client(file)

    def caller(_: int) -> None:
        for number in range(runs // callers):
            client.enqueue(_options("noop"), number)

    with ThreadPoolExecutor(callers) as pool:
        began = time.perf_counter()
        list(pool.map(caller, range(callers)))
        took = time.perf_counter() - began
    assert _read(file, "select count(*) from workflow_status where status = 'ENQUEUED'") == runs // callers * callers
    return {"rate": runs // callers * callers / took}


def latency(file: str, runs: int, finished: int = 0) -> dict[str, float]:
    """From enqueueing to the result; and from starting it directly in this process, without the queue."""
    _configure(file, listen=True)
    DBOS.launch()

    def times(start: Callable[[int], Any]) -> list[float]:
        took, pauses = [], random.Random(1)
        for number in range(runs + 1):
            time.sleep(pauses.uniform(0, shared.PAUSE))
            began = time.perf_counter()
            assert start(number).get_result(polling_interval_sec=_poll()) == number
            took.append(time.perf_counter() - began)
        return took

    queued = times(lambda number: DBOS.enqueue_workflow(QUEUE, noop, number))
    direct = times(lambda number: DBOS.start_workflow(noop, number))
    _check(file, 2 * (runs + 1) + finished)
    return {**shared.percentiles(queued), "direct_p50": shared.percentiles(direct)["p50"]}


def apart(file: str, runs: int) -> dict[str, float]:
    """The same with the worker in another process."""
    with _workers(file, 1):
        client = _client(file)
        took, pauses = [], random.Random(1)
        for number in range(runs + 1):
            time.sleep(pauses.uniform(0, shared.PAUSE))
            began = time.perf_counter()
            assert client.enqueue(_options("noop"), number).get_result(polling_interval_sec=_poll()) == number
            took.append(time.perf_counter() - began)
    return shared.percentiles(took)


def family_(file: str, children: int) -> dict[str, float]:
    """One parent that enqueues its children and waits for each: children a second.

    Started in the parent's own process, without the queue, they were about 1.2 times as fast in our trials.
    """
    _configure(file, listen=True)
    DBOS.launch()
    began = time.perf_counter()
    total = DBOS.enqueue_workflow(QUEUE, family, children).get_result(polling_interval_sec=_poll())
    took = time.perf_counter() - began
    assert total == children * (children - 1) // 2
    _check(file, children + 1)
    return {"rate": children / took}


def fan_out(file: str, children: int) -> dict[str, float]:
    """A parent that waits for its children, in both ways that there are: children a second in the better one.

    `queued`: enqueued, as `family`; `started`: by `start_workflow`, in the parent's own process.
    """
    _configure(file, listen=True)
    DBOS.launch()

    def rate(handle: Callable[[], Any]) -> float:
        began = time.perf_counter()
        assert handle().get_result(polling_interval_sec=_poll()) == children * (children - 1) // 2
        return children / (time.perf_counter() - began)

    # The parent of both is started directly.
    rates = {
        "queued": rate(lambda: DBOS.start_workflow(family, children)),
        "started": rate(lambda: DBOS.start_workflow(fan_out_started, children)),
    }
    _check(file, 2 * (children + 1))
    return {"rate": max(rates.values()), **rates}


def idle(file: str, seconds: int, polling_ms: int = 0) -> dict[str, float]:
    """The part of one core that a worker uses while there is nothing to do, in percent."""
    if polling_ms:
        SETTINGS["polling_interval_ms"] = polling_ms
    _configure(file, listen=True)
    DBOS.launch()
    _register()
    DBOS.enqueue_workflow(QUEUE, noop, 1).get_result(polling_interval_sec=_poll())
    time.sleep(1)
    used = time.process_time()
    time.sleep(seconds)
    return {"percent": 100 * (time.process_time() - used) / seconds}


def workers(file: str, runs: int, processes: int) -> dict[str, float]:
    """Several worker processes on one file, from the word to go until all has ended."""
    with _workers(file, processes):
        began = time.perf_counter()
        while not _all_ended(file):
            time.sleep(0.01)
        took = time.perf_counter() - began
    _check(file, runs)
    return {"rate": runs / took}


def _workers(file: str, count: int) -> AbstractContextManager[None]:
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    command = [sys.executable, __file__, "worker", sys.argv[2], file, *settings]
    return shared.workers([[*command, f"--set=number={number}"] for number in range(count)])


def worker(file: str, number: int) -> None:
    """A worker process: works until it is killed."""
    _configure(file, listen=True, executor=f"worker {number}")
    shared.wait_for_the_word()
    DBOS.launch()
    threading.Event().wait()


def main() -> None:
    """One measurement, in this process. The threads of DBOS, idle ones too, are no daemons: it ends without them."""
    code = 0
    try:
        _main()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["fill", "measure", "worker", "versions"])
    parser.add_argument("mode", nargs="?", choices=["default", "wal", "postgres"], default="default")
    parser.add_argument("file", nargs="?", default="")
    parser.add_argument("work", nargs="?", default="")
    parser.add_argument("sizes", nargs="*", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args()
    changed = {name: float(value) for name, value in (text.split("=") for text in asked.set)}
    if asked.mode == "postgres":
        SETTINGS.update(ON_POSTGRES)
    SETTINGS.update({name: value for name, value in changed.items() if name in SETTINGS})
    if asked.mode == "wal":
        _with_wal()
    if asked.phase == "versions":
        print(json.dumps({
            "DBOS": version("dbos"), "SQLAlchemy": version("sqlalchemy"), "Python": platform.python_version(),
            "SQLite": sqlite3.sqlite_version, "settings": SETTINGS, "on PostgreSQL": ON_POSTGRES,
        }))  # fmt: skip
    elif asked.phase == "fill":
        fill(asked.file, asked.work, *asked.sizes)
        with contextlib.closing(_look(asked.file)) as database:
            database.execute("vacuum analyze" if "://" in asked.file else "pragma wal_checkpoint(truncate)")
    elif asked.phase == "worker":
        worker(asked.file, int(changed["number"]))
    else:
        work = {"family": family_}.get(asked.work) or globals()[asked.work]
        print(json.dumps(work(asked.file, *asked.sizes)))


if __name__ == "__main__":
    main()
