"""Exceptions that survive: the same one live and at replay."""

from __future__ import annotations

import os
import sys
import types
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic import ValidationError as PydanticError

from holdfast.basis.errors import Outdated, StepFailed
from holdfast.basis.failures import LONGEST_TRACEBACK, Failure, keep_failure, load_failure


class Declined(Exception):
    def __init__(self, code: int, amount: Decimal) -> None:
        super().__init__(code, amount)
        self.code = code
        self.amount = amount


class Account:
    class Empty(ValueError):
        pass


class Rewritten(Exception):
    """Its args are not what its constructor takes."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


class Extra(Exception):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Row(BaseModel):
    id: int


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def alike(one: Exception, other: Exception) -> bool:
    return type(one) is type(other) and one.args == other.args and vars(one) == vars(other)


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), ValueError(), KeyError("k"), ValueError("a\0b", (1, 2), {3}),
     Declined(3, Decimal("1.10")), Account.Empty("x"),
     StepFailed("X", "y"), UnicodeDecodeError("utf-8", b"\xff", 0, 1,
     "bad"), ZeroDivisionError("division by zero"), TimeoutError()],
    ids=repr,
)  # fmt: skip
def test_a_class_that_can_be_rebuilt_comes_back_as_itself(error: Exception) -> None:
    failure, seen = keep_failure(raised(error))
    assert alike(seen, error)
    assert seen is not error
    assert alike(load_failure(Failure.from_json(failure.to_json())), error)


def test_a_missing_file_keeps_its_name() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        os.stat("/no/such/file")
    failure, seen = keep_failure(caught.value)
    assert isinstance(seen, FileNotFoundError)
    assert seen.filename == "/no/such/file"
    assert str(load_failure(failure)) == str(caught.value)


def local_class() -> Exception:
    class Local(Exception):
        pass

    return Local("x")


def with_attribute() -> Exception:
    error = Extra("x")
    error.extra = 1  # type: ignore[attr-defined]
    return error


def of_pydantic() -> Exception:
    try:
        Row.model_validate({"id": "x"})
    except PydanticError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "name"),
    [(Rewritten(1), "Rewritten"), (local_class(), "local_class.<locals>.Local"), (with_attribute(), "Extra"),
     (Extra(object()), "Extra"),
     (Unprintable(), "Unprintable"), (of_pydantic(), "ValidationError"), (ExceptionGroup("g", [ValueError(1)]),
     "ExceptionGroup"),
     (Extra(Row(id=1)), "Extra"), (Extra("\ud800"), "Extra"), (Extra("x" * 1_000_000), "Extra")],
    ids=lambda case: type(case).__name__,
)  # fmt: skip
def test_any_other_comes_back_as_step_failed_both_times(error: Exception, name: str) -> None:
    failure, seen = keep_failure(error)
    assert isinstance(seen, StepFailed)
    assert seen.type == name == failure.short_type
    assert alike(seen, load_failure(Failure.from_json(failure.to_json())))
    failure.to_json().encode()


def test_an_unhashable_or_nan_arg_is_no_obstacle() -> None:
    _, seen = keep_failure(Extra(float("nan"), [{}]))
    assert type(seen) is Extra


def test_messages_are_cleaned_and_cut() -> None:
    failure, _ = keep_failure(raised(ValueError("\0\ud800" + "x" * 10_000_000)))
    assert failure.message.startswith("\ufffd\ufffdxxx")
    assert len(failure.message) < 40_000
    assert len(failure.to_json()) < 200_000


def test_the_traceback_shows_the_last_frames() -> None:
    def dive(depth: int) -> None:
        if depth:
            dive(depth - 1)
        raise ValueError("bottom")

    with pytest.raises(ValueError) as caught:
        dive(300)
    failure, _ = keep_failure(caught.value)
    assert failure.traceback is not None
    assert failure.traceback.endswith("ValueError: bottom\n")
    assert len(failure.traceback) < LONGEST_TRACEBACK + 100


def test_causes_and_notes_are_in_the_traceback() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error
    except ValueError as error:
        error.add_note("a note")
        failure, seen = keep_failure(error)
    text = failure.traceback or ""
    assert (
        text.index("KeyError: 'first'")
        < text.index("direct cause")
        < text.index("ValueError: second")
        < text.index("a note")
    )
    assert type(seen) is ValueError


def test_a_million_causes_are_no_obstacle() -> None:
    error: Exception = ValueError(0)
    first = error
    for number in range(1_000_000):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    failure, _ = keep_failure(error)
    assert "earlier causes left out" in (failure.traceback or "")
    # Taken apart by hand: freeing such a chain would be deep in itself.
    while error is not first:
        error, cause = error.__cause__, error  # type: ignore[assignment]
        cause.__cause__ = None


def test_a_circle_of_causes_is_no_obstacle() -> None:
    one, other = ValueError(1), ValueError(2)
    one.__context__, other.__context__ = other, one
    assert keep_failure(one)[0].traceback


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:print", "builtins:SystemExit", "builtins:object", "antigravity:X", "x", "", ":",
     "builtins:", "builtins:ValueError.x",
     "tests:X", "builtins:KeyboardInterrupt", "hooked:Anything"],
)  # fmt: skip
def test_a_hostile_name_gives_step_failed_and_imports_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hooks(types.ModuleType):
        def __getattribute__(self, attribute: str) -> Any:
            if attribute in ("__dict__", "Anything"):
                raise AssertionError("a hook was called")
            return super().__getattribute__(attribute)

    monkeypatch.setitem(sys.modules, "hooked", Hooks("hooked"))
    found = load_failure(Failure(name, "m", '~{"$":"tuple","v":["x"]}', None))
    assert isinstance(found, StepFailed)
    assert "antigravity" not in sys.modules


def test_a_class_that_is_gone_gives_step_failed() -> None:
    found = load_failure(Failure(f"{__name__}:Gone", "what it said", '~{"$":"tuple","v":[]}', None))
    assert str(found) == "Gone: what it said"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "1", '{"type":1,"message":"","args":null,"traceback":null}'])
def test_an_unreadable_failure_is_outdated(text: str) -> None:
    with pytest.raises(Outdated):
        Failure.from_json(text)


def test_an_error_with_hooks_on_every_attribute_is_kept() -> None:
    class Hostile(Exception):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    failure, seen = keep_failure(Hostile("x"))
    assert isinstance(seen, StepFailed)
    assert failure.short_type.endswith("Hostile")
