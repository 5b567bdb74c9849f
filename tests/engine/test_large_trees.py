"""S7: a large tree is cancelled and deleted in parts, and whoever asks for it sees one answer."""

from __future__ import annotations

from typing import Any

import pytest
from around import until

from holdfast import ConflictError, Event, Holdfast, Step, job
from holdfast.engine import engine as engine_module
from holdfast.engine import waits as waits_module
from holdfast.store import relational
from holdfast.testing import HandClock, app_for_tests, drain
from house import PATIENCE

#: Runs below one, of which the parts below hold two.
BELOW = 7


@job
async def child(n: int) -> int:
    return n


@job
async def above(step: Step, many: int) -> int:
    return sum(await step.map(child, range(many)))


@job(queue="nobody")
async def never(n: int) -> int:
    return n


@job
async def waits_for_ever(step: Step, many: int) -> int:
    return sum(await step.map(never, range(many)))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relational, "DELETED_AT_ONCE", 2)
    monkeypatch.setattr(engine_module, "_BELOW_AT_ONCE", 2)
    monkeypatch.setattr(waits_module, "_MANY", 3)


def ended(app: Holdfast) -> Any:
    run = app.jobs.above.trigger(BELOW).wait()
    drain(app).wait()
    run = run.refresh().wait()
    assert run.output == sum(range(BELOW))
    assert len(app.get_runs().wait()) == BELOW + 1
    return run


def test_one_deletion_takes_all_of_a_large_tree_and_is_told_once() -> None:
    told: list[Event] = []
    with app_for_tests(above, child) as app:
        app.on("run:delete", told.append)
        run = ended(app)
        run.delete().wait(PATIENCE)
        assert app.get_runs().wait() == []
    assert [event.run_id for event in told] == [run.id]


def test_a_purge_takes_whole_trees_and_counts_their_roots() -> None:
    clock = HandClock()
    with app_for_tests(above, child, clock=clock) as app:
        ended(app)
        clock.advance(10)
        purged = app.purge_runs(older_than=5).wait(PATIENCE)
        assert purged == 1
        assert app.get_runs().wait() == []


def test_all_below_a_cancelled_run_is_cancelled_part_by_part() -> None:
    with app_for_tests(waits_for_ever, never, queues=("default",)) as app:
        run = app.jobs.waits_for_ever.trigger(BELOW).wait()
        drain(app).wait()
        below = app.get_runs(parent=run.id).wait()
        assert {str(one.status) for one in below} == {"pending"}
        run.cancel().wait()
        # Nobody is told when the last part is done: whoever cancels waits for the root alone.
        until(lambda: not app.get_runs(parent=run.id, status="pending").wait())
        below = app.get_runs(parent=run.id).wait()
        assert [(str(one.status), one.error_type) for one in below] == [("cancelled", "ParentEnded")] * BELOW


def test_a_large_tree_that_has_not_ended_is_not_deleted_in_part() -> None:
    with app_for_tests(waits_for_ever, never, queues=("default",)) as app:
        run = app.jobs.waits_for_ever.trigger(BELOW).wait()
        drain(app).wait()
        with pytest.raises(ConflictError, match="Cannot delete waiting run"):
            run.delete().wait(PATIENCE)
        assert len(app.get_runs().wait()) == BELOW + 1
