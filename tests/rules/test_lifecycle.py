"""The table of a run's life, said a second time and compared cell by cell, and the rules that it must obey."""

from __future__ import annotations

import re

import pytest

from holdfast.model.run import RunStatus as S
from holdfast.rules import lifecycle
from holdfast.rules.lifecycle import TABLE, Cause, Transition, after, after_expiry

# Read from the specification, not from the code. A dot: it may not happen.
_MATRIX = """
cause           pending   leased          waiting   completed failed timed_out finalize_failed cancelled
claim           leased    .               .         .         .      .         .               .
complete        .         completed       .         .         .      .         .               .
fail            .         failed          .         .         .      .         .               .
time_out        .         timed_out       .         .         .      .         .               .
cancel_itself   .         cancelled       .         .         .      .         .               .
retry           .         pending         .         .         .      .         .               .
release         .         pending         .         .         .      .         .               .
suspend         .         waiting         .         .         .      .         .               .
wake            .         .               pending   .         .      .         .               .
cancel          cancelled cancelled       cancelled .         .      .         .               .
expire          .         pending         .         .         .      .         .               .
give_up         .         failed          .         .         .      .         .               .
recall          .         pending         .         .         .      .         .               .
pass_deadline   timed_out timed_out       timed_out .         .      .         .               .
finalize_failed .         finalize_failed .         .         .      .         .               .
"""
# cause: by holder, generation, attempt, crashes, event
_WRITES = {
    "claim": (False, 1, 0, 0, "run:leased"),
    "complete": (True, 0, 0, 0, "run:complete"),
    "fail": (True, 0, 0, 0, "run:fail"),
    "time_out": (True, 0, 0, 0, "run:fail"),
    "cancel_itself": (True, 0, 0, 0, "run:cancel"),
    "retry": (True, 0, 1, 0, "run:retry"),
    "release": (True, 0, 0, 0, None),
    "suspend": (True, 0, 0, 0, "run:wait"),
    "wake": (False, 0, 0, 0, "run:wake"),
    "cancel": (False, 1, 0, 0, "run:cancel"),
    "expire": (False, 1, 0, 1, None),
    "give_up": (False, 1, 0, 1, "run:fail"),
    "recall": (False, 1, 0, 0, None),
    "pass_deadline": (False, 1, 0, 0, "run:fail"),
    "finalize_failed": (True, 0, 0, 0, "run:fail"),
}


def _cells() -> list[tuple[str, str, str]]:
    head, *lines = [line.split() for line in _MATRIX.strip().splitlines()]
    return [(cause, status, target) for cause, *row in lines for status, target in zip(head[1:], row, strict=True)]


CELLS = _cells()
ROWS = pytest.mark.parametrize("rule", TABLE.values(), ids=lambda rule: rule.cause)


def test_the_matrix_covers_every_cause_and_status() -> None:
    assert {(cause, status) for cause, status, _ in CELLS} == {(cause, status) for cause in Cause for status in S}
    assert set(_WRITES) == set(Cause)


@pytest.mark.parametrize(("cause", "status", "target"), CELLS, ids=lambda word: word)
def test_a_cause_leads_where_the_matrix_says(cause: str, status: str, target: str) -> None:
    found = after(S(status), Cause(cause))
    assert (found.target if found else ".") == target


@ROWS
def test_a_cause_writes_what_the_specification_says(rule: Transition) -> None:
    assert (rule.by_holder, rule.generation, rule.attempt, rule.crashes, rule.event) == _WRITES[rule.cause]


# -- rules of the whole table ----------------------------------------------------------------------------------------


def test_every_cause_has_its_row_under_its_own_name() -> None:
    assert list(TABLE) == list(Cause)
    assert all(rule.cause is cause for cause, rule in TABLE.items())


def test_the_table_can_not_be_changed() -> None:
    with pytest.raises(TypeError):
        TABLE[Cause.CLAIM] = TABLE[Cause.WAKE]  # type: ignore[index]
    with pytest.raises(AttributeError):
        TABLE[Cause.CLAIM].target = S.PENDING  # type: ignore[misc]


@ROWS
def test_an_ended_run_is_never_left(rule: Transition) -> None:
    assert rule.sources
    assert rule.sources <= S.active()


@ROWS
def test_no_cause_leaves_a_run_where_it_was_unless_it_ends_a_lease(rule: Transition) -> None:
    assert rule.target not in rule.sources


@ROWS
def test_the_holder_of_a_lease_leaves_its_generation_as_it_is(rule: Transition) -> None:
    if rule.by_holder:
        assert rule.generation == 0


@ROWS
def test_the_holder_of_a_lease_writes_in_leased_only(rule: Transition) -> None:
    if rule.by_holder:
        assert rule.sources == {S.LEASED}


@ROWS
def test_anybody_else_who_ends_or_takes_a_lease_makes_a_new_generation(rule: Transition) -> None:
    takes = rule.target is S.LEASED
    ends = S.LEASED in rule.sources and not rule.by_holder
    if takes or ends:
        assert rule.generation == 1


@ROWS
def test_an_attempt_is_counted_by_a_retry_only(rule: Transition) -> None:
    assert rule.attempt == (1 if rule.cause is Cause.RETRY else 0)


@ROWS
def test_a_crash_is_counted_when_a_lease_ends_without_its_holders_word_only(rule: Transition) -> None:
    assert rule.crashes == (1 if rule.cause in (Cause.EXPIRE, Cause.GIVE_UP) else 0)


@ROWS
def test_counters_never_go_back(rule: Transition) -> None:
    assert min(rule.generation, rule.attempt, rule.crashes) >= 0


@ROWS
def test_a_cause_ends_a_run_exactly_if_its_target_is_terminal(rule: Transition) -> None:
    assert rule.ends == (rule.target in S.terminal())


@ROWS
def test_every_end_is_told_to_listeners(rule: Transition) -> None:
    if rule.ends:
        assert rule.event in {"run:complete", "run:fail", "run:cancel"}
        assert (rule.event == "run:complete") == (rule.target is S.COMPLETED)
        assert (rule.event == "run:cancel") == (rule.target is S.CANCELLED)


def test_a_lease_begins_with_a_claim_only() -> None:
    assert [cause for cause, rule in TABLE.items() if rule.target is S.LEASED] == [Cause.CLAIM]


def test_every_status_can_be_reached_and_every_active_one_left() -> None:
    reached, before = {S.PENDING}, set()
    while reached != before:
        before = set(reached)
        reached |= {rule.target for rule in TABLE.values() if rule.sources & reached}
    assert reached == set(S)
    assert {status for rule in TABLE.values() for status in rule.sources} == S.active()


def test_every_active_status_can_be_cancelled() -> None:
    for status in S.active():
        found = after(status, Cause.CANCEL)
        assert found is not None
        assert found.target is S.CANCELLED


def test_the_picture_in_the_module_names_every_status() -> None:
    assert set(S) <= set(re.findall(r"\w+", lifecycle.__doc__ or ""))


# -- crashes in a row ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crashes", "most", "cause"),
    [
        (0, 5, Cause.EXPIRE),
        (3, 5, Cause.EXPIRE),
        (4, 5, Cause.GIVE_UP),
        (5, 5, Cause.GIVE_UP),
        (9, 5, Cause.GIVE_UP),
        (0, 1, Cause.GIVE_UP),
        (0, 2, Cause.EXPIRE),
    ],
)
def test_a_run_is_given_up_when_its_last_allowed_crash_has_happened(crashes: int, most: int, cause: Cause) -> None:
    assert after_expiry(crashes, most).cause is cause
