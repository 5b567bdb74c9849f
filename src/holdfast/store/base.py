"""What a store can do: the whole conversation with the database, in the words of the domain.

Every verb is plural (one is a list of one): it takes the open transaction and a list, and gives an answer for each
element, in order. So a round can serve a hundred callers with one statement. Verbs are plain data and SQL: they
call no user code, and running one twice does no harm, because the answer to a COMMIT can be lost:

* new rows are keyed by ids that the caller made, steps by (run, name, occurrence);
* what a lease holder writes is *fenced*: it counts only while `generation` and `lease_owner` are still its own;
* what anybody else writes is *guarded* by the status that it expects.

A lost race is an answer (False, None, or a row that says who won), never an exception. Exceptions mean that the
transaction must be rolled back: `StoreUnavailable` where the database itself is in trouble.

Reads take a connection of their own and may run beside the writer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..model.run import Disposition, NewRun, RunFilter, RunRow
from ..model.step import LogRow, ProgressRow, StepRow
from ..rules.lifecycle import Transition

STEP_PAGE = 100
"""Saved steps are loaded a hundred positions at a time, so that a run with 10,000 of them resumes in bounded memory."""


class Lease(NamedTuple):
    """The right of one worker to execute one run, until it is renewed, given back or lost."""

    run_id: str
    generation: int
    owner: str


class Renewal(NamedTuple):
    """Extend this lease to now + `duration` microseconds."""

    lease: Lease
    duration: int


class StepSave(NamedTuple):
    """A checkpoint by the holder of the run's lease.

    `moved_on` is set on the first one after a crash: the run's crash counter goes back to zero.
    """

    owner: str
    step: StepRow
    moved_on: bool = False


class LogSave(NamedTuple):
    """A log line by the holder of the run's lease."""

    owner: str
    line: LogRow


class ProgressSave(NamedTuple):
    """Progress by the holder of the run's lease."""

    owner: str
    row: ProgressRow


class Triggered(NamedTuple):
    """The run that a trigger led to, and whether the trigger made it."""

    run: RunRow
    disposition: Disposition


class ClaimOrder(NamedTuple):
    """Give this worker up to `limit` runs of these jobs from these queues."""

    owner: str
    limit: int
    lease: int
    jobs: tuple[str, ...]
    queues: tuple[str, ...] = ("default",)
    known: tuple[str, ...] | None = None
    """The runs that the worker holds. When the round is played again, others that are leased to it come from this very
    claim, whose answer was lost: they are put back first. None: not known, leave them."""


class Claimed(NamedTuple):
    """What a claim got. `next_due_at` is when the next delayed run wants to start, if one is waiting."""

    runs: list[RunRow]
    steps: dict[str, list[StepRow]]
    """By run that was executed before: the first page of saved steps, and the last one: it tells if there is more."""
    next_due_at: int | None


class Ending(NamedTuple):
    """How a lease holder lets go of its run."""

    lease: Lease
    transition: Transition
    output: str | None = None
    error: str | None = None
    error_type: str | None = None
    delay: int = 0
    """Microseconds until it may be claimed again, where the transition leads back to pending."""


class Ended(NamedTuple):
    """Whether the ending counted, and when the database says that it was."""

    accepted: bool
    at: int
    status: str | None
    """What the run is now; None if it is gone."""


class Cancelled(NamedTuple):
    """The row after a cancel, and what the run was before; no row if there is no such run."""

    run: RunRow | None
    previous: str | None
    accepted: bool


class Sweep(NamedTuple):
    """Take back leases that ran out, at most `limit`.

    Nothing is taken back if this transaction waited longer than `patience` seconds for the right to write: for as
    long, nobody could renew.
    """

    max_crashes: int
    limit: int = 100
    patience: float = 86400.0


class Recall(NamedTuple):
    """Take back what is leased to this owner, but for the runs that it knows of."""

    owner: str
    keep: tuple[str, ...]


@dataclass(slots=True)
class Tx:
    """An open write transaction. `now` is the database's time, read once the write lock was held."""

    connection: Any
    now: int
    waited: float = 0.0
    """Seconds that passed until the write lock was ours. While it was somebody else's, nobody could renew."""
    replay: bool = False
    """This round may have been committed before: its COMMIT gave no answer."""
    seen: dict[str, Any] = field(default_factory=dict)


class Store(ABC):
    """One database. Thread-safe as long as each connection is used by one thread at a time."""

    name: str
    """The URL without its secrets, for messages."""

    # -- connections -------------------------------------------------------------------------------------------

    @abstractmethod
    def connect(self, *, read_only: bool = False) -> Any:
        """A new connection. `StoreUnavailable` if the database can't be reached or opened."""

    def open(self, *, read_only: bool = False) -> Any:
        """A new connection to tables that are exactly those that this code knows; otherwise `SchemaError`."""
        connection = self.connect(read_only=read_only)
        try:
            self.check_schema(connection)
        except BaseException:
            self.disconnect(connection)
            raise
        return connection

    @abstractmethod
    def disconnect(self, connection: Any) -> None:
        """Close the connection. Never raises."""

    @abstractmethod
    def begin(self, connection: Any) -> Tx:
        """Open a write transaction; returns once the right to write is held."""

    @abstractmethod
    def commit(self, tx: Tx) -> None:
        """Make it durable: when this returns, it survives a power cut. After an error it may or may not have."""

    @abstractmethod
    def rollback(self, tx: Tx) -> None:
        """Undo it. Never raises."""

    def reset_after_fork(self) -> None:
        """In the child: locks may be held by threads that do not exist here."""
        return

    @abstractmethod
    def close(self) -> None:
        """Remove what belongs to this process only (the file of a temporary database)."""

    def translate(self, error: BaseException) -> BaseException:
        """What a driver's error means in our words; errors that are not the driver's come back as they are."""
        return error

    # -- schema ------------------------------------------------------------------------------------------------

    @abstractmethod
    def migrate(self) -> list[str]:
        """Create or upgrade the tables; the names of the migrations applied now. Safe to run from many processes.

        `SchemaError` if the tables are newer than this code.
        """

    @abstractmethod
    def check_schema(self, connection: Any) -> None:
        """`SchemaError` unless the tables are exactly those that this code knows."""

    @abstractmethod
    def database_id(self, connection: Any) -> str:
        """A random name given to the database when it was made; tells two files, or a file and its copy, apart."""

    # -- writes: fenced ----------------------------------------------------------------------------------------

    @abstractmethod
    def renew_leases(self, tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        """Extend leases; False where one is lost. One that ran out and that nobody took yet is extended."""

    @abstractmethod
    def save_logs(self, tx: Tx, lines: Sequence[LogSave]) -> list[None]:
        """Append log lines; those of runs that are no longer held are dropped."""

    @abstractmethod
    def save_progress(self, tx: Tx, rows: Sequence[ProgressSave]) -> list[None]:
        """Keep the progress of runs, the last one of each; of runs that are no longer held it is dropped."""

    @abstractmethod
    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        """Save checkpoints; False where the lease was lost or another execution has saved the step.

        A failed step may be replaced by a later attempt of its run, a completed one never.
        """

    @abstractmethod
    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        """Write how lease holders let go of their runs."""

    # -- writes: guarded ---------------------------------------------------------------------------------------

    @abstractmethod
    def cancel(self, tx: Tx, run_ids: Sequence[str]) -> list[Cancelled]:
        """Cancel runs that have not ended."""

    @abstractmethod
    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        """Write runs. One that may not stand beside another gives that one: "idempotent" if it has the idempotency
        key, "coalesced" if it is the never claimed run of the concurrency key.
        """

    @abstractmethod
    def expire(self, tx: Tx, sweeps: Sequence[Sweep]) -> list[list[RunRow]]:
        """Take back leases that ran out: to pending, or failed after too many crashes. The rows as they are now."""

    @abstractmethod
    def recall(self, tx: Tx, recalls: Sequence[Recall]) -> list[int]:
        """Put back to pending what was leased to a worker that doesn't know of it; how many."""

    @abstractmethod
    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        """Lease pending runs whose time has come: highest priority first, then oldest `run_at`, then id."""

    # -- reads -------------------------------------------------------------------------------------------------

    @abstractmethod
    def find_runs(self, connection: Any, filter: RunFilter) -> list[RunRow]:
        """Runs, newest first."""

    @abstractmethod
    def find_steps(self, connection: Any, run_id: str, *, first: int = 0, until: int | None = None) -> list[StepRow]:
        """Saved steps with first <= position < until, in order of position."""

    @abstractmethod
    def find_logs(self, connection: Any, run_id: str, *, after: int = 0, limit: int | None = None) -> list[LogRow]:
        """Log lines with id > after, in order of writing."""

    @abstractmethod
    def has_claimable(self, connection: Any, order: ClaimOrder) -> bool:
        """Whether a claim would find something now. Cheap, takes no lock, may be outdated at once."""

    @abstractmethod
    def lost_leases(self, connection: Any, leases: Sequence[Lease]) -> dict[Lease, str]:
        """Of these leases the lost ones, each with the status of its run now ("gone" if it is)."""

    @abstractmethod
    def ended(self, connection: Any, run_ids: Sequence[str]) -> dict[str, str]:
        """Of these runs those that have ended, each with its status ("gone" if there is no such run)."""

    @abstractmethod
    def change_mark(self, connection: Any) -> int | None:
        """A number that changes when any connection commits; None where the database has none."""
