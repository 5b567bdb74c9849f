"""`Holdfast(labels_schema=…)`: what the labels of every run must be, and what is stored of them."""

from __future__ import annotations

import asyncio
import datetime
import enum
import sqlite3
import sys
import typing
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator
from typing_extensions import TypedDict

from holdfast import Event, Holdfast, Job, NotFoundError, ValidationError, job
from house import House

LONG = 20.0


class Model(BaseModel):
    tenant: str
    region: Literal["eu", "us"] = "eu"


@dataclass
class Data:
    tenant: str
    region: Literal["eu", "us"] = "eu"


class Typed(TypedDict):
    tenant: str
    region: NotRequired[Literal["eu", "us"]]


class Odd:
    pass


@dataclass
class OfOdd:
    odd: Odd


class Plain(typing.TypedDict):
    tenant: str


class Forms(enum.Enum):
    MODEL = Model
    DATACLASS = Data
    TYPED_DICT = Typed


@pytest.fixture(params=list(Forms), ids=lambda form: form.name.lower())
def form(request: pytest.FixtureRequest) -> Forms:
    return request.param  # type: ignore[no-any-return]


@job
async def work(n: int) -> int:
    return n


@job(name="work")
def sync_work(n: int) -> int:
    return n


@job(name="work", labels={"tenant": "house", "region": "us"})
def labelled_work(n: int) -> int:
    return n


@pytest.fixture
def apps(house: House) -> Iterator[Apps]:
    apps = Apps(house)
    yield apps
    for app in apps.all:
        app.stop().wait(LONG)


class Apps:
    """Apps on one file that trigger and execute nothing by themselves."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.all: list[Holdfast] = []

    def app(self, schema: Any, *, job: Job[..., Any] = sync_work, **options: Any) -> Holdfast:
        app = self.house.app(job, worker=False, labels_schema=schema, **options)
        self.all.append(app)
        app.init().wait(LONG)
        return app

    def stored(self) -> list[Any]:
        return self.house.sql("select labels from holdfast_runs order by id")


def labels_of(app: Holdfast, **labels: str) -> dict[str, str]:
    """What is stored of these labels."""
    run = app.jobs.sync_work.options(labels=labels).trigger(1).wait(LONG)
    stored: dict[str, str] = app.get_run(run.id).wait(LONG).labels  # type: ignore[union-attr]
    assert run.labels == stored
    return stored


# -- what it is checked by -------------------------------------------------------------------------------------------


def test_labels_that_fit_are_stored_whatever_form_the_schema_has(apps: Apps, form: Forms) -> None:
    assert labels_of(apps.app(form.value), tenant="a", region="us") == {"tenant": "a", "region": "us"}


def test_a_required_label_that_is_missing_is_named_and_nothing_is_written(apps: Apps, form: Forms) -> None:
    app = apps.app(form.value)
    with pytest.raises(ValidationError, match=r"^labels: tenant: Field required$"):
        app.jobs.sync_work.options(labels={"region": "us"}).trigger(1)
    assert apps.stored() == []


def test_a_trigger_without_labels_is_checked_as_any_other(apps: Apps, form: Forms) -> None:
    app = apps.app(form.value)
    with pytest.raises(ValidationError, match=r"^labels: tenant: Field required$"):
        app.jobs.sync_work.trigger(1)
    assert apps.stored() == []


def test_a_wrong_value_is_refused_with_what_is_allowed(apps: Apps, form: Forms) -> None:
    app = apps.app(form.value)
    with pytest.raises(ValidationError, match=r"^labels: region: Input should be 'eu' or 'us'$"):
        app.jobs.sync_work.options(labels={"tenant": "a", "region": "mars"}).trigger(1)


@pytest.mark.parametrize("schema", [Model, Data], ids=["model", "dataclass"])
def test_defaults_are_filled_in_and_stored(apps: Apps, schema: Any) -> None:
    assert labels_of(apps.app(schema), tenant="a") == {"tenant": "a", "region": "eu"}


def test_a_schema_of_defaults_alone_labels_runs_that_were_given_none(apps: Apps) -> None:
    class Defaults(BaseModel):
        region: str = "eu"

    run = apps.app(Defaults).jobs.sync_work.trigger(1).wait(LONG)
    assert run.labels == {"region": "eu"}


def test_the_labels_of_the_job_count(apps: Apps, form: Forms) -> None:
    app = apps.app(form.value, job=labelled_work)
    run = app.jobs.labelled_work.trigger(1).wait(LONG)
    other = app.jobs.labelled_work.options(labels={"tenant": "b"}).trigger(1).wait(LONG)
    assert (run.labels, other.labels) == (
        {"tenant": "house", "region": "us"},
        {"tenant": "b", "region": "us"},
    )


def test_every_problem_is_told_at_once(apps: Apps) -> None:
    app = apps.app(Model)
    with pytest.raises(ValidationError, match=r"^labels: tenant: Field required; region: Input should be"):
        app.jobs.sync_work.options(labels={"region": "mars"}).trigger(1)


# -- every way to trigger --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["trigger", "run", "trigger_and_wait"])
def test_each_verb_of_a_job_refuses_wrong_labels_in_the_call_itself(apps: Apps, verb: str) -> None:
    handle = apps.app(Model).jobs.sync_work
    with pytest.raises(ValidationError, match="labels: tenant"):
        getattr(handle, verb)(1)
    assert apps.stored() == []


def test_the_verbs_of_an_app_refuse_wrong_labels_too_and_a_batch_says_which(apps: Apps) -> None:
    app = apps.app(Model)
    handle = app.jobs.sync_work
    right = handle.options(labels={"tenant": "a"}).bind(1)
    with pytest.raises(ValidationError, match=r"^labels: tenant"):
        app.trigger(handle.bind(1))
    with pytest.raises(ValidationError, match=r"^calls\[1\]: labels: tenant"):
        app.trigger_many([right, handle.bind(2)])
    assert apps.stored() == []
    assert [run.labels for run in app.trigger_many([right, right]).wait(LONG)] == [{"tenant": "a", "region": "eu"}] * 2


@pytest.mark.only("sqlite", "a connection of sqlite3")
def test_a_trigger_in_a_transaction_of_the_callers_is_checked_and_filled_in(apps: Apps) -> None:
    app = apps.app(Model)
    handle = app.jobs.sync_work
    with closing(sqlite3.connect(apps.house.path, isolation_level=None)) as connection:
        connection.execute("begin immediate")
        with pytest.raises(ValidationError, match=r"^labels: tenant"):
            app.trigger(handle.bind(1), connection=connection)
        app.trigger(handle.options(labels={"tenant": "a"}).bind(1), connection=connection).wait(LONG)
        connection.execute("commit")
    assert apps.stored() == [('{"tenant":"a","region":"eu"}',)]


async def _async_trigger(house: House) -> None:
    async with house.app(work, labels_schema=Model) as app:
        handle = app.jobs.work
        with pytest.raises(ValidationError, match=r"^labels: tenant"):
            await handle.trigger(1)
        run = await handle.options(labels={"tenant": "a"}).trigger_and_wait(1)
        assert (run.status, run.labels) == ("completed", {"tenant": "a", "region": "eu"})
        again = await app.retrigger(run.id)
        assert again.labels == run.labels


def test_async_code_has_its_labels_checked_the_same_way(house: House) -> None:
    asyncio.run(_async_trigger(house))


def test_a_job_triggered_by_a_run_has_its_labels_checked(house: House) -> None:
    app = house.app(work, labels_schema=Model)

    @app.job
    async def outer() -> str:
        try:
            await app.jobs.work.trigger(1)
        except ValidationError as error:
            return error.message
        return "triggered"

    with app:
        assert outer.options(labels={"tenant": "a"}).run().wait(LONG) == "labels: tenant: Field required"


def test_an_idempotent_hit_does_not_excuse_wrong_labels(apps: Apps) -> None:
    handle = apps.app(Model).jobs.sync_work.options(idempotency_key="once")
    handle.options(labels={"tenant": "a"}).trigger(1).wait(LONG)
    with pytest.raises(ValidationError, match=r"^labels: tenant"):
        handle.trigger(1)


# -- what is stored --------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


def _texts(strict: bool) -> type[BaseModel]:
    class Values(BaseModel):
        model_config = ConfigDict(strict=strict)

        number: int
        flag: bool
        day: datetime.date
        id: uuid.UUID
        colour: Colour
        one: Number
        share: float

    return Values


@pytest.mark.parametrize("strict", [False, True], ids=["lax", "strict"])
def test_values_are_read_from_texts_and_written_as_texts_again(apps: Apps, strict: bool) -> None:
    id = "12345678-1234-5678-1234-567812345678"
    stored = labels_of(
        apps.app(_texts(strict)),
        number=" 5 ", flag="yes", day="2026-01-31", id=id.replace("-", ""), colour="red", one="1", share="1e-1",
    )  # fmt: skip
    assert stored == {
        "number": "5", "flag": "true", "day": "2026-01-31", "id": id, "colour": "red", "one": "1", "share": "0.1",
    }  # fmt: skip


def test_what_is_none_is_no_label(apps: Apps) -> None:
    class Optional(BaseModel):
        tenant: str | None = None
        region: str = "eu"

        @field_validator("tenant")
        @classmethod
        def nothing(cls, value: str | None) -> str | None:
            return None if value == "none" else value

    app = apps.app(Optional)
    assert labels_of(app) == {"region": "eu"}
    assert labels_of(app, tenant="none") == {"region": "eu"}
    assert labels_of(app, tenant="a") == {"tenant": "a", "region": "eu"}


def test_what_comes_out_as_no_text_is_refused(apps: Apps) -> None:
    class Listing(BaseModel):
        tags: list[str] = []

    with pytest.raises(ValidationError, match=r"^labels: tags: list is not a string\.$"):
        apps.app(Listing).jobs.sync_work.trigger(1)


@pytest.mark.parametrize("made", ["x" * 256, "\0", "\ud800"], ids=["too long", "NUL", "surrogate"])
def test_what_comes_out_must_be_a_text_that_a_label_may_have(apps: Apps, made: str) -> None:
    class Making(BaseModel):
        tenant: str

        @field_validator("tenant")
        @classmethod
        def make(cls, value: str) -> str:
            return made

    with pytest.raises(ValidationError, match=r"^labels: tenant: "):
        apps.app(Making).jobs.sync_work.options(labels={"tenant": "a"}).trigger(1)
    assert apps.stored() == []


def test_a_key_that_comes_out_must_be_one_that_a_label_may_have(apps: Apps) -> None:
    class Spaced(BaseModel):
        tenant: str = Field("a", alias="the tenant")

    with pytest.raises(ValidationError, match="Invalid label key 'the tenant'"):
        apps.app(Spaced).jobs.sync_work.trigger(1)


def test_an_alias_is_the_key_of_the_label(apps: Apps) -> None:
    class Aliased(BaseModel):
        org: str = Field(alias="org/id")

    app = apps.app(Aliased)
    run = app.jobs.sync_work.options(labels={"org/id": "7"}).trigger(1).wait(LONG)
    assert run.labels == {"org/id": "7"}
    assert [found.id for found in app.get_runs(labels={"org/id": "7"}).wait(LONG)] == [run.id]
    with pytest.raises(ValidationError, match=r"^labels: org/id: Field required$"):
        app.jobs.sync_work.options(labels={"org": "7"}).trigger(1)


def test_what_is_computed_is_no_label_so_that_the_schema_takes_what_it_gives(apps: Apps) -> None:
    class Computed(BaseModel):
        model_config = ConfigDict(extra="forbid")
        tenant: str

        @computed_field
        @property
        def upper(self) -> str:
            return self.tenant.upper()

    assert labels_of(apps.app(Computed), tenant="a") == {"tenant": "a"}


def test_runs_are_found_by_what_was_stored_not_by_what_was_given(apps: Apps) -> None:
    class Flagged(BaseModel):
        trial: bool = False

    app = apps.app(Flagged)
    one = app.jobs.sync_work.options(labels={"trial": "yes"}).trigger(1).wait(LONG)
    two = app.jobs.sync_work.trigger(2).wait(LONG)

    def found(value: str) -> list[str]:
        return [run.id for run in app.get_runs(labels={"trial": value}).wait(LONG)]

    assert (found("true"), found("false"), found("yes")) == ([one.id], [two.id], [])


def test_events_and_the_step_have_the_labels_that_were_stored(house: House) -> None:
    seen: list[dict[str, str]] = []
    app = house.app(sync_work, labels_schema=Model)

    def hear(event: Event) -> None:
        seen.append(event.labels)

    for type in ("run:trigger", "run:leased", "run:complete"):
        app.on(type, hear)
    with app:
        app.jobs.sync_work.options(labels={"tenant": "a"}).run(1).wait(LONG)
    assert seen == [{"tenant": "a", "region": "eu"}] * 3


def test_a_coalesced_trigger_tells_the_labels_that_it_would_have_stored(apps: Apps) -> None:
    skipped: list[Any] = []
    app = apps.app(Model)
    app.on("run:coalesced", lambda event: skipped.append(event.skipped_labels))
    handle = app.jobs.sync_work.options(concurrency_key="k", coalesce="skip")
    handle.options(labels={"tenant": "a"}).trigger(1).wait(LONG)
    handle.options(labels={"tenant": "b"}).trigger(1).wait(LONG)
    app.stop().wait(LONG)  # tells what is still to be told
    assert skipped == [{"tenant": "b", "region": "eu"}]


# -- unknown labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["forbid", "ignore", "allow"])
def test_unknown_labels_go_by_the_config_of_the_model(apps: Apps, extra: Literal["forbid", "ignore", "allow"]) -> None:
    class Configured(BaseModel):
        model_config = ConfigDict(extra=extra)
        tenant: str

    app = apps.app(Configured)
    if extra == "forbid":
        with pytest.raises(ValidationError, match=r"^labels: tenent: Extra inputs are not permitted$"):
            labels_of(app, tenant="a", tenent="b")
    else:
        kept = {"tenent": "b"} if extra == "allow" else {}
        assert labels_of(app, tenant="a", tenent="b") == {"tenant": "a", **kept}


@pytest.mark.parametrize("form", [Forms.DATACLASS, Forms.TYPED_DICT], ids=["dataclass", "typed_dict"])
def test_a_dataclass_or_typed_dict_that_says_nothing_refuses_unknown_labels(apps: Apps, form: Forms) -> None:
    app = apps.app(form.value)
    with pytest.raises(ValidationError, match=r"^labels: tenent: "):
        labels_of(app, tenant="a", tenent="b")
    assert apps.stored() == []


def test_a_dataclass_or_typed_dict_may_say_that_unknown_labels_are_fine(apps: Apps) -> None:
    @pydantic.with_config(ConfigDict(extra="ignore"))
    @dataclass
    class Loose:
        tenant: str

    @pydantic.with_config(ConfigDict(extra="allow"))
    class Open(TypedDict):
        tenant: str

    assert labels_of(apps.app(Loose), tenant="a", more="b") == {"tenant": "a"}
    assert labels_of(apps.app(Annotated[Open, "of some kind"]), tenant="a", more="b") == {"tenant": "a", "more": "b"}


# -- triggering again ------------------------------------------------------------------------------------------------


def _ended(house: House, **labels: str) -> str:
    """A run of before there was a schema."""
    with house.app(sync_work) as app:
        return app.jobs.sync_work.options(labels=labels).trigger_and_wait(1).wait(LONG).id


def test_a_retrigger_is_refused_if_todays_schema_refuses_the_labels(apps: Apps, form: Forms) -> None:
    id = _ended(apps.house, region="eu")
    with pytest.raises(ValidationError, match=f"^Cannot retrigger run {id}: labels: tenant: Field required$"):
        apps.app(form.value).retrigger(id).wait(LONG)
    assert len(apps.stored()) == 1


def test_a_retrigger_stores_what_todays_schema_makes_of_the_labels(apps: Apps) -> None:
    id = _ended(apps.house, tenant="a", old="x")
    assert apps.app(Model).retrigger(id).wait(LONG).labels == {"tenant": "a", "region": "eu"}


def test_a_retrigger_does_not_take_labels_from_todays_job(apps: Apps) -> None:
    id = _ended(apps.house)
    with pytest.raises(ValidationError, match="labels: tenant"):
        apps.app(Model, job=labelled_work).retrigger(id).wait(LONG)


# -- validators of the user's ----------------------------------------------------------------------------------------


def test_whatever_a_validator_raises_is_a_validation_error(apps: Apps) -> None:
    class Picky(BaseModel):
        tenant: str

        @field_validator("tenant")
        @classmethod
        def known(cls, value: str) -> str:
            if value == "value":
                raise ValueError("no such tenant")
            raise KeyError(value) if value == "key" else NotFoundError("gone")

    app = apps.app(Picky)
    for value, text in [
        ("value", "^labels: tenant: Value error, no such tenant$"),
        ("key", "^labels: KeyError: 'key'$"),
        ("other", "^labels: NotFoundError: gone$"),
    ]:
        with pytest.raises(ValidationError, match=text):
            app.jobs.sync_work.options(labels={"tenant": value}).trigger(1)


# -- the schema itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [str, dict[str, str], list[Model], Model(tenant="a"), Data("a"), {"tenant": str}, "Model", pydantic.RootModel[str]],
    ids=["str", "dict", "list", "model object", "dataclass object", "dict object", "text", "root model"],
)
def test_what_is_no_schema_of_labels_is_refused_when_the_app_is_made(schema: Any) -> None:
    with pytest.raises(ValidationError, match=r"^labels_schema: .* is no model class, dataclass or TypedDict"):
        Holdfast(labels_schema=schema)


def test_a_schema_that_pydantic_cannot_read_is_refused_when_the_app_is_made() -> None:
    with pytest.raises(ValidationError, match=r"^labels_schema: .*OfOdd.* can't be read: .*Odd"):
        Holdfast(labels_schema=OfOdd)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="since Python 3.12 Pydantic reads typing's own TypedDict")
def test_the_typed_dict_that_pydantic_cannot_read_is_refused_with_the_one_to_take() -> None:
    with pytest.raises(ValidationError, match=r"^labels_schema: .*Plain.* take TypedDict from typing_extensions"):
        Holdfast(labels_schema=Plain)


def test_without_a_word_on_unknown_labels_old_pydantics_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.engine.labels._CAN_FORBID", False)
    with pytest.raises(ValidationError, match=r"^labels_schema: .*Data.* must say what happens to unknown labels"):
        Holdfast(labels_schema=Data)
    Holdfast(labels_schema=Model)
