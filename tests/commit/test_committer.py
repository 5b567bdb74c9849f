"""The commit line and its dangers, one test each. Held by gates and watched stores; nothing sleeps.

Long because the list of dangers is. What makes sense in both placements runs in both (`line`); `threaded` and
`inline` are for what only one of them can show.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from watched_line import LONG, Line, until, with_error

import databases
from holdfast.basis.errors import (
    Overloaded,
    SchemaError,
    StoreClosed,
    StoreError,
    StoreUnavailable,
    ValidationError,
    WouldDeadlock,
)
from holdfast.commit import committer as committer_module
from holdfast.commit import desk as desk_module
from holdfast.commit.committer import Committer
from holdfast.commit.ticket import ORDER, Ticket
from holdfast.store.base import Lease
from holdfast.testing.clock import HandClock

NOBODY = Lease("no such run", 1, "nobody")


def raising(error: BaseException) -> Any:
    def call(*_: Any) -> Any:
        raise error

    return call


def in_thread(call: Any) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


async def turns_until(condition: Callable[[], object]) -> None:
    """Let the loop turn, busily, until it has happened."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0)


# -- 1: acknowledge before commit ------------------------------------------------------------------------------


def test_nothing_is_acknowledged_before_the_commit_has_returned(line: Line) -> None:
    done: list[bool] = []
    told: list[Any] = []
    tickets = [line.ticket(then=told.append) for _ in range(3)]

    def look() -> None:
        done.extend(ticket.done() for ticket in tickets)
        assert told == []

    line.store.before_commit.append(look)
    line.store.after_commit.append(look)
    line.join(*tickets)
    assert [ticket.wait(LONG).disposition for ticket in tickets] == ["created"] * 3
    assert done == [False] * 6
    assert len(told) == 3


def test_what_is_acknowledged_is_in_the_database(line: Line) -> None:
    ticket = line.ticket(then=lambda answer: seen.append(answer.run.id in line.ids()))
    seen: list[bool] = []
    answer = line.write(ticket)
    assert seen == [True]
    assert line.ids() == [answer.run.id]


def test_while_a_commit_hangs_nobody_is_told(threaded: Line) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        assert go_on.wait(LONG)

    threaded.store.before_commit.append(hang)
    ticket = threaded.ticket()
    threaded.join(ticket)
    assert inside.wait(LONG)
    assert not ticket.done()
    with pytest.raises(TimeoutError):
        ticket.wait(0)
    assert threaded.ids() == []
    go_on.set()
    assert ticket.wait(LONG).disposition == "created"


# -- 2: poison -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 50, 100])
def test_one_ticket_that_fails_fails_alone(line: Line, place: int) -> None:
    tickets = [line.ticket() for _ in range(100)]
    bad = line.poison()
    line.join(*tickets[:place], bad, *tickets[place:])
    assert [ticket.wait(LONG).disposition for ticket in tickets] == ["created"] * 100
    with pytest.raises(ValidationError, match="NUL"):
        bad.wait(LONG)
    assert len(line.ids()) == 100
    assert len(line.store.rounds) < 20, "it was found by halves, not by trying each"


@pytest.mark.only("sqlite postgres", "MariaDB's `insert ignore` takes no name for an empty one")
def test_a_row_that_the_database_refuses_fails_alone(line: Line) -> None:
    good, bad = [line.ticket() for _ in range(10)], line.ticket(job_name=None)
    line.join(*good[:5], bad, *good[5:])
    assert [ticket.wait(LONG).disposition for ticket in good] == ["created"] * 10
    with pytest.raises(StoreError, match="constraint") as caught:
        bad.wait(LONG)
    assert not isinstance(caught.value, StoreUnavailable)
    assert isinstance(caught.value.__cause__, databases.driver.IntegrityError)


def test_all_of_a_round_may_be_poison(line: Line) -> None:
    tickets = [line.poison() for _ in range(9)]
    line.join(*tickets)
    assert all(isinstance(with_error(ticket), ValidationError) for ticket in tickets)
    assert line.write(line.ticket()).disposition == "created"


def test_a_mistake_of_ours_in_a_verb_is_logged_with_its_traceback(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    line.store.on_verb.append(raising(ZeroDivisionError("a bug")))
    ticket = line.ticket()
    line.join(ticket)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        ticket.wait(LONG)
    assert "a write failed" in caplog.text
    assert "Traceback" in caplog.text
    assert line.write(line.ticket()).disposition == "created"


def test_if_the_database_is_lost_while_poison_is_looked_for_the_rest_does_not_try(line: Line) -> None:
    begun: list[bool] = []
    line.store.on_begin += [lambda: begun.append(True), raising(databases.lost())]
    tickets = [line.poison(), *(line.ticket() for _ in range(99))]
    line.join(*tickets)
    assert all(isinstance(with_error(ticket), StoreUnavailable) for ticket in tickets)
    assert len(begun) == 1
    assert line.ids() == []


# -- 3: expected outcomes are answers --------------------------------------------------------------------------


def test_duplicates_are_answers_and_cost_no_second_transaction(line: Line) -> None:
    tickets = [line.ticket(idempotency_key="k") for _ in range(5)]
    line.join(*tickets)
    answers = [ticket.wait(LONG) for ticket in tickets]
    assert [answer.disposition for answer in answers] == ["created"] + ["idempotent"] * 4
    assert len({answer.run.id for answer in answers}) == 1
    assert line.store.rounds == [[("trigger", 5)]]


def test_a_lost_lease_is_an_answer(line: Line) -> None:
    lease = line.lease()
    tickets = [line.step(lease), line.step(NOBODY), line.finish(NOBODY), line.renew(NOBODY)]
    line.join(*tickets)
    kept, lost, ended, renewed = [ticket.wait(LONG) for ticket in tickets]
    assert (kept, lost, ended.accepted, renewed) == (True, False, False, False)
    assert line.store.rounds[0] == [("renew_leases", 1), ("save_steps", 2), ("finish", 1)]
    # Where a checkpoint may go with the commit, it is asked once more for the one that was refused why.
    assert line.store.rounds[1:] in ([], [[("save_steps", 1)]])


# -- 4: COMMIT without an answer -------------------------------------------------------------------------------


@pytest.mark.parametrize("happened", [True, False], ids=["it happened", "it did not"])
def test_a_commit_without_an_answer_is_played_again_and_counts_once(
    line: Line, happened: bool, caplog: pytest.LogCaptureFixture
) -> None:
    lease, ending = line.lease(), line.lease()
    lost = raising(databases.driver.OperationalError("the connection broke"))
    (line.store.after_commit if happened else line.store.before_commit).append(lost)
    trigger, step, log, finish = line.ticket(), line.step(lease), line.log(lease), line.finish(ending)
    line.join(trigger, step, log, finish)
    assert step.wait(LONG) is True
    assert finish.wait(LONG).accepted
    assert log.wait(LONG) is None
    run = trigger.wait(LONG).run
    assert line.ids().count(run.id) == 1
    assert len(line.ids()) == 3
    assert line.messages(lease) == ["message"]
    assert line.store.replays == [False, True]
    assert "reading back" in caplog.text


def test_two_commits_in_a_row_without_an_answer_are_told_to_everybody(line: Line) -> None:
    lost = raising(databases.driver.OperationalError("the connection broke"))
    line.store.after_commit += [lost, lost]
    tickets = [line.ticket() for _ in range(5)]
    line.join(*tickets)
    errors = [with_error(ticket) for ticket in tickets]
    assert all(isinstance(error, StoreUnavailable) for error in errors)
    assert all("whether it happened is unknown" in str(error) for error in errors)
    assert len(set(map(id, errors))) == 5
    assert line.store.replays == [False, True]
    connected = line.store.connected
    assert line.write(line.ticket()).disposition == "created"
    assert line.store.connected == connected + 1, "on a connection of its own"


def test_what_may_have_happened_is_still_read_back_when_poison_is_found_on_the_way(line: Line) -> None:
    # The first attempt is committed, but nobody knows. The second one fails: its halves must know it too, or the log
    # line would be written twice.
    lease = line.lease()
    line.store.after_commit.append(raising(databases.driver.OperationalError("the connection broke")))
    line.store.on_verb += [lambda _: None, lambda _: None, raising(ValueError("a bug, just this time"))]
    log, trigger = line.log(lease), line.ticket()
    line.join(log, trigger)
    assert log.wait(LONG) is None
    assert trigger.wait(LONG).disposition in ("created", "idempotent")
    assert line.store.replays == [False, True, True]
    assert line.messages(lease) == ["message"]


def test_if_there_is_no_connection_to_read_back_with_everybody_is_told(line: Line) -> None:
    def break_off() -> None:
        line.store.on_connect.append(raising(StoreUnavailable("the server is gone")))
        raise databases.driver.OperationalError("the connection broke")

    line.store.after_commit.append(break_off)
    tickets = [line.ticket() for _ in range(5)]
    line.join(*tickets)
    assert {str(with_error(ticket)) for ticket in tickets} == {"the server is gone"}
    assert line.write(line.ticket()).disposition == "created"


# -- 5: cancellation -------------------------------------------------------------------------------------------


def test_a_cancelled_await_leaves_the_write(line: Line) -> None:
    told: list[Any] = []
    ticket = line.ticket(then=told.append)

    async def ask() -> Any:
        return await ticket

    async def main() -> None:
        task = asyncio.create_task(ask())
        line.join(ticket)
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ticket.wait(LONG).disposition == "created"
    assert len(told) == 1, "what follows the write follows it also then"


def test_an_await_that_is_cancelled_before_the_round_has_begun_leaves_the_write(threaded: Line) -> None:
    gate = threaded.hold()
    ticket = threaded.ticket()

    async def main() -> None:
        threaded.join(ticket)
        threaded.committer.hand_over()
        task = asyncio.ensure_future(ticket)
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert threaded.committer.backlog == 1
    gate.set()
    assert ticket.wait(LONG).disposition == "created"


def test_what_comes_in_parts_lets_others_go_between_two_of_them(threaded: Line) -> None:
    gate = threaded.hold()
    order: list[str] = []
    parts = [Ticket("trigger", threaded.new(), bulk=True, then=lambda _: order.append("part")) for _ in range(3)]
    threaded.join(*parts)
    first = [threaded.ticket(then=lambda _: order.append("first")) for _ in range(2)]

    def more(_: object) -> None:
        order.append("more")
        threaded.join(late)

    late = threaded.ticket(then=lambda _: order.append("late"))
    threaded.join(*first, threaded.ticket(then=more))
    gate.set()
    assert all(part.wait(LONG).disposition == "created" for part in parts)
    assert late.wait(LONG).disposition == "created"
    _, second, third = [at for at, what in enumerate(order) if what == "part"]
    assert order[0] == "part"
    assert order.index("more") < second, "nobody stands behind two parts"
    assert order.index("late") < third
    assert threaded.committer.backlog == 0


def test_after_a_part_others_have_the_database_for_as_long_as_it_took(threaded: Line) -> None:
    if threaded.store.locks:
        return  # there nobody waits for another's transaction as a whole
    gaps: list[float] = []
    times: list[tuple[float, float]] = []

    def slow() -> None:
        began = threaded.clock.steady()
        threading.Event().wait(0.02)
        times.append((began, threaded.clock.steady()))

    threaded.store.before_commit.extend([slow] * 3)
    parts = [Ticket("trigger", threaded.new(), bulk=True) for _ in range(3)]
    threaded.join(*parts)
    assert all(part.wait(LONG).disposition == "created" for part in parts)
    gaps = [after[0] - before[1] for before, after in pairwise(times)]
    assert all(gap >= 0.02 for gap in gaps), gaps


def test_what_tidies_waits_without_a_stir_while_a_part_rests(threaded: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    if threaded.store.locks:
        return  # nothing rests there
    upkeep, looks = threaded.committer._rounds.upkeep, [0]

    def look(*, idle: bool = False) -> bool:
        looks[0] += 1
        return upkeep(idle=idle)

    monkeypatch.setattr(threaded.committer._rounds, "upkeep", look)
    threaded.store.before_commit.append(lambda: threading.Event().wait(0.1) and None)
    parts = [Ticket("trigger", threaded.new(), bulk=True) for _ in range(2)]
    threaded.join(*parts)
    parts[0].wait(LONG)
    assert threaded.committer.tidy().wait(LONG) is True
    assert parts[1].done(), "all that is there goes first"
    assert looks[0] <= 3


def test_a_part_rests_for_a_second_at_most_however_late_it_has_become(
    threaded: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "_LONGEST_REST", 0.05)
    clock = HandClock()
    monkeypatch.setattr(threaded.committer, "clock", clock)
    threaded.store.before_commit.append(lambda: clock.advance(3600))
    parts = [Ticket("trigger", threaded.new(), bulk=True) for _ in range(2)]
    threaded.join(*parts)
    assert all(part.wait(LONG).disposition == "created" for part in parts)


def test_a_line_that_closes_serves_all_parts_that_are_in_it(threaded: Line) -> None:
    gate = threaded.hold()
    parts = [Ticket("trigger", threaded.new(), bulk=True) for _ in range(5)]
    threaded.join(*parts)
    closed = threaded.committer.close()
    gate.set()
    closed.wait(LONG)
    assert [part.wait(LONG).disposition for part in parts] == ["created"] * 5


def test_a_wait_that_times_out_leaves_the_write(threaded: Line) -> None:
    gate = threaded.hold()
    ticket = threaded.ticket()
    threaded.join(ticket)
    with pytest.raises(TimeoutError, match="The work itself goes on"):
        ticket.wait(0.001)
    assert threaded.committer.backlog == 1
    gate.set()
    assert ticket.wait(LONG).disposition == "created"


# -- 6: no user code in a round --------------------------------------------------------------------------------


def test_answers_are_decoded_by_who_asks_and_after_the_commit(line: Line) -> None:
    where: list[int] = []

    def convert(answer: Any) -> str:
        where.append(threading.get_ident())
        return str(answer.disposition)

    ticket = line.ticket(convert=convert)
    line.join(ticket)
    until(ticket.done)
    assert where == []
    got: list[Any] = []
    asker = threading.Thread(target=lambda: got.extend([threading.get_ident(), ticket.wait(LONG)]))
    asker.start()
    asker.join(LONG)
    assert got == [where[0], "created"]


def test_a_decoder_that_fails_harms_only_who_asked(line: Line) -> None:
    bad, good = line.ticket(convert=raising(ValueError("unreadable"))), line.ticket()
    line.join(bad, good)
    with pytest.raises(ValueError, match="unreadable"):
        bad.wait(LONG)
    assert good.wait(LONG).disposition == "created"
    assert len(line.ids()) == 2


def test_then_is_called_where_the_round_was_and_its_failure_harms_nobody(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    where: list[int] = []

    def then(_: Any) -> None:
        where.append(threading.get_ident())
        assert not any(ticket.done() for ticket in tickets)
        raise ValueError("a bug of the engine")

    tickets = [line.ticket(then=then, what="the trigger"), line.ticket(then=then), line.ticket()]
    line.join(*tickets)
    assert [ticket.wait(LONG).disposition for ticket in tickets] == ["created"] * 3
    assert set(where) == line.store.threads
    assert len(where) == 2
    assert (where[0] == threading.get_ident()) is line.inline
    assert "after the trigger" in caplog.text


def test_what_is_joined_from_within_a_round_is_served_after_it(line: Line) -> None:
    second = line.ticket()
    first = line.ticket(then=lambda _: line.join(second))
    line.write(first)
    assert second.wait(LONG).disposition == "created"
    assert line.store.rounds == [[("trigger", 1)], [("trigger", 1)]]


# -- 7: the convoy ---------------------------------------------------------------------------------------------


def test_a_round_is_one_statement_per_verb(line: Line) -> None:
    lease = line.lease()
    line.join_during_a_round(*(ticket for i in range(50) for ticket in (line.ticket(), line.step(lease, f"{i}"))))
    assert line.store.rounds == [[("save_steps", 50), ("trigger", 50)]]


class Timers:
    """Counts what the guard asks of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.guards = 0
        self.third = loop.create_future()
        original = loop.call_later

        def call_later(delay: float, call: Any, *args: Any, **more: Any) -> Any:
            self.guards += getattr(call, "__func__", None) is desk_module.Desk._guard
            if self.guards == 3 and not self.third.done():
                self.third.set_result(None)
            return original(delay, call, *args, **more)

        loop.call_later = call_later  # type: ignore[method-assign]


def test_the_guard_looks_while_tickets_are_outstanding_and_rests_when_idle(threaded: Line) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers = Timers(loop)
        for _ in range(2):
            gate = threaded.hold()
            ticket = threaded.ticket()
            threaded.join(ticket)
            before = timers.guards
            await turns_until(lambda: timers.guards >= before + 5)  # noqa: B023 - it looks again and again
            gate.set()
            await ticket
            desk = threaded.committer._desk
            assert desk is not None
            await turns_until(lambda: not desk._guarding)  # noqa: B023
            rested = timers.guards
            for _ in range(1000):
                await asyncio.sleep(0)
            assert timers.guards == rested

    asyncio.run(main())


def test_a_loop_has_one_guard_however_many_ticks_hand_over(threaded: Line) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        gate = threaded.hold()
        timers = Timers(loop)
        for _ in range(20):
            threaded.join(threaded.ticket())
            await asyncio.sleep(0)
        pending = [handle for handle in loop._scheduled if "Desk._guard" in repr(handle)]  # type: ignore[attr-defined]
        assert len(pending) <= 1  # none, if it is due in this very turn
        await turns_until(lambda: timers.guards >= 5)
        gate.set()
        await threaded.committer.close()

    asyncio.run(main())


def test_the_guard_gives_way_only_if_the_loop_is_busy(threaded: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    gave_way = 0

    def give_way() -> None:
        nonlocal gave_way
        gave_way += 1

    monkeypatch.setattr(desk_module, "give_way", give_way)

    async def main() -> None:
        timers = Timers(asyncio.get_running_loop())
        gate = threaded.hold()
        ticket = threaded.ticket()
        threaded.join(ticket)
        await timers.third  # nothing else to do: idle
        assert gave_way == 0
        await turns_until(lambda: gave_way >= 3)  # always something to do: busy
        gate.set()
        await ticket

    asyncio.run(main())


def test_of_a_loop_that_does_not_show_its_work_a_late_timer_tells() -> None:
    class Opaque:
        now = 10.0

        def time(self) -> float:
            return self.now

    loop: Any = Opaque()
    assert not desk_module._is_busy(loop, 10.0)
    loop.now += desk_module.GUARD_SECONDS
    assert desk_module._is_busy(loop, 10.0)


def test_a_loop_that_burns_in_short_slices_does_not_stop_the_line(threaded: Line) -> None:
    served = 0

    async def main() -> int:
        slices = 0

        async def writer() -> None:
            nonlocal served
            for _ in range(30):
                ticket = threaded.ticket()
                threaded.join(ticket)
                await ticket
                served += 1

        writing = asyncio.create_task(writer())
        while not writing.done() and slices < 50_000:
            slices += 1
            end = time.perf_counter() + 0.0002
            while time.perf_counter() < end:
                pass
            await asyncio.sleep(0)
        await writing
        return slices

    asyncio.run(main())
    assert served == 30
    assert threaded.committer.rounds == 30


# -- 8: head of line -------------------------------------------------------------------------------------------


def test_renewals_overtake(line: Line) -> None:
    lease = line.lease()
    renewal = line.renew(lease)
    line.join_during_a_round(*(line.log(lease) for _ in range(2500)), renewal)
    assert line.store.rounds[0] == [("renew_leases", 1), ("save_logs", 1000)]
    assert renewal.wait(LONG) is True


def test_a_round_is_bounded_in_tickets(line: Line) -> None:
    line.join_during_a_round(*(line.ticket() for _ in range(2500)))
    assert line.store.rounds == [[("trigger", 1000)], [("trigger", 1000)], [("trigger", 500)]]


def test_a_round_is_bounded_in_bytes(line: Line) -> None:
    lease = line.lease()
    line.join_during_a_round(*(line.log(lease, weight=1 << 20) for _ in range(10)))
    assert line.store.rounds == [[("save_logs", 4)], [("save_logs", 4)], [("save_logs", 2)]]


def test_a_ticket_heavier_than_a_round_has_its_own(line: Line) -> None:
    line.join_during_a_round(line.ticket(weight=5 << 20), line.ticket(weight=5 << 20), line.ticket())
    assert line.store.rounds == [[("trigger", 1)], [("trigger", 1)], [("trigger", 1)]]


def test_renewals_never_starve_the_line(line: Line) -> None:
    line.join_during_a_round(line.ticket(), *(line.renew(NOBODY) for _ in range(1500)))
    assert line.store.rounds == [[("renew_leases", 1500), ("trigger", 1)]]


# -- 9: back-pressure ------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "UPPER_MARK", 10)
    monkeypatch.setattr(committer_module, "LOWER_MARK", 5)


@pytest.mark.usefixtures("narrow")
def test_above_the_upper_mark_threads_wait_for_room(threaded: Line) -> None:
    gate = threaded.hold()
    threaded.join(*(threaded.ticket() for _ in range(10)))
    assert threaded.committer.backlog == 10
    late = [threaded.ticket() for _ in range(3)]
    threads = [in_thread(lambda ticket=ticket: threaded.join(ticket)) for ticket in late]
    until(lambda: len(threaded.committer._door._waiters) == 3)  # type: ignore[attr-defined]
    assert threaded.committer.backlog == 10
    gate.set()
    for thread in threads:
        thread.join(LONG)
    assert [ticket.wait(LONG).disposition for ticket in late] == ["created"] * 3


@pytest.mark.usefixtures("narrow")
def test_what_the_engine_writes_always_passes(threaded: Line) -> None:
    gate = threaded.hold()
    threaded.join(*(threaded.ticket() for _ in range(10)))
    engines = threaded.ticket()
    threaded.committer.join(engines, pass_always=True)

    async def main() -> None:
        own = threaded.ticket()
        threaded.committer.join(own, pass_always=True)
        gate.set()
        await own

    asyncio.run(main())
    assert engines.wait(LONG).disposition == "created"


@pytest.mark.usefixtures("narrow")
def test_event_loops_are_refused_instead_of_blocked(threaded: Line) -> None:
    gate = threaded.hold()
    threaded.join(*(threaded.ticket() for _ in range(10)))

    async def main() -> None:
        refused = threaded.ticket()
        with pytest.raises(Overloaded, match="Await some of the replies"):
            threaded.join(refused)
        assert not refused.done()

    asyncio.run(main())
    gate.set()


@pytest.mark.usefixtures("narrow")
def test_one_tick_alone_can_not_overfill_the_line(line: Line) -> None:
    async def main() -> None:
        tickets = [line.ticket() for _ in range(10)]
        for ticket in tickets:
            line.join(ticket)
        with pytest.raises(Overloaded):
            line.join(line.ticket())
        for ticket in tickets:
            await ticket
        await turns_until(lambda: not line.committer.backlog)
        room = line.ticket()
        line.join(room)
        await room

    asyncio.run(main())
    assert len(line.ids()) == 11


@pytest.mark.usefixtures("narrow")
def test_the_committing_thread_does_not_wait_for_itself_to_make_room(line: Line) -> None:
    more = [line.ticket() for _ in range(3)]
    first = line.ticket(then=lambda _: [line.join(ticket) for ticket in more])
    line.join(first, *(line.ticket() for _ in range(20)))
    assert [ticket.wait(LONG).disposition for ticket in more] == ["created"] * 3


@pytest.mark.usefixtures("narrow")
def test_who_waits_for_room_is_told_when_the_line_closes(threaded: Line) -> None:
    gate = threaded.hold()
    threaded.join(*(threaded.ticket() for _ in range(10)))
    late = threaded.ticket()
    thread = in_thread(lambda: threaded.join(late))
    until(lambda: threaded.committer._door._waiters)  # type: ignore[attr-defined]
    closing = threaded.committer.close()
    thread.join(LONG)
    assert isinstance(with_error(late), StoreClosed)
    gate.set()
    closing.wait(LONG)
    assert len(threaded.ids()) == 10


def test_the_backlog_counts_what_waits_and_what_is_being_served(threaded: Line) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        assert go_on.wait(LONG)

    threaded.store.before_commit.append(hang)
    threaded.join(*(threaded.ticket() for _ in range(3)))
    assert inside.wait(LONG)
    threaded.join(threaded.ticket(), threaded.renew(NOBODY))
    assert threaded.committer.backlog == 5
    go_on.set()
    until(lambda: threaded.committer.backlog == 0)


# -- 10: death and closing -------------------------------------------------------------------------------------


def test_when_the_thread_dies_everybody_is_told(threaded: Line, caplog: pytest.LogCaptureFixture) -> None:
    gate = threaded.hold()
    death = SystemExit("somebody ended the thread")
    threaded.store.on_verb.append(raising(death))
    tickets = [threaded.ticket() for _ in range(1500)]  # one round, and more behind it
    threaded.join(*tickets)
    gate.set()
    later = threaded.ticket()
    errors = [with_error(ticket) for ticket in tickets]
    threaded.join(later)
    errors.append(with_error(later))
    assert all(isinstance(error, StoreClosed) for error in errors)
    assert all(error is not None and error.__cause__ is death for error in errors)
    assert "the commit line has died" in caplog.text
    assert threaded.committer.backlog == 0
    threaded.committer.close().wait(LONG)
    threaded.committer.open()
    assert threaded.write(threaded.ticket()).disposition == "created"
    assert len(threaded.ids()) == 1


def test_a_dead_line_can_be_opened_at_once(threaded: Line) -> None:
    for _ in range(20):
        threaded.store.on_verb.append(raising(SystemExit()))
        ticket = threaded.ticket()
        threaded.join(ticket)
        assert isinstance(with_error(ticket), StoreClosed)
        threaded.committer.open()
        assert threaded.write(threaded.ticket()).disposition == "created"


def test_death_while_committing_is_death_and_no_unanswered_commit(threaded: Line) -> None:
    threaded.store.before_commit.append(raising(SystemExit()))
    ticket = threaded.ticket()
    threaded.join(ticket)
    assert isinstance(with_error(ticket), StoreClosed)
    assert threaded.store.replays == [False]
    assert threaded.ids() == []


def test_an_interrupted_caller_leaves_nobody_waiting(inline: Line) -> None:
    inline.store.on_verb.append(raising(KeyboardInterrupt()))
    tickets = [inline.ticket() for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        inline.join(*tickets)
    assert all(isinstance(with_error(ticket), StoreUnavailable) for ticket in tickets)
    assert inline.committer.backlog == 0
    assert inline.write(inline.ticket()).disposition == "created"


def test_close_serves_what_is_in_the_line_and_refuses_what_comes_later(line: Line) -> None:
    gate = line.hold()
    tickets = [line.ticket() for _ in range(10)]
    line.join(*tickets)
    closing = line.committer.close()
    late = line.ticket()
    line.join(late)
    assert isinstance(with_error(late), StoreClosed)
    gate.set()
    closing.wait(LONG)
    assert all(ticket.done() for ticket in tickets)
    assert [ticket.wait().disposition for ticket in tickets] == ["created"] * 10
    assert line.store.connected == line.store.disconnected + 1, "only the test's own connection is open"
    assert line.committer._thread is None or not line.committer._thread.is_alive()


def test_close_serves_what_a_loop_has_put_down_within_this_tick(line: Line) -> None:
    async def main() -> None:
        tickets = [line.ticket() for _ in range(10)]
        for ticket in tickets:
            line.join(ticket)
        await line.committer.close()
        assert [(await ticket).disposition for ticket in tickets] == ["created"] * 10

    asyncio.run(main())


def test_close_may_be_called_again_by_anybody_at_any_time(line: Line) -> None:
    line.committer.close().wait(LONG)  # before anything was joined
    line.committer.open()
    gate = line.hold()
    ticket = line.ticket()
    line.join(ticket)
    replies = [line.committer.close() for _ in range(3)]
    gate.set()
    for reply in replies:
        reply.wait(LONG)
    line.committer.close().wait(LONG)
    assert ticket.wait().disposition == "created"


def test_close_from_another_thread_does_not_touch_the_loops_timers(threaded: Line) -> None:
    async def main() -> None:
        ticket = threaded.ticket()
        threaded.join(ticket)
        # In debug mode asyncio objects to calls from other threads.
        await asyncio.get_running_loop().run_in_executor(None, lambda: threaded.committer.close().wait(LONG))
        assert (await ticket).disposition == "created"

    asyncio.run(main(), debug=True)


def test_closing_from_within_a_round_ends_after_it(line: Line) -> None:
    ticket = line.ticket(then=lambda _: line.committer.close())
    line.write(ticket)
    line.committer.close().wait(LONG)
    assert line.store.connected == line.store.disconnected + 1
    assert isinstance(with_error_of_new(line), StoreClosed)


def with_error_of_new(line: Line) -> BaseException | None:
    ticket = line.ticket()
    line.join(ticket)
    return with_error(ticket)


def test_a_closed_line_may_be_opened_again(line: Line) -> None:
    for _ in range(3):
        assert line.write(line.ticket()).disposition == "created"
        line.committer.close().wait(LONG)
        assert isinstance(with_error_of_new(line), StoreClosed)
        line.committer.open()
        line.committer.open()  # an open one stays as it is
    assert len(line.ids()) == 3


def test_open_waits_for_what_is_still_being_served(threaded: Line) -> None:
    gate = threaded.hold()
    ticket = threaded.ticket()
    threaded.join(ticket)
    threaded.committer.close()
    opening = in_thread(threaded.committer.open)
    gate.set()
    opening.join(LONG)
    assert ticket.done()
    assert threaded.write(threaded.ticket()).disposition == "created"


def test_a_closed_event_loop_harms_nobody(threaded: Line) -> None:
    gate = threaded.hold()
    other = threaded.ticket()
    threaded.join(other)

    async def leave() -> Ticket[Any]:
        ticket = threaded.ticket()
        threaded.join(ticket)
        waiting = asyncio.ensure_future(ticket)
        await asyncio.sleep(0)
        waiting.cancel()
        reply: Any = ticket
        # Somebody of this loop is still noted down as waiting when it closes.
        reply._subscribe(asyncio.get_running_loop().create_future())
        return ticket

    ticket = asyncio.run(leave())
    gate.set()
    assert other.wait(LONG).disposition == "created"
    assert ticket.wait(LONG).disposition == "created"
    assert threaded.write(threaded.ticket()).disposition == "created"


@pytest.mark.parametrize("ends", ["another loop", "close"])
def test_what_was_put_down_in_the_last_tick_of_a_loop_is_not_lost(line: Line, ends: str) -> None:
    ticket = line.ticket()
    loop = asyncio.new_event_loop()

    def join_and_stop() -> None:
        asyncio.get_running_loop().stop()
        line.join(ticket)

    loop.call_soon(join_and_stop)
    loop.run_forever()
    loop.close()
    del loop
    gc.collect()
    assert not ticket.done()
    if ends == "close":
        line.committer.close().wait(LONG)
    else:

        async def main() -> None:
            line.join(line.ticket())

        asyncio.run(main())
    assert ticket.wait(LONG).disposition == "created"


def test_without_a_thread_everybody_is_told(threaded: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
        ticket = threaded.ticket()
        threaded.join(ticket)
        with pytest.raises(StoreUnavailable, match="can't be started"):
            ticket.wait(LONG)
    assert threaded.write(threaded.ticket()).disposition == "created"
    assert len(threaded.ids()) == 1


# -- 11: fork --------------------------------------------------------------------------------------------------

FORK = """
import os, sys, threading
from holdfast.basis.clock import SystemClock
from holdfast.basis.errors import StoreClosed
from holdfast.commit import reply
from holdfast.commit.committer import Committer
from holdfast.commit.reader import Reader
from holdfast.commit.ticket import Ticket
from holdfast.model.run import NewRun, RunFilter
from databases import StoreHere

url, inline = sys.argv[1], sys.argv[2] == "inline"
store = StoreHere(url)
store.migrate()
committer, reader = Committer(store, SystemClock(), inline=inline), Reader(store, inline=inline)

def ticket(name):
    return Ticket("trigger", NewRun(name, "job", "1"))

def write(name):
    it = ticket(name)
    committer.join(it)
    return it.wait(20)

def ids():
    rows = reader.read("runs", lambda c: store.find_runs(c, RunFilter()), list).wait(20)
    return sorted(row.id for row in rows)

write("before"); assert ids() == ["before"]
connection, thread = committer._rounds.connection, committer._thread
under_way = ticket("under way")
if not inline:
    committer.gate = threading.Event()
    committer.join(under_way)
    closing = committer.close(); committer._closing = False  # a close that somebody waits for

# Other threads hold every lock at the moment of the fork.
held, let_go = threading.Event(), threading.Event()
def hold():
    with committer._door, reader._door, reply._lock:
        held.set(); let_go.wait(20)
holder = threading.Thread(target=hold); holder.start(); held.wait(20)
pid = os.fork()
if pid == 0:
    code = 1
    try:
        if not inline:
            for lost in under_way, closing:
                try:
                    lost.wait(20); raise AssertionError("the parent's")
                except StoreClosed:
                    pass
        assert committer.backlog == 0 and committer._rounds.connection is None
        write("child"); assert "child" in ids()
        assert committer._rounds.connection is not connection
        assert inline or committer._thread is not thread
        assert "under way" not in ids()
        committer.close().wait(20); reader.close()
        code = 0
    except BaseException:
        import traceback; traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
let_go.set(); holder.join()
if inline:
    committer.join(under_way)
else:
    committer.gate.set()
assert under_way.wait(20).disposition == "created"
assert committer._rounds.connection is connection and committer._thread is thread
write("after")
assert ids() == ["after", "before", "child", "under way"], ids()
committer.close().wait(20); reader.close()
pid = os.fork()
if pid == 0:
    late = ticket("late"); committer.join(late)
    try:
        late.wait(20)
    except StoreClosed:
        os._exit(0)  # what was closed stays closed
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("placement", ["thread", "inline"])
def test_after_a_fork_parent_and_child_each_have_a_line_of_their_own(tmp_path: Path, placement: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            FORK,
            databases.url(tmp_path / "fork.db"),
            placement,
        ],
        env=databases.child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
    assert "nobody asked" not in done.stderr


# -- 12: shared exceptions -------------------------------------------------------------------------------------


def test_no_two_callers_get_the_same_exception(line: Line) -> None:
    line.store.on_begin.append(raising(databases.lost()))
    tickets = [line.ticket() for _ in range(5)]
    line.join(*tickets)
    errors = [with_error(ticket) for ticket in tickets]
    assert len(set(map(id, errors))) == 5
    assert {type(error) for error in errors} == {StoreUnavailable}
    assert len({str(error) for error in errors}) == 1
    causes = {id(error.__cause__): error.__cause__ for error in errors if error is not None}
    assert [type(cause) for cause in causes.values()] == [type(databases.lost())]


def test_an_exception_that_can_not_be_copied_is_told_as_text(line: Line) -> None:
    class Stubborn(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} {two}")

    line.store.on_verb.append(raising(Stubborn("no", "copy")))
    ticket = line.ticket()
    line.join(ticket)
    with pytest.raises(StoreError, match="no copy"):
        ticket.wait(LONG)


def test_a_failure_that_nobody_asks_for_is_logged_without_waiting_for_a_garbage_collection(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    gc.disable()
    try:
        line.join(line.poison())
        line.committer.close().wait(LONG)
        until(lambda: "nobody asked" in caplog.text)
    finally:
        gc.enable()


# -- 13: waiting where it would wait for itself ----------------------------------------------------------------


def test_wait_is_refused_on_an_event_loops_thread(line: Line) -> None:
    async def main() -> None:
        ticket = line.ticket()
        line.join(ticket)
        with pytest.raises(WouldDeadlock, match="Use `await`"):
            ticket.wait()
        assert (await ticket).disposition == "created"

    asyncio.run(main())


def test_wait_is_refused_within_a_round(line: Line) -> None:
    refused: list[Any] = []

    def then(_: Any) -> None:
        ticket = line.ticket()
        line.join(ticket)
        with pytest.raises(WouldDeadlock) as caught:
            ticket.wait()
        refused.append((ticket, str(caught.value)))

    line.write(line.ticket(then=then))
    ((ticket, message),) = refused
    assert ("a round" if line.inline else "the committing thread") in message
    assert ticket.wait(LONG).disposition == "created"


# -- 14: the user's own transaction ----------------------------------------------------------------------------


def test_the_same_verbs_serve_a_transaction_beside_the_line(line: Line) -> None:
    connection = line.store.connect()
    try:
        for keep in (False, True):
            tx = line.store.begin(connection)
            line.store.trigger(tx, [line.new(id=f"theirs, {keep}")])
            line.store.commit(tx) if keep else line.store.rollback(tx)
    finally:
        line.store.disconnect(connection)
    line.write(line.ticket(id="ours"))
    assert set(line.ids()) == {"theirs, True", "ours"}


# -- 15: determinism -------------------------------------------------------------------------------------------


def test_inline_every_join_is_a_round_of_its_own_in_the_callers_thread(
    inline: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "start", raising(RuntimeError("there are no threads here")))
    for _ in range(3):
        ticket = inline.ticket()
        inline.join(ticket)
        assert ticket.done()

    async def main() -> None:
        ticket = inline.ticket()
        inline.join(ticket)
        await ticket

    asyncio.run(main())
    inline.committer.close().wait()
    assert inline.store.rounds == [[("trigger", 1)]] * 4
    assert inline.store.threads == {threading.get_ident()}


def test_the_gate_says_who_shares_a_round(threaded: Line) -> None:
    gate = threaded.hold()
    tickets = [threaded.ticket() for _ in range(5)]
    threads = [in_thread(lambda ticket=ticket: threaded.join(ticket)) for ticket in tickets]
    for thread in threads:
        thread.join(LONG)
    assert threaded.store.rounds == []
    gate.set()
    for ticket in tickets:
        ticket.wait(LONG)
    assert threaded.store.rounds == [[("trigger", 5)]]


# -- 16, 17: one writer; the order within a round --------------------------------------------------------------


def test_within_a_round_the_verbs_have_one_order(line: Line) -> None:
    lease, other = line.lease(), line.lease()
    tickets = [line.claim(), line.ticket(), line.finish(other), line.step(lease), line.log(lease), line.renew(lease)]
    line.join(*tickets)
    for ticket in tickets:
        ticket.wait(LONG)
    (verbs,) = line.store.rounds
    order: list[str] = list(ORDER)
    assert [verb for verb, _ in verbs] == sorted((verb for verb, _ in verbs), key=order.index)
    assert tickets[2].wait().accepted
    claimed = tickets[0].wait().runs
    assert [run.id for run in claimed] == [tickets[1].wait().run.id], "a run is claimed in the round that wrote it"


def test_tickets_that_join_together_share_a_round(line: Line) -> None:
    lease = line.lease()
    tickets = [line.step(lease), line.log(lease), line.finish(lease), line.claim()]
    line.join(*tickets)
    for ticket in tickets:
        ticket.wait(LONG)
    assert len(line.store.rounds) == 1
    assert tickets[0].wait() is True, "what a run says before its end counts before its end"


def test_several_threads_may_write_inline_one_after_another(inline: Line) -> None:
    ready = threading.Barrier(4)

    def write() -> None:
        ready.wait(LONG)
        for _ in range(25):
            ticket = inline.ticket()
            inline.join(ticket)
            ticket.wait(LONG)

    threads = [in_thread(write) for _ in range(4)]
    for thread in threads:
        thread.join(LONG)
    assert len(inline.ids()) == 100


# -- many at once ----------------------------------------------------------------------------------------------


def test_a_hundred_joins_in_one_tick_are_one_round(line: Line) -> None:
    async def main() -> None:
        tickets = [line.ticket() for _ in range(100)]
        for ticket in tickets:
            line.join(ticket)
        for ticket in tickets:
            assert (await ticket).disposition == "created"

    asyncio.run(main())
    assert line.store.rounds == [[("trigger", 100)]]


def test_a_round_wakes_each_loop_once(threaded: Line) -> None:
    wakes: list[int] = []
    joined = threading.Barrier(3)
    gate = threaded.hold()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        count = 0
        original = loop.call_soon_threadsafe

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            return original(*args, **more)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]

        async def ask(ticket: Any) -> Any:
            return await ticket

        tickets = [threaded.ticket() for _ in range(100)]
        for ticket in tickets:
            threaded.join(ticket)
        tasks = [asyncio.create_task(ask(ticket)) for ticket in tickets]
        await asyncio.sleep(0)
        joined.wait(LONG)
        await asyncio.gather(*tasks)
        wakes.append(count)
        del loop.call_soon_threadsafe

    threads = [in_thread(lambda: asyncio.run(main())) for _ in range(2)]
    joined.wait(LONG)
    gate.set()
    for thread in threads:
        thread.join(LONG)
    assert wakes == [1, 1]
    assert threaded.store.rounds == [[("trigger", 200)]]


def test_loops_and_threads_write_at_once_and_each_gets_its_own_answer(line: Line) -> None:
    ready = threading.Barrier(5)
    mistakes: list[str] = []
    total = []

    def check(wanted: str, answer: Any) -> None:
        total.append(wanted)
        if answer.run.id != wanted:
            mistakes.append(wanted)

    async def loop_main(name: str) -> None:
        async def one(task: int) -> None:
            for i in range(5):
                ticket = line.ticket(id=f"{name}-{task}-{i}")
                line.join(ticket)
                check(f"{name}-{task}-{i}", await ticket)

        await asyncio.gather(*(one(task) for task in range(20)))

    def run_loop(name: str) -> None:
        ready.wait(LONG)
        asyncio.run(loop_main(name))

    def run_thread(name: str) -> None:
        ready.wait(LONG)
        for i in range(50):
            check(f"{name}-{i}", line.write(line.ticket(id=f"{name}-{i}")))

    threads = [in_thread(lambda i=i: run_loop(f"loop{i}")) for i in range(2)]
    threads += [in_thread(lambda i=i: run_thread(f"thread{i}")) for i in range(3)]
    for thread in threads:
        thread.join(LONG * 3)
    assert mistakes == []
    assert len(total) == 350
    assert len(line.ids()) == 350


def test_one_ticket_may_be_awaited_by_two_loops_and_three_threads(threaded: Line) -> None:
    gate = threaded.hold()
    ticket = threaded.ticket(convert=lambda answer: answer.run.id)
    threaded.join(ticket)
    waiting = threading.Barrier(6)
    got: list[Any] = []

    async def ask() -> None:
        got.append(await ticket)

    async def main() -> None:
        tasks = [asyncio.create_task(ask()) for _ in range(10)]
        await asyncio.sleep(0)
        waiting.wait(LONG)
        await asyncio.gather(*tasks)

    def wait() -> None:
        waiting.wait(LONG)
        got.append(ticket.wait(LONG))

    threads = [in_thread(lambda: asyncio.run(main())) for _ in range(2)] + [in_thread(wait) for _ in range(3)]
    waiting.wait(LONG)
    gate.set()
    for thread in threads:
        thread.join(LONG)
    assert len(got) == 23
    assert all(value is got[0] for value in got)


def test_no_wake_up_is_lost_between_joining_and_falling_asleep(threaded: Line) -> None:
    # The thread falls asleep after each of them; a lost wake-up would let the wait run out.
    for _ in range(500):
        threaded.write(threaded.renew(NOBODY))
    assert threaded.committer.rounds == 500


def test_desks_of_dead_loops_are_not_kept(threaded: Line) -> None:
    async def main() -> None:
        ticket = threaded.ticket()
        threaded.join(ticket)
        await ticket

    for _ in range(5):
        asyncio.run(main())
    gc.collect()
    assert len(threaded.committer._desks) == 0
    assert threaded.committer._waiting_desks == set()


# -- the database in trouble -----------------------------------------------------------------------------------

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin immediate")
print("held", flush=True)
sys.stdin.readline()
connection.execute("rollback")
connection.close()
"""


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
        other.stdin.write("\n")
        other.stdin.flush()
        other.wait(LONG)


@pytest.mark.only("sqlite", "one lock for all who write")
@pytest.mark.parametrize("is_inline", [False, True], ids=["thread", "inline"])
def test_while_another_process_holds_the_database_all_are_told_at_once(tmp_path: Path, is_inline: bool) -> None:
    line = Line(tmp_path / "line.db", inline=is_inline, lock_timeout=0.05)
    try:
        line.write(line.ticket())
        connected = line.store.connected
        with locked_by_another_process(line.path):
            tickets = [line.ticket() for _ in range(50)]
            line.join(*tickets)
            errors = [with_error(ticket) for ticket in tickets]
        assert {type(error) for error in errors} == {StoreUnavailable}
        assert all("locked by another process" in str(error) for error in errors)
        assert len(line.store.rounds) == 1, "nothing was begun, so nobody was tried alone"
        assert line.write(line.ticket()).disposition == "created"
        assert line.store.connected == connected + 1
        assert len(line.ids()) == 2
    finally:
        line.close()


def test_a_database_without_tables_is_told_and_asked_again_later(line: Line, tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    store = type(line.store)(databases.url(path))
    committer = Committer(store, line.clock, inline=line.inline)
    tickets = [line.ticket() for _ in range(3)]
    committer.join(*tickets)
    assert {type(with_error(ticket)) for ticket in tickets} == {SchemaError}
    store.migrate()
    ticket = line.ticket()
    committer.join(ticket)
    assert ticket.wait(LONG).disposition == "created"
    committer.close().wait(LONG)
    assert store.connected == store.disconnected
    store.close()


def test_a_database_file_that_vanishes_is_told(line: Line) -> None:
    line.store.on_connect.append(raising(StoreUnavailable("the directory is gone")))
    ticket = line.ticket()
    line.join(ticket)
    with pytest.raises(StoreUnavailable, match="directory is gone"):
        ticket.wait(LONG)
    assert line.write(line.ticket()).disposition == "created"


def test_the_line_tells_when_it_last_moved(line: Line) -> None:
    assert (line.committer.rounds, line.committer.last_round_at) == (0, 0.0)
    before = line.clock.steady()
    line.write(line.ticket())
    assert line.committer.rounds == 1
    assert before <= line.committer.last_round_at <= line.clock.steady()
    line.store.on_begin.append(raising(databases.lost()))
    moved = line.committer.last_round_at
    ticket = line.ticket()
    line.join(ticket)
    assert isinstance(with_error(ticket), StoreUnavailable)
    assert (line.committer.rounds, line.committer.last_round_at) == (1, moved)


def test_nothing_stays_open_after_close(threaded: Line) -> None:
    threaded.write(threaded.ticket())
    thread = threaded.committer._thread
    assert thread in threading.enumerate()
    threaded.committer.close().wait(LONG)
    assert thread not in threading.enumerate()
    assert threaded.store.connected == threaded.store.disconnected + 1, "only the test's own connection is open"


def test_joining_nothing_is_nothing(line: Line) -> None:
    line.join()
    assert line.write(line.ticket()).disposition == "created"
    assert len(line.store.rounds) == 1


def test_the_error_log_is_quiet_when_all_goes_well(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "holdfast"):
        line.write(line.ticket())
        line.committer.close().wait(LONG)
    assert [record for record in caplog.records if record.name == "holdfast"] == []


def test_blocking_code_in_a_loops_own_thread_may_write_inline_at_once(inline: Line) -> None:
    async def main() -> None:
        put_down, now = inline.ticket(), inline.ticket()
        inline.join(put_down)
        inline.committer.join(now, at_once=True)
        assert now.done()
        assert put_down.done(), "who came first is served first"
        assert now.wait(0).disposition == "created"
        await put_down

    asyncio.run(main())
    assert inline.store.rounds == [[("trigger", 1)], [("trigger", 1)]]
