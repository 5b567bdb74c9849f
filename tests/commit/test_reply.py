"""S8: a reply is asked any number of times, by anybody, in both worlds."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import traceback
from typing import Any

import pytest

from holdfast.basis.errors import WouldDeadlock
from holdfast.commit.reply import LazyReply, Reply, answer, answered, hand_on, no_waiting

LONG = 60.0


def in_thread(call: Any) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_an_answered_reply_gives_its_value_as_often_as_it_is_asked() -> None:
    reply = answered(7)
    assert reply.done()
    assert [reply.wait(), reply.wait(0)] == [7, 7]

    async def main() -> list[int]:
        return [await reply, await reply, reply.wait()]  # done: there is nothing to block for

    assert asyncio.run(main()) == [7, 7, 7]


def test_a_waiting_thread_gets_the_answer() -> None:
    reply: Reply[int] = Reply()
    got: list[int] = []
    thread = in_thread(lambda: got.append(reply.wait(LONG)))
    answer([(reply, 7, None)])
    thread.join(LONG)
    assert got == [7]


def test_the_first_answer_counts() -> None:
    reply: Reply[int] = Reply()
    answer([(reply, 1, None), (reply, 2, None)])
    answer([(reply, None, ValueError())])
    assert reply.wait() == 1


def test_a_wait_that_times_out_leaves_the_work_alone() -> None:
    reply: Reply[int] = Reply("trigger")
    for timeout in (0, -1, 1e-9):
        with pytest.raises(TimeoutError, match="trigger: no answer within"):
            reply.wait(timeout)
    assert reply._waiters == []
    answer([(reply, 7, None)])
    assert reply.wait(0) == 7


def test_a_wait_may_have_a_time_longer_than_any_lock_knows() -> None:
    reply: Reply[int] = Reply()
    got: list[int] = []
    thread = in_thread(lambda: got.append(reply.wait(float("inf"))))
    answer([(reply, 7, None)])
    thread.join(LONG)
    assert got == [7]


def test_many_tasks_of_two_loops_and_three_threads_share_one_reply() -> None:
    decoded = object()
    raw: list[Any] = []
    reply: Reply[Any] = Reply("shared", lambda value: raw.append(value) or decoded)
    got: list[Any] = []
    ready = threading.Barrier(6)

    async def ask() -> Any:
        return await reply

    async def main() -> None:
        tasks = [asyncio.create_task(ask()) for _ in range(20)]
        await asyncio.sleep(0)
        ready.wait(LONG)
        got.extend(await asyncio.gather(*tasks))

    def wait() -> None:
        ready.wait(LONG)
        got.append(reply.wait(LONG))

    threads = [in_thread(lambda: asyncio.run(main())) for _ in range(2)] + [in_thread(wait) for _ in range(3)]
    ready.wait(LONG)
    answer([(reply, "raw", None)])
    for thread in threads:
        thread.join(LONG)
    assert len(got) == 43
    assert all(value is decoded for value in got)
    assert set(raw) == {"raw"}, "what was decoded must never be decoded again"


def test_each_loop_is_woken_once_however_many_replies_are_answered() -> None:
    replies: list[Reply[int]] = [Reply() for _ in range(100)]

    async def main() -> int:
        loop = asyncio.get_running_loop()
        wakes = 0
        original = loop.call_soon_threadsafe

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return original(*args, **more)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]

        async def ask(reply: Reply[int]) -> int:
            return await reply

        tasks = [asyncio.create_task(ask(reply)) for reply in replies]
        await asyncio.sleep(0)
        in_thread(lambda: answer([(reply, 1, None) for reply in replies])).join(LONG)
        assert sum(await asyncio.gather(*tasks)) == 100
        return wakes

    assert asyncio.run(main()) == 1


def test_the_value_is_converted_once_by_who_asks_first() -> None:
    where: list[int] = []

    def convert(value: int) -> list[int]:
        where.append(threading.get_ident())
        return [value]

    reply: Reply[list[int]] = Reply("reply", convert)
    in_thread(lambda: answer([(reply, 7, None)])).join(LONG)
    assert where == []
    first = reply.wait()
    assert first == [7]
    assert reply.wait() is first
    assert where == [threading.get_ident()]


def test_two_that_convert_at_the_same_moment_get_the_same_object_and_nothing_is_converted_twice_over() -> None:
    both = threading.Barrier(2)
    raw: list[Any] = []

    def convert(value: Any) -> list[Any]:
        raw.append(value)
        both.wait(LONG)
        return [value]

    reply: Reply[list[Any]] = Reply("reply", convert)
    answer([(reply, 7, None)])
    got: list[list[Any]] = []
    threads = [in_thread(lambda: got.append(reply.wait())) for _ in range(2)]
    for thread in threads:
        thread.join(LONG)
    assert raw == [7, 7]
    assert got == [[7], [7]]
    assert got[0] is got[1]


def test_the_first_to_be_ready_counts_also_when_the_other_fails() -> None:
    started, may_fail = threading.Event(), threading.Event()
    turn = iter([True, False])

    def convert(value: int) -> int:
        if next(turn):
            started.set()
            may_fail.wait(LONG)
            raise ValueError("too late")
        return value + 1

    reply: Reply[int] = Reply("reply", convert)
    answer([(reply, 6, None)])
    got: list[int] = []
    slow = in_thread(lambda: got.append(reply.wait()))
    started.wait(LONG)
    assert reply.wait() == 7
    may_fail.set()
    slow.join(LONG)
    assert got == [7]


def test_a_conversion_that_fails_is_the_answer_for_everybody() -> None:
    calls = 0

    def convert(_: Any) -> Any:
        nonlocal calls
        calls += 1
        raise ValueError("unreadable")

    reply: Reply[Any] = Reply("reply", convert)
    answer([(reply, 7, None)])
    for _ in range(3):
        with pytest.raises(ValueError, match="unreadable"):
            reply.wait()
    assert calls == 1


def test_an_interrupted_conversion_is_done_again_by_the_next_one() -> None:
    interrupts = [KeyboardInterrupt()]

    def convert(value: int) -> int:
        if interrupts:
            raise interrupts.pop()
        return value + 1

    reply: Reply[int] = Reply("reply", convert)
    answer([(reply, 6, None)])
    with pytest.raises(KeyboardInterrupt):
        reply.wait()
    assert reply.wait() == 7


def test_an_error_is_not_converted() -> None:
    reply: Reply[Any] = Reply("reply", lambda _: pytest.fail("there is nothing to convert"))
    answer([(reply, None, ValueError("no"))])
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            reply.wait()


def test_the_traceback_does_not_grow_with_every_await() -> None:
    reply: Reply[int] = Reply()
    answer([(reply, None, ValueError("no"))])

    async def main() -> list[int]:
        lengths = []
        for _ in range(5):
            try:
                await reply
            except ValueError as error:
                lengths.append(len(traceback.extract_tb(error.__traceback__)))
        return lengths

    assert len(set(asyncio.run(main()))) == 1


def test_an_error_stays_an_error_also_if_it_is_a_stop_iteration() -> None:
    reply: Reply[int] = Reply("reply", lambda _: next(iter([])))
    answer([(reply, 7, None)])

    async def main() -> int:
        return await reply

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(main())


# -- failures that nobody asks for -----------------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What we logged; a collection may also find what earlier tests left in closed loops, of which asyncio speaks."""
    return [record for record in caplog.records if record.name == "holdfast"]


def test_a_failure_that_nobody_asks_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    reply: Reply[int] = Reply("trigger of 'job'")
    answer([(reply, None, ValueError("lost"))])
    del reply
    gc.collect()
    assert [record.getMessage() for record in said(caplog)] == [
        "trigger of 'job' failed, and nobody asked: ValueError('lost')"
    ]
    assert said(caplog)[0].levelno == logging.ERROR


def test_a_failure_that_somebody_asked_for_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    reply: Reply[int] = Reply()
    answer([(reply, None, ValueError("told"))])
    with pytest.raises(ValueError, match="told"):
        reply.wait()
    del reply
    gc.collect()
    assert not said(caplog)


def test_a_failure_after_the_asking_was_cancelled_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    reply: Reply[int] = Reply()
    with pytest.raises(TimeoutError):
        reply.wait(0)
    answer([(reply, None, ValueError("they know that it may fail"))])
    del reply
    gc.collect()
    assert not said(caplog)


def test_a_success_that_nobody_asks_for_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    answered(7)
    Reply[int]()
    gc.collect()
    assert not said(caplog)


def test_a_log_handler_may_use_a_reply_while_a_failure_is_logged() -> None:
    used: list[int] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reply: Reply[int] = Reply()
            answer([(reply, 7, None)])
            used.append(reply.wait())

    handler = Handler()
    logging.getLogger("holdfast").addHandler(handler)
    try:
        reply: Reply[int] = Reply()
        answer([(reply, None, ValueError())])
        del reply
        gc.collect()
    finally:
        logging.getLogger("holdfast").removeHandler(handler)
    assert used == [7]


# -- eager and lazy --------------------------------------------------------------------------------------------


def test_a_lazy_reply_starts_when_it_is_first_asked_and_only_then() -> None:
    started: list[Reply[int]] = []
    reply: LazyReply[int] = LazyReply("read", started.append)
    assert not reply.done()
    assert started == []
    for _ in range(2):
        with pytest.raises(TimeoutError):
            reply.wait(0)
    assert started == [reply]
    answer([(reply, 7, None)])
    assert reply.wait() == 7
    assert len(started) == 1


def test_a_lazy_reply_that_is_awaited_starts_once_for_all() -> None:
    starts = 0

    def start(reply: Reply[int]) -> None:
        nonlocal starts
        starts += 1
        in_thread(lambda: answer([(reply, 7, None)]))

    async def ask(reply: Reply[int]) -> int:
        return await reply

    async def main() -> list[int]:
        reply = LazyReply("read", start)
        return await asyncio.gather(*(ask(reply) for _ in range(10)))

    assert asyncio.run(main()) == [7] * 10
    assert starts == 1


def test_a_lazy_reply_that_can_not_start_fails() -> None:
    def start(_: Reply[int]) -> None:
        raise ValueError("no")

    reply = LazyReply("read", start)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            reply.wait()


def test_a_lazy_reply_that_nobody_asks_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    LazyReply[int]("read", lambda _: pytest.fail("nobody asked"))
    gc.collect()
    assert not said(caplog)


# -- refused ---------------------------------------------------------------------------------------------------


def test_wait_is_refused_on_a_loops_own_thread_and_names_the_way_out() -> None:
    started: list[Any] = []

    async def main() -> None:
        with pytest.raises(WouldDeadlock, match=r"trigger: \.wait\(\) would block the event loop .* Use `await`"):
            Reply("trigger").wait()
        with pytest.raises(WouldDeadlock):
            LazyReply("read", started.append).wait(1)

    asyncio.run(main())
    assert started == [], "what is refused does not start"


def test_wait_is_refused_where_it_would_wait_for_itself() -> None:
    with no_waiting("a listener"):
        with no_waiting("a codec"), pytest.raises(WouldDeadlock, match="not possible in a codec"):
            Reply("trigger").wait()
        with pytest.raises(WouldDeadlock, match="not possible in a listener"):
            Reply("trigger").wait()
    with pytest.raises(TimeoutError):
        Reply("trigger").wait(0)


def test_a_loop_on_another_thread_does_not_forbid_to_wait_on_this_one() -> None:
    reply: Reply[int] = Reply()

    async def main() -> int:
        got = asyncio.get_running_loop().run_in_executor(None, reply.wait, LONG)
        answer([(reply, 7, None)])
        return await got

    assert asyncio.run(main()) == 7


# -- cancelling ------------------------------------------------------------------------------------------------


def test_a_cancelled_await_leaves_no_waiter_and_the_answer_still_comes() -> None:
    reply: Reply[int] = Reply()

    async def ask() -> int:
        return await reply

    async def main() -> int:
        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        assert len(reply._waiters or ()) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reply._waiters == []
        answer([(reply, 7, None)])
        return await reply

    assert asyncio.run(main()) == 7


def test_answers_and_cancellations_may_race() -> None:
    outcomes: set[str] = set()

    async def ask(reply: Reply[int]) -> int:
        return await reply

    async def main() -> None:
        for attempt in range(200):
            reply: Reply[int] = Reply()
            task = asyncio.create_task(ask(reply))
            other = asyncio.create_task(ask(reply))
            await asyncio.sleep(0)
            thread = in_thread(lambda: answer([(reply, 7, None)]))  # noqa: B023 - it is joined within the round
            if attempt % 2:
                thread.join(LONG)  # answered, but the loop does not know yet
            task.cancel()
            try:
                outcomes.add(str(await task))
            except asyncio.CancelledError:
                outcomes.add("cancelled")
            assert await other == 7
            thread.join(LONG)
            assert await reply == 7

    asyncio.run(main())
    assert "cancelled" in outcomes


def test_answers_and_timeouts_may_race() -> None:
    for _ in range(200):
        reply: Reply[int] = Reply()
        thread = in_thread(lambda: answer([(reply, 7, None)]))  # noqa: B023
        try:
            assert reply.wait(1e-6) == 7
        except TimeoutError:
            pass
        assert reply.wait(LONG) == 7
        thread.join(LONG)


def test_an_answer_for_a_closed_loop_harms_nobody() -> None:
    lost: Reply[int] = Reply()
    other: Reply[int] = Reply()
    loop = asyncio.new_event_loop()

    async def ask() -> int:
        return await lost

    task = loop.create_task(ask())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    answer([(lost, 7, None), (other, 8, None)])
    assert other.wait(0) == 8
    assert lost.wait(0) == 7
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_an_answer_from_within_the_loop_needs_no_wake_up() -> None:
    reply: Reply[int] = Reply()

    async def ask() -> int:
        return await reply

    async def main() -> int:
        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon_threadsafe = lambda *_, **__: pytest.fail("it is awake")  # type: ignore
        answer([(reply, 7, None)])
        got = await task
        del asyncio.get_running_loop().call_soon_threadsafe
        return got

    assert asyncio.run(main()) == 7


def test_a_reply_says_what_it_is() -> None:
    reply: Reply[int] = Reply("trigger")
    assert repr(reply) == "<Reply trigger: pending>"
    answer([(reply, 7, None)])
    assert repr(reply) == "<Reply trigger: 7>"
    failed: Reply[int] = Reply("trigger")
    answer([(failed, None, ValueError("no"))])
    failed._asked = True
    assert repr(failed) == "<Reply trigger: ValueError('no')>"


# -- one reply that follows another ----------------------------------------------------------------------------


def test_what_follows_an_answer_is_called_once_now_or_later() -> None:
    called: list[str] = []
    reply: Reply[int] = Reply()
    reply.when_done(lambda: called.append("later"))
    assert called == []
    answer([(reply, 7, None)])
    reply.when_done(lambda: called.append("at once"))
    assert called == ["later", "at once"]


def test_what_follows_an_answer_and_fails_keeps_it_from_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    first: Reply[int] = Reply()
    second: Reply[int] = Reply()
    first.when_done(fail)
    got: list[int] = []
    second.when_done(lambda: got.append(second.wait(0)))
    answer([(first, 7, None), (second, 8, None)])
    assert (first.wait(0), got) == (7, [8])
    assert "after an answer" in caplog.text


def test_a_reply_may_hand_its_answer_on() -> None:
    source: Reply[int] = Reply("source", lambda value: value + 1)
    plain: Reply[int] = Reply("plain")
    more: Reply[int] = Reply("more")
    broken: Reply[int] = Reply("broken")
    hand_on(source, plain)
    hand_on(source, more, lambda value: value * 10)
    hand_on(source, broken, lambda value: value // 0)
    answer([(source, 6, None)])
    assert (plain.wait(0), more.wait(0)) == (7, 70)
    with pytest.raises(ZeroDivisionError):
        broken.wait(0)


def test_a_reply_hands_its_failure_on() -> None:
    source: Reply[int] = Reply()
    target: Reply[int] = Reply()
    answer([(source, None, ValueError("no"))])
    hand_on(source, target)
    with pytest.raises(ValueError, match="no"):
        target.wait(0)
