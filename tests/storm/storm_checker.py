"""What a storm may and may not have done: the invariants of the crash campaign, and those that need many at once.

Not here, because no storm on SQLite can break or show them: I13 (event streams: their own tests), I15 (time: there is
one clock), I16 (bad input: its own campaign).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from crash_checker import MOST_CRASHES, TERMINAL, Checker, History, Row, value_of
from crash_world import Happening
from storm_forest import TREE_JOBS
from storm_jobs import BRANCHES, ERRORS, LIMIT, ORDER, TRIES, total
from storm_tree_checker import Forest, is_body

#: What a worker may hold more than before it began, once nothing is under way: connections to the database, beside one
#: to the world for each thread; tasks that sleep; memory that the allocator keeps.
MORE_FDS = 16
MORE_TASKS = 2
MORE_RSS = 48 << 10
#: What a job's log says after each step.
_SAYS = "is done"
#: The job of a run that nobody can take.
UNKNOWN_JOB = "nobody knows this job"
#: What the doctor may find: this SQLite, the row that was made unreadable, the run that nobody can take, dead rows
#: after minutes of writing, and a notification that is slow on a machine this busy.
_KNOWN = ("sqlite", "payloads", "runs that nobody takes", "dead rows", "notifications")


class StormChecker(Checker):
    """`whole=False`: the storm did not come to its end, so what only the end can show is not asked for."""

    tries = TRIES
    branches = BRANCHES
    whole = True

    def __init__(self, history: History | Path, *, bad_rows: Mapping[str, str] | None = None) -> None:
        super().__init__(history)
        self.bad_rows = bad_rows or {}

    def invariants(self) -> list[Callable[[], None]]:
        base = super().invariants()
        if not self.whole:
            base.remove(self.i2_every_run_has_ended)
        return [
            *base,
            self.i1_all_of_a_batch_or_none,
            self.i2_everybody_is_served_after_the_faults,
            self.i6_the_generation_of_each_further_effect_was_lost,
            self.i7_who_has_lost_the_lease_begins_nothing_more,
            self.i8_the_output_is_made_of_the_checkpoints,
            self.i8_no_log_line_is_lost_or_doubled,
            self.i9_a_step_begins_when_the_one_before_is_saved,
            self.i9_runs_of_a_key_start_in_the_order_of_their_triggers,
            self.i10_executions_of_a_key_overlap_only_without_the_lease,
            self.i10_a_job_keeps_its_limit,
            self.i11_a_trigger_without_an_answer_has_happened_once_at_most,
            self.i14_only_who_makes_no_progress_is_given_up,
            self.i17_a_bad_row_stops_nobody,
            self.i18_nothing_is_held_when_all_is_quiet,
            self.i19_the_doctor_finds_nothing,
            *Forest(self).invariants(),
        ]

    # -- I1, I2 ------------------------------------------------------------------------------------------------

    def i1_all_of_a_batch_or_none(self) -> None:
        batches: defaultdict[str, list[Happening]] = defaultdict(list)
        for event in self.history.said("asked", "trigger"):
            if event.get("batch") is not None:
                batches[event["batch"]].append(event)
        # Those without an answer are asked for again after the faults, each by itself, if they have a key.
        again = {event["tag"] for event in self.history.said("asked again")}
        for batch, all_asked in batches.items():
            asked = [event for event in all_asked if event["tag"] not in again]
            there = [event for event in asked if self.made.get(self.name_of(event))]
            words = f"{len(there)} of the {len(asked)} runs of batch {batch} are there"
            run = self.made[self.name_of(there[0])][0] if there else None
            self.need(len(there) in (0, len(asked)), "I1", words, run)
            self.found.counts["batches"] += 1

    @cached_property
    def made(self) -> dict[str, list[str]]:
        """The runs that were ever written, by job and input."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for row in self.audit:
            if row["kind"] == "run":
                found[row["name"]].append(row["run_id"])
        return found

    def name_of(self, event: Happening) -> str:
        return f"{event['job']} {json.dumps({'n': event['n']}, separators=(',', ':'))}"

    def i2_every_run_has_ended(self) -> None:
        """Or waits for a recorded reason: nobody knows its job."""
        for run in self.runs.values():
            if run["id"] not in self.bad_rows:
                self.need(run["status"] in TERMINAL, "I2", f"not ended after the faults: {run['status']}", run["id"])

    def i2_everybody_is_served_after_the_faults(self) -> None:
        """The last operations of each client, which it does when nothing is struck any more, are all answered."""
        last = {event["tag"]: event for event in self.history.said("asked") if event.get("last")}
        answered = Counter((event["op"], event["tag"]) for event in self.history.said("ok"))
        for tag, event in last.items():
            self.need(answered[event["op"], tag] > 0, "I2", f"not served after the faults: {event}")
        clients = {event["client"] for event in last.values()}
        self.found.counts["clients at the end"] = len(clients)

    # -- I6, I7 ------------------------------------------------------------------------------------------------

    @cached_property
    def lost(self) -> dict[tuple[str, int], str]:
        """Leases that ended by another hand than the holder's, or were handed back; and what the run became."""
        return {
            (row["run_id"], row["generation_before"]): row["after"]
            for row in self.audit
            if row["kind"] == "change" and row["before"] == "leased"
            and (row["generation_before"] != row["generation"] or row["after"] == "pending")
        }  # fmt: skip

    def i6_the_generation_of_each_further_effect_was_lost(self) -> None:
        """Of several effects of one step only the one that was saved may have happened under a lease that was kept."""
        effects: defaultdict[tuple[str, str], list[Happening]] = defaultdict(list)
        for event in self.history.said("effect"):
            effects[event["run"], event["step"]].append(event)
        for (run, step), several in effects.items():
            saved = self.checkpoints.get((run, f"{step}#0"))
            kept = saved["writer"] if saved is not None else None
            if run in self.runs and self.runs[run]["status"] not in TERMINAL:
                continue  # not yet told: I2
            for event in several:
                excused = event["gen"] == kept or (run, event["gen"]) in self.lost
                words = f"an effect of {step} under generation {event['gen']}, which was neither saved nor lost"
                self.need(excused, "I6", words, run)
            self.found.counts["effects applied twice"] += len(several) - 1
        begun = self.history.said("begin")
        self.found.counts["step bodies begun"] += len(begun)
        self.found.counts["step bodies run again"] += len(begun) - len({(one["run"], one["step"]) for one in begun})
        self.found.counts["effects"] += sum(len(several) for several in effects.values())

    def i7_who_has_lost_the_lease_begins_nothing_more(self) -> None:
        """Once a later claim has begun a body, the earlier holder may have been about to begin one per branch."""
        first: dict[tuple[str, int], int] = {}
        begun = self.history.said("begin")
        for event in begun:
            first.setdefault((event["run"], event["gen"]), event["seq"])
        newest: dict[str, int] = {}
        late: Counter[tuple[str, int, int]] = Counter()
        for event in begun:
            run, gen = event["run"], event["gen"]
            if gen < newest.get(run, 0):
                late[run, gen, event["pid"]] += 1
            newest[run] = max(newest.get(run, 0), gen)
        for (run, gen, pid), count in late.items():
            branches = self.branches.get(self.jobs.get(run, ""), 1)
            words = f"{count} bodies begun under generation {gen} in process {pid}, after a later one had begun"
            self.need(count <= branches, "I7", words, run)
            self.found.counts["bodies begun after the lease was lost"] += count

    # -- I8 ----------------------------------------------------------------------------------------------------

    def must_be_read(self, run: Row) -> bool:
        return self.whole and run["id"] not in self.bad_rows

    def comes_to(self, run: Row, output: Any) -> None:
        if run["id"] in self.bad_rows or run["job_name"] in TREE_JOBS:
            return
        super().comes_to(run, output.get("total") if isinstance(output, dict) else output)

    def expected(self, run: Row) -> Any:
        job = run["job_name"]
        return ERRORS[job] if job in ERRORS else total(self.input_of(run))

    def i8_the_output_is_made_of_the_checkpoints(self) -> None:
        """Each part of a run's output is the value of its checkpoint, and the number of an effect of that very step."""
        saved: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        for row in self.history.steps:
            of_tree = self.jobs.get(row["run_id"]) in TREE_JOBS
            if row["status"] == "completed" and (not of_tree or is_body(row["name"])):
                saved[row["run_id"]][row["name"]] = value_of(row["output"])
        effects = {event["seq"]: event for event in self.history.said("effect")}
        for id, run in self.runs.items():
            for step, value in saved[id].items():
                effect = effects.get((value or {}).get("mark"), {"run": None, "step": None})
                words = f"checkpoint {step} holds {value}, which is no effect of its own"
                self.need((effect["run"], effect["step"]) == (id, step), "I8", words, id)
            if run["status"] == "completed" and id not in self.bad_rows and run["job_name"] not in TREE_JOBS:
                parts = [(saved[id].get(step) or {}).get("mark", 0) for step in ORDER[run["job_name"]]]
                marks = (value_of(run["output"]) or {}).get("marks")
                self.need(marks == parts, "I8", f"output of {marks}, checkpoints are {parts}", id)
        for event in self.history.said("seen"):
            for step, value in event.get("steps", {}).items():
                words = f"the reader sees {value} of {step}; saved is {saved[event['run']].get(step)}"
                self.need(value == saved[event["run"]].get(step), "I8", words, event["run"])

    def i8_no_log_line_is_lost_or_doubled(self) -> None:
        """Of each step that was followed by another checkpoint its line is there; under one lease never twice."""
        lines: defaultdict[str, set[str]] = defaultdict(set)
        times: Counter[tuple[str, int, str]] = Counter()
        for row in self.audit:
            if row["kind"] == "log":
                lines[row["run_id"]].add(row["name"])
                times[row["run_id"], row["writer"], row["name"]] += 1
        for (id, writer, line), count in times.items():
            self.need(count == 1, "I8", f"line {line!r} of generation {writer} is there {count} times", id)
        for id, run in self.runs.items():
            silent = run["job_name"] in ("fan", "flaky", *TREE_JOBS)
            if run["status"] == "completed" and not silent and id not in self.bad_rows:
                said = {f"{step} {_SAYS}" for step in ORDER[run["job_name"]]}
                self.need(said <= lines[id], "I8", f"log lines lost: {sorted(said - lines[id])}", id)
        for event in self.history.said("seen"):
            if "lines" in event:
                self.need(
                    set(event["lines"]) == lines[event["run"]], "I8", "a reader of its log misses lines", event["run"]
                )

    # -- I9, I10 -----------------------------------------------------------------------------------------------

    def i9_a_step_begins_when_the_one_before_is_saved(self) -> None:
        """Asked now and then, as the body began, over another connection: what it saw was committed."""
        gone = {row["run_id"] for row in self.audit if row["kind"] == "gone"}
        for event in self.history.said("begin"):
            if "saved" in event:
                words = f"{event['step']} began, and {event['before']} was not saved"
                self.need(event["saved"] or event["run"] in gone, "I9", words, event["run"])
                self.found.counts["looks at the step before"] += 1

    @cached_property
    def line_of(self) -> dict[str, tuple[str, str]]:
        """Job and concurrency key of the runs that have one."""
        return {
            run["id"]: (run["job_name"], run["concurrency_key"])
            for run in self.runs.values()
            if run["concurrency_key"] is not None
        }

    def i9_runs_of_a_key_start_in_the_order_of_their_triggers(self) -> None:
        written: dict[str, int] = {}
        newest: dict[tuple[str, str], int] = {}
        for row in self.audit:
            line = self.line_of.get(row["run_id"])
            if line is None:
                continue
            if row["kind"] == "run":
                written[row["run_id"]] = row["id"]
            elif (row["kind"], row["before"], row["after"], row["generation"]) == ("change", "pending", "leased", 1):
                at = written.get(row["run_id"], 0)
                self.need(at > newest.get(line, 0), "I9", f"started after a younger one of {line}", row["run_id"])
                newest[line] = max(at, newest.get(line, 0))

    def i10_executions_of_a_key_overlap_only_without_the_lease(self) -> None:
        """What still happens of an earlier holder happens because its lease was lost; such overlaps are counted."""
        holder: dict[str, tuple[str, int]] = {}
        before: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
        overlaps: set[tuple[str, int]] = set()
        for event in self.history.events:
            if event["ev"] not in ("begin", "effect") or event["run"] not in self.line_of:
                continue
            key, who = self.line_of[event["run"]][1], (event["run"], event["gen"])
            now = holder.setdefault(key, who)
            if who == now:
                continue
            if who in before[key]:
                words = f"generation {who[1]} still at it while {now} has its key, and it has not lost its lease"
                self.need(who in self.lost, "I10", words, who[0])
                overlaps.add(who)
            else:
                before[key].add(now)
                holder[key] = who
        self.found.counts["overlaps of a key"] += len(overlaps)

    def i10_a_job_keeps_its_limit(self) -> None:
        leased: set[str] = set()
        for row in self.audit:
            if row["kind"] in ("change", "gone") and self.jobs.get(row["run_id"]) == "narrow":
                leased.discard(row["run_id"])
                if row["kind"] == "change" and row["after"] == "leased":
                    leased.add(row["run_id"])
                self.need(len(leased) <= LIMIT, "I10", f"{len(leased)} runs of a job with limit {LIMIT}", row["run_id"])

    # -- I11 ---------------------------------------------------------------------------------------------------

    def i11_a_trigger_without_an_answer_has_happened_once_at_most(self) -> None:
        """No input belongs to two triggers, so each stands for one; retriggers make others with the same."""
        askers: defaultdict[str, set[int]] = defaultdict(set)
        for event in self.history.said("asked", "trigger"):
            if event["key"] is not None:
                askers[event["key"]].add(event["client"])
        self.found.counts["raced keys"] += sum(len(clients) > 1 for clients in askers.values())
        again: Counter[str] = Counter()
        names = {run: name for name, runs in self.made.items() for run in runs}
        for event in self.history.said("asked", "retrigger"):
            again[names.get(event["tag"], "")] += 1
        unanswered = {event["tag"] for event in self.history.said("asked", "trigger")}
        unanswered -= {event["tag"] for kind in ("ok", "refused") for event in self.history.said(kind, "trigger")}
        self.found.counts["triggers without an answer"] += len(unanswered)
        for event in self.history.said("asked", "trigger"):
            runs = self.made.get(self.name_of(event), [])
            words = f"triggered once, retriggered {again[self.name_of(event)]} times: {runs}"
            self.need(len(runs) <= 1 + again[self.name_of(event)], "I11", words, runs[0] if runs else None)
        refused = {event["tag"] for event in self.history.said("refused", "trigger")}
        for event in self.history.said("asked", "trigger"):
            if event["tag"] in refused and event["key"] is None:
                runs = self.made.get(self.name_of(event), [])
                self.need(not runs, "I11", f"refused, and there all the same: {runs}", runs[0] if runs else None)

    # -- I17, I18, I20 -----------------------------------------------------------------------------------------

    def i14_only_who_makes_no_progress_is_given_up(self) -> None:
        """Who lost its lease that often, with no checkpoint in between, as a job does that kills its worker; and nobody
        loses more.
        """
        in_a_row: Counter[str] = Counter()
        for row in self.audit:
            run = row["run_id"]
            if row["kind"] in ("step", "step anew"):
                in_a_row[run] = 0
            elif row["kind"] == "change" and row["before"] == "leased" and row["after"] in ("pending", "failed"):
                # Not what a worker puts back that holds no such lease any more: its claim got no answer, or the server
                # was away for longer.
                in_a_row[run] += row["name"] == "expired"
                words = f"{in_a_row[run]} leases lost in a row"
                self.need(in_a_row[run] <= MOST_CRASHES, "I14", words, run)
        for id, run in self.runs.items():
            # Who was above such a run may have its error, too.
            if (run["status"], run["error_type"]) == ("failed", "WorkerCrashed"):
                words = f"given up after {in_a_row[id]} leases lost in a row"
                self.need(in_a_row[id] == MOST_CRASHES, "I14", words, id)
                self.found.counts["given up"] += 1
                self.found.counts["given up beside it"] += run["job_name"] != "poison"

    def _count(self) -> None:
        super()._count()
        ended = {row["run_id"] for row in self.audit if row["kind"] == "change" and row["after"] in TERMINAL}
        self.found.counts["runs ended"] += len(ended)

    def i17_a_bad_row_stops_nobody(self) -> None:
        """Rows that nobody can execute were put among the others: they fail, or wait; and I2 holds for all others."""
        for id, wanted in self.bad_rows.items():
            if id in self.runs and self.whole:
                status = self.runs[id]["status"]
                self.need(status == wanted, "I17", f"a bad row is {status}, not {wanted}", id)
                self.found.counts["bad rows"] += 1

    def i18_nothing_is_held_when_all_is_quiet(self) -> None:
        """Each worker that is left holds what it held when it had just begun; and after its stop nothing at all."""
        fresh: dict[int, Happening] = {}
        for event in self.history.said("holdings"):
            who = f"worker {event['number']}, {event['when']}"
            if event["when"] == "fresh":
                fresh[event["pid"]] = event
            elif event["when"] == "quiet" and event["executing"] == event["held"] == event["backlog"] == 0:
                base = fresh[event["pid"]]
                fds = event["before"]["fds"] + MORE_FDS + len(event["threads"])
                self.need(event["fds"] <= fds, "I18", f"{who}: {event['fds']} fds, at most {fds} are needed")
                for what, more in (("tasks", MORE_TASKS), ("rss", MORE_RSS)):
                    words = f"{who}: {event[what]} {what}, {base[what]} at its start, {more} more allowed"
                    self.need(event[what] <= base[what] + more, "I18", words)
                self.found.counts["workers looked at when quiet"] += 1
            elif event["when"] == "stopped":
                left = [name for name in event["threads"] if name.startswith("holdfast")]
                self.need(not left, "I18", f"{who}: threads {left}")
                self.need(event["held"] == event["executing"] == 0, "I18", f"{who}: it holds runs")
                words = f"{who}: {event['fds']} fds, {event['before']['fds']} before"
                self.need(event["fds"] <= event["before"]["fds"], "I18", words)
                self.found.counts["workers looked at when stopped"] += 1

    def i19_the_doctor_finds_nothing(self) -> None:
        """But the row that was made unreadable."""
        for event in self.history.said("doctor"):
            bad = event["level"] == "fail" or (event["level"] == "warn" and event["check"] not in _KNOWN)
            self.need(not bad, "I19", f"the doctor finds: {event['check']}, {event['text']}")
            unread = (event["data"] or {}).get("unreadable", []) if event["check"] == "payloads" else []
            others = [one for one in unread if not any(bad_row in one for bad_row in self.bad_rows)]
            self.need(not others, "I19", f"the doctor can't read {others}")
            for one in (event["data"] or {}).get("untaken", []):
                known = one == {"job_name": UNKNOWN_JOB, "queue": "default", "runs": 1}
                self.need(known, "I19", f"the doctor says that nobody takes {one}")
            self.found.counts["findings of the doctor"] += 1


STALE = ("save_steps", "finish", "renew_leases", "save_progress", "save_logs")
#: The same of waits, which are fewer.
STALE_WAITS = ("save_waits", "take_signals")


def vacuous(counts: Counter[str], least: Mapping[str, int]) -> list[str]:
    """I20: what a campaign says it has tried, it has tried at least so often."""
    return [
        f"I20: {counts[what]} {what}, at least {many} are needed" for what, many in least.items() if counts[what] < many
    ]
