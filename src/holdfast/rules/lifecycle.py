"""The one table of a run's life: which status may follow which, for which cause, and what that writes.

    pending ──claim──▶ leased ──▶ completed | failed | timed_out | finalize_failed | cancelled
       ▲                 │
       │◀─retry, release,┤ expire
       │                 ▼
       └◀──wake────── waiting ──▶ timed_out | cancelled

Two rules give the rest, and are tested over the whole table:

* The holder of the lease writes under its own generation and leaves it as it is. Anybody else who ends or takes
  a lease adds one, so that whatever the old holder still writes is refused, and so that a holder who lost the
  answer to its COMMIT can tell by reading back: my generation and my words mean that it happened.
* `attempt` grows by a retry only; `crashes` grows when a lease ends without its holder's word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from ..model.run import RunStatus as S


class Cause(StrEnum):
    """Why a run moves."""

    CLAIM = "claim"  # a worker takes it
    COMPLETE = "complete"  # its function returned
    FAIL = "fail"  # its function raised, and no retry is left
    TIME_OUT = "time_out"  # an attempt took too long or said so, and no retry is left
    CANCEL_ITSELF = "cancel_itself"  # its function raised CancelRun
    RETRY = "retry"  # its function raised, and a retry is left
    RELEASE = "release"  # its worker shuts down and hands it back
    SUSPEND = "suspend"  # it waits for children, a finalize, a signal, a timer or a child
    WAKE = "wake"  # what it waited for is there
    CANCEL = "cancel"  # somebody asked for it, or an ancestor ended
    EXPIRE = "expire"  # its lease ran out: the worker is dead, frozen or cut off
    GIVE_UP = "give_up"  # the same, once too often without progress
    RECALL = "recall"  # leased to a worker that never heard of it (the claim's answer was lost)
    PASS_DEADLINE = "pass_deadline"  # wall time from trigger to end is over
    FINALIZE_FAILED = "finalize_failed"  # its finalize did not complete


@dataclass(frozen=True, slots=True)
class Transition:
    """What a cause does to a run."""

    cause: Cause
    sources: frozenset[S]
    target: S
    by_holder: bool
    """Fenced by generation and lease owner; otherwise guarded by `sources`."""
    generation: int
    attempt: int = 0
    crashes: int = 0
    event: str | None = None
    """What listeners are told after the commit."""

    @property
    def ends(self) -> bool:
        """The run is over: `completed_at` is set, the lease and what it waited for are cleared."""
        return self.target.is_terminal


def _table() -> Mapping[Cause, Transition]:
    holder = frozenset({S.LEASED})
    waiting = frozenset({S.WAITING})
    rows = [
        Transition(Cause.CLAIM, frozenset({S.PENDING}), S.LEASED, False, 1, event="run:leased"),
        Transition(Cause.COMPLETE, holder, S.COMPLETED, True, 0, event="run:complete"),
        Transition(Cause.FAIL, holder, S.FAILED, True, 0, event="run:fail"),
        Transition(Cause.TIME_OUT, holder, S.TIMED_OUT, True, 0, event="run:fail"),
        Transition(Cause.CANCEL_ITSELF, holder, S.CANCELLED, True, 0, event="run:cancel"),
        Transition(Cause.RETRY, holder, S.PENDING, True, 0, attempt=1, event="run:retry"),
        Transition(Cause.RELEASE, holder, S.PENDING, True, 0),
        Transition(Cause.SUSPEND, holder, S.WAITING, True, 0, event="run:wait"),
        Transition(Cause.WAKE, waiting, S.PENDING, False, 0, event="run:wake"),
        Transition(Cause.CANCEL, S.active(), S.CANCELLED, False, 1, event="run:cancel"),
        Transition(Cause.EXPIRE, holder, S.PENDING, False, 1, crashes=1),
        Transition(Cause.GIVE_UP, holder, S.FAILED, False, 1, crashes=1, event="run:fail"),
        Transition(Cause.RECALL, holder, S.PENDING, False, 1),
        Transition(Cause.PASS_DEADLINE, S.active(), S.TIMED_OUT, False, 1, event="run:fail"),
        Transition(Cause.FINALIZE_FAILED, holder, S.FINALIZE_FAILED, True, 0, event="run:fail"),
    ]
    return MappingProxyType({row.cause: row for row in rows})


TABLE = _table()


def after(status: S, cause: Cause) -> Transition | None:
    """What this cause does to a run in this status; None where it may not happen."""
    transition = TABLE[cause]
    return transition if status in transition.sources else None


def after_expiry(crashes: int, max_crashes: int) -> Transition:
    """What the loss of a lease does to a run that has lost `crashes` leases in a row without progress before."""
    return TABLE[Cause.GIVE_UP if crashes + 1 >= max_crashes else Cause.EXPIRE]
