"""Promises about what a run writes while it is executed: checkpoints, log lines, progress."""

from __future__ import annotations

from ...model.step import StepKey, Tries
from ...rules.lifecycle import Cause
from .bench import HOSTILE, NAMES, StoreBench


class StepContract(StoreBench):
    # -- checkpoints -------------------------------------------------------------------------------------------

    def test_a_checkpoint_is_kept_as_it_was_given(self) -> None:
        lease = self.lease()
        save = self.step(
            lease, "fetch", 2, position=7, attempt=3, fingerprint="f", output='{"a":1}', started_at=5, completed_at=9
        )
        assert self.do("save_steps", [save]) == [True]
        assert self.store.find_steps(self.connection, lease.run_id) == [save.step]

    def test_many_checkpoints_in_one_call_are_answered_in_order(self) -> None:
        good, bad = self.lease("good"), self.lease("bad")
        self.cancel(bad.run_id)
        saves = [self.step(bad if n % 3 == 0 else good, f"step-{n}", position=n) for n in range(300)]
        assert self.do("save_steps", saves) == [n % 3 != 0 for n in range(300)]
        assert len(self.steps(good.run_id)) == 200
        assert self.steps(bad.run_id) == []

    def test_a_step_is_its_name_and_its_occurrence(self) -> None:
        lease = self.lease()
        saves = [self.step(lease, name, n) for name in ("a", "A", "á", "a ") for n in (0, 1)]
        assert all(self.do("save_steps", saves))
        assert len(self.steps(lease.run_id)) == 8

    def test_a_checkpoint_saved_again_after_a_lost_answer_is_saved(self) -> None:
        lease = self.lease()
        save = self.step(lease)
        self.do("save_steps", [save])
        before = self.everything()
        assert self.do("save_steps", [save], replay=True) == [True]
        assert self.everything() == before

    def test_a_checkpoint_twice_in_one_call_is_saved_once(self) -> None:
        lease = self.lease()
        save = self.step(lease)
        assert self.do("save_steps", [save, save]) == [True, True]
        assert self.steps(lease.run_id) == ["step"]

    def test_of_two_different_checkpoints_of_one_step_the_first_counts(self) -> None:
        lease = self.lease()
        first = self.step(lease, output="1")
        second = self.step(lease, output=None, status="failed", error="{}")
        assert self.do("save_steps", [first, second]) == [True, False]
        assert self.store.find_steps(self.connection, lease.run_id) == [first.step]

    def test_a_checkpoint_of_another_call_of_the_step_is_not_taken_for_the_saved_one(self) -> None:
        lease = self.lease()
        self.do("save_steps", [self.step(lease, output="1", started_at=1)])
        assert self.do("save_steps", [self.step(lease, output="2", started_at=2)], replay=True) == [False]

    def test_a_completed_step_is_never_written_again(self) -> None:
        lease = self.lease()
        first = self.step(lease, output="1")
        self.do("save_steps", [first])
        self.finish(lease, Cause.RETRY)
        heir = self.lease_of(lease.run_id, self.claim())
        for status in ("completed", "failed"):
            later = self.step(heir, output="2", attempt=1, status=status)
            assert self.do("save_steps", [later]) == [False]
        assert self.store.find_steps(self.connection, lease.run_id) == [first.step]

    def test_a_failed_step_is_replaced_by_a_later_attempt_only(self) -> None:
        lease = self.lease()
        failed = self.step(lease, status="failed", output=None, error='{"type":"E"}')
        self.do("save_steps", [failed])
        self.crash(lease)
        same = self.lease_of(lease.run_id, self.claim())
        assert self.do("save_steps", [self.step(same)]) == [False]
        assert self.store.find_steps(self.connection, lease.run_id) == [failed.step]
        self.finish(same, Cause.RETRY)
        later = self.lease_of(lease.run_id, self.claim())
        save = self.step(later, attempt=1, output="2", position=4)
        assert self.do("save_steps", [save]) == [True]
        assert self.store.find_steps(self.connection, lease.run_id) == [save.step]

    def test_checkpoints_of_lost_leases_are_refused(self) -> None:
        for how, lease in self.lost_leases().items():
            before = self.everything()
            for replay in (False, True):
                assert self.do("save_steps", [self.step(lease, "zombie")], replay=replay) == [False], how
            assert self.everything() == before, how

    def test_a_zombies_checkpoint_is_refused_beside_its_successors(self) -> None:
        zombie = self.lease()
        self.crash(zombie)
        heir = self.lease_of(zombie.run_id, self.claim())
        by_zombie, by_heir = self.step(zombie, output='"zombie"'), self.step(heir, output='"heir"')
        assert self.do("save_steps", [by_zombie, by_heir]) == [False, True]
        assert self.store.find_steps(self.connection, heir.run_id) == [by_heir.step]

    def test_a_zombie_is_not_told_that_its_successors_checkpoint_was_its_own(self) -> None:
        zombie = self.lease()
        self.crash(zombie)
        heir = self.lease_of(zombie.run_id, self.claim())
        self.do("save_steps", [self.step(heir)])
        assert self.do("save_steps", [self.step(zombie)], replay=True) == [False]

    def test_a_holder_whose_lease_ran_out_may_write_until_it_is_taken(self) -> None:
        lease = self.lease()
        self.clock.advance(3600)
        assert self.do("save_steps", [self.step(lease)]) == [True]

    def test_steps_are_read_by_position(self) -> None:
        lease = self.lease()
        self.do("save_steps", [self.step(lease, f"step-{n}", position=n) for n in (4, 2, 0, 3, 1)])
        find = self.store.find_steps
        assert self.steps(lease.run_id) == [f"step-{n}" for n in range(5)]
        assert [row.position for row in find(self.connection, lease.run_id, first=1, until=4)] == [1, 2, 3]
        assert [row.position for row in find(self.connection, lease.run_id, first=3)] == [3, 4]
        assert find(self.connection, lease.run_id, first=2, until=2) == []
        assert find(self.connection, "no such run") == []

    def test_a_run_tells_how_many_steps_are_completed_and_which_comes_next(self) -> None:
        lease = self.lease()
        self.do("save_steps", [self.step(lease, "a", position=0), self.step(lease, "b", position=5, status="failed")])
        run = self.run(lease.run_id)
        assert (run.completed_step_count, run.current_step_index) == (1, 6)

    def test_hostile_step_texts_are_kept_exactly(self) -> None:
        lease = self.lease()
        saves = [
            self.step(lease, name, position=n, fingerprint=text, output=text, error=text)
            for n, (name, text) in enumerate(zip(NAMES, HOSTILE, strict=True))
        ]
        assert all(self.do("save_steps", saves))
        assert self.store.find_steps(self.connection, lease.run_id) == [save.step for save in saves]
        assert all(self.do("save_steps", saves, replay=True))

    def test_an_output_of_a_mebibyte_is_kept(self) -> None:
        lease = self.lease()
        text = '"' + "\\u0000\\\\" * (1 << 17) + '"'
        self.do("save_steps", [self.step(lease, output=text)])
        assert self.store.find_steps(self.connection, lease.run_id)[0].output == text
        self.finish(lease, output=text)
        assert self.run(lease.run_id).output == text

    # -- tries of steps ----------------------------------------------------------------------------------------

    def test_a_try_is_kept_as_it_was_given(self) -> None:
        lease = self.lease()
        begun = self.attempt(lease, 1, "fetch", 2, run_attempt=3, position=7, started_at=5)
        assert self.do("save_attempts", [begun]) == [True]
        assert self.store.find_attempts(self.connection, lease.run_id) == [begun.attempt._replace(live=True)]
        ended = self.attempt(lease, 1, "fetch", 2, run_attempt=3, position=7, started_at=5, ended_at=9, error="E: no")
        assert self.do("save_attempts", [ended]) == [True]
        assert self.store.find_attempts(self.connection, lease.run_id) == [ended.attempt._replace(live=True)]

    def test_many_tries_in_one_call_are_answered_in_order(self) -> None:
        good, bad = self.lease("good"), self.lease("bad")
        self.cancel(bad.run_id)
        saves = [self.attempt(bad if n % 3 == 0 else good, n, error="E") for n in range(300)]
        assert self.do("save_attempts", saves) == [n % 3 != 0 for n in range(300)]
        assert self.tries(good.run_id) == {"step": 200}
        assert self.attempts(bad.run_id) == []

    def test_a_try_saved_again_after_a_lost_answer_is_saved(self) -> None:
        lease = self.lease()
        saves = [self.attempt(lease, 0, error="E"), self.attempt(lease, 1)]
        self.do("save_attempts", saves)
        before = self.everything()
        assert self.do("save_attempts", saves, replay=True) == [True, True]
        assert self.everything() == before

    def test_of_a_beginning_and_an_end_of_one_try_in_one_call_the_end_counts(self) -> None:
        lease = self.lease()
        begun, ended = self.attempt(lease), self.attempt(lease, error="E")
        assert self.do("save_attempts", [begun, ended, begun]) == [True] * 3
        assert self.attempts(lease.run_id) == [("step", 0, 0, True)]

    def test_a_try_that_has_ended_is_not_opened_again(self) -> None:
        lease = self.lease()
        self.do("save_attempts", [self.attempt(lease, error="E")])
        before = self.everything()
        assert self.do("save_attempts", [self.attempt(lease)]) == [False]
        assert self.everything() == before

    def test_a_try_that_was_lost_is_begun_anew_under_its_number(self) -> None:
        lease = self.lease()
        self.do("save_attempts", [self.attempt(lease)])
        self.crash(lease)
        heir = self.lease_of(lease.run_id, self.claim())
        again = self.attempt(heir, position=4)
        assert self.do("save_attempts", [again]) == [True]
        assert self.store.find_attempts(self.connection, lease.run_id) == [again.attempt._replace(live=True)]

    def test_tries_of_lost_leases_are_refused(self) -> None:
        for how, lease in self.lost_leases().items():
            before = self.everything()
            for save in (self.attempt(lease), self.attempt(lease, error="E")):
                for replay in (False, True):
                    assert self.do("save_attempts", [save], replay=replay) == [False], how
            assert self.everything() == before, how

    def test_a_zombies_try_is_refused_beside_its_successors(self) -> None:
        zombie = self.lease()
        self.crash(zombie)
        heir = self.lease_of(zombie.run_id, self.claim())
        assert self.do("save_attempts", [self.attempt(zombie, error="Z"), self.attempt(heir)]) == [False, True]
        assert self.tries(heir.run_id) == {}

    def test_a_holder_whose_lease_ran_out_may_count_until_it_is_taken(self) -> None:
        lease = self.lease()
        self.clock.advance(3600)
        assert self.do("save_attempts", [self.attempt(lease, error="E")]) == [True]

    def test_only_failed_tries_are_counted_each_for_its_step_and_its_attempt_of_the_run(self) -> None:
        lease = self.lease()
        self.do("save_attempts", [
            self.attempt(lease, 0, error="E", ended_at=5), self.attempt(lease, 1, error="E", ended_at=8),
            self.attempt(lease, 2), self.attempt(lease, 0, "step", 1, error="E", ended_at=6),
            self.attempt(lease, 0, "ended well", ended_at=7), self.attempt(lease, 0, run_attempt=1, error="E"),
        ])  # fmt: skip
        found = self.store.failed_tries(self.connection, lease.run_id, 0)
        assert found == {StepKey("step", 0): Tries(2, 8), StepKey("step", 1): Tries(1, 6)}
        assert self.tries(lease.run_id, 1) == {"step": 1}
        assert self.tries(lease.run_id, 2) == self.tries("no such run") == {}

    def test_a_step_that_is_saved_has_no_tries_to_go_on_with(self) -> None:
        lease = self.lease()
        tries = [self.attempt(lease, 0, name, run_attempt=n, error="E") for name in ("good", "bad") for n in (0, 1)]
        self.do("save_attempts", tries)
        self.do("save_steps", [self.step(lease, "good"), self.step(lease, "bad", status="failed")])
        assert self.tries(lease.run_id, 0) == {}
        assert self.tries(lease.run_id, 1) == {"bad": 1}, "a new attempt of the run tries a failed step anew"

    def test_tries_are_read_by_position_and_number(self) -> None:
        lease = self.lease()
        for name, position in (("b", 0), ("a", 1)):
            rows = [(1, 0), (0, 1), (0, 0)]
            self.do("save_attempts", [self.attempt(lease, n, name, run_attempt=a, position=position) for a, n in rows])
        order = [(attempt, number, False) for attempt, number in ((0, 0), (0, 1), (1, 0))]
        assert self.attempts(lease.run_id) == [("b", *rest) for rest in order] + [("a", *rest) for rest in order]
        assert self.attempts("no such run") == []

    def test_a_try_is_live_while_its_execution_has_the_run(self) -> None:
        lease = self.lease()
        self.do("save_attempts", [self.attempt(lease)])

        def live() -> list[bool]:
            return [row.live for row in self.store.find_attempts(self.connection, lease.run_id)]

        assert live() == [True]
        self.crash(lease)
        assert live() == [False]
        heir = self.lease_of(lease.run_id, self.claim())
        assert live() == [False]
        self.do("save_attempts", [self.attempt(heir)])
        assert live() == [True]
        self.finish(heir)
        assert live() == [False]

    def test_hostile_texts_of_tries_are_kept_exactly(self) -> None:
        lease = self.lease()
        texts = enumerate(zip(NAMES, HOSTILE, strict=True))
        saves = [self.attempt(lease, 0, name, position=n, error=text) for n, (name, text) in texts]
        assert all(self.do("save_attempts", saves))
        found = self.store.find_attempts(self.connection, lease.run_id)
        assert found == [save.attempt._replace(live=True) for save in saves]
        assert self.store.failed_tries(self.connection, lease.run_id, 0).keys() == {StepKey(t, 0) for t in NAMES}

    # -- log lines ---------------------------------------------------------------------------------------------

    def test_log_lines_are_kept_in_the_order_of_writing(self) -> None:
        lease = self.lease()
        line = self.line(lease, "first", step_name="step", level="warning", data='{"a":1}', created_at=9)
        assert self.do("save_logs", [line, self.line(lease, "second", created_at=1)]) == [None, None]
        self.do("save_logs", [self.line(lease, "third", level=level) for level in ("debug", "info", "error")])
        found = self.store.find_logs(self.connection, lease.run_id)
        assert [row.message for row in found] == ["first", "second", "third", "third", "third"]
        assert found[0]._replace(id=0) == line.line
        assert [row.id for row in found] == sorted({row.id for row in found})

    def test_equal_log_lines_are_all_kept(self) -> None:
        lease = self.lease()
        self.do("save_logs", [self.line(lease), self.line(lease)])
        self.do("save_logs", [self.line(lease)])
        assert len(self.messages(lease.run_id)) == 3

    def test_log_lines_are_written_once_when_the_answer_was_lost(self) -> None:
        lease = self.lease()
        lines = [self.line(lease, "a", step_name="s"), self.line(lease, "b", data="{}"), self.line(lease, "b")]
        self.do("save_logs", lines)
        self.do("save_logs", lines, replay=True)
        self.do("save_logs", [line._replace(again=True) for line in lines])
        assert self.messages(lease.run_id) == ["a", "b", "b"]

    def test_log_lines_are_written_when_the_commit_had_failed(self) -> None:
        lease = self.lease()
        self.do("save_logs", [self.line(lease, "a"), self.line(lease, "a")], replay=True)
        assert self.messages(lease.run_id) == ["a", "a"]

    def test_log_lines_of_lost_leases_are_dropped(self) -> None:
        for how, lease in self.lost_leases().items():
            assert self.do("save_logs", [self.line(lease)]) == [None], how
            assert self.messages(lease.run_id) == [], how

    def test_log_lines_are_read_in_pages(self) -> None:
        lease = self.lease()
        self.do("save_logs", [self.line(lease, str(n)) for n in range(5)])
        first = self.store.find_logs(self.connection, lease.run_id, limit=2)
        rest = self.store.find_logs(self.connection, lease.run_id, after=first[-1].id)
        assert [row.message for row in (*first, *rest)] == ["0", "1", "2", "3", "4"]
        assert self.store.find_logs(self.connection, lease.run_id, limit=0) == []

    def test_hostile_log_lines_are_kept_exactly(self) -> None:
        lease = self.lease()
        self.do("save_logs", [self.line(lease, text, step_name=text, data=text) for text in HOSTILE])
        found = self.store.find_logs(self.connection, lease.run_id)
        assert [(row.message, row.step_name, row.data) for row in found] == [(text,) * 3 for text in HOSTILE]

    # -- progress ----------------------------------------------------------------------------------------------

    def test_the_last_progress_is_kept(self) -> None:
        a, b = self.lease("a"), self.lease("b")
        assert self.run(a.run_id).progress is None
        rows = [self.progress(a, "1"), self.progress(b, "9"), self.progress(a, "2")]
        assert self.do("save_progress", rows) == [None] * 3
        assert (self.run(a.run_id).progress, self.run(b.run_id).progress) == ("2", "9")
        self.do("save_progress", [self.progress(a, "3")], replay=True)
        assert self.run(a.run_id).progress == "3"

    def test_progress_of_lost_leases_is_dropped(self) -> None:
        for how, lease in self.lost_leases().items():
            before = self.everything()
            assert self.do("save_progress", [self.progress(lease, "zombie")]) == [None], how
            assert self.everything() == before, how

    def test_a_zombies_progress_does_not_hide_its_successors(self) -> None:
        zombie = self.lease()
        self.crash(zombie)
        heir = self.lease_of(zombie.run_id, self.claim())
        self.do("save_progress", [self.progress(heir, "heir"), self.progress(zombie, "zombie")])
        assert self.run(heir.run_id).progress == "heir"

    def test_hostile_progress_is_kept_exactly(self) -> None:
        lease = self.lease()
        for text in HOSTILE:
            self.do("save_progress", [self.progress(lease, text)])
            assert self.run(lease.run_id).progress == text
