"""What tests of whole apps share: apps on one database, one after another, as before and after a crash."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import databases
from holdfast import Event, Holdfast, Run
from holdfast.store.base import Store

#: Seconds until a test that waits for something gives up. Never reached by a test that passes.
PATIENCE = 30.0


class House:
    """A database, and the apps that live in it. Its path is a file's where the database is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors: list[tuple[str, str]] = []
        """What `worker:error` told: context and text, of all apps."""

    @property
    def url(self) -> str:
        return databases.url(self.path)

    def app(self, *jobs: Any, store: Store | None = None, **options: Any) -> Holdfast:
        """An app on it, as another process would have it."""
        app = Holdfast(store or self.url, jobs=jobs, **options)
        app.on("worker:error", self._heard)
        return app

    def _heard(self, event: Event) -> None:
        self.errors.append((event.data["context"], event.data["error"]))

    def sql(self, text: str, *values: Any) -> list[Any]:
        """Look at the database, or prepare it, behind everybody's back."""
        return databases.rows(self.path, text, *values)

    def take_away(self, *, for_seconds: int = 0) -> None:
        """What the others do when a lease has run out: the run is pending again, its holder not yet told."""
        self.sql(
            "update holdfast_runs set status = 'pending', generation = generation + 1, crashes = crashes + 1, "
            "lease_owner = null, lease_expires_at = null, run_at = run_at + ?, due = ? where status = 'leased'",
            for_seconds * 1_000_000,
            for_seconds == 0,
        )

    def steps(self, columns: str = "name, occurrence, status") -> list[Any]:
        return self.sql(f"select {columns} from holdfast_steps order by position, name, occurrence")

    def status(self) -> list[str]:
        return [row[0] for row in self.sql("select status from holdfast_runs order by id")]

    async def crash(self, job: Any, stuck: Stuck, *args: Any) -> str:
        """A run of which an execution came as far as `stuck`, and died there."""
        app = self.app(job)
        await app.init()
        run = await app.get_job(job.name).trigger(*args)
        await stuck.came()
        self.take_away(for_seconds=1000)  # this worker shall not be the one that takes it again
        await app.stop(timeout=0)
        self.sql("update holdfast_runs set run_at = created_at, due = 1")
        stuck.let_go()
        return str(run.id)

    async def resume(self, job: Any, run_id: str, **options: Any) -> Run[Any]:
        """The run, executed to its end by another app."""
        async with self.app(job, **options) as app:
            return await app.wait_for_run(run_id, timeout=PATIENCE)


class Stuck:
    """A step's function that hangs when it is called for the first time, and gives what it was given later."""

    def __init__(self) -> None:
        self.calls = 0
        self.is_there = threading.Event()
        self.may_go = threading.Event()

    async def hang(self, value: Any = None) -> Any:
        self.calls += 1
        if self.calls == 1:
            self.is_there.set()
            await asyncio.to_thread(self.may_go.wait, PATIENCE)
        return value

    def hang_sync(self, value: Any = None) -> Any:
        self.calls += 1
        if self.calls == 1:
            self.is_there.set()
            self.may_go.wait(PATIENCE)
        return value

    async def came(self) -> None:
        assert await asyncio.to_thread(self.is_there.wait, PATIENCE)

    def let_go(self) -> None:
        self.may_go.set()


async def until(told: Any) -> None:
    """Wait until `told()` is true, looking again whenever the loop has turned."""
    async with asyncio.timeout(PATIENCE):
        while not told():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.001)
