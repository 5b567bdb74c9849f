"""The table of routes: everything there is to ask, in one place.

The first nine are those of the ancestor, and stay as they are. The handler finds routes here, the gate reads what they
need, and `/openapi.json` is made of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..model.run import RunStatus
from . import acting, reading, records, streaming
from .asked import Asked
from .messages import Response
from .need import Need
from .schemas import (
    ANY,
    BULK,
    CLIENT_RUN,
    CLIENT_STEP,
    DISPOSITION,
    EVENTS,
    FULL_RUN,
    FULL_STEP,
    JOB,
    LOG_LINE,
    MANY,
    NEW_RUN,
    OK,
    PAGE,
    SIGNAL,
    SUCCESS,
    TRIGGER,
    TRIGGERED,
    WAKE,
    WORKER,
    Param,
    array,
)

RUN_ID = Param("runId", "Of the run.", required=True)
JOBS = Param(
    "jobName", "Only runs of this job; given several times, of any of them. A name, or its key in Python.", many=True
)
STATUS = Param(
    "status", "Only runs of this status; given several times, of any of them.", many=True,
    enum=("pending", "leased", "completed", "failed", "cancelled"),
)  # fmt: skip
STATE = Param(
    "state", "Only runs of this status, as it is stored; given several times, of any of them.", many=True,
    enum=tuple(str(status) for status in RunStatus),
)  # fmt: skip
KEY = Param("idempotencyKey", "Asked again with the same key, no further run is made.")
_LABELS = "`label.KEY=VALUE`: only runs with this label; all that are given must fit. "
LABELS = Param("label.", _LABELS + "No key twice.", labels=True)
KEPT_LABELS = Param("label.", _LABELS + "Of a key given twice the last counts.", labels=True)
LIMIT = Param("limit", "At most so many.", number=True)
MOST = Param("most", "At most so many; the server may give fewer.", number=True)
OFFSET = Param("offset", "Leave out so many, the newest.", number=True)
BEFORE = Param("before", "Only runs older than the one with this id: for pages that stay as they are.")
PLACE = Param("after", "Only events after the one with this id, or from `now` on. A header Last-Event-ID counts first.")
LAST_ID = Param("Last-Event-ID", "The id of the event that was read last.", header=True)
AFTER = Param("after", "Only lines after the one with this id.", number=True)
FILTER = (JOBS, STATUS, STATE, LABELS, LIMIT, MOST, OFFSET, BEFORE)
BULKS = (JOBS, STATUS, STATE, LABELS, LIMIT, MOST, BEFORE)


@dataclass(frozen=True, slots=True)
class Route:
    """One thing to ask. `answer` and `body` are JSON Schemas; `answer` of a stream is of one event."""

    method: str
    path: str
    need: Need
    act: Callable[[Asked], Awaitable[Response]]
    answer: dict[str, Any]
    params: tuple[Param, ...] = ()
    body: dict[str, Any] | None = None
    is_stream: bool = False
    has_end: bool = False
    """Asked for what comes after the end, it answers 204."""
    is_kept: bool = False
    """One of the ancestor's: what its clients may send beside what is known stays without effect."""

    def __post_init__(self) -> None:
        given: object = self.need
        if not isinstance(given, Need):
            raise TypeError(f"{self.method} {self.path}: a route says what it needs.")

    @property
    def writes(self) -> bool:
        """Whether something is other afterwards."""
        return self.method != "GET"

    @property
    def summary(self) -> str:
        """What the caller gets."""
        return (self.act.__doc__ or "").strip().split("\n")[0]


_Kept = partial(Route, is_kept=True)

ROUTES: tuple[Route, ...] = (
    _Kept("POST", "/trigger", Need.TRIGGER, acting.trigger, DISPOSITION, body=TRIGGER),
    _Kept("GET", "/subscribe", Need.SUBSCRIBE, streaming.subscribe, EVENTS, (RUN_ID,), is_stream=True),
    _Kept(
        "GET", "/runs", Need.LIST, reading.list_runs, array(CLIENT_RUN),
        (JOBS, STATUS, KEPT_LABELS, LIMIT, OFFSET, BEFORE),
    ),
    _Kept("GET", "/run", Need.READ, reading.one_run, CLIENT_RUN, (RUN_ID,)),
    _Kept("GET", "/steps", Need.STEPS, reading.steps, array(CLIENT_STEP), (RUN_ID,)),
    _Kept(
        "GET", "/runs/subscribe", Need.LIST_SUBSCRIBE, streaming.subscribe_to_all, EVENTS, (JOBS, KEPT_LABELS),
        is_stream=True,
    ),
    _Kept("POST", "/retrigger", Need.RETRIGGER, acting.retrigger, NEW_RUN, (RUN_ID, KEY)),
    _Kept("POST", "/cancel", Need.CANCEL, acting.cancel, SUCCESS, (RUN_ID,)),
    _Kept("DELETE", "/run", Need.DELETE, acting.delete, SUCCESS, (RUN_ID,)),
    # ours
    Route("GET", "/jobs", Need.JOBS, reading.jobs, array(JOB)),
    Route("POST", "/runs/trigger", Need.TRIGGER, records.trigger_many, TRIGGERED, body=MANY),
    Route("GET", "/runs/records", Need.LIST, records.list_records, PAGE, FILTER),
    Route("GET", "/run/record", Need.READ, records.record, FULL_RUN, (RUN_ID,)),
    Route("GET", "/run/steps", Need.STEPS, reading.all_steps, array(FULL_STEP), (RUN_ID,)),
    Route("GET", "/run/logs", Need.LOGS, reading.logs, array(LOG_LINE), (RUN_ID, AFTER, LIMIT)),
    Route(
        "GET", "/run/events", Need.SUBSCRIBE, streaming.follow, EVENTS, (RUN_ID, PLACE, LAST_ID), is_stream=True,
        has_end=True,
    ),
    Route("GET", "/run/children", Need.CHILDREN, reading.children, PAGE, (RUN_ID, *FILTER)),
    Route("POST", "/signal", Need.SIGNAL, acting.signal, SUCCESS, (RUN_ID,), SIGNAL),
    Route("POST", "/wake", Need.WAKE, acting.wake, NEW_RUN, body=WAKE),
    Route("POST", "/runs/cancel", Need.BULK, acting.cancel_many, BULK, BULKS),
    Route("POST", "/runs/retrigger", Need.BULK, acting.retrigger_many, BULK, (*BULKS, KEY)),
    Route("GET", "/stats", Need.STATS, reading.stats, ANY),
    Route("GET", "/workers", Need.WORKERS, reading.workers, array(WORKER)),
    Route("GET", "/openapi.json", Need.JOBS, reading.openapi, ANY),
    Route("GET", "/health", Need.NOTHING, reading.health, OK),
    Route("GET", "/ready", Need.NOTHING, reading.ready, OK),
)  # fmt: skip

BY_PLACE: dict[tuple[str, str], Route] = {(route.method, route.path): route for route in ROUTES}
assert len(BY_PLACE) == len(ROUTES)
