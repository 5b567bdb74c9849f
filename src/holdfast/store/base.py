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

Long because the whole conversation is here, with what each word of it promises: an author of a store reads one file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from pydantic_core import from_json

from ..basis.errors import ConflictError, StoreUnavailable, ValidationError
from ..basis.text import shown
from ..model.run import Disposition, NewRun, RunFilter, RunRow
from ..model.step import AttemptRow, LogRow, ProgressRow, StepKey, StepRow, Tries
from ..model.wait import NewSignal, WaitRow
from ..model.worker import CheckIn, WorkerRow
from ..rules.lifecycle import Transition
from .watch import Watch

Dialect: TypeAlias = Literal["sqlite", "postgres", "mysql"]

LEASES_REMEMBERED = 10
"""A worker that was not seen for so many of its leases is forgotten."""

SIGNALS_UNREAD = 1000
"""So many signals may wait in one run."""

STEP_PAGE = 100
"""Saved steps are loaded a hundred positions at a time, so that a run with 10,000 of them resumes in bounded memory."""


class PlayAgain(StoreUnavailable):
    """The database undid the transaction for somebody else's sake: a deadlock, a serialization failure."""


class Undone(Exception):
    """Instead of an answer to COMMIT: it was not come to, nothing of the transaction has happened. The cause says why.

    `elsewhere`: over another connection it may be possible.
    """

    def __init__(self, *, elsewhere: bool = False) -> None:
        super().__init__()
        self.elsewhere: bool = elsewhere


#: Instead of an answer, where somebody is patient (`Tx.patient`): nothing was done for this row, because that takes
#: more than one statement. It is to be asked for again, in a transaction of its own.
LATER: Any = object()


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
    ends_wait: bool = False
    """It is what the wait of its key was for: that is dropped."""


class WaitSave(NamedTuple):
    """Something that a run waits for, by the holder of its lease, and the runs below it that it waits for.

    `wait.until` is a fixed time; otherwise it is the database's now plus `delay`, where one is given.
    """

    owner: str
    generation: int
    wait: WaitRow
    delay: int | None = None
    children: tuple[NewRun, ...] = ()


class Take(NamedTuple):
    """Take the oldest signal of this name for a wait, by the holder of the lease.

    Saved as `step`, with the signal's value as its output. If there is none and the time of the wait is over, `late` is
    saved.
    """

    owner: str
    signal: str
    step: StepRow
    late: StepRow | None = None
    moved_on: bool = False


class Taken(NamedTuple):
    """What a wait for a signal came to: its value; "late"; "nothing", so wait on; or "lost", like the lease."""

    status: Literal["taken", "late", "nothing", "lost"]
    output: str | None = None


class Sent(NamedTuple):
    """What became of a signal.

    "again": one with its key was there. "full", "ended", "gone": it was not written, because its run is so.
    """

    status: Literal["sent", "again", "full", "ended", "gone"]
    run_status: str | None = None


class AttemptSave(NamedTuple):
    """A try of a step, begun or ended, by the holder of the run's lease."""

    owner: str
    attempt: AttemptRow


class LogSave(NamedTuple):
    """A log line by the holder of the run's lease."""

    owner: str
    line: LogRow
    again: bool = False
    """It was sent before, and whether that counted is not known."""


class ProgressSave(NamedTuple):
    """Progress by the holder of the run's lease."""

    owner: str
    row: ProgressRow


class Triggered(NamedTuple):
    """The run that a trigger led to, and whether the trigger made it."""

    run: RunRow
    disposition: Disposition | Literal["conflict"]
    """"conflict": nothing was written, `run` is the one in the way: never claimed, of the same job and concurrency key.
    """

    @property
    def accepted(self) -> Disposition:
        """The disposition of what was not refused; else `ConflictError`."""
        if self.disposition == "conflict":
            raise ConflictError(conflict_text(self.run))
        return self.disposition


def conflict_in(answers: Sequence[Triggered]) -> int | None:
    """Which of a batch was refused; None if all were written."""
    return next((index for index, made in enumerate(answers) if made.disposition == "conflict"), None)


def conflict_text(standing: RunRow) -> str:
    """Why a trigger was refused because of this run, and what to do about it."""
    return (
        f"A pending run already exists for concurrency key {shown(standing.concurrency_key)} in job "
        f'{standing.job_name!r}. Use coalesce="skip" to get the existing run instead.'
    )


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
    limits: tuple[tuple[str, int], ...] = ()
    """Of these jobs no more than so many leased in the whole database, over all workers and queues."""


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
    keyed: bool = True
    """False: the run has no concurrency key, and no run above it, so nobody need look whether it has."""
    waiting_for: str | None = None
    """Where the transition leads to waiting."""
    used: int = 0
    """Microseconds that the attempt has run so far, where it will go on."""
    holds: bool = False
    """A run that waits keeps its concurrency key."""


class Ended(NamedTuple):
    """Whether the ending counted, and when the database says that it was."""

    accepted: bool
    at: int
    status: str | None
    """What the run is now; None if it is gone. A run that wanted to wait may be pending at once."""
    leaves: bool = False
    """There may be runs below it that are to be cancelled."""


class Cancelled(NamedTuple):
    """The row after a cancel, and what the run was before; no row if there is no such run."""

    run: RunRow | None
    previous: str | None
    accepted: bool


def the_first_counts(answers: Iterable[Cancelled]) -> list[Cancelled]:
    """Of several cancels of one run in one call the first has done it, and the others come after that.

    Otherwise each of them would tell everybody that the run was cancelled.
    """
    done: set[str] = set()
    told = []
    for answer in answers:
        again = answer.accepted and answer.run is not None and answer.run.id in done
        told.append(answer._replace(previous="cancelled", accepted=False) if again else answer)
        if answer.accepted and answer.run is not None:
            done.add(answer.run.id)
    return told


class Sweep(NamedTuple):
    """Take back leases that ran out, at most `limit`.

    Nothing is taken back if this transaction waited longer than `patience` seconds for the right to write: for as
    long, nobody could renew.
    """

    max_crashes: int
    limit: int = 100
    patience: float = 86400.0


class Followed(NamedTuple):
    """How a run stands, for whoever watches it: nothing large, whatever its payloads are."""

    status: str
    generation: int
    lease_owner: str | None
    lease_expires_at: int | None
    progress: str | None
    last_log: int
    """The id of its last log line; 0 without one."""


class Passing(NamedTuple):
    """A run for those who look at all runs: nothing large."""

    id: str
    job_name: str
    status: str
    lease_owner: str | None
    created_at: int
    labels: str
    """As JSON."""


class StepMark(NamedTuple):
    """That a step is saved, and by which lease; not what it came to."""

    run_id: str
    name: str
    occurrence: int
    position: int
    generation: int


class Recall(NamedTuple):
    """Take back what is leased to this owner, but for the runs that it knows of."""

    owner: str
    keep: tuple[str, ...]


#: What stands against a deletion that is only too large for one round.
MORE = "more"


class Deleted(NamedTuple):
    """Whether the run is gone by this, with what is told of it.

    Otherwise `standing` says what stood against it: its status, "child" (it goes with its tree) or "parent" (a run
    below it has not ended); `MORE`: a part of its tree is gone, ask again; None: there is no such run. When a round is
    played again, a run that is not there was deleted by the first playing, and nothing is known of it any more.
    """

    accepted: bool
    standing: str | None = None
    job_name: str | None = None
    labels: str = "{}"
    generation: int = 0

    @property
    def label_map(self) -> dict[str, str]:
        """The labels, decoded; none if somebody has spoiled them by hand."""
        try:
            return dict(from_json(self.labels))
        except ValueError:
            return {}


class Old(NamedTuple):
    """Ended runs that may be forgotten: those whose whole tree ended before `before`, the oldest end first.

    Empty filters mean: any.
    """

    before: int
    limit: int = 100
    weight: int = 5_000
    """So many steps, tries and log lines may they have together; then the first of them are given, at least one."""
    jobs: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    outputs: bool = False
    """Only those that still have the outputs of their steps."""


@dataclass(slots=True)
class Tx:
    """An open write transaction. `now` is the database's time, read once the write lock was held."""

    connection: Any
    now: int
    waited: float = 0.0
    """Seconds that passed until the write lock was ours. While it was somebody else's, nobody could renew."""
    replay: bool = False
    """This round may have been committed before: its COMMIT gave no answer."""
    lent: bool = False
    """It is the transaction of a caller, who commits it some time."""
    begun: bool = True
    """Whether the database has said so. Before that nobody knows how long it was waited for."""
    patient: bool = False
    """Nobody looks at the answers of verbs before the commit, and some of them may be `LATER`."""
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def instant(self) -> Any:
        """`now`, as a value for a statement. A store may know it before we do."""
        return self.now

    @property
    def told(self) -> int | None:
        """`now`, if it is known by now."""
        return self.now


class LentTransaction(ABC):
    """A transaction that the caller has open on a connection of its own, and lets us write into."""

    dialect: ClassVar[Dialect]
    alone: ClassVar[bool] = False
    """Whether nobody else can write anything while it is open."""

    @abstractmethod
    def is_over(self) -> bool:
        """Whether it has certainly ended, or been forgotten by its owner. Any thread, cheap."""

    def uncommitted(self, run_ids: Iterable[str]) -> set[str]:
        """Of these runs those that may be in it, and that nobody else sees. Only in the thread of the connection."""
        return set(run_ids)

    @abstractmethod
    def is_same(self, other: LentTransaction) -> bool:
        """Whether both are of one connection."""


class SharedTransaction(ABC):
    """A write transaction of ours, on a connection of its own, that a function of the user's writes into as well.

    Whatever the function does with `connection`: to end the transaction is ours.
    """

    tx: Tx
    connection: Any
    """What the function gets: a connection of the driver."""

    @abstractmethod
    def take_back(self) -> None:
        """The function has returned: nothing that it left behind reaches this any more. In the thread that commits.

        `DefinitionError` if the transaction was ended by a statement of the function's.
        """

    def excuse(self, error: Exception) -> StoreUnavailable | None:  # noqa: ARG002 - for servers
        """What this error of the function's means, if neither the function nor what it wrote is to blame: the database
        undid it for somebody else's sake, or was lost. Then the function is called again, in a new transaction.
        """
        return None

    @abstractmethod
    def stop(self) -> None:
        """Undo it under the function's hands, at once: what it does there from now on fails, and others may write.

        Called instead of `take_back`, by any thread. Never raises.
        """

    @abstractmethod
    def commit(self) -> None:
        """As `Store.commit`: after an error it may or may not have happened. `DefinitionError`: it has not."""

    @abstractmethod
    def close(self) -> None:
        """Undo what was not committed, and close the connection. Never raises."""


class Store(ABC):
    """One database. Thread-safe as long as each connection is used by one thread at a time."""

    name: str
    """The URL without its secrets, for messages."""
    tells_time: bool = False
    """Whether the time of its transactions is a server's. Otherwise it is that of `clock`."""
    locks: bool = False
    """Whether `lock` does anything. Otherwise nobody else can write while a write transaction is open."""
    needs_upkeep: bool = False
    """Whether `upkeep` has something to do that can't wait for an idle moment. Looked at after every round."""

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

    def confirm(self, connection: Any) -> None:  # noqa: ARG002 - for those stores that have files
        """`StoreUnavailable` if this connection no longer leads to the database (its file was replaced). Cheap."""
        return

    @abstractmethod
    def begin(self, connection: Any) -> Tx:
        """Open a write transaction; returns once the right to write is held."""

    def lock(self, tx: Tx, batches: Mapping[str, Sequence[Any]]) -> None:  # noqa: ARG002 - for several writers
        """Called before the verbs of a round, with all of its rows by verb: everything that they may wait for.

        A store with several writers at a time locks here, always in the same order, what these rows are about, and
        reads `tx.now` once it has all of it. After that no verb waits for anybody who may wait for it.
        """
        return

    def begin_round(self, connection: Any, batches: Mapping[str, Sequence[Any]], *, replay: bool = False) -> Tx:
        """`begin` and `lock`, for a round of these rows. What its first verb asks may be what begins it in truth."""
        tx = self.begin(connection)
        tx.replay = replay
        try:
            if self.locks:
                self.lock(tx, batches)
        except BaseException:
            self.rollback(tx)
            raise
        return tx

    @abstractmethod
    def commit(self, tx: Tx) -> None:
        """Make it durable: when this returns, it survives a power cut. After an error it may or may not have, but for
        `Undone`.

        With `Tx.patient` verbs may be asked only now, with it, and their answers are known when this has returned.
        """

    @abstractmethod
    def rollback(self, tx: Tx) -> None:
        """Undo it. Never raises."""

    def share(self) -> SharedTransaction:
        """Begin a write transaction on a new connection, for a step that writes rows of the user's.

        Returns once the right to write is held. `ValidationError` where a store has none that can be shared.
        """
        raise ValidationError(f"step.transaction: {self.name} has no transaction that a function could write into.")

    def upkeep(self, connection: Any, *, idle: bool = False) -> bool:  # noqa: ARG002 - the same
        """Look after what the database keeps beside its tables, between two rounds, over the writing connection.

        Called when `needs_upkeep` says so; with `idle`, when nobody waits. False: it could not be finished, try again
        sooner. Errors are reported and change nothing for anybody.
        """
        return True

    @contextmanager
    def moment(self, connection: Any) -> Iterator[None]:  # noqa: ARG002 - for stores with transactions
        """Within it all reads of a reading connection see the same moment. What it raises is the driver's."""
        yield

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
    def save_attempts(self, tx: Tx, saves: Sequence[AttemptSave]) -> list[bool]:
        """Write down tries of steps, each begun or ended; False where the lease was lost.

        A try has one row, by its number. What has ended is not opened again (False, too). Of a beginning and an end in
        one call the end counts.
        """

    @abstractmethod
    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        """Save checkpoints; False where the lease was lost or another execution has saved the step.

        A failed step may be replaced by a later attempt of its run, a completed one never.
        """

    @abstractmethod
    def save_waits(self, tx: Tx, saves: Sequence[WaitSave]) -> list[WaitRow | None]:
        """Write down what runs wait for, with the runs below them; None where the lease was lost.

        A wait that is there stays as it is.
        """

    @abstractmethod
    def take_signals(self, tx: Tx, takes: Sequence[Take]) -> list[Taken]:
        """Give signals to waits, and save both together: a signal is taken once. Several of one run in their order."""

    @abstractmethod
    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        """Write how lease holders let go of their runs."""

    # -- writes: guarded ---------------------------------------------------------------------------------------

    @abstractmethod
    def cancel(self, tx: Tx, run_ids: Sequence[str]) -> list[Cancelled]:
        """Cancel runs that have not ended. The second of one call meets the first."""

    @abstractmethod
    def cancel_below(self, tx: Tx, limits: Sequence[int]) -> list[list[RunRow]]:
        """Cancel what is left below runs that have ended without their output, at most `limit` of them, from above."""

    @abstractmethod
    def send_signals(self, tx: Tx, signals: Sequence[NewSignal]) -> list[Sent]:
        """Write signals to runs that have not ended, and wake those that wait for them."""

    @abstractmethod
    def delete(self, tx: Tx, run_ids: Sequence[str]) -> list[Deleted]:
        """Delete ended runs with all that belongs to them, and all runs below them. Their idempotency keys are free.

        What is below them may be too much for one call: then a part of it goes, and the answer says `MORE`. The run
        itself is the last to go.
        """

    @abstractmethod
    def drop_outputs(self, tx: Tx, run_ids: Sequence[str]) -> list[bool]:
        """Drop the outputs of the steps of ended runs and of those below them, and note that; False if not ended."""

    @abstractmethod
    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        """Write runs. One that may not stand beside another gives that one: "idempotent" if that has its idempotency
        key; else, if it is the never claimed run of its job and concurrency key, "coalesced" or "conflict", as
        `NewRun.coalesce` says. The second of one call meets the first. One that was written before is "created" again.
        """

    def trigger_many(self, tx: Tx, batches: Sequence[Sequence[NewRun]]) -> list[list[Triggered]]:
        """Write batches of runs, each whole or not at all; the others of the round don't depend on it.

        A batch that meets a "conflict" leaves nothing behind: its answer ends with that one, and what the answers
        before it say did not happen.

        A store without savepoints may leave it at this: the error undoes the round, whose halves are tried then.
        """
        answers = [self.trigger(tx, batch) for batch in batches]
        for made in answers:
            if (index := conflict_in(made)) is not None:
                raise ConflictError(f"calls[{index}]: {conflict_text(made[index].run)}")
        return answers

    def identity(self) -> str:
        """As `database_id`, over a connection of its own. Any thread."""
        connection = self.open(read_only=True)
        try:
            return self.database_id(connection)
        finally:
            self.disconnect(connection)

    def adopt(self, connection: LentTransaction, identity: str) -> Tx:  # noqa: ARG002 - for those stores that can
        """The transaction that a caller has open on a connection of its own, for `trigger_many` to write into.

        `ValidationError` if it is none of the database with this identity, or has another language. Committing stays
        the caller's. May be called again for the same transaction.
        """
        raise ValidationError(f"connection: {self.name} can't trigger inside a transaction of yours.")

    def announce(self, tx: Tx, made: Sequence[Triggered]) -> None:  # noqa: ARG002 - for those that can notify
        """Called after `trigger_many` in the transaction of a caller: what others shall hear of when it commits."""
        return

    @abstractmethod
    def expire(self, tx: Tx, sweeps: Sequence[Sweep]) -> list[list[RunRow]]:
        """Take back leases that ran out: to pending, or failed after too many crashes. The rows as they are now."""

    @abstractmethod
    def pass_deadlines(self, tx: Tx, limits: Sequence[int]) -> list[list[RunRow]]:
        """End runs whose deadline has come as timed out, at most `limit` of them. The rows as they are now."""

    @abstractmethod
    def recall(self, tx: Tx, recalls: Sequence[Recall]) -> list[int]:
        """Put back to pending what was leased to a worker that doesn't know of it; how many."""

    @abstractmethod
    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        """Lease pending runs whose time has come: highest priority first, then oldest `run_at`, then id.

        Of one concurrency key at most one run is leased. From its first claim to its end (or its suspension) a run
        holds its key: what goes back to pending is claimed again before any other of the key.
        """

    # -- writes: who is there ----------------------------------------------------------------------------------

    @abstractmethod
    def check_in(self, tx: Tx, workers: Sequence[CheckIn]) -> list[None]:
        """Write down that these workers are there, each by its id. When it started stays what the first time said."""

    @abstractmethod
    def check_out(self, tx: Tx, workers: Sequence[str]) -> list[None]:
        """Forget these workers, by their ids: they have stopped. Their leases are left as they are."""

    @abstractmethod
    def forget_workers(self, tx: Tx, limits: Sequence[int]) -> list[int]:
        """Forget workers that were not seen for `LEASES_REMEMBERED` of their leases, at most `limit`; how many."""

    # -- reads -------------------------------------------------------------------------------------------------

    @abstractmethod
    def find_runs(self, connection: Any, filter: RunFilter) -> list[RunRow]:
        """Runs, newest first."""

    @abstractmethod
    def find_standing(self, connection: Any, runs: Sequence[NewRun]) -> list[Triggered | None]:
        """What `trigger` would answer for each of these, each by itself, if it did not write; None where it would."""

    @abstractmethod
    def find_steps(self, connection: Any, run_id: str, *, first: int = 0, until: int | None = None) -> list[StepRow]:
        """Saved steps with first <= position < until, in order of position."""

    @abstractmethod
    def next_due_at(self, connection: Any) -> int | None:
        """When the first run that is delayed or sleeps wants to go on; None if none does by itself."""

    @abstractmethod
    def find_waits(self, connection: Any, run_id: str) -> list[WaitRow]:
        """What a run waits for, the oldest first."""

    @abstractmethod
    def find_attempts(self, connection: Any, run_id: str) -> list[AttemptRow]:
        """The tries of all steps of a run, in order of position and number; `live` where their execution goes on."""

    @abstractmethod
    def failed_tries(self, connection: Any, run_id: str, run_attempt: int) -> dict[StepKey, Tries]:
        """What is to be gone on with: the failed tries of steps that this attempt of the run has not saved."""

    @abstractmethod
    def find_logs(self, connection: Any, run_id: str, *, after: int = 0, limit: int | None = None) -> list[LogRow]:
        """Log lines with id > after, in order of writing."""

    def follow(self, connection: Any, run_ids: Sequence[str]) -> dict[str, Followed]:
        """How these runs stand; those that do not exist are left out. Asked often: a store should make it cheap."""
        return {
            row.id: Followed(
                row.status,
                row.generation,
                row.lease_owner,
                row.lease_expires_at,
                row.progress,
                max((line.id for line in self.find_logs(connection, row.id)), default=0),
            )
            for row in (self.find_runs(connection, RunFilter(ids=tuple(run_ids))) if run_ids else ())
        }

    def passing(self, connection: Any, most: int) -> list[Passing]:
        """The `most` newest runs, and as many at most of those that are leased; each once, by descending id.

        Asked often: a store should make it cheap.
        """
        newest = self.find_runs(connection, RunFilter(limit=most))
        leased = self.find_runs(connection, RunFilter(statuses=("leased",), limit=most))
        rows = {row.id: row for row in (*newest, *leased)}
        return [
            Passing(row.id, row.job_name, row.status, row.lease_owner, row.created_at, row.labels)
            for row in sorted(rows.values(), key=lambda row: row.id, reverse=True)
        ]

    def step_marks(self, connection: Any, wanted: Sequence[tuple[str, int]]) -> list[StepMark]:
        """Of each of these runs, the saved steps from this position on."""
        return [
            StepMark(step.run_id, step.name, step.occurrence, step.position, step.generation)
            for run_id, first in wanted
            for step in self.find_steps(connection, run_id, first=first)
        ]

    def marked_steps(self, connection: Any, marks: Sequence[StepMark]) -> list[StepRow]:
        """The steps of these marks that are still as they were when they were marked, in any order."""
        wanted = set(marks)
        return [
            step
            for run_id in dict.fromkeys(mark.run_id for mark in marks)
            for step in self.find_steps(connection, run_id)
            if StepMark(step.run_id, step.name, step.occurrence, step.position, step.generation) in wanted
        ]

    def logs_after(self, connection: Any, wanted: Sequence[tuple[str, int]], limit: int) -> list[LogRow]:
        """Of each of these runs, the log lines with a greater id, in order; at most `limit` of all of them together."""
        lines = [line for run_id, after in wanted for line in self.find_logs(connection, run_id, after=after)]
        return sorted(lines, key=lambda line: line.id)[:limit]

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
    def find_old(self, connection: Any, old: Old) -> list[str]:
        """Ids of runs that may be forgotten."""

    @abstractmethod
    def find_workers(self, connection: Any) -> list[WorkerRow]:
        """All workers, the first started first, each with the runs that are leased to it."""

    @abstractmethod
    def change_mark(self, connection: Any) -> int | None:
        """A number that changes when any connection commits; None where the database has none."""

    def watch(self) -> Watch:
        """A sense of what others commit, with a connection of its own that is opened when it is first asked."""
        return Watch(self)
