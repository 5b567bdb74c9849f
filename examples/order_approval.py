"""An order that a person has to approve: a signal wakes the run, whichever process has it by then."""

import asyncio
from dataclasses import dataclass

from holdfast import Holdfast, Step

app = Holdfast("sqlite:///orders.db")


@dataclass
class Decision:
    by: str
    approved: bool


async def reserve(order: str) -> str:
    return f"place 7 for {order}"


async def charge(order: str) -> str:
    return f"receipt of {order}"


async def release(place: str) -> None:
    print("released", place)


@app.job(deadline="30d")
async def fulfil(step: Step, order: str) -> str:
    place = await step.run("reserve", reserve, order)
    try:
        decision = await step.wait_for_signal("decision", type=Decision, timeout="7d")
    except TimeoutError:
        decision = Decision("nobody", approved=False)
    if not decision.approved:
        await step.run("release", release, place)
        return f"refused by {decision.by}"
    return await step.run("charge", charge, order)


async def main() -> None:
    async with app:
        orders = [await fulfil.trigger(name) for name in ("order-1", "order-2")]
        # Later, from a web page. The key makes a double click count once.
        await app.send_signal(orders[0].id, "decision", Decision("ann", approved=True), key="ann")
        await app.send_signal(orders[0].id, "decision", Decision("ann", approved=False), key="ann")
        await app.send_signal(orders[1].id, "decision", Decision("bob", approved=False))
        for run in orders:
            print(await run.result())


asyncio.run(main())
