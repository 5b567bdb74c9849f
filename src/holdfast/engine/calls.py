"""What the engine must know of a user's function to call it as a step. Looked up once per function."""

from __future__ import annotations

import functools
import inspect
import marshal
import types
import typing
import weakref
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic_core import to_json

from ..basis.errors import DefinitionError
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
    function = _function(fn)
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
    name = getattr(function, "__qualname__", None) or type(fn).__qualname__
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
    """A short mark of a function and its arguments, to notice that a saved step is called with others today."""
    try:
        text = to_json((args, kwargs), fallback=_mark, inf_nan_mode="constants", bytes_mode="base64")
    except Exception:
        text = b"?"
    if _may_hold_a_set(args, kwargs):
        # Its order is another one in every process. A mark of which bytes there are still tells most changes.
        text = bytes(sorted(text))
    return f"{name}:{zlib.crc32(text):08x}"


def _may_hold_a_set(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        exact = marshal.dumps((args, kwargs), 2)
    except ValueError:  # it holds objects, and who knows what they hold
        return True
    # The marks of sets and frozensets in this format. They may also stand in a text, which does no harm.
    return b"<" in exact or b">" in exact


def _mark(value: Any) -> str:
    return type(value).__qualname__
