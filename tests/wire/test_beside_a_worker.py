"""Web and worker in two processes, on each database: what one executes, clients of the other see soon."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import httpx

from asking import PATIENCE, serving
from holdfast import Step, job
from house import House

#: Seconds. `benchmarks/lag.py` says what it is on a machine that does nothing else; where it has to be asked for, as
#: every five seconds, it would be more than this.
SOON = 1.5

WORKER = """
import asyncio, sys, time
from holdfast import Holdfast, Step

app = Holdfast(sys.argv[1])

@app.job
async def talking(step: Step, times: int) -> int:
    for number in range(times):
        step.progress(number + 1, times, message=f"{time.time():.6f}")
        step.log.info(f"{time.time():.6f}")
        await asyncio.sleep(0.15)  # the pace at which it talks; nothing is waited for
    return times

with app:
    print("ready", flush=True)
    sys.stdin.read()
"""


@job
async def talking(step: Step, times: int) -> int: ...


def test_a_client_sees_progress_and_lines_of_another_process_soon(house: House) -> None:
    times = 15
    lags: dict[str, list[float]] = {"run:progress": [], "log:write": []}
    told: list[dict[str, Any]] = []
    with ExitStack() as stack:
        url = stack.enter_context(serving(house.app(talking, worker=False).asgi()))
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, house.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(worker.wait, PATIENCE)
        stack.callback(worker.communicate)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        client = stack.enter_context(httpx.Client(base_url=url, timeout=PATIENCE))
        run_id = client.post("/trigger", json={"jobName": "talking", "input": {"times": times}}).json()["runId"]
        with client.stream("GET", "/subscribe", params={"runId": run_id}) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data: "):
                    continue
                now, event = time.time(), json.loads(line[6:])
                told.append(event)
                if event["type"] in lags:
                    said = event["message"] if event["type"] == "log:write" else event["progress"]["message"]
                    lags[event["type"]].append(now - float(said))
    assert [event["type"] for event in told][-1] == "run:complete"
    lines = [event["message"] for event in told if event["type"] == "log:write"]
    assert lines == sorted(lines)
    assert len(lines) >= times - 3, "all but those that were there before anybody looked"
    assert told[-1]["output"] == times
    steps = [event["progress"]["current"] for event in told if event["type"] == "run:progress"]
    assert (steps, steps[-1]) == (sorted(set(steps)), times), "each once, and the last one in any case"
    for kind, found in lags.items():
        assert statistics.median(found) < SOON, kind
