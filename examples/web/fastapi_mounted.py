"""FastAPI with our routes beside its own, and one way to know who asks. `uvicorn fastapi_mounted:web`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException

from holdfast import Holdfast, Step
from holdfast.http import Auth, Reject, Request

app = Holdfast("sqlite:///shop.db")
TOKENS = {"sesame": "ada", "open": "bob"}  # stands for however you know your users


@app.job
async def import_rows(step: Step, rows: int) -> int:
    for row in range(rows):
        await step.run(f"row-{row}", str, row)
        step.progress(row + 1, rows)
    return rows


def user(authorization: Annotated[str | None, Header()] = None) -> str:
    """Who asks, as a dependency of FastAPI."""
    name = TOKENS.get((authorization or "").removeprefix("Bearer "))
    if name is None:
        raise HTTPException(401, "Who are you?")
    return name


def authenticate(request: Request) -> str:
    """The same for what is mounted: there FastAPI asks no dependency."""
    try:
        return user(request.header("authorization"))
    except HTTPException as no:
        raise Reject(no.status_code, str(no.detail)) from no


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[None]:
    async with app.lifespan(web):  # the tables, the worker, and at the end of the server an end of all streams
        yield  # beside it: whatever else you open and close


web = FastAPI(lifespan=lifespan)
web.mount("/api/durably", app.asgi(auth=Auth(authenticate=authenticate, tenant=lambda name: {"user": name})))


@web.post("/imports", status_code=202)
async def start(rows: int, name: Annotated[str, Depends(user)]) -> dict[str, str]:
    run = await import_rows.options(tenant={"user": name}).trigger(rows)  # theirs, as if they had asked over HTTP
    return {"runId": run.id}
