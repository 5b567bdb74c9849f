"""A house to move: a database with runs of every kind, and a job that writes down each effect."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import servers
from holdfast import Holdfast, Retry, SyncStep
from holdfast.model.step import StepRow
from holdfast.model.worker import CheckIn
from holdfast.store.base import ClaimOrder, StepSave, Tx
from holdfast.store.movable import TABLES, Table
from holdfast.store.move import Moved, move
from holdfast.store.sqlite import SqliteStore
from holdfast.testing.clock import HandClock

Place: TypeAlias = Path | str
"""A file, or the URL of a server's database."""

LONG = 60.0
HOUR = 3600
SECOND = 1_000_000


class House:
    """Two files, and an app with a job that writes down each effect, on a clock turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.old: Path = folder / "old.db"
        self.new: Path = folder / "new.db"
        self.effects = folder / "effects"
        self.clock = HandClock()
        self.apps: list[Holdfast] = []

    def store(self, place: Place) -> Any:
        if isinstance(place, Path):
            return SqliteStore(f"sqlite:///{place}", clock=self.clock, lock_timeout=0.05)
        if place.startswith("postgres"):
            from holdfast.store.postgres import PostgresStore

            return PostgresStore(place, clock=self.clock, lock_timeout=1)
        from holdfast.store.mysql import MysqlStore

        return MysqlStore(place, clock=self.clock, lock_timeout=1)

    def app(self, path: Place, **options: Any) -> Holdfast:
        app = Holdfast(self.store(path), clock=self.clock, **options)
        self.apps.append(app)

        @app.job(retry=Retry(1, delay="1h"))
        def work(step: SyncStep, name: str) -> str:
            step.progress(1, 2, "steps")
            step.run("first", self.effect, f"{name} first")
            step.log.info("half done", name=name)
            if name == "fails" and step.attempt == 0:
                raise ValueError(name)
            return step.run("second", self.effect, f"{name} second")

        return app

    def effect(self, name: str) -> str:
        with self.effects.open("a") as file:
            file.write(name + "\n")
        return name

    def fill(self) -> None:
        """Runs of every kind in the old house."""
        app = self.app(self.old)
        app.migrate().wait(LONG)

        def trigger(name: str, **options: Any) -> str:
            return str(app.jobs.work.options(**options).trigger(name).wait(LONG).id)

        trigger("ended", labels={"a": "ü '\"", "b": "2"}, idempotency_key="once")
        fails = trigger("fails")  # its second attempt is due in an hour
        app.process_until_idle().wait(LONG)
        app.cancel(trigger("cancelled", labels={"a": "x"})).wait(LONG)
        dies = trigger("dies", concurrency_key="one")
        self.die(dies)
        trigger("after it", concurrency_key="one")
        waits = trigger("later", delay="2h", deadline="30d")
        trigger("plain", priority=3)
        app.stop().wait(LONG)
        with closing(sqlite3.connect(self.old)) as connection, connection:
            connection.execute("insert into holdfast_waits values (?, 'w', 'signal', 17, 'ready', 5)", (waits,))
            connection.execute(
                "insert into holdfast_step_attempts values (?, 'first', 0, 0, 0, 0, 1, 3, 4, 'no')", (dies,)
            )
            connection.execute("insert into holdfast_signals values ('s1', ?, 'ready', null, '1', 6, null)", (fails,))
        self.apps.clear()

    def die(self, run_id: str) -> None:
        """A worker claims the run, executes its first step, and is never heard of again; its lease runs out."""
        self.effect("dies first")
        now = self.clock.now()
        step = StepRow(run_id, "first", 0, 0, "completed", 0, 1, None, '"dies first"', None, now, now)
        self.write(
            self.old,
            lambda store, tx: (
                store.check_in(tx, [CheckIn("dead", "far", 7, "[]", "[]", "1", 30 * SECOND)]),
                store.claim(tx, [ClaimOrder("dead", 1, 30 * SECOND, ("work",))]),
                store.save_steps(tx, [StepSave("dead", step)]),
            ),
        )
        self.clock.advance(31)

    def write(self, path: Place, work: Callable[[Any, Tx], object]) -> None:
        store = self.store(path)
        connection = store.connect()
        tx = store.begin(connection)
        work(store, tx)
        store.commit(tx)
        store.disconnect(connection)

    def move(self, **options: Any) -> Moved:
        return move(self.store(self.old), self.store(self.new), **options)

    def end_all(self, path: Place) -> Counter[str]:
        """Execute whatever is left; how often each effect happened, from the beginning."""
        app = self.app(path)
        for _ in range(4):
            app.process_until_idle().wait(LONG)
            self.clock.advance(HOUR + 60)
        statuses = Counter(str(run.status) for run in app.get_runs(limit=None).wait(LONG))
        assert statuses == {"completed": 6, "cancelled": 1}
        app.stop().wait(LONG)
        return Counter(self.effects.read_text().splitlines())

    def close(self) -> None:
        for app in self.apps:
            app.stop().wait(LONG)


#: Every effect of every run, but for the cancelled one, once. A failing attempt keeps its first step.
ONCE = Counter(f"{name} {step}" for name in ("ended", "fails", "dies", "after it", "later", "plain")
               for step in ("first", "second"))  # fmt: skip


def contents(place: Place) -> dict[str, list[Any]]:
    """All rows of all tables that move, as the database itself gives them."""
    return {table.name: [tuple(row) for row in ask(place, query(place, table))] for table in TABLES}


def query(place: Place, table: Table) -> str:
    quote = "`" if isinstance(place, str) and place.startswith("mysql") else '"'
    columns, key = (", ".join(f"{quote}{name}{quote}" for name in names) for names in (table.columns, table.key))
    return f"select {columns} from {table.name} order by {key}"


def ask(place: Place, sql: str) -> list[Any]:
    """Behind everybody's back."""
    if isinstance(place, str):
        found: list[Any] = servers.execute(place, sql)
        return found
    with closing(sqlite3.connect(place)) as connection, connection:
        return connection.execute(sql).fetchall()
