"""A job's signature: what it takes, what it gives, what it refuses."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, ConfigDict, Field, JsonValue, RootModel, field_validator
from typing_extensions import TypedDict

from holdfast.basis.errors import DefinitionError, Outdated, ValidationError
from holdfast.engine.schema import Signature


class Step:
    pass


class SyncStep:
    pass


class Row(BaseModel):
    id: int
    name: str = "x"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: int


class Words(RootModel[list[str]]):
    pass


class Touchy(BaseModel):
    x: int

    @field_validator("x")
    @classmethod
    def _check(cls, x: int) -> int:
        raise TypeError("a bug in the validator")


class Movie(TypedDict):
    title: str


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


def of(fn: Callable[..., Any], **names: Any) -> Signature:
    return Signature(fn, (Step, SyncStep), names)


def through(signature: Signature, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return signature.decode(signature.encode(args, kwargs))


async def plain_job(step: Step, a: str, b: int = 1, *, c: bool = False) -> str:
    return a


# -- what comes through ----------------------------------------------------------------------------


def test_arguments_by_position_and_by_name_and_defaults_come_through() -> None:
    job = of(plain_job)
    assert job.takes_step
    assert job.is_async
    assert job.names == ("a", "b", "c")
    assert through(job, "x") == (("x", 1), {"c": False})
    assert through(job, "x", 2, c=True) == (("x", 2), {"c": True})
    assert through(job, b=2, a="x") == (("x", 2), {"c": False})


def test_defaults_are_stored_with_the_run() -> None:
    assert json.loads(of(plain_job).encode(("x",), {})) == {"a": "x", "b": 1, "c": False}


def test_a_job_without_step_or_parameters_has_an_empty_object() -> None:
    def nothing() -> None: ...

    job = of(nothing)
    assert not job.takes_step
    assert not job.is_async
    assert job.encode((), {}) == "{}"
    assert job.decode("{}") == ((), {})
    assert job.output.keep(None).text == "null"


def test_hostile_parameter_names_are_no_obstacle() -> None:
    def job(
        json: int, copy: int, schema: int, _p: int, model_config: int, self_: int, f0: int, f1: int = 5
    ) -> None: ...

    names = ["json", "copy", "schema", "_p", "model_config", "self_", "f0"]
    kwargs = {name: number for number, name in enumerate(names)}
    assert through(of(job), **kwargs) == ((0, 1, 2, 3, 4, 5, 6, 5), {})
    assert set(of(job).input_json_schema()["properties"]) == {*names, "f1"}


def test_positional_only_parameters_work() -> None:
    def job(a: int, /, b: int) -> None: ...

    assert through(of(job), 1, b=2) == ((1, 2), {})
    with pytest.raises(ValidationError, match="a: can only be given by position"):
        of(job).encode((), {"a": 1, "b": 2})


def test_what_json_can_not_tell_apart_survives() -> None:
    def job(
        at: dt.datetime, either: str | dt.datetime, pair: tuple[int, ...], color: Color, any: JsonValue
    ) -> None: ...

    at = dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    (got, either, *rest), _ = through(of(job), at, "2024-01-01T00:00:00", (1, 2), Color.RED, {"$": 1})
    assert got == at
    assert got.tzinfo is at.tzinfo
    assert got.fold == 1
    assert either == "2024-01-01T00:00:00"
    assert rest == [(1, 2), Color.RED, {"$": 1}]


def test_input_as_a_json_object_is_read_as_json() -> None:
    def job(at: dt.datetime, numbers: set[int], data: bytes, by_day: dict[dt.date, int], n: int = 3) -> None: ...

    signature = of(job)
    text = signature.encode_mapping(
        {"at": "2024-01-01T00:00:00Z", "numbers": [1, 2], "data": "/wA=", "by_day": {"2024-01-01": 1}, "unknown": 1}
    )
    (at, *rest), _ = signature.decode(text)
    assert at == dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    assert rest == [{1, 2}, b"\xff\x00", {dt.date(2024, 1, 1): 1}, 3]


def test_nul_round_trips_and_the_input_of_the_caller_is_not_shared() -> None:
    def job(items: list[str]) -> None: ...

    items = ["a\0b", "\uffff"]
    text = of(job).encode((items,), {})
    items.append("late")
    assert of(job).decode(text)[0] == (["a\0b", "\uffff"],)


# -- the single model ----------------------------------------------------------------------------------


def test_a_single_model_is_the_input_itself() -> None:
    async def job(step: Step, row: Row) -> None: ...

    assert json.loads(of(job).encode((Row(id=1),), {})) == {"id": 1, "name": "x"}
    assert through(of(job), row=Row(id=1)) == ((Row(id=1),), {})
    assert of(job).decode(of(job).encode_mapping({"id": 1, "more": 2}))[0] == (Row(id=1),)


@pytest.mark.parametrize(
    ("annotation", "value", "single"),
    [(Point, Point(1), True), (Movie, {"title": "x"}, True), (Annotated[Row, "x"], Row(id=1), True), (Row
     | None, Row(id=1), False),
     (list[Row], [Row(id=1)], False), (Words, Words(["a"]), False), (dict[str, int], {"a": 1}, False)],
)  # fmt: skip
def test_only_models_dataclasses_and_typed_dicts_are_single(annotation: Any, value: Any, single: bool) -> None:
    def job(p) -> None: ...  # type: ignore[no-untyped-def]

    job.__annotations__["p"] = annotation
    signature = of(job)
    assert ("p" not in json.loads(signature.encode((value,), {}))) is single
    assert through(signature, value) == ((value,), {})


def test_a_single_model_may_have_a_default_or_be_missing() -> None:
    def given(row: Row = Row(id=7)) -> None: ...  # noqa: B008

    def needed(row: Row) -> None: ...

    assert through(of(given)) == ((Row(id=7),), {})
    with pytest.raises(ValidationError, match="Invalid input: row: Field required"):
        of(needed).encode((), {})


def test_a_model_that_forbids_extra_keys_refuses_them() -> None:
    def job(p: Strict) -> None: ...

    with pytest.raises(ValidationError, match="more: "):
        of(job).encode_mapping({"id": 1, "more": 2})


# -- refused input ------------------------------------------------------------------------------------


def test_every_problem_is_listed_by_its_path() -> None:
    def job(a: int, rows: list[Row], c: str = "") -> None: ...

    with pytest.raises(ValidationError) as caught:
        of(job).encode(("x", [{"id": "y"}]), {})
    assert str(caught.value).startswith("Invalid input: a: ")
    assert "; rows[0].id: " in str(caught.value)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [((), {}, "a: Field required"), (("x", 1, 2), {}, "takes 2 positional arguments (a, b), but 3 were given"),
     (("x",), {"d": 1}, "d: there is no such parameter"), (("x",), {"a": "y"}, "a: given twice"), ((1,), {},
     "a: "), (("x",), {"b": "z"}, "b: "),
     (("\ud800",), {}, "a"), (("x",), {"step": Step()}, "step: there is no such parameter")],
)  # fmt: skip
def test_a_misfitting_call_says_which_parameter(args: Any, kwargs: Any, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        of(plain_job).encode(args, kwargs)
    assert str(caught.value).startswith("Invalid input: ")
    assert text in str(caught.value)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [nested(200_000), lambda: 1, {1, object()}, Row(id=1),
    "\ud800", bytearray(b"x"), float], ids=lambda value: type(value).__name__
)  # fmt: skip
def test_what_can_not_be_kept_is_invalid_input(value: Any) -> None:
    def job(rest: Any, other: int = 0) -> None: ...

    with pytest.raises(ValidationError, match=r"^Invalid input: rest"):
        of(job).encode((value,), {})


@pytest.mark.parametrize("value", [nested(200_000), "\ud800", object()], ids=["deep", "surrogate", "object"])
def test_a_json_object_that_is_none_is_invalid_input(value: Any) -> None:
    def job(rest: Any) -> None: ...

    with pytest.raises(ValidationError, match=r"^Invalid input: "):
        of(job).encode_mapping({"rest": value})
    with pytest.raises(ValidationError, match="an object is needed, not list"):
        of(job).encode_mapping([])  # type: ignore[arg-type]


def test_a_validator_that_breaks_is_invalid_input() -> None:
    def job(p: Touchy) -> None: ...

    with pytest.raises(ValidationError, match="a bug in the validator"):
        of(job).encode_mapping({"x": 1})


def test_nan_and_minus_zero_come_through() -> None:
    def job(x: float, y: float) -> None: ...

    (x, y), _ = through(of(job), float("nan"), -0.0)
    assert x != x
    assert str(y) == "-0.0"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a":1}', "~", '~{"$":"x"}', "null"])
def test_stored_input_that_can_not_be_read_is_outdated(text: str) -> None:
    with pytest.raises(Outdated, match=r"^input: "):
        of(plain_job).decode(text)


def test_outdated_input_names_the_parameter() -> None:
    with pytest.raises(Outdated, match=r"input: \$\.a: Field required"):
        of(plain_job).decode('{"b":1}')


# -- refused definitions ----------------------------------------------------------------------------------


def unannotated(a) -> None: ...  # type: ignore[no-untyped-def]
def star(*args: int) -> None: ...
def stars(**kwargs: int) -> None: ...
def misplaced(a: int, step: SyncStep) -> None: ...
def by_keyword(*, step: SyncStep) -> None: ...
def of_object(a: object) -> None: ...
def wrong_step(step: Step) -> None: ...
async def wrong_sync_step(step: SyncStep) -> None: ...
def generator(a: int) -> Iterator[int]:
    yield 1


async def agenerator(a: int) -> AsyncIterator[int]:
    yield 1


class Holder:
    def method(self, a: int) -> None: ...


@pytest.mark.parametrize(
    ("fn", "text"),
    [(unannotated, "'a' has no annotation"), (star, r"\*args has no schema"), (stars, r"\*\*kwargs has no schema"),
     (misplaced, "must be the first parameter, not 'step'"), (by_keyword, "must be the first"), (of_object, "object"),
     (wrong_step, "takes a SyncStep, not a Step"), (wrong_sync_step, "takes a Step, not a SyncStep"), (generator,
     "generator"),
     (agenerator, "generator"), (Holder.method, "it is a method"), (lambda x: x, "'x' has no annotation")],
)  # fmt: skip
def test_a_function_that_can_not_be_a_job_is_refused_at_once(fn: Any, text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        of(fn)


def test_an_annotation_without_a_schema_is_refused_naming_the_parameter() -> None:
    def job(a: int, b: range) -> None: ...

    def single(step: SyncStep, b: range) -> None: ...

    def returning() -> range: ...  # type: ignore[empty-body]

    for fn, text in ((job, "'b'"), (single, "'b'"), (returning, "what it returns")):
        with pytest.raises(DefinitionError, match=text):
            of(fn).resolve()


def test_a_field_as_default_is_refused_with_advice() -> None:
    def job(a: int = Field(gt=0)) -> None: ...

    with pytest.raises(DefinitionError, match="Annotated"):
        of(job).resolve()


def test_a_name_that_is_defined_later_is_looked_up_at_first_use() -> None:
    def job(step: SyncStep, a: Later, b: int = 0) -> Later: ...  # type: ignore[name-defined]  # noqa: F821

    signature = of(job)
    assert signature.takes_step
    with pytest.raises(DefinitionError, match=r"annotation of '(a|return)' can't be looked up"):
        signature.resolve()
    globals()["Later"] = Row
    try:
        assert through(signature, Row(id=1))[0] == (Row(id=1), 0)
    finally:
        del globals()["Later"]


def test_names_local_to_the_definition_are_found() -> None:
    class Local(BaseModel):
        x: int

    def job(p: Local, n: int) -> Local: ...  # type: ignore[empty-body]

    assert through(of(job, Local=Local), Local(x=1), 2) == ((Local(x=1), 2), {})


# -- output and display ----------------------------------------------------------------------------------


def test_the_output_is_kept_by_the_return_annotation() -> None:
    def typed() -> Row: ...  # type: ignore[empty-body]

    def untyped(): ...  # type: ignore[no-untyped-def]

    def anything() -> Any: ...

    assert of(typed).output.keep(Row(id=1)).value == Row(id=1)
    assert of(typed).output_json_schema()["title"] == "Row"
    for fn in (untyped, anything):
        assert of(fn).output.keep((1, 2)).value == (1, 2)
        assert of(fn).output_json_schema() == {}


def test_the_schema_shows_names_constraints_and_defaults() -> None:
    def job(a: Annotated[int, Field(gt=0, description="how many")], b: str = "x") -> None: ...

    schema = of(job).input_json_schema()
    assert schema["properties"]["a"]["exclusiveMinimum"] == 0
    assert schema["properties"]["a"]["description"] == "how many"
    assert schema["properties"]["b"]["default"] == "x"
    assert schema["required"] == ["a"]
    with pytest.raises(ValidationError, match="a: Input should be greater than 0"):
        of(job).encode((0,), {})
