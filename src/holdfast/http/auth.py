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
from typing import Any, TypedDict

from ..basis.errors import HoldfastError, StoreError, ValidationError
from ..basis.text import error_text, shown
from ..engine.call import checked_tenant
from .aside import aside
from .messages import Reject, Request

#: Seconds that a hook may take.
PATIENCE = 10.0


class RunScope(TypedDict, total=False):
    """Which runs a list or a stream is about: what a scope hook gets, and gives back, changed or not."""

    job_name: str | list[str]
    status: str | list[str]
    labels: dict[str, str]
    limit: int
    offset: int


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


async def labels_of_tenant(auth: Auth, who: Any) -> dict[str, str]:
    """The labels that everything of theirs has; none where there are no tenants."""
    if auth.tenant is None:
        return {}
    given = await called("tenant", auth.tenant, who)
    if not isinstance(given, Mapping) or not given:
        raise Reject(403, "Forbidden")
    checked_tenant(given)
    return dict(given)
