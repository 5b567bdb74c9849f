"""Server-sent events: the stream of one run, and that of all runs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
from typing import Any

import pytest

from asking import Asking
from holdfast import Event, Holdfast, Step, job
from holdfast.commit.reply import Reply, answer
from holdfast.engine import feed
from holdfast.http.stream import Shared
from house import House, Stuck, until

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@job
async def counted(step: Step, rows: int) -> int:
    for row in range(rows):
        await step.run(f"row-{row}", lambda row=row: row)
    return rows


@job
async def failing(step: Step) -> None:
    await step.run("read", _read)


def _read() -> None:
    raise ValueError("no such file")


@job
async def talking(step: Step) -> None:
    step.log.debug("not for the wire")
    step.log.info("hello", lines="a\r\nb\u2028data: {}\n\nid: 5")
    step.log.warning("careful")
    step.progress(1)
    await step.run("loud", lambda: step.log.error("in a step"))


@job
async def nothing() -> None: ...


def is_subscribed(app: Holdfast, run_id: str) -> bool:
    """Whether somebody is told of the run who has read how it stood."""
    return any(one._trail.begun for one in app._engine.subscriptions.of(run_id))


# -- one run -------------------------------------------------------------------------------------------------------


def test_a_stream_has_these_headers(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            ask = Asking(app)
            run_id = await ask.trigger("nothing")
            async with ask.stream("/subscribe", {"runId": run_id}) as one, ask.stream("/runs/subscribe") as all_runs:
                for stream in (one, all_runs):
                    assert stream.headers["Content-Type"] == "text/event-stream"
                    assert stream.headers["Cache-Control"] == "no-cache"
                    assert stream.headers["Connection"] == "keep-alive"

    asyncio.run(main())


def test_a_run_is_followed_from_its_beginning_to_its_end(house: House) -> None:
    async def main() -> None:
        async with house.app(counted, worker=False) as app:
            ask = Asking(app)
            run_id = await ask.trigger("counted", {"rows": 2})
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                reading = asyncio.ensure_future(stream.rest())
                await until(lambda: is_subscribed(app, run_id))
                assert await app.process_one()
                events = await reading
            types = [event["type"] for event in events]
            assert types == [
                "run:leased", "step:start", "step:complete", "step:start", "step:complete", "run:complete",
            ]  # fmt: skip
            for event in events:
                assert (event["runId"], event["jobName"], event["labels"]) == (run_id, "counted", {})
                assert ISO.fullmatch(event["timestamp"])
            sequences = [event["sequence"] for event in events]
            assert sequences == sorted(set(sequences))
            assert {"input", "leaseOwner", "leaseExpiresAt"} <= set(events[0])
            assert ISO.fullmatch(events[0]["leaseExpiresAt"])
            assert (events[2]["stepName"], events[2]["stepIndex"], events[2]["output"]) == ("row-0", 0, 0)
            assert isinstance(events[2]["duration"], int)
            assert events[-1]["output"] == 2
            assert isinstance(events[-1]["duration"], int)

    asyncio.run(main())


def test_every_event_is_one_data_line_and_before_the_last_a_browser_is_told_to_come_back_late(house: House) -> None:
    async def main() -> None:
        async with house.app(talking) as app:
            ask = Asking(app)
            run_id = await ask.trigger("talking")
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                await stream.rest()
            blocks = stream.text.split("\n\n")
            assert blocks.pop() == ""
            assert all(re.fullmatch(r"data: \{.*\}|retry: \d+|: .*", block) for block in blocks)
            assert re.fullmatch(r"retry: \d{8,}", blocks[-2])
            assert "run:complete" in blocks[-1]
            assert stream.text.count("retry:") == 1

    asyncio.run(main())


def test_log_lines_are_told_without_debug_and_warnings_are_called_warn(house: House) -> None:
    async def main() -> None:
        async with house.app(talking, worker=False) as app:
            ask = Asking(app)
            run_id = await ask.trigger("talking")
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                reading = asyncio.ensure_future(stream.rest())
                await until(lambda: is_subscribed(app, run_id))
                await app.process_one()
                events = await reading
            lines = [event for event in events if event["type"] == "log:write"]
            assert [(line["level"], line["message"], line["stepName"]) for line in lines] == [
                ("info", "hello", None), ("warn", "careful", None), ("error", "in a step", "loud"),
            ]  # fmt: skip
            assert lines[0]["data"] == {"lines": "a\r\nb\u2028data: {}\n\nid: 5"}, "nothing in it breaks the framing"
            assert "data" not in lines[1], "what is absent is left out"

    asyncio.run(main())


def test_an_output_of_nothing_is_left_out_of_a_live_event_and_null_in_a_later_one(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            ask = Asking(app)
            run_id = await ask.trigger("nothing")
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                reading = asyncio.ensure_future(stream.rest())
                await until(lambda: is_subscribed(app, run_id))
                await app.process_one()
                assert "output" not in (await reading)[-1]
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                (event,) = await stream.rest()
                assert (event["type"], event["output"], event["sequence"]) == ("run:complete", None, 0)

    asyncio.run(main())


def test_a_failure_names_the_step_that_failed_while_it_is_live(house: House) -> None:
    async def main() -> None:
        async with house.app(failing, worker=False) as app:
            ask = Asking(app)
            run_id = await ask.trigger("failing")
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                reading = asyncio.ensure_future(stream.rest())
                await until(lambda: is_subscribed(app, run_id))
                await app.process_one()
                *_, step, end = await reading
            assert (step["type"], step["stepName"]) == ("step:fail", "read")
            assert "no such file" in step["error"]
            assert (end["type"], end["error"], end["failedStepName"]) == ("run:fail", "no such file", "read")
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                (event,) = await stream.rest()
                assert (event["type"], event["failedStepName"], event["sequence"]) == ("run:fail", "", 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "type"), [("completed", "run:complete"), ("failed", "run:fail"), ("cancelled", "run:cancel")]
)
def test_who_comes_after_the_end_gets_one_event_and_the_end_of_the_stream(status: str, type: str, house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            ask = Asking(app)
            run_id = await ask.trigger("nothing")
            house.sql(f"update holdfast_runs set status = '{status}', completed_at = 1, generation = 1")
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                (event,) = await stream.rest()
            assert (event["type"], event["sequence"]) == (type, 0)
            assert event.get("error") == ("Unknown error" if type == "run:fail" else None)
            assert app._engine.subscriptions.by_run == {}
            assert ask.handler.streams == 0

    asyncio.run(main())


def test_who_comes_while_it_is_executed_gets_how_it_stands_first(house: House, stuck: Stuck) -> None:
    @job
    async def slow(step: Step) -> None:
        step.progress(1, 2, "half")
        await step.run("wait", stuck.hang)

    async def main() -> None:
        async with house.app(slow) as app:
            ask = Asking(app)
            run_id = await ask.trigger("slow")
            await stuck.came()
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                first, second = await stream.event(), await stream.event()
                assert first is not None
                assert second is not None
                assert (first["type"], first["sequence"]) == ("run:leased", 0)
                assert second["type"] == "run:progress"
                assert second["progress"] == {"current": 1, "total": 2, "message": "half"}
                stuck.let_go()
                assert (await stream.rest())[-1]["type"] == "run:complete"

    asyncio.run(main())


def test_a_deletion_ends_the_stream_of_nobody_else(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            ask = Asking(app)
            run_id, other = await ask.trigger("nothing"), await ask.trigger("nothing")
            async with (
                ask.stream("/subscribe", {"runId": run_id}) as one,
                ask.stream("/subscribe", {"runId": other}) as another,
            ):
                reading, more = asyncio.ensure_future(one.rest()), asyncio.ensure_future(another.rest())
                await until(lambda: len(app._engine.subscriptions.by_run) == 2)
                await ask.post("/cancel", params={"runId": run_id})
                assert [event["type"] for event in await reading] == ["run:cancel"]
                assert not more.done()
                ask.handler.close()
                assert await more == [], "the server stops: the stream ends without a last event"

    asyncio.run(main())


def test_a_run_that_another_process_executes_is_followed_as_any_other(house: House) -> None:
    async def main() -> None:
        async with house.app(counted, worker=False) as web, house.app(counted, worker=False) as worker:
            ask = Asking(web)
            run_id = await ask.trigger("counted", {"rows": 3})
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                reading = asyncio.ensure_future(stream.rest())
                await until(lambda: is_subscribed(web, run_id))
                await worker.process_one()
                events = await reading
            assert [event["type"] for event in events] == ["run:leased", *["step:complete"] * 3, "run:complete"]

    asyncio.run(main())


# -- what streams cost ---------------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_stream_that_was_left(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            ask = Asking(app)
            run_id = await ask.trigger("nothing")
            engine = app._engine
            for _ in range(20):
                async with (
                    ask.stream("/subscribe", {"runId": run_id}) as one,
                    ask.stream("/runs/subscribe") as all_runs,
                ):
                    tasks = [asyncio.ensure_future(stream.event()) for stream in (one, all_runs)]
                    await until(lambda: engine.subscriptions.of(run_id) and engine.feed.is_read)
                    assert ask.handler.streams == 2
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
            gc.collect()
            assert ask.handler.streams == 0
            assert engine.subscriptions.by_run == {}
            assert not engine.feed.is_read
            assert not engine.hub.follows_all
            assert [type for type, heard in engine.hub._listeners.items() if heard] == ["worker:error"]

    asyncio.run(main())


def test_more_streams_than_there_may_be_are_refused_and_the_others_go_on(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            ask = Asking(app, max_streams=2)
            async with ask.stream("/runs/subscribe") as one, ask.stream("/runs/subscribe"):
                refused = await ask.get("/runs/subscribe")
                assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
                run_id = await ask.trigger("nothing")
                assert (await one.until("run:trigger"))["runId"] == run_id
            async with ask.stream("/runs/subscribe"):
                pass

    asyncio.run(main())


def test_a_slow_reader_loses_the_oldest_events_is_told_so_and_still_gets_the_end(house: House) -> None:
    @job
    async def chatty(step: Step) -> None:
        for number in range(1500):
            step.log.info(str(number))

    async def main() -> None:
        async with house.app(chatty, worker=False) as app:
            ask = Asking(app)
            run_id = await ask.trigger("chatty")
            async with ask.stream("/subscribe", {"runId": run_id}) as stream:
                first = asyncio.ensure_future(stream.event())
                await until(lambda: is_subscribed(app, run_id))
                await app.process_one()
                await app.wait_for_run(run_id)
                await first
                rest = await stream.rest()
            assert len(rest) <= 1001
            assert rest[-1]["type"] == "run:complete"
            assert re.search(r"^: \d+ events were dropped$", stream.text, re.MULTILINE)

    asyncio.run(main())


def test_while_nothing_happens_a_comment_is_sent(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            ask = Asking(app, heartbeat=0.02)
            run_id = await ask.trigger("nothing")
            for path in ("/subscribe", "/runs/subscribe"):
                async with ask.stream(path, {"runId": run_id}) as stream:
                    assert [await stream.block(), await stream.block()] == [": ", ": "]

    asyncio.run(main())


# -- all runs ------------------------------------------------------------------------------------------------------


def test_all_runs_are_told_in_short(house: House) -> None:
    async def main() -> None:
        async with house.app(counted, failing, talking, worker=False) as app:
            ask = Asking(app)
            async with ask.stream("/runs/subscribe") as stream:
                run_id = await ask.trigger("counted", {"rows": 1}, labels={"a": "b"})
                await app.process_one()
                events = [await stream.event() for _ in range(5)]
                same = {"runId": run_id, "jobName": "counted", "labels": {"a": "b"}}
                assert events == [
                    {"type": "run:trigger", **same},
                    {"type": "run:leased", **same},
                    {"type": "step:start", "stepName": "row-0", "stepIndex": 0, **same},
                    {"type": "step:complete", "stepName": "row-0", "stepIndex": 0, **same},
                    {"type": "run:complete", **same},
                ]
                failed = await ask.trigger("failing")
                await app.process_one()
                step = await stream.until("step:fail", failed)
                assert "no such file" in step.pop("error")
                assert step == {
                    "type": "step:fail", "runId": failed, "jobName": "failing", "stepName": "read", "stepIndex": 0,
                    "labels": {},
                }  # fmt: skip
                assert await stream.until("run:fail") == {
                    "type": "run:fail", "runId": failed, "jobName": "failing", "labels": {},
                }  # fmt: skip
                talked = await ask.trigger("talking")
                await app.process_one()
                assert await stream.until("log:write") == {
                    "type": "log:write", "runId": talked, "jobName": "talking", "labels": {}, "stepName": None,
                    "level": "info", "message": "hello", "data": {"lines": "a\r\nb\u2028data: {}\n\nid: 5"},
                }  # fmt: skip
                assert (await stream.until("log:write"))["level"] == "warn"

    asyncio.run(main())


def test_what_is_done_over_http_is_told_to_all(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            ask = Asking(app)
            async with ask.stream("/runs/subscribe") as stream:
                run_id = await ask.trigger("nothing", concurrencyKey="k")
                await stream.until("run:trigger", run_id)
                await ask.trigger("nothing", concurrencyKey="k", coalesce="skip", labels={"x": "y"})
                assert await stream.until("run:coalesced") == {
                    "type": "run:coalesced", "runId": run_id, "jobName": "nothing", "labels": {}, "skippedInput": {},
                    "skippedLabels": {"x": "y"},
                }  # fmt: skip
                await ask.post("/cancel", params={"runId": run_id})
                await stream.until("run:cancel", run_id)
                again = (await ask.post("/retrigger", params={"runId": run_id})).json["runId"]
                await stream.until("run:trigger", again)
                await ask.delete("/run", {"runId": run_id})
                await stream.until("run:delete", run_id)

    asyncio.run(main())


def test_the_stream_of_all_runs_says_nothing_of_what_was_before(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            ask = Asking(app)
            await ask.trigger("nothing")
            async with ask.stream("/runs/subscribe") as stream:
                second = await ask.trigger("nothing")
                event = await stream.event()
                assert event is not None
                assert event["runId"] == second

    asyncio.run(main())


def test_it_goes_by_jobs_and_labels(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, failing, counted, worker=False) as app:
            ask = Asking(app)
            async with (
                ask.stream("/runs/subscribe", [("jobName", "failing"), ("jobName", "counted")]) as jobs,
                ask.stream("/runs/subscribe", {"label.team": "a"}) as labels,
            ):
                await ask.trigger("nothing")
                failed = await ask.trigger("failing")
                labelled = await ask.trigger("counted", {"rows": 0}, labels={"team": "a", "more": "b"})
                told = [await jobs.event(), await jobs.event(), await labels.event()]
                assert [event and event["runId"] for event in told] == [failed, labelled, labelled]
            refused = await ask.get("/runs/subscribe", {"label.a b": "x"})
            assert refused.status == 400

    asyncio.run(main())


def is_followed(app: Holdfast, run_id: str) -> bool:
    one = app._engine.feed._followed.get(run_id)
    return one is not None and one._trail.begun


def test_what_another_process_does_is_told_too(house: House) -> None:
    async def main() -> None:
        async with (
            house.app(counted, failing, nothing, worker=False) as web,
            house.app(counted, failing, nothing, worker=False) as other,
        ):
            ask, there = Asking(web), Asking(other)
            before = await there.trigger("counted", {"rows": 1})
            async with ask.stream("/runs/subscribe") as stream:
                await until(lambda: is_followed(web, before))
                await other.process_one()
                await stream.until("run:leased", before)
                assert (await stream.until("step:complete", before))["stepName"] == "row-0"
                await stream.until("run:complete", before)
                run_id = await there.trigger("failing", labels={"a": "b"})
                assert (await stream.until("run:trigger", run_id))["labels"] == {"a": "b"}
                await other.process_one()
                await stream.until("run:fail", run_id)
                cancelled = await there.trigger("nothing")
                await stream.until("run:trigger", cancelled)
                await there.post("/cancel", params={"runId": cancelled})
                await stream.until("run:cancel", cancelled)
                await there.delete("/run", {"runId": cancelled})
            assert web._engine.feed._followed == {}

    asyncio.run(main())


def test_a_run_that_was_seen_pending_is_told_to_be_leased_although_it_is_so_when_its_state_is_read(
    house: House, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    @job
    async def held(step: Step) -> None:
        await step.run("hang", stuck.hang)

    late: list[feed._Elsewhere] = []
    begin = feed._Elsewhere.begin
    monkeypatch.setattr(feed._Elsewhere, "begin", lambda one: late.append(one))

    async def main() -> None:
        async with house.app(held, worker=False) as web, house.app(held, worker=False) as other:
            ask, there = Asking(web), Asking(other)
            run_id = await there.trigger("held")
            async with ask.stream("/runs/subscribe") as stream:
                await until(lambda: late)
                executing = asyncio.ensure_future(other.process_one())
                await stuck.came()
                begin(late[0])
                await stream.until("run:leased", run_id)
                stuck.let_go()
                await stream.until("run:complete", run_id)
                await executing

    asyncio.run(main())


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_run_that_was_seen_pending_is_told_to_be_leased_although_it_has_ended_when_its_state_is_read(
    is_cancelled: bool, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[feed._Elsewhere] = []
    begin = feed._Elsewhere.begin
    monkeypatch.setattr(feed._Elsewhere, "begin", lambda one: late.append(one))

    async def main() -> None:
        async with house.app(nothing, worker=False) as web, house.app(nothing, worker=False) as other:
            ask, there = Asking(web), Asking(other)
            async with ask.stream("/runs/subscribe") as stream:
                await until(lambda: web._engine.feed._least is not None)  # what is there by its first look is no news
                run_id = await there.trigger("nothing")
                await until(lambda: late)
                if is_cancelled:
                    await there.post("/cancel", params={"runId": run_id})
                else:
                    await other.process_one()
                begin(late[0])
                told: list[Any] = []
                while not told or told[-1] not in ("run:complete", "run:cancel"):
                    event = await stream.event()
                    assert event is not None
                    told.append(event["type"])
                assert told == (["run:trigger", "run:cancel"] if is_cancelled else [
                    "run:trigger", "run:leased", "run:complete",
                ])  # fmt: skip

    asyncio.run(main())


def test_a_run_of_another_process_is_told_once_whoever_executes_it(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as web, house.app(nothing, worker=False) as other:
            ask, there = Asking(web), Asking(other)
            async with ask.stream("/runs/subscribe") as stream:
                await until(lambda: web._engine.feed._least is not None)
                run_id = await there.trigger("nothing")
                await stream.until("run:trigger", run_id)
                await web.process_one()
                last = await ask.trigger("nothing")
                told: list[Any] = []
                while (event := await stream.event()) is not None and event["runId"] != last:
                    told.append(event["type"])
                assert told == ["run:leased", "run:complete"]

    asyncio.run(main())


def test_runs_that_are_executed_here_are_told_once_and_in_order_however_fast_they_are(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing) as app:
            ask = Asking(app)
            async with ask.stream("/runs/subscribe") as stream:
                ids = {await ask.trigger("nothing") for _ in range(100)}
                told: dict[str, list[str]] = {run_id: [] for run_id in ids}
                while ids:
                    event = await stream.event()
                    assert event is not None
                    told[event["runId"]].append(event["type"])
                    if event["type"] == "run:complete":
                        ids.discard(event["runId"])
                last = await ask.trigger("nothing")
                while (event := await stream.event()) is not None and event["runId"] != last:
                    told[event["runId"]].append(event["type"])
            assert {tuple(types) for types in told.values()} == {("run:trigger", "run:leased", "run:complete")}

    asyncio.run(main())


def test_of_what_began_and_ended_elsewhere_between_two_looks_only_that_is_told(house: House) -> None:
    async def main() -> None:
        async with (
            house.app(counted, failing, nothing, worker=False) as web,
            house.app(counted, failing, nothing, worker=False) as other,
        ):
            engine, there = web._engine, Asking(other)
            reader = engine.feed.read(lambda *_: True)
            await until(lambda: engine.feed._least is not None)
            engine.watcher.stop()
            done, failed = await there.trigger("counted", {"rows": 2}), await there.trigger("failing")
            assert await other.process_until_idle() == 2
            cancelled = await there.trigger("nothing")
            await there.post("/cancel", params={"runId": cancelled})
            for _ in range(2):
                await engine.reader.read("look", engine.feed.look, bool)
            told: dict[str, list[str]] = {}
            with contextlib.suppress(TimeoutError):
                while event := await reader.anext_within(0.05):
                    told.setdefault(str(event.run_id), []).append(event.type)
            assert told == {
                done: ["run:trigger", "run:leased", "run:complete"],
                failed: ["run:trigger", "run:leased", "run:fail"],
                cancelled: ["run:trigger", "run:cancel"],
            }
            reader.close()

    asyncio.run(main())


def test_those_who_read_something_else_do_not_wait_for_a_crowd() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        replies = [Reply[None](f"event {number}") for number in range(100)]
        woken: list[int] = []

        async def crowd(number: int) -> None:
            await replies[number]
            woken.append(number)

        tasks = [asyncio.ensure_future(crowd(number)) for number in range(100)]
        await asyncio.sleep(0)
        answer([(reply, None, None) for reply in replies], few_at_once=True)
        other = loop.create_future()
        loop.call_soon(other.set_result, None)
        await other
        assert 0 < len(woken) < 50
        await asyncio.gather(*tasks)
        assert woken == list(range(100))

    asyncio.run(main())


def test_an_event_for_many_readers_is_made_once(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            made: list[Event] = []

            def framed(event: Event) -> bytes:
                made.append(event)
                return b"data: 1\n\n"

            ask = Asking(app)
            ask.handler.of_all = Shared(framed)
            async with contextlib.AsyncExitStack() as stack:
                streams = [await stack.enter_async_context(ask.stream("/runs/subscribe")) for _ in range(5)]
                await ask.trigger("nothing")
                for stream in streams:
                    assert await stream.block() == "data: 1"
            assert [event.type for event in made] == ["run:trigger"]

    asyncio.run(main())


def test_a_stream_ends_when_the_app_is_stopped(house: House) -> None:
    async def main() -> None:
        app: Holdfast = house.app(nothing, worker=False)
        await app.init()
        ask = Asking(app)
        run_id = await ask.trigger("nothing")
        async with ask.stream("/runs/subscribe") as all_runs, ask.stream("/subscribe", {"runId": run_id}) as one:
            reading = [asyncio.ensure_future(stream.rest()) for stream in (all_runs, one)]
            await until(lambda: is_subscribed(app, run_id))
            await app.stop()
            assert await asyncio.gather(*reading) == [[], []]
        assert ask.handler.streams == 0

    asyncio.run(main())
