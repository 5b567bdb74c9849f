"""Processes that write about the same runs and keys at once never wait in a circle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import servers
from holdfast.store.mysql import MysqlStore
from holdfast.store.postgres import PostgresStore

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

SCRIPT = Path(__file__).with_name("overlapping_batches.py")
PROCESSES = 4
#: Rounds of all of them that may be played again.
AGAIN = 4
SECONDS = float(os.environ.get("HOLDFAST_TEST_SECONDS", "8"))


def together(url: str, seconds: float) -> list[dict[str, Any]]:
    children = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), url, str(seed), str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in range(PROCESSES)
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    told = [child.communicate(timeout=seconds + 120) for child in children]
    assert [error for _, error in told if error] == []
    return [json.loads(out) for out, _ in told]


def test_four_processes_with_overlapping_batches_on_postgresql_do_not_deadlock() -> None:
    with servers.postgres(deadlock_timeout="200ms", log_lock_waits="on") as server:
        url = server.url(server.create_database())
        PostgresStore(url).migrate()  # who makes the tables at the same time meets the others' names
        told = together(url, SECONDS)
        log = server.log
    found = log.find("deadlock detected")
    assert found < 0, log[max(found - 200, 0) : found + 8000]
    assert [line for line in log.splitlines() if " ERROR: " in line] == []
    went_well(told)


def test_four_processes_with_overlapping_batches_on_mariadb_do_not_deadlock() -> None:
    with servers.mariadb(**{"innodb-print-all-deadlocks": "1"}) as server:
        url = server.url(server.create_database())
        MysqlStore(url).migrate()  # those who make the tables at the same time wait in a circle, and do it again
        told = together(url, SECONDS)
        ((_, deadlocks),) = server.execute("show global status like 'Innodb_deadlocks'")
        log = server.log
    found = log.lower().find("deadlock")
    assert int(deadlocks) == 0, log[max(found - 200, 0) : found + 8000]
    went_well(told)


def went_well(told: list[dict[str, Any]]) -> None:
    print({key: [one[key] for one in told] for key in ("rounds", "again", "refused", "accepted")})
    assert [one["refused"] for one in told] == [[]] * PROCESSES
    # A round is played again where the run that had an idempotency key is deleted just then: that is no circle.
    assert sum(one["again"] for one in told) <= AGAIN
    # Nobody is given what somebody else has, under whatever load.
    claims = [tuple(claim) for one in told for claim in one["claimed"]]
    assert len(claims) == len(set(claims))
    assert [one["twice"] for one in told] == [[]] * PROCESSES
    # And it was about something.
    verbs = {verb for one in told for verb in one["accepted"]}
    assert len(verbs) == 19, verbs
    assert len(claims) > 100
