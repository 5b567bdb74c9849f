"""Which fault comes when: all of it follows from the seed, and nothing from a clock.

A process has lives; each ends by a kill (or, now and then, in order). Where it is struck before that, and where it
ends, is a point that it comes to by itself, or a moment: after so many more events in the world, of whomever.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from storm_wire import Fault

#: Statements of a worker's life, and up to which use of them a fault may wait. Some come a hundred times as often.
WORKER_POINTS = {
    "begin": 150, "commit": 150, "save_steps": 100, "finish": 60, "claim": 60, "save_logs": 100, "save_progress": 100,
    "renew_leases": 8, "expire": 12, "save_attempts": 15, "first_steps": 8, "move_on": 4, "leased_of_jobs": 20,
}  # fmt: skip
#: What has to do with waits and trees: statements, and the commits of rounds that hold such a verb.
TREE_POINTS = {
    "save_waits": 25, "has_tree": 20, "insert_runs": 15, "drop_waits": 20, "wake": 30, "take_signals": 10,
    "taken_signals": 10, "cancel_below": 3, "settle_trees": 3, "doomed": 40, "delete_waits": 12,
    "commit with save_waits": 25, "commit with take_signals": 10, "commit with cancel_below": 3,
    "commit with finish": 60,
}  # fmt: skip
CLIENT_TREE_POINTS = {
    "send_signals": 10, "sent_signals": 10, "wake": 8, "commit with send_signals": 10, "commit with cancel": 8,
}  # fmt: skip
CLIENT_POINTS = {
    "begin": 120, "commit": 120, "insert_runs": 80, "insert_labels": 40, "cancel": 20, "find_triggered": 8,
    "delete_runs": 4, "delete_steps": 4, "batch": 8, "end_batch": 6, "bring_forward": 20,
}  # fmt: skip
#: Rounds that hold what only the holder may write, and up to which of them a stop may wait.
WAITING_ROUNDS = {
    "begin with save_steps": 60, "begin with finish": 40, "begin with renew_leases": 6, "begin with save_progress": 60,
    "begin with save_logs": 60, "begin with save_waits": 15, "begin with take_signals": 6,
}  # fmt: skip
INSIDE = {"save_steps": 60, "finish": 40, "commit": 80, "claim": 40}
#: What several writers do besides, on a server.
SERVER_POINTS = {"lock_runs": 120, "lock_keys": 40, "claim_keyed": 20, "keys_of": 40}
SERVER_INSIDE = {**INSIDE, "lock_runs": 80, "save_logs": 60, "save_progress": 60}
#: Events in the world between two restarts of the server, at least and at most.
UP = (1_200, 4_500)


@dataclass
class Life:
    """What happens to a process from its start to its end."""

    faults: list[Fault] = field(default_factory=list)
    """It strikes itself at these points."""
    stop_after: int | None = None
    """It is stopped from outside after so many events in the world."""
    end_after: int = 0
    """If it still lives after so many events, it is ended from outside."""
    in_order: bool = False
    """Its end is SIGTERM, not SIGKILL."""
    stopped_for: float = 2.0
    """Leases, where nobody can take over what it holds: it has stopped with the right to write."""

    def __str__(self) -> str:
        parts = [f"{phase} {point}" for point, phase in self.faults]
        parts += [f"stopped after {self.stop_after} events"] if self.stop_after is not None else []
        return ", ".join([*parts, f"{'stop' if self.in_order else 'kill'} after {self.end_after} events"])


class Restart(NamedTuple):
    """An end of the server, and its beginning."""

    after: int
    """Events in the world, counted from the restart before."""
    how: Literal["fast", "immediate"]
    down: float
    """Leases until it is started again."""


def restarts(seed: int, up: tuple[int, int] = UP) -> Iterator[Restart]:
    """Of the server, which is `up` for so many events: in order and at once by turns, without an end."""
    chance = random.Random(f"{seed} server")
    ways: tuple[Literal["fast", "immediate"], ...] = ("immediate", "fast")
    for number in itertools.count(seed):
        yield Restart(chance.randint(*up), ways[number % 2], chance.choice((0.0, chance.uniform(0.0, 1.6))))


def life_of_worker(seed: int, number: int, life: int, *, server: bool = False) -> Life:
    chance = random.Random(f"{seed} worker {number} {life}")
    made = Life(end_after=chance.randint(600, 2500), stopped_for=chance.uniform(1.3, 2.2))
    for _ in range(chance.choice((0, 1, 1, 2))):
        made.faults.append((f"commit#{chance.randint(3, 120)}", "unanswered"))
    if chance.random() < 0.4:
        kind = chance.choice(("save_waits", "take_signals", "finish", "cancel_below"))
        made.faults.append(
            (f"commit with {kind}#{chance.randint(1, TREE_POINTS[f'commit with {kind}'])}", "unanswered")
        )
    what = chance.random()
    if what < 0.45:
        # A stop needs a life that is long enough to be stopped, and to go on after it.
        made.end_after *= 3
        which = chance.random()
        if which < (0.5 if server else 0.7):
            rounds = [*WAITING_ROUNDS]
            kind = rounds[(number + life) % len(rounds)]
            made.faults.append((f"{kind}#{chance.randint(2, WAITING_ROUNDS[kind])}", "paused"))
        elif which < 0.85:
            made.faults.append((_point(chance, SERVER_INSIDE if server else INSIDE), "paused"))
        else:
            made.stop_after = chance.randint(200, 900)
    elif what < 0.85:
        points = {**WORKER_POINTS, **SERVER_POINTS} if server else WORKER_POINTS
        if chance.random() < 0.6:
            points = TREE_POINTS
        made.faults.append((_point(chance, points), chance.choice(("before", "after"))))
    elif what < 0.93:
        made.in_order = True
    return made


def life_of_client(seed: int, number: int, life: int, *, server: bool = False) -> Life:
    chance = random.Random(f"{seed} client {number} {life}")
    made = Life(end_after=chance.randint(3000, 9000))
    for _ in range(chance.randint(1, 3)):
        made.faults.append((f"commit#{chance.randint(2, 150)}", "unanswered"))
    if chance.random() < 0.6:
        points = {**CLIENT_POINTS, **SERVER_POINTS} if server else CLIENT_POINTS
        if chance.random() < 0.4:
            points = CLIENT_TREE_POINTS
        made.faults.append((_point(chance, points), chance.choice(("before", "after"))))
    return made


def _point(chance: random.Random, points: dict[str, int]) -> str:
    name = chance.choice([*points])
    return f"{name}#{chance.randint(1, points[name])}"
