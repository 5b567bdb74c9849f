"""How large what a run writes may be: log lines and errors are cut, never refused, and never longer than promised."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from holdfast import RunFailed, Step, SyncStep, job
from holdfast.basis.failures import LONGEST_ARGS, LONGEST_ERROR, LONGEST_TRACEBACK, LONGEST_TRY, keep_failure
from holdfast.basis.text import LONGEST
from house import PATIENCE, House

WIDE = {"one byte": "a", "two bytes": "ä", "three bytes": "漢", "four bytes": "🧗", "a control": "\x01"}


def lines(house: House) -> list[Any]:
    found = house.sql("select message, data from holdfast_logs order by id")
    return [(message, None if data is None else json.loads(data), len(message.encode()) + len((data or "").encode()))
            for message, data in found]  # fmt: skip


def write(house: House, limit: int, *given: tuple[str, dict[str, Any]]) -> list[Any]:
    @job
    def work(step: SyncStep) -> None:
        for message, data in given:
            step.log.info(message, **data)

    with house.app(work, max_log_bytes=limit) as app:
        app.jobs.work.run().wait(PATIENCE)
    return lines(house)


@pytest.mark.parametrize("letter", WIDE.values(), ids=WIDE)
def test_a_message_is_cut_between_two_characters_with_a_mark(house: House, letter: str) -> None:
    ((message, _, size),) = write(house, 1000, (letter * 5000, {}))
    kept = len(message) - len(message.lstrip(letter))
    assert message == letter * kept + f"… ({5000 - kept} more characters)"
    assert 1000 - 10 <= size <= 1000


def test_a_line_that_fits_exactly_is_kept_as_it_is(house: House) -> None:
    data = {"n": 1}
    room = 1000 - len(json.dumps(data, separators=(",", ":")))
    (fits, over) = write(house, 1000, ("ä" * (room // 2), data), ("ä" * (room // 2 + 1), data))
    assert fits[:2] == ("ä" * (room // 2), data)
    assert over[1] == data
    assert over[0].endswith("more characters)")


@pytest.mark.parametrize("letter", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("values", [1, 7, 200])
def test_message_and_data_together_are_never_longer_than_the_limit(house: House, letter: str, values: int) -> None:
    long = letter * 6_000
    data = {f"key{n}": long for n in range(values)}
    for text, more, size in write(house, 5000, (long, data), ("short", data), (long, {"n": 1})):
        assert size <= 5000
        assert text.startswith(("short", letter))
        assert more


def test_a_tiny_limit_leaves_what_has_room(house: House) -> None:
    ((message, data, size),) = write(house, 10, ("a longer message", {"k": "v"}))
    assert size <= 10
    assert message
    assert data is None or data == {"k": "v"}


def test_the_event_has_the_message_as_it_is_kept(house: House) -> None:
    heard: list[Any] = []

    @job
    async def work(step: Step) -> None:
        step.log.info("x" * 5000)

    with house.app(work, max_log_bytes=100) as app:
        app.on("log:write", lambda event: heard.append(event.message))
        app.jobs.work.run().wait(PATIENCE)
    ((message, _, _),) = lines(house)
    assert heard == [message]


# -- errors ------------------------------------------------------------------------------------------------------


class Big(Exception):
    pass


@pytest.mark.parametrize("letter", [*WIDE.values(), "\0", '"', "\\"], ids=[*WIDE, "NUL", "quote", "backslash"])
@pytest.mark.parametrize("many", [1, 3])
def test_a_stored_failure_is_never_longer_than_promised(letter: str, many: int) -> None:
    try:
        try:
            raise Big(letter * 1_000_000)
        except Big as first:
            for _ in range(many):
                first.add_note(letter * 100_000)
            raise Big(letter * 200_000, letter * 60_000) from first
    except Big as error:
        failure, _ = keep_failure(error)
    assert len(failure.to_json().encode()) <= LONGEST_ERROR
    assert len(failure.message.encode()) <= LONGEST
    assert failure.traceback is not None
    assert len(failure.traceback.encode()) <= LONGEST_TRACEBACK
    assert "more characters)" in failure.message


def test_args_are_kept_up_to_their_limit_in_bytes() -> None:
    fits, _ = keep_failure(ValueError("ä" * (LONGEST_ARGS // 2 - 100)))
    over, _ = keep_failure(ValueError("ä" * (LONGEST_ARGS // 2 + 100)))
    assert fits.args is not None
    assert over.args is None


@pytest.mark.parametrize("letter", WIDE.values(), ids=WIDE)
def test_the_error_of_a_run_is_cut_at_its_limit(house: House, letter: str) -> None:
    @job
    async def work() -> None:
        raise Big(letter * 100_000)

    with house.app(work) as app, pytest.raises(RunFailed, match="more characters"):
        app.jobs.work.run().wait(PATIENCE)
    ((error,),) = house.sql("select error from holdfast_runs")
    assert LONGEST - 10 <= len(error.encode()) <= LONGEST


def test_the_error_of_a_try_is_cut_shorter_than_that_of_its_step(house: House) -> None:
    from holdfast import Retry

    def fail() -> None:
        raise Big("漢" * 10_000)

    @job
    async def work(step: Step) -> None:
        await step.options(retry=Retry(1)).run("fail", fail)

    async def main() -> None:
        async with house.app(work) as app:
            await app.jobs.work.trigger_and_wait()

    asyncio.run(main())
    for (error,) in house.sql("select error from holdfast_step_attempts"):
        assert LONGEST_TRY - 10 <= len(error.encode()) <= LONGEST_TRY
    ((failure,),) = house.sql("select error from holdfast_steps")
    assert len(json.loads(failure)["message"]) == 10_000
