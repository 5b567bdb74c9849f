"""Promises to those who watch runs that somebody else executes."""

from __future__ import annotations

from ...rules.lifecycle import Cause
from ...store.base import Followed, Passing, StepMark, Store
from .bench import StoreBench


class FollowingContract(StoreBench):
    def test_how_runs_stand_is_told_for_many_at_once(self) -> None:
        lease, pending, ended = self.lease("leased"), self.trigger("pending"), self.lease("ended")
        self.do("save_progress", [self.progress(lease, '{"current":7}')])
        self.do("save_logs", [self.line(lease, "first"), self.line(lease, "second")])
        self.finish(ended)
        states = self.store.follow(self.connection, [lease.run_id, pending, ended.run_id, "nobody", pending])
        last = self.store.find_logs(self.connection, lease.run_id)[-1].id
        row = self.run(lease.run_id)
        assert states == {
            lease.run_id: Followed("leased", 1, lease.owner, row.lease_expires_at, '{"current":7}', last),
            pending: Followed("pending", 0, None, None, None, 0),
            ended.run_id: Followed("completed", 1, None, None, None, 0),
        }
        assert self.store.follow(self.connection, []) == {}

    def test_the_newest_runs_and_those_that_are_leased_pass_by_each_once(self) -> None:
        leased, others = self.lease(), [self.trigger() for _ in range(4)]
        ended = self.lease_of(others[0], self.claim(limit=1))
        self.finish(ended)
        newest = sorted([leased.run_id, *others], reverse=True)[:2]
        seen = self.store.passing(self.connection, 2)
        assert [run.id for run in seen] == sorted({leased.run_id, *newest}, reverse=True)
        every = {run.id: run for run in self.store.passing(self.connection, 100)}
        assert every.keys() == {leased.run_id, *others}
        row = self.run(leased.run_id)
        assert every[leased.run_id] == Passing(row.id, row.job_name, "leased", leased.owner, row.created_at, "{}")
        assert (every[ended.run_id].status, every[ended.run_id].lease_owner) == ("completed", None)

    def test_within_a_moment_nothing_changes(self) -> None:
        lease = self.lease()
        reader = self.store.connect(read_only=True)

        def seen() -> tuple[int, int]:
            follow = self.store.follow(reader, [lease.run_id])[lease.run_id]
            return follow.last_log, len(self.store.step_marks(reader, [(lease.run_id, 0)]))

        with self.store.moment(reader):
            before = seen()
            with self.tx() as tx:
                self.store.save_logs(tx, [self.line(lease)])
                self.store.save_steps(tx, [self.step(lease)])
            assert seen() == before == (0, 0)
        line, steps = seen()
        assert (line > 0, steps) == (True, 1)
        self.store.disconnect(reader)

    def test_new_steps_are_found_by_their_marks_and_then_read(self) -> None:
        first, second = self.lease("first"), self.lease("second")
        saves = [self.step(first, f"s{n}", position=n, output=str(n)) for n in range(5)]
        self.do("save_steps", [*saves, self.step(second, "other", position=3)])
        marks = self.store.step_marks(self.connection, [(first.run_id, 3), (second.run_id, 4), ("nobody", 0)])
        assert sorted(marks) == [StepMark(first.run_id, f"s{n}", 0, n, 1) for n in (3, 4)]
        steps = self.store.marked_steps(self.connection, marks)
        assert sorted(steps) == [saves[3].step, saves[4].step]
        assert self.store.step_marks(self.connection, []) == []
        assert self.store.marked_steps(self.connection, []) == []

    def test_a_step_that_was_replaced_no_longer_fits_its_mark(self) -> None:
        lease = self.lease()
        self.do("save_steps", [self.step(lease, status="failed", output=None, error="{}")])
        marks = self.store.step_marks(self.connection, [(lease.run_id, 0)])
        self.finish(lease, Cause.RELEASE)
        again = self.lease_of(lease.run_id, self.claim())
        self.do("save_steps", [self.step(again, attempt=1)])
        assert self.store.marked_steps(self.connection, marks) == []
        (mark,) = self.store.step_marks(self.connection, [(lease.run_id, 0)])
        assert mark.generation == again.generation

    def test_new_lines_of_many_runs_come_in_the_order_of_writing(self) -> None:
        first, second = self.lease("first"), self.lease("second")
        self.do("save_logs", [self.line(one, f"{n}") for n in range(3) for one in (first, second)])
        lines = self.store.find_logs(self.connection, first.run_id)
        wanted = [(first.run_id, lines[0].id), (second.run_id, 0), ("nobody", 0)]
        found = self.store.logs_after(self.connection, wanted, 100)
        assert [(line.run_id, line.message) for line in found] == [
            (second.run_id, "0"),
            (first.run_id, "1"),
            (second.run_id, "1"),
            (first.run_id, "2"),
            (second.run_id, "2"),
        ]
        assert self.store.logs_after(self.connection, wanted, 2) == found[:2]
        assert self.store.logs_after(self.connection, [], 100) == []

    def test_what_a_store_is_not_good_at_is_told_by_what_every_store_can(self) -> None:
        lease, other = self.lease("a"), self.lease("b")
        self.do("save_steps", [self.step(one, f"s{n}", position=n) for n in range(3) for one in (lease, other)])
        self.do("save_logs", [self.line(one, "x") for one in (lease, other)])
        self.do("save_progress", [self.progress(lease)])
        ids, wanted = [lease.run_id, other.run_id], [(lease.run_id, 1), (other.run_id, 2)]
        store, c = self.store, self.connection
        assert store.follow(c, ids) == Store.follow(store, c, ids)
        marks = Store.step_marks(store, c, wanted)
        assert sorted(store.step_marks(c, wanted)) == sorted(marks)
        assert sorted(store.marked_steps(c, marks)) == sorted(Store.marked_steps(store, c, marks))
        assert store.logs_after(c, wanted, 1) == Store.logs_after(store, c, wanted, 1)
