"""The checker of the storm finds each broken promise in a history that was made by hand, and nothing in a clean one.

Long because it is a list of what may go wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest
from storm_checker import STALE, StormChecker, vacuous
from told_by_hand import CLIENT, FIRST, SECOND, Told, clean

Spoil = Callable[[Told], None]


def lost(told: Told) -> None:
    del told.runs["left"]
    told.steps = [step for step in told.steps if step["run_id"] != "left"]


def deleted_unasked(told: Told) -> None:
    lost(told)
    told.row("gone", "left", before="completed")


def deleted_while_it_ran(told: Told) -> None:
    told.trigger("young", 90)
    told.claim("young")
    told.delete("young")


def place_that_was_left(told: Told) -> None:
    told.row("run", "young", name="order null", after="pending", generation=0)
    told.row("change", "young", before="pending", after="leased", generation_before=0, generation=1)
    told.row("gone", "young", before="pending")


def half_a_batch(told: Told) -> None:
    told.tell("asked", CLIENT, op="trigger", tag="third", client=0, job="order", n=99, key=None, batch="both")


def labels_lost(told: Told) -> None:
    told.unlabelled.append("left")


def never_ended(told: Told) -> None:
    told.trigger("stuck", 91)
    told.claim("stuck")


def client_not_served(told: Told) -> None:
    told.ask("wait", "right", last=True)


def ended_twice(told: Told) -> None:
    told.change("left", "failed")
    told.change("left", "completed")


def left_its_end(told: Told) -> None:
    told.change("left", "pending")
    told.change("left", "completed")


def saved_twice(told: Told) -> None:
    told.row("step again", "left", name="pack#0", before="leased", after="completed")


def two_checkpoints(told: Told) -> None:
    told.steps.append(dict(told.steps[-1]))


def begun_after_its_checkpoint(told: Told) -> None:
    told.trigger("again", 92)
    told.claim("again")
    told.step("again", "reserve")
    told.expire("again")
    told.claim("again")
    told.begin("again", "reserve", SECOND)
    for step in ("charge", "pack", "ship", "notify"):
        told.step("again", step, SECOND)
    told.finish("again")
    told.read("again")


def effect_without_a_reason(told: Told) -> None:
    told.trigger("twice", 93)
    told.claim("twice")
    told.begin("twice", "reserve")
    told.effect("twice", "reserve")
    told.effect("twice", "reserve")
    told.cancel("twice")
    told.read("twice")
    told.trigger("more", 94)
    told.claim("more")
    told.begin("more", "reserve")
    for _ in range(3):
        told.effect("more", "reserve")
    told.cancel("more")
    told.read("more")


def effect_under_a_kept_lease(told: Told) -> None:
    told.effect("taken", "ship", gen=9)


def key_changed(told: Told) -> None:
    told.effect("taken", "pack", gen=1, key="taken:pack:2")


def begun_twice_under_one_lease(told: Told) -> None:
    told.begin("taken", "notify", gen=3)


def failed_too_often(told: Told) -> None:
    for number in range(4):
        told.tell("tried", run="left", step="wobble", gen=1, attempt=0)
        told.row("try", "left", name="wobble", before="leased", after=f"0/{number}", generation=1, writer=1)


def failure_not_counted(told: Told) -> None:
    told.tell("tried", run="left", step="wobble", gen=1, attempt=0)


def stale_checkpoint(told: Told) -> None:
    row = next(row for row in told.audit if row["kind"] == "step" and row["run_id"] == "taken")
    row["generation"] = 3


def log_of_an_ended_run(told: Told) -> None:
    told.log("left", "too late")


def progress_of_an_ended_run(told: Told) -> None:
    told.row("progress", "left", before="completed")


def generation_skipped(told: Told) -> None:
    told.trigger("skipped", 95)
    told.change("skipped", "leased", 2)
    told.change("skipped", "pending")
    told.cancel("skipped")
    told.read("skipped")


def lease_stolen(told: Told) -> None:
    told.trigger("stolen", 95)
    told.claim("stolen")
    told.claim("stolen")
    told.cancel("stolen")
    told.read("stolen")


def stale_write_accepted(told: Told) -> None:
    told.tell("stale", FIRST, verb="save_progress", count=2, changed=1, of="taken", gen=1)


def body_after_body_without_a_lease(told: Told) -> None:
    told.begin("taken", "ship", SECOND, gen=1)
    told.begin("taken", "notify", SECOND, gen=1)


def reader_sees_another_end(told: Told) -> None:
    told.read("left", {"total": 0, "marks": []})


def nobody_read_it(told: Told) -> None:
    told.events = [event for event in told.events if not (event["ev"] == "seen" and event["run"] == "left")]


def wrong_total(told: Told) -> None:
    run = told.runs["left"]
    run["output"] = json.dumps({**json.loads(run["output"]), "total": 7})
    nobody_read_it(told)
    told.read("left")


def output_of_another_execution(told: Told) -> None:
    run = told.runs["left"]
    run["output"] = json.dumps({**json.loads(run["output"]), "marks": [1, 2, 3, 4, 5]})
    nobody_read_it(told)
    told.read("left")


def checkpoint_of_another_run(told: Told) -> None:
    ours, others = (
        next(s for s in told.steps if s["run_id"] == run and s["name"] == "pack") for run in ("left", "right")
    )
    value = {**json.loads(ours["output"]), "mark": json.loads(others["output"])["mark"]}
    ours["output"] = json.dumps(value)
    run = told.runs["left"]
    output = json.loads(run["output"])
    output["marks"][2] = value["mark"]
    run["output"] = json.dumps(output)
    nobody_read_it(told)
    told.read("left")


def reader_sees_another_step(told: Told) -> None:
    told.read("left", steps={"pack": {"value": 1, "mark": 1}})


def failed_for_no_reason(told: Told) -> None:
    told.runs["doomed"]["error_type"] = "KeyError"


def cancelled_by_nobody(told: Told) -> None:
    told.trigger("nobody's", 96)
    told.change("nobody's", "cancelled", 1)
    told.read("nobody's")


def log_line_lost(told: Told) -> None:
    told.audit = [row for row in told.audit if (row["run_id"], row["name"]) != ("left", "ship is done")]


def log_line_doubled(told: Told) -> None:
    row = next(row for row in told.audit if row["kind"] == "log" and row["run_id"] == "left")
    told.audit.insert(told.audit.index(row), dict(row))


def reader_of_the_log_misses_a_line(told: Told) -> None:
    told.read("left", lines=["reserve is done"])


def begun_before_the_step_before_was_saved(told: Told) -> None:
    event = next(event for event in told.events if "saved" in event)
    event["saved"] = False


def younger_one_first(told: Told) -> None:
    told.trigger("older", 97, line="queue")
    told.change("older", "waiting")  # so that two of them may be there: only their order is wrong
    told.trigger("younger", 98, line="queue")
    told.execute("younger")
    told.change("older", "pending")
    told.execute("older")
    for run in ("older", "younger"):
        told.read(run)


def two_holders_of_a_key(told: Told) -> None:
    for run in ("one", "other"):
        told.trigger(run, 100 + len(run), line="shared")
        told.claim(run)
    for run in ("one", "other"):
        told.cancel(run)
        told.read(run)


def two_wait_for_a_key(told: Told) -> None:
    for run in ("one", "other"):
        told.trigger(run, 100 + len(run), line="shared")
    for run in ("one", "other"):
        told.cancel(run)
        told.read(run)


def overlap_with_the_lease(told: Told) -> None:
    told.begin("first", "one more", gen=1)


def over_the_limit(told: Told) -> None:
    for place in range(4):
        told.trigger(f"many {place}", 110 + place, job="narrow")
        told.claim(f"many {place}")
    for place in range(4):
        told.cancel(f"many {place}")
        told.read(f"many {place}")


def two_runs_of_an_idempotency_key(told: Told) -> None:
    told.trigger("copy", 120, key="once")
    told.execute("copy")
    told.read("copy")


def written_twice(told: Told) -> None:
    told.written("copy", 50)
    told.execute("copy")
    told.read("copy")


def refused_and_written(told: Told) -> None:
    told.tell("asked", CLIENT, op="trigger", tag="no", client=0, job="order", n=130, key=None)
    told.tell("refused", CLIENT, op="trigger", tag="no")
    told.written("written", 130)
    told.execute("written")
    told.read("written")


def not_cancelled_after_all(told: Told) -> None:
    told.ask("cancel", "left")
    told.tell("ok", CLIENT, op="cancel", tag="left", run="left")


def went_on_after_a_cancel(told: Told) -> None:
    told.begin("cancelled", "pack", gen=1, pid=SECOND)
    told.begin("cancelled", "ship", gen=1, pid=SECOND)


def went_on_where_it_was_cancelled(told: Told) -> None:
    told.begin("cancelled", "pack", gen=1, pid=CLIENT)


def lose(told: Told, run: str, times: int) -> None:
    told.trigger(run, 140)
    for _ in range(times):
        told.claim(run)
        told.expire(run)


def given_up_too_soon(told: Told) -> None:
    lose(told, "given up", 4)
    told.claim("given up")
    told.step("given up", "reserve")
    told.change("given up", "failed", told.runs["given up"]["generation"] + 1, "expired")
    told.runs["given up"].update(error_type="WorkerCrashed", crashes=5)
    told.read("given up")


def never_given_up(told: Told) -> None:
    lose(told, "poison", 6)
    told.cancel("poison")
    told.read("poison")


def bad_row_still_there(told: Told) -> None:
    told.bad_rows["bad"] = "failed"
    told.written("bad", 0)


def descriptors_leaked(told: Told) -> None:
    next(event for event in told.events if event.get("when") == "quiet")["fds"] = 99


def tasks_leaked(told: Told) -> None:
    next(event for event in told.events if event.get("when") == "quiet")["tasks"] = 9


def memory_leaked(told: Told) -> None:
    next(event for event in told.events if event.get("when") == "quiet")["rss"] = 999_999


def threads_left(told: Told) -> None:
    next(event for event in told.events if event.get("when") == "stopped")["threads"] = ["holdfast-watch"]


def runs_held_after_the_stop(told: Told) -> None:
    next(event for event in told.events if event.get("when") == "stopped")["held"] = 1


def descriptors_left(told: Told) -> None:
    next(event for event in told.events if event.get("when") == "stopped")["fds"] = 12


def doctor_warns(told: Told) -> None:
    told.tell("doctor", check="expired leases", level="warn", text="3", advice="", data=None)


def unreadable_row(told: Told) -> None:
    told.tell("doctor", check="payloads", level="warn", text="", advice="", data={"unreadable": ["input of left"]})


def file_damaged(told: Told) -> None:
    told.integrity = ["row 7 missing from index"]


def steps_of_a_run_that_is_gone(told: Told) -> None:
    told.orphans.append(("steps", "gone"))


def deleted_and_there(told: Told) -> None:
    told.ask("delete", "left")
    told.tell("ok", CLIENT, op="delete", tag="left", run="left")


def output_dropped_too_soon(told: Told) -> None:
    told.row("output dropped", "left", name="pack#0", before="leased")


SPOILS: list[tuple[str, Spoil]] = [
    ("I1", lost), ("I1", deleted_unasked), ("I1", deleted_while_it_ran), ("I1", place_that_was_left),
    ("I1", half_a_batch), ("I1", labels_lost),
    ("I2", never_ended), ("I2", client_not_served),
    ("I3", ended_twice), ("I3", left_its_end),
    ("I4", saved_twice), ("I4", two_checkpoints),
    ("I5", begun_after_its_checkpoint),
    ("I6", effect_without_a_reason), ("I6", effect_under_a_kept_lease), ("I6", key_changed),
    ("I6", begun_twice_under_one_lease), ("I6", failed_too_often), ("I6", failure_not_counted),
    ("I7", stale_checkpoint), ("I7", log_of_an_ended_run), ("I7", progress_of_an_ended_run),
    ("I7", generation_skipped), ("I7", lease_stolen),
    ("I7", stale_write_accepted), ("I7", body_after_body_without_a_lease),
    ("I8", reader_sees_another_end), ("I8", nobody_read_it), ("I8", wrong_total), ("I8", output_of_another_execution),
    ("I8", checkpoint_of_another_run), ("I8", reader_sees_another_step), ("I8", failed_for_no_reason),
    ("I8", cancelled_by_nobody), ("I8", log_line_lost), ("I8", log_line_doubled),
    ("I8", reader_of_the_log_misses_a_line),
    ("I9", begun_before_the_step_before_was_saved), ("I9", younger_one_first),
    ("I10", two_holders_of_a_key), ("I10", two_wait_for_a_key), ("I10", overlap_with_the_lease),
    ("I10", over_the_limit),
    ("I11", two_runs_of_an_idempotency_key), ("I11", written_twice), ("I11", refused_and_written),
    ("I12", not_cancelled_after_all), ("I12", went_on_after_a_cancel), ("I12", went_on_where_it_was_cancelled),
    ("I14", given_up_too_soon), ("I14", never_given_up),
    ("I17", bad_row_still_there),
    ("I18", descriptors_leaked), ("I18", tasks_leaked), ("I18", memory_leaked), ("I18", threads_left),
    ("I18", runs_held_after_the_stop), ("I18", descriptors_left),
    ("I19", file_damaged), ("I19", doctor_warns), ("I19", unreadable_row),
    ("A11", steps_of_a_run_that_is_gone), ("A11", deleted_and_there), ("A11", output_dropped_too_soon),
]  # fmt: skip


def test_nothing_is_found_in_a_clean_history() -> None:
    found = clean().check()
    assert not found.broken, str(found)
    assert found.counts["checks"] > 200
    assert found.counts["takeovers"] == 1
    assert found.counts["stale writes attempted"] == 1
    assert found.counts["overlaps of a key"] == 0
    assert found.counts["step bodies rerun"] == found.counts["effects applied twice"] == 1


@pytest.mark.parametrize(("invariant", "spoil"), SPOILS, ids=[spoil.__name__ for _, spoil in SPOILS])
def test_a_broken_promise_is_found_under_its_number(invariant: str, spoil: Spoil) -> None:
    told = clean()
    spoil(told)
    found = told.check()
    assert found.invariants == {invariant}, str(found)


def test_every_invariant_of_the_storm_has_a_history_that_breaks_it() -> None:
    numbers = {name.partition("_")[0].upper() for name in dir(StormChecker) if name[0] in "ia" and name[1:2].isdigit()}
    assert numbers == {invariant for invariant, _ in SPOILS}


def test_a_witness_has_the_lines_of_its_run_only() -> None:
    told = clean()
    stale_checkpoint(told)
    ((_, words, lines),) = told.check().broken
    assert words == "generation 1 wrote a step while 3 was in force"
    assert any('"phase": "paused"' in line for line in lines), "the fault that made it so"
    others = set(told.runs) - {"taken"}
    assert len(lines) > 20
    assert not [line for line in lines for run in others if f'"{run}"' in line or f"run_id={run} " in line]


def test_a_storm_that_struck_too_little_says_so() -> None:
    least = {"kills": 8, **{f"stale {verb}": 1 for verb in STALE}}
    enough = Counter(dict.fromkeys(least, 8))
    assert vacuous(enough, least) == []
    assert vacuous(enough - Counter({"kills": 1}), least) == ["I20: 7 kills, at least 8 are needed"]
    assert len(vacuous(Counter(), least)) == 1 + len(STALE)


def test_a_place_that_is_taken_out_again_was_no_run() -> None:
    told = Told()
    told.row("run", "left", name="order null", after="pending", generation=0)
    told.row("gone", "left", before="pending")
    assert told.check().broken == []
