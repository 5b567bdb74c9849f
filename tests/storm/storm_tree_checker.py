"""What trees of runs may and may not have done, in a history of the storm: S6 and S7 by the plain reading of each tree.

Part of `StormChecker`: its invariants ask for each run by itself; these look at what runs have to do with each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from crash_checker import MOST_CRASHES, TERMINAL, Row, value_of
from storm_forest import TREE_JOBS
from storm_trees import KINDS, Reading, node_of, read, root_of, worth

if TYPE_CHECKING:
    from storm_checker import StormChecker

#: Statements, and rounds, in which something becomes of waits and trees.
COMMITS = (
    "save_waits", "standing_waits", "has_tree", "drop_waits", "wake", "sleepers_due", "send_signals", "sent_signals",
    "take_signals", "taken_signals", "cancel_below", "settle_trees", "delete_waits", "doomed", "above_ended",
    "commit with save_waits", "commit with take_signals", "commit with send_signals", "commit with cancel_below",
)  # fmt: skip
_NO_OUTPUT = TERMINAL - {"completed"}
#: By the beginning of a wait's name.
_KINDS = {
    "nap": "sleep", "hear": "signal", "silence": "signal that never comes", "call": "call", "gather": "gather",
    "map": "map", "(children)": "children", "(finalize)": "finalize", "1. ": "sequence", "2. ": "sequence",
    "iteration": "loop",
}  # fmt: skip


def kind_of(key: str) -> str:
    """What a wait of this key is for."""
    return next((kind for begin, kind in _KINDS.items() if key.startswith(begin)), "other")


def is_body(step: str) -> bool:
    """Whether a step of a tree has a function; otherwise it was a wait, or a parent's return."""
    return step in ("close", "stage_one", "stage_two", "turn") or (
        step.rstrip("0123456789") in ("step", "beside") and step[-1].isdigit()
    )


class Forest:
    """All trees of a history."""

    def __init__(self, checker: StormChecker) -> None:
        self.checker = checker
        self.history = checker.history
        self.audit = checker.audit
        self.need = checker.need
        self.counts = checker.found.counts

    def invariants(self) -> list[Callable[[], None]]:
        return [
            self.s6_waits_and_takings_are_under_a_lease_and_go_with_their_end,
            self.s6_a_signal_is_there_once_and_taken_with_its_checkpoint,
            self.s7_each_place_has_one_run,
            self.s7_each_run_comes_to_what_was_drawn,
            self.s7_all_that_was_asked_for_was_done,
            self.s7_below_an_end_nothing_goes_on,
            self.count_what_happened,
        ]

    # -- which runs --------------------------------------------------------------------------------------------

    @cached_property
    def runs(self) -> dict[str, Row]:
        return {id: run for id, run in self.checker.runs.items() if run["job_name"] in TREE_JOBS}

    @cached_property
    def places(self) -> dict[str, str]:
        """Where each run is in its tree."""
        found: dict[str, str] = {}
        for id in self.runs:
            self._place(id, found)
        return found

    def _place(self, id: str, found: dict[str, str]) -> str:
        if id not in found:
            run = self.runs[id]
            if run["job_name"] in KINDS:
                found[id] = self.checker.input_of(run)
            else:
                above = self._place(run["parent_id"], found)
                part = run["awaited_as"] if run["job_name"] == "turn" else run["job_name"]
                found[id] = f"{above}/{'finalize' if run['is_finalize'] else part}"
        return found[id]

    @cached_property
    def trees(self) -> dict[str, list[str]]:
        """The runs of each tree, by the place of its root."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for id, place in self.places.items():
            found[root_of(place)].append(id)
        return found

    def above(self, id: str) -> list[str]:
        """The runs above it, the nearest first."""
        found: list[str] = []
        while (parent := self.runs[id]["parent_id"]) is not None and parent in self.runs:
            found.append(parent)
            id = parent
        return found

    def was_given_up(self, run: Row) -> bool:
        return (run["status"], run["error_type"]) == ("failed", "WorkerCrashed") and run["crashes"] >= MOST_CRASHES

    def _broken_off(self, run: Row) -> bool:
        return run["status"] == "cancelled" or run["status"] not in TERMINAL or self.was_given_up(run)

    @cached_property
    def readings(self) -> dict[str, Reading]:
        """What each tree must come to, given which of its runs have lost their lease too often."""
        return {
            root: read(root, frozenset(self.places[id] for id in ids if self.was_given_up(self.runs[id])))
            for root, ids in self.trees.items()
        }

    @cached_property
    def ends(self) -> dict[str, int]:
        """The place in the audit of each end."""
        return {
            row["run_id"]: row["id"]
            for row in self.audit
            if row["kind"] == "change" and row["before"] not in TERMINAL and row["after"] in TERMINAL
        }

    @cached_property
    def known(self) -> dict[str, int]:
        """The place in the audit from which on others may know of each end, at the earliest. MariaDB doesn't tell what
        a transaction sees, and others write while it is under way: what has ended at the same microsecond is taken for
        one transaction there.
        """
        if not any(row["session"] is not None and row["seen"] is None for row in self.audit):
            return self.ends
        when = {id: self.runs[id]["completed_at"] for id in self.ends if id in self.runs}
        last: dict[int, int] = {}
        for id, at in when.items():
            last[at] = max(self.ends[id], last.get(at, 0))
        return {id: last[at] for id, at in when.items()}

    def ended_above(self, id: str) -> list[int]:
        """The places in the audit of the ends without output above this run."""
        above = [one for one in self.above(id) if self.runs[one]["status"] in _NO_OUTPUT]
        return [self.known[one] for one in above if one in self.known]

    # -- S6 ----------------------------------------------------------------------------------------------------

    def s6_waits_and_takings_are_under_a_lease_and_go_with_their_end(self) -> None:
        for row in self.audit:
            if row["kind"] in ("wait", "taken"):
                words = f"{row['kind']} of {row['name']} while {row['before']}"
                self.need(row["before"] == "leased", "S6", words, row["run_id"])
        for wait in self.history.waits:
            run = self.checker.runs.get(wait["run_id"])
            words = f"a wait {wait['key']} of a run that is {run['status'] if run is not None else 'gone'}"
            self.need(run is not None and run["status"] not in TERMINAL, "S6", words, wait["run_id"])

    def s6_a_signal_is_there_once_and_taken_with_its_checkpoint(self) -> None:
        """Sent twice under one key it is one; who has ended that wait has taken it; an answer to the sender counts."""
        saved = {(row["run_id"], f"{row['name']}#{row['occurrence']}"): row for row in self.history.steps}
        sent: Counter[tuple[str, str]] = Counter()
        taken: Counter[str] = Counter(row["name"] for row in self.audit if row["kind"] == "taken")
        takers: set[tuple[str, str]] = set()
        for signal in self.history.signals:
            run, by = signal["run_id"], signal["consumed_by"]
            sent[run, signal["name"]] += 1
            self.need(taken[signal["id"]] == (by is not None), "S6", f"taken {taken[signal['id']]} times", run)
            if by is not None:
                takers.add((run, by))
                step = saved.get((run, by))
                value = step is not None and step["status"] == "completed" and value_of(step["output"])
                words = f"{by} took a signal of {signal['value']} and holds {value}"
                self.need(value == value_of(signal["value"]), "S6", words, run)
        for (run, name), count in sent.items():
            self.need(count == 1, "S6", f"{count} signals {name} are there, sent under one key", run)
        for (run, step), row in saved.items():
            if step.startswith("hear") and row["status"] == "completed" and run in self.runs:
                self.need((run, step) in takers, "S6", f"{step} is over, and it has taken no signal", run)
        for event in self.history.said("ok", "signal"):
            known = sent[event["run"], event["tag"].rpartition(" ")[2]]
            self.need(known == 1, "S6", "a signal that was acknowledged is not there", event["run"])
        for event in self.history.said("refused", "signal"):
            run = self.checker.runs.get(event["run"])
            ended = run is not None and run["status"] in TERMINAL
            self.need(ended, "S6", f"a signal was refused: {event['error']}", event["run"])

    # -- S7 ----------------------------------------------------------------------------------------------------

    def s7_each_place_has_one_run(self) -> None:
        """No child twice, whatever was struck; one finalize per parent. And whoever is below is below somebody."""
        for place, count in Counter(self.places.values()).items():
            id = next(id for id, one in self.places.items() if one == place) if count > 1 else None
            self.need(count == 1, "S7", f"{count} runs in the place {place}", id)
        for id, run in self.runs.items():
            if run["parent_id"] is not None:
                self.need(run["parent_id"] in self.runs, "S7", "the run above it is gone", id)
                self.counts["runs below"] += 1

    def s7_each_run_comes_to_what_was_drawn(self) -> None:
        """Its output, or its failure; or it was cancelled, as was asked for, or because a run above it had ended."""
        for id, run in self.runs.items():
            place, status = self.places[id], run["status"]
            if status not in TERMINAL or self.was_given_up(run):
                continue  # I2, I14
            if status == "cancelled":
                asked = run["parent_id"] is None and id in self.checker.cancelled
                below = run["error_type"] == "ParentEnded" and bool(self.ended_above(id))
                self.need(asked or below, "S7", f"{place} is cancelled ({run['error_type']}), for no reason", id)
                continue
            meant = self.readings[root_of(place)].outcomes.get(place)
            told = value = None
            if meant is not None:
                told = (meant.status, meant.value if meant.status == "completed" else meant.error)
                value = worth(value_of(run["output"])) if status == "completed" else run["error_type"]
            self.need(told == (status, value), "S7", f"{place} came to {status}, {value}; drawn was {told}", id)
            self.counts["outputs that were computed"] += 1
            self.counts["of them failures"] += status != "completed"

    def s7_all_that_was_asked_for_was_done(self) -> None:
        """Of a tree that nobody broke off all runs are there, and no others; of each run its steps, once at least."""
        effects = {(event["run"], event["step"]) for event in self.history.said("effect")}
        for root, ids in self.trees.items():
            reading = self.readings[root]
            places = {self.places[id] for id in ids}
            odd = places - reading.outcomes.keys()
            self.need(not odd, "S7", f"runs that nobody has drawn: {sorted(odd)[:3]}", ids[0])
            if not any(self._broken_off(self.runs[id]) for id in ids):
                missing = reading.outcomes.keys() - places
                self.need(not missing, "S7", f"runs that should be there: {sorted(missing)[:3]}", ids[0])
                self.counts["whole trees"] += 1
            for id in ids:
                if self.runs[id]["status"] == "completed":
                    for step in reading.steps.get(self.places[id], ()):
                        done = (id, step) in effects and (id, f"{step}#0") in self.checker.checkpoints
                        self.need(done, "S7", f"{self.places[id]} completed without its step {step}", id)

    def s7_below_an_end_nothing_goes_on(self) -> None:
        """Below a run that has ended without its output: no claim that came later is used for anything, and whatever
        had not ended yet was cancelled, but what an earlier claim still brought to its end.
        """
        last: dict[str, int] = {}
        for (id, _), at in self.checker.claims.items():
            last[id] = max(at, last.get(id, 0))
        for id, run in self.runs.items():
            above = self.ended_above(id)
            if not above:
                continue
            self.counts["below an end"] += 1
            for event in self.history.of_run.get(id, []):
                if event["ev"] == "begin":
                    claimed = self.checker.claims.get((id, event["gen"]))
                    words = f"step {event['step']} began under a claim that came after the end above it"
                    self.need(not any(self.checker.came_after(claimed, end) for end in above), "S7", words, id)
            if id in self.ends and run["status"] != "cancelled":
                words = f"{run['status']} under a claim that came after the end above it"
                self.need(not any(self.checker.came_after(last.get(id), end) for end in above), "S7", words, id)

    # -- what was looked at --------------------------------------------------------------------------------------

    def count_what_happened(self) -> None:
        counts = self.counts
        for id, run in self.runs.items():
            if run["parent_id"] is None:
                counts["trees"] += 1
                counts["trees cancelled"] += run["status"] == "cancelled"
                counts["trees completed"] += run["status"] == "completed"
                counts["trees that failed"] += run["status"] in ("failed", "finalize_failed")
            counts["deepest tree"] = max(counts["deepest tree"], len(self.above(id)) + 1)
            counts[f"node {'finalize' if run['is_finalize'] else run['job_name']}"] += 1
            counts["cascades"] += run["error_type"] == "ParentEnded"
            counts["given up in trees"] += self.was_given_up(run)
            counts["retried in trees"] += run["attempt"] > 0
            place = self.places[id]
            if "/" not in place:
                for act in node_of(place).acts:
                    counts[f"act {act.what}"] += 1
        counts["nodes"] = len(self.runs)
        self._count_the_audit()
        for event in self.history.said("fault"):
            name = event["point"].partition("#")[0]
            if name in COMMITS:
                counts["faults inside of tree commits"] += 1
                counts["kills inside of tree commits"] += event["phase"] in ("before", "after")
                counts[f"struck {name}"] += 1

    def _count_the_audit(self) -> None:
        counts = self.counts
        open_waits: defaultdict[str, set[str]] = defaultdict(set)
        begun: set[tuple[str, str]] = set()
        names = {signal["id"]: f"{signal['name']}#0" for signal in self.history.signals}
        for row in self.audit:
            id = row["run_id"]
            if id not in self.runs:
                continue
            if row["kind"] == "wait":
                open_waits[id].add(row["name"])
                counts["waits"] += 1
                begun.add((id, row["name"]))
            elif row["kind"] in ("step", "step anew"):
                open_waits[id].discard(row["name"])
            elif row["kind"] == "signal":
                after = (id, names.get(row["name"])) in begun
                counts["signals sent to a wait" if after else "signals sent before the wait"] += 1
            elif row["kind"] == "taken":
                counts["signals taken"] += 1
            elif row["kind"] == "change" and (row["before"], row["after"]) == ("leased", "waiting"):
                counts["suspensions"] += 1
            elif row["kind"] == "change" and (row["before"], row["after"]) == ("waiting", "pending"):
                counts["wake-ups"] += 1
                kinds = {kind_of(key) for key in open_waits[id]}
                counts[f"woken by {kinds.pop() if len(kinds) == 1 else 'one of several'}"] += 1
