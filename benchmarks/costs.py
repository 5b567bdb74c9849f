"""Where the processor time goes: microseconds per run and per step, by function, by floor and by thread.

    python benchmarks/costs.py [drain 10000 | checkpoints 1000 10 ...] [--on postgres] [--times 3] [--top 15]
    python benchmarks/costs.py --json before.json ...      then      python benchmarks/costs.py --before before.json ...

Each time in a fresh process a thread looks once in a millisecond at what the others execute, and charges the time that
the processor has worked for each of them since the last look (its own clock of the operating system) to the innermost
function of Holdfast that it finds there. So what SQLite, JSON or asyncio do for a function counts as that function's,
and waiting counts nothing. What the looking itself costs is shown: the same work is measured without it, too. It finds
threads where they give Python's lock away a little too often; a switch interval of 50 µs keeps that small. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parent))

import places
import run

import engine
import holdfast

EVERY = 0.001
SWITCH = 0.00005
_HOME = str(Path(holdfast.__file__).parent)
#: Threads by what they are for; their names end in numbers, or are the loop of this benchmark.
_THREADS = {"MainThread": "loop", "holdfast-commit": "commit", "holdfast-read": "read", "holdfast-watch": "watch"}


class Sampler(threading.Thread):
    """Charges processor time, in nanoseconds, to places."""

    def __init__(self) -> None:
        super().__init__(name="sampler", daemon=True)
        self.places: Counter[str] = Counter()
        self.threads: Counter[str] = Counter()
        self.looks = 0
        self._clocks: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._stop_now = False

    def run(self) -> None:
        """Look until told to stop."""
        self._look(charge=False)
        while not self._stop_now:
            time.sleep(EVERY)
            self._look()
            self.looks += 1

    def stop(self) -> None:
        """Look no more."""
        self._stop_now = True
        self.join()

    def _look(self, *, charge: bool = True) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident == self.ident:
                continue
            if ident not in self._clocks:
                self._clocks[ident] = time.pthread_getcpuclockid(ident)
            try:
                now = time.clock_gettime_ns(self._clocks[ident])
            except OSError:
                continue  # it has ended
            spent = now - self._seen.get(ident, now if not charge else 0)
            self._seen[ident] = now
            if charge and spent > 0:
                self.places[_place(frame)] += spent
                name = names.get(ident) or "?"
                self.threads[_THREADS.get(name, name)] += spent


def _place(frame: FrameType | None) -> str:
    innermost = frame
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_HOME):
            return f"{file[len(_HOME) + 1 :]} {frame.f_code.co_qualname}"
        frame = frame.f_back
    file = innermost.f_code.co_filename if innermost else "?"
    if file == engine.__file__:
        return "(the benchmark's own functions)"
    return f"(Python: {Path(file).parent.name}/{Path(file).name})"


def child(url: str, work: str, sizes: list[int], *, sampled: bool) -> None:
    """One execution, and what was seen, in microseconds of each unit of work."""
    sampler = Sampler()
    if sampled:
        sys.setswitchinterval(SWITCH)
        sampler.start()
    figures = asyncio.run(getattr(engine, work)(url, *sizes))
    if sampled:
        sampler.stop()
    units = sizes[0] * (sizes[1] if "checkpoints" in work else 1) * 1000
    print(json.dumps({
        "cpu": figures["cpu"],
        "looks": sampler.looks,
        "places": {place: spent / units for place, spent in sampler.places.items()},
        "threads": {name: spent / units for name, spent in sampler.threads.items()},
    }))  # fmt: skip


def measure(call: str, times: int, on: str) -> dict[str, dict[str, float]]:
    """Medians of cost by kind and place, and without sampling."""
    found: list[dict[str, dict[str, float]]] = []
    plain: list[float] = []
    sampled: list[float] = []
    with tempfile.TemporaryDirectory() as folder, places.place(on, Path(folder)) as place:
        bench = run.Bench(place)
        for _ in range(times):
            plain.append(bench.measure("holdfast", call)["cpu"])
            with bench.copied("holdfast", call) as url:
                command = [sys.executable, __file__, "--child", url, *call.split()]
                seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            sampled.append(seen["cpu"])
            floors: Counter[str] = Counter()
            for spot, spent in seen["places"].items():
                floors[spot if spot.startswith("(") else spot.split("/")[0].split(" ")[0]] += spent
            found.append({"places": seen["places"], "floors": dict(floors), "threads": seen["threads"]})
    merged: dict[str, dict[str, float]] = {}
    for kind in ("places", "floors", "threads"):
        keys = {key for one in found for key in one[kind]}
        merged[kind] = {key: statistics.fmean([one[kind].get(key, 0) for one in found]) for key in keys}
    merged["cpu"] = {"plain": statistics.median(plain), "sampled": statistics.median(sampled)}
    return merged


def table(call: str, now: dict[str, dict[str, float]], before: dict[str, dict[str, float]] | None, top: int) -> str:
    """The biggest costs, and who has them; beside those of before, if there are any."""
    unit = "step" if "checkpoints" in call else "run"
    lines = [f"{call}: {now['cpu']['plain']:.1f} µs of processor time per {unit}"
             + (f", before {before['cpu']['plain']:.1f}" if before else "")
             + f"; with sampling {now['cpu']['sampled']:.1f}, from the first thread to the last"]  # fmt: skip
    for kind, limit in (("threads", 6), ("floors", 8), ("places", top)):
        lines.append(f"\n  {'µs per ' + unit:>11}{'part':>7}{'before':>9}   {kind}")
        total = sum(now[kind].values())
        theirs = before[kind] if before else {}
        keys = sorted({**theirs, **now[kind]}, key=lambda key: -max(now[kind].get(key, 0), theirs.get(key, 0)))
        for key in keys[:limit]:
            spent = now[kind].get(key, 0)
            old = f"{theirs.get(key, 0):.1f}" if before else ""
            lines.append(f"  {spent:>11.1f}{100 * spent / total:>6.0f}%{old:>9}   {key}")
    return "\n".join(lines)


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", nargs="*", help="a work and its sizes; both are the default")
    parser.add_argument("--on", choices=places.KINDS, default="sqlite", help="the database")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep what was found")
    parser.add_argument("--before", type=Path, metavar="FILE", help="what was kept, to be shown beside it")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        url, work, *sizes = asked.child
        child(url, work, [int(size) for size in sizes], sampled=True)
        return
    calls = [" ".join(asked.call)] if asked.call else ["drain 10000", "checkpoints 1000 10"]
    before = json.loads(asked.before.read_text()) if asked.before else {}
    found = {call: measure(call, asked.times, asked.on) for call in calls}
    print("\n\n".join(table(call, found[call], before.get(call), asked.top) for call in calls))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
