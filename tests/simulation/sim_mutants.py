"""Planted faults, on both stores: what tests/mutants takes out of the code and the SQL, taken out of the model too.

What is in the engine needs no twin: the same engine works on both stores. What is in a statement has one here, as the
verb of `OneByOne` without that guard.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "mutants"))

from sim_store import ModelDatabase, SimStore, _sqlite

import mutants
from holdfast.model.run import RunStatus
from holdfast.store.base import StepSave, Triggered, Tx
from holdfast.store.one_by_one import OneByOne
from simulation import simulate


def _unfenced(verb: str) -> Callable[[], None]:
    """Within this verb, every lease counts."""

    def twin() -> None:
        real, held = getattr(OneByOne, verb), OneByOne._held

        def planted(self: OneByOne, tx: Tx, *rows: Any) -> Any:
            def any_lease(tx: Tx, lease: Any) -> Any:
                return held(self, tx, lease) or self.tables(tx.connection).runs.get(lease[0])

            self._held = any_lease  # type: ignore[method-assign]
            try:
                return real(self, tx, *rows)
            finally:
                del self._held

        setattr(OneByOne, verb, planted)

    return twin


def _checkpoint_not_unique() -> None:
    real = OneByOne._save_step

    def planted(self: OneByOne, tx: Tx, save: StepSave) -> bool:
        self.tables(tx.connection).steps.pop(save.step[:3], None)
        return real(self, tx, save)

    OneByOne._save_step = planted  # type: ignore[method-assign]


def _no_idempotency() -> None:
    real = ModelDatabase._trigger

    def planted(self: ModelDatabase, tx: Tx, new: Any) -> Triggered:
        return real(self, tx, new._replace(idempotency_key=None))

    ModelDatabase._trigger = planted  # type: ignore[method-assign]


def _never_reclaimed() -> None:
    OneByOne._expire = lambda self, tx, sweep: []  # type: ignore[method-assign]


def _crashes_never_reset() -> None:
    real = OneByOne._save_step
    OneByOne._save_step = lambda self, tx, save: real(self, tx, save._replace(moved_on=False))  # type: ignore[method-assign]


def _crashes_not_counted() -> None:
    real = OneByOne._let_go

    def planted(self: OneByOne, tx: Tx, run: Any, status: str, **changes: Any) -> Any:
        changes.pop("crashes", None)
        return real(self, tx, run, status, **changes)

    OneByOne._let_go = planted  # type: ignore[method-assign]


def _checkpoints_not_loaded() -> None:
    real = ModelDatabase._claim
    ModelDatabase._claim = lambda self, tx, order: real(self, tx, order)._replace(steps={})  # type: ignore[method-assign]


def _first_of_any_generation() -> None:
    real = ModelDatabase._trigger

    def planted(self: ModelDatabase, tx: Tx, new: Any) -> Triggered:
        runs = self.tables(tx.connection).runs
        if new.concurrency_key is not None and new.id not in runs:
            for run in runs.values():
                same = (run.job_name, run.concurrency_key) == (new.job_name, new.concurrency_key)
                if same and run.status == RunStatus.PENDING and run.idempotency_key != new.idempotency_key:
                    return Triggered(run, "coalesced" if new.coalesce else "conflict")
        return real(self, tx, new)

    ModelDatabase._trigger = planted  # type: ignore[method-assign]


def _key_not_asked_for() -> None:
    real = ModelDatabase._claimable

    def planted(self: ModelDatabase, tables: Any, order: Any, now: int) -> Any:
        tables.holders.clear()
        return real(self, tables, order, now)

    ModelDatabase._claimable = planted  # type: ignore[method-assign]


def _same_generation() -> None:
    real = OneByOne._put

    def planted(self: OneByOne, tx: Tx, run: Any) -> Any:
        if run.status == "leased" and run.generation > 1:
            before = self.tables(tx.connection).runs[run.id]
            run = run._replace(generation=before.generation)
        return real(self, tx, run)

    OneByOne._put = planted  # type: ignore[method-assign]


def _cancel_unguarded() -> None:
    real = OneByOne.cancel

    def planted(self: OneByOne, tx: Tx, run_ids: Any) -> Any:
        runs = self.tables(tx.connection).runs
        for run_id in run_ids:
            if run_id in runs and runs[run_id].completed_at is not None:
                runs[run_id] = runs[run_id]._replace(status="cancelled", generation=runs[run_id].generation + 1)
        return real(self, tx, run_ids)

    OneByOne.cancel = planted  # type: ignore[method-assign]


#: By the name in tests/mutants: the same guard, taken out of the model.
TWINS: dict[str, Callable[[], None]] = {
    "checkpoint without its fence": _unfenced("_save_step"),
    "checkpoint not unique": _checkpoint_not_unique,
    "end without its fence": _unfenced("_finish"),
    "renewal without its fence": _unfenced("_renew"),
    "log without its fence": _unfenced("save_logs"),
    "progress without its fence": _unfenced("save_progress"),
    "try without its fence": _unfenced("_save_attempt"),
    "idempotency key not kept": _no_idempotency,
    "expired lease never reclaimed": _never_reclaimed,
    "crash count never reset": _crashes_never_reset,
    "crash not counted": _crashes_not_counted,
    "checkpoints not loaded on takeover": _checkpoints_not_loaded,
    "one waiting run per key, claimed before or not": _first_of_any_generation,
    "key not asked for by a claim": _key_not_asked_for,
    "claim that makes no new generation": _same_generation,
    "cancel not guarded by status": _cancel_unguarded,
}


def _skewed_clock_judges() -> None:
    real = SimStore.expire  # type: ignore[attr-defined]

    def planted(self: SimStore, tx: Tx, sweeps: Any) -> Any:
        return real(self, replace(tx, now=self.process.clock.now()), sweeps)

    SimStore.expire = planted  # type: ignore[attr-defined]


#: Of which tests/mutants has none, on both stores. The last one is what the simulation has found, put back.
OWN: dict[str, Callable[[], Any]] = {
    "skewed clock of a worker judges leases": _skewed_clock_judges,
    "step begun without a look after its tries were read": mutants.Code(
        "engine.steps:Steps._try", ("self._execution.check()  # the read", "pass  # the read")
    ).plant,
}

#: What must be found, on both stores: a seed that has found it, tried first, and within so many seeds it must be.
FOUND: dict[str, tuple[int, int]] = {
    "checkpoint without its fence": (18, 400),
    "checkpoint not unique": (427, 800),
    "end without its fence": (5, 400),
    "renewal without its fence": (23, 400),
    "log without its fence": (36, 400),
    "progress without its fence": (139, 800),
    "try without its fence": (21, 800),
    "idempotency key not kept": (2, 100),
    "expired lease never reclaimed": (1, 100),
    "skewed clock of a worker judges leases": (3, 400),
    "lease trusted from the answer": (55, 400),
    "no self-fence": (19, 200),
    "checkpoints not loaded on takeover": (1, 100),
    "crash count never reset": (1, 100),
    "crash not counted": (7, 100),
    "failure not replayed within its attempt": (23, 400),
    "failure replayed in every attempt": (1, 400),
    "occurrence counted run-wide": (5, 400),
    "one waiting run per key, claimed before or not": (17, 800),
    "key not asked for by a claim": (3, 400),
    "claim that makes no new generation": (1, 100),
    "cancel not guarded by status": (0, 200),
    "step that returns before its checkpoint is committed": (0, 100),
    "key of a trigger inside a run made anew in each execution": (29, 400),
    "commit without an answer taken for a success": (0, 400),
    "outcome announced before the commit": (8, 400),
    "round played again as if for the first time": (107, 800),
    "step begun without a look after its tries were read": (2805, 4000),
}


def plant(name: str) -> None:
    """Take this guard out of this process, for good, on both stores."""
    if name in OWN:
        OWN[name]()
    else:
        mutants.plant(name)
        if name in TWINS:
            TWINS[name]()


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Take it out for a while."""
    before = [(owner, dict(vars(owner))) for owner in (OneByOne, ModelDatabase, SimStore)]
    _sqlite.clear()  # its tables may be what is changed
    with contextlib.nullcontext() if name in OWN else mutants.plant(name):
        undo = None
        try:
            undo = OWN.get(name, TWINS.get(name, lambda: None))()
            yield
        finally:
            if undo is not None:
                undo()
            for owner, attributes in before:
                for attribute, value in list(vars(owner).items()):
                    if attribute not in attributes:
                        delattr(owner, attribute)
                    elif value is not attributes[attribute] and callable(value):
                        setattr(owner, attribute, attributes[attribute])
            _sqlite.clear()


def hunt(name: str, store: str, seeds: Iterable[int], *, all: bool = False) -> tuple[int, int, str]:
    """In how many of how many seeds it is found, and what is broken then; up to the first of them, or all."""
    found, tried, words = 0, 0, ""
    with planted(name):
        for seed in seeds:
            tried += 1
            try:
                broken = simulate(seed, store=store).broken  # type: ignore[arg-type]
            except Exception as error:  # it has broken the simulation itself
                broken = [f"{type(error).__name__}: {error}"]
            if broken:
                found, words = found + 1, words or f"seed {seed}: {broken[0]}"
                if not all:
                    return found, tried, words
    return found, tried, words


def is_on_the_model(name: str) -> bool:
    """Whether it takes effect there: in the engine, or by its twin."""
    if name in TWINS or name in OWN:
        return True
    faults = mutants.MUTANTS[name].faults
    return all(isinstance(one, mutants.Code | mutants.Patch) and not one.where.startswith("store.") for one in faults)
