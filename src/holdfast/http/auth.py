"""Who may do what: the hooks of an application, and how they are called.

A hook says no by raising `Reject`, or by returning False; `authenticate` also by returning None, so that one that
forgets its `return` lets nobody in. Whatever else a hook raises, or not answering in time, is no as well. Every hook
that is there is called, whoever it is.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict, cast

from ..basis.errors import HoldfastError, StoreError, ValidationError
from ..basis.text import error_text, shown
from ..engine.arguments import checked_count, checked_text
from ..engine.call import checked_tenant
from ..engine.registry import checked_labels
from ..model.run import RunStatus
from .aside import aside
from .messages import Reject, Request
from .wire import STATUSES

#: Seconds that a hook may take.
PATIENCE = 10.0


class RunScope(TypedDict, total=False):
    """Which runs a list or a stream is about: what a scope hook gets, and gives back, changed or not.

    What is left out is not looked at: without `job_name` it is about all jobs. Nothing else may stand in it.
    """

    job_name: str | list[str]
    """Runs of this job, or of any of these; of none, if the list is empty."""
    status: str | list[str]
    """The same of statuses."""
    labels: dict[str, str]
    """Runs that have all of these."""
    limit: int
    """At most so many."""
    offset: int
    """Leave out so many, the newest."""


@dataclass(frozen=True, kw_only=True)
class Auth:
    """The hooks of an application. Each may be async; a plain one is called in a thread.

    `authenticate(request)`: who it is, for the others; None, False or `Reject(401)` if it is nobody.
    `on_trigger(who, body)`: before the input is checked; what it changes in `body` itself counts. It returns no body.
    `on_run_access(who, run, operation)`: before anything about one run. The operations are those of `Need`.
    `scope_runs(who, scope)`: gives the `RunScope` that a list is about; `scope_runs_subscribe`: the same of the stream
    of all runs, else `scope_runs`.
    `tenant(who)`: labels that every run of theirs has, whatever was sent, and that a run must have to be shown to them.
    `permit(who, operation)`: before whatever is about no single run. Needed where there are tenants, for what
    is about the whole database (`stats`, `workers`).
    """

    authenticate: Callable[[Request], Any]
    on_trigger: Callable[[Any, dict[str, Any]], Any] | None = None
    on_run_access: Callable[[Any, Any, str], Any] | None = None
    scope_runs: Callable[[Any, RunScope], Any] | None = None
    scope_runs_subscribe: Callable[[Any, RunScope], Any] | None = None
    tenant: Callable[[Any], Any] | None = None
    permit: Callable[[Any, str], Any] | None = None

    def __post_init__(self) -> None:
        for hook in fields(self):
            given = getattr(self, hook.name)
            if given is None and hook.name == "authenticate":
                raise ValidationError("auth.authenticate is required when auth is provided.")
            if given is not None and not callable(given):
                raise ValidationError(f"auth: {hook.name}: {shown(given)} can't be called.")


@dataclass(frozen=True)
class Insecure:
    """Instead of `Auth`: everybody who can reach the server may do everything. Say why that is right."""

    reason: str

    def __post_init__(self) -> None:
        given: object = self.reason
        if not isinstance(given, str) or not given.strip():
            raise ValidationError("auth: Insecure(reason) needs a reason why nobody has to say who he is.")


async def called(name: str, hook: Callable[..., Any], *args: Any) -> Any:
    """What the hook gives. `Reject` if it raises that, or says no; `TimeoutError` if it takes too long."""
    try:
        async with asyncio.timeout(PATIENCE):
            given = await _given(hook, args)
    except StoreError:
        raise
    except HoldfastError as error:
        # Of the application's own code: it must not look like a word about the request.
        raise RuntimeError(f"{name}: {error_text(error)}") from error
    if name == "authenticate" and given is None:
        raise Reject(401, "Unauthorized")
    if given is False:
        raise Reject(401, "Unauthorized") if name == "authenticate" else Reject(403, "Forbidden")
    return given


async def _given(hook: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    is_async = inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(hook, "__call__", None))  # noqa: B004
    # It may ask a database of its own, and the loop serves all streams.
    given = hook(*args) if is_async else await aside(hook, *args)
    if isinstance(given, Awaitable):
        given = await given
    return given


_STATUSES = frozenset({*STATUSES, *(str(status) for status in RunStatus)})


def checked_scope(hook: str, given: object) -> RunScope:
    """The scope that a hook gave. `TypeError` if it is none: what is not understood would show everything.

    Not an error of who asks: it is the application that has to be mended.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{hook} gave no scope, but {type(given).__name__}")
    known = RunScope.__annotations__
    for key, value in given.items():
        if key not in known:
            raise TypeError(f"{hook}: {shown(key)}: a scope has no such key. There are {', '.join(known)}.")
        if (wrong := _wrong(key, value)) is not None:
            raise TypeError(f"{hook}: {key}: {shown(value)} {wrong}. Leave the key out if it does not matter.")
    return cast("RunScope", {**given})


def _wrong(key: str, value: object) -> str | None:
    """What is wrong with a value of a scope; None if nothing is."""
    try:
        if key == "labels":
            checked_labels(value)
        elif key in ("limit", "offset"):
            checked_count(value, key)
        elif not isinstance(value, str | list | tuple | set | frozenset):
            return "is neither a text nor a list of texts"
        else:
            for one in [value] if isinstance(value, str) else value:
                checked_text(one, key)
                if key == "status" and one and one not in _STATUSES:
                    return f"is no status, or has one that is none. There are {', '.join(STATUSES)}"
    except (ValidationError, TypeError) as error:
        return f"can't be used ({error_text(error, 300)})"
    return None


async def labels_of_tenant(auth: Auth, who: Any) -> dict[str, str]:
    """The labels that everything of theirs has; none where there are no tenants."""
    if auth.tenant is None:
        return {}
    given = await called("tenant", auth.tenant, who)
    if not isinstance(given, Mapping) or not given:
        raise Reject(403, "Forbidden")
    checked_tenant(given)
    return dict(given)
