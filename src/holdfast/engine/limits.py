"""What an attempt of a run may take, and what its failure leads to: a retry, or the end."""

from __future__ import annotations

from typing import NamedTuple

from ..basis.chance import Chance
from ..model.retry import Retry
from ..model.run import RunRow
from ..rules.lifecycle import Cause
from ..rules.retry import delay_before, may_help
from .outcome import Outcome
from .registry import JobDefinition

#: Outcomes that a retry may follow.
_FAILURES = (Cause.FAIL, Cause.TIME_OUT)


class Limits(NamedTuple):
    """The retries and times of one attempt: the trigger's, or else the job's."""

    retry: Retry | None = None
    timeout: int | None = None
    deadline_at: int | None = None
    attempt: int = 0

    @classmethod
    def of(cls, row: RunRow, job: JobDefinition) -> Limits:
        """Those of this run; `Outdated` if what is stored can't be read."""
        if (row.retry or row.timeout or row.deadline_at or job.retry or job.timeout) is None:
            return NO_LIMITS  # most runs, and each costs
        return cls(
            job.retry if row.retry is None else Retry.from_json(row.retry),
            job.timeout if row.timeout is None else row.timeout,
            row.deadline_at,
            row.attempt,
        )

    def micros_left(self, now: int, used: int, *, rests: bool = False) -> int | None:
        """How long this attempt, which has run for `used`, may go on from now; None for as long as it takes.

        While it `rests`, only the deadline counts.
        """
        left = None if self.deadline_at is None else self.deadline_at - now
        if self.timeout is not None and not rests:
            left = self.timeout - used if left is None else min(left, self.timeout - used)
        return None if left is None else max(0, left)

    def timed_out(self, now: int) -> Outcome:
        """What the run comes to when that time is over."""
        if self.timeout is None or (self.deadline_at is not None and now >= self.deadline_at):
            return Outcome(Cause.TIME_OUT, error="The run did not end before its deadline", error_type="TimedOut")
        seconds = self.timeout / 1e6
        return Outcome(Cause.TIME_OUT, error=f"The attempt took longer than {seconds:g} s", error_type="TimedOut")

    def after(self, outcome: Outcome, error: BaseException | None, now: int, chance: Chance) -> Outcome:
        """The outcome, or the retry in its place. `error` is what the attempt raised; None: its time was over."""
        if self.retry is None or self.attempt >= self.retry.max_retries or outcome.cause not in _FAILURES:
            return outcome
        if error is not None and not may_help(error):
            return outcome
        delay = delay_before(self.retry, self.attempt + 1, chance)
        if self.deadline_at is not None and now + delay >= self.deadline_at:
            return outcome  # it could do nothing any more
        return outcome._replace(cause=Cause.RETRY, delay=delay)


NO_LIMITS = Limits()
"""As long as it takes, and no retry."""
