"""An app with a working worker on a real file, and the two questions of this folder: what is in the database now, and
does the worker still work?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hostile import LIMIT

import databases
from holdfast import Holdfast, Job, Run

#: Far more than anything here takes: who waits so long is stuck.
SECONDS = 60


class Bed:
    """An app, its file, and a job that always works."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.app = Holdfast(databases.url(path), max_input_bytes=LIMIT, max_output_bytes=LIMIT, cancel_grace=0.1)
        self.connection: databases.Shell | None = None

        @self.app.job(name="healthy")
        async def healthy(number: int) -> int:
            return number + 1

        self.healthy = healthy

    def ask(self, sql: str, *values: Any) -> list[Any]:
        if self.connection is None:
            self.connection = databases.Shell(self.path)
        return list(self.connection.execute(sql, values).fetchall())

    def rows(self) -> int:
        """How many runs there are in the database."""
        count: int = self.ask("select count(*) from holdfast_runs")[0][0]
        return count

    def end_of(self, run: Run[Any]) -> Run[Any]:
        return run.wait(SECONDS).wait()

    def check_worker(self) -> None:
        """The worker goes on, and nothing is stuck: no run is leased, none has a lease left."""
        assert self.healthy.run(1).wait(SECONDS) == 2
        left = self.ask("select job_name, status from holdfast_runs where completed_at is null and job_name != 'late'")
        assert left == []

    def ended(self, job: Job[..., Any], *args: Any) -> Run[Any]:
        """The run of this job with this input, ended; and the worker is well."""
        run = job.trigger_and_wait(*args).wait(SECONDS)
        self.check_worker()
        return run
