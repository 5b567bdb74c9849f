"""Steps side by side: each branch has its own names, so a replay gives every branch its own values."""

import asyncio

from holdfast import Holdfast, Step

app = Holdfast("sqlite:///weather.db")

ELEVATION = {"DEN": 1656, "LAX": 38, "JFK": 4}


async def fetch_elevation(airport: str) -> int:
    await asyncio.sleep(0.01)  # a request over the network
    return ELEVATION[airport]


@app.step(key=lambda airport: airport)  # a step wherever a run calls it, named `describe-DEN`
async def describe(airport: str) -> str:
    return f"{airport} lies {'high' if ELEVATION[airport] > 1000 else 'low'}"


@app.job
async def survey(step: Step, airports: list[str]) -> dict[str, int]:
    heights = await asyncio.gather(*[step.run(f"fetch-{code}", fetch_elevation, code) for code in airports])

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(describe(code)) for code in airports]
    for task in tasks:
        step.log.info(task.result())
    return dict(zip(airports, heights, strict=True))


async def main() -> None:
    async with app:
        run = await survey.trigger(list(ELEVATION))
        print(await run.result())
        print(sorted(step.name for step in await app.get_steps(run.id)))
        print([line.message for line in await app.get_logs(run.id)])


asyncio.run(main())
