"""One promotion of the failover campaign: a form of seconds. `make failover` has the long one."""

from __future__ import annotations

import os

import pytest

import failover
import servers

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")


def test_m6_m7_a_synchronous_standby_that_is_promoted_has_all_that_was_acknowledged() -> None:
    """With its link cut first, waits that are cancelled, and a worker that dies with the primary."""
    if servers.programs("postgres") is None and os.environ.get("HOLDFAST_TEST_REQUIRE") != "all":
        pytest.skip("NO PostgreSQL: `make servers` installs it where it may")
    one = failover.run([True], 100)
    assert one.troubles == []
    assert one.promotions[0].cancelled > 0
    assert len(one.notes) > 20
