"""Triggering: one run, many at once, or inside a transaction of the caller's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..basis.errors import ConflictError, HoldfastError, StoreUnavailable
from ..basis.values import plain
from ..commit.awaited import AwaitedReply
from ..commit.forks import inside
from ..commit.lent import lent
from ..commit.reply import Reply, answer
from ..commit.ticket import Ticket
from ..model.run import NewRun
from ..store.base import PlayAgain, Triggered, conflict_in, conflict_text
from ..store.lending import AwaitedLender, Lending, Lent, in_savepoint
from ..store.recognised import recognise
from .context import current

if TYPE_CHECKING:
    from .engine import Engine

T = TypeVar("T")

#: So often runs are written into a caller's transaction that met others which were just going away.
_PLAYED = 5


class Triggering:
    """How runs come into the database, from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def one(self, new: NewRun, *, numbered: bool, convert: Callable[[Triggered], T]) -> Ticket[T]:
        """Write a run; the reply is there when it is durable."""
        if numbered:
            new = self._numbered(new)
        ticket = Ticket(
            "trigger",
            self.sealed(new),
            what=f"trigger of {new.job_name}",
            convert=convert,
            then=lambda made: self._made(made, new),
            weight=len(new.input),
        )
        self._join(ticket)
        return ticket

    def many(self, news: Sequence[NewRun], convert: Callable[[list[Triggered]], T]) -> Ticket[T]:
        """Write runs, all or none, in one transaction; the reply is there when they are durable."""
        runs = [self._numbered(new) for new in news]

        def told(made: list[Triggered]) -> None:
            if conflict_in(made) is None:
                for one, new in zip(made, runs, strict=True):
                    self._made(one, new)

        ticket = Ticket(
            "trigger_many",
            tuple(self.sealed(new) for new in runs),
            what=f"trigger of {len(runs)} runs",
            convert=lambda made: convert(whole(made)),
            then=told,
            weight=sum(len(new.input) for new in runs),
            count=len(runs),
        )
        self._join(ticket)
        return ticket

    def inside(self, connection: Any, news: Sequence[NewRun], convert: Callable[[list[Triggered]], T]) -> Reply[T]:
        """Write runs into the transaction that the caller has open: here and now, or when it is awaited.

        They are there for others when the caller commits, and only then: nobody is told before, and nobody knows when.
        """
        engine = self._engine
        if (refusal := engine.refusal()) is not None:
            raise refusal
        runs = [self.sealed(self._numbered(new)) for new in news]
        what = f"trigger of {runs[0].job_name}" if len(runs) == 1 else f"trigger of {len(runs)} runs"
        lender = recognise(connection)
        if isinstance(lender, AwaitedLender):
            return AwaitedReply(what, lambda: self._write_awaited(lender, runs), convert)
        reply: Reply[T] = Reply(what, convert)
        try:
            with inside:
                given = lender.lend()
                made = self._write(lender, given, engine.store.identity(), runs)
            _remember(given, made)
        except HoldfastError:
            raise
        except Exception as error:
            answer([(reply, None, lender.theirs(error) or engine.store.translate(error))])
        else:
            answer([(reply, made, None)])
        return reply

    async def _write_awaited(self, lender: AwaitedLender, runs: list[NewRun]) -> list[Triggered]:
        """The same, over the connection of a loop: this one."""
        store = self._engine.store
        # Over another connection of ours: the loop shall not stand still for it.
        identity = await self._engine.reader.read("database id", lambda _: store.identity(), str)

        def write(given: Lent) -> tuple[Lent, list[Triggered]]:
            with inside:
                return given, self._write(lender, given, identity, runs)

        try:
            given, made = await lender.run(write)
        except Exception as error:
            raise (lender.theirs(error) or store.translate(error)) from error.__cause__
        _remember(given, made)
        return made

    def _write(self, lender: Lending, given: Lent, identity: str, runs: list[NewRun]) -> list[Triggered]:
        store = self._engine.store

        def verb() -> list[Triggered]:
            tx = store.adopt(given, identity)
            (made,) = store.trigger_many(tx, [runs])
            store.announce(tx, made)
            return made

        for left in reversed(range(_PLAYED)):
            try:
                return in_savepoint(given, verb)
            except Exception as error:
                if lender.theirs(error) or not isinstance(store.translate(error), PlayAgain):
                    raise
                if not left:
                    raise StoreUnavailable(
                        "the run that has this key was committed after your transaction began, and is not seen in it. "
                        "Begin it anew."
                    ) from error
        raise AssertionError("not reached")

    def _numbered(self, new: NewRun) -> NewRun:
        """With the key that keeps a replay from triggering again, where this is a run's own code."""
        execution = current.get()
        if new.idempotency_key is not None or execution is None or execution.engine is not self._engine:
            return new
        execution.check()
        return new._replace(idempotency_key=execution.trigger_key(new.job_name, new.input))

    def sealed(self, new: NewRun) -> NewRun:
        """The run as it is written. `StoreUnavailable` if the codec can't."""
        payloads = self._engine.payloads
        return new._replace(input=payloads.seal(new.input), codec=payloads.codec)

    def _join(self, ticket: Ticket[Any]) -> None:
        if (refusal := self._engine.refusal()) is not None:
            answer([(ticket, None, refusal)])
            return
        # A run must not be refused for what the line holds: its own steps wait in it.
        # Inline, a sync job blocks the loop that would hand it over: it is served here and now.
        execution = current.get()
        blocks = execution is not None and not execution.job.signature.is_async
        self._engine.committer.join(ticket, pass_always=execution is not None, at_once=blocks)
        if (worker := self._engine.worker) is not None:
            worker.claim_along()

    def _made(self, made: Triggered, new: NewRun) -> None:
        """In the committing thread, after the commit."""
        hub, worker = self._engine.hub, self._engine.worker
        if made.disposition == "created":
            if hub.hears("run:trigger"):
                hub.tell("run:trigger", made.run, input=plain(new.input))
            if worker is not None:
                worker.wake(made_here=True)
        elif made.disposition == "coalesced" and hub.hears("run:coalesced", made.run.id):
            skipped = made.run._replace(labels=new.labels).label_map
            hub.tell("run:coalesced", made.run, skipped_input=plain(new.input), skipped_labels=skipped)


def _remember(given: Lent, made: list[Triggered]) -> None:
    """This thread, or task, has a transaction open with these runs."""
    lent.add(given, [one.run.id for one in made if one.disposition == "created"])


def whole(made: list[Triggered]) -> list[Triggered]:
    """The answers of a batch; `ConflictError` if one of it was refused, so that none was written."""
    if (refused := conflict_in(made)) is not None:
        raise ConflictError(f"calls[{refused}]: {conflict_text(made[refused].run)}")
    return made
