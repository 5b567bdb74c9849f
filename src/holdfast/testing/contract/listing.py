"""Promises about finding runs."""

from __future__ import annotations

from ...model.run import RunFilter, RunStatus
from .bench import HOSTILE, StoreBench


class ListingContract(StoreBench):
    def test_runs_are_listed_newest_first(self) -> None:
        ids = [self.trigger() for _ in range(5)]
        assert self.runs() == ids[::-1]

    def test_a_listing_is_divided_by_limit_and_offset(self) -> None:
        ids = [self.trigger() for _ in range(7)][::-1]
        assert self.runs(limit=3) == ids[:3]
        assert self.runs(limit=3, offset=3) == ids[3:6]
        assert self.runs(offset=5) == ids[5:]
        assert self.runs(limit=3, offset=99) == []
        assert self.runs(limit=0) == []

    def test_a_listing_goes_on_before_a_run(self) -> None:
        ids = [self.trigger() for _ in range(5)][::-1]
        assert self.runs(before=ids[1], limit=2) == ids[2:4]
        assert self.runs(before=ids[-1]) == []

    def test_runs_are_found_by_id(self) -> None:
        ids = [self.trigger() for _ in range(4)]
        assert self.runs(ids=(ids[0], ids[2], ids[0], "none")) == [ids[2], ids[0]]
        assert self.runs(ids=("none",)) == []

    def test_runs_are_found_by_job(self) -> None:
        a, b, _ = self.trigger("a"), self.trigger("b"), self.trigger("c")
        assert self.runs(jobs=("a", "b")) == [b, a]
        assert self.runs(jobs=("A",)) == []

    def test_runs_are_found_by_status(self) -> None:
        by_status = {status: self.run_in(status).run_id for status in sorted(RunStatus, key=_is_pending)}
        for status, run_id in by_status.items():
            assert self.runs(statuses=(status,)) == [run_id]
        ended = {by_status[status] for status in RunStatus.terminal()}
        assert set(self.runs(statuses=tuple(RunStatus.terminal()))) == ended

    def test_labels_must_all_be_there(self) -> None:
        both = self.trigger(labels='{"env":"test","who":"me"}')
        one = self.trigger(labels='{"env":"test","who":"you"}')
        self.trigger(labels='{"who":"test"}')
        self.trigger()
        assert self.runs(labels=(("env", "test"),)) == [one, both]
        assert self.runs(labels=(("env", "test"), ("who", "me"))) == [both]
        assert self.runs(labels=(("env", "TEST"),)) == []
        assert self.runs(labels=(("env", "test"), ("env", "prod"))) == []

    def test_all_filters_hold_together(self) -> None:
        wanted = self.trigger("a", labels='{"k":"v"}')
        self.trigger("b", labels='{"k":"v"}')
        self.trigger("a")
        self.cancel(self.trigger("a", labels='{"k":"v"}'))
        assert self.runs(jobs=("a",), statuses=("pending",), labels=(("k", "v"),), limit=5) == [wanted]

    def test_a_hostile_filter_finds_nothing_and_breaks_nothing(self) -> None:
        self.trigger(labels='{"k":"v"}')
        for text in HOSTILE:
            for wanted in (
                RunFilter(ids=(text,)),
                RunFilter(jobs=(text,)),
                RunFilter(statuses=(text,)),
                RunFilter(labels=((text, text),)),
            ):
                assert self.store.find_runs(self.connection, wanted) == []
        assert len(self.runs()) == 1


def _is_pending(status: RunStatus) -> bool:
    # Last: the others are claimed on their way, and a claim would take a pending one too.
    return status is RunStatus.PENDING
