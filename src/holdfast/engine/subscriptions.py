"""All subscriptions of an app in this process, and who looks for what other processes do to their runs.

The watching thread looks after each commit of anybody: a handful of statements, however many subscriptions there are.
Inline, whoever waits looks himself.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..basis.errors import StoreClosed, WouldDeadlock
from ..commit.reply import Reply, answer, may_wait
from ..model.event import Event
from ..model.run import RunFilter, RunRow
from ..model.step import LogRow, StepRow
from ..store.base import StepMark, Store
from .retold import size_of
from .subscription import Subscription
from .trail import Found, Wanted

if TYPE_CHECKING:
    from .engine import Engine

#: Steps with their values, and lines, that one look reads; there will be another look.
_STEPS_AT_ONCE = 200
_LINES_AT_ONCE = 1000
#: How many of them it begins with, and the bytes after which it reads no more: values may be large.
_STEPS_AT_FIRST, _LINES_AT_FIRST = 8, 64
_BYTES_AT_ONCE = 1 << 20
#: Seconds between two looks inline.
_INLINE_PAUSE = 0.05


class Subscriptions:
    """All subscriptions of one app in this process, and who looks for them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.by_run: dict[str, tuple[weakref.ref[Subscription], ...]] = {}
        self._lock = threading.RLock()

    def subscribe(self, run_id: str, *, with_snapshot: bool = True) -> Subscription:
        """A subscription that has not begun."""
        return Subscription(self, run_id, with_snapshot=with_snapshot)

    def begin(self, subscription: Subscription) -> None:
        """On the list first, then look: whatever happens in between is held."""
        engine, run_id, store = self.engine, subscription.run_id, self.engine.store
        desk, me = weakref.ref(self), weakref.ref(subscription, self._forgotten(run_id))
        with self._lock:
            self.by_run[run_id] = (*self.by_run.get(run_id, ()), me)

        def read(connection: Any) -> tuple[RunRow | None, list[StepMark], int]:
            # The row last: what is saved in between is new, and not part of the state.
            states = store.follow(connection, [run_id])
            marks = store.step_marks(connection, [(run_id, 0)]) if states else []
            rows = store.find_runs(connection, RunFilter(ids=(run_id,)))
            return rows[0] if rows else None, marks, states[run_id].last_log if states else 0

        reply: Reply[Any] = Reply(f"state of run {run_id}")

        def began() -> None:
            one, all_of_them = me(), desk()
            if one is None or all_of_them is None:
                return
            with one._lock:
                try:
                    if reply._error is not None:
                        raise reply._error
                    row, marks, last_log = reply._value
                    one._trail.begin(all_of_them._as_said(row), marks, last_log)
                except Exception as error:
                    one.fail(error)
                    return
            all_of_them.look_soon()

        reply._asked = True
        reply._subscribe(began)
        engine.reader.ask(read, reply)

    def _as_said(self, row: RunRow | None) -> RunRow | None:
        """The row with what the run has said last, if it is executed here: that is on its way to the database."""
        worker = self.engine.worker
        if row is None or worker is None or row.lease_owner != self.engine.identity:
            return row
        said = [one.notes.last_progress for one in worker.executing if one.row.id == row.id]
        return row._replace(progress=said[0]) if said and said[0] is not None else row

    def _forgotten(self, run_id: str) -> Any:
        desk = weakref.ref(self)

        def forgotten(me: weakref.ref[Subscription]) -> None:
            if (all_of_them := desk()) is not None:
                all_of_them._take_off(run_id, me)

        return forgotten

    def _take_off(self, run_id: str, gone: weakref.ref[Subscription] | None, also: Subscription | None = None) -> None:
        with self._lock:
            left = tuple(ref for ref in self.by_run.pop(run_id, ()) if ref is not gone and ref() not in (None, also))
            if left:
                self.by_run[run_id] = left

    def remove(self, subscription: Subscription) -> None:
        """It is over."""
        self._take_off(subscription.run_id, None, subscription)

    def of(self, run_id: str) -> list[Subscription]:
        """Those of a run."""
        return [one for ref in self.by_run.get(run_id, ()) if (one := ref()) is not None]

    def pass_on(self, event: Event, generation: int) -> None:
        """An event that happened here, from the hub."""
        for one in self.of(event.run_id or ""):
            if one.hear(event, generation):
                self.look_soon()

    # -- looking -----------------------------------------------------------------------------------------------

    def look(self, connection: Any) -> bool:
        """What the database has for those whose runs are executed elsewhere; True if there is more.

        A handful of statements, however many subscriptions there are: one while nothing has happened to their runs.
        """
        store = self.engine.store
        again = self.engine.feed.is_read and self.engine.feed.look(connection)
        with self._lock:
            run_ids = list(self.by_run)
        if not run_ids:
            return again
        # What is committed between two questions would be seen in half: a step without the lines before it.
        with store.moment(connection):
            return self._look(store, connection, run_ids) or again

    def _look(self, store: Store, connection: Any, run_ids: Sequence[str]) -> bool:
        states = store.follow(connection, run_ids)
        asking: list[tuple[Subscription, Wanted]] = []
        for run_id in run_ids:
            for one in self.of(run_id):
                with one._lock:
                    if (wanted := one._trail.wants(states.get(run_id))) is not None:
                        asking.append((one, wanted))
        if not asking:
            return False
        marks = self._marks(connection, asking)
        steps, read = _some_steps(store, connection, list(marks.values()))
        logs = _some_lines(store, connection, _least((one.run_id, wanted.logs_after) for one, wanted in asking))
        ended = tuple(dict.fromkeys(one.run_id for one, wanted in asking if wanted.row))
        rows = {row.id: row for row in store.find_runs(connection, RunFilter(ids=ended))} if ended else {}
        again = False
        steps_of, lines_of = _by_run(steps), _by_run(logs)
        for one, wanted in asking:
            state, lines = states.get(one.run_id), lines_of.get(one.run_id, [])
            read_to = lines[-1].id if lines else wanted.logs_after
            more = not read.issuperset(marks[one]) or (
                state is not None and read_to is not None and read_to < state.last_log
            )
            found = Found(steps_of.get(one.run_id, ()), lines, rows.get(one.run_id), more)
            with one._lock:
                again = one._trail.advance(state, found) or again
        return again

    def _marks(self, connection: Any, asking: list[tuple[Subscription, Wanted]]) -> dict[Subscription, list[StepMark]]:
        first = _least((one.run_id, wanted.steps_from) for one, wanted in asking)
        found = self.engine.store.step_marks(connection, first) if first else []
        by_run = _by_run(found)
        return {one: one._trail.unseen(by_run.get(one.run_id, ())) for one, _ in asking}

    def look_soon(self) -> None:
        """Something waits for a look; inline, whoever waits looks."""
        if not self.engine.options.inline:
            self.engine.watcher.look_again()

    def _look_here(self) -> None:
        reply: Reply[bool] = Reply("look")
        reply._asked = True
        self.engine.reader.ask(self.look, reply)
        if reply._error is not None:
            self.engine.hub.report(reply._error, "watch")

    async def pause(self, wake: Reply[None]) -> None:
        """Inline: look, and wait for a moment."""
        self._look_here()
        if wake.done():
            return
        loop = asyncio.get_running_loop()
        timer = self.engine.clock.call_later(loop, _INLINE_PAUSE, lambda: answer([(wake, None, None)]))
        try:
            await wake
        finally:
            timer.cancel()

    def pause_sync(self, wake: Reply[None], seconds: float | None) -> None:
        """The same, blocking: what runs meanwhile is the app's own loop, if it has one that stands still."""
        self._look_here()
        if wake.done():
            return
        pause = _INLINE_PAUSE if seconds is None else min(_INLINE_PAUSE, seconds)
        home, worker = self.engine.home, self.engine.worker
        if home is not None and worker is not None and worker.running and home.stands_still():
            home.turn_until(wake, pause)
        elif seconds is None and threading.active_count() == 1 and may_wait():
            raise WouldDeadlock(
                f"{wake._what}: nothing runs while the only thread blocks. Call process_until_idle().wait() first."
            )
        else:
            try:
                wake.wait(pause)
            except TimeoutError:
                pass

    # -- ends --------------------------------------------------------------------------------------------------

    def _all(self) -> list[Subscription]:
        return [one for run_id in list(self.by_run) for one in self.of(run_id)]

    def close(self) -> None:
        """The app stops: nobody is left waiting."""
        for one in self._all():
            one.fail(StoreClosed("The app was stopped while somebody was subscribed to a run. The run itself goes on."))

    def reset_after_fork(self) -> None:
        """In the child: they are the parent's."""
        self._lock = threading.RLock()
        for one in self._all():
            one.leave_to_parent()
        self.by_run.clear()


def _some_steps(
    store: Store, connection: Any, marks: Sequence[Sequence[StepMark]]
) -> tuple[list[StepRow], set[StepMark]]:
    """The first ones for each of those who ask, and which were asked for: more and more, until they are enough."""
    steps: list[StepRow] = []
    read: set[StepMark] = set()
    first, many, size = 0, _STEPS_AT_FIRST, 0
    while first < _STEPS_AT_ONCE and size < _BYTES_AT_ONCE:
        last = min(first + many, _STEPS_AT_ONCE)
        chosen = list(dict.fromkeys(mark for one in marks for mark in one[first:last] if mark not in read))
        if not chosen and all(len(one) <= last for one in marks):
            break
        found = store.marked_steps(connection, chosen) if chosen else []
        steps += found
        size += sum(map(size_of, found))
        read.update(chosen)
        first, many = last, many * 4
    return steps, read


def _some_lines(store: Store, connection: Any, after: Sequence[tuple[str, int]]) -> list[LogRow]:
    """The next lines of these runs: few if they are large."""
    if not after:
        return []
    lines = store.logs_after(connection, after, _LINES_AT_FIRST)
    if len(lines) < _LINES_AT_FIRST or sum(map(size_of, lines)) * _LINES_AT_ONCE > _BYTES_AT_ONCE * _LINES_AT_FIRST * 4:
        return lines
    return store.logs_after(connection, after, _LINES_AT_ONCE)


def _least(asked: Iterable[tuple[str, int | None]]) -> list[tuple[str, int]]:
    """Per run once, from where the first of those who ask wants it."""
    least: dict[str, int] = {}
    for run_id, first in asked:
        if first is not None:
            least[run_id] = min(first, least.get(run_id, first))
    return list(least.items())


def _by_run(rows: Iterable[Any]) -> dict[str, list[Any]]:
    by_run: dict[str, list[Any]] = {}
    for row in rows:
        by_run.setdefault(row.run_id, []).append(row)
    return by_run
