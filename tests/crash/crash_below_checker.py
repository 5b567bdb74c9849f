"""Looks for broken promises about runs that wait, and about trees, beside all others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import Any

from crash_below import CHILDREN, MODEL
from crash_checker import TERMINAL, Checker, Row


class BelowChecker(Checker):
    """As `Checker`, for histories in which runs wait for each other."""

    def invariants(self) -> list[Callable[[], None]]:
        return [
            *super().invariants(),
            self.s6_waits_are_written_under_a_lease,
            self.s6_a_signal_is_there_once_and_taken_with_its_checkpoint,
            self.s7_runs_below_exist_once_per_wait,
            self.s7_no_body_begins_below_a_run_that_has_ended_without_output,
        ]

    def above(self, run: Row) -> list[Row]:
        """The runs above it, the nearest first."""
        found: list[Row] = []
        while run["parent_id"] is not None and run["parent_id"] in self.runs:
            run = self.runs[run["parent_id"]]
            found.append(run)
        return found

    def expected(self, run: Row) -> Any:
        if run["is_finalize"]:
            parent = self.runs[run["parent_id"]]
            return MODEL[parent["job_name"]](self.input_of(parent))
        if run["job_name"] in MODEL:
            return MODEL[run["job_name"]](self.input_of(run))
        return super().expected(run)

    def comes_to(self, run: Row, output: Any) -> None:
        if run["status"] == "cancelled" and run["error_type"] == "ParentEnded":
            ended = any(one["status"] in TERMINAL - {"completed"} for one in self.above(run))
            self.need(ended, "S7", "cancelled with its tree, and nobody above it has ended", run["id"])
            return
        if run["status"] in ("failed", "finalize_failed") and run["id"] not in self.cancelled:
            # Somebody has cancelled one below it by hand.
            below = {one["id"] for one in self.runs.values() if run in self.above(one)}
            if below & self.cancelled:
                return
        super().comes_to(run, output)

    @cached_property
    def ends(self) -> dict[str, int]:
        """The place in the audit where a run has ended without its output."""
        return {
            row["run_id"]: row["id"]
            for row in self.audit
            if row["kind"] == "change" and row["before"] not in TERMINAL and row["after"] in TERMINAL - {"completed"}
        }

    def s6_waits_are_written_under_a_lease(self) -> None:
        """And, unless its run has ended, a wait that is saved is no longer there."""
        for row in self.audit:
            if row["kind"] in ("wait", "taken"):
                self.need(row["before"] == "leased", "S6", f"{row['kind']} of a {row['before']} run", row["run_id"])
                self.found.counts["waits" if row["kind"] == "wait" else "signals taken"] += 1

    def s6_a_signal_is_there_once_and_taken_with_its_checkpoint(self) -> None:
        """Sent twice under one key it is one; taken once, in one commit with the step that has it."""
        sent: Counter[str] = Counter()
        taken: Counter[str] = Counter()
        for at, row in enumerate(self.audit):
            if row["kind"] == "signal":
                sent[row["run_id"]] += 1
                self.need(row["before"] not in TERMINAL, "S6", f"sent to a {row['before']} run", row["run_id"])
            elif row["kind"] == "taken":
                taken[row["name"]] += 1
                near = [
                    one
                    for one in self.audit[at : at + 8]
                    if (one["kind"], one["run_id"], one["name"]) == ("step", row["run_id"], row["after"])
                ]
                self.need(len(near) == 1, "S6", f"{row['after']} took a signal without its checkpoint", row["run_id"])
        for signal, count in taken.items():
            self.need(count == 1, "S6", f"signal {signal} was taken {count} times")
        for run, count in sent.items():
            most = {"asks": 2, "asleep": 1}[self.jobs[run]]
            self.need(count <= most, "S6", f"{count} signals are there, {most} were sent", run)

    def s7_runs_below_exist_once_per_wait(self) -> None:
        below: defaultdict[str, list[Row]] = defaultdict(list)
        for run in self.runs.values():
            if run["parent_id"] is not None:
                below[run["parent_id"]].append(run)
        for parent, runs in below.items():
            self.need(parent in self.runs, "S7", "the run above it is gone", runs[0]["id"])
            places = Counter((run["awaited_as"], run["child_index"]) for run in runs)
            self.need(max(places.values()) == 1, "S7", f"more than one run in one place: {dict(places)}", parent)
            self.found.counts["runs below"] += len(runs)
        for run in self.runs.values():
            if (most := CHILDREN.get(run["job_name"])) is not None:
                count = len(below[run["id"]])
                right = count == most if run["status"] == "completed" else count <= most
                self.need(right, "S7", f"{run['status']} with {count} runs below it, not {most}", run["id"])
        saved = {(row["run_id"], row["name"]) for row in self.audit if row["kind"] in ("step", "step anew")}
        for row in self.audit:
            if row["kind"] == "wait" and row["run_id"] in self.runs:
                over = self.runs[row["run_id"]]["status"] != "completed" or (row["run_id"], row["name"]) in saved
                self.need(over, "S6", f"completed without the end of its wait {row['name']}", row["run_id"])

    def s7_no_body_begins_below_a_run_that_has_ended_without_output(self) -> None:
        """Not under a claim that came after that end: such claims are refused."""
        for run in self.runs.values():
            above = [self.ends[one["id"]] for one in self.above(run) if one["id"] in self.ends]
            if not above:
                continue
            self.found.counts["below an end"] += 1
            for event in self.history.of_run.get(run["id"], []):
                if event["ev"] == "begin":
                    claimed = self.claims.get((run["id"], event["gen"]))
                    words = f"step {event['step']} began under a claim that came after the end above it"
                    self.need(not any(self.came_after(claimed, end) for end in above), "S7", words, run["id"])
