"""Durable execution for Python: functions that keep their grip through crashes, deploys and lost machines.

from holdfast import Holdfast, Step

app = Holdfast("sqlite:///app.db")

@app.job
async def greet(step: Step, name: str) -> str:
    return await step.run("greet", str.upper, name)

with app:
    print(greet.run("world").wait())
"""

from .app import Holdfast, Jobs
from .basis.clock import Clock, SystemClock
from .basis.codec import Codec
from .basis.durations import Duration
from .basis.errors import (
    AmbiguousStep,
    CancelRun,
    ChildrenFailed,
    ConflictError,
    DefinitionError,
    HoldfastError,
    NonRetryable,
    NotFoundError,
    NotKept,
    Outdated,
    Overloaded,
    PayloadTooLarge,
    Retryable,
    RunCancelled,
    RunFailed,
    RunTimedOut,
    SchemaError,
    StepChanged,
    StepFailed,
    StoreClosed,
    StoreError,
    StoreUnavailable,
    TimedOut,
    ValidationError,
    WorkerCrashed,
    WouldDeadlock,
)
from .commit.reply import Reply
from .commit.tally import Spread
from .engine.call import Call
from .engine.compose import Done, LoopResult
from .engine.context import Step, StepLog, SyncStep
from .engine.family import Children, ChildResult
from .engine.signals import AbortSignal
from .engine.stats import Stats, VerbStats
from .engine.subscription import Subscription
from .job import Job, SleepingJob, job
from .model.event import Event, EventType, is_domain_event
from .model.retry import Retry
from .model.run import RunStatus
from .model.worker import HeldRun, WorkerRecord
from .run import LogLine, Run, StepAttempt, StepRecord
from .watching import Plugin

__all__ = [
    "AbortSignal",
    "AmbiguousStep",
    "Call",
    "CancelRun",
    "ChildResult",
    "Children",
    "ChildrenFailed",
    "Clock",
    "Codec",
    "ConflictError",
    "DefinitionError",
    "Done",
    "Duration",
    "Event",
    "EventType",
    "HeldRun",
    "Holdfast",
    "HoldfastError",
    "Job",
    "Jobs",
    "LogLine",
    "LoopResult",
    "NonRetryable",
    "NotFoundError",
    "NotKept",
    "Outdated",
    "Overloaded",
    "PayloadTooLarge",
    "Plugin",
    "Reply",
    "Retry",
    "Retryable",
    "Run",
    "RunCancelled",
    "RunFailed",
    "RunStatus",
    "RunTimedOut",
    "SchemaError",
    "SleepingJob",
    "Spread",
    "Stats",
    "Step",
    "StepAttempt",
    "StepChanged",
    "StepFailed",
    "StepLog",
    "StepRecord",
    "StoreClosed",
    "StoreError",
    "StoreUnavailable",
    "Subscription",
    "SyncStep",
    "SystemClock",
    "TimedOut",
    "ValidationError",
    "VerbStats",
    "WorkerCrashed",
    "WorkerRecord",
    "WouldDeadlock",
    "is_domain_event",
    "job",
]
