"""How many bytes a run, a step, a log line and a label take in a database, with their indexes.

    python benchmarks/sizes.py URL [runs]

URL is an empty database of any kind (sqlite:///sizes.db, postgresql://…, mysql://…). The figures stand on
docs/how-to/sizing.md. Work is done in ten parts, and space that was freed is made ready for use after each (`vacuum`):
so the figures are those of a database whose autovacuum keeps pace. Payloads are as small as they can be; yours come on
top.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from holdfast import Holdfast, SyncStep
from holdfast.store.base import Store

PARTS = 10
MANY = 10


def measured(url: str, runs: int = 10_000) -> dict[str, float]:
    """Bytes of each kind of row: what the database grew by, by how many of them there are."""
    app = Holdfast(url, preserve_steps=True, concurrency=100)

    @app.job
    def bare() -> None: ...

    @app.job
    def steps(step: SyncStep) -> None:
        for _ in range(MANY):
            step.run("step", int)

    @app.job
    def logs(step: SyncStep) -> None:
        for _ in range(MANY):
            step.log.info("a line")

    app.migrate().wait()
    store = app._engine.store
    connection = store.connect()
    size = _size(store, connection)
    # The tables of an empty database have their first pages already; they are filled before anything is counted.
    _work(app, bare, runs // PARTS, {})
    grown: dict[str, float] = {}
    before = size()
    for name, job, labels in (
        ("run", bare, {}),
        ("step", steps, {}),
        ("log line", logs, {}),
        ("label", bare, {f"key-{n}": f"value-{n}" for n in range(MANY)}),
    ):
        for _ in range(PARTS):
            _work(app, job, runs // PARTS, labels)
            size()
        after = size()
        grown[name] = (after - before) / runs
        before = after
    store.disconnect(connection)
    app.stop().wait()
    run = grown["run"]
    return {name: each if name == "run" else (each - run) / MANY for name, each in grown.items()}


def _work(app: Holdfast, job: Any, runs: int, labels: dict[str, str]) -> None:
    app.trigger_many([job.options(labels=labels).bind() for _ in range(runs)]).wait()
    app.process_until_idle().wait()


def _size(store: Store, connection: Any) -> Callable[[], int]:
    """Gives the bytes in use, and makes freed space ready for use."""
    kind = type(store).__name__
    if kind == "PostgresStore":
        return lambda: _in_postgres(connection)
    if kind == "MysqlStore":
        return lambda: _in_mariadb(connection)
    # Pages in use: the file may be ahead of what is in it.
    return lambda: math.prod(connection.execute(f"pragma {what}").fetchone()[0] for what in ("page_count", "page_size"))


def _in_postgres(link: Any) -> int:
    ours = "from pg_class where relkind = 'r' and relname like 'holdfast%'"
    tables = link.execute(f"select oid::regclass::text {ours}").fetchall()
    link.execute("vacuum analyze " + ", ".join(name for (name,) in tables))
    return int(link.execute(f"select sum(pg_total_relation_size(oid)) {ours}").fetchone()[0])


def _in_mariadb(link: Any) -> int:
    """Reserved space, a megabyte and more at a time for each index: only 100,000 runs and more say something."""
    ours = "from information_schema.tables where table_schema = database()"
    link.ask("analyze table " + ", ".join(name for (name,) in link.ask(f"select table_name {ours}")))
    return int(link.ask(f"select sum(data_length + index_length) {ours}")[0][0])


def main() -> None:
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    for name, size in measured(sys.argv[1], runs).items():
        print(f"{name:<10}{size:>8.0f} bytes")


if __name__ == "__main__":
    main()
