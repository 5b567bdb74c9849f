"""How an app is doing in this process, in figures: what `app.stats()` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..commit.tally import Spread

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True, slots=True)
class VerbStats:
    """What one verb of the database costs, in seconds. `in_round`: its statements, for all tickets of a round together;
    `to_answer`: from joining the line until it was durable.
    """

    count: int
    """How many tickets asked for it."""
    in_round: Spread
    to_answer: Spread


@dataclass(frozen=True, slots=True)
class Stats:
    """This process's part of an app, at one moment. Nothing is read from the database for it."""

    uptime: float
    """Seconds since the app was made, or started again."""
    running: tuple[str, ...]
    """The ids of the runs that are executed here."""
    verbs: dict[str, VerbStats]
    """By verb: `trigger`, `claim`, `save_steps`, `finish`, …; those that were never asked for are left out."""
    rounds: int
    """How many transactions were committed."""
    round_sizes: Spread
    """Tickets per round."""
    line: int
    """Tickets that wait, or are being written, now."""
    longest_line: int
    """The most that there ever were."""
    dropped_events: int
    """Operational events that listeners were too slow for."""


def stats_of(engine: Engine) -> Stats:
    """The figures of an engine."""
    committer, worker = engine.committer, engine.worker
    return Stats(
        uptime=engine.clock.steady() - engine.opened_at,
        running=tuple(sorted(execution.row.id for execution in worker.executing)) if worker is not None else (),
        verbs={
            name: VerbStats(in_round.count, in_round, to_answer)
            for name, (in_round, to_answer) in committer.tally.verbs().items()
        },
        rounds=committer.tally.rounds,
        round_sizes=committer.tally.sizes,
        line=committer.backlog,
        longest_line=committer.longest,
        dropped_events=engine.hub.dropped,
    )
