"""Homes: in whose event loop coroutines run, and whose loop is closed."""

from __future__ import annotations

import asyncio
import threading

import pytest
from around import LONG

from holdfast.basis.errors import StoreClosed
from holdfast.engine.home import Home


async def where() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    return asyncio.get_running_loop(), threading.current_thread()


async def fail() -> None:
    raise ValueError("no")


def test_the_loop_of_the_caller_is_used_and_never_closed() -> None:
    async def main() -> Home:
        home = Home.here()
        assert await home.call("where", where) == await where()
        with pytest.raises(ValueError, match="no"):
            await home.call("fail", fail)
        return home

    loop = asyncio.new_event_loop()
    home = loop.run_until_complete(main())
    assert home.call("where", where).wait(LONG)[0] is loop  # it stands still, and nobody else turns it
    home.close()
    assert home.is_usable()
    loop.close()
    assert not home.is_usable()


def test_a_loop_on_a_thread_serves_other_loops_and_threads_and_is_gone_after_close() -> None:
    home = Home.on_thread()
    assert home.call("where", where).wait(LONG) == (home.loop, home.thread)

    async def main() -> None:
        assert (await home.call("where", where))[1] is home.thread

    asyncio.run(main())
    home.close()
    home.close()
    assert home.thread is not None
    assert not home.thread.is_alive()
    assert home.loop.is_closed()


def test_what_still_runs_when_the_loop_is_closed_is_cancelled_and_told_so() -> None:
    home, started = Home.on_thread(), threading.Event()

    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    reply = home.call("forever", forever)
    reply.when_done(lambda: None)
    assert started.wait(LONG)
    home.close()
    with pytest.raises(StoreClosed):
        reply.wait(LONG)


def test_a_stepwise_loop_runs_while_somebody_waits_and_needs_no_thread() -> None:
    before = threading.active_count()
    home = Home.stepwise()
    assert home.call("where", where).wait(LONG) == (home.loop, threading.current_thread())
    with pytest.raises(ValueError, match="no"):
        home.call("fail", fail).wait(LONG)
    assert threading.active_count() == before
    home.close()
    assert home.loop.is_closed()


def test_a_call_starts_only_when_it_is_asked_for() -> None:
    calls: list[int] = []

    async def note() -> None:
        calls.append(1)

    home = Home.stepwise()
    reply = home.call("note", note)
    assert calls == []
    reply.wait(LONG)
    reply.wait(LONG)
    assert calls == [1]
    home.close()
