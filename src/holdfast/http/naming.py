"""Names that nobody knows, in a body or a query: refused where not reading one of them would do something else."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING

from ..basis.errors import ValidationError
from ..basis.text import shown

if TYPE_CHECKING:
    from .routes import Route

_LABEL = "label."


def check_names(names: Iterable[str], known: Collection[str], what: str = "name", *, is_strict: bool) -> None:
    """A misspelt option would be one that was never given: a key that is none makes two runs.

    Strict: whatever is not known is refused; else only what looks like one that is.
    """
    plain = {name.lower(): name for name in known}
    for name in islice(names, 100):  # comparing takes its time, and the loop serves all streams
        if name in known:
            continue
        wanted = name.lower().replace("_", "").replace("-", "")
        near = [] if len(name) > 30 else get_close_matches(wanted, plain, 1, 0.85)
        if near:
            raise ValidationError(f"unknown {what} {shown(name)}: did you mean {plain[near[0]]}?")
        if is_strict:
            there = f"There are {', '.join(known)}." if known else "There are none."
            raise ValidationError(f"unknown {what} {shown(name)}. {there}")


def check_query(route: Route, params: Iterable[tuple[str, str]]) -> None:
    """What a route that writes does not know; and a label given twice, of which only one could count.

    Routes of the ancestor ignore other parameters, and take the last of a label: there only what looks like a misspelt
    one is refused, where they write.
    """
    names = [name for name, _ in params]
    if any(param.labels for param in route.params):
        labels = [name for name in names if name.startswith(_LABEL)]
        twice = next((name for name in labels if labels.count(name) > 1), None)
        if twice is not None and not route.is_kept:
            raise ValidationError(f"{shown(twice)} is given twice. A run has one value of it.")
        names = [name for name in names if not name.startswith(_LABEL)]
    if route.writes:
        known = ["label.KEY" if param.labels else param.name for param in route.params if not param.header]
        check_names(names, known, "parameter", is_strict=not route.is_kept)
