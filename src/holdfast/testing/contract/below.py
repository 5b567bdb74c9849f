"""Promises about runs that wait: for their time, for signals, for runs below them.

Long because the three of them share their bench, and are few lines each.
"""

from __future__ import annotations

from typing import Any

from ...model.run import NewRun, RunFilter, RunRow
from ...model.wait import NewSignal, WaitRow, wait_key
from ...rules.lifecycle import Cause
from ...store.base import MORE, SIGNALS_UNREAD, Ended, Lease, Sent, StepSave, Take, Taken, WaitSave
from .bench import SECOND, StoreBench


class BelowBench(StoreBench):
    """How runs come to wait."""

    def wait(self, lease: Lease, name: str = "wait", kind: str = "timer", **values: Any) -> WaitSave:
        wait = WaitRow(lease.run_id, wait_key(name, 0), kind, values.pop("until", None), values.pop("signal", None), 0)
        return WaitSave(lease.owner, lease.generation, wait, **values)

    def child(self, lease: Lease, job: str = "below", wait: str | None = "wait", **values: Any) -> NewRun:
        key = None if wait is None else wait_key(wait, 0)
        root = self.run(lease.run_id).root_id or lease.run_id
        return self.new(job, parent_id=lease.run_id, root_id=root, awaited_as=key, **values)

    def save_wait(self, save: WaitSave) -> WaitRow | None:
        saved: WaitRow | None = self.do("save_waits", [save])[0]
        return saved

    def suspend(self, lease: Lease, waiting_for: str = "timer", **values: Any) -> Ended:
        return self.finish(lease, Cause.SUSPEND, waiting_for=waiting_for, **values)

    def sleeping(self, *, delay: int | None = 60 * SECOND, **values: Any) -> Lease:
        """A run that waits, with the lease that it had."""
        lease = self.lease(**values)
        self.save_wait(self.wait(lease, delay=delay))
        assert self.suspend(lease).accepted
        return lease

    def parent(self, children: int = 1, **values: Any) -> tuple[Lease, list[str]]:
        """A run that waits for others below it."""
        lease = self.lease(**values)
        below = tuple(self.child(lease, child_index=n) for n in range(children))
        self.save_wait(self.wait(lease, kind="children", children=below))
        assert self.suspend(lease, "children").accepted
        return lease, [child.id for child in below]

    def send(self, run_id: str, name: str = "go", value: str = "1", key: str | None = None, **values: Any) -> Sent:
        self._count += 1
        new = NewSignal(values.pop("id", f"s{self._count:025d}"), run_id, name, value, key)
        sent: Sent = self.do("send_signals", [new], **values)[0]
        return sent

    def take(self, lease: Lease, name: str = "wait", signal: str = "go", *, late: bool = False) -> Take:
        step = self.step(lease, name, output=None).step
        failed = step._replace(status="failed", error="{}") if late else None
        return Take(lease.owner, signal, step, failed)

    def taken(self, take: Take, *, replay: bool = False) -> Taken:
        taken: Taken = self.do("take_signals", [take], replay=replay)[0]
        return taken

    def status(self, run_id: str) -> str:
        return self.run(run_id).status

    def waits(self, run_id: str) -> list[str]:
        return [wait.key for wait in self.store.find_waits(self.connection, run_id)]

    def cancel_below(self, limit: int = 100) -> list[RunRow]:
        rows: list[RunRow] = self.do("cancel_below", [limit])[0]
        return rows


class WaitContract(BelowBench):
    def test_a_wait_is_written_down_with_its_time(self) -> None:
        lease = self.lease()
        now = self.clock.now()
        saved = self.save_wait(self.wait(lease, delay=5 * SECOND))
        assert saved == WaitRow(lease.run_id, "wait#0", "timer", now + 5 * SECOND, None, now)
        assert self.store.find_waits(self.connection, lease.run_id) == [saved]

    def test_a_wait_that_is_known_keeps_its_time(self) -> None:
        lease = self.lease()
        first = self.save_wait(self.wait(lease, delay=5 * SECOND))
        self.clock.advance(1)
        assert self.save_wait(self.wait(lease, delay=5 * SECOND)) == first

    def test_waits_of_lost_leases_are_refused(self) -> None:
        for how, lease in self.lost_leases().items():
            before = self.everything()
            child = self.new("below", parent_id=lease.run_id, root_id=lease.run_id, awaited_as="wait#0")
            assert self.save_wait(self.wait(lease, delay=1, children=(child,))) is None, how
            assert self.everything() == before, how

    def test_a_saved_step_ends_its_wait(self) -> None:
        lease = self.lease()
        self.do("save_waits", [self.wait(lease, delay=1), self.wait(lease, "other", delay=1)])
        self.do("save_steps", [self.step(lease, "wait")._replace(ends_wait=True)])
        assert self.waits(lease.run_id) == ["other#0"]

    def test_a_refused_step_ends_no_wait(self) -> None:
        lease = self.lease()
        self.save_wait(self.wait(lease, delay=1))
        zombie = lease._replace(owner="zombie")
        save: StepSave = self.step(zombie, "wait")._replace(ends_wait=True)
        assert self.do("save_steps", [save]) == [False]
        assert self.waits(lease.run_id) == ["wait#0"]

    def test_a_sleeping_run_is_claimed_when_its_time_has_come_and_not_before(self) -> None:
        lease = self.sleeping(delay=60 * SECOND)
        assert (self.status(lease.run_id), self.run(lease.run_id).waiting_for) == ("waiting", "timer")
        self.clock.advance(59)
        assert self.claim() == []
        self.clock.advance(1)
        (run,) = self.claim()
        assert (run.id, run.status, run.generation, run.attempt, run.crashes) == (lease.run_id, "leased", 2, 0, 0)
        assert run.waiting_for is None

    def test_a_claim_says_when_the_next_sleeper_wants_to_be_woken(self) -> None:
        self.sleeping(delay=60 * SECOND)
        assert self.do("claim", [self.order()])[0].next_due_at == self.clock.now() + 60 * SECOND

    def test_a_sleeper_whose_time_has_come_is_there_to_be_claimed(self) -> None:
        self.sleeping(delay=60 * SECOND)
        assert not self.store.has_claimable(self.connection, self.order())
        self.clock.advance(60)
        assert self.store.has_claimable(self.connection, self.order())

    def test_a_run_that_is_executed_again_is_not_woken_by_an_old_wait(self) -> None:
        lease = self.sleeping(delay=1 * SECOND)
        self.clock.advance(1)
        self.claim()
        assert self.do("claim", [self.order()])[0].next_due_at is None
        assert self.status(lease.run_id) == "leased"

    def test_what_came_before_the_suspension_wakes_the_run_at_once(self) -> None:
        lease = self.lease()
        self.save_wait(self.wait(lease, kind="signal", signal="go"))
        self.send(lease.run_id)
        ended = self.suspend(lease, "signal")
        assert (ended.accepted, ended.status) == (True, "pending")
        assert [run.id for run in self.claim()] == [lease.run_id]

    def test_a_suspension_played_again_is_the_first_one(self) -> None:
        lease = self.lease()
        self.save_wait(self.wait(lease, delay=1))
        assert self.suspend(lease).accepted
        assert self.suspend(lease, replay=True).accepted
        assert self.status(lease.run_id) == "waiting"

    def test_a_suspended_run_gives_its_key_to_the_next_one(self) -> None:
        lease = self.sleeping(concurrency_key="k", delay=60 * SECOND)
        other = self.lease(concurrency_key="k")
        self.clock.advance(60)
        assert self.claim() == []
        self.finish(other)
        assert [run.id for run in self.claim()] == [lease.run_id]

    def test_a_suspended_run_may_keep_its_key(self) -> None:
        lease = self.lease(concurrency_key="k")
        self.save_wait(self.wait(lease, delay=60 * SECOND))
        assert self.suspend(lease, holds=True).accepted
        other = self.trigger(concurrency_key="k")
        assert self.claim() == []
        self.clock.advance(60)
        (woken,) = self.claim()
        assert woken.id == lease.run_id
        assert self.claim() == []
        self.finish(self.lease_of(woken.id, [woken]))
        assert [run.id for run in self.claim()] == [other]

    def test_a_cancelled_run_that_kept_its_key_gives_it_to_the_next_one(self) -> None:
        lease = self.lease(concurrency_key="k")
        self.save_wait(self.wait(lease, delay=60 * SECOND))
        assert self.suspend(lease, holds=True).accepted
        other = self.trigger(concurrency_key="k")
        assert self.claim() == []
        assert self.cancel(lease.run_id).accepted
        assert [run.id for run in self.claim()] == [other]

    def test_the_end_of_a_run_ends_its_waits(self) -> None:
        lease = self.sleeping()
        assert self.cancel(lease.run_id).accepted
        assert self.waits(lease.run_id) == []
        assert self.do("claim", [self.order()])[0].next_due_at is None

    def test_a_sleeping_run_has_its_deadline(self) -> None:
        lease = self.sleeping(deadline=5 * SECOND)
        self.clock.advance(5)
        (row,) = self.do("pass_deadlines", [10])[0]
        assert (row.id, row.status, row.waiting_for) == (lease.run_id, "timed_out", None)


class SignalContract(BelowBench):
    def waiting(self, signal: str = "go", **values: Any) -> Lease:
        lease = self.lease()
        self.save_wait(self.wait(lease, kind="signal", signal=signal, **values))
        assert self.suspend(lease, "signal").accepted
        return lease

    def again(self, lease: Lease) -> Lease:
        return self.lease_of(lease.run_id, self.claim())

    def test_a_signal_wakes_the_run_that_waits_for_it(self) -> None:
        lease = self.waiting()
        assert self.send(lease.run_id) == Sent("sent", "waiting")
        assert self.status(lease.run_id) == "pending"
        heir = self.again(lease)
        assert self.taken(self.take(heir)) == Taken("taken", "1")
        assert self.waits(lease.run_id) == []
        assert self.steps(lease.run_id) == ["wait"]

    def test_a_signal_of_another_name_wakes_nobody(self) -> None:
        lease = self.waiting()
        self.send(lease.run_id, "other")
        assert self.status(lease.run_id) == "waiting"
        assert self.taken(self.take(lease)) == Taken("lost")

    def test_signals_are_taken_once_and_the_oldest_first(self) -> None:
        lease = self.lease()
        for value in "123":
            self.send(lease.run_id, value=value)
            self.clock.advance(0.001)
        takes = [self.take(lease, name) for name in "ab"]
        assert self.do("take_signals", takes) == [Taken("taken", "1"), Taken("taken", "2")]
        assert self.taken(self.take(lease, "c")) == Taken("taken", "3")
        assert self.taken(self.take(lease, "d")) == Taken("nothing")

    def test_a_signal_is_taken_together_with_the_checkpoint_of_its_wait(self) -> None:
        lease = self.lease()
        self.save_wait(self.wait(lease, kind="signal", signal="go"))
        self.send(lease.run_id, value="7")
        assert self.taken(self.take(lease)) == Taken("taken", "7")
        (step,) = self.store.find_steps(self.connection, lease.run_id)
        assert (step.name, step.status, step.output) == ("wait", "completed", "7")
        assert self.waits(lease.run_id) == []

    def test_a_taking_played_again_gives_the_same_signal(self) -> None:
        lease = self.lease()
        self.send(lease.run_id, value="1")
        self.send(lease.run_id, value="2")
        take = self.take(lease)
        assert self.taken(take) == Taken("taken", "1")
        assert self.taken(take, replay=True) == Taken("taken", "1")
        assert self.taken(self.take(lease, "next")) == Taken("taken", "2")

    def test_who_has_lost_the_lease_takes_nothing(self) -> None:
        lease = self.lease()
        self.send(lease.run_id)
        self.crash(lease)
        heir = self.again(lease)
        assert self.taken(self.take(lease)) == Taken("lost")
        assert self.taken(self.take(heir, "another")) == Taken("taken", "1")

    def test_when_the_time_of_a_wait_is_over_that_is_saved_unless_a_signal_is_there(self) -> None:
        lease = self.waiting(delay=5 * SECOND)
        self.clock.advance(5)
        heir = self.again(lease)
        assert self.taken(self.take(heir, late=True)) == Taken("late")
        (step,) = self.store.find_steps(self.connection, lease.run_id)
        assert step.status == "failed"
        assert self.waits(lease.run_id) == []

    def test_a_late_taking_played_again_is_late_and_takes_nothing_that_has_come_since(self) -> None:
        lease = self.waiting(delay=5 * SECOND)
        self.clock.advance(5)
        heir = self.again(lease)
        take = self.take(heir, late=True)
        assert self.taken(take) == Taken("late")
        assert self.taken(take, replay=True) == Taken("late")
        self.send(lease.run_id)
        assert self.taken(take, replay=True) == Taken("late")
        assert self.taken(self.take(heir, "another")) == Taken("taken", "1")

    def test_a_signal_that_came_in_time_or_later_is_taken_although_the_time_is_over(self) -> None:
        lease = self.waiting(delay=5 * SECOND)
        self.clock.advance(5)
        heir = self.again(lease)
        self.send(lease.run_id)
        assert self.taken(self.take(heir, late=True)) == Taken("taken", "1")

    def test_before_the_time_is_over_nothing_is_saved(self) -> None:
        lease = self.lease()
        self.save_wait(self.wait(lease, kind="signal", signal="go", delay=5 * SECOND))
        assert self.taken(self.take(lease, late=True)) == Taken("nothing")
        assert self.steps(lease.run_id) == []

    def test_a_signal_with_a_key_is_sent_once(self) -> None:
        lease = self.lease()
        assert self.send(lease.run_id, value="1", key="k").status == "sent"
        assert self.send(lease.run_id, value="2", key="k").status == "again"
        assert self.send(lease.run_id, "other", key="k").status == "sent"
        assert self.taken(self.take(lease)) == Taken("taken", "1")
        assert self.send(lease.run_id, value="3", key="k").status == "again"
        assert self.taken(self.take(lease, "next")) == Taken("nothing")

    def test_a_signal_played_again_is_there_once(self) -> None:
        lease = self.lease()
        assert self.send(lease.run_id, id="s" * 26).status == "sent"
        assert self.send(lease.run_id, id="s" * 26, replay=True).status == "sent"
        assert self.taken(self.take(lease)) == Taken("taken", "1")
        assert self.taken(self.take(lease, "next")) == Taken("nothing")

    def test_runs_that_have_ended_and_those_that_are_not_there_get_no_signals(self) -> None:
        lease = self.lease()
        self.finish(lease)
        assert self.send(lease.run_id) == Sent("ended", "completed")
        assert self.send("nobody") == Sent("gone")

    def test_so_many_unread_signals_are_kept_and_no_more(self) -> None:
        lease = self.lease()
        signals = [NewSignal(f"m{n:025d}", lease.run_id, "go", "1") for n in range(SIGNALS_UNREAD)]
        assert {sent.status for sent in self.do("send_signals", signals)} == {"sent"}
        assert self.send(lease.run_id).status == "full"
        self.taken(self.take(lease))
        assert self.send(lease.run_id).status == "sent"

    def test_signals_go_with_their_run(self) -> None:
        lease = self.lease()
        self.send(lease.run_id, key="k")
        self.finish(lease)
        self.do("delete", [lease.run_id])
        assert self.send(lease.run_id, key="k").status == "gone"


class TreeContract(BelowBench):
    def end_all(self, job: str = "below", cause: Cause = Cause.COMPLETE) -> None:
        for run in self.claim(job):
            self.finish(Lease(run.id, run.generation, "worker"), cause, output="1")

    def test_runs_below_another_know_it(self) -> None:
        lease, (child,) = self.parent()
        row = self.run(child)
        assert (row.parent_id, row.root_id, row.child_index, row.awaited_as) == (
            lease.run_id,
            lease.run_id,
            0,
            "wait#0",
        )
        assert self.store.find_runs(self.connection, RunFilter(parent=lease.run_id)) == [row]

    def test_runs_are_found_by_what_they_are_below_and_who_waits_for_them(self) -> None:
        lease, children = self.parent(2)
        self.parent()
        self.trigger()
        first, second = children
        inner = self.lease_of(first, self.claim("below"))
        grandchild = self.child(inner, wait="other")
        self.save_wait(self.wait(inner, "other", kind="child", children=(grandchild,)))
        assert self.runs(root=lease.run_id) == sorted([grandchild.id, first, second], reverse=True)
        assert self.runs(root=lease.run_id, parent=first) == [grandchild.id]
        assert self.runs(root=lease.run_id, limit=1, before=max(children)) == [min(children)]
        assert self.runs(parent=lease.run_id, awaited_as="wait#0") == [second, first]
        assert self.runs(parent=lease.run_id, awaited_as="other#0") == []
        assert self.runs(root=first) == []

    def test_the_last_end_below_wakes_the_run_above(self) -> None:
        lease, children = self.parent(3)
        claimed = self.claim("below")
        assert [run.id for run in claimed] == children
        leases = [self.lease_of(child, claimed) for child in children]
        self.finish(leases[1], Cause.FAIL, error="e")
        self.finish(leases[0])
        assert self.status(lease.run_id) == "waiting"
        self.finish(leases[2])
        assert self.status(lease.run_id) == "pending"
        assert [run.id for run in self.claim()] == [lease.run_id]

    def test_ends_in_one_call_wake_the_run_above(self) -> None:
        lease, children = self.parent(3)
        claimed = self.claim("below")
        self.do("finish", [self.ending(self.lease_of(child, claimed)) for child in children])
        assert self.status(lease.run_id) == "pending"

    def test_an_end_that_was_written_before_wakes_nobody_twice(self) -> None:
        lease, (child,) = self.parent()
        ending = self.ending(self.lease_of(child, self.claim("below")))
        self.do("finish", [ending])
        heir = self.lease_of(lease.run_id, self.claim())
        self.save_wait(self.wait(heir, "next", delay=60 * SECOND))
        self.do("save_steps", [self.step(heir, "wait")._replace(ends_wait=True)])
        self.suspend(heir)
        self.do("finish", [ending], replay=True)
        assert self.status(lease.run_id) == "waiting"

    def test_a_cancel_a_crash_and_a_deadline_below_wake_the_run_above_too(self) -> None:
        for end in ("cancel", "crash", "deadline"):
            lease = self.lease()
            child = self.child(lease, deadline=5 * SECOND if end == "deadline" else None)
            self.save_wait(self.wait(lease, kind="child", children=(child,)))
            self.suspend(lease, "child")
            if end == "cancel":
                self.cancel(child.id)
            elif end == "crash":
                self.claim("below")
                self.clock.advance(60)
                assert self.expire(max_crashes=1)[0].status == "failed"
            else:
                self.clock.advance(5)
                assert [row.id for row in self.do("pass_deadlines", [10])[0]] == [child.id]
            assert self.status(lease.run_id) == "pending", end
            self.cancel(lease.run_id)

    def test_what_nobody_waits_for_wakes_nobody(self) -> None:
        lease = self.lease()
        spawned = self.child(lease, wait=None)
        awaited = self.child(lease)
        self.save_wait(self.wait(lease, kind="child", children=(spawned, awaited)))
        self.suspend(lease, "child")
        claimed = self.claim("below")
        self.finish(self.lease_of(spawned.id, claimed))
        assert self.status(lease.run_id) == "waiting"
        self.finish(self.lease_of(awaited.id, claimed))
        assert self.status(lease.run_id) == "pending"

    def test_a_run_without_anything_below_it_is_woken_at_once(self) -> None:
        lease = self.lease()
        self.save_wait(self.wait(lease, kind="children"))
        assert self.suspend(lease, "children").status == "pending"

    def test_runs_below_others_with_one_key_queue(self) -> None:
        lease = self.lease()
        below = tuple(self.child(lease, concurrency_key="k") for _ in range(2))
        self.save_wait(self.wait(lease, kind="children", children=below))
        self.suspend(lease, "children")
        (first,) = self.claim("below")
        assert first.id == below[0].id
        self.finish(Lease(first.id, first.generation, "worker"))
        assert [run.id for run in self.claim("below")] == [below[1].id]

    def test_a_wait_played_again_makes_no_second_run_below(self) -> None:
        lease = self.lease()
        save = self.wait(lease, kind="child", children=(self.child(lease),))
        first = self.save_wait(save)
        assert self.do("save_waits", [save], replay=True) == [first]
        assert len(self.runs(parent=lease.run_id)) == 1

    def test_a_wait_that_is_known_gets_no_other_runs_below(self) -> None:
        lease = self.lease()
        for _ in range(2):  # the second as by an execution that does not know the first
            self.save_wait(self.wait(lease, kind="child", children=(self.child(lease),)))
        assert len(self.runs(parent=lease.run_id)) == 1

    def test_what_is_below_a_cancelled_run_is_cancelled_level_by_level(self) -> None:
        lease, (child,) = self.parent()
        inner = self.lease_of(child, self.claim("below"))
        leaf = self.child(inner, "leaf")
        self.save_wait(self.wait(inner, kind="child", children=(leaf,)))
        self.suspend(inner, "child")
        self.cancel(lease.run_id)
        assert [row.id for row in self.cancel_below()] == [child]
        assert [row.id for row in self.cancel_below()] == [leaf.id]
        assert self.cancel_below() == []
        row = self.run(leaf.id)
        assert (row.status, row.error_type, row.generation) == ("cancelled", "ParentEnded", 1)

    def test_what_is_below_a_failed_run_is_cancelled_and_below_a_completed_one_it_is_not(self) -> None:
        for cause, expected in ((Cause.FAIL, "cancelled"), (Cause.TIME_OUT, "cancelled"), (Cause.COMPLETE, "pending")):
            lease = self.lease()
            child = self.child(lease, wait=None)
            self.save_wait(self.wait(lease, kind="timer", delay=1, children=(child,)))
            assert self.finish(lease, cause).leaves is (cause is not Cause.COMPLETE)
            self.cancel_below()
            assert self.status(child.id) == expected, cause

    def left_going(self, levels: int) -> tuple[Lease, list[str], str]:
        """A run under way, some below each other that have completed, and what the last of them has left behind."""
        lease, (child,) = self.parent()
        ended: list[tuple[Lease, str]] = []
        for _ in range(levels):
            inner = self.lease_of(child, self.claim("below"))
            ended.append((inner, child))
            below = self.child(inner, wait=None)
            self.save_wait(self.wait(inner, kind="timer", delay=1, children=(below,)))
            child = below.id
        for inner, _ in reversed(ended):
            assert not self.finish(inner).leaves
        return lease, [run_id for _, run_id in ended], child

    def test_what_a_completed_run_left_going_goes_with_what_is_above_it(self) -> None:
        for levels in (1, 3):
            lease, ended, left = self.left_going(levels)
            assert self.cancel_below() == []
            assert self.status(left) == "pending"
            self.cancel(lease.run_id)
            assert [row.id for row in self.cancel_below()] == [left]
            assert self.cancel_below() == []
            assert {self.status(run_id) for run_id in ended} == {"completed"}

    def test_what_a_completed_run_left_going_is_not_claimed_once_what_is_above_it_has_ended(self) -> None:
        lease, _, left = self.left_going(2)
        self.cancel(lease.run_id)
        self.do("cancel_below", [0])  # a look that takes nothing decides nothing either
        assert self.claim("below") == []
        assert (self.status(left), self.run(left).error_type) == ("cancelled", "ParentEnded")

    def test_what_ended_before_the_run_above_it_is_left_alone_when_that_goes(self) -> None:
        lease, ended, left = self.left_going(1)
        self.finish(self.lease_of(left, self.claim("below")))
        self.cancel(lease.run_id)
        assert self.cancel_below() == []
        assert {self.status(run_id) for run_id in (*ended, left)} == {"completed"}

    def test_a_retried_run_keeps_what_is_below_it(self) -> None:
        lease = self.lease()
        child = self.child(lease)
        self.save_wait(self.wait(lease, kind="child", children=(child,)))
        self.finish(lease, Cause.RETRY)
        assert self.cancel_below() == []
        assert self.status(child.id) == "pending"
        assert self.waits(lease.run_id) == ["wait#0"]

    def test_what_is_below_a_run_is_cancelled_in_bounded_batches(self) -> None:
        lease, children = self.parent(5)
        self.cancel(lease.run_id)
        assert [len(self.cancel_below(2)) for _ in range(4)] == [2, 2, 1, 0]
        assert {self.status(child) for child in children} == {"cancelled"}

    def test_no_run_of_a_cancelled_tree_is_claimed(self) -> None:
        lease, (child,) = self.parent()
        inner = self.lease_of(child, self.claim("below"))
        leaf = self.child(inner, "leaf")
        self.save_wait(self.wait(inner, kind="child", children=(leaf,)))
        self.suspend(inner, "child")
        self.cancel(lease.run_id)
        assert self.claim("leaf", "below") == []
        assert (self.status(leaf.id), self.run(leaf.id).error_type) == ("cancelled", "ParentEnded")

    def test_the_holder_of_a_run_that_was_cancelled_with_its_tree_has_lost_it(self) -> None:
        lease, (child,) = self.parent()
        inner = self.lease_of(child, self.claim("below"))
        self.cancel(lease.run_id)
        self.cancel_below()
        assert self.do("save_steps", [self.step(inner)]) == [False]
        assert not self.finish(inner).accepted
        assert self.store.lost_leases(self.connection, [inner]) == {inner: "cancelled"}

    def test_a_tree_is_deleted_with_its_waits_and_not_before_it_has_ended(self) -> None:
        lease, (child,) = self.parent()
        self.cancel(lease.run_id)
        assert self.do("delete", [lease.run_id])[0].standing == "parent"
        self.cancel_below()
        assert self.do("delete", [child])[0].standing == "child"
        assert self.do("delete", [lease.run_id])[0].accepted
        assert self.runs() == []

    def test_a_large_tree_is_deleted_in_parts_and_its_root_is_the_last_to_go(self) -> None:
        lease, _ = self.parent(_LARGE)
        assert self.do("delete", [lease.run_id])[0].standing == "waiting"
        self.cancel(lease.run_id)
        while self.cancel_below():
            pass
        before = _LARGE + 1
        while (deleted := self.do("delete", [lease.run_id])[0]).standing == MORE:
            assert not deleted.accepted
            there = self.runs()
            assert lease.run_id in there
            assert len(there) < before, "each call deletes some of it"
            before = len(there)
        assert (deleted.accepted, deleted.job_name) == (True, "job")
        assert self.runs() == []

    def test_of_many_trees_each_goes_however_they_are_deleted(self) -> None:
        roots = []
        for _ in range(3):
            lease, _ = self.parent(_LARGE // 2)
            self.cancel(lease.run_id)
            roots.append(lease.run_id)
        while self.cancel_below():
            pass
        left = roots
        while left:
            answers = self.do("delete", left)
            left = [run_id for run_id, answer in zip(left, answers, strict=True) if not answer.accepted]
            assert {answer.standing for answer in answers if not answer.accepted} <= {MORE}
        assert self.runs() == []


#: Runs below one: more than a store deletes in one round.
_LARGE = 600


class BelowContract(WaitContract, SignalContract, TreeContract):
    """All of it."""
