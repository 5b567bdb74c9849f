"""What listeners are told. Always after the commit, never instead of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `data` holds what belongs to the type, under the names of the reference page.

    `sequence` grows by one with every event of this app in this process.
    """

    type: str
    timestamp: datetime
    sequence: int
    run_id: str | None = None
    job_name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "data")[name]
        except KeyError:
            raise AttributeError(f"{self.type} has no {name!r}") from None
