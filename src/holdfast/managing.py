"""Managing: the verbs of an app that write: they trigger runs, and end them."""

from __future__ import annotations

from typing import Any, TypeVar

from .basis.errors import ConflictError, NotFoundError, Outdated, ValidationError
from .basis.text import shown
from .commit.reply import Reply, answer, hand_on
from .commit.ticket import Ticket
from .engine.arguments import checked_text
from .engine.registry import JobDefinition
from .job import Call, TriggerOptions, check_size
from .model.run import RunFilter, RunRow
from .run import Run, result
from .store.base import Triggered
from .watching import Watching

R = TypeVar("R")


class Managing(Watching):
    """What an app does with runs."""

    # -- triggering --------------------------------------------------------------------------------------------

    def trigger(self, call: Call[R]) -> Reply[Run[R]]:
        """Write a run of the call; the reply is there when the run is durable."""
        if not isinstance(call, Call):
            raise ValidationError(f"trigger: {shown(call)} is not a call. Write app.trigger(job.bind(…)).")
        # What is not registered here nobody may ever execute.
        self._engine.registry.need(call.job_name)
        self._check_size(call.input)
        return self._trigger(call)

    def retrigger(self, run_id: str) -> Reply[Run[Any]]:
        """A fresh run with the input of an ended one, which is checked again.

        `NotFoundError` if there is no such run or job, `ConflictError` if it has not ended, `ValidationError` if
        today's code refuses the input.
        """
        engine = self._engine
        checked_text(run_id, "run id")
        reply: Reply[Run[Any]] = Reply(f"retrigger of {run_id}")
        read: Reply[list[RunRow]] = Reply("find_runs")
        read._asked = True

        def found() -> None:
            # In the reading thread: the user's validators run beside the writer, never in its way.
            try:
                if read._error is not None:
                    raise read._error
                written = self._trigger_again(run_id, read._value)
            except Exception as error:
                answer([(reply, None, error)])
            else:
                written._asked = True
                hand_on(written, reply)

        read._subscribe(found)
        engine.reader.ask(lambda c: engine.store.find_runs(c, RunFilter(ids=(run_id,))), read)
        return reply

    def _trigger_again(self, run_id: str, rows: list[RunRow]) -> Ticket[Run[Any]]:
        if not rows:
            raise NotFoundError(f"Run not found: {run_id}")
        row = rows[0]
        if row.completed_at is None:
            raise ConflictError(f"Cannot retrigger {row.status} run: {run_id}")
        job = self._engine.registry.need(row.job_name)
        try:
            args, kwargs = job.signature.decode(row.input)
            text = job.signature.encode(args, kwargs)
        except (Outdated, ValidationError) as error:
            raise ValidationError(f"Cannot retrigger run {run_id}: {error.message}") from error
        # Not `Call[Any](…)`: before Python 3.12 that can't make a frozen dataclass with slots.
        again: Call[Any] = Call(job, text, TriggerOptions())
        new = again.new_run(self._engine.ids.new())
        new = new._replace(queue=row.queue, priority=row.priority, labels=row.labels, tenant=row.tenant)
        return self._engine.trigger(
            new, numbered=False, convert=lambda made: Run(self, made.run, job, made.disposition)
        )

    def _trigger(self, call: Call[R]) -> Ticket[Run[R]]:
        job = call.job

        def convert(made: Triggered) -> Run[R]:
            return Run(self, made.run, job, made.disposition)

        return self._engine.trigger(call.new_run(self._engine.ids.new()), numbered=True, convert=convert)

    def _run(self, call: Call[R]) -> Reply[R]:
        ticket = self._trigger(call)
        return self._engine.wait_for_triggered(
            ticket, f"result of {call.job_name}", lambda row: result(Run[R](self, row, call.job))
        )

    def _trigger_and_wait(self, call: Call[R]) -> Reply[Run[R]]:
        ticket = self._trigger(call)
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
