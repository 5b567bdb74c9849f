"""What can't be a job is refused where it is written: by `@app.job` and by `@job`, with and without options."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hostile import Mute

from holdfast import DefinitionError, Holdfast, Step, SyncStep, job

pytestmark = pytest.mark.elsewhere("what is text to a database", every=8)


def sync_with_async_step(step: Step, a: int) -> int:
    return a


async def async_with_sync_step(step: SyncStep, a: int) -> int:
    return a


def many(*args: int) -> None: ...


def named(**kwargs: int) -> None: ...


def unannotated(a) -> None: ...  # type: ignore[no-untyped-def]


def unannotated_step(step, a: int) -> None: ...  # type: ignore[no-untyped-def]


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


def step_last(a: int, step: SyncStep) -> None: ...


def step_by_name(*, step: SyncStep) -> None: ...


def two_steps(step: SyncStep, other: SyncStep) -> None: ...


def first_is_object(a: object) -> None: ...


class Class:
    def method(self, a: int) -> None: ...

    @classmethod
    def of_class(cls, a) -> None: ...  # type: ignore[no-untyped-def]


REFUSED: list[tuple[Any, str]] = [
    (sync_with_async_step, "takes a SyncStep, not a Step"),
    (async_with_sync_step, "takes a Step, not a SyncStep"),
    (many, r"\*args has no schema"),
    (named, r"\*\*kwargs has no schema"),
    (unannotated, "'a' has no annotation"),
    (unannotated_step, "'step' has no annotation"),
    (generator, "it is a generator"),
    (async_generator, "it is a generator"),
    (step_last, "the step must be the first parameter"),
    (step_by_name, "the step must be the first parameter"),
    (two_steps, "the step must be the first parameter"),
    (first_is_object, "annotated as object"),
    (Class.method, "it is a method"),
    (Class.of_class, "has no annotation"),
    (5, "5 is not a function"),
    (Mute(), "is not a function"),
    ("name", "is not a function"),
]


@pytest.mark.parametrize("at", range(len(REFUSED)))
@pytest.mark.parametrize("form", ["app.job", "app.job(...)", "job", "job(...)"])
def test_what_cannot_be_a_job_is_refused_where_it_is_written(form: str, at: int) -> None:
    function, why = REFUSED[at]
    app = Holdfast("sqlite://")
    decorators: dict[str, Callable[[Any], Any]] = {
        "app.job": app.job,
        "app.job(...)": app.job(name="x"),
        "job": job,
        "job(...)": job(name="x"),
    }
    with pytest.raises(DefinitionError, match=why):
        decorators[form](function)
    assert app.get_job("x") is None


def test_a_job_of_a_job_is_refused() -> None:
    @job
    async def first() -> None: ...

    with pytest.raises(DefinitionError, match="is a job already"):
        job(first)


def test_another_job_under_a_used_name_is_refused_and_the_first_one_stays() -> None:
    app = Holdfast("sqlite://")

    @app.job(name="x")
    def one() -> int:
        return 1

    with pytest.raises(DefinitionError, match="already registered"):

        @app.job(name="x")
        def two() -> int:
            return 2

    found = app.get_job("x")
    assert found is not None
    assert found.fn is one.fn
