"""The settings of an app, checked once, when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from ..basis.errors import ValidationError
from ..basis.text import shown


@dataclass(frozen=True, slots=True)
class Options:
    """All times are seconds, all sizes bytes."""

    concurrency: int = 10
    """Runs that this process executes at once."""
    polling_interval: float = 1.0
    """How often an idle worker looks for work that nothing announced, and for leases that ran out."""
    lease: float = 30.0
    """How long a worker that says nothing keeps its runs."""
    lease_renew_interval: float = 10.0
    # A third of the lease by default: two renewals may fail before a run is lost.
    queues: tuple[str, ...] = ("default",)
    max_crashes: int = 5
    """Leases lost in a row, without a checkpoint in between, after which a run fails with `WorkerCrashed`."""
    cancel_grace: float = 5.0
    """How long a cancelled job may go on by itself before it is interrupted, or its slot given to another."""
    warm_for: float = 5.0
    """A run whose next wait is over sooner than this stays in memory, without a slot; others are suspended."""
    max_children: int = 1000
    """Runs that one wait may put below a run."""
    max_input_bytes: int = 1 << 20
    max_output_bytes: int = 1 << 20
    """Of a step, and of a job."""
    max_log_bytes: int = 1 << 16
    """Of a log line, its message and its data together; what is longer is cut."""
    retain_runs: float | None = None
    """How long ended runs are kept; None: for ever."""
    preserve_steps: bool = False
    """Keep the outputs of steps for as long as the run; otherwise they are dropped an hour after its end."""
    strict: bool = False
    """Raise `StepChanged` when a saved step is called with other arguments, instead of reporting it once; compare every
    value with what comes back, however large."""
    inline: bool = False
    """No threads: reads, writes and sync jobs run in the caller's thread (a browser, a process that only works)."""

    def __post_init__(self) -> None:
        if type(self.concurrency) is not int or not 1 <= self.concurrency <= 1000:
            raise ValidationError(f"concurrency: {shown(self.concurrency)} must be a whole number from 1 to 1000.")
        if type(self.max_crashes) is not int or self.max_crashes < 1:
            raise ValidationError(f"max_crashes: {shown(self.max_crashes)} must be a whole number above 0.")
        for name in ("max_input_bytes", "max_output_bytes", "max_log_bytes"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValidationError(f"{name}: {shown(size)} must be a whole number of bytes above 0.")
        for name in ("polling_interval", "lease", "lease_renew_interval"):
            if getattr(self, name) <= 0:
                raise ValidationError(f"{name}: must be longer than 0 seconds.")
        if self.lease_renew_interval > self.lease / 2:
            raise ValidationError(
                f"lease_renew_interval: {self.lease_renew_interval} s is more than half of the lease ({self.lease} s): "
                "one late renewal would lose every run."
            )
        if not self.queues:
            raise ValidationError("queues: give at least one name.")
