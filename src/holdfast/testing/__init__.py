"""What tests of jobs need: apps for tests, a clock turned by hand, answers, and crashes at every step.

    from holdfast.testing import crash_at_every_step, run

    assert run(order, 7).wait() == "sent"
    crash_at_every_step(order, 7).raise_if_bad()

For authors of stores: `holdfast.testing.store`.
"""

from . import effects
from .answers import answering, takes
from .clock import HandClock
from .crash import crash_at_every_step
from .effects import Effect
from .kit import app_for_tests, drain, run
from .report import CrashProblem, CrashReport

__all__ = [
    "CrashProblem",
    "CrashReport",
    "Effect",
    "HandClock",
    "answering",
    "app_for_tests",
    "crash_at_every_step",
    "drain",
    "effects",
    "run",
    "takes",
]
