"""The checker is not blind: the same cases on a store without one of its guards are found out."""

from __future__ import annotations

from typing import Any

import pytest
from crash_field import OPERATIONS, Field
from crash_wire import MUTANTS

pytestmark = [
    pytest.mark.only("sqlite", "the planted faults change the statements of SQLite"),
    pytest.mark.crash,
    pytest.mark.sampled("planted faults: what the checker sees is the same on every Python"),
]


CASES = [(name, *mutant.crash) for name, mutant in MUTANTS.items() if mutant.crash is not None]


def test_the_first_guards_of_the_reliability_contract_are_tried() -> None:
    first = {"checkpoint without its fence", "checkpoint not unique", "expired lease never reclaimed"}
    assert first < {name for name, *_ in CASES}


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
