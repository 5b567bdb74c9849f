"""The HTTP routes without a server: a request is a value, and so is the answer. Fits into whatever you have."""

import asyncio
import json
from typing import Any

from holdfast import Holdfast, Step
from holdfast.http import Request

app = Holdfast("sqlite:///no_server.db")
handler = app.handler()


@app.job
async def greet(step: Step, name: str) -> str:
    step.progress(1, 2, "thinking")
    return await step.run("greet", f"hello {name}".upper)


async def ask(method: str, path: str, query: str = "", document: Any = None) -> Any:
    body = b"" if document is None else json.dumps(document).encode()
    answer = await handler.handle(Request(method, path, query, body=body))
    if answer.stream is None:
        return json.loads(answer.body)
    text = ""
    async for chunk in answer.stream:  # server-sent events, as they come
        text += chunk.decode()
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


async def main() -> None:
    async with app:
        made = await ask("POST", "/trigger", document={"jobName": "greet", "input": {"name": "Ada"}})
        print(made["disposition"])
        events = await ask("GET", "/subscribe", f"runId={made['runId']}")
        print(events[-1]["type"], events[-1]["output"])
        run = await ask("GET", "/run", f"runId={made['runId']}")
        print(run["status"], run["progress"]["message"])
        print(await ask("GET", "/run", "runId=nobody"))


asyncio.run(main())
