"""V1-V4, V6, V8, M10, M11: a value is kept exactly, or refused with its path before anything is written."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from bed import Bed
from hostile import KEPT, LIMIT, REFUSED, TOO_LARGE, Case, Color, Pair, Point, Words, circle, deep, named
from pydantic import BaseModel, ConfigDict, JsonValue
from typing_extensions import TypedDict

from holdfast import HoldfastError, Job, PayloadTooLarge, Step, SyncStep, ValidationError
from holdfast.basis.exact import difference

pytestmark = pytest.mark.elsewhere("what is text to a database", every=8)

VALUES = {case.name: case for case in (*KEPT, *REFUSED)}
LARGE = {case.name: case for case in TOO_LARGE}

kept = pytest.mark.parametrize("case", KEPT, ids=named)
refused = pytest.mark.parametrize("case", REFUSED, ids=named)
either = pytest.mark.parametrize("case", VALUES.values(), ids=named)
too_large = pytest.mark.parametrize("case", TOO_LARGE, ids=named)


def same(before: object, after: object) -> bool:
    """Equal and of the same type, all the way down."""
    opaque: list[Any] = []
    return difference(before, after, opaque) is None and not opaque


class Jobs(NamedTuple):
    take: Job[[Any], Any]
    take_sync: Job[[Any], Any]
    give: Job[[str], Any]
    give_sync: Job[[str], Any]
    step_gives: Job[[str], Any]
    step_gives_sync: Job[[str], Any]
    step_caught: Job[[str], Any]
    step_takes: Job[[str], Any]
    logs: Job[[str], Any]
    progresses: Job[[str], Any]


_seen: dict[str, Any] = {}
_calls: list[str] = []


def made(name: str) -> Any:
    _calls.append(name)
    return (VALUES.get(name) or LARGE[name]).make()


@pytest.fixture(scope="module")
def jobs(bed: Bed) -> Jobs:
    app = bed.app

    @app.job
    async def take(value: Any) -> Any:
        _seen["taken"] = value
        return None

    @app.job
    def take_sync(value: Any) -> Any:
        _seen["taken"] = value
        return None

    @app.job
    async def give(name: str) -> Any:
        return made(name)

    @app.job
    def give_sync(name: str) -> Any:
        return made(name)

    @app.job
    async def step_gives(step: Step, name: str) -> Any:
        _seen["given"] = await step.run("make", made, name)
        return None

    @app.job
    def step_gives_sync(step: SyncStep, name: str) -> Any:
        _seen["given"] = step.run("make", made, name)
        return None

    @app.job
    async def step_caught(step: Step, name: str) -> Any:
        try:
            await step.run("make", made, name)
        except HoldfastError as error:
            return type(error).__name__
        return "kept"

    @app.job
    async def step_takes(step: Step, name: str) -> Any:
        value = VALUES[name].make()

        def used(given: Any) -> bool:
            return given is value

        return await step.run("use", used, value)

    @app.job
    async def logs(step: Step, name: str) -> Any:
        value = VALUES[name].make()
        step.log.info(value)
        step.log.error("with data", value=value, **{f"more {name}": [value]})
        if type(value) is str:
            step.log.warning("with a key", **{value: 1})
        return None

    @app.job
    async def progresses(step: Step, name: str) -> Any:
        step.progress(1, 2, VALUES[name].make())
        return None

    return Jobs(
        take, take_sync, give, give_sync, step_gives, step_gives_sync, step_caught, step_takes, logs, progresses
    )  # fmt: skip


# -- input --------------------------------------------------------------------------------------------------


@kept
def test_an_input_comes_to_the_job_exactly_as_it_was_given(bed: Bed, jobs: Jobs, case: Case) -> None:
    run = bed.ended(jobs.take, case.make())
    assert (run.status, run.error) == ("completed", None)
    assert same(case.make(), _seen["taken"])


@kept
def test_an_input_comes_to_a_sync_job_exactly_as_it_was_given(bed: Bed, jobs: Jobs, case: Case) -> None:
    run = bed.end_of(bed.app.trigger(jobs.take_sync.bind(value=case.make())).wait())
    assert (run.status, run.error) == ("completed", None)
    assert same(case.make(), _seen["taken"])


@refused
@pytest.mark.parametrize("verb", ["trigger", "bind", "run", "trigger_and_wait"])
def test_an_input_that_cannot_be_kept_is_refused_before_a_row_exists(
    bed: Bed, jobs: Jobs, case: Case, verb: str
) -> None:
    before = bed.rows()
    with pytest.raises(ValidationError, match=r"^Invalid input: value"):
        getattr(jobs.take, verb)(case.make())
    assert bed.rows() == before


@too_large
def test_an_input_above_the_limit_is_refused_in_the_call_itself(bed: Bed, jobs: Jobs, case: Case) -> None:
    before = bed.rows()
    with pytest.raises(PayloadTooLarge, match=rf"^input: \d+ bytes are more than the limit of {LIMIT} bytes"):
        jobs.take.trigger(case.make())
    assert bed.rows() == before


def test_the_limit_of_the_input_is_exact(bed: Bed, jobs: Jobs) -> None:
    frame = len(jobs.take.bind("").input)
    assert bed.ended(jobs.take, "x" * (LIMIT - frame)).status == "completed"
    with pytest.raises(PayloadTooLarge):
        jobs.take.trigger("x" * (LIMIT - frame + 1))


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: int
    note: str = ""


class Film(TypedDict):
    title: str


@dataclasses.dataclass
class Spot:
    x: int
    tags: list[str] = dataclasses.field(default_factory=list)


#: An annotation, a value that does not fit it, and what the refusal must name.
MISFITS: list[tuple[Any, Any, str]] = [
    (int, "x", "value: "),
    (int, 1.5, "value: "),
    (int, float("nan"), "value: "),
    (int, None, "value: "),
    (int, [], "value: "),
    (str, 5, "value: "),
    (str, b"\xff", "value: "),
    (str, "\ud800", "value: "),
    (str, Words("\ud800"), "value: "),
    (bool, "perhaps", "value: "),
    (datetime, "tomorrow", "value: "),
    (datetime, 1e400, "value: "),
    (Decimal, "1,5", "value: "),
    (list[int], [1, "x"], r"value\[1\]: "),
    (list[int], ["x"] * 100_000, "and 99900 more"),
    (dict[str, int], {"a": "x"}, r"value\.a: "),
    (dict[str, int], {1: 1}, "value"),
    (dict[str, int], {"k" * 1_000_000: "x"}, "value"),
    (dict[str, str], {"\ud800": "x"}, "value"),
    (tuple[int, int], (1, 2, 3), "value"),
    (Row, {"id": "x"}, "id: "),
    (Row, {"id": 1, "other": 2}, "other: "),
    (Row, {"id": 1, "note": "\udfff"}, "note: "),
    (Row, 5, "Row"),
    (Film, {}, "title: "),
    (Film, {"title": 1}, "title: "),
    (Spot, {"x": None}, "x: "),
    (Spot, Point(1), "Spot"),
    (Color, 7, "value: "),
    (Pair, (1,), "value"),
    (JsonValue, circle(), "value"),
    (JsonValue, deep(200_000), "value"),
    (JsonValue, {1: 2}, "value"),
    (JsonValue, float("nan"), "value"),
    (JsonValue, object(), "value: "),
    (JsonValue, {"a": {1, 2}}, "value"),
    (list[Any], deep(200_000), r"value\[0\]"),
    (list[Any], [circle()], r"value\[0\]"),
    (object, object(), "value: "),
]


@pytest.mark.parametrize("position", range(len(MISFITS)), ids=lambda at: f"{at}-{MISFITS[at][0]!s:.30}")
def test_an_input_that_does_not_fit_its_annotation_is_refused_by_name(bed: Bed, position: int) -> None:
    annotation, value, named_as = MISFITS[position]

    async def take(other: str, value: Any) -> None: ...

    take.__annotations__["value"] = annotation
    if annotation in (Row, Film, Spot):

        async def take(value: Any) -> None: ...

        take.__annotations__["value"] = annotation
    args = (value,) if annotation in (Row, Film, Spot) else ("x", value)
    job = bed.app.job(name=f"misfit-{position}")(take)
    before = bed.rows()
    if annotation is JsonValue and isinstance(value, float):
        # Not JSON, but the annotation takes any float, and it is kept exactly.
        assert job.trigger_and_wait(*args).wait().input["value"] != 0
        return
    with pytest.raises(ValidationError, match=named_as) as caught:
        job.trigger(*args)
    assert len(str(caught.value)) < 20_000
    assert bed.rows() == before


def test_unknown_missing_and_doubled_parameters_are_all_named(bed: Bed) -> None:
    @bed.app.job
    async def two(first: int, second: int = 1) -> None: ...

    before = bed.rows()
    for call, words in (
        (lambda: two.trigger(1, third=3), "third: there is no such parameter"),  # type: ignore[call-arg]
        (lambda: two.trigger(1, **{"\ud800": 3, "'; drop table": 4}), "there is no such parameter"),
        (lambda: two.trigger(1, first=1), "first: given twice"),  # type: ignore[misc]
        (lambda: two.trigger(1, 2, 3), "takes 2 positional arguments"),  # type: ignore[call-arg]
        (lambda: two.trigger(), "first"),  # type: ignore[call-arg]
    ):
        with pytest.raises(ValidationError, match=words):
            call()
    assert bed.rows() == before


def test_a_key_twice_in_json_is_read_once_the_last_one_counting() -> None:
    # Python can't make such a dict; a stranger's JSON can. It must not become two keys in the database.
    from holdfast.basis.values import shape_of

    value = shape_of().validate_json('{"a": 1, "a": 2}')
    assert json.loads(shape_of().keep(value).text) == {"a": 2}


# -- output -------------------------------------------------------------------------------------------------


@kept
@pytest.mark.parametrize("form", ["give", "give_sync"])
def test_an_output_is_read_exactly_as_the_job_returned_it(bed: Bed, jobs: Jobs, case: Case, form: str) -> None:
    run = bed.ended(getattr(jobs, form), case.name)
    assert (run.status, run.error) == ("completed", None)
    assert same(case.make(), run.output)
    again = bed.app.get_run(run.id).wait()
    assert again is not None
    assert same(case.make(), again.output)


@refused
@pytest.mark.parametrize("form", ["give", "give_sync"])
def test_an_output_that_cannot_be_kept_fails_its_run_with_the_path(bed: Bed, jobs: Jobs, case: Case, form: str) -> None:
    run = bed.ended(getattr(jobs, form), case.name)
    assert (run.status, run.error_type) == ("failed", "NotKept")
    assert run.error is not None
    assert run.error.startswith("Invalid output: $")


@kept
@pytest.mark.parametrize("form", ["step_gives", "step_gives_sync"])
def test_a_step_gives_its_value_exactly(bed: Bed, jobs: Jobs, case: Case, form: str) -> None:
    run = bed.ended(getattr(jobs, form), case.name)
    assert (run.status, run.error) == ("completed", None)
    assert same(case.make(), _seen["given"])


@refused
@pytest.mark.parametrize("form", ["step_gives", "step_gives_sync"])
def test_a_step_whose_value_cannot_be_kept_is_not_called_again(bed: Bed, jobs: Jobs, case: Case, form: str) -> None:
    _calls.clear()
    run = bed.ended(getattr(jobs, form), case.name)
    assert (run.status, run.error_type) == ("failed", "NotKept")
    assert run.error is not None
    assert run.error.startswith("step 'make': $")
    assert _calls == [case.name]
    [step] = bed.app.get_steps(run.id).wait()
    assert (step.status, step.error_type, step.output) == ("failed", "NotKept", None)


@refused
def test_a_job_may_catch_that_a_value_was_not_kept(bed: Bed, jobs: Jobs, case: Case) -> None:
    run = bed.ended(jobs.step_caught, case.name)
    assert (run.status, run.output) == ("completed", "NotKept")


@too_large
@pytest.mark.parametrize("form", ["give", "give_sync", "step_gives", "step_gives_sync"])
def test_what_is_larger_than_the_limit_ends_its_run_as_failed(bed: Bed, jobs: Jobs, case: Case, form: str) -> None:
    run = bed.ended(getattr(jobs, form), case.name)
    assert (run.status, run.error_type) == ("failed", "NotKept")
    assert run.error is not None
    assert f"larger than the limit of {LIMIT} bytes" in run.error
    assert len(run.error) < 1000


# -- what is not saved with the value -----------------------------------------------------------------------


@either
def test_a_step_gets_its_argument_untouched_whatever_it_is(bed: Bed, jobs: Jobs, case: Case) -> None:
    run = bed.ended(jobs.step_takes, case.name)
    assert (run.status, run.error, run.output) == ("completed", None, True)


def test_a_generator_given_to_a_step_is_not_read_before_the_step_reads_it(bed: Bed) -> None:
    @bed.app.job
    async def total(step: Step) -> int:
        return await step.run("sum", sum, (number for number in range(5)))

    assert bed.ended(total).output == 10


@either
def test_a_log_line_never_fails_a_run(bed: Bed, jobs: Jobs, case: Case) -> None:
    run = bed.ended(jobs.logs, case.name)
    assert (run.status, run.error) == ("completed", None)
    lines = bed.app.get_logs(run.id).wait()
    assert [line.message for line in lines][1:2] == ["with data"]
    assert len(lines) == 2 + (type(VALUES[case.name].make()) is str)
    assert all(len(line.message) < 70_000 for line in lines)
    longest = bed.ask("select max(length(coalesce(data, ''))) from holdfast_logs where run_id = ?", run.id)
    assert longest[0][0] < 70_000


@either
def test_a_message_of_progress_never_fails_a_run(bed: Bed, jobs: Jobs, case: Case) -> None:
    run = bed.ended(jobs.progresses, case.name)
    assert (run.status, run.error) == ("completed", None)
    assert run.progress is not None
    assert len(run.progress.get("message", "")) < 1200


BAD_NUMBERS: list[tuple[Any, Any]] = [
    (float("nan"), 1),
    (float("inf"), 1),
    (1, float("nan")),
    (1, float("-inf")),
    (10**5000, 1),
    (1, 2**64),
    ("1", 2),
    (None, 2),
    (True, 2),
    (1, [2]),
    (Decimal(1), 2),
    (1 + 2j, 2),
    (Words("x"), None),
]


@pytest.mark.parametrize("at", range(len(BAD_NUMBERS)))
def test_a_progress_that_is_no_number_is_a_typed_error_in_the_job(bed: Bed, at: int) -> None:
    current, total = BAD_NUMBERS[at]

    async def tells(step: Step) -> None:
        step.progress(current, total, "x")

    run = bed.ended(bed.app.job(name=f"tells-{at}")(tells))
    assert (run.status, run.error_type) == ("failed", "ValidationError")
    assert (run.error or "").startswith("progress: ")


# -- V8: what was kept is what was said ---------------------------------------------------------------------


def test_a_job_that_changes_its_input_changes_nothing_that_is_stored(bed: Bed) -> None:
    @bed.app.job
    async def greedy(items: list[int]) -> int:
        count = len(items)
        items.clear()
        return count

    given = [1, 2, 3]
    call = greedy.bind(given)
    given.append(4)
    run = bed.end_of(bed.app.trigger(call).wait())
    assert (run.output, run.input) == (3, {"items": [1, 2, 3]})
    again = bed.end_of(bed.app.retrigger(run.id).wait())
    assert again.output == 3


def test_a_step_value_that_is_changed_later_is_what_it_was_when_it_was_returned(bed: Bed) -> None:
    held: list[list[int]] = []

    def make() -> list[int]:
        held.append([1])
        return held[0]

    @bed.app.job
    async def changes(step: Step) -> list[list[int]]:
        value = await step.run("make", make)
        held[0].append(2)
        before = list(value)
        value.append(3)
        return [before, value, held[0]]

    run = bed.ended(changes)
    assert run.output == [[1], [1, 3], [1, 2]]
    [step] = bed.app.get_steps(run.id).wait()
    assert step.output == [1]


def test_an_output_that_is_changed_after_the_return_is_what_was_returned(bed: Bed) -> None:
    held: list[int] = []
    leave: Callable[[], None] = lambda: held.append(2)  # noqa: E731

    @bed.app.job
    async def returns() -> list[int]:
        held.append(1)
        asyncio.get_running_loop().call_soon(leave)
        return held

    run = bed.ended(returns)
    assert (run.output, held) == ([1], [1, 2])


def test_every_reading_gives_an_output_of_its_own(bed: Bed) -> None:
    @bed.app.job
    async def gives() -> list[int]:
        return [1]

    run = bed.ended(gives)
    assert run.output is not None
    run.output.append(2)
    assert run.output == [1]
