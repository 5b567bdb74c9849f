"""Whether what one job gives can be what another one takes, as far as their annotations tell for certain."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from ..basis.errors import DefinitionError
from ..basis.values import MISSING
from .schema import Signature, is_model

_NUMBERS = (int, float, bool)
_SCALARS = (*_NUMBERS, str, bytes)
_MANY = (list, tuple, set, frozenset, dict)


def check_handover(what: str, giver: str, gives: Any, taker: str, signature: Signature) -> None:
    """`DefinitionError` if a value of that annotation can never be the input; Pydantic decides about the rest."""
    inputs = signature.inputs()
    required = [name for name, _, has_default in inputs if not has_default]
    if len(required) > 1:
        if _is_no_mapping(gives):
            raise DefinitionError(
                f"{what}: {taker} takes {', '.join(required)}, and {giver} gives {described(gives)}: "
                "for several parameters it has to be a mapping with their names."
            )
    elif len(inputs) == 1:
        name, takes, _ = inputs[0]
        if never_fits(gives, takes):
            raise DefinitionError(
                f"{what}: {giver} gives {described(gives)}, and {taker} takes {name}: {described(takes)}."
            )


def never_fits(gives: Any, takes: Any) -> bool:
    """Whether no value of the one annotation is accepted for the other. A text may be a number, so it may fit."""
    kind = _kind(gives)
    if takes not in _SCALARS or gives is MISSING:
        return False
    if kind in _SCALARS:
        return takes in (str, bytes) and kind in _NUMBERS
    return kind is None or (isinstance(kind, type) and (issubclass(kind, _MANY) or is_model(kind)))


def described(annotation: Any) -> str:
    """The annotation as one writes it."""
    if annotation is None:
        return "nothing"
    return annotation.__qualname__ if type(annotation) is type else str(annotation).replace("typing.", "")


def _is_no_mapping(annotation: Any) -> bool:
    kind = _kind(annotation)
    if kind is None:
        return True
    return type(kind) is type and kind not in (object, types.UnionType) and not issubclass(kind, Mapping)


def _kind(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    return get_origin(annotation) or annotation
