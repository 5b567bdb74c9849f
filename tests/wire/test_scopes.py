"""Scopes that are none: what a hook gives is understood, or nothing is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from asking import Asking, asking_of
from holdfast import job
from holdfast.http import Auth
from house import House


@job
async def nothing() -> None: ...


def run(test: Callable[[Asking], Any], house: House, **options: Any) -> None:
    asking_of(house.app(nothing, worker=False), test, **options)


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        (
            {"jobname": ["nothing"]},
            "'jobname': a scope has no such key. There are job_name, status, labels, limit, offset",
        ),
        ({"jobName": "nothing"}, "'jobName': a scope has no such key"),
        ({5: "nothing"}, "5: a scope has no such key"),
        ({"job_name": None}, "job_name: None is neither a text nor a list of texts"),
        ({"job_name": {"nothing": 1}}, "job_name: "),
        ({"job_name": [5]}, "job_name: "),
        ({"job_name": "a\0"}, "job_name: "),
        ({"status": "running"}, "status: 'running' is no status"),
        ({"status": ["pending", None]}, "status: "),
        ({"labels": None}, "labels: "),
        ({"labels": {"a": 5}}, "labels: "),
        ({"labels": ["a"]}, "labels: "),
        ({"limit": -1}, "limit: -1"),
        ({"limit": "5"}, "limit: '5'"),
        ({"limit": None}, "limit: None"),
        ({"limit": True}, "limit: True"),
        ({"offset": -1}, "offset: -1"),
        ({"offset": 1.5}, "offset: 1.5"),
        ({"offset": 2**60}, "offset: "),
    ],
    ids=repr,
)
@pytest.mark.parametrize("subscribes", [False, True], ids=["list", "stream"])
def test_t5_a_scope_that_is_none_shows_nothing_and_is_an_error_of_the_application(
    scope: Any, said: str, subscribes: bool, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(ask: Asking) -> None:
        await ask.trigger("nothing")
        paths = ["/runs/subscribe"] if subscribes else ["/runs", "/runs/records"]
        for path in paths:
            answer = await ask.get(path)
            assert (answer.status, "Internal error" in answer.error) == (500, True)
        if not subscribes:
            assert (await ask.post("/runs/cancel")).status == 500
        assert house.status() == ["pending"]
        hook = "scope_runs_subscribe" if subscribes else "scope_runs"
        assert f"{hook}: {said}" in caplog.text

    def give(_: Any, __: Any) -> Any:
        return scope

    run(test, house, auth=Auth(authenticate=lambda _: "ada", scope_runs=give, scope_runs_subscribe=give))


def test_what_a_hook_passes_on_of_a_request_is_checked_before_it_is_asked(house: House) -> None:
    async def test(ask: Asking) -> None:
        for params in ({"jobName": "a\0"}, {"label.a b": "c"}, {"status": "running"}, {"offset": "-1"}):
            assert (await ask.get("/runs", params)).status == 400
        assert (await ask.get("/runs", {"jobName": "", "status": "pending", "label.a": "b", "offset": "1"})).json == []

    run(test, house, auth=Auth(authenticate=lambda _: "ada", scope_runs=lambda _, scope: scope))
