"""What a route needs: by that the gate knows what to ask, before the route does anything."""

from __future__ import annotations

from enum import StrEnum


class Need(StrEnum):
    """The value is the `operation` that hooks get."""

    NOTHING = "nothing"
    """For whoever looks after the process: nothing is told of runs, and nobody is asked who he is."""
    TRIGGER = "trigger"
    READ = "read"
    SUBSCRIBE = "subscribe"
    STEPS = "steps"
    LOGS = "logs"
    CHILDREN = "children"
    RETRIGGER = "retrigger"
    CANCEL = "cancel"
    DELETE = "delete"
    SIGNAL = "signal"
    LIST = "list"
    LIST_SUBSCRIBE = "list-subscribe"
    BULK = "bulk"
    WAKE = "wake"
    JOBS = "jobs"
    STATS = "stats"
    WORKERS = "workers"

    @property
    def is_of_a_run(self) -> bool:
        """The gate finds the run, and asks `on_run_access`."""
        return self in _OF_A_RUN

    @property
    def is_of_runs(self) -> bool:
        """The gate makes the scope, and asks `scope_runs`."""
        return self in (Need.LIST, Need.LIST_SUBSCRIBE, Need.BULK)

    @property
    def is_of_all(self) -> bool:
        """It is about the whole database. Where there are tenants, `permit` has to allow it."""
        return self in (Need.STATS, Need.WORKERS)


_OF_A_RUN = frozenset(
    {
        Need.READ, Need.SUBSCRIBE, Need.STEPS, Need.LOGS, Need.CHILDREN, Need.RETRIGGER, Need.CANCEL, Need.DELETE,
        Need.SIGNAL,
    }
)  # fmt: skip
