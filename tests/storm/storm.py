"""A storm over Holdfast: processes are killed and stopped while they work, and then all that happened is checked.

    python tests/storm/storm.py --seed 7 --minutes 2 [--on postgres] [--mutant NAME] [--json FILE] [--short]

It runs one storm after the other, each on a database of its own, until the time is over and enough was struck. On
PostgreSQL and MariaDB the server is one of our own, and is restarted again and again, in order and at once. Exit code
1 and the smallest witness if a promise was broken or nothing moves any more; 2 if too little was tried to say
anything; 3 if there is no such server.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "crash", HERE.parent / "mutants", HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


from storm_checker import STALE, STALE_WAITS, vacuous  # noqa: E402
from storm_field import Goals, Outcome, Storm  # noqa: E402
from storm_trees import KINDS  # noqa: E402

import servers  # noqa: E402

#: What has woken runs of trees, as it is told.
WOKEN_BY = ("sleep", "signal", "call", "gather", "map", "children", "finalize", "sequence", "loop")
#: Seconds of one storm of a campaign, before its healing.
EPOCH = 40.0
#: What the short form needs, and the long one.
LEAST_SHORT = {
    "runs ended": 300, "kills": 8, "stops past the lease": 3, "takeovers": 10, "ambiguous answers": 3,
    "step bodies run again": 5, "stale writes attempted": 5, "keyed leases": 20, "looks at the step before": 100,
    "workers looked at when quiet": 3, "clients at the end": 2, "bad rows": 3,
    "trees": 5, "runs below": 20, "outputs that were computed": 20, "of them failures": 1, "deepest tree": 3,
    "suspensions": 15, "wake-ups": 15, "signals taken": 2, "whole trees": 2,
}  # fmt: skip
LEAST = {
    **LEAST_SHORT, "runs ended": 1000, "kills": 100, "stops past the lease": 20, "takeovers": 200,
    "ambiguous answers": 50,
    "stops with the right to write": 3, "overlaps of a key": 1, "failed tries": 50, "batches": 50, "deleted": 50,
    "given up": 1, "raced keys": 50,
    **{f"stale {verb}": 20 for verb in STALE},
    "trees": 200, "runs below": 1500, "outputs that were computed": 1500, "of them failures": 100,
    "trees cancelled": 20, "cascades": 50, "below an end": 50, "suspensions": 1000, "wake-ups": 1000,
    "woken by sleep": 50, "woken by signal": 50, "woken by call": 20, "woken by gather": 20, "woken by map": 20,
    "woken by children": 20, "woken by finalize": 20, "woken by sequence": 10, "woken by loop": 10,
    "signals taken": 100, "signals sent before the wait": 20, "signals sent to a wait": 20, "node finalize": 50,
    "retried in trees": 20, "whole trees": 100, "kills inside of tree commits": 20,
}  # fmt: skip
#: And of a server.
LEAST_SERVER_SHORT = {
    "runs ended": 200, "kills": 6, "looks at the step before": 40, "server restarts": 2,
}  # fmt: skip
LEAST_SERVER = {
    "runs ended": 1000, "kills": 100, "server restarts": 5, "restarts, fast": 2, "restarts, immediate": 2,
    "stops within a transaction": 5,
    "trees": 80, "runs below": 500, "outputs that were computed": 500, "of them failures": 30, "trees cancelled": 8,
    "cascades": 20, "below an end": 20, "suspensions": 300, "wake-ups": 300, "retried in trees": 8,
    "signals taken": 30, "node finalize": 15, "whole trees": 30, "kills inside of tree commits": 10,
    **{f"woken by {kind}": 5 for kind in WOKEN_BY}, "signals sent before the wait": 5, "signals sent to a wait": 5,
}  # fmt: skip
#: Per minute, for a campaign that is neither.
_LONG = 10.0
#: The short form is one storm; a slow machine may need another before it has tried all that it must.
_SHORT_STORMS = 3


@dataclass
class Campaign:
    """What several storms came to together."""

    seed: int
    database: str = ""
    """What it ran on, with its version."""
    outcomes: list[Outcome] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Invariant, and the words with the witness; of each invariant the shortest comes first."""
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0
    healing: float = 0.0

    def add(self, outcome: Outcome) -> None:
        for what, many in outcome.counts.items():
            if what in ("clients at the end", "bad rows"):
                self.counts[what] = many
            elif what == "deepest tree":
                self.counts[what] = max(self.counts[what], many)
            else:
                self.counts[what] += many
        self.counts["storms"] += 1
        for invariant, words, lines in outcome.found.broken:
            self.broken.append((invariant, "\n    ".join([f"seed {outcome.seed}: {invariant}: {words}", *lines])))
        self.broken.sort(key=lambda one: (one[0], len(one[1])))
        if outcome.error:
            self.errors.append(f"seed {outcome.seed}: {outcome.error}")
        self.seconds += outcome.seconds
        self.healing = max(self.healing, outcome.healing)

    @property
    def witnesses(self) -> dict[str, str]:
        """The smallest, by invariant."""
        found: dict[str, str] = {}
        for invariant, text in self.broken:
            found.setdefault(invariant, text)
        return found


ROWS = (
    ("storms (each on its own database)", "storms"),
    ("runs ended", "runs ended"),
    ("checkpoints", "checkpoints"),
    ("effects", "effects"),
    ("SIGKILL", "kills"),
    ("  of workers", "kills of workers"),
    ("  of clients", "kills of clients"),
    ("  by a job that kills its worker", "kills by a job"),
    ("stopped in order, and started again", "stopped in order"),
    ("SIGSTOP past the lease, then SIGCONT", "stops past the lease"),
    ("  with the right to write", "stops with the right to write"),
    ("  within an open transaction", "stops within a transaction"),
    ("server restarts", "server restarts"),
    ("  fast", "restarts, fast"),
    ("  immediate", "restarts, immediate"),
    ("sessions that the server ended within a transaction", "sessions ended"),
    ("deadlocks", "deadlocks"),
    ("leases taken over", "takeovers"),
    ("runs given up, after five lost leases without progress", "given up"),
    ("  other than the job that kills its worker", "given up beside it"),
    ("commits without an answer", "ambiguous answers"),
    ("triggers that nobody got an answer to", "triggers without an answer"),
    ("idempotency keys that both clients came with", "raced keys"),
    ("executions of a key that overlapped, the older without its lease", "overlaps of a key"),
    ("bodies begun after the lease was lost", "bodies begun after the lease was lost"),
    ("step bodies begun", "step bodies begun"),
    ("  again, each within its window", "step bodies run again"),
    ("effects applied twice, within their allowance", "effects applied twice"),
    ("looks that the step before was saved", "looks at the step before"),
    ("trees of runs", "trees"),
    ("  completed", "trees completed"),
    ("  failed, as it was drawn or as one was given up", "trees that failed"),
    ("  cancelled", "trees cancelled"),
    ("  that nobody broke off: all runs there, and no others", "whole trees"),
    ("  levels of the deepest", "deepest tree"),
    ("runs below others", "runs below"),
    ("  cancelled with their tree", "cascades"),
    ("runs of trees whose end was computed beforehand", "outputs that were computed"),
    ("  of these failures", "of them failures"),
    ("runs of trees that were tried again", "retried in trees"),
    ("waits written down", "waits"),
    ("suspensions", "suspensions"),
    ("wake-ups", "wake-ups"),
    *((f"  by {kind}", f"woken by {kind}") for kind in (*WOKEN_BY, "signal that never comes", "one of several")),
    ("signals taken", "signals taken"),
    ("  sent before anybody waited", "signals sent before the wait"),
    ("  sent to who waited", "signals sent to a wait"),
    ("faults inside of the commits of waits and trees", "faults inside of tree commits"),
    ("  of these SIGKILL", "kills inside of tree commits"),
    ("single checks", "checks"),
)
#: Not told of a file.
_OF_SERVERS = ("server restarts", "restarts, fast", "restarts, immediate", "sessions ended", "deadlocks")


def _version() -> str:
    try:
        return version("holdfast")
    except PackageNotFoundError:
        return "from its source"


def table(campaign: Campaign, command: str, problems: list[str]) -> str:
    counts = campaign.counts
    width = max(len(words) for words, _ in ROWS) + 2
    lines = [
        f"{words:<{width}}{counts[what]:>10,}" for words, what in ROWS if what in counts or what not in _OF_SERVERS
    ]
    lines += ["", f"{'stale writes':<{width}}{'attempted':>10}{'accepted':>10}"]
    for verb in (*STALE, "save_attempts", *STALE_WAITS):
        lines.append(f"  {verb:<{width - 2}}{counts[f'stale {verb}']:>10,}{counts[f'accepted {verb}']:>10,}")
    lines.append(f"  {'all':<{width - 2}}{counts['stale writes attempted']:>10,}{counts['stale writes accepted']:>10,}")
    nodes = {job: counts[f"node {job}"] for job in (*KINDS, "finalize")}
    acts = {what.removeprefix("act "): many for what, many in counts.items() if what.startswith("act ")}
    struck = {what.removeprefix("struck "): many for what, many in counts.items() if what.startswith("struck ")}
    for words, many in (("runs of trees", nodes), ("what they did", acts), ("struck inside", struck)):
        lines += [f"{words}: " + ", ".join(f"{what} {count:,}" for what, count in sorted(many.items()))]
    broken = Counter(invariant for invariant, _ in campaign.broken)
    lines += ["", f"{'violations':<{width}}{sum(broken.values()):>10,}"]
    lines += [f"  {invariant:<{width - 2}}{many:>10,}" for invariant, many in sorted(broken.items())]
    lines += [
        "",
        f"{'longest time from the last fault to the end of all runs, s':<{width}}{campaign.healing:>10.1f}",
        "",
        f"seed {campaign.seed}, {campaign.seconds:.0f} s, Holdfast {_version()}, "
        f"Python {platform.python_version()}, {campaign.database}, {platform.system()} "
        f"{platform.release()}",
        f"again: {command}",
    ]
    return "\n".join([*lines, *problems])


def run(
    seed: int, minutes: float, *, on: str = "sqlite", short: bool = False, mutant: str | None = None, keep: bool = False
) -> tuple[Campaign, list[str]]:
    """The campaign, and what is lacking of it: empty if enough was struck."""
    if on == "sqlite":
        return _run(seed, minutes, None, short=short, mutant=mutant, keep=keep)
    os.environ["HOLDFAST_TEST_ON"] = on
    for name in ("storm_lines", "crash_places"):  # once, before all forks
        importlib.import_module(name)
    begun = {"postgres": servers.postgres, "mariadb": servers.mariadb}[on]
    with begun(fsync=True) as server:
        campaign, lacking = _run(seed, minutes, server, short=short, mutant=mutant, keep=keep)
        if on == "postgres":  # MariaDB writes neither down
            campaign.counts["sessions ended"] = server.log.count("due to idle-in-transaction timeout")
            campaign.counts["deadlocks"] = server.log.count("deadlock detected")
    return campaign, lacking


def _run(
    seed: int, minutes: float, server: Any, *, short: bool, mutant: str | None, keep: bool
) -> tuple[Campaign, list[str]]:
    campaign = Campaign(seed)
    until = time.monotonic() + 60 * minutes
    least = _least(minutes, LEAST_SHORT, None if short else LEAST)
    if server is not None:
        least.update(_least(minutes, LEAST_SERVER_SHORT, None if short else LEAST_SERVER))
    number = 0
    while True:
        if short:
            goals = Goals(seconds=10, most=60, runs=500, kills=9, stops=4)
            if server is not None:  # a session of a server begins slower than a file is opened
                goals = Goals(seconds=8, most=90, runs=250, kills=7, stops=3, restarts=2, up=(500, 2000))
        else:
            left = until - time.monotonic()
            goals = Goals(seconds=min(EPOCH, max(left, 15)), most=2 * EPOCH, runs=200, kills=5, stops=2, restarts=1)
        said = functools.partial(print, flush=True)
        storm = Storm(seed * 1000 + number, goals, mutant=mutant, server=server, say=said)
        campaign.database = campaign.database or storm.place.version()
        try:
            outcome = storm.run()
        except BaseException:
            storm.end_all()
            if not keep:
                storm.forget()
            raise
        campaign.add(outcome)
        if keep or (mutant is None and (outcome.error or outcome.found.broken)):
            storm.place.leave(outcome.folder)
            print(f"kept: {outcome.folder}")
        else:
            storm.forget()
        number += 1
        lacking = vacuous(campaign.counts, least)
        if outcome.error or outcome.found.broken:
            break
        if short:
            if not lacking or number == _SHORT_STORMS:
                break
            continue
        # Somewhat longer, if what it takes to say anything has not come about yet.
        if time.monotonic() > until - 10 and (not lacking or time.monotonic() > until + 60 * minutes / 2):
            break
    return campaign, lacking


def _least(minutes: float, short: dict[str, int], long: dict[str, int] | None) -> dict[str, int]:
    if long is None:
        return dict(short)
    part = min(minutes / _LONG, 1.0)
    return {what: max(short.get(what, 1), round(many * part)) for what, many in long.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill and stop processes that work, and check what happened.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=_LONG)
    parser.add_argument("--on", choices=["sqlite", *servers.KINDS], default="sqlite", help="the kind of database")
    parser.add_argument("--mutant", help="plant this fault (tests/mutants) in all processes: it should be found")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--short", action="store_true", help="some seconds of storm, as in `make test`")
    parser.add_argument("--keep", action="store_true", help="leave the databases and the world's logs")
    options = parser.parse_args()
    try:
        campaign, lacking = run(
            options.seed, options.minutes,
            on=options.on, short=options.short, mutant=options.mutant, keep=options.keep,
        )  # fmt: skip
    except servers.ServerTrouble as trouble:
        print(f"NO {servers.NAMES.get(options.on)}: {trouble}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    form = "--short" if options.short else f"--minutes {options.minutes:g}"
    mutant = f" --mutant {options.mutant!r}" if options.mutant else ""
    on = f" --on {options.on}" if options.on != "sqlite" else ""
    command = f"python tests/storm/storm.py{on} --seed {options.seed} {form}{mutant}"
    for witness in campaign.witnesses.values():
        print(f"\n{witness}")
    for error in campaign.errors:
        print(f"\n{error}")
    # What broke off can't have tried enough.
    problems = lacking if not (campaign.broken or campaign.errors) else []
    print(f"\n{table(campaign, command, problems)}", flush=True)
    if options.json is not None:
        figures = {
            "seed": campaign.seed, "seconds": round(campaign.seconds, 1),
            "healing": round(campaign.healing, 1), "counts": dict(campaign.counts),
            "violations": dict(Counter(invariant for invariant, _ in campaign.broken)), "errors": campaign.errors,
            "lacking": lacking, "holdfast": _version(), "python": platform.python_version(),
            "database": campaign.database, "command": command,
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if campaign.broken or campaign.errors else 2 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
