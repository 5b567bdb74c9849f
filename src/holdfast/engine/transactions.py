"""One try of `step.transaction`: the user's rows and the checkpoint, in one transaction.

All of it happens in one thread and without a look at any event loop, because the write lock is held meanwhile:

    begin               on a connection of its own; on SQLite in turn with the commit line
    is the lease ours?  otherwise nothing is called
    fn(connection)      the user's; bounded. Undone for somebody else's sake: all of it begins anew, a few times
    take it back        from here on nothing of the user's reaches the connection
    encode              what fails here, or above, undoes the user's rows: it is a failed step like any other
    lock                among several writers the row of the run, only now: the rounds of everybody go on until here
    save_steps          fenced, with the log lines and the tries of the step; refused: undone, the lease is lost
    COMMIT              without an answer: the step is looked for on a new connection. It is there with our
                        generation, or nothing has happened and all of it begins anew

Where the database has one writer, the function may take a third of the lease: nobody renews meanwhile. Then it is
undone under the function's hands, by another thread, for the function may be anywhere. All leases of this process are
renewed in the same transaction. (Inline there is no other thread: the time is looked at when the function returns.)

Long because it is one order of events, and what may go wrong at each of them.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..basis.errors import DefinitionError, HoldfastError, SchemaError, StoreClosed, StoreUnavailable
from ..commit.forks import inside
from ..commit.reply import Answer, Reply, answer, no_waiting
from ..commit.round import announce
from ..commit.ticket import ORDER, Ticket
from ..model.step import StepKey, StepRow
from ..store.base import PlayAgain, SharedTransaction, StepMark, StepSave, Tx
from .attempts import Attempt
from .context import Beside, Unwind, beside
from .signals import AbortSignal

if TYPE_CHECKING:
    from .calls import Callee
    from .steps import Steps, _Opened, _Result

#: Seconds until the next look at a database in trouble, doubled up to the last.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0

#: So often it is played again because the database undid it: for somebody else's sake, or so it says.
_PLAYED_AGAIN = 10

#: The database itself: it says nothing about what was to be saved.
_TROUBLE = (StoreUnavailable, StoreClosed, SchemaError)


class _Failed(Exception):
    """The function has failed, or what it returned can't be saved: its rows must go."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _NoAnswer(Exception):
    """COMMIT failed: it may or may not have happened."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def refuse_async(key: StepKey, known: Callee) -> None:
    """`DefinitionError` for a function that would have to be awaited."""
    if known.is_async:
        raise _no_plain_function(key, known)


def _no_plain_function(key: StepKey, known: Callee) -> DefinitionError:
    return DefinitionError(
        f"step.transaction({key.name!r}): {known.name} is no plain function. It is called in a thread, with a "
        "transaction open: write it with `def` and return a value, and await what it needs in a step before it."
    )


def _nothing() -> None:
    return


class Transaction:
    """One call of the function, with what comes before and after it."""

    def __init__(
        self, steps: Steps, opened: _Opened, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._steps = steps
        self._execution = steps._execution
        self._engine = self._execution.engine
        self._store = self._engine.store
        self._opened = opened
        self._attempt = attempt
        self._call = args, kwargs
        self._signal = AbortSignal()
        self._door = threading.Lock()
        self._shared: SharedTransaction | None = None
        """As long as the function has it."""
        self._give_turn: Callable[[], None] = _nothing
        self._stopped: Exception | None = None
        """Why it was undone under the function's hands, or shall not begin."""
        self._played = 0
        self._returned = threading.Event()
        self._over: Reply[None] = Reply("transaction")
        self._reply: Reply[_Result] = Reply(f"step {str(opened.key)!r}")
        self._reply._asked = True
        self._beside = Beside(str(opened.key))

    # -- for those who wait ------------------------------------------------------------------------------------

    async def result(self) -> _Result:
        """What the step came to: committed if it is a success."""
        self._execution.notes.before_a_thread()
        self._begin()
        try:
            return await self._reply
        except asyncio.CancelledError:
            # Nobody waits for it any more, as if the function were awaited; a commit that has begun is not undone.
            self._engine.threads.call(self._stop, RuntimeError("nobody waits for this transaction any more"))
            raise

    def result_sync(self) -> _Result:
        """The same, blocking."""
        self._begin()
        return self._reply.wait()

    def _begin(self) -> None:
        if self._engine.options.inline:
            self._main()
        else:
            self._engine.threads.call(self._main)

    # -- in the thread of the call -----------------------------------------------------------------------------

    def _main(self) -> None:
        token = beside.set(self._beside)
        follows = self._execution.signal.on_abort(self._signal.set)
        try:
            result = self._result()
        except BaseException as error:
            answer([(self._reply, None, error)])
        else:
            answer([(self._reply, result, None)])
        finally:
            follows()
            beside.reset(token)
            answer([(self._over, None, None)])

    def _result(self) -> _Result:
        """Tried for as long as it takes, or until the lease is over: a database in trouble is no failure."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._once()
            except StoreUnavailable as error:
                self._give_back(self._beside)
                self._beside = Beside(self._beside.step)
                beside.set(self._beside)
                # Another one than before: if that is committed after all, by a server that was late, it stands in the
                # way of this one, and is not taken for it.
                began = self._opened.started_at
                self._opened = self._opened._replace(started_at=max(self._engine.clock.now(), began + 1))
                if isinstance(error, PlayAgain):
                    self._execution.check()
                else:
                    self._execution.refused_for_now(error)
            self._execution.signal.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _give_back(self, lines: Beside) -> None:
        """What was logged is kept, whatever came of the transaction."""
        if left := lines.end():
            self._engine.committer.join(*left, pass_always=True, at_once=True)

    def _once(self) -> _Result:
        self._execution.notes.settle()
        self._returned = threading.Event()
        kept: tuple[_Result, list[Ticket[Any]], list[Answer]] | None = None
        failed: Exception | None = None
        unanswered: Exception | None = None
        with self._engine.committer.aside() as give_turn, inside:
            # Nobody else can renew as long as this is open. Asked for before it begins: that is when they count from.
            renewals = [] if self._store.locks else self._engine.keeper.renewals()
            shared = self._share()
            try:
                kept = self._written(shared, renewals, give_turn)
                if kept[0].is_saved:
                    self._commit(shared)
            except _Failed as error:
                failed = error.error
            except _NoAnswer as error:
                unanswered = self._meant(error.error)
            finally:
                shared.close()
        if failed is not None:
            self._give_back(self._beside)
            return self._steps._failed(self._opened, failed)
        assert kept is not None
        result, tickets, answers = kept
        if not result.is_saved:
            self._give_back(self._beside)
            return result
        if unanswered is not None and not self._is_there(result.row):
            return self._not_there(tickets, unanswered)
        announce(answers)
        return result

    def _meant(self, error: Exception) -> Exception:
        meant = self._store.translate(error)
        return meant if isinstance(meant, Exception) else error

    def _share(self) -> SharedTransaction:
        try:
            return self._store.share()
        except HoldfastError:
            raise
        except Exception as error:
            raise self._meant(error) from error

    def _written(
        self, shared: SharedTransaction, renewals: Sequence[Ticket[Any]], give_turn: Callable[[], None]
    ) -> tuple[_Result, list[Ticket[Any]], list[Answer]]:
        """The result says `is_saved` if all is written, and to be committed; else it is a failure to be undone."""
        execution, tx = self._execution, shared.tx
        execution.check()
        lost = self._asked(lambda: self._store.lost_leases(tx.connection, [execution.lease]))
        if lost:
            execution.lease_lost(lost[execution.lease])
            raise Unwind
        value = self._value(shared, give_turn)
        result = self._steps._succeeded(self._opened, value)
        if result.error is not None:
            return result, [], []
        tickets = self._steps._saving(result, self._attempt)
        saving = tickets[-1]
        tickets = [*renewals, *self._beside.end(), *tickets]
        answers = self._asked(lambda: self._write(tx, tickets))
        if not next(value for ticket, value, _ in answers if ticket is saving):
            self._steps._saved(result, False)
            raise Unwind
        return result._replace(is_saved=True), tickets, answers

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """What the database says to us; its errors in our words. They are no failure of the function's."""
        try:
            return ask()
        except Exception as error:
            meant = self._meant(error)
            if isinstance(meant, PlayAgain) and not self._once_more():
                raise _Failed(meant) from error
            raise (meant if isinstance(meant, _TROUBLE) else _Failed(meant)) from error

    def _once_more(self) -> bool:
        """Whether what the database undid is played again."""
        self._played += 1
        return self._played <= _PLAYED_AGAIN

    def _of_the_function(self, shared: SharedTransaction, error: Exception) -> Exception:
        """What is to be raised for an error of the function's: it failed, unless that was nothing it could help."""
        excuse = error if isinstance(error, PlayAgain) else shared.excuse(error)
        return excuse if excuse is not None and self._once_more() else _Failed(error)

    def _write(self, tx: Tx, tickets: Sequence[Ticket[Any]]) -> list[Answer]:
        answers: list[Answer] = []
        by_verb = {verb: [ticket for ticket in tickets if ticket.verb == verb] for verb in ORDER}
        if self._store.locks:
            self._store.lock(tx, {verb: [ticket.row for ticket in group] for verb, group in by_verb.items() if group})
        for verb, group in by_verb.items():
            if group:
                values = getattr(self._store, verb)(tx, [ticket.row for ticket in group])
                answers.extend([(ticket, value, None) for ticket, value in zip(group, values, strict=True)])
        return answers

    def _commit(self, shared: SharedTransaction) -> None:
        try:
            shared.commit()
        except DefinitionError as error:
            raise _Failed(error) from error
        except Exception as error:
            raise _NoAnswer(error) from error

    # -- the function ------------------------------------------------------------------------------------------

    @property
    def _limit(self) -> float | None:
        """Seconds that the function may take."""
        longest = None if self._store.locks else self._engine.options.lease / 3
        limits = [limit for limit in (self._opened.how.timeout, longest) if limit is not None]
        return min(limits, default=None)

    def _too_long(self) -> Exception:
        limit, step = self._limit, f"step {str(self._opened.key)!r}"
        if limit == self._opened.how.timeout:
            return TimeoutError(f"{step} took longer than {limit:g} s; what it wrote was undone")
        return TimeoutError(
            f"{step}: step.transaction took longer than {limit:g} s, a third of the lease. Nobody else can write then. "
            "What it wrote was undone. Do what is slow in a step before it, write in several transactions, or give the "
            "app a longer lease"
        )

    def _value(self, shared: SharedTransaction, give_turn: Callable[[], None]) -> Any:
        clock, limit = self._engine.clock, self._limit
        args, kwargs = self._call
        if self._opened.known.wants_signal and "signal" not in kwargs:
            kwargs = {**kwargs, "signal": self._signal}
        with self._door:
            if self._stopped is not None:
                raise _Failed(self._stopped)
            self._shared, self._give_turn = shared, give_turn
        began = clock.steady()
        if limit is not None and not self._engine.options.inline:
            self._engine.threads.call(self._watch, began + limit, self._returned)
        try:
            with no_waiting("the function of step.transaction"):
                value = self._opened.fn(shared.connection, *args, **kwargs)
        except BaseException as error:
            self._has_returned()
            if not isinstance(error, Exception):
                raise
            raise self._of_the_function(shared, error) from error
        self._has_returned()
        if limit is not None and clock.steady() - began > limit:
            raise _Failed(self._too_long())
        try:
            shared.take_back()
            if hasattr(type(value), "__await__"):
                if inspect.iscoroutine(value):
                    value.close()
                raise _no_plain_function(self._opened.key, self._opened.known)
        except Exception as error:
            raise self._of_the_function(shared, error) from error
        return value

    def _has_returned(self) -> None:
        """The function is done: it has made it, if nobody has said before that it takes too long."""
        with self._door:
            self._shared = None
            self._returned.set()
        if self._stopped is not None:
            raise _Failed(self._stopped)

    def _stop(self, error: Exception) -> bool:
        """Undo it under the function's hands; False if the function has returned, so that its result counts."""
        with self._door:
            if self._stopped is not None or self._returned.is_set():
                return False
            self._stopped = error
            if self._shared is not None:
                # Within: who has it must not close it meanwhile.
                self._shared.stop()
                self._give_turn()
        return True

    def _watch(self, until: float, returned: threading.Event) -> None:
        """In another thread, as long as the function is called."""
        clock = self._engine.clock
        if clock.wait(returned, max(until - clock.steady(), 0)) or not self._stop(error := self._too_long()):
            return
        until = clock.steady() + self._engine.options.cancel_grace
        self._attempt.told = True
        self._signal.set("timeout")
        if not clock.wait(returned, max(until - clock.steady(), 0)):
            self._leave(error)

    def _leave(self, error: Exception) -> None:
        """Nothing can end a thread: the run goes on without it."""
        self._attempt.left = True
        worker, execution = self._execution.worker, self._execution
        text = f"Step {str(self._attempt.key)!r} of run {execution.row.id} was told to stop (timeout) and did not"

        async def come_back() -> None:
            await self._over

        worker.in_loop(lambda: worker.leave_behind(worker.spawn(come_back()), text, execution))
        try:
            result = self._steps._failed(self._opened, error)
        except BaseException as unwound:
            answer([(self._reply, None, unwound)])
        else:
            answer([(self._reply, result, None)])

    # -- a commit without an answer ----------------------------------------------------------------------------

    def _is_there(self, row: StepRow) -> bool:
        """Whether the step stands as we have written it: then all of the transaction does."""
        pause = _FIRST_PAUSE
        while True:
            try:
                with self._engine.committer.aside(), inside:
                    found = self._read_back(row)
                return any(one.status == row.status and one.started_at == row.started_at for one in found)
            except Exception as error:
                meant = self._meant(error)
                if not isinstance(meant, StoreUnavailable):
                    raise meant from error
                self._execution.refused_for_now(meant)
            self._execution.signal.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _read_back(self, row: StepRow) -> list[StepRow]:
        """In a write transaction: it waits for one that is still under way, and is as durable as any."""
        store, mark = self._store, StepMark(row.run_id, row.name, row.occurrence, row.position, row.generation)
        connection = store.open()
        try:
            tx = store.begin(connection)
            tx.replay = True
            try:
                if store.locks:
                    store.lock(tx, {"save_steps": [StepSave(self._execution.lease.owner, row)]})
                found = store.marked_steps(connection, [mark])
                store.commit(tx)
            except BaseException:
                store.rollback(tx)
                raise
            return found
        finally:
            store.disconnect(connection)

    def _not_there(self, tickets: Sequence[Ticket[Any]], error: Exception) -> _Result:
        """Nothing has happened. Of what went along, the lines have no other way."""
        if lines := [ticket for ticket in tickets if ticket.verb == "save_logs"]:
            self._engine.committer.join(*lines, pass_always=True, at_once=True)
        if isinstance(error, _TROUBLE):
            raise error
        return self._steps._failed(self._opened, error)
