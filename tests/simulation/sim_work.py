"""What the simulated processes have to do: programs, drawn by the seed, that one job interprets.

The value of a step is a number that no other execution of any step gets. So whether a step was executed again, or gave
its value to another one, is seen in the output: it must be what a plain interpreter makes of the checkpoints.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import holdfast
from holdfast import Retry, Step
from holdfast.basis.failures import Failure, load_failure
from holdfast.engine.context import current, current_step, current_try

if TYPE_CHECKING:
    from holdfast.model.step import StepRow
    from simulation import World


class Declined(Exception):
    """What a step raises that is to fail. Its argument is the number of the call."""


class Op(NamedTuple):
    """One line of a program."""

    kind: str
    """step, gather, log, progress, rest, trigger, raise."""
    name: str = ""
    index: int = 0
    micros: int = 0
    fails: int = 0
    """So many calls fail, over all executions of the run."""
    crashes: int = 0
    """So many calls kill their process."""
    retry: Retry | None = None
    caught: bool = False
    timeout: float | None = None
    branches: tuple[tuple[Op, ...], ...] = ()
    program: int = 0
    attempts: int = 0


class Program(NamedTuple):
    """What a run does, and how it was triggered."""

    ops: tuple[Op, ...]
    steps: tuple[Op, ...]


RETRIES = [Retry(1, delay=0.3), Retry(2, delay=1, jitter=0.5), Retry(1)]


class Author:
    """Writes the programs of one story."""

    def __init__(self, rng: random.Random, *, poison: bool) -> None:
        self.rng = rng
        self.programs: list[Program] = []
        self.parents: dict[int, int] = {}
        """By the program that another one triggers: that one."""
        self._poison = poison
        self._steps: list[Op] = []

    def write(self, *, leaf: bool = False) -> int:
        """A new program; its number."""
        rng, self._steps = self.rng, []
        number = len(self.programs)
        self.programs.append(Program((), ()))
        ops: list[Op] = []
        steps = self._steps
        children: list[Op] = []
        for i in range(1 if leaf else rng.choice((1, 2, 2, 3, 3, 4))):
            draw = rng.random()
            if draw < 0.62 or leaf:
                # One name for several steps now and then: they are told apart by their occurrence.
                ops.append(self._step("again" if rng.random() < 0.25 else f"s{i}"))
            elif draw < 0.8:
                branches = []
                for j in range(rng.choice((2, 2, 3))):
                    name = f"b{i}{j}"
                    branches.append(tuple(self._step(name) for _ in range(rng.choice((1, 1, 2)))))
                # One name in two branches is refused: nobody could tell them apart on replay.
                clash = rng.random() < 0.06
                if clash:
                    branches = [(self._step(f"b{i}"),), (self._step(f"b{i}"),)]
                ops.append(Op("gather", name="clash" if clash else "", branches=tuple(branches)))
            elif draw < 0.86:
                ops.append(Op("rest", micros=self._duration()))
            elif draw < 0.94:
                ops.append(Op("trigger", name=f"t{i}"))
                children.append(ops[-1])
            else:
                ops.append(Op("raise", attempts=rng.choice((1, 1, 2))))
            if rng.random() < 0.3:
                ops.append(Op(rng.choice(("log", "progress")), name=f"n{i}"))
        for child in children:
            written = self.write(leaf=True)
            self.parents[written] = number
            ops[ops.index(child)] = child._replace(program=written)
        self.programs[number] = Program(tuple(ops), tuple(steps))
        return number

    def _duration(self) -> int:
        rng = self.rng
        draw = rng.random()
        return 0 if draw < 0.3 else int(rng.uniform(0.01, 0.5) * 1e6 if draw < 0.85 else rng.uniform(1, 15) * 1e6)

    def _step(self, name: str) -> Op:
        rng = self.rng
        fails = rng.choice((1, 1, 2, 3)) if rng.random() < 0.2 else 0
        retry = rng.choice(RETRIES) if rng.random() < (0.6 if fails else 0.1) else None
        crashes = (1 if rng.random() < 0.9 else 9) if self._poison and rng.random() < 0.5 else 0
        micros, caught = self._duration(), rng.random() < 0.6
        timeout = rng.uniform(0.2, 4) if micros and rng.random() < 0.15 else None
        op = Op("step", name, len(self._steps), micros, fails, crashes, retry, caught, timeout)
        self._steps.append(op)
        return op


# -- executing -------------------------------------------------------------------------------------------------


class _Place:
    """Where the story that is told now is found, by code that the engine calls."""

    world: World


async def body(n: int, index: int) -> int:
    """What a step does: it tells the world, which can't be undone."""
    world, execution = _Place.world, current.get()
    assert execution is not None
    op = world.programs[n].steps[index]
    tried = current_try.get()
    number, calls = world.record.begins(
        execution, current_step.get() or "", tried[1] if tried else 0, timed=op.timeout is not None
    )
    if calls <= op.crashes:
        world.crash_by_itself(execution)
        await asyncio.Future()
    if op.micros:
        await asyncio.sleep(op.micros / 1e6)
    world.record.takes_effect(number)
    if calls - op.crashes <= op.fails:
        raise Declined(number)
    return number


async def _perform(step: Step, n: int, ops: tuple[Op, ...], out: list[int]) -> None:
    for op in ops:
        if op.kind == "step":
            await _step(step, n, op, out)
        elif op.kind == "gather":
            outs: list[list[int]] = [[] for _ in op.branches]
            done = await asyncio.gather(
                *(_perform(step, n, branch, part) for branch, part in zip(op.branches, outs, strict=True)),
                return_exceptions=True,
            )
            for error in done:
                if error is not None:
                    raise error
            out += [number for part in outs for number in part]
        elif op.kind == "rest":
            await asyncio.sleep(op.micros / 1e6)
        elif op.kind == "log":
            step.log.info(op.name)
        elif op.kind == "progress":
            step.progress(len(out))
        elif op.kind == "trigger":
            await _Place.world.app_of(current.get()).jobs.work.trigger(op.program)
        elif step.attempt < op.attempts:
            raise Declined(0)


async def _step(step: Step, n: int, op: Op, out: list[int]) -> None:
    _Place.world.record.gets_key(step.run_id, op.name, step.idempotency_key(op.name))
    how = step
    if op.retry is not None or op.timeout is not None:
        how = step.options(retry=op.retry, timeout=op.timeout)
    try:
        out.append(await how.run(op.name, body, n, op.index))
    except (Declined, TimeoutError) as error:
        if not op.caught:
            raise
        out.append(-int(error.args[0]) if isinstance(error, Declined) else 0)


@holdfast.job(name="work")
async def work(step: Step, n: int) -> list[int]:
    """Performs a program."""
    out: list[int] = []
    await _perform(step, n, _Place.world.programs[n].ops, out)
    return out


@holdfast.job(name="other")
async def other(step: Step, n: int) -> list[int]:
    """The same under another name: keys hold over all jobs."""
    out: list[int] = []
    await _perform(step, n, _Place.world.programs[n].ops, out)
    return out


JOBS = (work, other)


# -- what should come of it ------------------------------------------------------------------------------------


class Ambiguous(Exception):
    """The run must have failed, whatever is saved."""


class Missing(Exception):
    """A checkpoint that must be there is not."""


def expected(program: Program, saved: Mapping[tuple[str, int], StepRow], attempt: int) -> tuple[str, list[int]]:
    """What the run must have come to: its status and output, as the checkpoints say."""
    counts: dict[str, int] = {}

    def value(op: Op) -> tuple[bool, int]:
        occurrence = counts.get(op.name, 0)
        counts[op.name] = occurrence + 1
        row = saved.get((op.name, occurrence))
        if row is None:
            raise Missing(f"{op.name}#{occurrence}")
        if row.status == "completed":
            return True, int(row.output or "")
        if row.attempt != attempt:
            raise Missing(f"{op.name}#{occurrence} in attempt {attempt}")
        error = load_failure(Failure.from_json(row.error or ""))
        if isinstance(error, TimeoutError):
            return False, 0
        if not isinstance(error, Declined):
            raise error
        return False, int(error.args[0])

    def perform(ops: tuple[Op, ...]) -> Iterator[int]:
        for op in ops:
            if op.kind == "step":
                well, number = value(op)
                if not well and not op.caught:
                    raise Declined(number)
                yield number if well else -number
            elif op.kind == "gather":
                if op.name == "clash":
                    raise Ambiguous
                failed: Declined | None = None
                for branch in op.branches:
                    try:
                        yield from perform(branch)
                    except Declined as error:
                        failed = failed or error
                if failed is not None:
                    raise failed
            elif op.kind == "raise" and attempt < op.attempts:
                raise Declined(0)

    out: list[int] = []
    try:
        for number in perform(program.ops):
            out.append(number)  # noqa: PERF402 - what came before an error counts
    except Declined:
        return "failed", out
    return "completed", out


def names_before(program: Program) -> dict[str, Any]:
    """Of each step of the main branch, the names of the steps that must have been saved before it begins."""
    before: dict[str, Any] = {}
    counts: dict[str, int] = {}
    done: list[tuple[str, int]] = []
    for op in program.ops:
        if op.kind == "step":
            key = (op.name, counts.get(op.name, 0))
            counts[op.name] = key[1] + 1
            before[f"{key[0]}#{key[1]}" if key[1] else key[0]] = tuple(done)
            done.append(key)
        elif op.kind == "gather":
            there = tuple(done)
            for branch in op.branches:
                inside = list(there)
                for step in branch:
                    key = (step.name, counts.get(step.name, 0))
                    counts[step.name] = key[1] + 1
                    before[f"{key[0]}#{key[1]}" if key[1] else key[0]] = tuple(inside)
                    inside.append(key)
                    done.append(key)
    return before
