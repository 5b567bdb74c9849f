"""One request on its way: who asks, what for, and what it may see. Routes get this, after the gate."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from ..basis.errors import StoreError, ValidationError
from ..basis.text import clean, error_text, shown
from ..engine.arguments import checked_statuses, checked_text
from ..engine.call import tenant_text
from ..engine.registry import checked_labels
from ..run import Run
from .auth import Auth, RunScope, called, checked_scope
from .messages import Reject, Request
from .need import Need
from .wire import STATUSES, statuses_of

if TYPE_CHECKING:
    from ..app import Holdfast
    from .handler import Handler

_log = logging.getLogger("holdfast")

DEEPEST = 100
_LEADING = re.compile(r"\s*([+-]?\d+)", re.ASCII)


@dataclass(slots=True)
class Asked:
    """What a route gets."""

    handler: Handler
    request: Request
    need: Need
    params: list[tuple[str, str]]
    who: Any = None
    tenant: dict[str, str] = field(default_factory=dict)
    """Labels of whoever asks."""
    scope: RunScope = field(default_factory=lambda: RunScope())
    """Of a list: what it is about, for whoever asks."""
    sees_nothing: bool = False
    """The list asks for what is somebody else's: there is nothing to show."""
    _run: Run[Any] | None = None
    _body: dict[str, Any] | None = None

    @property
    def app(self) -> Holdfast:
        return self.handler.app

    @property
    def auth(self) -> Auth | None:
        """The hooks, if there are any."""
        auth = self.handler.auth
        return auth if isinstance(auth, Auth) else None

    @property
    def tenant_text(self) -> str:
        """The tenant as it stands in rows."""
        return tenant_text(self.tenant)

    @property
    def run(self) -> Run[Any]:
        """The run that it is about; the gate has found it, and asked whether it may be."""
        assert self._run is not None
        return self._run

    # -- the query ---------------------------------------------------------------------------------------------

    def param(self, name: str) -> str | None:
        """The first parameter of this name; an empty one is none."""
        return next((value for key, value in self.params if key == name and value), None)

    def count(self, name: str) -> int | None:
        """A number, as C reads it: what follows the digits does not count."""
        given = self.param(name)
        if given is None:
            return None
        found = _LEADING.match(given[:30])
        if found is None or int(found[1]) < 0 or int(found[1]) >= 2**53:
            raise ValidationError(f"Invalid {name}: must be a non-negative integer")
        return int(found[1])

    def page(self) -> int:
        """How many to give at most."""
        most = self.handler.max_page
        limit = self.count("limit")
        if limit is not None and limit > most:
            raise ValidationError(f"Invalid limit: must be at most {most}")
        return most if limit is None else limit

    def at_most(self) -> int:
        """The same for our own client: how many it would like to have; there may be fewer."""
        most, wanted = self.handler.max_page, self.count("most")
        return most if wanted is None else min(wanted, most)

    # -- the body ----------------------------------------------------------------------------------------------

    async def body(self) -> dict[str, Any]:
        """The JSON object that was sent. `ValidationError` if it is none."""
        if self._body is None:
            text = await self.request.read(self.handler.max_body)
            try:
                given = from_json(text, allow_inf_nan=False)
            except (ValueError, RecursionError):
                coding = (self.request.header("content-encoding") or "identity").strip().lower()
                if coding != "identity":  # whoever decoded it on the way may have left the header
                    what = f"The body is encoded: {shown(coding)}. Send it as it is, without Content-Encoding."
                    raise Reject(415, what) from None
                raise ValidationError("The body is not valid JSON.") from None
            if not isinstance(given, dict):
                raise ValidationError("The body must be a JSON object.")
            if _is_deeper(given, DEEPEST):
                raise ValidationError(f"The body is nested more than {DEEPEST} levels deep.")
            # 1e999 is read as infinite, which JSON can't tell. Written again, it shows; that takes less than a look at
            # each value would.
            if b"Infinity" in to_json(given) and (path := _too_large(given)) is not None:
                raise ValidationError(f"{path}: the number is too large. Send a smaller one, or a text.")
            self._body = given
        return self._body

    # -- what the gate asks ------------------------------------------------------------------------------------

    async def find_run(self) -> None:
        """The run, if whoever asks may do this with it. `Reject` with 404 and the same words if there is none."""
        run_id = self.param("runId")
        if run_id is None:
            raise ValidationError("runId query parameter is required")
        run = await self.app.get_run(run_id)
        if run is None or not await self.may(run, self.need):
            raise Reject(404, "Run not found")
        self._run = self.as_told(run)

    def as_told(self, run: Run[Any]) -> Run[Any]:
        """The run, not behind what streams have told of it.

        A page is told of progress and, in the same moment, of something for which it reads the run again.
        """
        run._row = self.app._engine.as_told(run._row)
        return run

    def is_theirs(self, labels: Mapping[str, str]) -> bool:
        """Whether these are labels of a run of theirs."""
        return all(labels.get(key) == value for key, value in self.tenant.items())

    async def may(self, run: Run[Any], need: Need) -> bool:
        """Whether whoever asks may do this with the run."""
        if not self.is_theirs(run.labels):
            return False
        if self.auth is not None and self.auth.on_run_access is not None:
            try:
                await called("on_run_access", self.auth.on_run_access, self.who, run, str(need))
            except Reject as no:
                if no.status in (403, 404):
                    return False  # in the same words as for a run that does not exist
                raise
            except StoreError:
                raise
            except Exception as error:  # another answer than 404 would say that there is such a run
                _log.error("on_run_access: run %s: %s", run.id, error_text(error), exc_info=error)
                return False
        return True

    async def permit(self) -> None:
        """The same of what is about no single run."""
        if self.auth is None:
            return
        if self.auth.permit is not None:
            await called("permit", self.auth.permit, self.who, str(self.need))
        elif self.tenant and self.need.is_of_all:
            raise Reject(403, "Forbidden")

    async def find_scope(self) -> None:
        """What a list is about."""
        scope = self.given_scope()
        if self.auth is not None:
            hook, name = self.auth.scope_runs, "scope_runs"
            subscribes = self.need is Need.LIST_SUBSCRIBE
            if subscribes and self.auth.scope_runs_subscribe is not None:
                hook, name = self.auth.scope_runs_subscribe, "scope_runs_subscribe"
            if hook is not None:
                scope = checked_scope(name, await called(name, hook, self.who, scope))
        labels = scope.get("labels") or {}
        if not all(labels.get(key, value) == value for key, value in self.tenant.items()):
            self.sees_nothing = True
        if any(given is not None and not given for given in (scope.get("job_name"), scope.get("status"))):
            self.sees_nothing = True  # of what was asked for, the hook has left none
        scope["labels"] = checked_labels({**labels, **self.tenant})
        self.scope = scope

    def given_scope(self) -> RunScope:
        """What was asked for."""
        scope = RunScope()
        names = [value for key, value in self.params if key == "jobName"]
        if names:
            # Here, where it is who asks that is told of it: what a hook gives is the application's.
            scope["job_name"] = [checked_text(one, "jobName") for one in names]
        if labels := {key[6:]: value for key, value in self.params if key.startswith("label.")}:
            scope["labels"] = checked_labels(labels)
        if self.need is Need.LIST_SUBSCRIBE:
            return scope
        statuses = [value for key, value in self.params if key == "status"]
        for status in statuses:
            if status not in STATUSES:
                raise ValidationError(
                    f"Invalid status: {status or 'empty value'}. Must be one of: {', '.join(STATUSES)}"
                )
        if statuses:
            scope["status"] = statuses[0] if len(statuses) == 1 else statuses
        scope["limit"] = self.page()
        if (offset := self.count("offset")) is not None:
            scope["offset"] = offset
        return scope

    def job_names(self) -> tuple[str, ...]:
        """The jobs of the scope; whoever knows a job by its name in Python may say that."""
        given = self.scope.get("job_name") or []
        registry = self.app._engine.registry
        names = [given] if isinstance(given, str) else given
        return tuple(found.name if (found := registry.get(name)) else checked_text(name, "jobName") for name in names)

    def states(self) -> tuple[str, ...]:
        """The same, or those of them that were asked for by the names that they are stored by."""
        given = checked_statuses([value for key, value in self.params if key == "state"])
        known = self.statuses()
        if given and known and not set(given) & set(known):
            self.sees_nothing = True
        return tuple(one for one in given if one in known) if given and known else given or known

    def statuses(self) -> tuple[str, ...]:
        """The statuses of the scope, as they are stored."""
        given = self.scope.get("status") or []
        return tuple(ours for one in ([given] if isinstance(given, str) else given) for ours in statuses_of(one))


def _too_large(value: Any) -> str | None:
    """The path of a number that is infinite; None if there is none."""
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        path, one = left.pop()
        if isinstance(one, float) and math.isinf(one):
            return clean(path, 200)
        if isinstance(one, dict):
            left += [(f"{path}.{key}" if path else key, inner) for key, inner in one.items()]
        elif isinstance(one, list):
            left += [(f"{path}[{index}]", inner) for index, inner in enumerate(one)]
    return None


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for one in layer
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True
