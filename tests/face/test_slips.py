"""What a newcomer forgets, and what the library says then."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import databases
from holdfast import DefinitionError, Holdfast, WouldDeadlock


def test_a_reply_that_was_not_awaited_says_so(tmp_path: Path) -> None:
    app = Holdfast(databases.url(tmp_path / "app.db"), worker=False)

    @app.job
    def add(a: int, b: int) -> int:
        return a + b

    with app:
        reply = add.trigger(1, 2)
        with pytest.raises(AttributeError, match=r"trigger of add: this is a reply\. `await` it, or call \.wait\(\)"):
            _ = reply.id
        assert reply.wait().id


def test_a_job_that_is_called_says_what_to_call() -> None:
    app = Holdfast(databases.fresh())

    @app.job
    def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(DefinitionError, match=r"Job 'add' is not called: use \.run"):
        add(1, 2)
    assert add.fn(1, 2) == 3


def test_a_step_without_its_annotation_is_told_which() -> None:
    app = Holdfast(databases.fresh())
    with pytest.raises(DefinitionError, match="write step: Step"):

        @app.job
        def forgotten(step, a: int) -> int:
            return a


def test_a_wait_in_a_loop_is_refused_by_the_name_of_what_was_asked(tmp_path: Path) -> None:
    app = Holdfast(databases.url(tmp_path / "app.db"), worker=False)

    @app.job
    def add(a: int, b: int) -> int:
        return a + b

    async def main() -> None:
        async with app:
            run = await add.trigger(1, 2)
            for asked, what in (
                (app.get_run(run.id), "get_run of "),
                (add.get_run(run.id), "get_run of "),
                (app.get_runs(), "get_runs: "),
                (run.refresh(), "refresh of "),
            ):
                with pytest.raises(WouldDeadlock, match=f"^{what}.*would block the event loop of this thread. Use"):
                    asked.wait()

    asyncio.run(main())
