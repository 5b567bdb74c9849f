"""A function for each request, and nothing that stays: a gateway calls `answer`, a scheduler calls `work`."""

import asyncio
import hmac
import os
from typing import Any

from holdfast import Holdfast, Step
from holdfast.http import Auth, Reject, Request

app = Holdfast(os.environ.get("DATABASE_URL", "sqlite:///shop.db"), worker=False)  # opens nothing


@app.job
async def bill(step: Step, customers: list[str]) -> int:
    for customer in customers:
        await step.run(f"mail {customer}", send, customer)
    return len(customers)


def send(customer: str) -> None:
    with open("sent.txt", "a") as sent:  # stands for a request to whoever sends mail
        sent.write(f"{customer}\n")


def knows(name: str, authorization: str | None) -> bool:
    """Whether this is the secret; how long it takes tells nothing of it."""
    wanted = f"Bearer {os.environ[name]}"
    return hmac.compare_digest((authorization or "").encode("utf-8", "replace"), wanted.encode())


def authenticate(request: Request) -> str:
    if not knows("API_SECRET", request.header("authorization")):
        raise Reject(401, "Who are you?")
    return "the shop"


# `on_request` comes after `authenticate`: for nobody else the database is opened.
handler = app.handler(auth=Auth(authenticate=authenticate), on_request=app.init)


async def answer(event: dict[str, Any]) -> dict[str, Any]:
    """One request of the gateway, as it tells of it."""
    asked = Request(
        event["method"], event["path"], event.get("query", ""), event["headers"], event.get("body", "").encode(),
        event["client"],
    )  # fmt: skip
    try:
        response = await handler.handle(asked)
        if response.stream is not None:  # it would be paid for by the second: pages ask again instead
            await response.stream.aclose()  # type: ignore[attr-defined]
            return {"status": 501, "headers": {}, "body": "Ask again instead."}
        return {"status": response.status, "headers": dict(response.headers), "body": response.body.decode()}
    finally:
        await app.stop(timeout=0)


async def work(event: dict[str, Any], seconds: float = 50.0) -> dict[str, Any]:
    """One call of the scheduler: execute what is due. `seconds` is a little less than the platform gives."""
    if not knows("CRON_SECRET", event["headers"].get("authorization")):
        return {"status": 401}
    await app.init()
    try:
        async with asyncio.timeout(seconds):
            processed = await app.process_until_idle(max_seconds=seconds * 0.8)  # then no other run begins
            return {"status": 200, "processed": processed}
    except TimeoutError:
        return {"status": 202}  # a long run: the next call goes on behind its last saved step
    finally:
        await app.stop(timeout=0)  # hands back what is still under way, uncounted
