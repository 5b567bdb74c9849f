"""The engine of one app: the parts, and how they find each other. The face (`app`) is what users hold.

Long because all parts meet here: what needs only some of them is in the file of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from ..basis.chance import Chance, fraction
from ..basis.clock import Clock
from ..basis.codec import Payloads
from ..basis.errors import ConflictError, NotFoundError, StoreClosed
from ..basis.ids import Ids
from ..commit.committer import Committer
from ..commit.lent import lent
from ..commit.reader import Reader
from ..commit.reply import LazyReply, Reply, _running_loop, answer, hand_on
from ..commit.ticket import Ticket
from ..model.event import Event
from ..model.options import Options
from ..model.run import LEAVES, RunFilter, RunRow, RunStatus
from ..model.wait import NewSignal
from ..store.base import SIGNALS_UNREAD, Cancelled, Deleted, Old, Sent, Store, Triggered, conflict_text
from .context import current
from .execution import Execution
from .feed import Feed
from .forgetting import forget, is_part
from .home import Home
from .hub import Hub
from .labels import LabelsSchema
from .leases import LeaseKeeper
from .presence import Presence
from .registry import Registry
from .subscriptions import Subscriptions
from .threads import Threads
from .triggering import Triggering
from .waiting import RunReply, WatchedReply, key_deadlock
from .watcher import Watcher
from .worker import Worker

T = TypeVar("T")


class Engine:
    """Everything of one app in this process."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        options: Options,
        *,
        own_thread: bool = False,
        own_store: bool = False,
        payloads: Payloads | None = None,
        labels_schema: LabelsSchema | None = None,
    ) -> None:
        self.store = store
        self.own_store = own_store
        """The store is ours to close; nobody else uses it."""
        self.clock = clock
        self.options = options
        self.own_thread = own_thread
        """Execute on a loop thread of our own, even where a loop is running already."""
        self.payloads: Payloads = payloads or Payloads()
        self.labels_schema: LabelsSchema | None = labels_schema
        self.chance: Chance = fraction
        """What the jitter of retries is drawn from."""
        self.pass_time: Callable[[float], object] | None = None
        """For tests: called instead of resting for so many seconds between two tries."""
        self.watch: Callable[[Execution], object] | None = None
        """For tests: called with each execution before it begins."""
        self.ids: Ids = Ids(clock.now)
        self.registry: Registry = Registry()
        self.committer: Committer = Committer(store, clock, inline=options.inline)
        self.reader: Reader = Reader(store, inline=options.inline)
        self.reader.on_asked = self.committer.give_way_until
        self.hub: Hub = Hub(clock, inline=options.inline)
        self.committer.report_to(lambda error: self.hub.report(error, "wal-checkpoint"))
        self.threads: Threads = Threads()
        self.triggers: Triggering = Triggering(self)
        self.keeper: LeaseKeeper = LeaseKeeper(self.committer, self.hub, clock, options)
        self.presence: Presence = Presence(self)
        self.keeper.on_look = self.presence.look
        self.watcher: Watcher = Watcher(store, clock, self.hub, self.keeper, options)
        self.subscriptions: Subscriptions = Subscriptions(self)
        self.feed: Feed = Feed(self)
        self.plugins: dict[str, object] = {}
        self.opened_at: float = clock.steady()
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        # Random at each start of a process: a pod that comes back under its old name is another worker.
        self.identity: str = self.ids.new()
        self.home: Home | None = None
        self.worker: Worker | None = None
        self.stopping: bool = False
        self._stop: Reply[None] | None = None
        self._door = threading.RLock()
        self.waiting_inside: dict[Execution, int] = {}
        self.hub.on_waiting = self._somebody_waits
        self.hub.run_async = self._run_async
        self.hub.followed, self.hub.pass_on = self.subscriptions.by_run, self.subscriptions.pass_on
        self.watcher.follow = self.subscriptions.look

    def reset_after_fork(self) -> None:
        """In the child: nothing is running here, and the parent's runs are the parent's."""
        self.ids = Ids(self.clock.now)
        self.store.reset_after_fork()
        self.threads.reset()
        self.hub.reset()
        self.keeper.reset_after_fork()
        self.presence.reset()
        self.watcher.reset()
        self.subscriptions.reset_after_fork()
        self.feed.reset_after_fork()
        self._reset()

    def now(self) -> int:
        """Microseconds since 1970, by the database: what sleeps, deadlines and ages are measured with."""
        return self.committer.now()

    # -- where coroutines run ----------------------------------------------------------------------------------

    def settle_in(self) -> Home:
        """The loop of this app: that of the caller, if there is one and it is wanted; else one on a thread."""
        with self._door:
            if self.home is None or not self.home.is_usable():
                if _running_loop() is not None and not self.own_thread:
                    self.home = Home.here()
                elif self.options.inline:
                    self.home = Home.stepwise()
                else:
                    self.home = Home.on_thread()
                self.worker = Worker(self, self.home.loop)
                # What executed in a loop that was closed under it will never end: its leases must run out.
                self.keeper.drop_all()
            return self.home

    def call(self, what: str, coroutine: Callable[[Worker], Coroutine[Any, Any, T]]) -> Reply[T]:
        """What the coroutine returns, run in the app's loop."""
        home = self.settle_in()
        worker = self.worker
        assert worker is not None
        return home.call(what, lambda: coroutine(worker))

    def _run_async(self, coroutine: Any) -> None:
        try:
            home = self.settle_in()
            worker = self.worker
            assert worker is not None
            home.loop.call_soon_threadsafe(worker.spawn, coroutine)
        except BaseException:  # the loop was closed: nobody will ever run it
            coroutine.close()
            raise

    # -- life --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Serve reads and writes (again)."""
        with self._door:
            if self._stop is not None and not self._stop.done():
                raise StoreClosed("This app is stopping. Wait for stop() before you start it again.")
            if self._stop is not None:
                self.opened_at = self.clock.steady()
            self._stop = None
            self.stopping = False
            self.committer.open()
            self.reader.open()
            self.threads.open()
            self.hub.open()
            self.watcher.open()

    async def start(self, worker: Worker) -> None:
        """Claim and execute runs from now on."""
        self.ready_to_work()
        self.watcher.order = worker.order
        self.watcher.found = worker.wake
        worker.start()
        if not self.options.inline:
            self.watcher.start()

    def ready_to_work(self) -> None:
        """What executing one by one needs, without claiming by itself."""
        if self._stop is not None:
            self.open()
        for job in self.registry.all():
            job.resolve()
        self.presence.begin()
        self.keeper.start()

    def claim_no_more(self) -> None:
        """The process is about to stop: runs that are here go on, and no others begin. Any thread."""
        worker = self.worker
        if worker is not None:
            worker.leaving = True

    def stop(self, timeout: float | None) -> Reply[None]:
        """Stop the worker gracefully, then everything else. Nothing is left behind but stuck functions.

        Who asks for it while somebody else's is under way waits for that one.
        """

        def start(reply: Reply[None]) -> None:
            with self._door:
                stop, begins = self._stop, False
                if stop is None or stop.done():
                    stop, begins = Reply("stop"), True
                    self._stop = stop
                    self.stopping = True
            hand_on(stop, reply)
            self.committer.give_way_until(reply.done)
            if not begins:
                return
            if self.worker is not None:
                self.call("stop", lambda worker: worker.stop(timeout)).when_done(lambda: go_on(stop))
            else:
                go_on(stop)

        def go_on(stop: Reply[None]) -> None:
            if self.options.inline:
                self._close(stop)
            else:
                # What follows blocks, and this may be the caller's loop.
                thread = threading.Thread(target=self._close, args=(stop,), name="holdfast-stop", daemon=True)
                closing.append(thread)
                thread.start()

        def left(_: None) -> None:
            for thread in closing:
                if thread is not threading.current_thread():
                    thread.join()  # it has answered as the last thing it does

        closing: list[threading.Thread] = []
        return LazyReply("stop", start, left)

    def _close(self, stop: Reply[None]) -> None:
        home, worker = self.home, self.worker
        failed: BaseException | None = None
        try:
            with contextlib.ExitStack() as last:  # whatever fails, the others are closed; from below
                if self.own_store:
                    last.callback(self.store.close)
                if home is not None:
                    last.callback(home.close)
                if home is not None and worker is not None and home.thread is not None and home.is_usable():
                    last.callback(lambda: home.call("rest", worker.rest).wait())
                last.callback(self.subscriptions.close)
                last.callback(self.feed.close)
                last.callback(self.hub.close)
                last.callback(self.threads.close)
                last.callback(self.reader.close)
                last.callback(lambda: self.committer.close().wait())
                last.callback(self.presence.leave)
                last.callback(self.keeper.stop)
                last.callback(self.watcher.stop)
        except Exception as error:
            failed = error
        with self._door:
            self.home = self.worker = None
            self.keeper.drop_all()
            self.identity = self.ids.new()
        answer([(stop, None, failed)])

    def refusal(self) -> StoreClosed | None:
        """Why this app takes no triggers; None if it does."""
        execution = current.get()
        if not self.stopping or (execution is not None and execution.engine is self):
            # A run that still drains may trigger: being stopped gracefully must not make it fail.
            return None
        stopped = self._stop is not None and self._stop.done()
        return StoreClosed(None if stopped else "This app is stopping: it takes no more triggers.")

    # -- waiting -----------------------------------------------------------------------------------------------

    def wait_for(
        self,
        run_id: str,
        what: str,
        convert: Callable[[RunRow], T],
        timeout: float | None,
        told: Callable[[Event], Any] | None = None,
    ) -> Reply[T]:
        """The row of the run once it has ended; `NotFoundError` if there is none. `told` is called for its events."""
        if told is not None:
            return WatchedReply(self, what, lambda reply: self._await(run_id, reply), convert, timeout, run_id, told)
        return RunReply(self, what, lambda reply: self._await(run_id, reply), convert, timeout)

    def refuse_to_wait_for(self, call_key: str | None) -> None:
        """`WouldDeadlock` in a run that holds this concurrency key: a new run of the key begins only after its end."""
        execution = current.get()
        if execution is None or execution.engine is not self or call_key is None:
            return
        if call_key == execution.row.concurrency_key:
            raise key_deadlock(execution.row)

    def wait_for_triggered(
        self, ticket: Ticket[Any], what: str, convert: Callable[[RunRow], T], timeout: float | None = None
    ) -> Reply[T]:
        """The same for a run that is being triggered."""

        def start(reply: RunReply[Any]) -> None:
            def committed(at_once: bool = True) -> None:
                made = ticket._value  # what the store said, or the run that somebody has made of it
                refused = isinstance(made, Triggered) and made.disposition == "conflict"
                if ticket._error is not None:
                    answer([(reply, None, ticket._error)])
                elif refused:
                    answer([(reply, None, ConflictError(conflict_text(made.run)))])
                elif at_once and made.disposition == "created":
                    # Nobody can have claimed it here before we are on the list; what others do is watched.
                    if not reply.would_never_end(made.run):
                        reply.expect(made.run.id)
                else:
                    self._await(made.run.id if isinstance(made, Triggered) else made.id, reply)

            ticket._asked = True
            if not ticket._subscribe(committed):
                committed(at_once=False)

        return RunReply(self, what, start, convert, timeout)

    def _await(self, run_id: str, reply: RunReply[Any]) -> None:
        reply.hidden = lent.here(run_id)
        # On the list first, then look: an end in between is seen by one of the two.
        reply.expect(run_id)
        self.look_up(run_id, failed=lambda error: answer([(reply, None, error)]), going_on=reply.would_never_end)

    def look_up(
        self,
        *run_ids: str,
        failed: Callable[[BaseException], None] | None = None,
        going_on: Callable[[RunRow], object] | None = None,
    ) -> None:
        """Read runs, and tell who waits for them if they have ended, or are not there."""
        rows: Reply[list[RunRow]] = Reply("find_runs")

        def looked() -> None:
            if rows._error is not None:
                if failed is not None:
                    failed(rows._error)
                return
            found: list[RunRow] = rows._value
            for row in found:
                if going_on is not None and row.completed_at is None:
                    going_on(row)
            self.hub.ended([row for row in found if row.completed_at is not None])
            self.hub.gone(set(run_ids) - {row.id for row in found})

        rows._asked = True
        rows._subscribe(looked)
        self.reader.ask(lambda c: self.store.find_runs(c, RunFilter(ids=run_ids)), rows)

    def _somebody_waits(self, run_id: str) -> None:
        if not self.options.inline:
            self.watcher.await_run(run_id)

    # -- ends --------------------------------------------------------------------------------------------------

    def cancel(self, run_id: str, convert: Callable[[RunRow], T]) -> Ticket[T]:
        """Cancel a run; it is durable when the reply is there."""

        def outcome(cancelled: Cancelled) -> T:
            if cancelled.run is None:
                raise NotFoundError(f"Run not found: {run_id}")
            if not cancelled.accepted:
                was = cancelled.previous
                raise _conflict("cancel", "already cancelled" if was == "cancelled" else was, run_id)
            return convert(cancelled.run)

        ticket: Ticket[T] = Ticket("cancel", run_id, what=f"cancel of {run_id}", convert=outcome, then=self._cancelled)
        self.committer.join(ticket)
        return ticket

    def delete(self, run_id: str) -> Reply[None]:
        """Delete an ended run and all below it; they are gone for good when the reply is there."""

        def outcome(deleted: Deleted) -> None:
            if not deleted.accepted:
                if deleted.standing is None:
                    raise NotFoundError(f"Run not found: {run_id}")
                if deleted.standing == "child":
                    raise ConflictError(f"Cannot delete child run: {run_id}. It goes with the root of its tree.")
                if deleted.standing == "parent":
                    raise ConflictError(f"Cannot delete run: {run_id}. There are runs below it that have not ended.")
                raise _conflict("delete", deleted.standing, run_id)

        def gone(deleted: Deleted) -> None:
            if deleted.accepted:
                self.hub.gone([run_id])
                self.hub.tell_of("run:delete", run_id, deleted.job_name, deleted.label_map, deleted.generation)

        what = f"deletion of {run_id}"
        reply: Ticket[None] = Ticket("delete", run_id, what=what, convert=outcome)

        def part(*, first: bool) -> None:
            ticket: Ticket[Deleted] = Ticket("delete", run_id, what=what, then=gone, bulk=not first)
            self.committer.join(ticket, pass_always=not first)

            def done() -> None:
                if ticket._error is None and is_part(ticket._value):
                    part(first=False)
                else:
                    answer([(reply, ticket._value, ticket._error)])

            ticket.when_done(done)

        part(first=True)
        return reply

    def purge(self, old: Old, most: float) -> Reply[int]:
        """Delete what is old, at most so many runs; begins now, in the app's loop."""
        reply: Reply[int] = Reply("purge_runs")
        if self._stop is not None:
            answer([(reply, None, StoreClosed())])
        else:
            self.settle_in().begin(lambda: forget(self, "delete", old, most), reply)
        return reply

    def _cancelled(self, cancelled: Cancelled) -> None:
        if cancelled.accepted and cancelled.run is not None:
            self.ended_elsewhere([cancelled.run])

    def ended_elsewhere(self, rows: Iterable[RunRow]) -> None:
        """Runs that were ended by somebody who did not execute them. Any thread."""
        rows = list(rows)
        if self.worker is not None and any(self.makes_way(row) or row.parent_id is not None for row in rows):
            self.worker.wake()
        if any(row.tree == LEAVES for row in rows):
            self.cancel_below()
        holders: dict[str, list[Any]] = {}
        for holder in self.keeper.held:
            holders.setdefault(holder.lease.run_id, []).append(holder)
        for row in rows:
            # Before the holder hears of it, and drops the step that is under way: that is told, too.
            self.tell_ended(row)
            for holder in holders.get(row.id, ()):
                holder.lease_lost(row.status)
        self.hub.ended(rows)

    def as_told(self, row: RunRow) -> RunRow:
        """The row with the progress that was told here last: it is saved in a moment, and told at once."""
        holder = self.keeper.holder(row.id)
        if isinstance(holder, Execution) and holder.lease.generation == row.generation:
            return row._replace(progress=holder.told_progress or row.progress)
        return row

    def cancel_below(self) -> None:
        """Cancel what is left below runs that have ended without their output. Any thread.

        Who is in the line for that already looks at all of them, however many ends came meanwhile.
        """
        if not self.committer.has_part_in_line("cancel_below"):
            self.committer.join(self.cancelling_below(), pass_always=True)

    def cancelling_below(self, along: int | None = None) -> Ticket[Any]:
        """The next of them. Whoever looks after the database later does it, too, if this is lost.

        `along`: at most so many, in a round with others.
        """

        def cancelled(rows: list[RunRow]) -> None:
            """In the committing thread."""
            if rows:
                self.ended_elsewhere(rows)
                self.cancel_below()

        most = _BELOW_AT_ONCE if along is None else min(along, _BELOW_AT_ONCE)
        ticket: Ticket[Any] = Ticket("cancel_below", most, then=cancelled, bulk=along is None)
        ticket._asked = True
        return ticket

    def send_signal(self, signal: NewSignal) -> Ticket[None]:
        """Write a signal; it is durable when the reply is there."""

        def outcome(sent: Sent) -> None:
            if sent.status == "gone":
                raise NotFoundError(f"Run not found: {signal.run_id}")
            if sent.status == "ended":
                raise _conflict("signal", sent.run_status, signal.run_id)
            if sent.status == "full":
                raise ConflictError(f"Run {signal.run_id} has {SIGNALS_UNREAD} signals that it has not read yet.")

        def told(sent: Sent) -> None:
            if sent.status == "sent" and self.worker is not None:
                self.worker.wake()

        what = f"signal {signal.name!r} to {signal.run_id}"
        ticket: Ticket[None] = Ticket(
            "send_signals", signal, what=what, convert=outcome, then=told, weight=len(signal.value)
        )
        self.committer.join(ticket)
        return ticket

    def makes_way(self, row: RunRow) -> bool:
        """Whether others may be claimed because this one is no longer executed: of its key, or of its job."""
        job = self.registry.get(row.job_name)
        return row.concurrency_key is not None or (job is not None and job.limit is not None)

    def tell_ended(self, row: RunRow) -> None:
        """Emit the event that belongs to how the run ended."""
        if self.hub.hears(_TOLD.get(row.status, "run:fail"), row.id):
            type, data = self.ended_as(row)
            self.hub.tell(type, row, **data)

    def ended_as(self, row: RunRow) -> tuple[str, dict[str, Any]]:
        """The type and the data of that event."""
        type = _TOLD.get(row.status, "run:fail")
        if type == "run:cancel":
            return type, {}
        duration = ((row.completed_at or 0) - (row.started_at or row.created_at)) / 1e6
        if type == "run:complete":
            return type, {"output": self.payloads.shown(row.output or "null"), "duration": duration}
        error = None if row.error is None else self.payloads.shown_text(row.error)
        return type, {"error": error, "error_type": row.error_type, "duration": duration}


#: Runs below an ended one that one round cancels: others want to write, too.
_BELOW_AT_ONCE = 500

_TOLD: dict[str, str] = {RunStatus.COMPLETED: "run:complete", RunStatus.CANCELLED: "run:cancel"}


def _conflict(act: str, was: str | None, run_id: str) -> ConflictError:
    return ConflictError(f"Cannot {act} {was} run: {run_id}")


_all: weakref.WeakSet[Engine] = weakref.WeakSet()


def _in_child() -> None:
    for engine in list(_all):
        engine.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
