"""Nobody is blind: each guard that is taken out on purpose is missed by somebody."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import pytest
from hunt import simulated
from named_tests import ask

from holdfast.store import sqlite as store
from holdfast.store.schema import Schema
from mutants import MUTANTS, Code, Patch, Statement, plant


def everything_that_is_changed() -> list[Any]:
    """The text of all statements and tables, and the code of all that mutants change."""
    seen: list[Any] = [store._SQL["claim"], dict(store._SQL), Schema.load("sqlite")]
    for mutant in MUTANTS.values():
        for fault in mutant.faults:
            if isinstance(fault, Code | Patch):
                found = fault.found()
                seen.append(found.__code__ if isinstance(found, types.FunctionType) else found)
    return seen


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_can_be_planted_and_taken_out_again(name: str) -> None:
    before = everything_that_is_changed()
    with plant(name):
        assert everything_that_is_changed() != before
    assert everything_that_is_changed() == before


def test_a_mutant_of_something_that_has_changed_makes_noise() -> None:
    with pytest.raises(AssertionError, match="the statement claim has changed"):
        Statement("claim", "these words are not there").plant()
    with pytest.raises(AssertionError, match="has changed"):
        Code("engine.worker:Worker._take", ("these words are not there", "")).plant()
    with pytest.raises(AssertionError, match=r"there is no engine\.worker:Worker\.nothing"):
        Patch("engine.worker:Worker.nothing", lambda before: before).plant()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each mutant has a forked process of its own")
@pytest.mark.sampled("what a guard is good for is the same on every Python")
def test_each_mutant_is_caught_by_its_named_test(tmp_path: Path) -> None:
    words = ask([(name, mutant.tests[0]) for name, mutant in MUTANTS.items()], tmp_path)
    survivors = [f"{word.mutant!r} survives {word.test}" for word in words if word.failure is None]
    assert survivors == []
    assert {word.mutant for word in words} == set(MUTANTS)
    unseen = [word.mutant for word in words if (word.failure or "").startswith("skipped: ")]
    print(f"\n{len(words) - len(unseen)} of {len(MUTANTS)} mutants were caught by the first of their named tests")
    if unseen:
        pytest.skip(f"a named test could not run here, for want of its server: {', '.join(map(str, unseen))}")


#: What the simulation must not miss, whatever else it is good for: those of the table of its first draft that it sees.
SIMULATED = (
    "checkpoint without its fence",
    "end without its fence",
    "idempotency key not kept",
    "expired lease never reclaimed",
    "claim in two statements",
    "worker's own clock judges leases",
    "lease trusted from the answer",
    "checkpoints not loaded on takeover",
    "no self-fence",
)


@pytest.mark.sampled("what a guard is good for is the same on every Python")
@pytest.mark.parametrize("name", SIMULATED)
def test_the_simulation_misses_these_guards(name: str) -> None:
    how = simulated(MUTANTS[name], seeds=1000, seconds=60, at_least=1)
    assert how, f"no seed was broken by {name!r}"
    print(f"\n{name}: {how}")
