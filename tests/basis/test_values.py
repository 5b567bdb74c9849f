"""Values that survive: equal and of the same type, or refused; never changed without a word."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import pathlib
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address
from typing import Annotated, Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, SecretStr
from pydantic_core import TzInfo
from typing_extensions import TypedDict

from holdfast.basis.errors import DefinitionError, NotKept, Outdated
from holdfast.basis.exact import difference
from holdfast.basis.values import MISSING, Shape, plain, shape_of

BERLIN = ZoneInfo("Europe/Berlin")
T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Word(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


class Bits(enum.Flag):
    X = 1
    Y = 2


class Odd(enum.Enum):
    PAIR = (1, 2)
    MONEY = Decimal("1.50")


class Row(BaseModel):
    id: int
    name: str = ""


class SubRow(Row):
    extra: str = "lost"


class Box(BaseModel, Generic[T]):
    item: T


class Tree(BaseModel):
    left: Tree | None = None
    value: int = 0


class Blob(BaseModel):
    data: bytes


class When(BaseModel):
    at: datetime


class Secret(BaseModel):
    password: SecretStr


class Hidden(BaseModel):
    shown: int
    hidden: int = Field(0, exclude=True)


class Aliased(BaseModel):
    number: int = Field(alias="theNumber")


class Split(BaseModel):
    number: int = Field(validation_alias="in", serialization_alias="out")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Remembering(BaseModel):
    x: int
    _lock: Any = PrivateAttr(default_factory=object)


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


@dataclasses.dataclass(eq=False)
class Uncompared:
    x: int


class Pair(NamedTuple):
    a: int
    b: str


class Movie(TypedDict):
    title: str
    year: int


KEPT: list[tuple[Any, Any]] = [
    # -- without an annotation
    *[
        (MISSING, value)
        for value in (
            None, True, False, 0, -1, 2**53 - 1, 2**53 + 1, 2**63, 2**64, 2**80, 10**4200, 10**5000, -(10**5000),
            0.0, -0.0, 1.5, 1e308, 5e-324, math.inf, -math.inf, math.nan, "", "a\0b", "\uffff", "\ufeff",
            "\u202ex", "😀",
            b"", b"\xff\x00", (), (1,
            "a"), [], [1, [2, (3,)]], {}, {"a": {"b": [1.0, None]}}, {1, 2}, frozenset({"a"}),
            {1: "a", "1": "b"}, {None: 1}, {(1, 2): 3}, {date(2024, 1, 1): 1}, {True: 1}, {"$": 1}, {"$": "tuple",
            "v": [1]},
            {"$": (1,)}, {"b": 1, "a": 2},
            date(2024, 2, 29), datetime(2024, 1, 1, 12), datetime(2024, 1, 1, 12, tzinfo=UTC),
            datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN), datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
            datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")),
            datetime(2024, 1, 1, tzinfo=TzInfo(3600)),
            time(1, 2, 3, 4), time(1, fold=1), time(1, tzinfo=BERLIN),
            timedelta(days=-1, microseconds=1), timedelta.max,
            Decimal("1.10"), Decimal("NaN"), Decimal("-0"), Decimal("1E+400"), uuid.UUID(int=5),
            1 + 2j, complex(-0.0, math.nan),
            "~", "~{}", "~@",
        )
    ],
    # -- with one
    (int, 2**80), (float, math.nan), (float, -0.0), (float, math.inf), (str, "a\0b"), (bool, True), (None, None),
    (bytes, b"\xff"),
    (datetime, datetime(2024, 1, 1)), (datetime, datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN)),
    (date, date(2024, 1, 1)),
    (time, time(1, tzinfo=BERLIN)), (timedelta, timedelta(1, 2, 3)), (Decimal, Decimal("1.10")),
    (uuid.UUID, uuid.UUID(int=7)),
    (set[int], {3, 1, 2}), (frozenset[str], frozenset("ab")), (tuple[int, str], (1, "a")), (tuple[int, ...], (1, 2)),
    (dict[int, str], {1: "a"}), (dict[date, int], {date(2024, 1, 1): 1}), (dict[bool, int], {True: 1}),
    (dict[tuple[int, int], int], {(1, 2): 3}), (dict[Number, int], {Number.ONE: 1}), (dict[str
    | None, int], {None: 1, "None": 2}),
    (Color, Color.RED), (Word, Word.A), (Number, Number.ONE), (Bits, Bits.X | Bits.Y), (Odd, Odd.PAIR),
    (Odd, Odd.MONEY),
    (Point, Point(1.0, 2.0)), (Row, Row(id=1, name="x")), (Box[int], Box[int](item=1)), (Movie, {"title": "x",
    "year": 1}),
    (Pair, Pair(1, "a")), (Tree, Tree(left=Tree(value=2))), (list[Row], [Row(id=1), Row(id=2)]),
    (Blob, Blob(data=b"\xff\x00")),
    (When, When(at=datetime(2024, 1, 1, tzinfo=BERLIN))), (Aliased, Aliased(theNumber=1)),
    (str | datetime, "2024-01-01T00:00:00"), (datetime | str, "2024-01-01T00:00:00"), (uuid.UUID
    | str, str(uuid.UUID(int=1))),
    (str | Decimal, Decimal("1.0")), (Decimal | str, "1.0"), (list[int] | tuple[int, ...], (1, 2)), (list[int]
    | set[int], {1}),
    (str | datetime, datetime(2024, 1, 1)), (int | None, None), (Row | None, Row(id=1)),
    (list[Any], [(1,), date(2024, 1, 1)]), (dict[str, Any], {"a": {1}}), (object, (1, {2})), (Any, {1: (2,)}),
    (collections.deque[int], collections.deque([1, 2])),
    (collections.OrderedDict[str, int], collections.OrderedDict(b=1, a=2)),
    (collections.Counter[str], collections.Counter("aab")), (pathlib.Path, pathlib.Path("/a/b")),
    (IPv4Address, IPv4Address("1.2.3.4")),
    (re.Pattern[str], re.compile("a+")), (tuple[datetime, pathlib.Path], (datetime(2024, 1, 1), pathlib.Path("x"))),
    (Fraction, Fraction(1, 3)), (complex, 1 + 2j), (Open, Open(x=1)), (Open, Open(x=(1, date(2024, 1, 1)))),
    (Annotated[int, Field(gt=0)], 3), (JsonValue, {"a": [1, None]}), (list[tuple[int, Color]], [(1, Color.BLUE)]),
]  # fmt: skip


def same(before: Any, after: Any) -> bool:
    opaque: list[Any] = []
    return difference(before, after, opaque) is None and not opaque


def named(cases: list[Any]) -> list[str]:
    # By number and type: every process that collects the tests must come to the same names.
    return [f"{number}-{type(case[1]).__name__}" for number, case in enumerate(cases)]


@pytest.mark.parametrize(("annotation", "value"), KEPT, ids=named(KEPT))
def test_it_comes_back_equal_and_of_the_same_type(annotation: Any, value: Any) -> None:
    shape = shape_of(annotation)
    kept = shape.keep(value, compare_bytes=None)
    assert same(value, kept.value)
    assert same(value, shape.load(kept.text))
    kept.text.encode()
    assert "NaN" not in kept.text.replace('"NaN"', "")
    plain(kept.text)


deep: list[Any] = []
for _ in range(200_000):
    deep = [deep]
circular: list[Any] = [1]
circular.append(circular)


class Yes(Exception):
    pass


def endless() -> Iterator[int]:
    while True:
        yield 1


REFUSED: list[tuple[Any, Any, str]] = [
    (MISSING, Color.RED, "$"), (MISSING, [Word.A], "$[0]"), (MISSING, {"a": Number.ONE}, "$.a"),
    (MISSING, Row(id=1), "$"),
    (MISSING, Point(1), "$"), (MISSING, {"a b": [Pair(1, "x")]}, "$['a b'][0]"), (MISSING, collections.deque(), "$"),
    (MISSING, collections.defaultdict(list), "$"), (MISSING, collections.OrderedDict(), "$"),
    (MISSING, pathlib.Path("x"), "$"),
    (MISSING, Fraction(1, 2), "$"), (MISSING, bytearray(b"x"), "$"), (MISSING, {"x": memoryview(b"x")}, "$.x"),
    (MISSING, range(3), "$"),
    (MISSING, [lambda: 1], "$[0]"), (MISSING, endless(), "$"), (MISSING, Yes(), "$"), (MISSING, object(), "$"),
    (MISSING, int, "$"),
    (MISSING, ..., "$"), (MISSING, endless.__code__, "$"), (MISSING, "\ud800", "$"), (MISSING, {"a": ["\udfff"]},
    "$.a[0]"),
    (MISSING, {"\ud800": 1}, "$['\\ud800']"), (MISSING, SecretStr("x"), "$"),
    (list[Any], [endless()], "$[0]"), (Iterable[int], endless(), "$"), (Decimal, Decimal("NaN"), "$"),
    (list[Any], [1, lambda: 1], "$[1]"),
    (list[str], ["ok", "\ud800"], "$[1]"), (dict[str, Any], {"a": bytearray(b"x")}, "$.a"),
    (Row, SubRow(id=1), "$"), (list[Row], [Row(id=1), SubRow(id=2)], "$[1]"),
    (Secret, Secret(password=SecretStr("x")), "$.password"),
    (Hidden, Hidden(shown=1, hidden=2), "$.hidden"), (list[str], [Word.A], "$[0]"), (list[int], [True], "$[0]"),
    (list[int], [1, "2"], "$[1]"), (int, "5", "$"), (None, 5, "$"), (int, None, "$"), (tuple[int, int], [1, 2], "$"),
    (collections.deque[int], collections.deque([1], maxlen=3), "$"), (list[Any], [Row(id=1)], "$[0]"),
    (Any, Row(id=1), "$"),
    (dict[str, int], {1: 1, "1": 2}, "$[1][key]"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value", "path"), REFUSED, ids=named(REFUSED))
def test_it_is_refused_with_its_path(annotation: Any, value: Any, path: str) -> None:
    with pytest.raises(NotKept) as caught:
        shape_of(annotation).keep(value, "step 'x'", compare_bytes=None)
    assert caught.value.what == "step 'x'"
    assert caught.value.path == path
    assert "step 'x'" in str(caught.value)


@pytest.mark.parametrize("annotation", [MISSING, list[Any], list, object, JsonValue])
@pytest.mark.parametrize("value", [deep, circular], ids=["200,000 levels", "circular"])
def test_bottomless_values_are_refused_cleanly(annotation: Any, value: Any) -> None:
    with pytest.raises(NotKept) as caught:
        Shape(annotation).keep(value)
    assert len(str(caught.value)) < 1500


def test_a_chain_of_models_too_deep_to_read_is_refused() -> None:
    chain = Tree()
    for _ in range(5000):
        chain = Tree.model_construct(left=chain, value=1)
    with pytest.raises(NotKept):
        Shape(Tree).keep(chain)


def test_an_int_where_a_float_is_declared_comes_back_as_that_float() -> None:
    kept = Shape(Point).keep(Point(1, 2))
    assert type(kept.value.x) is float
    with pytest.raises(NotKept):
        Shape(float).keep(2**53 + 1)


def test_the_caller_gets_a_new_object() -> None:
    value = {"a": [1]}
    kept = Shape().keep(value)
    value["a"].append(2)
    assert kept.value == {"a": [1]}
    row = Row(id=1)
    assert Shape(Row).keep(row).value is not row


def test_one_set_has_one_text() -> None:
    texts = {Shape(annotation).keep(set(order)).text for annotation in (MISSING, set[str]) for order in ("abc", "cba")}
    assert len(texts) == 1


def test_plain_json_is_stored_as_json() -> None:
    assert Shape().keep({"a": 1}).text == '{"a":1}'
    assert Shape(Row).keep(Row(id=1)).text == '{"id":1,"name":""}'
    assert Shape().keep((1,)).text.startswith("~")


def test_fields_whose_aliases_do_not_lead_back_are_kept_by_name() -> None:
    try:
        kept = Shape(Split).keep(Split.model_validate({"in": 1}))
    except NotKept:
        pytest.skip("needs Pydantic 2.11")
    assert kept.value.number == 1
    assert Shape(Split).load(kept.text) == kept.value


def test_private_state_that_has_no_equality_does_not_prevent_keeping() -> None:
    assert Shape(Remembering).keep(Remembering(x=1)).value.x == 1


def test_a_class_without_equality_is_compared_field_by_field() -> None:
    assert Shape(Uncompared).keep(Uncompared(1)).value.x == 1
    with pytest.raises(NotKept):
        Shape(Uncompared).keep(Uncompared(True))


def test_an_equality_that_raises_never_comes_out() -> None:
    @dataclasses.dataclass
    class Bad:
        x: int

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no")

    assert Shape(Bad).keep(Bad(1)).value.x == 1


def test_above_the_limit_only_the_type_is_compared() -> None:
    rows: list[Row] = [SubRow(id=1)]
    assert type(Shape(list[Row]).keep(rows, compare_bytes=1).value[0]) is Row
    with pytest.raises(NotKept):
        Shape(Row).keep(SubRow(id=1), compare_bytes=1)


def test_a_refusal_shows_no_secret() -> None:
    with pytest.raises(NotKept) as caught:
        Shape(Secret).keep(Secret(password=SecretStr("hunter2")))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "~", "~{", "~@1", "NaN", '"\ud800"', "[" * 100_000, "1e999x", '~{"$":"nope","v":1}',
    '~{"$":[],"v":1}',
             '~{"$":"set","v":[[1]]}', '~{"$":"map","v":[[1,2],[1,3]]}', '~{"$":"datetime","v":5}',
             '~{"$":"timedelta","v":[1e300]}',
             '~{"$":"datetime","v":"2024-01-01","tz":["zone","../../etc/passwd"]}', '~{"$":"decimal","v":"x"}',
             '~{"$":"int","v":"zz"}', '{"id":"x"}', "null"]
)  # fmt: skip
@pytest.mark.parametrize("annotation", [Row, MISSING])
def test_what_can_not_be_read_is_outdated_and_nothing_else(annotation: Any, text: str) -> None:
    if annotation is MISSING and text in ('{"id":"x"}', "null", "~@1"):
        return
    with pytest.raises(Outdated, match=r"^step 'a': "):
        shape_of(annotation).load(text, "step 'a'")
    plain(text)


def test_outdated_names_the_field() -> None:
    with pytest.raises(Outdated, match=r"output: \$\[1\]\.id: "):
        Shape(list[Row]).load('[{"id":1},{"id":"x"}]', "output")


def test_plain_shows_any_text() -> None:
    assert plain('{"a":[1]}') == {"a": [1]}
    assert plain(Shape().keep((1, {2})).text) == (1, {2})
    assert plain("not json") == "not json"
    assert plain('~{"$":"nope"}') == '~{"$":"nope"}'


@pytest.mark.parametrize(
    ("annotation", "name"),
    [(range, "range"), (Yes, "Yes"), (list[range], "range"), (list["Undefined"], "Undefined")],  # type: ignore[name-defined] # noqa: F821
)
def test_an_annotation_without_a_schema_is_refused_by_name(annotation: Any, name: str) -> None:
    with pytest.raises(DefinitionError, match=name):
        shape_of(annotation)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Pydantic takes it from 3.12")
def test_the_typed_dict_of_typing_is_refused_with_advice() -> None:
    import typing

    kind = typing.TypedDict("kind", {"a": int})  # type: ignore[misc] # noqa: UP013
    with pytest.raises(DefinitionError, match="typing_extensions"):
        shape_of(kind)


def test_shapes_are_made_once_and_unions_keep_their_order() -> None:
    assert shape_of(list[int]) is shape_of(list[int])
    assert shape_of(int | str) is not shape_of(str | int)
    assert shape_of(Annotated[int, {}]).keep(1).value == 1


def test_a_schema_for_display_is_always_there() -> None:
    assert Shape(Row).json_schema()["properties"]["id"]["type"] == "integer"
    assert Shape().json_schema() == {}
    assert Shape(Callable[[], int]).json_schema() == {}


standard = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.dates() | st.datetimes(timezones=st.none() | st.timezones(), allow_imaginary=False) | st.timedeltas()
    | st.decimals() | st.uuids(),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(st.text("ab$", max_size=2) | st.integers(0, 3) | st.tuples(st.booleans()), inner, max_size=4)
    | st.sets(st.integers() | st.text(st.characters(exclude_categories=["Cs"]))),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(standard)
def test_any_nest_of_standard_values_comes_back(value: Any) -> None:
    kept = Shape().keep(value, compare_bytes=None)
    assert same(value, kept.value)
    assert same(value, Shape(list[Any]).keep([value], compare_bytes=None).value[0])


HOSTILE = [
    'csystem\n(S"x"\ntR.', '{"py/object":"antigravity.x"}',
    '{"__class__":"antigravity.X","__module__":"antigravity"}',
    "!!python/object/apply:antigravity.x []", '~{"$":"antigravity:x","v":[]}',
    '~{"$":"__import__","v":"antigravity"}',
    '~{"$":"class","v":"antigravity.x"}', '~{"$":"datetime","v":"2024-01-01","tz":["zone","antigravity"]}',
    '~{"$":"datetime","v":"2024-01-01","tz":["zone","antigravity/x"]}',
    '~{"$":"datetime","v":"2024-01-01","tz":["antigravity","x"]}',
]  # fmt: skip


class Hooked:
    """What the interpreter was asked to do while watched."""

    def __init__(self) -> None:
        self.watching = False
        self.events: list[Any] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.watching and event in ("import", "exec", "compile", "open", "os.system", "subprocess.Popen"):
            self.events.append((event, args[0]))


def test_no_text_imports_or_runs_anything() -> None:
    plain('~{"$":"datetime","v":"2024-01-01","tz":["zone","no/such"]}')  # the zones are listed once
    Shape(Row)
    hooked = Hooked()
    for text in HOSTILE:
        for shape in (shape_of(), shape_of(Row), shape_of(list[Any])):
            hooked.watching = True
            try:
                shape.load(text)
            except Outdated:
                pass
            finally:
                hooked.watching = False
        plain(text)
    assert hooked.events == []
    assert "antigravity" not in sys.modules
