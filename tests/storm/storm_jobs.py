"""The jobs of the storm: five steps each, and what a plain reading says that they come to.

Every step's body tells the world that it begins, does its effect (which is: telling the world), and gives the number of
that effect as its value. So the output of a run names the very effects that it was made of, and nobody can come to the
same output by executing a body again.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

from storm_world import Line

from holdfast import Holdfast, Retry, Step, SyncStep

STEPS = 5
#: Leased runs of `narrow` in the whole database.
LIMIT = 3
#: How often a step may fail within an attempt of its run.
TRIES = {"wobble": 3}
#: Bodies that may be about to begin at once, where it is not one.
BRANCHES = {"fan": 3}
#: The names of the steps that must be saved when this one begins. Of `fan` the first three go at once.
ORDER = {
    "order": ("reserve", "charge", "pack", "ship", "notify"),
    "batch": ("first", "second", "third", "fourth", "fifth"),
    "again": ("a", "b", "c", "d", "e"),
    "doomed": ("a", "b", "c", "d", "e"),
    "long": ("begin", "hold", "more", "last", "after"),
    "narrow": ("a", "b", "c", "d", "e"),
    "fan": ("left", "middle", "right", "join", "close"),
    "flaky": ("a", "wobble", "b", "c", "d"),
    "poison": ("a", "strike"),
}
ERRORS = {"doomed": "Declined", "poison": "WorkerCrashed"}


class Declined(Exception):
    """What the failing bodies and jobs raise."""


def total(n: int) -> int:
    """What the values of a run's steps add up to."""
    return sum(n + place for place in range(STEPS))


class Bodies:
    """The bodies of the steps in one process."""

    def __init__(self, world: Line, saved: Callable[[str, str], bool | None], lease: float) -> None:
        self.world = world
        self._saved = saved
        self._lease = lease
        self.chance = random.Random(os.getpid())
        """For how long bodies take; not for what they do."""

    def begin(self, step: Step | SyncStep, name: str, before: str | None) -> dict[str, Any]:
        row = step._execution.row
        told: dict[str, Any] = {
            "run": row.id, "step": name, "gen": row.generation, "attempt": row.attempt,
            "key": step.idempotency_key(name),
        }  # fmt: skip
        looked: dict[str, Any] = {}
        if before is not None and self.chance.random() < 0.1:
            saved = self._saved(row.id, before)
            looked = {"before": before, "saved": saved} if saved is not None else {}
        self.world.tell("begin", **told, **looked)
        return told

    def end(self, told: dict[str, Any], value: int) -> dict[str, int]:
        mark = self.world.tell("effect", **told)
        self.world.tell("end", run=told["run"], step=told["step"], gen=told["gen"])
        return {"value": value, "mark": mark}

    async def body(self, step: Step, name: str, value: int, before: str | None = None) -> dict[str, int]:
        told = self.begin(step, name, before)
        # A body beside a sleep (of a tree) outlasts most of them: nobody may suspend the run meanwhile.
        most = 0.6 if name.startswith("beside") else 0.02
        await asyncio.sleep(self._lease * 1.15 if name == "hold" else self.chance.random() * most)
        return self.end(told, value)

    def sync_body(self, step: SyncStep, name: str, value: int, before: str | None = None) -> dict[str, int]:
        told = self.begin(step, name, before)
        threading.Event().wait(self.chance.random() * 0.02)
        return self.end(told, value)

    def strike(self, step: Step) -> None:
        """A body that ends its worker each time."""
        self.begin(step, "strike", "a")
        self.world.tell("struck by a job", run=step.run_id)
        os.kill(os.getpid(), signal.SIGKILL)

    async def wobble(self, step: Step) -> None:
        row = step._execution.row
        self.world.tell("tried", run=row.id, step="wobble", gen=row.generation, attempt=row.attempt)
        raise Declined("not yet")


def told_of(*parts: dict[str, int]) -> dict[str, Any]:
    """The output of a run."""
    return {"total": sum(part["value"] for part in parts), "marks": [part["mark"] for part in parts]}


def define(app: Holdfast, bodies: Bodies) -> None:
    """Make these the jobs of an app."""
    body, sync_body = bodies.body, bodies.sync_body

    async def line(step: Step, n: int) -> list[dict[str, int]]:
        """Five steps, one after the other, with something to say in between."""
        names, parts = ORDER[step.job_name], list[dict[str, int]]()
        for place, name in enumerate(names):
            parts.append(await step.run(name, body, step, name, n + place, names[place - 1] if place else None))
            step.progress(place + 1, STEPS, name)
            step.log.info(f"{name} is done", n=n)
        return parts

    def sync_line(step: SyncStep, n: int) -> list[dict[str, int]]:
        names, parts = ORDER[step.job_name], list[dict[str, int]]()
        for place, name in enumerate(names):
            parts.append(step.run(name, sync_body, step, name, n + place, names[place - 1] if place else None))
            step.progress(place + 1, STEPS, name)
            step.log.info(f"{name} is done", n=n)
        return parts

    @app.job
    async def order(step: Step, n: int) -> dict[str, Any]:
        return told_of(*await line(step, n))

    @app.job
    def batch(step: SyncStep, n: int) -> dict[str, Any]:
        return told_of(*sync_line(step, n))

    @app.job
    async def long(step: Step, n: int) -> dict[str, Any]:
        return told_of(*await line(step, n))

    @app.job(limit=LIMIT)
    async def narrow(step: Step, n: int) -> dict[str, Any]:
        return told_of(*await line(step, n))

    @app.job
    def doomed(step: SyncStep, n: int) -> dict[str, Any]:
        sync_line(step, n)
        raise Declined("as always")

    @app.job(retry=Retry(1, delay=0.05))
    async def again(step: Step, n: int) -> dict[str, Any]:
        parts = await line(step, n)
        if step.attempt == 0:
            raise Declined("not at first")
        return told_of(*parts)

    @app.job
    async def fan(step: Step, n: int) -> dict[str, Any]:
        *names, join, close = ORDER["fan"]
        calls = [step.run(name, body, step, name, n + place) for place, name in enumerate(names)]
        parts = await asyncio.gather(*calls)
        step.log.info("all are back", n=n)
        parts.append(await step.run(join, body, step, join, n + 3, names[0]))
        step.progress(4, STEPS)
        return told_of(*parts, await step.run(close, body, step, close, n + 4, join))

    @app.job
    async def poison(step: Step, n: int) -> None:
        await step.run("a", body, step, "a", n)
        await step.run("strike", bodies.strike, step)

    @app.job
    async def flaky(step: Step, n: int) -> dict[str, Any]:
        parts = [await step.run("a", body, step, "a", n)]
        try:
            await step.options(retry=Retry(2, delay=0.02)).run("wobble", bodies.wobble, step)
        except Declined:
            parts.append({"value": n + 1, "mark": 0})
        before = "wobble"
        for place, name in enumerate("bcd", 2):
            parts.append(await step.run(name, body, step, name, n + place, before))
            step.log.info(f"{name} is done", n=n)
            before = name
        return told_of(*parts)
