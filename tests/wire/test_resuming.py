"""The stream of our own client: it can be left and taken up again, with no gap and nothing twice."""

from __future__ import annotations

import asyncio
import json
import random
import re
import tracemalloc
from itertools import product
from typing import Any

import pytest

from asking import Asking, Stream
from holdfast import Holdfast, Step, ValidationError, job
from holdfast.engine import resuming
from holdfast.engine.resuming import Place, place_now
from house import House, Stuck

LASTING = ("step:complete", "step:fail", "log:write", "run:emit", "run:complete", "run:fail", "run:cancel")


@job
async def talking(step: Step, rows: int) -> int:
    for row in range(rows):
        await step.run(f"row-{row}", lambda row=row: row)
        step.log.info(f"line {row}")
        if row % 3 == 0:
            step.emit("value", row)
    return rows


async def events(stream: Stream, most: int | None = None) -> tuple[list[dict[str, Any]], str | None]:
    """Events, and the id of the last one."""
    found: list[dict[str, Any]] = []
    last: str | None = None
    while most is None or len(found) < most:
        block = await stream.block()
        if block is None:
            break
        lines = block.split("\n")
        if lines[0].startswith("id: "):
            last = lines[0][4:]
            found.append(json.loads(lines[1].removeprefix("data: ")))
    return found, last


def told_by(place: Place) -> list[tuple[int, int]]:
    """The steps that were told, of those of a small run."""
    return [one for one in product(range(5), range(100)) if place.has(*one)]


def lasting(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    keys = ("type", "stepName", "message", "value", "output", "error")
    return [tuple(event.get(key) for key in keys) for event in found if event["type"] in LASTING]


def test_a_run_that_has_ended_is_told_from_its_beginning(house: House) -> None:
    async def main() -> None:
        async with house.app(talking) as app:
            ask = Asking(app)
            run_id = await ask.trigger("talking", {"rows": 4})
            await app.wait_for_run(run_id)
            async with ask.stream("/run/events", {"runId": run_id}) as stream:
                found, last = await events(stream)
            told = [event["type"] for event in found]
            assert told[0] == "run:leased"
            assert told[-1] == "run:complete"
            assert [event["stepName"] for event in found if event["type"] == "step:complete"] == [
                f"row-{n}" for n in range(4)
            ]
            assert [event["message"] for event in found if event["type"] == "log:write"] == [
                f"line {n}" for n in range(4)
            ]
            assert [event["value"] for event in found if event["type"] == "run:emit"] == [0, 3]
            over = await ask.get("/run/events", {"runId": run_id}, headers={"Last-Event-ID": str(last)})
            assert (over.status, over.body) == (204, b""), "there is nothing more, and a browser asks no more"

    asyncio.run(main())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_i13_whoever_leaves_and_comes_back_misses_nothing_and_gets_nothing_twice(elsewhere: bool, house: House) -> None:
    async def main() -> None:
        async with (
            house.app(talking, worker=not elsewhere) as web,
            house.app(talking, worker=elsewhere),
        ):
            ask = Asking(web, sse_throttle=0)
            run_id = await ask.trigger("talking", {"rows": 60})
            chance, found, last = random.Random(7), list[dict[str, Any]](), None
            while not found or found[-1]["type"] != "run:complete":
                headers = {} if last is None else {"Last-Event-ID": last}
                async with ask.stream("/run/events", {"runId": run_id}, headers=headers) as stream:
                    more, at = await events(stream, chance.randint(1, 9))
                found, last = [*found, *more], at or last
            async with ask.stream("/run/events", {"runId": run_id}) as stream:
                whole, _ = await events(stream)
            assert sorted(map(repr, lasting(found))) == sorted(map(repr, lasting(whole)))
            assert len(lasting(whole)) == 60 + 60 + 20 + 1
            assert lasting(found)[-1] == lasting(whole)[-1]
            steps = [event["stepIndex"] for event in found if event["type"] == "step:complete"]
            assert steps == list(range(60))

    asyncio.run(main())


def test_a_progress_that_was_held_back_until_the_end_does_not_take_the_place_of_the_end(
    house: House, stuck: Stuck
) -> None:
    @job
    async def slow(step: Step) -> str:
        step.progress(1, 2)
        await step.run("only", stuck.hang)
        step.progress(2, 2)
        return "done"

    async def main() -> None:
        async with house.app(slow) as app:
            ask = Asking(app, sse_throttle=1000)
            run_id = await ask.trigger("slow")
            await stuck.came()
            async with ask.stream("/run/events", {"runId": run_id}) as stream:
                while "run:progress" not in stream.text:
                    await stream.block()
                stuck.let_go()
                blocks = []
                while (block := await stream.block()) is not None:
                    blocks.append(block)
            *before, held, _, end = blocks
            assert '"run:progress"' in held
            assert not held.startswith("id: ")
            assert end.startswith("id: ")
            for block in before:
                assert ".end" not in block.split("\n")[0]

    asyncio.run(main())


def test_a_run_that_goes_on_is_followed_live(house: House, stuck: Stuck) -> None:
    @job
    async def slow(step: Step) -> str:
        await step.run("first", lambda: 1)
        step.progress(1, 2)
        await step.run("second", stuck.hang)
        return "done"

    async def main() -> None:
        async with house.app(slow) as app:
            ask = Asking(app)
            run_id = await ask.trigger("slow")
            await stuck.came()
            async with ask.stream("/run/events", {"runId": run_id}) as stream:
                found: list[dict[str, Any]] = []
                while not any(event["type"] == "step:complete" for event in found):
                    found += (await events(stream, 1))[0]
                stuck.let_go()
                rest, _ = await events(stream)
            assert [event["type"] for event in [*found, *rest] if event["type"] != "run:progress"] == [
                "run:leased", "step:complete", "step:complete", "run:complete",
            ]  # fmt: skip

    asyncio.run(main())


def test_of_a_long_history_no_more_is_read_than_somebody_takes(house: House) -> None:
    @job
    async def chatty(step: Step) -> None:
        for number in range(5000):
            step.log.info(str(number))

    async def main() -> None:
        async with house.app(chatty, max_log_bytes=1000) as app:
            ask = Asking(app)
            run_id = await ask.trigger("chatty")
            await app.wait_for_run(run_id)
            kept = len(await app.get_logs(run_id))
            async with ask.stream("/run/events", {"runId": run_id}) as stream:
                await events(stream, 1)
                (subscription,) = app._engine.subscriptions.of(run_id)
                most = 0
                found = 1
                while found:
                    most = max(most, len(subscription._unread))
                    got, _ = await events(stream, 100)
                    found = len(got)
                    if got and got[-1]["type"] == "run:complete":
                        break
            assert most <= 2500
            assert stream.text.count("log:write") == kept

    asyncio.run(main())


async def of_many_leases(app: Holdfast, house: House, leases: int, each: int = 2) -> str:
    """A run that was executed so many times; the steps of each lie anywhere, as those of parallel branches do."""
    ask = Asking(app)
    run_id = await ask.trigger("talking", {"rows": 0})
    await app.wait_for_run(run_id)
    positions = list(range(each * leases))
    random.Random(3).shuffle(positions)
    values = [
        f"('{run_id}', 'step-{n}', 0, {position}, 'completed', 1, {n // each + 1}, '{n}', {n}, {n})"
        for n, position in enumerate(positions)
    ]
    house.sql(
        "insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, output, "
        "started_at, completed_at) values " + ", ".join(values)
    )
    house.sql("update holdfast_runs set generation = ?", leases)
    return run_id


def test_after_two_thousand_leases_a_place_is_short_and_still_says_what_was_told(house: House) -> None:
    async def main() -> None:
        async with house.app(talking) as app:
            ask = Asking(app, sse_throttle=0)
            run_id = await of_many_leases(app, house, 2000, each=1)
            found, last, longest = list[dict[str, Any]](), None, 0
            while not found or found[-1]["type"] != "run:complete":
                headers = {} if last is None else {"Last-Event-ID": last}
                async with ask.stream("/run/events", {"runId": run_id}, headers=headers) as stream:
                    more, at = await events(stream, 1801)
                    longest = max(longest, *(len(one) for one in re.findall("^id: (.*)$", stream.text, re.M)))
                found, last = [*found, *more], at or last
            names = [event["stepName"] for event in found if event["type"] == "step:complete"]
            assert sorted(names) == sorted(f"step-{n}" for n in range(2000))
            assert longest < 200

    asyncio.run(main())


def test_two_who_are_at_different_places_are_each_told_everything_once(house: House) -> None:
    async def main() -> None:
        async with house.app(talking) as app:
            ask = Asking(app, sse_throttle=0)
            run_id = await of_many_leases(app, house, 300)
            chance, found, last, beside = random.Random(9), list[dict[str, Any]](), None, list[dict[str, Any]]()
            async with ask.stream("/run/events", {"runId": run_id}) as other:
                while not found or found[-1]["type"] != "run:complete":
                    headers = {} if last is None else {"Last-Event-ID": last}
                    async with ask.stream("/run/events", {"runId": run_id}, headers=headers) as stream:
                        more, at = await events(stream, chance.randint(1, 200))
                    found, last = [*found, *more], at or last
                    if len(beside) < 500:
                        beside += (await events(other, chance.randint(1, 100)))[0]
                beside += (await events(other))[0]
            for told in (found, beside):
                names = [event["stepName"] for event in told if event["type"] == "step:complete"]
                assert sorted(names) == sorted(f"step-{n}" for n in range(600))
                assert [event["type"] for event in told].count("run:leased") == 300

    asyncio.run(main())


def test_the_place_now_of_a_run_of_two_thousand_leases_is_short(house: House) -> None:
    async def main() -> None:
        async with house.app(talking) as app:
            run_id = await of_many_leases(app, house, 2000)
            place = await place_now(app._engine, run_id)
            assert len(str(place)) < 200
            assert place.has(1, 0)
            assert place.has(1999, 3999)

    asyncio.run(main())


def test_a_place_of_before_is_read_and_goes_on_short(house: House) -> None:
    async def main() -> None:
        async with house.app(talking) as app:
            ask = Asking(app, sse_throttle=0)
            run_id = await of_many_leases(app, house, 300)
            rows = house.sql("select generation, position from holdfast_steps order by generation, position")
            told, left = [row for row in rows if row[0] <= 200], [row for row in rows if row[0] > 200]
            before = Place()
            before.leased = 200
            for row in [*told, left[-1]]:  # one of the last lease, too
                before.add(*row)
            text = str(before)
            assert "200:" in text
            async with ask.stream("/run/events", {"runId": run_id}, headers={"Last-Event-ID": text}) as stream:
                found, _ = await events(stream)
            steps = [event["stepIndex"] for event in found if event["type"] == "step:complete"]
            assert sorted(steps) == sorted(position for _, position in left[:-1])

    asyncio.run(main())


def save_steps(house: House, run_id: str, positions: list[int], generation: int = 1) -> None:
    values = [
        f"('{run_id}', 'step-{n}', 0, {n}, 'completed', 1, {generation}, '{n}', {100 + n % 7}, {100 + n % 7})"
        for n in positions
    ]
    house.sql(
        "insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, output, "
        "started_at, completed_at) values " + ", ".join(values)
    )


@pytest.mark.parametrize("long", [2400, 40])
def test_i13_steps_that_end_in_any_order_have_short_places_and_none_is_missing_or_told_twice(
    long: int, house: House, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "_LONG", long)
    monkeypatch.setattr(resuming, "_FEW", 10)

    @job
    async def slow(step: Step) -> None:
        await step.run("last", stuck.hang)

    async def main() -> None:
        async with house.app(slow, worker=False) as web, house.app(slow):
            ask, chance = Asking(web, sse_throttle=0), random.Random(11)
            run_id = await ask.trigger("slow")
            await stuck.came()
            positions = [n for n in range(1, 2400) if n % 50]  # some never come
            chance.shuffle(positions)
            found, last, longest = list[dict[str, Any]](), None, 0

            async def read(most: int, seconds: float) -> None:
                nonlocal last, longest
                headers = {} if last is None else {"Last-Event-ID": last}
                async with ask.stream("/run/events", {"runId": run_id}, headers=headers) as stream:
                    while most:
                        try:
                            async with asyncio.timeout(seconds):
                                more, at = await events(stream, 1)
                        except TimeoutError:
                            break
                        found.extend(more)
                        last, most = at or last, most - 1
                        if not more:
                            break
                    longest = max([longest, *(len(one) for one in re.findall("^id: (.*)$", stream.text, re.M))])

            for first in range(0, len(positions), 500):
                save_steps(house, run_id, positions[first : first + 500])
                await read(chance.randint(100, 1000), 0.5)
            # Of what never comes nobody knows that before the lease is over: where little has room, it waits for that.
            expected = 0.8 * len(positions) if long > 1000 else 100
            for _ in range(10):
                if len(found) <= expected:
                    await read(5000, 3.0)
            live = len(found)
            stuck.let_go()
            while found[-1]["type"] != "run:complete":
                await read(chance.randint(100, 1000), 5.0)
            steps = [event["stepIndex"] for event in found if event["type"] == "step:complete"]
            assert sorted(steps) == [0, *sorted(positions)]
            assert longest < long + 700
            assert live > expected

    asyncio.run(main())


def test_the_place_now_of_a_wide_run_is_short_and_tells_again_what_it_leaves_out(
    house: House, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "_LONG", 100)

    @job
    async def slow(step: Step) -> None:
        await step.run("last", stuck.hang)

    async def main() -> None:
        async with house.app(slow) as app:
            ask = Asking(app)
            run_id = await ask.trigger("slow")
            await stuck.came()
            save_steps(house, run_id, list(range(1, 1000, 2)))
            place = await place_now(app._engine, run_id)
            assert 90 < len(str(place)) < 120
            assert place.has(1, 1)
            assert not place.has(1, 999)
            stuck.let_go()
            await app.wait_for_run(run_id)

    asyncio.run(main())


def test_many_ranges_are_packed_and_read_again() -> None:
    chance = random.Random(6)
    for density in (0.01, 0.3, 0.5, 0.9):
        place, told = Place(), [n for n in range(3000) if chance.random() < density]
        for n in told:
            place.add(2, n)
        text = str(place)
        again = Place.of(text)
        assert (str(again), [n for n in range(3000) if again.has(2, n)]) == (text, told)
        assert "2=" in text or density == 0.01
        assert len(text) < 900
        room, text = place.room(2), None
        assert room._length == len(re.sub(".*=", "", str(place))) or density == 0.01
        for n in range(0, 3000, 7):
            if room.takes(n):
                place.add(2, n)
        assert room._length == place.room(2)._length


def test_a_place_of_before_may_be_very_long() -> None:
    text = "0.1.1:" + "~".join(str(n) for n in range(0, 9000, 2))
    assert len(text) > 20_000
    assert len(str(Place.of(text))) < 4600


def test_generations_that_are_over_are_one_number() -> None:
    place = Place()
    for generation in range(1, 5):
        place.all_before(generation)
        place.add(generation, generation)
        place.add(generation, generation + 5)
    assert str(place) == "0.0.-3_4:4~9"
    again = Place.of(str(place))
    assert str(again) == str(place)
    assert told_by(again) == [*product(range(4), range(100)), (4, 4), (4, 9)]
    assert Place.of("0.5.-3.end").has(3, 7)


def test_places_can_be_written_and_read() -> None:
    place = Place()
    assert str(place) == "0.0."
    for position in (0, 1, 3, 2, 9, 7):
        place.add(1, position)
    place.add(2, 4)
    place.line, place.leased = 12, 2
    assert str(place) == "12.3.1:0-3~7~9_2:4"
    assert str(Place.of(str(place))) == str(place)
    assert told_by(Place.of(str(place))) == [(1, n) for n in (0, 1, 2, 3, 7, 9)] + [(2, 4)]
    place.add(1, 8)
    assert str(place) == "12.3.1:0-3~7-9_2:4"


def test_a_place_says_what_was_added_in_whatever_order() -> None:
    chance = random.Random(5)
    for _ in range(50):
        positions = chance.sample(range(60), 40)
        place = Place()
        for position in positions:
            place.add(1, position)
            place.add(1, position)
        assert [position for _, position in told_by(Place.of(str(place)))] == sorted(positions)


@pytest.mark.parametrize("text", ["0.1.1:0-999998", "0.3000000."])
def test_a_place_that_claims_much_costs_no_memory(text: str, house: House) -> None:
    async def main() -> None:
        async with house.app(talking) as app:
            ask = Asking(app)
            run_id = await ask.trigger("talking", {"rows": 1})
            await app.wait_for_run(run_id)
            tracemalloc.start()
            try:
                async with ask.stream("/run/events", {"runId": run_id}, headers={"Last-Event-ID": text}) as stream:
                    found, _ = await events(stream)
                most = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert found[-1]["type"] == "run:complete"
            assert most < 10_000_000

    asyncio.run(main())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1",
        "1.2",
        "1.2.x",
        "1.2.1:",
        "1.2.1:5-3",
        "1.2.-",
        "1.2.-3-4",
        "1.2.-3_",
        "1.2.1:1_-3",
        "1.2.1:0-5~3-4",
        "1.2.1:0-99999999",
        "-1.0.",
        "1.2.1:1~",
        "1.0.\n",
        "1.2.1=",
        "1.2.1=~",
        "1.2.1=~1-0~",
        "1.2.1=~1-999999999~",
        "1.2.1=a-b",
        "9" * 9000,
    ],
)
def test_what_is_no_place_is_refused(text: str, house: House) -> None:
    with pytest.raises(ValidationError):
        Place.of(text)

    async def main() -> None:
        async with house.app(talking, worker=False) as app:
            ask = Asking(app)
            run_id = await ask.trigger("talking", {"rows": 0})
            answer = await ask.get("/run/events", {"runId": run_id}, headers={"Last-Event-ID": text or "."})
            assert answer.status == 400

    asyncio.run(main())
