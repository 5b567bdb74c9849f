"""What must never be: looked for at every COMMIT, at every call of a step's body, and at the end of a story.

The record of calls and effects is kept outside of the databases. The audit compares what is committed with what was
committed before, whoever says what of it. The invariants I1 to I17 are those of docs/explanation/reliability.md.

Long because each invariant is one method, and all of them read the same record.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from sim_loop import EPOCH
from sim_work import Ambiguous, Missing, Program, expected, names_before

from holdfast.model.run import RunRow, RunStatus
from holdfast.model.step import StepRow
from holdfast.store.base import Tx
from holdfast.store.one_by_one import Tables

if TYPE_CHECKING:
    from sim_process import Process

    from holdfast.engine.execution import Execution
    from simulation import World

_by_id = operator.attrgetter("id")
_ACTIVE = frozenset(map(str, RunStatus.active()))
#: Faults that are over soon: where there are no others, no lease runs out.
_SHORT = frozenset({"lost", "ambiguous", "unwatched"})
_FENCED = ("save_steps", "finish", "renew_leases", "save_progress", "save_logs", "save_attempts")


class Call(NamedTuple):
    """One call of a step's body."""

    number: int
    run_id: str
    key: str
    generation: int
    attempt: int
    tried: int


class Record:
    """The world: which bodies were called, and which came to their effect."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[Call] = []
        self._keys: dict[tuple[str, str], str] = {}
        self.effects: Counter[tuple[str, str]] = Counter()
        self._begun: set[tuple[str, str, int, int, int]] = set()
        self._times: Counter[tuple[str, str]] = Counter()

    def begins(self, execution: Execution, key: str, tried: int, *, timed: bool) -> tuple[int, int]:
        """A body is called: the number of this call in the world, and how many there were of this step."""
        row, world = execution.row, self.world
        call = Call(len(self.calls) + 1, row.id, key, row.generation, row.attempt, tried)
        self.calls.append(call)
        self._times[row.id, key] += 1
        world.tell("begins", execution.lease.owner, row.id, key, row.generation, tried)
        world.audit.begins(call, timed=timed)
        this = (row.id, key, row.generation, row.attempt, tried)
        if this in self._begun:
            world.broken(f"I6: a try began twice in one execution: {call}")
        self._begun.add(this)
        return call.number, self._times[row.id, key]

    def gets_key(self, run_id: str, name: str, key: str) -> None:
        """The key that a step is given for whoever must not do something twice."""
        if self._keys.setdefault((run_id, name), key) != key:
            self.world.broken(f"S3: another key of step {name} of run {run_id}: {key}")

    def takes_effect(self, number: int) -> None:
        call = self.calls[number - 1]
        self.effects[call.run_id, call.key] += 1
        self.world.tell("effect", call.run_id, call.key, number)


class Audit:
    """Sees every COMMIT."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tables = Tables()
        self.commits = 0
        self._began = 0
        self.latest = EPOCH
        self.claimed: dict[tuple[str, int], int] = {}
        """By run and generation: after how many commits it was claimed."""
        self.saved: dict[tuple[str, str], tuple[int, StepRow]] = {}
        """By run and key of a step: after how many commits, and what."""
        self.leased_until: dict[tuple[str, int], int] = {}
        """By run and generation: until when, in real time, its holder may believe in its lease."""
        self.cancelled: dict[str, int] = {}
        self.ends: Counter[str] = Counter()
        self.expiries: Counter[str] = Counter()
        self.deleted: set[str] = set()
        self._gone: Counter[str] = Counter()
        self._before: dict[int, dict[str, Any]] = {}

    def _broken(self, what: str, *details: Any) -> None:
        self.world.broken(f"{what}: {' · '.join(str(one) for one in details)}")

    # -- commits -----------------------------------------------------------------------------------------------

    def committed(self, process: Process, tx: Tx, began: int, said: list[tuple[str, Any, Any]]) -> None:
        """A transaction of this process is durable."""
        world = self.world
        before, after = self.tables, world.database.look()
        self.tables = after
        self.commits += 1
        self._began = began
        # A run that was seen to be due stays so, also if the wall clock is set back.
        self.latest = max(self.latest, tx.now)
        verbs = [verb for verb, _, _ in said]
        world.tell("commit", process.name, *verbs)
        runs, was = after.runs, before.runs
        ended_by = {ending.lease.run_id for verb, rows, _ in said if verb == "finish" for ending in rows}
        changed = [row for run_id, row in runs.items() if was.get(run_id) is not row]
        # In an order of our own: that of the rows is the database's.
        for row in sorted(changed, key=_by_id) if len(changed) > 1 else changed:
            old = was.get(row.id)
            if old is None:
                self._appeared(row)
                # It may have been claimed in the same round.
                old = row._replace(status="pending", generation=0, lease_owner=None, lease_expires_at=None)
            self._changed(process, tx, old, row, verbs, ended_by)
        if len(was) + sum(run_id not in was for run_id in runs) != len(runs):
            self._disappeared(before, after)
        if after.steps is not before.steps:
            fresh = [key for key, step in after.steps.items() if before.steps.get(key) is not step]
            for key in sorted(fresh):
                self._checkpoint(process, was, runs, before.steps.get(key), after.steps[key], said)
        if after.attempts is not before.attempts:
            for attempt_key, attempt in after.attempts.items():
                if before.attempts.get(attempt_key) is not attempt:
                    self._note(process, was.get(attempt.run_id), attempt.run_id, attempt.generation, "try")
        if len(after.logs) != len(before.logs):
            for number, line in after.logs.items():
                if number not in before.logs:
                    self._note(process, was.get(line.run_id), line.run_id, line.generation, "log line")
        for run_id, progress in after.progress.items():
            if before.progress.get(run_id) != progress and run_id in was:
                holder = was[run_id]
                self._note(process, holder, run_id, holder.generation, "progress")
        for verb, rows, answers in said:
            self._answers(process, tx, verb, rows, answers, was)
        if "claim" in verbs or "trigger" in verbs:
            self._keys(runs)

    def _appeared(self, row: RunRow) -> None:
        self.world.tell("new", row.id, row.job_name, row.input, row.idempotency_key, row.concurrency_key)
        if row.idempotency_key is not None:
            same = [
                other.id for other in self.tables.runs.values()
                if (other.job_name, other.idempotency_key) == (row.job_name, row.idempotency_key)
            ]  # fmt: skip
            if len(same) > 1:
                self._broken("I11: two runs of one idempotency key", row.idempotency_key, same)

    def _changed(
        self, process: Process, tx: Tx, old: RunRow, row: RunRow, verbs: list[str], ended_by: set[str]
    ) -> None:
        world = self.world
        if old.status not in _ACTIVE:
            if row != old:
                self._broken("I3: an ended run has changed", old, row)
            return
        if row.generation < old.generation:
            self._broken("I7: a generation went back", old, row)
        if (old.status, old.generation) != (row.status, row.generation):
            world.tell("now", row.id, f"{old.status} {old.generation}", f"{row.status} {row.generation}", row.attempt)
        taken = old.status == "leased" and (row.generation > old.generation or row.lease_owner != old.lease_owner)
        if taken and "cancel" not in verbs and row.status != "cancelled":
            mine = old.lease_owner == process.owner
            expired = (old.lease_expires_at or 0) <= tx.now
            if row.status == "timed_out":  # whoever looks after deadlines takes it from its holder
                expired = old.deadline_at is not None and old.deadline_at <= tx.now
            if not mine and not expired:
                self._broken("I7: a live lease was taken", process.name, tx.now, old, row)
            if row.generation > old.generation and row.crashes > old.crashes:
                world.story.takeovers += 1
                self.expiries[row.id] += 1
                if world.faults.kinds <= _SHORT and row.id not in world.killers:
                    self._broken("a lease ran out, and nobody was away for so long", old, row)
            elif not mine and row.generation > old.generation and row.status != "timed_out":
                self._broken("S1: a crash was not counted", old, row)
        if row.status == "leased" and (old.status, old.generation, old.lease_owner) != (
            "leased", row.generation, row.lease_owner
        ):  # fmt: skip
            self._claim(process, tx, old, row)
        if row.status == "leased" and row[6:11] != old[6:11]:
            # By the clock that counts what really passes.
            self.leased_until[row.id, row.generation] = self._began + world.options.lease
            if row.lease_owner != process.owner:
                self._broken("I7: somebody else's lease was renewed", process.name, old, row)
        if row.status not in _ACTIVE:
            self.ends[row.id] += 1
            if row.status == "cancelled":
                self.cancelled[row.id] = self.commits
            elif (
                row.status != "timed_out"
                and row.id in ended_by
                and old.lease_owner != process.owner
                and row.error_type != "WorkerCrashed"
            ):
                self._broken("I7: ended by somebody who did not hold it", process.name, old, row)
            if row.error_type == "WorkerCrashed" and row.crashes < world.options.max_crashes:
                self._broken("I14: given up too early", row)
        elif row.crashes >= world.options.max_crashes:
            self._broken("I14: not given up", row)
        if row.attempt not in (old.attempt, old.attempt + 1):
            self._broken("S1: attempts jump", old, row)

    def _claim(self, process: Process, tx: Tx, old: RunRow, row: RunRow) -> None:
        self.claimed[row.id, row.generation] = self.commits
        if row.lease_owner != process.owner:
            self._broken("I7: claimed for somebody else", process.name, row)
        if row.generation <= old.generation:
            self._broken("I7: claimed without a new generation", old, row)
        if old.run_at > self.latest:
            self._broken("I15: begun before its time", tx.now, old)
        if row.concurrency_key is not None and old.generation == 0:
            # Who was claimed before goes before; then priority, time, id.
            for other in self.tables.runs.values():
                if (
                    other.id != row.id
                    and other.concurrency_key == row.concurrency_key
                    and other.status in ("pending", "leased")
                    and (
                        other.generation > 0
                        or (other.run_at <= tx.now and (-other.priority, other.run_at, other.id)
                            < (-row.priority, row.run_at, row.id))
                    )
                ):  # fmt: skip
                    self._broken("I9: out of the order of its key", row, other)

    def _keys(self, runs: Any) -> None:
        leased: dict[str, str] = {}
        first: dict[tuple[str, str], str] = {}
        for row in runs.values():
            if (key := row.concurrency_key) is None:
                continue
            if row.status == "leased" and leased.setdefault(key, row.id) != row.id:
                self._broken("I10: two leased runs of one key", key, leased[key], row.id)
            waits = row.status == "pending" and row.generation == 0
            if waits and first.setdefault((row.job_name, key), row.id) != row.id:
                self._broken("S5: two runs of one key wait for their first start", key, row.id)

    def _disappeared(self, before: Tables, after: Tables) -> None:
        for run_id, row in before.runs.items():
            if run_id not in after.runs:
                self.deleted.add(run_id)
                self._gone[row.input] += 1
                self.world.tell("gone", run_id)
                if row.status in _ACTIVE:
                    self._broken("I1: a run that has not ended is gone", row)
        for key in after.steps:
            if key[0] in self.deleted:
                self._broken("half a deletion: a step is left", key)

    def _checkpoint(
        self, process: Process, was: Any, runs: Any, old: StepRow | None, step: StepRow, said: Any
    ) -> None:  # fmt: skip
        run, key = was.get(step.run_id), f"{step.name}#{step.occurrence}" if step.occurrence else step.name
        self.world.tell("saved", step.run_id, key, step.status, step.generation, step.output)
        if old is not None and (old.status == "completed" or old.attempt >= step.attempt):
            self._broken("I4: a checkpoint was written again", old, step)
        if run is None or (run.status, run.generation, run.lease_owner) != ("leased", step.generation, process.owner):
            self._broken("I7: stale checkpoint accepted", process.name, step, run)
        elif (now := runs.get(step.run_id)) is not None and now.generation == step.generation and now.crashes:
            self._broken("S1: crashes not back to 0 after a checkpoint", now)
        self.saved[step.run_id, key] = (self.commits, step)

    def _note(self, process: Process, run: RunRow | None, run_id: str, generation: int, what: str) -> None:
        if run is None or (run.status, run.generation, run.lease_owner) != ("leased", generation, process.owner):
            self._broken(f"I7: stale {what} accepted", process.name, run_id, generation, run)

    def _answers(self, process: Process, tx: Tx, verb: str, rows: Any, answers: Any, was: Any) -> None:
        """What was attempted by somebody who was no longer the holder; and answers that are not true."""
        story = self.world.story
        if verb in ("trigger", "trigger_many"):
            batches = [(rows, answers)] if verb == "trigger" else list(zip(rows, answers, strict=True))
            for news, made in batches:
                for new, one in zip(news, made, strict=False):
                    standing = one.run
                    waits = (standing.status, standing.generation) == ("pending", 0)
                    refused = one.disposition == "conflict"
                    if not waits and (refused or (one.disposition == "coalesced" and new.coalesce == "skip")):
                        self._broken("S5: refused because of a run that was claimed before", new, standing)
                    if one.disposition == "idempotent" and standing.idempotency_key != new.idempotency_key:
                        self._broken("I11: another key's run", new, standing)
        elif verb in _FENCED:
            for row, answer in zip(rows, answers, strict=True):
                lease = row.lease if verb in ("finish", "renew_leases") else (row[1].run_id, row[1].generation, row[0])
                run = was.get(lease[0])
                if run is None or (run.status, run.generation, run.lease_owner) != ("leased", lease[1], lease[2]):
                    story.stale[verb] += 1
                    if verb == "renew_leases" and answer:
                        self._broken("I7: stale renewal accepted", process.name, row, run)

    # -- calls -------------------------------------------------------------------------------------------------

    def begins(self, call: Call, *, timed: bool) -> None:
        """The body of a step is called now."""
        world = self.world
        run = self.tables.runs.get(call.run_id)
        claimed = self.claimed.get((call.run_id, call.generation))
        if claimed is None:
            self._broken("a step begins that nobody has claimed", call)
            return
        if (found := self.saved.get((call.run_id, call.key))) is not None:
            at, step = found
            if at < claimed and (step.status == "completed" or step.attempt == call.attempt):
                self._broken("I5: ran again after its checkpoint", call, step)
        until = self.leased_until[call.run_id, call.generation]
        # A body with a time limit has a task of its own: its process may be stopped before that gets its turn.
        if world.scheduler.now > until and not timed:
            self._broken("I10: a step began after the lease was over", call, world.scheduler.now - until)
        if call.run_id in self.cancelled and self.cancelled[call.run_id] < claimed:
            self._broken("I12: a step began under a claim after the cancel", call)
        if run is not None and (program := world.program_of(run)) is not None:
            for name, occurrence in _before(program).get(call.key, ()):
                key = f"{name}#{occurrence}" if occurrence else name
                if (call.run_id, key) not in self.saved:
                    self._broken("I9: begun before the step before it was saved", call, key)

    # -- the end -----------------------------------------------------------------------------------------------

    def conclude(self) -> None:
        """All is over: what has come of it?"""
        world, runs = self.world, self.tables.runs
        steps: dict[str, dict[tuple[str, int], StepRow]] = {}
        for (run_id, name, occurrence), step in self.tables.steps.items():
            steps.setdefault(run_id, {})[name, occurrence] = step
        for run_id, row in runs.items():
            if row.status in _ACTIVE:
                self._broken("I2: stuck", row)
                continue
            if self.ends[run_id] != 1:
                self._broken("I3: ended more than once", self.ends[run_id], row)
            self._outcome(row, steps.get(run_id, {}))
        if not world.faults.kinds:
            for (run_id, key), count in self.world.record.effects.items():
                if count > 1 + 3 * (1 + (runs[run_id].attempt if run_id in runs else 3)):
                    self._broken("I6: too many effects", run_id, key, count)
        self._lines()
        self._children(runs)
        claims = Counter(run_id for run_id, _ in self.claimed)
        for (run_id, key), count in self.world.record.effects.items():
            if count > claims[run_id] * 3:
                self._broken("I6: more effects than claims and tries", run_id, key, count)

    def _lines(self) -> None:
        """A line that a program writes is there once for each execution, if no answer was lost twice."""
        lines = Counter(
            (line.run_id, line.generation, line.message) for line in self.tables.logs.values() if line.step_name is None
        )
        for line, count in lines.items():
            if count > 1 and not self.world.unknown:
                self._broken("a log line was written twice", line)

    def _children(self, runs: Any) -> None:
        """What a run triggers is triggered once, however often it is executed."""
        counts = Counter(row.input for row in runs.values())
        counts.update(self._gone)
        for number, parent in self.world.parents.items():
            children, parents = counts[f'{{"n":{number}}}'], counts[f'{{"n":{parent}}}']
            if children > parents:
                self._broken("S3: triggered again by a replay", number, children, parents)

    def _outcome(self, row: RunRow, saved: dict[tuple[str, int], StepRow]) -> None:
        program = self.world.program_of(row)
        if program is None:
            if (row.status, row.error_type) not in (("failed", "Outdated"), ("cancelled", None)):
                self._broken("I17: the unreadable run", row)
            return
        if row.status == "cancelled" or row.error_type == "WorkerCrashed":
            return
        if row.status == "timed_out":
            if row.timeout is None and row.deadline_at is None:
                self._broken("S4: timed out, without a limit", row)
            return
        if (
            row.status == "failed"
            and row.error_type in ("StoreUnavailable", "StepFailed")
            and program_triggers(program)
        ):
            return
        try:
            status, output = expected(program, saved, row.attempt)
        except Ambiguous:
            if (row.status, row.error_type) != ("failed", "AmbiguousStep"):
                self._broken("S3: one name in two branches", row)
            return
        except Missing as missing:
            self._broken("I8: ended without a checkpoint", missing, row)
            return
        if status != row.status:
            self._broken("I8: ended otherwise than its checkpoints say", status, output, row, *saved.values())
        elif status == "completed" and row.output != str(output).replace(" ", ""):
            self._broken("I8: another output than its checkpoints give", output, row)


def program_triggers(program: Program) -> bool:
    """Whether it triggers others, which a database in trouble makes fail."""
    return any(op.kind == "trigger" for op in program.ops)


_known: dict[int, tuple[Program, dict[str, Any]]] = {}


def _before(program: Program) -> dict[str, Any]:
    known = _known.get(id(program))
    if known is None or known[0] is not program:
        if len(_known) > 100:
            _known.clear()
        known = _known[id(program)] = (program, names_before(program))
    return known[1]
