"""`make bench`: Holdfast beside DBOS and a bare loop, in one run, each measurement in a fresh process.

    python benchmarks/run.py [--quick] [--rounds N] [--only drain,latency] [--without-dbos] [--json FILE] [--svg FILE]
    python benchmarks/run.py --one holdfast drain 10000        one measurement, one figure (--all-figures: all of them)

All contestants work with SQLite files on the same disk, and with full syncs: what is acknowledged is durable. In each
round the measurements of a group, of all contestants, come in random order, and ratios are of pairs of one round.
Holdfast takes part twice: how far the two differ ("same code") is how much of any other ratio is noise. Absolute
figures of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import limit
import peers
import plan
import report

import engine

MODULES: dict[str, Any] = {plan.OURS: engine, plan.AGAIN: engine, plan.LIMIT: limit}
MODES = {plan.DBOS: "default", plan.DBOS_WAL: "wal"}
#: Seconds. What takes longer than that hangs: it is told, and not tried again.
TIMEOUT = 90


class Bench:
    """Makes measurements, each in a process of its own on a fresh copy of a file that was filled once."""

    def __init__(self, folder: Path, peer: Path | None = None) -> None:
        self.folder = folder
        self.peer = peer
        self._filled: dict[tuple[str, str], Path] = {}

    def measure(self, who: str, call: str) -> plan.Figures:
        """The figures of one call, such as `drain 10000`."""
        with self.copied(who, call) as file:
            figures: plan.Figures = json.loads(self._child("measure", who, call, file))
        return figures

    @contextlib.contextmanager
    def copied(self, who: str, call: str) -> Iterator[Path]:
        """A fresh copy of the file as it is before that call."""
        filled = self._fill(who, call)
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            for part in filled.parent.iterdir():
                if not part.name.endswith("-shm"):
                    _copy(part, Path(place, part.name))
            yield Path(place, filled.name)

    def _fill(self, who: str, call: str) -> Path:
        kind = plan.OURS if who == plan.AGAIN else who
        if (kind, call) not in self._filled:
            file = Path(tempfile.mkdtemp(dir=self.folder), "bench.db")
            self._child("fill", kind, call, file)
            self._filled[kind, call] = file
        return self._filled[kind, call]

    def _child(self, phase: str, who: str, call: str, file: Path) -> str:
        if who in MODES:
            command = [self.peer, Path(__file__).with_name("peer.py"), phase, MODES[who], file, *call.split()]
        else:
            command = [sys.executable, __file__, f"--{phase}", who, file, *call.split()]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            raise RuntimeError(f"{phase} {who} {call} failed:\n{done.stderr[-2000:]}")
        return done.stdout


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as copied:
        os.fsync(copied.fileno())  # not in the background of the measurement


def _own(phase: str, who: str, file: str, work: str, sizes: list[int]) -> None:
    """What a child process of ours does."""
    module = MODULES[who]
    if phase == "fill":
        module.fill(f"sqlite:///{file}", work, *sizes)
    else:
        print(json.dumps(asyncio.run(getattr(module, work)(f"sqlite:///{file}", *sizes))))


def machine(folder: Path) -> dict[str, Any]:
    """What it was measured on."""
    with contextlib.suppress(OSError):
        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")]  # fmt: skip
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": (names or [platform.processor() or "unknown"])[0],
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "sync of 8 kB, ms": round(_sync_time(folder), 3),
    }


def _sync_time(folder: Path) -> float:
    took = []
    with Path(folder, "sync").open("wb") as file:
        for _ in range(50):
            file.write(b"x" * 8192)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


@contextlib.contextmanager
def progress(total: int) -> Iterator[Any]:
    """A bar on stderr; call it with what comes next."""
    began, done = time.monotonic(), -1
    shown = sys.stderr.isatty()

    def step(what: str) -> None:
        nonlocal done
        done += 1
        took = time.monotonic() - began
        left = f", about {took / done * (total - done) / 60:.0f} min left" if done >= 10 else ""
        bar = "█" * (done * 30 // total)
        if shown:
            print(f"\r{bar:░<30} {done}/{total}{left}  {what:<44.44}", end="", file=sys.stderr, flush=True)
        elif done % 25 == 0:
            print(f"{done}/{total}{left}", file=sys.stderr, flush=True)

    yield step
    if shown:
        print("\r" + " " * 100, end="\r", file=sys.stderr, flush=True)


def schedule(
    rounds: int, quick: bool, only: list[str], who: list[str], chance: random.Random
) -> list[tuple[int, str, str, str]]:
    """Round, contestant, work and call of each measurement, in the order of the measurements."""
    planned = []
    for number in range(rounds):
        for group in plan.GROUPS:
            chosen = [work for work in group if (not only or work.name in only) and number < work.rounds]
            pairs = [
                (number, arm, work.name, call) for work in chosen for arm in who if (call := work.size(arm, quick))
            ]
            chance.shuffle(pairs)
            planned += pairs
    return planned


def run(asked: argparse.Namespace) -> int:
    """Measure all, print it, keep it. 1 if one of ours failed, or anything is missing."""
    began = time.monotonic()
    rounds = asked.rounds or (1 if asked.quick else 3)
    who = list(plan.NAMES)
    facts: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "seed": asked.seed,
        "rounds": rounds,
        "Holdfast": {
            "version": version("holdfast"), "Python": platform.python_version(), "SQLite": sqlite3.sqlite_version,
            "settings": {**engine.SETTINGS, "journal": "WAL, synchronous=FULL"},
        },
    }  # fmt: skip
    peer = None
    try:
        if asked.without_dbos:
            raise peers.NoPeer("--without-dbos was asked for.")
        peer = peers.prepare()
        facts["DBOS"] = {**peers.versions(peer), "commands": peers.COMMANDS}
    except (peers.NoPeer, OSError) as error:
        who = [arm for arm in who if arm not in plan.PEERS]
        facts["DBOS"] = f"not measured: {error}"
    samples: plan.Samples = {arm: {name: [None] * rounds for name in plan.WORKS} for arm in who}
    only = [name for name in asked.only.split(",") if name]
    if unknown := set(only) - set(plan.WORKS):
        raise SystemExit(f"no such work: {', '.join(sorted(unknown))}; there are {', '.join(plan.WORKS)}")
    planned = schedule(rounds, asked.quick, only, who, random.Random(asked.seed))
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as place, progress(len(planned)) as step:
        facts["machine"] = machine(Path(place))
        bench = Bench(Path(place), peer)
        for number, arm, work, call in planned:
            step(f"{plan.NAMES[arm]}: {call}")
            for _ in range(2):  # a failure is told, and tried once more
                try:
                    samples[arm][work][number] = bench.measure(arm, call)
                    break
                except RuntimeError as error:
                    failures.append(f"{arm}: {error}")
                except subprocess.TimeoutExpired as error:
                    failures.append(f"{arm}: {call} took longer than {error.timeout} s")
                    break
        step("done")
    facts["calls"] = sorted({f"{arm}: {call}" for _, arm, _, call in planned})
    facts["took, s"] = round(time.monotonic() - began)
    print(f"{facts['command']}    (seed {asked.seed}, {rounds} rounds, {facts['took, s']} s)")
    for name in ("machine", "Holdfast", "DBOS"):
        print(f"{name}: {json.dumps(facts[name]) if isinstance(facts[name], dict) else facts[name]}")
    print(f"sizes: {'; '.join(sizes(planned))}")
    print(f"\nmedians (min-max); ratios are of pairs of a round, more than 1 is better\n\n{report.table(samples)}\n")
    print(report.targets(samples))
    for failure in failures:
        print(f"\nFAILED {failure}", file=sys.stderr)
    for file in (asked.json, asked.svg):
        file.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps({**facts, "failures": failures, "samples": samples}, indent=1) + "\n")
    asked.svg.write_text(report.chart(samples, caption(facts)), encoding="utf-8")
    print(f"\nall samples: {asked.json}, picture: {asked.svg}")
    missing = any(samples[arm][work][number] is None for number, arm, work, _ in planned)
    return 1 if missing or any(not failure.startswith(plan.PEERS) for failure in failures) else 0


def sizes(planned: list[tuple[int, str, str, str]]) -> list[str]:
    """What was called for each work: by ours, and by DBOS where that is another size."""
    calls: dict[str, dict[str, None]] = {}
    for _, arm, work, call in sorted(planned, key=lambda one: one[1] in plan.PEERS):
        calls.setdefault(work, {})[f"DBOS {call}" if arm in plan.PEERS else call] = None
    return [" | ".join(call for call in found if call.removeprefix("DBOS ") not in found or call[:5] != "DBOS ")
            for found in calls.values()]  # fmt: skip


def caption(facts: dict[str, Any]) -> str:
    """One line under the picture."""
    dbos = facts["DBOS"]
    versions = f", DBOS {dbos['DBOS']}" if isinstance(dbos, dict) else ""
    return (f"Medians of {facts['rounds']}; {facts['machine']['cores']} cores, SQLite {facts['Holdfast']['SQLite']}, "
            f"full syncs, Holdfast {facts['Holdfast']['version']}{versions}. {facts['at'][:10]}")  # fmt: skip


def one(arguments: list[str], everything: bool) -> None:
    """One measurement; its main figure, or all."""
    who, *call = arguments
    with tempfile.TemporaryDirectory() as place:
        peer = peers.prepare() if who in plan.PEERS else None
        figures = Bench(Path(place), peer).measure(who, " ".join(call))
    print(json.dumps(figures) if everything else next(iter(figures.values())))


def main() -> int:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of smaller sizes, about two minutes")
    parser.add_argument("--rounds", type=int, help="3, or 1 of --quick")
    parser.add_argument("--only", default="", metavar="WORK,WORK", help=f"some of: {', '.join(plan.WORKS)}")
    parser.add_argument("--without-dbos", action="store_true")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the order")
    results = peers.ROOT / "build"
    parser.add_argument(
        "--json", type=Path, default=results / "bench.json", help="all samples, versions, settings, commands"
    )
    parser.add_argument("--svg", type=Path, default=results / "bench.svg", help="a picture")
    parser.add_argument("--one", nargs="+", metavar=("WHO", "WORK"), help="one measurement: holdfast drain 10000")
    parser.add_argument("--all-figures", action="store_true", help="with --one")
    parser.add_argument("--fill", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    for phase in ("fill", "measure"):
        if child := getattr(asked, phase):
            who, file, work, *sizes = child
            _own(phase, who, file, work, [int(size) for size in sizes])
            return 0
    if asked.one:
        one(asked.one, asked.all_figures)
        return 0
    return run(asked)


if __name__ == "__main__":
    raise SystemExit(main())
