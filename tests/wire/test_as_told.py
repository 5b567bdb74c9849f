"""What is read over HTTP is not behind what its streams have told."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asking import PATIENCE, Asking
from holdfast import Step, job
from house import House, Stuck


@pytest.mark.only("sqlite", "one lock for all who write: while it is held, nothing is saved")
def test_progress_that_was_told_is_in_lists_before_it_is_saved(house: House, stuck: Stuck) -> None:
    here, may_tell, told = threading.Event(), threading.Event(), threading.Event()

    @job(name="tell")
    async def tell(step: Step) -> None:
        here.set()
        await asyncio.to_thread(may_tell.wait, PATIENCE)
        step.progress(1, 2, "half")
        told.set()
        await stuck.hang()

    async def main() -> None:
        async with house.app(tell) as app:
            ask = Asking(app)
            run_id = await ask.trigger("tell")
            async with ask.stream("/runs/subscribe") as stream:
                assert await asyncio.to_thread(here.wait, PATIENCE)
                with app._engine.committer.aside():  # nothing is saved meanwhile
                    may_tell.set()
                    assert await asyncio.to_thread(told.wait, PATIENCE)
                    progress = {"current": 1, "total": 2, "message": "half"}
                    assert (await stream.until("run:progress", run_id))["progress"] == progress
                    assert house.sql("select * from holdfast_progress") == []
                    listed = (await ask.get("/runs")).json
                    assert [(run["id"], run["progress"]) for run in listed] == [(run_id, progress)]
                    assert (await ask.get("/run", {"runId": run_id})).json["progress"] == progress
            stuck.let_go()
            await app.wait_for_run(run_id, timeout=PATIENCE)
            assert (await ask.get("/run", {"runId": run_id})).json["progress"] == progress

    asyncio.run(main())
