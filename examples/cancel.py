"""Cancel a run: the step under way may finish, no new one begins, and a polite step looks at its signal."""

import asyncio

from holdfast import AbortSignal, Holdfast, RunCancelled, Step

app = Holdfast("sqlite:///video.db")
rendering = asyncio.Event()


async def render(frame: int, signal: AbortSignal | None = None) -> int:
    rendering.set()
    if signal is not None:  # a parameter of this name gets the run's
        print("frame", frame, "left unfinished:", await signal)
    return frame


@app.job
async def render_film(step: Step, frames: int) -> int:
    for frame in range(frames):
        await step.run(f"frame-{frame}", render, frame)
    return frames


async def main() -> None:
    async with app:
        run = await render_film.trigger(1000)
        await rendering.wait()
        await run.cancel()  # durable when this returns; works from any process
        print((await run.wait()).status)
        try:
            await run.result()
        except RunCancelled as error:
            print("no result:", type(error).__name__)


asyncio.run(main())
