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
from .basis.durations import Duration
from .basis.errors import (
    AmbiguousStep,
    CancelRun,
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
from .engine.context import Step, StepLog, SyncStep
from .engine.signals import AbortSignal
from .job import Call, Job, job
from .model.event import Event
from .model.run import RunStatus
from .run import LogLine, Run, StepRecord

__all__ = [
    "AbortSignal",
    "AmbiguousStep",
    "Call",
    "CancelRun",
    "Clock",
    "ConflictError",
    "DefinitionError",
    "Duration",
    "Event",
    "Holdfast",
    "HoldfastError",
    "Job",
    "Jobs",
    "LogLine",
    "NonRetryable",
    "NotFoundError",
    "NotKept",
    "Outdated",
    "Overloaded",
    "PayloadTooLarge",
    "Reply",
    "Retryable",
    "Run",
    "RunCancelled",
    "RunFailed",
    "RunStatus",
    "RunTimedOut",
    "SchemaError",
    "Step",
    "StepChanged",
    "StepFailed",
    "StepLog",
    "StepRecord",
    "StoreClosed",
    "StoreError",
    "StoreUnavailable",
    "SyncStep",
    "SystemClock",
    "TimedOut",
    "ValidationError",
    "WorkerCrashed",
    "WouldDeadlock",
    "job",
]
