"""Q3, Q17, Q19, M10: names, keys, labels, times and queries. Refused by name before a row exists, or kept exactly."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from bed import Bed
from hostile import BAD_TEXT, GOOD_TEXT, Mute, Words

from holdfast import ConflictError, Holdfast, HoldfastError, Job, NotFoundError, Step, SyncStep
from holdfast import job as package_job

pytestmark = pytest.mark.elsewhere("what is text to a database", every=8)

TEXTS = GOOD_TEXT | BAD_TEXT
UNSTORABLE = {name: text for name, text in TEXTS.items() if name in BAD_TEXT or "\0" in text}
STORABLE = {name: text for name, text in TEXTS.items() if name not in UNSTORABLE}

#: No job, queue or label key may be called so: they go into URLs, files and terminals.
BAD_NAMES = {
    **TEXTS,
    "path": "../../etc/passwd",
    "space": "a b",
    "trailing-newline": "a\n",
    "percent": "a%2e",
    "query": "a?b=c",
    "html": "<script>alert(1)</script>",
    "long": "x" * 256,
    "huge": "x" * 1_000_000,
    "umlaut": "größe",
    "digit": "\u0663",
    "kelvin": "\u212a",
    "dash-first": "-x",
    "dot-first": ".x",
    "slash-first": "/x",
}


def one_of(name: str, values: list[Any]) -> Any:
    """Each value by its place: pytest compares parameters, and some of these raise when they are compared."""

    def decorate(test: Callable[..., None]) -> Any:
        def with_value(bed: Bed, at: int, request: pytest.FixtureRequest) -> None:
            others = [other for other in inspect.signature(test).parameters if other not in ("bed", name)]
            test(bed=bed, **{name: values[at]}, **{other: request.getfixturevalue(other) for other in others})

        with_value.__name__, with_value.__doc__ = test.__name__, test.__doc__
        return pytest.mark.parametrize("at", range(len(values)))(with_value)

    return decorate


WRONG_TYPES = [5, 1.5, True, b"x", ["x"], {"x": 1}, object(), Mute()]


@pytest.fixture(scope="module")
def late(bed: Bed) -> Job[[], None]:
    """A job whose runs stay pending: nobody serves its queue."""

    @bed.app.job(name="late", queue="nobody")
    async def late() -> None: ...

    return late


def refused(bed: Bed, call: Callable[[], Any], match: str = "") -> None:
    """The call is refused in itself, and nothing was written."""
    before = bed.rows()
    with pytest.raises(HoldfastError, match=match):
        call()
    assert bed.rows() == before


def stored(bed: Bed, job: Job[[], None]) -> Any:
    return bed.app.get_run(job.trigger().wait().id).wait()


# -- idempotency keys (S5, Q3) ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORABLE)
def test_a_key_is_kept_exactly_and_finds_its_run(bed: Bed, late: Job[[], None], name: str) -> None:
    key = STORABLE[name]
    first = late.options(idempotency_key=key).trigger().wait()
    again = late.options(idempotency_key=key).trigger().wait()
    assert first.idempotency_key == (key or None)
    assert (again.disposition, again.id == first.id) == (("idempotent", True) if key else ("created", False))


def test_an_empty_key_is_no_key(bed: Bed, late: Job[[], None]) -> None:
    runs = [late.options(idempotency_key="").trigger().wait() for _ in range(2)]
    assert [run.disposition for run in runs] == ["created", "created"]
    assert [run.idempotency_key for run in runs] == [None, None]


def test_keys_that_look_alike_are_different_keys(bed: Bed, late: Job[[], None]) -> None:
    keys = ["k", "K", "k ", " k", "k\n", "ḱ", "k\u0301", "\u212a", "ｋ", "k\u200b", "ß", "ss", "ẞ", "1", "01", "1.0"]
    ids = {late.options(idempotency_key=key).trigger().wait().id for key in keys}
    assert len(ids) == len(keys)


@pytest.mark.parametrize("character", ["x", "é", "€", "😀"])
def test_a_key_may_have_255_bytes_and_not_one_more(bed: Bed, late: Job[[], None], character: str) -> None:
    size = len(character.encode())
    longest = character * (255 // size) + "-" * (255 % size)
    assert late.options(idempotency_key=longest).trigger().wait().idempotency_key == longest
    refused(
        bed, lambda: late.options(idempotency_key=longest + "-").trigger(), "idempotency_key: longer than 255 bytes"
    )
    refused(bed, lambda: late.options(idempotency_key=character * 1_000_000).trigger(), "idempotency_key")


@pytest.mark.parametrize("key", UNSTORABLE)
def test_a_key_that_no_database_keeps_is_refused(bed: Bed, late: Job[[], None], key: str) -> None:
    refused(bed, lambda: late.options(idempotency_key=UNSTORABLE[key]).trigger(), "idempotency_key: ")


@one_of("key", WRONG_TYPES)
def test_a_key_that_is_no_text_is_refused(bed: Bed, late: Job[[], None], key: Any) -> None:
    refused(bed, lambda: late.options(idempotency_key=key).trigger(), "idempotency_key: ")


# -- labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORABLE)
def test_a_label_is_kept_exactly_and_can_be_filtered_by(bed: Bed, late: Job[[], None], name: str) -> None:
    value = STORABLE[name]
    run = late.options(labels={f"text.{name}": value}).trigger().wait()
    assert stored_labels(bed, run.id) == {f"text.{name}": value}
    assert [found.id for found in bed.app.get_runs(labels={f"text.{name}": value}).wait()] == [run.id]
    assert bed.app.get_runs(labels={f"text.{name}": value + "x"}).wait() == []


def stored_labels(bed: Bed, run_id: str) -> dict[str, str]:
    run = bed.app.get_run(run_id).wait()
    assert run is not None
    return run.labels


GOOD_LABEL_KEYS = ("path", "dash-first", "dot-first", "slash-first")

BAD_LABELS: dict[str, Any] = {
    **{
        f"key-{name}": {text: "x"} for name, text in BAD_NAMES.items() if name != "path" and not name.endswith("-first")
    },
    "key-65": {"k" * 65: "x"},
    **{f"value-{name}": {"k": text} for name, text in UNSTORABLE.items()},
    "value-256": {"k": "x" * 256},
    "value-huge": {"k": "x" * 10_000_000},
    **{f"value-{type(value).__name__}": {"k": value} for value in WRONG_TYPES},
    **{f"key-{type(key).__name__}": {key: "x"} for key in (5, 1.5, True, b"x", None, ("a", "b"))},
    "value-none": {"k": None},
    **{f"labels-{type(labels).__name__}": labels for labels in (5, True, "a=b", ["a"], [("a", "b")], {"a"}, Mute())},
    "33-of-them": {f"k{number}": "x" for number in range(33)},
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_labels_that_cannot_be_kept_are_refused_everywhere(bed: Bed, late: Job[[], None], name: str) -> None:
    labels = BAD_LABELS[name]
    refused(bed, lambda: late.options(labels=labels).trigger(), "[Ll]abel")
    refused(bed, lambda: bed.app.get_runs(labels=labels).wait(), "[Ll]abel")
    refused(bed, lambda: package_job(name="labelled", labels=labels)(sync_function), "[Ll]abel")


def test_labels_of_the_job_and_of_the_trigger_together_may_not_be_too_many(bed: Bed, late: Job[[], None]) -> None:
    many = late.options(labels={f"a{number}": "x" for number in range(32)})
    assert len(stored(bed, many).labels) == 32
    refused(bed, lambda: many.options(labels={"b": "x"}).trigger(), "33 are too many")


# -- priorities, delays, times (Q17, Q19) -------------------------------------------------------------------


@pytest.mark.parametrize("priority", [0, 1, -1, 2**31 - 1, -(2**31)])
def test_a_priority_of_32_bits_is_kept(bed: Bed, late: Job[[], None], priority: int) -> None:
    assert stored(bed, late.options(priority=priority)).priority == priority


@one_of("priority", [2**31, -(2**31) - 1, 2**63, 2**64, 10**5000, 1.0, float("nan"), "1", True, Decimal(1), [], Mute()])
def test_any_other_priority_is_refused(bed: Bed, late: Job[[], None], priority: Any) -> None:
    refused(bed, lambda: late.options(priority=priority).trigger(), "priority: ")
    refused(bed, lambda: package_job(priority=priority)(sync_function), "priority: ")


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (0, 0), (0.0, 0), (1e-9, 0), ("0s", 0), ("90s", 90), ("12h", 43_200), (timedelta(days=3650), 315_360_000),
        ("3650d", 315_360_000), (315_360_000, 315_360_000), ("1500ms", 1.5), (timedelta(0), 0),
    ],
)  # fmt: skip
def test_a_delay_from_nothing_to_ten_years_is_kept(bed: Bed, late: Job[[], None], delay: Any, seconds: float) -> None:
    run = stored(bed, late.options(delay=delay))
    assert (run.run_at - run.created_at).total_seconds() == pytest.approx(seconds)


BAD_DELAYS: list[Any] = [
    -1, -0.001, float("nan"), float("inf"), float("-inf"), 10**5000, -(10**5000), 1e300, timedelta(seconds=-1),
    timedelta.max, "abc", "", "1", "-1s", "1 s s", "1e3s", "nan", "\u0661s", "9" * 5000 + "s", "1s\0", "\ud800", None,
    True, b"1s", Decimal(1), [1], Mute(),
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(BAD_DELAYS)))
def test_any_other_delay_is_refused(bed: Bed, late: Job[[], None], at: int) -> None:
    delay = BAD_DELAYS[at]
    if delay is None:  # None is how one says nothing, and nothing is no delay
        assert stored(bed, late.options(delay=None)).run_at is not None
        return
    refused(bed, lambda: late.options(delay=delay).trigger(), "delay: ")


class TouchyZone(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta | None:
        raise RuntimeError("no offset")


class NoZone(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta | None:
        return None


MOMENTS = [
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=14))),
    datetime(2038, 1, 19, 3, 14, 8, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_moment_is_kept_to_the_microsecond_in_utc(bed: Bed, late: Job[[], None], moment: datetime) -> None:
    run_at = stored(bed, late.options(run_at=moment)).run_at
    assert (run_at, run_at.tzinfo) == (moment, UTC)


def test_a_naive_moment_is_local_time(bed: Bed, late: Job[[], None]) -> None:
    naive = datetime(2024, 7, 1, 12, 0, 0, 1)
    assert stored(bed, late.options(run_at=naive)).run_at == naive.astimezone(UTC)


BAD_MOMENTS: list[Any] = [
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-1))),
    datetime(2024, 1, 1, tzinfo=TouchyZone()),
    "2024-01-01", "now", 0, 1.5, float("nan"), datetime(2024, 1, 1).date(), timedelta(1), True, b"", [], Mute(),
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(BAD_MOMENTS)))
def test_a_moment_that_cannot_be_kept_is_refused(bed: Bed, late: Job[[], None], at: int) -> None:
    refused(bed, lambda: late.options(run_at=BAD_MOMENTS[at]).trigger(), "run_at: ")


@pytest.mark.parametrize("moment", [datetime.min, datetime.max], ids=str)
def test_the_ends_of_naive_time_are_kept_or_refused_by_name(bed: Bed, late: Job[[], None], moment: datetime) -> None:
    # Which of the two depends on the time zone of the machine.
    try:
        moment.astimezone(UTC)
    except (OverflowError, ValueError):
        refused(bed, lambda: late.options(run_at=moment).trigger(), "run_at: ")
    else:
        assert stored(bed, late.options(run_at=moment)).run_at == moment.astimezone(UTC)


def test_a_delay_and_a_moment_together_are_refused(bed: Bed, late: Job[[], None]) -> None:
    refused(bed, lambda: late.options(delay=1, run_at=MOMENTS[0]).trigger(), "not both")


# -- names --------------------------------------------------------------------------------------------------


def sync_function() -> None: ...


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_of_a_job_or_queue_is_refused_where_it_is_written(bed: Bed, late: Job[[], None], name: str) -> None:
    text = BAD_NAMES[name]
    refused(bed, lambda: bed.app.job(name=text)(sync_function), "job name: ")
    refused(bed, lambda: bed.app.job(queue=text)(sync_function), "queue: ")
    refused(bed, lambda: late.options(queue=text).trigger(), "queue: ")
    refused(bed, lambda: Holdfast("sqlite://", queues=[text]), "queues: ")


@one_of("name", WRONG_TYPES)
def test_a_name_that_is_no_text_is_refused(bed: Bed, late: Job[[], None], name: Any) -> None:
    refused(bed, lambda: bed.app.job(name=name)(sync_function), "job name: ")
    refused(bed, lambda: bed.app.job(queue=name)(sync_function), "queue: ")
    refused(bed, lambda: late.options(queue=name).trigger(), "queue: ")
    refused(bed, lambda: Holdfast("sqlite://", queues=[name]), "queues: ")


def test_a_name_of_255_characters_and_all_allowed_ones_works(bed: Bed) -> None:
    name = ("Az09_.:/-" * 30)[:255]

    @bed.app.job(name=name)
    async def long_name() -> str:
        return "done"

    run = bed.ended(long_name)
    assert (run.job_name, run.output) == (name, "done")
    assert [found.id for found in bed.app.get_runs(job=name).wait()] == [run.id]


def test_an_unknown_option_of_a_job_is_refused_by_name() -> None:
    with pytest.raises(HoldfastError, match="there is no option 'nmae'"):
        package_job(nmae="x")(sync_function)  # type: ignore[call-overload]


STEP_NAMES: dict[str, Any] = {
    **TEXTS,
    "path": "../../etc/passwd",
    "long": "x" * 255,
    "longer": "x" * 256,
    "space": "two words",
    "umlaut": "größe",
    "str-subclass": Words("w"),
    **{f"type-{type(name).__name__}": name for name in WRONG_TYPES},
    "none": None,
}


@pytest.mark.parametrize("name", STEP_NAMES)
@pytest.mark.parametrize("form", ["async", "sync"])
def test_the_name_of_a_step_is_kept_exactly_or_a_typed_error(bed: Bed, name: str, form: str) -> None:
    text = STEP_NAMES[name]

    async def job(step: Step) -> int:
        return await step.run(text, len, "abc")

    def sync_job(step: SyncStep) -> int:
        return step.run(text, len, "abc")

    key = hashlib.sha1(f"{form}{name}".encode()).hexdigest()
    made: Job[[], int] = bed.app.job(name=key)(job) if form == "async" else bed.app.job(name=key)(sync_job)
    run = bed.ended(made)
    steps = bed.app.get_steps(run.id).wait()
    if run.status == "completed":
        assert [step.name for step in steps] == [text]
        assert isinstance(text, str)
        assert text.isprintable()
    else:
        assert (run.status, run.error_type, steps) == ("failed", "ValidationError", [])
        assert (run.error or "").startswith("step name: ")
    assert (run.status == "completed") == (isinstance(text, str) and 0 < len(text) <= 255 and text.isprintable())


# -- what nobody knows --------------------------------------------------------------------------------------


def test_a_job_that_belongs_to_no_app_cannot_be_triggered(bed: Bed) -> None:
    loose = package_job(name="loose")(sync_function)
    refused(bed, lambda: loose.trigger(), "belongs to no app")
    refused(bed, lambda: bed.app.trigger(loose.bind()), "Unknown job: loose")
    refused(bed, lambda: bed.app.trigger("late"), "is not a call")  # type: ignore[arg-type]
    refused(bed, lambda: bed.app.trigger(loose), "is not a call")  # type: ignore[arg-type]
    refused(bed, lambda: bed.app.register(sync_function), "is not a job")  # type: ignore[arg-type, call-overload]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_looking_for_a_job_by_a_bad_name_finds_none(bed: Bed, name: str) -> None:
    text = BAD_NAMES[name]
    assert bed.app.get_job(text) is None
    with pytest.raises(AttributeError):
        getattr(bed.app.jobs, text)
    if name in UNSTORABLE:
        refused(bed, lambda: bed.app.get_runs(job=text).wait(), "job: ")
    else:
        assert bed.app.get_runs(job=text).wait() == []


BAD_IDS: list[Any] = [*UNSTORABLE.values(), *WRONG_TYPES, None]


@pytest.mark.parametrize("at", range(len(BAD_IDS)))
@pytest.mark.parametrize(
    "verb", ["get_run", "get_steps", "get_logs", "cancel", "retrigger", "wait_for_run", "job.get_run"]
)
def test_a_run_id_that_cannot_be_one_is_refused(bed: Bed, late: Job[[], None], verb: str, at: int) -> None:
    act = late.get_run if verb == "job.get_run" else getattr(bed.app, verb)
    refused(bed, lambda: act(BAD_IDS[at]).wait(5), "run id: ")


@pytest.mark.parametrize("name", STORABLE)
def test_a_run_id_that_there_is_not_finds_nothing(bed: Bed, name: str) -> None:
    text = STORABLE[name]
    assert bed.app.get_run(text).wait() is None
    assert bed.app.get_steps(text).wait() == []
    assert bed.app.get_logs(text).wait() == []
    for act in (bed.app.cancel, bed.app.retrigger, bed.app.wait_for_run):
        with pytest.raises(NotFoundError):
            act(text).wait(5)


def test_what_has_ended_cannot_be_cancelled_nor_what_has_not_be_retriggered(bed: Bed, late: Job[[], None]) -> None:
    run = late.trigger().wait()
    with pytest.raises(ConflictError):
        bed.app.retrigger(run.id).wait(5)
    run.cancel().wait(5)
    with pytest.raises(ConflictError):
        run.cancel().wait(5)


BAD_COUNTS: list[Any] = [
    -1,
    2**53,
    2**63,
    2**64,
    10**5000,
    1.0,
    float("nan"),
    float("inf"),
    "1",
    True,
    b"",
    [],
    Mute(),
]


@pytest.mark.parametrize("at", range(len(BAD_COUNTS)))
def test_a_limit_or_offset_that_is_no_count_is_refused(bed: Bed, late: Job[[], None], at: int) -> None:
    count = BAD_COUNTS[at]
    refused(bed, lambda: bed.app.get_runs(limit=count).wait(), "limit")
    refused(bed, lambda: bed.app.get_runs(offset=count).wait(), "offset")
    refused(bed, lambda: late.get_runs(limit=count).wait(), "limit")
    refused(bed, lambda: late.get_runs(offset=count).wait(), "offset")
    refused(bed, lambda: bed.app.get_logs("x", after=count).wait(), "after")
    refused(bed, lambda: bed.app.get_logs("x", limit=count).wait(), "limit")
    refused(bed, lambda: bed.app.process_until_idle(max_runs=count).wait(5), "max_runs")


def test_the_largest_counts_and_no_limit_work(bed: Bed, late: Job[[], None]) -> None:
    late.trigger().wait()
    assert bed.app.get_runs(limit=2**53 - 1).wait()
    assert bed.app.get_runs(limit=None).wait()
    assert bed.app.get_runs(limit=0).wait() == []
    assert bed.app.get_runs(offset=2**53 - 1).wait() == []


@pytest.mark.parametrize("name", [*UNSTORABLE, "sql", "emoji"])
def test_a_page_after_a_bad_id_is_empty_or_refused(bed: Bed, name: str) -> None:
    if name in UNSTORABLE:
        refused(bed, lambda: bed.app.get_runs(before=TEXTS[name]).wait(), "before: ")
    else:
        assert isinstance(bed.app.get_runs(before=TEXTS[name]).wait(), list)


BAD_STATUSES: list[Any] = [*TEXTS.values(), "Pending", "done", 5, True, [5], ["pending", None], [["pending"]], Mute()]


@pytest.mark.parametrize("at", range(len(BAD_STATUSES)))
def test_a_status_that_there_is_not_is_refused(bed: Bed, late: Job[[], None], at: int) -> None:
    refused(bed, lambda: bed.app.get_runs(status=BAD_STATUSES[at]).wait(), "status")
    refused(bed, lambda: late.get_runs(status=BAD_STATUSES[at]).wait(), "status")


@one_of("given", [5, True, [5], [None], b"x", Mute()])
def test_a_job_to_list_that_is_none_is_refused(bed: Bed, given: Any) -> None:
    refused(bed, lambda: bed.app.get_runs(job=given).wait(), "job: ")


@one_of("timeout", [float("nan"), "5", True, b"", [], Mute()])
def test_a_timeout_that_is_no_number_is_refused(bed: Bed, late: Job[[], None], timeout: Any) -> None:
    run = late.trigger().wait()
    refused(bed, lambda: run.wait(timeout).wait(), "timeout: ")
    refused(bed, lambda: run.result(timeout).wait(), "timeout: ")
    refused(bed, lambda: bed.app.wait_for_run(run.id, timeout=timeout).wait(), "timeout: ")
    refused(bed, lambda: bed.app.stop(timeout), "timeout: ")


@pytest.mark.parametrize("timeout", [0, -1, float("-inf"), -(10**400)], ids=["0", "-1", "-inf", "-huge"])
def test_a_timeout_that_is_over_ends_the_wait_at_once(bed: Bed, late: Job[[], None], timeout: float) -> None:
    with pytest.raises(TimeoutError):
        late.trigger().wait().wait(timeout).wait()


@pytest.mark.parametrize("timeout", [None, float("inf"), 1e300, 10**400], ids=["none", "inf", "1e300", "huge"])
def test_an_endless_timeout_waits_for_as_long_as_it_takes(bed: Bed, timeout: float | None) -> None:
    assert bed.healthy.trigger(1).wait().result(timeout).wait() == 2


# -- the app itself -----------------------------------------------------------------------------------------

BAD_OPTIONS: list[dict[str, Any]] = [
    *[{"concurrency": value} for value in (0, -1, 1.5, float("nan"), "10", True, 10**5000, None, Mute())],
    *[{"max_crashes": value} for value in (0, -1, 1.5, "5", True, None)],
    *[{"max_input_bytes": value} for value in (0, -1, 1.5, float("inf"), "1MB", None)],
    *[{"max_output_bytes": value} for value in (0, -1, 1.5, "1MB", None)],
    *[{"lease": value} for value in (0, -1, float("nan"), float("inf"), "abc", None, Mute())],
    *[{"lease_renew_interval": value} for value in (0, -1, 20, "1d", Mute())],
    *[{"polling_interval": value} for value in (0, -1, float("nan"), "abc", None)],
    *[{"cancel_grace": value} for value in (-1, float("nan"), "abc", None)],
    *[{"queues": value} for value in ((), "", 5, [None], Mute())],
    *[{"worker": value} for value in ("process", 5, None)],
    *[{"jobs": value} for value in (5, [5], [sync_function], {"a": 5}, Mute())],
    *[{"url": value} for value in ("", "nonsense", "sqlite", "oracle://x", 5, None, b"sqlite://", Path("x"), "sqlite:///a\0b")],
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(BAD_OPTIONS)))
def test_an_app_with_bad_options_is_refused_where_it_is_made(at: int) -> None:
    with pytest.raises(HoldfastError):
        Holdfast(**{"url": "sqlite://", **BAD_OPTIONS[at]})


@pytest.mark.parametrize("type", ["run:nonsense", "", "\ud800", 5, None, ["run:fail"]], ids=repr)
def test_an_event_that_there_is_not_is_refused(bed: Bed, type: Any) -> None:
    with pytest.raises(HoldfastError, match="is not an event"):
        bed.app.on(type, print)
