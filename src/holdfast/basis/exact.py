"""The first difference between a value and what came back from the database.

`==` is not enough: `1 == True == 1.0`, `"a" == StrEnumMember`, two instants in different zones are equal, `nan` is
not equal to itself, and `__eq__` of a user's class may ignore fields or raise. So types are compared everywhere, and
models and dataclasses field by field. One difference is let pass, because every type checker lets it pass: an int
where a float is declared comes back as the equal float.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel
from pydantic_core import to_json

_SCALARS = frozenset({str, int, bool, type(None), bytes, date, timedelta, UUID})


#: Up to here every JSON library reads an integer as it was written.
_EXACT_INT = 2**53


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()
"""No value at all, where None is one."""


@dataclasses.dataclass(slots=True)
class Difference:
    """Where and how two values differ."""

    reason: str
    before: Any
    after: Any
    path: str = ""

    def under(self, step: str) -> Difference:
        """The same difference, seen from one level further up."""
        self.path = step + self.path
        return self


def exact_json(value: Any) -> str | None:
    """The JSON of a value that comes back from it equal, whatever it is; None if that has to be looked at.

    Most values are this small: to read them back and compare costs more than to write them.
    """
    return _text(value) if _is_exact(value) else None


def exact_object(fields: dict[str, Any]) -> str | None:
    """The same of a JSON object whose fields are such values."""
    return _text(fields) if all(_is_exact(value) for value in fields.values()) else None


def _is_exact(value: Any) -> bool:
    kind = type(value)
    return kind is str or kind is bool or value is None or (kind is int and -_EXACT_INT <= value <= _EXACT_INT)


def _text(value: Any) -> str | None:
    try:
        return to_json(value).decode()
    except ValueError:  # a text that is no Unicode
        return None


def difference(before: Any, after: Any, opaque: list[Any]) -> Difference | None:
    """The first difference, or None. What can't be judged (no equality) is appended to `opaque`."""
    kind = type(before)
    if kind is not type(after):
        if kind is int and type(after) is float and before == after:
            return None
        return Difference(f"{kind.__qualname__} comes back as {type(after).__qualname__}", before, after)
    if kind in _SCALARS:
        return None if before == after else _changed(before, after)
    if kind is list or kind is tuple:
        return _items(before, after, opaque)
    if kind is dict:
        return _pairs(before, after, opaque)
    if kind is float and before == after != 0:
        return None
    if kind is float or kind is Decimal or kind is complex:
        # By text: -0.0 is not 0.0, Decimal("1.0") not Decimal("1.00"), and nan is nan.
        return None if repr(before) == repr(after) else _changed(before, after)
    if kind is datetime or kind is time:
        return None if _same_moment(before, after) else _changed(before, after)
    return _of_class(before, after, opaque)


def _changed(before: Any, after: Any) -> Difference:
    # The values themselves stay out of the text: they may be secret.
    return Difference(f"this {type(before).__qualname__} comes back changed", before, after)


def _items(before: Any, after: Any, opaque: list[Any]) -> Difference | None:
    if len(before) != len(after):
        return _changed(before, after)
    for index, (one, other) in enumerate(zip(before, after, strict=True)):
        if type(one) is type(other) and type(one) in _SCALARS and one == other:
            continue  # most of what there is; the call below would cost five times as much
        found = difference(one, other, opaque)
        if found is not None:
            return found.under(f"[{index}]")
    return None


def _pairs(before: Any, after: Any, opaque: list[Any]) -> Difference | None:
    if len(before) != len(after):
        return _changed(before, after)
    for (key, item), (other_key, other) in zip(before.items(), after.items(), strict=True):
        found = None if type(key) is type(other_key) is str and key == other_key else difference(key, other_key, opaque)
        found = found or difference(item, other, opaque)
        if found is not None:
            shown = f"[{key!r}]" if type(key) in _SCALARS else f"[{type(key).__qualname__}]"
            return found.under(f".{key}" if type(key) is str and key.isidentifier() else shown)
    return None


def _set(before: Any, after: Any, opaque: list[Any]) -> Difference | None:
    if len(before) != len(after):
        return _changed(before, after)
    others = {item: item for item in after}
    for item in before:
        found = difference(item, others.get(item, MISSING), opaque)
        if found is not None:
            return found.under("[item]")
    return None


def _same_moment(before: Any, after: Any) -> bool:
    return (
        before.replace(tzinfo=None) == after.replace(tzinfo=None)
        and before.fold == after.fold
        and _same_zone(before.tzinfo, after.tzinfo)
    )


def _same_zone(before: tzinfo | None, after: tzinfo | None) -> bool:
    if type(before) is not type(after):
        return False
    if type(before) is ZoneInfo:  # and so is `after`, which type checkers can't tell
        return bool(before.key == after.key)  # type: ignore[union-attr]
    if type(before) is timezone:
        return str(before) == str(after) and bool(before == after)
    return bool(before == after)


def _of_class(before: Any, after: Any, opaque: list[Any]) -> Difference | None:
    # Not isinstance: it asks the value for its `__class__`, which may be a property that raises.
    kind: type = type(before)
    if issubclass(kind, BaseModel):
        return _model(before, after, opaque)
    if issubclass(kind, Enum):
        return None if before is after else _changed(before, after)
    if dataclasses.is_dataclass(kind):
        return _fields(before, after, _dataclass_fields(kind), opaque)
    if issubclass(kind, dict):
        if issubclass(kind, defaultdict) and before.default_factory is not after.default_factory:
            return Difference("the default_factory is not kept", before, after)
        return _pairs(before, after, opaque)
    if issubclass(kind, deque):
        return _changed(before, after) if before.maxlen != after.maxlen else _items(before, after, opaque)
    if issubclass(kind, (list, tuple)):
        return _items(before, after, opaque)
    if issubclass(kind, (set, frozenset)):
        return _set(before, after, opaque)
    return _by_equality(before, after, opaque)


def _model(before: BaseModel, after: BaseModel, opaque: list[Any]) -> Difference | None:
    mine, theirs = before.__dict__, after.__dict__
    for name in _model_fields(type(before)):
        one, other = mine.get(name, MISSING), theirs.get(name, MISSING)
        if type(one) is type(other) and type(one) in _SCALARS and one == other:
            continue
        found = difference(one, other, opaque)
        if found is not None:
            return found.under(f".{name}")
    for one, other in (
        (before.__pydantic_extra__, after.__pydantic_extra__),
        (before.__pydantic_private__, after.__pydantic_private__),
    ):
        if (one or other) and (found := difference(one or {}, other or {}, opaque)):
            return found
    return None


@lru_cache(maxsize=2048)
def _model_fields(kind: type[BaseModel]) -> tuple[str, ...]:
    return tuple(kind.model_fields)


@lru_cache(maxsize=2048)
def _dataclass_fields(kind: type) -> tuple[str, ...]:
    return tuple([field.name for field in dataclasses.fields(kind) if field.compare])


def _fields(before: Any, after: Any, names: tuple[str, ...], opaque: list[Any]) -> Difference | None:
    for name in names:
        found = difference(getattr(before, name, MISSING), getattr(after, name, MISSING), opaque)
        if found is not None:
            return found.under(f".{name}")
    return None


def _by_equality(before: Any, after: Any, opaque: list[Any]) -> Difference | None:
    if before is after:
        return None
    if getattr(type(before), "__eq__", None) is object.__eq__:
        opaque.append(before)
        return None
    try:
        return None if before == after else _changed(before, after)
    except Exception:
        opaque.append(before)
        return None
