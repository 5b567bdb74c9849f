"""Trees of the storm: how they are drawn and read, that the jobs do what was drawn, and what the checker finds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import storm_trees
from storm_forest import HEARERS, TREE_JOBS, define_trees, plain
from storm_jobs import Bodies
from storm_tree_checker import kind_of
from storm_trees import DEPTH, KINDS, Act, Node, Outcome, Reading, node_of, read, root_of, root_place, tree_of, worth
from told_by_hand import CLIENT, Told, clean
from told_trees import ToldTree

from holdfast import ConflictError, Holdfast

SEED = 5
MANY = [root_place(SEED, number) for number in range(300)]


# -- drawing and reading ---------------------------------------------------------------------------------------------


def levels(node: Node) -> int:
    return 1 + max((levels(child) for child in node.children), default=0)


def every(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from every(child)


def test_a_tree_is_the_same_in_every_process() -> None:
    program = "import sys; sys.path[:0] = [sys.argv[1]]; import storm_trees; print(storm_trees.tree_of('5:1'))"
    command = [sys.executable, "-c", program, str(Path(storm_trees.__file__).parent)]
    for hashes in "01":
        env = {**os.environ, "PYTHONHASHSEED": hashes}
        assert subprocess.check_output(command, text=True, env=env, timeout=60).strip() == str(tree_of("5:1"))
    assert tree_of("5:2") != tree_of("5:1")


def test_trees_have_runs_of_all_kinds_that_do_everything_and_are_no_deeper_than_said() -> None:
    nodes = [node for root in MANY for node in every(tree_of(root))]
    assert {node.kind for node in nodes} == set(KINDS)
    acts = Counter(act.what for node in nodes for act in node.acts)
    wanted = ["step", "wobble", "nap", "beside", "hear", "silence", "call", "gather", "map", "spawn"]
    assert set(acts) == set(wanted)
    assert max(levels(tree_of(root)) for root in MANY) == DEPTH
    ends = Counter(read(root).outcomes[root].status for root in MANY)
    assert ends["completed"] > 150
    assert ends["failed"] > 20
    assert ends["finalize_failed"] > 20


def test_places_lead_to_nodes() -> None:
    root = next(root for root in MANY if tree_of(root).children and tree_of(root).children[-1].children)
    tree = tree_of(root)
    last = len(tree.children) - 1
    assert node_of(f"{root}.{last}@1.0") is tree.children[last].children[0]
    assert node_of(f"{root}/finalize") is tree
    assert root_of(f"{root}.{last}@1.0/iteration#2") == root


LEAF = Node("grow", 1, (Act("step", "step0", 10),))
SAD = Node("grow", 1, fails="always")


def comes_to(node: Node, *given_up: str) -> Outcome:
    return Reading(given_up).run(node, "root")


def one(act: str, *children: Node, caught: bool = False, kind: str = "grow") -> Node:
    return Node(kind, 100, (Act(act, f"{act}0", 5, tuple(range(len(children))), caught),), children)


@pytest.mark.parametrize(
    ("node", "outcome"),
    [
        (LEAF, Outcome("completed", 11)),
        (SAD, Outcome("failed", error="Declined")),
        (Node("grow", 1, fails="once"), Outcome("completed", 1)),
        (one("call", LEAF), Outcome("completed", 111)),
        (one("call", SAD), Outcome("failed", error="RunFailed")),
        (one("call", SAD, caught=True), Outcome("completed", 99)),
        (one("gather", LEAF, SAD), Outcome("failed", error="ChildrenFailed")),
        (one("map", LEAF, SAD, caught=True), Outcome("completed", 110)),
        (one("spawn", SAD), Outcome("completed", 100)),
        (one("wobble", caught=True), Outcome("completed", 99)),
        (Node("family", 7, (), (LEAF, SAD), (0, 1)), Outcome("completed", 18)),
        (Node("family", 7, (), (LEAF, SAD), (0, 1), strict=True), Outcome("failed", error="ChildrenFailed")),
        (Node("closed", 7, (), (LEAF, SAD), (0, 1)), Outcome("completed", 17)),
        (Node("closed", 7, (), (LEAF, SAD), (0, 1), strict=True), Outcome("finalize_failed", error="Declined")),
        (Node("signed", 7, fails="finalize"), Outcome("finalize_failed", error="Declined")),
        (Node("line", 5), Outcome("completed", 8)),
        (Node("line", 5, fails="stage_one"), Outcome("finalize_failed", error="Declined")),
        (Node("around", 9, turns=2), Outcome("completed", 9)),
        (Node("around", 9, turns=0), Outcome("completed", 0)),
    ],
    ids=lambda one: f"{one.kind} {' '.join(act.what for act in one.acts)}" if isinstance(one, Node) else one.status,
)
def test_a_plain_reading_of_one_run_and_what_is_below_it(node: Node, outcome: Outcome) -> None:
    assert comes_to(node) == outcome


def test_a_run_that_was_given_up_has_failed_for_those_above_it() -> None:
    assert comes_to(one("call", LEAF, caught=True), "root.0") == Outcome("completed", 99)
    assert comes_to(Node("line", 5), "root/stage_two") == Outcome("finalize_failed", error="WorkerCrashed")


def test_a_second_attempt_asks_for_its_children_in_places_of_their_own() -> None:
    reading = Reading()
    reading.run(one("call", SAD), "root")
    assert {*reading.outcomes} == {"root", "root.0", "root@1.0"}


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, 5), ("7:1.2 33", 33), ({"success": True, "output": 4}, 4), ({"success": False, "output": None}, 0),
        ({"output": 3, "children": [{"status": "completed", "output": 2}, {"status": "failed", "error": ""}]}, 5),
    ],
    ids=["number", "text", "found", "not found", "children"],
)  # fmt: skip
def test_the_number_in_an_output(value: Any, number: int) -> None:
    assert worth(value) == number


# -- the jobs --------------------------------------------------------------------------------------------------------


class Nobody:
    """A world that only counts."""

    def __init__(self) -> None:
        self.numbers = 0

    def tell(self, what: str, **more: Any) -> int:
        self.numbers += 1
        return self.numbers


def test_without_faults_each_run_of_a_tree_comes_to_what_was_drawn(tmp_path: Path) -> None:
    world: Any = Nobody()
    app = Holdfast(f"sqlite:///{tmp_path / 'app.db'}", concurrency=16, warm_for=0.05, polling_interval=0.05)
    define_trees(app, Bodies(world, lambda run, step: True, 1.0))
    roots = [root for root in MANY if 4 < len(read(root).outcomes) < 30][:25]
    with app:
        jobs: dict[str, Any] = {kind: app.get_job(kind) for kind in KINDS}
        runs = {root: jobs[tree_of(root).kind].trigger(root).wait() for root in roots}
        sent: set[tuple[str, str]] = set()
        pending = [*runs.values()]
        while pending:
            for run in app.get_runs(job=HEARERS, status=("pending", "leased", "waiting"), limit=None).wait():
                for act in node_of(run.input["n"]).acts:
                    if act.what == "hear" and (run.id, act.name) not in sent:
                        # What failed before it came to that wait may have ended since it was listed.
                        with contextlib.suppress(ConflictError):
                            app.send_signal(run.id, act.name, act.value, key="once").wait()
                        sent.add((run.id, act.name))
            try:
                pending[0].wait(timeout=0.1).wait()
            except TimeoutError:
                continue
            pending.pop(0)
        for root, run in runs.items():
            ended = run.refresh().wait()
            meant = read(root).outcomes[root]
            came = (str(ended.status), worth(plain(ended.output)), ended.error_type)
            assert came == (meant.status, meant.value, meant.error), root
        # A spawned run may still be at it, and a failed one's is cancelled.
        there = app.get_runs(job=TREE_JOBS, limit=None).wait()
        places = [run.input["n"] for run in there if run.job_name in KINDS]
        assert len(set(places)) == len(places)
    print(f"{len(there)} runs of {len(roots)} trees, {len(sent)} signals")


# -- the checker -----------------------------------------------------------------------------------------------------


def told(kind: str = "closed", *, part: str = "") -> tuple[Told, ToldTree]:
    """A clean history with a tree in it that has this kind of run, all completed, or so it was drawn."""
    history = clean()
    for root in MANY:
        reading, jobs = read(root), {node_of(place).kind for place in read(root).outcomes if "/" not in place}
        acts = {act.what for place in reading.outcomes if "/" not in place for act in node_of(place).acts}
        whole = all(outcome.status == "completed" for outcome in reading.outcomes.values())
        if kind in jobs and whole and len(reading.outcomes) > 4 and (not part or part in acts):
            return history, ToldTree(history, root)
    raise AssertionError(f"no tree has a {kind}")


def ended_as(history: Told, place: str, status: str, error: str | None = None, output: str | None = None) -> None:
    """It has, and all who looked have seen that."""
    history.runs[place].update(status=status, error_type=error, output=output)
    end_of(history, place)["after"] = status
    history.events = [event for event in history.events if (event["ev"], event.get("run")) != ("seen", place)]
    history.read(place)


def end_of(history: Told, place: str) -> dict[str, Any]:
    return history.audit[end_at(history, place)]


def end_at(history: Told, place: str) -> int:
    end = (place, "leased", "change")
    return next(at for at, row in enumerate(history.audit) if (row["run_id"], row["before"], row["kind"]) == end)


def wrong_output(history: Told, tree: ToldTree) -> None:
    ended_as(history, tree.root, "completed", output="123456")


def failed_although_drawn_otherwise(history: Told, tree: ToldTree) -> None:
    ended_as(history, tree.first("closed.finalize"), "failed", "Declined")


def cancelled_below_nothing(history: Told, tree: ToldTree) -> None:
    ended_as(history, tree.first("closed.finalize"), "cancelled", "ParentEnded")


def child_twice(history: Told, tree: ToldTree) -> None:
    place = next(place for place in tree.outcomes if "." in place and "/" not in place)
    copy = {**history.runs[place], "id": "twin", "status": "pending", "generation": 0}
    history.row("run", "twin", name=f"{copy['job_name']} {copy['input']}", after="pending", generation=0)
    history.runs["twin"] = copy
    history.claim("twin")
    for step in tree.reading.steps[place]:
        history.begin("twin", step)
        mark = history.effect("twin", step)
        tree.checkpoint("twin", step, f'{{"value": 1, "mark": {mark}}}')
    history.change("twin", "completed")
    history.read("twin")


def child_missing(history: Told, tree: ToldTree) -> None:
    place = tree.first("closed.finalize")
    del history.runs[place]
    history.audit = [row for row in history.audit if row["run_id"] != place]
    history.events = [event for event in history.events if event.get("run") != place]
    history.steps = [step for step in history.steps if step["run_id"] != place]


def step_missing(history: Told, tree: ToldTree) -> None:
    place = tree.first("closed.finalize")
    history.audit = [row for row in history.audit if (row["run_id"], row["kind"]) != (place, "step")]
    history.steps = [step for step in history.steps if step["run_id"] != place]
    history.events = [event for event in history.events if (event.get("run"), event["ev"]) != (place, "effect")]


def went_on_below_an_end(history: Told, tree: ToldTree) -> None:
    """Its root was cancelled before anything else had begun, and all went on."""
    root = tree.root
    history.ask("cancel", root)
    history.tell("ok", CLIENT, op="cancel", tag=root, run=root)
    ended_as(history, root, "cancelled")
    end = end_of(history, root)
    history.runs[root]["generation"] = end["generation"] = 2
    history.audit.remove(end)
    below = tree.outcomes.keys() - {root}
    claim = next(at for at, row in enumerate(history.audit) if row["run_id"] in below and row["after"] == "leased")
    history.audit.insert(claim, end)
    for number, row in enumerate(history.audit, 1):
        row["id"] = number


def wait_left(history: Told, tree: ToldTree) -> None:
    history.waits.append({"run_id": tree.root, "key": "nap1#0"})


def wait_of_nobody(history: Told, tree: ToldTree) -> None:
    history.row("wait", tree.root, name="nap7#0", before="waiting")


def signal_twice(history: Told, tree: ToldTree) -> None:
    history.signals.append({**history.signals[0], "id": "second", "consumed_by": None})


def signal_taken_twice(history: Told, tree: ToldTree) -> None:
    row = next(row for row in history.audit if row["kind"] == "taken")
    history.row("taken", row["run_id"], name=row["name"], before="leased", after=row["after"])


def signal_taken_for_nothing(history: Told, tree: ToldTree) -> None:
    signal = history.signals[0]
    taker = (signal["run_id"], signal["consumed_by"])
    history.steps = [step for step in history.steps if (step["run_id"], f"{step['name']}#0") != taker]


def signal_not_taken(history: Told, tree: ToldTree) -> None:
    history.signals.pop(0)


def signal_lost(history: Told, tree: ToldTree) -> None:
    history.tell("ok", CLIENT, op="signal", tag=f"{tree.root} hear9", run=tree.root)


SPOILS: list[tuple[str, str, Callable[[Told, ToldTree], None]]] = [
    ("S7", "step", wrong_output), ("S7", "step", failed_although_drawn_otherwise),
    ("S7", "step", cancelled_below_nothing), ("S7", "step", child_twice), ("S7", "step", child_missing),
    ("S7", "step", step_missing), ("S7", "step", went_on_below_an_end),
    ("S6", "step", wait_left), ("S6", "step", wait_of_nobody), ("S6", "hear", signal_twice),
    ("S6", "hear", signal_taken_twice), ("S6", "hear", signal_taken_for_nothing), ("S6", "hear", signal_not_taken),
    ("S6", "step", signal_lost),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_found_in_a_clean_tree(kind: str) -> None:
    history, tree = told(kind)
    found = history.check()
    assert not found.broken, str(found)
    assert found.counts["nodes"] == len(tree.outcomes) == found.counts["outputs that were computed"]
    assert found.counts["trees"] == found.counts["whole trees"] == 1


@pytest.mark.parametrize(("invariant", "part", "spoil"), SPOILS, ids=[spoil.__name__ for _, _, spoil in SPOILS])
def test_a_broken_promise_about_a_tree_is_found_under_its_number(
    invariant: str, part: str, spoil: Callable[[Told, ToldTree], None]
) -> None:
    history, tree = told(part=part)
    spoil(history, tree)
    found = history.check()
    assert found.invariants == {invariant}, str(found)


@pytest.mark.parametrize(
    ("tx", "seen", "broken"),
    [
        (8, "7:9:7", False),  # the end is under way
        (6, "5:7:5", False),  # or has not begun, though its row was written first
        (8, "5:9:5,7", False),
        (8, "8:8:", True),
        (8, "5:9:5", True),
        (7, "7:7:", True),  # by the claim's own transaction, before it
    ],
)
def test_a_claim_came_after_an_end_if_its_transaction_sees_it(tx: int, seen: str, broken: bool) -> None:
    history, tree = told()
    went_on_below_an_end(history, tree)
    for row in history.audit:
        row.update(session=tx, tx=tx, seen=seen)
    history.audit[end_at(history, tree.root)].update(session=7, tx=7, seen="7:7:")
    found = history.check()
    assert found.invariants == ({"S7"} if broken else set()), str(found)


def test_an_end_after_the_claim_in_the_same_transaction_is_not_known_to_it() -> None:
    history, tree = told()
    went_on_below_an_end(history, tree)
    end = history.audit.pop(end_at(history, tree.root))
    last = max(
        at for at, row in enumerate(history.audit) if row["run_id"] in tree.outcomes and row["after"] == "leased"
    )
    history.audit.insert(last + 1, end)
    for number, row in enumerate(history.audit, 1):
        row.update(id=number, session=7, tx=7, seen="7:7:")
    found = history.check()
    assert not found.broken, str(found)


@pytest.mark.parametrize("session", [None, 7])
def test_where_no_snapshot_is_told_ends_at_one_microsecond_are_one_transaction(session: int | None) -> None:
    """Only on a server: a file has one writer at a time."""
    history, tree = told()
    went_on_below_an_end(history, tree)
    for number, run in enumerate(history.runs.values()):
        run["completed_at"] = number
    for row in history.audit:
        row["session"] = session
    last = next(row["run_id"] for row in reversed(history.audit) if row["run_id"] in tree.outcomes)
    assert history.check().invariants == {"S7"}
    history.runs[last]["completed_at"] = history.runs[tree.root]["completed_at"]
    assert history.check().invariants == ({"S7"} if session is None else set())


def test_each_wait_of_a_tree_has_a_kind() -> None:
    keys = ("nap1#0", "nap beside2#0", "hear1#0", "1. stage_one#0", "iteration#2", "(children)#0", "(finalize)#0")
    assert [kind_of(key) for key in keys] == ["sleep", "sleep", "signal", "sequence", "loop", "children", "finalize"]
