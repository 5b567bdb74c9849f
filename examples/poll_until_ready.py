"""Poll something outside until it is ready: each look is a run of its own, the time between them costs nothing."""

import asyncio

from holdfast import Done, Holdfast

app = Holdfast("sqlite:///poll.db")
answers = iter(["queued", "queued", "ready: 42 rows"])


async def look(export: str) -> Done[str] | None:
    answer = next(answers)  # in earnest: ask the server
    print(export, "is", answer)
    return Done(answer) if answer.startswith("ready") else None


poll = app.loop("poll", look, max_iterations=20, delay=lambda number: min(0.05 * 2**number, 60))


async def main() -> None:
    async with app:
        result = await poll.run("export-7")
        print(result.success, result.output)


asyncio.run(main())
