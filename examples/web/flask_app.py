"""Flask: trigger a run, ask how it goes, cancel it. `python flask_app.py` is web server and worker in one process."""

import os
from pathlib import Path
from typing import Any

from flask import Flask, request, url_for
from pydantic import BaseModel, Field

from holdfast import Holdfast, HoldfastError, NotFoundError, Run, SyncStep

app = Holdfast("sqlite:///shop.db", lease="2s")  # 30 s is the default; shorter here, to watch it survive a kill
web = Flask(__name__)


class Order(BaseModel):
    number: int
    cents: int = Field(gt=0)


def charge(order: Order, key: str) -> str:
    with open("bank.txt", "a") as bank:  # stands for a request to a bank, which knows a key that it has seen
        bank.write(f"order {order.number}: {order.cents}, {key}\n")
    return f"receipt {order.number}"


@app.job
def ship(step: SyncStep, order: Order) -> str:
    receipt = step.run("charge", charge, order, step.idempotency_key("charge"))
    weight = step.run("weigh", Path("scales.txt").read_text)  # stands for something that takes its time
    return f"{receipt}, {weight.strip()} kg"


@web.post("/orders")
def place() -> Any:
    key = request.headers.get("Idempotency-Key")  # the same key again, the same run
    run = ship.options(idempotency_key=key).trigger(request.get_json()).wait()
    return told(run) | {"disposition": run.disposition}, 202, {"Location": url_for("show", run_id=run.id)}


@web.get("/orders/<run_id>")
def show(run_id: str) -> Any:
    run = ship.get_run(run_id).wait()
    if run is None:
        raise NotFoundError(f"No such order: {run_id}")
    return told(run)


@web.post("/orders/<run_id>/cancel")
def cancel(run_id: str) -> Any:
    return told(app.cancel(run_id).wait())


@web.errorhandler(HoldfastError)
def refused(error: HoldfastError) -> Any:
    return {"error": error.message}, error.status


def told(run: Run[Any]) -> dict[str, Any]:
    return {"id": run.id, "status": run.status, "output": run.output, "error": run.error}


if __name__ == "__main__":
    with app:  # makes the tables and starts the worker; runs that were left over go on
        web.run(port=int(os.environ.get("PORT", "8000")))
