"""What waits for a reader of `/run/events` that is slow: so many bytes, however large the values are."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from asking import Asking
from holdfast import Step, job
from house import House, until

_LARGE, _LONG = 300_000, 20_000


@job
async def large(step: Step) -> None:
    for number in range(40):
        await step.run(f"step-{number}", lambda number=number: str(number % 10) * _LARGE)


@job
async def wordy(step: Step) -> None:
    for number in range(300):
        step.log.info(str(number % 10) * _LONG)


@pytest.mark.parametrize(
    ("work", "type", "all_of_them", "most"), [(large, "step:complete", 40, 20), (wordy, "log:write", 300, 150)]
)
def test_what_waits_for_a_slow_reader_is_bounded_in_bytes_and_told_in_order(
    work: Any, type: str, all_of_them: int, most: int, house: House
) -> None:
    async def main() -> None:
        async with house.app(work) as app:
            ask = Asking(app)
            run_id = await ask.trigger(work.name)
            await app.wait_for_run(run_id)
            async with ask.stream("/run/events", {"runId": run_id}) as stream:
                block = await stream.block()
                (subscription,) = app._engine.subscriptions.of(run_id)
                waited, found = 0, list[str]()
                while block is not None:
                    event = json.loads(block.partition("data: ")[2] or "{}")
                    if event.get("type") == type:
                        found.append(str(event.get("output") or event.get("message"))[:1])
                        if len(found) % 10 == 1:
                            await until(lambda: subscription._was_full or subscription._is_over)
                    waited = max(waited, len(subscription._unread))
                    block = await stream.block()
            assert found == [str(number % 10) for number in range(all_of_them)]
            assert 0 < waited <= most

    asyncio.run(main())
