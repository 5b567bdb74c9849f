"""What `make bench` measures: the works and their sizes, the rows of the table, and what we want to reach."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

#: Who takes part. `again` is the same code as `holdfast`: how far these two differ is how much of a ratio is noise.
OURS, AGAIN, LIMIT = "holdfast", "again", "limit"
DBOS, DBOS_WAL, PROCRASTINATE = "dbos", "dbos-wal", "procrastinate"
NAMES = {
    OURS: "Holdfast",
    AGAIN: "Holdfast, again",
    LIMIT: "bare loop",
    DBOS: "DBOS",
    DBOS_WAL: "DBOS, WAL+FULL",
    PROCRASTINATE: "Procrastinate",
}
PEERS = (DBOS, DBOS_WAL, PROCRASTINATE)
#: Who takes part, by database.
ARMS = {
    "sqlite": (OURS, AGAIN, LIMIT, DBOS, DBOS_WAL),
    "postgres": (OURS, AGAIN, LIMIT, DBOS, PROCRASTINATE),
    "mariadb": (OURS, AGAIN, LIMIT),
}

#: What a measurement gives, by the name of the figure.
Figures = dict[str, float]
#: By who, then by the work's name: the figures of each round, None where there are none.
Samples = dict[str, dict[str, list[Figures | None]]]


@dataclass(frozen=True)
class Work:
    """One kind of measurement. A call is the name of a function of engine.py, limit.py, peer.py, and its sizes."""

    name: str
    call: str | None
    """Of Holdfast, and of the bare loop."""
    theirs: str | None
    """Of the others: smaller, because it takes longer and their rates don't depend on the size."""
    quick: str | None = None
    quick_theirs: str | None = None
    arms: tuple[str, ...] = (OURS, AGAIN, LIMIT, DBOS, DBOS_WAL)
    rounds: int = 99
    """At most: for those that take long and hardly vary."""

    def size(self, who: str, quick: bool) -> str | None:
        """What to call for this contestant, if anything."""
        if who not in self.arms:
            return None
        if who in PEERS:
            return (self.quick_theirs or self.theirs) if quick else self.theirs
        return (self.quick or self.call) if quick else self.call


NO_LIMIT = (OURS, AGAIN, DBOS, DBOS_WAL)
ALONE = (OURS, AGAIN)
#: Growth is a promise about ourselves; filling a peer's tables with so much takes longer than all the rest.
NO_PEER = (OURS, AGAIN, LIMIT)

#: What Procrastinate can do, too.
ALL = (OURS, AGAIN, LIMIT, DBOS, DBOS_WAL, PROCRASTINATE)

#: Those of a group are measured side by side, in random order, because they are compared with each other.
GROUPS: list[list[Work]] = [
    [Work("triggers", "triggers 3000", "triggers 600", "triggers 1000", "triggers 300", arms=ALL)],
    [
        Work(
            "triggers_together",
            "triggers_together 20000",
            "triggers_together 1500",
            "triggers_together 5000",
            "triggers_together 500",
            arms=ALL,
        )
    ],
    [
        Work("drain", "drain 10000", "drain 1200", "drain 10000", "drain 500", arms=ALL),
        Work("grown_drain", "drain 10000 10000 200000", None, arms=NO_PEER),
    ],
    [
        Work("shallow", "drain 5000 5000", "drain 800 800", "", "drain 400 400"),
        Work("deep", "drain 5000 20000", None, arms=NO_PEER),
        Work("busy_drain_200", "busy_drain 5000 200", None, "busy_drain 2000 200", arms=ALONE),
        Work("busy_drain_1000", "busy_drain 5000 1000", None, "busy_drain 2000 1000", arms=ALONE),
    ],
    [
        Work("checkpoints", "checkpoints 1000 10", "checkpoints 100 10", "", "checkpoints 50 10"),
        Work("busy_checkpoints_200", "busy_checkpoints 500 10 200", None, "busy_checkpoints 200 10 200", arms=ALONE),
        Work("busy_checkpoints_1000", "busy_checkpoints 500 10 1000", None, "busy_checkpoints 200 10 1000", arms=ALONE),
    ],
    [
        Work("latency", "latency 200", "latency 100", "latency 60", "latency 30", arms=ALL),
        Work("grown_latency", "latency 200 200000", None, "latency 60 200000", arms=NO_PEER),
    ],
    [Work("apart", "apart 100", "apart 60", "apart 40", "apart 30", arms=NO_LIMIT)],
    [Work("family", "family 1000", "family 1000", "", "family 200")],
    [Work("fan_out", "fan_out 1000", "fan_out 1000", "", "fan_out 200", arms=NO_LIMIT)],
    [Work("chain", "chain 100", None, arms=ALONE)],
    [Work("sleepers", "sleepers 10000", None, "sleepers 500", arms=(OURS,), rounds=1)],
    [Work("tree", "tree 100 1000", None, "tree 10 200", arms=(OURS,), rounds=1)],
    [
        Work(f"workers_{count}", f"workers 20000 {count}", f"workers 1000 {count}", f"workers 5000 {count}",
             f"workers 400 {count}", arms=(OURS, DBOS_WAL))
        for count in (1, 2, 4)
    ],
    [
        Work("idle", "idle 10", "idle 10", "idle 4", "idle 3", arms=NO_LIMIT, rounds=1),
        Work("idle_at_1s", None, "idle 10 1000", None, "idle 3 1000", arms=(DBOS_WAL,), rounds=1),
    ],
]  # fmt: skip
#: On servers: what the network, telling others, the fence and much in the tables cost. Beside what it is compared with.
FAR = {
    "drain": Work("far_drain", "far_drain 5000", None, "far_drain 3000", arms=NO_PEER),
    "checkpoints": Work("far_checkpoints", "far_checkpoints 500 10", None, "far_checkpoints 200 10", arms=NO_PEER),
    "latency": Work("far_latency", "far_latency 100", None, "far_latency 30", arms=NO_PEER),
}
ON_SERVERS = [
    [Work("fence", "fence 100 300", None, "fence 100 100", arms=(OURS,), rounds=1)],
    [
        Work("claims", "claims 100000 500000 100", None, "claims 20000 50000 50", arms=(OURS,), rounds=1),
        Work("few_claims", "claims 2000 0 100", None, "claims 2000 0 50", arms=(OURS,), rounds=1),
    ],
]
SILENT = {
    "drain": Work("silent_drain", "silent_drain 10000", None, arms=ALONE),
    "workers_2": Work("silent_workers_2", "silent_workers 20000 2", None, "silent_workers 5000 2", arms=(OURS,)),
}
WORKS = {work.name: work for group in [*GROUPS, [*FAR.values()], *ON_SERVERS, [*SILENT.values()]] for work in group}


def groups(on: str) -> list[list[Work]]:
    """What is measured on this database."""
    if on == "sqlite":
        return GROUPS
    beside = [FAR, SILENT] if on == "postgres" else [FAR]
    there = [[*group, *[more[one.name] for one in group for more in beside if one.name in more]] for group in GROUPS]
    # There DBOS has one mode.
    return [
        [replace(one, arms=tuple(DBOS if who == DBOS_WAL else who for who in one.arms)) for one in group]
        for group in [*there, *ON_SERVERS]
    ]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    title: str
    work: str
    figure: str = "rate"
    digits: int = 0
    less: bool = False
    """Less is better."""


ROWS = [
    Row("trigger, 1 caller, per s", "triggers"),
    Row("trigger, 100 callers, per s", "triggers_together"),
    Row("drain no-op runs, per s", "drain"),
    Row("  CPU per run, µs", "drain", "cpu", 0, True),
    Row("  most memory, MB", "drain", "memory", 0, True),
    Row("  beside 200,000 finished", "grown_drain"),
    Row("  shallow queue", "shallow"),
    Row("  20,000 pending", "deep"),
    Row("  loop burns 0.2 ms slices", "busy_drain_200"),
    Row("  loop burns 1 ms slices", "busy_drain_1000"),
    Row("checkpoints, steps per s", "checkpoints"),
    Row("  CPU per step, µs", "checkpoints", "cpu", 0, True),
    Row("  loop burns 0.2 ms slices", "busy_checkpoints_200"),
    Row("  loop burns 1 ms slices", "busy_checkpoints_1000"),
    Row("trigger to done, p50 ms", "latency", "p50", 2, True),
    Row("  p99 ms", "latency", "p99", 2, True),
    Row("  DBOS without its queue, p50 ms", "latency", "direct_p50", 2, True),
    Row("  beside 200,000 finished", "grown_latency", "p50", 2, True),
    Row("  worker elsewhere, p50 ms", "apart", "p50", 2, True),
    Row("parent of 1,000 children, per s", "family"),
    Row("a run gathers 1,000 below it, per s", "fan_out"),
    Row("  DBOS: enqueued", "fan_out", "queued"),
    Row("  DBOS: started", "fan_out", "started"),
    Row("a chain of calls, ms of each", "chain", "link", 2, True),
    Row("10,000 sleepers: MB more than none", "sleepers", "memory", 1, True),
    Row("  idle worker, % of a core", "sleepers", "percent", 2, True),
    Row("  beside none, % of a core", "sleepers", "none_percent", 2, True),
    Row("  late, p50 ms", "sleepers", "p50", 1, True),
    Row("  late, p99 ms", "sleepers", "p99", 1, True),
    *[
        row
        for phase, done in (("quiet", ""), ("build", "built"), ("cancel", "cancelled"), ("purge", "purged"))
        for row in (
            *([Row(f"a tree of 100,000 {done}, s", "tree", f"{phase}_s", 1, True)] if done else []),
            Row(f"{'  ' if done else 'beside no tree, '}a run of others begins, p99 ms", "tree", f"{phase}_here_p99",
                1, True),
            Row("  the same, in another process", "tree", f"{phase}_away_p99", 1, True),
            *([Row("  CPU of a transaction, p99 ms", "tree", f"{phase}_round_p99", 1, True)] if done else []),
        )
    ],
    Row("1 worker process, runs per s", "workers_1"),
    Row("2 worker processes", "workers_2"),
    Row("4 worker processes", "workers_4"),
    Row("idle worker, % of a core", "idle", "percent", 2, True),
    Row("  DBOS polling each second", "idle_at_1s", "percent", 2, True),
    Row("a network of 1 ms: drain", "far_drain"),
    Row("  steps", "far_checkpoints"),
    Row("  trigger to done, p50 ms", "far_latency", "p50", 2, True),
    Row("  the network, there and back, ms", "far_drain", "round_trip", 2, True),
    Row("others are told nothing: drain", "silent_drain"),
    Row("  2 worker processes", "silent_workers_2"),
    Row("fence: 1 checkpoint, times without", "fence", "one", 2, True),
    Row("  100 checkpoints, times without", "fence", "together", 2, True),
    *[
        Row(f"claim of 10{among}{title}, ms of server", work, shape, 2, True)
        for work, among in (("claims", ", much there"), ("few_claims", ", little there"))
        for shape, title in (
            ("plain", ""), ("keys_10", ": 10 keys"), ("keys_10000", ": 10,000 keys"),
            ("held_10", ": 10 held"), ("held_10000", ": 10,000 held"),
        )
    ],
]  # fmt: skip


def values(samples: Samples, who: str, work: str, figure: str) -> dict[int, float]:
    """What was measured, by round."""
    rounds = samples.get(who, {}).get(work, [])
    return {number: found[figure] for number, found in enumerate(rounds) if found and figure in found}


def ratios(samples: Samples, row: Row, mine: str, theirs: str) -> list[float]:
    """How many times better one is than the other, pair by pair of a round."""
    ours, others = (values(samples, who, row.work, row.figure) for who in (mine, theirs))
    pairs = [(ours[number], others[number]) for number in sorted(ours) if number in others]
    return [(b / a if row.less else a / b) for a, b in pairs if a and b]


def better_peer(samples: Samples, row: Row) -> str | None:
    """Which mode of DBOS does better at this."""
    medians = {who: statistics.median(found) for who in (DBOS, DBOS_WAL)
               if (found := [*values(samples, who, row.work, row.figure).values()])}  # fmt: skip
    return (min if row.less else max)(medians, key=lambda who: medians[who]) if medians else None


@dataclass(frozen=True)
class Target:
    """What we want to reach on two cores."""

    title: str
    wanted: float
    found: Callable[[Samples], list[float]]
    at_most: bool = False
    digits: int = 2

    def reached(self, found: list[float]) -> bool:
        """Whether the median does."""
        middle = statistics.median(found)
        return middle <= self.wanted if self.at_most else middle >= self.wanted


def _absolute(work: str, figure: str = "rate") -> Callable[[Samples], list[float]]:
    return lambda samples: [value for who in (OURS, AGAIN) for value in values(samples, who, work, figure).values()]


def _against(theirs: str, work: str) -> Callable[[Samples], list[float]]:
    row = Row("", work)

    def found(samples: Samples) -> list[float]:
        other = better_peer(samples, row) if theirs == DBOS else theirs
        return ratios(samples, row, OURS, other) if other else []

    return found


def _within(work: str, base: str, figure: str = "rate") -> Callable[[Samples], list[float]]:
    """Against another of our own works, of the same round."""

    def found(samples: Samples) -> list[float]:
        both = [(values(samples, who, work, figure), values(samples, who, base, figure)) for who in (OURS, AGAIN)]
        pairs = [(mine[number], bases[number]) for mine, bases in both for number in mine if number in bases]
        return [(a / b if figure == "rate" else b / a) for a, b in pairs]

    return found


def _times(work: str, base: str, figure: str = "rate") -> Callable[[Samples], list[float]]:
    """How many times worse than another of our own works, of the same round."""
    better = _within(work, base, figure)
    return lambda samples: [1 / part for part in better(samples)]


#: Of runs below runs, wherever.
TREES = [
    Target("gather 1,000, times the better way of DBOS", 10, _against(DBOS, "fan_out"), digits=1),
    Target("10,000 sleepers, idle, % of a core", 1, _absolute("sleepers", "percent"), at_most=True),
    *[
        Target(f"tree {done}, a run begins {there}, p99 ms", 50, _absolute("tree", f"{phase}_{where}_p99"), True, 1)
        for phase, done in (("build", "built"), ("cancel", "cancelled"), ("purge", "purged"))
        for where, there in (("here", "beside"), ("away", "elsewhere"))
    ],
]

TARGETS = [
    Target("drain, times the better DBOS", 10, _against(DBOS, "drain"), digits=1),
    Target("drain, part of the bare loop", 0.25, _against(LIMIT, "drain")),
    Target("checkpoints, times the better DBOS", 20, _against(DBOS, "checkpoints"), digits=1),
    Target("trigger, 1 caller, per s", 2_500, _absolute("triggers"), digits=0),
    Target("trigger, 100 callers, per s", 15_000, _absolute("triggers_together"), digits=0),
    Target("trigger to done, p50 ms", 2.5, _absolute("latency", "p50"), at_most=True),
    Target("drain beside 200,000 finished, of alone", 0.9, _within("grown_drain", "drain")),
    Target("trigger to done beside 200,000, of alone", 0.9, _within("grown_latency", "latency", "p50")),
    Target("drain with 20,000 pending, of shallow", 0.9, _within("deep", "shallow")),
    Target("10,000 pending drained, most memory, MB", 80, _absolute("drain", "memory"), at_most=True, digits=0),
    Target("drain, loop burns 0.2 ms slices, of quiet", 0.1, _within("busy_drain_200", "shallow")),
    Target("drain, loop burns 1 ms slices, of quiet", 0.1, _within("busy_drain_1000", "shallow")),
    Target("steps, loop burns 0.2 ms slices, of quiet", 0.1, _within("busy_checkpoints_200", "checkpoints")),
    Target("steps, loop burns 1 ms slices, of quiet", 0.1, _within("busy_checkpoints_1000", "checkpoints")),
    Target("idle worker, % of a core", 1, _absolute("idle", "percent"), at_most=True),
    *TREES,
]

#: What we want on servers.
TARGETS_POSTGRES = [
    Target("drain, times DBOS", 5, _against(DBOS, "drain"), digits=1),
    Target("checkpoints, times DBOS", 20, _against(DBOS, "checkpoints"), digits=1),
    Target("trigger, 100 callers, times DBOS", 8, _against(DBOS, "triggers_together"), digits=1),
    Target("trigger to done, p50 ms", 4, _absolute("latency", "p50"), at_most=True),
    Target("  worker in another process, p50 ms", 10, _absolute("apart", "p50"), at_most=True),
    Target("drain over a network of 1 ms, times longer", 2, _times("far_drain", "drain"), at_most=True),
    Target("  steps, times longer", 2, _times("far_checkpoints", "checkpoints"), at_most=True),
    Target("  trigger to done, times longer", 2, _times("far_latency", "latency", "p50"), at_most=True),
    Target("2 worker processes, of 1", 1, _within("workers_2", "workers_1")),
    Target("4 worker processes, of 1", 1, _within("workers_4", "workers_1")),
    *[
        Target(f"claim among 500,000 and 100,000{title}, times few", 2, _times("claims", "few_claims", shape), True)
        for shape, title in (("plain", ""), ("keys_10", ", 10 keys"), ("keys_10000", ", 10,000 keys"),
                             ("held_10", ", 10 held"), ("held_10000", ", 10,000 held"))
    ],
    Target("drain beside 200,000 finished, of alone", 0.9, _within("grown_drain", "drain")),
    Target("drain with 20,000 pending, of shallow", 0.9, _within("deep", "shallow")),
    Target("drain, part of the bare loop", 0.25, _against(LIMIT, "drain")),
    Target("drain telling others, of not", 0.9, _within("drain", "silent_drain")),
    Target("  2 worker processes, telling, of not", 0.9, _within("workers_2", "silent_workers_2")),
    Target("drain, loop burns 0.2 ms slices, of quiet", 0.1, _within("busy_drain_200", "shallow")),
    Target("idle worker, % of a core", 1, _absolute("idle", "percent"), at_most=True),
    *TREES,
]  # fmt: skip
#: MariaDB has no peers, and tells nobody.
TARGETS_MARIADB = [target for target in TARGETS_POSTGRES if "DBOS" not in target.title and "tell" not in target.title]
ON_TARGETS = {"sqlite": TARGETS, "postgres": TARGETS_POSTGRES, "mariadb": TARGETS_MARIADB}
