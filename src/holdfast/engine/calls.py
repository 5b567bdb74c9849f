"""What the engine must know of a user's function to call it as a step. Looked up once per function."""

from __future__ import annotations

import inspect
import typing
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic_core import to_json

from ..basis.values import Shape, shape_of
from .signals import AbortSignal


class Callee(NamedTuple):
    """A step's function: its colour, how its value is kept, whether it wants the run's signal."""

    is_async: bool
    shape: Shape
    wants_signal: bool
    name: str


#: By code object, so that a lambda or closure made anew for each call is looked up once.
_known: dict[Any, Callee] = {}
_MANY = 10_000


def callee(fn: Callable[..., Any]) -> Callee:
    """What is known of the function."""
    code = getattr(fn, "__code__", None)
    known = _known.get(code) if code is not None else None
    if known is None:
        known = _look_at(fn)
        if code is not None:
            if len(_known) > _MANY:
                _known.clear()
            _known[code] = known
    return known


def _look_at(fn: Callable[..., Any]) -> Callee:
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    method = vars(type(fn)).get("__call__")
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(method)
    hints: dict[str, Any] = {}
    try:
        hints = typing.get_type_hints(fn if inspect.isroutine(fn) else method, include_extras=True)
    except Exception:  # an annotation that can't be looked up is none
        pass
    shape = shape_of()
    if "return" in hints:
        shape = shape_of(hints["return"])
    return Callee(is_async, shape, _wants_signal(hints), name)


def _wants_signal(hints: dict[str, Any]) -> bool:
    wanted = hints.get("signal")
    return wanted is AbortSignal or AbortSignal in typing.get_args(wanted)


def fingerprint(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A short mark of a function and its arguments, to notice that a saved step is called with others today."""
    try:
        text = to_json((args, kwargs), fallback=_mark, inf_nan_mode="constants", serialize_unknown=True)
    except Exception:
        text = b"?"
    return f"{name}:{zlib.crc32(text):08x}"


def _mark(value: Any) -> str:
    return type(value).__qualname__
