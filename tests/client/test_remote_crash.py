"""The worker of a remote job is killed by SIGKILL, again and again: the run elsewhere is one, and its output comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from far import PATIENCE, Served, asks, until

from faulty_link import FaultyLink
from holdfast import Holdfast
from holdfast.client import remote_job

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on Windows"),
]

SCRIPT = """
import sys
from holdfast import Holdfast
from holdfast.client import remote_job

sys.path.insert(0, sys.argv[4])
from far import asks

app = Holdfast(sys.argv[1], lease=1.0, polling_interval=0.1, max_crashes=50)
far = app.register(remote_job(sys.argv[2], asks))
with app:
    if sys.argv[3] == "trigger":
        print(far.trigger().wait().id, flush=True)
    print("ready", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def worker(database: str, url: str, what: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SCRIPT, database, url, what, str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def resumed(database: str, served: Served, run_id: str) -> object:
    """What the run here came to, by a worker of this process."""
    app = Holdfast(database, lease=1.0, polling_interval=0.1, max_crashes=50)
    app.register(remote_job(served.client, asks))
    with app:
        return app.wait_for_run(run_id, timeout=PATIENCE).wait().output


def test_a_worker_that_is_killed_before_it_had_the_answer_leaves_one_run(tmp_path: Path, served: Served) -> None:
    database = f"sqlite:///{tmp_path}/here.db"
    with FaultyLink(served.url) as link:
        link.break_("mute")
        with worker(database, link.url, "trigger") as process:
            run_id = line(process)
            until(lambda: served.app.get_runs().wait(PATIENCE))
            process.send_signal(signal.SIGKILL)
    (there,) = served.app.get_runs().wait(PATIENCE)
    served.client.send_signal(there.id, "answer", "yes").wait(PATIENCE)
    assert resumed(database, served, run_id) == "yes"
    assert [run.id for run in served.app.get_runs().wait(PATIENCE)] == [there.id]


def test_workers_that_are_killed_one_after_the_other_follow_the_same_run(tmp_path: Path, served: Served) -> None:
    database = f"sqlite:///{tmp_path}/here.db"
    look = Holdfast(database, worker=False)
    look.init().wait(PATIENCE)
    run_id, seen = "", -1

    def claimed_again() -> bool:
        run = look.get_run(run_id).wait(PATIENCE)
        return run is not None and run.lease_owner is not None and run.generation > seen

    for number in range(4):
        with worker(database, served.url, "resume" if number else "trigger") as process:
            run_id = run_id or line(process)
            until(claimed_again)
            if number > 1:  # the first ones die as soon as they have it
                until(lambda: served.app.get_runs().wait(PATIENCE))
            found = look.get_run(run_id).wait(PATIENCE)
            assert found is not None
            seen = found.generation
            process.send_signal(signal.SIGKILL)
    look.stop().wait(PATIENCE)
    (there,) = served.app.get_runs().wait(PATIENCE)
    served.client.send_signal(there.id, "answer", 7).wait(PATIENCE)
    assert resumed(database, served, run_id) == 7
    assert len(served.app.get_runs().wait(PATIENCE)) == 1
