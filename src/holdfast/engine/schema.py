"""A job's signature as the schema of its input and output.

The parameters (without the step) are the fields of a model made on the fly, `f0`, `f1`... with the parameters'
names as aliases, so that a parameter may be called `json`, `copy` or `_p`. A job whose only parameter is a model,
dataclass or TypedDict has that as its input itself. Defaults are stored with the run: a deploy that changes a
default does not change runs in flight. What the job gets is decoded from what was stored, as with step values.

The model is built at first use, because an annotation may name a class that is defined further down.

Long because each form of a signature that can't be a job is refused with its reason.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_origin

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_json
from typing_extensions import is_typeddict

from ..basis.errors import DefinitionError, NotKept, ValidationError
from ..basis.exact import exact_object
from ..basis.text import error_text
from ..basis.values import MISSING, SCALARS, Shape, problems, shape_of

_CONFIG = ConfigDict(
    extra="ignore",
    validate_default=True,
    protected_namespaces=(),
    ser_json_bytes="base64",
    val_json_bytes="base64",
    ser_json_inf_nan="strings",
)

_Kind = inspect.Parameter


class Signature:
    """What a job takes and gives.

    `step_types` are the classes of the step for `async def` and for `def` jobs; `localns` the local names of the
    place of definition. `DefinitionError` for a function that can't be a job.
    """

    takes_step: bool
    is_async: bool
    names: tuple[str, ...]
    """The parameters that make up the input, in order."""

    def __init__(
        self, fn: Callable[..., Any], step_types: tuple[type, type], localns: Mapping[str, Any] | None = None
    ) -> None:
        self._fn = fn
        self._name = getattr(fn, "__qualname__", repr(fn))
        self._step_types = step_types
        self._locals = dict(localns or {})  # a copy: the caller's frame goes on, and must not be kept alive
        self.is_async = inspect.iscoroutinefunction(fn)
        self._refuse_generators()
        signature = _inspected(fn, self._name)
        parameters = list(signature.parameters.values())
        self._refuse_forms(parameters)
        self.takes_step = self._takes_step(parameters)
        self._parameters = parameters[1:] if self.takes_step else parameters
        self._returns = signature.return_annotation
        self.names = tuple([parameter.name for parameter in self._parameters])
        self._by_position = tuple([p.name for p in self._parameters if p.kind is not _Kind.KEYWORD_ONLY])
        self._by_name = frozenset([p.name for p in self._parameters if p.kind is not _Kind.POSITIONAL_ONLY])
        self._input: _Input | None = None
        self._output: Shape | None = None
        self._is_parent = False

    def __repr__(self) -> str:
        return f"<Signature {self._name}({', '.join(self.names)})>"

    # -- definition --------------------------------------------------------------------------------

    def resolve(self) -> None:
        """Look up all names in the annotations and build the schemas; `DefinitionError` if that can't be done."""
        if self._input is None or self._output is None:
            output = self._build_output()
            self._input = self._build_input()
            self._output = output
            self._locals = {}  # they were needed for looking up names only

    @property
    def input(self) -> Shape:
        """How the input is stored."""
        return self._resolved().shape

    def inputs(self) -> list[tuple[str, Any, bool]]:
        """Of each parameter its name, its annotation, and whether it has a default."""
        self._resolved()
        return self._inputs

    @property
    def takes_model(self) -> bool:
        """Whether the input is the single model's own object."""
        return isinstance(self._resolved(), _SingleModel)

    @property
    def is_parent(self) -> bool:
        """Whether it returns `Children`."""
        self._resolved()
        return self._is_parent

    @property
    def output(self) -> Shape:
        """How what the job returns is stored; of a parent, its own part of it."""
        self._resolved()
        assert self._output is not None
        return self._output

    def input_json_schema(self) -> dict[str, Any]:
        """The JSON Schema of the input: an object by parameter name, or the single model's own."""
        return self._resolved().shape.json_schema()

    def output_json_schema(self) -> dict[str, Any]:
        """The JSON Schema of the output; empty where the job does not say what it returns."""
        return self.output.json_schema()

    # -- input ---------------------------------------------------------------------------------------

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The text to store for a call with these arguments; `ValidationError` listing every problem."""
        schema = self._input or self._resolved()
        if len(args) > len(self._by_position) or not self._by_name.issuperset(kwargs):
            raise _invalid(self._misfits(args, kwargs))
        given = dict(zip(self._by_position, args, strict=False))
        if kwargs:
            if not given.keys().isdisjoint(kwargs):
                raise _invalid(self._misfits(args, kwargs))
            given.update(kwargs)
        return schema.encode(given)

    def encode_mapping(self, mapping: Mapping[str, Any]) -> str:
        """The same for input that came as a JSON object; unknown keys are dropped unless the model forbids them."""
        if not isinstance(mapping, Mapping):
            raise _invalid(f"$: an object is needed, not {type(mapping).__name__}")
        return self._resolved().encode_json(mapping)

    def decode(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments to call the function with, after the step; `Outdated` if today's code can't read them."""
        values = (self._input or self._resolved()).decode(text)
        count = len(self._by_position)
        # Names only where Python wants them: the order of the parameters is known here.
        return tuple(values[:count]), dict(zip(self.names[count:], values[count:], strict=True))

    # -- inside ---------------------------------------------------------------------------------------

    def _resolved(self) -> _Input:
        self.resolve()
        assert self._input is not None
        return self._input

    def _build_output(self) -> Shape:
        annotation = self._annotation("return", self._returns)
        if annotation in (typing.NoReturn, typing.Never):
            annotation = MISSING
        if getattr(get_origin(annotation) or annotation, "is_children", False):
            self._is_parent = True
            annotation = next(iter(get_args(annotation)), MISSING)
        try:
            return shape_of(annotation)
        except DefinitionError as error:
            raise self._refused(f"what it returns: {error.message}") from error.__cause__

    def _build_input(self) -> _Input:
        annotations = [self._annotation(p.name, p.annotation) for p in self._parameters]
        names, defaults = self.names, [p.default is not _Kind.empty for p in self._parameters]
        self._inputs = list(zip(names, annotations, defaults, strict=True))
        for parameter, annotation in zip(self._parameters, annotations, strict=True):
            if _is_step(annotation, self._step_types):
                raise self._refused(f"the step must be the first parameter, not {parameter.name!r}")
            if isinstance(parameter.default, FieldInfo):
                raise self._refused(
                    f"{parameter.name!r} has Field(...) as its default: write Annotated[<type>, Field(...)] = <default>"
                )
        if len(annotations) == 1 and is_model(annotations[0]):
            return _SingleModel(self._name, self._parameters[0], annotations[0])
        return _Parameters(self._name, self._parameters, annotations)

    def _annotation(self, name: str, annotation: Any) -> Any:
        if annotation is inspect.Signature.empty:
            return MISSING
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        module = getattr(inspect.unwrap(self._fn), "__globals__", {})
        try:
            found = typing.get_type_hints(holder, module, self._locals, include_extras=True)[name]
        except NameError as error:
            raise self._refused(f"the annotation of {name!r} can't be looked up: {error}") from error
        except Exception as error:
            raise self._refused(f"the annotation of {name!r} is not a type: {error}") from error
        return None if found is types.NoneType else found

    def _refused(self, reason: str) -> DefinitionError:
        return DefinitionError(f"{self._name} can't be a job: {reason}")

    def _refuse_generators(self) -> None:
        if inspect.isgeneratorfunction(self._fn) or inspect.isasyncgenfunction(self._fn):
            raise self._refused("it is a generator; return the values, e.g. as a list")

    def _refuse_forms(self, parameters: list[inspect.Parameter]) -> None:
        for index, parameter in enumerate(parameters):
            name = parameter.name
            if parameter.kind in (_Kind.VAR_POSITIONAL, _Kind.VAR_KEYWORD):
                star = "*" if parameter.kind is _Kind.VAR_POSITIONAL else "**"
                raise self._refused(f"{star}{name} has no schema; take a list or a dict")
            if parameter.annotation is _Kind.empty:
                if index == 0 and name in ("self", "cls"):
                    raise self._refused("it is a method; a job is a plain function, which any process can call")
                hint = ": write step: Step (in a def job: SyncStep)" if index == 0 and name == "step" else ""
                raise self._refused(f"{name!r} has no annotation{hint}")
            if index == 0 and parameter.annotation in (object, "object"):
                raise self._refused(f"{name!r} is annotated as object, which says nothing; name its type")

    def _takes_step(self, parameters: list[inspect.Parameter]) -> bool:
        found = [self._step_at(parameter) for parameter in parameters]
        for index, step in enumerate(found):
            if step is None:
                continue
            if index or parameters[index].kind is _Kind.KEYWORD_ONLY:
                raise self._refused(f"the step must be the first parameter, not {parameters[index].name!r}")
            wanted = self._step_types[0] if self.is_async else self._step_types[1]
            if not issubclass(step, wanted):
                kind = "async def" if self.is_async else "def"
                raise self._refused(f"a job that is `{kind}` takes a {wanted.__name__}, not a {step.__name__}")
        return bool(found) and found[0] is not None

    def _step_at(self, parameter: inspect.Parameter) -> type | None:
        try:
            annotation = self._annotation(parameter.name, parameter.annotation)
        except DefinitionError as error:
            if isinstance(error.__cause__, NameError):
                return None  # defined later: `resolve` will see
            raise
        return _is_step(annotation, self._step_types)

    def _misfits(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        found = []
        if len(args) > len(self._by_position):
            count = len(self._by_position)
            takes = f"takes {count} positional argument{'' if count == 1 else 's'} ({', '.join(self._by_position)})"
            found.append(f"{self._name} {takes}, but {len(args)} were given")
        given = self._by_position[: len(args)]
        for name in kwargs:
            if name not in self._by_name:
                known = name in self.names
                found.append(f"{name}: {'can only be given by position' if known else 'there is no such parameter'}")
            elif name in given:
                found.append(f"{name}: given twice, by position and by name")
        return "; ".join(found)


class _Input(typing.Protocol):
    """How named arguments become a text, and the text the values of all parameters in order."""

    shape: Shape

    def encode(self, given: dict[str, Any]) -> str: ...

    def encode_json(self, mapping: Mapping[str, Any]) -> str: ...

    def decode(self, text: str) -> list[Any]: ...


class _Parameters:
    """Stored as an object by parameter name."""

    def __init__(self, name: str, parameters: list[inspect.Parameter], annotations: list[Any]) -> None:
        self._names = {f"f{index}": parameter.name for index, parameter in enumerate(parameters)}
        fields: dict[str, Any] = {}
        for field, parameter, annotation in zip(self._names, parameters, annotations, strict=True):
            default = ... if parameter.default is _Kind.empty else parameter.default
            fields[field] = (annotation, Field(default, alias=parameter.name))
        try:
            model = pydantic.create_model(name.rpartition(".")[2], __config__=_CONFIG, **fields)
        except (PydanticUserError, NameError, TypeError) as error:
            for parameter, annotation in zip(parameters, annotations, strict=True):
                _shape(name, parameter, annotation)  # says which
            raise DefinitionError(f"{name} can't be a job: {str(error).splitlines()[0]}") from error
        self.shape = Shape(model)
        self._scalars = all(type(one) is type and one in SCALARS for one in annotations)

    def encode(self, given: dict[str, Any]) -> str:
        return _kept(self.shape, self.shape.validate, given, self._by_parameter, self._exact if self._scalars else None)

    def _exact(self, model: Any) -> str | None:
        fields = model.__dict__
        return exact_object({name: fields[field] for field, name in self._names.items()})

    def encode_json(self, mapping: Mapping[str, Any]) -> str:
        return _kept(self.shape, self.shape.validate_json, _wire(mapping), self._by_parameter)

    def _by_parameter(self, path: str) -> str:
        # "$.f0[1].x" -> "items[1].x"
        match = re.match(r"\$\.(f\d+)", path)
        name = self._names.get(match[1]) if match else None
        return name + path[match.end() :] if match and name else path.removeprefix("$.")

    def decode(self, text: str) -> list[Any]:
        fields = self.shape.load(text, "input").__dict__
        return [fields[field] for field in self._names]


class _SingleModel:
    """Stored as the model's own object."""

    def __init__(self, job: str, parameter: inspect.Parameter, annotation: Any) -> None:
        self._name = parameter.name
        self._default = parameter.default
        self.shape = _shape(job, parameter, annotation)

    def encode(self, given: dict[str, Any]) -> str:
        value = given.get(self._name, self._default)
        if value is _Kind.empty:
            raise _invalid(f"{self._name}: Field required")
        return _kept(self.shape, self.shape.validate, value, self._path)

    def encode_json(self, mapping: Mapping[str, Any]) -> str:
        return _kept(self.shape, self.shape.validate_json, _wire(mapping), self._path)

    def _path(self, path: str) -> str:
        return path.removeprefix("$.")

    def decode(self, text: str) -> list[Any]:
        return [self.shape.load(text, "input")]


def _kept(
    shape: Shape,
    validate: Callable[[Any], Any],
    given: Any,
    named: Callable[[str], str],
    exact: Callable[[Any], str | None] | None = None,
) -> str:
    try:
        value = validate(given)
        if exact is not None and (text := exact(value)) is not None:
            return text
        return shape.keep(value, "input").text
    except pydantic.ValidationError as error:
        raise _invalid(problems(error, "")) from None
    except NotKept as error:
        raise _invalid(f"{named(error.path)}: {error.reason}") from None
    except Exception as error:  # a validator of the user's may raise anything
        raise _invalid(f"$: {error_text(error, 500)}") from error


def _wire(mapping: Mapping[str, Any]) -> bytes:
    try:
        return to_json(mapping)
    except Exception as error:
        raise _invalid(f"$: not JSON: {str(error).splitlines()[0][:500]}") from None


def _invalid(text: str) -> ValidationError:
    return ValidationError(f"Invalid input: {text}")


def _shape(job: str, parameter: inspect.Parameter, annotation: Any) -> Shape:
    try:
        return shape_of(annotation)
    except DefinitionError as error:
        raise DefinitionError(f"{job} can't be a job: {parameter.name!r}: {error.message}") from error.__cause__


def _inspected(fn: Callable[..., Any], name: str) -> inspect.Signature:
    try:
        if sys.version_info >= (3, 14):
            # Annotations are evaluated when asked for: a name that is defined later must not raise yet.
            from annotationlib import Format

            return inspect.signature(fn, annotation_format=Format.FORWARDREF)
        return inspect.signature(fn)
    except (TypeError, ValueError) as error:
        raise DefinitionError(f"{name} can't be a job: {error}") from error


def _is_step(annotation: Any, step_types: tuple[type, type]) -> type | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, step_types) else None


def is_model(annotation: Any) -> bool:
    """Whether this is written as a JSON object of its own fields."""
    if get_origin(annotation) is Annotated:
        return is_model(get_args(annotation)[0])
    kind = get_origin(annotation) or annotation
    if is_typeddict(kind):
        return True
    if not isinstance(kind, type):
        return False
    if not issubclass(kind, BaseModel):
        return dataclasses.is_dataclass(kind)
    # A model with one field of that name is Pydantic's RootModel, written as that field alone. (Importing RootModel to
    # ask would make Pydantic look through every installed package, before the program has begun.)
    return not getattr(kind, "__pydantic_root_model__", False)
