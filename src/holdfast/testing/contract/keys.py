"""Promises about concurrency keys and job limits: who may go, who waits, and who goes next."""

from __future__ import annotations

import threading
from typing import Any

from ...model.run import RunRow
from ...rules.lifecycle import Cause
from ...store.base import Lease, Recall
from .bench import LEASE, SECOND, StoreBench
from .walk import A, B, C, Walk


class KeyContract(StoreBench):
    def keyed(self, job: str = A, key: str = "key", **values: Any) -> str:
        return self.trigger(job, concurrency_key=key, **values)

    def go(self, *jobs: str, **values: Any) -> list[str]:
        """The runs that a claim gets, by id."""
        return [run.id for run in self.claim(*(jobs or (A, B, C)), **values)]

    def hold(self, job: str = A, key: str = "key", **values: Any) -> Lease:
        """A run that is leased and so holds its key."""
        return self.lease(job, concurrency_key=key, **values)

    # -- one at a time -----------------------------------------------------------------------------------------

    def test_of_one_key_one_run_is_leased_over_all_jobs(self) -> None:
        first, _, _ = self.keyed(A), self.keyed(B), self.keyed(C)
        assert self.go() == [first]
        assert self.go() == []
        assert not self.store.has_claimable(self.connection, self.order(A, B, C))

    def test_two_workers_in_one_round_do_not_share_a_key(self) -> None:
        first, second = self.keyed(A), self.keyed(B)
        answers = self.do("claim", [self.order(A, B, owner="x", limit=1), self.order(A, B, owner="y", limit=1)])
        assert [[run.id for run in answer.runs] for answer in answers] == [[first], []]
        assert self.run(second).status == "pending"

    def test_different_keys_and_runs_without_a_key_are_independent(self) -> None:
        held = self.hold(key="held")
        self.keyed(B, "held")
        free = [self.keyed(A, "other"), self.trigger(A), self.trigger(A), self.keyed(B, "third")]
        assert self.go() == free
        assert self.run(held.run_id).status == "leased"

    def test_keys_that_only_look_alike_are_different(self) -> None:
        keys = ["key", "KEY", "kéy", "ke\u0301y", "key ", " key", "0", "00", "null", "emoji 🧗"]
        made = [self.keyed(A, key) for key in keys]
        assert self.go() == made

    def test_a_claim_is_filled_up_where_several_of_its_runs_share_a_key(self) -> None:
        now = self.clock.now()
        jobs = [f"job {n}" for n in range(6)]
        shared = [self.keyed(job, "key", run_at=now - 90 + n) for n, job in enumerate(jobs)]
        others = [self.trigger(jobs[0], run_at=now - 50 + n) for n in range(3)]
        assert self.go(*jobs, limit=3) == [shared[0], *others[:2]]

    # -- who goes next -----------------------------------------------------------------------------------------

    def test_the_end_of_a_run_lets_the_next_of_its_key_go(self) -> None:
        for cause in (Cause.COMPLETE, Cause.FAIL, Cause.TIME_OUT, Cause.CANCEL_ITSELF):
            lease = self.hold(A, str(cause))
            younger = self.keyed(B, str(cause))
            assert self.go() == [], cause
            self.finish(lease, cause)
            assert self.store.has_claimable(self.connection, self.order(B))
            assert self.go() == [younger], cause

    def test_the_end_and_the_next_claim_share_a_round(self) -> None:
        lease, younger = self.hold(A), self.keyed(B)
        with self.tx() as tx:
            self.store.finish(tx, [self.ending(lease)])
            (claimed,) = self.store.claim(tx, [self.order(A, B)])
        assert [run.id for run in claimed.runs] == [younger]

    def test_the_next_goes_when_the_holder_is_cancelled(self) -> None:
        lease, younger = self.hold(A), self.keyed(B)
        self.cancel(lease.run_id)
        assert self.go() == [younger]

    def test_cancelling_one_that_waits_changes_nothing_for_the_others(self) -> None:
        lease, second, third = self.hold(A), self.keyed(B), self.keyed(C)
        self.cancel(second)
        assert self.go() == []
        self.finish(lease)
        assert self.go() == [third]

    def test_cancelling_the_first_of_a_free_key_lets_the_next_go(self) -> None:
        first, second = self.keyed(A), self.keyed(B)
        self.cancel(first)
        assert self.go() == [second]

    def test_the_next_goes_when_its_key_is_given_up_after_too_many_crashes(self) -> None:
        lease, younger = self.hold(A), self.keyed(B)
        self.clock.advance(LEASE / SECOND)
        assert [row.status for row in self.expire(max_crashes=1)] == ["failed"]
        assert self.run(lease.run_id).error_type == "WorkerCrashed"
        assert self.go() == [younger]

    def test_the_next_goes_when_the_holder_passes_its_deadline(self) -> None:
        lease, younger = self.hold(A, deadline=60 * SECOND), self.keyed(B)
        self.clock.advance(60)
        assert [row.id for row in self.do("pass_deadlines", [10])[0]] == [lease.run_id]
        assert self.go() == [younger]

    def test_a_suspended_run_gives_its_key_up(self) -> None:
        lease, younger = self.hold(A), self.keyed(B)
        self.finish(lease, Cause.SUSPEND)
        assert self.go() == [younger]

    def test_a_repeated_ending_does_not_let_a_second_one_go(self) -> None:
        lease, second, third = self.hold(A), self.keyed(B), self.keyed(C)
        self.finish(lease)
        assert self.go() == [second]
        self.finish(lease, replay=True)
        self.cancel(lease.run_id, replay=True)
        assert self.go() == []
        assert self.run(third).status == "pending"

    def test_a_zombies_ending_does_not_let_anybody_go(self) -> None:
        lease = self.hold(A)
        self.crash(lease)
        assert self.go() == [lease.run_id]
        younger = self.keyed(B)
        assert not self.finish(lease).accepted
        assert self.go() == []
        assert self.run(younger).status == "pending"

    # -- a run keeps its key until its end ---------------------------------------------------------------------

    def test_a_run_that_returns_to_pending_goes_again_before_any_other_of_its_key(self) -> None:
        for cause in (Cause.RETRY, Cause.RELEASE):
            lease = self.hold(A, str(cause))
            younger, urgent = self.keyed(B, str(cause)), self.keyed(C, str(cause), priority=9)
            self.finish(lease, cause)
            assert self.go() == [lease.run_id], cause
            self.finish(lease._replace(generation=2))
            assert self.go() == [urgent], cause
            self.finish(Lease(urgent, 1, "worker"))
            assert self.go() == [younger], cause

    def test_back_off_keeps_the_key_and_the_place(self) -> None:
        for cause in (Cause.RETRY, Cause.RELEASE):
            lease = self.hold(A, str(cause))
            self.keyed(B, str(cause), priority=9)
            self.finish(lease, cause, delay=60 * SECOND)
            assert self.go() == [], cause
            self.clock.advance(60)
            assert self.go() == [lease.run_id], cause

    def test_an_expired_run_goes_again_before_younger_ones_and_is_not_failed_because_of_them(self) -> None:
        lease, younger = self.hold(A), self.keyed(A)
        other = self.keyed(B, priority=9)
        self.crash(lease)
        assert self.run(lease.run_id).status == "pending"
        assert self.go() == [lease.run_id]
        assert self.go() == []
        assert [self.run(run_id).status for run_id in (younger, other)] == ["pending", "pending"]

    def test_a_recalled_run_keeps_its_key(self) -> None:
        lease, younger = self.hold(A), self.keyed(B)
        assert self.do("recall", [Recall("worker", ())]) == [1]
        assert self.go(B) == []
        assert self.go() == [lease.run_id]
        self.finish(lease._replace(generation=3))
        assert self.go() == [younger]

    def test_a_claim_played_again_gives_the_same_run_of_the_key(self) -> None:
        first, second = self.keyed(A), self.keyed(B)
        order = self.order(A, B)._replace(known=())
        for replay in (False, True):
            (claimed,) = self.do("claim", [order], replay=replay)
            assert [run.id for run in claimed.runs] == [first]
        assert self.run(second).status == "pending"

    def test_cancelling_a_run_in_its_back_off_lets_the_next_go(self) -> None:
        lease, younger = self.hold(A), self.keyed(B)
        self.finish(lease, Cause.RETRY, delay=60 * SECOND)
        self.cancel(lease.run_id)
        assert self.go() == [younger]

    # -- the order within a key --------------------------------------------------------------------------------

    def test_within_a_key_runs_go_by_priority_then_time_then_id(self) -> None:
        now = self.clock.now()
        late = self.keyed("late", run_at=now - 1)
        early = self.keyed("early", run_at=now - 9)
        urgent = self.keyed("urgent", priority=5)
        lazy = self.keyed("lazy", priority=-5, run_at=now - 99)
        late_too = self.keyed("late too", run_at=now - 1)
        for expected in (urgent, early, late, late_too, lazy):
            assert self.go("late", "early", "urgent", "lazy", "late too") == [expected]
            self.finish(Lease(expected, 1, "worker"))

    def test_a_higher_priority_overtakes_before_the_claim_and_not_after(self) -> None:
        first = self.keyed(A)
        urgent = self.keyed(B, priority=1)
        assert self.go() == [urgent]
        most_urgent = self.keyed(C, priority=2)
        assert self.go() == []
        self.finish(Lease(urgent, 1, "worker"))
        assert self.go() == [most_urgent]
        self.finish(Lease(most_urgent, 1, "worker"))
        assert self.go() == [first]

    def test_a_run_that_nobody_here_may_claim_does_not_keep_its_key_from_others(self) -> None:
        stranger, elsewhere = self.keyed("unknown", priority=9), self.keyed(B, queue="elsewhere", priority=8)
        mine = self.keyed(A)
        assert self.go(A, B) == [mine]
        assert self.go("unknown") == self.go(B, queues=("elsewhere",)) == []
        self.finish(Lease(mine, 1, "worker"))
        assert self.go("unknown") == [stranger]
        self.finish(Lease(stranger, 1, "worker"))
        assert self.go(B, queues=("elsewhere",)) == [elsewhere]

    # -- delayed runs ------------------------------------------------------------------------------------------

    def test_a_delayed_run_is_not_in_line_before_its_time(self) -> None:
        delayed = self.keyed(A, delay=60 * SECOND, priority=9)
        now = self.keyed(B)
        assert self.go() == [now]
        self.clock.advance(60)
        assert self.go() == []
        self.finish(Lease(now, 1, "worker"))
        assert self.go() == [delayed]

    def test_delayed_runs_of_one_key_that_come_due_together_go_one_after_the_other(self) -> None:
        now = self.clock.now()
        made = [self.keyed(job, run_at=now + n * SECOND) for n, job in ((3, C), (1, A), (2, B))]
        self.clock.advance(5)
        for expected in (made[1], made[2], made[0]):
            assert self.store.has_claimable(self.connection, self.order(A, B, C))
            assert self.go() == [expected]
            assert self.go() == []
            self.finish(Lease(expected, 1, "worker"))

    def test_a_delayed_run_that_comes_due_overtakes_by_priority(self) -> None:
        delayed, first = self.keyed(A, delay=SECOND, priority=1), self.keyed(B)
        self.clock.advance(1)
        assert self.go() == [delayed]
        self.finish(Lease(delayed, 1, "worker"))
        assert self.go() == [first]

    # -- many at once ------------------------------------------------------------------------------------------

    def test_of_four_claimers_one_wins_the_key_twenty_five_times(self) -> None:
        for number in range(25):
            group, single = self.keyed(A, "group"), self.keyed(B, "single")
            later, free = self.keyed(B, "group"), self.trigger(C)
            won = self.race(4)
            taken = {run.id for runs in won for run in runs}
            assert taken == {group, single, free}, number
            assert sum(run.concurrency_key == "group" for runs in won for run in runs) == 1
            self.do("finish", [self.ending(Lease(run.id, 1, run.lease_owner or "")) for r in won for run in r])
            assert self.go() == [later]
            self.finish(Lease(later, 1, "worker"))

    def race(self, claimers: int) -> list[list[RunRow]]:
        """What each of several connections gets that claim one run at a time, until nobody gets any."""
        won: list[list[RunRow]] = [[] for _ in range(claimers)]
        ready = threading.Barrier(claimers)

        def claim(number: int) -> None:
            connection = self.store.connect()
            ready.wait(30)
            while True:
                tx = self.store.begin(connection)
                (claimed,) = self.store.claim(tx, [self.order(A, B, C, owner=f"claimer {number}", limit=1)])
                self.store.commit(tx)
                if not claimed.runs:
                    break
                won[number] += claimed.runs
            self.store.disconnect(connection)

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(claimers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return won

    # -- job limits --------------------------------------------------------------------------------------------

    def test_a_limit_counts_the_leased_runs_of_a_job_over_workers_and_queues(self) -> None:
        ids = [self.trigger(A, queue=queue) for queue in ("x", "y", "x", "y", "x")]
        limits = ((A, 3),)
        assert self.go(A, owner="one", queues=("x",), limits=limits, limit=2) == [ids[0], ids[2]]
        assert self.go(A, owner="two", queues=("x", "y"), limits=limits) == [ids[1]]
        assert self.go(A, owner="two", queues=("x", "y"), limits=limits) == []
        self.finish(Lease(ids[0], 1, "one"))
        assert self.go(A, owner="one", queues=("x", "y"), limits=limits) == [ids[3]]

    def test_a_limit_is_of_its_job_only_and_the_order_holds(self) -> None:
        limited = [self.trigger(A, priority=5) for _ in range(3)]
        free = [self.trigger(B) for _ in range(3)]
        assert self.go(A, B, limits=((A, 1), (C, 1)), limit=3) == [limited[0], *free[:2]]
        assert self.go(A, B, limits=((A, 1),)) == free[2:]
        assert self.go(A, B, limits=((A, 2),)) == limited[1:2]

    def test_whether_there_is_room_is_known_beforehand(self) -> None:
        lease = self.lease(A)
        self.trigger(A)
        order = self.order(A, limits=((A, 1),))
        assert not self.store.has_claimable(self.connection, order)
        assert self.store.has_claimable(self.connection, order._replace(limits=((A, 2),)))
        self.finish(lease)
        assert self.store.has_claimable(self.connection, order)

    def test_a_run_in_its_back_off_makes_room(self) -> None:
        lease, next_one = self.lease(A), self.trigger(A)
        self.finish(lease, Cause.RETRY, delay=60 * SECOND)
        assert self.go(A, limits=((A, 1),)) == [next_one]

    def test_a_full_job_does_not_keep_a_key_from_other_jobs(self) -> None:
        self.lease(A)
        stopped, other = self.keyed(A, priority=9), self.keyed(B)
        assert self.go(A, B, limits=((A, 1),)) == [other]
        assert self.run(stopped).status == "pending"

    def test_a_run_without_room_does_not_keep_a_key_from_other_jobs(self) -> None:
        first, second = self.trigger(A, priority=9), self.keyed(A, priority=8)
        other = self.keyed(B)
        assert self.go(A, B, limits=((A, 1),)) == [first, other]
        assert self.run(second).status == "pending"

    # -- against the model -------------------------------------------------------------------------------------

    def test_hundreds_of_random_operations_go_as_the_model_says(self) -> None:
        for seed in range(4):
            self.teardown_method()
            self.setup_method()
            Walk(self, seed).steps(200)
