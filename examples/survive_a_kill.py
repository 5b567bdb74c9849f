"""A worker process is killed in the middle of a run; another one finishes it without repeating what was saved.

Called with `work`, this program is the worker; otherwise it starts, kills and starts workers.
"""

import os
import subprocess
import sys
from pathlib import Path

from holdfast import Holdfast, SyncStep

app = Holdfast("sqlite:///orders.db", worker="work" in sys.argv, lease=1, polling_interval=0.1)
LEDGER, KILLED = Path("ledger.txt"), Path("killed")


def charge(order: str) -> str:
    with LEDGER.open("a") as ledger:
        ledger.write(f"charged {order}\n")
    return f"receipt of {order}"


def pack(order: str) -> str:
    if not KILLED.exists():
        KILLED.touch()
        os.kill(os.getpid(), 9)  # as the kernel does it when memory runs out: nobody is told
    return f"parcel of {order}"


@app.job
def ship(step: SyncStep, order: str) -> list[str]:
    receipt = step.run("charge", charge, order)
    return [receipt, step.run("pack", pack, order)]


def worker() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "work"], stdin=subprocess.PIPE)


if "work" in sys.argv:
    with app:
        sys.stdin.read()  # until the parent closes it
else:
    for left_over in (LEDGER, KILLED):  # of the last time
        left_over.unlink(missing_ok=True)
    with app:
        run = ship.trigger("order-7").wait()
        with worker() as first:
            print("the first worker ended with", first.wait(30))
        with worker():  # leaving closes its stdin
            ended = run.wait(30).wait()
        print(ended.status, ended.output)
        print(LEDGER.read_text().strip(), "- once")
