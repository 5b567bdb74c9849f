"""Crashes a job at every commit, in real processes, and says what that did to it.

One fork makes a process without threads; every victim, and whoever goes on with its run, is a fork of that one, on a
fresh database. So jobs of any module can be tested, also those that are defined inside a test, and nobody waits for a
lease in real time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..job import Job
from .campaign import Campaign, Vain
from .report import CrashProblem, CrashReport

P = ParamSpec("P")
R = TypeVar("R")


def crash_at_every_step(job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> CrashReport:
    """Run the job, and kill its process before and after every commit; another process finishes each run.

    Struck are checkpoints, waits with the runs below that are written with them, suspensions, retries and ends: of this
    run and of all below it. Time passes by itself; have signals ready with `answering`.

    Reported are (a) steps that began again after their checkpoint was committed, (b) effects (`effects.record`) that
    were applied more often than without a crash, (c) an end, an output, steps (names, order in the function's own
    branch, values), or runs below that differ from the run without a crash. What differs between two runs without a
    crash is not compared, and noted.

    Blocks until it is done: some tenths of a second per commit. Every process has a fresh database and starts with this
    process's memory as it is now; files and other services are the real ones, so give the job fakes. The job's own app
    is moved to the fresh database there, so jobs that it triggers are executed as well. Needs POSIX (`fork`).
    """
    if not hasattr(os, "fork"):
        raise RuntimeError("crash_at_every_step forks processes and kills them: it needs Linux, macOS or other POSIX.")
    job.bind(*args, **kwargs)  # wrong input is refused here
    with tempfile.TemporaryDirectory(prefix="holdfast-crash-", ignore_cleanup_errors=True) as folder:
        return _in_a_fork(lambda: Campaign(job, args, kwargs, Path(folder)).report())


# -- the process without threads -----------------------------------------------------------------------------------


def _in_a_fork(work: Callable[[], CrashReport]) -> CrashReport:
    """What `work` gives, called in a fork of this process that is gone afterwards, with all that it started."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads that are not there in the child: it uses none of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _answer(work, writing)
    os.close(writing)
    try:
        with open(reading, encoding="utf-8") as answers:
            # A line, not all: what a job has started may hold the pipe open.
            line = answers.readline()
    finally:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    answer = json.loads(line or '{"error": "the process that kills the others is gone"}')
    if "error" in answer:
        raise RuntimeError(f"crash_at_every_step: {answer['error']}")
    problems = [CrashProblem(**one) for one in answer.pop("problems")]
    return CrashReport(problems=problems, **answer)


def _answer(work: Callable[[], CrashReport], writing: int) -> None:
    answer: dict[str, Any]
    try:
        # A group of its own, so that all of it can be ended at once.
        os.setpgid(0, 0)
        # What the parent holds must not be finalized here: closing its connections would harm its locks.
        gc.freeze()
        asyncio._set_running_loop(None)
        report = work()
        answer = {name: getattr(report, name) for name in CrashReport.__dataclass_fields__}
        answer["problems"] = [{name: getattr(one, name) for name in CrashProblem.__slots__} for one in report.problems]
    except Vain as error:
        answer = {"error": str(error)}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    try:
        with open(writing, "w", encoding="utf-8") as answers:
            answers.write(json.dumps(answer) + "\n")
    finally:
        os._exit(0)
