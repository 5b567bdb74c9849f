"""The loop of an agent: a model that asks for tools, tools at the same time, a person who approves the bold ones."""

import asyncio
from typing import Any

from holdfast import Holdfast, Job, Step

app = Holdfast("sqlite:///agent.db")
#: What a model would say. Each answer is a step: after a crash the talk goes on where it was.
SCRIPT: list[dict[str, Any]] = [
    {"tools": [["search", "holdfast"], ["search", "seaweed"]]},
    {"tools": [["delete", "old notes"]]},
    {"answer": "A holdfast grips the rock."},
]


async def model(step: Step, turn: int, talk: list[str]) -> dict[str, Any]:
    step.emit("heard", len(talk))  # a real one would stream its words
    return SCRIPT[turn]


@app.job
async def search(words: str) -> str:
    return f"3 pages about {words}"


@app.job
async def delete(what: str) -> str:
    return f"{what} deleted"


TOOLS: dict[str, Job[[str], str]] = {"search": search, "delete": delete}


@app.job
async def agent(step: Step, question: str) -> str:
    talk = [question]
    for turn in range(10):
        said = await step.run(f"model-{turn}", model, step, turn, talk)
        if "answer" in said:
            return f"{said['answer']} ({', '.join(talk[1:])})"
        calls = [TOOLS[name].bind(value) for name, value in said["tools"]]
        if any(name == "delete" for name, _ in said["tools"]):
            step.progress(turn, message="waiting for an approval")
            if not await step.wait_for_signal("approval", type=bool):
                talk.append("a person said no")
                continue
        talk += await step.gather(*calls, name=f"tools-{turn}")
    return "no answer"


async def main() -> None:
    async with app:
        app.on("run:emit", lambda event: print(f"the model has heard {event.value} things"))
        run = await agent.trigger("what is a holdfast?")
        await app.send_signal(run.id, "approval", True)
        print(await run.result())


asyncio.run(main())
