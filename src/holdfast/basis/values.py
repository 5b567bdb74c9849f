"""Values that survive: what a step returns comes back from the database equal and of the same type, or is refused.

JSON alone loses a third of Python without a word: tuples, zones of datetimes, the members of a union, fields of a
subclass. So a value is encoded, decoded at once and compared, and the caller gets the *decoded* value: a job sees
the same thing when the step runs and when it is replayed. There are two forms of text:

* plain JSON, through Pydantic where there is an annotation, wherever it is exact;
* tagged JSON (see `tagged`), prefixed by "~", which can't begin a JSON text. "~@" if its fields go by their names
  because their aliases don't lead back.

A class of the user's is rebuilt only through the annotation in today's code, never by a name in the text.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pydantic
from pydantic import ConfigDict, PydanticUserError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import from_json, to_json

from .errors import DefinitionError, NotKept, Outdated
from .exact import MISSING, Difference, difference, exact_json
from .tagged import Unpackable, pack, unpack

__all__ = ["COMPARED_BYTES", "MISSING", "SCALARS", "Kept", "Shape", "plain", "problems", "shape_of", "why_no_schema"]

#: Comparing costs as much as coding; above this only the type is compared (and always all in the testing kit).
COMPARED_BYTES = 65536

#: Annotations without anything to validate or convert, once the type is right.
SCALARS = (int, str, bool)

_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

#: A list of a million wrong items is told by the first of them.
_MOST_PROBLEMS = 100

#: Where JSON is not exact, or not the same text in every process (sets), whatever the value.
_INEXACT = frozenset({"datetime", "time", "any", "union", "set", "frozenset", "generator"})

#: Fields by name in spite of aliases: an argument of validation since Pydantic 2.11.
_BY_NAME: dict[str, Any] | None = (
    {"by_alias": False, "by_name": True}
    if tuple(int(part) for part in pydantic.VERSION.split(".")[:2]) >= (2, 11)
    else None
)


@dataclass(frozen=True, slots=True)
class Kept:
    """The text to store, and the value as it will come back: always a new object."""

    text: str
    value: Any


class Shape:
    """How values of one annotation are stored and read; without an annotation, as standard Python values."""

    __slots__ = ("_form", "annotation")

    def __init__(self, annotation: Any = MISSING) -> None:
        self.annotation: Any = annotation
        untyped = annotation is MISSING or annotation is Any or annotation is object
        self._form: _Form = _Untyped() if untyped else _Typed(annotation)

    def __repr__(self) -> str:
        return f"Shape({self.annotation!r})"

    def keep(self, value: Any, what: str = "value", *, compare_bytes: int | None = COMPARED_BYTES) -> Kept:
        """The text that stores the value, and the value decoded from it; `NotKept` if they would differ.

        `what` names the value in the error. Above `compare_bytes` of text only the type is compared
        (None: everything, always).
        """
        try:
            return self._form.keep(value, compare_bytes)
        except Unpackable as refusal:
            raise NotKept(
                refusal.reason, what=what, path=_path(refusal.path), before=refusal.value, after=None
            ) from None
        except _Lost as lost:
            found = lost.difference
            raise NotKept(
                found.reason, what=what, path=_path(found.path), before=found.before, after=found.after
            ) from None

    def load(self, text: str, what: str = "value") -> Any:
        """The value of a stored text; `Outdated`, naming `what` and the fields, if today's code can't read it."""
        try:
            return self._form.load(text)
        except pydantic.ValidationError as error:
            raise Outdated(f"{what}: {problems(error)}") from None
        except Exception as error:
            raise Outdated(f"{what}: the stored text can't be read: {_reason(error)}") from None

    def validate(self, value: Any) -> Any:
        """The value as its annotation has it, from Python; Pydantic's `ValidationError` if it does not fit."""
        return self._form.validate(value)

    def validate_json(self, json: str | bytes) -> Any:
        """The same from JSON that a stranger wrote, e.g. a list where a set is declared."""
        return self._form.validate_json(json)

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of such values; empty where there is none."""
        return self._form.json_schema()


def shape_of(annotation: Any = MISSING) -> Shape:
    """The shape of this annotation, made once; `DefinitionError` if Pydantic can't read and write it."""
    # The repr tells `int | str` from `str | int`: they are equal, but are not validated in the same order.
    key = annotation if type(annotation) is type else (annotation, repr(annotation))
    try:
        shape = _shapes.get(key)
    except TypeError:  # unhashable, e.g. Annotated[int, {}]
        return Shape(annotation)
    if shape is None:
        shape = Shape(annotation)
        if len(_shapes) >= 2000:  # annotations made on the fly must not fill the memory
            _shapes.clear()
        _shapes[key] = shape
    return shape


_shapes: dict[Any, Shape] = {}


def plain(text: str) -> Any:
    """A stored text decoded for display, without its annotation; the text itself if it can't be read."""
    try:
        return _Untyped().load(text)
    except Exception:
        return text


def problems(error: pydantic.ValidationError, start: str = "$") -> str:
    """What Pydantic found, as `$.path[0]: what is wrong`, separated by semicolons; of very many the first ones."""
    found = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_PROBLEMS]:
        path = start
        for step in problem["loc"]:
            path += _step(step) if path else _step(step).removeprefix(".")
        path = _cut(path)
        found.append(f"{path}: {problem['msg']}" if path else problem["msg"])
    if (more := error.error_count() - len(found)) > 0:
        found.append(f"and {more} more")
    return "; ".join(found)


def _step(step: int | str) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    step = step if len(step) <= 100 else f"{step[:100]}…"
    return step if step.startswith("[") else f".{step}"  # Pydantic calls the key of a dict "[key]"


class _Lost(Exception):
    """What came back is not what went in."""

    def __init__(self, difference: Difference) -> None:
        self.difference = difference


class _Form(Protocol):
    def keep(self, value: Any, compare_bytes: int | None) -> Kept: ...

    def load(self, text: str) -> Any: ...

    def validate(self, value: Any) -> Any: ...

    def validate_json(self, json: str | bytes) -> Any: ...

    def json_schema(self) -> dict[str, Any]: ...


class _Untyped:
    """Standard values of exactly the standard types."""

    __slots__ = ()

    def keep(self, value: Any, compare_bytes: int | None) -> Kept:
        if (exact := exact_json(value)) is not None:
            return Kept(exact, value)
        # marshal refuses every class that is not built in, and in version 2 (without references and interning)
        # equal bytes mean equal types, values, order, signs and nans all the way down: an exact comparison in C.
        try:
            # Version 4 knows references, so it also ends where a value contains itself. Version 2 would write such a
            # one for ever if it does so twice, and `to_json`, which notices, would read a generator for ever.
            marshal.dumps(value, 4)
            text = to_json(value, inf_nan_mode="null")  # NaN is no JSON: it takes the tagged form
            back = from_json(text)
            if marshal.dumps(back, 2) == marshal.dumps(value, 2):
                return Kept(text.decode(), back)
        except Exception:  # not plain; the tagged form finds out why, and where
            pass
        text = _json(pack(value), value)
        back = unpack(from_json(text))
        _check(value, back, len(text), compare_bytes, [])
        return Kept("~" + text.decode(), back)

    def load(self, text: str) -> Any:
        prefix, json = _split(text)
        tree = from_json(json, allow_inf_nan=False)
        return unpack(tree) if prefix else tree

    def validate(self, value: Any) -> Any:
        return value

    def validate_json(self, json: str | bytes) -> Any:
        return from_json(json, allow_inf_nan=False)

    def json_schema(self) -> dict[str, Any]:
        return {}


class _Typed:
    """Values of an annotation, read and written by Pydantic."""

    __slots__ = ("_adapter", "_exact", "_scalar")

    def __init__(self, annotation: Any) -> None:
        self._scalar = annotation if type(annotation) is type and annotation in SCALARS else None
        try:
            self._adapter = _adapter(annotation)
            self._exact = not _holds(self._adapter.core_schema, _INEXACT)
        except (PydanticUserError, NameError, TypeError) as error:
            raise _no_schema(annotation, error) from error

    def keep(self, value: Any, compare_bytes: int | None) -> Kept:
        if type(value) is self._scalar and (exact := exact_json(value)) is not None:
            return Kept(exact, value)
        if self._exact:
            try:
                text = self._adapter.serializer.to_json(value, by_alias=True, round_trip=True, warnings="error")
                back = self._adapter.validator.validate_json(text)
                opaque: list[Any] = []
                _check(value, back, len(text), compare_bytes, opaque)
                if not opaque or self._adapter.serializer.to_json(back, by_alias=True, round_trip=True) == text:
                    return Kept(text.decode(), back)
            except Exception:  # JSON is not exact for this value; the tagged form may be
                pass
        try:
            return self._keep_tagged(value, "~", compare_bytes)
        except (Unpackable, _Lost):
            if _BY_NAME is None:
                raise
            try:
                return self._keep_tagged(value, "~@", compare_bytes)
            except (Unpackable, _Lost):
                pass
            raise  # the first refusal: it speaks of the names that the annotation shows

    def _keep_tagged(self, value: Any, prefix: str, compare_bytes: int | None) -> Kept:
        text = self._tagged_text(value, prefix)
        try:
            back = self._load_tagged(text, prefix)
        except pydantic.ValidationError as error:
            raise _misfit("can't be read back", error, value) from None
        except Exception as error:
            raise _Lost(Difference(f"can't be read back: {_reason(error)}", value, None)) from None
        opaque: list[Any] = []
        _check(value, back, len(text), compare_bytes, opaque)
        if opaque and self._tagged_text(back, prefix) != text:
            raise _Lost(Difference(f"this {type(opaque[0]).__qualname__} comes back changed", opaque[0], None))
        return Kept(prefix + text.decode(), back)

    def _tagged_text(self, value: Any, prefix: str) -> bytes:
        dump = self._adapter.serializer.to_python
        by_alias = prefix == "~"
        try:
            tree = dump(value, by_alias=by_alias, round_trip=True, warnings="error")
        except Exception as error:
            self._explain(value, by_alias)
            raise _Lost(Difference(f"does not fit its annotation: {_reason(error)}", value, None)) from None
        return _json(pack(tree, True), value)

    def _explain(self, value: Any, by_alias: bool) -> None:
        """Raise with the path of the problem, which the serializer did not tell."""
        try:
            tree = self._adapter.serializer.to_python(value, by_alias=by_alias, round_trip=True, warnings=False)
        except Exception:
            return
        try:
            back = self._adapter.validator.validate_python(tree)
        except pydantic.ValidationError as error:
            raise _misfit("does not fit its annotation", error, value) from None
        except Exception:
            return
        _check(value, back, 0, None, [])

    def _load_tagged(self, json: bytes | str, prefix: str) -> Any:
        tree = unpack(from_json(json, allow_inf_nan=False))
        if prefix == "~":
            return self._adapter.validator.validate_python(tree)
        if _BY_NAME is None:
            raise ValueError("it was stored with Pydantic 2.11 or newer")
        return self._adapter.validator.validate_python(tree, **_BY_NAME)

    def load(self, text: str) -> Any:
        prefix, json = _split(text)
        if prefix:
            return self._load_tagged(json, prefix)
        return self._adapter.validator.validate_json(json)

    def validate(self, value: Any) -> Any:
        return self._adapter.validator.validate_python(value)

    def validate_json(self, json: str | bytes) -> Any:
        return self._adapter.validator.validate_json(json)

    def json_schema(self) -> dict[str, Any]:
        try:
            return self._adapter.json_schema()
        except PydanticInvalidForJsonSchema:
            return {}


def _split(text: str) -> tuple[str, str]:
    prefix = "~@" if text.startswith("~@") else "~" if text.startswith("~") else ""
    return prefix, text[len(prefix) :]


def _json(tree: Any, value: Any) -> bytes:
    try:
        return to_json(tree)
    except Exception as error:
        raise Unpackable(_reason(error), value) from None


def _check(value: Any, back: Any, size: int, compare_bytes: int | None, opaque: list[Any]) -> None:
    if compare_bytes is None or size <= compare_bytes or type(value) is not type(back):
        found = difference(value, back, opaque)
        if found is not None:
            raise _Lost(found)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error).split("\n")[0][:500] or type(error).__name__


def _path(path: str) -> str:
    return f"${_cut(path)}"


def _cut(path: str) -> str:
    # Of a path of thousands of levels the first and last ones tell all there is to tell.
    return path if len(path) <= 300 else f"{path[:140]}…{path[-140:]}"


def _misfit(reason: str, error: pydantic.ValidationError, value: Any) -> _Lost:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return _Lost(Difference(f"{reason}: {first['msg']}", value, None, "".join(map(_step, first["loc"]))))


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=_CONFIG)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a model or dataclass goes by its own config


def _no_schema(annotation: Any, error: Exception) -> DefinitionError:
    return DefinitionError(f"Values of type {annotation!r} can't be stored: {why_no_schema(error)}")


def why_no_schema(error: Exception) -> str:
    """Why Pydantic can't read an annotation, by what it raised."""
    if getattr(error, "code", None) == "typed-dict-version":
        return "before Python 3.12 take TypedDict from typing_extensions, not from typing"
    return str(error).split("\n")[0]


def _holds(schema: Any, kinds: frozenset[str]) -> bool:
    """Whether a core schema has a node of one of these kinds anywhere."""
    seen: set[int] = set()
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            if id(node) in seen:
                continue
            seen.add(id(node))
            kind = node.get("type")
            if isinstance(kind, str) and kind in kinds:
                return True
            waiting.extend(item for key, item in node.items() if key not in ("metadata", "serialization"))
        elif isinstance(node, list | tuple):
            waiting.extend(node)
    return False
