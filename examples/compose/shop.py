"""The jobs, and the app that every container uses: HOLDFAST_URL says where the database is."""

import os
from pathlib import Path

from holdfast import Holdfast, SyncStep

# worker=False: `holdfast worker shop:app` executes all the same, the web process does not.
# 5 s instead of 30, so that you needn't wait long for what a killed worker had.
app = Holdfast(os.environ["HOLDFAST_URL"], worker=False, lease="5s")

BANK = Path(os.environ.get("BANK", "bank.txt"))


def charge(number: int, key: str) -> str:
    with BANK.open("a") as bank:  # stands for a request to a bank, which knows a key that it has seen
        bank.write(f"{key}\n")
    return f"receipt {number}"


def pack(number: int) -> str:
    return f"parcel {number}"


@app.job
def ship(step: SyncStep, number: int) -> list[str]:
    return [
        step.run("charge", charge, number, step.idempotency_key("charge")),
        step.run("pack", pack, number),
    ]
