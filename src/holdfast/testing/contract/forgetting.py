"""Promises about deleting runs, finding the old ones, and dropping the outputs of steps."""

from __future__ import annotations

import json
from typing import Any

from ...model.run import RunStatus
from ...rules.lifecycle import Cause
from ...store.base import Deleted, Lease, Old
from .bench import HOSTILE, LEASE, NAMES, SECOND, StoreBench

_LABELS = '{"env":"test","team":"red"}'


class ForgettingContract(StoreBench):
    def full(self, job: str = "job", **values: Any) -> Lease:
        """A leased run of which there is something in every table."""
        lease = self.lease(job, **{"labels": _LABELS, **values})
        saves = [self.step(lease, "a"), self.step(lease, "b", position=1, status="failed", output=None, error="{}")]
        assert self.do("save_steps", saves) == [True, True]
        self.do("save_logs", [self.line(lease, "first"), self.line(lease, "second")])
        self.do("save_progress", [self.progress(lease)])
        return lease

    def delete(self, *run_ids: str, replay: bool = False) -> list[Deleted]:
        return self.do("delete", run_ids, replay=replay)

    def old(self, seconds: float = 0, **values: Any) -> list[str]:
        """What ended longer ago than that."""
        return self.store.find_old(self.connection, Old(self.clock.now() - round(seconds * SECOND), **values))

    def ended(self, cause: Cause = Cause.COMPLETE, **values: Any) -> str:
        """A run that has ended; then a second passes."""
        lease = self.lease(**values)
        self.finish(lease, cause)
        self.clock.advance(1)
        return lease.run_id

    # -- delete ------------------------------------------------------------------------------------------------

    def test_a_deleted_run_is_gone_with_all_that_belonged_to_it(self) -> None:
        stays = self.full("stays")
        before = self.everything()
        for cause in (Cause.COMPLETE, Cause.FAIL, Cause.TIME_OUT, Cause.CANCEL_ITSELF):
            lease = self.full()
            self.finish(lease, cause)
            (deleted,) = self.delete(lease.run_id)
            assert (deleted.accepted, deleted.job_name, json.loads(deleted.labels)) == (
                True,
                "job",
                json.loads(_LABELS),
            )
            assert self.everything() == before
            assert (self.steps(lease.run_id), self.messages(lease.run_id)) == ([], [])
            assert self.runs(labels=(("env", "test"),)) == [stays.run_id]

    def test_only_ended_runs_are_deleted_and_the_others_say_what_they_are(self) -> None:
        for status in RunStatus:
            run_id = self.run_in(status).run_id
            before = self.everything()
            (deleted,) = self.delete(run_id)
            if status.is_terminal:
                assert deleted.accepted, status
                assert self.store.ended(self.connection, [run_id]) == {run_id: "gone"}
            else:
                assert (deleted.accepted, deleted.standing) == (False, status)
                assert self.everything() == before
                self.cancel(run_id)

    def test_a_run_that_is_not_there_is_not_deleted(self) -> None:
        (deleted,) = self.delete("no such run")
        assert (deleted.accepted, deleted.standing) == (False, None)

    def test_a_deletion_repeated_after_a_lost_answer_is_accepted(self) -> None:
        run_id, waits = self.ended(), self.trigger()
        assert self.delete(run_id)[0].accepted
        again, refused = self.delete(run_id, waits, replay=True)
        assert again.accepted
        assert (refused.accepted, refused.standing) == (False, "pending")
        assert self.runs() == [waits]

    def test_a_deletion_that_did_not_happen_is_made_up_for_by_the_second_playing(self) -> None:
        run_id = self.ended()
        (deleted,) = self.delete(run_id, replay=True)
        assert (deleted.accepted, deleted.job_name) == (True, "job")
        assert self.runs() == []

    def test_many_deletions_in_one_call_are_answered_in_order(self) -> None:
        done = [self.ended() for _ in range(30)]
        waits = self.trigger()
        asked = [done[0], "none", waits, *done[1:], done[0]]
        answers = self.delete(*asked)
        assert [answer.accepted for answer in answers] == [run_id in done for run_id in asked]
        assert [answer.standing for answer in answers][1:3] == [None, "pending"]
        assert self.runs() == [waits]
        assert self.delete() == []

    def test_the_idempotency_key_of_a_deleted_run_is_free(self) -> None:
        first = self.ended(idempotency_key="k")
        twice = self.do("trigger", [self.new(idempotency_key="k")])[0]
        assert (twice.disposition, twice.run.id) == ("idempotent", first)
        self.delete(first)
        assert self.do("trigger", [self.new(idempotency_key="k")])[0].disposition == "created"

    def test_a_zombie_of_a_deleted_run_writes_nothing(self) -> None:
        lease = self.full()
        self.cancel(lease.run_id)
        assert self.delete(lease.run_id)[0].accepted
        for replay in (False, True):
            with self.tx(replay=replay) as tx:
                assert self.store.renew_leases(tx, [self.renewal(lease)]) == [False]
                self.store.save_progress(tx, [self.progress(lease)])
                self.store.save_logs(tx, [self.line(lease)])
                assert self.store.save_steps(tx, [self.step(lease, "late")]) == [False]
                ended = self.store.finish(tx, [self.ending(lease)])[0]
            assert (ended.accepted, ended.status) == (False, None)
        # What it left would be there again under the same id.
        assert self.trigger_again(lease.run_id)
        assert (self.steps(lease.run_id), self.messages(lease.run_id)) == ([], [])
        assert self.run(lease.run_id).progress is None
        assert self.runs(labels=(("env", "test"),)) == []

    def trigger_again(self, run_id: str) -> bool:
        return bool(self.do("trigger", [self.new()._replace(id=run_id)])[0].disposition == "created")

    def test_in_one_round_a_run_is_deleted_before_its_zombie_writes(self) -> None:
        lease = self.full()
        self.cancel(lease.run_id)
        with self.tx() as tx:
            assert self.store.delete(tx, [lease.run_id])[0].accepted
            assert self.store.save_steps(tx, [self.step(lease, "late")]) == [False]
            self.store.save_logs(tx, [self.line(lease)])
        assert (self.steps(lease.run_id), self.messages(lease.run_id)) == ([], [])

    def test_hostile_labels_are_deleted_too(self) -> None:
        for text in NAMES:
            run_id = self.ended(labels=json.dumps({"k": text}))
            assert self.runs(labels=(("k", text),)) == [run_id]
            (deleted,) = self.delete(run_id)
            assert deleted.label_map == {"k": text}
            assert self.trigger_again(run_id)
            assert self.runs(labels=(("k", text),)) == []
            self.cancel(run_id)
            self.delete(run_id)

    def test_hostile_ids_delete_nothing(self) -> None:
        run_id = self.ended()
        assert [deleted.accepted for deleted in self.delete(*HOSTILE)] == [False] * len(HOSTILE)
        assert self.runs() == [run_id]

    # -- what is old -------------------------------------------------------------------------------------------

    def test_old_runs_are_found_the_oldest_end_first(self) -> None:
        late = self.lease()
        done = [self.ended(cause) for cause in (Cause.FAIL, Cause.COMPLETE, Cause.CANCEL_ITSELF, Cause.TIME_OUT)]
        self.finish(late)
        self.trigger()
        self.clock.advance(1)
        assert self.old() == [*done, late.run_id]
        assert self.old(1) == done
        assert self.old(3) == done[:2]
        assert self.old(99) == []
        assert self.old(limit=2) == done[:2]
        assert self.old(limit=0) == []

    def test_a_run_that_ended_at_that_very_moment_is_not_old(self) -> None:
        run_id = self.ended()
        assert self.old(1) == []
        assert self.old(0.999_999) == [run_id]

    def test_runs_that_have_not_ended_are_never_old(self) -> None:
        for status in RunStatus.active():
            self.run_in(status)
            self.clock.advance(1)
        self.crash(self.lease())
        assert self.old() == []

    def test_old_runs_are_found_by_job_status_and_labels(self) -> None:
        plain = self.ended()
        failed = self.ended(Cause.FAIL)
        labelled = self.ended(labels=_LABELS)
        other = self.ended(job="other", labels='{"env":"test"}')
        assert self.old(jobs=("other", "none")) == [other]
        assert self.old(statuses=("failed",)) == [failed]
        assert self.old(statuses=("failed", "completed"), jobs=("job",)) == [plain, failed, labelled]
        assert self.old(labels=(("env", "test"),)) == [labelled, other]
        assert self.old(labels=(("env", "test"), ("team", "red"))) == [labelled]
        assert self.old(labels=(("env", "TEST"),)) == []
        assert self.old(jobs=("JOB",)) == []

    def test_a_hostile_filter_finds_nothing_old(self) -> None:
        self.ended(labels='{"k":"v"}')
        for text in HOSTILE:
            assert self.old(jobs=(text,)) == self.old(statuses=(text,)) == self.old(labels=((text, text),)) == []

    def test_a_batch_is_bounded_by_what_its_runs_hold_but_never_empty(self) -> None:
        ids = []
        for count in (3, 2, 9, 1):
            lease = self.lease()
            self.do("save_steps", [self.step(lease, f"s{n}", position=n) for n in range(count)])
            self.do("save_logs", [self.line(lease)])
            self.finish(lease)
            self.clock.advance(1)
            ids.append(lease.run_id)
        assert self.old(weight=7) == ids[:2]
        assert self.old(weight=6) == ids[:1]
        self.delete(*ids[:2])
        assert self.old(weight=7) == ids[2:3]
        assert self.old(weight=12) == ids[2:]

    # -- outputs of steps --------------------------------------------------------------------------------------

    def test_dropping_the_outputs_of_steps_leaves_everything_else(self) -> None:
        lease = self.full()
        self.finish(lease, output='"kept"')
        self.clock.advance(1)
        before = self.store.find_steps(self.connection, lease.run_id)
        run, lines = self.run(lease.run_id), self.messages(lease.run_id)
        assert self.do("drop_outputs", [lease.run_id]) == [True]
        assert self.store.find_steps(self.connection, lease.run_id) == [row._replace(output=None) for row in before]
        assert self.run(lease.run_id) == run
        assert self.messages(lease.run_id) == lines == ["first", "second"]

    def test_outputs_of_runs_that_have_not_ended_are_never_dropped(self) -> None:
        lease = self.full()
        waits = self.full("waits")
        self.finish(waits, Cause.SUSPEND)
        retried = self.full("retried")
        self.finish(retried, Cause.RETRY)
        before = self.everything()
        ids = [lease.run_id, waits.run_id, retried.run_id, "none"]
        for replay in (False, True):
            assert self.do("drop_outputs", ids, replay=replay) == [False] * 4
        assert self.everything() == before
        again = self.lease_of(retried.run_id, self.claim("retried"))
        (claimed,) = [row for row in self.store.find_steps(self.connection, again.run_id) if row.status == "completed"]
        assert claimed.output == '"value"'

    def test_a_run_whose_outputs_are_dropped_is_not_found_again_for_that(self) -> None:
        first, second = self.ended(), self.ended(labels=_LABELS)
        assert self.old(outputs=True) == [first, second]
        assert self.old(1, outputs=True) == [first]
        assert self.old(outputs=True, labels=(("env", "test"),)) == [second]
        assert self.do("drop_outputs", [first]) == [True]
        assert self.old(outputs=True) == [second]
        assert self.do("drop_outputs", [second]) == [True]
        assert self.old(outputs=True) == self.old(outputs=True, labels=(("env", "test"),)) == []
        assert self.old() == [first, second], "they may still be deleted"
        assert self.old(labels=(("env", "test"),)) == [second]

    def test_outputs_dropped_once_more_after_a_lost_answer_are_dropped(self) -> None:
        lease = self.full()
        self.finish(lease)
        self.do("drop_outputs", [lease.run_id])
        before = self.everything()
        assert self.do("drop_outputs", [lease.run_id, lease.run_id], replay=True) == [True, True]
        assert self.everything() == before

    def test_a_zombie_saves_no_step_after_the_outputs_were_dropped(self) -> None:
        lease = self.full()
        self.clock.advance(LEASE / SECOND)
        self.cancel(lease.run_id)
        self.do("drop_outputs", [lease.run_id])
        assert self.do("save_steps", [self.step(lease, "late"), self.step(lease, "a")]) == [False, False]
        rows = self.store.find_steps(self.connection, lease.run_id)
        assert [(row.name, row.output) for row in rows] == [("a", None), ("b", None)]
