"""JSON with tags, for the Python values that JSON alone can't tell apart.

`pack` turns a value into a tree that JSON holds exactly: what JSON has stays as it is, everything else becomes an
object with the key "$", for example `{"$": "tuple", "v": [1, 2]}`. A dict that has "$" itself, or keys that are not
strings, becomes a "map". `unpack` is the inverse. The tags are a closed list of standard types; no name in a text
ever leads to an import or to a class of the user's, so a hostile text yields standard values or an error.
"""

from __future__ import annotations

import os
import re
import zoneinfo
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any
from uuid import UUID

from pydantic_core import TzInfo, to_json, to_jsonable_python

#: The JSON parser reads 200 levels; deeper values would be written and never read again.
DEEPEST = 200

#: int <-> decimal text stops at 4300 digits (sys.set_int_max_str_digits); 14,000 bits are 4215 digits.
_LONGEST_INT = 14_000


class Unpackable(Exception):
    """This value has no exact text."""

    def __init__(self, reason: str, value: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: str = ""
        self.value = value

    def under(self, step: str) -> Unpackable:
        """The same refusal, seen from one level further up."""
        self.path = step + self.path
        return self


def pack(value: Any, typed: bool = False, depth: int = 0) -> Any:
    """The value as a tree for JSON; `Unpackable` with reason and path if there is none.

    With `typed`, what has no tag (an Enum, a Path, a deque) is written in the simplest form that its annotation
    reads again; the caller compares what comes back.
    """
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _text(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if value.bit_length() <= _LONGEST_INT else {"$": "int", "v": hex(value)}
    if kind is float:
        return value if value - value == 0 else {"$": "float", "v": repr(value)}
    if depth >= DEEPEST:
        raise Unpackable(f"nested deeper than {DEEPEST} levels, or contains itself", value)
    if kind is list:
        return _pack_items(value, typed, depth)
    if kind is dict:
        return _pack_dict(value, typed, depth)
    if (collection := _COLLECTIONS.get(kind)) is not None:
        items = _pack_items(value, typed, depth)
        if collection != "tuple":
            items.sort(key=to_json)  # the order of a set changes with every process: one value, one text
        return {"$": collection, "v": items}
    if (scalar := _PACK.get(kind)) is not None:
        return scalar(value)
    if typed:
        return _pack_by_annotation(value, depth)
    raise Unpackable(f"{_name(kind)} is not kept without a type: annotate it, or convert it first", value)


def unpack(tree: Any) -> Any:
    """The value that `pack` made this tree of; any exception for a tree that it can't have made."""
    kind = type(tree)
    if kind is dict:
        if "$" in tree:
            return _UNPACK[tree["$"]](tree)
        return {key: unpack(item) for key, item in tree.items()}
    if kind is list:
        return [unpack(item) for item in tree]
    return tree


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unpackable(f"lone surrogate at position {error.start} of the text", value) from None
    return value


def _pack_items(items: Iterable[Any], typed: bool, depth: int) -> list[Any]:
    packed: list[Any] = []
    try:
        for item in items:
            packed.append(pack(item, typed, depth + 1))  # noqa: PERF401 - its length is the path of a refusal
    except Unpackable as refusal:
        raise refusal.under(f"[{len(packed)}]") from None
    return packed


def _pack_dict(mapping: Mapping[Any, Any], typed: bool, depth: int) -> dict[str, Any]:
    key: Any = None
    named = "$" not in mapping and all(type(key) is str for key in mapping)
    pairs: list[list[Any]] = []
    try:
        for key, item in mapping.items():
            pairs.append([pack(key, typed, depth + 1), pack(item, typed, depth + 1)])
    except Unpackable as refusal:
        raise refusal.under(f".{key}" if type(key) is str and key.isidentifier() else f"[{_shown(key)}]") from None
    return dict(pairs) if named else {"$": "map", "v": pairs}


def _shown(key: Any) -> str:
    # Only of standard types: the repr of anything else may raise or be endless.
    return repr(key)[:80] if type(key) in (str, int, float, bool, bytes, type(None)) else _name(type(key))


def _pack_by_annotation(value: Any, depth: int) -> Any:
    # Not isinstance: it asks the value for its `__class__`, which may be a property that raises.
    kind = type(value)
    if issubclass(kind, Enum):
        return pack(value.value, True, depth + 1)
    if issubclass(kind, dict):
        return _pack_dict(value, True, depth)
    if issubclass(kind, tuple):
        return {"$": "tuple", "v": _pack_items(value, True, depth)}
    if issubclass(kind, (list, set, frozenset, deque)):
        return _pack_items(value, True, depth)
    # An iterator may be endless, and reading it would use it up.
    if issubclass(kind, Iterator) or callable(value):
        raise Unpackable(f"{_name(kind)} is not kept", value)
    try:
        simple = to_jsonable_python(value)
    except Exception:
        raise Unpackable(f"{_name(type(value))} is not kept", value) from None
    return pack(simple, False, depth + 1)


# -- times -----------------------------------------------------------------------------------------


def _pack_zone(zone: tzinfo | None, value: Any) -> list[Any] | None:
    if zone is None:
        return None
    # Exactly these classes: a subclass would come back as its base. Type checkers don't see through `kind`, hence the
    # ignores below.
    kind = type(zone)
    if kind is timezone:
        offset = zone.utcoffset(None)
        named = zone.tzname(None) != timezone(offset).tzname(None)  # type: ignore[arg-type]
        return ["fixed", offset // timedelta(microseconds=1), *([zone.tzname(None)] if named else [])]  # type: ignore[operator]
    if kind is zoneinfo.ZoneInfo and zone.key:  # type: ignore[attr-defined]
        return ["zone", zone.key]  # type: ignore[attr-defined]
    if kind is TzInfo:
        return ["pydantic", zone.utcoffset(None).total_seconds()]  # type: ignore[union-attr]
    raise Unpackable(f"the time zone {_name(kind)} is not kept: use zoneinfo or datetime.timezone", value)


def _unpack_zone(zone: list[Any] | None) -> tzinfo | None:
    if zone is None:
        return None
    form, value, *name = zone
    if form == "fixed":
        return timezone(timedelta(microseconds=value), *name)
    if form == "zone":
        return _zone(value)
    if form == "pydantic":
        return TzInfo(value)
    raise ValueError(f"unknown form of time zone {form!r}")


_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")


@lru_cache(maxsize=1000)
def _zone(key: str) -> zoneinfo.ZoneInfo:
    # ZoneInfo looks into the package tzdata for a name it has no file for, importing `tzdata.zoneinfo.<name>`:
    # what we read must be a zone for certain before it may get there.
    if not _ZONE.fullmatch(key):
        raise ValueError(f"no time zone {key!r}")
    on_disk = any(os.path.isfile(os.path.join(root, key)) for root in zoneinfo.TZPATH)
    if not on_disk and key not in _zones():
        raise ValueError(f"no time zone {key!r}")
    return zoneinfo.ZoneInfo(key)


@lru_cache(maxsize=1)
def _zones() -> set[str]:
    return zoneinfo.available_timezones()


def _pack_moment(tag: str) -> Callable[[Any], dict[str, Any]]:
    def pack_moment(value: datetime | time) -> dict[str, Any]:
        packed: dict[str, Any] = {"$": tag, "v": value.replace(tzinfo=None).isoformat()}
        if value.tzinfo is not None:
            packed["tz"] = _pack_zone(value.tzinfo, value)
        if value.fold:
            packed["fold"] = 1
        return packed

    return pack_moment


def _unpack_moment(kind: type[datetime] | type[time]) -> Callable[[dict[str, Any]], Any]:
    def unpack_moment(tree: dict[str, Any]) -> Any:
        moment = kind.fromisoformat(tree["v"])
        return moment.replace(tzinfo=_unpack_zone(tree.get("tz")), fold=tree.get("fold", 0))

    return unpack_moment


# -- the closed list of tags -------------------------------------------------------------------------


def _tag(tag: str, form: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {"$": tag, "v": form(value)}


def _unpack_map(tree: dict[str, Any]) -> dict[Any, Any]:
    pairs = tree["v"]
    unpacked = {unpack(key): unpack(item) for key, item in pairs}
    if len(unpacked) != len(pairs):
        raise ValueError("two keys of a dict became one")
    return unpacked


def _exact_text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("text expected")
    return value


_COLLECTIONS: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}

_PACK: dict[type, Callable[[Any], Any]] = {
    bytes: _tag("bytes", lambda value: b64encode(value).decode()),
    datetime: _pack_moment("datetime"),
    time: _pack_moment("time"),
    date: _tag("date", date.isoformat),
    timedelta: _tag("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: _tag("decimal", str),
    UUID: _tag("uuid", str),
    complex: _tag("complex", lambda value: [repr(value.real), repr(value.imag)]),
}

_UNPACK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "map": _unpack_map,
    "tuple": lambda tree: tuple([unpack(item) for item in tree["v"]]),
    "set": lambda tree: {unpack(item) for item in tree["v"]},
    "frozenset": lambda tree: frozenset([unpack(item) for item in tree["v"]]),
    "int": lambda tree: int(_exact_text(tree["v"]), 16),
    "float": lambda tree: float(_exact_text(tree["v"])),
    "bytes": lambda tree: b64decode(tree["v"], validate=True),
    "datetime": _unpack_moment(datetime),
    "time": _unpack_moment(time),
    "date": lambda tree: date.fromisoformat(tree["v"]),
    "timedelta": lambda tree: timedelta(*tree["v"]),
    "decimal": lambda tree: Decimal(_exact_text(tree["v"])),
    "uuid": lambda tree: UUID(_exact_text(tree["v"])),
    "complex": lambda tree: complex(*[float(_exact_text(part)) for part in tree["v"]]),
}
