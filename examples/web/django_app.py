"""Django in one file: trigger a run, ask how it goes, cancel it. `python django_app.py runserver --noreload`."""

import json
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.utils.deprecation import MiddlewareMixin
from django.views.decorators.http import require_POST
from pydantic import BaseModel, Field

from holdfast import Holdfast, HoldfastError, NotFoundError, Run, SyncStep

app = Holdfast("sqlite:///shop.db", lease="2s")  # 30 s is the default; shorter here, to watch it survive a kill


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


def place(request: HttpRequest) -> JsonResponse:  # a sync view waits
    try:
        order = json.loads(request.body)
    except ValueError:
        return JsonResponse({"error": "The body is no JSON."}, status=400)
    key = request.headers.get("Idempotency-Key")  # the same key again, the same run
    return told(ship.options(idempotency_key=key).trigger(order).wait(), 202)


async def show(_: HttpRequest, run_id: str) -> JsonResponse:  # an async view awaits
    run = await ship.get_run(run_id)
    if run is None:
        raise NotFoundError(f"No such order: {run_id}")
    return told(run)


def cancel(_: HttpRequest, run_id: str) -> JsonResponse:
    return told(app.cancel(run_id).wait())


def told(run: Run[Any], status: int = 200) -> JsonResponse:
    return JsonResponse({"id": run.id, "status": run.status, "output": run.output, "error": run.error}, status=status)


class Refusals(MiddlewareMixin):
    """What Holdfast refuses becomes an answer with the status that the error has."""

    def process_exception(self, _: HttpRequest, error: Exception) -> JsonResponse | None:
        if not isinstance(error, HoldfastError):
            return None
        return JsonResponse({"error": error.message}, status=error.status)


urlpatterns = [
    path("orders", require_POST(place)),
    path("orders/<run_id>", show),
    path("orders/<run_id>/cancel", require_POST(cancel)),
]
settings.configure(ROOT_URLCONF=__name__, MIDDLEWARE=[f"{__name__}.Refusals"], ALLOWED_HOSTS=["127.0.0.1", "localhost"])

if __name__ == "__main__":
    with app:  # makes the tables and starts the worker; runs that were left over go on
        execute_from_command_line()
