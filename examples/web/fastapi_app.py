"""FastAPI: trigger a run, ask how it goes, cancel it. `uvicorn fastapi_app:web` is web server and worker in one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from holdfast import Holdfast, HoldfastError, NotFoundError, Run, Step

app = Holdfast("sqlite:///shop.db", lease="2s")  # 30 s is the default; shorter here, to watch it survive a kill


class Order(BaseModel):
    number: int
    cents: int = Field(gt=0)


def charge(order: Order, key: str) -> str:
    with open("bank.txt", "a") as bank:  # stands for a request to a bank, which knows a key that it has seen
        bank.write(f"order {order.number}: {order.cents}, {key}\n")
    return f"receipt {order.number}"


@app.job
async def ship(step: Step, order: Order) -> str:
    receipt = await step.run("charge", charge, order, step.idempotency_key("charge"))
    weight = await step.run("weigh", Path("scales.txt").read_text)  # stands for something that takes its time
    return f"{receipt}, {weight.strip()} kg"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with app:  # makes the tables and starts the worker; runs that were left over go on
        yield


web = FastAPI(lifespan=lifespan)


@web.post("/orders", status_code=202)
async def place(order: Order, response: Response, idempotency_key: Annotated[str | None, Header()] = None) -> Any:
    run = await ship.options(idempotency_key=idempotency_key).trigger(order)  # the same key again, the same run
    response.headers["Location"] = f"/orders/{run.id}"
    return told(run) | {"disposition": run.disposition}


@web.get("/orders/{run_id}")
async def show(run_id: str) -> Any:
    run = await ship.get_run(run_id)
    if run is None:
        raise NotFoundError(f"No such order: {run_id}")
    return told(run)


@web.post("/orders/{run_id}/cancel")
async def cancel(run_id: str) -> Any:
    return told(await app.cancel(run_id))


@web.exception_handler(HoldfastError)
async def refused(_: Request, error: HoldfastError) -> JSONResponse:
    return JSONResponse({"error": error.message}, status_code=error.status)


def told(run: Run[Any]) -> dict[str, Any]:
    return {"id": run.id, "status": run.status, "output": run.output, "error": run.error}
