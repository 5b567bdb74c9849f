"""A call: a job with its input, checked and encoded, and not yet triggered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pydantic_core import from_json, to_json

from ..basis.errors import ValidationError
from ..model.run import Coalesce, NewRun
from .registry import JobDefinition, checked_key, checked_labels

R_co = TypeVar("R_co", covariant=True)

#: Characters of a tenant, as it stands in rows.
LONGEST_TENANT = 255


@dataclass(frozen=True, slots=True)
class TriggerOptions:
    """What `job.options(...)` has gathered."""

    idempotency_key: str | None = None
    concurrency_key: str | None = None
    coalesce: Coalesce | None = None
    labels: Mapping[str, str] | None = None
    priority: int | None = None
    delay: int | None = None
    run_at: int | None = None
    queue: str | None = None
    retry: str | None = None
    timeout: int | None = None
    deadline: int | None = None
    tenant: str = ""
    """Whose it is: labels as JSON, which every run of theirs has. Their keys are apart from those of others."""

    def as_kept(self) -> TriggerOptions:
        """With the concurrency key of the tenant."""
        if not self.tenant or self.concurrency_key is None:
            return self
        key = key_of_tenant(self.concurrency_key, self.tenant)
        return replace(self, concurrency_key=checked_key(key, "concurrency_key (with its tenant)"))


@dataclass(frozen=True, slots=True)
class Call(Generic[R_co]):
    """A job with its input, checked and encoded, not yet triggered. A value: pass it, list it, nest it."""

    job: JobDefinition
    input: str
    options: TriggerOptions

    def __repr__(self) -> str:
        return f"<Call of {self.job.name}>"

    @property
    def job_name(self) -> str:
        return self.job.name

    @property
    def labels(self) -> Mapping[str, str]:
        """The job's and the trigger's together."""
        return self.job.labels if self.options.labels is None else {**self.job.labels, **self.options.labels}

    @property
    def _delay(self) -> int:
        """The trigger's, also if it is none at all; a moment goes before the job's."""
        if self.options.delay is not None:
            return self.options.delay
        return self.job.delay if self.options.run_at is None else 0

    def new_run(self, run_id: str, labels: Mapping[str, str]) -> NewRun:
        """The row to be written, with these labels. Only for `Managing`, which checks them."""
        job, options = self.job, self.options
        return NewRun(
            run_id,
            job.name,
            self.input,
            job.queue if options.queue is None else options.queue,
            job.priority if options.priority is None else options.priority,
            self._delay,
            options.run_at,
            options.idempotency_key,
            options.concurrency_key,
            to_json(labels).decode() if labels else "{}",
            coalesce=options.coalesce,
            retry=options.retry,
            timeout=options.timeout,
            deadline=job.deadline if options.deadline is None else options.deadline,
            tenant=options.tenant,
        )


def tenant_text(labels: Mapping[str, str]) -> str:
    """The tenant whose runs have these labels, as it stands in rows."""
    return to_json(dict(sorted(labels.items()))).decode() if labels else ""


def checked_tenant(labels: object) -> str:
    """The same of whatever was given; `ValidationError` if these are no labels, or too long."""
    try:
        text = tenant_text(checked_labels(labels))
    except ValidationError as error:
        raise ValidationError(f"tenant: {error.message}") from None
    if len(text) > LONGEST_TENANT:
        raise ValidationError(f"tenant: the labels are longer than {LONGEST_TENANT} characters.")
    return text


def key_of_tenant(key: str | None, tenant: str) -> str | None:
    """A concurrency key as it stands in rows. The same of two tenants is two: neither waits for the other."""
    return key if key is None or not tenant else f"{tenant}:{key}"


def of_tenant(labels: Mapping[str, str], tenant: str) -> Mapping[str, str]:
    """The labels of a run of this tenant: its own go before whatever was said."""
    return {**labels, **from_json(tenant)} if tenant else labels
