"""What listeners are told. Always after the commit, never instead of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

DomainEventType: TypeAlias = Literal[
    "run:trigger", "run:coalesced", "run:complete", "run:fail", "run:cancel", "run:delete"
]
"""Events that change what a run is. A slow listener may miss others, never these."""

OperationalEventType: TypeAlias = Literal[
    "run:leased",
    "run:lease-renewed",
    "run:retry",
    "run:wait",
    "run:progress",
    "run:emit",
    "step:start",
    "step:complete",
    "step:fail",
    "step:cancel",
    "log:write",
    "worker:error",
]
"""Events that tell how it is going."""

EventType: TypeAlias = DomainEventType | OperationalEventType
"""The names of all events of ours. An application's own have another prefix."""

DOMAIN: frozenset[str] = frozenset(get_args(DomainEventType))
EVENTS: frozenset[str] = DOMAIN | frozenset(get_args(OperationalEventType))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `data` holds what belongs to the type, under the names of the reference page.

    `sequence` grows with every event that this app tells in this process; it is 0 for what a subscription has read from
    the database: the state at its beginning, and what other processes did.
    """

    type: str
    timestamp: datetime
    sequence: int
    run_id: str | None = None
    job_name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def is_domain(self) -> bool:
        """Whether it changes what a run is: triggered, coalesced, completed, failed, cancelled, deleted."""
        return self.type in DOMAIN

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "data")[name]
        except KeyError:
            raise AttributeError(f"{self.type} has no {name!r}") from None


def is_domain_event(event: Event) -> bool:
    """Whether the event changes what a run is: triggered, coalesced, completed, failed, cancelled, deleted."""
    return event.is_domain
