"""Every statement and commit of a run's life is the last one of a process, and no promise is broken.

For each point a real child process dies there by SIGKILL (or loses the answer to its COMMIT, or is stopped past its
lease), healthy ones recover, and the checker looks at the database, its audit, the world and the client's history.

    HOLDFAST_TEST_ON=postgres HOLDFAST_CRASH=all python -m pytest tests/crash/test_crash_points.py -q

tries every case on PostgreSQL; without HOLDFAST_CRASH=all a sample of them: on SQLite a third, with every commit.
"""

from __future__ import annotations

from typing import Any

import pytest
from crash_field import OPERATIONS, Field, Tally
from crash_places import ON
from crash_wire import _NAMES
from crash_world import read

pytestmark = [pytest.mark.crash]
if ON == "sqlite":  # on the others some cases of each operation are tried, see crash_field.EVERY
    pytestmark.append(
        pytest.mark.sampled("crash points: what a transaction keeps is the same on every Python", every=16)
    )

#: What a paused process must at least have tried to write once it went on.
STALE = {
    "step": {"save_steps", "save_progress", "save_logs"},
    "step, sync job": {"save_steps", "save_progress", "save_logs"},
    "finish": {"finish"},
    "fail": {"finish"},
    "retry": {"save_attempts", "save_logs", "save_steps"},
    "renew": {"renew_leases"},
    "renew, line stuck": {"renew_leases"},
    "release": {"finish"},
}
#: What an operation must have made go away.
FORGETS = {"delete": ["deleted"], "purge": ["deleted"], "drop": ["outputs dropped"]}
#: Operations during which no lease is held, so that none is taken over.
NOBODY_HELD = (
    "open", "trigger", "trigger many", "retrigger", "release", *FORGETS, "send", "wake", "wake first",
    "cancel tree, gone on",
)  # fmt: skip
#: Statements that are not part of a run's life as this campaign walks it, and why.
ELSEWHERE = {
    "has_claimable": "a question of the watcher, which asks as often as it likes",
    "lost_leases": "a question of the watcher, and of an execution that was refused",
    "ended": "a question of the watcher",
    "states": "of finish: asked after a refusal, when nothing was written",
    "saved_steps": "asked after a refusal, when nothing was written",
    "find_steps": "a read",
    **dict.fromkeys(
        ("follow", "passing", "step_marks", "marked_steps", "logs_after"), "a question of who watches runs"
    ),
    "find_logs": "a read",
    "find_attempts": "a read",
    "failed_tries": "a read; a planted fault in it is found",
    "claim_within": "a claim, with the limits of jobs",
    "leased_of_jobs": "a question of a claim with the limits of jobs",
    "recall": "follows a claim that failed, while its process lives on",
    **dict.fromkeys(("find_workers", "leased"), "a question of who asks for the workers"),
    "forget_workers": "upkeep of who idles: workers that are gone for long, on whom nothing depends",
}
ELSEWHERE["above_ended"] = "of a claim that meets a run of a cancelled tree: see the contract"
if ON != "sqlite":
    ELSEWHERE |= {
        **dict.fromkeys(("unused_keys", "forget_keys"), "upkeep of who idles: keys of no run, made anew when needed"),
        "lock_jobs": "a question of a claim with the limits of jobs",
        "take_out": "of one call that triggers twice with the same keys",
    }
if ON == "postgres":
    ELSEWHERE |= {
        "leave_a_mark": "of a round that is played again, which comes after the operation",
        "settle": "of a claim that somebody else overtakes",
        **dict.fromkeys(("next_due", "next_wake"), "a read of the test kit: a claim has it in its own statement"),
    }
if ON == "mariadb":
    ELSEWHERE |= {
        **dict.fromkeys(("leased_to", "lock_leased"), "of recall"),
        **dict.fromkeys(("lock_late", "pass_deadlines"), "of deadlines, which no run here has"),
        **dict.fromkeys(("old_workers", "forget_old"), "of forget_workers"),
        "make_keys": "of jobs with limits",
        "out_of_turn": "of a claim that somebody else overtakes",
    }


def row(name: str, tally: Tally) -> tuple[Any, ...]:
    counts = tally.counts
    return (
        name, tally.points, tally.cases, tally.kills, tally.unanswered, tally.paused, counts["takeovers"],
        counts["step bodies rerun"], counts["stale writes attempted"], counts["stale writes accepted"],
        len(tally.violations),
    )  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_point_of_an_operation_breaks_a_promise(crash_field: Field, name: str, record_property: Any) -> None:
    operation = OPERATIONS[name]
    tally = crash_field.campaign(operation)
    record_property("crash", row(name, tally))
    record_property("crash, left out", tally.left_out)
    assert not tally.violations, f"{len(tally.violations)} cases:\n" + "\n".join(tally.violations[:3])
    # It was not vacuous: a kill that did not come about has failed already.
    assert tally.points >= 3
    assert tally.kills + tally.left_out >= 2 * tally.points - max(5, tally.points // 10)
    assert tally.unanswered >= (0 if name == "open" else 1)
    assert tally.counts["faults"] >= tally.cases
    assert tally.counts["checks"] > (5 if tally.left_out else 15) * tally.cases
    for what in FORGETS.get(name, ()):
        assert tally.counts[what] >= 1
    if name.removesuffix(", inline") not in NOBODY_HELD:
        assert tally.counts["takeovers"] >= 1
    if not tally.left_out:
        for verb in STALE.get(name, set()):
            assert tally.counts[f"stale {verb}"] >= 3, f"no stale {verb} was attempted"
    assert tally.counts["stale writes accepted"] == 0


def test_the_points_are_all_statements_that_write_a_runs_life(crash_field: Field) -> None:
    seen: set[str] = set()
    for operation in OPERATIONS.values():
        if not operation.inline:
            points = crash_field.points(operation, crash_field.template(operation))
            seen |= {point.split("#")[0] for point in points}
    lacking = {name for name in _names() if not name.startswith("doctor_")} - seen - set(ELSEWHERE)
    assert sorted(lacking) == [], "statements that no operation of the campaign uses"
    opening = "open: pragma synchronous" if ON == "sqlite" else "open: select coalesce(max(number),"
    assert {"begin", "commit", opening, "find_runs"} <= seen


def _names() -> set[str]:
    """Of all statements of the store."""
    if ON == "postgres":
        from holdfast.store.postgres_statements import statements

        return set(statements("public"))
    if ON == "mariadb":
        from holdfast.store.mysql_words import SQL

        _ = SQL["now"]  # the first one that is asked for reads them all
        return {name for name in SQL if not name.startswith("told_")}  # which is said together with what it tells
    return set(_NAMES.values())


def test_the_points_are_the_same_each_time(crash_field: Field) -> None:
    for name in ("step", "step, sync job", "takeover", "renew, line stuck"):
        template = crash_field.template(OPERATIONS[name])
        first, second = (crash_field.points(OPERATIONS[name], template) for _ in range(2))
        # Not their order: the round that keeps a progress goes beside the step that follows it.
        assert sorted(first) == sorted(second)


@pytest.mark.parametrize(
    ("operation", "step"),
    [("step", "reserve"), ("step", "charge"), ("step", "notify"), ("step, sync job", "first"),
     ("step, sync job", "second"), ("step, inline", "charge")],
)  # fmt: skip
def test_a_kill_between_effect_and_checkpoint_repeats_the_effect_once_under_the_same_key(
    crash_field: Field, operation: str, step: str
) -> None:
    one = OPERATIONS[operation]
    found, folder = crash_field.case(one, crash_field.template(one), (f"after the effect of {step}#1", "before"))
    assert not found.broken, str(found)
    effects = [event for event in read(folder / "world.log") if event["ev"] == "effect"]
    mine = [event for event in effects if event["step"] == step]
    assert len(mine) == 2
    assert len({event["key"] for event in mine}) == 1
    assert mine[0]["gen"] < mine[1]["gen"]
    assert found.counts["step bodies rerun"] == 1, "no other step ran twice"


def test_a_crash_during_the_recovery_leaves_the_run_to_a_third_worker(crash_field: Field) -> None:
    operation = OPERATIONS["takeover"]
    template = crash_field.template(operation)
    found, folder = crash_field.case(operation, template, ("after the effect of charge#1", "before"))
    assert not found.broken, str(found)
    charges = [event for event in read(folder / "world.log") if event["ev"] == "effect" and event["step"] == "charge"]
    assert len(charges) == 3
    assert len({event["pid"] for event in charges}) == 3
    assert len({event["key"] for event in charges}) == 1
    assert found.counts["takeovers"] >= 2
