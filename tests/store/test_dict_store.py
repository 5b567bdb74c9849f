"""A store over dictionaries, made with the adapters for authors of naive stores, keeps every promise of a store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from dict_store import DictStore

from holdfast import Holdfast, Step
from holdfast.model.run import RunStatus
from holdfast.store.base import Store
from holdfast.testing.clock import HandClock
from holdfast.testing.store import StoreContract


class TestDictStore(StoreContract):
    def make_store(self, clock: HandClock) -> Store:
        return DictStore(clock)

    def force_status(self, connection: Any, run_id: str, status: str) -> None:
        tables = self.store.tables(connection)  # type: ignore[attr-defined]
        ended = self.clock.now() if RunStatus(status).is_terminal else None
        tables.runs[run_id] = tables.runs[run_id]._replace(status=str(status), completed_at=ended)


def test_transactions_of_a_serialised_store_begin_one_after_the_other() -> None:
    store = DictStore(HandClock())
    store.migrate()
    first = store.begin(store.connect())
    order: list[str] = []
    asked = threading.Event()

    def second() -> None:
        asked.set()
        tx = store.begin(store.connect())
        order.append("second began")
        store.rollback(tx)

    thread = threading.Thread(target=second)
    thread.start()
    assert asked.wait(10)
    order.append("first ends")
    store.commit(first)
    thread.join(10)
    assert order == ["first ends", "second began"]


def test_a_transaction_that_could_not_begin_keeps_nobody_waiting() -> None:
    store = DictStore(HandClock())
    store.migrate()
    broken = object()
    with pytest.raises(AttributeError):
        store.begin(broken)  # type: ignore[arg-type]
    store.rollback(store.begin(store.connect()))


def test_a_transaction_that_is_rolled_back_twice_gives_its_turn_back_once() -> None:
    store = DictStore(HandClock())
    store.migrate()
    first = store.begin(store.connect())
    store.rollback(first)
    second = store.begin(store.connect())
    store.rollback(first)
    with pytest.raises(TimeoutError):
        _begin_within(0.2, store)
    store.commit(second)
    _begin_within(10, store)


def _begin_within(seconds: float, store: DictStore) -> None:
    begun = threading.Event()

    def begin() -> None:
        store.rollback(store.begin(store.connect()))
        begun.set()

    threading.Thread(target=begin, daemon=True).start()
    if not begun.wait(seconds):
        raise TimeoutError


@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
def test_an_app_works_on_it(inline: bool) -> None:
    app = Holdfast(DictStore(HandClock()), inline=inline)

    @app.job
    async def add(step: Step, a: int, b: int) -> int:
        await step.run("first", int, a)
        step.log.info("half-way")
        return await step.run("sum", sum, [a, b])

    with app:
        runs = [add.options(labels={"n": str(n)}, concurrency_key="one").trigger(n, 1) for n in range(1)]
        runs += [add.trigger(n, 1) for n in range(1, 30)]
        app.process_until_idle().wait()
        assert [reply.wait().result().wait() for reply in runs] == list(range(1, 31))
        (labelled,) = app.get_runs(labels={"n": "0"}).wait()
        assert [line.message for line in app.get_logs(labelled.id).wait()] == ["half-way"]


def test_the_store_of_the_example_is_a_hundred_lines_at_most() -> None:
    lines = (Path(__file__).parent / "dict_store.py").read_text().splitlines()
    assert len(lines) <= 100
