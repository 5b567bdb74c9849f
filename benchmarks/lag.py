"""How late a page sees what another process does: from progress and lines of a worker to a client of the web process.

    python benchmarks/lag.py                                    SQLite in a temporary folder
    python benchmarks/lag.py postgresql://user@host/database    there, or MariaDB

Web and worker are processes of their own. Each line and each progress says when it was said; the client, on this
machine, too, looks at its clock when it comes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

APP = """
import asyncio, sys, time
from holdfast import Holdfast, Step

app = Holdfast(sys.argv[2], worker=sys.argv[1] == "worker")

@app.job
async def talking(step: Step, times: int, pause: float) -> None:
    for number in range(times):
        step.progress(number, times, message=f"{time.time():.6f}")
        step.log.info(f"{time.time():.6f}")
        await asyncio.sleep(pause)

if sys.argv[1] == "worker":
    with app:
        print("ready", flush=True)
        sys.stdin.read()
else:
    import holdfast.cli.serve as serve
    serve._server(app.asgi(), "lag", True).run(serve._bound("127.0.0.1", 0))
"""
TIMES, PAUSE = 40, 0.25


def start(role: str, database: str) -> subprocess.Popen[str]:
    """The process."""
    command = [sys.executable, "-c", APP, role, database]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def lags(url: str, times: int, pause: float) -> dict[str, list[float]]:
    """Seconds, of progress and of log lines."""
    body = json.dumps({"jobName": "talking", "input": {"times": times, "pause": pause}}).encode()
    with urllib.request.urlopen(f"{url}/trigger", body) as answer:
        run_id = json.load(answer)["runId"]
    found: dict[str, list[float]] = {"run:progress": [], "log:write": []}
    with urllib.request.urlopen(f"{url}/subscribe?runId={run_id}") as stream:
        for line in stream:
            if not line.startswith(b"data: "):
                continue
            now, event = time.time(), json.loads(line[6:])
            if event["type"] in found:
                said = event["message"] if event["type"] == "log:write" else event["progress"]["message"]
                found[event["type"]].append(now - float(said))
    return found


def main(database: str) -> None:
    """Start both, and measure."""
    web, worker = start("web", database), start("worker", database)
    try:
        assert web.stdout is not None
        assert worker.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += web.stdout.readline()
        assert worker.stdout.readline() == "ready\n"
        for kind, found in lags(json.loads(text)["url"], TIMES, PAUSE).items():
            cut = statistics.quantiles(found, n=100)
            name = f"{kind}, {len(found)} of {TIMES}, on {database.partition(':')[0]}"
            print(f"{name:44} p50 {cut[49] * 1000:6.1f} ms   p99 {cut[98] * 1000:6.1f} ms")
    finally:
        web.terminate()
        for process in (web, worker):
            process.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How late a page sees what another process does.")
    parser.add_argument("database", nargs="?", help="URL of a database; without it SQLite in a temporary folder")
    if (asked := parser.parse_args().database) is not None:
        main(asked)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"sqlite:///{folder}/lag.db")
