"""`holdfast worker`: what it executes, and how it stops."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from console_script import LONG, SCRIPT, Cli, Spawn, environment

from holdfast import Holdfast, Run

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="no SIGTERM on Windows"),
    pytest.mark.sampled("commands: what they print is the same on every Python", every=4),
]


@pytest.fixture
def web(tmp_path: Path) -> Any:
    """The same database from another process: it triggers and watches."""
    app = Holdfast(f"sqlite:///{tmp_path / 'runs.db'}", worker=False)

    @app.job
    async def greet(name: str) -> str:
        raise AssertionError("executed in the wrong process")

    @app.job
    async def hold() -> str:
        raise AssertionError("executed in the wrong process")

    app.migrate().wait()
    yield app
    app.stop().wait()


def read_until(process: subprocess.Popen[str], part: str) -> str:
    assert process.stdout is not None
    seen = ""
    while part not in seen:
        line = process.stdout.readline()
        if not line:
            assert process.stderr is not None
            raise AssertionError(f"{part!r} did not come: {seen}{process.stderr.read()}")
        seen += line
    return seen


def holding(web: Holdfast, worker: subprocess.Popen[str]) -> Run[Any]:
    """A run that the worker has begun, whose first step is saved and whose second one waits to be told."""
    run: Run[Any] = web.jobs.hold.trigger().wait()
    read_until(worker, run.id)
    while not web.get_steps(run.id).wait():
        assert worker.poll() is None
    return run


def test_it_says_what_it_runs_and_runs_it(web: Holdfast, spawn: Spawn, shop_module: Path) -> None:
    worker = spawn("worker", "shop_jobs:app", "-v")
    said = read_until(worker, "Ready")
    for part in ("shop_jobs:app", "sqlite:///runs.db", "greet, hold", str(worker.pid)):
        assert part in said
    run = web.jobs.greet.trigger("Ada").wait()
    assert run.result(LONG).wait() == "HELLO ADA"
    said = read_until(worker, "completed")
    assert f"greet {run.id}" in said
    worker.send_signal(signal.SIGTERM)
    rest, errors = worker.communicate(timeout=LONG)
    assert (worker.returncode, errors) == (0, "")
    assert "Stopping." in rest


@pytest.fixture
def failing(tmp_path: Path) -> Any:
    """Jobs that fail, for a worker in another process: `failing_jobs.py`, and the app that triggers them."""
    text = """
from holdfast import Holdfast, Retry

app = Holdfast("sqlite:///runs.db", polling_interval=0.05)

@app.job(retry=Retry(1, delay=0.05))
async def fragile(word: str) -> None:
    raise ValueError(f"no {word}\\nfor you")
"""
    (tmp_path / "failing_jobs.py").write_text(text, encoding="utf-8")
    app = Holdfast(f"sqlite:///{tmp_path / 'runs.db'}", worker=False)

    @app.job
    async def fragile(word: str) -> None:
        raise AssertionError("executed in the wrong process")

    app.migrate().wait()
    yield app
    app.stop().wait()


def test_a_run_that_fails_gets_a_line_without_asking(failing: Holdfast, spawn: Spawn) -> None:
    worker = spawn("worker", "failing_jobs:app")
    read_until(worker, "Ready")
    run = failing.jobs.fragile.trigger("soup").wait()
    said = read_until(worker, "for you")
    assert said.splitlines()[-1].split(maxsplit=3) == ["failed", "fragile", run.id, "ValueError: no soup for you"]
    assert "started" not in said
    worker.send_signal(signal.SIGTERM)
    _, log = worker.communicate(timeout=LONG)
    assert worker.returncode == 0
    assert re.search(rf"warning: run {run.id} of fragile, attempt 2: it has failed\nTraceback .*:\n", log)
    assert re.search(r'\n  File ".*failing_jobs\.py", line \d+, in fragile\n    raise ', log)
    assert log.endswith("\nValueError: no soup\nfor you\n")


def test_with_verbose_a_retry_says_why(failing: Holdfast, spawn: Spawn) -> None:
    worker = spawn("worker", "failing_jobs:app", "-v")
    read_until(worker, "Ready")
    run = failing.jobs.fragile.trigger("soup").wait()
    told = [line.split(maxsplit=3) for line in read_until(worker, "failed").splitlines() if run.id in line]
    assert [line[0] for line in told] == ["started", "retry", "started", "failed"]
    assert re.fullmatch(r"attempt 2 in \d+ms: ValueError: no soup for you", told[1][3])
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(LONG) == 0


def test_the_json_of_a_worker_is_what_it_runs(web: Holdfast, spawn: Spawn, shop_module: Path) -> None:
    worker = spawn("worker", "shop_jobs:app", "--json")
    said = json.loads(read_until(worker, "\n}"))
    assert (said["app"], said["jobs"], said["pid"]) == ("shop_jobs:app", ["greet", "hold"], worker.pid)
    worker.send_signal(signal.SIGTERM)
    assert worker.communicate(timeout=LONG) == ("", "")


def test_sigterm_hands_back_what_does_not_end_in_time(web: Holdfast, spawn: Spawn, shop_module: Path) -> None:
    worker = spawn("worker", "shop_jobs:app", "-v", "--stop-timeout", "100ms")
    run = holding(web, worker)
    worker.send_signal(signal.SIGTERM)
    said, _ = worker.communicate(timeout=LONG)
    assert worker.returncode == 0
    assert "1 run may go on for 0.1 s" in said
    left = run.refresh().wait()
    assert (left.status, left.lease_owner, left.crashes, left.attempt) == ("pending", None, 0, 0)
    assert [step.name for step in web.get_steps(run.id).wait()] == ["first"]


def test_a_second_signal_ends_it_at_once(web: Holdfast, spawn: Spawn, shop_module: Path) -> None:
    worker = spawn("worker", "shop_jobs:app", "-v", "--stop-timeout", "1h")
    run = holding(web, worker)
    worker.send_signal(signal.SIGINT)
    read_until(worker, "Again to exit at once")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(LONG) == 128 + signal.SIGINT
    # Nobody was told: the lease has to run out.
    assert run.refresh().wait().status == "leased"


@pytest.mark.parametrize("with_ctrl_c", [False, True])
def test_the_end_of_its_parent_stops_a_worker_with_stdin(
    web: Holdfast, tmp_path: Path, shop_module: Path, with_ctrl_c: bool
) -> None:
    worker = subprocess.Popen(
        [str(SCRIPT), "worker", "shop_jobs:app", "-v", "--with-stdin", "--stop-timeout", "2s"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with worker:
        run = holding(web, worker)
        assert worker.stdin is not None
        worker.stdin.close()
        read_until(worker, "Stopping.")
        if with_ctrl_c:  # a terminal brings both at once: that is one wish to stop, not two
            worker.send_signal(signal.SIGINT)
        assert worker.wait(LONG) == 0
    assert run.refresh().wait().status == "pending"


@pytest.mark.parametrize(
    ("place", "code", "said"),
    [
        ("nowhere:app", 4, "There is no module 'nowhere'"),
        ("nowhere.deep:app", 4, "There is no module 'nowhere'"),
        ("shop_jobs:ap", 4, "Did you mean shop_jobs:app?"),
        ("shop_jobs:number", 2, "of type int. Did you mean shop_jobs:app?"),
        ("shop_jobs:empty", 2, "has no jobs"),
        ("shop_jobs.py", 2, "shop_jobs:app"),
        ("./shop_jobs.py:app", 2, "shop_jobs:app"),
        ("", 2, "module:app"),
        ("shop jobs:app", 2, "module:app"),
    ],
)
def test_a_place_without_an_app_is_explained(cli: Cli, shop_module: Path, place: str, code: int, said: str) -> None:
    done = cli("worker", place)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_import_that_fails_inside_the_module_names_what_is_missing(cli: Cli, shop_module: Path) -> None:
    shop_module.write_text("import not_installed_here", encoding="utf-8")
    done = cli("worker", "shop_jobs:app")
    assert done.returncode == 2
    assert "No module named 'not_installed_here'" in done.stderr
    assert "shop_jobs.py:1)" in done.stderr


@pytest.mark.parametrize(
    "fails", ["os.environ['NOT_SET_HERE']", "json.loads('{')", "Holdfast('nowhere://x')", "Holdfast(lease='soon')"]
)
def test_an_import_that_fails_in_a_library_names_the_line_of_the_module(
    cli: Cli, shop_module: Path, fails: str
) -> None:
    text = f"import os, json\nfrom holdfast import Holdfast\n\ndef made():\n    return {fails}\n\napp = made()\n"
    shop_module.write_text(text, encoding="utf-8")
    done = cli("worker", "shop_jobs:app")
    assert done.returncode == 2
    assert "shop_jobs.py:5)" in done.stderr


def test_a_module_that_python_cannot_read_is_named_with_its_line(cli: Cli, shop_module: Path) -> None:
    shop_module.write_text("\nnumber = (", encoding="utf-8")
    done = cli("worker", "shop_jobs:app")
    assert done.returncode == 2
    assert "shop_jobs.py:2)" in done.stderr


def test_a_wrong_stop_timeout_is_refused(cli: Cli, shop_module: Path) -> None:
    done = cli("worker", "shop_jobs:app", "--stop-timeout", "soon")
    assert done.returncode == 2
    assert "--stop-timeout: 'soon' is not a duration" in done.stderr
