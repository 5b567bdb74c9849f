"""Promises about claims: which runs, in which order, with which steps."""

from __future__ import annotations

from ...rules.lifecycle import Cause
from ...store.base import STEP_PAGE
from .bench import LEASE, SECOND, StoreBench


class ClaimContract(StoreBench):
    def test_a_claim_leases_the_run(self) -> None:
        run_id = self.trigger()
        self.clock.advance(3)
        (claimed,) = self.claim(owner="me")
        assert claimed == self.run(run_id)
        assert (claimed.status, claimed.lease_owner, claimed.generation) == ("leased", "me", 1)
        assert claimed.lease_expires_at == self.clock.now() + LEASE
        assert claimed.started_at == claimed.updated_at == self.clock.now()

    def test_a_claim_with_nothing_to_do_is_empty(self) -> None:
        assert self.claim() == []

    def test_a_leased_run_is_not_claimed_again(self) -> None:
        self.lease()
        assert self.claim(owner="other") == []

    def test_two_claims_in_one_call_share_the_runs(self) -> None:
        ids = [self.trigger() for _ in range(5)]
        first, second = self.do("claim", [self.order(owner="a", limit=3), self.order(owner="b", limit=3)])
        assert [run.id for run in first.runs] == ids[:3]
        assert [run.id for run in second.runs] == ids[3:]
        assert {run.lease_owner for run in second.runs} == {"b"}

    def test_a_claim_takes_no_more_than_its_limit(self) -> None:
        ids = [self.trigger() for _ in range(4)]
        assert [run.id for run in self.claim(limit=1)] == ids[:1]
        assert self.claim(limit=0) == []
        assert len(self.claim(limit=100)) == 3

    def test_a_higher_priority_goes_first_then_the_older_time_then_the_smaller_id(self) -> None:
        now = self.clock.now()
        late = self.trigger(run_at=now - 1)
        early = self.trigger(run_at=now - 9)
        urgent = self.trigger(priority=5, run_at=now)
        lazy = self.trigger(priority=-5, run_at=now - 99)
        late_too = self.trigger(run_at=now - 1)
        assert [run.id for run in self.claim()] == [urgent, early, late, late_too, lazy]

    def test_a_small_claim_takes_the_first_in_the_order(self) -> None:
        now = self.clock.now()
        ids = [self.trigger(priority=priority, run_at=now - 100 + 10 * priority) for priority in (0, 2, 1, -1, 3)]
        got = [self.claim(limit=1)[0].id for _ in ids]
        assert got == [ids[4], ids[1], ids[2], ids[0], ids[3]]

    def test_the_order_holds_across_jobs_and_queues(self) -> None:
        a = self.trigger("a", priority=1)
        b = self.trigger("b", queue="q", priority=3)
        a2 = self.trigger("a", queue="q", priority=2)
        b2 = self.trigger("b", priority=4)
        got = [self.claim("a", "b", queues=("default", "q"), limit=1)[0].id for _ in range(4)]
        assert got == [b2, b, a2, a]

    def test_only_registered_jobs_are_claimed(self) -> None:
        known = self.trigger("known")
        unknown = self.trigger("unknown", priority=9)
        assert [run.id for run in self.claim("known", "also")] == [known]
        assert self.run(unknown).status == "pending"
        assert self.claim("Known", "UNKNOWN", "unknown ") == []

    def test_a_claim_for_no_jobs_or_no_queues_is_empty(self) -> None:
        self.trigger()
        assert self.do("claim", [self.order()._replace(jobs=()), self.order(queues=())])[0].runs == []

    def test_only_the_asked_queues_are_claimed(self) -> None:
        here = self.trigger(queue="here")
        self.trigger(queue="there")
        self.trigger()
        assert [run.id for run in self.claim(queues=("here", "nowhere"))] == [here]

    def test_a_job_or_queue_named_twice_is_claimed_once(self) -> None:
        ids = [self.trigger() for _ in range(4)]
        assert [run.id for run in self.claim("job", "job", queues=("default", "default"), limit=4)] == ids

    def test_every_claim_makes_a_new_generation(self) -> None:
        lease = self.lease()
        self.finish(lease, Cause.RELEASE)
        assert [run.generation for run in self.claim()] == [2]

    def test_the_start_of_a_run_is_its_first_claim(self) -> None:
        lease = self.lease()
        started = self.clock.now()
        self.finish(lease, Cause.RETRY)
        self.clock.advance(5)
        self.claim()
        assert self.run(lease.run_id).started_at == started

    # -- delayed runs ------------------------------------------------------------------------------------------

    def test_a_delayed_run_is_claimed_at_its_time(self) -> None:
        run_id = self.trigger(delay=10 * SECOND)
        self.clock.advance(9.999_999)
        assert self.claim() == []
        self.clock.advance(0.000_001)
        assert [run.id for run in self.claim()] == [run_id]

    def test_a_delayed_run_takes_its_place_in_the_order(self) -> None:
        delayed = self.trigger(delay=5 * SECOND)
        self.clock.advance(7)
        younger = self.trigger()
        assert [run.id for run in self.claim()] == [delayed, younger]

    def test_a_claim_says_when_the_next_delayed_run_wants_to_start(self) -> None:
        start = self.clock.now()
        self.trigger(delay=20 * SECOND)
        self.trigger(delay=10 * SECOND)
        assert self.do("claim", [self.order()])[0].next_due_at == start + 10 * SECOND
        self.clock.advance(10)
        assert self.do("claim", [self.order()])[0].next_due_at == start + 20 * SECOND
        self.clock.advance(10)
        assert self.do("claim", [self.order()])[0].next_due_at is None

    def test_a_retried_run_waits_for_its_delay(self) -> None:
        lease = self.lease()
        self.finish(lease, Cause.RETRY, delay=8 * SECOND)
        claimed = self.do("claim", [self.order()])[0]
        assert claimed.runs == []
        assert claimed.next_due_at == self.clock.now() + 8 * SECOND == self.run(lease.run_id).run_at
        self.clock.advance(8)
        assert [run.attempt for run in self.claim()] == [1]

    def test_a_cancelled_delayed_run_is_not_announced(self) -> None:
        self.cancel(self.trigger(delay=SECOND))
        assert self.do("claim", [self.order()])[0].next_due_at is None

    # -- resuming ----------------------------------------------------------------------------------------------

    def test_a_fresh_run_brings_no_steps(self) -> None:
        self.trigger()
        assert self.do("claim", [self.order()])[0].steps == {}

    def test_a_resumed_run_brings_its_steps_in_order(self) -> None:
        lease = self.lease()
        saves = [self.step(lease, f"step-{n}", position=n, output=str(n)) for n in (3, 0, 2, 1)]
        self.do("save_steps", saves)
        self.finish(lease, Cause.RELEASE)
        steps = self.do("claim", [self.order()])[0].steps[lease.run_id]
        assert steps == sorted((save.step for save in saves), key=lambda step: step.position)

    def test_steps_of_one_position_are_brought_and_read_in_the_order_of_their_start(self) -> None:
        lease = self.lease()
        self.do("save_steps", [self.step(lease, name, started_at=9 - n) for n, name in enumerate("abc")])
        self.do("save_steps", [self.step(lease, name, started_at=5) for name in ("z", "y")])
        assert self.steps(lease.run_id) == ["y", "z", "c", "b", "a"]
        self.finish(lease, Cause.RELEASE)
        found = self.do("claim", [self.order()])[0].steps[lease.run_id]
        assert [step.name for step in found] == ["y", "z", "c", "b", "a"]

    def test_resumed_runs_bring_their_own_steps(self) -> None:
        a, b = self.lease("a"), self.lease("b")
        self.do("save_steps", [self.step(a, "of a"), self.step(b, "of b")])
        self.do("finish", [self.ending(a, Cause.RELEASE), self.ending(b, Cause.RELEASE)])
        self.trigger("a")
        steps = self.do("claim", [self.order("a", "b")])[0].steps
        assert {run_id: [step.name for step in found] for run_id, found in steps.items()} == {
            a.run_id: ["of a"],
            b.run_id: ["of b"],
        }

    def test_a_resumed_run_brings_one_page_and_the_rest_is_read_by_position(self) -> None:
        lease = self.lease()
        many = STEP_PAGE * 2 + 5
        self.do("save_steps", [self.step(lease, f"step-{n}", position=n) for n in reversed(range(many))])
        self.crash(lease)
        found = self.do("claim", [self.order()])[0].steps[lease.run_id]
        # The last one comes along: it tells that there is more.
        assert [step.position for step in found] == [*range(STEP_PAGE), many - 1]
        found.pop()
        while page := self.store.find_steps(
            self.connection, lease.run_id, first=len(found), until=len(found) + STEP_PAGE
        ):
            found += page
        assert [step.position for step in found] == list(range(many))

    def test_a_failed_step_is_brought_too(self) -> None:
        lease = self.lease()
        self.do("save_steps", [self.step(lease, status="failed", output=None, error='{"type":"E"}')])
        self.finish(lease, Cause.RETRY)
        (step,) = self.do("claim", [self.order()])[0].steps[lease.run_id]
        assert (step.status, step.error, step.output) == ("failed", '{"type":"E"}', None)

    # -- looking first -----------------------------------------------------------------------------------------

    def test_whether_a_claim_would_find_something_is_known_beforehand(self) -> None:
        order = self.order("a", "b", queues=("q",))
        assert not self.store.has_claimable(self.connection, order)
        self.trigger("a")
        self.trigger("c", queue="q")
        assert not self.store.has_claimable(self.connection, order)
        self.trigger("b", queue="q")
        assert self.store.has_claimable(self.connection, order)
        self.claim("a", "b", queues=("q",))
        assert not self.store.has_claimable(self.connection, order)

    def test_a_delayed_run_is_claimable_at_its_time(self) -> None:
        self.trigger(delay=5 * SECOND)
        assert not self.store.has_claimable(self.connection, self.order())
        self.clock.advance(5)
        assert self.store.has_claimable(self.connection, self.order())
