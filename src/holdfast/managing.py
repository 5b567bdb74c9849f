"""Managing: the verbs of an app that write: they trigger runs, and end them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar, overload

from pydantic_core import to_json

from .basis.clock import from_datetime
from .basis.durations import Duration, micros
from .basis.errors import ConflictError, NotFoundError, Outdated, ValidationError
from .basis.text import fit, shown
from .commit.reply import Reply, answer, answered, hand_on
from .commit.ticket import Ticket
from .engine.arguments import checked_count, checked_statuses, checked_text, several
from .engine.call import Call, TriggerOptions, of_tenant
from .engine.compose import OURS, WAKE, Asleep
from .engine.context import current
from .engine.family import written
from .engine.registry import JobDefinition, checked_key, checked_labels
from .engine.triggering import whole
from .engine.validation import encode_input
from .engine.wait_kinds import sent_text
from .job import Job, SleepingJob, check_size
from .model.run import NewRun, RunFilter, RunRow
from .model.wait import NewSignal
from .run import Run, result
from .store.base import Old, Triggered
from .watching import Statuses, Watching

R = TypeVar("R")


#: That nothing was given, where None may be.
_NOTHING: Any = object()


class Managing(Watching):
    """What an app does with runs."""

    def _add(self, job: JobDefinition) -> JobDefinition:
        """Register it."""
        raise NotImplementedError

    # -- triggering --------------------------------------------------------------------------------------------

    def trigger(self, call: Call[R], *, connection: Any = None) -> Reply[Run[R]]:
        """Write a run of the call; the reply is there when the run is durable.

        With `connection`, one of yours to the app's database with a transaction open on it, the run is part of that
        transaction: it is there if and only if you commit. See `Job.options`.
        """
        self._check(call, "trigger")
        return self._trigger(call, connection)

    def trigger_many(self, calls: Iterable[Call[Any]], *, connection: Any = None) -> Reply[list[Run[Any]]]:
        """Write a run of each call, in one transaction: all of them, or none. The runs, in the order of the calls.

        The reply is there when they are durable. `ValidationError` in the call itself, naming the index, before
        anything is written; `ConflictError` if the concurrency key of one is taken. An idempotency key, or `coalesce`,
        leads to the run that is there, which may be one of the same batch. `connection`: as for `trigger`.
        """
        listed = several(calls, (Call,), "calls")
        news = []
        for index, call in enumerate(listed):
            try:
                self._check(call, "trigger_many")
                news.append(self._new_run(call))
            except ValidationError as error:
                raise type(error)(f"calls[{index}]: {error.message}") from error
            except NotFoundError as error:
                raise NotFoundError(f"calls[{index}]: {error.message}") from error

        def convert(made: list[Triggered]) -> list[Run[Any]]:
            return [self._made(call, one) for call, one in zip(listed, whole(made), strict=True)]

        if not listed:
            return answered([], "trigger of no runs")
        if connection is not None:
            return self._engine.triggers.inside(connection, news, convert)
        return self._engine.triggers.many(news, convert)

    def _standing(self, calls: Sequence[Call[Any]]) -> Reply[list[Run[Any] | None]]:
        """The run that each of these would lead to now by one of its keys, without writing; None: there is none."""
        store, news = self._engine.store, [call.new_run("", {}) for call in calls]

        def convert(found: list[Triggered | None]) -> list[Run[Any] | None]:
            leads = [one is not None and one.disposition != "conflict" for one in found]
            return [self._seen(one.run) if led and one else None for led, one in zip(leads, found, strict=True)]

        return self._engine.reader.read("find_standing", lambda c: store.find_standing(c, news), convert)

    def _check(self, call: Call[Any], verb: str) -> None:
        given: object = call
        if not isinstance(given, Call):
            raise ValidationError(f"{verb}: {shown(call)} is not a call. Write app.{verb}(job.bind(…)).")
        # What is not registered here nobody may ever execute.
        self._engine.registry.need(call.job_name)
        self._check_size(call.input)

    def retrigger(self, run_id: str, *, idempotency_key: str | None = None) -> Reply[Run[Any]]:
        """A fresh run with the input of an ended one, which is checked again.

        It has the same labels, queue, priority and concurrency key. Its idempotency key is the one given here, if any:
        then asking twice makes one run. `NotFoundError` if there is
        no such run or job, `ConflictError` if it has not ended or if a run of its concurrency key waits to start,
        `ValidationError` if today's code refuses the input, or today's `labels_schema` the labels.
        """
        return self._retrigger(run_id, checked_key(idempotency_key, "idempotency_key"), "")

    def _retrigger(self, run_id: str, key: str | None, tenant: str) -> Reply[Run[Any]]:
        """The same for somebody of this tenant, whose the fresh run is if the old one has none."""
        engine = self._engine
        checked_text(run_id, "run id")
        reply: Reply[Run[Any]] = Reply(f"retrigger of {run_id}")
        read: Reply[list[RunRow]] = Reply("find_runs")
        read._asked = True

        def again() -> None:
            try:
                if read._error is not None:
                    raise read._error
                written = self._trigger_again(run_id, read._value, key, tenant)
            except BaseException as error:  # whatever the user's code raises, nobody waits for ever
                answer([(reply, None, error)])
            else:
                written._asked = True
                hand_on(written, reply)

        def found() -> None:
            # The user's validators and codecs take their time: not in the reading thread.
            if engine.options.inline:
                again()
            else:
                engine.threads.call(again)

        engine.reader.ask(lambda c: engine.store.find_runs(c, RunFilter(ids=(run_id,))), read)
        if not read._subscribe(found):
            found()
        return reply

    def _trigger_again(self, run_id: str, rows: list[RunRow], key: str | None, tenant: str) -> Ticket[Run[Any]]:
        if not rows:
            raise NotFoundError(f"Run not found: {run_id}")
        row = rows[0]
        if row.completed_at is None:
            raise ConflictError(f"Cannot retrigger {row.status} run: {run_id}")
        job = self._engine.registry.need(row.job_name)
        if isinstance(job.fn, Asleep):
            raise ValidationError(
                f"Cannot retrigger run {run_id}: it is one of the sleeping job {job.name!r}, of which there is one run "
                "of a key. Trigger it with another key."
            )
        try:
            args, kwargs = job.signature.decode(self._engine.payloads.open(row.input))
            text = encode_input(job, args, kwargs)
            tenant = row.tenant or tenant
            labels = self._labelled_of(row.label_map, tenant)
        except (Outdated, ValidationError) as error:
            raise ValidationError(f"Cannot retrigger run {run_id}: {error.message}") from error
        # Not `Call[Any](…)`: before Python 3.12 that can't make a frozen dataclass with slots.
        again: Call[Any] = Call(job, text, TriggerOptions())
        new = again.new_run(self._engine.ids.new(), labels)
        new = new._replace(
            queue=row.queue, priority=row.priority, tenant=tenant, concurrency_key=row.concurrency_key,
            retry=row.retry, timeout=row.timeout, idempotency_key=key,
        )  # fmt: skip
        return self._engine.triggers.one(
            new, numbered=False, convert=lambda made: Run(self, made.run, job, made.accepted)
        )

    @overload
    def _trigger(self, call: Call[R]) -> Ticket[Run[R]]: ...
    @overload
    def _trigger(self, call: Call[R], connection: Any) -> Reply[Run[R]]: ...
    def _trigger(self, call: Call[R], connection: Any = None) -> Reply[Run[R]]:
        new = self._new_run(call)
        if connection is not None:
            return self._engine.triggers.inside(connection, [new], lambda made: self._made(call, made[0]))
        return self._engine.triggers.one(new, numbered=True, convert=lambda made: self._made(call, made))

    def _new_run(self, call: Call[Any]) -> NewRun:
        """The row of a call: what every trigger writes."""
        tenant, execution = call.options.tenant, current.get()
        if not tenant and execution is not None and execution.engine is self._engine:
            tenant = execution.row.tenant
        labels = self._labelled_of(call.labels, tenant)
        return call.new_run(self._engine.ids.new(), labels)._replace(tenant=tenant)

    def _labelled_of(self, labels: Mapping[str, str], tenant: str) -> Mapping[str, str]:
        # The tenant's before the schema, which may want them, and after it, which may drop them.
        return of_tenant(self._labelled(of_tenant(labels, tenant)), tenant)

    def _labelled(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        schema = self._engine.labels_schema
        return labels if schema is None else schema.parsed(labels)

    def _made(self, call: Call[R], made: Triggered) -> Run[R]:
        return Run(self, made.run, call.job, made.accepted)

    def _trigger_to_wait(self, call: Call[Any]) -> Ticket[Run[Any]]:
        if call.options.idempotency_key is None:  # with one it may be a run that has ended long ago
            self._engine.refuse_to_wait_for(call.options.concurrency_key)
        return self._trigger(call)

    def _run(self, call: Call[R]) -> Reply[R]:
        ticket = self._trigger_to_wait(call)
        return self._engine.wait_for_triggered(
            ticket, f"result of {call.job_name}", lambda row: result(Run[R](self, row, call.job))
        )

    def _trigger_and_wait(self, call: Call[R]) -> Reply[Run[R]]:
        ticket = self._trigger_to_wait(call)
        return self._engine.wait_for_triggered(
            ticket, f"end of {call.job_name}", lambda row: Run[R](self, row, call.job)
        )

    def _check_size(self, text: str) -> None:
        check_size(text, self._engine.options.max_input_bytes, "input")

    # -- managing ----------------------------------------------------------------------------------------------

    def cancel(self, run_id: str) -> Reply[Run[Any]]:
        """Cancel a run; the reply is there when that is durable.

        A step's body that is under way may come to its end, and its result is dropped; no new step begins.
        `NotFoundError`, or `ConflictError` if the run has ended.
        """
        return self._cancel(run_id, None)

    def _cancel(self, run_id: str, job: JobDefinition | None) -> Reply[Run[Any]]:
        return self._engine.cancel(checked_text(run_id, "run id"), lambda row: self._seen(row, job))

    # -- signals -----------------------------------------------------------------------------------------------

    def send_signal(self, run_id: str, name: str, value: Any = None, *, key: str | None = None) -> Reply[None]:
        """Send a value to a run, for `step.wait_for_signal(name)` there; the reply is there when it is durable.

        It may be sent before the run waits for it. With `key` it may be sent again: of several with one key the first
        counts, per run and name. `NotFoundError` if there is no such run, `ConflictError` if it has ended, or has not
        read a thousand of them; `NotKept` if the value would not come back as it is. Names that begin with `holdfast:`
        are ours: `ValidationError`.
        """
        engine = self._engine
        if checked_text(name, "signal").startswith(OURS):
            raise ValidationError(f"signal: {shown(name)}: names that begin with {OURS!r} are ours. See app.wake.")
        text = sent_text(value)
        check_size(text, engine.options.max_input_bytes, "value")
        signal = NewSignal(
            engine.ids.new(), checked_text(run_id, "run id"), name,
            engine.payloads.seal(text), checked_key(key, "key"),
        )  # fmt: skip
        return engine.send_signal(signal)

    def wake(
        self, job: SleepingJob[R], key: str, *, output: Any = _NOTHING, error: str | BaseException | None = None
    ) -> Reply[Run[R]]:
        """Say what the sleeping run of this key has come to: its output, or its error; the run, which is about to end.

        The first word counts; later ones change nothing. If there is no such run yet, there is from now on, and who
        triggers it later gets what was said. `NotKept` or `ValidationError` if the output does not fit.
        """
        if (output is _NOTHING) == (error is None):
            raise ValidationError("wake: give output= or error=, one of them.")
        given: object = job
        if not isinstance(given, SleepingJob):
            raise ValidationError(f"wake: {shown(job)} is not a sleeping job. Make it with app.sleeping(…).")
        call = job._bound(key)
        self._check(call, "wake")
        text = self._last_word(job, output, error)
        return self._wake(call, text)

    def _last_word(self, job: Any, output: Any, error: str | BaseException | None) -> str:
        """What a sleeping run is told, as it is kept. `NotKept` or `ValidationError` if the output does not fit."""
        engine = self._engine
        if error is None:
            shape: Any = job._definition.output
            kept = shape.keep(output, "output").text
            check_size(kept, engine.options.max_output_bytes, "output")
            said = written(kept)
        else:
            kind = type(error).__name__ if isinstance(error, BaseException) else None
            said = {"error": fit(error) if isinstance(error, BaseException) else error, "error_type": kind}
        text = to_json(said).decode()
        if error is not None:
            check_size(text, engine.options.max_input_bytes, "error")
        return text

    def _wake(self, call: Call[R], text: str) -> Reply[Run[R]]:
        engine = self._engine
        reply: Reply[Run[R]] = Reply(f"wake of {call.job_name} {call.options.idempotency_key}")
        triggered = self._trigger(call)

        def there() -> None:
            if triggered._error is not None:
                answer([(reply, None, triggered._error)])
                return
            run = triggered._take()
            if run.is_terminal:
                answer([(reply, run, None)])
                return
            signal = NewSignal(engine.ids.new(), run.id, WAKE, engine.payloads.seal(text), WAKE)
            sent = engine.send_signal(signal)
            sent._asked = True

            def woken() -> None:
                gone = isinstance(sent._error, ConflictError)  # somebody else was first, and it has ended
                answer([(reply, None if sent._error and not gone else run, None if gone else sent._error)])

            if not sent._subscribe(woken):
                woken()

        triggered._asked = True
        if not triggered._subscribe(there):
            there()
        return reply

    # -- forgetting --------------------------------------------------------------------------------------------

    def delete_run(self, run_id: str) -> Reply[None]:
        """Delete an ended run with its steps, logs and labels; the reply is there when that is durable.

        Its idempotency key may be used again, and who waits for it gets `NotFoundError`. `NotFoundError` if there is no
        such run, `ConflictError` if it has not ended.
        """
        return self._engine.delete(checked_text(run_id, "run id"))

    def purge_runs(
        self,
        *,
        older_than: Duration | datetime,
        limit: int | None = 500,
        job: str | Job[..., Any] | Iterable[str | Job[..., Any]] | None = None,
        status: Statuses = None,
        labels: Mapping[str, str] | None = None,
    ) -> Reply[int]:
        """Delete runs that ended before `older_than` (a moment, or so long ago) and fit all that is given; how many.

        The oldest end first, at most `limit` (None: all), in small batches that others' writes go between: if it stops
        half-way, what is gone is gone. Runs that have not ended stay. There are no events. A run goes with all runs
        below it, once all have ended: those are neither counted nor limited.
        """
        most = float("inf") if limit is None else checked_count(limit, "limit")
        return self._engine.purge(self._old(older_than, job, status, labels), most)

    def _old(self, older_than: Any, job: Any, status: Statuses, labels: Mapping[str, str] | None) -> Old:
        if isinstance(older_than, datetime):
            before = from_datetime(older_than)
        else:
            before = self._engine.now() - micros(older_than, "older_than")
        jobs = [one.name if isinstance(one, Job) else one for one in several(job, (str, Job), "job")]
        return Old(
            before,
            jobs=tuple(checked_text(one, "job") for one in jobs),
            statuses=checked_statuses(status),
            labels=tuple(checked_labels({} if labels is None else labels).items()),
        )
