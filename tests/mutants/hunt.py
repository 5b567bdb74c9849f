"""Who misses which guard: plants each mutant in turn and lets the hunters look for it.

    python tests/mutants/hunt.py                        every mutant, up to the first hunter that catches it
    python tests/mutants/hunt.py --only "no self-fence" --all    one mutant, all hunters
    python tests/mutants/hunt.py --json hunt.json       the table as JSON, too

The hunters, in this order: the simulation (some thousand seeds or 20 s), the named tests of the mutant (each must fail
with it and pass without), the crash campaign (the operation and phase that are noted with the mutant, or some that
fit many), and the storm (real processes that are killed, twice a quarter of a minute, on the database that the mutant
is about). A survivor is a hole in the tests: it is printed plainly, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

HERE = Path(__file__).parent
TESTS = HERE.parent
sys.path[:0] = [str(TESTS / "simulation"), str(TESTS / "crash"), str(TESTS), str(HERE)]

from named_tests import ask  # noqa: E402

from mutants import MUTANTS, Mutant, Statement, Table, plant  # noqa: E402

#: Of the simulation: seeds that are tried at most, seconds for that, and how many are tried in any case, for the rate.
SEEDS, SECONDS, AT_LEAST = 5_000, 20.0, 100
#: Seeds of the storm.
STORMS = (1, 2)
#: Operations and phases of the crash campaign for a mutant that names none.
CASES = (("step", "paused"), ("finish", "paused"), ("trigger", "unanswered"), ("takeover", "after"), ("keys", "after"))


class Catch(NamedTuple):
    """Who has caught a mutant, and how."""

    mutant: str
    hunter: str
    how: str
    """What breaks; empty: it was not caught."""
    seconds: float


Hunter: TypeAlias = Callable[[Mutant], str]


# -- the simulation --------------------------------------------------------------------------------------------------


def stores_of(mutant: Mutant) -> tuple[str, ...]:
    """Where the simulation can see it: SQL only on SQLite, the rest on the model, which is faster, and there."""
    for fault in mutant.faults:
        if isinstance(fault, Statement | Table) or fault.where.startswith(("store.sqlite", "store.relational")):
            return ("sqlite",)
    return ("model", "sqlite")


def broken(seed: int, store: Any) -> str:
    """What a seed breaks, in a few words; empty if nothing."""
    from simulation import simulate

    try:
        story = simulate(seed, store=store)
    except Exception as error:  # the mutant has broken the simulation itself
        return f"{type(error).__name__}: {error}"
    return story.broken[0] if story.broken else ""


def simulated(mutant: Mutant, *, seeds: int = SEEDS, seconds: float = SECONDS, at_least: int = AT_LEAST) -> str:
    """The first seed that the mutant breaks and the code without it does not, and how many of how many."""
    stores = stores_of(mutant)
    for store in stores:
        found: list[tuple[int, str]] = []
        began, seed = time.monotonic(), 0
        with contextlib.ExitStack() as planted:
            planted.enter_context(plant(mutant.name))
            while seed < seeds and time.monotonic() - began < seconds / len(stores):
                if words := broken(seed, store):
                    planted.close()
                    if not broken(seed, store):
                        found.append((seed, words))
                    planted.enter_context(plant(mutant.name))
                seed += 1
                if found and (seed >= at_least or time.monotonic() - began > seconds / 4):
                    break
        if found:
            first, words = found[0]
            return f"{store} seed {first}: {shortened(words)} ({len(found)} of {seed} seeds)"
    return ""


# -- the others ------------------------------------------------------------------------------------------------------


def named(mutant: Mutant) -> str:
    if not hasattr(os, "fork"):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        words = ask([(name, test) for test in mutant.tests for name in (mutant.name, None)], Path(folder))
    fails = {word.test: word.failure for word in words if word.mutant is not None}
    passes = {word.test for word in words if word.mutant is None and word.failure is None}
    for test in mutant.tests:
        if (failure := fails[test]) is not None and test in passes:
            return f"{test}: {shortened(failure)}"
    return ""


def crashed(mutant: Mutant) -> str:
    if not hasattr(os, "fork"):
        return ""
    from crash_field import OPERATIONS, Field, Zygote

    zygote = Zygote()
    try:
        for operation, phase in [mutant.crash[:2]] if mutant.crash is not None else CASES:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    tally = Field(zygote, Path(folder)).campaign(OPERATIONS[operation], mutant.name, (phase,))
                except AssertionError as error:
                    return f"{operation}, {phase}: {shortened(str(error))}"
            if tally.broken:
                told = ", ".join(f"{name} in {count}" for name, count in tally.broken.most_common(2))
                return f"{operation}, {phase}: {told} of {tally.cases} cases"
    finally:
        zygote.close()
    return ""


def database_of(mutant: Mutant) -> str:
    """Where the storm can see it."""
    for fault in mutant.faults:
        where = getattr(fault, "where", "")
        if where.startswith(("store.postgres", "store.several_writers")):
            return "postgres"
        if where.startswith("store.mysql"):
            return "mariadb"
    return "sqlite"


def stormed(mutant: Mutant) -> str:
    storm = str(TESTS / "storm" / "storm.py")
    on = database_of(mutant)
    for seed in STORMS:
        with tempfile.TemporaryDirectory() as folder:
            figures = Path(folder, "figures.json")
            command = [sys.executable, storm, "--seed", str(seed), "--short", "--mutant", mutant.name, "--on", on]
            done = subprocess.run([*command, "--json", str(figures)], capture_output=True, text=True, check=False)
            if done.returncode != 1:  # 2: too little has happened to say anything
                continue
            told: Any = json.loads(figures.read_text()) if figures.exists() else {"errors": [done.stderr[-300:]]}
        broken = [f"{name} {count} times" for name, count in sorted(told.get("violations", {}).items())]
        return f"seed {seed}: {shortened(', '.join(broken) or told['errors'][0])}"
    return ""


HUNTERS: dict[str, Hunter] = {
    "simulation": simulated,
    "named test": named,
    "crash campaign": crashed,
    "storm": stormed,
}


def shortened(words: str, most: int = 110) -> str:
    words = " ".join(words.split())
    return words if len(words) <= most else words[: most - 1] + "…"


# -- the hunt --------------------------------------------------------------------------------------------------------


def in_a_process(hunter: str, mutant: str) -> str:
    """What the hunter says, in a process of its own: what a mutant does to it, or it to a mutant, ends with that."""
    command = [sys.executable, str(HERE / "hunt.py"), "--hunter", hunter, "--only", mutant]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            told, _ = process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return ""
    if process.returncode != 0:
        raise RuntimeError(f"{hunter} has failed on {mutant!r}")
    return str(json.loads(told.splitlines()[-1]))


def hunt(name: str, hunters: list[str], *, all_of_them: bool) -> list[Catch]:
    """What the hunters said of a mutant, up to the first that caught it."""
    catches: list[Catch] = []
    for hunter in hunters:
        began = time.monotonic()
        how = in_a_process(hunter, name)
        catches.append(Catch(name, hunter, how, round(time.monotonic() - began, 1)))
        if how and not all_of_them:
            break
    return catches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*MUTANTS], metavar="NAME", help="this mutant (repeatable)")
    parser.add_argument("--all", action="store_true", help="ask all hunters, not only up to the first catch")
    parser.add_argument("--without", action="append", default=[], choices=[*HUNTERS], help="leave this hunter out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="so many mutants at once (all cores)")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    parser.add_argument("--hunter", choices=[*HUNTERS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.only or [*MUTANTS]
    if options.hunter:
        print(json.dumps(HUNTERS[options.hunter](MUTANTS[names[0]])))
        return 0

    hunters = [hunter for hunter in HUNTERS if hunter not in options.without]
    width = max(map(len, names))
    print(f"{'mutant':<{width}}  {'caught by':<14}  {'seconds':>7}  how")
    told: list[Catch] = []
    survivors: list[str] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        hunts = [pool.submit(hunt, name, hunters, all_of_them=options.all) for name in names]
        for name, one in zip(names, hunts, strict=True):
            catches = one.result()
            told += catches
            caught = [catch for catch in catches if catch.how]
            for by in catches if options.all else caught:
                print(f"{name:<{width}}  {by.hunter:<14}  {by.seconds:>7}  {by.how or '-'}", flush=True)
            if not caught:
                survivors.append(name)
                print(f"{name:<{width}}  NOBODY", flush=True)
    if options.json:
        options.json.write_text(json.dumps([catch._asdict() for catch in told], indent=1, ensure_ascii=False) + "\n")
    for name in survivors:
        print(f"SURVIVED: {name}")
    by_whom = Counter(catch.hunter for catch in told if catch.how)
    print("  ".join(f"{hunter}: {by_whom[hunter]}" for hunter in hunters))
    print(f"{len(names) - len(survivors)} of {len(names)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
