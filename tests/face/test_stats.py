"""The figures of an app: what runs here, what each verb costs, how long the line is; bounded memory."""

from __future__ import annotations

import dataclasses
import threading

import pytest

import databases
from holdfast import Holdfast, Spread, Step
from holdfast.commit.tally import Tally
from holdfast.commit.ticket import Ticket
from house import PATIENCE, House


def test_a_fresh_app_has_figures_too() -> None:
    stats = Holdfast(databases.fresh()).stats()
    assert (stats.running, stats.verbs, stats.rounds, stats.line, stats.longest_line) == ((), {}, 0, 0, 0)
    assert stats.round_sizes == Spread(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert stats.uptime >= 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.line = 7  # type: ignore[misc]


def test_the_figures_say_what_runs_and_what_it_costs(house: House) -> None:
    app = house.app()
    may_go, is_there = threading.Event(), threading.Event()

    def gate() -> None:
        is_there.set()
        assert may_go.wait(PATIENCE)

    @app.job
    async def job(step: Step) -> None:
        await step.run("a", int)
        await step.run("gate", gate)

    with app:
        run = job.trigger().wait(PATIENCE)
        assert is_there.wait(PATIENCE)
        assert app.stats().running == (run.id,)
        may_go.set()
        run.wait(PATIENCE).wait(PATIENCE)
    stats = app.stats()  # who waits is answered before the run has left the worker
    assert stats.running == ()
    assert stats.verbs["trigger"].count == 1
    assert stats.verbs["save_steps"].count == 2
    assert stats.verbs["finish"].count == 1
    for verb in stats.verbs.values():
        for spread in (verb.in_round, verb.to_answer):
            assert 0 <= spread.min <= spread.p50 <= spread.p90 <= spread.p95 <= spread.max < PATIENCE
            assert spread.count == verb.count
        assert verb.in_round.min > 0
    # An answer takes at least what its verb took in the round, and the commit.
    assert stats.verbs["trigger"].to_answer.min >= stats.verbs["trigger"].in_round.min
    assert stats.rounds == stats.round_sizes.count > 3
    assert stats.longest_line >= stats.round_sizes.max >= 1
    assert stats.uptime > 0
    assert app.stats().line == 0


def test_inline_there_are_figures_too(house: House) -> None:
    app = house.app(inline=True)

    @app.job
    def job() -> None: ...

    app.init().wait()
    job.run().wait()
    assert app.stats().verbs["trigger"].count == 1
    app.stop().wait()


def test_a_million_samples_take_bounded_memory() -> None:
    tally = Tally()
    tickets = [Ticket("trigger", None) for _ in range(1000)]
    for ticket in tickets:
        ticket.joined_at = 1.0
    for n in range(3000):
        tally.round([("trigger", tickets, n / 1000)], 1000, 2.0 + n)
    in_round, to_answer = tally.verbs()["trigger"]
    assert (in_round.count, to_answer.count) == (3_000_000, 3_000_000)
    assert (in_round.min, in_round.p50, in_round.p90, in_round.p95, in_round.max) == (2.0, 2.499, 2.899, 2.949, 2.999)
    kept = tally._verbs["trigger"]
    assert len(kept.seconds) == len(kept.waits) == len(tally._sizes) == 1000
    assert tally.sizes == Spread(3000, 1000, 1000, 1000, 1000, 1000)
