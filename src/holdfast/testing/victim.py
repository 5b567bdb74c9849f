"""What a child process of `crash_at_every_step` does: it executes the run, tells what happens, and is killed.

What it tells goes to a file, a line at a time, without a buffer: that survives the kill. Nothing of the engine is
changed for it: the store below sees each commit on its way, the other facts are read off the executions.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..app import Holdfast
from ..basis.failures import Failure
from ..engine.branches import Branches, Place, here
from ..engine.call import Call
from ..engine.context import current
from ..engine.engine import Engine
from ..engine.execution import Execution
from ..engine.worker import Worker
from ..job import Job
from ..model.run import RunFilter, RunRow
from ..model.step import StepKey, StepRow
from ..model.wait import WHICH, WaitRow, step_of
from ..rules.lifecycle import Cause
from ..store.base import Ended, Ending, StepSave, Tx, WaitSave
from ..store.sqlite import SqliteStore
from . import effects
from .clock import HandClock
from .kit import next_due, skip_rests, work_off
from .points import END, RETRIED, SUSPENDED, PointKind, Points, Strike, Tree, at

_MINE = "crash_at_every_step"


class World:
    """The file that facts are written to: what happened, in which process, and to which run."""

    def __init__(self, folder: Path, process: int) -> None:
        self._path = folder / "world.log"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._process = process
        self.tree: Tree = Tree()

    def tell(self, what: str, *facts: object) -> None:
        os.write(self._file, json.dumps([what, self._process, *facts]).encode() + b"\n")

    def remember(self) -> None:
        """The runs that the process before has named."""
        for line in self._path.read_text("utf-8").splitlines():
            what, _, *facts = json.loads(line)
            if what == "named":
                self.tree.names.update(facts[0])

    def watch(self, execution: Execution) -> None:
        """Tell of every step that this execution asks for, and of every body that begins."""
        name = self.tree.names.get(execution.row.id)
        if name is not None:
            self.tell("starts", name, execution.row.attempt)
            execution.branches = _Branches(self, execution, name)
            execution.steps.bodies = _Bodies(self, name, execution.row.attempt)

    def place(self, step: str | None) -> str | None:
        """What `effects` call the step that is being called."""
        execution = current.get()
        name = None if execution is None else self.tree.names.get(execution.row.id)
        return step if not name else at(name, step or "(outside of steps)")


class _Branches(Branches):
    def __init__(self, world: World, execution: Execution, name: str) -> None:
        super().__init__(execution.row.id)
        self._world = world
        self._execution = execution
        self._name = name

    def place(self, name: str) -> Place:
        place = super().place(name)
        # What unwinds asks for nothing: its `finally` may still try to.
        if place.refusal is None and not self._execution.closed:
            self._world.tell("asked", self._name, str(place.key), here() is self.main)
        return place


class _Bodies(dict[StepKey, Any]):
    def __init__(self, world: World, name: str, attempt: int) -> None:
        super().__init__()
        self._world = world
        self._name = name
        self._attempt = attempt

    def __setitem__(self, key: StepKey, branch: Any) -> None:
        self._world.tell("begins", self._name, str(key), self._attempt)
        super().__setitem__(key, branch)


class _Noted:
    """What a round has written of the tree, and is told once it is committed."""

    def __init__(self) -> None:
        self.points: list[tuple[PointKind, str, str]] = []
        self.facts: list[tuple[str, *tuple[object, ...]]] = []


class _Store(SqliteStore):
    """Kills this process around one COMMIT."""

    def __init__(self, url: str, clock: HandClock, world: World, strike: Strike | None) -> None:
        super().__init__(url, clock=clock)
        self._world = world
        self._strike = strike
        self._points = Points()

    def save_steps(self, tx: Tx, saves: Sequence[StepSave]) -> list[bool]:
        answers = super().save_steps(tx, saves)
        for save, kept in zip(saves, answers, strict=True):
            row = save.step
            if kept and (name := self._name(row.run_id)) is not None:
                noted = _noted(tx)
                noted.points.append(("checkpoint", name, _key(row)))
                noted.facts.append(("saved", name, _key(row), row.status, row.attempt))
        return answers

    def save_waits(self, tx: Tx, saves: Sequence[WaitSave]) -> list[WaitRow | None]:
        answers = super().save_waits(tx, saves)
        for save, standing in zip(saves, answers, strict=True):
            if standing is not None and (name := self._name(standing.run_id)) is not None:
                noted, tree = _noted(tx), self._world.tree
                named = tree.add(standing, (new for new in save.children if new.id not in tree))
                noted.points.append(("wait", name, str(step_of(standing.key))))
                noted.facts.append(("named", named))
        return answers

    def finish(self, tx: Tx, endings: Sequence[Ending]) -> list[Ended]:
        answers = super().finish(tx, endings)
        for ending, ended in zip(endings, answers, strict=True):
            name, transition = self._name(ending.lease.run_id), ending.transition
            if not ended.accepted or name is None:
                continue
            if transition.ends:
                _noted(tx).points.append(("end", name, END))
            elif transition.cause is Cause.SUSPEND:
                _noted(tx).points.append(("suspension", name, SUSPENDED))
            elif transition.cause is Cause.RETRY:
                _noted(tx).points.append(("retry", name, RETRIED))
        return answers

    def commit(self, tx: Tx) -> None:
        noted: _Noted | None = tx.seen.get(_MINE)
        if noted is None:
            super().commit(tx)
            return
        numbered = [self._points.next(*point) for point in noted.points]
        strike = self._strike
        struck = strike is not None and any(strike.means(*one) for one in numbered)
        if strike is not None and struck and strike.moment == "before":
            self._kill()
        super().commit(tx)
        for point, _ in numbered:
            self._world.tell("came", *point)
        for fact in noted.facts:
            self._world.tell(*fact)
        if struck:
            self._kill()

    def _name(self, run_id: str) -> str | None:
        return self._world.tree.names.get(run_id)

    def _kill(self) -> None:
        self._world.tell("struck")
        os.kill(os.getpid(), signal.SIGKILL)


def _noted(tx: Tx) -> _Noted:
    noted: _Noted = tx.seen.setdefault(_MINE, _Noted())
    return noted


def _key(row: StepRow) -> str:
    return str(StepKey(row.name, row.occurrence))


def execute(
    job: Job[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], folder: Path, process: int, strike: Strike | None
) -> None:
    """Bring the run in this folder to its end (the first process triggers it), and write down what it came to."""
    world, clock = World(folder, process), HandClock()
    effects.place = world.place
    store = _Store(f"sqlite:///{folder / 'holdfast.db'}", clock, world, strike)
    call = job.bind(*args, **kwargs)
    app = _moved(job, call, store, clock, world)
    if process == 0:
        store.migrate()
        root = app._trigger(call).wait().id
        world.tree = Tree(root)
        world.tell("named", world.tree.names)
    else:
        world.remember()
        root = next(run_id for run_id, name in world.tree.names.items() if not name)
        _catch_up(clock, _family(app, root))
    seen: list[RunRow] = []
    while True:
        app._engine.call("drain", lambda worker: _worked_off(app, worker)).wait()
        rows = _family(app, root)
        if all(row.completed_at is not None for row in rows):
            break
        due = app._engine.call("next_due", lambda _: next_due(app)).wait()
        if due is not None:
            clock.advance((due - clock.now()) / 1_000_000)
        elif rows == seen:
            break  # nobody comes any more
        seen = rows
    (folder / f"end-{process}").write_text(json.dumps(_outcome(app, world, root)), encoding="utf-8")


async def _worked_off(app: Holdfast, worker: Worker) -> None:
    app._engine.ready_to_work()
    await work_off(app, worker)


def _family(app: Holdfast, root: str) -> list[RunRow]:
    """The run, and all below it."""
    engine = app._engine

    def look(connection: Any) -> list[RunRow]:
        return [
            *engine.store.find_runs(connection, RunFilter(ids=(root,))),
            *engine.store.find_runs(connection, RunFilter(root=root)),
        ]

    return engine.reader.read("find_runs", look, list[RunRow]).wait()


def _catch_up(clock: HandClock, rows: Sequence[RunRow]) -> None:
    """Not earlier than anything that has happened, and the lease of the one who was killed is over."""
    over = [row.lease_expires_at for row in rows if row.lease_expires_at is not None]
    now = max([*(row.updated_at for row in rows), *(at + 1_000_000 for at in over), clock.now()])
    clock.advance((now - clock.now()) / 1_000_000)


def _outcome(app: Holdfast, world: World, root: str) -> dict[str, Any]:
    tree, store, rows = world.tree, app._engine.store, _family(app, root)
    steps: dict[str, list[str | None]] = {}
    for row in sorted(rows, key=lambda row: tree.names[row.id]):

        def look(connection: Any, run_id: str = row.id) -> list[StepRow]:
            return store.find_steps(connection, run_id)

        for step in app._engine.reader.read("find_steps", look, list[StepRow]).wait():
            output = WHICH if (step.output or "").startswith(WHICH) else tree.without_ids(step.output)
            steps[at(tree.names[row.id], _key(step))] = [step.status, output, tree.without_ids(_error(step))]
    ends = {tree.names[row.id]: _end(tree, row) for row in rows}
    return {**ends.pop(""), "steps": steps, "below": ends}


def _end(tree: Tree, run: RunRow) -> dict[str, Any]:
    end = None if run.completed_at is None else run.status
    error = None if end is None or run.error is None else f"{run.error_type}: {run.error}"
    return {
        "job": run.job_name,
        "status": run.status,
        "waiting_for": run.waiting_for,
        "end": end,
        "output": tree.without_ids(run.output),
        "error": tree.without_ids(error),
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
    options = dataclasses.replace(
        before.options, strict=True, queues=tuple(sorted(queues)), preserve_steps=True, retain_runs=None
    )
    engine = Engine(store, clock, options, own_thread=True, own_store=True)
    engine.registry, engine.watch = before.registry, world.watch
    app._engine = engine
    skip_rests(engine)
    return app
