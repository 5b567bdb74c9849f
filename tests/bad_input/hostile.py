"""The corpus: values, texts and errors that break databases, codecs and formatters, and what must become of each."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import itertools
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from holdfast import CancelRun, NonRetryable, Retryable, TimedOut

#: The sizes at which the tests' app refuses.
LIMIT = 1 << 20


class Case(NamedTuple):
    """A value by its maker: a generator can be made once only, and 10 MB shall not live for the whole suite."""

    name: str
    make: Callable[[], Any]


def named(case: Case) -> str:
    return case.name


# -- text ---------------------------------------------------------------------------------------------------

#: Every database must give these back as they are.
GOOD_TEXT = {
    "empty": "",
    "nul": "a\0b",
    "only-nul": "\0",
    "uffff": "a\uffffb",
    "ufffd": "\ufffd",
    "bom": "\ufeffx",
    "rtl": "\u202eabc\u202c \u0634\u0643",
    "emoji": "👩\u200d👩\u200d👧\u200d👦😀",
    "line-separators": "a\u2028b\u2029c\r\n\x85",
    "ansi": "\x1b[31mred\x1b[0m\x07",
    "sql": "'; drop table holdfast_runs; --",
    "nfd": "e\u0301",
    "nfc": "\u00e9",
    "backslash-nul": "\\u0000 \\\\u0000",
    "tagged": '~{"$":"map"}',
    "highest": "\U0010ffff",
    "control": "".join(map(chr, range(32))),
}

#: No encoding has these.
BAD_TEXT = {
    "high-surrogate": "a\ud800b",
    "low-surrogate": "\udfff",
    "surrogate-pair": "\ud83d\ude00",
    "escaped-byte": b"\xff".decode(errors="surrogateescape"),
}


# -- values -------------------------------------------------------------------------------------------------


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def deep_dict(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def circle() -> Any:
    value: list[Any] = [1]
    value.append(value)
    return value


def circle_of_dicts() -> Any:
    value: dict[str, Any] = {}
    value["self"] = [value, value]
    return value


class Color(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: int = 1


class Pair(NamedTuple):
    a: int
    b: int


class Words(str):
    pass


class Count(int):
    pass


class Rows(list[Any]):
    pass


class Touchy:
    """Every hook raises."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("getattr")

    @property
    def __class__(self) -> Any:
        raise RuntimeError("class")

    def __iter__(self) -> Any:
        raise RuntimeError("iter")

    def __len__(self) -> int:
        raise RuntimeError("len")


class Mute:
    """Can't be shown, compared, hashed, or measured."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __bool__(self) -> bool:
        raise RuntimeError("bool")


#: Without an annotation kept exactly: equal, and of the same type all the way down.
KEPT = [
    *[Case(f"text-{name}", lambda text=text: text) for name, text in GOOD_TEXT.items()],
    *[Case(f"key-{name}", lambda text=text: {text: [text]}) for name, text in GOOD_TEXT.items()],
    Case("nan", lambda: float("nan")),
    Case("inf", lambda: float("inf")),
    Case("-inf", lambda: [float("-inf")]),
    Case("-0.0", lambda: -0.0),
    Case("1e308", lambda: 1e308),
    Case("5e-324", lambda: 5e-324),
    Case("2^53-1", lambda: 2**53 - 1),
    Case("2^53+1", lambda: 2**53 + 1),
    Case("2^63-1", lambda: 2**63 - 1),
    Case("2^63", lambda: 2**63),
    Case("-2^63-1", lambda: -(2**63) - 1),
    Case("2^64", lambda: {"n": 2**64}),
    Case("4300-digits", lambda: 10**4300 - 1),
    Case("5000-digits", lambda: 10**4999),
    Case("-5000-digits", lambda: [-(10**4999)]),
    Case("decimal", lambda: Decimal("1.10")),
    Case("decimal-nan", lambda: Decimal("NaN")),
    Case("decimal-huge", lambda: Decimal("1E+999999")),
    Case("complex", lambda: complex(-0.0, float("inf"))),
    Case("bytes", lambda: b"\0\xff\xfe"),
    Case("set", lambda: {1, "1", (2, 3)}),
    Case("frozenset", lambda: frozenset({b"x", None})),
    Case("tuple", lambda: (1, (2,), ())),
    Case("int-keys", lambda: {1: 1, "1": 2}),
    Case("mixed-keys", lambda: {None: 0, True: 1, 2.5: 2, (1, 2): 3, b"b": 4}),
    Case("tag-like-key", lambda: {"$": "tuple", "v": [1]}),
    Case("proto-key", lambda: {"__proto__": 1, "__class__": 2, "py/object": "os.system"}),
    Case("date", lambda: date(1, 1, 1)),
    Case("time", lambda: time(23, 59, 59, 999999, tzinfo=UTC, fold=1)),
    Case("year-9999", lambda: datetime(9999, 12, 31, 23, 59, 59, 999999)),
    Case("zoned", lambda: datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)),
    Case("odd-offset", lambda: datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-23, seconds=-1)))),
    Case("timedelta", lambda: timedelta.max),
    Case("uuid", lambda: uuid.UUID(int=0)),
    Case("deep-100", lambda: deep(100)),
    Case("just-below-the-limit", lambda: "x" * (LIMIT - 100)),
    Case("just-below-in-two-bytes", lambda: "é" * (LIMIT // 2 - 100)),
]

#: Without an annotation refused: JSON has no exact form for them, or no form at all.
REFUSED = [
    *[Case(f"text-{name}", lambda text=text: text) for name, text in BAD_TEXT.items()],
    *[Case(f"key-{name}", lambda text=text: [{text: 1}]) for name, text in BAD_TEXT.items()],
    Case("deep-300", lambda: deep(300)),
    Case("deep-200000", lambda: deep(200_000)),
    Case("deep-dict-200000", lambda: deep_dict(200_000)),
    Case("circle", circle),
    Case("circle-of-dicts", circle_of_dicts),
    Case("generator", lambda: (i for i in range(3))),
    Case("endless", itertools.count),
    Case("map", lambda: map(str, [1])),
    Case("range", lambda: range(3)),
    Case("object", object),
    Case("function", lambda: named),
    Case("lambda", lambda: lambda: 1),
    Case("class", lambda: Point),
    Case("module", lambda: itertools),
    Case("lock", threading.Lock),
    Case("dataclass", Point),
    Case("enum", lambda: Color.RED),
    Case("int-enum", lambda: [Number.ONE]),
    Case("namedtuple", lambda: Pair(1, 2)),
    Case("str-subclass", lambda: Words("x")),
    Case("int-subclass", lambda: {"n": Count(1)}),
    Case("list-subclass", lambda: Rows([1])),
    Case("bytearray", lambda: bytearray(b"x")),
    Case("memoryview", lambda: memoryview(b"x")),
    Case("fraction", lambda: Fraction(1, 3)),
    Case("exception", lambda: ValueError("x")),
    Case("ellipsis", lambda: ...),
    Case("not-implemented", lambda: [NotImplemented]),
    Case("touchy", Touchy),
    Case("touchy-inside", lambda: {"a": [Touchy()]}),
]

#: Larger than the app's limits, each in its own way.
TOO_LARGE = [
    Case("large-ascii", lambda: "x" * 10_000_000),
    Case("large-two-bytes", lambda: "é" * (LIMIT // 2)),
    Case("large-emoji", lambda: "😀" * (LIMIT // 4)),
    Case("large-escaped", lambda: "\0" * (LIMIT // 6 + 10)),
    Case("large-bytes", lambda: b"\0" * (LIMIT * 3 // 4)),
    Case("large-list", lambda: [0] * (LIMIT // 2)),
]


# -- errors -------------------------------------------------------------------------------------------------


class SayingRaises(Exception):
    def __str__(self) -> str:
        raise ValueError("no text for you")

    __repr__ = __str__


class SayingExits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class SayingIsCancelled(Exception):
    def __str__(self) -> str:
        raise asyncio.CancelledError


class SayingIsNoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class SayingRecurses(Exception):
    def __str__(self) -> str:
        return str(self)


class HooksRaise(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class ClassRaises(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class ArgsRaise(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no args")

    def __reduce__(self) -> Any:
        raise RuntimeError("no reduce")


class TracebackRaises(Exception):
    def with_traceback(self, tb: Any) -> Any:
        raise RuntimeError("no traceback")


class NeedsKeywords(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())
        self.lock = threading.Lock()


class EqualityRaises(Exception):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    __hash__ = None  # type: ignore[assignment]


class IsFalse(Exception):
    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


class TruthRaises(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


class KindRaises(NonRetryable):
    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)

    kind = property(lambda self: 1 / 0)  # type: ignore[assignment]


class BareBase(BaseException):
    pass


def _odd_name() -> BaseException:
    class Odd(Exception):
        pass

    Odd.__qualname__ = "Odd\udc00\0" + "x" * 1000
    Odd.__module__ = 5  # type: ignore[assignment]
    return Odd("odd")


def _chain(length: int) -> BaseException:
    error: BaseException = ValueError("the first")
    for number in range(length):
        later = ValueError(f"number {number}")
        if number % 2:
            later.__cause__ = error
        else:
            later.__context__ = error
        error = later
    return error


def _own_cause() -> BaseException:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def _noted() -> BaseException:
    error = ValueError("noted")
    error.__notes__ = ["\ud800" * 1000, "x" * 5_000_000, 5, Touchy()]  # type: ignore[list-item]
    return error


#: What they end the run as; all that are not here end it as `failed`.
ENDS = {"timed-out": "timed_out", "cancel-run": "cancelled"}

ERRORS = [
    *[Case(f"text-{name}", lambda text=text: ValueError(text)) for name, text in (GOOD_TEXT | BAD_TEXT).items()],
    Case("huge-text", lambda: ValueError("é" * 10_000_000)),
    Case("huge-args", lambda: ValueError(list(range(1_000_000)), {"x": "y" * 5_000_000})),
    Case("many-args", lambda: ValueError(*range(100_000))),
    Case("surrogate-in-args", lambda: KeyError({"\ud800": ["\udfff"]})),
    Case("circular-args", lambda: ValueError(circle())),
    Case("deep-args", lambda: ValueError(deep(100_000))),
    Case("saying-raises", SayingRaises),
    Case("saying-exits", SayingExits),
    Case("saying-is-cancelled", SayingIsCancelled),
    Case("saying-is-no-text", SayingIsNoText),
    Case("saying-recurses", SayingRecurses),
    Case("hooks-raise", HooksRaise),
    Case("class-raises", ClassRaises),
    Case("args-raise", ArgsRaise),
    Case("traceback-raises", TracebackRaises),
    Case("needs-keywords", lambda: NeedsKeywords(code=5)),
    Case("unpicklable", Unpicklable),
    Case("equality-raises", EqualityRaises),
    Case("is-false", IsFalse),
    Case("truth-raises", TruthRaises),
    Case("odd-name", _odd_name),
    Case("chain-100000", lambda: _chain(100_000)),
    Case("own-cause", _own_cause),
    Case("notes", _noted),
    Case("group-of-100000", lambda: ExceptionGroup("\0many\ud800", [ValueError(i) for i in range(100_000)])),
    Case("unicode-error", lambda: UnicodeDecodeError("utf-8", b"\xff" * 100_000, 0, 1, "\ud800")),
    Case("os-error", lambda: FileNotFoundError(2, "no\0thing", "\udcff", None, "b")),
    Case("stop-iteration", lambda: StopIteration(5)),
    Case("stop-async-iteration", lambda: StopAsyncIteration(5)),
    Case("recursion", lambda: RecursionError("maximum recursion depth exceeded")),
    Case("memory", MemoryError),
    Case("timeout", TimeoutError),
    Case("retryable", lambda: Retryable("\ud800")),
    Case("non-retryable", lambda: NonRetryable("\0", kind="k\ud800\0" * 1000)),
    Case("kind-is-a-number", lambda: NonRetryable("x", kind=5)),  # type: ignore[arg-type]
    Case("kind-is-touchy", lambda: NonRetryable("x", kind=Touchy())),  # type: ignore[arg-type]
    Case("kind-raises", lambda: KindRaises("x")),
    Case("timed-out", lambda: TimedOut("late\0\ud800")),
    Case("cancel-run", lambda: CancelRun("enough\0\ud800" * 10_000)),
]

#: What no `except Exception` sees. In a job they end the run like any other error.
BASE_ERRORS = [
    Case("system-exit", lambda: SystemExit("\ud800")),
    Case("generator-exit", GeneratorExit),
    Case("cancelled-error", lambda: asyncio.CancelledError("\0")),
    Case("bare-base", lambda: BareBase(Touchy())),
    Case("base-group", lambda: BaseExceptionGroup("many", [SystemExit(1), ValueError("x")])),
]
