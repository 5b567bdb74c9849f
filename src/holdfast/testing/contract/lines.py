"""The rules of keys and limits as plain Python: what a store is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...model.run import NewRun
from ...rules.lifecycle import Cause
from ...store.base import ClaimOrder


@dataclass
class ModelRun:
    """A run as far as keys and limits are concerned."""

    new: NewRun
    run_at: int
    status: str = "pending"
    generation: int = 0
    crashes: int = 0
    holds: bool = False

    @property
    def id(self) -> str:
        return self.new.id


@dataclass
class Lines:
    """All runs; every question goes over all of them."""

    runs: list[ModelRun] = field(default_factory=list)

    def trigger(self, new: Sequence[NewRun], now: int) -> list[tuple[str, str]]:
        """The disposition of each, and the run it leads to."""
        return [self._trigger(one, now) for one in new]

    def _trigger(self, new: NewRun, now: int) -> tuple[str, str]:
        for run in self.runs:
            if run.id == new.id:
                return "created", run.id
        for run in self.runs:
            if new.idempotency_key and (run.new.job_name, run.new.idempotency_key) == (new.job_name, "once"):
                return "idempotent", run.id
        key = new.concurrency_key
        mine = [run for run in self.runs if key and (run.new.job_name, run.new.concurrency_key) == (new.job_name, key)]
        mine = [run for run in mine if run.status in ("pending", "leased", "waiting")]
        never = [run for run in mine if run.status == "pending" and run.generation == 0]
        if never or (mine and new.coalesce == "active"):
            return ("coalesced" if new.coalesce else "conflict"), (never or mine)[-1].id
        self.runs.append(ModelRun(new, now if new.run_at is None else new.run_at))
        return "created", new.id

    def claim(self, order: ClaimOrder, now: int) -> list[ModelRun]:
        """In order of priority, time and id, whoever is not stopped by its key or its job's limit."""
        claimed: list[ModelRun] = []
        for run in sorted(self.runs, key=lambda run: (-run.new.priority, run.run_at, run.id)):
            if len(claimed) < order.limit and self.may_go(run, order, now):
                self.take(run)
                claimed.append(run)
        return claimed

    def may_go(self, run: ModelRun, order: ClaimOrder, now: int) -> bool:
        """Whether the order may have this run now."""
        new = run.new
        if new.job_name not in order.jobs or new.queue not in order.queues or run.status != "pending":
            return False
        same_job = [one for one in self.leased() if one.new.job_name == new.job_name]
        others = [one for one in self.runs if one.new.concurrency_key == new.concurrency_key and one is not run]
        held = new.concurrency_key is not None and any(one.holds for one in others)
        return run.run_at <= now and not held and len(same_job) < dict(order.limits).get(new.job_name, 1000)

    def take(self, run: ModelRun) -> None:
        run.status, run.holds, run.generation = "leased", True, run.generation + 1

    def leased(self) -> list[ModelRun]:
        return [run for run in self.runs if run.status == "leased"]

    def finish(self, run: ModelRun, cause: Cause, now: int, delay: int) -> None:
        if cause in (Cause.RETRY, Cause.RELEASE):
            run.status = "pending"
            run.run_at = now + delay if delay else run.run_at
        else:
            self.end(run, {Cause.COMPLETE: "completed", Cause.FAIL: "failed"}.get(cause, "waiting"))

    def end(self, run: ModelRun, status: str) -> None:
        """It no longer holds its key."""
        run.status, run.holds, run.generation = status, False, run.generation + (status == "cancelled")

    def back(self, run: ModelRun) -> None:
        """Its lease was taken from it; its key was not."""
        run.status, run.generation = "pending", run.generation + 1

    def expire(self, max_crashes: int) -> None:
        for run in self.leased():
            run.crashes += 1
            self.back(run)
            if run.crashes >= max_crashes:
                self.end(run, "failed")
