"""Following a run at a server: the events of the library, in both forms, through cut connections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import time
import traceback
from collections import Counter
from typing import Any, cast

import httpx
import pytest
from far import PATIENCE, Served, app_on, asks, holds, import_rows, told, until

from asking import serving
from faulty_link import FaultyLink
from holdfast import Event, Holdfast, NotFoundError, Retry, Step, ValidationError
from holdfast.client import Client, ServerError, ServerUnavailable, following
from holdfast.engine import resuming
from holdfast.rules.retry import delay_before
from house import House

pytestmark = [
    pytest.mark.sampled("the client: the same on every Python", every=6),
    pytest.mark.elsewhere("the client: it knows the wire only", every=6),
]

#: Of the answer to who follows.
STREAM = {"content-type": "text/event-stream"}

forms = pytest.mark.parametrize("form", ["async", "sync"])


def followed(form: str, client: Any, run_id: str) -> list[Event]:
    """All events to the end."""
    if form == "sync":
        return list(client.subscribe(run_id))

    async def follow() -> list[Event]:
        async with asyncio.timeout(PATIENCE):
            return [event async for event in client.subscribe(run_id)]

    return asyncio.run(follow())


def what(event: Event) -> tuple[Any, ...]:
    """An event, without what differs from one process to the next."""
    data = {key: value for key, value in event.data.items() if key not in ("duration", "lease_owner")}
    data = {key: value for key, value in data.items() if key != "lease_expires_at"}
    return event.type, event.run_id, event.job_name, repr((event.labels, data))


@forms
def test_the_events_of_a_run_are_those_of_the_library(form: str, served: Served) -> None:
    run = served.client.job(asks).options(labels={"a": "b"}).trigger().wait(PATIENCE)
    until(lambda: served.app.get_run(run.id).wait(PATIENCE).waiting_for)
    theirs: list[Event] = []
    subscription = served.app.subscribe(run.id)
    thread = threading.Thread(target=lambda: theirs.extend(subscription))
    thread.start()
    until(lambda: served.app._engine.subscriptions.by_run.get(run.id))
    gate = threading.Timer(0.2, lambda: served.client.send_signal(run.id, "answer", [1]).wait(PATIENCE))
    gate.start()
    ours = followed(form, served.client, run.id)
    thread.join(PATIENCE)
    gate.join()
    assert ours[-1].type == "run:complete"
    assert ours[-1].output == [1]
    # What was begun is told by the process that does it alone.
    assert {what(event) for event in ours} == {what(event) for event in theirs if event.type != "step:start"}
    assert ours[-1].timestamp.tzinfo is not None


@forms
def test_a_run_that_has_ended_tells_its_end(form: str, served: Served) -> None:
    run = served.client.job(import_rows).trigger_and_wait(2).wait(PATIENCE)
    (last,) = followed(form, served.client, run.id)
    assert (last.type, last.output, last.is_domain) == ("run:complete", {"rows": 2, "name": "a"}, True)
    with pytest.raises(NotFoundError, match="Run not found: nothing"):
        followed(form, served.client, "nothing")


@forms
def test_callbacks_are_called_by_who_waits(form: str, served: Served) -> None:
    run = served.client.job(asks).trigger().wait(PATIENCE)
    told_of: list[Any] = []
    where: set[int] = set()

    async def on_log(line: Any) -> None:
        told_of.append(line.message)

    def on_progress(at: Any) -> None:
        where.add(threading.get_ident())
        told_of.append(at["current"])
        raise ValueError("of a callback")

    far = served.client.job(import_rows).options(delay=0.3).trigger(3).wait(PATIENCE)
    result = told(form, lambda: far.result(on_progress=on_progress, on_log=on_log))
    assert result == {"rows": 3, "name": "a"}
    assert told_of[-1] == "imported" or told_of[-1] == 3
    assert "imported" in told_of
    assert where == {threading.get_ident()}
    served.client.cancel(run.id).wait(PATIENCE)


class Talking:
    """A job that goes on when it is told to, and says what it has said."""

    def __init__(self, app: Holdfast) -> None:
        self.may_go = threading.Semaphore(0)
        self.rows = 0

        @app.job
        async def talks(step: Step, rows: int) -> int:
            for row in range(rows):
                await asyncio.to_thread(self.may_go.acquire, True, PATIENCE)
                await step.run(f"row-{row}", self.count)
                step.log.info(f"line {row}")
                step.progress(row + 1, rows)
            return rows

        self.job = talks

    def count(self) -> int:
        self.rows += 1
        return self.rows


@forms
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_stream_that_is_cut_again_and_again_tells_everything_once(form: str, elsewhere: bool, house: House) -> None:
    rows, cuts = 30, 6
    web = app_on(house.url, worker=not elsewhere)
    works = Talking(web)
    worker = app_on(house.url, worker="thread") if elsewhere else None
    if worker is not None:
        works = Talking(worker)
    with serving(web.asgi(), lifespan="on") as url, FaultyLink(url) as link:
        client = Client(link.url, patience=Retry(20, delay=0.02, factor=1.5, max_delay=0.2))
        if worker is not None:
            worker.init().wait(PATIENCE)
        run = client.job("talks").trigger(rows).wait(PATIENCE)
        heard: list[Event] = []
        thread = threading.Thread(target=lambda: heard.extend(followed(form, client, run.id)))
        subscription_began = threading.Event()

        def listen() -> None:
            for event in client.subscribe(run.id):
                live.append(event)
                subscription_began.set()

        live: list[Event] = []
        second = threading.Thread(target=listen)
        thread.start()
        second.start()
        assert subscription_began.wait(PATIENCE)
        for row in range(rows):
            works.may_go.release()
            if row % (rows // cuts) == 2:
                until(lambda row=row: works.rows > row)
                link.break_("cut")
                link.heal()
        thread.join(PATIENCE)
        second.join(PATIENCE)
        client.close().wait(PATIENCE)
        if worker is not None:
            worker.stop().wait(PATIENCE)
    for events in (heard, live):
        steps = [event.step_name for event in events if event.type == "step:complete"]
        assert steps == [f"row-{row}" for row in range(rows)][rows - len(steps) :]
        lines = [event.message for event in events if event.type == "log:write"]
        assert lines == [f"line {row}" for row in range(rows)][rows - len(lines) :]
        counted = Counter(event.type for event in events)
        assert counted["run:complete"] == 1
        assert counted["run:leased"] <= 1
        progress = [event.progress["current"] for event in events if event.type == "run:progress"]
        assert progress == sorted(set(progress))
    assert [event.step_name for event in live if event.type == "step:complete"] == [f"row-{n}" for n in range(rows)]


@forms
def test_a_run_that_was_deleted_while_nobody_was_connected_is_told_as_that(form: str, served: Served) -> None:
    with FaultyLink(served.url) as link, Client(link.url, patience=Retry(50, delay=0.05)) as client:
        run = client.job(holds).trigger().wait(PATIENCE)
        subscription = client.subscribe(run.id)
        first = subscription.next_within(PATIENCE)
        assert first is not None
        link.break_("cut")
        served.app.cancel(run.id).wait(PATIENCE)
        served.app.delete_run(run.id).wait(PATIENCE)
        link.heal()
        rest = list(subscription)
        assert [event.type for event in rest][-1] == "run:delete"
        assert rest[-1].job_name == "holds"


@forms
def test_who_was_cut_before_the_end_although_its_place_is_the_end_gets_the_end(form: str) -> None:
    asked: list[str | None] = []

    def block(type: str, place: str, **more: Any) -> str:
        document = {"type": type, "runId": "1", "jobName": "a", "labels": {}, "sequence": 0, **more}
        return f"id: {place}\ndata: {json.dumps({**document, 'timestamp': '2026-01-01T00:00:00.000Z'})}\n\n"

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        if asked == [None]:
            told = "id: 0.1.\n\n" + block("run:progress", "0.1..end", progress={"current": 1})
            return httpx.Response(200, text=told, headers=STREAM)
        if asked[-1]:
            return httpx.Response(204)
        return httpx.Response(200, text=block("run:complete", "", output=5), headers=STREAM)

    retry = Retry(2, delay=0.001)
    with Client("http://far", transport=httpx.MockTransport(answer), retry=retry) as client:
        assert [event.type for event in followed(form, client, "1")] == ["run:progress", "run:complete"]
    assert asked == [None, "0.1..end", None]


@forms
def test_who_follows_is_told_that_the_server_does_not_come_back(form: str, served: Served) -> None:
    with FaultyLink(served.url) as link, Client(link.url, patience=Retry(2, delay=0.01)) as client:
        run = client.job(holds).trigger().wait(PATIENCE)
        subscription = client.subscribe(run.id)
        assert subscription.next_within(PATIENCE) is not None
        link.break_("cut")
        with pytest.raises(ServerUnavailable, match="no answer") as refused:
            list(subscription)
        assert "httpcore" not in "".join(traceback.format_exception(refused.value))
        served.app.cancel(run.id).wait(PATIENCE)


def test_a_wait_survives_a_server_that_is_away_for_a_while(served: Served) -> None:
    with FaultyLink(served.url) as link, Client(link.url, retry=Retry(0), patience=Retry(100, delay=0.05)) as client:
        run = client.job(asks).trigger().wait(PATIENCE)
        reply = run.result()
        with pytest.raises(TimeoutError):
            reply.wait(0.3)
        link.break_("cut")
        with pytest.raises(TimeoutError):
            reply.wait(0.3)
        served.app.send_signal(run.id, "answer", 5).wait(PATIENCE)
        link.heal()
        assert reply.wait(PATIENCE) == 5


def test_who_does_not_wait_is_told_soon_that_the_server_is_away_who_waits_bears_two_minutes() -> None:
    def least(retry: Retry) -> float:
        return sum(delay_before(retry, failures, lambda: 1.0) / 1e6 for failures in range(1, retry.max_retries + 1))

    with Client("http://far") as client:
        line = client._engine
        assert least(line.retry) < 15
        assert 60 < least(line.patience) < 130


def test_who_gives_up_is_told_after_how_long_as_it_was_given(idle: Served) -> None:
    run = idle.client.job(asks).trigger().wait(PATIENCE)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.25 s\."):
        run.wait().wait(0.25)


def test_where_no_stream_is_to_be_had_the_run_is_looked_at_now_and_then(house: House) -> None:
    app = app_on(house.url)
    with serving(app.asgi(max_streams=0), lifespan="on") as url, Client(url, retry=Retry(1, delay=0.02)) as client:
        assert client.job(import_rows).options(delay=0.3).run(2).wait(PATIENCE) == {"rows": 2, "name": "a"}


def test_a_subscription_that_is_let_go_ends_its_stream(served: Served) -> None:
    run = served.client.job(asks).trigger().wait(PATIENCE)
    subscription = served.client.subscribe(run.id)
    with contextlib.suppress(TimeoutError):
        while subscription.next_within(0.3) is not None:
            pass
    assert len(served.client._engine._tasks) == 1
    del subscription
    gc.collect()
    until(lambda: not served.client._engine._tasks)


def test_a_slow_reader_is_waited_for_and_misses_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MOST_UNREAD", 40)
    works = Talking(served.app)
    run = served.client.job("talks").trigger(200).wait(PATIENCE)
    subscription = served.client.subscribe(run.id)
    assert subscription.next_within(PATIENCE) is not None
    works.may_go.release(200)
    served.app.wait_for_run(run.id, timeout=PATIENCE).wait()
    assert len(subscription._unread) <= 40
    events = list(subscription)
    assert [event.step_name for event in events if event.type == "step:complete"] == [f"row-{n}" for n in range(200)]
    assert subscription.dropped == 0


def test_a_place_that_the_server_does_not_read_leads_back_to_one_that_it_does(
    served: Served, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = resuming.Place.of
    refused = []

    def short_only(text: str) -> resuming.Place:  # as servers before this one, whose places grew without end
        if len(text) > 20:
            refused.append(text)
            raise ValidationError("The place (Last-Event-ID) can't be read.")
        return of(text)

    monkeypatch.setattr(resuming.Place, "of", short_only)
    monkeypatch.setattr(following, "_SURE", 20)
    works = Talking(served.app)
    run = served.client.job("talks").trigger(1).wait(PATIENCE)
    until(lambda: served.app.get_run(run.id).wait(PATIENCE).status == "leased")

    def save(positions: range) -> None:
        for n in positions:
            house.sql(
                "insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, output, "
                f"started_at, completed_at) values ('{run.id}', 'step-{n}', 0, {n}, 'completed', 1, 1, '{n}', 5, {n})"
            )

    with FaultyLink(served.url) as link, Client(link.url, patience=Retry(50, delay=0.05)) as client:
        subscription = client.subscribe(run.id)
        with contextlib.suppress(TimeoutError):
            while subscription.next_within(0.5) is not None:
                pass
        save(range(10, 60, 5))
        events = [subscription.next_within(PATIENCE) for _ in range(8)]
        link.break_("cut")
        save(range(12, 60, 5))
        link.heal()
        works.may_go.release()
        events += list(subscription)
    told = [event.step_index for event in events if event is not None and event.type == "step:complete"]
    assert refused
    assert sorted(told) == sorted([0, *range(10, 60, 5), *range(12, 60, 5)])


def test_the_blocks_of_a_stream_are_found_in_one_pass_wherever_it_is_cut() -> None:
    class Cut:
        def __init__(self, content: bytes, each: int) -> None:
            self.content, self.each = content, each

        async def aiter_bytes(self) -> Any:
            for at in range(0, len(self.content), self.each):
                yield self.content[at : at + self.each]

    def blocks(stream: Cut) -> list[tuple[str | None, bytes | None]]:
        async def read() -> list[tuple[str | None, bytes | None]]:
            return [tuple(frame) async for frame in following.frames(cast("Any", stream))]

        return asyncio.run(read())

    text = b"id: 1\ndata: a\n\n: hello\n\n\n\nid: 2\n\ndata: bcd\n\nid: 3"
    whole = [("1", b"a"), (None, None), (None, None), ("2", None), (None, b"bcd")]
    for each in range(1, len(text) + 1):
        assert blocks(Cut(text, each)) == whole
    began = time.process_time()
    large = Cut(b"data: " + b"x" * (16 << 20) + b"\n\n", 4096)
    assert len(blocks(large)) == 1
    assert time.process_time() - began < 5


@forms
def test_a_subscription_keeps_the_client_that_nobody_else_holds(form: str, served: Served) -> None:
    run = served.app.get_job("import-rows").trigger(2).wait(PATIENCE)  # type: ignore[union-attr]  # it is there
    seen: list[str] = []
    if form == "sync":
        for event in Client(served.url).subscribe(run.id):
            gc.collect()
            seen.append(event.type)
    else:

        async def follow() -> None:
            async with asyncio.timeout(PATIENCE):
                async for event in Client(served.url).subscribe(run.id):
                    gc.collect()
                    seen.append(event.type)

        asyncio.run(follow())
    assert seen[-1] == "run:complete"


def test_a_client_whose_subscription_is_let_go_is_closed(idle: Served) -> None:
    run = idle.app.get_job("asks").trigger().wait(PATIENCE)  # type: ignore[union-attr]  # it is there
    subscription = Client(idle.url).subscribe(run.id)
    with contextlib.suppress(TimeoutError):
        while subscription.next_within(0.1) is not None:
            pass
    line = subscription._desk.engine
    del subscription
    until(lambda: line._closed)


@forms
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(200, html="<h1>Welcome</h1>"), "the answer is no stream of events"),
        (httpx.Response(200, json={"a": 1}), "the answer is no stream of events"),
        (httpx.Response(200, text="data: \n\n", headers=STREAM), "the answer is not one of a Holdfast server"),
        (httpx.Response(200, text="data: no JSON\n\n", headers=STREAM), "the answer is not one of a Holdfast server"),
        (httpx.Response(200, text='data: {"a": 1}\n\n', headers=STREAM), "the answer is not one of a Holdfast server"),
        (httpx.Response(200, text="data: []\n\n", headers=STREAM), "the answer is not one of a Holdfast server"),
        (httpx.Response(200, text='data: {"type": []}\n\n', headers=STREAM), "is not one of a Holdfast server"),
    ],
    ids=["page", "json", "empty", "text", "object", "list", "type"],
)
def test_what_is_no_stream_of_ours_is_said_to_be_that_at_once(form: str, answer: httpx.Response, error: str) -> None:
    asked: list[httpx.Request] = []

    def told_once(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer

    client = Client("http://far", transport=httpx.MockTransport(told_once))
    with client, pytest.raises(ServerError, match=f"GET http://far/run/events: .*{error}.*Is it the URL") as refused:
        followed(form, client, "1")
    assert (refused.value.answered, len(asked)) == (200, 1)
