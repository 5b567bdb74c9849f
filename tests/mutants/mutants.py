"""Planted faults: the guards of this library, each taken out on purpose.

A checker that finds nothing may be good, or blind. So each mutant takes one guard away, and somebody has to notice: the
simulation, a named test, the crash campaign or the storm. `hunt.py` asks all of them and prints who caught whom; a
mutant that survives is a hole in the tests. `test_mutants.py` plants each of them in `make test` and lets its quickest
catchers fail.

A mutant is planted in the running process, never on disk:

* `Statement`: a named SQL statement with a part of its text changed.
* `Code`: a function compiled anew from its source with a part changed.
* `Table`: the tables of a new database with a part of `schema.sql` changed.
* `Patch`: an attribute replaced by what is made of it, where a few changed words don't do.

Each of them fails with an `AssertionError` if what it changes is no longer there: whoever changes the source adapts the
mutant. Long because it is a list.
"""

from __future__ import annotations
import __future__ as futures

import asyncio
import dataclasses
import importlib
import inspect
import linecache
import textwrap
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, TracebackType
from typing import Any, TypeAlias

from holdfast.commit import committer as committers
from holdfast.store import sqlite as store
from holdfast.store.schema import Schema

Undo: TypeAlias = Callable[[], None]


def _changed(what: str, text: str, part: str, by: str) -> str:
    assert part in text, f"{what} has changed; adapt the mutant that looks for {part!r}:\n{text}"
    return text.replace(part, by)


@dataclass(frozen=True)
class Statement:
    """A named statement, with this part of its text replaced; with `until`, all from the part to there."""

    name: str
    part: str
    by: str = ""
    until: str = ""

    def plant(self) -> Undo:
        _ = store._SQL["claim"]  # the first one that is asked for reads them all
        before, part = store._SQL[self.name], self.part
        if self.until:
            assert part in before, f"{self.name} has changed; adapt the mutant that looks for {part!r}:\n{before}"
            begin = before.index(part)
            part = before[begin : before.index(self.until, begin)]
        store._SQL[self.name] = _changed(f"the statement {self.name}", before, part, self.by)

        def undo() -> None:
            store._SQL[self.name] = before

        return undo


@dataclass(frozen=True, init=False)
class Code:
    """A function of this package, with parts of its source replaced. It stays the same object, whoever holds it."""

    where: str
    """module:qualified name, below `holdfast`."""
    changes: tuple[tuple[str, str], ...]

    def __init__(self, where: str, *changes: tuple[str, str]) -> None:
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "changes", changes)

    def found(self) -> FunctionType:
        return _function(_look_up(self.where)[2])

    def plant(self) -> Undo:
        found = self.found()
        assert found not in _planted, f"{self.where} is planted already"
        source = inspect.getsource(found)
        for part, by in self.changes:
            source = _changed(self.where, source, part, by)
        module = importlib.import_module(found.__module__)
        # Under its own line numbers, for tracebacks; under another file name, for a source that shows the change.
        file = f"<planted in {self.where}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        code = compile(
            textwrap.dedent(source), file, "exec", flags=futures.annotations.compiler_flag, dont_inherit=True
        )
        names: dict[str, Any] = {}
        exec(code, vars(module), names)
        before, found.__code__ = found.__code__, _function(names[found.__name__]).__code__
        _planted.add(found)

        def undo() -> None:
            found.__code__ = before
            _planted.discard(found)

        return undo


@dataclass(frozen=True)
class Table:
    """The tables of databases that are made from now on, with this part of `schema.sql` replaced."""

    part: str
    by: str = ""

    def plant(self) -> Undo:
        before = Schema.__dict__["load"]
        load = Schema.load

        def planted(dialect: str) -> Schema:
            schema = load(dialect)
            return dataclasses.replace(schema, fresh=_changed("schema.sql", schema.fresh, self.part, self.by))

        planted("sqlite")
        Schema.load = planted  # type: ignore[method-assign]

        def undo() -> None:
            Schema.load = before  # type: ignore[method-assign]

        return undo


@dataclass(frozen=True)
class Patch:
    """An attribute, replaced by what `make` makes of it."""

    where: str
    make: Callable[[Any], Any]

    def found(self) -> Any:
        return _look_up(self.where)[2]

    def plant(self) -> Undo:
        owner, name, before = _look_up(self.where)
        setattr(owner, name, self.make(before))

        def undo() -> None:
            setattr(owner, name, before)

        return undo


Fault: TypeAlias = Statement | Code | Table | Patch
_planted: set[FunctionType] = set()


def _look_up(where: str) -> tuple[Any, str, Any]:
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(f"holdfast.{module}")
    *outer, name = path.split(".")
    for one in outer:
        owner = getattr(owner, one)
    assert name in vars(owner), f"there is no {where} any more; adapt the mutant"
    return owner, name, vars(owner)[name]


def _function(found: Any) -> FunctionType:
    found = getattr(found, "fget", found)
    found = getattr(found, "__func__", found)
    assert isinstance(found, FunctionType)
    return found


@dataclass(frozen=True)
class Mutant:
    """One guard that is missing."""

    name: str
    faults: tuple[Fault, ...]
    tests: tuple[str, ...] = ()
    """Tests that fail with it, the quickest first: paths below tests/."""
    crash: tuple[str, str, str] | None = None
    """How the crash campaign finds it: operation, phase, invariant."""
    seeds: tuple[str, ...] = ()
    """How the simulation finds it: `store seed`, the quickest first."""


class Planted:
    """What is planted now. Ends with the process, with `undo`, or as a context manager."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self._undo: list[Undo] = []
        try:
            for fault in mutant.faults:
                self._undo.append(fault.plant())
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Planted:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()


def plant(name: str) -> Planted:
    """Take this guard out of the running process."""
    assert name in MUTANTS, f"there is no mutant {name!r}; there are: {', '.join(MUTANTS)}"
    return Planted(MUTANTS[name])


# -- what a few changed words don't do -------------------------------------------------------------------------------


def _look(connection: Any) -> None:
    """Note what may be claimed, on this connection."""
    connection.execute("create temp table if not exists holdfast_seen (at integer primary key)")
    connection.execute("delete from temp.holdfast_seen")
    connection.execute(
        "insert into temp.holdfast_seen select rowid from holdfast_runs "
        "where status = 'pending' and due = 1 and turn <> 1"
    )


def _looks_before_it_locks(begin: Any) -> Any:
    """What may be claimed is looked for before the write lock is there: at the latest here, for the first time."""

    def planted(self: Any, connection: Any) -> Any:
        tables = connection.execute(
            "select name from sqlite_master where name = 'holdfast_runs' "
            "union all select name from sqlite_temp_master where name = 'holdfast_seen'"
        ).fetchall()
        if tables == [("holdfast_runs",)]:
            _look(connection)
        return begin(self, connection)

    return planted


def _looks_after_the_commit(commit: Any) -> Any:
    """And otherwise after the transaction before."""

    def planted(self: Any, tx: Any) -> Any:
        done = commit(self, tx)
        _look(tx.connection)
        return done

    return planted


def _has_a_time_of_its_own(expire: Any) -> Any:
    """Leases are judged by a clock that was set when the worker began."""
    set_at: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def planted(self: Any, tx: Any, sweep: Any) -> Any:
        offset = set_at.setdefault(self.clock, tx.now - self.clock.steady() * 1e6)
        own = round(self.clock.steady() * 1e6 + offset)
        return expire(self, dataclasses.replace(tx, now=own), sweep)

    return planted


def _makes_ids_anew(trigger: Any) -> Any:
    """The id of a run is made inside of what is done again when a commit gave no answer."""

    def planted(self: Any, tx: Any, runs: Any) -> Any:
        return trigger(self, tx, [run._replace(id=f"{run.id[:-3]}ZZZ") for run in runs] if tx.replay else runs)

    return planted


def _takes_its_write_along(awaiting: Any) -> Any:
    """Whoever stops waiting takes back what has not been written yet."""

    def planted(self: Any) -> Any:
        try:
            return (yield from awaiting(self))
        except asyncio.CancelledError:
            for committer in list(committers._all):
                with committer._door:
                    if self in committer._line:
                        committer._line.remove(self)
                        committer._outstanding -= self.count
            raise

    return planted


#: By store: the runs above those that have ended, as they are to be woken some time later.
_late: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()


def _leaves_the_wake_for_later(after_ends: Any) -> Any:
    """Who ends notes down, in memory, who may have to be woken."""

    def planted(self: Any, tx: Any, ended: Any) -> None:
        _late.setdefault(self, []).extend(parent for _, parent, _ in ended if parent is not None)
        after_ends(self, tx, [(run_id, None, tree) for run_id, _, tree in ended])

    return planted


def _wakes_what_was_left(wake_sleepers: Any) -> Any:
    """And the next transaction in which sleepers are woken does it."""

    def planted(self: Any, tx: Any) -> None:
        self._wake(tx, _late.pop(self, []))
        wake_sleepers(self, tx)

    return planted


def _saves_ends_of_waits_for_anybody(save_steps: Any) -> Any:
    """The checkpoint of a wait counts as if it came from whoever has the lease."""

    def planted(self: Any, tx: Any, saves: Any) -> Any:
        said = []
        for save in saves:
            if save.ends_wait:
                for _, generation, status, owner in self._ask(tx.connection, "states", [save.step.run_id]):
                    if status == "leased":
                        save = save._replace(owner=owner, step=save.step._replace(generation=generation))
            said.append(save)
        return save_steps(self, tx, said)

    return planted


def _by_the_time_of_the_beginning(statements: Any) -> Any:
    """The time of a PostgreSQL transaction is when it began, however long it has waited for a lock."""

    def planted(schema: str) -> dict[str, str]:
        return {name: text.replace("clock_timestamp()", "now()") for name, text in statements(schema).items()}

    return planted


def _said_otherwise(name: str, part: str, by: str = "") -> Callable[[Any], Any]:
    """A statement of PostgreSQL with a part of its text changed."""

    def changed(statements: Any) -> Any:
        def planted(schema: str) -> dict[str, str]:
            texts = statements(schema)
            return {**texts, name: _changed(f"PostgreSQL's statement {name}", texts[name], part, by)}

        return planted

    return changed


# -- the list --------------------------------------------------------------------------------------------------------


def _fence(generation: int, owner: int) -> str:
    return f" and r.generation = e.value ->> {generation} and r.lease_owner = e.value ->> {owner}"


def _unfenced_for(status: str) -> Statement:
    fence = _fence(1, 2)
    return Statement(
        "finish", fence, f" and ((true{fence}) or (r.completed_at is null and e.value ->> 3 = '{status}'))"
    )


_ACTIVE = " and status in ('pending', 'leased', 'waiting')"
_STANDS = Statement("forgettable", "when r.completed_at is null then r.status")
_CLAIMABLE = "p.status = 'pending' and p.due = 1 and p.turn <> 1"
_UNGUARDED = "p.rowid in (select at from temp.holdfast_seen) and p.completed_at is null and p.lease_owner is not ?3"
_STORE = "store/test_sqlite.py::TestSqlite::test_"
_LINE = "commit/test_committer.py::test_"
_LEASES = "engine/test_leases.py::test_"


MUTANTS: dict[str, Mutant] = {}


def _add(
    name: str,
    *faults: Fault,
    tests: tuple[str, ...] = (),
    crash: tuple[str, str, str] | None = None,
    seeds: tuple[str, ...] = (),
) -> None:
    assert name not in MUTANTS
    MUTANTS[name] = Mutant(name, faults, tests, crash, seeds)


# Fences: what only the holder of the newest lease may write.

_add(
    "checkpoint without its fence",
    Statement("save_steps", _fence(7, 0)),
    tests=(_STORE + "checkpoints_of_lost_leases_are_refused",),
    crash=("step", "paused", "I7"),
)
_add(
    "checkpoint not unique",
    Statement("save_steps", "on conflict", until="returning"),
    Table(
        "  completed_at integer not null,\n  primary key (run_id, name, occurrence)\n) strict, without rowid;",
        "  completed_at integer not null\n) strict;",
    ),
    tests=(_STORE + "a_completed_step_is_never_written_again",),
    crash=("step", "unanswered", "I4"),
)
_add(
    "checkpoint accepted after the end",
    Statement("save_steps", " and r.lease_owner = e.value ->> 0"),
    tests=(_STORE + "checkpoints_of_lost_leases_are_refused",),
)
_add(
    "end without its fence",
    Statement("finish", _fence(1, 2)),
    tests=(_STORE + "endings_of_lost_leases_are_refused_and_told_what_the_run_is",),
    crash=("finish", "paused", "I7"),
)
for _word, _status, _test in (
    ("completion", "completed", "endings_of_lost_leases_are_refused_and_told_what_the_run_is"),
    ("failure", "failed", "endings_of_lost_leases_are_refused_and_told_what_the_run_is"),
    ("hand-back", "pending", "endings_of_lost_leases_are_refused_and_told_what_the_run_is"),
    ("suspension", "waiting", "endings_of_lost_leases_are_refused_and_told_what_the_run_is"),
):
    _add(f"{_word} without its fence", _unfenced_for(_status), tests=(_STORE + _test,))
_add(
    "renewal without its fence",
    Statement("renew_leases", _fence(1, 2), " and r.status = 'leased'"),
    tests=(_STORE + "lost_leases_are_not_renewed",),
    crash=("renew", "paused", "I7"),
)
_add(
    "log without its fence",
    Statement("save_logs", _fence(1, 2)),
    tests=(_STORE + "log_lines_of_lost_leases_are_dropped",),
    crash=("step", "paused", "I7"),
)
_add(
    "progress without its fence",
    Statement("save_progress", _fence(1, 2)),
    tests=(_STORE + "progress_of_lost_leases_is_dropped",),
    crash=("step", "paused", "I7"),
)
_add(
    "try without its fence",
    Statement("save_attempts", _fence(7, 0)),
    tests=(_STORE + "tries_of_lost_leases_are_refused",),
    crash=("retry", "paused", "I7"),
)
_add(
    "refused checkpoint taken for a saved one",
    Code("engine.steps:Steps.run", ("if not accepted:", "if False:")),
    Code("engine.steps:Steps.run_sync", ("if not accepted:", "if False:")),
    Code("engine.steps:Steps._saved", ("self._execution.lease_lost(None)", "pass")),
    tests=("engine/test_cancel.py::test_s2_what_a_zombie_writes_is_refused[async]",),
)

# Leases: who holds one, for how long, and who may say that it is over.

_add(
    "claim in two statements",
    Patch("store.sqlite_file:SqliteFile.begin", _looks_before_it_locks),
    Patch("store.sqlite_file:SqliteFile.commit", _looks_after_the_commit),
    Statement("claim", _CLAIMABLE, _UNGUARDED),
    Statement("claim_within", _CLAIMABLE, _UNGUARDED),
    tests=("store/test_sqlite_specifics.py::test_a_claim_sees_what_was_claimed_while_it_waited_for_the_lock",),
)
_add(
    "leased run claimed again",
    Statement("claim", _CLAIMABLE, "p.status in ('pending', 'leased') and p.due = 1 and p.turn <> 1"),
    tests=(_STORE + "a_leased_run_is_not_claimed_again",),
)
_add(
    "cancelled run claimed again",
    Statement("claim", _CLAIMABLE, "p.status in ('pending', 'cancelled') and p.due = 1 and p.turn <> 1"),
    Statement("claim", "turn = iif(", "completed_at = null, turn = iif("),
    tests=(_STORE + "claim_cancel_expire_and_recall_touch_only_the_statuses_of_the_table",),
)
_add(
    "claim that makes no new generation",
    Statement("claim", "generation = generation + 1", "generation = max(generation, 1)"),
    tests=(_STORE + "every_claim_makes_a_new_generation",),
)
_add(
    "expiry that makes no new generation",
    Statement("expire", "generation = generation + 1, ", ""),
    tests=(_STORE + "an_expired_lease_is_taken_back",),
)
_add(
    "worker's own clock judges leases",
    Patch("store.relational:Relational._expire", _has_a_time_of_its_own),
    tests=(_STORE + "leases_are_judged_by_the_databases_clock_also_after_it_was_set_back",),
)
_add(
    "lease trusted from the answer",
    Code(
        "engine.worker:Worker._take",
        ("self._begin(row, claimed, asked)", "self._begin(row, claimed, now)"),
        ("self._pause = 0.0", "self._pause, now = 0.0, self.engine.clock.steady()"),
    ),
    tests=(_LEASES + "s2_a_lease_counts_from_when_it_was_asked_for_not_from_when_the_answer_came",),
)
_add(
    "renewal trusted from the answer",
    Code(
        "engine.leases:LeaseKeeper._renewed",
        ("asked + self._options.lease", "self._clock.steady() + self._options.lease"),
    ),
    tests=(_LEASES + "s2_a_renewal_counts_from_when_it_was_asked_for_not_from_when_the_answer_came",),
)
_add(
    "refused renewal swallowed",
    Code("engine.leases:LeaseKeeper._renewed", ("holder.lease_lost(None)", "pass")),
    tests=(_LEASES + "s2_a_refused_renewal_aborts_the_run_as_lease_lost",),
)
_add(
    "failed renewal taken for a renewal",
    Code(
        "engine.leases:LeaseKeeper._renew",
        (
            'self._hub.report(error, "lease-renewal")',
            "[self._renewed(one, asked, True) for one in self.held]; self._hub.report(error, 'lease-renewal')",
        ),
    ),
    tests=(_LEASES + "s2_a_renewal_that_failed_is_none",),
)
_add(
    "no self-fence",
    Code("engine.execution:Execution.check", ("self.engine.clock.steady() >= self.deadline", "False")),
    Code("engine.leases:LeaseKeeper.drop_expired", ("now >= holder.deadline or", "")),
    tests=(_LEASES + "a_lease_that_is_over_by_our_own_clock_stops_the_run_whatever_the_database_says",),
)
_add(
    "expired lease never reclaimed",
    Statement("expire", "status = 'leased' and", "false and"),
    tests=(_STORE + "an_expired_lease_is_taken_back",),
    crash=("step, sync job", "after", "I2"),
)
_add(
    "expired leases looked for only at the start",
    Code("engine.worker:Worker._look_after", ("self._sweep()", "self._tick is None and self._sweep()")),
    tests=(_LEASES + "s1_a_lease_that_runs_out_long_after_the_start_is_taken_over_without_anybody_asking",),
)
_add(
    "leases judged while the clock jumps",
    Code("engine.leases:Judge.may_judge", ("return now >= self._suspended_until", "return True")),
    tests=(_LEASES + "s9_a_jump_of_the_wall_clock_suspends_judging_for_one_lease",),
)
_add(
    "leases judged after the database was locked",
    Code("store.relational:Relational._expire", ("tx.waited > sweep.patience", "False")),
    tests=(_STORE + "nobody_judges_leases_after_waiting_too_long_for_the_right_to_write",),
)
_add(
    "sweep that does not renew what is held here",
    Code("engine.worker:Worker.sweep_tickets", ("*self.engine.keeper.renewals(), ", "")),
    tests=(_LEASES + "s9_a_sweep_renews_what_is_held_here_first_and_in_the_same_round",),
)
_add(
    "lease renewed that is over by our own clock",
    Code("engine.leases:LeaseKeeper.renewals", (" if asked < holder.deadline", "")),
    tests=(_LEASES + "s2_a_lease_that_is_over_by_our_own_clock_is_renewed_no_more",),
)
_add(
    "refused write tried for ever",
    Code("engine.execution:Execution.refused_for_now", ("self.check()", "pass")),
    tests=(_LEASES + "s2_who_can_not_write_gives_up_when_the_lease_is_over[sync]",),
)
_add(
    "own end taken for a lost lease",
    Code("engine.execution:Execution.lease_lost", ("if self._ending_now:", "if False:")),
    tests=(_LEASES + "s2_a_renewal_that_is_refused_because_of_the_runs_own_end_is_no_lost_lease",),
)
_add(
    "claim played again without giving back what it got",
    Code("store.relational:Relational._claim", ("if tx.replay and order.known is not None:", "if False:")),
    tests=(_STORE + "a_claim_played_again_gives_the_same_run_of_the_key",),
)
_add(
    "claim played again that takes from another one of its worker",
    Code(
        "engine.worker:Worker._claim",
        ("known = None if self._claims else tuple(self._executing)", "known = tuple(self._executing)"),
    ),
    tests=("engine/test_worker.py::test_a_claim_that_is_played_again_takes_nothing_from_another_one_of_its_worker",),
)
_add(
    "lost claim not recalled",
    Code("engine.worker:Worker._claimed", ("self._recall = True", "pass")),
    tests=("engine/test_worker.py::test_what_a_claim_leased_whose_answer_never_came_is_recalled_before_the_next_one",),
)

# Crashes: each is counted, and the count ends with progress.

_add(
    "crash not counted",
    Statement("expire", "crashes = crashes + 1", "crashes = crashes"),
    tests=(_STORE + "an_expired_lease_is_taken_back",),
)
_add(
    "crash count never reset",
    Statement("move_on", "crashes = 0", "crashes = crashes"),
    tests=(_STORE + "progress_by_a_checkpoint_ends_the_count_of_crashes",),
)
_add(
    "run that kills its workers never given up",
    Statement("expire", "crashes + 1 >= ?2", "false"),
    tests=(_STORE + "a_run_is_given_up_after_too_many_crashes",),
)
_add(
    "failed tries before a crash not asked for",
    Code("engine.attempts:Attempts.before", ("self._execution.row.generation > 1", "False")),
    tests=("engine/test_step_retries.py::test_s3_failed_tries_are_counted_across_a_crash",),
)
_add(
    "failed tries not counted",
    Statement("failed_tries", "a.error is not null", "false"),
    tests=(_STORE + "only_failed_tries_are_counted_each_for_its_step_and_its_attempt_of_the_run",),
    crash=("retry", "after", "I6"),
)
_add(
    "retry of a run not counted",
    Statement("finish", "attempt = r.attempt + (e.value ->> 8)", "attempt = r.attempt"),
    tests=(_STORE + "a_retry_counts_an_attempt_and_may_wait",),
)

# Replay: what is saved is given back, under the name that it had.

_add(
    "checkpoints not loaded on takeover",
    Statement("first_steps", "s.position < ?2", "s.position < 0 * ?2"),
    tests=(_STORE + "a_resumed_run_brings_its_steps_in_order",),
    crash=("finish", "before", "I5"),
)
_add(
    "second page of checkpoints not read",
    Code("engine.steps:Steps._find", ("and self._history.more", "and False")),
    Code("engine.steps:Steps._find_sync", ("and self._history.more", "and False")),
    tests=(
        "engine/test_replay.py::test_s3_steps_beyond_the_first_page_are_found_though_the_first_ones_were_not_saved",
    ),
)
_add(
    "step that returns before its checkpoint is committed",
    Code(
        "engine.steps:Steps.run",
        (
            "accepted = await self._execution.write(self._saving, result, attempt)",
            "self._engine.committer.join(*self._saving(result, attempt), pass_always=True); accepted = True",
        ),
    ),
    tests=("engine/test_replay.py::test_s3_a_step_returns_when_its_checkpoint_is_committed_and_not_before[async]",),
)
_add(
    "failure not replayed within its attempt",
    Code("engine.steps:Steps._counts", (" or saved.attempt == self._run.attempt", "")),
    tests=(
        "engine/test_replay.py::test_s3_a_final_failure_is_raised_again_in_the_same_attempt_without_charging_twice[async]",
    ),
)
_add(
    "failure replayed in every attempt",
    Code("engine.steps:Steps._counts", (" or saved.attempt == self._run.attempt", " or True")),
    tests=("engine/test_replay.py::test_s3_a_success_counts_in_a_new_attempt_and_a_failure_does_not",),
)
_add(
    "occurrence counted run-wide",
    Code("engine.branches:Branches.place", ("if self._owners.setdefault(name, caller) is not caller:", "if False:")),
    Code("engine.branches:Branches.enter", ("if place.key.name in self._busy:", "if False:")),
    tests=(
        "engine/test_parallel_steps.py::test_s3_one_name_in_two_branches_fails_the_run_with_advice[one_after_the_other]",
    ),
)
_add(
    "key of a step made anew in each execution",
    Code(
        "engine.context:_StepBase.idempotency_key",
        ("{self.run_id}:", "{self.run_id}:{self._execution.row.generation}:"),
    ),
    tests=("engine/test_replay.py::test_s3_the_key_of_a_step_is_the_same_in_every_execution",),
)
_add(
    "key of a trigger inside a run made anew in each execution",
    Code(
        "engine.execution:Execution.trigger_key",
        ("job_name, input_text)", 'job_name, input_text) and f"{self.row.generation}"'),
    ),
    tests=("engine/test_trigger_inside.py::test_s3_a_replay_triggers_nothing_twice",),
)
_add(
    "step begun after the run has returned",
    Code("engine.execution:Execution.check", ("self.returned or ", "")),
    tests=(
        "engine/test_sync_jobs.py::"
        "test_what_a_thread_does_between_the_return_of_its_run_and_the_written_end_is_refused",
    ),
)
_add(
    "step begun after the run was cancelled",
    Code("engine.execution:Execution.check", ("if self.closed or (", "if (")),
    tests=("engine/test_cancel.py::test_s4_no_except_and_no_finally_brings_a_cancelled_run_back[BaseException]",),
)

# The commit line: nothing is announced that isn't there, and everything that is there is known.

_add(
    "commit that keeps nothing",
    Code("commit.round:Rounds._transaction", ("self.store.commit(tx)", "self.store.rollback(tx)")),
    tests=(_LINE + "what_is_acknowledged_is_in_the_database[thread]",),
    crash=("trigger", "after", "I1"),
)
_add(
    "commit not synced to the disk",
    Code("store.sqlite_file:SqliteFile._open", ("pragma synchronous = full", "pragma synchronous = normal")),
    tests=("store/test_sqlite_specifics.py::test_every_connection_uses_the_wal_and_syncs_every_commit[False]",),
)
_add(
    "write lock taken at the first write",
    Code("store.sqlite_file:SqliteFile.wait_to_write", ('"begin immediate"', '"begin"')),
    tests=("store/test_sqlite_specifics.py::test_a_transaction_holds_the_write_lock_from_its_beginning",),
)
_add(
    "outcome announced before the commit",
    Code(
        "commit.round:Rounds._transaction",
        (
            "            self.store.commit(tx)\n",
            "            self._announce(answers)\n            self.store.commit(tx)\n",
        ),
    ),
    Code("commit.round:Rounds.serve", ("self._announce(answers)", "pass")),
    tests=(_LINE + "nothing_is_acknowledged_before_the_commit_has_returned[thread]",),
)
_add(
    "commit without an answer taken for a failure",
    Code("commit.round:Rounds.serve", ("            if replay:", "            if True:")),
    tests=(_LINE + "a_commit_without_an_answer_is_played_again_and_counts_once[thread-it happened]",),
)
_add(
    "commit without an answer taken for a success",
    Code("commit.round:Rounds._transaction", ("raise _NoAnswer from self.store.translate(error)", "return answers")),
    tests=(_LINE + "two_commits_in_a_row_without_an_answer_are_told_to_everybody[thread]",),
)
_add(
    "round played again as if for the first time",
    Code("commit.round:Rounds.serve", ("parts, replay = [tickets], True", "parts, replay = [tickets], False")),
    tests=(_LINE + "a_commit_without_an_answer_is_played_again_and_counts_once[thread-it happened]",),
)
_add(
    "id made inside a retry",
    Patch("store.relational:Relational.trigger", _makes_ids_anew),
    tests=(_LINE + "a_commit_without_an_answer_is_played_again_and_counts_once[thread-it happened]",),
)
_add(
    "end whose answer was lost taken for a lost lease",
    Code("store.relational:Relational.finish", ("before = state is not None and", "before = state is None and")),
    tests=(_STORE + "a_finish_repeated_after_a_lost_answer_is_accepted",),
)
_add(
    "end of a successor taken for one's own",
    Code(
        "store.relational:Relational.finish",
        ("state[0] == e.lease.generation and ", ""),
    ),
    tests=(_STORE + "a_zombies_ending_is_refused_beside_its_successors",),
)
_add(
    "log lines written again when a round is played again",
    Statement("save_logs", "where not e.value ->> 8 or not exists", "where true or not exists"),
    tests=(_STORE + "log_lines_are_written_once_when_the_answer_was_lost",),
)
_add(
    "halves of a round not tried",
    Code("commit.round:Rounds.serve", ("if len(tickets) == 1 or isinstance(meant, _TROUBLE):", "if True:")),
    tests=(_LINE + "one_ticket_that_fails_fails_alone[thread-0]",),
)
_add(
    "write taken back when nobody waits for it any more",
    Patch("commit.reply:Reply.__await__", _takes_its_write_along),
    tests=(_LINE + "an_await_that_is_cancelled_before_the_round_has_begun_leaves_the_write",),
)
_add(
    "wake-up of the worker lost between looking and sleeping",
    Code("engine.worker:Worker._take", ("or self._is_news(seen)", "")),
    Code("engine.worker:Worker._sleep_until", ("if self._is_news(seen):", "if False:")),
    tests=("engine/test_worker.py::test_a_trigger_that_comes_while_a_claim_finds_nothing_is_not_overlooked",),
)
_add(
    "trigger of this process overlooked by a claim before it",
    Code("engine.worker:Worker.wake", ("self._made += 1", "pass")),
    tests=(
        "engine/test_worker.py::test_a_trigger_that_is_written_right_after_a_claim_that_found_nothing_is_not_overlooked",
    ),
)
_add(
    "run begun in the context of another one",
    Code("engine.worker:Worker._begin", (", context=self._context.copy()", "")),
    tests=("engine/test_suspects.py::test_a_run_sees_no_context_variable_of_the_one_before_it",),
)
_add(
    "runs under suspicion executed together",
    Code("engine.worker:Worker._begin", ("row.crashes >= SUSPECT", "False")),
    tests=(
        "engine/test_suspects.py::test_s1_of_runs_whose_workers_died_twice_in_a_row_a_worker_executes_one_at_a_time",
    ),
)
_add(
    "retry that wakes nobody",
    Code("engine.worker:Worker.ended", ("self.wake()", "pass")),
    tests=(
        "engine/test_limits_and_others.py::"
        "test_s1_a_retry_is_taken_when_it_is_due_also_if_a_claim_was_under_way_when_the_attempt_ended[10]",
    ),
)
_add(
    "end that lets nobody look again",
    Code("engine.worker:Worker.freed", ("self._news += 1", "pass")),
    tests=(
        "engine/test_concurrency_keys.py::"
        "test_s5_an_end_that_comes_during_a_claim_that_finds_nothing_is_not_overlooked[False]",
    ),
)
_add(
    "wake-up of the line lost between looking and sleeping",
    Code("commit.committer:Committer._enter", ("if self._asleep:", "if False:")),
    tests=(_LINE + "no_wake_up_is_lost_between_joining_and_falling_asleep",),
)

# Ends, cancels and deletions.

_add(
    "output not kept",
    Statement("finish", "output = e.value ->> 5", "output = e.value ->> 6"),
    tests=(_STORE + "a_finished_run_has_its_output_and_no_lease",),
    crash=("finish", "after", "I8"),
)
_add(
    "cancel not guarded by status",
    Statement("cancel", _ACTIVE),
    tests=(_STORE + "claim_cancel_expire_and_recall_touch_only_the_statuses_of_the_table",),
    crash=("cancel", "paused", "I3"),
)
_add(
    "cancel that leaves the lease",
    Statement("cancel", "generation = generation + 1, ", ""),
    tests=(_STORE + "a_cancelled_run_is_over_at_once",),
)
_add(
    "delete not guarded by status",
    _STANDS,
    Statement("delete_runs", " and completed_at is not null"),
    tests=(_STORE + "only_ended_runs_are_deleted_and_the_others_say_what_they_are",),
    crash=("delete", "after", "I1"),
)
_add(
    "half a deletion",
    Statement("delete_logs", "delete from holdfast_logs where", "delete from holdfast_logs where false and"),
    tests=(_STORE + "a_deleted_run_is_gone_with_all_that_belonged_to_it",),
    crash=("purge", "after", "A11"),
)
_add(
    "outputs dropped while the run may go on",
    _STANDS,
    tests=(_STORE + "outputs_of_runs_that_have_not_ended_are_never_dropped",),
    crash=("drop", "after", "A11"),
)

# Keys, limits, order and times.

_add(
    "idempotency key not kept",
    Statement("insert_runs", "value ->> 6", "null"),
    tests=(_STORE + "an_idempotency_key_leads_to_one_run",),
    crash=("trigger", "after", "I11"),
)
_add(
    "key not passed on at an end",
    Statement("finish", "iif(status = 'pending' or turn = 2, null, concurrency_key)", "null"),
    tests=(_STORE + "the_end_of_a_run_lets_the_next_of_its_key_go",),
    crash=("keys", "after", "I2"),
)
_add(
    "key not passed on at a cancel",
    Statement("cancel", "returning id, concurrency_key", "returning id, null"),
    tests=(_STORE + "the_next_goes_when_the_holder_is_cancelled",),
    crash=("keys", "after", "I2"),
)
_add(
    "key not asked for by a claim",
    Statement("claim", "where c.concurrency_key is null or", "where true or"),
    Statement("bring_forward", "h.turn = 2", "h.turn = 3"),
    Table(
        "create unique index holdfast_runs_holding on holdfast_runs (concurrency_key)",
        "create index holdfast_runs_holding on holdfast_runs (concurrency_key)",
    ),
    tests=(_STORE + "of_one_key_one_run_is_leased_over_all_jobs",),
    crash=("keys", "after", "I10"),
)
_add(
    "one waiting run per key, claimed before or not",
    Table("where status = 'pending' and generation = 0 and", "where status = 'pending' and"),
    tests=(_STORE + "a_younger_run_of_its_key_does_not_keep_a_run_from_returning_to_pending",),
    crash=("keys, takeover", "before", "I2"),
)
_add(
    "last of a key goes first",
    Statement("claim", "(-o.priority, o.run_at, o.id) < (", "(-o.priority, o.run_at, o.id) > ("),
    tests=(_STORE + "within_a_key_runs_go_by_priority_then_time_then_id",),
)
_add(
    "limit of a job not asked for",
    Code("store.relational:Relational._lease", ("if order.limits:", "if False:")),
    tests=(_STORE + "a_limit_counts_the_leased_runs_of_a_job_over_workers_and_queues",),
)
_add(
    "delayed run claimed early",
    Statement("insert_runs", "value ->> 5 <= ?2", "1"),
    tests=(_STORE + "a_delayed_run_is_claimed_at_its_time",),
)
_add(
    "retry of a run begun before its delay",
    Statement("finish", "due = iif(e.value ->> 9 > 0, 0, r.due)", "due = r.due"),
    tests=(_STORE + "a_retried_run_waits_for_its_delay",),
)
_add(
    "deadline that nobody looks at",
    Statement("pass_deadlines", "deadline_at <= ?1 and", "false and"),
    tests=(_STORE + "a_run_that_has_not_ended_at_its_deadline_has_timed_out_whatever_it_does",),
)


# -- transactions of steps ---------------------------------------------------------------------------------------------

_WRITTEN = "engine.transactions:Transaction._written"
_TRANSACTION = "engine/test_step_transaction.py::test_"
_add(
    "checkpoint of a transaction in a second one",
    Code(_WRITTEN, ("if result.error is not None:", "if True:")),
    Code("engine.transactions:Transaction._once", ("if kept[0].is_saved:", "if kept[0].error is None:")),
    tests=(_TRANSACTION + "s2_a_checkpoint_that_is_refused_undoes_the_rows[async]",),
    crash=("transaction", "after", "I4"),
)
_add(
    "transaction without a look at the lease",
    Code(_WRITTEN, ("if lost:", "if False:")),
    tests=(_TRANSACTION + "s2_without_the_lease_nothing_is_called[async]",),
)
_add(
    "transaction committed without its checkpoint",
    Code(_WRITTEN, ("if not next(", "if False and not next(")),
    tests=(_TRANSACTION + "s2_a_checkpoint_that_is_refused_undoes_the_rows[async]",),
)
_add(
    "transaction made again without reading back",
    Code("engine.transactions:Transaction._is_there", ("pause = _FIRST_PAUSE", "return False")),
    tests=(_TRANSACTION + "s1_a_commit_that_happened_without_an_answer_is_found_and_counts[async]",),
)
_add(
    "transaction taken for one that came before it",
    Code("engine.transactions:Transaction._result", ("max(self._engine.clock.now(), began + 1)", "began")),
    tests=(_TRANSACTION + "s1_a_commit_that_is_only_seen_later_keeps_another_call_from_counting",),
)
_add(
    "statement after the transaction has rolled back by itself",
    Code("store.sqlite_shared:SharedConnection._judge", ("elif not self.in_transaction:", "elif False:")),
    tests=(
        "engine/test_step_transaction_sqlite.py::test_a_statement_that_rolls_back_by_itself_leaves_nothing[swallowed]",
    ),
)


# -- runs that wait, and trees -----------------------------------------------------------------------------------------

_WAITS = "engine/test_durable_waits.py::test_"
_WAKE_ABOVE = "self._wake(tx, [parent for _, parent, _ in ended if parent is not None])"
_add(
    "end that does not wake the run above",
    Code("store.below:Below._after_ends", (_WAKE_ABOVE, "pass")),
    tests=(_STORE + "the_last_end_below_wakes_the_run_above",),
    crash=("last end", "after", "I2"),
)
_add(
    "wake outside of the transaction of the end",
    Patch("store.below:Below._after_ends", _leaves_the_wake_for_later),
    Patch("store.below:Below._wake_sleepers", _wakes_what_was_left),
    tests=(_STORE + "the_last_end_below_wakes_the_run_above",),
    crash=("last end", "after", "I2"),
)
_add(
    "signal that wakes nobody",
    Code("store.below:Below.send_signals", ('if answer.status == "sent"', "if False")),
    tests=(_STORE + "a_signal_wakes_the_run_that_waits_for_it",),
    crash=("send", "after", "I2"),
)
_add(
    "sleeper that is not woken",
    Code("store.below:Below._wake_sleepers", ("self._wake(tx, [run_id for (run_id,) in due])", "pass")),
    tests=(_STORE + "a_sleeping_run_is_claimed_when_its_time_has_come_and_not_before",),
    crash=("sleep, takeover", "after", "I2"),
)
_add(
    "suspension that does not look at what came before it",
    Code(
        "store.relational:Relational.finish",
        ('self._wake(tx, [row[0] for row in written if row[3] == "waiting"])', "[]"),
    ),
    tests=(_STORE + "what_came_before_the_suspension_wakes_the_run_at_once",),
)
_SINCE = " and {}.created_at > (select w.created_at from holdfast_waits as w where w.run_id = r.id and w.key = {})"
_add(
    "signal lost that came before the wait",
    Statement(
        "take_signals",
        "where u.run_id = r.id and u.name = e.value ->> 4 and u.consumed_by is null",
        "where u.run_id = r.id and u.name = e.value ->> 4 and u.consumed_by is null"
        + _SINCE.format("u", "e.value ->> 3"),
    ),
    Statement("wake", "and s.consumed_by is null", "and s.consumed_by is null and s.created_at > w.created_at"),
    tests=("engine/test_signals_to_runs.py::test_s6_a_signal_that_was_sent_before_is_there",),
    crash=("signal, early", "after", "I2"),
)
_add(
    "signal taken without its checkpoint",
    Code("store.below:Below.take_signals", ("self.save_steps(tx, saves)", "[True] * len(saves)")),
    tests=(_STORE + "a_signal_is_taken_together_with_the_checkpoint_of_its_wait",),
    crash=("signal, taken", "after", "S6"),
)
_add(
    "signal taken by who has lost the lease",
    Statement("take_signals", _fence(2, 0)),
    tests=(_STORE + "who_has_lost_the_lease_takes_nothing",),
)
_add(
    "wait without its fence",
    Statement("save_waits", _fence(2, 0)),
    tests=(_STORE + "waits_of_lost_leases_are_refused",),
    crash=("sleep", "paused", "I7"),
)
_add(
    "checkpoint of a wait without its fence",
    Patch("store.relational:Relational.save_steps", _saves_ends_of_waits_for_anybody),
    tests=(_STORE + "a_refused_step_ends_no_wait",),
)
_add(
    "runs below written once more with a wait that is known",
    Code("store.below:Below.save_waits", ("sorted(standing.keys() - before)", "sorted(standing)")),
    tests=(_STORE + "a_wait_that_is_known_gets_no_other_runs_below",),
)
_add(
    "cancel that leaves what is below",
    Statement("cancel", "tree = iif(tree = 0, 0, 2)", "tree = tree"),
    tests=(_STORE + "what_is_below_a_cancelled_run_is_cancelled_level_by_level",),
    crash=("cancel tree", "after", "S7"),
)
_add(
    "what a completed run left going stays when those above it end",
    Code("store.below:Below._after_ends", ("tree == KEEPS and parent is not None", "False")),
    tests=(_STORE + "what_a_completed_run_left_going_goes_with_what_is_above_it",),
)
_add(
    "run of a cancelled tree claimed",
    Code("store.below:Below._doomed", ("if below else set()", "if below and False else set()")),
    tests=(_STORE + "no_run_of_a_cancelled_tree_is_claimed",),
)
_add(
    "suspended although a step runs",
    Code("engine.waits:Waits.consider", ("if execution.branches.busy > len(self._parked):", "if False:")),
    Code("engine.waits:Waits._suspend", (" and execution.branches.busy <= len(self._parked)", "")),
    tests=(_WAITS + "s6_a_run_is_not_suspended_while_a_step_runs",),
)


# -- several writers ---------------------------------------------------------------------------------------------------

_HELD = (
    "store/test_held_transactions.py::test_a_checkpoint_that_is_held_across_a_takeover_is_read_by_whoever_takes_over"
)
_POSTGRES = "store/test_postgres_place.py::test_"
_add(
    "checkpoint without its fence on PostgreSQL",
    Patch(
        "store.postgres:statements",
        _said_otherwise(
            "save_steps",
            "where r.generation = (e.value ->> 7)::bigint and r.lease_owner = e.value ->> 0\n",
            "where true\n",
        ),
    ),
    tests=("store/test_postgres.py::TestPostgres::test_checkpoints_of_lost_leases_are_refused",),
)
_add(
    "end without its fence on PostgreSQL",
    Patch(
        "store.postgres:statements",
        _said_otherwise("finish", " and r.generation = e.generation and r.lease_owner = e.owner"),
    ),
    tests=("store/test_postgres.py::TestPostgres::test_endings_of_lost_leases_are_refused_and_told_what_the_run_is",),
)
_add(
    "row lock dropped",
    Code("store.several_writers:SeveralWriters._lock", ("if runs:", "if False:")),
    tests=(_HELD + "[without a key-postgresql-in a round]",),
)
_add(
    "now() for clock_timestamp()",
    Patch("store.postgres:statements", _by_the_time_of_the_beginning),
    tests=(_POSTGRES + "what_waited_for_a_lock_is_judged_by_the_time_after_it",),
)
_add(
    "commit cancelled",
    Code(
        "store.postgres:PostgresStore.commit",
        ("raise StoreUnavailable(", "raise StoreError("),
    ),
    tests=(_POSTGRES + "a_commit_that_was_told_to_wait_no_longer_is_not_taken_for_a_rollback",),
)

_POSTPONED = "store/test_postgres_postponed.py::test_"
_add(
    "end that went with the commit leaves what is below it",
    Patch("store.postgres:statements", _said_otherwise("finish", "r.tree = 0 and ")),
    tests=(_POSTPONED + "the_end_of_a_run_with_something_below_it_takes_that_along",),
)
_add(
    "claim that went with the commit takes what needs more",
    Patch("store.postgres:statements", _said_otherwise("claim", " and not (select needs_more from n)")),
    tests=(_POSTPONED + "a_claim_takes_what_has_a_key_or_was_executed_before_in_its_order",),
)
_add(
    "what needs more is never served",
    Code("commit.round:Rounds.serve", ("return self.serve(left, full=True) if left else None", "return None")),
    tests=(_POSTPONED + "of_a_round_only_what_needs_more_is_served_again",),
)
_add(
    "commit in tables of another version",
    Patch("store.postgres:_OR_FAIL", lambda _: ""),
    tests=(_POSTPONED + "tables_that_somebody_has_migrated_are_refused_and_nothing_is_written",),
)
_add(
    "commit sent over a connection that is lost",
    Code("store.postgres:PostgresStore.commit", ("not connection.is_quiet()", "False")),
    tests=(_POSTPONED + "a_connection_that_was_lost_before_is_no_commit_without_an_answer",),
)
_add(
    "failed message taken for a commit without an answer",
    Code("store.postgres_telling:PostgresTelling._ended", ("if asks and", "if False and")),
    tests=(_POSTPONED + "a_lock_that_is_not_given_refuses_the_round",),
)
_add(
    "message without an answer taken for one that has failed",
    Code("store.postgres_telling:PostgresTelling._ended", ("if asks and", "if asks or")),
    tests=(_POSTPONED + "a_message_without_an_answer_is_read_back[True]",),
)
_add(
    "ends wait for the commit before a claim that counts them",
    Patch("store.postgres_postponed:_are_counted", lambda _: lambda _: False),
    tests=(_POSTPONED + "an_end_is_seen_by_the_claim_that_counts_it",),
)


# -- what other processes are told -------------------------------------------------------------------------------------

_add(
    "LISTEN after read",
    Code("store.postgres_watch:PostgresWatch._connect", ("        self._listen(link)\n", "")),
    Code(
        "store.postgres_watch:PostgresWatch._sleep",
        (
            "        with selectors",
            "        if self.connection is not None and not self._listens:\n"
            "            self._listen(self.connection)\n"
            "        with selectors",
        ),
    ),
    tests=("store/test_postgres_watch.py::test_who_listens_again_listens_before_it_reads",),
)
_add(
    "who is told of changes never looks for them",
    Code("engine.watcher:Watcher._patience", ("min(self._polling, _WAITING_TOLD)", "3600.0")),
    tests=("processes/test_notifications.py::test_w1_who_waits_without_any_notification_is_answered",),
)
