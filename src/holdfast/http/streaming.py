"""The routes that stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from ..basis.clock import to_datetime
from ..engine.resuming import Place, ResumableSubscription, place_now
from ..engine.trail import LAST
from ..model.event import Event
from ..model.run import RunStatus
from ..run import Run
from .asked import Asked
from .messages import Response, no_content, stream_response
from .stream import Frames, frame, framed_run, last_frame
from .wire import FULL, SLIM, full_event, is_sent, own_event, slim_event

if TYPE_CHECKING:
    from ..app import Holdfast


async def subscribe(asked: Asked) -> Response:
    """The events of one run, from how it stands to its end."""
    run, app = asked.run, asked.app
    if run.is_terminal:
        # A browser comes back again and again for as long as a page is open: nothing is subscribed to for that.
        return stream_response(_only(last_frame(full_event(_end(app, run)))))
    first = b"".join([frame(full_event(event)) for event in _waits(app, run)])
    source = app.subscribe(run.id)
    return asked.handler.streamed(
        lambda closed: Frames(
            source,
            framed_run(lambda event: is_sent(event, FULL), full_event),
            app._engine.clock,
            throttle=asked.handler.sse_throttle,
            heartbeat=asked.handler.heartbeat,
            first=first,
            closed=closed,
        )
    )


async def _only(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk


def _event(run: Run[Any], type: str, data: dict[str, Any], at: int) -> Event:
    when = to_datetime(at)
    assert when is not None
    return Event(type, when, 0, run.id, run.job_name, run.labels, data)


def _end(app: Holdfast, run: Run[Any]) -> Event:
    row = run._row
    type, data = app._engine.ended_as(row)
    return _event(run, type, data, row.completed_at or row.updated_at)


def _waits(app: Holdfast, run: Run[Any]) -> list[Event]:
    """How a waiting run stands: there it is leased. Of others the subscription says it."""
    if run.status is not RunStatus.WAITING:
        return []
    at = app._engine.clock.now()
    said = [_event(run, "run:leased", {"input": run.input, "lease_owner": None, "lease_expires_at": None}, at)]
    if run.progress is not None:
        said.append(_event(run, "run:progress", {"progress": run.progress}, at))
    return said


async def follow(asked: Asked) -> Response:
    """Everything that was and is told of a run, from its beginning or a place on; each event has its place as id.

    From the place `now` on: how it stands, and what is new. The place itself is told first, as an id without an event.
    """
    run, engine = asked.run, asked.app._engine
    said = asked.request.header("last-event-id") or asked.param("after")
    if said == "now" and run.is_terminal:
        return stream_response(_only(last_frame(own_event(_end(asked.app, run)))))
    if said == "now":
        place = await place_now(engine, run.id)
    else:
        place = Place() if said is None else Place.of(said)
    first = f"id: {place}\n\n".encode() if said == "now" else b""
    if place.is_end:
        return no_content()  # by which a browser knows that it is over
    source = ResumableSubscription(engine.subscriptions, run.id, place)

    def framed(event: Event) -> bytes:
        if event.type in LAST:
            return last_frame(own_event(event), source.place)
        # A progress that was held is sent beside the end. Cut between both, nobody may take the end for told.
        return frame(own_event(event), None if source.at_end else source.place)

    return asked.handler.streamed(
        lambda closed: Frames(
            source,
            framed,
            engine.clock,
            first=first,
            throttle=asked.handler.sse_throttle,
            heartbeat=asked.handler.heartbeat,
            closed=closed,
        )
    )


def of_all(event: Event) -> bytes | None:
    """An event on the stream of all runs, if it is told there."""
    return frame(slim_event(event)) if is_sent(event, SLIM) else None


async def subscribe_to_all(asked: Asked) -> Response:
    """What happens to all runs of a scope, from now on. It has no end."""
    names, labels, nothing = set(asked.job_names()), dict(asked.scope.get("labels") or {}), asked.sees_nothing

    def kept(job_name: str, given: Mapping[str, str]) -> bool:
        if nothing or (names and job_name not in names):
            return False
        return all(given.get(key) == value for key, value in labels.items())

    app = asked.app
    return asked.handler.streamed(
        lambda closed: Frames(
            app._engine.feed.read(kept, next(iter(labels.items()), None)),
            asked.handler.of_all,
            app._engine.clock,
            throttle=asked.handler.sse_throttle,
            heartbeat=asked.handler.heartbeat,
            closed=closed,
        )
    )
