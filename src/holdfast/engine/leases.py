"""Keeping leases: renewing those of the runs that execute here, and stopping those that were lost.

A worker believes in its lease only from the moment it *asked* for it, by its own clock: the answer may have been long
on its way. When that time is over, nothing new begins, whatever the database would say.

Renewal has a thread of its own, so that a blocked event loop loses no leases. On SQLite its renewals join the line,
where they overtake everything else; only if the line has not moved for a sixth of the lease does the thread commit by
itself, over a connection of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from ..basis.clock import Clock
from ..basis.errors import StoreError
from ..commit.committer import Committer
from ..commit.forks import inside
from ..commit.ticket import Ticket
from ..model.options import Options
from ..store.base import Lease, Renewal
from .hub import Hub


class Holder(Protocol):
    """Something that executes under a lease."""

    lease: Lease
    deadline: float
    """`clock.steady()` at which the lease is over."""

    def is_left(self) -> bool:
        """Whether nobody will ever execute it to its end: its event loop was closed."""
        ...

    def lease_renewed(self) -> None: ...

    def lease_lost(self, status: str | None) -> None:
        """Stop: the lease is over. `status` is what the run is now, if that is known."""


class LeaseKeeper:
    """Renews the leases of this process."""

    def __init__(self, committer: Committer, hub: Hub, clock: Clock, options: Options) -> None:
        self._committer = committer
        self._hub = hub
        self._clock = clock
        self._options = options
        self._duration = round(options.lease * 1_000_000)
        self.on_look: Callable[[], None] = _nothing
        """Called in the keeper's thread, some six times within a lease."""
        self.taken: int = 0
        """How many leases were taken here so far."""
        self.reset()

    def reset(self) -> None:
        """Hold nothing (also in the child of a fork)."""
        self._holders: dict[str, Holder] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._own: Any = None
        self._next_renewal = float("inf")

    def reset_after_fork(self) -> None:
        """In the child: the leases, the thread and the connection are the parent's."""
        # Kept, not closed: closing the parent's connection in the child may harm the parent's locks.
        _parents.append(self._own)
        self.reset()

    # -- holding -----------------------------------------------------------------------------------------------

    def hold(self, holder: Holder) -> None:
        self.taken += 1
        self._holders[holder.lease.run_id] = holder

    def release(self, holder: Holder) -> None:
        if self._holders.get(holder.lease.run_id) is holder:
            del self._holders[holder.lease.run_id]

    def drop_all(self) -> None:
        """Renew nothing of what is held now."""
        self._holders = {}

    def holder(self, run_id: str) -> Holder | None:
        """Who executes this run here."""
        return self._holders.get(run_id)

    @property
    def held(self) -> list[Holder]:
        return list(self._holders.values())

    # -- renewing ----------------------------------------------------------------------------------------------

    def renewals(self) -> list[Ticket[bool]]:
        """Tickets that renew every lease that is still ours. Their answers are acted upon by themselves."""
        asked = self._clock.steady()
        # Not one that is over by our own clock: it is about to be dropped, and must be free to be taken.
        return [self._renewal(holder, asked) for holder in self.held if asked < holder.deadline]

    def _renewal(self, holder: Holder, asked: float) -> Ticket[bool]:
        def then(renewed: bool) -> None:
            self._renewed(holder, asked, renewed)

        ticket: Ticket[bool] = Ticket("renew_leases", Renewal(holder.lease, self._duration), then=then)
        ticket._asked = True  # a renewal that fails is tried again, and reported by whoever waits for it
        return ticket

    def _renewed(self, holder: Holder, asked: float, renewed: bool) -> None:
        if self._holders.get(holder.lease.run_id) is not holder:
            return  # it ended meanwhile
        if renewed:
            holder.deadline = max(holder.deadline, asked + self._options.lease)
            holder.lease_renewed()
        else:
            holder.lease_lost(None)

    def start(self) -> None:
        """Renew from now on, on a thread of the keeper's own."""
        if self._options.inline or (self._thread is not None and self._thread.is_alive()):
            return
        self._stopping = False
        self._wake.clear()
        self._thread = threading.Thread(target=self._keep, name="holdfast-leases", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Renew no more; the leases that are still held run out."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def is_on_time(self) -> bool:
        """Whether no renewal is due that has not begun: its thread may be kept waiting by a busy event loop."""
        return self._clock.steady() < self._next_renewal

    def _keep(self) -> None:
        self._next_renewal = self._clock.steady() + self._options.lease_renew_interval
        try:
            while not self._stopping:
                pause = min(self._next_renewal - self._clock.steady(), self._options.lease / 6)
                if pause > 0:
                    self._clock.wait(self._wake, pause)
                if self._stopping:
                    return
                try:
                    self.drop_expired()
                    self.on_look()
                    if self._clock.steady() >= self._next_renewal:
                        # Late as long as it has not come to its end.
                        due = self._clock.steady() + self._options.lease_renew_interval
                        try:
                            self._renew()
                        finally:
                            self._next_renewal = due
                except Exception as error:  # the leases of all runs hang on this thread
                    self._hub.report(error, "lease-renewal")
        finally:
            self._next_renewal = float("inf")

    def drop_expired(self) -> None:
        """Stop what executes under a lease that is over by our own clock, or can't come to its end."""
        now = self._clock.steady()
        for holder in self.held:
            if now >= holder.deadline or holder.is_left():
                self.release(holder)
                holder.lease_lost(None)

    def _renew(self) -> None:
        asked = self._clock.steady()
        tickets = self.renewals()
        if not tickets:
            return
        self._committer.join(*tickets, pass_always=True)
        answered = threading.Event()
        tickets[-1].when_done(answered.set)  # all share a round
        if not self._clock.wait(answered, self._options.lease / 6):
            if self._committer.last_round_at < asked:
                self._renew_alone(asked)
        elif isinstance(error := tickets[-1]._error, StoreError) and not self._stopping:
            self._hub.report(error, "lease-renewal")

    def _renew_alone(self, asked: float) -> None:
        store = self._committer.store
        holders = self.held
        try:
            with inside:
                renewed = self._renew_beside([Renewal(holder.lease, self._duration) for holder in holders])
        except Exception as error:
            self._hub.report(store.translate(error), "lease-renewal")
            return
        for holder, kept in zip(holders, renewed, strict=True):
            self._renewed(holder, asked, kept)

    def _renew_beside(self, renewals: list[Renewal]) -> list[bool]:
        store = self._committer.store
        own = self._own = store.connect()
        try:
            tx = store.begin(own)
            try:
                renewed = store.renew_leases(tx, renewals)
                store.commit(tx)
            except BaseException:
                store.rollback(tx)
                raise
            return renewed
        finally:
            # Not kept: where no more are to be had the line needs it, or nothing would go on, under leases that last.
            self._own = None
            store.disconnect(own)


_parents: list[Any] = []


def _nothing() -> None:
    return


class Judge:
    """Decides when leases may be judged by the clock at all.

    If the wall clock of this machine jumps against the clock that counts real seconds, leases look older or younger
    than they are: for the length of one lease nobody is declared dead by it.
    """

    def __init__(self, clock: Clock, lease: float) -> None:
        self._clock = clock
        self._lease = lease
        self._suspended_until = 0.0
        self._offset = self._read()[1]

    def _read(self) -> tuple[float, float]:
        """The steady time, and how far the wall clock is from it."""
        while True:
            before, wall, now = self._clock.steady(), self._clock.now(), self._clock.steady()
            # Whoever is stopped between two readings would take the time that passed for a jump.
            if now - before < self._lease / 6:
                return now, wall / 1e6 - now

    def may_judge(self) -> bool:
        now, offset = self._read()
        if abs(offset - self._offset) > self._lease / 3:
            self._suspended_until = now + self._lease
        self._offset = offset
        return now >= self._suspended_until
