"""What the engine must know of a user's function to call it as a step. Looked up once per function."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import marshal
import types
import typing
import weakref
import zlib
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple

from pydantic import BaseModel

from ..basis.errors import DefinitionError
from ..basis.text import clean
from ..basis.values import Shape, shape_of
from .signals import AbortSignal

#: Set on functions that are no `async def` and give a coroutine nevertheless (before Python 3.12 nobody else can tell).
GIVES_COROUTINE = "__holdfast_gives_coroutine__"


class Callee(NamedTuple):
    """A step's function: its colour, how its value is kept, whether it wants the run's signal."""

    is_async: bool
    shape: Shape
    wants_signal: bool
    name: str


_known: weakref.WeakKeyDictionary[Any, Callee] = weakref.WeakKeyDictionary()
#: A lambda or closure is made anew for each call. One without annotations is told by its code; what is wrapped is not,
#: for all that one decorator has wrapped share the code of the wrapper.
_known_code: dict[Any, Callee] = {}
_MANY = 10_000


def callee(fn: Callable[..., Any]) -> Callee:
    """What is known of the function; `DefinitionError` for what can't be called."""
    function = fn if type(fn) is types.FunctionType else _function(fn)
    if not isinstance(function, types.FunctionType):
        return _look_at(fn, function)
    if function.__annotations__ or function.__dict__:
        known = _known.get(function)
        if known is None:
            known = _known[function] = _look_at(fn, function)
        return known
    known = _known_code.get(function.__code__)
    if known is None:
        if len(_known_code) > _MANY:
            _known_code.clear()
        known = _known_code[function.__code__] = _look_at(fn, function)
    return known


def _function(fn: Any) -> Any:
    """The function behind a method, a `partial` or an object with `__call__`."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, types.MethodType):
            fn = fn.__func__
        elif isinstance(fn, types.FunctionType | type) or inspect.isroutine(fn):
            return fn
        elif callable(fn):
            fn = type(fn).__call__
        else:
            raise _not_callable(fn)


def _not_callable(fn: Any) -> DefinitionError:
    if inspect.iscoroutine(fn):
        fn.close()
        name = fn.__qualname__
        return DefinitionError(f"step.run: {name}(…) was called already; write step.run(name, {name}, …).")
    return DefinitionError(f"step.run: {type(fn).__name__} can't be called; give a function and its arguments.")


def _look_at(fn: Any, function: Any) -> Callee:
    is_async = inspect.iscoroutinefunction(function) or getattr(function, GIVES_COROUTINE, False)
    name = clean(getattr(function, "__qualname__", None) or type(fn).__qualname__, 200)
    if isinstance(function, type):
        return Callee(False, _shape_of_class(function), False, name)
    returns = _hint(function, "return")
    wanted = _hint(function, "signal")
    wants_signal = wanted is AbortSignal or AbortSignal in typing.get_args(wanted)
    return Callee(is_async, shape_of() if returns is _NONE else shape_of(returns), wants_signal, name)


def _shape_of_class(made: type) -> Shape:
    try:
        return shape_of(made)
    except DefinitionError:
        return shape_of()


_NONE: Any = object()


def _hint(function: Any, name: str) -> Any:
    """One annotation, looked up by itself: another one that is for type checkers only does not spoil it."""
    function = inspect.unwrap(function)
    try:
        annotation = function.__annotations__[name]
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        found = typing.get_type_hints(holder, function.__globals__, include_extras=True)[name]
    except Exception:  # an annotation that can't be looked up is none
        return _NONE
    return _NONE if found in (typing.NoReturn, typing.Never) else found


def fingerprint(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A short mark of a function and its arguments, to notice that a saved step is called with others today.

    The same in every process. Nothing is called and nothing used up: writing arguments as JSON would read a generator
    before the step can, and never end for one that is endless.
    """
    flat = _SCALARS.issuperset(map(type, args)) and (not kwargs or _SCALARS.issuperset(map(type, kwargs.values())))
    mark = marshal.dumps((args, kwargs), 2) if flat else _mark_of_parts(args, kwargs)
    return f"{name}:{zlib.crc32(mark):08x}"


#: Enough to tell arguments apart; of a thousand models, or of what contains itself, the beginning does.
_MOST_PARTS = 2000
_DEEPEST = 20


def _mark_of_parts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    mark = bytearray()
    left = itertools.count(_MOST_PARTS, -1)

    def add(value: Any, depth: int) -> None:
        kind = type(value)
        if next(left) <= 0 or depth > _DEEPEST:
            return
        mark.extend(kind.__qualname__.encode(errors="replace"))
        if kind in _SCALARS or (kind in _SEVERAL and _SCALARS.issuperset(map(type, value))):
            # In version 2 equal bytes for equal values, sets too, in every process.
            mark.extend(marshal.dumps(value, 2))
        elif kind in _PARTS:
            for part in _PARTS[kind](value):
                add(part, depth + 1)
        elif issubclass(kind, Enum):
            mark.extend(value.name.encode(errors="replace"))
        elif issubclass(kind, BaseModel):
            add(dict(value.__dict__), depth + 1)
        elif dataclasses.is_dataclass(kind):
            add({field.name: getattr(value, field.name, None) for field in dataclasses.fields(kind)}, depth + 1)
        elif kind.__module__ in _PRINTABLE:
            mark.extend(str(value).encode(errors="replace"))
        # Of anything else its type has been told.

    try:
        add((args, kwargs), 0)
    except Exception:
        pass  # what was added until then is the same every time
    return bytes(mark)


_SCALARS = frozenset({str, int, float, bool, type(None), bytes, complex})
_SEVERAL = frozenset({list, tuple, set, frozenset})
_PARTS: dict[type, Callable[[Any], Iterable[Any]]] = {
    list: iter,
    tuple: iter,
    dict: dict.items,
    set: lambda members: sorted(map(repr, members)),
    frozenset: lambda members: sorted(map(repr, members)),
}
#: Whose `str` says all there is.
_PRINTABLE = frozenset({"datetime", "decimal", "uuid", "pathlib", "fractions"})
