"""Two processes on one file: the web process only triggers and watches, the worker process executes.

In a program of yours the worker is started with `holdfast worker yourmodule:app`. Here the web process starts it,
with the same command.
"""

import os
import subprocess
import sys
from pathlib import Path

from holdfast import Holdfast, Step

# Web processes: worker=False. `holdfast worker` executes the jobs of the app whatever it says here.
app = Holdfast("sqlite:///thumbnails.db", worker=False)


def shrink(image: str, width: int) -> str:
    return f"{image}@{width}"


@app.job
async def make_thumbnails(step: Step, image: str) -> list[str]:
    return [await step.run(f"shrink-{width}", shrink, image, width) for width in (64, 256)]


def main() -> None:
    command = [sys.executable, "-m", "holdfast", "worker", "web_and_worker:app"]
    # Needed only because this program may be started from anywhere: a worker imports from its current directory.
    folders = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    with app, subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as worker:
        try:
            run = make_thumbnails.trigger("cat.jpg").wait()
            print("triggered here, not executed here:", run.status)
            print(run.result(timeout=30).wait())
        finally:
            worker.terminate()  # SIGTERM: it finishes what it does, then leaves


if __name__ == "__main__":
    main()
