"""The worker: claims runs while it has free slots, executes them, and stops gracefully.

It lives in one event loop. When a slot gets free, the next claim joins the line in the same tick as the end of the run
that freed it, so that both share a round. While nothing is to be had it sleeps, until somebody triggers a run here,
the watcher sees that another process did, a delayed run is due, or the polling interval is over.

Long because claiming, executing, resting and stopping are one story about the same slots.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from ..basis.clock import Timer, to_datetime
from ..basis.errors import StoreClosed, StoreError
from ..commit.ticket import Ticket
from ..model.run import RunRow
from ..rules.lifecycle import TABLE, Cause
from ..store.base import Claimed, ClaimOrder, Ended, Ending, Lease, Recall, Sweep
from .execution import SUSPECT, Execution
from .leases import Judge
from .maintenance import Maintenance
from .outcome import Outcome
from .signals import AbortSignal

if TYPE_CHECKING:
    from .engine import Engine

#: What is still running after the drain gets this long to unwind once it has been cancelled.
_UNWIND_SECONDS = 1.0


class Worker:
    """Claims and executes, in one event loop."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.loop = loop
        self.shutdown: AbortSignal = AbortSignal()
        self.long_work: asyncio.Lock = asyncio.Lock()
        """Of whoever has long work to do in this loop, and lets others in now and then: one at a time."""
        self.running: bool = False
        self.leaving: bool = False
        """It claims no more, and what a claim under way still gets is handed back: a stop is about to come."""
        self._stopping = False
        self._executing: dict[str, Execution] = {}
        # Runs begin in this one. What leads to a claim may happen in another run's, with all that its code has set.
        self._context = contextvars.copy_context()
        self._slots = engine.options.concurrency
        self._abandoned = 0
        self._left: set[asyncio.Task[Any]] = set()
        self._claiming = False
        self._claims = 0
        self._filling = False
        self._news = 0
        # Runs that rounds of this process have written, and how many of them the last claim could see. Both are counted
        # by whoever serves the rounds, in their order: so a claim is known to have seen what its own round has written.
        self._made = self._made_seen = 0
        self._asleep = True
        self._pause = 0.0
        self._recall = False
        self._not_before = 0.0
        self._due: Timer | None = None
        self._tick: Timer | None = None
        self._again: Timer | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._quiet: asyncio.Event = asyncio.Event()
        self._judge = Judge(engine.clock, engine.options.lease)
        self._maintenance = Maintenance(engine, self.is_idle)

    # -- running -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Claim from now on. In the worker's loop."""
        if self.running:
            return
        self.running = True
        self.leaving = self._stopping = False
        self.shutdown = AbortSignal()
        self._look_after()

    def free_slots(self) -> int:
        """How many more runs may begin; none while too many were abandoned."""
        if self._abandoned >= 2 * self.engine.options.concurrency:
            return 0
        return self._slots

    @property
    def executing(self) -> list[Execution]:
        return list(self._executing.values())

    def wake(self, *, made_here: bool = False) -> None:
        """There may be something to claim. Any thread; cheap when the worker is at it anyway.

        `made_here`: a run was written by a round of this process. To be told before the next round begins.
        """
        if made_here:
            self._made += 1
        else:
            self._news += 1
        if self._asleep and self.running:
            self._asleep = False
            self.in_loop(self._fill_soon)

    def claim_along(self) -> None:
        """Somebody has just put a run into the line: if nothing is done here, claim it in the round that writes it.

        That saves a whole commit between a trigger and its run. Without effect outside of the worker's loop.
        """
        if self._asleep and self.running and asyncio._get_running_loop() is self.loop:
            self._fill()

    def in_loop(self, call: Callable[[], object]) -> None:
        """Call in the worker's loop. Any thread."""
        try:
            self.loop.call_soon_threadsafe(call)
        except RuntimeError:
            pass  # the loop is closed: there is nothing left to do in it

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of the worker's, kept alive until it is done."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def pause(self, seconds: float) -> None:
        """Sleep by the engine's clock."""
        woken = asyncio.Event()
        timer = self.engine.clock.call_later(self.loop, seconds, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()

    # -- claiming ----------------------------------------------------------------------------------------------

    def order(self, limit: int | None = None) -> ClaimOrder | None:
        """What a claim would ask for now; None if nothing could be taken."""
        engine = self.engine
        limit = self.free_slots() if limit is None else limit
        jobs = engine.registry.names()
        if limit <= 0 or not jobs:
            return None
        lease = round(engine.options.lease * 1_000_000)
        limits = engine.registry.limits()
        return ClaimOrder(engine.identity, limit, lease, jobs, engine.options.queues, limits=limits)

    def _fill_soon(self) -> None:
        if not self._filling:
            self._filling = True
            # Before the tickets of this tick are handed over: the claim goes with them.
            self.loop.call_soon(self._fill)

    def _fill(self) -> None:
        self._filling = False
        if self._claiming or self._stopping or self.leaving or not self.running:
            return
        if self.engine.clock.steady() < self._not_before or (order := self.order()) is None:
            self._asleep = self.free_slots() > 0
            return
        self._claiming = True
        self._asleep = False
        seen, asked = self._news, self.engine.clock.steady()
        ticket = self._claim(order)
        self.spawn(self._take(ticket, order, seen, asked))

    def _claim(self, order: ClaimOrder) -> Ticket[Claimed]:
        tickets: list[Ticket[Any]] = []
        if self._recall and not self._claims:
            # The answer to an earlier claim was lost: what it leased to us would wait until the lease is over. Not
            # while another claim is under way: what that one gets is not known yet.
            tickets.append(_unasked("recall", Recall(order.owner, tuple(self._executing))))
        known = None if self._claims else tuple(self._executing)
        ticket: Ticket[Claimed] = Ticket("claim", order._replace(known=known), then=self._saw)
        self._claims += 1
        self.engine.committer.join(*tickets, ticket, *self.engine.presence.tickets(), pass_always=True)
        return ticket

    def _saw(self, _: Claimed) -> None:
        """In the committing thread, after the triggers of the round, which come before its claim."""
        self._made_seen = self._made

    def _is_news(self, seen: int) -> bool:
        return self._news != seen or self._made != self._made_seen

    async def _claimed(self, ticket: Ticket[Claimed]) -> Claimed:
        recalls = self._recall and self._claims == 1
        try:
            claimed = await ticket
        except asyncio.CancelledError:
            await self._take_nothing(ticket)
            raise
        except Exception:
            self._recall = True
            raise
        finally:
            self._claims -= 1
        if recalls:
            self._recall = False
        return claimed

    async def _take_nothing(self, ticket: Ticket[Claimed]) -> None:
        """Somebody cancels all tasks of this loop, and a claim among them: hand back what it still gets."""
        self._recall = True  # should this be cancelled, too
        await asyncio.gather(*[self._hand_back(row) for row in (await ticket).runs])

    async def _take(self, ticket: Ticket[Claimed], order: ClaimOrder, seen: int, asked: float) -> None:
        try:
            claimed = await self._claimed(ticket)
        except Exception as error:
            if not (self._stopping and isinstance(error, StoreClosed)):
                self._failed(error)
            return
        finally:
            self._claiming = False
        self._pause = 0.0
        for row in claimed.runs:
            self._begin(row, claimed, asked)
        if len(claimed.runs) == order.limit or self._is_news(seen):
            self._fill_soon()
        else:
            self._sleep_until(claimed.next_due_at, seen)

    def _failed(self, error: Exception) -> None:
        """The database is in trouble: try again later, less often each time."""
        clock = self.engine.clock
        self._pause = min(max(self._pause * 2, 0.1), max(self.engine.options.polling_interval, 5.0))
        self._not_before = clock.steady() + self._pause
        self.engine.hub.report(error, "claim")
        self._again = clock.call_later(self.loop, self._pause, self._try_again)

    def _try_again(self) -> None:
        self._not_before = 0.0  # a timer may come a little early by another clock
        self._fill_soon()

    def is_idle(self) -> bool:
        """Whether nothing is executing here, and more may come."""
        return not self._executing and not self._stopping

    def _sleep_until(self, due: int | None, seen: int) -> None:
        self._asleep = True
        self._maintain()
        if self._is_news(seen):
            # Somebody had news just before we were asleep, and woke nobody.
            self._fill_soon()
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if due is not None:
            seconds = max(0.0, (due - self.engine.now()) / 1e6)
            # A timer of a year would overflow some loops; looking once a day costs nothing.
            self._due = self.engine.clock.call_later(self.loop, min(seconds, 86400.0), self._fill_soon)

    def _maintain(self) -> None:
        if self.is_idle() and self._maintenance.is_due():
            self.spawn(self._maintenance.idle())

    def _begin(self, row: RunRow, claimed: Claimed, asked: float) -> Execution | None:
        job = self.engine.registry.get(row.job_name)
        if self._stopping or self.leaving or job is None:
            self.spawn(self._hand_back(row))
            return None
        if row.crashes >= SUSPECT and any(other.is_suspect for other in self._executing.values()):
            # One of them may kill this process, and the others would be blamed with it.
            self.spawn(self._hand_back(row, round(self.engine.options.lease * 500_000)))
            return None
        execution = Execution(self, job, row, claimed.steps.get(row.id, []), asked)
        self._slots -= 1
        self._executing[row.id] = execution
        self.engine.keeper.hold(execution)
        if self.engine.watch is not None:
            self.engine.watch(execution)
        execution.task = self.loop.create_task(execution.main(), context=self._context.copy())
        self._tasks.add(execution.task)
        execution.task.add_done_callback(self._tasks.discard)
        return execution

    def hand_back(self, lease: Lease) -> None:
        """Give a lease back that nobody executes under any more."""
        self.spawn(self._release(lease))

    async def _hand_back(self, row: RunRow, rest: int = 0) -> None:
        await self._release(Lease(row.id, row.generation, row.lease_owner or ""), rest)

    async def _release(self, lease: Lease, rest: int = 0) -> None:
        """Give it back; nobody claims the run for so many microseconds."""
        ticket: Ticket[Ended] = Ticket("finish", Ending(lease, TABLE[Cause.RELEASE], delay=rest))
        self.engine.committer.join(ticket, pass_always=True)
        try:
            await ticket
        except StoreError as error:
            self.engine.hub.report(error, "shutdown", lease.run_id)  # it will be taken over when the lease is over

    # -- what executions tell ----------------------------------------------------------------------------------

    def freed(self, execution: Execution) -> None:
        """The user's function has returned: its slot may be used again."""
        if execution.slot_free:
            return
        execution.slot_free = True
        self._slots += 1
        makes_way = self.engine.makes_way(execution.row)
        if self._claiming and makes_way:
            # The claim that is under way may come before the end that is written now.
            self._news += 1
        # Asleep, it knows that nobody waits for a slot: a claim would only make the end's round longer.
        if self.running and not self._stopping and (makes_way or not self._asleep):
            self._fill_soon()

    def resume(self, execution: Execution) -> None:
        """It was only waiting, without a slot, and goes on. There may be more at work than slots, for as long."""
        if execution.slot_free and not execution.is_over:
            execution.slot_free = False
            self._slots -= 1

    def suspended(self, execution: Execution, ended: Ended, waiting_for: str) -> None:
        """It waits, durably, and nobody executes it."""
        if ended.accepted:
            self.wake()  # it may be pending again, or want to be woken soon
            if self.engine.hub.hears("run:wait", execution.row.id):
                self.engine.hub.tell("run:wait", execution.row, waiting_for=waiting_for)

    def finished(self, execution: Execution) -> None:
        """All is done, the end is written or lost."""
        if self._executing.get(execution.row.id) is execution:
            del self._executing[execution.row.id]
        if execution.abandoned:
            # With too many of them nothing was claimed; now it may be again.
            self._abandoned -= 1
            self._fill_soon()
        self.engine.keeper.release(execution)
        if not self._executing:
            self._quiet.set()
            if self._asleep and self.running:
                self._maintain()

    def abandon(self, execution: Execution) -> None:
        """A function that does not come back after it was told to: give its slot to another run."""
        if execution.slot_free:
            return
        execution.abandoned = True
        self._abandoned += 1
        text = f"Run {execution.row.id} was told to stop ({execution.signal.reason}) and did not"
        self.engine.hub.report(self._with_count(text), "abandoned", execution.row.id)
        self.freed(execution)

    def leave_behind(self, body: asyncio.Task[Any], text: str, execution: Execution) -> None:
        """A step's body that does not come back after it was told to: its run goes on without it."""
        self._abandoned += 1
        self._left.add(body)
        self.engine.hub.report(self._with_count(text), "abandoned", execution.row.id)
        body.add_done_callback(self._came_back)

    def _came_back(self, body: asyncio.Task[Any]) -> None:
        self._left.discard(body)
        self._abandoned -= 1
        self._fill_soon()

    def _with_count(self, text: str) -> str:
        if self._abandoned < 2 * self.engine.options.concurrency:
            return text
        stuck = f"{self._abandoned} functions are stuck"
        return f"{text}. {stuck}: this worker takes no more runs until some of them return"

    def ended(self, execution: Execution, outcome: Outcome, ended: Ended) -> None:
        """A run that was executed here has ended, durably (or is pending again)."""
        hub, ends = self.engine.hub, TABLE[outcome.cause].ends
        if ended.leaves:
            self.engine.cancel_below()
        if not ends or execution.row.parent_id is not None:  # the run above it may go on
            self.wake()  # a claim that was under way knows nothing of it, nor when it is due
        if not (hub.is_awaited(execution.row.id) or hub.hears_ends(execution.row.id)):
            return  # nobody asks: most runs
        row = execution.ended_row(outcome, ended)
        if not ends:
            if row.error is not None and hub.hears("run:retry", row.id):
                at, error = to_datetime(row.run_at), self.engine.payloads.shown_text(row.error)
                hub.tell("run:retry", row, error=error, error_type=row.error_type, attempt=row.attempt, run_at=at)
            return
        if hub.is_awaited(row.id):
            if row.generation == 1:
                hub.ended([row])
            else:
                # How many steps earlier executions saved is known to the database only.
                self.engine.look_up(row.id, failed=lambda _: hub.ended([row]))
        self.engine.tell_ended(row)

    # -- maintenance -------------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Every polling interval: look for work, and for leases that ran out."""
        if not self.running or self._stopping:
            return
        # The keeper does it, too, unless it waits for a server that says nothing.
        self.engine.keeper.drop_expired()
        self._sweep()
        self._fill_soon()
        self.engine.committer.give_way_until(self.engine.keeper.is_on_time)
        if self.engine.options.inline and (awaited := self.engine.hub.awaited):
            self.engine.look_up(*awaited)
        interval = self.engine.options.polling_interval
        self._tick = self.engine.clock.call_later(self.loop, interval, self._look_after)

    def _sweep(self) -> None:
        if self.running and (tickets := self.sweep_tickets()):
            self.engine.committer.join(*tickets, pass_always=True)

    def sweep_tickets(self) -> list[Ticket[Any]]:
        """Renew what is held here and, in the same round after it, take back leases that ran out."""
        here = self.engine.presence.tickets() if self.engine.options.inline else []
        if not self._judge.may_judge():
            return [*here, *self.engine.keeper.renewals()]  # inline nobody else renews
        options = self.engine.options
        sweep = Sweep(options.max_crashes, patience=options.lease / 2)

        def expired(rows: list[RunRow]) -> None:
            """In the committing thread."""
            self._not_before = 0.0  # the database is back: no claim need wait for its next try
            self.engine.ended_elsewhere([row for row in rows if row.completed_at is not None])
            if any(row.completed_at is None for row in rows):
                self.wake()
            if len(rows) == sweep.limit:
                self.in_loop(self._sweep)  # there may be more

        def passed(rows: list[RunRow]) -> None:
            """In the committing thread."""
            self.engine.ended_elsewhere(rows)
            if len(rows) == sweep.limit:
                self.in_loop(self._sweep)

        expire = _unasked("expire", sweep)
        expire.then = expired
        deadlines = _unasked("pass_deadlines", sweep.limit)
        deadlines.then = passed
        asked = self.engine.committer.has_part_in_line("cancel_below")
        below = [] if asked else [self.engine.cancelling_below(along=sweep.limit)]
        return [*self.engine.keeper.renewals(), expire, deadlines, *below, *here]

    # -- one by one --------------------------------------------------------------------------------------------

    async def process_one(self) -> bool:
        """Claim one run and execute it; False if there was none. Nothing else: no maintenance."""
        return not self._stopping and await self._process_next()

    async def process(self, max_runs: float, max_seconds: float) -> int:
        """Claim and execute one run after another, until there is none, or enough; how many."""
        began = self.engine.clock.steady()
        done = 0
        while done < max_runs and (done == 0 or self.engine.clock.steady() - began < max_seconds):
            if self._stopping:
                break
            if not await self._process_next():
                await self._maintenance.idle()
                break
            done += 1
        return done

    async def _process_next(self) -> bool:
        order = self.order(1)
        if order is None or self.leaving:
            return False
        asked = self.engine.clock.steady()
        self.engine.committer.join(*self.sweep_tickets(), pass_always=True)
        # A task of the worker's: a stop lets it come to its end, and hands back what it gets.
        claimed = await self.spawn(self._claimed(self._claim(order)))
        for row in claimed.runs:
            execution = self._begin(row, claimed, asked)
            if execution is not None and execution.task is not None:
                await asyncio.wait([execution.task])
        return bool(claimed.runs)

    # -- stopping ----------------------------------------------------------------------------------------------

    async def stop(self, timeout: float | None) -> None:
        """Claim no more, let runs finish for `timeout` seconds, then hand back what is left, uncounted."""
        self._stopping = True
        self.running = False
        for timer in (self._tick, self._due, self._again):
            if timer is not None:
                timer.cancel()
        self.shutdown.set("shutdown")
        for execution in self.executing:
            if execution.slot_free and execution.waits_begun is not None and not execution.leaving:
                execution.hand_back()  # it only waits
        await self._drained(timeout)
        left = self.executing
        for execution in left:
            execution.abort("shutdown")
        await asyncio.gather(*[self._release(execution.lease) for execution in left])
        await self._maintenance.left()
        for execution in left:
            if execution.task is not None and execution.job.signature.is_async:
                execution.task.cancel()
        await self._drained(_UNWIND_SECONDS)
        await self.rest()

    async def rest(self) -> None:
        """Let what we started come to its end, but for functions that are stuck: claims, hand-backs, listeners."""
        deadline = self.loop.time() + _UNWIND_SECONDS
        while self.loop.time() < deadline:
            stuck = {asyncio.current_task(), *(execution.task for execution in self.executing)}
            others = self._tasks - stuck
            if not others:
                return
            # A claim that was under way hands back what it got, in a task of its own: look again.
            await asyncio.wait(others, timeout=deadline - self.loop.time(), return_when=asyncio.FIRST_COMPLETED)

    async def _drained(self, timeout: float | None) -> None:
        if not self._executing:
            return
        self._quiet.clear()
        timer = None
        if timeout is not None:
            timer = self.engine.clock.call_later(self.loop, timeout, self._quiet.set)
        try:
            await self._quiet.wait()
        finally:
            if timer is not None:
                timer.cancel()


def _unasked(verb: Any, row: Any) -> Ticket[Any]:
    """A ticket whose failure needs no word: it will be tried again."""
    ticket: Ticket[Any] = Ticket(verb, row)
    ticket._asked = True
    return ticket
