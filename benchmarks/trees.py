"""Runs below runs, and runs that sleep, on Holdfast with default settings but for `concurrency=100`.

`python benchmarks/run.py --one holdfast tree 100 1000 --all-figures` measures one of them.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import places
import shared

from holdfast import Holdfast, Step

CONCURRENCY = 100
#: Seconds between two runs that somebody else triggers beside a tree.
PROBE_EVERY = 0.02
#: Sleepers that wake in a second.
WAKING = 500
#: Seconds until the first of the sleepers wakes, beside what it takes to make them and to look at them.
START = 8.0
#: Seconds for which nothing happens before a tree is built.
QUIET = 2.0


def _now() -> int:
    return time.time_ns() // 1000


# -- fan-out, chain --------------------------------------------------------------------------------------------------


async def fan_out(url: str, children: int) -> dict[str, float]:
    """One run that gathers as many below it: children a second."""
    async with _families(url) as app:
        began = time.perf_counter()
        assert await app.jobs.fan_out.run(children) == children * (children - 1) // 2
        took = time.perf_counter() - began
    places.check(url, children + 1)
    return {"rate": children / took}


async def chain(url: str, links: int) -> dict[str, float]:
    """A run that calls a run that calls a run: milliseconds of each, there and back."""
    async with _families(url) as app:
        began = time.perf_counter()
        assert await app.jobs.chain.run(links) == links
        took = time.perf_counter() - began
    places.check(url, links + 1)
    return {"link": took / links * 1000}


def _families(url: str) -> Holdfast:
    app = Holdfast(url, concurrency=CONCURRENCY)

    @app.job
    async def noop(number: int) -> int:
        return number

    @app.job
    async def fan_out(step: Step, children: int) -> int:
        return sum(await step.map(noop, range(children)))

    @app.job
    async def chain(step: Step, left: int) -> int:
        return 1 + await step.call(app.jobs.chain.bind(left - 1)) if left else 0

    return app


# -- sleepers --------------------------------------------------------------------------------------------------------


async def sleepers(url: str, count: int, seconds: int = 5) -> dict[str, float]:
    """A worker beside so many sleeping runs: what they add to its memory, its processor time, how late they wake.

    They are put to sleep by a process of their own; each part is measured in a process of its own, and looked at for so
    many seconds while there is nothing to do.
    """
    none = await _asked(url, "rest", seconds)
    begin = _now() + round((START + count / 400 + seconds) * 1e6)
    await _asked(url, "make", count, begin)
    some = await _asked(url, "wake", seconds, count, begin)
    places.check(url, count + 2)
    return {
        "memory": some["memory"] - none["memory"], "percent": some["percent"], "none_percent": none["percent"],
        "p50": some["p50"], "p99": some["p99"],
    }  # fmt: skip


async def _asked(url: str, *what: Any) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, url, *map(str, what), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert not process.returncode, what
    figures: dict[str, float] = json.loads(out)
    return figures


def _sleeping(url: str) -> tuple[Holdfast, list[int]]:
    app = Holdfast(url, concurrency=CONCURRENCY, warm_for=1.0)
    late: list[int] = []

    @app.job
    async def sleeper(step: Step, until: int) -> None:
        await step.sleep_until("a while", datetime.fromtimestamp(until / 1e6, UTC))
        late.append(_now() - until)

    @app.job
    async def warm(step: Step) -> None:
        await step.sleep("a moment", 0.01)

    return app, late


async def _make(url: str, count: int, begin: int) -> dict[str, float]:
    """Put them to sleep. They wake one after the other from `begin` on."""
    app, _ = _sleeping(url)
    calls = [app.jobs.sleeper.bind(begin + n * 1_000_000 // WAKING) for n in range(count)]
    async with app:
        for part in places.in_parts(calls, 1000):
            await app.trigger_many(part)
        sleeping = "select count(*) from holdfast_runs where status = 'waiting'"
        while (there := places.rows(url, sleeping)[0][0]) < count:
            assert _now() < begin, f"only {there} of {count} sleep so far"
            await asyncio.sleep(0.2)
    return {}


async def _rest(url: str, seconds: float) -> dict[str, float]:
    """What a worker takes that has nothing to do."""
    app, _ = _sleeping(url)
    async with app:
        return await _resting(app, seconds)


async def _resting(app: Holdfast, seconds: float) -> dict[str, float]:
    await app.jobs.warm.run()
    await asyncio.sleep(1)
    used = time.process_time()
    await asyncio.sleep(seconds)
    return {"memory": shared.held(), "percent": 100 * (time.process_time() - used) / seconds}


async def _wake(url: str, seconds: float, count: int, begin: int) -> dict[str, float]:
    """The same beside sleepers, and then how late they wake, in milliseconds."""
    app, late = _sleeping(url)
    async with app:
        figures = await _resting(app, seconds)
        assert not late, "it took too long to put them to sleep"
        until = begin + count * 1_000_000 // WAKING + 60_000_000
        while places.rows(url, "select count(*) from holdfast_runs where completed_at is not null")[0][0] < count + 2:
            assert _now() < until, f"only {len(late)} of {count} woke"
            await asyncio.sleep(0.5)
    assert len(late) == count
    return {**figures, **shared.percentiles([0.0, *(microseconds / 1e6 for microseconds in late)])}


# -- a tree ----------------------------------------------------------------------------------------------------------


async def tree(url: str, branches: int, leaves: int) -> dict[str, float]:
    """A tree that is built, cancelled and purged; how long the runs of others take to begin meanwhile.

    Two others trigger a run every 20 ms and note how many milliseconds later it begins, trigger and claim together: a
    thread of the process that has to do with the tree, and another process. The leaves are of a queue that nobody
    serves, so that they stay what they are until the tree is cancelled. On a machine that is not quiet the processor
    time that the committing thread takes for each transaction (`…_round_…`) says more.
    """
    return await asyncio.to_thread(_tree, url, branches, leaves)


def _tree(url: str, branches: int, leaves: int) -> dict[str, float]:
    app = _forest(url)
    prober = _Prober(app, "probe-here")
    total = branches * (leaves + 1) + 1
    marks: list[tuple[str, float]] = []
    figures: dict[str, float] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.time()
        marks.append((name, began))
        yield
        figures[f"{name}_s"] = time.time() - began

    with app, _elsewhere(url) as elsewhere:
        rounds = _watched(app)
        prober.begin()
        time.sleep(1)  # until all is warm
        with phase("quiet"):
            time.sleep(QUIET)
        with phase("build"):
            root = app.jobs.root.trigger(branches, leaves).wait()
            # The root and each branch wait for what is below them.
            _until(url, f"select count(*) = {branches + 1} from holdfast_waits where kind = 'children'")
            _until(url, "select not exists (select 1 from holdfast_runs where status = 'leased' and tree = 1)")
        assert places.rows(url, "select count(*) from holdfast_runs where root_id is not null") == [(total - 1,)]
        with phase("cancel"):
            app.cancel(root.id).wait()
            unended = "select 1 from holdfast_runs where completed_at is null and root_id is not null"
            _until(url, f"select not exists ({unended})")
        with phase("purge"):
            assert app.purge_runs(older_than=datetime.now(UTC), job="root", limit=None).wait() == 1
        marks.append(("over", time.time()))
        samples = {"here": prober.end(), "away": elsewhere(), "round": rounds}
    assert places.rows(url, "select count(*) from holdfast_runs where root_id is not null") == [(0,)]
    for (name, begin), (_, end) in pairwise(marks):
        for where, told in samples.items():
            took = [latency for at, latency in told if begin <= at < end]
            figures |= {f"{name}_{where}_{figure}": value for figure, value in _told(took).items()}
    worst = max(figures.get(f"{name}_here_p99", 0.0) for name in ("build", "cancel", "purge"))
    return {"p99": worst, "runs": total, **figures}


def _told(seconds: Sequence[float]) -> dict[str, float]:
    times = [one * 1000 for one in seconds]
    if len(times) < 2:
        return {"p50": times[0], "p99": times[0], "count": 1} if times else {}
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98], "most": max(times), "count": len(times)}


def _watched(app: Holdfast) -> list[tuple[float, float]]:
    """When each transaction of this app begins, from now on, and how many seconds of processor time it takes."""
    rounds: Any = app._engine.committer._rounds
    transaction, found = rounds._transaction, list[tuple[float, float]]()

    def watched(*args: Any, **more: Any) -> Any:
        at, began = time.time(), time.thread_time()
        try:
            return transaction(*args, **more)
        finally:
            found.append((at, time.thread_time() - began))

    rounds._transaction = watched
    return found


def _until(url: str, sql: str) -> None:
    while not places.rows(url, sql)[0][0]:
        time.sleep(0.05)


def _forest(url: str) -> Holdfast:
    app = Holdfast(url, concurrency=CONCURRENCY)

    @app.job(queue="nobody")
    async def leaf(number: int) -> int:
        return number

    @app.job
    async def branch(step: Step, leaves: int) -> None:
        await step.map(leaf, range(leaves))

    @app.job
    async def root(step: Step, branches: int, leaves: int) -> None:
        await step.gather(*[branch.bind(leaves) for _ in range(branches)])

    return app


class _Prober:
    """Triggers a run now and then; notes when, and how many seconds later it began."""

    def __init__(self, app: Holdfast, name: str) -> None:
        self.samples: list[tuple[float, float]] = []
        self._begun, self._over = threading.Event(), threading.Event()
        self._at = 0.0

        @app.job(name=name)
        async def probe() -> None:
            self._at = time.perf_counter()
            self._begun.set()

        self._job = probe
        self._thread = threading.Thread(target=self._work, name="prober")

    def _work(self) -> None:
        while not self._over.wait(PROBE_EVERY):
            self._begun.clear()
            now, asked = time.time(), time.perf_counter()
            self._job.trigger().wait()
            assert self._begun.wait(60)
            self.samples.append((now, self._at - asked))

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> list[tuple[float, float]]:
        self._over.set()
        self._thread.join()
        return self.samples


@contextmanager
def _elsewhere(url: str) -> Iterator[Callable[[], list[tuple[float, float]]]]:
    """The same in a process of its own, until its samples are asked for."""
    process = subprocess.Popen([sys.executable, __file__, url, "probe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def samples() -> list[tuple[float, float]]:
        out, _ = process.communicate(b"enough\n", timeout=60)
        found: list[tuple[float, float]] = json.loads(out)
        return found

    try:
        yield samples
    finally:
        process.kill()
        process.communicate()


def _probe(url: str) -> list[tuple[float, float]]:
    app = Holdfast(url)
    prober = _Prober(app, "probe-away")
    with app:
        prober.begin()
        sys.stdin.readline()
        return prober.end()


PARTS: dict[str, Callable[..., Any]] = {
    "rest": lambda url, seconds: asyncio.run(_rest(url, float(seconds))),
    "make": lambda url, count, begin: asyncio.run(_make(url, int(count), int(begin))),
    "wake": lambda url, seconds, count, begin: asyncio.run(_wake(url, float(seconds), int(count), int(begin))),
    "probe": _probe,
}

if __name__ == "__main__":
    _, address, part, *values = sys.argv
    print(json.dumps(PARTS[part](address, *values)))
