"""What becomes of a worker whose link to the database breaks, and of the runs that it held.

One worker is connected through a link of ours, another one directly. The first is never restarted.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from child import LONG, Child, child

import databases
from faulty_link import Fault, FaultyLink
from holdfast import Holdfast

pytestmark = [
    pytest.mark.only("postgres mariadb", "there is no link to a file"),
    pytest.mark.sampled("what a link does is the same on every Python", every=4),
]

LEASE, POLLING = 2.0, 0.5

#: Until a connection that never answers is given up, and what goes on over another one has begun: the limit of a
#: statement and half of it again, and the two tries that a round may have.
GIVEN_UP = 2 * 7.5

WORKER = f"""
app = Holdfast(URL, lease={LEASE}, polling_interval={POLLING}, concurrency=4)
through = threading.Event()

@app.job
def hold(step: SyncStep, n: int) -> int:
    def wait() -> int:
        say("began", n)
        while not through.wait(0.02):
            if step.signal.aborted:
                say("told", step.signal.reason)
                through.wait()
        return n
    return step.run("wait", wait)

@app.job(name=NAME)
def own(n: int) -> int:
    return n

with app:
    say("ready")
    while (line := heard()) != "end":
        through.set()
"""


def a_worker(path: Path, name: str, url: str) -> Any:
    return child(path, f"URL, NAME = {url!r}, {name!r}\n{WORKER}")


def hears(one: Child, *words: str) -> float:
    """When it has said this."""
    assert one.hear() == " ".join(words)
    return time.monotonic()


@contextmanager
def a_client(url: str) -> Iterator[Any]:
    """An app of this process that does not execute, and its jobs."""
    app = Holdfast(url, worker=False, polling_interval=POLLING, lease=LEASE)

    @app.job
    def hold(n: int) -> int: ...

    @app.job
    def near(n: int) -> int: ...

    @app.job
    def far(n: int) -> int: ...

    app.init().wait(LONG)
    yield app, hold, near, far
    app.stop().wait(LONG)


def a_while(chance: random.Random, longest: float) -> None:
    threading.Event().wait(chance.uniform(0, longest))


@pytest.mark.parametrize(("fault", "seed"), [("cut", 1), ("half-open", 2), ("mute", 3)])
def test_n1_who_is_cut_off_loses_its_run_to_another_and_is_back_when_the_link_is(
    tmp_path: Path, fault: Fault, seed: int
) -> None:
    chance, url = random.Random(seed), databases.url(tmp_path / "app.db")
    with a_client(url) as (app, hold, near, far), FaultyLink(url, seed=seed) as link:
        with a_worker(tmp_path / "app.db", "far", link.url) as cut_off:
            hears(cut_off, "ready")
            run = hold.trigger(7).wait(LONG)
            hears(cut_off, "began", "7")
            with a_worker(tmp_path / "app.db", "near", url) as other:
                hears(other, "ready")
                a_while(chance, LEASE)
                link.break_(fault)
                broken = time.monotonic()
                taken_over = hears(other, "began", "7") - broken
                told = hears(cut_off, "told", "lease-lost") - broken
                other.tell("through")
                ended = run.wait().wait(LONG)
                assert near.trigger(1).wait(LONG).wait().wait(LONG).output == 1
                cut_off.tell("through")  # and what it writes then is nobody's
                link.heal()
                healed = time.monotonic()
                assert far.trigger(2).wait(LONG).wait().wait(LONG).output == 2
                recovered = time.monotonic() - healed
                other.tell("end")
                other.end()
            cut_off.tell("end")
            cut_off.end()
        steps = app.get_steps(run.id).wait(LONG)
    print(f"{fault}: taken over {taken_over:.2f} s, told {told:.2f} s, recovered {recovered:.2f} s")
    assert taken_over <= LEASE + POLLING + 1
    assert told <= LEASE + POLLING + 1, "when its lease is over by its own clock, it must not go on"
    assert (ended.output, ended.status, len(steps)) == (7, "completed", 1)
    assert recovered <= (POLLING + 5 if fault == "cut" else GIVEN_UP)


def test_n5_over_a_slow_link_everything_is_later_and_nothing_is_taken_over(tmp_path: Path) -> None:
    path, url = tmp_path / "app.db", databases.url(tmp_path / "app.db")
    with (
        a_client(url) as (app, hold, _, _),
        FaultyLink(url, delay=0.02, seed=5) as link,
        a_worker(path, "far", link.url) as slow,
        a_worker(path, "near", url) as other,
    ):
        hears(slow, "ready")
        hears(other, "ready")
        link.break_("slow")
        runs = [hold.trigger(n).wait(LONG) for n in range(6)]
        for one in (slow, other):
            one.hear()  # it holds at least one of them
        threading.Event().wait(LEASE + POLLING)  # several renewals of each
        for one in (slow, other):
            one.tell("through")
        ended = [app.wait_for_run(run.id).wait(LONG) for run in runs]
        for one in (slow, other):
            one.tell("end")
            one.end()
    assert [(run.status, run.generation, run.output) for run in ended] == [("completed", 1, n) for n in range(6)]


def test_n7_a_flapping_link_stops_nothing_for_good(tmp_path: Path) -> None:
    chance, url = random.Random(7), databases.url(tmp_path / "app.db")
    with (
        a_client(url) as (app, _, _, far),
        FaultyLink(url) as link,
        a_worker(tmp_path / "app.db", "far", link.url) as worker,
    ):
        hears(worker, "ready")
        runs = []
        for n in range(12):
            runs.append(far.trigger(n).wait(LONG))
            a_while(chance, 0.6)
            if n % 2:
                link.heal()
            else:
                link.break_("cut")
        ended = [app.wait_for_run(run.id).wait(LONG) for run in runs]
        worker.tell("end")
        worker.end()
    assert [(run.status, run.output) for run in ended] == [("completed", n) for n in range(12)]
