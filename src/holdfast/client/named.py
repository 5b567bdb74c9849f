"""Jobs of a server that are known by name only. Their parameters are those that the server tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from ..basis.durations import Duration
from ..basis.errors import ValidationError
from ..basis.exact import difference
from ..basis.text import error_text
from ..commit.reply import Reply
from ..engine.call import TriggerOptions
from ..job import Job, gathered
from ..model.retry import Retry
from ..model.run import Coalesce, RunStatus
from ..run import Run
from .documents import JobInfo

if TYPE_CHECKING:
    from .client import Client


@dataclass(frozen=True, slots=True)
class NamedCall:
    """A job of a server with its input, which is checked there."""

    job_name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: TriggerOptions

    def __repr__(self) -> str:
        return f"<NamedCall of {self.job_name}>"

    def input(self, job: JobInfo) -> dict[str, Any]:
        """The input as an object by parameter name.

        `ValidationError` for arguments that the job doesn't have, and for what would arrive as something else.
        """
        given: Any
        if job.takes_model and len(self.args) == 1 and not self.kwargs:
            given = _fields(self.args[0])
        else:
            names = tuple(job.input_schema.get("properties", ())) if job.takes_model else job.parameters
            if len(self.args) > len(names):
                raise _invalid(f"{job.name} takes {len(names)} arguments, but {len(self.args)} were given", names)
            if unknown := [name for name in self.kwargs if name not in names and not job.takes_model]:
                raise _invalid(f"{', '.join(unknown)}: there is no such parameter", names)
            given = dict(zip(names, self.args, strict=False))
            if twice := sorted(given.keys() & self.kwargs.keys()):
                raise _invalid(f"{', '.join(twice)}: given twice, by position and by name", names)
            given |= self.kwargs
        try:
            value = from_json(to_json(given, inf_nan_mode="strings", bytes_mode="base64"))
        except Exception as error:
            raise _invalid(f"it can't be sent as JSON: {error_text(error, 300)}", ()) from None
        if found := difference(given, value, []):
            # By its name alone a job has no types that would mend it.
            where = f"{found.path.lstrip('.')}: " if found.path else ""
            raise _invalid(
                f"{where}{found.reason} when it goes over as JSON. Give texts, finite numbers, lists and dicts, or use "
                "the job by its definition, with annotated parameters",
                (),
            )
        if not isinstance(value, dict):
            raise _invalid(f"{job.name} takes an object with the fields of its model", ())
        return value


def _fields(given: Any) -> Any:
    """What a model or a dataclass has; anything else as it is."""
    if isinstance(given, BaseModel):
        return given.model_dump(by_alias=True)
    return asdict(given) if is_dataclass(given) and not isinstance(given, type) else given


def _invalid(text: str, names: Iterable[str]) -> ValidationError:
    known = ", ".join(names)
    return ValidationError(f"Invalid input: {text}.{f' There are: {known}.' if known else ''}")


class NamedJob:
    """A job of a server, by its name there: `client.job("import-airports")`. Nothing is asked before it is used."""

    def __init__(self, client: Client, name: str, options: TriggerOptions | None = None) -> None:
        self._client = client
        self._options = options or TriggerOptions()
        self.name: str = name
        """Of the job, or of its function."""

    def __repr__(self) -> str:
        return f"<NamedJob {self.name}>"

    def get_info(self) -> Reply[JobInfo]:
        """Its parameters and schemas. `NotFoundError` if the server has no such job."""
        return self._client._get_info(self.name)

    def bind(self, *args: Any, **kwargs: Any) -> NamedCall:
        """The job with this input, for `client.trigger` and `client.trigger_many`. It is checked there."""
        return NamedCall(self.name, args, kwargs, self._options)

    def trigger(self, *args: Any, **kwargs: Any) -> Reply[Run[Any]]:
        """Write a run of this job; the reply is there when the run is durable. See `Job.trigger`."""
        return self._client.trigger(self.bind(*args, **kwargs))

    def run(self, *args: Any, **kwargs: Any) -> Reply[Any]:
        """Trigger and wait for the output, as JSON tells it. See `Job.run`."""
        return self._client._run(self.bind(*args, **kwargs))

    def trigger_and_wait(self, *args: Any, **kwargs: Any) -> Reply[Run[Any]]:
        """Trigger and wait for the end; the ended run, however it ended."""
        return self._client._trigger_and_wait(self.bind(*args, **kwargs))

    def options(
        self,
        *,
        idempotency_key: str | None = None,
        concurrency_key: str | None = None,
        coalesce: Coalesce | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        deadline: Duration | None = None,
    ) -> NamedJob:
        """The same job, whose triggers have these options. They are those of `Job.options`."""
        given = gathered(
            self._options, idempotency_key=idempotency_key, concurrency_key=concurrency_key, coalesce=coalesce,
            labels=labels, priority=priority, delay=delay, run_at=run_at, queue=queue, retry=retry, timeout=timeout,
            deadline=deadline,
        )  # fmt: skip
        return NamedJob(self._client, self.name, given)

    def get_run(self, run_id: str) -> Reply[Run[Any] | None]:
        """The run; None if there is none of this job with that id."""
        return self._client._run_of(self.name, run_id)

    def get_runs(
        self,
        *,
        status: RunStatus | str | Iterable[RunStatus] | Iterable[str] | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = 100,
        offset: int = 0,
        before: str | None = None,
    ) -> Reply[list[Run[Any]]]:
        """Runs of this job, newest first; see `Client.get_runs`."""
        return self._client.get_runs(
            job=self.name, status=status, labels=labels, limit=limit, offset=offset, before=before
        )


def with_key(options: TriggerOptions, key: str) -> TriggerOptions:
    """The same options, and this idempotency key."""
    return replace(options, idempotency_key=key)


AnyJob = str | Job[..., Any] | NamedJob
