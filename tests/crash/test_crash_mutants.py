"""The checker is not blind: the same cases on a store without one of its guards are found out."""

from __future__ import annotations

from typing import Any

import pytest
from crash_field import OPERATIONS, Field
from crash_wire import MUTANTS

pytestmark = pytest.mark.crash


CASES = [
    # The three that the reliability contract names first.
    ("checkpoint without its fence", "step", "paused", "I7"),
    ("checkpoint not unique", "step", "unanswered", "I4"),
    ("expired lease never reclaimed", "step, sync job", "after", "I2"),
    # And the other guards that these cases rest on.
    ("end without its fence", "finish", "paused", "I7"),
    ("renewal without its fence", "renew", "paused", "I7"),
    ("log without its fence", "step", "paused", "I7"),
    ("progress without its fence", "step", "paused", "I7"),
    ("try without its fence", "retry", "paused", "I7"),
    ("failed tries not counted", "retry", "after", "I6"),
    ("checkpoints not loaded on takeover", "finish", "before", "I5"),
    ("idempotency key not kept", "trigger", "after", "I11"),
    ("commit that keeps nothing", "trigger", "after", "I1"),
    ("output not kept", "finish", "after", "I8"),
    ("cancel not guarded by status", "cancel", "paused", "I3"),
    ("delete not guarded by status", "delete", "after", "I1"),
    ("half a deletion", "purge", "after", "A11"),
    ("outputs dropped while the run may go on", "drop", "after", "A11"),
    ("key not passed on at an end", "keys", "after", "I2"),
    ("key not passed on at a cancel", "keys", "after", "I2"),
    ("key not asked for by a claim", "keys", "after", "I10"),
    ("one waiting run per key, claimed before or not", "keys, takeover", "before", "I2"),
]


def test_every_planted_fault_is_tried() -> None:
    assert [mutant for mutant, *_ in CASES] == list(MUTANTS)


@pytest.mark.parametrize(("mutant", "operation", "phase", "invariant"), CASES)
def test_a_planted_fault_is_found(
    crash_field: Field, record_property: Any, mutant: str, operation: str, phase: str, invariant: str
) -> None:
    tally = crash_field.campaign(OPERATIONS[operation], mutant, (phase,))
    assert tally.cases >= 1
    assert tally.broken[invariant] >= 1, f"{mutant} was not found by {invariant}: {tally.broken}"
    found = f"{mutant}: {invariant} in {tally.broken[invariant]} of {tally.cases} cases"
    record_property("planted", found)
    print(f"\n{found}; {dict(tally.broken)}; the smallest witness:\n{tally.witness[invariant]}")
