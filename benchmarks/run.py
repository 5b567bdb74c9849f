"""`make bench`: Holdfast beside DBOS and a bare loop, in one run, each measurement in a fresh process.

    python benchmarks/run.py [--quick] [--rounds N] [--only drain,latency] [--without-peers] [--json FILE] [--svg FILE]
    python benchmarks/run.py --on postgres      the same on a PostgreSQL server, with Procrastinate; or --on mariadb
    python benchmarks/run.py --one holdfast drain 10000        one measurement, one figure (--all-figures: all of them)

All contestants work with SQLite files on the same disk, or on the same server, and with full syncs: what is
acknowledged is durable. In each round the measurements of a group, of all contestants, come in random order, and ratios
are of pairs of one round. Holdfast takes part twice: how far the two differ ("same code") is how much of any other
ratio is noise. Absolute figures of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import limit
import peers
import places
import plan
import report

import engine

MODULES: dict[str, Any] = {plan.OURS: engine, plan.AGAIN: engine, plan.LIMIT: limit}
MODES = {plan.DBOS: "default", plan.DBOS_WAL: "wal"}
PEERS = {plan.DBOS: peers.DBOS, plan.DBOS_WAL: peers.DBOS, plan.PROCRASTINATE: peers.PROCRASTINATE}
#: Seconds. What takes longer than that hangs: it is told, and not tried again.
TIMEOUT = 90
TIMEOUT_FILLING = 300


class Bench:
    """Makes measurements, each in a process of its own on a fresh copy of a database that was filled once."""

    def __init__(self, place: places.Place, pythons: Mapping[str, Path] = MappingProxyType({})) -> None:
        self.place = place
        self._pythons = pythons
        """Of the peers, by their name."""
        self._filled: dict[tuple[str, str], str] = {}

    def measure(self, who: str, call: str) -> plan.Figures:
        """The figures of one call, such as `drain 10000`."""
        with self.copied(who, call) as url:
            figures: plan.Figures = json.loads(self._child("measure", who, call, url))
        return figures

    def copied(self, who: str, call: str) -> contextlib.AbstractContextManager[str]:
        """The URL of a fresh copy of the database as it is before that call."""
        return self.place.copied(self._fill(who, call))

    def _fill(self, who: str, call: str) -> str:
        kind = plan.OURS if who == plan.AGAIN else who
        if (kind, call) not in self._filled:
            url = self.place.empty()
            self._child("fill", kind, call, url)
            self._filled[kind, call] = url
        return self._filled[kind, call]

    def _child(self, phase: str, who: str, call: str, url: str) -> str:
        if who in PEERS:
            peer = PEERS[who]
            mode = MODES.get(who, "default") if url.startswith("sqlite") else "postgres"
            program = Path(__file__).with_name(peer.program)
            command = [self._pythons[peer.name], program, phase, mode, url.removeprefix("sqlite:///"), *call.split()]
        else:
            command = [sys.executable, __file__, f"--{phase}", who, url, *call.split()]
        seconds = TIMEOUT_FILLING if phase == "fill" else TIMEOUT
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode:
            raise RuntimeError(f"{phase} {who} {call} failed:\n{done.stderr[-2000:]}")
        return done.stdout


def _own(phase: str, who: str, url: str, work: str, sizes: list[int]) -> None:
    """What a child process of ours does."""
    module = MODULES[who]
    if phase == "fill":
        module.fill(url, work, *sizes)
    else:
        print(json.dumps(asyncio.run(getattr(module, work)(url, *sizes))))


def machine(folder: Path) -> dict[str, Any]:
    """What it was measured on."""
    with contextlib.suppress(OSError):
        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")]  # fmt: skip
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": (names or [platform.processor() or "unknown"])[0],
        "cores": os.cpu_count(),
        "load before": load(),
        "sync of 8 kB, ms": round(_sync_time(folder), 3),
    }


def load() -> float | None:
    """How many processes have wanted a processor in the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def prepared(who: list[str], without: bool, facts: dict[str, Any]) -> dict[str, Path]:
    """The Python of each peer that takes part and can be had; what there is to say about all goes into `facts`."""
    pythons: dict[str, Path] = {}
    for peer in dict.fromkeys(PEERS[arm] for arm in who if arm in PEERS):
        try:
            if without:
                raise peers.NoPeer("--without-peers was asked for.")
            python = peers.prepare(peer)
            facts[peer.name] = {**peers.versions(peer, python), "commands": peer.commands}
            pythons[peer.name] = python
        except (peers.NoPeer, OSError) as error:
            facts[peer.name] = f"not measured: {error}"
    return pythons


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
    rounds: int, quick: bool, only: list[str], who: list[str], chance: random.Random, on: str = "sqlite"
) -> list[tuple[int, str, str, str]]:
    """Round, contestant, work and call of each measurement, in the order of the measurements."""
    planned = []
    for number in range(rounds):
        for group in plan.groups(on):
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
    who = list(plan.ARMS[asked.on])
    facts: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "seed": asked.seed,
        "rounds": rounds,
        "Holdfast": {
            "version": version("holdfast"), "Python": platform.python_version(), "settings": engine.SETTINGS,
        },
    }  # fmt: skip
    pythons = prepared(who, asked.without_peers, facts)
    who = [arm for arm in who if arm not in PEERS or PEERS[arm].name in pythons]
    samples: plan.Samples = {arm: {name: [None] * rounds for name in plan.WORKS} for arm in who}
    only = [name for name in asked.only.split(",") if name]
    if unknown := set(only) - set(plan.WORKS):
        raise SystemExit(f"no such work: {', '.join(sorted(unknown))}; there are {', '.join(plan.WORKS)}")
    planned = schedule(rounds, asked.quick, only, who, random.Random(asked.seed), asked.on)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder, places.place(asked.on, Path(folder)) as place:
        facts["machine"] = machine(Path(folder))
        facts["database"] = place.told()
        bench = Bench(place, pythons)
        with progress(len(planned)) as step:
            for number, arm, work, call in planned:
                if asked.minutes is not None and time.monotonic() - began > asked.minutes * 60:
                    facts["stopped"] = f"after {asked.minutes:g} minutes, in round {number + 1}"
                    break
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
        facts["machine"]["load after"] = load()
    facts["calls"] = sorted({f"{arm}: {call}" for _, arm, _, call in planned})
    facts["took, s"] = round(time.monotonic() - began)
    print(f"{facts['command']}    (seed {asked.seed}, {rounds} rounds, {facts['took, s']} s)")
    for name in ("stopped", "machine", "database", "Holdfast", *{peer.name: None for peer in PEERS.values()}):
        if name in facts:
            told = facts[name]
            print(f"{name}: {json.dumps(told, ensure_ascii=False) if isinstance(told, dict) else told}")
    print(f"sizes: {'; '.join(sizes(planned))}")
    print("\nmedians (min-max); ratios are of pairs of a round, more than 1 is better\n")
    print(f"{report.table(samples, asked.on)}\n")
    print(report.targets(samples, asked.on))
    for failure in failures:
        print(f"\nFAILED {failure}", file=sys.stderr)
    suffix = "" if asked.on == "sqlite" else f"-{asked.on}"
    asked.json = asked.json or peers.ROOT / "build" / f"bench{suffix}.json"
    asked.svg = asked.svg or peers.ROOT / "build" / f"bench{suffix}.svg"
    for file in (asked.json, asked.svg):
        file.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps({**facts, "failures": failures, "samples": samples}, indent=1) + "\n")
    asked.svg.write_text(report.chart(samples, caption(facts)), encoding="utf-8")
    print(f"\nall samples: {asked.json}, picture: {asked.svg}")
    missing = "stopped" not in facts and any(samples[arm][work][n] is None for n, arm, work, _ in planned)
    return 1 if missing or any(not failure.startswith(plan.PEERS) for failure in failures) else 0


def sizes(planned: list[tuple[int, str, str, str]]) -> list[str]:
    """What was called for each work: by ours, and by the others where that is another size."""
    calls: dict[str, dict[str, None]] = {}
    for _, arm, work, call in sorted(planned, key=lambda one: one[1] in plan.PEERS):
        calls.setdefault(work, {})[f"others {call}" if arm in plan.PEERS else call] = None
    return [" | ".join(call for call in found if call.removeprefix("others ") not in found or call[:7] != "others ")
            for found in calls.values()]  # fmt: skip


def caption(facts: dict[str, Any]) -> str:
    """One line under the picture."""
    names = dict.fromkeys(peer.name for peer in PEERS.values())
    versions = "".join(f", {name} {facts[name][name]}" for name in names if isinstance(facts.get(name), dict))
    title, its = next(iter(facts["database"].items()))
    return (f"Medians of {facts['rounds']}; {facts['machine']['cores']} cores, "
            f"{title} {its.removeprefix(title).split()[0]}, full syncs, "
            f"Holdfast {facts['Holdfast']['version']}{versions}. {facts['at'][:10]}")  # fmt: skip


def one(arguments: list[str], everything: bool, on: str) -> None:
    """One measurement; its main figure, or all."""
    who, *call = arguments
    pythons = {PEERS[who].name: peers.prepare(PEERS[who])} if who in PEERS else {}
    with tempfile.TemporaryDirectory() as folder, places.place(on, Path(folder)) as place:
        figures = Bench(place, pythons).measure(who, " ".join(call))
    print(json.dumps(figures) if everything else next(iter(figures.values())))


def _some(text: str) -> int:
    """A number of rounds, of which there is one at least."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def main() -> int:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of smaller sizes, about two minutes")
    parser.add_argument("--rounds", type=_some, help="3, or 1 of --quick")
    parser.add_argument("--minutes", type=float, help="stop there, with what has been measured by then")
    parser.add_argument("--only", default="", metavar="WORK,WORK", help=f"some of: {', '.join(plan.WORKS)}")
    parser.add_argument("--on", choices=places.KINDS, default="sqlite", help="the database")
    parser.add_argument("--without-peers", "--without-dbos", action="store_true", help="only ours and the bare loop")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the order")
    parser.add_argument("--json", type=Path, help="all samples, versions, settings, commands (build/bench.json)")
    parser.add_argument("--svg", type=Path, help="a picture (build/bench.svg)")
    parser.add_argument("--one", nargs="+", metavar=("WHO", "WORK"), help="one measurement: holdfast drain 10000")
    parser.add_argument("--all-figures", action="store_true", help="with --one")
    parser.add_argument("--fill", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    for phase in ("fill", "measure"):
        if child := getattr(asked, phase):
            who, url, work, *sizes = child
            _own(phase, who, url, work, [int(size) for size in sizes])
            return 0
    if asked.one:
        one(asked.one, asked.all_figures, asked.on)
        return 0
    return run(asked)


if __name__ == "__main__":
    raise SystemExit(main())
