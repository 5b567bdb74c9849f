"""The simulation from the command line.

    python tests/simulation/simulate.py --seed 4711 [--store sqlite] [--trace]     one story
    python tests/simulation/simulate.py --seeds 2000000 --workers 2                a campaign, from --first on
    python tests/simulation/simulate.py --seeds 1000 --store both                  both stores, which must agree
    python tests/simulation/simulate.py --seeds 2000 --mutant "checkpoint without its fence"
    python tests/simulation/simulate.py --hunt --store both         plant all faults; each must be found

Exit code 1 if a promise was broken or the stores disagree. A failing seed is told again with fewer kinds of faults and
fewer processes, as long as it still fails; what is left is printed, with the command that repeats it.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "mutants"))

from sim_faults import KINDS

from simulation import Story, simulate

#: Seeds per message of a worker.
_CHUNK = 50


class Sum(NamedTuple):
    """What some seeds came to."""

    counts: Counter[str]
    broken: list[tuple[int, str, str]]
    """Seed, store and the first thing that was broken."""


def told(seed: int, store: str) -> Iterator[Story]:
    """The story of a seed, on one store or on both."""
    for kind in ("model", "sqlite") if store == "both" else (store,):
        yield simulate(seed, store=kind)  # type: ignore[arg-type]


def several(first: int, last: int, store: str, most: int = 20, *, digests: bool = False) -> Sum:
    """The stories of these seeds, up to so many broken ones."""
    counts: Counter[str] = Counter()
    broken: list[tuple[int, str, str]] = []
    for seed in range(first, last):
        if len(broken) >= most:
            break
        stories = list(told(seed, store))
        if digests:
            print(seed, *(story.digest() for story in stories))
        for story in stories:
            counts.update(
                seeds=1, points=story.points, rounds=story.rounds, runs=story.runs, crashes=story.crashes,
                pauses=story.pauses, ambiguous=story.ambiguous, takeovers=story.takeovers, virtual=int(story.seconds),
            )  # fmt: skip
            counts.update({f"stale {verb}": many for verb, many in story.stale.items()})
            if story.broken:
                broken.append((seed, story.store, story.broken[0]))
        if len(stories) == 2 and (where := difference(*stories)):
            broken.append((seed, "both", where))
    return Sum(counts, broken)


def difference(one: Story, other: Story) -> str | None:
    """Where two stories of one seed part; None if they don't."""
    for first, second in zip(one.trace, other.trace, strict=False):
        if first != second:
            return f"the stores disagree: {first} on {one.store}, {second} on {other.store}"
    if len(one.trace) != len(other.trace):
        return f"the stores disagree: {len(one.trace)} lines on {one.store}, {len(other.trace)} on {other.store}"
    for first_rows, second_rows in zip(one.rows, other.rows, strict=True):
        for first, second in zip(first_rows, second_rows, strict=False):
            if first != second:
                return f"the stores disagree: {first} on {one.store}, {second} on {other.store}"
        if len(first_rows) != len(second_rows):
            return "the stores disagree: one has more rows"
    return None


def shrunk(seed: int, store: str) -> Story:
    """The same failure with as few kinds of faults, and processes, as it needs."""
    story = simulate(seed, store=store)  # type: ignore[arg-type]
    without: frozenset[str] = frozenset(KINDS) - story.kinds
    processes: int | None = None
    for kind in sorted(story.kinds):
        fewer = simulate(seed, store=store, without=without | {kind}, processes=processes)  # type: ignore[arg-type]
        if fewer.broken:
            story, without = fewer, without | {kind}
    for count in (1, 2):
        fewer = simulate(seed, store=store, without=without, processes=count)  # type: ignore[arg-type]
        if fewer.broken:
            story, processes = fewer, count
            break
    # Also those that the whole story had none of: with fewer processes it might.
    left = "".join(f" --without {kind}" for kind in sorted(without))
    story.command = f"--seed {seed} --store {store}{left}" + (f" --processes {processes}" if processes else "")
    return story


def _work(first: int, last: int, step: int, store: str, mutant: str | None, out: Any) -> None:
    _plant(mutant)
    warm_up(store)
    for begin in range(first, last, step):
        out.put(several(begin, min(begin + _CHUNK, last), store))
    out.put(None)


def warm_up(store: str) -> None:
    """What all stories share is made once, and never looked at by the garbage collector again."""
    for _ in told(0, store):
        pass
    gc.collect()
    gc.freeze()


def _plant(name: str | None) -> None:
    if name is not None:
        from sim_mutants import plant

        plant(name)


def campaign(first: int, seeds: int, store: str, workers: int, mutant: str | None, most: int) -> Sum:
    """Many seeds on several processes, with a line that says how far it is."""
    context = multiprocessing.get_context("spawn")
    out: Any = context.Queue()
    last = first + seeds
    children = [
        context.Process(
            target=_work, args=(first + number * _CHUNK, last, workers * _CHUNK, store, mutant, out), daemon=True
        )
        for number in range(workers)
    ]
    for child in children:
        child.start()
    counts: Counter[str] = Counter()
    broken: list[tuple[int, str, str]] = []
    began = said = time.monotonic()
    ended = 0
    while ended < workers and len(broken) < most:
        part = out.get(timeout=300)
        if part is None:
            ended += 1
            continue
        counts.update(part.counts)
        broken += part.broken
        now = time.monotonic()
        if now - said > 5:
            said = now
            print(
                f"{counts['seeds']} stories, {counts['seeds'] / (now - began):.0f}/s, {len(broken)} broken", flush=True
            )
    for child in children:
        child.terminate()
        child.join()
    counts["seconds"] = round(time.monotonic() - began)
    return Sum(counts, sorted(broken))


def _hunt(store: str | None, only: str | None, seeds: int | None) -> int:
    """A line for each planted fault; 1 if one was not found. With a number of seeds: in how many of them."""
    from sim_mutants import FOUND, TWINS, hunt

    survivors = 0
    for name, (hint, most) in FOUND.items():
        if only in (None, name):
            # What is in a statement takes effect on SQLite; on the model it has a twin.
            where = "sqlite" if name in TWINS else "model"
            for kind in ("model", "sqlite") if store == "both" else (store or where,):
                found, of, words = hunt(
                    name, kind, range(seeds) if seeds else (hint, *range(most)), all=seeds is not None
                )
                survivors += not found
                print(f"{name} · {kind} · {found} of {of} · {words[:100] or 'NOT FOUND'}", flush=True)
    print(f"{survivors} not found")
    return 1 if survivors else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Tell simulated stories, and look for broken promises.")
    parser.add_argument("--seed", type=int, help="tell this one")
    parser.add_argument("--seeds", type=int, help="tell so many")
    parser.add_argument("--first", type=int, default=0, help="the first seed of a campaign")
    parser.add_argument("--store", choices=("model", "sqlite", "both"), help="default: model")
    parser.add_argument("--workers", type=int, default=1, help="processes that tell them")
    parser.add_argument("--most", type=int, default=20, help="stop after so many broken ones")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--without", action="append", default=[], choices=KINDS, help="leave out this kind of faults")
    parser.add_argument("--processes", type=int, help="another number of simulated processes")
    parser.add_argument("--here", action="store_true", help="tell a campaign in this very process")
    parser.add_argument("--digests", action="store_true", help="print a digest of each story (with --here)")
    parser.add_argument("--hunt", action="store_true", help="plant one fault after the other; each must be found")
    parser.add_argument("--mutant", help="with this planted fault (see tests/mutants)")
    given = parser.parse_args()
    if given.hunt:
        return _hunt(given.store, given.mutant, given.seeds)
    given.store = given.store or "model"
    if given.seed is not None:
        _plant(given.mutant)
        bad = False
        stories = []
        for kind in ("model", "sqlite") if given.store == "both" else (given.store,):
            story = simulate(given.seed, store=kind, without=frozenset(given.without), processes=given.processes)
            stories.append(story)
            if given.trace:
                print(*story.lines(), sep="\n")
            print(f"{story.store}: {story.points} points, {story.seconds:.1f} virtual seconds, digest {story.digest()}")
            if story.broken:
                bad = True
                print(story.text())
        if len(stories) == 2 and (where := difference(*stories)):
            bad = True
            print(where)
        return 1 if bad else 0
    if not given.seeds:
        parser.error("give --seed or --seeds")
    if given.here:
        _plant(given.mutant)
        warm_up(given.store)
        found = several(given.first, given.first + given.seeds, given.store, given.most, digests=given.digests)
    else:
        found = campaign(given.first, given.seeds, given.store, given.workers, given.mutant, given.most)
    print(", ".join(f"{many} {what}" for what, many in found.counts.items()))
    print(
        f"{len(found.broken)} broken"
        + "".join(f"\n  {seed} on {store}: {what[:300]}" for seed, store, what in found.broken)
    )
    if found.broken and (first := next((one for one in found.broken if one[1] != "both"), None)):
        if not given.here:
            _plant(given.mutant)
        story = shrunk(first[0], first[1])
        print("", *story.lines(), "", story.text(), sep="\n")
    return 1 if found.broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
