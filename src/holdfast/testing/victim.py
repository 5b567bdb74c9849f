"""What a child process of `crash_at_every_step` does: it executes the run, tells what happens, and is killed.

What it tells goes to a file, a line at a time, without a buffer: that survives the kill. Nothing of the engine is
changed for it: the store below sees each checkpoint on its way, the other facts are read off the execution.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..app import Holdfast
from ..basis.failures import Failure
from ..engine.branches import Branches, Place, here
from ..engine.call import Call
from ..engine.context import current
from ..engine.engine import Engine
from ..engine.execution import Execution
from ..engine.registry import JobDefinition, Registry
from ..job import Job
from ..model.run import RunRow
from ..model.step import StepKey, StepRow
from ..store.base import Ended, Ending, StepSave, Tx
from ..store.sqlite import SqliteStore
from .clock import HandClock
from .kit import next_due, skip_rests

Moment = Literal["before", "after"]
_MINE = "crash_at_every_step"


class Strike(NamedTuple):
    """Where the process is killed."""

    step: str | None
    """The checkpoint; None is the end of the run."""
    ordinal: int
    moment: Moment
    known: frozenset[str]
    """Where steps have other names each time, the checkpoint is the one that comes in the same place."""


class World:
    """The file that facts are written to."""

    def __init__(self, folder: Path, process: int) -> None:
        self._file = os.open(folder / "world.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._process = process
        self.run_id = ""

    def tell(self, what: str, *facts: object) -> None:
        os.write(self._file, json.dumps([what, self._process, *facts]).encode() + b"\n")

    def watch(self, execution: Execution | None) -> None:
        """Tell of every step that this execution asks for, and of every body that begins."""
        if execution is not None and execution.row.id == self.run_id:
            self.tell("starts")
            execution.branches = _Branches(self, execution.branches, self.run_id)
            execution.steps.bodies = _Bodies(self, execution.row.attempt)


class _Branches(Branches):
    def __init__(self, world: World, before: Branches, run_id: str) -> None:
        super().__init__(run_id)
        self.main = before.main
        self._world = world

    def place(self, name: str) -> Place:
        place = super().place(name)
        if place.refusal is None:
            self._world.tell("asked", str(place.key), here() is self.main)
        return place


class _Bodies(dict[StepKey, Any]):
    def __init__(self, world: World, attempt: int) -> None:
        super().__init__()
        self._world = world
        self._attempt = attempt

    def __setitem__(self, key: StepKey, branch: Any) -> None:
        self._world.tell("begins", str(key), self._attempt)
        super().__setitem__(key, branch)


class _Store(SqliteStore):
    """Kills this process around one COMMIT."""

    def __init__(self, url: str, clock: HandClock, world: World, strike: Strike | None) -> None:
        super().__init__(url, clock=clock)
        self._world = world
        self._strike = strike
        self._count = 0

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        answers = super().save_steps(tx, saves)
        mine = [save.step for save, kept in zip(saves, answers, strict=True) if kept]
        tx.seen.setdefault(_MINE, []).extend(step for step in mine if step.run_id == self._world.run_id)
        return answers

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        answers = super().finish(tx, endings)
        if any(ending.lease.run_id == self._world.run_id and ending.transition.ends for ending in endings):
            tx.seen.setdefault(_MINE, []).append(None)
        return answers

    def commit(self, tx: Tx) -> None:
        saved: list[StepRow | None] = tx.seen.get(_MINE, [])
        strikes = sum(self._is_meant(row) for row in saved)  # not any(): all of them are counted
        if strikes:
            self._kill("before")
        super().commit(tx)
        for row in saved:
            if row is not None:
                self._world.tell("saved", _key(row), row.status, row.attempt)
        if strikes:
            self._kill("after")

    def _is_meant(self, row: StepRow | None) -> bool:
        strike = self._strike
        if strike is None or row is None:
            return strike is not None and row is None and strike.step is None
        key, ordinal = _key(row), self._count
        self._count += 1
        return key == strike.step or (ordinal == strike.ordinal and key not in strike.known)

    def _kill(self, moment: Moment) -> None:
        if self._strike is not None and self._strike.moment == moment:
            self._world.tell("struck")
            os.kill(os.getpid(), signal.SIGKILL)


def _key(row: StepRow) -> str:
    return str(StepKey(row.name, row.occurrence))


def execute(
    job: Job[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], folder: Path, process: int, strike: Strike | None
) -> None:
    """Bring the run in this folder to its end (the first process triggers it), and write down what it came to."""
    world, clock = World(folder, process), HandClock()
    store = _Store(f"sqlite:///{folder / 'holdfast.db'}", clock, world, strike)
    call = job.bind(*args, **kwargs)
    app = _moved(job, call, store, clock, world)
    if process == 0:
        store.migrate()
        world.run_id = app._trigger(call).wait().id
        (folder / "run").write_text(world.run_id)
    else:
        world.run_id = (folder / "run").read_text()
    run = app.get_run(world.run_id).wait()
    assert run is not None
    if run._row.lease_expires_at is not None:
        # The lease of the one who was killed is over: nobody waits for that in real time.
        clock.advance(max(0, run._row.lease_expires_at - clock.now()) / 1_000_000 + 1)
    while True:
        app.process_until_idle().wait()
        run = run.refresh().wait()
        due = app._engine.call("next_due", lambda _: next_due(app)).wait()
        if run.is_terminal or due is None:
            break
        clock.advance((due - clock.now()) / 1_000_000)
    read = app._engine.reader.read("find_steps", lambda c: store.find_steps(c, world.run_id), list[StepRow])
    (folder / f"end-{process}").write_text(json.dumps(_outcome(run._row, read.wait())), encoding="utf-8")


def _outcome(run: RunRow, steps: list[StepRow]) -> dict[str, Any]:
    end = None if run.completed_at is None else run.status
    error = None if end is None or run.error is None else f"{run.error_type}: {run.error}"
    return {
        "status": run.status,
        "end": end,
        "output": run.output,
        "error": error,
        "steps": {_key(row): [row.status, row.output, _error(row)] for row in steps},
    }


def _error(row: StepRow) -> str | None:
    if row.error is None:
        return None
    failure = Failure.from_json(row.error)
    return f"{failure.short_type}: {failure.message}"


def _moved(job: Job[..., Any], call: Call[Any], store: _Store, clock: HandClock, world: World) -> Holdfast:
    """The job's own app, now on this database: what the job triggers by its handles must not go to the real one."""
    app = job._app
    if not isinstance(app, Holdfast):
        app = Holdfast("sqlite://", worker=False)
        app.register(job)
    before = app._engine
    queues = {*before.options.queues, *(one.queue for one in before.registry.all())}
    if call.options.queue is not None:
        queues.add(call.options.queue)
    options = dataclasses.replace(before.options, strict=True, queues=tuple(sorted(queues)))
    engine = Engine(store, clock, options, own_thread=True, own_store=True)
    engine.registry = _watched(before.registry, job.name, world)
    app._engine = engine
    skip_rests(engine)
    return app


def _watched(before: Registry, name: str, world: World) -> Registry:
    registry = Registry()
    seen = {one.name: _watching(one, world) if one.name == name else one for one in before.all()}
    for one in seen.values():
        registry.add(one, replace=False)
    for key in (*before.keys(),):
        if (known := before.get(key)) is not None:
            registry.add(seen[known.name], key=key, replace=False)
    return registry


def _watching(definition: JobDefinition, world: World) -> JobDefinition:
    fn = definition.fn

    async def watch_async(*args: Any, **kwargs: Any) -> Any:
        world.watch(current.get())
        return await fn(*args, **kwargs)

    def watch(*args: Any, **kwargs: Any) -> Any:
        world.watch(current.get())
        return fn(*args, **kwargs)

    return dataclasses.replace(definition, fn=watch_async if definition.signature.is_async else watch)
