"""Looks for broken promises, in what the database, the world and the client say of one case.

The invariants have the numbers of the reliability contract. The database keeps an audit: triggers append a row per
change, and the order of those rows is the order of the commits, also where later rows hide what was there before.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash_world import Happening, read

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
}
#: How often a step may fail: its retries, and once more.
TRIES = {"wobble": 3}

AUDIT = """
create table audit (
  id integer primary key, kind, run_id, name, before, after, generation_before, generation, owner_before, writer);
create trigger audit_run after insert on holdfast_runs begin
  insert into audit (kind, run_id, after, generation) values ('run', new.id, new.status, new.generation); end;
create trigger audit_change after update on holdfast_runs begin
  insert into audit (kind, run_id, before, after, generation_before, generation, owner_before)
  values ('change', new.id, old.status, new.status, old.generation, new.generation, old.lease_owner); end;
create trigger audit_gone after delete on holdfast_runs begin
  insert into audit (kind, run_id, before) values ('gone', old.id, old.status); end;
create trigger audit_step after insert on holdfast_steps begin
  insert into audit (kind, run_id, name, before, after, generation, writer)
  select 'step', new.run_id, new.name || '#' || new.occurrence, r.status, new.status, r.generation, new.generation
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_step_again after update on holdfast_steps begin
  insert into audit (kind, run_id, name, before, after)
  select iif(new.output is null and old.output is not null, 'output dropped', 'step again'), new.run_id,
    new.name || '#' || new.occurrence, r.status, new.status
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_step_gone after delete on holdfast_steps begin
  insert into audit (kind, run_id, name) values ('step gone', old.run_id, old.name); end;
create trigger audit_log after insert on holdfast_logs begin
  insert into audit (kind, run_id, name, before, generation, writer)
  select 'log', new.run_id, new.message, r.status, r.generation, new.generation
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_try after insert on holdfast_step_attempts begin
  insert into audit (kind, run_id, name, before, after, generation, writer)
  select 'try', new.run_id, new.name, r.status, iif(new.error is null, 'begun', new.number), r.generation,
    new.generation
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_try_again after update on holdfast_step_attempts
when old.error is not new.error or old.generation <> new.generation or old.started_at <> new.started_at begin
  insert into audit (kind, run_id, name, before, after, generation, writer)
  select 'try', new.run_id, new.name, r.status, iif(new.error is null, 'begun', new.number), r.generation,
    new.generation
  from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_progress after insert on holdfast_progress begin
  insert into audit (kind, run_id, name, before)
  select 'progress', new.run_id, new.progress, r.status from holdfast_runs as r where r.id = new.run_id; end;
create trigger audit_progress_again after update on holdfast_progress begin
  insert into audit (kind, run_id, name, before)
  select 'progress', new.run_id, new.progress, r.status from holdfast_runs as r where r.id = new.run_id; end;
"""


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
    """Checks one case after its recovery. `faultless`: nothing struck, so nothing may have happened twice."""

    def __init__(self, folder: Path, *, faultless: bool = False) -> None:
        self.faultless = faultless
        self.events = read(folder / "world.log")
        self.database = sqlite3.connect(folder / "holdfast.db")
        self.database.row_factory = sqlite3.Row
        self.runs = {row["id"]: row for row in self._ask("select * from holdfast_runs")}
        self.audit = self._ask("select * from audit order by id")
        self.found = Findings()

    def _ask(self, sql: str) -> list[sqlite3.Row]:
        return self.database.execute(sql).fetchall()

    def check(self) -> Findings:
        try:
            self._storage()
            self._acknowledged()
            self._ends()
            self._checkpoints()
            self._fences()
            self._effects()
            self._readers()
            self._keys()
            self._concurrency_keys()
            self._cancels()
            self._forgotten()
            self._count()
        finally:
            self.database.close()
        return self.found

    def _need(self, holds: bool, invariant: str, words: str, run: str | None = None) -> None:
        self.found.counts["checks"] += 1
        if not holds:
            self.found.broken.append((invariant, words, self._witness(run) if run else []))

    def _witness(self, run: str) -> list[str]:
        """The lines about this run only."""
        of_world = [json.dumps(event) for event in self.events if event.get("run") == run or event["ev"] == "fault"]
        of_database = [
            " ".join(f"{key}={row[key]}" for key in row.keys() if row[key] is not None)  # noqa: SIM118 - of a Row
            for row in self.audit
            if row["run_id"] == run
        ]
        return ["world " + line for line in of_world] + ["audit " + line for line in of_database]

    def _said(self, *kinds: str, op: str | None = None) -> list[Happening]:
        return [event for event in self.events if event["ev"] in kinds and op in (None, event.get("op"))]

    # -- the invariants ----------------------------------------------------------------------------------------

    def _storage(self) -> None:
        found = [row[0] for row in self._ask("pragma integrity_check")]
        self._need(found == ["ok"], "I19", f"integrity_check: {found}")

    def _acknowledged(self) -> None:
        for event in self._said("ok"):
            kept = event["run"] in self.runs or self._may_be_gone(event["run"])
            self._need(kept, "I1", f"acknowledged and lost: {event}", event["run"])
        for row in self.audit:
            if row["kind"] == "gone":
                self._need(self._may_be_gone(row["run_id"]), "I1", "deleted, and nobody asked for that", row["run_id"])
                self._need(row["before"] in TERMINAL, "I1", f"deleted while {row['before']}", row["run_id"])

    def _may_be_gone(self, run: str) -> bool:
        return any(event["op"] == "purge" or event["tag"] == run for event in self._said("asked") if event["op"] in _GO)

    def _forgotten(self) -> None:
        """A run goes with everything or not at all; its outputs are dropped when nothing will replay them."""
        for table in ("labels", "progress", "steps", "step_attempts", "logs", "waits", "signals"):
            for row in self._ask(f"select distinct run_id from holdfast_{table} where run_id not in "
                                 "(select id from holdfast_runs)"):  # fmt: skip
                self._need(False, "A11", f"{table} of a run that is gone", row["run_id"])
        for event in self._said("ok", op="delete"):
            self._need(event["run"] not in self.runs, "A11", "its deletion was acknowledged", event["run"])
            self.found.counts["deleted"] += 1
        for event in self._said("purged"):
            gone = sum(row["kind"] == "gone" for row in self.audit)
            self._need(gone == event["count"] > 0, "A11", f"{event['count']} purged, {gone} gone")
            self.found.counts["deleted"] += gone
        for row in self.audit:
            if row["kind"] == "output dropped":
                self.found.counts["outputs dropped"] += 1
                self._need(row["before"] in TERMINAL, "A11", f"output dropped while {row['before']}", row["run_id"])

    def _ends(self) -> None:
        ends: Counter[str] = Counter()
        for row in self.audit:
            if row["kind"] == "change":
                self._need(
                    row["before"] not in TERMINAL or row["before"] == row["after"],
                    "I3", f"an ended run changed: {row['before']} to {row['after']}", row["run_id"],
                )  # fmt: skip
                ends[row["run_id"]] += row["before"] not in TERMINAL and row["after"] in TERMINAL
        for run in self.runs.values():
            self._need(run["status"] in TERMINAL, "I2", f"not ended after the recovery: {run['status']}", run["id"])
            if run["status"] in TERMINAL:
                self._need(ends[run["id"]] == 1, "I3", f"ended {ends[run['id']]} times", run["id"])

    def _checkpoints(self) -> None:
        times: Counter[tuple[str, str]] = Counter()
        for row in self.audit:
            if row["kind"].startswith("step"):
                times[row["run_id"], row["name"]] += 1
        for (run, step), count in times.items():
            self._need(count == 1, "I4", f"step {step} was saved {count} times", run)
        saved = self._ask("select run_id, name, occurrence, count(*) from holdfast_steps group by 1, 2, 3")
        for run, step, _, count in saved:
            self._need(count == 1, "I4", f"step {step} has {count} checkpoints", run)
        # Whoever begins under a later generation was claimed after it was saved: its writer was fenced off since.
        by = {(row["run_id"], row["name"]): row["generation"] for row in self._ask("select * from holdfast_steps")}
        for event in self._said("begin"):
            writer = by.get((event["run"], event["step"]))
            words = f"step {event['step']} began under {event['gen']}, saved by {writer}"
            self._need(writer is None or event["gen"] <= writer, "I5", words, event["run"])

    def _fences(self) -> None:
        for row in self.audit:
            run = row["run_id"]
            if row["kind"] in ("step", "log", "try"):
                words = f"generation {row['writer']} wrote a {row['kind']} while {row['generation']} was in force"
                self._need(row["writer"] == row["generation"] and row["before"] == "leased", "I7", words, run)
            elif row["kind"] == "progress":
                self._need(row["before"] == "leased", "I7", f"progress of a {row['before']} run", run)
            elif row["kind"] == "change":
                before, after = row["generation_before"], row["generation"]
                self._need(before <= after <= before + 1, "I7", f"generation {before} became {after}", run)
        for event in self._said("stale"):
            self.found.counts["stale writes attempted"] += 1
            self.found.counts[f"stale {event['verb']}"] += 1
            self.found.counts["stale writes accepted"] += event["changed"] > 0
            paused = next((run for run in self.runs), None)
            words = f"{event['verb']} by a process that was paused past its lease changed {event['changed']} rows"
            self._need(event["changed"] == 0, "I7", words, paused)

    def _effects(self) -> None:
        interrupted: Counter[str] = Counter()
        for row in self.audit:
            # By expiry, cancel and recall (with another generation), or handed back by the holder.
            handed_back = row["after"] == "pending" and row["before"] == "leased"
            taken = row["before"] == "leased" and row["generation_before"] != row["generation"]
            interrupted[row["run_id"]] += row["kind"] == "change" and (handed_back or taken)
        self._tries(interrupted)
        effects: Counter[tuple[str, str]] = Counter()
        keys: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        generations: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for event in self._said("begin"):
            generations[event["run"], event["step"]].append(event["gen"])
        for event in self._said("effect"):
            effects[event["run"], event["step"]] += 1
            keys[event["run"], event["step"]].add(event["key"])
        for (run, step), count in effects.items():
            allowed = 1 if self.faultless else 1 + interrupted[run]
            self._need(count <= allowed, "I6", f"{count} effects of step {step}, {allowed} allowed", run)
            began = generations[run, step]
            self._need(len(set(began)) == len(began), "I6", f"step {step} began twice under one lease: {began}", run)
            self._need(keys[run, step] == {f"{run}:{step}"}, "I6", f"keys of {step}: {keys[run, step]}", run)
            self.found.counts["step bodies rerun"] += count - 1

    def _tries(self, interrupted: Counter[str]) -> None:
        """No step has failed more often than it may; a call whose failure is on no record was interrupted."""
        failed: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for row in self.audit:
            if row["kind"] == "try" and row["after"] != "begun":
                failed[row["run_id"], row["name"]].append(row["after"])
        calls = Counter((event["run"], event["step"]) for event in self._said("tried"))
        for (run, step), count in calls.items():
            numbers = failed[run, step]
            words = f"step {step} has failed {len(numbers)} times, as numbers {numbers}"
            self._need(len(set(numbers)) == len(numbers) <= TRIES[step], "I6", words, run)
            lost = 0 if self.faultless else interrupted[run]
            words = f"{count} calls of step {step}, {len(numbers)} failures on record, {lost} interruptions"
            self._need(count <= len(numbers) + lost, "I6", words, run)
            self.found.counts["failed tries"] += len(numbers)

    def _readers(self) -> None:
        last = {event["run"]: event for event in self._said("seen")}
        for id, run in self.runs.items():
            if run["status"] not in TERMINAL:
                continue
            seen = last.get(id)
            self._need(seen is not None, "I8", "nobody read it after the recovery", id)
            output = None if run["output"] is None else json.loads(run["output"])
            if seen is not None:
                same = all(value == output for value in seen["outputs"]) and seen["status"] == run["status"]
                self._need(same, "I8", f"readers see {seen['outputs']}, {seen['status']}; it is {output}", id)
            expected = MODEL[run["job_name"]]
            if run["status"] == "completed":
                (n,) = json.loads(run["input"]).values()
                right = not isinstance(expected, str) and output == expected(n)
                self._need(right, "I8", f"wrong output {output}", id)
            elif run["status"] == "failed":
                meant = run["error_type"] == expected
                died = run["error_type"] == "WorkerCrashed" and run["crashes"] >= 5
                self._need(meant or died, "I8", f"failed with {run['error_type']}: {run['error']}", id)
            else:
                self._need(id in self._cancelled(), "I8", f"{run['status']}, and nobody asked for that", id)

    def _keys(self) -> None:
        of_key: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for run in self.runs.values():
            if run["idempotency_key"]:
                of_key[run["job_name"], run["idempotency_key"]].add(run["id"])
        asked = {event["tag"]: event for event in self._said("asked", op="trigger") if event["key"]}
        for event in self._said("ok", op="trigger"):
            if (one := asked.get(event["tag"])) is not None:
                of_key[one["job"], one["key"]].add(event["run"])
        for (job, key), runs in of_key.items():
            self._need(len(runs) == 1, "I11", f"key {key!r} of {job} led to {sorted(runs)}", min(runs))
        for row in self._ask("select r.id, l.key from holdfast_runs as r left join holdfast_labels as l"
                             " on l.run_id = r.id where r.labels <> '{}' and l.key is null"):  # fmt: skip
            self._need(False, "I1", "a run without its labels", row["id"])

    def _concurrency_keys(self) -> None:
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
                self._need(len(group) <= 1, "I10", f"of key {run['concurrency_key']!r} at once: {sorted(group)}", id)
            self.found.counts["keyed leases"] += row["after"] == "leased" and row["before"] == "pending"

    def _cancelled(self) -> set[str]:
        """Acknowledged, or asked for and perhaps done."""
        return {event["run"] for event in self._said("ok", op="cancel")} | {
            event["tag"] for event in self._said("asked", op="cancel")
        }

    def _cancels(self) -> None:
        paused = {event["pid"] for event in self._said("fault") if event["phase"] == "paused"}
        for event in self._said("ok", op="cancel"):
            run = event["run"]
            if run in self.runs:
                status = self.runs[run]["status"]
                self._need(status == "cancelled", "I12", f"cancelled, acknowledged, and now {status}", run)
            later = [one for one in self._said("begin") if one["run"] == run and one["seq"] > event["seq"]]
            # Here it knows at once. Another process finds out when it saves the step that it is about to begin.
            here = [one["step"] for one in later if one["pid"] == event["pid"]]
            there = [one["step"] for one in later if one["pid"] not in (event["pid"], *paused)]
            words = f"began after the cancel was acknowledged: {here} in the same process, {there} in others"
            self._need(not here and len(there) <= 1, "I12", words, run)

    def _count(self) -> None:
        counts = self.found.counts
        for row in self.audit:
            taken = row["before"] == "leased" and row["after"] in ("pending", "failed")
            counts["takeovers"] += row["kind"] == "change" and taken and row["generation_before"] != row["generation"]
        counts["checkpoints"] = sum(row["kind"] == "step" for row in self.audit)
        counts["runs"] = len(self.runs)
        counts["faults"] = len(self._said("fault"))
