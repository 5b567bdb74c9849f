"""One simulated process: the real app, whose loop, commit line, reader and watcher are turned by the scheduler.

Nothing of the engine is replaced but what waits: a round of the commit line begins some time after it was asked for,
may stand still, and is announced some time after its COMMIT; a read is answered some time after it was asked.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sim_loop import EPOCH, SECOND, Aside, Lane, SimLoop
from sim_store import SimStore
from sim_work import JOBS

from holdfast import Holdfast
from holdfast.basis.errors import StoreClosed, StoreError
from holdfast.basis.ids import Ids
from holdfast.commit.committer import Committer
from holdfast.commit.reader import Question, Reader
from holdfast.commit.reply import Answer, Reply, answer, no_waiting
from holdfast.commit.round import Rounds
from holdfast.engine.leases import LeaseKeeper

if TYPE_CHECKING:
    from simulation import World


#: How often a wait looks whether its event has been set: nobody announces it.
_LOOKS = 3


class SimClock:
    """The clock of one process: its wall clock may go wrong; the database has a clock of its own."""

    def __init__(self, world: World, skew: int = 0, base: float = 0.0) -> None:
        self._scheduler = world.scheduler
        self._world = world
        self._skew = EPOCH + skew
        self.lane = world.control
        self._base = base

    def now(self) -> int:
        return self._scheduler.now + self._skew + self._world.jumped

    def steady(self) -> float:
        return self._scheduler.now / SECOND + self._base

    def call_later(self, loop: Any, seconds: float, call: Callable[[], object]) -> Any:
        return loop.call_later(seconds, call)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Only the thread of the leases waits, which runs aside."""
        for _ in range(_LOOKS):
            if event.is_set():
                return True
            self._scheduler.stall(round(seconds * SECOND / _LOOKS) + 1, self.lane)
        return event.is_set()


_gathering: dict[int, list[Callable[[], object]]] = {}


def held_back(answers: Iterable[Answer]) -> None:
    """`answer`, within a round: what is to be said is said when the time has come."""
    gathered = _gathering.get(threading.get_ident())
    if gathered is None:
        answer(answers)
    else:
        gathered.append(functools.partial(answer, list(answers)))


class SimRounds(Rounds):
    """Rounds whose outcomes are announced later."""

    def _announce(self, answers: list[Answer]) -> None:
        gathered = _gathering.get(threading.get_ident())
        if gathered is None:
            super()._announce(answers)
        else:
            gathered.append(functools.partial(self._announce, answers))


class SimCommitter(Committer):
    """A commit line whose thread is the scheduler's: a round takes time."""

    store: SimStore

    def _reset(self) -> None:
        super()._reset()
        self._rounds = SimRounds(self.store, self.clock)
        self._scheduled = False
        self._to_say: list[Callable[[], object]] = []
        self._aside: Aside | None = None

    def _serve_inline(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            world, process = self.store.world, self.store.process
            world.scheduler.after(world.faults.delay(), process.threads, self._begin_round)

    def _begin_round(self) -> None:
        with self._door:
            self._end_round()
            if not self._take():
                self._scheduled = False
                return
        world, process = self.store.world, self.store.process
        process.stalls = world.faults.stalls()
        world.story.rounds += 1
        if process.stalls or world.lock.holder is not None:
            thread = world.scheduler.aside(self._serve_round)
            self._aside = None if thread.over else thread
        else:
            self._serve_round()

    def _serve_round(self) -> None:
        me, said = threading.get_ident(), list[Callable[[], object]]()
        _gathering[me] = self._to_say = said
        try:
            with no_waiting("the committing thread"):
                self._rounds.serve(self._serving)
        finally:
            del _gathering[me]
        world, process = self.store.world, self.store.process
        process.stalls = {}
        self._aside = None  # others may have that thread from now on
        world.scheduler.after(world.faults.delay(), process.threads, self._announce_round, said)

    def _announce_round(self, said: list[Callable[[], object]]) -> None:
        if said is self._to_say:  # else it was said already, when the line was closed
            self._say()
            self._begin_round()

    def _say(self) -> None:
        said, self._to_say = self._to_say, []
        for say in said:
            say()

    def close(self) -> Reply[None]:
        """In no time: what is in the line is served, or refused where somebody else writes."""
        if self.store.process.is_dead:
            return self._closed
        for desk in self._waiting_desks.copy():
            self._receive(desk)
        self._closing = True
        process = self.store.process
        process.stalls, process.in_a_hurry = {}, True
        while self._aside is not None:
            self.store.world.scheduler.go_on(self._aside)
        self._say()
        with self._door:
            self._end_round()
            while self._take():
                said = list[Callable[[], object]]()
                _gathering[threading.get_ident()] = self._to_say = said
                self._rounds.serve(self._serving)
                del _gathering[threading.get_ident()]
                self._say()
                self._end_round()
        process.in_a_hurry = False
        self._rounds.disconnect()
        self._scheduled = False
        return self._closed

    def crash(self) -> None:
        """Nobody shall wait for it at the end of the real process."""
        self._outstanding = 0
        self._waiting_desks.clear()
        self._line.clear()
        self._urgent.clear()
        if self._aside is not None:
            self.store.world.scheduler.end(self._aside)


class SimReader(Reader):
    """A reader that takes its time."""

    store: SimStore

    def ask(self, question: Question, reply: Reply[Any]) -> None:
        world, process = self.store.world, self.store.process
        world.scheduler.after(world.faults.delay(), process.threads, self._look, question, reply)

    def _look(self, question: Question, reply: Reply[Any]) -> None:
        if self._closing:
            answer([(reply, None, StoreClosed())])
            return
        world, process = self.store.world, self.store.process
        found: Reply[Any] = Reply("found")
        found._asked = True
        with no_waiting("the reading thread"):
            self._answer([(question, found)])
        said = [(reply, found._value, found._error)]
        world.scheduler.after(world.faults.delay() // 4, process.threads, answer, said)


class Process:
    """One incarnation: from its start to its crash."""

    def __init__(self, world: World, place: int, number: int) -> None:
        self.world = world
        self.place = place
        self.name = f"p{place}.{number}"
        self.is_dead = False
        self.in_a_hurry = False
        self.is_stopping = False
        self.stalls: dict[str, int] = {}
        self.paused = 0
        self.calls: dict[Any, Any] = {}
        """What clients have asked here and wait for: the task, and whom to tell that nobody will ever answer."""
        self.threads = Lane(None)
        self.loop = SimLoop(world.scheduler)
        self.clock = SimClock(world, world.skews[place], 1000.0 * place)
        self.clock.lane = self.threads
        self.store = SimStore(world, self)
        options = world.options
        self.app = Holdfast(
            self.store, jobs=JOBS, clock=self.clock, inline=True, concurrency=options.concurrency,
            lease=options.lease / SECOND, polling_interval=options.polling / SECOND, max_crashes=options.max_crashes,
            preserve_steps=True, strict=True, cancel_grace=1.0,
        )  # fmt: skip
        engine = self.app._engine
        engine.chance = world.ids.random
        engine.ids = Ids(self.clock.now, world.ids.getrandbits)
        engine.identity = engine.ids.new()
        self.owner = engine.identity
        world.owners[engine.identity] = self
        world.scheduler.lanes += (self.loop.lane, self.threads)
        self._looking = False
        self._watching: Any = None
        self._keeping: Aside | None = None
        self.starting = self.loop.create_task(self._start())

    async def _start(self) -> None:
        await self.app.start()
        if self.world.options.keeper:
            # As where there are threads: one renews, also while the loop is blocked, over a connection of its own if
            # the line stands still.
            keeper = self.app._engine.keeper
            keeper._stopping = False
            self.world.scheduler.after(0, self.threads, self._keep, keeper)

    def _keep(self, keeper: LeaseKeeper) -> None:
        def keep() -> None:
            try:
                keeper._keep()
            finally:
                self._keeping = None  # others may have that thread from now on

        thread = self.world.scheduler.aside(keep)
        self._keeping = None if thread.over else thread

    # -- watching ----------------------------------------------------------------------------------------------

    def somebody_committed(self) -> None:
        """Another process did: the watcher will see it, some time later, if the notice is not lost."""
        if not self._looking and not self.world.faults.strikes("unwatched"):
            self._looking = True
            self.world.scheduler.after(20_000 + self.world.faults.delay() * 4, self.threads, self._look)

    def _look(self) -> None:
        self._looking = False
        watcher = self.app._engine.watcher
        try:
            if self._watching is None:
                self._watching = self.store.connect(read_only=True)
            watcher._again = False
            watcher.look(self._watching)
        except StoreError:
            return  # seen at the next change, or by polling
        if watcher._again:
            self.somebody_committed()

    # -- faults ------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Now. Nothing of it is ever executed again."""
        self.is_dead = True
        world = self.world
        for lane in (self.loop.lane, self.threads):
            lane.closed = True
            lane.ready.clear()
            world.scheduler.lanes.remove(lane)
        committer = self.app._engine.committer
        assert isinstance(committer, SimCommitter)
        committer.crash()
        if self._keeping is not None:
            world.scheduler.end(self._keeping)
        self.store.crash()
        for told in list(self.calls.values()):
            told()
        self.calls.clear()

    def pause(self, micros: int, *, only_the_loop: bool = False) -> None:
        """Not scheduled for so long; or only the event loop, which a job blocks, while the threads go on."""
        self.paused += 1
        lanes = [self.loop.lane] if only_the_loop else [self.loop.lane, self.threads]
        for lane in lanes:
            lane.stopped = True

        def go_on() -> None:
            for lane in lanes:
                lane.stopped = False
            self.paused -= 1

        self.world.later(micros, go_on)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way here."""
        engine = self.app._engine
        worker = engine.worker
        return not (
            self.paused or self.loop.lane.ready or engine.committer.backlog or (worker is not None and worker.executing)
        )
