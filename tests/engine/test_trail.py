"""The trail of a run: in whichever order things come from hub and database, the story is told once, and in order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from holdfast import Event, NotFoundError
from holdfast.basis.clock import to_datetime
from holdfast.basis.codec import Payloads
from holdfast.engine.retold import Making, Retold
from holdfast.engine.trail import Found, Trail
from holdfast.model.run import RunRow
from holdfast.model.step import LogRow, StepRow
from holdfast.store.base import Followed, StepMark
from holdfast.testing.clock import HandClock

ME, OTHER = "me", "another worker"
NOTHING = Found((), (), None, False)


def row(status: str = "pending", generation: int = 0, owner: str | None = None, **values: Any) -> RunRow:
    known = dict.fromkeys(RunRow._fields)
    ended = 9 if status not in ("pending", "leased") else None
    started = 5 if generation else None
    return RunRow(
        **{
            **known, "id": "run", "job_name": "job", "status": status, "generation": generation, "lease_owner": owner,
            "labels": "{}", "input": "{}", "created_at": 1, "started_at": started, "completed_at": ended,
            "lease_expires_at": 7 if owner else None, **values,
        }
    )  # fmt: skip


def state(
    status: str, generation: int, owner: str | None = None, *, last_log: int = 0, progress: Any = None
) -> Followed:
    return Followed(status, generation, owner, 7 if owner else None, progress, last_log)


def saved(name: str, position: int, generation: int, at: int = 10) -> StepRow:
    return StepRow("run", name, 0, position, "completed", 0, generation, None, f'"{name}"', None, at, at)


def line(id: int, generation: int, at: int = 10) -> LogRow:
    return LogRow(id, "run", generation, None, "info", f"line {id}", None, at)


def _ended_as(row: RunRow) -> tuple[str, dict[str, Any]]:
    return ("run:complete" if row.status == "completed" else "run:fail"), {}


class Teller:
    """A trail, what it has given, and a database to look into."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.trail = Trail(
            lambda: ME,
            Retold("run", HandClock(), Payloads(), _ended_as),
            self._give,
            with_snapshot=True,
            most_held=100,
        )
        self.steps: list[StepRow] = []
        self.lines: list[LogRow] = []
        self._sequence = itertools.count(1)

    def _give(self, type: str, making: Making) -> None:
        event = making if isinstance(making, Event) else making()
        name = event.data.get("step_name") or event.data.get("message") or event.data.get("progress")
        self.given.append(event.type if name is None else f"{event.type} {name}")

    def hear(self, type: str, generation: int, **data: Any) -> bool:
        when = to_datetime(1)
        assert when is not None
        return self.trail.hear(Event(type, when, next(self._sequence), "run", "job", {}, data), generation)

    def marks(self, first: int = 0) -> list[StepMark]:
        return [
            StepMark("run", one.name, one.occurrence, one.position, one.generation)
            for one in self.steps
            if one.position >= first
        ]

    def begin(self, one: RunRow | None) -> bool:
        return self.trail.begin(one, self.marks(), max((one.id for one in self.lines), default=0))

    def look(self, now: Followed | None, ended: RunRow | None = None, *, more: bool = False) -> bool:
        wanted = self.trail.wants(now)
        if wanted is None:
            return False
        steps: list[StepRow] = []
        if wanted.steps_from is not None:
            unseen = {(mark.name, mark.generation) for mark in self.trail.unseen(self.marks(wanted.steps_from))}
            steps = [one for one in self.steps if (one.name, one.generation) in unseen]
        after = wanted.logs_after
        lines = [one for one in self.lines if after is not None and one.id > after]
        return self.trail.advance(now, Found(steps, lines, ended if wanted.row else None, more))


@pytest.fixture
def teller() -> Teller:
    return Teller()


def test_what_is_heard_before_the_state_was_read_comes_after_it(teller: Teller) -> None:
    teller.hear("step:start", 1, step_name="a")
    teller.hear("step:complete", 1, step_name="a")
    assert teller.given == []
    teller.begin(row("leased", 1, ME, progress='{"current":1}'))
    assert teller.given == ["run:leased", "run:progress {'current': 1}", "step:start a", "step:complete a"]


def test_what_the_state_says_already_is_not_told_again(teller: Teller) -> None:
    teller.hear("run:leased", 1)
    teller.hear("run:progress", 1, progress={"current": 2})
    teller.begin(row("leased", 1, ME, progress='{"current":1}'))
    teller.hear("run:leased", 1)
    assert teller.given == ["run:leased", "run:progress {'current': 2}"]


def test_an_end_between_the_first_word_and_the_state_is_told_once(teller: Teller) -> None:
    teller.hear("step:complete", 1, step_name="a")
    teller.hear("run:complete", 1)
    teller.begin(row("completed", 1))
    teller.hear("run:complete", 1)
    assert teller.given == ["step:complete a", "run:complete"]
    assert teller.trail.over


def test_no_row_is_not_found_unless_it_was_deleted_just_now(teller: Teller) -> None:
    with pytest.raises(NotFoundError):
        teller.begin(None)
    other = Teller()
    other.hear("run:delete", 1)
    other.begin(None)
    assert other.given == ["run:delete"]


def test_what_was_saved_before_it_began_is_not_told(teller: Teller) -> None:
    teller.steps, teller.lines = [saved("a", 0, 1)], [line(1, 1)]
    teller.begin(row("leased", 1, OTHER))
    teller.steps.append(saved("b", 1, 1))
    teller.lines.append(line(2, 1))
    teller.look(state("leased", 1, OTHER, last_log=2))
    teller.look(state("leased", 1, OTHER, last_log=2))
    assert teller.given == ["run:leased", "log:write line 2", "step:complete b"]


def test_a_step_that_began_first_and_ended_last_is_told(teller: Teller) -> None:
    teller.begin(row("leased", 1, OTHER))
    teller.steps = [saved(f"s{n}", n, 1) for n in range(1, 500)]
    teller.look(state("leased", 1, OTHER))
    teller.steps.insert(0, saved("first", 0, 1))
    teller.look(state("leased", 1, OTHER))
    teller.look(state("completed", 1), row("completed", 1))
    assert teller.given.count("step:complete first") == 1
    assert len(teller.given) == len(set(teller.given)) == 502
    assert teller.given[-1] == "run:complete"


def test_a_step_far_below_the_others_is_told_while_the_run_goes_on(teller: Teller) -> None:
    teller.begin(row("leased", 1, OTHER))
    teller.steps = [saved(f"s{n}", n, 1) for n in range(1, 400, 2)]
    teller.look(state("leased", 1, OTHER))
    teller.steps.append(saved("early", 4, 1))
    assert teller.look(state("leased", 1, OTHER)) is False
    assert teller.given[-1] == "step:complete early"


def test_below_a_step_that_never_comes_few_looks_read_all_and_nothing_waits_for_long(teller: Teller) -> None:
    teller.begin(row("leased", 1, OTHER))
    now = state("leased", 1, OTHER)
    teller.steps = [saved(f"s{n}", n, 1) for n in range(1, 5000) if n != 3000]
    teller.look(now)
    firsts = []
    for _ in range(50):
        wanted = teller.trail.wants(now)
        assert wanted is not None
        firsts.append(wanted.steps_from)
        teller.trail.unseen(teller.marks(wanted.steps_from or 0))
        teller.trail.advance(now, NOTHING)
    assert sum(4999 - first for first in firsts if first is not None) / 50 < 1000
    while teller.look(now):
        pass
    teller.steps.append(saved("early", 3000, 1))
    for _ in range(20):
        if not teller.look(now):
            break
    assert teller.given[-1] == "step:complete early"


def test_a_step_that_is_tried_again_at_its_place_is_told_while_the_run_goes_on(teller: Teller) -> None:
    teller.begin(row("leased", 1, OTHER))
    failed = saved("s7", 7, 1)._replace(status="failed")
    teller.steps = [failed if n == 7 else saved(f"s{n}", n, 1) for n in range(400)]
    teller.look(state("leased", 1, OTHER))
    teller.look(state("leased", 2, OTHER))
    teller.steps[7] = saved("s7", 7, 2)
    teller.look(state("leased", 2, OTHER))
    assert teller.given[-1] == "step:complete s7"


def test_the_order_of_times_leads_over_steps_and_lines_and_generations_over_both(teller: Teller) -> None:
    teller.begin(row("pending", 0))
    teller.steps = [saved("late", 0, 3, at=1), saved("b", 1, 1, at=30), saved("a", 0, 1, at=10)]
    teller.lines = [line(1, 1, at=10), line(2, 1, at=20), line(3, 3, at=1)]
    teller.look(state("leased", 3, OTHER, last_log=3))
    assert teller.given == [
        "run:leased", "log:write line 1", "step:complete a", "log:write line 2", "step:complete b",
        "run:leased", "log:write line 3", "step:complete late",
    ]  # fmt: skip


def test_a_lease_here_after_one_elsewhere_waits_until_that_was_read(teller: Teller) -> None:
    teller.begin(row("leased", 1, OTHER))
    teller.steps = [saved("there", 0, 1)]
    assert teller.hear("run:leased", 3) is True
    assert teller.hear("step:start", 3, step_name="here") is False
    assert teller.given == ["run:leased"]
    teller.steps.append(saved("here", 1, 3))  # of which the hub tells
    teller.look(state("leased", 3, ME))
    teller.hear("step:complete", 3, step_name="here")
    assert teller.given == ["run:leased", "step:complete there", "run:leased", "step:start here", "step:complete here"]


def test_a_look_that_is_older_than_what_was_heard_does_not_let_it_go(teller: Teller) -> None:
    teller.begin(row("leased", 1, OTHER))
    teller.hear("run:leased", 3)
    assert teller.look(state("leased", 1, OTHER)) is True  # read before the run was taken away
    teller.steps = [saved("there", 0, 1)]
    assert teller.given == ["run:leased"]
    teller.look(state("leased", 3, ME))
    assert teller.given == ["run:leased", "step:complete there", "run:leased"]


def test_an_end_written_here_waits_for_what_was_saved_elsewhere(teller: Teller) -> None:
    teller.begin(row("leased", 1, OTHER))
    assert teller.hear("run:cancel", 2) is True
    teller.steps = [saved("there", 0, 1)]
    teller.look(state("cancelled", 2), row("cancelled", 2))
    assert teller.given == ["run:leased", "step:complete there", "run:cancel"]


def test_a_worker_that_lost_its_lease_is_not_listened_to(teller: Teller) -> None:
    teller.begin(row("leased", 1, ME))
    teller.look(state("leased", 3, OTHER))
    teller.hear("step:start", 1, step_name="zombie")
    teller.hear("run:complete", 1)
    assert teller.given == ["run:leased", "run:leased"]
    assert not teller.trail.over


def test_a_lease_that_came_and_went_between_two_looks_is_told_with_what_it_saved(teller: Teller) -> None:
    teller.begin(row("pending", 0))
    teller.steps = [saved("a", 0, 1)]
    teller.look(state("completed", 1, progress='{"current":3}'), row("completed", 1))
    assert teller.given == ["run:leased", "run:progress {'current': 3}", "step:complete a", "run:complete"]
    bare = Teller()
    bare.begin(row("pending", 0))
    bare.look(state("completed", 1), row("completed", 1))
    assert bare.given == ["run:leased", "run:complete"]


def test_a_cancel_of_a_run_that_never_began_is_no_lease(teller: Teller) -> None:
    teller.begin(row("pending", 0))
    teller.look(state("cancelled", 1), row("cancelled", 1, started_at=None))
    assert teller.given == ["run:fail"]  # what this teller calls everything but completed


def test_of_an_end_here_the_hub_speaks_first_and_the_database_if_it_does_not(teller: Teller) -> None:
    teller.begin(row("leased", 1, ME))
    assert teller.look(state("completed", 1), row("completed", 1)) is True
    assert teller.given == ["run:leased"]
    teller.look(state("completed", 1), row("completed", 1))
    assert teller.given == ["run:leased", "run:complete"]


def test_nothing_later_is_told_while_a_look_has_more_to_read(teller: Teller) -> None:
    teller.begin(row("leased", 1, OTHER))
    teller.hear("run:cancel", 2)
    teller.steps = [saved("a", 0, 1)]
    assert teller.look(state("cancelled", 2), row("cancelled", 2), more=True) is True
    assert teller.given == ["run:leased", "step:complete a"]
    teller.steps.append(saved("b", 1, 1))
    teller.look(state("cancelled", 2), row("cancelled", 2))
    assert teller.given == ["run:leased", "step:complete a", "step:complete b", "run:cancel"]


def test_of_what_is_held_the_oldest_goes_first_and_never_the_end(teller: Teller) -> None:
    for n in range(150):
        teller.hear("log:write", 1, message=f"{n}")
    teller.hear("run:complete", 1)
    teller.hear("log:write", 1, message="after the end")
    teller.begin(row("leased", 1, ME))
    assert teller.trail.dropped == 51
    assert teller.given == ["run:leased", *(f"log:write {n}" for n in range(51, 150)), "run:complete"]


def test_a_quiet_run_is_not_read(teller: Teller) -> None:
    teller.begin(row("leased", 1, ME))
    assert teller.trail.wants(state("leased", 1, ME)) is None
    other = Teller()
    other.begin(row("pending", 0))
    assert other.trail.wants(state("pending", 0)) is None
    assert other.trail.advance(state("pending", 0), NOTHING) is False
