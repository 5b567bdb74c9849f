"""What databases with several writers at a time have in common: everything that a round may wait for is locked first.

Three kinds of things are waited for, always in this order, and within each kind in the order of their names:

1. the rows of concurrency keys in `holdfast_keys`, of whatever may change who is next of them;
2. the rows of runs: a lease holder's writes count only while its run is held, so that nobody can take the run over and
   read its steps before what the holder is writing is there. With a run that may end goes the one above it, and with a
   signal the run that it is for: whoever holds the row of a waiting run asks what it still lacks, so of two last ends
   below it, in two transactions, the second sees the first;
3. idempotency keys, by the insertion of runs: by one insertion in a transaction (see `APART` in commit/ticket.py).

What looks for runs by itself (expiry, deadlines, claims, what is left below an end, sleepers whose time has come) waits
for nothing: what is locked is somebody else's for now. The exception is a claim that meets runs of a cancelled tree: it
ends them as `cancel` does. Should that close a circle, the database undoes one of the two, and it is played again.
Whoever holds the row of a run that stands in the line of a key holds that key too, but for claims, which come last and
wait for nothing. So `bring_forward` and `hold_back`, which change other runs of a key, never close a circle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..model.run import NewRun
from ..model.wait import NewSignal, WaitRow
from .base import (
    AttemptSave,
    Cancelled,
    Claimed,
    ClaimOrder,
    Deleted,
    Ended,
    Ending,
    LogSave,
    ProgressSave,
    Renewal,
    Sent,
    StepSave,
    Take,
    Taken,
    Triggered,
    Tx,
    WaitSave,
)
from .relational import PROMOTED_AT_ONCE, Relational

#: Microseconds until a claim may find what somebody else had locked for a moment.
_SOON = 20_000

#: So often keys are made and locked anew that somebody has forgotten in between.
_ROUNDS_OF_KEYS = 10


@dataclass(slots=True)
class Needs:
    """What the rows of a round are about."""

    runs: set[str] = field(default_factory=set)
    ending: set[str] = field(default_factory=set)
    """Runs that may give up their concurrency key, or their place in its line, and that those above may wait for. Which
    these are has to be looked up."""
    waking: set[str] = field(default_factory=set)
    """Runs that may be woken: they go back into the line of their key."""
    keys: set[str] = field(default_factory=set)
    jobs: set[str] = field(default_factory=set)
    """Those whose limit will be counted."""
    claims: bool = False

    @classmethod
    def of(cls, batches: Mapping[str, Sequence[Any]]) -> Needs:
        """What these rows, by verb, are about."""
        needs = cls()
        for verb, rows in batches.items():
            if verb == "save_steps":
                needs.runs.update([save.step.run_id for save in rows])
            elif verb == "save_attempts":
                needs.runs.update([save.attempt.run_id for save in rows])
            elif verb == "save_logs":
                needs.runs.update([save.line.run_id for save in rows])
            elif verb == "save_progress":
                needs.runs.update([save.row.run_id for save in rows])
            elif verb == "save_waits":
                needs.runs.update([save.wait.run_id for save in rows])
                children = [child for save in rows for child in save.children]
                needs.keys.update([child.concurrency_key for child in children if child.concurrency_key is not None])
            elif verb == "take_signals":
                needs.runs.update([take.step.run_id for take in rows])
            elif verb == "send_signals":
                needs.waking.update([signal.run_id for signal in rows])
            elif verb == "renew_leases":
                needs.runs.update([renewal.lease.run_id for renewal in rows])
            elif verb == "finish":
                for ending in rows:
                    (needs.ending if ending.keyed else needs.runs).add(ending.lease.run_id)
            elif verb == "cancel":
                needs.ending.update(rows)
            elif verb in ("delete", "drop_outputs"):
                # What is below them has ended and is left alone by all but those who hold them.
                needs.runs.update(rows)
            elif verb in ("trigger", "trigger_many"):
                runs = rows if verb == "trigger" else [run for batch in rows for run in batch]
                needs.keys.update([run.concurrency_key for run in runs if run.concurrency_key])
            elif verb == "claim":
                needs.claims = bool(rows)
                needs.jobs.update([job for order in rows for job, _ in order.limits])
        return needs


class SeveralWriters(Relational):
    """The verbs, with the locks that they need among other writers."""

    locks = True
    _lines_are_guarded: ClassVar[bool] = True
    """Whether the database itself refuses a second run in a line that was never claimed, whoever holds its key."""
    _jobs_made: frozenset[str] = frozenset()
    """Jobs that have their row in `holdfast_keys`, as far as is known."""
    _keys_to_make: frozenset[str] = frozenset()
    """Keys without a row, of runs that are due: the next claim makes them."""

    # -- locks -------------------------------------------------------------------------------------------------

    def lock(self, tx: Tx, batches: Mapping[str, Sequence[Any]]) -> None:
        now = self._lock(tx, Needs.of(batches))
        if now is not None:
            tx.now = self._time(now)
        tx.seen["locked"] = True

    def _lock(self, tx: Tx, needs: Needs) -> int | None:
        """The time of the database once everything was ours; None if there was nothing to wait for."""
        connection = tx.connection
        if jobs := needs.jobs - self._jobs_made:
            self._do(connection, "make_keys", sorted(jobs), "job")
        keys, runs = set(needs.keys), needs.runs | needs.ending | needs.waking
        if needs.ending or needs.waking:
            # Neither its key nor what is above it ever changes.
            found = self._ask(connection, "keys_of", sorted(needs.ending | needs.waking))
            keys.update([key for _, key, _, _ in found if key is not None])
            above = [row[2:] for row in found if row[2] is not None and row[0] in needs.ending]
            runs.update([run_id for run_id, _ in above])
            keys.update([key for _, key in above if key is not None])
        if needs.claims:
            keys, self._keys_to_make = keys | self._keys_to_make, frozenset()
        self._hold(tx, keys)
        if runs:
            # In the order of the ids, which is that of their bytes.
            return self._hold_runs(tx, sorted(runs))
        if not keys:
            return None
        now: int = self._find(connection, "now")[0][0]
        return now

    def _hold_runs(self, tx: Tx, run_ids: Sequence[str]) -> int | None:
        """Lock these runs; the time then. None: `tx` will know it once something is asked."""
        locked: int = self._ask(tx.connection, "lock_runs", run_ids)[0][1]
        return locked

    def _ensure(self, tx: Tx, verb: str, rows: Sequence[Any]) -> None:
        """For who calls a verb outside of a round."""
        if rows and "locked" not in tx.seen:
            self._lock(tx, Needs.of({verb: rows}))

    def _hold(self, tx: Tx, keys: Iterable[str]) -> None:
        """Lock the rows of these keys."""
        held: set[str] = tx.seen.setdefault("keys", set())
        wanted = sorted(set(keys) - held)
        for _ in range(_ROUNDS_OF_KEYS):
            if not wanted:
                return
            self._do(tx.connection, "make_keys", wanted, "key")
            held.update([key for (key,) in self._ask(tx.connection, "lock_keys", wanted)])
            wanted = [key for key in wanted if key not in held]

    def _time(self, now: int) -> int:
        """By which the verbs judge, when the database says that it is `now`."""
        return now

    # -- writes ------------------------------------------------------------------------------------------------

    def renew_leases(self, tx: Tx, renewals: Sequence[Renewal]) -> list[bool]:
        self._ensure(tx, "renew_leases", renewals)
        return super().renew_leases(tx, renewals)

    def save_logs(self, tx: Tx, lines: Sequence[LogSave]) -> list[None]:
        self._ensure(tx, "save_logs", lines)
        return super().save_logs(tx, lines)

    def save_progress(self, tx: Tx, rows: Sequence[ProgressSave]) -> list[None]:
        self._ensure(tx, "save_progress", rows)
        return super().save_progress(tx, rows)

    def save_attempts(self, tx: Tx, saves: Sequence[AttemptSave]) -> list[bool]:
        self._ensure(tx, "save_attempts", saves)
        return super().save_attempts(tx, saves)

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        self._ensure(tx, "save_steps", saves)
        return super().save_steps(tx, saves)

    def save_waits(self, tx: Tx, saves: Sequence[WaitSave]) -> list[WaitRow | None]:
        self._ensure(tx, "save_waits", saves)
        return super().save_waits(tx, saves)

    def take_signals(self, tx: Tx, takes: Sequence[Take]) -> list[Taken]:
        self._ensure(tx, "take_signals", takes)
        return super().take_signals(tx, takes)

    def send_signals(self, tx: Tx, signals: Sequence[NewSignal]) -> list[Sent]:
        self._ensure(tx, "send_signals", signals)
        return super().send_signals(tx, signals)

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        self._ensure(tx, "finish", endings)
        return super().finish(tx, endings)

    def cancel(self, tx: Tx, run_ids: Sequence[str]) -> list[Cancelled]:
        self._ensure(tx, "cancel", run_ids)
        return super().cancel(tx, run_ids)

    def delete(self, tx: Tx, run_ids: Sequence[str]) -> list[Deleted]:
        self._ensure(tx, "delete", run_ids)
        return super().delete(tx, run_ids)

    def drop_outputs(self, tx: Tx, run_ids: Sequence[str]) -> list[bool]:
        self._ensure(tx, "drop_outputs", run_ids)
        return super().drop_outputs(tx, run_ids)

    def trigger(self, tx: Tx, runs: Sequence[NewRun]) -> list[Triggered]:
        if tx.lent and self._lines_are_guarded:
            # A key would stay locked until the caller commits, and every round that needs it would stand still. So what
            # has a key comes as a run whose time is about to come: the claim that makes it due puts it into its line.
            runs = [_about_to_come(run, tx.now) if run.concurrency_key is not None else run for run in runs]
        else:
            self._ensure(tx, "trigger", runs)
        return super().trigger(tx, runs)

    def _pass_on(self, tx: Tx, keys: Sequence[str | None]) -> None:
        if not (tx.lent and self._lines_are_guarded):
            super()._pass_on(tx, keys)

    def _insert(self, tx: Tx, rows: Sequence[Any]) -> list[Any]:
        # Whoever inserts a key waits for whoever has just inserted it: always in the order of the keys.
        keyed = [row for row in rows if row[6] is not None]
        if not keyed:
            return super()._insert(tx, rows)
        keyed.sort(key=_idempotency)
        lines = [(row[1], row[7]) for row in rows if row[7] is not None and row[16] is None]
        if len(set(lines)) < len(lines):
            # Which of them meets which depends on the order in which they were given. Their idempotency keys are ours
            # from the moment on that somebody has to wait for them, also when what had them is taken out again.
            unlined = [(*row[:7], None, *row[8:]) for row in keyed]
            self._do(tx.connection, "take_out", [run_id for (run_id,) in super()._insert(tx, unlined)])
            return super()._insert(tx, rows)
        return super()._insert(tx, [*keyed, *[row for row in rows if row[6] is None]])

    # -- claims ------------------------------------------------------------------------------------------------

    def _make_due(self, tx: Tx) -> None:
        # Whoever triggered in a transaction of its own has made none.
        missing = self._find(tx.connection, "missing_keys", tx.now, PROMOTED_AT_ONCE) if self._lines_are_guarded else ()
        if missing:
            # To make them here would be to wait, after all that the round has locked: the next one does.
            self._keys_to_make = self._keys_to_make.union(key for (key,) in missing)
            tx.seen["more"] = True
        super()._make_due(tx)

    def claim(self, tx: Tx, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        self._ensure(tx, "claim", orders)
        return super().claim(tx, orders)

    def _claim(self, tx: Tx, order: ClaimOrder) -> Claimed:
        claimed = super()._claim(tx, order)
        more, due = tx.seen.pop("more", False), self._due_beside(tx, claimed)
        if due is not None and due <= tx.now:
            # Its time has come, and somebody else has it locked. Whoever asked at once would ask without end.
            more, due = True, None
        if more and len(claimed.runs) < order.limit:
            soon = tx.now + _SOON
            due = soon if due is None else min(soon, due)
        return claimed._replace(next_due_at=due)

    def _due_beside(self, tx: Tx, claimed: Claimed) -> int | None:
        """When the next run is due, as of what was taken."""
        # That may have been written after we had asked, and a delayed run before it. The news of both comes when
        # nothing is left to take, so nobody would look again.
        return self.next_due_at(tx.connection) if claimed.runs else claimed.next_due_at

    def _doom(self, tx: Tx, run_ids: Sequence[str]) -> None:
        self._lock(tx, Needs(ending=set(run_ids)))
        super()._doom(tx, run_ids)

    def _leased_of_jobs(self, tx: Tx, jobs: Sequence[str]) -> list[Any]:
        # Counted by one claim at a time; a job that another one counts now has no room for this one.
        mine = [job for (job,) in self._ask(tx.connection, "lock_jobs", sorted(jobs))]
        self._jobs_made = self._jobs_made.union(mine)
        if theirs := set(jobs).difference(mine):
            # If there is no row (what made it was undone), the next one makes it.
            self._jobs_made = self._jobs_made.difference(theirs)
            tx.seen["more"] = True
        return [*super()._leased_of_jobs(tx, mine), *[(job, _FULL) for job in jobs if job not in mine]]


#: As many are leased as no limit allows.
_FULL = 2**62


def _about_to_come(run: NewRun, now: int) -> NewRun:
    if run.run_at is None:
        return run._replace(delay=max(run.delay, 1))
    return run._replace(run_at=max(run.run_at, now + 1))


def _idempotency(row: Sequence[Any]) -> tuple[str, str, str]:
    return row[9], row[1], row[6]
