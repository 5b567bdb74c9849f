"""Promises about the ends of leases and runs, and that the store agrees with the table of the lifecycle."""

from __future__ import annotations

from ...model.run import RunRow, RunStatus
from ...rules.lifecycle import TABLE, Cause
from ...store.base import Recall, Sweep
from .bench import HOSTILE, LEASE, SECOND, StoreBench

#: What lease holders say with `finish`.
BY_HOLDER = [cause for cause, transition in TABLE.items() if transition.by_holder]


class EndingContract(StoreBench):
    # -- finish ------------------------------------------------------------------------------------------------

    def test_a_finished_run_has_its_output_and_no_lease(self) -> None:
        lease = self.lease()
        self.clock.advance(4)
        ended = self.finish(lease, output='{"rows":3}')
        assert (ended.accepted, ended.at, ended.status) == (True, self.clock.now(), "completed")
        run = self.run(lease.run_id)
        assert (run.status, run.output, run.completed_at) == ("completed", '{"rows":3}', self.clock.now())
        assert (run.lease_owner, run.lease_expires_at, run.error, run.error_type) == (None,) * 4

    def test_a_failed_run_has_its_error(self) -> None:
        lease = self.lease()
        self.finish(lease, Cause.FAIL, error="it broke", error_type="OSError")
        run = self.run(lease.run_id)
        assert (run.status, run.error, run.error_type, run.output) == ("failed", "it broke", "OSError", None)

    def test_every_word_of_a_lease_holder_writes_what_the_table_says(self) -> None:
        for cause in BY_HOLDER:
            lease = self.lease(cause)
            self.clock.advance(1)
            before = self.run(lease.run_id)
            ended = self.finish(lease, cause)
            assert ended.accepted, cause
            self._assert_moved(before, self.run(lease.run_id), cause)

    def test_many_endings_in_one_call_are_answered_in_order(self) -> None:
        held = [self.lease() for _ in range(60)]
        for lease in held[::4]:
            self.cancel(lease.run_id)
        endings = [self.ending(lease, BY_HOLDER[n % len(BY_HOLDER)]) for n, lease in enumerate(held)]
        answers = self.do("finish", endings)
        assert [answer.accepted for answer in answers] == [n % 4 != 0 for n in range(60)]
        for ending, answer in zip(endings, answers, strict=True):
            assert answer.status == self.run(ending.lease.run_id).status
            assert not answer.accepted or answer.status == ending.transition.target

    def test_a_finish_repeated_after_a_lost_answer_is_accepted(self) -> None:
        for cause in BY_HOLDER:
            lease = self.lease(cause)
            self.finish(lease, cause)
            before = self.run(lease.run_id)
            again = self.finish(lease, cause, replay=True)
            assert (again.accepted, again.status) == (True, before.status), cause
            assert self.run(lease.run_id) == before, cause

    def test_an_ending_twice_in_one_call_is_accepted_and_counts_once(self) -> None:
        lease = self.lease()
        retry = self.ending(lease, Cause.RETRY)
        assert [answer.accepted for answer in self.do("finish", [retry, retry])] == [True, True]
        assert self.run(lease.run_id).attempt == 1

    def test_of_two_different_endings_of_one_lease_the_first_counts(self) -> None:
        lease = self.lease()
        answers = self.do("finish", [self.ending(lease, output="1"), self.ending(lease, Cause.FAIL, error="e")])
        assert [(answer.accepted, answer.status) for answer in answers] == [(True, "completed"), (False, "completed")]
        run = self.run(lease.run_id)
        assert (run.status, run.output, run.error) == ("completed", "1", None)

    def test_endings_of_lost_leases_are_refused_and_told_what_the_run_is(self) -> None:
        for how, lease in self.lost_leases().items():
            status = None if how == "gone" else self.run(lease.run_id).status
            for cause in BY_HOLDER:
                said = (TABLE[cause].target, "pending") if cause is Cause.SUSPEND else (TABLE[cause].target,)
                if status in said and how in ("finished", "released"):
                    continue  # said before: it counts as accepted
                before = self.everything()
                ended = self.finish(lease, cause, output="zombie")
                assert (ended.accepted, ended.status) == (False, status), (how, cause)
                assert self.everything() == before, (how, cause)

    def test_a_zombies_ending_is_refused_beside_its_successors(self) -> None:
        zombie = self.lease()
        self.crash(zombie)
        heir = self.lease_of(zombie.run_id, self.claim())
        answers = self.do("finish", [self.ending(zombie, output='"zombie"'), self.ending(heir, output='"heir"')])
        assert [answer.accepted for answer in answers] == [False, True]
        assert self.run(heir.run_id).output == '"heir"'

    def test_a_retry_counts_an_attempt_and_may_wait(self) -> None:
        lease = self.lease()
        place = self.run(lease.run_id).run_at
        self.clock.advance(1)
        self.finish(lease, Cause.RETRY, error="e", error_type="E")
        run = self.run(lease.run_id)
        assert (run.status, run.attempt, run.run_at, run.completed_at) == ("pending", 1, place, None)
        again = self.lease_of(lease.run_id, self.claim())
        self.finish(again, Cause.RETRY, delay=3 * SECOND)
        run = self.run(lease.run_id)
        assert (run.attempt, run.run_at) == (2, self.clock.now() + 3 * SECOND)

    def test_the_error_of_an_attempt_stays_until_the_run_has_ended(self) -> None:
        lease = self.lease()
        self.finish(lease, Cause.RETRY, error="first", error_type="E")
        lease = self.lease_of(lease.run_id, self.claim())
        self.crash(lease)
        lease = self.lease_of(lease.run_id, self.claim())
        self.finish(lease, Cause.RELEASE)
        run = self.run(lease.run_id)
        assert (run.error, run.error_type, run.attempt) == ("first", "E", 1)
        self.finish(self.lease_of(lease.run_id, self.claim()))
        run = self.run(lease.run_id)
        assert (run.status, run.error, run.error_type) == ("completed", None, None)

    def test_hostile_outputs_and_errors_are_kept_exactly(self) -> None:
        for text in HOSTILE:
            lease = self.lease()
            self.finish(lease, Cause.FAIL, output=text, error=text, error_type=text)
            run = self.run(lease.run_id)
            assert (run.output, run.error, run.error_type) == (text, text, text)

    def test_of_some_runs_those_that_ended_are_told_with_their_status(self) -> None:
        runs = {self.run_in(status).run_id: str(status) for status in RunStatus}
        told = {run_id: status for run_id, status in runs.items() if RunStatus(status).is_terminal}
        assert self.store.ended(self.connection, [*runs, "none"]) == {**told, "none": "gone"}

    # -- cancel ------------------------------------------------------------------------------------------------

    def test_a_cancelled_run_is_over_at_once(self) -> None:
        lease = self.lease()
        self.clock.advance(2)
        cancelled = self.cancel(lease.run_id)
        assert (cancelled.accepted, cancelled.previous) == (True, "leased")
        run = self.run(lease.run_id)
        assert cancelled.run == run
        assert (run.status, run.completed_at, run.generation) == ("cancelled", self.clock.now(), 2)
        assert self.store.lost_leases(self.connection, [lease]) == {lease: "cancelled"}

    def test_a_cancel_repeated_after_a_lost_answer_is_accepted(self) -> None:
        run_id = self.trigger()
        self.cancel(run_id)
        before = self.run(run_id)
        assert self.cancel(run_id, replay=True).accepted
        assert self.run(run_id) == before

    def test_a_second_cancel_is_not_accepted(self) -> None:
        run_id = self.trigger()
        self.cancel(run_id)
        again = self.cancel(run_id)
        assert (again.accepted, again.previous) == (False, "cancelled")

    def test_cancelling_what_is_not_there_gives_no_run(self) -> None:
        assert self.cancel("no such run") == (None, None, False)
        assert self.cancel("no such run", replay=True) == (None, None, False)

    def test_many_cancels_in_one_call_are_answered_in_order(self) -> None:
        pending, leased, done = self.trigger("p"), self.lease("l").run_id, self.lease("d")
        self.finish(done)
        answers = self.do("cancel", [done.run_id, "none", leased, pending, leased])
        assert [(answer.previous, answer.accepted) for answer in answers] == [
            ("completed", False),
            (None, False),
            ("leased", True),
            ("pending", True),
            ("cancelled", False),  # the second meets the first: it is told to nobody twice
        ]
        assert self.run(leased).generation == 2

    # -- the table of the lifecycle ----------------------------------------------------------------------------

    def test_claim_cancel_expire_and_recall_touch_only_the_statuses_of_the_table(self) -> None:
        for cause in (Cause.CLAIM, Cause.CANCEL, Cause.EXPIRE, Cause.GIVE_UP, Cause.RECALL):
            for status in RunStatus:
                lease = self.run_in(status)
                self.clock.advance(LEASE / SECOND)
                before = self.run(lease.run_id)
                self._cause(cause, lease.run_id)
                after = self.run(lease.run_id)
                if status in TABLE[cause].sources:
                    self._assert_moved(before, after, cause)
                else:
                    assert after == before, (cause, status)
                self._clear()

    def test_lease_holders_write_only_in_the_statuses_of_the_table(self) -> None:
        for cause in BY_HOLDER:
            for status in RunStatus:
                lease = self.run_in(status)
                before = self.run(lease.run_id)
                ended = self.finish(lease, cause)
                after = self.run(lease.run_id)
                if status in TABLE[cause].sources:
                    assert ended.accepted
                    self._assert_moved(before, after, cause)
                else:
                    assert after == before, (cause, status)
                self._clear()

    def test_renewals_steps_logs_and_progress_are_for_leased_runs(self) -> None:
        for status in RunStatus:
            lease = self.run_in(status)
            leased = status is RunStatus.LEASED
            assert self.do("save_steps", [self.step(lease)]) == [leased], status
            self.do("save_logs", [self.line(lease)])
            self.do("save_progress", [self.progress(lease, "1")])
            assert self.do("renew_leases", [self.renewal(lease, 2 * LEASE)]) == [leased], status
            assert self.messages(lease.run_id) == ["message"] * leased
            assert self.run(lease.run_id).progress == ("1" if leased else None)
            self._clear()

    def _cause(self, cause: Cause, run_id: str) -> None:
        if cause is Cause.CLAIM:
            self.claim()
        elif cause is Cause.CANCEL:
            self.cancel(run_id)
        elif cause is Cause.EXPIRE:
            self.do("expire", [Sweep(2)])
        elif cause is Cause.GIVE_UP:
            self.do("expire", [Sweep(1)])
        else:
            self.do("recall", [Recall("worker", ())])

    def _clear(self) -> None:
        """Nothing is left that a later claim could find."""
        self.do("cancel", self.runs(statuses=tuple(RunStatus.active())))

    def _assert_moved(self, before: RunRow, after: RunRow, cause: Cause) -> None:
        rule = TABLE[cause]
        assert after.status == rule.target, cause
        assert after.generation == before.generation + rule.generation, cause
        assert after.attempt == before.attempt + rule.attempt, cause
        assert after.crashes == before.crashes + rule.crashes, cause
        assert after.completed_at == (self.clock.now() if rule.ends else None), cause
        assert (after.lease_owner is None) == (rule.target is not RunStatus.LEASED), cause
        assert after.updated_at == self.clock.now(), cause
        kept = ("id", "job_name", "queue", "priority", "run_at", "created_at", "input", "labels", "idempotency_key")
        assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept], cause
