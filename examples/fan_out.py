"""A thousand runs below one: each with its own retries, some of them fail, and the run above sees them all."""

import asyncio

from holdfast import Holdfast, Retry, Step

app = Holdfast("sqlite:///fan_out.db", concurrency=100)


@app.job(retry=Retry(max_retries=1))
async def resize(step: Step, number: int) -> int:
    if number % 100 == 0:
        raise ValueError(f"picture {number} is broken")
    if number % 10 == 0 and step.attempt == 0:
        raise OSError("the disk was busy")
    return number * 2


@app.job
async def album(step: Step, pictures: int) -> str:
    results = await step.map(resize, range(pictures), on_failure="collect")
    broken = [result.error for result in results if result.error]
    total = sum(result.unwrap(resize) for result in results if not result.error)
    return f"{len(results) - len(broken)} resized, {len(broken)} broken, {total} pixels"


async def main() -> None:
    async with app:
        print(await album.run(1000))
        print("each of them can be looked at, cancelled and triggered again")


asyncio.run(main())
