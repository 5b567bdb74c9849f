"""One promotion of the failover campaign: a form of seconds. `make failover` has the long one."""

from __future__ import annotations

import os
import threading

import pytest
from failover_pair import a_pair, until

import failover
import servers
from holdfast import Holdfast

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")


LONG = 60.0


def needs_postgres() -> None:
    if servers.programs("postgres") is None and os.environ.get("HOLDFAST_TEST_REQUIRE") != "all":
        pytest.skip("NO PostgreSQL: `make servers` installs it where it may")


def test_d6_nobody_stays_with_a_primary_that_was_made_read_only_and_is_still_there() -> None:
    """A switch-over as administrators do it: who waits and who reads must move, too, though their sessions are fine."""
    needs_postgres()
    with a_pair() as pair:
        pair.primary.execute("create database house")
        url = pair.url("house")
        working, waiting = Holdfast(url, polling_interval=0.5), Holdfast(url, worker=False, polling_interval=0.5)
        go_on = threading.Event()

        @working.job
        def fly(n: int) -> int:
            assert n == 0 or go_on.wait(LONG)
            return n

        @waiting.job(name="fly")
        def asked(n: int) -> int: ...

        with working, waiting:
            assert asked.trigger(0).wait(LONG).wait().wait(LONG).output == 0
            run = asked.trigger(1).wait(LONG)
            end = run.wait()
            with pytest.raises(TimeoutError):
                end.wait(0.2)
            assert waiting.get_run(run.id).wait(LONG) is not None
            pair.primary.execute("alter system set default_transaction_read_only = on")
            pair.primary.execute("select pg_reload_conf()")
            pair.promote()
            go_on.set()
            assert end.wait(LONG).output == 1
            until(lambda: asked.trigger(2).wait(LONG).wait().wait(LONG).output == 2, "another run")
            found = waiting.get_run(run.id).wait(LONG)
            assert found is not None
            assert found.status == "completed"


def test_m6_m7_a_synchronous_standby_that_is_promoted_has_all_that_was_acknowledged() -> None:
    """With its link cut first, waits that are cancelled, and a worker that dies with the primary."""
    needs_postgres()
    one = failover.run([True], 100)
    assert one.troubles == []
    assert one.promotions[0].cancelled > 0
    assert len(one.notes) > 20
