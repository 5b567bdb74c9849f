"""Where the promises of a store are tried: a fresh store, a clock turned by hand, and short words for long calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...model.run import NewRun, RunFilter, RunRow, RunStatus
from ...model.step import AttemptRow, LogRow, ProgressRow, StepRow
from ...rules.lifecycle import TABLE, Cause
from ...store.base import (
    AttemptSave,
    Cancelled,
    Claimed,
    ClaimOrder,
    Ended,
    Ending,
    Lease,
    LogSave,
    ProgressSave,
    Renewal,
    StepSave,
    Store,
    Sweep,
    Triggered,
    Tx,
)
from ..clock import HandClock

SECOND = 1_000_000
LEASE = 30 * SECOND

#: Texts that break stores which glue SQL together, count bytes as characters or fold case.
HOSTILE = (
    "'; drop table holdfast_runs; --",
    "\"double\" and 'single' and `back` and [square]",
    "%s %(name)s ? ?1 :name @name $1 {0} {{}} \\",
    "back\\slash \\u0000 \\n \\\\u0000",
    "line\nfeed\r\ntab\tbell\x07escape\x1b",
    "emoji 🧗‍♀️ and ümläut and 漢字 and \u202eright to left",
    "combined e\u0301 is not composed \u00e9",
    " spaces at both ends ",
    "null",
    "0x10",
    "1e3",
    "\ufeffbom and \uffff and \U0010ffff",
    "n" * 10_240,
)

#: The same for ids, names, keys and labels. None that is longer reaches a store, and some could not index it.
NAMES = tuple(text[:255] for text in HOSTILE)


class StoreBench:
    """Subclasses say how a fresh store is made; pytest calls the rest."""

    store: Store
    clock: HandClock
    connection: Any

    def make_store(self, clock: HandClock) -> Store:
        """A store of a database that has no tables yet."""
        raise NotImplementedError

    def force_status(self, connection: Any, run_id: str, status: str) -> None:
        """Put a run into a status that no verb leads to yet. Only called outside transactions."""
        raise NotImplementedError

    def setup_method(self) -> None:
        self.clock = HandClock()
        self.store = self.make_store(self.clock)
        self.store.migrate()
        self.connection = self.store.connect()
        self._count = 0

    def teardown_method(self) -> None:
        self.store.disconnect(self.connection)
        self.store.close()

    # -- transactions ------------------------------------------------------------------------------------------

    @contextmanager
    def tx(self, *, replay: bool = False) -> Iterator[Tx]:
        tx = self.store.begin(self.connection)
        tx.replay = replay
        try:
            yield tx
        except BaseException:
            self.store.rollback(tx)
            raise
        self.store.commit(tx)

    def do(self, verb: str, rows: Sequence[Any], *, replay: bool = False) -> list[Any]:
        """One verb in a transaction of its own."""
        with self.tx(replay=replay) as tx:
            answers: list[Any] = getattr(self.store, verb)(tx, rows)
        return answers

    # -- rows --------------------------------------------------------------------------------------------------

    def new(self, job: str = "job", input: str = '{"a":1}', **values: Any) -> NewRun:
        """A run to be written; ids grow with each call."""
        self._count += 1
        return NewRun(**{"id": f"{self._count:026d}", "job_name": job, "input": input, **values})

    def trigger(self, job: str = "job", **values: Any) -> str:
        answer: Triggered = self.do("trigger", [self.new(job, **values)])[0]
        assert answer.disposition == "created"
        return answer.run.id

    def order(self, *jobs: str, owner: str = "worker", limit: int = 100, **values: Any) -> ClaimOrder:
        return ClaimOrder(owner, limit, values.pop("lease", LEASE), jobs or ("job",), **values)

    def claim(self, *jobs: str, **values: Any) -> list[RunRow]:
        claimed: Claimed = self.do("claim", [self.order(*jobs, **values)])[0]
        return claimed.runs

    def lease(self, job: str = "job", *, owner: str = "worker", **values: Any) -> Lease:
        """A fresh run, claimed."""
        run_id = self.trigger(job, **values)
        return self.lease_of(run_id, self.claim(job, owner=owner), owner)

    def lease_of(self, run_id: str, claimed: Sequence[RunRow], owner: str = "worker") -> Lease:
        return next(Lease(run.id, run.generation, owner) for run in claimed if run.id == run_id)

    def step(self, lease: Lease, name: str = "step", occurrence: int = 0, **values: Any) -> StepSave:
        moved_on = values.pop("moved_on", False)
        now = self.clock.now()
        row = {
            "position": 0,
            "status": "completed",
            "attempt": 0,
            "generation": lease.generation,
            "fingerprint": None,
            "output": '"value"',
            "error": None,
            "started_at": now,
            "completed_at": now,
            **values,
        }
        return StepSave(lease.owner, StepRow(lease.run_id, name, occurrence, **row), moved_on)

    def attempt(
        self, lease: Lease, number: int = 0, name: str = "step", occurrence: int = 0, **values: Any
    ) -> AttemptSave:
        """A try that has begun; with `error`, one that has failed."""
        now = self.clock.now()
        row = {
            "run_attempt": 0,
            "position": 0,
            "generation": lease.generation,
            "started_at": now,
            "ended_at": now if "error" in values else None,
            "error": None,
            **values,
        }
        return AttemptSave(lease.owner, AttemptRow(lease.run_id, name, occurrence, number=number, **row))

    def line(self, lease: Lease, message: str = "message", **values: Any) -> LogSave:
        row = {"step_name": None, "level": "info", "data": None, "created_at": self.clock.now(), **values}
        return LogSave(lease.owner, LogRow(0, lease.run_id, lease.generation, message=message, **row))

    def progress(self, lease: Lease, text: str = '{"current":1}') -> ProgressSave:
        return ProgressSave(lease.owner, ProgressRow(lease.run_id, lease.generation, text))

    def ending(self, lease: Lease, cause: Cause = Cause.COMPLETE, **values: Any) -> Ending:
        return Ending(lease, TABLE[cause], **values)

    def finish(self, lease: Lease, cause: Cause = Cause.COMPLETE, *, replay: bool = False, **values: Any) -> Ended:
        ended: Ended = self.do("finish", [self.ending(lease, cause, **values)], replay=replay)[0]
        return ended

    def cancel(self, run_id: str, *, replay: bool = False) -> Cancelled:
        cancelled: Cancelled = self.do("cancel", [run_id], replay=replay)[0]
        return cancelled

    def expire(self, max_crashes: int = 5, limit: int = 100) -> list[RunRow]:
        rows: list[RunRow] = self.do("expire", [Sweep(max_crashes, limit)])[0]
        return rows

    def crash(self, lease: Lease) -> None:
        """The worker dies: its lease runs out and is taken back."""
        self.clock.advance(LEASE / SECOND)
        assert lease.run_id in [row.id for row in self.expire()]

    # -- questions ---------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> RunRow:
        found = self.store.find_runs(self.connection, RunFilter(ids=(run_id,)))
        assert len(found) == 1
        return found[0]

    def runs(self, **values: Any) -> list[str]:
        return [row.id for row in self.store.find_runs(self.connection, RunFilter(**values))]

    def steps(self, run_id: str) -> list[str]:
        return [row.name for row in self.store.find_steps(self.connection, run_id)]

    def attempts(self, run_id: str) -> list[tuple[str, int, int, bool]]:
        """Name, attempt of the run, number, whether it has ended."""
        found = self.store.find_attempts(self.connection, run_id)
        return [(row.name, row.run_attempt, row.number, row.ended_at is not None) for row in found]

    def tries(self, run_id: str, run_attempt: int = 0) -> dict[str, int]:
        found = self.store.failed_tries(self.connection, run_id, run_attempt)
        return {str(key): tries.failed for key, tries in found.items()}

    def messages(self, run_id: str) -> list[str]:
        return [row.message for row in self.store.find_logs(self.connection, run_id)]

    def everything(self) -> list[Any]:
        """All that can be read, for comparing before with after."""
        runs = self.store.find_runs(self.connection, RunFilter())
        return [
            runs,
            [self.store.find_steps(self.connection, run.id) for run in runs],
            [self.store.find_attempts(self.connection, run.id) for run in runs],
            [self.store.find_logs(self.connection, run.id) for run in runs],
            [self.store.find_waits(self.connection, run.id) for run in runs],
        ]

    # -- situations --------------------------------------------------------------------------------------------

    def run_in(self, status: RunStatus) -> Lease:
        """A run in that status, and the lease that was last given for it (or would be the first)."""
        if status is RunStatus.PENDING:
            return Lease(self.trigger(), 1, "worker")
        if status is RunStatus.FINALIZE_FAILED:
            lease = Lease(self.trigger(), 1, "worker")
            self.force_status(self.connection, lease.run_id, status)
            return lease
        lease = self.lease()
        cause = {
            RunStatus.WAITING: Cause.SUSPEND,
            RunStatus.COMPLETED: Cause.COMPLETE,
            RunStatus.FAILED: Cause.FAIL,
            RunStatus.TIMED_OUT: Cause.TIME_OUT,
            RunStatus.CANCELLED: Cause.CANCEL_ITSELF,
        }.get(status)
        if cause is not None:
            assert self.finish(lease, cause).accepted
        assert self.run(lease.run_id).status == status
        return lease

    def lost_leases(self) -> dict[str, Lease]:
        """Leases that no longer count, each lost in another way."""
        expired = self.lease("expired")
        self.crash(expired)
        stale = self.lease("stale")
        self.crash(stale)
        assert self.claim("stale")
        cancelled = self.lease("cancelled")
        self.cancel(cancelled.run_id)
        finished = self.lease("finished")
        self.finish(finished)
        released = self.lease("released")
        self.finish(released, Cause.RELEASE)
        foreign = self.lease("foreign")._replace(owner="somebody else")
        never = Lease(self.trigger("never"), 1, "worker")
        return {
            "stale": stale,
            "expired": expired,
            "cancelled": cancelled,
            "finished": finished,
            "released": released,
            "foreign": foreign,
            "never": never,
            "future": self.lease("future")._replace(generation=2),
            "gone": Lease("no such run", 1, "worker"),
        }

    def renewal(self, lease: Lease, duration: int = LEASE) -> Renewal:
        return Renewal(lease, duration)
