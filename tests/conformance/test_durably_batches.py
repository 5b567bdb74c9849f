"""Durably 11.3, 11.12, 11.13: many runs in one call, and a schema for labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conformance_jobs import FORMS, LONG, Heard, work
from pydantic import BaseModel

from holdfast import ConflictError, Holdfast, Job, ValidationError, job
from house import House


def _numbered(form: str) -> Job[..., Any]:
    @job(name="work")
    async def numbered(n: int) -> int:
        return n

    @job(name="work")
    def numbered_sync(n: int) -> int:
        return n

    return numbered if form == "async" else numbered_sync


@pytest.fixture(params=FORMS)
def app(house: House, request: pytest.FixtureRequest) -> Iterator[Holdfast]:
    """It executes nothing."""
    app = house.app(_numbered(request.param), worker=False)
    app.init().wait(LONG)
    yield app
    app.stop().wait(LONG)


# -- many runs -------------------------------------------------------------------------------------------------------


def test_three_calls_make_three_pending_runs_in_their_order(app: Holdfast) -> None:
    runs = app.trigger_many([work(app).bind(n) for n in range(3)]).wait(LONG)
    assert [(run.status, run.input, run.disposition) for run in runs] == [
        ("pending", {"n": n}, "created") for n in range(3)
    ]
    assert [run.id for run in app.get_runs().wait(LONG)] == [run.id for run in runs[::-1]]


def test_one_wrong_input_among_many_is_refused_and_nothing_is_written(app: Holdfast) -> None:
    with pytest.raises(ValidationError, match="n"):
        app.trigger_many([work(app).bind(1), work(app).bind("two"), work(app).bind(3)])
    assert app.get_runs().wait(LONG) == []


def test_each_of_many_calls_has_options_of_its_own(app: Holdfast) -> None:
    one = work(app).options(idempotency_key="once", labels={"env": "test"}).bind(1)
    two = work(app).options(concurrency_key="customer", priority=3).bind(2)
    first, second = app.trigger_many([one, two]).wait(LONG)
    assert (first.idempotency_key, first.concurrency_key, first.labels) == ("once", None, {"env": "test"})
    assert (second.idempotency_key, second.concurrency_key, second.priority) == (None, "customer", 3)


def test_no_calls_are_no_runs(app: Holdfast) -> None:
    assert app.trigger_many([]).wait(LONG) == []


def test_a_second_call_of_a_key_that_skips_is_given_the_first_run_of_its_batch(app: Holdfast) -> None:
    heard = Heard(app, "run:trigger", "run:coalesced")
    skip = work(app).options(concurrency_key="customer", coalesce="skip")
    first, second = app.trigger_many([skip.bind(1), skip.bind(2)]).wait(LONG)
    assert (first.disposition, second.disposition) == ("created", "coalesced")
    assert (second.id, second.input) == (first.id, {"n": 1})
    app.stop().wait(LONG)  # tells what is still to be told
    assert heard.types == ["run:trigger", "run:coalesced"]


def test_a_conflict_in_a_batch_leaves_nothing_of_it_and_tells_nothing(app: Holdfast) -> None:
    heard = Heard(app, "run:trigger", "run:coalesced")
    keyed = work(app).options(concurrency_key="customer")
    with pytest.raises(ConflictError, match="customer"):
        app.trigger_many([work(app).bind(0), keyed.bind(1), keyed.bind(2)]).wait(LONG)
    assert app.get_runs().wait(LONG) == []
    app.stop().wait(LONG)
    assert heard.events == []


def test_a_batch_may_mix_new_runs_with_idempotent_and_coalesced_ones_of_before(app: Holdfast) -> None:
    once = work(app).options(idempotency_key="once").trigger(1).wait(LONG)
    waits = work(app).options(concurrency_key="customer").trigger(2).wait(LONG)
    runs = app.trigger_many(
        [
            work(app).options(idempotency_key="once").bind(3),
            work(app).options(concurrency_key="customer", coalesce="skip").bind(4),
            work(app).options(idempotency_key="once", concurrency_key="customer").bind(5),
            work(app).bind(6),
        ]
    ).wait(LONG)
    assert [run.disposition for run in runs] == ["idempotent", "coalesced", "idempotent", "created"]
    assert [run.id for run in runs[:3]] == [once.id, waits.id, once.id]
    assert [run.input["n"] for run in runs] == [1, 2, 1, 6]


# -- labels ----------------------------------------------------------------------------------------------------------


class Labels(BaseModel):
    tenant: str
    region: str = "eu"


@pytest.fixture(params=FORMS)
def labelled(house: House, request: pytest.FixtureRequest) -> Iterator[Holdfast]:
    app = house.app(_numbered(request.param), worker=False, labels_schema=Labels)
    app.init().wait(LONG)
    yield app
    app.stop().wait(LONG)


@pytest.mark.parametrize("labels", [{}, {"region": "eu"}], ids=["none", "one is missing"])
def test_labels_that_do_not_fit_the_schema_are_refused_alone_and_among_many(
    labelled: Holdfast, labels: dict[str, str]
) -> None:
    with pytest.raises(ValidationError, match="labels"):
        work(labelled).options(labels=labels).trigger(1).wait(LONG)
    with pytest.raises(ValidationError, match="labels"):
        labelled.trigger_many([work(labelled).options(labels=labels).bind(1)]).wait(LONG)
    assert labelled.get_runs().wait(LONG) == []


def test_no_labels_are_checked_as_any_others(labelled: Holdfast) -> None:
    with pytest.raises(ValidationError, match="labels"):
        work(labelled).trigger(1).wait(LONG)


def test_labels_that_fit_the_schema_are_stored_as_it_says(labelled: Holdfast) -> None:
    run = work(labelled).options(labels={"tenant": "a"}).trigger(1).wait(LONG)
    assert run.labels["tenant"] == "a"
    assert run.refresh().wait(LONG).labels == run.labels


def test_labels_that_no_longer_fit_the_schema_are_refused_by_a_retrigger(house: House) -> None:
    with house.app(_numbered("sync")) as before:
        run = work(before).options(labels={"region": "eu"}).trigger_and_wait(1).wait(LONG)
    after = house.app(_numbered("sync"), worker=False, labels_schema=Labels)
    after.init().wait(LONG)
    with pytest.raises(ValidationError, match=f"Cannot retrigger run {run.id}.*labels"):
        after.retrigger(run.id).wait(LONG)
    after.stop().wait(LONG)
