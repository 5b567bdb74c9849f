"""Forgetting: runs that are older than anybody wants to know of, and outputs of steps that nothing will replay.

What is old is looked for by the reading thread, beside the line; only the deletion itself takes part in a round. It
goes in batches of bounded size, of a large tree a part at a time, and after each one the line is left to others for as
long as the batch has taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..commit.reply import Reply
from ..commit.ticket import Ticket
from ..store.base import MORE, Deleted, Old

if TYPE_CHECKING:
    from .engine import Engine

#: Runs that are found, and forgotten, together.
BATCH = 100


async def forget(
    engine: Engine,
    verb: Literal["delete", "drop_outputs"],
    old: Old,
    most: float = float("inf"),
    goes_on: Callable[[], bool] = lambda: True,
) -> int:
    """Do it to whatever is old, at most to so many runs; to how many it was done."""
    done = 0
    before: list[str] = []
    while done < most and goes_on():
        ids = left = await _found(engine, old._replace(limit=int(min(BATCH, most - done))))
        if not ids or ids == before:  # nothing left; or a store that gives again and again what it will not forget
            break
        before = ids
        while left:
            began = engine.clock.steady()
            answers = await _done(engine, verb, left)
            gone: list[bool] = [answer.accepted if isinstance(answer, Deleted) else answer for answer in answers]
            done += sum(gone)
            if verb == "delete":
                engine.hub.gone([run_id for run_id, accepted in zip(left, gone, strict=True) if accepted])
            left = [run_id for run_id, answer in zip(left, answers, strict=True) if is_part(answer)]
            await _pause(engine, engine.clock.steady() - began)
            # Asked after a part: what was looked for is not looked for in vain, however soon work comes again.
            if not goes_on():
                return done
    return done


def is_part(answer: Any) -> bool:
    """Whether this answer to a deletion says that there is more."""
    return isinstance(answer, Deleted) and answer.standing == MORE


async def _done(engine: Engine, verb: Literal["delete", "drop_outputs"], ids: Sequence[str]) -> list[Any]:
    tickets: list[Ticket[Any]] = [Ticket(verb, run_id, what=f"{verb} of {run_id}") for run_id in ids]
    engine.committer.join(*tickets, pass_always=True)
    for ticket in tickets:
        ticket._asked = True  # the error of one is enough
    return [await ticket for ticket in tickets]


async def _found(engine: Engine, old: Old) -> list[str]:
    found: Reply[list[str]] = Reply("find_old")
    engine.reader.ask(lambda connection: engine.store.find_old(connection, old), found)
    return await found


async def _pause(engine: Engine, seconds: float) -> None:
    over = asyncio.Event()
    timer = engine.clock.call_later(asyncio.get_running_loop(), seconds, over.set)
    try:
        await over.wait()
    finally:
        timer.cancel()
