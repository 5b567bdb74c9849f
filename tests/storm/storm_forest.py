"""The jobs that do what a tree of runs says (`storm_trees`), by way of Holdfast: each kind of run is one job."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from storm_jobs import Bodies, Declined
from storm_trees import KINDS, TURNS, WALKERS, Act, Node, node_of, worth

from holdfast import (
    Call,
    Children,
    ChildrenFailed,
    ChildResult,
    Done,
    Holdfast,
    LoopResult,
    Retry,
    RunFailed,
    Step,
    SyncStep,
)

#: What kinds of runs have below them by themselves.
PARTS = ("stage_one", "stage_two", "turn", "closed.finalize", "sum_up")
TREE_JOBS = (*KINDS, *PARTS)
#: Those that may wait for a signal.
HEARERS = WALKERS
_FAILURES = (Declined, RunFailed, ChildrenFailed, TimeoutError)
_RETRY = Retry(1, delay=0.05)


def plain(value: Any) -> Any:
    """An output as it is stored."""
    if isinstance(value, LoopResult):
        return {"success": value.success, "output": value.output}
    if isinstance(value, Done):
        return {"value": value.value}
    if isinstance(value, Children):
        return {"output": value.output, "children": [one.to_json() for one in value.results]}
    return value


def worth_of(value: Any) -> int:
    return worth(plain(value))


def define_trees(app: Holdfast, bodies: Bodies) -> None:
    """Make these the jobs of an app."""
    jobs: dict[str, Any] = {}

    def below(node: Node, at: str, children: Sequence[int]) -> list[Call[Any]]:
        return [jobs[node.children[child].kind].bind(f"{at}.{child}") for child in children]

    def collected(results: Sequence[ChildResult]) -> int:
        """Those without an output count as -1."""
        return sum(worth_of(one.unwrap()) if str(one.status) == "completed" else -1 for one in results)

    async def act(step: Step, node: Node, one: Act, at: str, before: str | None) -> int:
        name, calls = one.name, below(node, at, one.below)
        if one.what == "step":
            return (await step.run(name, bodies.body, step, name, one.value, before))["value"]
        if one.what == "wobble":
            await step.options(retry=Retry(1, delay=0.02)).run("wobble", bodies.wobble, step)
        elif one.what == "nap":
            await step.sleep(name, one.seconds)
        elif one.what == "beside":
            slow = step.run(name, bodies.body, step, name, one.value, before)
            return (await asyncio.gather(slow, step.sleep(f"nap {name}", one.seconds)))[0]["value"]
        elif one.what == "hear":
            return await step.wait_for_signal(name, type=int)
        elif one.what == "silence":
            await step.wait_for_signal(name, timeout=one.seconds)
        elif one.what == "call":
            return worth_of(await step.call(calls[0], name=name))
        elif one.what == "gather":
            return sum(worth_of(output) for output in await step.gather(*calls, name=name))
        elif one.what == "spawn":
            await step.spawn(calls[0], name=name)
        elif one.caught:
            places = [f"{at}.{child}" for child in one.below]
            return collected(await step.map(jobs["grow"], places, on_failure="collect", name=name))
        else:
            return sum(await step.map(jobs["grow"], [f"{at}.{child}" for child in one.below], name=name))
        return 0

    def act_sync(step: SyncStep, node: Node, one: Act, at: str, before: str | None) -> int:
        name, calls = one.name, below(node, at, one.below)
        if one.what == "step":
            return step.run(name, bodies.sync_body, step, name, one.value, before)["value"]
        if one.what == "wobble":
            step.options(retry=Retry(1, delay=0.02)).run("wobble", bodies.wobble, step)
        elif one.what == "nap":
            step.sleep(name, one.seconds)
        elif one.what == "hear":
            return step.wait_for_signal(name, type=int)
        elif one.what == "silence":
            step.wait_for_signal(name, timeout=one.seconds)
        elif one.what == "call":
            return worth_of(step.call(calls[0], name=name))
        elif one.what == "gather":
            return sum(worth_of(output) for output in step.gather(*calls, name=name))
        elif one.what == "spawn":
            step.spawn(calls[0], name=name)
        elif one.caught:
            places = [f"{at}.{child}" for child in one.below]
            return collected(step.map(jobs["grow"], places, on_failure="collect", name=name))
        else:
            return sum(step.map(jobs["grow"], [f"{at}.{child}" for child in one.below], name=name))
        return 0

    def in_the_end(step: Step | SyncStep, node: Node) -> None:
        if node.fails == "always" or (node.fails == "once" and step.attempt == 0):
            raise Declined(f"{node.fails}, as it was drawn")

    async def walk(step: Step, place: str) -> int:
        node = node_of(place)
        value, before = node.value, None
        at = place if step.attempt == 0 else f"{place}@{step.attempt}"
        for one in node.acts:
            try:
                value += await act(step, node, one, at, before)
            except _FAILURES:
                if not one.caught:
                    raise
                value -= 1
            before = one.name if one.what == "step" else before
        in_the_end(step, node)
        return value

    @app.job(retry=_RETRY)
    async def grow(step: Step, n: str) -> int:
        return await walk(step, n)

    @app.job(retry=_RETRY)
    def grow_sync(step: SyncStep, n: str) -> int:
        node = node_of(n)
        value, before = node.value, None
        at = n if step.attempt == 0 else f"{n}@{step.attempt}"
        for one in node.acts:
            try:
                value += act_sync(step, node, one, at, before)
            except _FAILURES:
                if not one.caught:
                    raise
                value -= 1
            before = one.name if one.what == "step" else before
        in_the_end(step, node)
        return value

    @app.job
    async def family(step: Step, n: str) -> Children[int]:
        value, node = await walk(step, n), node_of(n)
        return Children(value, below(node, n, node.below), on_failure="fail" if node.strict else "collect")

    async def end(step: Step, output: dict[str, Any], children: list[ChildResult]) -> int:
        node = node_of(output["place"])
        await step.run("close", bodies.body, step, "close", 0)
        if node.fails == "finalize" or (node.strict and any(str(one.status) != "completed" for one in children)):
            raise Declined("a finalize that fails")
        return int(output["value"]) + collected(children)

    @app.job
    async def closed(step: Step, n: str) -> Children[dict[str, Any]]:
        value, node = await walk(step, n), node_of(n)
        return Children({"place": n, "value": value}, below(node, n, node.below))

    @closed.finalize
    async def close(step: Step, output: dict[str, Any], children: list[ChildResult]) -> int:
        return await end(step, output, children)

    @app.job
    async def sum_up(step: Step, output: dict[str, Any], children: list[ChildResult]) -> int:
        return await end(step, output, children)

    @app.job
    async def signed(step: Step, n: str) -> Children[dict[str, Any]]:
        value, node = await walk(step, n), node_of(n)
        return Children({"place": n, "value": value}, below(node, n, node.below))

    async def stage(step: Step, name: str, place: str, value: int) -> str:
        await step.run(name, bodies.body, step, name, value)
        if node_of(place).fails == name:
            raise Declined(f"{name}, as it was drawn")
        return f"{place} {value}"

    @app.job
    async def stage_one(step: Step, n: str) -> str:
        return await stage(step, "stage_one", n, node_of(n).value + 1)

    @app.job
    async def stage_two(step: Step, n: str) -> str:
        place, _, value = n.partition(" ")
        return await stage(step, "stage_two", place, int(value) + 2)

    @app.job
    async def turn(step: Step, n: str) -> Done[int] | None:
        node, number = node_of(n), int(str(step._execution.row.awaited_as).rpartition("#")[2])
        await step.run("turn", bodies.body, step, "turn", number)
        if node.fails == "turn" and (number == TURNS - 1 or number + 1 == node.turns):
            raise Declined("turn, as it was drawn")
        return Done(node.value) if number + 1 == node.turns else None

    jobs.update(
        grow=grow, grow_sync=grow_sync, family=family, closed=close, signed=signed.finalize_with(sum_up),
        line=app.sequence("line", stage_one, stage_two),
        around=app.loop("around", turn, max_iterations=TURNS, delay=lambda number: 0.01 * number),
    )  # fmt: skip
