"""Following a run at a server: a stream that is taken up again wherever it was cut, without gap and without repetition.

Each event comes with the id of its place. The client begins `now`, is told at once where that is, and comes back to the
last place that it has passed on. A step, a line, a lease or an end is told once; progress is how it stands, so after a
cut the last one may come again, and is left out if it has not changed.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json

from ..basis.clock import to_datetime
from ..basis.errors import NotFoundError, ValidationError
from ..commit.reply import Reply
from ..engine.subscription import MOST_UNREAD, Subscription
from ..engine.trail import LAST
from ..model.event import Event
from .documents import event
from .errors import ServerError, ServerUnavailable
from .line import LOST, Line, read_by, unanswered

if TYPE_CHECKING:
    import httpx

PATH = "/run/events"
#: Seconds between two looks whether a slow reader has taken something.
_SLOW = 0.02
#: Bytes of one event: more is no event of ours.
_LONGEST = 64 << 20
#: Characters of a place that every server reads.
_SURE = 4096


class Frame(NamedTuple):
    """A block of a stream: the place that it says, and the event, if it has one."""

    id: str | None
    data: bytes | None


async def frames(response: httpx.Response) -> AsyncIterator[Frame]:
    """The blocks of a stream, as they come. What is cut off in the middle of a block is not given."""
    rest, searched = bytearray(), 0
    async for chunk in response.aiter_bytes():
        rest += chunk
        begin = 0
        # Each byte is looked at once, however many chunks a block has; its end may be cut in the middle.
        while (end := rest.find(b"\n\n", max(begin, searched - 1))) >= 0:
            block, begin = bytes(rest[begin:end]), end + 2
            yield _frame(block)
        del rest[:begin]
        searched = len(rest)
        if searched > _LONGEST:
            raise ServerError(f"GET {PATH}: the stream is none of a Holdfast server.", 200)


def _frame(block: bytes) -> Frame:
    id = data = None
    for line in block.split(b"\n"):
        if line.startswith(b"id: "):
            id = line[4:].decode(errors="replace")  # no place of ours has such letters
        elif line.startswith(b"data: "):
            data = line[6:]
    return Frame(id, data)


class _Where:
    """The place that was passed on last, and one to go back to if a server does not read what it has said itself.

    Servers before this one give places as long as the steps make them, and read those that are not too long.
    """

    def __init__(self) -> None:
        self.place: str | None = None
        self._sure: str | None = None
        self._since: Counter[int] = Counter()
        """What was told and is not part of the sure place."""
        self._again: Counter[int] = Counter()
        """What was told and is not part of the place."""

    def knows(self, data: bytes) -> bool:
        """Whether this was told before it was gone back; from now on it was."""
        key = hash(data)
        if self._again[key]:
            self._again[key] -= 1
            return True
        self._since[key] += 1
        return False

    def goes_to(self, place: str | None) -> None:
        """What was told is passed on."""
        self.place = place or self.place
        if place is not None and len(place) <= _SURE:
            self._sure, self._since = place, +self._again

    def goes_back(self) -> bool:
        """To the sure place; False if that is where it is."""
        if self._sure is None or self._sure == self.place:
            return False
        self.place, self._again = self._sure, +self._since
        return True


async def follow(line: Line, run_id: str, give: Callable[[Event], Awaitable[None]], retries: int) -> None:
    """Give the events of a run from now until its end. `NotFoundError` if there is no such run.

    `ServerUnavailable` after more failures in a row than `retries`.
    """
    where = _Where()
    last: Event | None = None
    progress: Any = None
    failures = 0
    begun = False
    params: list[tuple[str, str | int]] = [("runId", run_id)]
    what = f"GET {line!r}{PATH}"
    while True:
        try:
            begins = True
            given = params if where.place else [*params, ("after", "now")]
            async with line.stream(PATH, given, where.place) as response:
                if response is None:
                    if where.place is None:
                        raise ServerError(f"{what}: the stream is none of a Holdfast server.", 204)
                    # The run has ended, and that was not told here: asked for how it stands, the server tells its end.
                    where = _Where()
                    continue
                begun = True
                async for frame in frames(response):
                    failures = 0
                    if frame.data is not None:
                        told = read_by(_event, frame.data, what)
                        if told.type == "run:progress":
                            again, progress = begins and progress == told.data, told.data
                            begins = False
                        else:
                            again = where.knows(frame.data)
                        if not again:
                            last = told
                            await give(told)
                            if told.type in LAST:
                                return
                    where.goes_to(frame.id)
            raise ServerUnavailable(f"{what}: the stream has ended before the run.")
        except NotFoundError as error:
            if not begun:
                raise _named(error, run_id) from None
            await give(_deleted(line, run_id, last))  # while nobody was connected
            return
        except ValidationError:
            if not where.goes_back():
                raise
        except (ServerUnavailable, *LOST) as error:
            failures += 1
            if failures > retries:
                if isinstance(error, ServerUnavailable):
                    raise
                raise unanswered(error, what) from None
            await line.rest(failures, getattr(error, "retry_after", 0.0), line.patience)


def _event(data: bytes) -> Event:
    return event(from_json(data))


def _named(error: NotFoundError, run_id: str) -> NotFoundError:
    return NotFoundError(f"Run not found: {run_id}") if error.message == "Run not found" else error


def _deleted(line: Line, run_id: str, last: Event | None) -> Event:
    now = to_datetime(line.clock.now())
    assert now is not None
    job_name, labels = (None, {}) if last is None else (last.job_name, dict(last.labels))
    return Event("run:delete", now, 0, run_id, job_name, labels, {})


class Desk:
    """Who follows for the subscriptions of one client. It holds them weakly: a loop that was broken off ends one."""

    def __init__(self, line: Line) -> None:
        self.engine: Line = line

    def begin(self, subscription: RemoteSubscription) -> None:
        """Follow the run, and give what it tells."""
        run_id, ending = subscription.run_id, _Ending()
        me = weakref.ref(subscription, lambda _: ending.end())
        line = self.engine

        async def give(told: Event) -> None:
            if (one := me()) is None:
                return
            with one._lock:
                one._give(told.type, told)
            while one is not None and len(one._unread) >= MOST_UNREAD and not one._is_over:
                # Nothing more is read until there is room: then the server waits, too.
                one = None
                await asyncio.sleep(_SLOW)
                one = me()

        async def work() -> None:
            await follow(line, run_id, give, line.patience.max_retries)

        reply: Reply[None] = Reply(f"events of run {run_id}")
        reply._asked = True

        def over() -> None:
            if (one := me()) is None:
                return
            with one._lock:
                one._finish(reply._error)  # without an error, too: nobody waits for what is not coming

        reply._subscribe(over)
        ending.call = line.begin(work, reply)
        subscription._ending = ending

    def remove(self, subscription: RemoteSubscription) -> None:
        """It is over."""
        if subscription._ending is not None:
            subscription._ending.end()


class _Ending:
    call: Callable[[], None] | None = None

    def end(self) -> None:
        call, self.call = self.call, None
        if call is not None:
            call()


class RemoteSubscription(Subscription):
    """The events of one run at a server, from now until its end. As every subscription, for one reader.

    A slow reader is waited for: nothing is dropped.
    """

    __slots__ = ("_client", "_ending")

    def __init__(self, desk: Desk, run_id: str, client: object = None) -> None:
        # A client that nobody holds is closed, and `for event in Client(url).subscribe(id)` holds this alone.
        self._client = client
        # Not that of the class above: there is no database to look at.
        self.run_id: str = run_id
        self.dropped: int = 0
        self._desk: Any = desk
        self._lock = threading.RLock()
        self._unread = deque()
        self._last = None
        self._error = None
        self._is_over = False
        self._begun = False
        self._wake = None
        self._trail: Any = _NoTrail()
        self._ending: _Ending | None = None


class _NoTrail:
    over = False
