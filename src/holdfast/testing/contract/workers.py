"""Promises about workers: who is there, since when, and what each one holds."""

from __future__ import annotations

from typing import Any

from ...model.worker import CheckIn, HeldRow, WorkerRow
from ...rules.lifecycle import Cause
from .bench import LEASE, NAMES, SECOND, StoreBench


class WorkerContract(StoreBench):
    def here(self, id: str = "worker", **values: Any) -> CheckIn:
        row: dict[str, Any] = {
            "host": "host", "pid": 1, "jobs": '["job"]', "queues": '["default"]', "version": "1", "lease": LEASE,
            **values,
        }  # fmt: skip
        return CheckIn(id, **row)

    def workers(self) -> list[WorkerRow]:
        return self.store.find_workers(self.connection)

    def worker_ids(self) -> list[str]:
        return [row.id for row in self.workers()]

    def test_who_checks_in_is_there_with_all_that_it_said(self) -> None:
        now = self.clock.now()
        for text in NAMES:
            self.do("check_in", [self.here(text, host=text, pid=2**40, version=text, jobs="[]", queues="[]")])
        expected = {
            WorkerRow(text, text, 2**40, now, now, "[]", "[]", text, LEASE, alive=True, held=()) for text in NAMES
        }
        assert set(self.workers()) == expected

    def test_who_checks_in_again_was_seen_now_and_keeps_its_start(self) -> None:
        began = self.clock.now()
        self.do("check_in", [self.here(jobs="[]")])
        self.clock.advance(20)
        self.do("check_in", [self.here(jobs='["new"]', queues='["fast"]', lease=2 * LEASE)])
        (row,) = self.workers()
        assert (row.started_at, row.seen_at) == (began, began + 20 * SECOND)
        assert (row.jobs, row.queues, row.lease) == ('["new"]', '["fast"]', 2 * LEASE)

    def test_checking_in_may_run_twice(self) -> None:
        self.do("check_in", [self.here()])
        self.do("check_in", [self.here()], replay=True)
        assert self.worker_ids() == ["worker"]

    def test_of_one_worker_twice_in_one_call_the_last_word_counts(self) -> None:
        assert self.do("check_in", [self.here(pid=1), self.here(pid=2)]) == [None, None]
        assert [row.pid for row in self.workers()] == [2]

    def test_who_checks_out_is_gone_and_the_others_stay(self) -> None:
        self.do("check_in", [self.here("a"), self.here("b")])
        assert self.do("check_out", ["a", "no such worker"]) == [None, None]
        self.do("check_out", ["a"], replay=True)
        assert self.worker_ids() == ["b"]

    def test_checking_out_leaves_what_is_leased_as_it_is(self) -> None:
        lease = self.lease()
        self.do("check_in", [self.here()])
        self.do("check_out", ["worker"])
        assert self.run(lease.run_id).lease_owner == "worker"

    def test_a_worker_that_was_not_seen_for_its_lease_is_not_alive(self) -> None:
        self.do("check_in", [self.here("short", lease=SECOND), self.here("long", lease=10 * SECOND)])
        self.clock.advance(0.999)
        assert [row.alive for row in self.workers()] == [True, True]
        self.clock.advance(0.001)
        assert {row.id: row.alive for row in self.workers()} == {"short": False, "long": True}

    def test_those_not_seen_for_ten_leases_are_forgotten_and_no_others(self) -> None:
        self.do("check_in", [self.here("short", lease=SECOND), self.here("long", lease=10 * SECOND)])
        self.clock.advance(9.999)
        assert self.do("forget_workers", [100]) == [0]
        self.clock.advance(0.001)
        assert self.do("forget_workers", [100]) == [1]
        assert self.do("forget_workers", [100], replay=True) == [0]
        assert self.worker_ids() == ["long"]

    def test_so_many_are_forgotten_at_once(self) -> None:
        self.do("check_in", [self.here(name) for name in "abc"])
        self.clock.advance(3600)
        assert self.do("forget_workers", [2]) == [2]
        assert self.do("forget_workers", [2]) == [1]

    def test_workers_come_in_the_order_of_their_start(self) -> None:
        for name in ("z", "a", "m"):
            self.do("check_in", [self.here(name)])
            self.clock.advance(1)
        self.do("check_in", [self.here("z")])
        assert self.worker_ids() == ["z", "a", "m"]

    def test_a_worker_has_the_runs_that_are_leased_to_it_since_their_claim(self) -> None:
        self.do("check_in", [self.here(), self.here("other"), self.here("idle")])
        first = self.lease("slow")
        since = self.clock.now()
        self.clock.advance(1)
        second = self.lease("quick")
        foreign = self.lease("slow", owner="other")
        self.do("renew_leases", [self.renewal(first)])
        self.do("save_steps", [self.step(first)])
        held = {row.id: row.held for row in self.workers()}
        assert held == {
            "worker": (HeldRow(first.run_id, "slow", since), HeldRow(second.run_id, "quick", since + SECOND)),
            "other": (HeldRow(foreign.run_id, "slow", since + SECOND),),
            "idle": (),
        }

    def test_a_run_that_was_let_go_is_nobodys(self) -> None:
        self.do("check_in", [self.here()])
        for cause in (Cause.COMPLETE, Cause.RELEASE):
            self.finish(self.lease(str(cause)), cause)
        assert [row.held for row in self.workers()] == [()]

    def test_a_rollback_leaves_no_worker(self) -> None:
        tx = self.store.begin(self.connection)
        self.store.check_in(tx, [self.here()])
        self.store.rollback(tx)
        assert self.worker_ids() == []

    def test_the_verbs_about_workers_take_an_empty_list(self) -> None:
        self.do("check_in", [self.here()])
        for verb in ("check_in", "check_out", "forget_workers"):
            assert self.do(verb, []) == [], verb
        assert self.worker_ids() == ["worker"]
