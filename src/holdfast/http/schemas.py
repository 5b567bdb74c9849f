"""JSON Schemas of what is sent and answered, for `/openapi.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a query, or a header."""

    name: str
    description: str
    required: bool = False
    many: bool = False
    number: bool = False
    labels: bool = False
    header: bool = False
    enum: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As OpenAPI says it."""
        one: dict[str, Any] = {"type": "integer", "minimum": 0} if self.number else {"type": "string"}
        if self.enum:
            one["enum"] = list(self.enum)
        if self.required:
            one["minLength"] = 1
        if self.labels:
            # There is no word for a prefix; a generator can use it as it is, and people read the description.
            return {
                "name": "label.NAME", "in": "query", "required": False, "description": self.description,
                "schema": {"type": "string", "maxLength": 255},
            }  # fmt: skip
        schema = {"type": "array", "items": one} if self.many else one
        return {
            "name": self.name, "in": "header" if self.header else "query", "required": self.required,
            "description": self.description, "schema": schema,
        }  # fmt: skip


ANY: dict[str, Any] = {"type": "object"}
ERROR: dict[str, Any] = {"$ref": "#/components/schemas/Error"}
_TEXT = {"type": "string"}
_TEXT_OR_NOT = {"type": ["string", "null"]}
_NUMBER = {"type": "integer"}
_TIME = {"type": "string", "format": "date-time"}
_TIME_OR_NOT = {"type": ["string", "null"], "format": "date-time"}
_LABELS = {"type": "object", "additionalProperties": _TEXT}
_STATUS = {"type": "string", "enum": ["pending", "leased", "completed", "failed", "cancelled"]}
_STATE = {
    "type": "string",
    "enum": [
        "pending", "leased", "waiting", "completed", "failed", "timed_out", "finalize_failed", "cancelled",
    ],
}  # fmt: skip
_LEVEL = {"type": "string", "enum": ["debug", "info", "warn", "error", "emit"]}


def record(**properties: Any) -> dict[str, Any]:
    """An object with all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def array(items: dict[str, Any]) -> dict[str, Any]:
    """A list of them."""
    return {"type": "array", "items": items}


#: Runs that one request may trigger.
MOST_CALLS = 1000
_SECONDS = {"type": ["number", "null"], "minimum": 0}
_KEY = {"type": ["string", "null"], "maxLength": 255}

TRIGGER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "jobName": {"type": "string", "minLength": 1},
        "input": {"type": "object"},
        "idempotencyKey": _KEY,
        "concurrencyKey": _KEY,
        "labels": {
            "type": ["object", "null"],
            "propertyNames": {"pattern": "^[A-Za-z0-9._/-]{1,64}$"},
            "additionalProperties": {"type": "string", "maxLength": 255},
            "maxProperties": 32,
        },
        "coalesce": {"enum": ["skip", "active", None]},
        "priority": {"type": ["integer", "null"], "minimum": -(2**31), "maximum": 2**31 - 1},
        "queue": {"type": ["string", "null"], "minLength": 1, "maxLength": 255},
        "delay": _SECONDS,
        "runAt": {"type": ["string", "null"], "format": "date-time"},
        "retry": {
            "type": ["object", "null"],
            "properties": {
                "maxRetries": {"type": "integer", "minimum": 0, "maximum": 1000},
                "delay": {"type": "number", "minimum": 0, "maximum": 3600},
                "factor": {"type": "number", "minimum": 0.1, "maximum": 10},
                "maxDelay": {"type": "number", "minimum": 0, "maximum": 86400},
                "jitter": {"type": "number", "minimum": 0, "maximum": 1},
            },
            "required": ["maxRetries"],
            "additionalProperties": False,
        },
        "timeout": _SECONDS,
        "deadline": _SECONDS,
    },
    "required": ["jobName"],
}
MANY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "calls": {"type": "array", "items": TRIGGER | {"additionalProperties": False}, "maxItems": MOST_CALLS},
    },
    "required": ["calls"],
    "additionalProperties": False,
}
SIGNAL: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "value": {}, "key": _KEY},
    "required": ["name"],
    "additionalProperties": False,
}
WAKE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "jobName": {"type": "string", "minLength": 1},
        "key": {"type": "string", "minLength": 1, "maxLength": 255},
        "output": {},
        "error": {"type": ["string", "null"]},
    },
    "required": ["jobName", "key"],
    "additionalProperties": False,
    "oneOf": [
        {"required": ["output"], "properties": {"error": {"type": "null"}}},
        {"required": ["error"], "properties": {"error": {"type": "string"}}, "not": {"required": ["output"]}},
    ],
}

DISPOSITION = record(runId=_TEXT, disposition={"type": "string", "enum": ["created", "idempotent", "coalesced"]})
SUCCESS = record(success={"const": True})
NEW_RUN = record(success={"const": True}, runId=_TEXT)
OK = record(status={"const": "ok"})
_CLIENT_RUN = {
    "id": _TEXT, "jobName": _TEXT, "input": {}, "status": _STATUS, "currentStepIndex": _NUMBER,
    "completedStepCount": _NUMBER, "progress": {"type": ["object", "null"]}, "output": {}, "error": _TEXT_OR_NOT,
    "labels": _LABELS, "startedAt": _TIME_OR_NOT, "completedAt": _TIME_OR_NOT, "createdAt": _TIME,
    "isTerminal": {"type": "boolean"}, "isActive": {"type": "boolean"}, "state": _STATE,
}  # fmt: skip
CLIENT_RUN = record(**_CLIENT_RUN)
FULL_RUN = record(
    **_CLIENT_RUN, errorType=_TEXT_OR_NOT, attempt=_NUMBER, crashes=_NUMBER, queue=_TEXT, priority=_NUMBER, runAt=_TIME,
    parentId=_TEXT_OR_NOT, rootId=_TEXT_OR_NOT, waitingFor=_TEXT_OR_NOT, generation=_NUMBER, leaseOwner=_TEXT_OR_NOT,
    leaseExpiresAt=_TIME_OR_NOT, idempotencyKey=_TEXT_OR_NOT, concurrencyKey=_TEXT_OR_NOT,
    isFinalize={"type": "boolean"}, hasTree={"type": "boolean"}, updatedAt=_TIME, inputText=_TEXT_OR_NOT,
    outputText=_TEXT_OR_NOT,
)  # fmt: skip
CLIENT_STEP = record(
    id=_TEXT, runId=_TEXT, name=_TEXT, index=_NUMBER, status={"type": "string", "enum": ["completed", "failed"]},
    output={}, error=_TEXT_OR_NOT, startedAt=_TIME, completedAt=_TIME_OR_NOT,
)  # fmt: skip
FULL_STEP = record(
    name=_TEXT, occurrence=_NUMBER, index=_NUMBER, status=_TEXT, attempt=_NUMBER, output={}, error=_TEXT_OR_NOT,
    errorType=_TEXT_OR_NOT, startedAt=_TIME, completedAt=_TIME_OR_NOT, outputDropped={"type": "boolean"},
    wait=_TEXT_OR_NOT, until=_TIME_OR_NOT,
    attempts=array(
        record(number=_NUMBER, runAttempt=_NUMBER, startedAt=_TIME, endedAt=_TIME_OR_NOT, error=_TEXT_OR_NOT)
    ),
)  # fmt: skip
LOG_LINE = record(id=_NUMBER, stepName=_TEXT_OR_NOT, level=_LEVEL, message=_TEXT, data={}, createdAt=_TIME)
PAGE = record(runs=array(FULL_RUN), nextBefore=_TEXT_OR_NOT)
TRIGGERED = record(
    runs=array(record(run=FULL_RUN, disposition={"type": "string", "enum": ["created", "idempotent", "coalesced"]}))
)
JOB = record(
    name=_TEXT, key=_TEXT, isSleeping={"type": "boolean"}, parameters=array(_TEXT), takesModel={"type": "boolean"},
    inputSchema=ANY, outputSchema=ANY,
)  # fmt: skip
WORKER = record(
    id=_TEXT, host=_TEXT, pid=_NUMBER, startedAt=_TIME, seenAt=_TIME, isAlive={"type": "boolean"}, jobs=array(_TEXT),
    queues=array(_TEXT), version=_TEXT, runs=array(record(id=_TEXT, jobName=_TEXT, since=_TIME)),
)  # fmt: skip
EVENTS = record(type=_TEXT, runId=_TEXT, jobName=_TEXT_OR_NOT, labels=_LABELS)
BULK = record(
    done=array({"type": "object", "properties": {"runId": _TEXT, "newRunId": _TEXT}, "required": ["runId"]}),
    refused=array(record(runId=_TEXT, error=_TEXT)),
    nextBefore=_TEXT_OR_NOT,
)
