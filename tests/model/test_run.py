"""Statuses in their sets, and rows in the shape of the tables."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from holdfast.model.event import Event
from holdfast.model.run import NewRun, RunFilter, RunRow, RunStatus
from holdfast.model.step import StepKey

ACTIVE = {"pending", "leased", "waiting"}
TERMINAL = {"completed", "failed", "timed_out", "finalize_failed", "cancelled"}


def test_there_are_eight_statuses() -> None:
    assert set(RunStatus) == RunStatus.all() == ACTIVE | TERMINAL


def test_the_active_statuses_are_those_of_runs_that_may_still_do_something() -> None:
    assert RunStatus.active() == ACTIVE


def test_the_terminal_statuses_are_all_others() -> None:
    assert RunStatus.terminal() == TERMINAL


def test_the_errored_statuses_are_the_ends_without_an_output() -> None:
    assert RunStatus.errored() == TERMINAL - {"completed"}


@pytest.mark.parametrize("status", RunStatus)
def test_a_status_is_either_active_or_terminal(status: RunStatus) -> None:
    assert status.is_active is (status in ACTIVE)
    assert status.is_terminal is (status in TERMINAL)


def test_a_status_is_written_as_its_word() -> None:
    assert f"{RunStatus.TIMED_OUT}" == "timed_out" == str(RunStatus("timed_out"))


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="paused"):
        RunStatus("paused")


def test_a_row_ends_with_what_is_not_in_its_table() -> None:
    assert RunRow._fields[-3:] == ("progress", "completed_step_count", "current_step_index")


def test_everything_that_a_new_run_says_is_in_its_row() -> None:
    assert set(NewRun._fields) - {"delay", "deadline", "coalesce"} <= set(RunRow._fields)


def test_an_empty_filter_means_any_run() -> None:
    assert RunFilter() == RunFilter(ids=(), jobs=(), statuses=(), labels=(), limit=None, offset=0, before=None)


def test_a_step_is_called_by_its_name_and_from_its_second_use_on_by_a_number() -> None:
    assert [str(StepKey("fetch", n)) for n in range(3)] == ["fetch", "fetch#1", "fetch#2"]


def test_an_event_gives_its_data_as_attributes() -> None:
    event = Event("run:fail", datetime(2026, 1, 1, tzinfo=UTC), 7, "id", data={"error": "it broke"})
    assert event.error == "it broke"
    with pytest.raises(AttributeError, match="run:fail has no 'output'"):
        _ = event.output
