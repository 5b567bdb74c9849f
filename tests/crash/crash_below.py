"""The part of the scenario in which runs wait: for time, for signals, and for the runs below them.

Who recovers turns its clock by hand, sends the signals that may not have been sent, and wakes who sleeps. It wakes
nobody else: what waits for the runs below it must be woken by their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from holdfast import Children, ChildResult, Done, Step
from holdfast.basis.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from crash_programs import Child

NAP = 3_600
#: What is sent, in this order, each under a key of its own.
SIGNALS = {"a": 10, "b": 20}
WOKEN_WITH = 5

#: What a plain reading of these jobs comes to.
MODEL: dict[str, Callable[[Any], Any]] = {
    "leaf": lambda n: 2 * n,
    "nap": lambda n: 2 * n + 1,
    "asks": lambda n: [10, 20, n],
    "calls": lambda n: 10 * n + 12,
    "grand": lambda n: 13 * n + 12,
    "family": lambda n: 5 * n + 6,
    "in_a_row": lambda n: 4 * n,
    "again_and_again": lambda n: {"success": False, "output": None},
    "seek": lambda n: None,
    "asleep": lambda key: WOKEN_WITH,
}
#: How many runs there are below one that has completed.
CHILDREN = {"calls": 5, "grand": 2, "family": 3, "in_a_row": 2, "again_and_again": 2}


def define(child: Child) -> None:
    """The jobs."""
    app, wire = child.app, child.wire

    @app.job
    async def leaf(step: Step, n: int) -> int:
        wire.at("job")
        value = await step.run("grow", child.effect, step, "grow", n)
        wire.reach("last end")
        return 2 * value

    @app.job
    async def nap(step: Step, n: int) -> int:
        wire.at("job")
        a = await step.run("before", child.effect, step, "before", n)
        wire.reach("sleep")
        await step.sleep("pause", NAP)
        return a + await step.run("after", child.effect, step, "after", n + 1)

    @app.job
    async def asks(step: Step, n: int) -> list[int]:
        wire.at("job")
        await step.run("before", child.effect, step, "before", n)
        wire.reach("signal")
        found = [await step.wait_for_signal("answer"), await step.wait_for_signal("answer")]
        try:
            await step.wait_for_signal("never", timeout=NAP)
        except TimeoutError:
            found.append(await step.run("after", child.effect, step, "after", n))
        return found

    @app.job
    async def calls(step: Step, n: int) -> int:
        wire.at("job")
        a = await step.run("before", child.effect, step, "before", n)
        wire.reach("call")
        one = await step.call(leaf.bind(n))
        wire.reach("gather")
        three = await step.gather(*[leaf.bind(n + more) for more in (1, 2, 3)])
        wire.reach("spawn")
        await step.spawn(leaf.bind(n + 9))
        return a + one + sum(three) + await step.run("after", child.effect, step, "after", n)

    @app.job
    async def grand(step: Step, n: int) -> int:
        wire.at("job")
        a = await step.run("before", child.effect, step, "before", n)
        return a + sum(await step.gather(calls.bind(n), leaf.bind(n)))

    @app.job
    async def family(step: Step, n: int) -> Children[int]:
        wire.at("job")
        wire.reach("return")
        a = await step.run("before", child.effect, step, "before", n)
        return Children(a, [leaf.bind(n + 1), leaf.bind(n + 2)])

    @family.finalize
    async def close(step: Step, output: int, results: list[ChildResult]) -> int:
        wire.at("job")
        return await step.run("close", child.effect, step, "close", output + sum(one.unwrap(leaf) for one in results))

    @app.job
    async def seek(step: Step, n: int) -> Done[int] | None:
        wire.at("job")
        await step.run("look", child.effect, step, "look", n)

    app.sequence("in_a_row", leaf, leaf)
    app.loop("again_and_again", seek, max_iterations=2)
    child.asleep = app.sleeping("asleep", output=int)


# -- programs --------------------------------------------------------------------------------------------------------


async def send(child: Child) -> None:
    """Two signals, to a run that may wait for them."""
    (run,) = await child.app.get_runs(job="asks")
    child.wire.reach("send")
    await send_to(child, run.id)


async def send_to(child: Child, run_id: str) -> None:
    for key, value in SIGNALS.items():
        tag = f"{run_id} {key}"
        child.world.tell("asked", op="signal", tag=tag)
        try:
            await child.app.send_signal(run_id, "answer", value, key=key)
        except (ConflictError, NotFoundError) as error:
            child.world.tell("refused", op="signal", tag=tag, error=str(error))
        else:
            child.world.tell("ok", op="signal", tag=tag, run=run_id)


async def trigger_asleep(child: Child) -> None:
    key = "order-7"
    await child.ask("trigger", f"asleep {key}", child.asleep.trigger(key), job="asleep", n=key, key=key)


async def wake(child: Child) -> None:
    child.wire.reach("wake")
    await wake_up(child)


async def wake_up(child: Child) -> None:
    await child.ask("wake", "order-7", child.app.wake(child.asleep, "order-7", output=WOKEN_WITH))


async def wake_first(child: Child) -> None:
    """The word comes before there is anybody to hear it."""
    child.wire.reach("wake first")
    await wake_up(child)
    await trigger_asleep(child)
    child.wire.reach("word kept")
    await child.work()


async def cancel_tree(child: Child) -> None:
    """Its root; the rest follows."""
    (root,) = await child.app.get_runs(job="grand")
    child.wire.reach("cancel tree")
    await child.cancel(root.id)
    child.settle()
    await child.work()


async def go_on(child: Child) -> None:
    """Work until nobody waits any more, or it is no use."""
    for _ in range(8):
        await child.work()
        waiting = await child.app.get_runs(status="waiting", limit=None)
        if not waiting:
            return
        for run in waiting:
            if run.job_name == "asks":
                await send_to(child, run.id)
            elif run.job_name == "asleep":
                await wake_up(child)
        child.clock.advance(2 * NAP)


Program = Callable[["Child"], Coroutine[Any, Any, None]]
PROGRAMS: dict[str, Program] = {
    "send": send,
    "wake": wake,
    "wake_first": wake_first,
    "cancel_tree": cancel_tree,
    "trigger_asleep": trigger_asleep,
}
