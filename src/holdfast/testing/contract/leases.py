"""Promises about leases: renewing, losing, taking back, and who is at work."""

from __future__ import annotations

from ...model.run import RunRow, RunStatus
from ...rules.lifecycle import Cause
from ...store.base import Recall, Sweep
from .bench import LEASE, SECOND, StoreBench


class LeaseContract(StoreBench):
    # -- deadlines ---------------------------------------------------------------------------------------------

    def pass_deadlines(self, limit: int = 100) -> list[str]:
        rows: list[RunRow] = self.do("pass_deadlines", [limit])[0]
        return [row.id for row in rows]

    def test_a_run_that_has_not_ended_at_its_deadline_has_timed_out_whatever_it_does(self) -> None:
        waits, leased = self.trigger(deadline=9 * SECOND, delay=60 * SECOND), self.lease(deadline=9 * SECOND)
        suspended = self.lease(deadline=9 * SECOND)
        self.finish(suspended, Cause.SUSPEND)
        self.clock.advance(8.9)
        assert self.pass_deadlines() == []
        self.clock.advance(0.1)
        for run_id in (waits, leased.run_id, suspended.run_id):
            before = self.run(run_id)
            (row,) = self.do("pass_deadlines", [1])[0]
            assert row.id == run_id
            now = self.run(run_id)
            assert (now.status, now.error_type, now.completed_at) == ("timed_out", "TimedOut", self.clock.now())
            assert (now.generation, now.lease_owner) == (before.generation + 1, None)
        assert self.pass_deadlines() == []

    def test_who_held_a_run_at_its_deadline_writes_nothing_more(self) -> None:
        lease = self.lease(deadline=SECOND)
        self.clock.advance(1)
        assert self.pass_deadlines() == [lease.run_id]
        assert self.do("save_steps", [self.step(lease)]) == [False]
        ended = self.finish(lease)
        assert (ended.accepted, ended.status) == (False, "timed_out")

    def test_what_has_ended_has_no_deadline_any_more(self) -> None:
        lease = self.lease(deadline=SECOND)
        self.finish(lease)
        self.cancel(self.trigger(deadline=SECOND))
        self.clock.advance(2)
        assert self.pass_deadlines() == []

    def test_the_earliest_deadlines_pass_first_and_no_more_than_asked(self) -> None:
        ids = {seconds: self.trigger(deadline=seconds * SECOND) for seconds in (3, 1, 2)}
        self.clock.advance(5)
        assert self.pass_deadlines(0) == []
        assert set(self.pass_deadlines(2)) == {ids[1], ids[2]}
        assert self.run(ids[3]).status == "pending"

    def test_a_passed_deadline_lets_the_next_of_the_key_go(self) -> None:
        lease = self.lease("a", concurrency_key="key", deadline=SECOND)
        younger = self.trigger("b", concurrency_key="key")
        assert self.claim("b") == []
        self.clock.advance(1)
        assert self.pass_deadlines() == [lease.run_id]
        assert [run.id for run in self.claim("b")] == [younger]

    def test_timeout_and_retry_of_a_run_are_kept_as_they_were_given(self) -> None:
        run = self.run(self.trigger(timeout=5 * SECOND, retry='{"max_retries":3}', deadline=9))
        assert (run.timeout, run.retry, run.deadline_at) == (5 * SECOND, '{"max_retries":3}', self.clock.now() + 9)

    # -- renewing ----------------------------------------------------------------------------------------------

    def test_a_renewed_lease_lasts_from_now(self) -> None:
        lease = self.lease()
        self.clock.advance(10)
        assert self.do("renew_leases", [self.renewal(lease)]) == [True]
        assert self.run(lease.run_id).lease_expires_at == self.clock.now() + LEASE
        self.clock.advance(29)
        assert self.expire() == []

    def test_renewals_of_many_leases_are_answered_in_order(self) -> None:
        held = [self.lease() for _ in range(20)]
        self.finish(held[3])
        self.cancel(held[7].run_id)
        answers = self.do("renew_leases", [self.renewal(lease) for lease in held])
        assert [index for index, renewed in enumerate(answers) if not renewed] == [3, 7]

    def test_one_lease_renewed_twice_in_one_call_is_renewed(self) -> None:
        lease = self.lease()
        answers = self.do("renew_leases", [self.renewal(lease, SECOND), self.renewal(lease, 5 * SECOND)])
        assert answers == [True, True]
        assert self.run(lease.run_id).lease_expires_at == self.clock.now() + 5 * SECOND

    def test_renewing_again_after_a_lost_answer_renews(self) -> None:
        lease = self.lease()
        self.do("renew_leases", [self.renewal(lease)])
        assert self.do("renew_leases", [self.renewal(lease)], replay=True) == [True]

    def test_a_lease_that_has_run_out_is_renewed_until_somebody_takes_it(self) -> None:
        # The database's clock may have jumped; whether the holder's time is over it knows by a clock that does not.
        lease = self.lease()
        self.clock.advance(LEASE / SECOND)
        assert self.do("renew_leases", [self.renewal(lease)]) == [True]
        self.clock.advance(LEASE / SECOND)
        self.expire()
        assert self.do("renew_leases", [self.renewal(lease)]) == [False]

    def test_lost_leases_are_not_renewed(self) -> None:
        lost = self.lost_leases()
        self.clock.advance(1)  # what is renewed lasts longer than before
        for how, lease in lost.items():
            before = self.everything()
            assert self.do("renew_leases", [self.renewal(lease)]) == [False], how
            assert self.everything() == before, how

    def test_a_zombie_is_not_renewed_beside_its_successor(self) -> None:
        zombie = self.lease()
        self.crash(zombie)
        heir = self.lease_of(zombie.run_id, self.claim())
        assert self.do("renew_leases", [self.renewal(zombie), self.renewal(heir)]) == [False, True]

    def test_lost_leases_are_named_with_the_status_of_their_runs(self) -> None:
        lost = self.lost_leases()
        held = self.lease("held")
        assert self.store.lost_leases(self.connection, [held, *lost.values()]) == {
            lease: "gone" if how == "gone" else self.run(lease.run_id).status for how, lease in lost.items()
        }

    # -- expiry ------------------------------------------------------------------------------------------------

    def test_an_expired_lease_is_taken_back(self) -> None:
        lease = self.lease()
        self.clock.advance(LEASE / SECOND)
        (row,) = self.expire()
        assert row == self.run(lease.run_id)
        assert (row.status, row.generation, row.crashes, row.attempt) == ("pending", 2, 1, 0)
        assert (row.lease_owner, row.lease_expires_at, row.completed_at) == (None, None, None)

    def test_a_lease_that_lasts_is_left_alone(self) -> None:
        lease = self.lease()
        self.clock.advance(LEASE / SECOND - 0.000_001)
        assert self.expire() == []
        assert self.store.lost_leases(self.connection, [lease]) == {}

    def test_an_expired_run_keeps_its_place_before_younger_ones(self) -> None:
        lease = self.lease()
        younger = self.trigger()
        self.crash(lease)
        assert [run.id for run in self.claim()] == [lease.run_id, younger]

    def test_the_oldest_leases_are_taken_back_first_and_no_more_than_the_limit(self) -> None:
        first = self.lease("a")
        self.clock.advance(1)
        second = self.lease("b")
        self.clock.advance(1)
        third = self.lease("c")
        self.clock.advance(LEASE / SECOND)
        taken = [[row.id for row in rows] for rows in self.do("expire", [Sweep(5, 1), Sweep(5, 1), Sweep(5), Sweep(5)])]
        assert taken == [[first.run_id], [second.run_id], [third.run_id], []]

    def test_a_renewed_lease_is_taken_back_after_those_that_ran_out_before(self) -> None:
        renewed, second = self.lease("a"), self.lease("b")
        self.clock.advance(1)
        self.do("renew_leases", [self.renewal(renewed)])
        self.clock.advance(LEASE / SECOND)
        assert [row.id for row in self.expire(limit=1)] == [second.run_id]

    def test_nobody_judges_leases_after_waiting_too_long_for_the_right_to_write(self) -> None:
        lease = self.lease()
        self.clock.advance(LEASE / SECOND)
        with self.tx() as tx:
            tx.waited = 10.1
            assert self.store.expire(tx, [Sweep(5, patience=10)]) == [[]]
            tx.waited = 10.0
            assert [row.id for row in self.store.expire(tx, [Sweep(5, patience=10)])[0]] == [lease.run_id]

    def test_leases_are_judged_by_the_databases_clock_also_after_it_was_set_back(self) -> None:
        assert self.expire() == []
        self.clock.jump(-2 * LEASE / SECOND)
        lease = self.lease()
        assert self.expire() == []
        self.clock.advance(LEASE / SECOND)
        assert [row.id for row in self.expire()] == [lease.run_id]

    def test_expiring_again_after_a_lost_answer_counts_no_second_crash(self) -> None:
        lease = self.lease()
        self.crash(lease)
        assert self.do("expire", [Sweep(5)], replay=True) == [[]]
        assert self.run(lease.run_id).crashes == 1

    def test_a_run_is_given_up_after_too_many_crashes(self) -> None:
        lease = self.lease()
        for crashes in range(1, 4):
            self.clock.advance(LEASE / SECOND)
            (row,) = self.expire(max_crashes=3)
            assert row.crashes == crashes
            assert row.status == ("failed" if crashes == 3 else "pending")
            self.claim()
        run = self.run(lease.run_id)
        assert (run.status, run.error_type, run.completed_at) == ("failed", "WorkerCrashed", self.clock.now())
        assert "3" in (run.error or "")
        assert run.generation == 6

    def test_progress_by_a_checkpoint_ends_the_count_of_crashes(self) -> None:
        lease = self.lease()
        for number in range(8):
            self.clock.advance(LEASE / SECOND)
            assert self.expire(max_crashes=2)[0].status == "pending", number
            lease = self.lease_of(lease.run_id, self.claim())
            assert self.do("save_steps", [self.step(lease, f"step-{number}", moved_on=True)]) == [True]
            assert self.run(lease.run_id).crashes == 0

    def test_a_refused_checkpoint_is_no_progress(self) -> None:
        zombie = self.lease()
        self.crash(zombie)
        self.claim()
        assert self.do("save_steps", [self.step(zombie, moved_on=True)]) == [False]
        assert self.run(zombie.run_id).crashes == 1

    def test_a_checkpoint_that_does_not_say_so_leaves_the_count(self) -> None:
        lease = self.lease()
        self.crash(lease)
        heir = self.lease_of(lease.run_id, self.claim())
        self.do("save_steps", [self.step(heir)])
        assert self.run(lease.run_id).crashes == 1

    def test_handing_back_is_no_crash(self) -> None:
        lease = self.lease()
        self.finish(lease, Cause.RELEASE)
        run = self.run(lease.run_id)
        assert (run.status, run.crashes, run.attempt, run.generation) == ("pending", 0, 0, 1)

    # -- recall ------------------------------------------------------------------------------------------------

    def test_runs_that_their_worker_does_not_know_of_are_put_back(self) -> None:
        known, unknown = self.lease(owner="me"), self.lease(owner="me")
        others = self.lease(owner="other")
        assert self.do("recall", [Recall("me", (known.run_id,))]) == [1]
        run = self.run(unknown.run_id)
        assert (run.status, run.generation, run.crashes, run.attempt) == ("pending", 2, 0, 0)
        assert self.store.lost_leases(self.connection, [known, unknown, others]) == {unknown: "pending"}

    def test_a_worker_that_knows_of_nothing_gives_back_everything(self) -> None:
        for _ in range(3):
            self.lease(owner="me")
        assert self.do("recall", [Recall("me", ()), Recall("me", ()), Recall("nobody", ())]) == [3, 0, 0]

    def test_only_leased_runs_expire_or_are_recalled(self) -> None:
        for status in RunStatus.all() - {RunStatus.LEASED, RunStatus.PENDING}:
            self.run_in(status)
        self.run_in(RunStatus.PENDING)  # last: the others are claimed on their way
        self.clock.advance(10 * LEASE / SECOND)
        before = self.everything()
        assert self.expire() == []
        assert self.do("recall", [Recall("worker", ())]) == [0]
        assert self.everything() == before
