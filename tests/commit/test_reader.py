"""Reads stand beside the line, on a connection of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from watched_line import LONG, Line, until, with_error

import databases
from holdfast.basis.errors import SchemaError, StoreClosed, StoreUnavailable, WouldDeadlock
from holdfast.commit.reader import Reader
from holdfast.commit.reply import Reply
from holdfast.model.run import RunFilter


@pytest.fixture
def reader(line: Line) -> Iterator[Reader]:
    made = Reader(line.store, inline=line.inline)
    yield made
    made.close()


@pytest.fixture
def beside(threaded: Line) -> Iterator[Reader]:
    made = Reader(threaded.store)
    yield made
    made.close()


def raising(error: BaseException) -> Any:
    def call(*_: Any) -> Any:
        raise error

    return call


def ids(reader: Reader) -> Reply[list[str]]:
    return reader.read(
        "runs",
        lambda connection: reader.store.find_runs(connection, RunFilter()),
        lambda rows: sorted(row.id for row in rows),
    )


def test_a_read_sees_what_was_acknowledged(line: Line, reader: Reader) -> None:
    for name in ("a", "b"):
        line.write(line.ticket(id=name))
    assert ids(reader).wait(LONG) == ["a", "b"]

    async def main() -> list[str]:
        return await ids(reader)

    assert asyncio.run(main()) == ["a", "b"]


def test_a_read_starts_when_it_is_asked_for(line: Line, reader: Reader) -> None:
    connected = line.store.connected
    reply = ids(reader)
    assert not reply.done()
    assert line.store.connected == connected
    line.write(line.ticket(id="written after the call"))
    assert reply.wait(LONG) == ["written after the call"]
    line.write(line.ticket(id="too late"))
    assert reply.wait(LONG) == ["written after the call"]


def test_a_question_asked_for_a_reply_starts_now(line: Line, reader: Reader) -> None:
    reply: Reply[int] = Reply("version")
    reader.ask(line.store.version, reply)
    until(reply.done)
    assert reply.wait() > 0


def test_a_read_does_not_stand_in_the_line(threaded: Line, beside: Reader) -> None:
    gate = threaded.hold()
    threaded.join(threaded.ticket())
    assert ids(beside).wait(LONG) == []
    gate.set()


def test_a_read_goes_on_while_a_round_holds_the_database(threaded: Line, beside: Reader) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        assert go_on.wait(LONG)

    threaded.store.before_commit.append(hang)
    ticket = threaded.ticket()
    threaded.join(ticket)
    assert inside.wait(LONG)
    assert ids(beside).wait(LONG) == [], "and sees nothing of what is not committed"
    go_on.set()
    ticket.wait(LONG)
    assert len(ids(beside).wait(LONG)) == 1


def test_a_reader_can_not_write(line: Line, reader: Reader) -> None:
    delete = f"delete from {databases.table(line.path, 'holdfast_runs')}"
    reply = reader.read("no", lambda connection: databases.say(connection, delete), lambda _: None)
    assert isinstance(with_error(reply), StoreUnavailable)


def test_a_question_that_fails_fails_alone(line: Line, reader: Reader) -> None:
    bad: Reply[Any] = Reply("bad")
    reader.ask(raising(ValueError("no")), bad)
    assert ids(reader).wait(LONG) == []
    with pytest.raises(ValueError, match="no"):
        bad.wait(LONG)


def test_questions_are_answered_in_one_go_and_the_answers_decoded_by_who_asks(threaded: Line, beside: Reader) -> None:
    where: list[tuple[str, int]] = []
    first, go_on = threading.Event(), threading.Event()

    def hang(_: Any) -> None:
        first.set()
        assert go_on.wait(LONG)

    hanging: Reply[None] = Reply("hanging")
    beside.ask(hang, hanging)
    assert first.wait(LONG)

    def question(_: Any) -> int:
        where.append(("question", threading.get_ident()))
        return 7

    def convert(value: int) -> int:
        where.append(("convert", threading.get_ident()))
        return value

    async def main() -> int:
        loop = asyncio.get_running_loop()
        wakes = 0
        original = loop.call_soon_threadsafe

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return original(*args, **more)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]

        async def ask() -> int:
            return await beside.read("seven", question, convert)

        tasks = [asyncio.create_task(ask()) for _ in range(10)]
        await asyncio.sleep(0)
        go_on.set()
        assert await asyncio.gather(*tasks) == [7] * 10
        return wakes

    assert asyncio.run(main()) == 1
    assert [kind for kind, _ in where] == ["question"] * 10 + ["convert"] * 10
    assert {ident for kind, ident in where if kind == "convert"} == {threading.get_ident()}
    assert threading.get_ident() not in {ident for kind, ident in where if kind == "question"}


def test_after_an_error_of_the_database_the_connection_is_opened_again(line: Line, reader: Reader) -> None:
    assert ids(reader).wait(LONG) == []
    connected, disconnected = line.store.connected, line.store.disconnected
    broken = reader.read("broken", raising(databases.driver.OperationalError("disk I/O error")), lambda _: None)
    assert with_error(broken) is not None
    assert ids(reader).wait(LONG) == []
    opened = line.store.connected - connected
    assert opened in (1, 2), "where it means that the connection is lost, it was asked again over another one"
    assert line.store.disconnected - disconnected == opened


def test_a_connection_that_was_lost_meanwhile_refuses_nobody(line: Line, reader: Reader) -> None:
    assert ids(reader).wait(LONG) == []
    connected, asked = line.store.connected, []

    def lost_at_first(connection: object) -> int:
        asked.append(connection)
        if len(asked) == 1:
            raise StoreUnavailable("the server was restarted")
        return len(asked)

    assert reader.read("lost", lost_at_first, int).wait(LONG) == 2
    assert line.store.connected == connected + 1
    refused = reader.read("away", raising(StoreUnavailable("it is away")), lambda _: None)
    assert isinstance(with_error(refused), StoreUnavailable)
    assert line.store.connected == connected + 2, "once more, and not for ever"


def test_a_database_without_tables_is_told_and_asked_again_later(line: Line) -> None:
    store = type(line.store)(databases.url(f"{line.path}.empty"))
    reader = Reader(store, inline=line.inline)
    with pytest.raises(SchemaError):
        ids(reader).wait(LONG)
    store.migrate()
    assert ids(reader).wait(LONG) == []
    reader.close()
    assert store.connected == store.disconnected
    store.close()


def test_wait_is_refused_within_a_read(line: Line, reader: Reader) -> None:
    refused: list[str] = []

    def question(_: Any) -> None:
        with pytest.raises(WouldDeadlock) as caught:
            ids(reader).wait()
        refused.append(str(caught.value))

    reader.read("outer", question, lambda _: None).wait(LONG)
    assert ("a read" if line.inline else "the reading thread") in refused[0]


def test_several_threads_may_read_inline_one_after_another(inline: Line) -> None:
    reader = Reader(inline.store, inline=True)
    runs = databases.table(inline.path, "holdfast_runs")
    inside = 0
    most = 0
    ready = threading.Barrier(4)

    def question(connection: Any) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        databases.say(connection, f"select count(*) from {runs}")
        inside -= 1
        return 1

    def ask() -> None:
        ready.wait(LONG)
        for _ in range(50):
            reader.read("one", question, int).wait(LONG)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert most == 1
    reader.close()


def test_close_answers_what_was_asked_and_refuses_what_comes_later(line: Line, reader: Reader) -> None:
    assert ids(reader).wait(LONG) == []
    reader.close()
    reader.close()
    with pytest.raises(StoreClosed):
        ids(reader).wait(LONG)
    assert line.store.connected == line.store.disconnected + 1
    reader.open()
    reader.open()
    assert ids(reader).wait(LONG) == []


def test_close_serves_what_is_waiting(threaded: Line, beside: Reader) -> None:
    first, go_on = threading.Event(), threading.Event()

    def hang(_: Any) -> str:
        first.set()
        assert go_on.wait(LONG)
        return "slow"

    replies: list[Reply[Any]] = [Reply("slow"), Reply("behind")]
    beside.ask(hang, replies[0])
    assert first.wait(LONG)
    beside.ask(lambda _: "behind", replies[1])
    closing = threading.Thread(target=beside.close)
    closing.start()
    until(lambda: beside._closing)
    go_on.set()
    closing.join(LONG)
    assert [reply.wait(0) for reply in replies] == ["slow", "behind"]


def test_when_the_thread_dies_everybody_is_told(
    threaded: Line, beside: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    first, go_on = threading.Event(), threading.Event()

    def die(_: Any) -> None:
        first.set()
        assert go_on.wait(LONG)
        raise SystemExit("somebody ended the thread")

    replies: list[Reply[Any]] = [Reply("dies"), Reply("behind")]
    beside.ask(die, replies[0])
    assert first.wait(LONG)
    beside.ask(lambda _: "behind", replies[1])
    go_on.set()
    for reply in replies:
        error = with_error(reply)
        assert isinstance(error, StoreClosed)
        assert isinstance(error.__cause__, SystemExit)
    assert "the reading thread has died" in caplog.text
    assert isinstance(with_error(ids(beside)), StoreClosed)
    beside.open()
    assert ids(beside).wait(LONG) == []


def test_without_a_thread_who_asks_is_told(threaded: Line, beside: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
        with pytest.raises(StoreUnavailable, match="can't be started"):
            ids(beside).wait(LONG)
    assert ids(beside).wait(LONG) == []


def test_a_reader_that_was_never_asked_has_no_thread_and_no_connection(line: Line) -> None:
    connected = line.store.connected
    reader = Reader(line.store, inline=line.inline)
    assert reader._thread is None
    reader.close()
    assert line.store.connected == connected
