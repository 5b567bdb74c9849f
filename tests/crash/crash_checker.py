"""Looks for broken promises, in what the database, the world and the clients say of one history.

The invariants have the numbers of the reliability contract; each has one method that is named after it. The database
keeps an audit: triggers append a row per change, and the order of those rows is the order of the commits, also where
later rows hide what was there before. On a server that holds for the changes of one run only; where the order of two
runs matters, `sees` is asked.

Two orders meet here: that of the world (its numbers) and that of the commits (the audit's). What joins them is the
generation: a body says under which one it runs, and the audit has the row of the claim that made it. No clocks are
compared.

Shared by the campaign of crash points, where one process dies per history, and the storm (tests/storm), which adds
what needs several at once. Long because every invariant is here.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from crash_world import ADDRESS, Happening, read

Row = Mapping[str, Any]

#: What clients may ask for that makes runs go.
_GO = ("delete", "purge")
TERMINAL = {"completed", "failed", "timed_out", "finalize_failed", "cancelled"}

#: What a run must come to, by a plain reading of the jobs: its output, or the error that it fails with.
MODEL: dict[str, Any] = {
    "order": lambda n: n + n * 10 + 1,
    "batch": lambda n: n * (n + 1),
    "doomed": "Declined",
    "long": lambda n: 2 * n,
    "flaky": lambda n: n + 1,
    "again": lambda n: 2 * n,
    "pay": lambda n: n,
    "pay_blocking": lambda n: n,
}
#: Leases that a run may lose one after the other without saving anything in between.
MOST_CRASHES = 5
#: How often a step may fail: its retries, and once more.
TRIES = {"wobble": 3}

AUDIT_COLUMNS = (
    "id", "session", "kind", "run_id", "name", "before", "after", "generation_before", "generation", "owner_before",
    "writer", "tx", "seen",
)  # fmt: skip
AUDIT = """
create table audit (
  id integer primary key, session, kind, run_id, name, before, after, generation_before, generation, owner_before,
  writer, tx, seen);
create trigger audit_run after insert on holdfast_runs begin
  insert into audit (kind, run_id, name, after, generation)
  values ('run', new.id, new.job_name || ' ' || new.input, new.status, new.generation); end;
create trigger audit_change after update on holdfast_runs begin
  insert into audit (kind, run_id, name, before, after, generation_before, generation, owner_before)
  values ('change', new.id, case when new.attempt <> old.attempt then 'attempt'
      when old.status = 'leased' and new.crashes > old.crashes and old.lease_expires_at <= new.updated_at
      then 'expired' end,
    old.status, new.status, old.generation, new.generation, old.lease_owner); end;
create trigger audit_gone after delete on holdfast_runs begin
  insert into audit (kind, run_id, name, before) values ('gone', old.id, old.parent_id, old.status); end;
create trigger audit_step after insert on holdfast_steps begin
  insert into audit (kind, run_id, name, before, after, generation, writer)
  select 'step', new.run_id, new.name || '#' || new.occurrence, r.status, new.status, r.generation, new.generation
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_step_again after update on holdfast_steps begin
  insert into audit (kind, run_id, name, before, after, generation, writer)
  select case when new.output is null and old.output is not null then 'output dropped'
      when old.status = 'failed' and old.attempt < new.attempt then 'step anew' else 'step again' end, new.run_id,
    new.name || '#' || new.occurrence, r.status, new.status, r.generation, new.generation
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_step_gone after delete on holdfast_steps begin
  insert into audit (kind, run_id, name) values ('step gone', old.run_id, old.name); end;
create trigger audit_log after insert on holdfast_logs begin
  insert into audit (kind, run_id, name, before, generation, writer)
  select 'log', new.run_id, new.message, r.status, r.generation, new.generation
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_try after insert on holdfast_step_attempts begin
  insert into audit (kind, run_id, name, before, after, generation, writer)
  select 'try', new.run_id, new.name, r.status,
    case when new.error is null then 'begun' else new.run_attempt || '/' || new.number end, r.generation, new.generation
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_try_again after update on holdfast_step_attempts
when old.error is not new.error or old.generation <> new.generation or old.started_at <> new.started_at begin
  insert into audit (kind, run_id, name, before, after, generation, writer)
  select 'try', new.run_id, new.name, r.status,
    case when new.error is null then 'begun' else new.run_attempt || '/' || new.number end, r.generation, new.generation
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_progress after insert on holdfast_progress begin
  insert into audit (kind, run_id, name, before)
  select 'progress', new.run_id, new.progress, r.status from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_progress_again after update on holdfast_progress begin
  insert into audit (kind, run_id, name, before)
  select 'progress', new.run_id, new.progress, r.status from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_wait after insert on holdfast_waits begin
  insert into audit (kind, run_id, name, before, generation)
  select 'wait', new.run_id, new.key, r.status, r.generation from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_signal after insert on holdfast_signals begin
  insert into audit (kind, run_id, name, before)
  select 'signal', new.run_id, new.id, r.status from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_taken after update on holdfast_signals when old.consumed_by is not new.consumed_by begin
  insert into audit (kind, run_id, name, before, after, generation)
  select 'taken', new.run_id, new.id, r.status, new.consumed_by, r.generation
  from holdfast_runs as r where r.id = new.run_id; end;
"""
_PARTS = ("labels", "progress", "steps", "step_attempts", "logs", "waits", "signals")


def value_of(text: str | None) -> Any:
    """A stored value, of those that the jobs here make: `~` marks what is kept with its types."""
    if text is None:
        return None
    try:
        return json.loads(text.removeprefix("~"))
    except ValueError:
        return {"unreadable": text}


def sees(row: Row, other: Row) -> bool | None:
    """Whether the transaction of the other row could be seen when this one was written; None: only PostgreSQL tells."""
    if row["seen"] is None:
        return None
    tx = int(other["tx"])
    if tx == row["tx"]:
        return bool(other["id"] < row["id"])
    first, end, under_way = row["seen"].split(":")
    return tx < int(first) or (tx < int(end) and str(tx) not in under_way.split(","))


def _without_places(audit: Sequence[Row]) -> list[Row]:
    """Without what has only held an idempotency key: a run of no input, written and taken out by one transaction.

    What is not taken out again stays, and is found: it would be a run that its job can't read.
    """
    places: dict[str, int] = {}
    dropped: set[int] = set()
    for at, row in enumerate(audit):
        if row["kind"] == "run" and row["name"].endswith(" null"):
            places[row["run_id"]] = at
        elif row["kind"] == "gone" and row["before"] == "pending" and row["run_id"] in places:
            dropped |= {places.pop(row["run_id"]), at}
        else:
            places.pop(row["run_id"], None)
    return [row for at, row in enumerate(audit) if at not in dropped]


@dataclass
class History:
    """All that is known of what happened: the world's log, the audit, and what the tables hold at the end."""

    events: list[Happening]
    audit: Sequence[Row]
    runs: dict[str, Row]
    steps: Sequence[Row] = ()
    unlabelled: Sequence[str] = ()
    """Runs whose labels are in their row and not in the table."""
    orphans: Sequence[tuple[str, str]] = ()
    """Table and run, where the run is gone and something of it is not."""
    integrity: Sequence[str] = ("ok",)
    charges: Sequence[tuple[str, int, int]] = ()
    """What steps have written into a table of the user's, in the transaction of their checkpoint: run, part, value."""
    waits: Sequence[Row] = ()
    signals: Sequence[Row] = ()

    @classmethod
    def of(cls, folder: Path) -> History:
        if (folder / ADDRESS).exists():
            return cls._on_server(folder)
        database = sqlite3.connect(folder / "holdfast.db")
        database.row_factory = sqlite3.Row

        def ask(sql: str) -> list[Any]:
            return database.execute(sql).fetchall()

        try:
            return cls._told(
                folder,
                ask,
                [row[0] for row in ask("pragma integrity_check")],
                bool(ask("select 1 from sqlite_master where name = 'charges'")),
            )
        finally:
            database.close()

    @classmethod
    def _on_server(cls, folder: Path) -> History:
        import crash_places  # only where the tests of apps run

        place = crash_places.of(folder)
        assert place is not None
        return cls._told(folder, place.ask, ["ok"], place.has("charges"))

    @classmethod
    def _told(cls, folder: Path, ask: Callable[[str], list[Any]], integrity: list[str], charged: bool) -> History:
        return cls(
            read(folder / "world.log"),
            ask("select * from audit order by id"),
            {row["id"]: row for row in ask("select * from holdfast_runs")},
            ask("select * from holdfast_steps"),
            [row["id"] for row in ask(
                "select r.id from holdfast_runs as r left join holdfast_labels as l on l.run_id = r.id"
                " where r.labels <> '{}' and l.key is null")],
            [(table, row["run_id"]) for table in _PARTS for row in ask(
                f"select distinct run_id from holdfast_{table} where run_id not in"
                " (select id from holdfast_runs)")],
            integrity,
            [(row["run"], row["part"], row["value"]) for row in ask("select * from charges order by run, part")]
            if charged else (),
            ask("select * from holdfast_waits"),
            ask("select * from holdfast_signals"),
        )  # fmt: skip

    @cached_property
    def by_kind(self) -> dict[str, list[Happening]]:
        found: defaultdict[str, list[Happening]] = defaultdict(list)
        for event in self.events:
            found[event["ev"]].append(event)
        return found

    def said(self, kind: str, op: str | None = None) -> list[Happening]:
        return [event for event in self.by_kind.get(kind, []) if op in (None, event.get("op"))]

    @cached_property
    def of_run(self) -> dict[str, list[Happening]]:
        found: defaultdict[str, list[Happening]] = defaultdict(list)
        for event in self.events:
            if "run" in event:
                found[event["run"]].append(event)
        return found

    @cached_property
    def audit_of(self) -> dict[str, list[Row]]:
        found: defaultdict[str, list[Row]] = defaultdict(list)
        for row in self.audit:
            found[row["run_id"]].append(row)
        return found

    def witness(self, run: str) -> list[str]:
        """The lines about this run only, and what struck the processes that had to do with it."""
        events = self.of_run.get(run, [])
        pids = {event["pid"] for event in events}
        faults = self.said("fault")
        near = faults if len(faults) < 10 else [event for event in faults if event["pid"] in pids]
        mine = sorted([*events, *near], key=lambda event: event["seq"])
        of_database = [
            " ".join(f"{key}={row[key]}" for key in row.keys() if row[key] is not None)  # noqa: SIM118 - of a Row
            for row in self.audit_of.get(run, [])
        ]
        return ["world " + json.dumps(event) for event in mine] + ["audit " + line for line in of_database]


@dataclass
class Findings:
    """What is broken (invariant, words, the lines that show it), and what was looked at at all."""

    broken: list[tuple[str, str, list[str]]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def invariants(self) -> set[str]:
        return {invariant for invariant, _, _ in self.broken}

    def __str__(self) -> str:
        return "\n".join(
            f"{invariant}: {words}\n    " + "\n    ".join(lines) for invariant, words, lines in self.broken
        )


class Checker:
    """Checks one history after its recovery. `faultless`: nothing struck, so nothing may have happened twice."""

    #: How often a step may fail within an attempt of its run: its retries, and once more.
    tries: Mapping[str, int] = TRIES
    #: A body that is under way when the run is told to stop may be followed by the first of so many branches.
    branches: Mapping[str, int] = {}

    def __init__(self, history: History | Path, *, faultless: bool = False) -> None:
        self.faultless = faultless
        self.history = history if isinstance(history, History) else History.of(history)
        self.runs = self.history.runs
        self.audit = _without_places(self.history.audit)
        self.found = Findings()

    def invariants(self) -> list[Callable[[], None]]:
        """All of them, in the order in which their findings are told."""
        return [
            self.i19_the_storage_is_sound,
            self.i1_what_was_acknowledged_is_there,
            self.i2_every_run_has_ended,
            self.i3_a_run_ends_once,
            self.i4_a_step_is_saved_once,
            self.i4_rows_of_the_users_are_there_once_with_their_step,
            self.i5_no_body_begins_under_a_claim_that_came_after_its_checkpoint,
            self.i6_effects_happen_as_often_as_faults_allow,
            self.i7_nobody_writes_under_a_lost_lease,
            self.i8_all_readers_see_what_the_job_comes_to,
            self.i10_a_concurrency_key_has_one_holder,
            self.i11_an_idempotency_key_leads_to_one_run,
            self.i12_nothing_begins_after_a_cancel,
            self.a11_a_run_goes_as_a_whole,
        ]

    def check(self) -> Findings:
        for invariant in self.invariants():
            invariant()
        self._count()
        return self.found

    def need(self, holds: bool, invariant: str, words: str, run: str | None = None) -> None:
        self.found.counts["checks"] += 1
        if not holds:
            self.found.broken.append((invariant, words, self.history.witness(run) if run else []))

    # -- what several of them need -----------------------------------------------------------------------------

    @cached_property
    def claims(self) -> dict[tuple[str, int], int]:
        """The place in the audit of each claim, by run and the generation that it made."""
        return {
            (row["run_id"], row["generation"]): row["id"]
            for row in self.audit
            if row["kind"] == "change" and row["after"] == "leased" and row["before"] == "pending"
        }

    @cached_property
    def rows(self) -> dict[int, Row]:
        """Those of the audit, by their place in it."""
        return {row["id"]: row for row in self.audit}

    def came_after(self, claim: int | None, end: int) -> bool:
        """Whether a claim (a place in the audit) could know of the end of another run; None: of no claim is known."""
        # Its row of the audit sees no less than its own statement did, and no more than what the store asks after it:
        # whether a run above has ended. So a claim whose row sees such an end must have been given up.
        if claim is None:
            return False
        seen = sees(self.rows[claim], self.rows[end])
        return claim > end if seen is None else seen

    @cached_property
    def interrupted(self) -> Counter[str]:
        """How often a run's lease ended without a word about the run's own end."""
        times: Counter[str] = Counter()
        for row in self.audit:
            # By expiry, cancel and recall (with another generation), or handed back by the holder.
            handed_back = row["after"] == "pending" and row["before"] == "leased"
            taken = row["before"] == "leased" and row["generation_before"] != row["generation"]
            times[row["run_id"]] += row["kind"] == "change" and (handed_back or taken)
        return times

    @cached_property
    def wished_away(self) -> set[str]:
        """Runs that somebody asked to be deleted."""
        return {event["tag"] for op in _GO for event in self.history.said("asked", op)}

    @cached_property
    def purged(self) -> bool:
        return bool(self.history.said("asked", "purge"))

    @cached_property
    def cancelled(self) -> set[str]:
        """Acknowledged, or asked for and perhaps done."""
        return {event["run"] for event in self.history.said("ok", "cancel")} | {
            event["tag"] for event in self.history.said("asked", "cancel")
        }

    @cached_property
    def jobs(self) -> dict[str, str]:
        """The job of every run that was ever written, also of those that are gone."""
        return {row["run_id"]: row["name"].partition(" ")[0] for row in self.audit if row["kind"] == "run"}

    def input_of(self, run: Row) -> Any:
        (n,) = json.loads(run["input"]).values()
        return n

    # -- the invariants ----------------------------------------------------------------------------------------

    def i19_the_storage_is_sound(self) -> None:
        found = list(self.history.integrity)
        self.need(found == ["ok"], "I19", f"integrity_check: {found}")

    def i1_what_was_acknowledged_is_there(self) -> None:
        for event in self.history.said("ok"):
            kept = event["run"] in self.runs or self.purged or event["run"] in self.wished_away
            self.need(kept, "I1", f"acknowledged and lost: {event}", event["run"])
        for row in self.audit:
            if row["kind"] == "gone":
                wished = self.purged or row["run_id"] in self.wished_away
                self.need(wished, "I1", "deleted, and nobody asked for that", row["run_id"])
                self.need(row["before"] in TERMINAL, "I1", f"deleted while {row['before']}", row["run_id"])
        for run in self.history.unlabelled:
            self.need(False, "I1", "a run without its labels", run)

    def i2_every_run_has_ended(self) -> None:
        for run in self.runs.values():
            self.need(run["status"] in TERMINAL, "I2", f"not ended after the recovery: {run['status']}", run["id"])

    def i3_a_run_ends_once(self) -> None:
        ends: Counter[str] = Counter()
        for row in self.audit:
            if row["kind"] == "change":
                self.need(
                    row["before"] not in TERMINAL or row["before"] == row["after"],
                    "I3", f"an ended run changed: {row['before']} to {row['after']}", row["run_id"],
                )  # fmt: skip
                ends[row["run_id"]] += row["before"] not in TERMINAL and row["after"] in TERMINAL
        for run in self.runs.values():
            if run["status"] in TERMINAL:
                self.need(ends[run["id"]] == 1, "I3", f"ended {ends[run['id']]} times", run["id"])

    def i4_a_step_is_saved_once(self) -> None:
        """A failure may be replaced by what a later attempt of the run came to: that is another saving."""
        times: Counter[tuple[str, str]] = Counter()
        for row in self.audit:
            if row["kind"] in ("step", "step again"):
                times[row["run_id"], row["name"]] += 1
        for (run, step), count in times.items():
            self.need(count == 1, "I4", f"step {step} was saved {count} times", run)
        there = Counter((row["run_id"], row["name"], row["occurrence"]) for row in self.history.steps)
        for (run, step, _), count in there.items():
            self.need(count == 1, "I4", f"step {step} has {count} checkpoints", run)

    def i4_rows_of_the_users_are_there_once_with_their_step(self) -> None:
        """Of `step.transaction`: both parts, once each, if its step is saved, and nothing otherwise."""
        rows: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for run, part, value in self.history.charges:
            rows[run].append((part, value))
        saved = {run for (run, step), _ in self.checkpoints.items() if step == "pay#0"}
        for run in {*saved, *rows}:
            # Of a run that was purged nobody knows the input any more.
            n = self.input_of(self.runs[run]) if run in self.runs else next((n for _, n in rows[run]), None)
            wanted = [(0, n), (1, n)] if run in saved else []
            self.need(rows[run] == wanted, "I4", f"rows of the user's: {rows[run]}, not {wanted}", run)
            self.found.counts["rows of the user's"] += len(rows[run])

    @cached_property
    def checkpoints(self) -> dict[tuple[str, str], Row]:
        """The saving of each step's success, by run and `name#occurrence`."""
        return {
            (row["run_id"], row["name"]): row
            for row in self.audit
            if row["kind"] in ("step", "step anew") and row["after"] == "completed"
        }

    def i5_no_body_begins_under_a_claim_that_came_after_its_checkpoint(self) -> None:
        """A saved failure counts as well, within its attempt of the run."""
        saved: dict[tuple[str, str], tuple[int, int | None]] = {}
        attempt: Counter[str] = Counter()
        for row in self.audit:
            if row["name"] == "attempt":
                attempt[row["run_id"]] += 1
            elif row["kind"] in ("step", "step anew"):
                of = None if row["after"] == "completed" else attempt[row["run_id"]]
                saved[row["run_id"], row["name"].rpartition("#")[0]] = row["id"], of
        for event in self.history.said("begin"):
            at, of = saved.get((event["run"], event["step"]), (None, None))
            claimed = self.claims.get((event["run"], event["gen"]))
            if at is not None and claimed is not None and of in (None, event["attempt"]):
                words = f"step {event['step']} began under generation {event['gen']}, whose claim came after it"
                self.need(claimed < at, "I5", words, event["run"])

    def i6_effects_happen_as_often_as_faults_allow(self) -> None:
        """One and, for each time that the run was interrupted, one more; each under a lease, and a claim, of its own.

        And whatever the interruption: the key that a receiver could tell them by is always the same.
        """
        self._tries()
        effects: Counter[tuple[str, str]] = Counter()
        keys: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        generations: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for event in self.history.said("begin"):
            generations[event["run"], event["step"]].append(event["gen"])
        for event in self.history.said("effect"):
            effects[event["run"], event["step"]] += 1
            keys[event["run"], event["step"]].add(event["key"])
        for (run, step), count in effects.items():
            allowed = 1 if self.faultless else 1 + self.interrupted[run]
            self.need(count <= allowed, "I6", f"{count} effects of step {step}, {allowed} allowed", run)
            began = generations[run, step]
            self.need(len(set(began)) == len(began), "I6", f"step {step} began twice under one lease: {began}", run)
            self.need(keys[run, step] == {f"{run}:{step}"}, "I6", f"keys of {step}: {keys[run, step]}", run)
            self.found.counts["step bodies rerun"] += count - 1

    def _tries(self) -> None:
        """No step has failed more often than it may; a call whose failure is on no record was interrupted."""
        failed: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for row in self.audit:
            if row["kind"] == "try" and row["after"] != "begun":
                failed[row["run_id"], row["name"]].append(row["after"])
        calls = Counter((event["run"], event["step"]) for event in self.history.said("tried"))
        for (run, step), count in calls.items():
            numbers = failed[run, step]
            attempts = len({number.partition("/")[0] for number in numbers}) or 1
            words = f"step {step} has failed {len(numbers)} times, as numbers {numbers}"
            self.need(len(set(numbers)) == len(numbers) <= self.tries[step] * attempts, "I6", words, run)
            lost = 0 if self.faultless else self.interrupted[run]
            words = f"{count} calls of step {step}, {len(numbers)} failures on record, {lost} interruptions"
            self.need(count <= len(numbers) + lost, "I6", words, run)
            self.found.counts["failed tries"] += len(numbers)

    def i7_nobody_writes_under_a_lost_lease(self) -> None:
        """In the audit of the database, and by the answers that the stale writers got."""
        for row in self.audit:
            run = row["run_id"]
            if row["kind"] in ("step", "step anew", "log", "try"):
                words = f"generation {row['writer']} wrote a {row['kind']} while {row['generation']} was in force"
                self.need(row["writer"] == row["generation"] and row["before"] == "leased", "I7", words, run)
            elif row["kind"] == "progress":
                self.need(row["before"] == "leased", "I7", f"progress of a {row['before']} run", run)
            elif row["kind"] == "change":
                before, after = row["generation_before"], row["generation"]
                self.need(before <= after <= before + 1, "I7", f"generation {before} became {after}", run)
                stolen = row["before"] == row["after"] == "leased" and before != after
                self.need(not stolen, "I7", f"claimed for generation {after} while {before} was leased", run)
        for event in self.history.said("stale"):
            count, changed = event.get("count", 1), event["changed"]
            self.found.counts["stale writes attempted"] += count
            self.found.counts[f"stale {event['verb']}"] += count
            self.found.counts["stale writes accepted"] += changed if "count" in event else changed > 0
            self.found.counts[f"accepted {event['verb']}"] += changed if "count" in event else changed > 0
            run = event.get("of") or next(iter(self.runs), None)
            words = f"{event['verb']} by a process that was paused past its lease changed {changed} rows"
            self.need(changed == 0, "I7", words, run)

    def i8_all_readers_see_what_the_job_comes_to(self) -> None:
        """After the recovery; and whoever saw an end before that has seen the same end."""
        seen: defaultdict[str, list[Happening]] = defaultdict(list)
        for event in self.history.said("seen"):
            seen[event["run"]].append(event)
        for id, run in self.runs.items():
            if run["status"] not in TERMINAL:
                continue
            output = value_of(run["output"])
            self.need(bool(seen[id]) or not self.must_be_read(run), "I8", "nobody read it after the recovery", id)
            for event in [one for one in seen[id] if one["status"] in TERMINAL]:
                same = all(value == output for value in event["outputs"]) and event["status"] == run["status"]
                words = f"readers see {event['outputs']}, {event['status']}; it is {output}, {run['status']}"
                self.need(same, "I8", words, id)
            self.comes_to(run, output)

    def must_be_read(self, run: Row) -> bool:
        """Whether a reader has been there after the recovery."""
        return True

    def expected(self, run: Row) -> Any:
        """What the job makes of the run's input, or the name of the error that it fails with."""
        model = MODEL[run["job_name"]]
        return model if isinstance(model, str) else model(self.input_of(run))

    def comes_to(self, run: Row, output: Any) -> None:
        expected = self.expected(run)
        if run["status"] == "completed":
            self.need(not isinstance(expected, str) and output == expected, "I8", f"wrong output {output}", run["id"])
        elif run["status"] == "failed":
            meant = run["error_type"] == expected
            died = run["error_type"] == "WorkerCrashed" and run["crashes"] >= MOST_CRASHES
            self.need(meant or died, "I8", f"failed with {run['error_type']}: {run['error']}", run["id"])
        else:
            asked = run["id"] in self.cancelled
            self.need(asked, "I8", f"{run['status']}, and nobody asked for that", run["id"])

    def i11_an_idempotency_key_leads_to_one_run(self) -> None:
        of_key: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for run in self.runs.values():
            if run["idempotency_key"]:
                of_key[run["job_name"], run["idempotency_key"]].add(run["id"])
        asked = {event["tag"]: event for event in self.history.said("asked", "trigger") if event["key"]}
        for event in self.history.said("ok", "trigger"):
            if (one := asked.get(event["tag"])) is not None:
                of_key[one["job"], one["key"]].add(event["run"])
        for (job, key), runs in of_key.items():
            self.need(len(runs) == 1, "I11", f"key {key!r} of {job} led to {sorted(runs)}", min(runs))

    def i10_a_concurrency_key_has_one_holder(self) -> None:
        """Of one key one run is leased, and of one job and key one waits that was never claimed, after every commit."""
        leased: defaultdict[str, set[str]] = defaultdict(set)
        waiting: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for row in self.audit:
            run = self.runs.get(row["run_id"])
            if row["kind"] not in ("run", "change") or run is None or run["concurrency_key"] is None:
                continue
            for group, id, member in (
                (leased[run["concurrency_key"]], run["id"], row["after"] == "leased"),
                (
                    waiting[run["job_name"], run["concurrency_key"]], run["id"],
                    row["after"] == "pending" and row["generation"] == 0,
                ),
            ):  # fmt: skip
                group.discard(id)
                if member:
                    group.add(id)
                self.need(len(group) <= 1, "I10", f"of key {run['concurrency_key']!r} at once: {sorted(group)}", id)
            self.found.counts["keyed leases"] += row["after"] == "leased" and row["before"] == "pending"

    def i12_nothing_begins_after_a_cancel(self) -> None:
        """In the process that was asked it knows at once. Another one finds out when it saves the step that it is about
        to begin: so of each branch of the job one more body may begin there, under the old claim, and no later claim
        is made (I3: what has ended stays as it is).
        """
        paused = {event["pid"] for event in self.history.said("fault") if event["phase"] == "paused"}
        for event in self.history.said("ok", "cancel"):
            run = event["run"]
            branches = self.branches.get(self.jobs.get(run, ""), 1)
            if run in self.runs:
                status = self.runs[run]["status"]
                self.need(status == "cancelled", "I12", f"cancelled, acknowledged, and now {status}", run)
            begun = [one for one in self.history.of_run.get(run, []) if one["ev"] == "begin"]
            later = [one for one in begun if one["seq"] > event["seq"]]
            here = [one["step"] for one in later if one["pid"] == event["pid"]]
            there = Counter(one["pid"] for one in later if one["pid"] not in (event["pid"], *paused))
            words = f"began after the cancel was acknowledged: {here} in the same process, {dict(there)} in others"
            self.need(not here and all(count <= branches for count in there.values()), "I12", words, run)

    def a11_a_run_goes_as_a_whole(self) -> None:
        """With everything or not at all; and its outputs are dropped only when nothing will replay them."""
        for table, run in self.history.orphans:
            self.need(False, "A11", f"{table} of a run that is gone", run)
        for event in self.history.said("ok", "delete"):
            self.need(event["run"] not in self.runs, "A11", "its deletion was acknowledged", event["run"])
            self.found.counts["deleted"] += 1
        for event in self.history.said("purged"):
            # Those below others go with them, and are not counted.
            gone = sum(row["kind"] == "gone" and row["name"] is None for row in self.audit)
            self.need(gone == event["count"] > 0, "A11", f"{event['count']} purged, {gone} gone")
            self.found.counts["deleted"] += gone
        for row in self.audit:
            if row["kind"] == "output dropped":
                self.found.counts["outputs dropped"] += 1
                self.need(row["before"] in TERMINAL, "A11", f"output dropped while {row['before']}", row["run_id"])

    def _count(self) -> None:
        counts = self.found.counts
        for row in self.audit:
            taken = row["before"] == "leased" and row["after"] in ("pending", "failed")
            counts["takeovers"] += row["kind"] == "change" and taken and row["generation_before"] != row["generation"]
        counts["checkpoints"] = sum(row["kind"] == "step" for row in self.audit)
        counts["runs"] = len(self.runs)
        counts["faults"] = len(self.history.said("fault"))
