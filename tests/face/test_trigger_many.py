"""`trigger_many`: one transaction, all or none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import databases
from holdfast import (
    ConflictError,
    Event,
    Holdfast,
    NotFoundError,
    PayloadTooLarge,
    Step,
    ValidationError,
    job,
)
from holdfast.testing import app_for_tests, drain
from house import House


@job
async def add(a: int, b: int = 1) -> int:
    return a + b


@job
def shout(text: str) -> str:
    return text.upper()


def _jobs(app: Holdfast) -> tuple[Any, Any]:
    return app.jobs.add, app.jobs.shout


@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
def test_the_runs_come_in_the_order_of_the_calls_whatever_their_jobs(inline: bool) -> None:
    with app_for_tests(add, shout, inline=inline, url=databases.fresh()) as app:
        plus, loud = _jobs(app)
        calls = [plus.bind(1), loud.bind("a"), plus.options(labels={"n": "3"}).bind(2, b=5)]
        runs = app.trigger_many(iter(calls)).wait()
        assert [run.job_name for run in runs] == ["add", "shout", "add"]
        assert [run.disposition for run in runs] == ["created"] * 3
        assert runs[2].labels == {"n": "3"}
        assert drain(app).wait() == 3
        assert [run.result().wait() for run in runs] == [2, "A", 7]


def test_many_runs_are_triggered_by_async_code() -> None:
    async def main() -> list[int]:
        async with Holdfast(databases.fresh()) as app:
            plus = app.register(add)
            runs = await app.trigger_many([plus.bind(n) for n in range(50)])
            return [await run.result() for run in runs]

    assert asyncio.run(main()) == list(range(1, 51))


def test_no_calls_are_no_runs() -> None:
    with app_for_tests(add, url=databases.fresh()) as app:
        assert app.trigger_many([]).wait() == []


def test_one_wrong_call_refuses_all_of_them_and_is_named() -> None:
    other = app_for_tests(shout, url=databases.fresh())
    with app_for_tests(add, max_input_bytes=40, url=databases.fresh()) as app, other:
        plus, loud = app.jobs.add, other.jobs.shout
        with pytest.raises(ValidationError, match=r"calls\[1\]: trigger_many: 7 is not a call"):
            app.trigger_many([plus.bind(1), 7])  # type: ignore[list-item]
        with pytest.raises(NotFoundError, match=r"calls\[1\]: "):
            app.trigger_many([plus.bind(1), loud.bind("x")])
        with pytest.raises(PayloadTooLarge, match=r"calls\[2\]: "):
            app.trigger_many([plus.bind(1), plus.bind(2), add_bound_elsewhere("9" * 50)])
        with pytest.raises(ValidationError, match="calls"):
            app.trigger_many(7)  # type: ignore[arg-type]
        assert app.get_runs().wait() == []


def add_bound_elsewhere(digits: str) -> Any:
    """A call whose input is longer than this app takes: made by the job without an app."""
    return add.bind(int(digits))


def test_a_conflict_of_one_undoes_all_and_nobody_else_of_the_round(house: House) -> None:
    with house.app(add, worker=False) as app:
        plus = app.jobs.add
        keyed = plus.options(concurrency_key="k")
        standing = keyed.trigger(0).wait()
        app._engine.committer.gate = gate = Gate()
        batch = app.trigger_many([plus.bind(1), keyed.bind(2), plus.bind(3)])
        beside, other = plus.trigger(4), app.trigger_many([plus.bind(5), plus.bind(6)])
        gate.open()
        with pytest.raises(ConflictError, match=r"calls\[1\]: .*concurrency key 'k'"):
            batch.wait()
        there = {standing.id, beside.wait().id, *(run.id for run in other.wait())}
        assert {run.id for run in app.get_runs().wait()} == there


class Gate:
    """Holds the line until it is opened."""

    def __init__(self) -> None:
        import threading

        self._event = threading.Event()

    def wait(self) -> None:
        self._event.wait(30)

    def open(self) -> None:
        self._event.set()


def test_within_a_batch_a_key_leads_to_the_run_of_the_same_batch() -> None:
    with app_for_tests(add, url=databases.fresh()) as app:
        same = app.jobs.add.options(idempotency_key="i")
        skip = app.jobs.add.options(concurrency_key="c", coalesce="skip")
        runs = app.trigger_many([same.bind(1), same.bind(2), skip.bind(3), skip.bind(4)]).wait()
        assert [run.disposition for run in runs] == ["created", "idempotent", "created", "coalesced"]
        assert (runs[0].id, runs[2].id) == (runs[1].id, runs[3].id)
        assert [run.input["a"] for run in runs] == [1, 1, 3, 3]


def test_listeners_hear_of_the_created_ones_in_order(house: House) -> None:
    told: list[Event] = []
    with house.app(add, worker=False) as app:
        app.on("run:trigger", told.append)
        same = app.jobs.add.options(idempotency_key="i")
        runs = app.trigger_many([app.jobs.add.bind(1), same.bind(2), same.bind(3), app.jobs.add.bind(4)]).wait()
    assert [(event.run_id, event.input["a"]) for event in told] == [
        (runs[0].id, 1),
        (runs[1].id, 2),
        (runs[3].id, 4),
    ]


def test_a_replay_of_the_run_that_triggered_them_triggers_none_of_them_again(house: House) -> None:
    @job
    async def parent(step: Step) -> list[str]:
        app = holder[0]
        runs = await app.trigger_many([app.jobs.add.bind(n) for n in range(3)])
        await step.run("after", int, 1)
        return [run.id for run in runs]

    holder: list[Holdfast] = []
    with app_for_tests(parent, add, url=house.url) as app:
        holder.append(app)
        run = app.jobs.parent.trigger().wait()
        app.process_one().wait()
        first = run.refresh().wait().output
        house.sql("update holdfast_runs set status = 'pending', completed_at = null where id = ?", run.id)
        drain(app).wait()
        assert run.refresh().wait().output == first
        assert len(app.get_runs(job="add").wait()) == 3


def test_a_batch_longer_than_the_line_is_written_in_one_transaction_of_few_statements(house: House) -> None:
    many = 60_000
    with house.app(add, worker=False) as app:
        call = app.jobs.add.bind(1)
        before = app._engine.committer.rounds
        runs = app.trigger_many([call] * many).wait()
        assert app._engine.committer.rounds == before + 1
        assert len({run.id for run in runs}) == many
    assert house.sql("select count(*) from holdfast_runs") == [(many,)]
